"""From what a model finds wrong to field problems that a client can act on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from vigil_core.domain.errors import FieldProblem, ValidationFailed, pointer_token
from vigil_core.domain.exact_json import JsonValue

MAX_PROBLEMS = 100
M = TypeVar("M", bound=BaseModel)


def parse_body(model: type[M], body: JsonValue) -> M:
    """A body as the model. Raises ValidationFailed with every problem."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        later: frozenset[str] = getattr(model, "later", frozenset())
        raise ValidationFailed(
            FieldProblem(pointer=_pointer(found["loc"]), detail=_detail(found, later))
            for found in error.errors(include_url=False)[:MAX_PROBLEMS]
        ) from error


def below(pointer: str, error: Exception) -> Exception:
    """The error, its pointers leading to a part of a body that is found at this pointer of the whole."""
    if not isinstance(error, ValidationFailed):
        return error
    return type(error)(replace(found, pointer=pointer + found.pointer) for found in error.problems)


def parse_query(model: type[M], pairs: Iterable[tuple[str, str]]) -> M:
    """Query parameters as the model, whose lists may be given by repeating the name.

    Raises:
        ValidationFailed: with every problem; pointers are `?` and the parameter's name.
    """
    lists = {name for name, field in model.model_fields.items() if _is_list(field.annotation)}
    given: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for name, value in pairs:
        if name in lists:
            given.setdefault(name, []).append(value)
        elif name in given:
            problems[name] = "is given more than once"
        else:
            given[name] = value
    try:
        query = model.model_validate(given)
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


def _pointer(loc: tuple[int | str, ...]) -> str:
    # pydantic marks a problem with a key of a mapping by a step "[key]" after it.
    steps = loc[:-1] if loc and loc[-1] == "[key]" else loc
    return "".join(f"/{pointer_token(str(step))}" for step in steps)


def _detail(found: Mapping[str, Any], later: frozenset[str]) -> str:
    match found["type"]:
        case "extra_forbidden":
            known_later = len(found["loc"]) == 1 and found["loc"][0] in later
            return "is not served yet" if known_later else "is not known here"
        case "missing":
            return "is required"
        case "value_error":
            return str(found["ctx"]["error"])
        case "model_type":
            return "must be an object"
        case _:
            return str(found["msg"])
