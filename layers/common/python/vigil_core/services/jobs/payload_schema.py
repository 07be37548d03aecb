"""JSON Schema (draft 2020-12) for payloads: which schemas are taken, and what is wrong with a payload.

Both schema and payload come from outside, and neither may keep the function busy. Schemas are bounded when they are
put; a payload is checked on a budget of steps; patterns are matched by an engine without backtracking; no reference
leads out of the schema. Imported by those who meet a schema, for the library takes a tenth of a second to load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from itertools import islice
from typing import Annotated, Any
from urllib.parse import unquote

import jsonschema_specifications
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend
from pydantic import StringConstraints, TypeAdapter
from pydantic import ValidationError as NoMatch
from pydantic_core import SchemaError
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from vigil_core.domain.errors import FieldProblem, ValidationFailed, escape_pointer_token
from vigil_core.domain.exact_json import JsonValue, canonical, dumps
from vigil_core.domain.jobs.pattern_cost import MAX_PATTERN_CHARS, regex_cost

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MAX_SUBSCHEMAS = 500
MAX_SCHEMA_DEPTH = 32
"""Of subschemas within each other."""
MAX_REGEX_COST = 1_000
"""Of all patterns of a schema."""
MAX_PROBLEMS = 20
MAX_DETAIL_CHARS = 200
MAX_STEPS = 200_000
"""What one payload may take to check, some 5 µs each."""
STEPS_PER_REFERENCE = 10
CHARACTERS_PER_STEP = 400
"""How many characters a pattern that weighs 1 looks at in the time of a step."""
MAX_DIGITS = 1_000

_SINGLE_KEYWORDS = {
    "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
_LIST_KEYWORDS = {"allOf", "anyOf", "oneOf", "prefixItems"}
_MAPPING_KEYWORDS = {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
"""Where a schema has further schemas in it."""


class _BudgetExceeded(Exception):
    """The budget is used up."""


@dataclass
class _CheckState:
    """One payload's check: its budget, and the patterns compiled for it."""

    steps_left: int = MAX_STEPS
    patterns: dict[str, tuple[int, TypeAdapter[str]]] = field(default_factory=dict)

    def spend(self, steps: int) -> None:
        """Take from the budget. Raises _TooMuch."""
        self.steps_left -= steps
        if self.steps_left < 0:
            raise _BudgetExceeded

    def matches(self, pattern: str, text: str) -> bool:
        """Whether the pattern is found anywhere in the text."""
        if pattern not in self.patterns:
            self.patterns[pattern] = regex_cost(pattern), _compile(pattern)
        cost, compiled = self.patterns[pattern]
        self.spend(cost * len(text) // CHARACTERS_PER_STEP)
        try:
            compiled.validate_python(text)
        except NoMatch:
            return False
        return True


_check_state: ContextVar[_CheckState] = ContextVar("_check_state")


def check_schema(schema: Mapping[str, JsonValue]) -> None:
    """Refuse what is no schema, and what could not be applied within bounds.

    Raises:
        ValidationFailed: with a pointer below /payload_schema to each problem, at most 20.
    """
    subschemas = dict(islice(_subschemas(schema, ""), MAX_SUBSCHEMAS + 1))
    if len(subschemas) > MAX_SUBSCHEMAS:
        raise ValidationFailed.at("/payload_schema", f"has more than {MAX_SUBSCHEMAS} schemas in it")
    _raise_if_any(_problems(subschemas))


def check_instances(schema: Mapping[str, JsonValue], payloads: Mapping[str, JsonValue]) -> None:
    """Hold payloads to a schema that `check_schema` took, on one budget for all. No payload at all is checked as null.

    Raises:
        ValidationFailed: with a pointer below that of its payload to each problem, at most 20.
    """
    pointer = ""
    token = _check_state.set(_CheckState())
    try:
        with localcontext() as context:
            context.prec = MAX_DIGITS
            # By "$schema" the library would leave this validator; "$id" is the base of references that lead elsewhere.
            normalized_schema = _normalize(
                {name: subschema for name, subschema in schema.items() if name not in ("$schema", "$id")}
            )
            validator = _PayloadValidator(normalized_schema, registry=Registry())

            def problems() -> Iterator[FieldProblem]:
                nonlocal pointer
                for pointer, payload in payloads.items():
                    for error in validator.iter_errors(_normalize(payload)):
                        yield FieldProblem(pointer=f"{pointer}{_pointer(error)}", detail=_detail(error))

            _raise_if_any(problems())
    except (_BudgetExceeded, RecursionError) as error:
        raise ValidationFailed.at(pointer, "takes too long to check against its type's payload_schema") from error
    except ArithmeticError as error:
        raise ValidationFailed.at(pointer, f"has a number of more than {MAX_DIGITS} digits") from error
    finally:
        _check_state.reset(token)


def _raise_if_any(problems: Iterable[FieldProblem]) -> None:
    """Raises ValidationFailed for any problem: the first 20, each once, whatever ways led to it."""
    if unique_problems := tuple(dict.fromkeys(islice(problems, 10 * MAX_PROBLEMS)))[:MAX_PROBLEMS]:
        raise ValidationFailed(unique_problems)


def _subschemas(schema: JsonValue, pointer: str, depth: int = 0) -> Iterator[tuple[str, JsonValue]]:
    """The schema and every schema in it, each under its pointer. What is not a schema where one should be, too."""
    yield pointer, schema
    if not isinstance(schema, Mapping):
        return
    if depth == MAX_SCHEMA_DEPTH:
        raise ValidationFailed.at(f"/payload_schema{pointer}", f"is nested deeper than {MAX_SCHEMA_DEPTH} schemas")
    for keyword, value in schema.items():
        inner: Mapping[str, JsonValue] = {}
        if keyword in _SINGLE_KEYWORDS:
            inner = {"": value}
        elif keyword in _LIST_KEYWORDS and isinstance(value, list):
            inner = {f"/{index}": subschema for index, subschema in enumerate(value)}
        elif keyword in _MAPPING_KEYWORDS and isinstance(value, Mapping):
            inner = {f"/{escape_pointer_token(name)}": subschema for name, subschema in value.items()}
        for location, subschema in inner.items():
            yield from _subschemas(subschema, f"{pointer}/{escape_pointer_token(keyword)}{location}", depth + 1)


def _problems(subschemas: Mapping[str, JsonValue]) -> Iterator[FieldProblem]:
    anchors = {
        f"#{subschema[keyword]}"
        for subschema in subschemas.values()
        if isinstance(subschema, Mapping)
        for keyword in ("$anchor", "$dynamicAnchor")
        if keyword in subschema
    }
    targets = anchors | {f"#{pointer}" for pointer in subschemas}
    has_pattern_properties = any(
        isinstance(subschema, Mapping) and "patternProperties" in subschema for subschema in subschemas.values()
    )
    total_cost = 0
    for pointer, subschema in subschemas.items():
        if not isinstance(subschema, Mapping):
            continue
        base = f"/payload_schema{pointer}"
        errors = list(_METASCHEMA.iter_errors(_normalize(subschema)))
        yield from (FieldProblem(pointer=f"{base}{_pointer(error)}", detail=_detail(error)) for error in errors)
        if errors:
            continue
        for keyword in {"$ref", "$dynamicRef"} & subschema.keys():
            if unquote(str(subschema[keyword])) not in targets:
                yield FieldProblem(pointer=f"{base}/{keyword}", detail="leads to no schema within this one")
        if subschema.get("$schema", DIALECT) != DIALECT:
            yield FieldProblem(pointer=f"{base}/$schema", detail=f"only {DIALECT} is known")
        for keyword in {"$id", "$schema"} & subschema.keys() if pointer else ():
            yield FieldProblem(pointer=f"{base}/{keyword}", detail="can only stand at the root")
        if "unevaluatedProperties" in subschema and has_pattern_properties:
            # The library would match those with an engine that backtracks.
            yield FieldProblem(
                pointer=f"{base}/unevaluatedProperties", detail="cannot be told beside patternProperties"
            )
        for location, pattern in _patterns(subschema):
            total_cost += regex_cost(pattern) if len(pattern) <= MAX_PATTERN_CHARS else MAX_REGEX_COST + 1
            detail = f"all patterns together spell out more than {MAX_REGEX_COST} characters"
            if total_cost <= MAX_REGEX_COST:
                detail = _pattern_error(pattern)
            if detail:
                yield FieldProblem(pointer=f"{base}{location}", detail=detail[:MAX_DETAIL_CHARS])


def _patterns(subschema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "pattern" in subschema:
        yield "/pattern", subschema["pattern"]
    for pattern in subschema.get("patternProperties", ()):
        yield f"/patternProperties/{escape_pointer_token(pattern)}", pattern


def _pattern_error(pattern: str) -> str:
    """Why a pattern is none; "" for one."""
    try:
        _compile(pattern)
    except SchemaError as error:
        return f"is no pattern here: {str(error).strip().rpartition('error: ')[2].strip()}"
    return ""


def _compile(pattern: str) -> TypeAdapter[str]:
    """By pydantic's engine, Rust's `regex`: in time that grows with the text, never with the ways to read it."""
    return TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])


def _length(value: object) -> int:
    return len(value) if isinstance(value, list | dict) else 0


def _with_budget(name: str, keyword: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
    """A keyword's check that counts: each application is a step, and what it runs through some more."""
    min_steps = STEPS_PER_REFERENCE if name in ("$ref", "$dynamicRef") else 1

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        _check_state.get().spend(min_steps + (_length(value) + _length(instance)) // 10)
        yield from keyword(validator, value, instance, schema) or ()

    return check


def _pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _check_state.get().matches(pattern, instance):
        yield ValidationError("")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _: Any) -> Iterator[ValidationError]:
    for pattern, subschema in patterns.items() if isinstance(instance, dict) else ():
        for name, value in instance.items():
            if _check_state.get().matches(pattern, name):
                yield from _member(validator, name, value, subschema)


def _additional_properties(validator: Any, subschema: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    for name, value in instance.items() if isinstance(instance, dict) else ():
        known = name in schema.get("properties", ())
        if not known and not any(_check_state.get().matches(p, name) for p in schema.get("patternProperties", ())):
            yield from _member(validator, name, value, subschema)


def _properties(validator: Any, properties: Any, instance: Any, _: Any) -> Iterator[ValidationError]:
    for name, subschema in properties.items() if isinstance(instance, dict) else ():
        if name in instance:
            yield from _member(validator, name, instance[name], subschema)


def _member(validator: Any, name: str, value: Any, subschema: Any) -> Iterator[ValidationError]:
    if subschema is False:
        # The library would blame the object, not its member.
        yield ValidationError("", path=[name])
    else:
        yield from validator.descend(value, subschema, path=name)


def _unique_items(_: Any, is_unique: bool, instance: Any, __: Any) -> Iterator[ValidationError]:
    if is_unique and isinstance(instance, list):
        texts = [canonical(item) for item in instance]
        _check_state.get().spend(sum(map(len, texts)) // CHARACTERS_PER_STEP)
        if len(set(texts)) < len(texts):
            yield ValidationError("")


def _is_schema(_: Any, __: Any, instance: Any, ___: Any) -> Iterator[ValidationError]:
    """In place of a schema's schemas, each of which is looked at by itself: no depth, and pointers that are whole."""
    if not isinstance(instance, dict | bool):
        yield ValidationError("must be a schema: an object, true or false")


def _normalize(value: Any) -> Any:
    """JSON as the library compares it: 1.0 is the integer 1, as JSON Schema has it; equal numbers are spelled alike.

    A whole number of too many digits stays a Decimal.
    """
    if isinstance(value, Mapping):
        return {name: _normalize(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normalize(item) for item in value]
    if isinstance(value, Decimal):
        is_whole = value.adjusted() < MAX_DIGITS and value == value.to_integral_value()
        return int(value) if is_whole else value.normalize()
    return value


def _is_integer(_: Any, instance: Any) -> bool:
    if isinstance(instance, Decimal):
        return bool(instance == instance.to_integral_value())
    return isinstance(instance, int) and not isinstance(instance, bool)


def _pointer(error: ValidationError) -> str:
    return "".join(f"/{escape_pointer_token(str(step))}" for step in error.absolute_path)


def _detail(error: ValidationError) -> str:
    """The rule, not what broke it: a payload may hold secrets, and be long."""
    if error.validator in ("required", "$dynamicRef"):
        detail = error.message
    elif not error.validator:
        detail = "is not allowed"
    else:
        detail = f'does not satisfy "{error.validator}": {dumps(error.validator_value)}'
    return detail if len(detail) <= MAX_DETAIL_CHARS else f"{detail[:MAX_DETAIL_CHARS]}…"


_CHECKS = Draft202012Validator.VALIDATORS | {
    "additionalProperties": _additional_properties,
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "properties": _properties,
    "uniqueItems": _unique_items,
}
_TYPES = Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer)
_PayloadValidator = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, {name: _with_budget(name, check) for name, check in _CHECKS.items()}, type_checker=_TYPES
)


def _metaschemas() -> Registry[Any]:
    """The schemas of schemas. Without their "$schema", by which the library would leave the validator that it is in."""
    registry: Registry[Any] = Registry()
    for uri in jsonschema_specifications.REGISTRY:
        contents = jsonschema_specifications.REGISTRY.contents(uri)
        if isinstance(contents, Mapping) and contents.get("$schema") == DIALECT:
            contents_without_dialect = {name: subschema for name, subschema in contents.items() if name != "$schema"}
            registry = registry.with_resource(uri, DRAFT202012.create_resource(contents_without_dialect))
    return registry


_METASCHEMAS = _metaschemas()
_MetaschemaValidator = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, {"$dynamicRef": _is_schema}, type_checker=_TYPES
)
_METASCHEMA = _MetaschemaValidator(_METASCHEMAS.contents(DIALECT), registry=_METASCHEMAS)
