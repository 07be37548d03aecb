"""Every position of a string, a number or a key in the requests of an OpenAPI document."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tests.support.api import SOME_ID

Step: TypeAlias = str | int
PLACEHOLDER = "@@placeholder@@"
MAX_DEPTH = 7
SCHEMA_KEYWORDS = (
    "minimum", "maximum", "exclusiveMinimum", "multipleOf", "minLength", "maxLength", "minItems", "maxContains",
    "minProperties", "pattern", "const", "default", "title", "$ref", "$anchor", "format", "type", "description",
)  # fmt: skip


@dataclass(frozen=True)
class Position:
    """A position in a body: a value, or with `is_key` the name of a member."""

    path: tuple[Step, ...]
    is_key: bool = False
    is_name: bool = False
    """Whether the schema of the position has the pattern of names."""

    def __str__(self) -> str:
        return "".join(f"/{step}" for step in self.path) + (" (key)" if self.is_key else "")


def body_positions(schema: Any, components: Mapping[str, Any]) -> list[Position]:
    """Return the distinct positions in a body, including those of the schemas that a body can contain."""
    found = dict.fromkeys(_positions(schema, components, (), ()))
    for position in list(found):
        if position.path == ("payload_schema",):
            found |= dict.fromkeys(Position((*position.path, keyword)) for keyword in SCHEMA_KEYWORDS)
            found |= dict.fromkeys(Position((*position.path, *inner)) for inner in (("enum", 0), ("required", 0)))
            found[Position((*position.path, "properties", "x"), is_key=True)] = None
    return list(found)


def place(body: Any, position: Position) -> Any:
    """Return a copy of a body with the placeholder at a position. Missing objects and lists are created."""
    root = [copy.deepcopy(body)]
    parent: Any = root
    step: Step = 0
    for next_step in position.path:
        child: Any = {} if isinstance(next_step, str) else []
        current = parent[step] if isinstance(parent, dict) is False or step in parent else None
        parent[step] = current if isinstance(current, type(child)) else child
        parent, step = parent[step], next_step
        if isinstance(parent, list) and len(parent) <= int(step):
            parent += [None] * (int(step) + 1 - len(parent))
    if position.is_key:
        value = parent.pop(str(step), None)
        parent[PLACEHOLDER] = value
    else:
        parent[step] = PLACEHOLDER
    return root[0]


def minimal(schema: Any, components: Mapping[str, Any]) -> Any:
    """Return a small value of a schema."""
    schema = _resolve(schema, components)
    if not isinstance(schema, Mapping):
        return None
    if schema.get("examples"):
        return schema["examples"][0]
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema and "properties" not in schema:
            return minimal(schema[keyword][0], components)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return {name: minimal(properties[name], components) for name in schema.get("required", ())}
        case "array":
            return [minimal(schema["items"], components)] * schema.get("minItems", 0)
        case "string":
            return SOME_ID if "-7[0-9a-f]" in schema.get("pattern", "") else "a"
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
    return None


def parameters(operation: Mapping[str, Any], place_of: Literal["path", "query", "header"]) -> list[str]:
    """Return the names of the parameters of an operation at one place."""
    return [parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == place_of]


def _positions(
    schema: Any, components: Mapping[str, Any], path: tuple[Step, ...], refs: Sequence[str]
) -> Iterator[Position]:
    if isinstance(schema, Mapping) and "$ref" in schema:
        if schema["$ref"] in refs:
            return
        refs = [*refs, schema["$ref"]]
    schema = _resolve(schema, components)
    if len(path) > MAX_DEPTH or schema is False:
        return
    if not isinstance(schema, Mapping) or not (schema.keys() & {"type", "anyOf", "oneOf", "enum", "const", "not"}):
        yield from _any_positions(path)
        return
    for keyword in ("anyOf", "oneOf", "allOf"):
        for alternative in schema.get(keyword, ()):
            if isinstance(alternative, Mapping) and alternative.keys() - {"required", "properties"}:
                yield from _positions(alternative, components, path, refs)
    types = schema.get("type", ())
    types = [types] if isinstance(types, str) else types
    if (path and {"string", "number", "integer", "boolean"} & set(types)) or schema.keys() & {"enum", "const"}:
        yield Position(path, is_name="\\uFDD0" in str(schema.get("pattern", "")))
    if "array" in types:
        yield from _positions(schema.get("items", True), components, (*path, 0), refs)
    if "object" in types:
        for name, member in schema.get("properties", {}).items():
            yield from _positions(member, components, (*path, name), refs)
        if schema.get("additionalProperties") is not False:
            names = schema.get("propertyNames", {})
            yield Position((*path, "extra"), is_key=True, is_name="\\uFDD0" in str(names.get("pattern", "")))
            yield from _positions(schema.get("additionalProperties", True), components, (*path, "extra"), refs)


def _any_positions(path: tuple[Step, ...]) -> Iterator[Position]:
    yield Position(path)
    if path:
        yield Position((*path, "inner", 0))
        yield Position((*path, "inner"), is_key=True)


def _resolve(schema: Any, components: Mapping[str, Any]) -> Any:
    while isinstance(schema, Mapping) and "$ref" in schema:
        schema = components[schema["$ref"].rpartition("/")[2]]
    return schema
