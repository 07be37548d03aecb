"""The seeds of the simulations: a few by default, as many as the environment asks for in `make simulate`.

Each simulation depends on its seed alone. `VIGIL_SEED=17 VIGIL_WORLDS=1 VIGIL_RUNS=1` repeats the one of seed 17.
"""

from __future__ import annotations

import os

FIRST_SEED = int(os.environ.get("VIGIL_SEED", "0"))
WORLDS = int(os.environ.get("VIGIL_WORLDS", "12"))
"""Simulated worlds of jobs; a third of this number of batches, dependencies and schedules."""
RUNS = int(os.environ.get("VIGIL_RUNS", "12"))
"""Simulated runs; a third as many in any order."""
HISTORIES = int(os.environ.get("VIGIL_HISTORIES", "25"))
SEEDS_PER_TEST = 25
"""Small enough to spread over the cores."""


def blocks(count: int) -> list[range]:
    """Return this number of seeds, as the parameters of a test."""
    end = FIRST_SEED + count
    return [range(first, min(first + SEEDS_PER_TEST, end)) for first in range(FIRST_SEED, end, SEEDS_PER_TEST)]


def third(count: int) -> int:
    """Return a third of a number, rounded up."""
    return -(-count // 3)
