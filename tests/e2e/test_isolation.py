"""A hostile tenant does not slow an honest one.

Each test measures the same operations of tenant B twice: while tenant A sends an honest load, and while it sends an
attack of as many requests. The slowest operation under the attack takes at most two seconds, and the median at most
three times the median under the honest load.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import pytest

from tests.e2e.harness import Aws, Client, eventually, in_background
from vigil.local import Stack

pytestmark = pytest.mark.timeout(240)

OPERATIONS = 20
MAX_S = 2.0
MAX_FACTOR = 3
MIN_MEDIAN_S = 0.1
"""A shorter median under the honest load counts as this: the clock of a busy machine is not more exact."""


def wait_for_a_job(client: Client) -> Callable[[], None]:
    """Prepare a wait, and return the operation: the job ends, and the client receives the answer."""
    job_id = client.running()
    answer = client.wait({job_id: None})

    def operate() -> None:
        client.complete(job_id)
        assert client.ended(answer)["status"] == "met"

    return operate


def claim_a_job(client: Client) -> Callable[[], None]:
    """Return the operation: a job is created, and a worker claims it."""

    def operate() -> None:
        client.job()
        body = {"worker": "w", "lease": 60}
        eventually(
            lambda: client.post("/v1/queues/default/claim", body)["jobs"], within_s=20, every_s=0.05, what="a job"
        )

    return operate


OPERATIONS_OF_B: dict[str, Callable[[Client], Callable[[], None]]] = {
    "wait": wait_for_a_job,
    "claim": claim_a_job,
}


@dataclass(frozen=True)
class Tenants:
    """The hostile tenant A and the honest tenant B."""

    a: Client
    b: Client

    def times_during(
        self, load: Callable[[Client], Any], prepare: Callable[[Client], Callable[[], None]]
    ) -> list[float]:
        """Return the times of B's operations, in seconds, while A sends a load."""
        operations = [prepare(self.b) for _ in range(OPERATIONS)]
        times: list[float] = []
        with in_background(lambda: load(self.a)) as sent:
            for operate in operations:
                started_at = time.monotonic()
                operate()
                times.append(time.monotonic() - started_at)
        sent.result()
        return times

    def check(self, operation: str, *, attack: Callable[[Client], Any], honest: Callable[[Client], Any]) -> None:
        """Check that an attack slows B's operations no more than an honest load."""
        prepare = OPERATIONS_OF_B[operation]
        usual = max(median(self.times_during(honest, prepare)), MIN_MEDIAN_S)
        attacked = self.times_during(attack, prepare)
        assert max(attacked) <= MAX_S, attacked
        assert median(attacked) <= MAX_FACTOR * usual, (usual, attacked)


@pytest.fixture
def tenants(stack: Stack, aws: Aws) -> Iterator[Tenants]:
    """Return two tenants without a limit of requests, which would refuse the attack and not isolate it."""
    keys = [aws.key(), aws.key()]
    for key in keys:
        aws.admin("set_limit", namespace=key.namespace, limit="requests_per_second", value=10_000)
    with Client(stack, keys[0].token) as a, Client(stack, keys[1].token) as b:
        yield Tenants(a=a, b=b)


def dependents_with(condition: str) -> Callable[[Client], list[str]]:
    """Return a load: four jobs whose dependencies end, and whose condition is then evaluated.

    The load returns the jobs that are accepted. A request may be refused.
    """

    def send(client: Client) -> list[str]:
        dependencies = [client.running() for _ in range(4)]
        wanted = {"job_type": "test", "condition": condition, "executor": "none"}
        responses = [
            client.call("POST", "/v1/jobs", {**wanted, "depends_on": [dependency]}) for dependency in dependencies
        ]
        assert {response.status_code for response in responses} <= {202, 422}
        for dependency in dependencies:
            client.complete(dependency)
        return [response.json()["job_id"] for response in responses if response.status_code == 202]

    return send


@pytest.mark.parametrize("operation", OPERATIONS_OF_B)
@pytest.mark.parametrize("condition", ['abs(`"\\ud800"`)', "abs(`[]`)", "sort_by(`[1, []]`, &@)"])
def test_conditions_that_cannot_be_evaluated_delay_no_other_tenant(
    tenants: Tenants, operation: str, condition: str
) -> None:
    poisoned: list[str] = []
    tenants.check(
        operation,
        attack=lambda client: poisoned.extend(dependents_with(condition)(client)),
        honest=dependents_with("`true`"),
    )
    for job_id in poisoned:
        job = eventually(
            lambda job_id=job_id: (found := tenants.a.get(f"/v1/jobs/{job_id}"))["status"] == "failed" and found,  # type: ignore[misc]
            within_s=20,
            what="the failed job",
        )
        assert job["error"]["code"] == "CONDITION_FAILED"


def text_on_a_job_with_many_waits(text: str) -> Callable[[Client], list[Any]]:
    """Return a load: a job that more than 200 waits wait for reports a text, and ends."""

    def send(client: Client) -> list[Any]:
        job_id = client.running()
        answers = [client.wait({job_id: None}) for _ in range(201)]
        client.complete(job_id, fields={"note": text})
        return answers

    return send


def test_text_that_queues_refuse_delays_no_other_tenant(tenants: Tenants) -> None:
    answers: list[Any] = []
    tenants.check(
        "wait",
        attack=lambda client: answers.extend(text_on_a_job_with_many_waits("note \uffff")(client)),
        honest=text_on_a_job_with_many_waits("note"),
    )
    for answer in (answers[0], answers[-1]):
        assert tenants.a.ended(answer, within_s=30)["status"] == "met"
