"""Bounds of dependencies: each lower bound is what `make lowest` tests, and each pin is within the bounds."""

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(file: str) -> dict[str, Version]:
    lines = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / file).read_text(), re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in lines}


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    bounds = {}
    for requirement in map(Requirement, PROJECT["dependencies"]):
        (bound,) = requirement.specifier
        assert bound.operator == ">="
        bounds[canonicalize_name(requirement.name)] = Version(bound.version)
    assert pins("constraints-lowest.txt") == bounds


def test_pins_are_within_the_bounds() -> None:
    pinned = pins("constraints.txt")
    extras = [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def required(requirement: Requirement) -> set[str]:
    """The requirement and all that it pulls in, by name."""
    found: set[str] = set()
    left = [requirement]
    while left:
        name, extras = left[-1].name, left.pop().extras
        found.add(canonicalize_name(name))
        below = [Requirement(text) for text in requires(name) or ()]
        wanted = [one for one in below if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras))]
        left += [one for one in wanted if canonicalize_name(one.name) not in found or one.extras]
    return found


def test_the_images_mlflow_and_rays_launcher_can_use_s3_and_aws() -> None:
    """MLflow keeps files in S3 with boto3, and Ray's launcher calls AWS with it. Neither of the two requires it."""
    server = set().union(*(required(Requirement(text)) for text in PROJECT["optional-dependencies"]["server"]))
    assert {"boto3", "psycopg2-binary", "flask-wtf"} <= server
