"""The name under which models published by distmeta 0.1 import their own code, for when a later distmeta is imported before them."""

from distmeta.inference.inputs import Picture, Pictures
from distmeta.inference.model import Adapted, Model, build

__all__ = ["Adapted", "Model", "Picture", "Pictures", "build"]
