"""X-Ray subsegments of requests, jobs and runs, which can be found by their ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from functions.fan_out import handler as fan_out
from functions.http_executor import handler as http_executor
from functions.supervisor import handler as supervisor
from tests.support.api import Client, LambdaContext, deployed
from tests.support.daemon import Daemon
from tests.support.events import sample
from tests.support.runs import RunWorld
from tests.support.world import NAMESPACE, FakeExecutors, FakeQueues
from vigil_core import wiring
from vigil_core.domain.exact_json import dumps, loads
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.services.executors.dispatch import dispatch
from vigil_core.services.messages import RunApply
from vigil_core.services.workflows.blocks import enqueue_blocks
from vigil_core.services.workflows.commands import find_run
from vigil_core.store.table import DynamoTable

CONTEXT: Any = LambdaContext()
TRACE_IDS = {"trace_id": "1-67890abc-fedcba9876543210fedcba98", "correlation_id": "daily-report-001"}


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    daemon = Daemon(monkeypatch)
    yield daemon
    daemon.close()


@pytest.fixture
def client() -> Iterator[Client]:
    with deployed():
        yield Client()


@pytest.fixture
def world(table: DynamoTable) -> RunWorld:
    return RunWorld(table)


def name_and_annotations(sent: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    return sent["name"], sent["annotations"]


# The API


def test_job_request_records_a_subsegment_with_its_ids(daemon: Daemon, client: Client) -> None:
    job = client.post("/v1/jobs", {"job_type": "t", "payload": "classified", **TRACE_IDS}).ok(202)
    ids = {"namespace": "demo", "job_id": job["job_id"], **TRACE_IDS}
    assert name_and_annotations(sent := daemon.take()) == ("create_job", ids)
    assert "classified" not in str(sent)
    client.get(f"/v1/jobs/{job['job_id']}").ok()
    assert name_and_annotations(daemon.take()) == ("get_job", ids)
    client.get(f"/v1/jobs/{job['job_id']}/status").ok()
    assert name_and_annotations(daemon.take()) == ("get_job_status", {"namespace": "demo", "job_id": job["job_id"]})


def test_workflow_request_records_a_subsegment_with_its_ids(daemon: Daemon, client: Client) -> None:
    run = client.post("/v1/workflows", {"name": "w", "jobs": [{"name": "a"}], **TRACE_IDS}).ok(202)
    ids = {"namespace": "demo", "workflow_id": run["workflow_id"], **TRACE_IDS}
    assert name_and_annotations(daemon.take()) == ("create_workflow", ids)
    client.get(f"/v1/workflows/{run['workflow_id']}").ok()
    assert name_and_annotations(daemon.take()) == ("get_workflow", ids)


def test_refused_request_records_a_subsegment_with_clean_ids(daemon: Daemon, client: Client) -> None:
    client.get("/v1/jobs/" + "%F0%9F%98%80%0A" * 1_000).problem(404, "JOB_NOT_FOUND")
    assert name_and_annotations(daemon.take()) == ("get_job", {"namespace": "demo", "job_id": "\U0001f600?" * 500})
    client.get("/v1/nothing").problem(404, "NOT_FOUND")
    assert name_and_annotations(daemon.take()) == ("not_found", {})


def test_unsampled_request_records_nothing(daemon: Daemon, client: Client) -> None:
    daemon.trace(sampled=False)
    client.post("/v1/jobs", {"job_type": "t", **TRACE_IDS}).ok(202)
    assert daemon.take_all() == []


def test_requests_succeed_without_an_xray_daemon(
    daemon: Daemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_XRAY_DAEMON_ADDRESS", "127.0.0.1:1")
    for _ in range(3):
        client.post("/v1/jobs", {"job_type": "t", **TRACE_IDS}).ok(202)


# The matcher


def test_matcher_batch_records_a_subsegment_per_run_and_job(daemon: Daemon, world: RunWorld) -> None:
    jobs: list[dict[str, Any]] = [
        {"name": "a", "priority": "high"},
        {"name": "b"},
        {"name": "c", "depends_on": ["a"], "trace_id": "own"},
    ]
    run = world.run(*jobs, **TRACE_IDS)
    ids = {"namespace": NAMESPACE, "workflow_id": run, **TRACE_IDS}
    world.machine.run()
    world.deliver_stream()
    assert name_and_annotations(daemon.take()) == ("advance_run", ids)

    def followed() -> list[dict[str, str]]:
        """Process the next stream batch and return the annotations of its subsegments for jobs."""
        world.deliver_stream()
        return [about for name, about in map(name_and_annotations, daemon.take_all()) if name == "advance_jobs"]

    assert followed() == [ids], "two jobs become ready at the same time"
    world.run_until_idle()
    daemon.take_all()
    first = world.claim()
    assert first is not None
    assert followed() == [{**ids, "job_id": first.job_id}]
    world.finish(first)
    assert followed() == [{**ids, "job_id": first.job_id}]
    assert followed() == [{**ids, "job_id": world.id_of(run, "c"), "trace_id": "own"}]


def test_unsampled_matcher_batch_records_nothing(daemon: Daemon, world: RunWorld) -> None:
    daemon.trace(sampled=False)
    run = world.run({"name": "a"}, {"name": "b", "depends_on": ["a"]}, **TRACE_IDS)
    assert world.work() == ["a", "b"]
    assert world.find_run(run).status == "completed"
    assert daemon.take_all() == []


def test_dispatched_job_records_one_subsegment(daemon: Daemon, world: RunWorld) -> None:
    run = world.run({"name": "join", "executor": "join"}, **TRACE_IDS)
    world.run_until_idle()
    sent = [name_and_annotations(each) for each in daemon.take_all()]
    ids = {"namespace": NAMESPACE, "workflow_id": run, "job_id": world.id_of(run, "join"), **TRACE_IDS}
    assert sent.count(("dispatch", ids)) == 1


# The other functions for runs and jobs


def test_supervisor_records_subsegments_with_run_ids(daemon: Daemon, client: Client) -> None:
    begin = sample("supervisor_start")
    run = client.post("/v1/workflows", {"name": "w", "jobs": [{"name": "a"}], **TRACE_IDS}).ok(202)
    daemon.take_all()
    ids = {"namespace": "demo", "workflow_id": run["workflow_id"]}
    supervisor.handler({**begin, **ids}, None)
    assert name_and_annotations(daemon.take()) == ("start", {**ids, **TRACE_IDS})
    stopped = sample("supervisor_stopped")
    stopped["detail"]["input"] = dumps({**loads(stopped["detail"]["input"]), **ids})  # type: ignore[dict-item]
    supervisor.handler(stopped, None)
    assert name_and_annotations(daemon.take()) == ("execution_ended", {**ids, **TRACE_IDS})


def test_fan_out_records_a_subsegment_with_run_ids(daemon: Daemon, client: Client) -> None:
    run = client.post("/v1/workflows", {"name": "w", "jobs": [{"name": "a"}], **TRACE_IDS}).ok(202)
    daemon.take_all()
    queues = FakeQueues()
    enqueue_blocks(replace(wiring.context(), message_queues=queues), run_by_id(run["workflow_id"]), RunApply, [0])
    fan_out.handler(messages([work.body for work in queues.fan_out_messages]), CONTEXT)
    assert name_and_annotations(daemon.take()) == (
        "fan_out",
        {"namespace": "demo", "workflow_id": run["workflow_id"], **TRACE_IDS},
    )


def test_http_executor_records_subsegments_with_job_ids(
    daemon: Daemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRETS_PREFIX", "vigil")
    now, executors = wiring.now(), FakeExecutors()
    context = replace(wiring.context(), executors=executors)
    job_type = JobType(
        namespace="demo", name="call", executor="http", queue="default", stages=("submit", "complete"), defaults={},
        payload_schema=None, description=None, created_at=now, updated_at=now, target={"url": "https://127.0.0.1/"},
    )  # fmt: skip
    context.job_types.store_target(job_type)
    context.job_types.save(None, job_type)
    job = client.post("/v1/jobs", {"job_type": "call", **TRACE_IDS}).ok(202)
    ids = {"namespace": "demo", "job_id": job["job_id"], **TRACE_IDS}
    daemon.take_all()
    assert dispatch(context, "demo", job["job_id"], actor="matcher")
    assert name_and_annotations(daemon.take()) == ("dispatch", ids)
    (event,) = executors.calls
    http_executor.handler(event, None)
    assert name_and_annotations(daemon.take()) == ("call", ids)


def run_by_id(workflow_id: str) -> Any:
    return find_run(wiring.context(), "demo", workflow_id)


def messages(bodies: Sequence[str]) -> dict[str, Any]:
    """Build an event of the fan-out function."""
    (record,) = sample("fan_out_register")["Records"]
    return {"Records": [{**record, "body": body} for body in bodies]}
