"""What happens while the demo plays, fact by fact, and what is known when they are put together. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from vigil.demo.story import CLIENTS, LATE_CLIENTS, Client, Json, relevant_part


@dataclass(frozen=True)
class MachineReported:
    """A machine told something of its job; `job` is what the API answered."""

    at_s: float
    machine: str
    job: Json


@dataclass(frozen=True)
class ClientAnswered:
    """A client's request was answered, for the `rounds`th time."""

    at_s: float
    client: str
    rounds: int
    answer: Json

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to wait for."""
        return "wait_on" not in self.answer


@dataclass(frozen=True)
class EventReceived:
    """The WebSocket brought an event: a CloudEvents envelope."""

    at_s: float
    event: Json


Fact: TypeAlias = MachineReported | ClientAnswered | EventReceived


@dataclass
class DemoState:
    """All facts so far. `job_ids` is by machine."""

    job_ids: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, Json] = field(default_factory=dict)
    answers: dict[str, ClientAnswered] = field(default_factory=dict)
    events: list[EventReceived] = field(default_factory=list)

    def apply(self, fact: Fact) -> None:
        """Take in one more fact."""
        match fact:
            case MachineReported():
                self.jobs[fact.machine] = fact.job
            case ClientAnswered():
                self.answers[fact.client] = fact
            case EventReceived():
                self.events.append(fact)

    def wait_end_events(self, client: str) -> list[Json]:
        """The events that told how a client's wait ended."""
        wait_id = self.answers[client].answer["wait_id"] if client in self.answers else None
        return [heard.event for heard in self.events if heard.event["subject"] == wait_id]

    @property
    def is_any_over(self) -> bool:
        """Whether somebody has nothing left to wait for."""
        return any(answered.is_over for answered in self.answers.values())

    @property
    def all_waits_announced(self) -> bool:
        """Whether the WebSocket has told how each of the three waits ended."""
        return all(self.wait_end_events(client.name) for client in CLIENTS)


@dataclass(frozen=True)
class Check:
    """Something that the demo promised, and whether it was kept; `instead` is what came, when it was not."""

    promise: str
    passed: bool
    actual: object = None


def run_checks(state: DemoState) -> list[Check]:
    """Hold what is known against the story."""
    return [
        *(_check_answer(state, client) for client in CLIENTS),
        *(_check_late_answer(state, client) for client in LATE_CLIENTS),
    ]


def _check_answer(state: DemoState, client: Client) -> Check:
    """The answer is the expected one, and was announced: perhaps twice, but under one id."""
    answer = _last_answer(state, client)
    announced = {(event["id"], event["type"]) for event in state.wait_end_events(client.name)}
    passed = answer == client.expected(state.job_ids) and [f"vigil.wait.{client.status}"] == [
        kind for _, kind in announced
    ]
    promise = f"{client.name} was told {client.status}, and so was the WebSocket"
    return Check(promise, passed, {"answer": answer, "announced": sorted(announced)})


def _check_late_answer(state: DemoState, client: Client) -> Check:
    answer = _last_answer(state, client)
    rounds = state.answers[client.name].rounds if answer else 0
    passed = answer == client.expected(state.job_ids) and rounds == 1
    promise = f"{client.name} asked when all was over, and was told {client.status} at once"
    return Check(promise, passed, {"answer": answer, "posts": rounds})


def _last_answer(state: DemoState, client: Client) -> Json | None:
    last = state.answers.get(client.name)
    return relevant_part(last.answer) if last else None
