"""Every time and every length of time that a request can contain is accepted or refused, whatever its value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.support.api import SOME_ID, Client, Reply
from tests.support.table import TABLE_NAME, aws
from vigil_core.api.routes import openapi

TIMES = {
    "0001-01-01T00:00:00Z": True, "0001-01-01T00:00:00+14:00": False, "1969-12-31T23:59:59.999Z": True,
    "2026-02-30T00:00:00Z": False, "2026-06-30T23:59:60Z": False, "8999-12-31T23:59:59.999999Z": True,
    "9000-01-01T00:00:00Z": True, "9000-01-01T00:00:00.001Z": False, "9999-12-31T23:59:59Z": False,
    "9999-12-31T23:59:59.999999-14:00": False, "10000-01-01T00:00:00Z": False, "never": False, "": False,
}  # fmt: skip
"""Times, and whether they are accepted."""
LENGTHS = [-1, 0, 1, 30 * 86_400, 30 * 86_400 + 1, 2**63, 10**30]
LENGTH_NAMES = {
    "timeout", "heartbeat_timeout", "lease", "start_delay", "health_check_interval", "expires_in", "initial_delay",
    "max_delay",
}  # fmt: skip
JOB = {"job_type": "t"}
BODIES: Mapping[str, dict[str, Any]] = {
    "POST /v1/jobs": JOB,
    "POST /v1/jobs/bulk": {"jobs": [JOB]},
    "PUT /v1/job-types/{job_type}": {"executor": "lambda", "target": {"function": "f"}},
    "POST /v1/queues/{queue}/claim": {"worker": "w", "max": 1},
    "POST /v1/jobs/{job_id}/heartbeat": {},
    "POST /v1/waits": {"wait_on": {SOME_ID: None}, "wait_options": {"allow_missing": True}},
    "POST /scheduler/wait-jobs": {"wait_on": {SOME_ID: None}, "wait_options": {"allow_missing": True}},
    "POST /v1/workflows": {"name": "w", "jobs": [{"name": "a"}]},
    "POST /v1/workflows/validate": {"name": "w", "jobs": [{"name": "a"}]},
    "POST /v1/workflows/cancel": {"status": "pending"},
    "PUT /v1/schedules/{schedule}": {"rate": "1 day", "job": JOB},
}
"""A valid body for each route whose body contains a time."""
PATH_PARAMETERS = {"job_type": "t", "queue": "q", "job_id": SOME_ID, "schedule": "s"}

Field = tuple[str, tuple[str, ...], bool]
"""The route, the path of the field in its body (`?name` for a query parameter), and whether it is a point in time."""


def fields() -> list[Field]:
    """Return every time and length of time in the requests of the OpenAPI document."""
    document = openapi()
    found: set[Field] = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            route = f"{method.upper()} {path}"
            for parameter in operation.get("parameters", ()):
                if "schema" in parameter:
                    found |= {
                        (route, (f"?{parameter['name']}",), True)
                        for _, is_time in _walk(document, parameter["schema"], (parameter["name"],), frozenset())
                        if is_time
                    }
            for content in operation.get("requestBody", {}).get("content", {}).values():
                found |= {(route, *field) for field in _walk(document, content["schema"], (), frozenset())}
    return sorted(found)


def _walk(
    document: Mapping[str, Any], schema: Any, path: tuple[str, ...], seen: frozenset[str]
) -> Iterator[tuple[tuple[str, ...], bool]]:
    if not isinstance(schema, Mapping):
        return
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        if name not in seen:
            yield from _walk(document, document["components"]["schemas"][name], path, seen | {name})
        return
    if schema.get("format") == "date-time":
        yield path, True
    if schema.get("type") in ("integer", "number") and path and path[-1] in LENGTH_NAMES:
        yield path, False
    for name, member in schema.get("properties", {}).items():
        yield from _walk(document, member, (*path, name), seen)
    for keyword in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(keyword, ()):
            yield from _walk(document, part, path, seen)
    yield from _walk(document, schema.get("items"), (*path, "0"), seen)


FIELDS = [(route, path, is_time) for route, path, is_time in fields() if is_time or route != "POST /v1/workflows"]
"""The fields to test. The lengths of a workflow are tested by its validation, which does the same and is faster."""


def with_value(body: Any, path: tuple[str, ...], value: object) -> Any:
    """Return a copy of a body with a value at a path."""
    if not path:
        return value
    if path[0] == "0":
        return [with_value(body[0] if body else {}, path[1:], value)]
    return {**(body or {}), path[0]: with_value((body or {}).get(path[0]), path[1:], value)}


def problem_of(reply: Reply) -> Any:
    """Return the problem document of a refusal, also of one in a bulk request; None for a success."""
    if reply.status == 422:
        return reply.json
    members = reply.json if isinstance(reply.json, Mapping) else {}
    if members.get("valid") is False:
        return members
    return next((result.get("problem") for result in members.get("results", ())), None)


def stored_rows() -> list[str]:
    """Return the keys of all rows except those that record that something happened on a day or in a queue."""
    rows = aws("dynamodb").scan(TableName=TABLE_NAME)["Items"]
    return sorted(f"{row['pk']['S']} {row['sk']['S']}" for row in rows if row["entity"]["S"] not in ("day", "queue"))


def test_the_matrix_has_every_kind_of_time() -> None:
    assert {path[-1].removeprefix("?") for _, path, is_time in FIELDS if is_time} == {
        "scheduled_at", "created_after", "created_before",
    }  # fmt: skip
    assert {path[-1] for _, path, is_time in FIELDS if not is_time} == LENGTH_NAMES


@pytest.mark.parametrize(("route", "path", "is_time"), FIELDS, ids=lambda value: str(value))
def test_every_time_is_accepted_or_refused_by_its_name(
    client: Client, route: str, path: tuple[str, ...], is_time: bool
) -> None:
    method, target = route.split(" ")
    target = target.format(**PATH_PARAMETERS)
    in_query = path[0].startswith("?")
    values: list[Any] = [*TIMES] if is_time else LENGTHS
    for value in values:
        before = stored_rows()
        if in_query:
            reply = client.call(method, target, **{path[0][1:]: value})
        else:
            body = with_value(BODIES[route], path, value)
            reply = client.call(method, target, body, headers={"prefer": "wait=0"})
        assert reply.status < 500, (value, reply.text)
        problem = problem_of(reply)
        if is_time:
            assert (problem is None) == TIMES[value], (value, reply.text)
        if problem is not None:
            assert stored_rows() == before
            assert problem["errors"][0]["pointer"] in (f"/{'/'.join(path)}", path[0]), (value, reply.text)


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59Z", "9000-01-01T00:00:00.001Z"])
def test_run_with_a_start_time_that_is_refused_does_not_exist(client: Client, at: str) -> None:
    body = {"name": "never", "jobs": [{"name": "a"}, {"name": "b", "scheduled_at": at}]}
    assert client.post("/v1/workflows", body).pointers() == ["/jobs/1/scheduled_at"]
    assert client.get("/v1/workflows", name="never").ok()["workflows"] == []
