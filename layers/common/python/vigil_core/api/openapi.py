"""The OpenAPI 3.1 document, built from the operations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from vigil_core.api.problems import CONTENT_TYPE, HTTP_STATUS, InternalError, Problem, TooManyRequests, Unauthorized
from vigil_core.api.request import MAX_LONG_POLL_S
from vigil_core.api.routing import Operation, RequestHeader, ResponseHeader, ResponseSpec
from vigil_core.domain.errors import (
    Forbidden,
    LimitExceeded,
    MalformedRequest,
    PayloadTooLarge,
    ValidationFailed,
    VigilError,
)
from vigil_core.schemas.base import EXAMPLE_ID, NoQuery

_REF = "#/components/schemas/{model}"

_REQUEST_HEADERS: Mapping[RequestHeader, Mapping[str, Any]] = {
    "Idempotency-Key": {
        "schema": {"type": "string", "pattern": "^[!#-~]{1,128}$"},
        "description": "A repeated request with the same key and the same body returns the first answer, for 24 hours",
    },
    "If-None-Match": {
        "schema": {"type": "string"},
        "description": "An ETag. The answer is 304 if the job still has it",
    },
    "Prefer": {
        "schema": {"type": "string"},
        "description": f"`wait=N` is a long poll of up to N seconds, at most {MAX_LONG_POLL_S}",
        "example": "wait=10",
    },
}
_RESPONSE_HEADERS: Mapping[ResponseHeader, str] = {
    "ETag": "Changes with each change of the job",
    "Location": "Path of the job or run",
    "Preference-Applied": "The length of the long poll, if `Prefer` requested one. `wait=0` if it had no slot",
    "Retry-After": "Seconds until the next request, if the long poll had no slot",
}
_INFO = {
    "title": "Vigil",
    "version": "1",
    "summary": "Keeps watch over long-running jobs.",
    "description": (
        "Create jobs, report their progress, and wait until any set of jobs reaches any state.\n\n"
        "Bodies are JSON, whatever their Content-Type. Errors are RFC 9457 problem documents with an `error` code. "
        "A validation error lists every problem in `errors`. An id that does not exist, is malformed or "
        "belongs to another namespace is 404. API Gateway's own 401, 403, 413, 429 and 503 have other bodies."
    ),
    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}
_TAGS = {
    "jobs": "Units of work: creation, reports, results, history, uploads and job types.",
    "queues": "Ordered pending jobs, which workers claim under a lease.",
    "waits": "Stored questions: which jobs, and which condition each must meet.",
    "workflows": "Graphs of jobs with a failure policy, and their runs.",
    "schedules": "Definitions that create a job or a workflow run at planned times.",
    "webhooks": "HTTP addresses that receive signed events, and their deliveries.",
    "limits": "What a namespace may use, and what it uses.",
    "auth": "Credentials of connections.",
    "operations": "Information about this API.",
}


def build_document(operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the document that describes these operations."""
    operation_list = list(operations)
    schemas = _Schemas(operation_list)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operation_list:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe_operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": _INFO,
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas.definitions,
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key, `vgl_…`"},
            },
        },
    }


class _Schemas:
    """The schemas of every request and response model, each under one name."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        request_models: set[type[BaseModel]] = set()
        response_models: set[type[BaseModel]] = {Problem}
        for operation in operations:
            request_models |= {model for model in (operation.body, operation.documented_body, operation.query) if model}
            request_models |= getattr(operation.documented_body, "nested_models", frozenset())
            response_models |= {model for response in operation.responses.values() for model in response.models}
        inputs = [(model, "validation") for model in sorted(request_models, key=lambda model: model.__name__)]
        outputs = [(model, "serialization") for model in sorted(response_models, key=lambda model: model.__name__)]
        references, generated = models_json_schema([*inputs, *outputs], ref_template=_REF)  # type: ignore[list-item]
        references, generated = _without_view_suffix(references, generated)
        self._references: Mapping[Any, dict[str, Any]] = references
        query_models = {operation.query for operation in operations} | {NoQuery}
        queries = {
            reference["$ref"].rsplit("/", 1)[1] for key, reference in references.items() if key[0] in query_models
        }
        self._definitions: dict[str, Any] = generated["$defs"]
        self.definitions = {
            name: without_titles(schema) for name, schema in sorted(self._definitions.items()) if name not in queries
        }

    def request_schema(self, model: type[BaseModel]) -> dict[str, Any]:
        return self._references[model, "validation"]

    def response_schema(self, model: type[BaseModel]) -> dict[str, Any]:
        return self._references[model, "serialization"]

    def query_properties(self, model: type[BaseModel]) -> dict[str, Any]:
        """Return the properties of a query model. Each is a parameter."""
        name = self.request_schema(model)["$ref"].rsplit("/", 1)[1]
        properties: dict[str, Any] = without_titles(self._definitions[name]).get("properties", {})
        return properties


def _describe_operation(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    summary, _, details = (operation.handler.__doc__ or "").partition("\n\n")
    described: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": " ".join(summary.split()).rstrip("."),
        "parameters": [*_path_parameters(operation), *_query_parameters(operation, schemas), *_headers(operation)],
        "responses": _responses(operation, schemas),
        "security": [{"apiKey": []}] if operation.scope else [],
    }
    scope = f"Needs the scope `{operation.scope}`." if operation.scope else "Needs no key."
    described["description"] = " ".join([*details.split(), scope])
    body = operation.body or operation.documented_body
    if body is not None:
        described["requestBody"] = {
            "required": not operation.body_optional,
            "content": {"application/json": {"schema": schemas.request_schema(body)}},
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
    for name, schema in schemas.query_properties(operation.query).items():
        # A query has no null. An absent parameter is left out.
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
    responses = {str(status): _describe_response(response, schemas) for status, response in operation.responses.items()}
    codes: dict[int, list[str]] = {}
    for error in _possible_errors(operation):
        codes.setdefault(HTTP_STATUS[error], []).append(error.code)
    for status in sorted(codes):
        responses[str(status)] = {
            "description": ", ".join(f"`{code}`" for code in sorted(codes[status])),
            "content": {CONTENT_TYPE: {"schema": schemas.response_schema(Problem)}},
        }
        if status == HTTP_STATUS[TooManyRequests]:
            responses[str(status)]["headers"] = {
                "Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}
            }
    return responses


def _possible_errors(operation: Operation) -> set[type[VigilError]]:
    """Return the errors of the handler, and those of the code that runs before or around every handler."""
    common_errors: set[type[VigilError]] = {ValidationFailed, TooManyRequests, InternalError}
    if operation.scope is not None:
        common_errors |= {Unauthorized, Forbidden, LimitExceeded}
    if operation.takes_body:
        common_errors |= {MalformedRequest, PayloadTooLarge}
    return common_errors | set(operation.problems)


def _describe_response(response: ResponseSpec, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {"description": response.description}
    if response.headers:
        described["headers"] = {
            name: {"description": _RESPONSE_HEADERS[name], "schema": {"type": "string"}} for name in response.headers
        }
    choices = [schemas.response_schema(model) for model in response.models]
    if choices:
        schema = choices[0] if len(choices) == 1 else {"anyOf": choices}
        described["content"] = {"application/json": {"schema": schema}}
        described["content"] |= {media: {"schema": {"type": "string"}} for media in response.media_types}
    return described


def _without_view_suffix(references: Any, generated: Any) -> tuple[Any, Any]:
    """Name each response schema after the thing that it shows: `JobView` becomes `Job`."""
    renamed = {name: name.removesuffix("View") for name in generated["$defs"]}
    text = re.compile(r"#/components/schemas/(\w+)")

    def rename(value: Any) -> Any:
        return json.loads(text.sub(lambda match: _REF.format(model=renamed.get(match[1], match[1])), json.dumps(value)))

    definitions = {renamed[name]: rename(schema) for name, schema in generated["$defs"].items()}
    return {key: rename(reference) for key, reference in references.items()}, {"$defs": definitions}


def without_titles(schema: Any) -> Any:
    """Return a schema without pydantic's titles, which only repeat the names."""
    if isinstance(schema, dict):
        return {
            key: without_titles(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)
        }
    if isinstance(schema, list):
        return [without_titles(item) for item in schema]
    return schema
