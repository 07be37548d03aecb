"""Five hundred waits on five hundred jobs that eight clients update in parallel; again with a failing matcher."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.harness import Aws, Client, Key, eventually, in_parallel
from vigil.local import Stack

JOBS = 500
WAITS = 500
CLIENTS = 8

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.alone, pytest.mark.timeout(400)]


@dataclass(frozen=True)
class Plan:
    """The planned updates of a job."""

    number: int

    @property
    def fails(self) -> bool:
        return self.number % 5 == 0

    @property
    def reports(self) -> bool:
        return self.number % 2 == 0

    @property
    def steps(self) -> list[tuple[str, str, Any]]:
        """Return every request of the plan, in order."""
        field = {"fields": {"n": self.number}}
        ending = ("POST", "fail", {"error": {"code": "PLANNED", "message": "as planned"}})
        return [
            ("POST", "start", None),
            *([("PATCH", "", {"job_stage": "boot", "milestones": ["half"], **field})] if self.reports else []),
            ending if self.fails else ("POST", "complete", None),
        ]

    @property
    def versions(self) -> list[dict[str, Any]]:
        """Return the state that a wait can see after each step."""
        told = {"milestones": ["half"], "n": str(self.number)} if self.reports else {"milestones": [], "n": ""}
        return [
            {"stage": "submit", "milestones": [], "n": "", "ended": False},
            {"stage": "boot" if self.reports else "submit", **told, "ended": False},
            {"stage": "incomplete" if self.fails else "complete", **told, "ended": True},
        ]


# The condition of an entry, and whether a version satisfies it.
CONDITIONS: dict[str, tuple[Any, Any]] = {
    "ended": (None, lambda seen: seen["ended"]),
    "boot": ({"job_stage": "boot"}, lambda seen: seen["stage"] in {"boot", "complete"}),
    "complete": ({"job_stage": "complete"}, lambda seen: seen["stage"] == "complete"),
    "half": ({"milestone": "half"}, lambda seen: "half" in seen["milestones"]),
    "never": ({"milestone": "never"}, lambda _: False),
}


@dataclass(frozen=True)
class Expected:
    """The expected status of a wait, and the expected outcome of each job that it counts."""

    status: str
    values: dict[str, dict[str, str]]


def expected(wait: dict[str, Any], ids: list[str]) -> Expected:
    """Predict the end of a wait from the rules alone, without Vigil's code."""
    values: dict[str, dict[str, str]] = {}
    failed = False
    for plan, condition in wait["on"]:
        _, holds = CONDITIONS[condition]
        for seen in plan.versions:
            failing = wait["fail_fast"] and seen["stage"] == "incomplete"
            if failing or holds(seen):
                failed |= failing
                values[ids[plan.number]] = {"job_stage": seen["stage"], "n": seen["n"]}
                break
    enough = len(values) >= (wait["at_least"] or len(wait["on"]))
    return Expected("failed_fast" if failed else "met" if enough else "unmet", values)


def random_wait(chance: random.Random, plans: list[Plan]) -> dict[str, Any]:
    """Return a wait whose end does not depend on the order of updates.

    Up to four jobs are stored in one row, more jobs in several rows.
    """
    chosen = chance.sample(plans, chance.choice([1, 2, 3, 4, 6, 9]))
    # A fail-fast wait that does not need all of its jobs may be met first.
    fail_fast = chance.random() < 0.3
    at_least = None if fail_fast or chance.random() < 0.6 else chance.randint(1, len(chosen))
    conditions = ["ended", "ended", "boot", "complete", "half"] + ([] if fail_fast else ["never"])
    return {
        "on": [(plan, chance.choice(conditions)) for plan in chosen],
        "fail_fast": fail_fast,
        "at_least": at_least,
    }


def request_body(wait: dict[str, Any], ids: list[str]) -> dict[str, Any]:
    """Return the wait as a request."""
    return {
        "wait_on": {ids[plan.number]: CONDITIONS[condition][0] for plan, condition in wait["on"]},
        "wait_options": {
            "get_fields": {"n": None},
            "fail_fast": wait["fail_fast"],
            "mode": {"at_least": wait["at_least"]} if wait["at_least"] else "all",
        },
    }


def shuffled(chance: random.Random, plans: list[Plan]) -> Iterator[tuple[Plan, tuple[str, str, Any]]]:
    """Interleave the steps of all plans at random; each plan keeps its own order."""
    order = [plan for plan in plans for _ in plan.steps]
    chance.shuffle(order)
    left = {plan: iter(plan.steps) for plan in plans}
    for plan in order:
        yield plan, next(left[plan])


@pytest.mark.parametrize("matcher", ["unchanged", "failing on one record in twenty"])
def test_every_wait_ends_once_with_the_expected_outcome(
    matcher: str, stack: Stack, aws: Aws, key: Key, client: Client
) -> None:
    seed = 20_241_121
    chance = random.Random(seed)
    plans = [Plan(number) for number in range(JOBS)]
    waits = [random_wait(chance, plans) for _ in range(WAITS)]
    ids = client.jobs(JOBS)

    def update(mine: list[Plan]) -> None:
        with Client(stack, key.token) as own:
            for plan, (method, verb, body) in shuffled(random.Random(mine[0].number), mine):
                answer = own.call(method, f"/v1/jobs/{ids[plan.number]}/{verb}".rstrip("/"), body)
                assert answer.status_code == 200, answer.text

    fault = nullcontext() if matcher == "unchanged" else aws.with_fault("matcher", "one_in_twenty")
    with fault, aws.announcements(namespace=[key.namespace], type=[{"prefix": "vigil.wait."}]) as announced:
        opened = in_parallel(lambda wait: client.post_wait(request_body(wait, ids)), waits, CLIENTS)
        assert {answer["status"] for answer in opened} == {"waiting"}, "all are open at once"
        began = time.monotonic()
        in_parallel(update, [plans[share::CLIENTS] for share in range(CLIENTS)], CLIENTS)
        updated_s = time.monotonic() - began
        eventually(lambda: len({event["subject"] for event in announced.collect()}) == WAITS, within_s=120, every_s=0.5)
        over_s = time.monotonic() - began
    updates = sum(len(plan.steps) for plan in plans)
    logger.info("%d updates took %.1f s, until all waits were announced %.1f s", updates, updated_s, over_s)
    told = {event["subject"]: event for event in announced.envelopes}
    answers = [told[answer["wait_id"]]["data"] for answer in opened]

    for wait, answer in zip(waits, answers, strict=True):
        right = expected(wait, ids)
        said = answer["waited_jobs"]
        context = f"seed {seed}: {request_body(wait, ids)} was answered {answer}"
        assert answer["status"] == right.status, context
        assert said.items() <= right.values.items(), context
        # The order of updates decides which jobs were counted when a wait ended early.
        if right.status == "failed_fast":
            assert any(values["job_stage"] == "incomplete" for values in said.values()), context
        elif not wait["at_least"]:
            assert said == right.values, context
        else:
            assert (len(said) >= wait["at_least"]) == (right.status == "met"), context
        assert told[answer["wait_id"]]["type"] == f"vigil.wait.{answer['status']}"
    for at in chance.sample(range(WAITS), 50):
        assert client.post_wait(opened[at]) == answers[at], "posted back, a wait says what was announced"
    event_ids = [event["id"] for event in announced.envelopes]
    assert len(event_ids) == len(set(event_ids)) == WAITS, "each wait is announced once, under an id of its own"
    nothing = {"fan_out": 0, "sweeper": 0, "webhooks": 0}
    assert aws.admin("list_dead_letters") == {"batches": [], "total": 0, "messages": nothing}
    if matcher != "unchanged":
        assert aws.fault_count("matcher") > WAITS / 20, "the fault was injected"
