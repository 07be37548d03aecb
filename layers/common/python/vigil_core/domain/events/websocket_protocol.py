"""The WebSocket protocol: parse the messages of clients, and encode the messages of the server. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vigil_core.domain.errors import FieldProblem, PayloadTooLarge, ValidationFailed, VigilError, escape_pointer_token
from vigil_core.domain.events.event import NAMESPACE_TOPIC, Event, parse_event_id
from vigil_core.domain.exact_json import JsonValue, ascii_size, dumps, loads
from vigil_core.domain.text_rule import is_name

TopicKind: TypeAlias = Literal["job", "wait", "workflow", "queue", "namespace"]
ServerMessageType: TypeAlias = Literal["ack", "event", "error", "pong"]

MAX_MESSAGE_BYTES = 128 * 1024
"""Maximum size of a message in API Gateway: https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html"""
MAX_TOPICS = 100
MAX_ERROR_BYTES = 12 * 1024
"""Maximum size of the message of an error, and of its problems: every frame stays below 32 KB."""
MAX_ERROR_PART_BYTES = 1_024

_NAME_RULE = "1 to 128 characters without control characters, bidi controls and noncharacters"


@dataclass(frozen=True, kw_only=True)
class SubscriptionTopic:
    """A topic that a client subscribes to.

    Events of one job, wait or workflow can be replayed from its stored history. Events of a queue or the namespace are
    delivered live only.
    """

    kind: TopicKind
    name: str

    @property
    def text(self) -> str:
        """The text of the topic: `job:<id>`, `wait:<id>`, `workflow:<id>`, `queue:<name>`, `namespace`."""
        return NAMESPACE_TOPIC if self.kind == "namespace" else f"{self.kind}:{self.name}"

    @property
    def replayable(self) -> bool:
        """True for one job, wait or workflow."""
        return self.kind in ("job", "wait", "workflow")


@dataclass(frozen=True, kw_only=True)
class Subscribe:
    """Subscribe to topics. `since` maps a topic, as text, to the version in the last event id seen."""

    message_id: str
    topics: tuple[SubscriptionTopic, ...]
    since: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Unsubscribe:
    """End a subscription."""

    message_id: str


@dataclass(frozen=True, kw_only=True)
class RegisterWait:
    """Register a wait, and subscribe to it. `body` is the body of POST /v1/waits."""

    message_id: str
    body: Mapping[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class Ping:
    """Request a `pong` message."""

    message_id: str | None


ClientMessage: TypeAlias = Subscribe | Unsubscribe | RegisterWait | Ping


def decode_message(text: str) -> Mapping[str, JsonValue]:
    """Decode a message as a JSON object.

    Raises:
        PayloadTooLarge: The message is too large.
        MalformedRequest: The message is not JSON.
        ValidationFailed: The message is not a JSON object, or contains a number or a text that Vigil refuses.
    """
    if len(text) > MAX_MESSAGE_BYTES or len(text.encode(errors="replace")) > MAX_MESSAGE_BYTES:
        raise PayloadTooLarge(f"a message has at most {MAX_MESSAGE_BYTES} bytes")
    message = loads(text)
    if not isinstance(message, Mapping):
        raise ValidationFailed.at("", "a message must be an object")
    return message


def message_id_of(message: Mapping[str, JsonValue]) -> str | None:
    """Return the id of a message, which its answers repeat. None if the id is missing or invalid."""
    message_id = message.get("id")
    return message_id if isinstance(message_id, str) and is_name(message_id) else None


def parse_message(message: Mapping[str, JsonValue]) -> ClientMessage:
    """Parse the request in a message.

    Raises:
        ValidationFailed: The request is invalid. The error lists every problem.
    """
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
    """Encode a message to the client."""
    return dumps({"type": kind, "id": message_id, "data": data})


def event_text(subscription_id: str, event: Event) -> str:
    """Encode an event for a subscription."""
    return encode_server_message("event", subscription_id, event.envelope())


def error_text(frame_id: str | None, error: VigilError) -> str:
    """Encode the error of a request, cut to the maximum size of a frame."""
    data: dict[str, JsonValue] = {"error": error.code, "message": _cut(error.message, MAX_ERROR_BYTES)}
    if isinstance(error, ValidationFailed):
        data["errors"] = list(_problems_within_limit(error.problems))
    return encode_server_message("error", frame_id, data)


def _problems_within_limit(problems: Iterable[FieldProblem]) -> Iterator[JsonValue]:
    remaining_bytes = MAX_ERROR_BYTES
    for problem in problems:
        document = {
            "pointer": _cut(problem.pointer, MAX_ERROR_PART_BYTES),
            "detail": _cut(problem.detail, MAX_ERROR_PART_BYTES),
        }
        remaining_bytes -= ascii_size(document)
        if remaining_bytes < 0:
            return
        yield document


def _cut(text: str, limit: int) -> str:
    """Cut a text to `limit` bytes as ASCII JSON, where one character takes up to twelve."""
    return text if ascii_size(text) <= limit else f"{text[: limit // 12]}…"


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
        return (SubscriptionTopic(kind="queue", name=name), "") if is_name(name) else (None, f"a queue: {_NAME_RULE}")
    if colon and kind == "job":
        return SubscriptionTopic(kind="job", name=name), ""
    if colon and kind == "wait":
        return SubscriptionTopic(kind="wait", name=name), ""
    if colon and kind == "workflow":
        return SubscriptionTopic(kind="workflow", name=name), ""
    return None, "one of job:<id>, wait:<id>, workflow:<id>, queue:<name>, namespace"


def _parse_since(value: JsonValue, topics: Sequence[SubscriptionTopic], problems: list[FieldProblem]) -> dict[str, int]:
    """Parse the `since` member, one event id or an object of topics and event ids, to versions by topic."""
    if value is None:
        return {}
    if isinstance(value, str):
        event = parse_event_id(value)
        matching_topics = [topic for topic in topics if event and topic.replayable and topic.name == event[0]]
        if event and matching_topics:
            return {topic.text: event[1] for topic in matching_topics}
        detail = "the id of an event of one of the topics; a queue or the namespace is live only"
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
            detail = "is not one of the topics"
        elif not topic.replayable:
            detail = "a queue or the namespace is live only"
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
