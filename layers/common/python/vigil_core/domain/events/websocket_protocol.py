"""What is said on a WebSocket: requests understood, or refused with every problem named; answers as text. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vigil_core.domain.errors import FieldProblem, PayloadTooLarge, ValidationFailed, VigilError, escape_pointer_token
from vigil_core.domain.events.event import NAMESPACE_TOPIC, Event, parse_event_id
from vigil_core.domain.exact_json import JsonValue, dumps, loads

TopicKind: TypeAlias = Literal["job", "wait", "workflow", "queue", "namespace"]
ServerMessageType: TypeAlias = Literal["ack", "event", "error", "pong"]

MAX_MESSAGE_BYTES = 128 * 1024
"""What API Gateway takes in a message: https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html"""
MAX_TOPICS = 100
MAX_ERROR_BYTES = 12 * 1024
"""Room for an error's message, and as much for its problems: a frame stays below 32 KB, whatever the client wrote."""
MAX_ERROR_PART_BYTES = 1_024

_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,128}")
_NAME_RULE = "1 to 128 characters, none of them a control character"


@dataclass(frozen=True, kw_only=True)
class SubscriptionTopic:
    """What can be subscribed to. A job, wait or workflow can be read, and so told of from the past; a queue and the
    namespace are only heard from now on."""

    kind: TopicKind
    name: str

    @property
    def text(self) -> str:
        """As it is written: `job:<id>`, `wait:<id>`, `workflow:<id>`, `queue:<name>`, `namespace`."""
        return NAMESPACE_TOPIC if self.kind == "namespace" else f"{self.kind}:{self.name}"

    @property
    def replayable(self) -> bool:
        """Whether it is one job, wait or workflow."""
        return self.kind in ("job", "wait", "workflow")


@dataclass(frozen=True, kw_only=True)
class Subscribe:
    """Hear of topics. `since` is the version that the client knows, of the topics (as text) it knows one of."""

    message_id: str
    topics: tuple[SubscriptionTopic, ...]
    since: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Unsubscribe:
    """Hear no more of a subscription."""

    message_id: str


@dataclass(frozen=True, kw_only=True)
class RegisterWait:
    """Register a wait, and subscribe to it. `body` is what POST /v1/waits takes."""

    message_id: str
    body: Mapping[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class Ping:
    """Are you there?"""

    message_id: str | None


ClientMessage: TypeAlias = Subscribe | Unsubscribe | RegisterWait | Ping


def decode_message(text: str) -> Mapping[str, JsonValue]:
    """A message as a JSON object. Raises PayloadTooLarge, MalformedRequest or ValidationFailed."""
    if len(text) > MAX_MESSAGE_BYTES or len(text.encode(errors="replace")) > MAX_MESSAGE_BYTES:
        raise PayloadTooLarge(f"a message takes at most {MAX_MESSAGE_BYTES} bytes")
    message = loads(text)
    if not isinstance(message, Mapping):
        raise ValidationFailed.at("", "a message is an object")
    return message


def message_id_of(message: Mapping[str, JsonValue]) -> str | None:
    """The id that the answers carry; None where there is none, or none that can be used."""
    message_id = message.get("id")
    return message_id if isinstance(message_id, str) and _NAME.fullmatch(message_id) else None


def parse_message(message: Mapping[str, JsonValue]) -> ClientMessage:
    """A request. Raises ValidationFailed with every problem of it."""
    problems: list[FieldProblem] = []
    action = message.get("action")
    message_id = message_id_of(message)
    if message_id is None and (action != "ping" or message.get("id") is not None):
        problems.append(FieldProblem(pointer="/id", detail=f"text: {_NAME_RULE}"))
    parsed: ClientMessage | None = None
    match action:
        case "subscribe":
            _reject_unknown(message, {"action", "id", "topics", "since"}, problems)
            topics = _parse_topics(message.get("topics"), problems)
            since = _parse_since(message.get("since"), topics, problems)
            parsed = Subscribe(message_id=message_id or "", topics=topics, since=since)
        case "unsubscribe":
            _reject_unknown(message, {"action", "id"}, problems)
            parsed = Unsubscribe(message_id=message_id or "")
        case "wait":
            body = {name: value for name, value in message.items() if name not in ("action", "id")}
            parsed = RegisterWait(message_id=message_id or "", body=body)
        case "ping":
            _reject_unknown(message, {"action", "id"}, problems)
            parsed = Ping(message_id=message_id)
        case _:
            problems.append(FieldProblem(pointer="/action", detail="one of subscribe, unsubscribe, wait, ping"))
    if problems or parsed is None:
        raise ValidationFailed(problems)
    return parsed


def encode_server_message(kind: ServerMessageType, message_id: str | None, data: JsonValue) -> str:
    """A message to the client."""
    return dumps({"type": kind, "id": message_id, "data": data})


def event_text(subscription_id: str, event: Event) -> str:
    """An event as a subscription hears it."""
    return encode_server_message("event", subscription_id, event.envelope())


def error_text(frame_id: str | None, error: VigilError) -> str:
    """What was wrong with a request, cut to what a frame has room for."""
    data: dict[str, JsonValue] = {"error": error.code, "message": _cut(error.message, MAX_ERROR_BYTES)}
    if isinstance(error, ValidationFailed):
        data["errors"] = list(_shown(error.problems))
    return encode_server_message("error", frame_id, data)


def _shown(problems: Iterable[FieldProblem]) -> Iterator[JsonValue]:
    room = MAX_ERROR_BYTES
    for problem in problems:
        shown = {
            "pointer": _cut(problem.pointer, MAX_ERROR_PART_BYTES),
            "detail": _cut(problem.detail, MAX_ERROR_PART_BYTES),
        }
        room -= len(dumps(shown).encode())
        if room < 0:
            return
        yield shown


def _cut(text: str, limit: int) -> str:
    """A text as it is, if it takes no more than so many bytes of JSON. No character takes more than six."""
    return text if len(dumps(text).encode()) <= limit else f"{text[: limit // 6]}…"


def _parse_topics(value: JsonValue, problems: list[FieldProblem]) -> tuple[SubscriptionTopic, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not 1 <= len(value) <= MAX_TOPICS:
        problems.append(FieldProblem(pointer="/topics", detail=f"a list of 1 to {MAX_TOPICS} topics"))
        return ()
    topics: list[SubscriptionTopic] = []
    for position, text in enumerate(value):
        topic, problem = _parse_topic(text)
        if topic is None:
            problems.append(FieldProblem(pointer=f"/topics/{position}", detail=problem))
        else:
            topics.append(topic)
    return tuple(dict.fromkeys(topics))


def _parse_topic(text: JsonValue) -> tuple[SubscriptionTopic | None, str]:
    if text == NAMESPACE_TOPIC:
        return SubscriptionTopic(kind="namespace", name=""), ""
    kind, colon, name = text.partition(":") if isinstance(text, str) else ("", "", "")
    if colon and kind == "queue":
        return (
            (SubscriptionTopic(kind="queue", name=name), "")
            if _NAME.fullmatch(name)
            else (None, f"a queue: {_NAME_RULE}")
        )
    if colon and kind == "job":
        return SubscriptionTopic(kind="job", name=name), ""
    if colon and kind == "wait":
        return SubscriptionTopic(kind="wait", name=name), ""
    if colon and kind == "workflow":
        return SubscriptionTopic(kind="workflow", name=name), ""
    return None, "one of job:<id>, wait:<id>, workflow:<id>, queue:<name>, namespace"


def _parse_since(value: JsonValue, topics: Sequence[SubscriptionTopic], problems: list[FieldProblem]) -> dict[str, int]:
    """One event's id, for the topic of whose job or wait it is, or an id for each of several topics."""
    if value is None:
        return {}
    if isinstance(value, str):
        event = parse_event_id(value)
        matching_topics = [topic for topic in topics if event and topic.replayable and topic.name == event[0]]
        if event and matching_topics:
            return {topic.text: event[1] for topic in matching_topics}
        detail = "the id of an event of one of the topics; a queue or the namespace is heard from now on only"
        problems.append(FieldProblem(pointer="/since", detail=detail))
        return {}
    if not isinstance(value, Mapping):
        problems.append(FieldProblem(pointer="/since", detail="an event's id, or an object of topics and event ids"))
        return {}
    topics_by_text = {topic.text: topic for topic in topics}
    versions: dict[str, int] = {}
    for text, event_id in value.items():
        topic = topics_by_text.get(text)
        event = parse_event_id(event_id) if isinstance(event_id, str) else None
        if topic is None:
            detail = "is none of the topics"
        elif not topic.replayable:
            detail = "a queue or the namespace is heard from now on only"
        elif event is None or event[0] != topic.name:
            detail = "the id of an event of this topic"
        else:
            versions[text] = event[1]
            continue
        problems.append(FieldProblem(pointer=f"/since/{escape_pointer_token(text)}", detail=detail))
    return versions


def _reject_unknown(message: Mapping[str, JsonValue], known: set[str], problems: list[FieldProblem]) -> None:
    problems += [
        FieldProblem(pointer=f"/{escape_pointer_token(name)}", detail="unknown field")
        for name in message
        if name not in known
    ]
