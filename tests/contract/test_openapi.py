"""The OpenAPI document is committed, complete, and matches the deployed routes."""

from __future__ import annotations

import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from tests.support.template import resources
from vigil_core.api.problems import HTTP_STATUS
from vigil_core.api.routes import OPERATIONS, openapi
from vigil_core.api.routing import Operation

COMMITTED = Path(__file__).resolve().parents[2] / "docs/openapi.json"


def deployed() -> dict[tuple[str, str], bool]:
    """Return (method, path) → whether the route needs a key, from the template; $default is ("", "")."""
    events = resources("AWS::Serverless::Function")["ApiFunction"]["Events"].values()
    found: dict[tuple[str, str], bool] = {}
    for event in events:
        route = event["Properties"]
        found[route.get("Method", ""), route.get("Path", "")] = route.get("Auth", {}).get("Authorizer") != "NONE"
    return found


def test_committed_openapi_document_matches_the_code() -> None:
    made = json.dumps(openapi(), indent=2, ensure_ascii=False) + "\n"
    assert COMMITTED.read_text() == made, "run make openapi"


def test_openapi_routes_match_the_template() -> None:
    served = {(operation.method, operation.path): operation.scope is not None for operation in OPERATIONS}
    assert deployed() == served | {("", ""): False}


def test_operation_names_are_unique() -> None:
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_operation_has_summary_description_and_security(operation: Operation) -> None:
    described = openapi()["paths"][operation.path][operation.method.lower()]
    assert described["summary"]
    assert described["description"]
    assert described["security"] == ([] if operation.scope is None else [{"apiKey": []}])
    assert all(HTTPStatus(int(status)) and answer["description"] for status, answer in described["responses"].items())
    assert ("requestBody" in described) == (operation.method in ("POST", "PUT", "PATCH"))


def test_every_operation_has_a_declared_tag_and_every_tag_has_operations() -> None:
    document = openapi()
    used = {
        tag for methods in document["paths"].values() for described in methods.values() for tag in described["tags"]
    }
    assert used == {tag["name"] for tag in document["tags"] if tag["description"]}


def test_every_reference_resolves_and_every_schema_is_referenced() -> None:
    document = openapi()
    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert names == set(document["components"]["schemas"])


def references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [found for item in value for found in references(item)]
    if isinstance(value, dict):
        here = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return here + [found for item in value.values() for found in references(item)]
    return []


def test_internal_error_is_the_only_5xx_error_code() -> None:
    assert [error.code for error, status in HTTP_STATUS.items() if status >= 500] == ["INTERNAL_ERROR"]
