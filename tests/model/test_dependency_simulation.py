"""Simulated dependencies: a dependent is released or skipped exactly when its rule is decided by its dependencies'
ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from random import Random
from typing import get_args

import pytest
from moto import mock_aws

from tests.model.crash_injection import CrashingWorld, simulate
from tests.model.rules import END_STATES, UNAFFECTED_BY_FAILURES, decided
from tests.model.seeds import WORLDS, blocks, third
from tests.support.table import create_table
from tests.support.world import KEY, NAMESPACE
from vigil_core.domain.errors import InvalidTransition, JobCreationFailed
from vigil_core.domain.jobs.job import Job, JobError, NewJob
from vigil_core.domain.jobs.trigger_rules import TriggerRule
from vigil_core.services.background import matcher as match
from vigil_core.services.jobs import dependencies as depend
from vigil_core.services.jobs import submit as submit_job
from vigil_core.services.jobs import transitions as change_job
from vigil_core.store.jobs.jobs import JobStore

STEPS = ["create"] * 4 + ["change"] * 8 + ["stream"] * 5 + ["time_passes", "sweep", "remove"]
ONE_ROW = "rows == `1`"
pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


class DependencySimulation(CrashingWorld):
    """Jobs that depend on jobs, all with executor `none`."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.checked = 0
        self.endings: dict[str, set[str]] = {}
        """All end states of each job so far."""
        self.rows: dict[str, set[int]] = {}
        """The number of result rows with which each job may have completed."""

    def create(self, chance: Random) -> None:
        depends_on = tuple(chance.sample(self.ids, min(chance.choice([0, 1, 1, 2, 3]), len(self.ids))))
        job_id = self.world.ctx.new_id()
        wanted = NewJob(
            job_id=job_id,
            job_type="test",
            executor="none",
            depends_on=depends_on,
            trigger_rule=chance.choice(get_args(TriggerRule)),
            condition=ONE_ROW if len(depends_on) == 1 and chance.random() < 0.3 else None,
            scheduled_at=self.world.time + timedelta(seconds=30) if chance.random() < 0.2 else None,
            mutex_key="m" if chance.random() < 0.2 else None,
            queue_on_conflict=True,
        )
        self.with_crashes(chance, lambda: submit_job.submit(self.world.ctx, NAMESPACE, wanted, actor=KEY))
        if self.world.ctx.jobs.find(NAMESPACE, job_id):
            self.ids.append(job_id)

    def change(self, chance: Random) -> None:
        if not self.ids:
            return
        ctx, job_id = self.world.ctx, chance.choice(self.ids)
        with suppress(InvalidTransition, JobCreationFailed):
            match chance.randint(0, 6):
                case 0 | 1:
                    self.with_crashes(chance, lambda: change_job.start(ctx, NAMESPACE, job_id, actor=KEY))
                case 2 | 3:
                    rows = chance.randint(0, 1)
                    self.rows.setdefault(job_id, set()).add(rows)
                    with suppress(InvalidTransition):
                        change_job.start(ctx, NAMESPACE, job_id, actor=KEY)
                    self.with_crashes(
                        chance, lambda: change_job.complete(ctx, NAMESPACE, job_id, actor=KEY, result={"rows": rows})
                    )
                case 4:
                    error = JobError(code="E", message="m")
                    self.with_crashes(chance, lambda: change_job.fail(ctx, NAMESPACE, job_id, error, actor=KEY))
                case 5:
                    self.with_crashes(chance, lambda: change_job.cancel(ctx, NAMESPACE, job_id, actor=KEY))
                case _:
                    self.with_crashes(chance, lambda: change_job.retry(ctx, NAMESPACE, job_id, actor=KEY))

    def remove(self, chance: Random) -> None:
        if self.ids:
            job_id = chance.choice(self.ids)
            with suppress(InvalidTransition):
                self.with_crashes(chance, lambda: change_job.delete(self.world.ctx, NAMESPACE, job_id, actor=KEY))
            if self.stored(job_id).deleted:
                self.ids.remove(job_id)

    def check_invariants(self) -> None:
        new = self.streamed.versions[self.checked :]
        self.checked += len(new)
        for job in new:
            if job.ended:
                self.endings.setdefault(job.job_id, set()).add(_end_state(job))
            if job.dependencies.depends_on:
                self._check_verdict(job)

    def _check_verdict(self, job: Job) -> None:
        if job.dependencies.status == "waiting":
            assert job.status in ("scheduled", "waiting", "cancelled"), "nothing begins that is not released"
            assert job.dependencies.verdict is None
            return
        assert job.dependencies.verdict
        held = job.dependencies.status == "satisfied"
        counted = [ending for ending in END_STATES for _ in range(job.dependencies.verdict.inputs[ending])]
        assert decided(job.dependencies.trigger_rule, counted, len(job.dependencies.depends_on)) is held, (
            job.dependencies.verdict
        )
        hindered = job.dependencies.trigger_rule not in UNAFFECTED_BY_FAILURES and {"failed", "cancelled"} & set(
            counted
        )
        assert job.dependencies.verdict.through_failure == (not held and bool(hindered))
        for index, ending in self.world.ctx.dependencies.end_states(job).items():
            dependency = job.dependencies.depends_on[index].job_id
            assert ending in self.endings[dependency], "it never ended so"
        if not held:
            assert job.status == "skipped" or job.log[-1].kind != "skipped"
        elif job.dependencies.condition is not None and job.log[-1].kind in ("ready", "skipped", "failed"):
            self._condition_was_met(job)

    def _condition_was_met(self, job: Job) -> None:
        rows = self.rows.get(job.dependencies.depends_on[0].job_id, set())
        if job.log[-1].kind == "ready":
            assert 1 in rows, "the condition holds for what was told"
        elif job.log[-1].kind == "skipped":
            endings = self.endings.get(job.dependencies.depends_on[0].job_id, set())
            assert endings or job.dependencies.trigger_rule == "always", "nobody else is judged before"
            assert rows != {1} or endings != {"success"}, "it does hold"

    def check_end(self) -> None:
        self.pass_minutes(2)
        self.check_invariants()
        for job_id in self.ids:
            job = self.stored(job_id)
            if not job.awaits_dependencies:
                continue
            known = self.world.ctx.dependencies.end_states(job)
            for index, dependency in enumerate(job.dependencies.depends_on):
                gone = self.world.ctx.jobs.find(NAMESPACE, dependency.job_id)
                assert index in known or not (gone is None or gone.ended), "an end that nobody heard of"
            assert (
                decided(job.dependencies.trigger_rule, list(known.values()), len(job.dependencies.depends_on)) is None
            ), "it waits for nothing"


def _end_state(job: Job) -> str:
    if job.status == "skipped":
        return "failed" if job.dependencies.verdict and job.dependencies.verdict.through_failure else "skipped"
    return {"completed": "success"}.get(job.status, job.status)


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    with mock_aws():
        create_table()
        yield


@pytest.mark.parametrize("seeds", blocks(third(WORLDS)), ids=str)
def test_simulated_dependent_is_released_or_skipped_by_its_rule(seeds: range) -> None:
    simulate(DependencySimulation, STEPS, seeds)


FAULTS: dict[str, tuple[object, str, object]] = {
    "a dependency is not marked for the matcher": (JobStore, "mark_has_waits", lambda _, job: job),
    "dependents are not notified of an end": (match, "_notify_dependents", lambda *_: set()),
    "registration ignores dependencies that have ended": (depend, "_end_states", lambda *_: {}),
    "one success satisfies every rule": (depend, "evaluate_rule", lambda _, tally: True if tally.success else None),
}


@pytest.mark.fault
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(AssertionError):
        simulate(DependencySimulation, STEPS, range(100), shorten=False)
