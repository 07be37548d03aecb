"""template.yaml as Python values: an intrinsic such as `!Ref X` reads as `{"Ref": "X"}`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import yaml

TEMPLATE = Path(__file__).resolve().parents[2] / "template.yaml"

# What PyYAML's constructors take, spelled for the reader; its stubs know no better.
Node: TypeAlias = Any


class _Loader(yaml.SafeLoader):
    """SafeLoader that knows CloudFormation's short forms."""


def _intrinsic(loader: _Loader, suffix: str, node: Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _intrinsic)


@cache
def template() -> dict[str, Any]:
    """The whole template; not to be changed."""
    document: dict[str, Any] = yaml.load(TEMPLATE.read_text(), Loader=_Loader)
    return document


def resources(kind: str) -> dict[str, dict[str, Any]]:
    """The properties of every resource of a type, by logical id."""
    return {
        name: resource["Properties"] for name, resource in template()["Resources"].items() if resource["Type"] == kind
    }
