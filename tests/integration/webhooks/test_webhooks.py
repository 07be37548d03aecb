"""Webhooks receive each event at least once, whatever crashes or gets lost between any two writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import pytest

from tests.support.live import Live
from tests.support.world import NAMESPACE, World
from vigil_core.domain.errors import (
    RequestLimitExceeded,
    TargetRefused,
    TargetUnreachable,
    ValidationFailed,
    WebhookNotFound,
)
from vigil_core.domain.exact_json import loads
from vigil_core.domain.limits import NamespaceState
from vigil_core.domain.outbound_policy import RequestInterrupted, SlowRequestPolicy
from vigil_core.domain.webhooks import MAX_ATTEMPTS, WAITS_WEBHOOK, Delivery, Webhook, signature_headers
from vigil_core.services.background import sweeper
from vigil_core.services.background.sweep import SweepFailed
from vigil_core.services.fair_shares import WEBHOOK_INVOCATIONS_PER_NAMESPACE
from vigil_core.services.waits import resolve as resolve_wait
from vigil_core.services.webhooks import deliver
from vigil_core.services.webhooks import manage as manage_webhooks
from vigil_core.services.webhooks.slow_receivers import InvocationSlots
from vigil_core.store import keys
from vigil_core.store.due_index import DueItem, DueStore
from vigil_core.store.table import DynamoTable, Put
from vigil_core.store.webhooks import WebhookStore

URL = "https://hooks.example.com/in"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    truncated: bool = False


@dataclass
class Receiver:
    """Receiver that answers as the test sets it, and records the requests."""

    answer: Callable[[], Reply] = lambda: Reply(204)
    posts: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    is_slow: bool = False

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
        max_response_bytes: int,
        slow_policy: SlowRequestPolicy | None = None,
    ) -> Reply:
        assert (method, timeout_s) == ("POST", deliver.ATTEMPT_TIMEOUT_S)
        self.posts.append((url, dict(headers), loads(body or b"")))
        if self.is_slow and slow_policy is not None and not slow_policy.may_continue():
            raise RequestInterrupted
        return self.answer()

    def event_types(self) -> list[str]:
        return [body["type"].removeprefix("vigil.") for _, _, body in self.posts]


@pytest.fixture
def live(world: World, table: DynamoTable) -> Live:
    return Live(world, table)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


def put(world: World, name: str = "ci", **changed: Any) -> Webhook:
    webhook = Webhook(
        **{
            "namespace": NAMESPACE,
            "name": name,
            "url": None if name == WAITS_WEBHOOK else URL,
            "events": () if name == WAITS_WEBHOOK else ("vigil.job.completed", "vigil.wait.*"),
            "enabled": True,
            "disabled_reason": None,
            "description": None,
            "secret": "",
            "created_at": world.ctx.now(),
            "updated_at": world.ctx.now(),
            **changed,
        }
    )
    return manage_webhooks.put_webhook(world.ctx, webhook)[0]


def run_deliveries(world: World, receiver: Receiver, slots: InvocationSlots | None = None) -> list[str]:
    """Attempt every delivery in the queue, in one invocation, and return the outcomes."""
    messages, world.queues.webhook_messages = world.queues.webhook_messages, []
    slots = slots or InvocationSlots(world.ctx)
    outcomes: list[str] = [deliver.attempt_delivery(world.ctx, receiver, loads(message), slots) for message in messages]
    slots.release()
    return outcomes


def deliveries(world: World, name: str = "ci") -> list[Delivery]:
    return world.ctx.webhooks.deliveries(NAMESPACE, name, before_id=None, limit=1000)


def test_subscribed_event_is_delivered_once_and_signed(live: Live, receiver: Receiver) -> None:
    hook = put(live.world)
    job = live.world.running()
    live.world.complete(job)
    assert not live.run_notifier().failed
    assert run_deliveries(live.world, receiver) == ["delivered"]
    ((url, headers, body),) = receiver.posts
    assert (url, body["type"], body["subject"]) == (URL, "vigil.job.completed", job)
    (delivery,) = deliveries(live.world)
    assert (delivery.status, delivery.event_id, [t.status for t in delivery.attempts]) == (
        "delivered",
        body["id"],
        [204],
    )
    expected = signature_headers([hook.secret], delivery.delivery_id, live.world.time, delivery.body.encode())
    assert expected.items() <= headers.items()
    assert headers["Content-Type"] == "application/json"
    assert live.world.sweep() == 0, "no delivery is due after its success"


def test_no_delivery_is_enqueued_without_webhooks(live: Live) -> None:
    live.world.complete(live.world.running())
    assert live.run_notifier().enqueued == 0
    assert live.world.queues.webhook_messages == []


def test_webhook_of_another_namespace_receives_nothing(live: Live, receiver: Receiver) -> None:
    put(live.world, namespace="other")
    live.world.complete(live.world.running())
    live.run_notifier()
    assert run_deliveries(live.world, receiver) == []


def test_repeated_record_creates_one_delivery(live: Live, receiver: Receiver) -> None:
    put(live.world)
    live.world.complete(live.world.running())
    records = live.records()
    live.run_notifier(records)
    live.run_notifier(records)
    assert len(deliveries(live.world)) == 1
    assert run_deliveries(live.world, receiver) == ["delivered", "stale"]
    live.run_notifier(records)
    assert run_deliveries(live.world, receiver) == []
    assert len(receiver.posts) == 1


def test_wait_notifies_the_webhook_address_in_its_options(live: Live, receiver: Receiver) -> None:
    put(live.world, WAITS_WEBHOOK)
    put(live.world, "all", events=("*",))
    job = live.world.running()
    live.world.wait({job: None}, wait_options={"notify": {"webhook": "https://one.example/x", "sns": False}})
    live.world.complete(job)
    live.world.run_matcher()
    live.run_notifier()
    assert set(run_deliveries(live.world, receiver)) == {"delivered"}
    assert [(url, body["type"]) for url, _, body in receiver.posts if url != URL] == [
        ("https://one.example/x", "vigil.wait.met")
    ]
    assert "wait.met" in [body["type"].removeprefix("vigil.") for url, _, body in receiver.posts if url == URL]
    assert [each.url for each in deliveries(live.world, WAITS_WEBHOOK)] == ["https://one.example/x"]
    assert [event.type for event in live.topic.events if event.subject != job] == []


@pytest.mark.parametrize("url", ["http://one.example/", "https://10.0.0.1/", "https://169.254.169.254/", "x", ""])
def test_wait_with_a_private_webhook_address_is_refused(world: World, url: str) -> None:
    put(world, WAITS_WEBHOOK)
    with pytest.raises(ValidationFailed) as refused:
        world.wait({world.job(): None}, wait_options={"notify": {"webhook": url}})
    (problem,) = refused.value.problems
    assert (problem.pointer, problem.code) == ("/wait_options/notify/webhook", "TARGET_REFUSED")


def test_wait_with_webhook_requires_the_enabled_signing_webhook(world: World) -> None:
    options: Any = {"notify": {"webhook": URL}}
    with pytest.raises(ValidationFailed, match="PUT /v1/webhooks/waits"):
        world.wait({world.job(): None}, wait_options=options)
    put(world, WAITS_WEBHOOK, enabled=False)
    with pytest.raises(ValidationFailed, match="and enable it"):
        world.wait({world.job(): None}, wait_options=options)
    put(world, WAITS_WEBHOOK)
    assert world.wait({world.job(): None}, wait_options=options)["status"] == "waiting"


# Retries


def raise_refused() -> Reply:
    raise TargetRefused("The host has an address that is not public")


def raise_unreachable() -> Reply:
    raise TargetUnreachable("The host did not answer in time")


def complete_job(live: Live) -> str:
    """Complete a job and enqueue its delivery to the webhook `ci`."""
    job = live.world.running()
    live.world.complete(job)
    live.run_notifier()
    return job


@pytest.mark.parametrize("answer", [lambda: Reply(500), lambda: Reply(302), raise_unreachable, raise_refused])
def test_failed_delivery_is_retried_by_the_sweeper(live: Live, receiver: Receiver, answer: Callable[[], Reply]) -> None:
    put(live.world)
    complete_job(live)
    receiver.answer = answer
    assert run_deliveries(live.world, receiver) == ["pending"]
    assert live.world.sweep() == 0, "the retry is not due yet"
    live.world.pass_time(70)
    assert live.world.sweep() == 1
    receiver.answer = lambda: Reply(200)
    assert run_deliveries(live.world, receiver) == ["delivered"]
    (delivery,) = deliveries(live.world)
    assert len(delivery.attempts) == 2
    assert (delivery.attempts[0].status is None) == (delivery.attempts[0].error is not None)
    ids = {headers["webhook-id"] for _, headers, _ in receiver.posts}
    times = {headers["webhook-timestamp"] for _, headers, _ in receiver.posts}
    assert (len(ids), len(times)) == (1, 2)


def test_delivery_is_abandoned_after_its_last_attempt_and_can_be_replayed(live: Live, receiver: Receiver) -> None:
    put(live.world)
    complete_job(live)
    receiver.answer = lambda: Reply(500)
    outcomes = []
    while live.world.queues.webhook_messages:
        outcomes += run_deliveries(live.world, receiver)
        live.world.pass_time(100_000)
        live.world.sweep()
    assert outcomes == ["pending"] * (MAX_ATTEMPTS - 1) + ["failed"]
    (delivery,) = deliveries(live.world)
    assert (delivery.status, delivery.error) == ("failed", f"None of {MAX_ATTEMPTS} attempts succeeded")

    manage_webhooks.replay_delivery(live.world.ctx, NAMESPACE, "ci", delivery.delivery_id)
    ((message, delay_s),) = live.world.queues.sweeper_messages[-1:]
    assert delay_s == 0
    sweeper.on_message(live.world.ctx, loads(message))
    receiver.answer = lambda: Reply(200)
    assert run_deliveries(live.world, receiver) == ["delivered"]
    assert deliveries(live.world)[0].status == "delivered"


def test_retry_after_delays_the_next_attempt(live: Live, receiver: Receiver) -> None:
    put(live.world)
    complete_job(live)
    receiver.answer = lambda: Reply(429, {"retry-after": "3600"})
    run_deliveries(live.world, receiver)
    live.world.pass_time(3_500)
    assert live.world.sweep() == 0
    live.world.pass_time(101)
    assert live.world.sweep() == 1


def test_410_disables_the_webhook_until_the_next_put(live: Live, receiver: Receiver) -> None:
    hook = put(live.world)
    complete_job(live)
    complete_job(live)
    receiver.answer = lambda: Reply(410)
    assert run_deliveries(live.world, receiver) == ["failed", "failed"]
    assert len(receiver.posts) == 1, "the second delivery is not sent"
    disabled = manage_webhooks.find_webhook(live.world.ctx, NAMESPACE, "ci")
    assert (disabled.enabled, disabled.disabled_reason) == (False, "The receiver rejects further deliveries (410)")
    complete_job(live)
    assert live.world.queues.webhook_messages == []
    assert put(live.world).enabled
    assert manage_webhooks.find_webhook(live.world.ctx, NAMESPACE, "ci").secret == hook.secret
    complete_job(live)
    receiver.answer = lambda: Reply(200)
    assert run_deliveries(live.world, receiver) == ["delivered"]


def test_410_from_the_address_of_a_wait_disables_no_webhook(live: Live, receiver: Receiver) -> None:
    put(live.world, WAITS_WEBHOOK)
    job = live.world.running()
    live.world.wait({job: None}, wait_options={"notify": {"webhook": "https://one.example/x"}})
    live.world.complete(job)
    live.world.run_matcher()
    live.run_notifier()
    receiver.answer = lambda: Reply(410)
    assert run_deliveries(live.world, receiver) == ["failed"]
    assert manage_webhooks.find_webhook(live.world.ctx, NAMESPACE, WAITS_WEBHOOK).enabled


def test_webhook_replaced_during_a_410_is_not_disabled(live: Live, receiver: Receiver) -> None:
    put(live.world)
    complete_job(live)

    def gone_but_moved() -> Reply:
        put(live.world, url="https://new.example/")
        return Reply(410)

    receiver.answer = gone_but_moved
    run_deliveries(live.world, receiver)
    assert manage_webhooks.find_webhook(live.world.ctx, NAMESPACE, "ci").enabled


def test_deleted_webhook_receives_no_pending_deliveries(live: Live, receiver: Receiver) -> None:
    put(live.world)
    complete_job(live)
    manage_webhooks.delete_webhook(live.world.ctx, NAMESPACE, "ci")
    assert run_deliveries(live.world, receiver) == ["failed"]
    assert receiver.posts == []
    assert deliveries(live.world)[0].error == "The webhook was deleted"
    with pytest.raises(WebhookNotFound):
        manage_webhooks.delete_webhook(live.world.ctx, NAMESPACE, "ci")


def test_retry_goes_to_the_current_address_of_the_webhook(live: Live, receiver: Receiver) -> None:
    put(live.world)
    complete_job(live)
    receiver.answer = lambda: Reply(404)
    run_deliveries(live.world, receiver)
    put(live.world, url="https://moved.example/")
    receiver.answer = lambda: Reply(200)
    live.world.pass_time(70)
    live.world.sweep()
    run_deliveries(live.world, receiver)
    assert [url for url, _, _ in receiver.posts] == [URL, "https://moved.example/"]


# Lost messages and crashes


class ProcessCrashed(ConnectionError):
    """Error that simulates the crash of the process, or a lost connection."""


class _CrashingTable:
    """Table that crashes the process at the n-th write, before the write or after it."""

    def __init__(self, table: DynamoTable, at: int, *, after: bool) -> None:
        self._table = table
        self._left = at
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def put(self, put: Put) -> None:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise ProcessCrashed
        self._table.put(put)
        if self._left == 0:
            raise ProcessCrashed


def crash_at_write(live: Live, table: DynamoTable, at: int, *, after: bool) -> None:
    failing: Any = _CrashingTable(table, at, after=after)
    live.ctx = live.world.ctx = replace(live.world.ctx, webhooks=WebhookStore(failing))


def restore_table(live: Live, table: DynamoTable) -> None:
    live.ctx = live.world.ctx = replace(live.world.ctx, webhooks=WebhookStore(table))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_notifier_crash_while_enqueueing_leads_to_one_delivery_per_webhook(
    live: Live, table: DynamoTable, receiver: Receiver, at: int, after: bool
) -> None:
    """Deliver the record again after the crash: every webhook gets the event, each under one id."""
    for name in ("a", "b", "c"):
        put(live.world, name)
    live.world.complete(live.world.running())
    records = live.records()
    crash_at_write(live, table, at, after=after)
    assert live.run_notifier(records).failed
    restore_table(live, table)
    assert not live.run_notifier(records).failed
    assert run_deliveries(live.world, receiver) == ["delivered"] * 3
    assert len({headers["webhook-id"] for _, headers, _ in receiver.posts}) == 1


def test_refused_queue_message_is_recovered_by_record_retry_or_sweep(
    live: Live, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refuse the queue message after sockets and SNS got the event.

    The stream delivers the record again. If that fails too, the sweep finds the due row.
    """
    put(live.world)
    live.connect()
    job = live.world.running()
    live.subscribe(f"job:{job}")
    live.world.complete(job)
    records = live.records()

    def refuse_all(messages: Any) -> None:
        raise ProcessCrashed

    with monkeypatch.context() as broken:
        broken.setattr(live.world.queues, "send_deliveries", refuse_all)
        assert live.run_notifier(records).failed
    assert "vigil.job.completed" in [frame["data"]["type"] for frame in live.received() if frame["type"] == "event"]
    assert [event.type for event in live.topic.events] == ["vigil.job.completed"]
    live.world.pass_time(900)
    assert live.world.sweep() == 1
    assert run_deliveries(live.world, receiver) == ["delivered"]


def test_sweep_enqueues_a_delivery_whose_message_was_lost(live: Live, receiver: Receiver) -> None:
    put(live.world)
    complete_job(live)
    live.world.queues.webhook_messages.clear()
    live.world.pass_time(899)
    assert live.world.sweep() == 0
    live.world.pass_time(1)
    assert live.world.sweep() == 1
    live.world.pass_time(60)
    assert live.world.sweep() == 0, "the delivery is enqueued, and not enqueued again every minute"
    assert run_deliveries(live.world, receiver) == ["delivered"]


@pytest.mark.parametrize("after", [False, True])
def test_delivery_crash_around_its_write_reuses_the_same_id(
    live: Live, table: DynamoTable, receiver: Receiver, after: bool
) -> None:
    """Receive the message again after the crash. If the write was missing, a second request has the same id."""
    put(live.world)
    complete_job(live)
    messages = list(live.world.queues.webhook_messages)
    crash_at_write(live, table, 1, after=after)
    with pytest.raises(ProcessCrashed):
        run_deliveries(live.world, receiver)
    restore_table(live, table)
    live.world.queues.webhook_messages = messages
    assert run_deliveries(live.world, receiver) == (["stale"] if after else ["delivered"])
    assert len(receiver.posts) == (1 if after else 2)
    assert len({headers["webhook-id"] for _, headers, _ in receiver.posts}) == 1


@pytest.mark.parametrize("after", [False, True])
def test_crash_while_disabling_a_webhook_is_recovered(
    live: Live, table: DynamoTable, receiver: Receiver, after: bool
) -> None:
    put(live.world)
    complete_job(live)
    messages = list(live.world.queues.webhook_messages)
    receiver.answer = lambda: Reply(410)
    crash_at_write(live, table, 1, after=after)
    with pytest.raises(ProcessCrashed):
        run_deliveries(live.world, receiver)
    restore_table(live, table)
    live.world.queues.webhook_messages = messages
    assert run_deliveries(live.world, receiver) == ["failed"]
    assert not manage_webhooks.find_webhook(live.world.ctx, NAMESPACE, "ci").enabled


@pytest.mark.parametrize("after", [False, True])
def test_sweeper_crash_while_enqueueing_a_delivery_is_recovered(
    live: Live, table: DynamoTable, receiver: Receiver, after: bool
) -> None:
    put(live.world)
    complete_job(live)
    live.world.queues.webhook_messages.clear()
    live.world.pass_time(900)
    crash_at_write(live, table, 1, after=after)
    with pytest.raises(SweepFailed):
        live.world.sweep()
    restore_table(live, table)
    live.world.sweep()
    assert run_deliveries(live.world, receiver) in (["delivered"], ["delivered", "stale"])


def test_sweep_finishes_a_replay_that_crashed_after_its_write(
    live: Live, table: DynamoTable, receiver: Receiver
) -> None:
    put(live.world)
    complete_job(live)
    run_deliveries(live.world, receiver)
    (delivery,) = deliveries(live.world)
    crash_at_write(live, table, 1, after=True)
    with pytest.raises(ProcessCrashed):
        manage_webhooks.replay_delivery(live.world.ctx, NAMESPACE, "ci", delivery.delivery_id)
    restore_table(live, table)
    assert live.world.sweep() == 1
    assert run_deliveries(live.world, receiver) == ["delivered"]
    assert len(receiver.posts) == 2


def test_sweep_during_an_attempt_does_not_affect_its_outcome(live: Live, receiver: Receiver) -> None:
    put(live.world)
    complete_job(live)
    live.world.pass_time(901)

    def sweep_meanwhile() -> Reply:
        assert live.world.sweep() == 1
        return Reply(200)

    receiver.answer = sweep_meanwhile
    assert run_deliveries(live.world, receiver) == ["delivered"]
    assert run_deliveries(live.world, receiver) == ["stale"]


def test_sweep_enqueues_deliveries_after_all_other_work(live: Live, receiver: Receiver) -> None:
    put(live.world)
    complete_job(live)
    job = live.world.running()
    wait = live.world.wait({job: None}, wait_options={"expires_in": 1000})
    live.world.queues.webhook_messages.clear()
    live.world.pass_time(1001)
    order: list[str] = []
    expire, hand_over = resolve_wait.expire, live.world.queues.send_deliveries

    overdue = DueStore.overdue

    def deliveries_first(store: DueStore, _: int, now: datetime) -> Iterator[DueItem]:
        due_rows = (due for shard in range(keys.DUE_PARTITIONS) for due in overdue(store, shard, now))
        yield from sorted(due_rows, key=lambda due: due.kind != "delivery")

    def noting(messages: Sequence[str]) -> None:
        order.append("delivery")
        hand_over(messages)

    def expiring(*args: Any) -> Any:
        order.append("wait")
        return expire(*args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(resolve_wait, "expire", expiring)
        patched.setattr(live.world.queues, "send_deliveries", noting)
        patched.setattr(DueStore, "overdue", deliveries_first)
        sweeper.sweep(live.world.ctx, 0)
    assert live.world.show(wait)["status"] == "expired"
    assert order == ["wait", "delivery"]


def test_failed_delivery_in_a_sweep_does_not_block_the_others(live: Live, receiver: Receiver) -> None:
    put(live.world)
    for _ in range(8):
        complete_job(live)
    live.world.queues.webhook_messages.clear()
    live.world.pass_time(900)
    sent: list[str] = []

    def refuse_the_first(messages: Sequence[str]) -> None:
        sent.extend(messages)
        if len(sent) == 1:
            raise ProcessCrashed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(live.world.queues, "send_deliveries", refuse_the_first)
        failures = 0
        for shard in range(keys.DUE_PARTITIONS):
            try:
                sweeper.sweep(live.world.ctx, shard)
            except SweepFailed as failed:
                failures += len(failed.errors)
    assert (len(sent), failures) == (8, 1)
    assert live.world.sweep() == 1, "the failed delivery is still due"


# Lists


def test_deliveries_are_listed_newest_first_in_pages(live: Live) -> None:
    put(live.world)
    for _ in range(11):
        live.world.pass_time(1)
        complete_job(live)
    all_of_them = [each.delivery_id for each in deliveries(live.world)]
    assert len(set(all_of_them)) == 11
    assert all_of_them == sorted(all_of_them, reverse=True)
    paged: list[str] = []
    while True:
        page = live.world.ctx.webhooks.deliveries(NAMESPACE, "ci", before_id=paged[-1] if paged else None, limit=3)
        paged += [each.delivery_id for each in page]
        if not page:
            break
    assert paged == all_of_them


def test_webhooks_over_the_limit_of_a_namespace_are_refused(world: World) -> None:
    for number in range(50):
        put(world, f"h{number}")
    with pytest.raises(RequestLimitExceeded, match="webhooks is 50"):
        put(world, "one more")
    assert put(world, "h0", url="https://other.example/").url == "https://other.example/"


def test_slow_receivers_of_a_namespace_use_its_slots_only(live: Live) -> None:
    """Let two invocations wait for slow receivers. The third one interrupts its request and defers the delivery."""
    world = live.world
    put(world)
    receiver = Receiver(is_slow=True)
    for _ in range(3):
        world.complete(world.running())
    live.run_notifier()
    busy = [InvocationSlots(world.ctx) for _ in range(WEBHOOK_INVOCATIONS_PER_NAMESPACE)]
    assert all(slots.acquire(NAMESPACE) for slots in busy)
    before = deliveries(world)
    assert run_deliveries(world, receiver) == ["deferred"] * 3
    assert deliveries(world) == before
    posts = len(receiver.posts)
    assert run_deliveries(world, receiver) == ["deferred"] * 3
    assert len(receiver.posts) == posts, "a deferred delivery sends no request without a slot"
    assert InvocationSlots(world.ctx).acquire("other")
    busy[0].release()
    assert run_deliveries(world, receiver) == ["delivered"] * 3
    assert not world.queues.webhook_messages


def test_slot_of_a_crashed_invocation_becomes_free(live: Live) -> None:
    world = live.world
    assert all(InvocationSlots(world.ctx).acquire(NAMESPACE) for _ in range(WEBHOOK_INVOCATIONS_PER_NAMESPACE))
    assert not InvocationSlots(world.ctx).acquire(NAMESPACE)
    world.pass_time(61)
    assert InvocationSlots(world.ctx).acquire(NAMESPACE)


def test_fast_delivery_acquires_no_slot(live: Live, table: DynamoTable) -> None:
    world = live.world
    put(world)
    world.complete(world.running())
    live.run_notifier()
    assert run_deliveries(world, Receiver()) == ["delivered"]
    assert table.get(keys.work_slots(NAMESPACE, "webhooks")) is None


def test_message_that_the_sweeper_has_replaced_does_nothing(live: Live) -> None:
    world = live.world
    put(world)
    receiver = Receiver()
    world.complete(world.running())
    live.run_notifier()
    old = list(world.queues.webhook_messages)
    world.queues.webhook_messages.clear()
    world.pass_time(3600)
    world.sweep()
    new = list(world.queues.webhook_messages)
    assert len(new) == 1
    world.queues.webhook_messages = [*old, *new]
    assert run_deliveries(world, receiver) == ["stale", "delivered"]


def test_suspended_namespace_delivers_nothing_until_it_resumes(live: Live) -> None:
    world = live.world
    put(world)
    receiver = Receiver()
    world.complete(world.running())
    live.run_notifier()
    world.ctx.limits.namespaces.set_state(NAMESPACE, NamespaceState.SUSPENDED)
    assert run_deliveries(world, receiver) == ["stale"]
    world.pass_time(3600)
    world.sweep()
    assert not world.queues.webhook_messages
    assert not receiver.posts
    world.ctx.limits.namespaces.set_state(NAMESPACE, NamespaceState.ACTIVE)
    world.sweep()
    assert run_deliveries(world, receiver) == ["delivered"]
