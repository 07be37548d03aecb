"""Validation of bodies and queries: every problem at once, each with a JSON pointer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from vigil_core.domain.errors import FieldProblem, ValidationFailed, escape_pointer_token
from vigil_core.domain.exact_json import MAX_PROBLEMS, JsonValue
from vigil_core.domain.text_rule import LABEL_PATTERN, NAME_PATTERN, NAME_RULE, QUEUE_PATTERN
from vigil_core.schemas.base import MessageText

LIST_FORM = "\0list"
OBJECT_FORM = "\0object"
WORD_FORM = "\0word"
"""Tags of the alternatives of a union. pydantic adds them to the location of a problem; a pointer leaves them out."""

M = TypeVar("M", bound=BaseModel)

_FORMS = {LIST_FORM, OBJECT_FORM, WORD_FORM}


def parse_body(model: type[M], body: JsonValue, *, context: Mapping[str, Any] | None = None) -> M:
    """Parse a body.

    Args:
        model: The model of the body.
        body: The JSON value of the body.
        context: Values that the validators of the model read.

    Raises:
        ValidationFailed: With every problem, up to `MAX_PROBLEMS`.
    """
    try:
        return model.model_validate(body, context=context)
    except ValidationError as error:
        raise ValidationFailed(
            FieldProblem(pointer=_pointer(problem["loc"]), detail=_detail(problem))
            for problem in error.errors(include_url=False)[:MAX_PROBLEMS]
        ) from error


@cache
def message_pointers(model: type[BaseModel] | None) -> frozenset[str]:
    """Return the JSON pointers of the messages for people in a body, for `exact_json.loads`."""
    if model is None:
        return frozenset()
    return frozenset(
        f"/{escape_pointer_token(field.alias or name)}{pointer}"
        for name, field in model.model_fields.items()
        for pointer in _pointers_in_type((field.annotation, *field.metadata))
    )


def prefix_pointers(pointer: str, error: Exception) -> Exception:
    """Return a validation error with this prefix before each pointer. Other errors are returned unchanged."""
    if not isinstance(error, ValidationFailed):
        return error
    return type(error)(replace(problem, pointer=pointer + problem.pointer) for problem in error.problems)


def parse_query(model: type[M], pairs: Iterable[tuple[str, str]]) -> M:
    """Parse query parameters. A list is given by repeating the parameter.

    Raises:
        ValidationFailed: With every problem. A pointer is `?` and the name of the parameter.
    """
    lists = {name for name, field in model.model_fields.items() if _is_list(field.annotation)}
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for name, value in pairs:
        if name in lists:
            values.setdefault(name, []).append(value)
        elif name in values:
            problems[name] = "is given more than once"
        else:
            values[name] = value
    try:
        query = model.model_validate(values)
    except ValidationError as error:
        problems = {str(problem["loc"][0]): _detail(problem) for problem in error.errors(include_url=False)} | problems
    else:
        if not problems:
            return query
    raise ValidationFailed(
        FieldProblem(pointer=f"?{name}", detail=detail) for name, detail in list(problems.items())[:MAX_PROBLEMS]
    )


def _is_list(annotation: Any) -> bool:
    return any(get_origin(part) is list for part in (annotation, *getattr(annotation, "__args__", ())))


def _pointers_in_type(parts: tuple[Any, ...]) -> Iterator[str]:
    """Yield "" for a message, the pointers inside a model, and both for the alternatives of a union."""
    for part in parts:
        if isinstance(part, MessageText):
            yield ""
        elif isinstance(part, type) and issubclass(part, BaseModel):
            yield from message_pointers(part)
        elif get_origin(part) not in (list, dict):
            yield from _pointers_in_type(get_args(part))


def _pointer(location: tuple[int | str, ...]) -> str:
    # pydantic marks a problem with a key of a mapping by the step "[key]" after the key.
    steps = location[:-1] if location and location[-1] == "[key]" else location
    return "".join(f"/{escape_pointer_token(str(step))}" for step in steps if step not in _FORMS)


def _detail(problem: Mapping[str, Any]) -> str:
    match problem["type"]:
        case "extra_forbidden":
            return "is not known here"
        case "missing":
            return "is required"
        case "value_error":
            return str(problem["ctx"]["error"])
        case "model_type":
            return "must be an object"
        case "string_pattern_mismatch" if problem["ctx"]["pattern"] in (NAME_PATTERN, LABEL_PATTERN):
            return NAME_RULE
        case "string_pattern_mismatch" if problem["ctx"]["pattern"] == QUEUE_PATTERN:
            return f"{NAME_RULE}, and neither / nor %"
        case _:
            return str(problem["msg"])
