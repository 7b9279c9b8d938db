"""Bounded number types for settings. pydantic refuses a number outside, naming the bound."""

from typing import Annotated

from pydantic import Field

Positive = Annotated[int, Field(ge=1, le=10**6)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
