"""The story of the demo: the reports of the machines, the waits of the clients, and the expected answers.

The story names machines in place of the ids of their jobs. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Json: TypeAlias = dict[str, Any]
Verb: TypeAlias = Literal["start", "report", "complete", "fail"]


@dataclass(frozen=True)
class Step:
    """A report of a machine on its job, `after_s` seconds after its previous one."""

    after_s: float
    verb: Verb
    body: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """A test machine and the steps of its job."""

    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Client:
    """A client that waits: its request, and the expected parts of its last answer."""

    name: str
    wish: str
    wait_on: Json
    options: Json
    status: str
    waited_jobs: Json

    def request(self, job_ids: Mapping[str, str]) -> Json:
        """Return the body of the request."""
        wait_on = with_job_ids(self.wait_on, job_ids)
        return {"wait_on": wait_on, "wait_options": self.options} if self.options else {"wait_on": wait_on}

    def expected(self, job_ids: Mapping[str, str]) -> Json:
        """Return the expected `relevant_part` of the last answer."""
        return {"status": self.status, "waited_jobs": with_job_ids(self.waited_jobs, job_ids)}


def with_job_ids(jobs: Json, job_ids: Mapping[str, str]) -> Json:
    """Replace the machines' names by the ids of their jobs."""
    return {job_ids[machine]: value for machine, value in jobs.items()}


def relevant_part(answer: Json) -> Json:
    """Return an answer without its id, counts, options and times. Only an open wait has `wait_on`."""
    part_shown = {"status": answer["status"], "waited_jobs": answer["waited_jobs"]}
    return part_shown | {part: answer[part] for part in ("unmet_jobs", "wait_on") if answer.get(part)}


JOB_TYPE = "boot_test"
RESULT_ROOT = "/result/boot/aspen/0"


def _progress_step(after_s: float, progress: float, message: str, **more: Any) -> Step:
    return Step(after_s, "report", {"progress": progress, "message": message, **more})


def _stage_step(after_s: float, stage: str, progress: float, message: str, **more: Any) -> Step:
    return _progress_step(after_s, progress, message, job_stage=stage, **more)


MACHINES = (
    Machine(
        "aspen",
        (
            Step(0.4, "start"),
            _stage_step(0.4, "download", 0.05, "fetching the kernel"),
            _progress_step(0.7, 0.15, "fetching the initrd"),
            _stage_step(0.8, "boot", 0.25, "booting"),
            _stage_step(1.2, "setup", 0.4, "up after 45 s", fields={"boot_seconds": 45}),
            _stage_step(0.7, "running", 0.5, "test 1 of 3"),
            _progress_step(0.7, 0.65, "test 2 of 3"),
            _progress_step(0.7, 0.8, "test 3 of 3"),
            _stage_step(0.7, "post_run", 0.9, "uploading the results"),
            _stage_step(
                0.9,
                "finish",
                0.95,
                "the results are uploaded",
                milestones=["final"],
                fields={"result_root": RESULT_ROOT},
            ),
            Step(1.0, "complete", {"result": {"passed": 3, "failed": 0}}),
        ),
    ),
    Machine(
        "birch",
        (
            Step(0.7, "start"),
            _stage_step(0.6, "download", 0.05, "fetching the kernel"),
            _progress_step(1.0, 0.15, "fetching the initrd"),
            _stage_step(1.0, "boot", 0.25, "booting"),
            _stage_step(1.5, "setup", 0.4, "up after 52 s", fields={"boot_seconds": 52}),
            _stage_step(0.9, "running", 0.6, "test 1 of 2"),
            _progress_step(1.1, 0.75, "test 2 of 2"),
            _stage_step(1.3, "post_run", 0.9, "uploading the results"),
            _stage_step(0.9, "finish", 0.95, "the results are uploaded"),
            Step(0.6, "complete", {"result": {"passed": 2, "failed": 0}}),
        ),
    ),
    Machine(
        "cedar",
        (
            Step(0.5, "start"),
            _stage_step(0.5, "download", 0.05, "fetching the kernel"),
            _stage_step(1.1, "boot", 0.25, "booting"),
            _stage_step(1.6, "setup", 0.4, "up after 61 s", fields={"boot_seconds": 61}),
            _stage_step(0.8, "running", 0.5, "test 1 of 2"),
            Step(1.4, "fail", {"error": {"code": "KERNEL_PANIC", "message": "Attempted to kill init!"}}),
        ),
    ),
)

CLIENTS = (
    Client(
        name="boot",
        wish="all three at stage boot",
        wait_on={machine.name: {"job_stage": "boot"} for machine in MACHINES},
        options={},
        status="met",
        waited_jobs={machine.name: {"job_stage": "boot"} for machine in MACHINES},
    ),
    Client(
        name="watch",
        wish="birch and cedar complete, or the first failure",
        wait_on={"birch": {"job_stage": "complete"}, "cedar": None},
        options={"get_fields": {"job_health": None}, "fail_fast": None},
        status="failed_fast",
        waited_jobs={"cedar": {"job_stage": "incomplete", "job_health": "failed"}},
    ),
    Client(
        name="results",
        wish="milestone final of aspen, with its result_root",
        wait_on={"aspen": {"milestone": "final"}},
        options={"get_fields": {"result_root": None, "boot_seconds": None}, "fail_fast": None},
        status="met",
        waited_jobs={"aspen": {"job_stage": "finish", "result_root": RESULT_ROOT, "boot_seconds": "45"}},
    ),
)

LATE_CLIENTS = (
    Client(
        name="late",
        wish="aspen and birch complete, asked afterwards",
        wait_on={"aspen": {"job_stage": "complete"}, "birch": None},
        options={},
        status="met",
        waited_jobs={"aspen": {"job_stage": "complete"}, "birch": {"job_stage": "complete"}},
    ),
    Client(
        name="later",
        wish="the wait of results, asked after aspen completed",
        wait_on={"aspen": {"milestone": "final"}},
        options={"get_fields": {"result_root": None, "boot_seconds": None}, "fail_fast": None},
        status="met",
        waited_jobs={"aspen": {"job_stage": "complete", "result_root": RESULT_ROOT, "boot_seconds": "45"}},
    ),
)
"""Clients that ask after the end and so receive their answer at once."""
