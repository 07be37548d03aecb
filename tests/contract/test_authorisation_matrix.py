"""Authorisation matrix: every route × every scope × the own and another namespace, generated from the routes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

from tests.model.moto_table import direct_tables
from tests.support.api import SOME_ID, Client, deployed
from vigil_core import wiring
from vigil_core.api.routes import OPERATIONS
from vigil_core.api.routing import Operation
from vigil_core.domain.access import Scope
from vigil_core.domain.events.event import Event
from vigil_core.domain.webhooks import create_delivery

ALLOWED = {
    Scope.READ: {
        "list_jobs", "get_job", "get_job_status", "get_job_result", "get_job_events", "create_wait", "wait_for_jobs",
        "list_waits", "get_wait", "get_wait_jobs", "cancel_wait", "create_ticket", "list_queues", "get_queue",
        "list_job_types", "get_job_type", "get_job_dependencies", "list_dependency_results",
        "list_schedules", "get_schedule",
        "list_workflows", "get_workflow", "get_workflow_stats", "get_workflow_graph", "validate_workflow",
        "get_usage",
    },
    Scope.SUBMIT: {
        "create_upload", "create_job", "create_jobs", "cancel_job", "retry_job", "delete_job", "create_workflow",
        "cancel_workflow", "cancel_workflows", "pause_workflow", "resume_workflow", "retry_workflow", "decide_workflow",
    },
    Scope.WORK: {
        "report_job", "start_job", "complete_job", "fail_job", "heartbeat_job", "release_job", "claim", "create_upload",
    },
    Scope.ADMIN: {
        "pause_queue", "resume_queue", "put_schedule", "delete_schedule", "pause_schedule", "resume_schedule",
        "put_webhook", "list_webhooks", "get_webhook", "delete_webhook", "rotate_webhook_secret", "list_deliveries",
        "replay_delivery",
    },
}  # fmt: skip
"""The routes that each scope adds. The routes declare it too; this table checks them independently."""
ALLOWED[Scope.SUBMIT] |= ALLOWED[Scope.READ]
ALLOWED[Scope.WORK] |= ALLOWED[Scope.READ]
ALLOWED[Scope.ADMIN] |= ALLOWED[Scope.SUBMIT] | ALLOWED[Scope.WORK] | {"put_job_type", "delete_job_type"}
FREE = {"get_openapi"}
LISTS = {
    "list_jobs", "list_waits", "list_queues", "get_queue", "claim", "list_job_types", "list_webhooks", "list_schedules",
    "list_workflows", "cancel_workflows",
}  # fmt: skip
BODIES: dict[str, Any] = {
    "create_job": {"job_type": "t"},
    "create_jobs": {"jobs": [{"job_type": "t"}]},
    "put_job_type": {"queue": "q"},
    "put_webhook": {"url": "https://hooks.example.com/", "events": ["vigil.job.failed"]},
    "create_upload": {"size": 1},
    "create_workflow": {"name": "w", "jobs": [{"name": "a"}]},
    "validate_workflow": {"name": "w", "jobs": [{"name": "a"}]},
    "cancel_workflows": {"name": "w of demo"},
    "decide_workflow": {"job": "a", "action": "skip"},
    "put_schedule": {"rate": "1 day", "job": {"job_type": "t"}},
    "fail_job": {"error": {"code": "E", "message": "m"}},
}


class World(NamedTuple):
    """The entities of namespace `demo`: a running job, a wait on it, the job's queue, a job type, a webhook and its
    delivery, a schedule, a run.
    """

    job_id: str
    wait_id: str
    queue: str
    job_type: str = "type_of_demo"
    webhook: str = "hook_of_demo"
    delivery_id: str = ""
    schedule: str = "schedule_of_demo"
    workflow_id: str = ""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Store the entities once: what the tests may change does not decide the answers."""
    with deployed(), direct_tables():
        job = Client().running()
        of_demo = World(job["job_id"], waiting_on(Client(), job["job_id"]).ok()["wait_id"], job["queue"])
        run = Client().post("/v1/workflows", {"name": "w of demo", "jobs": [{"name": "a"}]}).ok(202)
        yield of_demo._replace(delivery_id=a_delivery(of_demo.webhook), workflow_id=run["workflow_id"])


def a_delivery(webhook: str) -> str:
    """Store a delivery of a webhook of demo; return its id."""
    event = Event(
        event_id=f"{SOME_ID}.1", type="vigil.job.failed", namespace="demo", subject=SOME_ID, time=datetime.now(UTC),
        data={}, topics=(), audience="ending",
    )  # fmt: skip
    delivery = create_delivery(event, webhook, None, event.time)
    wiring.context().webhooks.add_delivery(delivery)
    return delivery.delivery_id


def waiting_on(client: Client, job_id: str) -> Any:
    return client.post("/v1/waits", {"wait_on": {job_id: None}}, headers={"prefer": "wait=0"})


def restore(world: World) -> None:
    """Store what a request may have deleted or replaced: the job type, the webhook and the schedule of demo."""
    types, webhooks = f"/v1/job-types/{world.job_type}", f"/v1/webhooks/{world.webhook}"
    for path, body in ((types, {}), (webhooks, BODIES["put_webhook"])):
        Client(namespace="other").delete(path)
        Client().call("PUT", path, {**body, "description": "demo's own"})
    Client(namespace="other").delete(f"/v1/schedules/{world.schedule}")
    Client().call("PUT", f"/v1/schedules/{world.schedule}", {"cron": "1 2 3 4 5", "job": {"job_type": "demo's own"}})


def ask(operation: Operation, client: Client, world: World) -> Any:
    body = BODIES.get(operation.name, {"wait_on": {world.job_id: None}} if "wait" in operation.name else {})
    target = operation.path.format(**world._asdict())
    given = body if operation.takes_body else None
    return client.call(operation.method, target, given, headers={"prefer": "wait=0"})


def test_the_matrix_names_every_route() -> None:
    assert ALLOWED[Scope.ADMIN] | FREE == {operation.name for operation in OPERATIONS}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_scope_and_namespace_decide_the_answer_of_each_route(operation: Operation, world: World) -> None:
    wrong = []
    for check in (check_in_the_own_namespace, check_in_another_namespace):
        restore(world)
        for scope in (None, *Scope):
            try:
                check(operation, scope, world)
            except AssertionError as error:
                key = f"a key with scope {scope}" if scope else "no key"
                wrong.append(f"{check.__name__}: {operation.method} {operation.path} with {key}: {error}")
            if operation.method in ("PUT", "DELETE"):
                restore(world)
    assert not wrong, "\n".join(wrong)


def check_in_the_own_namespace(operation: Operation, scope: Scope | None, world: World) -> None:
    reply = ask(operation, Client(scopes=scope), world)
    if operation.name in FREE:
        reply.ok()
    elif scope is None:
        reply.problem(401, "UNAUTHORIZED")
    elif operation.name in ALLOWED[scope]:
        assert reply.status in (200, 201, 202, 204, 409), reply.text
    else:
        reply.problem(403, "FORBIDDEN")


def check_in_another_namespace(operation: Operation, scope: Scope | None, world: World) -> None:
    """Require that an entity of another namespace is neither found nor shown nor changed."""
    before = Client().get(f"/v1/jobs/{world.job_id}").headers["etag"]
    reply = ask(operation, Client(namespace="other", scopes=scope), world)
    if operation.name in FREE:
        reply.ok()
    elif scope is None:
        reply.problem(401, "UNAUTHORIZED")
    elif operation.name not in ALLOWED[scope]:
        reply.problem(403, "FORBIDDEN")
    elif code := not_found_code(operation):
        reply.problem(404, code)
    elif operation.name in LISTS:
        for of_demo in (world.job_id, world.wait_id, world.workflow_id, "demo's own"):
            assert of_demo not in reply.text, reply.text
    else:
        assert reply.status in (200, 201, 202), reply.text
    assert Client().get(f"/v1/job-types/{world.job_type}").ok()["description"] == "demo's own"
    assert Client().get(f"/v1/webhooks/{world.webhook}").ok()["description"] == "demo's own"
    assert Client().get(f"/v1/schedules/{world.schedule}").ok()["job"] == {"job_type": "demo's own"}
    assert Client().get(f"/v1/jobs/{world.job_id}").headers["etag"] == before, "the job has changed"


def not_found_code(operation: Operation) -> str | None:
    """Return the error code of a route that names one entity; None when it lists or creates."""
    if operation.name in ("put_webhook", "put_schedule", "put_job_type"):
        return None
    if operation.name in ("create_wait", "wait_for_jobs"):
        return "JOB_NOT_FOUND"
    for parameter in ("workflow_id", "wait_id", "job_type", "webhook", "schedule", "job_id"):
        if f"{{{parameter}}}" in operation.path:
            return f"{parameter.removesuffix('_id').upper()}_NOT_FOUND"
    return None


@pytest.mark.parametrize("scopes", ["read,submit", "submit,work", "read,work"])
def test_scopes_add_up(scopes: str, world: World) -> None:
    held = set.union(*(ALLOWED[Scope(scope)] for scope in scopes.split(",")))
    for operation in OPERATIONS:
        if operation.name not in FREE:
            refused = ask(operation, Client(scopes=scopes), world).status == 403
            assert refused == (operation.name not in held), operation.name
