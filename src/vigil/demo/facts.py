"""What happens while the demo plays, fact by fact, and what is known when they are put together. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from vigil.demo.story import CLIENTS, LATECOMERS, Client, Json, essence


@dataclass(frozen=True)
class Reported:
    """A machine told something of its job; `job` is what the API answered."""

    at_s: float
    machine: str
    job: Json


@dataclass(frozen=True)
class Answered:
    """A client's request was answered, for the `rounds`th time."""

    at_s: float
    client: str
    rounds: int
    answer: Json

    @property
    def over(self) -> bool:
        """Whether there is nothing left to wait for."""
        return "wait_on" not in self.answer


@dataclass(frozen=True)
class Heard:
    """The WebSocket brought an event: a CloudEvents envelope."""

    at_s: float
    event: Json


Fact: TypeAlias = Reported | Answered | Heard


@dataclass
class Known:
    """All facts so far. `job_ids` is by machine."""

    job_ids: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, Json] = field(default_factory=dict)
    answers: dict[str, Answered] = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)

    def learn(self, fact: Fact) -> None:
        """Take in one more fact."""
        match fact:
            case Reported():
                self.jobs[fact.machine] = fact.job
            case Answered():
                self.answers[fact.client] = fact
            case Heard():
                self.heard.append(fact)

    def ends_heard(self, client: str) -> list[Json]:
        """The events that told how a client's wait ended."""
        wait_id = self.answers[client].answer["wait_id"] if client in self.answers else None
        return [heard.event for heard in self.heard if heard.event["subject"] == wait_id]

    @property
    def any_over(self) -> bool:
        """Whether somebody has nothing left to wait for."""
        return any(answered.over for answered in self.answers.values())

    @property
    def all_ends_heard(self) -> bool:
        """Whether the WebSocket has told how each of the three waits ended."""
        return all(self.ends_heard(client.name) for client in CLIENTS)


@dataclass(frozen=True)
class Check:
    """Something that the demo promised, and whether it was kept; `instead` is what came, when it was not."""

    promise: str
    kept: bool
    instead: object = None


def checks(known: Known) -> list[Check]:
    """Hold what is known against the story."""
    return [
        *(_as_told(known, client) for client in CLIENTS),
        *(_at_once(known, client) for client in LATECOMERS),
    ]


def _as_told(known: Known, client: Client) -> Check:
    """The answer is the expected one, and was announced: perhaps twice, but under one id."""
    told = _told(known, client)
    announced = {(event["id"], event["type"]) for event in known.ends_heard(client.name)}
    kept = told == client.expected(known.job_ids) and [f"vigil.wait.{client.status}"] == [kind for _, kind in announced]
    promise = f"{client.name} was told {client.status}, and so was the WebSocket"
    return Check(promise, kept, {"answer": told, "announced": sorted(announced)})


def _at_once(known: Known, client: Client) -> Check:
    told = _told(known, client)
    rounds = known.answers[client.name].rounds if told else 0
    kept = told == client.expected(known.job_ids) and rounds == 1
    promise = f"{client.name} asked when all was over, and was told {client.status} at once"
    return Check(promise, kept, {"answer": told, "posts": rounds})


def _told(known: Known, client: Client) -> Json | None:
    last = known.answers.get(client.name)
    return essence(last.answer) if last else None
