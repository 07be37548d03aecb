"""The plan of a run: its graph, the duration and result of each attempt, and the actions of operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, NamedTuple, TypeAlias

SILENT_MS = 40_000
"""The lease of an attempt that never reports."""
RULES = (
    "all_success", "all_done", "all_failed", "one_success", "one_failed", "one_done", "none_failed",
    "none_failed_min_one_success", "none_skipped", "always",
)  # fmt: skip
Result: TypeAlias = Mapping[str, int]
Condition: TypeAlias = Literal["true", "false", "broken"]
Action: TypeAlias = Literal["retry", "skip", "abort"]
Policy: TypeAlias = Literal["fail_fast", "continue_on_failure", "manual"]


class PlannedAttempt(NamedTuple):
    """An attempt: its duration in milliseconds and its result; None when it fails.

    A silent attempt is reclaimed when its lease expires.
    """

    lasts: int
    result: Result | None
    silent: bool = False


class Decision(NamedTuple):
    """The milliseconds after which an operator decides about a failure."""

    after: int
    action: Action


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """A job. The last planned attempt, and the last planned decision, apply to all later ones too."""

    name: str
    after: Sequence[str] = ()
    rule: str = "all_success"
    condition: Condition | None = None
    wants: Result | None = None
    """The result that its first dependency must have; otherwise the job is skipped."""
    attempts: int = 1
    rest: int = 0
    """Milliseconds between two attempts."""
    fallback: Result | None = None
    join: bool = False
    race: bool = False
    delay: int = 0
    """Milliseconds after the run's creation before which it does not start."""
    priority: str = "normal"
    tries: Sequence[PlannedAttempt] = ()
    decisions: Sequence[Decision] = ()


class PlannedAction(NamedTuple):
    """An action on a run, in milliseconds after its start: cancel a job, cancel the run, or reach the deadline."""

    at: int
    what: Literal["cancel", "stop", "deadline"]
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The actions on a run until its end. `start`: the job from which it is retried first."""

    acts: Sequence[PlannedAction] = ()
    start: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run. Its jobs are in topological order; `defined` is their order in the definition."""

    policy: Policy
    jobs: Sequence[PlannedJob]
    defined: Sequence[int]
    generations: Sequence[Generation]
    timeout_s: int | None = None
    """The seconds after which each generation has an action `deadline`."""
    most: int | None = None
    """The `max_concurrency` of the run."""
    chunk_jobs: int = 64
    at_once: int = 256
    narrow: int = 200
    chance: int = 0
    """Decides the crashes, and which records arrive twice, late or in another order."""


def nth(items: Sequence[Any], number: int) -> Any:
    """Return an element by number, from 0; the last one beyond the end, None of an empty list."""
    return items[min(number, len(items) - 1)] if items else None


def plan_of(seed: int, *, deterministic: bool) -> Plan:
    """Return the plan of a seed, always the same.

    `told_exactly`: without actions at one moment whose order is undefined.
    """
    chance = Random(seed)
    policy: Policy = chance.choice(["continue_on_failure", "fail_fast", "manual"])
    large = chance.random() < 1 / 70
    total = chance.randint(40, 60) if large else chance.randint(1, 14)
    jobs: list[PlannedJob] = []
    for _ in range(total):
        jobs.append(_plan_job(chance, jobs, policy, large, deterministic))
    names = [job.name for job in jobs]
    timeout_s = chance.choice([None] * 11 + [120])
    retries = chance.choice([0, 0, 1, 2])
    return Plan(
        policy=policy,
        jobs=jobs,
        defined=chance.sample(range(total), total),
        generations=[_generation(chance, names, timeout_s, again=number > 0) for number in range(1 + retries)],
        timeout_s=timeout_s,
        most=None if deterministic else chance.choice([None, None, None, 1, 2, 3]),
        chunk_jobs=16 if large else chance.choice([64, 2, 4]),
        at_once=chance.choice([256, 3]),
        narrow=chance.choice([200, 1, 3]),
        chance=chance.getrandbits(32),
    )


CONDITIONS: Sequence[Condition] = ("true", "false", "broken")
ACTIONS: Sequence[Action] = ("skip", "retry", "skip", "retry", "skip", "retry", "skip", "retry", "skip", "abort")


def _plan_job(
    chance: Random, before: Sequence[PlannedJob], policy: Policy, large: bool, deterministic: bool
) -> PlannedJob:
    def happens(percent: int) -> bool:
        return chance.random() < percent / 100

    near = chance.sample(before[-25:], len(before[-25:]))
    race = len(near) > 1 and happens(20)
    if race:
        racers: list[PlannedJob] = []
        for job in near:
            if len(racers) < 3 and (not deterministic or _can_race([*racers, job], before, policy)):
                racers.append(job)
        race = len(racers) > 1
        near = racers if race else near
    after = [job.name for job in near[: 3 if race else chance.choice([1, 0, 1, 2, 2, 3, 5, 20])]]
    rule = "one_success" if race else chance.choice(["all_success"] * 6 + list(RULES)) if after else "all_success"
    join, wants = happens(12), None
    condition: Condition | None = None
    if not (race and deterministic) and happens(15):
        condition = chance.choice(CONDITIONS)
    elif after and rule == "all_success" and happens(20):
        wants = {"n": chance.randint(0, 1)}
    tries = [_plan_attempt(chance, fails=happens(5 if large else 25), silent=happens(4)) for _ in range(3)]
    return PlannedJob(
        name=f"j{len(before):02}",
        after=after,
        rule=rule,
        race=race,
        join=join,
        condition=condition,
        wants=wants,
        attempts=1 if join else chance.choice([1, 1, 1, 2, 3]),
        rest=chance.choice([0, 0, 20_000]),
        fallback={"n": -1} if not join and happens(10) else None,
        delay=30_000 if happens(8) else 0,
        priority=chance.choice(["normal", "high", "low"]),
        tries=[PlannedAttempt(0, {})] if join else tries,
        decisions=[Decision(chance.randint(1, 99_999), chance.choice(ACTIONS)) for _ in range(2)]
        + [Decision(1_003, "skip")],
    )


def _plan_attempt(chance: Random, *, fails: bool, silent: bool) -> PlannedAttempt:
    if silent:
        return PlannedAttempt(SILENT_MS, None, silent=True)
    return PlannedAttempt(chance.randint(1, 99_999), None if fails else {"n": chance.randint(0, 1)})


def _can_race(racers: Sequence[PlannedJob], before: Sequence[PlannedJob], policy: Policy) -> bool:
    """Return whether no job is cancelled as a loser at the moment at which it would end otherwise."""
    comes_after: dict[str, set[str]] = {}
    for job in before:
        comes_after[job.name] = set(job.after).union(*(comes_after[name] for name in job.after))
    names = {job.name for job in racers}
    return not any(
        job.join
        or job.condition
        or job.wants
        or comes_after[job.name] & names
        or (policy == "fail_fast" and job.after and job.rule not in ("all_done", "always"))
        for job in racers
    )


def _generation(chance: Random, names: Sequence[str], timeout_s: int | None, again: bool) -> Generation:
    acts = [
        PlannedAction(chance.randint(1, 299_999), "cancel", chance.choice(names))
        for _ in range(chance.choice([0, 0, 0, 1, 2]))
    ]
    if chance.random() < 0.1:
        acts.append(PlannedAction(chance.randint(1, 299_999), "stop"))
    if timeout_s is not None:
        acts.append(PlannedAction(timeout_s * 1_000, "deadline"))
    return Generation(acts=acts, start=chance.choice(names) if again and chance.random() < 0.5 else None)
