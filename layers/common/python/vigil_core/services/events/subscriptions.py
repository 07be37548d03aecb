"""Serve the requests of WebSocket clients: connect, subscribe, unsubscribe, wait, ping, disconnect.

A subscription misses no event of a job, wait or run:

1. Write order: the subscription is written and the job is marked (`has_subscribers`), then the job, wait or run is read
   again. A change writes the row of the job, wait or run, then the notifier reads the subscriptions.
2. Read order: the second read of the entity follows the write of the subscription, and the notifier's read of the
   subscriptions follows the write of the change.
3. Conclusion: at least one of the two reads sees the other's write. If both do, the client receives the event twice
   under the same id.

The client always receives the acknowledgement before the first event. For own topics (job, wait, run) it is sent before
the subscription is written. Shared topics (queue, namespace) cannot be read again, so their subscriptions are written
first, as quiet subscriptions: the notifier waits until the acknowledgement has been sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeAlias

from vigil_core.domain.access import Access, Scope
from vigil_core.domain.errors import JobNotFound, ValidationFailed, VigilError, WaitNotFound, WorkflowNotFound
from vigil_core.domain.events.event import MAX_WAIT_BYTES, Event, job_event, wait_event_data, workflow_run_event
from vigil_core.domain.events.websocket_protocol import (
    Ping,
    RegisterWait,
    Subscribe,
    SubscriptionTopic,
    Unsubscribe,
    decode_message,
    encode_server_message,
    error_text,
    event_text,
    message_id_of,
    parse_message,
)
from vigil_core.domain.exact_json import JsonValue, ascii_size
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.limits import LimitName, limit_error
from vigil_core.domain.waits.wait import Wait
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.services.context import (
    UsesAllowedPrivateHosts,
    UsesClock,
    UsesConnections,
    UsesIds,
    UsesJobs,
    UsesLimits,
    UsesListing,
    UsesMessageQueues,
    UsesRandomness,
    UsesRuns,
    UsesThreads,
    UsesWaits,
    UsesWebhooks,
)
from vigil_core.services.events.publish import wait_ended_event
from vigil_core.services.events.sockets import Sockets, send_messages
from vigil_core.services.limits.admission import admit_request
from vigil_core.services.waits.requests import find_wait, post_wait
from vigil_core.store.auth.api_keys import ApiKeyStore
from vigil_core.store.connections import Connection


class SubscriptionsContext(
    UsesJobs,
    UsesLimits,
    UsesWaits,
    UsesListing,
    UsesConnections,
    UsesWebhooks,
    UsesRuns,
    UsesMessageQueues,
    UsesClock,
    UsesIds,
    UsesRandomness,
    UsesAllowedPrivateHosts,
    UsesThreads,
    Protocol,
):
    """The jobs, waits and runs that have topics, the subscriptions, and the collaborators of a new wait."""


MAX_SUBSCRIBED_TOPICS = 1_000
REPLAY_WINDOW = timedelta(hours=24)
ACK_GRACE = timedelta(seconds=2)
"""An acknowledgement takes a few milliseconds. If it takes longer than this, its process has crashed."""

Entity: TypeAlias = Job | Wait | WorkflowRun


@dataclass(frozen=True, kw_only=True)
class Peer:
    """The client of a WebSocket: its access, its connection, and the way to send messages to it."""

    access: Access
    connection_id: str
    sockets: Sockets

    def send(self, ctx: SubscriptionsContext, texts: Iterable[str]) -> bool:
        """Send messages in order. Return False if the WebSocket is closed; its rows are removed then."""
        return send_messages(ctx, self.sockets, self.access.namespace, self.connection_id, texts)


def connect(ctx: SubscriptionsContext, api_keys: ApiKeyStore, access: Access, connection_id: str) -> bool:
    """Store a new connection, and return False if its key does not allow it.

    The key is read after the connection is stored. A revocation marks the key first and then closes its stored
    connections, so no connection of a revoked key stays open. The open connections are counted after it is stored too:
    of several connections that exceed a limit together, each one that counts them all is refused.

    Raises:
        LimitExceeded: The namespace or the key has too many open connections.
    """
    ctx.connections.connect(Connection(connection_id=connection_id, access=access, connected_at=ctx.now()))
    key = api_keys.find(access.namespace, access.key_id)
    if key is None or key.revoked or not access.allows(Scope.READ):
        ctx.connections.disconnect(access.namespace, connection_id)
        return False
    if (error := _connection_limit_error(ctx, access)) is not None:
        ctx.connections.disconnect(access.namespace, connection_id)
        raise error
    return True


def _connection_limit_error(ctx: SubscriptionsContext, access: Access) -> VigilError | None:
    open_by_key = ctx.connections.open_by_key(access.namespace, ctx.now())
    used: Mapping[LimitName, int] = {
        "websocket_connections": open_by_key.total(),
        "websocket_connections_per_key": open_by_key[access.key_id],
    }
    for name, count in used.items():
        limit = ctx.limits.namespaces.limit(access.namespace, name)
        if count > limit:
            return limit_error(name, limit)
    return None


def disconnect(ctx: SubscriptionsContext, access: Access, connection_id: str) -> None:
    """Remove a connection and its subscriptions."""
    ctx.connections.disconnect(access.namespace, connection_id)


def receive(ctx: SubscriptionsContext, peer: Peer, text: str) -> str:
    """Answer any message with its result or an error. Return the action or the error code for the log."""
    frame_id: str | None = None
    try:
        message = decode_message(text)
        frame_id = message_id_of(message)
        peer.access.require(Scope.READ)
        admit_request(ctx, peer.access.namespace)
        match parse_message(message):
            case Subscribe() as frame:
                _subscribe(ctx, peer, frame)
            case Unsubscribe(message_id=subscription_id):
                topics = ctx.connections.unsubscribe(peer.access.namespace, peer.connection_id, subscription_id)
                peer.send(ctx, [encode_server_message("ack", subscription_id, {"topics": sorted(topics)})])
            case RegisterWait() as frame:
                _register_wait(ctx, peer, frame)
            case Ping():
                peer.send(ctx, [encode_server_message("pong", frame_id, {})])
    except VigilError as error:
        peer.send(ctx, [error_text(frame_id, error)])
        return error.code
    return str(message["action"])


def _subscribe(ctx: SubscriptionsContext, peer: Peer, frame: Subscribe) -> None:
    entities = _require_entities(ctx, peer.access.namespace, frame.topics)
    _check_topic_limit(ctx, peer, frame.message_id, {topic.text for topic in frame.topics})
    versions = {topic: entity.version for topic, entity in entities.items()} | dict(frame.since)
    _start_subscription(
        ctx, peer, frame.message_id, frame.topics, versions, {"topics": [topic.text for topic in frame.topics]}
    )


def _register_wait(ctx: SubscriptionsContext, peer: Peer, frame: RegisterWait) -> None:
    _check_topic_limit(ctx, peer, frame.message_id, {"wait:"})
    namespace = peer.access.namespace
    wait_answer: Mapping[str, JsonValue] = post_wait(
        ctx, namespace, frame.body, actor=peer.access.key_id, poll_until=ctx.now(), read_only=peer.access.read_only
    )
    wait_id = str(wait_answer["wait_id"])
    if ascii_size(wait_answer) > MAX_WAIT_BYTES:
        wait_answer = wait_event_data(find_wait(ctx, namespace, wait_id), None)
    topic = SubscriptionTopic(kind="wait", name=wait_id)
    _start_subscription(ctx, peer, frame.message_id, [topic], {topic.text: 0}, wait_answer)


def _start_subscription(
    ctx: SubscriptionsContext,
    peer: Peer,
    subscription_id: str,
    topics: Sequence[SubscriptionTopic],
    versions: Mapping[str, int],
    acknowledgement: Mapping[str, JsonValue],
) -> None:
    """Acknowledge a subscription, activate it, and send the events since the given versions of its topics.

    1. Register the topics, so that the limit counts them.
    2. Write the subscriptions to shared topics as quiet.
    3. Send the acknowledgement.
    4. Write all subscriptions as active.
    5. Read the jobs, waits and runs again, and send the events that the client has missed.

    If the process crashes before step 3, the client receives no acknowledgement and repeats the request. A quiet
    subscription that remains delays the notifier for at most `ACK_GRACE`.
    """
    namespace, connection_id = peer.access.namespace, peer.connection_id
    now = ctx.now()
    texts = [topic.text for topic in topics]
    live_only = [topic.text for topic in topics if not topic.replayable]
    ctx.connections.register_topics(namespace, connection_id, subscription_id, texts, now=now)
    ctx.connections.subscribe(
        namespace, connection_id, subscription_id, live_only, now=now, quiet_until=now + ACK_GRACE
    )
    if not peer.send(ctx, [encode_server_message("ack", subscription_id, acknowledgement)]):
        return
    ctx.connections.subscribe(namespace, connection_id, subscription_id, texts, now=now)
    missed_events = (
        event_text(subscription_id, event)
        for topic, entity in _load_marked_entities(ctx, namespace, topics).items()
        for event in _events_since(ctx, entity, versions[topic])
    )
    peer.send(ctx, missed_events)


def _events_since(ctx: SubscriptionsContext, entity: Entity, version: int) -> Iterator[Event]:
    """Yield the events of a job, wait or run after a version, and always the event of its end."""
    if isinstance(entity, Wait):
        if entity.ended:
            yield wait_ended_event(ctx, entity)
        return
    if isinstance(entity, WorkflowRun):
        yield from _run_events_since(ctx, entity, version)
        return
    first_version = min(version + 1, entity.version) if entity.ended else version + 1
    if first_version > entity.version:
        return
    log_is_complete = entity.log[0].version < max(first_version, 2)
    lines = entity.log if log_is_complete else ctx.jobs.history(entity)
    oldest = ctx.now() - REPLAY_WINDOW
    for previous, line in zip((None, *lines), lines, strict=False):
        is_final = entity.ended and line.version == entity.version
        if line.version >= first_version and (is_final or line.occurred_at >= oldest):
            yield job_event(entity, line, previous)


def _run_events_since(ctx: SubscriptionsContext, run: WorkflowRun, version: int) -> Iterator[Event]:
    """Yield the events of a run (not of its jobs) after a version, and always the event of its end."""
    oldest = ctx.now() - REPLAY_WINDOW
    for previous, line in zip((None, *run.log), run.log, strict=False):
        is_final = run.ended and line is run.log[-1]
        if is_final or (line.version > version and line.occurred_at >= oldest):
            yield workflow_run_event(run, line, previous)


def _require_entities(
    ctx: SubscriptionsContext, namespace: str, topics: Sequence[SubscriptionTopic]
) -> Mapping[str, Entity]:
    """Return the jobs, waits and runs of topics.

    Raises:
        JobNotFound: Jobs do not exist. The error names them.
        WaitNotFound: A wait does not exist.
        WorkflowNotFound: A run does not exist.
    """
    entities = _load_entities(ctx, namespace, topics)
    unknown: dict[str, list[str]] = {"job": [], "wait": [], "workflow": []}
    for topic in topics:
        entity = entities.get(topic.text)
        if topic.replayable and (entity is None or (isinstance(entity, Job) and entity.deleted)):
            unknown[topic.kind].append(topic.name)
    if unknown["job"]:
        raise JobNotFound(*unknown["job"])
    if unknown["wait"]:
        raise WaitNotFound(unknown["wait"][0])
    if unknown["workflow"]:
        raise WorkflowNotFound(unknown["workflow"][0])
    return entities


def _load_entities(
    ctx: SubscriptionsContext, namespace: str, topics: Sequence[SubscriptionTopic]
) -> Mapping[str, Entity]:
    """Return the existing jobs, waits and runs by topic, with consistent reads."""
    kinds = ("job", "wait", "workflow")
    ids = {kind: [topic.name for topic in topics if topic.kind == kind and is_uuid7(topic.name)] for kind in kinds}
    entities_by_kind: dict[str, Mapping[str, Entity]] = {
        "job": ctx.jobs.find_many(namespace, ids["job"]),
        "wait": ctx.waits.find_many(namespace, ids["wait"]),
        "workflow": ctx.runs.find_many(namespace, ids["workflow"]),
    }
    return {
        topic.text: entities_by_kind[topic.kind][topic.name]
        for topic in topics
        if topic.name in entities_by_kind.get(topic.kind, ())
    }


def _load_marked_entities(
    ctx: SubscriptionsContext, namespace: str, topics: Sequence[SubscriptionTopic]
) -> Mapping[str, Entity]:
    """Mark the jobs of topics as having subscribers, then return the existing jobs, waits and runs by topic."""
    entities = _load_entities(ctx, namespace, topics)
    unmarked = [entity for entity in entities.values() if isinstance(entity, Job) and not entity.has_subscribers]
    marked = {job.job_id: job for job in ctx.in_parallel(ctx.jobs.mark_has_subscribers, unmarked) if job is not None}
    return {
        topic: marked.get(entity.job_id, entity) if isinstance(entity, Job) else entity
        for topic, entity in entities.items()
    }


def _check_topic_limit(ctx: SubscriptionsContext, peer: Peer, subscription_id: str, topics: set[str]) -> None:
    """Check the number of topics of a connection.

    Raises:
        ValidationFailed: With the new topics, the connection would have too many.
    """
    topics_by_subscription = dict(ctx.connections.subscriptions(peer.access.namespace, peer.connection_id))
    topics_by_subscription[subscription_id] = topics_by_subscription.get(subscription_id, frozenset()) | topics
    if sum(map(len, topics_by_subscription.values())) > MAX_SUBSCRIBED_TOPICS:
        raise ValidationFailed.at(
            "/topics", f"a connection subscribes to at most {MAX_SUBSCRIBED_TOPICS} topics: unsubscribe first"
        )
