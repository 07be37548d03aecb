"""AWS costs of workflow runs, and of the same graph in Step Functions alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.cost_model import SQS, TRANSITIONS, Bill
from benchmarks.harness import Harness

MAX_CLAIM_JOBS = 10
PAYLOAD: Mapping[str, Any] = {"bucket": "measurements", "key": "2026/11/22/part-0017.parquet", "rows": 65_536}
RESULT: Mapping[str, Any] = {"rows": 65_536, "rejected": 12}
PHASES = ("create", "claim", "complete")


@dataclass(frozen=True, kw_only=True)
class RunLife:
    """The costs of a run: in total, by request including its consequences, and by function."""

    jobs: int
    total: Bill
    by_step: Mapping[str, Bill]
    by_function: Mapping[str, Bill]


def warm_up(harness: Harness) -> None:
    """Cause the writes that happen once per process and day."""
    run_life(harness, 3)


def run_life(harness: Harness, jobs: int, *, payloads: bool = False) -> RunLife:
    """Run a fan-out and fan-in: one job, its successors, and one job after all of those.

    One request creates the run. Workers claim up to ten jobs at a time and complete them one by one. The stream's
    batches are as full as possible.
    """
    names = [f"part-{number}" for number in range(jobs - 2)]
    payload = {"payload": PAYLOAD} if payloads else {}
    definition = [
        {"name": "split", **payload},
        *({"name": name, "job_type": "part", "depends_on": ["split"], **payload} for name in names),
        {"name": "merge", "depends_on": names, **payload},
    ]
    by_step = dict.fromkeys(PHASES, Bill())
    with harness.billed() as life:
        with harness.billed() as step:
            run = harness.call("POST", "/v1/workflows", {"name": "parts", "jobs": definition}).ok(202)
            harness.settle_all()
        by_step["create"] = step(None)
        done = 0
        while done < jobs:
            with harness.billed() as step:
                claimed = _claim(harness, 1 if done in (0, jobs - 1) else jobs - 2)
                harness.settle_all()
            by_step["claim"] += step(None)
            assert claimed, f"{done} of {jobs} jobs have ended, and no job is ready"
            with harness.billed() as step:
                for job in claimed:
                    body = {"lease_token": job["lease_token"], "result": RESULT}
                    harness.call("POST", f"/v1/jobs/{job['job_id']}/complete", body).ok()
                harness.settle_all()
            by_step["complete"] += step(None)
            done += len(claimed)
        run_cost = RunLife(
            jobs=jobs,
            total=life(None),
            by_step=by_step,
            by_function={name: life(name) for name in ("api", "matcher", "notifier", "fan_out", "supervisor")},
        )
    finished = harness.call("GET", f"/v1/workflows/{run['workflow_id']}").ok()
    assert finished["status"] == "completed", finished["status"]
    return run_cost


def _claim(harness: Harness, count: int) -> list[Any]:
    claimed: list[Any] = []
    while len(claimed) < count:
        body = {"max": min(MAX_CLAIM_JOBS, count - len(claimed)), "worker": "box-1", "lease": 600}
        jobs = harness.call("POST", "/v1/queues/default/claim", body).ok()["jobs"]
        if not jobs:
            break
        claimed += jobs
    return claimed


def extra_per_job(few: Bill, many: Bill, jobs: int) -> Bill:
    """Return the costs per additional job, from two runs whose sizes differ by `jobs`."""
    return (many - few) / jobs


def scaled(bill: Bill, count: float) -> Bill:
    """Return a bill multiplied by `count`."""
    return bill / (1 / count)


# Step Functions alone. The state of a job waits for a worker: its task token is sent to a queue. A worker receives the
# message, deletes it and answers Step Functions itself.

TOKEN = Bill({SQS: 3})


def as_inline_map(jobs: int) -> Bill:
    """Return the costs of an inline Map: a state before it, the Map, one state per job in it, and a state after it."""
    return Bill({TRANSITIONS: jobs + 1}) + scaled(TOKEN, jobs)


def as_distributed_map(jobs: int) -> Bill:
    """Return the costs of a distributed Map, whose child executions count as one transition each."""
    return as_inline_map(jobs) + Bill({TRANSITIONS: jobs - 2})


def as_states(jobs: int) -> Bill:
    """Return the costs of one state per job, in the branches of a Parallel state."""
    return Bill({TRANSITIONS: jobs + 1}) + scaled(TOKEN, jobs)
