"""What a tracked job's life, a wait on it and an idle minute take of AWS."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from benchmarks.cost_model import Bill
from benchmarks.harness import NAMESPACE, Lab, Row
from vigil_core import wiring
from vigil_core.services.auth.api_keys import ManageKeys
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
HANDED_OUT: Mapping[str, Any] = {**JOB, "job_type": "image_check", "queue": "checks"}
CLAIM: Mapping[str, Any] = {"worker": "box-1", "lease": 60}
RESULT: Mapping[str, Any] = {"result": {"passed": 127, "failed": 1, "log": "https://logs.example.com/9.4/12.txt"}}
WAIT_OPTIONS: Mapping[str, Any] = {"get_fields": {"result_root": None, "boot_seconds": None}, "fail_fast": None}
SIDE_BY_SIDE = 25


@dataclass(frozen=True, kw_only=True)
class JobLife:
    """What a job's life takes: in all, by what was asked for (its stream work included), and by function."""

    total: Bill
    by_step: Mapping[str, Bill]
    by_function: Mapping[str, Bill]


@dataclass(frozen=True, kw_only=True)
class WaitLife:
    """What a wait takes beyond its job: to register it, to match, close and announce it, and each look while it is
    held. `looks_in_20_s` is how many those are when a hold is as long as it is by default."""

    registered: Bill
    matched: Bill
    look: Bill
    looks_in_20_s: int

    @property
    def total(self) -> Bill:
        """But for the looks."""
        return self.registered + self.matched


def warm_up(lab: Lab) -> None:
    """Have what is written once a process and day written, before anything is counted; and the job's type, which says
    that somebody outside runs it."""
    lab.call("PUT", f"/v1/job-types/{JOB['job_type']}", {"executor": "none"}).ok(201)
    finish(lab, create(lab))
    worker_life(lab)
    lab.call("POST", "/v1/waits", wait_body(create(lab)), wait_s=0).ok()
    lab.deliver()


def create(lab: Lab, job: Mapping[str, Any] = JOB) -> str:
    """A new job; its id."""
    return str(lab.call("POST", "/v1/jobs", job).ok(202)["job_id"])


def finish(lab: Lab, job_id: str) -> None:
    """Run a job without a word to its end."""
    lab.call("POST", f"/v1/jobs/{job_id}/start").ok()
    lab.call("POST", f"/v1/jobs/{job_id}/complete", RESULT).ok()


def wait_body(*job_ids: str) -> dict[str, Any]:
    """A wait for jobs to have come to their end, well."""
    return {"wait_on": {job_id: {"job_stage": "complete"} for job_id in job_ids}, "wait_options": WAIT_OPTIONS}


def job_life(
    lab: Lab, reports: Sequence[Mapping[str, Any]] = REPORTS, *, job: Mapping[str, Any] = JOB, jobs: int = 1
) -> JobLife:
    """Create, start, report five times, complete with a result: a job alone, or the mean of some side by side, whose
    changes then share batches of the stream."""
    steps: list[tuple[str, str, str, Mapping[str, Any] | None]] = [
        ("start", "POST", "/start", None),
        *(("report", "PATCH", "", report) for report in reports),
        ("complete", "POST", "/complete", RESULT),
    ]
    by_step: dict[str, Bill] = {}
    with lab.billed() as life:
        with lab.billed() as step:
            job_ids = [create(lab, job) for _ in range(jobs)]
            lab.deliver(batch_size=100)
            by_step["create"] = step(None) / jobs
        for name, method, path, body in steps:
            with lab.billed() as step:
                for job_id in job_ids:
                    lab.call(method, f"/v1/jobs/{job_id}{path}", body).ok()
                lab.deliver(batch_size=100)
                by_step[name] = by_step.get(name, Bill()) + step(None) / jobs
        return JobLife(
            total=life(None) / jobs,
            by_step=by_step,
            by_function={name: life(name) / jobs for name in ("api", "matcher", "notifier")},
        )


def wait_life(lab: Lab) -> WaitLife:
    """A wait on one job, registered before the job ends and met by its end."""
    unwatched, watched = create(lab), create(lab)
    for job_id in (unwatched, watched):
        lab.call("POST", f"/v1/jobs/{job_id}/start").ok()
    lab.deliver()

    with lab.billed() as without_wait:
        lab.call("POST", f"/v1/jobs/{unwatched}/complete", RESULT).ok()
        lab.deliver()
    ending = without_wait(None)

    with lab.billed() as registration:
        answer = lab.call("POST", "/v1/waits", wait_body(watched), wait_s=0).ok()
        lab.deliver()
    registered = registration(None)
    assert answer["status"] == "waiting", answer

    look, looks = _held(lab, str(answer["wait_id"]), hold_s=20)

    with lab.billed() as with_wait:
        lab.call("POST", f"/v1/jobs/{watched}/complete", RESULT).ok()
        lab.deliver()
    matched = with_wait(None) - ending
    shown = lab.call("GET", f"/v1/waits/{answer['wait_id']}").ok()
    assert shown["status"] == "met", shown
    return WaitLife(registered=registered, matched=matched, look=look, looks_in_20_s=looks)


def worker_life(lab: Lab) -> Mapping[str, Bill]:
    """What a job takes that a worker claims, once says to be alive with, and completes, by step."""
    by_step: dict[str, Bill] = {}
    lease: dict[str, Any] = {}

    def claim() -> None:
        (job,) = lab.call("POST", f"/v1/queues/{HANDED_OUT['queue']}/claim", CLAIM).ok()["jobs"]
        lease.update(job_id=job["job_id"], token=job["lease_token"])

    def tell(verb: str, told: Mapping[str, Any]) -> None:
        body = {**told, "lease_token": lease["token"]}
        lab.call("POST", f"/v1/jobs/{lease['job_id']}/{verb}", body).ok()

    steps: Mapping[str, Callable[[], object]] = {
        "create": lambda: create(lab, HANDED_OUT),
        "claim": claim,
        "heartbeat": lambda: tell("heartbeat", {}),
        "complete": lambda: tell("complete", RESULT),
    }
    for name, step in steps.items():
        with lab.billed() as taken:
            step()
            lab.deliver()
        by_step[name] = taken(None)
    return by_step


def claim_among(lab: Lab, ready: int) -> Bill:
    """One claim of one job while so many are ready."""
    queue = f"checks-{ready}"
    rows = [lab.row(keys.job(NAMESPACE, create(lab, {**HANDED_OUT, "queue": queue})))]
    job_id = keys.parse_job(rows[0]["pk"]["S"])[1]
    rows += [_renamed(rows[0], {job_id: wiring.context().new_id()}) for _ in range(ready - 1)]
    lab.put_rows(rows[1:])
    lab.skip()
    with lab.billed() as claim:
        assert len(lab.call("POST", f"/v1/queues/{queue}/claim", CLAIM).ok()["jobs"]) == 1
    lab.skip()
    return claim(None)


def idle_minute(lab: Lab) -> Bill:
    """One tick of the sweeper with nothing due."""
    lab.tick()
    with lab.billed() as minute:
        lab.tick()
    return minute(None)


def authorization(lab: Lab) -> Bill:
    """What letting a key in takes; API Gateway asks again after 60 s."""
    keeper = ManageKeys(
        api_keys=wiring.api_keys(), disconnect=lambda _, __: 0, now=wiring.now, random_hex=secrets.token_hex
    )
    _, token = keeper.create(NAMESPACE, ["submit"])
    event = {"version": "2.0", "headers": {"authorization": f"Bearer {token.text()}"}, "rawPath": "/v1/jobs"}
    with lab.billed() as once:
        answer = lab.authorize(event)
    assert answer["isAuthorized"], answer
    return once(None)


def match_among(lab: Lab, others: int) -> WaitLife:
    """A wait's life while so many other waits are stored, each on a job of its own."""
    _store_waits(lab, others)
    return wait_life(lab)


def _store_waits(lab: Lab, count: int) -> None:
    """Copies of a real wait and its entry under other ids, for what counts is that they are there."""
    job_id = create(lab)
    answer = lab.call("POST", "/v1/waits", wait_body(job_id), wait_s=0).ok()
    wait_id = str(answer["wait_id"])
    rows = [lab.row(keys.wait(NAMESPACE, wait_id)), lab.row(keys.entry(NAMESPACE, job_id, wait_id, 0))]
    copies: list[Row] = []
    for _ in range(count - 1):
        names = {job_id: wiring.context().new_id(), wait_id: wiring.context().new_id()}
        copies += [_renamed(row, names) for row in rows]
    lab.put_rows(copies)
    lab.skip()


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, names) for inner in value]
    if isinstance(value, str):
        for old, new in names.items():
            value = value.replace(old, new)
    return value


def _held(lab: Lab, wait_id: str, *, hold_s: int) -> tuple[Bill, int]:
    """What one look of a hold takes, and how many there are in so long a one, on a clock that only the hold moves."""
    base = wiring.context()
    time = base.now()

    def now() -> datetime:
        return time

    def sleep(seconds: float) -> None:
        nonlocal time
        time += timedelta(seconds=seconds)

    ctx = replace(base, clock=now, sleep=sleep)
    with lab.billed() as not_held:
        show_wait(ctx, NAMESPACE, wait_id, hold_until=time)
    once = not_held(None)
    with lab.billed() as held:
        show_wait(ctx, NAMESPACE, wait_id, hold_until=time + timedelta(seconds=hold_s))
    looks = held(None) - once
    count = round(looks["dynamodb.requests"])
    return looks / count, count
