"""Generated histories: whatever goes wrong between two AWS calls, every wait ends as the reference says, once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from moto import mock_aws

from tests.model.histories import Histories
from tests.support.table import create_table

pytestmark = pytest.mark.model

HISTORIES = int(os.environ.get("VIGIL_HISTORIES", "3000"))
"""All parts together; set it to run more."""
FIRST_SEED = int(os.environ.get("VIGIL_SEED", "0"))
PARTS = 12
STEPS = 30


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    with mock_aws():
        create_table()
        yield


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.timeout(max(120, HISTORIES // PARTS))
def test_every_history_ends_as_the_reference_says(part: int) -> None:
    tell(HISTORIES // PARTS, FIRST_SEED + part, phases=(Phase.generate, Phase.shrink))


def tell(histories: int, seed_: int, *, phases: tuple[Phase, ...]) -> None:
    class Seeded(Histories):
        pass

    run_state_machine_as_test(
        seed(seed_)(Seeded),
        settings=settings(
            max_examples=histories,
            stateful_step_count=STEPS,
            phases=phases,
            database=None,
            report_multiple_bugs=False,
            print_blob=False,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
