"""What is said on a WebSocket: requests understood, or refused with every problem named; answers as text. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vigil_core.domain.errors import FieldProblem, PayloadTooLarge, ValidationFailed, VigilError, pointer_token
from vigil_core.domain.events.event import NAMESPACE_TOPIC, Event, parse_event_id
from vigil_core.domain.exact_json import JsonValue, dumps, loads

TopicKind: TypeAlias = Literal["job", "wait", "workflow", "queue", "namespace"]
AnswerType: TypeAlias = Literal["ack", "event", "error", "pong"]

MAX_BYTES = 128 * 1024
"""What API Gateway takes in a message: https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html"""
MAX_TOPICS = 100
SHOWN_BYTES = 12 * 1024
"""Room for an error's message, and as much for its problems: a frame stays below 32 KB, whatever the client wrote."""
SHOWN_BYTES_A_PART = 1_024

_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,128}")
_NAME_RULE = "1 to 128 characters, none of them a control character"


@dataclass(frozen=True, kw_only=True)
class Topic:
    """What can be subscribed to. A job, wait or workflow can be read, and so told of from the past; a queue and the
    namespace are only heard from now on."""

    kind: TopicKind
    name: str

    @property
    def text(self) -> str:
        """As it is written: `job:<id>`, `wait:<id>`, `workflow:<id>`, `queue:<name>`, `namespace`."""
        return NAMESPACE_TOPIC if self.kind == "namespace" else f"{self.kind}:{self.name}"

    @property
    def has_past(self) -> bool:
        """Whether it is one job, wait or workflow."""
        return self.kind in ("job", "wait", "workflow")


@dataclass(frozen=True, kw_only=True)
class Subscribe:
    """Hear of topics. `since` is the version that the client knows, of the topics (as text) it knows one of."""

    frame_id: str
    topics: tuple[Topic, ...]
    since: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Unsubscribe:
    """Hear no more of a subscription."""

    frame_id: str


@dataclass(frozen=True, kw_only=True)
class PostWait:
    """Register a wait, and subscribe to it. `body` is what POST /v1/waits takes."""

    frame_id: str
    body: Mapping[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class Ping:
    """Are you there?"""

    frame_id: str | None


Frame: TypeAlias = Subscribe | Unsubscribe | PostWait | Ping


def read_frame(text: str) -> Mapping[str, JsonValue]:
    """A message as a JSON object. Raises PayloadTooLarge, MalformedRequest or ValidationFailed."""
    if len(text) > MAX_BYTES or len(text.encode(errors="replace")) > MAX_BYTES:
        raise PayloadTooLarge(f"a message takes at most {MAX_BYTES} bytes")
    said = loads(text)
    if not isinstance(said, Mapping):
        raise ValidationFailed.at("", "a message is an object")
    return said


def id_of(said: Mapping[str, JsonValue]) -> str | None:
    """The id that the answers carry; None where there is none, or none that can be used."""
    frame_id = said.get("id")
    return frame_id if isinstance(frame_id, str) and _NAME.fullmatch(frame_id) else None


def understand(said: Mapping[str, JsonValue]) -> Frame:
    """A request. Raises ValidationFailed with every problem of it."""
    problems: list[FieldProblem] = []
    action = said.get("action")
    frame_id = id_of(said)
    if frame_id is None and (action != "ping" or said.get("id") is not None):
        problems.append(FieldProblem(pointer="/id", detail=f"text: {_NAME_RULE}"))
    frame: Frame | None = None
    match action:
        case "subscribe":
            _refuse_unknown(said, {"action", "id", "topics", "since"}, problems)
            topics = _topics(said.get("topics"), problems)
            since = _since(said.get("since"), topics, problems)
            frame = Subscribe(frame_id=frame_id or "", topics=topics, since=since)
        case "unsubscribe":
            _refuse_unknown(said, {"action", "id"}, problems)
            frame = Unsubscribe(frame_id=frame_id or "")
        case "wait":
            body = {name: value for name, value in said.items() if name not in ("action", "id")}
            frame = PostWait(frame_id=frame_id or "", body=body)
        case "ping":
            _refuse_unknown(said, {"action", "id"}, problems)
            frame = Ping(frame_id=frame_id)
        case _:
            problems.append(FieldProblem(pointer="/action", detail="one of subscribe, unsubscribe, wait, ping"))
    if problems or frame is None:
        raise ValidationFailed(problems)
    return frame


def answer_text(kind: AnswerType, frame_id: str | None, data: JsonValue) -> str:
    """A message to the client."""
    return dumps({"type": kind, "id": frame_id, "data": data})


def event_text(subscription_id: str, event: Event) -> str:
    """An event as a subscription hears it."""
    return answer_text("event", subscription_id, event.envelope())


def error_text(frame_id: str | None, error: VigilError) -> str:
    """What was wrong with a request, cut to what a frame has room for."""
    data: dict[str, JsonValue] = {"error": error.code, "message": _cut(error.message, SHOWN_BYTES)}
    if isinstance(error, ValidationFailed):
        data["errors"] = list(_shown(error.problems))
    return answer_text("error", frame_id, data)


def _shown(problems: Iterable[FieldProblem]) -> Iterator[JsonValue]:
    room = SHOWN_BYTES
    for problem in problems:
        shown = {
            "pointer": _cut(problem.pointer, SHOWN_BYTES_A_PART),
            "detail": _cut(problem.detail, SHOWN_BYTES_A_PART),
        }
        room -= len(dumps(shown).encode())
        if room < 0:
            return
        yield shown


def _cut(text: str, limit: int) -> str:
    """A text as it is, if it takes no more than so many bytes of JSON. No character takes more than six."""
    return text if len(dumps(text).encode()) <= limit else f"{text[: limit // 6]}…"


def _topics(given: JsonValue, problems: list[FieldProblem]) -> tuple[Topic, ...]:
    if not isinstance(given, Sequence) or isinstance(given, str) or not 1 <= len(given) <= MAX_TOPICS:
        problems.append(FieldProblem(pointer="/topics", detail=f"a list of 1 to {MAX_TOPICS} topics"))
        return ()
    found: list[Topic] = []
    for position, text in enumerate(given):
        topic, problem = _topic(text)
        if topic is None:
            problems.append(FieldProblem(pointer=f"/topics/{position}", detail=problem))
        else:
            found.append(topic)
    return tuple(dict.fromkeys(found))


def _topic(text: JsonValue) -> tuple[Topic | None, str]:
    if text == NAMESPACE_TOPIC:
        return Topic(kind="namespace", name=""), ""
    kind, colon, name = text.partition(":") if isinstance(text, str) else ("", "", "")
    if colon and kind == "queue":
        return (Topic(kind="queue", name=name), "") if _NAME.fullmatch(name) else (None, f"a queue: {_NAME_RULE}")
    if colon and kind == "job":
        return Topic(kind="job", name=name), ""
    if colon and kind == "wait":
        return Topic(kind="wait", name=name), ""
    if colon and kind == "workflow":
        return Topic(kind="workflow", name=name), ""
    return None, "one of job:<id>, wait:<id>, workflow:<id>, queue:<name>, namespace"


def _since(given: JsonValue, topics: Sequence[Topic], problems: list[FieldProblem]) -> dict[str, int]:
    """One event's id, for the topic of whose job or wait it is, or an id for each of several topics."""
    if given is None:
        return {}
    if isinstance(given, str):
        known = parse_event_id(given)
        of_it = [topic for topic in topics if known and topic.has_past and topic.name == known[0]]
        if known and of_it:
            return {topic.text: known[1] for topic in of_it}
        detail = "the id of an event of one of the topics; a queue or the namespace is heard from now on only"
        problems.append(FieldProblem(pointer="/since", detail=detail))
        return {}
    if not isinstance(given, Mapping):
        problems.append(FieldProblem(pointer="/since", detail="an event's id, or an object of topics and event ids"))
        return {}
    asked = {topic.text: topic for topic in topics}
    found: dict[str, int] = {}
    for text, event_id in given.items():
        topic = asked.get(text)
        known = parse_event_id(event_id) if isinstance(event_id, str) else None
        if topic is None:
            detail = "is none of the topics"
        elif not topic.has_past:
            detail = "a queue or the namespace is heard from now on only"
        elif known is None or known[0] != topic.name:
            detail = "the id of an event of this topic"
        else:
            found[text] = known[1]
            continue
        problems.append(FieldProblem(pointer=f"/since/{pointer_token(text)}", detail=detail))
    return found


def _refuse_unknown(said: Mapping[str, JsonValue], known: set[str], problems: list[FieldProblem]) -> None:
    problems += [
        FieldProblem(pointer=f"/{pointer_token(name)}", detail="unknown field") for name in said if name not in known
    ]
