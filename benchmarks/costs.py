"""AWS costs of a tracked job, a worker's job, a wait and an idle minute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from benchmarks.cost_model import Bill
from benchmarks.harness import NAMESPACE, Harness, Row
from vigil_core import wiring
from vigil_core.services.auth.api_keys import create_key
from vigil_core.services.waits.requests import show_wait
from vigil_core.store import keys

JOB: Mapping[str, Any] = {
    "job_type": "boot_test",
    "name": "rhel-9.4 on lab-12",
    "queue": "lab",
    "fields": {"arch": "x86_64", "kernel": "5.14.0-427.el9"},
    "tags": ["nightly"],
    "payload": {
        "image": "https://images.example.com/rhel/9.4/x86_64/boot.iso",
        "machine": {"name": "lab-12", "memory_gb": 64, "disks": ["nvme0n1", "nvme1n1"]},
        "suites": ["smoke", "network", "storage"],
        "variables": {"SELINUX": "enforcing", "CONSOLE": "ttyS0,115200"},
    },
}
JOB_WITH_MORE_FIELDS: Mapping[str, Any] = {**JOB, "fields": {**JOB["fields"], "notes": "x" * 1024}}
REPORTS: Sequence[Mapping[str, Any]] = (
    {"job_stage": "download", "progress": 0.1, "message": "Fetching the image"},
    {"job_stage": "boot", "progress": 0.25, "milestones": ["image-ready"]},
    {"job_stage": "setup", "progress": 0.4, "fields": {"address": "192.0.2.17"}},
    {"job_stage": "running", "progress": 0.6, "milestones": ["ssh-up"], "message": "128 tests"},
    {"job_stage": "post_run", "progress": 0.9, "fields": {"result_root": "/results/9.4/x86_64/12", "boot_seconds": 41}},
)
PROGRESS: Sequence[Mapping[str, Any]] = tuple(
    {"progress": tenths / 10, "message": f"{tenths * 12} of 120 tests"} for tenths in (1, 3, 5, 7, 9)
)
WORKER_JOB: Mapping[str, Any] = {**JOB, "job_type": "image_check", "queue": "checks"}
CLAIM: Mapping[str, Any] = {"worker": "box-1", "lease": 60}
RESULT: Mapping[str, Any] = {"result": {"passed": 127, "failed": 1, "log": "https://logs.example.com/9.4/12.txt"}}
WAIT_OPTIONS: Mapping[str, Any] = {"get_fields": {"result_root": None, "boot_seconds": None}, "fail_fast": None}
CONCURRENT_JOBS = 25


@dataclass(frozen=True, kw_only=True)
class JobLife:
    """The costs of a job: in total, by request including its stream work, and by function."""

    total: Bill
    by_step: Mapping[str, Bill]
    by_function: Mapping[str, Bill]


@dataclass(frozen=True, kw_only=True)
class WaitLife:
    """The costs of a wait in addition to its job's: to register it, to end it, and for each read of a long poll.

    `polls_in_20_s` is the number of reads of a long poll of the default length.
    """

    registered: Bill
    matched: Bill
    poll: Bill
    polls_in_20_s: int

    @property
    def total(self) -> Bill:
        """The costs without long polls."""
        return self.registered + self.matched


def warm_up(harness: Harness) -> None:
    """Cause the writes that happen once per process and day, and create the job type, before anything is counted."""
    harness.call("PUT", f"/v1/job-types/{JOB['job_type']}", {"executor": "none"}).ok(201)
    finish(harness, create(harness))
    worker_life(harness)
    harness.call("POST", "/v1/waits", wait_body(create(harness)), wait_s=0).ok()
    harness.deliver()


def create(harness: Harness, job: Mapping[str, Any] = JOB) -> str:
    """Create a job and return its id."""
    return str(harness.call("POST", "/v1/jobs", job).ok(202)["job_id"])


def finish(harness: Harness, job_id: str) -> None:
    """Start and complete a job without reports."""
    harness.call("POST", f"/v1/jobs/{job_id}/start").ok()
    harness.call("POST", f"/v1/jobs/{job_id}/complete", RESULT).ok()


def wait_body(*job_ids: str) -> dict[str, Any]:
    """Return the request for a wait on the completion of jobs."""
    return {"wait_on": {job_id: {"job_stage": "complete"} for job_id in job_ids}, "wait_options": WAIT_OPTIONS}


def job_life(
    harness: Harness, reports: Sequence[Mapping[str, Any]] = REPORTS, *, job: Mapping[str, Any] = JOB, jobs: int = 1
) -> JobLife:
    """Create, start, report five times and complete a job with a result.

    With several jobs, return their mean. Their changes share batches of the stream.
    """
    steps: list[tuple[str, str, str, Mapping[str, Any] | None]] = [
        ("start", "POST", "/start", None),
        *(("report", "PATCH", "", report) for report in reports),
        ("complete", "POST", "/complete", RESULT),
    ]
    by_step: dict[str, Bill] = {}
    with harness.billed() as life:
        with harness.billed() as step:
            job_ids = [create(harness, job) for _ in range(jobs)]
            harness.deliver(batch_size=100)
            by_step["create"] = step(None) / jobs
        for name, method, path, body in steps:
            with harness.billed() as step:
                for job_id in job_ids:
                    harness.call(method, f"/v1/jobs/{job_id}{path}", body).ok()
                harness.deliver(batch_size=100)
                by_step[name] = by_step.get(name, Bill()) + step(None) / jobs
        return JobLife(
            total=life(None) / jobs,
            by_step=by_step,
            by_function={name: life(name) / jobs for name in ("api", "matcher", "notifier")},
        )


def wait_life(harness: Harness) -> WaitLife:
    """Register a wait on one job before the job ends, and let the end meet it."""
    unwatched, watched = create(harness), create(harness)
    for job_id in (unwatched, watched):
        harness.call("POST", f"/v1/jobs/{job_id}/start").ok()
    harness.deliver()

    with harness.billed() as without_wait:
        harness.call("POST", f"/v1/jobs/{unwatched}/complete", RESULT).ok()
        harness.deliver()
    ending = without_wait(None)

    with harness.billed() as registration:
        answer = harness.call("POST", "/v1/waits", wait_body(watched), wait_s=0).ok()
        harness.deliver()
    registered = registration(None)
    assert answer["status"] == "waiting", answer

    poll, polls = _long_poll_cost(harness, str(answer["wait_id"]), long_poll_s=20)

    with harness.billed() as with_wait:
        harness.call("POST", f"/v1/jobs/{watched}/complete", RESULT).ok()
        harness.deliver()
    matched = with_wait(None) - ending
    closed = harness.call("GET", f"/v1/waits/{answer['wait_id']}").ok()
    assert closed["status"] == "met", closed
    return WaitLife(registered=registered, matched=matched, poll=poll, polls_in_20_s=polls)


def worker_life(harness: Harness) -> Mapping[str, Bill]:
    """Return the costs by step of a job that a worker claims, sends one heartbeat with progress for, and completes."""
    by_step: dict[str, Bill] = {}
    lease: dict[str, Any] = {}

    def claim() -> None:
        (job,) = harness.call("POST", f"/v1/queues/{WORKER_JOB['queue']}/claim", CLAIM).ok()["jobs"]
        lease.update(job_id=job["job_id"], token=job["lease_token"])

    def report(verb: str, fields: Mapping[str, Any]) -> None:
        body = {**fields, "lease_token": lease["token"]}
        harness.call("POST", f"/v1/jobs/{lease['job_id']}/{verb}", body).ok()

    steps: Mapping[str, Callable[[], object]] = {
        "create": lambda: create(harness, WORKER_JOB),
        "claim": claim,
        "heartbeat": lambda: report("heartbeat", {"progress": 0.5}),
        "complete": lambda: report("complete", RESULT),
    }
    for name, step in steps.items():
        with harness.billed() as bill:
            step()
            harness.deliver()
        by_step[name] = bill(None)
    return by_step


def claim_among(harness: Harness, ready: int) -> Bill:
    """Return the costs of claiming one job from a queue of `ready` jobs."""
    queue = f"checks-{ready}"
    rows = [harness.row(keys.job(NAMESPACE, create(harness, {**WORKER_JOB, "queue": queue})))]
    job_id = keys.parse_job(rows[0]["pk"]["S"])[1]
    rows += [_renamed(rows[0], {job_id: wiring.context().new_id()}) for _ in range(ready - 1)]
    harness.put_rows(rows[1:])
    harness.skip_stream()
    with harness.billed() as claim:
        assert len(harness.call("POST", f"/v1/queues/{queue}/claim", CLAIM).ok()["jobs"]) == 1
    harness.skip_stream()
    return claim(None)


def idle_minute(harness: Harness) -> Bill:
    """Return the costs of a minute in which nothing is due."""
    harness.tick()
    with harness.billed() as minute:
        harness.tick()
    return minute(None)


def authorization(harness: Harness) -> Bill:
    """Return the costs of authorizing a key. API Gateway caches the answer for 60 s."""
    _, token = create_key(wiring.auth_context(), NAMESPACE, ["submit"])
    event = {"version": "2.0", "headers": {"authorization": f"Bearer {token.to_text()}"}, "rawPath": "/v1/jobs"}
    with harness.billed() as bill:
        answer = harness.authorize(event)
    assert answer["isAuthorized"], answer
    return bill(None)


def match_among(harness: Harness, others: int) -> WaitLife:
    """Return the costs of a wait while other waits are stored, each on a separate job."""
    _store_waits(harness, others)
    return wait_life(harness)


def _store_waits(harness: Harness, count: int) -> None:
    """Store copies of a real wait and its entry under other ids: for this benchmark only their existence matters."""
    job_id = create(harness)
    answer = harness.call("POST", "/v1/waits", wait_body(job_id), wait_s=0).ok()
    wait_id = str(answer["wait_id"])
    rows = [harness.row(keys.wait(NAMESPACE, wait_id)), harness.row(keys.entry(NAMESPACE, job_id, wait_id, 0))]
    copies: list[Row] = []
    for _ in range(count - 1):
        names = {job_id: wiring.context().new_id(), wait_id: wiring.context().new_id()}
        copies += [_renamed(row, names) for row in rows]
    harness.put_rows(copies)
    harness.skip_stream()


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, names) for inner in value]
    if isinstance(value, str):
        for old, new in names.items():
            value = value.replace(old, new)
    return value


def _long_poll_cost(harness: Harness, wait_id: str, *, long_poll_s: int) -> tuple[Bill, int]:
    """Return the costs of one read of a long poll, and the number of reads.

    The long poll runs on a simulated clock that only its own sleeps advance.
    """
    base = wiring.context()
    time = base.now()

    def now() -> datetime:
        return time

    def sleep(seconds: float) -> None:
        nonlocal time
        time += timedelta(seconds=seconds)

    ctx = replace(base, clock=now, sleep=sleep)
    with harness.billed() as single_bill:
        show_wait(ctx, NAMESPACE, wait_id, poll_until=time)
    single = single_bill(None)
    with harness.billed() as polled_bill:
        show_wait(ctx, NAMESPACE, wait_id, poll_until=time + timedelta(seconds=long_poll_s))
    polls = polled_bill(None) - single
    count = round(polls["dynamodb.requests"])
    return polls / count, count
