"""The facts of a performance, the state that they add up to, and the checks of that state. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from vigil.demo.story import CLIENTS, LATE_CLIENTS, Client, Json, relevant_part


@dataclass(frozen=True)
class MachineReported:
    """A report of a machine on its job. `job` is the answer of the API."""

    at_s: float
    machine: str
    job: Json


@dataclass(frozen=True)
class ClientAnswered:
    """An answer to a client. `rounds` is the number of its requests so far."""

    at_s: float
    client: str
    rounds: int
    answer: Json

    @property
    def is_over(self) -> bool:
        """Whether the wait has ended."""
        return "wait_on" not in self.answer


@dataclass(frozen=True)
class EventReceived:
    """An event from the WebSocket, in its CloudEvents envelope."""

    at_s: float
    event: Json


Fact: TypeAlias = MachineReported | ClientAnswered | EventReceived


@dataclass
class DemoState:
    """All facts so far. `job_ids` maps machines to job ids."""

    job_ids: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, Json] = field(default_factory=dict)
    answers: dict[str, ClientAnswered] = field(default_factory=dict)
    events: list[EventReceived] = field(default_factory=list)

    def apply(self, fact: Fact) -> None:
        """Add a fact."""
        match fact:
            case MachineReported():
                self.jobs[fact.machine] = fact.job
            case ClientAnswered():
                self.answers[fact.client] = fact
            case EventReceived():
                self.events.append(fact)

    def wait_end_events(self, client: str) -> list[Json]:
        """Return the events about the end of a client's wait."""
        wait_id = self.answers[client].answer["wait_id"] if client in self.answers else None
        return [received.event for received in self.events if received.event["subject"] == wait_id]

    @property
    def is_any_over(self) -> bool:
        """Whether at least one wait has ended."""
        return any(answered.is_over for answered in self.answers.values())

    @property
    def all_waits_announced(self) -> bool:
        """Whether the WebSocket has announced the end of each of the three waits."""
        return all(self.wait_end_events(client.name) for client in CLIENTS)


@dataclass(frozen=True)
class Check:
    """A promise of the demo and whether it was kept. `actual` is shown if it was not."""

    promise: str
    passed: bool
    actual: object = None


def run_checks(state: DemoState) -> list[Check]:
    """Compare the state with the story."""
    return [
        *(_check_answer(state, client) for client in CLIENTS),
        *(_check_late_answer(state, client) for client in LATE_CLIENTS),
    ]


def _check_answer(state: DemoState, client: Client) -> Check:
    """Check a client's last answer and its announcement, which may arrive twice but with one id."""
    answer = _last_answer(state, client)
    announced = {(event["id"], event["type"]) for event in state.wait_end_events(client.name)}
    passed = answer == client.expected(state.job_ids) and [f"vigil.wait.{client.status}"] == [
        kind for _, kind in announced
    ]
    promise = f"{client.name} received {client.status}, and so did the WebSocket"
    return Check(promise, passed, {"answer": answer, "announced": sorted(announced)})


def _check_late_answer(state: DemoState, client: Client) -> Check:
    answer = _last_answer(state, client)
    rounds = state.answers[client.name].rounds if answer else 0
    passed = answer == client.expected(state.job_ids) and rounds == 1
    promise = f"{client.name} asked after the end and received {client.status} at once"
    return Check(promise, passed, {"answer": answer, "posts": rounds})


def _last_answer(state: DemoState, client: Client) -> Json | None:
    last = state.answers.get(client.name)
    return relevant_part(last.answer) if last else None
