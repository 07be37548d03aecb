"""From what a model finds wrong to field problems that a client can act on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from vigil_core.domain.errors import FieldProblem, ValidationFailed, escape_pointer_token
from vigil_core.domain.exact_json import JsonValue

MAX_PROBLEMS = 100
M = TypeVar("M", bound=BaseModel)


def parse_body(model: type[M], body: JsonValue) -> M:
    """A body as the model. Raises ValidationFailed with every problem."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        reserved_names: frozenset[str] = getattr(model, "reserved_names", frozenset())
        raise ValidationFailed(
            FieldProblem(pointer=_pointer(detail["loc"]), detail=_detail(detail, reserved_names))
            for detail in error.errors(include_url=False)[:MAX_PROBLEMS]
        ) from error


def prefix_pointers(pointer: str, error: Exception) -> Exception:
    """The error, its pointers leading to a part of a body that is found at this pointer of the whole."""
    if not isinstance(error, ValidationFailed):
        return error
    return type(error)(replace(problem, pointer=pointer + problem.pointer) for problem in error.problems)


def parse_query(model: type[M], pairs: Iterable[tuple[str, str]]) -> M:
    """Query parameters as the model, whose lists may be given by repeating the name.

    Raises:
        ValidationFailed: with every problem; pointers are `?` and the parameter's name.
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
        problems = {str(e["loc"][0]): _detail(e, frozenset()) for e in error.errors(include_url=False)} | problems
    else:
        if not problems:
            return query
    raise ValidationFailed(
        FieldProblem(pointer=f"?{name}", detail=detail) for name, detail in list(problems.items())[:MAX_PROBLEMS]
    )


def _is_list(annotation: Any) -> bool:
    return any(get_origin(part) is list for part in (annotation, *getattr(annotation, "__args__", ())))


def _pointer(location: tuple[int | str, ...]) -> str:
    # pydantic marks a problem with a key of a mapping by a step "[key]" after it.
    steps = location[:-1] if location and location[-1] == "[key]" else location
    return "".join(f"/{escape_pointer_token(str(step))}" for step in steps)


def _detail(error: Mapping[str, Any], reserved_names: frozenset[str]) -> str:
    match error["type"]:
        case "extra_forbidden":
            known_later = len(error["loc"]) == 1 and error["loc"][0] in reserved_names
            return "is not served yet" if known_later else "is not known here"
        case "missing":
            return "is required"
        case "value_error":
            return str(error["ctx"]["error"])
        case "model_type":
            return "must be an object"
        case _:
            return str(error["msg"])
