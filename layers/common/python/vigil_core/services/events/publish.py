"""The notifier: whatever happened to jobs and waits is told sockets, SNS and webhooks, at least once, under one id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

from vigil_core.domain.events.event import (
    Event,
    job_event,
    may_be_short,
    progress_event,
    progress_with_version,
    run_event,
    wait_event,
)
from vigil_core.domain.events.websocket_protocol import event_text
from vigil_core.domain.waits.wait import Wait
from vigil_core.domain.webhooks import Delivery
from vigil_core.services.context import Context
from vigil_core.services.events.sockets import Sockets, deliver
from vigil_core.services.waits.view import answer
from vigil_core.services.webhooks.deliver import hand_over, wanted_deliveries
from vigil_core.store.connections import Subscriber
from vigil_core.store.stream import StreamRecord, new_run_version, new_version, progress_from_row
from vigil_core.store.table import Row
from vigil_core.store.waits.waits import wait_from_row

QUIET_LOOK_S = 0.02


class Announcements(Protocol):
    """The topic for everybody outside."""

    def publish(self, events: Sequence[Event]) -> list[Event]:
        """Announce events, and return those that were not taken."""


class NotTaken(Exception):
    """SNS took a request, but not this message of it."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What came of a batch. `failed` says why, by its sequence number, for each record that has to come again."""

    events: int
    messages: int
    published: int
    handed_over: int
    by_type: Mapping[str, int]
    """How many events there were of each type."""
    failed: Mapping[str, Exception]


@dataclass(frozen=True, kw_only=True)
class _News:
    """An event, and the record it came with. `followed`: whether anybody may have subscribed to its own topic."""

    record: str
    event: Event
    followed: bool

    @property
    def near(self) -> Sequence[str]:
        """The topic of the job, wait or run alone, to be looked up first."""
        return self.event.topics[:1] if self.followed else ()

    @property
    def wide(self) -> Sequence[str]:
        """The topics that it shares with others."""
        return self.event.topics[1:]


_Errors: TypeAlias = dict[str, Exception]
_Hearing: TypeAlias = Mapping[tuple[str, str], Sequence[Subscriber]]
"""Who hears of (namespace, topic)."""
_Mail: TypeAlias = Mapping[tuple[str, str], Sequence[tuple[str, str]]]
"""For (namespace, connection id), messages in order, each (record, text)."""
_Wanted: TypeAlias = list[tuple[Sequence[str], Sequence[Delivery]]]
"""For the records of a namespace, what its webhooks are to be told."""


def notify(
    ctx: Context,
    sockets: Sockets,
    announcements: Announcements,
    records: Iterable[StreamRecord],
    *,
    all_changes: bool,
) -> Told:
    """Tell of every record of a batch: all sockets and SNS at once, each socket in the order of the records.

    Whoever follows one job, wait or run is told before it is looked up who follows a whole queue or the namespace. SNS
    hears of endings, and with `all_changes` of every other version too. What fails for one record or one socket keeps
    nobody else from being told.
    """
    in_order = list(records)
    errors: _Errors = {}
    news: list[_News] = []
    for record in in_order:
        with _owned_by(errors, [record.sequence_number]):
            news += [
                _News(record=record.sequence_number, event=event, followed=_may_be_followed(record))
                for event in events_of(ctx, record)
            ]
    near = _mail(news, _hearing(ctx, [(item, item.near) for item in news], errors))
    ctx.in_parallel(_do, _posts(ctx, sockets, near, errors))
    wide = _mail(news, _hearing(ctx, [(item, item.wide) for item in news], errors), told_already=near)
    for_sns = [item for item in news if item.event.reach == "ending" or (all_changes and item.event.reach == "change")]
    rest: list[Callable[[], None]] = _posts(ctx, sockets, wide, errors)
    rest.append(partial(_publish, announcements, for_sns, errors))
    wanted: _Wanted = []
    rest += _looks_for_webhooks(ctx, news, wanted, errors)
    ctx.in_parallel(_do, rest)
    # Last, so that nobody who listens now waits for it.
    for owners, deliveries in wanted:
        with _owned_by(errors, owners):
            hand_over(ctx, deliveries)
    return Told(
        events=len(news),
        messages=sum(map(len, (*near.values(), *wide.values()))),
        published=len(for_sns),
        by_type=Counter(item.event.type for item in news),
        handed_over=sum(len(deliveries) for _, deliveries in wanted),
        failed={r.sequence_number: errors[r.sequence_number] for r in in_order if r.sequence_number in errors},
    )


def events_of(ctx: Context, record: StreamRecord) -> list[Event]:
    """What a change of a row is announced as; nothing for most rows."""
    row = record.new() or {}
    match row.get("entity"):
        case "job":
            told = new_version(record)
            if told is None:
                return []
            job, before = told
            said = progress_with_version(job)
            event = job_event(job, job.log[-1], before.log[-1] if before else None)
            return [event, progress_event(said)] if said else [event]
        case "live":
            return [] if _is_heartbeat(row, record.old()) else [progress_event(progress_from_row(row))]
        case "run":
            said_of_run = new_run_version(record)
            return [] if said_of_run is None else [run_event(said_of_run[0], said_of_run[0].log[-1], said_of_run[1])]
        case "wait":
            wait = wait_from_row(row)
            return [event_of_wait(ctx, wait)] if wait.ended else []
        case _:
            return []


def _may_be_followed(record: StreamRecord) -> bool:
    """Whether anybody may have subscribed to this very thing. Whoever subscribes to a job marks its row first."""
    row = record.new() or {}
    return row.get("entity") != "job" or "followed" in row


def _is_heartbeat(row: Row, before: Row | None) -> bool:
    """Whether nothing was said but that somebody is alive."""
    told = ("attempt", "progress", "message")
    if before is None:
        return row["progress"] == 0 and "message" not in row
    return all(row.get(name) == before.get(name) for name in told)


def event_of_wait(ctx: Context, wait: Wait) -> Event:
    """How a wait ended, with its answer where that is short."""
    return wait_event(wait, answer(ctx, wait) if may_be_short(wait) else None)


def _hearing(ctx: Context, news: Iterable[tuple[_News, Sequence[str]]], errors: _Errors) -> _Hearing:
    """Who hears of these topics, each looked up once a batch: whoever comes later reads the job or wait himself."""
    wanted: dict[tuple[str, str], list[str]] = {}
    for item, topics in news:
        for topic in topics:
            wanted.setdefault((item.event.namespace, topic), []).append(item.record)

    found: dict[tuple[str, str], Sequence[Subscriber]] = {}

    def look(where: tuple[str, str]) -> None:
        with _owned_by(errors, wanted[where]):
            found[where] = _subscribers(ctx, *where)

    ctx.in_parallel(look, wanted)
    return found


def _subscribers(ctx: Context, namespace: str, topic: str) -> list[Subscriber]:
    """Who hears of a topic, once those who are being acknowledged have been, or were given up."""
    found = list(ctx.connections.subscribers(namespace, topic))
    quiet = {subscriber for subscriber in found if subscriber.is_quiet(ctx.now())}
    while quiet:
        ctx.sleep(QUIET_LOOK_S)
        now = ctx.now()
        quiet = {s for s in ctx.connections.subscribers(namespace, topic) if s in quiet and s.is_quiet(now)}
    return found


def _mail(news: Iterable[_News], hearing: _Hearing, told_already: _Mail | None = None) -> _Mail:
    """What each socket is sent. A subscription that hears of an event by several topics hears of it once."""
    mail: dict[tuple[str, str], list[tuple[str, str]]] = {}
    told = {(to, letter) for to, letters in (told_already or {}).items() for letter in letters}
    for item in news:
        namespace = item.event.namespace
        to = {
            (s.connection_id, s.subscription_id)
            for topic in item.event.topics
            for s in hearing.get((namespace, topic), ())
        }
        for connection_id, subscription_id in sorted(to):
            letter = (item.record, event_text(subscription_id, item.event))
            if ((namespace, connection_id), letter) not in told:
                mail.setdefault((namespace, connection_id), []).append(letter)
    return mail


def _do(task: Callable[[], None]) -> None:
    task()


def _posts(ctx: Context, sockets: Sockets, mail: _Mail, errors: _Errors) -> list[Callable[[], None]]:
    return [partial(_post, ctx, sockets, to, letters, errors) for to, letters in mail.items()]


def _post(
    ctx: Context, sockets: Sockets, to: tuple[str, str], letters: Sequence[tuple[str, str]], errors: _Errors
) -> None:
    with _owned_by(errors, [record for record, _ in letters]):
        deliver(ctx, sockets, *to, (text for _, text in letters))


def _publish(announcements: Announcements, news: Sequence[_News], errors: _Errors) -> None:
    with _owned_by(errors, [item.record for item in news]):
        not_taken = {event.event_id for event in announcements.publish([item.event for item in news])}
        for item in news:
            if item.event.event_id in not_taken:
                errors.setdefault(item.record, NotTaken(f"SNS did not take {item.event.event_id}"))


def _looks_for_webhooks(
    ctx: Context, news: Sequence[_News], wanted: _Wanted, errors: _Errors
) -> list[Callable[[], None]]:
    """Adds what has to be handed over, of each namespace, to `wanted`."""
    by_namespace: dict[str, list[_News]] = {}
    for item in news:
        by_namespace.setdefault(item.event.namespace, []).append(item)

    def look(namespace: str, items: Sequence[_News]) -> None:
        records = [item.record for item in items]
        with _owned_by(errors, records):
            wanted.append((records, wanted_deliveries(ctx, namespace, [item.event for item in items])))

    return [partial(look, namespace, items) for namespace, items in by_namespace.items()]


@contextmanager
def _owned_by(errors: _Errors, records: Iterable[str]) -> Iterator[None]:
    """What goes wrong in here is the fault of these records: they have to come again, and the others have not."""
    try:
        yield
    except Exception as error:
        for record in records:
            errors.setdefault(record, error)
