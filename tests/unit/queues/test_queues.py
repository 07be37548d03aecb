"""The SQS gateway, on a queue that refuses messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from vigil_core.domain.exact_json import dumps
from vigil_core.gateways.sqs import NotSent, SqsQueues


@dataclass(frozen=True)
class Message:
    group: str
    body: str


@dataclass
class Sqs:
    """Accepts messages, except the bodies in `refused`, each as often as its number says."""

    refused: dict[str, int] = field(default_factory=dict)
    batches: list[list[dict[str, Any]]] = field(default_factory=list)
    delayed: list[dict[str, Any]] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)

    def send_message_batch(self, *, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:
        assert QueueUrl == "fan-out"
        self.batches.append(Entries)
        failed = []
        for entry in Entries:
            if self.refused.get(entry["MessageBody"], 0):
                self.refused[entry["MessageBody"]] -= 1
                failed.append({"Id": entry["Id"], "Code": "InternalError", "SenderFault": False})
            else:
                self.taken.append(entry["MessageBody"])
        return {"Failed": failed} if failed else {}

    def send_message(self, **message: Any) -> None:
        self.delayed.append(message)


def queues(sqs: Sqs, sweeper_url: str | None = "sweeper") -> SqsQueues:
    return SqsQueues(lambda: sqs, fan_out_url="fan-out", sweeper_url=sweeper_url)  # type: ignore[arg-type, return-value]


def test_messages_are_sent_in_tens_with_group_and_unique_id() -> None:
    sqs = Sqs()
    queues(sqs).send_fan_out([Message(f"g{number % 2}", f"b{number}") for number in range(23)])
    assert [len(batch) for batch in sqs.batches] == [10, 10, 3]
    entries = [entry for batch in sqs.batches for entry in batch]
    assert [entry["MessageGroupId"] for entry in entries] == [f"g{number % 2}" for number in range(23)]
    assert len({entry["MessageDeduplicationId"] for entry in entries}) == 23


def test_only_refused_messages_are_sent_again() -> None:
    sqs = Sqs(refused={"b1": 2})
    queues(sqs).send_fan_out([Message("g", f"b{number}") for number in range(3)])
    assert sqs.taken == ["b0", "b2", "b1"]


def test_message_refused_repeatedly_raises() -> None:
    with pytest.raises(NotSent, match="1 messages: InternalError"):
        queues(Sqs(refused={"b0": 99})).send_fan_out([Message("g", "b0"), Message("g", "b1")])


def test_sweeper_message_is_sent_with_its_delay() -> None:
    sqs = Sqs()
    for body in ('{"kind":"timer"}', '{"namespace":"demo"}'):
        queues(sqs).send_to_sweeper(body, 900)
    assert sqs.delayed == [
        {"QueueUrl": "sweeper", "MessageBody": '{"kind":"timer"}', "DelaySeconds": 900},
        {
            "QueueUrl": "sweeper",
            "MessageBody": '{"namespace":"demo"}',
            "DelaySeconds": 900,
            "MessageGroupId": "demo",
        },
    ]
    with pytest.raises(NotSent):
        queues(sqs, sweeper_url=None).send_to_sweeper("{}", 1)


def test_empty_send_creates_no_client() -> None:
    def no_client() -> Any:
        raise AssertionError

    SqsQueues(no_client, fan_out_url="fan-out", sweeper_url=None).send_fan_out([])


def test_webhook_deliveries_are_sent_in_the_group_of_their_namespace() -> None:
    bodies = [dumps({"namespace": f"n{number}"}) for number in range(12)]
    sqs = Sqs(refused={bodies[3]: 1})
    SqsQueues(lambda: sqs, fan_out_url=None, sweeper_url=None, webhooks_url="fan-out").send_deliveries(bodies)  # type: ignore[arg-type, return-value]
    assert [len(batch) for batch in sqs.batches] == [10, 1, 2]
    assert sorted(sqs.taken) == sorted(bodies)
    groups = {entry["MessageBody"]: entry["MessageGroupId"] for batch in sqs.batches for entry in batch}
    assert groups == {body: f"n{number}" for number, body in enumerate(bodies)}
    with pytest.raises(NotSent):
        queues(Sqs()).send_deliveries(["{}"])
