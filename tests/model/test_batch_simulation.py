"""Simulated batches: a batch ends once all its items have ended, as its mode defines, and no work continues after its
end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from random import Random
from typing import get_args

import pytest
from moto import mock_aws

from tests.model.crash_injection import CrashingWorld, simulate
from tests.model.seeds import WORLDS, blocks, third
from tests.support.table import create_table
from tests.support.world import KEY, NAMESPACE
from vigil_core.domain.errors import InvalidTransition, JobCreationFailed
from vigil_core.domain.exact_json import dumps, loads
from vigil_core.domain.jobs import batch as batches
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.batch import OnItemFailure, item_id
from vigil_core.domain.jobs.job import Job, JobError, NewJob
from vigil_core.domain.jobs.retry import RetryPolicy
from vigil_core.services.jobs import batches as batch_service
from vigil_core.services.jobs import submit as submit_job
from vigil_core.services.jobs import transitions as change_job
from vigil_core.store.jobs.batches import BatchStore

STEPS = (
    ["create"] * 2 + ["work"] * 12 + ["client_request"] + ["stream"] * 6 + ["fan_out"] * 6 + ["time_passes", "sweep"]
)
RETRY = RetryPolicy(max_attempts=2, initial_delay=Decimal(0))
pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


class BatchSimulation(CrashingWorld):
    """Batches whose items have executor `none`. A page holds two items."""

    def create(self, chance: Random) -> None:
        job_id, size = self.world.ctx.new_id(), chance.randint(1, 5)
        wanted = NewJob(
            job_id=job_id,
            job_type="test",
            executor="none",
            payload=[f"{job_id} {index}" for index in range(size)],
            batch_size=size,
            on_item_failure=chance.choice(get_args(OnItemFailure)),
            retry=chance.choice([None, RETRY]),
            fallback=chance.choice([None, None, {"rows": 0}]),
            mutex_key=chance.choice([None, "m"]),
            queue_on_conflict=True,
        )
        self.with_crashes(chance, lambda: submit_job.submit(self.world.ctx, NAMESPACE, wanted, actor=KEY))
        if self.world.ctx.jobs.find(NAMESPACE, job_id):
            self.ids.append(job_id)

    def items(self, batch: Job) -> list[Job | None]:
        """Return the item of each index; None when it does not exist."""
        return [self._item(batch, index) for index in range(batch.batch.size or 0)]

    def _item(self, batch: Job, index: int) -> Job | None:
        """Return the item of the current attempt, or the one that an earlier attempt has completed."""

        def item_of(attempt: int) -> Job | None:
            return self.world.ctx.jobs.find(NAMESPACE, item_id(batch.job_id, attempt, index))

        if current := item_of(batch.attempt):
            return current
        earlier = map(item_of, range(batch.attempt - 1, batch.batch.kept_since - 1, -1))
        return next((item for item in earlier if item and item.status == "completed"), None)

    def open_items(self) -> list[Job]:
        return [item for job_id in self.ids for item in self.items(self.stored(job_id)) if item and not item.ended]

    def work(self, chance: Random) -> None:
        """Start an item, or end one, as an external system."""
        if not (items := self.open_items()):
            return
        ctx, item = self.world.ctx, chance.choice(items)
        with suppress(InvalidTransition):
            if item.status != "running" and chance.random() < 0.7:
                change_job.start(ctx, NAMESPACE, item.job_id, actor=KEY)
            elif item.status != "running":
                self.with_crashes(chance, lambda: change_job.start(ctx, NAMESPACE, item.job_id, actor=KEY))
                return
            if chance.random() < 0.7:
                self.with_crashes(
                    chance, lambda: change_job.complete(ctx, NAMESPACE, item.job_id, actor=KEY, result=[1])
                )
            else:
                error = JobError(code="E", message="m")
                self.with_crashes(chance, lambda: change_job.fail(ctx, NAMESPACE, item.job_id, error, actor=KEY))

    def client_request(self, chance: Random) -> None:
        """Cancel or retry a batch, or cancel one of its items."""
        ids = self.ids + [item.job_id for item in self.open_items()]
        if ids:
            act = chance.choice([change_job.cancel, change_job.retry])
            job_id = chance.choice(ids)
            with suppress(InvalidTransition, JobCreationFailed):
                self.with_crashes(chance, lambda: act(self.world.ctx, NAMESPACE, job_id, actor=KEY))

    def check_invariants(self) -> None:
        new, self.streamed.versions = self.streamed.versions, []
        for version in new:
            if version.batch.batch_id is not None:
                if version.version == 1:
                    payload = self.world.ctx.jobs.payloads(version).payload
                    assert payload == dumps(f"{version.batch.batch_id} {version.batch.index}"), "each has its own"
            elif version.ended:
                self._check_ended_batch(version)

    def _check_ended_batch(self, batch: Job) -> None:
        items = self.items(batch)
        if batch.log[-1].actor != "fan_out":
            assert batch.status == "cancelled", "what is not ended by its items was cancelled"
            return
        assert all(item and item.ended for item in items), "it ends after its items"
        states = [item.status for item in items if item]
        bad = sum(status != "completed" for status in states)
        cancelled = bad and batch.cancel_requested_at is not None
        well = not bad or batch.batch.on_item_failure == "collect"
        assert batch.status == ("cancelled" if cancelled else "completed" if well else "failed")
        told = loads(self.world.ctx.jobs.payloads(batch).result or "null")
        assert isinstance(told, list)
        assert [each["status"] for each in told] == states
        results = [self.world.ctx.jobs.payloads(item).result for item in items if item]
        assert [dumps(each["result"]) for each in told] == [result or "null" for result in results]

    def check_end(self) -> None:
        # No worker runs: work that must stop does stop, even if it has to be forced.
        self.pass_minutes(5)
        for job_id in self.ids:
            batch = self.stored(job_id)
            items = self.items(batch)
            failed = any(item and item.status == "failed" for item in items)
            if batch.ended or (batch.status == "running" and batch.batch.on_item_failure == "fail_fast" and failed):
                assert all(item is None or item.ended for item in items), "nothing of it goes on"
                assert batch.ended
            elif batch.status == "running":
                assert None not in items, "it has got its items"
                assert not all(item and item.ended for item in items)
        # All workers run.
        for _ in range(len(self.ids) + 1):
            for item in self.open_items():
                with suppress(InvalidTransition):
                    change_job.start(self.world.ctx, NAMESPACE, item.job_id, actor=KEY)
                change_job.complete(self.world.ctx, NAMESPACE, item.job_id, actor=KEY)
            self.pass_minutes(1)
        self.check_invariants()
        assert all(self.stored(job_id).ended for job_id in self.ids)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(batches, "PAGE_SIZE", 2)
    with mock_aws():
        create_table()
        yield


@pytest.mark.parametrize("seeds", blocks(third(WORLDS)), ids=str)
def test_simulated_batch_ends_with_its_items(seeds: range) -> None:
    simulate(BatchSimulation, STEPS, seeds, length=80)


_end_batch = transitions.end_batch
FAULTS: dict[str, tuple[object, str, object]] = {
    "ended items are not counted": (BatchStore, "record_end_state", lambda *_: False),
    "a stop cancels no item": (batch_service, "_cancel", lambda *_: None),
    "only the first page is created": (batch_service, "page_numbers", lambda _: range(1)),
    "failed items are not counted": (transitions, "end_batch", lambda job, _, **told: _end_batch(job, 0, **told)),
}


@pytest.mark.fault
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(AssertionError):
        simulate(BatchSimulation, STEPS, range(100), length=80, shorten=False)
