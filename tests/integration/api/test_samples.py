"""The sample payloads of the HTTP API in sequence: one job from creation to end, and two waits on it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from functions.api.handler import handler
from tests.support.api import Client, LambdaContext
from tests.support.events import EVENTS, sample
from vigil_core import wiring
from vigil_core.api.routes import OPERATIONS
from vigil_core.services.waits.requests import post_wait
from vigil_core.services.workflows.create import create_run

SEQUENCE = [
    ("api_create_job_forbidden", 403), ("api_create_job_malformed", 400), ("api_create_job_invalid", 422),
    ("api_get_job", 404), ("api_get_job_malformed_id", 404),
    ("api_create_job", 202), ("api_create_job", 202), ("api_create_job_base64", 202), ("api_create_jobs", 200),
    ("api_list_jobs", 200), ("api_list_jobs_token_tampered", 422),
    ("api_get_job", 200), ("api_get_job_result", 409), ("api_create_wait", 200), ("api_list_waits", 200),
    ("api_get_wait", 200), ("api_get_wait_jobs", 200),
    ("api_claim", 200), ("api_pause_queue", 200), ("api_resume_queue", 200), ("api_list_queues", 200),
    ("api_get_queue", 200),
    ("api_get_usage", 200), ("api_start_job", 200), ("api_heartbeat_job", 200), ("api_release_job", 409),
    ("api_report_job", 200), ("api_report_job_lease_lost", 409), ("api_get_job_status", 200),
    ("api_delete_job", 409), ("api_cancel_job", 202), ("api_complete_job", 200), ("api_get_job_result", 200),
    ("api_get_job_dependencies", 200),
    ("api_list_dependency_results", 200),
    ("api_get_job_events", 200), ("api_wait_for_jobs", 200), ("api_cancel_wait", 200), ("api_retry_job", 409),
    ("api_fail_job", 409), ("api_delete_job", 204),
    ("api_put_job_type", 201), ("api_put_job_type", 200), ("api_get_job_type", 200), ("api_list_job_types", 200),
    ("api_delete_job_type", 204), ("api_delete_job_type", 404),
    ("api_put_webhook", 201), ("api_get_webhook", 200), ("api_list_webhooks", 200), ("api_rotate_webhook_secret", 200),
    ("api_list_deliveries", 200), ("api_replay_delivery", 404), ("api_delete_webhook", 204), ("api_get_webhook", 404),
    ("api_put_schedule", 201), ("api_put_schedule", 200), ("api_get_schedule", 200), ("api_list_schedules", 200),
    ("api_pause_schedule", 200), ("api_resume_schedule", 200), ("api_delete_schedule", 204),
    ("api_delete_schedule", 404),
    ("api_validate_workflow", 200), ("api_create_workflow", 202), ("api_list_workflows", 200),
    ("api_get_workflow", 404), ("api_get_workflow_stats", 200), ("api_get_workflow_graph", 200),
    ("api_pause_workflow", 409), ("api_resume_workflow", 409), ("api_decide_workflow", 409),
    ("api_retry_workflow", 409), ("api_cancel_workflow", 202), ("api_cancel_workflows", 200), ("api_get_workflow", 200),
    ("api_create_upload", 201), ("api_create_ticket", 201), ("api_get_openapi", 200), ("api_not_found", 404),
]  # fmt: skip


def test_sample_requests_run_in_sequence_with_expected_statuses(client: Client) -> None:
    for name, status in SEQUENCE:
        if name == "api_list_waits":
            store_the_sample_wait()
        if name == "api_get_workflow_stats":
            store_the_sample_run()
        answered = handler(sample(name), LambdaContext())
        assert answered["statusCode"] == status, (name, answered["body"])
    assert set(all_samples()) == {name for name, _ in SEQUENCE}


def store_the_sample_wait() -> None:
    """Store the wait whose id the samples contain. A client cannot choose the id of a wait."""
    context = wiring.context()
    body: Any = json.loads(sample("api_create_wait")["body"])
    wait_id = sample("api_get_wait")["pathParameters"]["wait_id"]
    post_wait(context, "demo", body, actor="test", poll_until=context.now(), reserved_id=wait_id)


def store_the_sample_run() -> None:
    """Store the run whose id the samples contain. A client cannot choose the id of a run."""
    context = wiring.context()
    body: Any = json.loads(sample("api_create_workflow")["body"])
    workflow_id = sample("api_get_workflow")["pathParameters"]["workflow_id"]
    create_run(context, "demo", context.parse_run("demo", body, workflow_id, context.now(), None), actor="test")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_route_has_a_sample_under_its_name(operation: Any) -> None:
    assert sample(f"api_{operation.name}")["routeKey"] == f"{operation.method} {operation.path}"


def all_samples() -> list[str]:
    return sorted(path.stem for path in EVENTS.glob("api_*.json"))
