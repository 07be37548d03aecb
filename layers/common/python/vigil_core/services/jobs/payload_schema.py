"""JSON Schema (draft 2020-12) for payloads: validation of schemas, and of payloads against them.

Clients supply both schema and payload, so both have limits on the work that they cause:

1. The size of a schema and the cost of its patterns are limited when it is stored.
2. The validation of a payload has a budget of steps, and each check a budget of CPU time, which is measured.
3. Patterns run in an engine without backtracking, in the form that the estimate of their cost has read.
4. References stay inside the schema.

The library takes 0.1 s to load, so only functions that meet a schema import this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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

from vigil_core.domain.cpu_budget import CpuBudget, CpuLimitExceeded
from vigil_core.domain.errors import FieldProblem, ValidationFailed, escape_pointer_token
from vigil_core.domain.exact_json import JsonValue, canonical, dumps
from vigil_core.domain.jobs.pattern_cost import (
    MAX_PATTERN_CHARS,
    UnsupportedPattern,
    parse_pattern,
    regex_cost,
)
from vigil_core.services.cpu_limits import SchemaCpu

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MAX_SUBSCHEMAS = 500
MAX_SCHEMA_DEPTH = 32
"""The limit for the nesting of subschemas."""
MAX_REGEX_COST = 1_000
"""The limit for the cost of all patterns of a schema together."""
MAX_PROBLEMS = 20
MAX_DETAIL_CHARS = 200
MAX_STEPS = 200_000
"""The budget of one validation. A step takes about 5 µs."""
STEPS_PER_REFERENCE = 10
BYTES_PER_STEP = 200
"""The number of bytes that a pattern of cost 1 reads in the time of one step."""
MAX_DIGITS = 1_000

_SINGLE_KEYWORDS = {
    "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
_LIST_KEYWORDS = {"allOf", "anyOf", "oneOf", "prefixItems"}
_MAPPING_KEYWORDS = {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
"""The keywords whose values are subschemas: one, a list, or a mapping of them."""


class _BudgetExceeded(Exception):
    """Raised when the budget of steps is spent."""

    def __init__(self) -> None:
        super().__init__(f"it exceeds the limit payload_schema_steps ({MAX_STEPS})")


@dataclass
class _CheckState:
    """The state of one check: its remaining budgets and its compiled patterns."""

    cpu: CpuBudget
    steps_left: int = MAX_STEPS
    patterns: dict[str, tuple[int, TypeAdapter[str]]] = field(default_factory=dict)

    def spend(self, steps: int) -> None:
        """Charge steps to the budget.

        Raises:
            _BudgetExceeded: The budget is spent.
            CpuLimitExceeded: The CPU time is spent.
        """
        self.steps_left -= steps
        if self.steps_left < 0:
            raise _BudgetExceeded
        self.cpu.check()

    def matches(self, pattern: str, text: str) -> bool:
        """Return whether a pattern matches anywhere in a text. The match is charged before it runs."""
        if pattern not in self.patterns:
            self.patterns[pattern] = regex_cost(pattern), _compile(pattern)
        cost, compiled = self.patterns[pattern]
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        self.spend(cost * size // BYTES_PER_STEP)
        try:
            compiled.validate_python(text)
        except NoMatch:
            return False
        return True


_check_state: ContextVar[_CheckState] = ContextVar("_check_state")


def check_schema(schema: Mapping[str, JsonValue]) -> None:
    """Check that a schema is valid and within the limits.

    Raises:
        ValidationFailed: The schema has problems; the error has up to 20, with pointers below `/payload_schema`.
    """
    with _limited(SchemaCpu(), lambda: "/payload_schema", "takes too long to check"):
        subschemas = dict(islice(_subschemas(schema, ""), MAX_SUBSCHEMAS + 1))
        if len(subschemas) > MAX_SUBSCHEMAS:
            raise ValidationFailed.at("/payload_schema", f"has more than {MAX_SUBSCHEMAS} subschemas")
        _raise_if_any(_problems(subschemas))


def check_instances(
    schema: Mapping[str, JsonValue], payloads: Mapping[str, JsonValue], cpu: SchemaCpu | None = None
) -> None:
    """Validate payloads against a checked schema, with one budget for all. An absent payload counts as null.

    Args:
        schema: A schema that `check_schema` accepted.
        payloads: The payloads by their JSON pointers in the request.
        cpu: The CPU time of all checks of the request, if there are others.

    Raises:
        ValidationFailed: Some payloads are invalid; the error has up to 20 problems, with pointers below those of the
            payloads.
    """
    pointer = next(iter(payloads), "")
    cpu = cpu or SchemaCpu()
    with (
        _limited(cpu, lambda: pointer, "takes too long to check against its type's payload_schema"),
        localcontext() as context,
    ):
        context.prec = MAX_DIGITS
        validator = cpu.validators.get(id(schema))
        if validator is None:
            validator = cpu.validators[id(schema)] = _build_validator(schema)

        def problems() -> Iterator[FieldProblem]:
            nonlocal pointer
            for pointer, payload in payloads.items():
                for error in validator.iter_errors(_normalize(payload)):
                    # The library has written the whole value into the error.
                    _check_state.get().cpu.check()
                    yield FieldProblem(pointer=f"{pointer}{_pointer(error)}", detail=_detail(error))

        _raise_if_any(problems())


def _build_validator(schema: Mapping[str, JsonValue]) -> Any:
    # "$schema" would make the library use another validator; "$id" would permit references to other documents.
    kept_members = {name: subschema for name, subschema in schema.items() if name not in ("$schema", "$id")}
    return _PayloadValidator(_normalize(kept_members), registry=Registry())


@contextmanager
def _limited(cpu: SchemaCpu, pointer: Callable[[], str], detail: str) -> Iterator[None]:
    """Run a check with its budgets, and report an exceeded limit as a problem at a pointer.

    Raises:
        ValidationFailed: A limit was exceeded.
    """
    with cpu.measure() as cpu_budget:
        token = _check_state.set(_CheckState(cpu_budget))
        try:
            yield
        except (_BudgetExceeded, CpuLimitExceeded) as error:
            raise ValidationFailed.at(pointer(), f"{detail}: {error}") from error
        except RecursionError as error:
            raise ValidationFailed.at(pointer(), f"{detail}: it is nested too deeply") from error
        except UnsupportedPattern as error:
            raise ValidationFailed.at(
                pointer(), f"cannot be checked: its type's pattern is refused: {error}"
            ) from error
        except ArithmeticError as error:
            raise ValidationFailed.at(pointer(), f"has a number of more than {MAX_DIGITS} digits") from error
        finally:
            _check_state.reset(token)


def _raise_if_any(problems: Iterable[FieldProblem]) -> None:
    """Raise ValidationFailed with the first 20 distinct problems, if there are any."""
    if unique_problems := tuple(dict.fromkeys(islice(problems, 10 * MAX_PROBLEMS)))[:MAX_PROBLEMS]:
        raise ValidationFailed(unique_problems)


def _subschemas(schema: JsonValue, pointer: str, depth: int = 0) -> Iterator[tuple[str, JsonValue]]:
    """Yield a schema and all its subschemas by pointer, including malformed ones."""
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
    """Yield the problems of a schema: syntax, references, placement of keywords, and patterns."""
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
        errors = list(islice(_METASCHEMA.iter_errors(_normalize(subschema)), MAX_PROBLEMS))
        yield from (FieldProblem(pointer=f"{base}{_pointer(error)}", detail=_detail(error)) for error in errors)
        if errors:
            continue
        for keyword in {"$ref", "$dynamicRef"} & subschema.keys():
            if unquote(str(subschema[keyword])) not in targets:
                yield FieldProblem(pointer=f"{base}/{keyword}", detail="refers to no schema inside this one")
        if subschema.get("$schema", DIALECT) != DIALECT:
            yield FieldProblem(pointer=f"{base}/$schema", detail=f"must be {DIALECT}")
        for keyword in {"$id", "$schema"} & subschema.keys() if pointer else ():
            yield FieldProblem(pointer=f"{base}/{keyword}", detail="is only allowed at the root")
        if "unevaluatedProperties" in subschema and has_pattern_properties:
            # For this combination, the library matches the patterns with a backtracking engine.
            yield FieldProblem(
                pointer=f"{base}/unevaluatedProperties", detail="is not supported together with patternProperties"
            )
        for location, pattern in _patterns(subschema):
            _check_state.get().cpu.check()
            try:
                total_cost += regex_cost(pattern) if len(pattern) <= MAX_PATTERN_CHARS else MAX_REGEX_COST + 1
            except UnsupportedPattern as error:
                yield FieldProblem(pointer=f"{base}{location}", detail=f"is not a supported pattern: {error}")
                continue
            detail = f"all patterns together have more than {MAX_REGEX_COST} characters, repetitions included"
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
    """Return the problem of a malformed pattern; an empty text for a valid one."""
    try:
        _compile(pattern)
    except SchemaError as error:
        return f"is not a supported pattern: {str(error).strip().rpartition('error: ')[2].strip()}"
    return ""


def _compile(pattern: str) -> TypeAdapter[str]:
    """Compile the canonical form of a pattern for Rust's `regex`, which pydantic uses. Its time is linear in the text.

    Raises:
        UnsupportedPattern: The pattern is not in the supported grammar.
        SchemaError: The engine refuses the pattern.
    """
    return TypeAdapter(Annotated[str, StringConstraints(pattern=parse_pattern(pattern)[0])])


def _length(value: object) -> int:
    return len(value) if isinstance(value, list | dict) else 0


def _with_budget(name: str, keyword: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
    """Wrap the check of a keyword so that it charges each application and the size of its values."""
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
        # The library would report the object instead of its member.
        yield ValidationError("", path=[name])
    else:
        yield from validator.descend(value, subschema, path=name)


def _unique_items(_: Any, is_unique: bool, instance: Any, __: Any) -> Iterator[ValidationError]:
    if is_unique and isinstance(instance, list):
        texts: list[str] = []
        for item in instance:
            texts.append(canonical(item))
            _check_state.get().spend(len(texts[-1]) // BYTES_PER_STEP)
        if len(set(texts)) < len(texts):
            yield ValidationError("")


def _is_schema(_: Any, __: Any, instance: Any, ___: Any) -> Iterator[ValidationError]:
    """Check only the type of a subschema, in place of the recursive check of the library.

    `_problems` checks each subschema separately, which limits the depth and gives complete pointers.
    """
    if not isinstance(instance, dict | bool):
        yield ValidationError("must be a schema: an object, true or false")


def _normalize(value: Any) -> Any:
    """Normalise numbers for the library: 1.0 becomes the integer 1, and equal numbers become identical.

    An integer of more than `MAX_DIGITS` digits stays a Decimal.
    """
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if isinstance(value, Mapping):
        _check_state.get().cpu.check()
        return {name: _normalize(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        _check_state.get().cpu.check()
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
    """Describe the violated rule, without the value: a payload may contain secrets and be long."""
    if error.validator in ("required", "$dynamicRef"):
        detail = error.message
    elif not error.validator:
        detail = "is not allowed"
    else:
        detail = f'does not satisfy "{error.validator}": {dumps(error.validator_value)}'
    return detail if len(detail) <= MAX_DETAIL_CHARS else f"{detail[:MAX_DETAIL_CHARS]}…"


def _with_charged_evolve(validator_class: Any) -> Any:
    """Make every step into a subschema charge the budget.

    The library follows references without applying a keyword where it looks for evaluated members.
    """
    library_evolve = validator_class.evolve

    def evolve(self: Any, **changes: Any) -> Any:
        if (state := _check_state.get(None)) is not None:
            state.spend(1)
        return library_evolve(self, **changes)

    validator_class.evolve = evolve
    return validator_class


_CHECKS = Draft202012Validator.VALIDATORS | {
    "additionalProperties": _additional_properties,
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "properties": _properties,
    "uniqueItems": _unique_items,
}
_TYPES = Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer)
_PayloadValidator = _with_charged_evolve(
    extend(  # type: ignore[no-untyped-call]
        Draft202012Validator, {name: _with_budget(name, check) for name, check in _CHECKS.items()}, type_checker=_TYPES
    )
)


def _metaschemas() -> Registry[Any]:
    """Load the metaschemas without their "$schema", which would make the library use another validator."""
    registry: Registry[Any] = Registry()
    for uri in jsonschema_specifications.REGISTRY:
        contents = jsonschema_specifications.REGISTRY.contents(uri)
        if isinstance(contents, Mapping) and contents.get("$schema") == DIALECT:
            contents_without_dialect = {name: subschema for name, subschema in contents.items() if name != "$schema"}
            registry = registry.with_resource(uri, DRAFT202012.create_resource(contents_without_dialect))
    return registry


_METASCHEMAS = _metaschemas()
_MetaschemaValidator = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {
        name: _with_budget(name, check)
        for name, check in (
            Draft202012Validator.VALIDATORS | {"$dynamicRef": _is_schema, "uniqueItems": _unique_items}
        ).items()
    },
    type_checker=_TYPES,
)
_METASCHEMA = _MetaschemaValidator(_METASCHEMAS.contents(DIALECT), registry=_METASCHEMAS)
