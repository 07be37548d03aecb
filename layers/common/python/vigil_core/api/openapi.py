"""The OpenAPI 3.1 document, made from the operations. `python -m vigil_core.api.openapi` prints it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from vigil_core.api.jobs.models import EXAMPLE_ID, NoQuery, Problem
from vigil_core.api.problems import CONTENT_TYPE, STATUS, Fault, TooManyRequests, Unauthorized
from vigil_core.api.request import MAX_HOLD_S
from vigil_core.api.routing import AnswerHeader, Operation, RequestHeader, Shows
from vigil_core.domain.errors import Forbidden, MalformedRequest, PayloadTooLarge, ValidationFailed, VigilError

_REF = "#/components/schemas/{model}"

_REQUEST_HEADERS: Mapping[RequestHeader, Mapping[str, Any]] = {
    "Idempotency-Key": {
        "schema": {"type": "string", "pattern": "^[!#-~]{1,128}$"},
        "description": "The same key with the same body gives the first answer again, for 24 hours",
    },
    "If-None-Match": {
        "schema": {"type": "string"},
        "description": "An ETag: 304 when the job is still as it says",
    },
    "Prefer": {
        "schema": {"type": "string"},
        "description": f"`wait=N` holds the answer for up to N seconds; over {MAX_HOLD_S} is {MAX_HOLD_S}",
        "example": "wait=10",
    },
}
_ANSWER_HEADERS: Mapping[AnswerHeader, str] = {
    "ETag": "Changes with the job",
    "Location": "Where the job is",
    "Preference-Applied": "The wait that was granted, when one was preferred",
}
_INFO = {
    "title": "Vigil",
    "version": "1",
    "summary": "Keeps watch over long-running jobs.",
    "description": (
        "Create jobs, report how they go, and wait until any set of them reaches any state.\n\n"
        "Bodies are JSON whatever their Content-Type. Errors are RFC 9457 problem documents with an `error` code; "
        "a validation problem lists everything that is wrong in `errors`. Ids that do not exist, are malformed or "
        "belong to another namespace are 404. API Gateway's own 401, 403, 413, 429 and 503 have bodies of its own."
    ),
    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """The document that describes these operations."""
    listed = list(operations)
    schemas = _Schemas(listed)
    paths: dict[str, dict[str, Any]] = {}
    for operation in listed:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": _INFO,
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas.definitions,
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key, `vgl_…`"},
            },
        },
    }


class _Schemas:
    """The schemas of every model, as sent and as shown, under one name each."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        sent: set[type[BaseModel]] = set()
        shown: set[type[BaseModel]] = {Problem}
        for operation in operations:
            sent |= {model for model in (operation.body, operation.documented_body, operation.query) if model}
            sent |= getattr(operation.documented_body, "parts", frozenset())
            shown |= {model for answer in operation.answers.values() for model in answer.models}
        inputs = [(model, "validation") for model in sorted(sent, key=lambda model: model.__name__)]
        outputs = [(model, "serialization") for model in sorted(shown, key=lambda model: model.__name__)]
        references, made = models_json_schema([*inputs, *outputs], ref_template=_REF)  # type: ignore[list-item]
        self._references: Mapping[Any, dict[str, Any]] = references
        asked = {operation.query for operation in operations} | {NoQuery}
        queries = {reference["$ref"].rsplit("/", 1)[1] for key, reference in references.items() if key[0] in asked}
        self._definitions: dict[str, Any] = made["$defs"]
        self.definitions = {
            name: tidied(schema) for name, schema in sorted(self._definitions.items()) if name not in queries
        }

    def sent(self, model: type[BaseModel]) -> dict[str, Any]:
        return self._references[model, "validation"]

    def shown(self, model: type[BaseModel]) -> dict[str, Any]:
        return self._references[model, "serialization"]

    def properties(self, model: type[BaseModel]) -> dict[str, Any]:
        """The properties of a query model, each of which is a parameter."""
        name = self.sent(model)["$ref"].rsplit("/", 1)[1]
        found: dict[str, Any] = tidied(self._definitions[name]).get("properties", {})
        return found


def _operation(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    summary, _, rest = (operation.act.__doc__ or "").partition(". ")
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": " ".join(summary.split()).rstrip("."),
        "parameters": [*_path_parameters(operation), *_query_parameters(operation, schemas), *_headers(operation)],
        "responses": _responses(operation, schemas),
        "security": [{"apiKey": []}] if operation.scope else [],
    }
    scope = f"Needs the scope `{operation.scope}`." if operation.scope else "Needs no key."
    described["description"] = " ".join([*rest.split(), scope])
    body = operation.body or operation.documented_body
    if body is not None:
        described["requestBody"] = {
            "required": not operation.body_optional,
            "content": {"application/json": {"schema": schemas.sent(body)}},
        }
    return described


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string"},
            "example": EXAMPLE_ID if name.endswith("_id") else "boot_test",
        }
        for name in re.findall(r"{(\w+)}", operation.path)
    ]


def _query_parameters(operation: Operation, schemas: _Schemas) -> list[dict[str, Any]]:
    parameters = []
    for name, schema in schemas.properties(operation.query).items():
        # In a query there is no null: what is absent is left out.
        choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
        described = choices[0] if choices else {key: schema[key] for key in schema if key != "description"}
        parameter: dict[str, Any] = {"name": name, "in": "query", "schema": described}
        if "description" in schema:
            parameter["description"] = schema["description"]
        parameters.append(parameter)
    return parameters


def _headers(operation: Operation) -> list[dict[str, Any]]:
    return [{"name": name, "in": "header", **_REQUEST_HEADERS[name]} for name in operation.headers]


def _responses(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    responses = {str(status): _shown(answer, schemas) for status, answer in operation.answers.items()}
    codes: dict[int, list[str]] = {}
    for error in _problems(operation):
        codes.setdefault(STATUS[error], []).append(error.code)
    for status in sorted(codes):
        responses[str(status)] = {
            "description": ", ".join(f"`{code}`" for code in sorted(codes[status])),
            "content": {CONTENT_TYPE: {"schema": schemas.shown(Problem)}},
        }
        if status == STATUS[TooManyRequests]:
            responses[str(status)]["headers"] = {
                "Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}
            }
    return responses


def _problems(operation: Operation) -> set[type[VigilError]]:
    """What a route itself may raise, and what every route may answer before or around it."""
    around: set[type[VigilError]] = {ValidationFailed, TooManyRequests, Fault}
    if operation.scope is not None:
        around |= {Unauthorized, Forbidden}
    if operation.takes_body:
        around |= {MalformedRequest, PayloadTooLarge}
    return around | set(operation.problems)


def _shown(answer: Shows, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.what}
    if answer.headers:
        described["headers"] = {
            name: {"description": _ANSWER_HEADERS[name], "schema": {"type": "string"}} for name in answer.headers
        }
    choices = [schemas.shown(model) for model in answer.models]
    if choices:
        schema = choices[0] if len(choices) == 1 else {"anyOf": choices}
        described["content"] = {"application/json": {"schema": schema}}
        described["content"] |= {media: {"schema": {"type": "string"}} for media in answer.media}
    return described


def tidied(schema: Any) -> Any:
    """A schema without the titles that pydantic gives everything, which say nothing that the names do not."""
    if isinstance(schema, dict):
        return {key: tidied(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)}
    if isinstance(schema, list):
        return [tidied(item) for item in schema]
    return schema


if __name__ == "__main__":
    from vigil_core.api.routes import openapi

    print(json.dumps(openapi(), indent=2, ensure_ascii=False))  # noqa: T201
