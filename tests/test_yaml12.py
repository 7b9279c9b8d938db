"""What was typed is what is meant: numbers by YAML 1.2, text as it stands, and an end to every document."""

import contextlib
import itertools
import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distmeta import yaml12

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(allow_nan=False), TEXT)
NAMES = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
PLAIN = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=10)
AMBIGUOUS = ["010", "0o17", "1:00", "1e-3", "1e3", "yes", "off", "null", "~", "2020-01-01", ".5", "0x1f", "1_000", "=", "<<", "true"]


@given(PLAIN)
def test_what_is_dumped_is_read_back(value: Any) -> None:
    assert yaml12.load(yaml12.dump(value)) == value


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    dumped = yaml12.dump({"a": text})
    assert yaml12.load(dumped) == {"a": text}
    assert yaml.safe_load(dumped) == {"a": text}, "readers of YAML 1.1 are misled"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-07", -7),
        ("0o17", 15),
        ("0x1F", 31),
        ("1:00", "1:00"),
        ("1e-3", 0.001),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("yes", "yes"),
        ("on", "on"),
        ("2020-99-99", "2020-99-99"),
        ("1_000", "1_000"),
        ("~", None),
        ("", None),
        ("{a: 1, <<: {b: 2}}", {"a": 1, "b": 2}),
        ("{1: a, true: b, null: c}", {"1": "a", "true": "b", "null": "c"}),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    found = yaml12.load(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("9" * 5000, "of 5000 characters, is not a number"),
        ("0x" + "f" * 5000, "of 5002 characters, is not a number"),
        ("[" * 900, "nests deeper than 40 levels"),
        ("- " * 900, "nests deeper than 40 levels"),
        ("{a: " * 900, "nests deeper than 40 levels"),
        ("&a [*a]", "an alias is inside the node that it names"),
        ("a: 1\nb: 2\na: 3", r"the key 'a' appears twice \(line 3, column 1\)"),
        ("? [a]\n: 1", "a key is not text"),
        ("!!python/object/apply:os.system [id]", "the tag .*os.system' is not supported"),
        ("!!timestamp x", "the tag .*timestamp' is not supported"),
        ("!!bool x", "x"),
        ("!!int x", "is not a number"),
        ("<<: 1", "expected a mapping"),
        ("a: b\n---\nc: d", "expected a single document"),
        ("a\0b", "special characters"),
        ("'never closed", "while scanning a quoted scalar"),
        ("- x\n" * 30_000, "holds more than 20,000 values"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        yaml12.load(text)


@pytest.mark.parametrize("again", ["[*{0},*{0},*{0},*{0}]", "{{<<: [*{0},*{0}]}}"])
def test_aliases_that_multiply_are_refused(again: str) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = ["a: &a [x, x]" if again.startswith("[") else "a: &a {k: 1}"]
    lines += [f"{name}: &{name} {again.format(before)}" for before, name in itertools.pairwise(letters)]
    with pytest.raises(ValueError, match="its aliases come to more than 20,000 values"):
        yaml12.load("\n".join(lines))


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_as_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        yaml12.load(text)
