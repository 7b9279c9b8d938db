"""YAML with few surprises: numbers by YAML 1.2's core schema, text where text is expected, each key once, and limits on size and depth."""

import re
from collections.abc import Callable, Hashable
from typing import Any

import yaml

_DEEPEST = 40
_LONGEST_NUMBER = 100  # characters
_TAGS = {f"tag:yaml.org,2002:{tag}" for tag in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}
_MOST_NODES = 20_000  # aliased values count at each use

Place = tuple[str, ...]
WantsText = Callable[[Place], bool]
"""Whether the key at this place, such as ("data", "shards"), holds text. A list's items are at the place of the list."""


class _Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where 010 is 8, 1:00 is 60, yes is true and 2020-01-01 is a date."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (as in the class above)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that YAML 1.1 or 1.2 would read as another type."""


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", [*"-+.0123456789"]),
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("merge", r"<<", ["<"]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = node.value
    try:
        if len(text) > _LONGEST_NUMBER:
            raise ValueError
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)
    except ValueError:
        raise ValueError(f"{text[:20]!r}, of {len(text)} characters, is not a number that can be used") from None


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def load(text: str, wants_text: WantsText = lambda place: False, place: Place = ()) -> Any:
    """The value of one YAML document at `place`. Raises ValueError naming the fault and its position."""
    try:
        _check_size(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_nodes(node, {}, set())
            _check_keys(node)
            _keep_text(node, wants_text, place)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, KeyError, OverflowError, RecursionError) as error:  # KeyError: !!bool x
        raise ValueError(" ".join(str(error).split())) from None


def _check_size(text: str) -> None:
    """Check depth and number of nodes first, without recursion."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, _Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"it nests deeper than {_DEEPEST} levels")
        if count > _MOST_NODES:
            raise ValueError(f"it holds more than {_MOST_NODES:,} values")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _check_nodes(node: yaml.Node, sizes: dict[int, int], above: set[int]) -> int:
    """The number of values in `node`, counting aliased values at each use. Raises ValueError if there are too many, or infinitely many."""
    if id(node) in above:
        raise ValueError("an alias is inside the node that it names")
    if id(node) not in sizes:
        above.add(id(node))
        sizes[id(node)] = 1 + sum(_check_nodes(child, sizes, above) for child in _children(node))
        above.remove(id(node))
    if sizes[id(node)] > _MOST_NODES:
        raise ValueError(f"its aliases come to more than {_MOST_NODES:,} values")
    return sizes[id(node)]


def _where(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"


def _check_keys(node: yaml.Node) -> None:
    if node.tag not in _TAGS:
        raise ValueError(f"the tag {node.tag!r} is not supported ({_where(node)})")
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"a key is not text ({_where(key)})")
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise ValueError(f"the key {key.value!r} appears twice ({_where(key)})")
            seen.add(key.value)
    for child in _children(node):
        _check_keys(child)


def _keep_text(node: yaml.Node, wants_text: WantsText, place: Place) -> None:
    """Keys are read as text. A value is read as text where text is expected, unless it is null."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                _keep_text(value, wants_text, place)
            else:
                key.tag = "tag:yaml.org,2002:str"
                _keep_text(value, wants_text, (*place, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _keep_text(item, wants_text, place)
    elif not node.tag.endswith(":null") and node.tag.startswith("tag:yaml.org,2002:") and wants_text(place):
        node.tag = "tag:yaml.org,2002:str"


def dump(value: Any) -> str:
    """Plain data as YAML that `load` and YAML 1.1 readers read back unchanged."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
