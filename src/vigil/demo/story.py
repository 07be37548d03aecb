"""The story that the demo tells: what the machines report and when, what the clients ask, and what they must be told.

Machines stand for their jobs: wherever a job's id belongs, the story has the machine's name. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Json: TypeAlias = dict[str, Any]
Verb: TypeAlias = Literal["start", "report", "complete", "fail"]


@dataclass(frozen=True)
class Step:
    """What a machine tells of its job, so many seconds after its last word."""

    after_s: float
    verb: Verb
    body: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """A test machine, and what becomes of its job."""

    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Client:
    """Somebody who waits: the request as it is posted, and the parts of the last answer that matter."""

    name: str
    wish: str
    wait_on: Json
    options: Json
    status: str
    waited_jobs: Json

    def request(self, job_ids: Mapping[str, str]) -> Json:
        """The body to post."""
        wait_on = named(self.wait_on, job_ids)
        return {"wait_on": wait_on, "wait_options": self.options} if self.options else {"wait_on": wait_on}

    def expected(self, job_ids: Mapping[str, str]) -> Json:
        """What `essence` has to find in the last answer."""
        return {"status": self.status, "waited_jobs": named(self.waited_jobs, job_ids)}


def named(jobs: Json, job_ids: Mapping[str, str]) -> Json:
    """The same, with the jobs' ids for the machines' names."""
    return {job_ids[machine]: value for machine, value in jobs.items()}


def essence(answer: Json) -> Json:
    """An answer without its id, counts, options and times. A wait that is over has no `wait_on`, nor is one added."""
    shown = {"status": answer["status"], "waited_jobs": answer["waited_jobs"]}
    return shown | {part: answer[part] for part in ("unmet_jobs", "wait_on") if answer.get(part)}


JOB_TYPE = "boot_test"
RESULT_ROOT = "/result/boot/aspen/0"

MACHINES = (
    Machine(
        "aspen",
        (
            Step(0.4, "start"),
            Step(0.4, "report", {"job_stage": "download", "progress": 0.05, "message": "fetching the kernel"}),
            Step(0.7, "report", {"progress": 0.15, "message": "fetching the initrd"}),
            Step(0.8, "report", {"job_stage": "boot", "progress": 0.25, "message": "booting"}),
            Step(
                1.2,
                "report",
                {"job_stage": "setup", "progress": 0.4, "message": "up after 45 s", "fields": {"boot_seconds": 45}},
            ),
            Step(0.7, "report", {"job_stage": "running", "progress": 0.5, "message": "test 1 of 3"}),
            Step(0.7, "report", {"progress": 0.65, "message": "test 2 of 3"}),
            Step(0.7, "report", {"progress": 0.8, "message": "test 3 of 3"}),
            Step(0.7, "report", {"job_stage": "post_run", "progress": 0.9, "message": "uploading the results"}),
            Step(
                0.9,
                "report",
                {
                    "job_stage": "finish",
                    "milestones": ["final"],
                    "fields": {"result_root": RESULT_ROOT},
                    "message": "results are there",
                },
            ),
            Step(1.0, "complete", {"result": {"passed": 3, "failed": 0}}),
        ),
    ),
    Machine(
        "birch",
        (
            Step(0.7, "start"),
            Step(0.6, "report", {"job_stage": "download", "progress": 0.05, "message": "fetching the kernel"}),
            Step(1.0, "report", {"progress": 0.15, "message": "fetching the initrd"}),
            Step(1.0, "report", {"job_stage": "boot", "progress": 0.25, "message": "booting"}),
            Step(
                1.5,
                "report",
                {"job_stage": "setup", "progress": 0.4, "message": "up after 52 s", "fields": {"boot_seconds": 52}},
            ),
            Step(0.9, "report", {"job_stage": "running", "progress": 0.6, "message": "test 1 of 2"}),
            Step(1.1, "report", {"progress": 0.75, "message": "test 2 of 2"}),
            Step(1.3, "report", {"job_stage": "post_run", "progress": 0.9, "message": "uploading the results"}),
            Step(0.9, "report", {"job_stage": "finish", "message": "results are there"}),
            Step(0.6, "complete", {"result": {"passed": 2, "failed": 0}}),
        ),
    ),
    Machine(
        "cedar",
        (
            Step(0.5, "start"),
            Step(0.5, "report", {"job_stage": "download", "progress": 0.05, "message": "fetching the kernel"}),
            Step(1.1, "report", {"job_stage": "boot", "progress": 0.25, "message": "booting"}),
            Step(
                1.6,
                "report",
                {"job_stage": "setup", "progress": 0.4, "message": "up after 61 s", "fields": {"boot_seconds": 61}},
            ),
            Step(0.8, "report", {"job_stage": "running", "progress": 0.5, "message": "test 1 of 2"}),
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
        wish="milestone final of aspen, and where its results are",
        wait_on={"aspen": {"milestone": "final"}},
        options={"get_fields": {"result_root": None, "boot_seconds": None}, "fail_fast": None},
        status="met",
        waited_jobs={"aspen": {"job_stage": "finish", "result_root": RESULT_ROOT, "boot_seconds": "45"}},
    ),
)

LATECOMERS = (
    Client(
        name="late",
        wish="aspen and birch complete, asked when they are",
        wait_on={"aspen": {"job_stage": "complete"}, "birch": None},
        options={},
        status="met",
        waited_jobs={"aspen": {"job_stage": "complete"}, "birch": {"job_stage": "complete"}},
    ),
    Client(
        name="later",
        wish="what results asked for, asked when aspen is complete",
        wait_on={"aspen": {"milestone": "final"}},
        options={"get_fields": {"result_root": None, "boot_seconds": None}, "fail_fast": None},
        status="met",
        waited_jobs={"aspen": {"job_stage": "complete", "result_root": RESULT_ROOT, "boot_seconds": "45"}},
    ),
)
"""Those who ask when everything is over, and so are answered at once."""
