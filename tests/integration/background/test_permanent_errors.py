"""A permanent error ends the work that causes it with a stored reason, and affects nothing else in its batch.

Each case is one kind of effect of a record. It is built twice: the victim's effect raises, the other one's does not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.support.runs import RunWorld
from tests.support.world import NAMESPACE
from vigil_core.domain.jobs.batch import item_id
from vigil_core.domain.jobs.job import Job
from vigil_core.services.context import Context
from vigil_core.store.table import DynamoTable

MATCHER = "vigil_core.services.background.matcher"
ERRORS: dict[str, Exception] = {
    "ValueError": ValueError("secret data"),
    "ValidationException": ClientError({"Error": {"Code": "ValidationException", "Message": "secret data"}}, "PutItem"),
    "MemoryError": MemoryError(),
}


class PoisonWorld(RunWorld):
    """A world with the ids of the jobs that a test must change to cause the effects."""

    def __init__(self, table: DynamoTable) -> None:
        super().__init__(table)
        self.causes: list[str] = []
        self.waits_by_note: dict[str, str] = {}
        """The wait that captures each note."""

    def cause(self, job_id: str) -> str:
        self.causes.append(job_id)
        return job_id

    def find(self, job_id: str) -> Job:
        job = self.ctx.jobs.find(NAMESPACE, job_id)
        assert job is not None
        return job


@pytest.fixture
def world(table: DynamoTable) -> PoisonWorld:
    return PoisonWorld(table)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of effect: the function that has it, its cause, and what shows it.

    `build` creates the object that has the effect, and returns the text that the arguments of the function mention.
    """

    target: str
    build: Callable[[PoisonWorld], str]
    act: Callable[[PoisonWorld], None] = lambda _: None
    shown: Callable[[PoisonWorld, str], tuple[Any, ...]]
    victim: Callable[[str], tuple[Any, ...]]
    """What the victim shows after an error of this name."""
    other: tuple[Any, ...]


def poison(monkeypatch: pytest.MonkeyPatch, target: str, victim: str, error: Exception) -> None:
    """Let a function raise whenever its arguments mention the victim."""
    module, _, name = target.rpartition(".")
    try:
        owner: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        parent, _, class_name = module.rpartition(".")
        owner = getattr(importlib.import_module(parent), class_name)
    original = getattr(owner, name)

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        if victim in repr([arg for arg in args if not isinstance(arg, Context)]):
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, poisoned)


# What the cases show


def job_end(world: PoisonWorld, job_id: str) -> tuple[Any, ...]:
    job = world.find(job_id)
    return job.status, *((job.error.code, job.error.message) if job.error else ())


def run_end(world: PoisonWorld, workflow_id: str) -> tuple[Any, ...]:
    run = world.find_run(workflow_id)
    return run.status, *((run.error.code, run.error.message) if run.error else ())


def wait_end(world: PoisonWorld, wait_id: str) -> tuple[Any, ...]:
    wait = world.ctx.waits.find(NAMESPACE, world.waits_by_note.get(wait_id, wait_id))
    assert wait is not None
    return wait.status, *((outcome.status, outcome.reason) for outcome in wait.outcomes.values())


def job_failed(error_name: str) -> tuple[Any, ...]:
    return "failed", "PROCESSING_FAILED", f"Vigil cannot process this job: {error_name}"


def condition_failed(error_name: str) -> tuple[Any, ...]:
    return "failed", "CONDITION_FAILED", f"the condition cannot be evaluated: {error_name}"


def run_failed(error_name: str) -> tuple[Any, ...]:
    return "failed", "PROCESSING_FAILED", f"Vigil cannot process this run: {error_name}"


# How the cases are caused


def dependent(world: PoisonWorld) -> str:
    return world.job(depends_on=(world.cause(world.running(executor="none")),), executor="none")


def registered_dependent(world: PoisonWorld) -> str:
    job_id = dependent(world)
    world.run_until_idle()
    return job_id


def conditional(world: PoisonWorld) -> str:
    dependency = world.cause(world.running(executor="none"))
    return world.job(depends_on=(dependency,), executor="none", condition=f"'{dependency}'")


def in_mutex_queue(world: PoisonWorld) -> str:
    mutex = world.ctx.new_id()
    world.cause(world.running(executor="none", mutex_key=mutex, queue_on_conflict=True))
    return world.job(executor="none", mutex_key=mutex, queue_on_conflict=True)


def batch(world: PoisonWorld) -> str:
    return world.job(executor="none", payload=[1], batch_size=1)


def batch_with_items(world: PoisonWorld) -> str:
    batch_id = batch(world)
    world.run_until_idle()
    world.cause(item_id(batch_id, 1, 0))
    return batch_id


def wait(world: PoisonWorld) -> str:
    job_id = world.cause(world.running(executor="none"))
    return str(world.wait({job_id: None}, wait_options={"get_fields": ["note"]})["wait_id"])


def wait_for_note(world: PoisonWorld) -> str:
    """Return the value that the wait captures, which the row of the wait then contains."""
    wait_id = wait(world)
    note = f"note of {world.causes[-1]}"
    world.waits_by_note[note] = wait_id
    return note


def run(world: PoisonWorld) -> str:
    return world.run({"name": "a"}, {"name": "b", "depends_on": ["a"]})


def run_with_jobs(world: PoisonWorld) -> str:
    workflow_id = run(world)
    world.run_until_idle()
    return workflow_id


def job_of_run(world: PoisonWorld) -> str:
    return world.id_of(run_with_jobs(world), "b")


def complete_causes(world: PoisonWorld) -> None:
    for job_id in world.causes:
        world.complete(job_id, fields={"note": f"note of {job_id}"})


def finish_claimable_jobs(world: PoisonWorld) -> None:
    for job in (world.claim(), world.claim()):
        assert job is not None
        world.finish(job)


MET = ("met", ("met", None))
UNMET = ("unmet", ("unmet", "processing_failed"))
CASES: dict[str, Case] = {
    "a dispatch": Case(
        target=f"{MATCHER}.dispatch",
        build=lambda world: world.job(executor="http", target_ref="target"),
        shown=job_end, victim=job_failed, other=("running",),
    ),
    "a registration with dependencies": Case(
        target=f"{MATCHER}.register_with_dependencies",
        build=dependent, shown=job_end, victim=job_failed, other=("waiting",),
    ),
    "the end of a dependency": Case(
        target=f"{MATCHER}.on_dependency_finished",
        build=registered_dependent, act=complete_causes, shown=job_end, victim=job_failed, other=("pending",),
    ),
    "a condition": Case(
        target="vigil_core.services.jobs.dependencies.dependency_ids",
        build=conditional, act=complete_causes, shown=job_end, victim=condition_failed, other=("pending",),
    ),
    "the promotion in a mutex queue": Case(
        target="vigil_core.domain.jobs.transitions.acquire_mutex",
        build=in_mutex_queue, act=complete_causes, shown=job_end, victim=job_failed, other=("pending",),
    ),
    "the start of a batch": Case(
        target=f"{MATCHER}.batches.on_batch_changed",
        build=batch, shown=job_end, victim=job_failed, other=("running",),
    ),
    "the end of a batch item": Case(
        target=f"{MATCHER}.batches.on_item_ended",
        build=batch_with_items, act=complete_causes, shown=job_end, victim=job_failed, other=("completed",),
    ),
    "the evaluation of a wait entry": Case(
        target=f"{MATCHER}.outcome_of",
        build=wait, act=complete_causes, shown=wait_end, victim=lambda _: UNMET, other=MET,
    ),
    "the outcome of a wait entry": Case(
        target="vigil_core.store.waits.waits.WaitStore.save",
        build=wait_for_note, act=complete_causes, shown=wait_end, victim=lambda _: UNMET, other=MET,
    ),
    "the start of a run": Case(
        target="vigil_core.services.workflows.advance._start_jobs",
        build=run, shown=run_end, victim=run_failed, other=("running",),
    ),
    "the advance of a run": Case(
        target=f"{MATCHER}.on_jobs_changed",
        build=run_with_jobs, act=finish_claimable_jobs, shown=run_end, victim=run_failed, other=("running",),
    ),
    "the verdict on a job of a run": Case(
        target="vigil_core.services.workflows.apply._decide_job",
        build=job_of_run, act=finish_claimable_jobs, shown=job_end, victim=job_failed, other=("pending",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("error_name", ERRORS)
@pytest.mark.parametrize("kind", CASES)
def test_permanent_error_ends_its_own_work_and_nothing_else(
    world: PoisonWorld, monkeypatch: pytest.MonkeyPatch, kind: str, error_name: str
) -> None:
    case = CASES[kind]
    victim, other = case.build(world), case.build(world)
    poison(monkeypatch, case.target, victim, ERRORS[error_name])
    case.act(world)
    world.run_until_idle()  # It raises if a record fails.
    assert case.shown(world, other) == case.other
    assert case.shown(world, victim) == case.victim(error_name)
