"""`template.yaml` as Python values. An intrinsic function such as `!Ref X` becomes `{"Ref": "X"}`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import yaml

TEMPLATE = Path(__file__).resolve().parents[2] / "template.yaml"

# The argument of PyYAML's constructors. The type stubs have no more exact type.
Node: TypeAlias = Any


class _Loader(yaml.SafeLoader):
    """SafeLoader that understands CloudFormation's short forms."""


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
    """Return the whole template. The caller must not change it."""
    document: dict[str, Any] = yaml.load(TEMPLATE.read_text(), Loader=_Loader)
    return document


def resources(kind: str) -> dict[str, dict[str, Any]]:
    """Return the properties of every resource of a type by logical id."""
    return {
        name: resource["Properties"] for name, resource in template()["Resources"].items() if resource["Type"] == kind
    }
