"""The largest runs: 10,000 jobs that fan out and in, and a chain of 10,000 jobs whose first job fails.

VIGIL_BAR_JOBS sets another number. The test logs the duration of each part; read it together with the load of the
machine.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.harness import Aws, Client, eventually, in_parallel
from vigil.local.stack import client_config, session
from vigil_core.domain.ids import workflow_job_id

JOBS = int(os.environ.get("VIGIL_BAR_JOBS", "10000"))
FEW = 10
SKIPPED_WITHIN_S = 60
MAX_DURATION_S = 1_800
AT_ONCE = 6

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * MAX_DURATION_S)]

Job = Mapping[str, Any]


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log the duration of the block."""
    began = time.monotonic()
    yield
    logger.warning("%s: %.1f s", what, time.monotonic() - began)


def fan(total: int) -> list[Job]:
    """Return one root, all jobs but two as its successors, and one sink."""
    parts = [f"part-{number}" for number in range(total - 2)]
    return [
        {"name": "split", "job_type": "part"},
        *({"name": name, "job_type": "part", "depends_on": ["split"]} for name in parts),
        {"name": "merge", "job_type": "part", "depends_on": parts},
    ]


def chain(total: int) -> list[Job]:
    """Return a chain of jobs."""
    names = [f"link-{number}" for number in range(total)]
    first, *others = names
    return [
        {"name": first, "job_type": "part"},
        *(
            {"name": name, "job_type": "part", "depends_on": [before]}
            for before, name in zip(names, others, strict=False)
        ),
    ]


def start_run(client: Client, jobs: Sequence[Job], **rest: Any) -> str:
    """Create a run that is running; return its id."""
    answer = client.call("POST", "/v1/workflows", {"name": "large", "jobs": list(jobs), **rest})
    assert answer.status_code == 202, answer.text
    run = str(answer.json()["workflow_id"])
    eventually(
        lambda: summary(client, run)["status"] == "running", MAX_DURATION_S, every_s=0.5, what="the run has not begun"
    )
    return run


def summary(client: Client, run: str) -> Any:
    return client.get(f"/v1/workflows/{run}?page_size=1")


def job_counts(client: Client, run: str) -> dict[str, int]:
    """Return the number of jobs per status, without zeros."""
    found = client.get(f"/v1/workflows/{run}/stats")
    return {
        name: int(count) for name, count in found.items() if name not in ("total", "completion_percentage") if count
    }


def wait_for_counts(client: Client, run: str, **wanted: int) -> None:
    """Wait until the statistics are these."""

    def so() -> bool:
        found = job_counts(client, run)
        assert found == wanted, found
        return True

    eventually(so, MAX_DURATION_S, every_s=0.5)


def ended_run(client: Client, run: str) -> Any:
    """Return the run once it has ended."""

    def ended() -> Any:
        found = summary(client, run)
        return found if found["finished_at"] else None

    return eventually(ended, MAX_DURATION_S, every_s=0.5, what="the run has not ended")


def complete_fan_run(client: Client, total: int) -> str:
    """Create a run that fans out and in, and complete every job from outside; return its id."""
    definition = fan(total)
    with timed(f"{total:,} jobs, created"):
        run = start_run(client, definition)
    wait_for_counts(client, run, pending=1, waiting=total - 1)
    with timed(f"{total:,} jobs, released"):
        complete(client, run, "split")
        wait_for_counts(client, run, completed=1, pending=total - 2, waiting=1)
    with timed(f"{total:,} jobs, completed"):
        in_parallel(lambda job: complete(client, run, job["name"]), definition[1:-1], AT_ONCE)
    with timed(f"{total:,} jobs, the last one released"):
        wait_for_counts(client, run, completed=total - 1, pending=1)
    with timed(f"{total:,} jobs, finalised"):
        complete(client, run, "merge")
        ended_run(client, run)
    return run


def complete(client: Client, run: str, name: str) -> None:
    client.complete(workflow_job_id(run, name), result=name)


def history(aws: Aws, run: str) -> list[str]:
    """Return the history of the supervisor of an ended run, once the execution has ended too."""
    eventually(lambda: supervisor_events(aws, run)[-1] == "ExecutionSucceeded", 60)
    return supervisor_events(aws, run)


def supervisor_events(aws: Aws, run: str) -> list[str]:
    """Return the events of a run's supervisors, in order."""
    states = session().client("stepfunctions", endpoint_url=aws.stack.endpoint_url, config=client_config())
    (machine,) = (
        each["stateMachineArn"]
        for each in states.list_state_machines()["stateMachines"]
        if each["name"] == f"{aws.stack.stack_name}-supervisor"
    )
    pages = states.get_paginator("list_executions").paginate(stateMachineArn=machine)
    executions = [each for page in pages for each in page["executions"] if run in each["name"]]
    told: list[str] = []
    for execution in executions:
        events = states.get_paginator("get_execution_history").paginate(executionArn=execution["executionArn"])
        told += [event["type"] for page in events for event in page["events"]]
    assert told, f"no execution is named after {run}"
    return told


@pytest.fixture
def outside(client: Client) -> Client:
    """Return a client in whose namespace jobs of type `part` have executor `none`."""
    assert client.call("PUT", "/v1/job-types/part", {"executor": "none"}).status_code == 201
    return client


def test_run_of_ten_thousand_jobs_has_exact_counts_and_the_history_of_a_small_run(outside: Client, aws: Aws) -> None:
    client = outside
    few, many = complete_fan_run(client, FEW), complete_fan_run(client, JOBS)
    found = summary(client, many)
    assert (found["status"], found["total"]) == ("completed", JOBS)
    stats = client.get(f"/v1/workflows/{many}/stats")
    assert (stats["total"], stats["completed"], stats["completion_percentage"]) == (JOBS, JOBS, 100)
    assert job_counts(client, many) == {"completed": JOBS}
    assert history(aws, many) == history(aws, few)


def test_failed_first_job_skips_a_chain_of_ten_thousand_within_a_minute(
    outside: Client,
) -> None:
    client = outside
    with timed(f"a chain of {JOBS:,}, created"):
        run = start_run(client, chain(JOBS), failure_policy="continue_on_failure")
    wait_for_counts(client, run, pending=1, waiting=JOBS - 1)
    first = workflow_job_id(run, "link-0")
    began = time.monotonic()
    with timed(f"a chain of {JOBS:,}, skipped"):
        client.fail(first, retryable=False)
        found = ended_run(client, run)
    took_s = time.monotonic() - began
    assert found["status"] == "failed"
    assert job_counts(client, run) == {"failed": 1, "skipped": JOBS - 1}
    last = client.get(f"/v1/jobs/{workflow_job_id(run, f'link-{JOBS - 1}')}")
    assert last["status"] == "skipped"
    assert took_s < SKIPPED_WITHIN_S
