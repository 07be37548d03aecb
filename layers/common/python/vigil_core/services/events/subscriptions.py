"""What a client does on a WebSocket: connect, subscribe, unsubscribe, wait, ping, leave.

A subscription loses nothing: its row is written and a job marked as followed before the job or wait is read again, and
an event's row before the notifier looks for subscriptions, so one of the two sees the other. The acknowledgement comes
first all the same: of a job or wait it is sent before the row is written; a queue and the namespace cannot be read
again, so their rows are written before, and the notifier lets them be until the acknowledgement is out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

from vigil_core.domain.access import Access, Scope
from vigil_core.domain.errors import JobNotFound, ValidationFailed, VigilError, WaitNotFound, WorkflowNotFound
from vigil_core.domain.events.event import MAX_ANSWER_BYTES, Event, job_event, run_event, short_answer
from vigil_core.domain.events.websocket_protocol import (
    Ping,
    PostWait,
    Subscribe,
    Topic,
    Unsubscribe,
    answer_text,
    error_text,
    event_text,
    id_of,
    read_frame,
    understand,
)
from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.waits.wait import Wait
from vigil_core.domain.workflows.run import Run
from vigil_core.services.context import Context
from vigil_core.services.events.publish import event_of_wait
from vigil_core.services.events.sockets import Sockets, deliver
from vigil_core.services.waits.requests import find_wait, post_wait
from vigil_core.store.auth.api_keys import ApiKeyStore
from vigil_core.store.connections import Connection

MAX_TOPICS_HEARD = 1_000
REPLAYED = timedelta(hours=24)
QUIET = timedelta(seconds=2)
"""An acknowledgement takes some milliseconds; one that is not out by then was lost with whoever was to send it."""

Entity: TypeAlias = Job | Wait | Run


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Who is at the other end of a socket, and how to answer."""

    access: Access
    connection_id: str
    sockets: Sockets

    def send(self, ctx: Context, texts: Iterable[str]) -> bool:
        """Send messages in order. False when nobody is there any more; then everything of the socket is removed."""
        return deliver(ctx, self.sockets, self.access.namespace, self.connection_id, texts)


def connect(ctx: Context, api_keys: ApiKeyStore, access: Access, connection_id: str) -> bool:
    """Let a socket in, or not when its key has no business here.

    The key is looked at once more after the socket is stored: whoever revokes it marks it first and closes its sockets
    after, so no socket slips through between the two.
    """
    ctx.connections.connect(Connection(connection_id=connection_id, access=access, connected_at=ctx.now()))
    key = api_keys.find(access.namespace, access.key_id)
    if key is not None and not key.revoked and access.allows(Scope.READ):
        return True
    ctx.connections.disconnect(access.namespace, connection_id)
    return False


def disconnect(ctx: Context, access: Access, connection_id: str) -> None:
    """Forget a socket."""
    ctx.connections.disconnect(access.namespace, connection_id)


def receive(ctx: Context, peer: Peer, text: str) -> str:
    """Answer a message, whatever it is: with what it asks for, or with an error. Returns which, for the log."""
    frame_id: str | None = None
    try:
        said = read_frame(text)
        frame_id = id_of(said)
        peer.access.require(Scope.READ)
        match understand(said):
            case Subscribe() as frame:
                _subscribe(ctx, peer, frame)
            case Unsubscribe(frame_id=subscription_id):
                topics = ctx.connections.unsubscribe(peer.access.namespace, peer.connection_id, subscription_id)
                peer.send(ctx, [answer_text("ack", subscription_id, {"topics": sorted(topics)})])
            case PostWait() as frame:
                _wait(ctx, peer, frame)
            case Ping():
                peer.send(ctx, [answer_text("pong", frame_id, {})])
    except VigilError as error:
        peer.send(ctx, [error_text(frame_id, error)])
        return error.code
    return str(said["action"])


def _subscribe(ctx: Context, peer: Peer, frame: Subscribe) -> None:
    known = _known(ctx, peer.access.namespace, frame.topics)
    _check_room(ctx, peer, frame.frame_id, {topic.text for topic in frame.topics})
    versions = {topic: entity.version for topic, entity in known.items()} | dict(frame.since)
    _listen(ctx, peer, frame.frame_id, frame.topics, versions, {"topics": [topic.text for topic in frame.topics]})


def _wait(ctx: Context, peer: Peer, frame: PostWait) -> None:
    _check_room(ctx, peer, frame.frame_id, {"wait:"})
    namespace = peer.access.namespace
    said: Mapping[str, JsonValue] = post_wait(ctx, namespace, frame.body, by=peer.access.key_id, hold_until=ctx.now())
    wait_id = str(said["wait_id"])
    if len(dumps(said).encode()) > MAX_ANSWER_BYTES:
        said = short_answer(find_wait(ctx, namespace, wait_id), None)
    topic = Topic(kind="wait", name=wait_id)
    _listen(ctx, peer, frame.frame_id, [topic], {topic.text: 0}, said)


def _listen(
    ctx: Context,
    peer: Peer,
    subscription_id: str,
    topics: Sequence[Topic],
    versions: Mapping[str, int],
    ack: Mapping[str, JsonValue],
) -> None:
    """Acknowledge a subscription, let it be found, and send what has happened since these versions of its topics."""
    namespace, connection_id = peer.access.namespace, peer.connection_id
    now = ctx.now()
    texts = [topic.text for topic in topics]
    heard_only = [topic.text for topic in topics if not topic.has_past]
    ctx.connections.note_subscription(namespace, connection_id, subscription_id, texts, now=now)
    ctx.connections.subscribe(namespace, connection_id, subscription_id, heard_only, now=now, quiet_until=now + QUIET)
    if not peer.send(ctx, [answer_text("ack", subscription_id, ack)]):
        return
    ctx.connections.subscribe(namespace, connection_id, subscription_id, texts, now=now)
    missed = (
        event_text(subscription_id, event)
        for topic, entity in _followed(ctx, namespace, topics).items()
        for event in _since(ctx, entity, versions[topic])
    )
    peer.send(ctx, missed)


def _since(ctx: Context, entity: Entity, version: int) -> Iterator[Event]:
    """What has happened to a job or wait after a version, and what ended it in any case."""
    if isinstance(entity, Wait):
        if entity.ended:
            yield event_of_wait(ctx, entity)
        return
    if isinstance(entity, Run):
        yield from _since_of_run(ctx, entity, version)
        return
    first = min(version + 1, entity.version) if entity.ended else version + 1
    if first > entity.version:
        return
    whole = entity.log[0].version < max(first, 2)
    lines = entity.log if whole else ctx.jobs.history(entity)
    oldest = ctx.now() - REPLAYED
    for before, line in zip((None, *lines), lines, strict=False):
        last = entity.ended and line.version == entity.version
        if line.version >= first and (last or line.at >= oldest):
            yield job_event(entity, line, before)


def _since_of_run(ctx: Context, run: Run, version: int) -> Iterator[Event]:
    """What has happened to a run after a version, and what ended it in any case. Its jobs are topics of their own."""
    oldest = ctx.now() - REPLAYED
    for before, line in zip((None, *run.log), run.log, strict=False):
        last = run.ended and line is run.log[-1]
        if last or (line.version > version and line.at >= oldest):
            yield run_event(run, line, before)


def _known(ctx: Context, namespace: str, topics: Sequence[Topic]) -> Mapping[str, Entity]:
    """The jobs, waits and runs of these topics. Raises JobNotFound, WaitNotFound or WorkflowNotFound, naming those that
    do not exist."""
    found = _read(ctx, namespace, topics)
    unknown: dict[str, list[str]] = {"job": [], "wait": [], "workflow": []}
    for topic in topics:
        entity = found.get(topic.text)
        if topic.has_past and (entity is None or (isinstance(entity, Job) and entity.deleted)):
            unknown[topic.kind].append(topic.name)
    if unknown["job"]:
        raise JobNotFound(*unknown["job"])
    if unknown["wait"]:
        raise WaitNotFound(unknown["wait"][0])
    if unknown["workflow"]:
        raise WorkflowNotFound(unknown["workflow"][0])
    return found


def _read(ctx: Context, namespace: str, topics: Sequence[Topic]) -> Mapping[str, Entity]:
    """The jobs, waits and runs of these topics that exist, by topic, consistently."""
    kinds = ("job", "wait", "workflow")
    ids = {kind: [t.name for t in topics if t.kind == kind and is_uuid7(t.name)] for kind in kinds}
    found: dict[str, Mapping[str, Entity]] = {
        "job": ctx.jobs.find_many(namespace, ids["job"]),
        "wait": ctx.waits.find_many(namespace, ids["wait"]),
        "workflow": ctx.runs.find_many(namespace, ids["workflow"]),
    }
    return {topic.text: found[topic.kind][topic.name] for topic in topics if topic.name in found.get(topic.kind, ())}


def _followed(ctx: Context, namespace: str, topics: Sequence[Topic]) -> Mapping[str, Entity]:
    """The same, once the notifier looks for subscriptions to each of the jobs."""
    found = _read(ctx, namespace, topics)
    unmarked = [each for each in found.values() if isinstance(each, Job) and not each.followed]
    marked = {job.job_id: job for job in ctx.in_parallel(ctx.jobs.mark_followed, unmarked) if job is not None}
    return {
        topic: marked.get(entity.job_id, entity) if isinstance(entity, Job) else entity
        for topic, entity in found.items()
    }


def _check_room(ctx: Context, peer: Peer, subscription_id: str, topics: set[str]) -> None:
    """Raises ValidationFailed when a connection would hear of too much."""
    heard = dict(ctx.connections.subscriptions(peer.access.namespace, peer.connection_id))
    heard[subscription_id] = heard.get(subscription_id, frozenset()) | topics
    if sum(map(len, heard.values())) > MAX_TOPICS_HEARD:
        raise ValidationFailed.at("/topics", f"a connection hears of at most {MAX_TOPICS_HEARD} topics: unsubscribe")
