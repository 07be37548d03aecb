"""Generated histories: whatever goes wrong between two AWS calls, every wait ends as the reference says, once.

A seed always generates the same histories: it determines every draw, and Hypothesis adds no constants of the modules
that happen to be loaded. `make simulate` generates 1,000, `make test-slow` 3,000. To generate others, or more of them:
`VIGIL_SEED=1000 VIGIL_HISTORIES=100000 pytest tests/model/test_histories.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from moto import mock_aws

from tests.model.histories import Histories
from tests.model.seeds import FIRST_SEED, HISTORIES
from tests.model.world import Deviation
from tests.support.draws import no_constants_of_modules
from tests.support.table import create_table
from vigil_core.domain.waits import wait as waits
from vigil_core.domain.waits.wait import Wait
from vigil_core.services.background import matcher as match
from vigil_core.services.context import Context
from vigil_core.services.waits import register as register_wait
from vigil_core.services.waits import resolve as resolve_wait
from vigil_core.store.jobs.jobs import JobStore
from vigil_core.store.table import WriteCondition
from vigil_core.store.waits import waits as wait_store
from vigil_core.store.waits.waits import OPEN

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]

HISTORIES_PER_TEST = min(125, HISTORIES)
"""Histories per test: small enough to spread over the cores."""
STEPS = 30


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    with mock_aws(), no_constants_of_modules():
        create_table()
        yield


@pytest.mark.parametrize("part", range(FIRST_SEED, FIRST_SEED + -(-HISTORIES // HISTORIES_PER_TEST)))
def test_generated_history_ends_as_the_reference_predicts(part: int) -> None:
    _run_histories(HISTORIES_PER_TEST, part, phases=(Phase.generate, Phase.shrink))


def _close_incomplete(ctx: Context, wait: Wait) -> Wait:
    status = waits.wait_status(wait.counts, wait.options, failed=False)
    closed = None if status == "waiting" else ctx.waits.close_large(wait, status, now=ctx.now())
    return closed or wait


ALWAYS = WriteCondition(
    expression="attribute_exists(#status) OR #status = :waiting", names=OPEN.names, values=OPEN.values
)

FAULTS: dict[str, tuple[object, str, object]] = {
    "a wait ends before its registration is complete": (resolve_wait, "close_if_decided", _close_incomplete),
    "registration skips the second read": (register_wait, "recheck_jobs", lambda *_: []),
    "a record older than the registration is evaluated": (match, "is_newer_than", lambda *_: True),
    "a job with waits is not marked": (JobStore, "mark_has_waits", lambda _, job: job),
    "a large wait can be changed after its end": (wait_store, "OPEN", ALWAYS),
}


@pytest.mark.fault
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found_within_300_histories(fault: str) -> None:
    owner, name, faulty = FAULTS[fault]
    with mock.patch.object(owner, name, faulty), pytest.raises(Deviation):
        _run_histories(300, 0, phases=(Phase.generate,))


def _run_histories(histories: int, seed_: int, *, phases: tuple[Phase, ...]) -> None:
    class Seeded(Histories):
        """A class of its own, because the class stores the seed."""

    run_state_machine_as_test(
        seed(seed_)(Seeded),
        settings=settings(
            max_examples=histories,
            stateful_step_count=STEPS,
            phases=phases,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
