"""Strict YAML: only the values of JSON. A date stays text, and so does `no`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, ClassVar

import yaml

from vigil.strict_json import require_rules
from vigil_core.domain.exact_json import mark_decimal, mark_integer

_BASE = "tag:yaml.org,2002:"
_NUMBERS = {
    "int": re.compile(r"-?(?:0|[1-9][0-9]*)\Z"),
    "float": re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)\Z"),
}
_KEYWORDS = {"null": re.compile(r"(?:null|~|)\Z"), "bool": re.compile(r"(?:true|false)\Z")}


_UNICODE_BREAK = re.compile("[\x85\u2028\u2029]")
MAX_VALUES = 1_000_000
"""A document has at most this many values and keys, each counted as often as aliases repeat it."""


class _Loader(yaml.SafeLoader):
    """A loader for JSON's types in JSON's notation. Keys are texts and unique."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc] # The base class declares it as an instance attribute.
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_BASE) in ("null", "bool", "str", "seq")
    }

    def construct_json_object(self, node: yaml.MappingNode) -> dict[str, Any]:
        """Construct a mapping in the order of its keys."""
        self.flatten_mapping(node)
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not text", key_node.start_mark)
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping

    def construct_number(self, node: yaml.ScalarNode) -> object:
        """Construct a number with all its digits."""
        text = str(self.construct_scalar(node))
        return mark_decimal(text) if node.tag == f"{_BASE}float" else mark_integer(text)

    def get_single_node(self) -> yaml.Node | None:
        """Compose the document, and reject it if its aliases expand to too many values."""
        root: yaml.Node | None = super().get_single_node()
        if root is not None and _expanded_count(root, {}) > MAX_VALUES:
            raise yaml.constructor.ConstructorError(
                None, None, f"its aliases expand to more than {MAX_VALUES} values", root.start_mark
            )
        return root

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping and reject duplicate keys, before `<<` merges keys that may be overridden."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            text = key.value if isinstance(key, yaml.ScalarNode) else None
            if text in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {text!r} occurs a second time", key.start_mark
                )
            seen |= {text} - {None}
        return node


class _Dumper(yaml.SafeDumper):
    """A dumper whose output `_Loader` and other YAML parsers read as the same value."""

    def ignore_aliases(self, _: Any) -> bool:
        """Write repeated values in full."""
        return True


def _expanded_count(node: yaml.Node, counts: dict[yaml.Node, int]) -> int:
    """Return the number of values and keys below a node. Each node is visited once, however often it is repeated."""
    if node not in counts:
        counts[node] = 1  # A node that contains itself; the constructor rejects it.
        counts[node] += sum(_expanded_count(child, counts) for child in _children(node))
    return counts[node]


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        yield from child if isinstance(child, tuple) else (child,)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Represent a text. Line breaks of Unicode need double quotes: other styles read them as blanks."""
    return dumper.represent_scalar(f"{_BASE}str", text, style='"' if _UNICODE_BREAK.search(text) else None)


for _name, _pattern in (_NUMBERS | _KEYWORDS).items():
    _firsts = ["-", *"0123456789"] if _name in _NUMBERS else ["n", "~", "t", "f", ""]
    _Loader.add_implicit_resolver(_BASE + _name, _pattern, _firsts)
    _Dumper.add_implicit_resolver(_BASE + _name, _pattern, _firsts)
_Loader.add_implicit_resolver(f"{_BASE}merge", re.compile(r"<<\Z"), ["<"])
_Loader.add_constructor(f"{_BASE}map", _Loader.construct_json_object)
for _name in _NUMBERS:
    _Loader.add_constructor(f"{_BASE}{_name}", _Loader.construct_number)
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(Decimal, lambda dumper, number: dumper.represent_scalar(f"{_BASE}float", str(number)))


def loads(text: str) -> Any:
    """Parse one document.

    Raises:
        ValueError: The text is not YAML, or contains a value that JSON does not have; the message names the line. Or
            it breaks a rule for numbers and texts; the message has a pointer.
    """
    try:
        value = yaml.load(text, Loader=_Loader)  # A restricted SafeLoader.
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        location = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ValueError(f"it is not YAML: {error.problem}{location}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {' '.join(str(error).split())}") from error
    require_rules(value)
    return value


def dumps(value: Any) -> str:
    """Format a JSON value as a YAML document."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
