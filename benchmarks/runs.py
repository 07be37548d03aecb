"""What runs of workflows take of AWS, and what the same graph would take of Step Functions alone."""

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
    """What a run takes: in all, by what was asked for (what follows from it included), and by function."""

    jobs: int
    total: Bill
    by_step: Mapping[str, Bill]
    by_function: Mapping[str, Bill]


def warm_up(harness: Harness) -> None:
    """Have what is written once a process and day written."""
    run_life(harness, 3)


def run_life(harness: Harness, jobs: int, *, payloads: bool = False) -> RunLife:
    """One job, all but two of the rest after it, one after those: created in one request, claimed some at a time and
    completed one by one; in batches of the stream as full as they can be."""
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
            assert claimed, f"{done} of {jobs} jobs are done, and none is ready"
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
    """What each job more takes, of two runs that differ by so many."""
    return (many - few) / jobs


def scaled(bill: Bill, count: float) -> Bill:
    """So many of it."""
    return bill / (1 / count)


# Step Functions alone. What a job's state waits for is somebody outside: its token goes to a queue, from which a worker
# takes it and deletes it, and the worker answers Step Functions itself.

TOKEN = Bill({SQS: 3})


def as_inline_map(jobs: int) -> Bill:
    """One state before, the Map, a state for each job in between, one state after."""
    return Bill({TRANSITIONS: jobs + 1}) + scaled(TOKEN, jobs)


def as_distributed_map(jobs: int) -> Bill:
    """The same, and each job in between is a child execution, whose start is taken to count as one."""
    return as_inline_map(jobs) + Bill({TRANSITIONS: jobs - 2})


def as_states(jobs: int) -> Bill:
    """A state for each job, those in between in branches of a Parallel state."""
    return Bill({TRANSITIONS: jobs + 1}) + scaled(TOKEN, jobs)
