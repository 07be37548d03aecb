"""Tell webhooks: events become rows that say what has yet to be delivered, and messages that have it done.

The row is the truth. It is due in index `due` from its first write until it is delivered or given up, so that whatever
dies between two writes, and whatever message is lost, the sweeper hands it over again. A message says which try it is
for; one that comes twice or late is for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from vigil_core.domain.errors import TargetRefused, TargetUnreachable
from vigil_core.domain.events.event import Event
from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.jobs.retry import retry_after_s
from vigil_core.domain.webhooks import WAITS, Delivery, Try, Webhook, delivery_of, signed_headers, tells
from vigil_core.services.context import Context
from vigil_core.services.ports import HttpClient
from vigil_core.store.keys import parse_delivery_due_id
from vigil_core.store.table import ConditionFailed

TRY_S = 10.0
"""How long a receiver may take to answer."""
_ANSWER_BYTES = 1024
"""Of the answer only the head matters."""

Came: TypeAlias = Literal["delivered", "failed", "pending", "stale"]


def wanted_deliveries(ctx: Context, namespace: str, events: Iterable[Event]) -> list[Delivery]:
    """What has to be told to the webhooks of one namespace. Its webhooks are looked up once."""
    told = [event for event in events if tells(event)]
    if not told:
        return []
    now = ctx.now()
    webhooks = ctx.webhooks.all(namespace)
    wanted = [delivery_of(event, hook.name, None, now) for event in told for hook in webhooks if hook.wants(event)]
    return wanted + [delivery_of(event, WAITS, event.webhook, now) for event in told if event.webhook is not None]


def hand_over(ctx: Context, deliveries: Sequence[Delivery]) -> None:
    """Store deliveries and give them to the queue. Can be repeated: what was done by then is not done again."""
    stored = ctx.in_parallel(ctx.webhooks.add_delivery, deliveries)
    if messages := [_message(delivery) for delivery in stored if delivery.status == "pending"]:
        ctx.queues.deliveries(messages)


def hand_over_again(ctx: Context, namespace: str, due_id: str) -> None:
    """Give a delivery that is due to the queue: its next try has come, or its message was lost."""
    delivery = ctx.webhooks.find_delivery(namespace, *parse_delivery_due_id(due_id))
    if delivery is None or delivery.status != "pending" or delivery.next_at is None or ctx.now() < delivery.next_at:
        return
    ctx.queues.deliveries([_message(delivery)])
    ctx.webhooks.save_delivery(delivery, delivery.handed_over(ctx.now()), by_time=True)


def tell(ctx: Context, post: HttpClient, message: JsonValue) -> Came:
    """Try one delivery and say what came of it; `stale` when another message did that."""
    assert isinstance(message, Mapping)
    namespace, name = str(message["namespace"]), str(message["webhook"])
    delivery = ctx.webhooks.find_delivery(namespace, name, str(message["delivery"]))
    if delivery is None or delivery.status != "pending" or delivery.failed_tries + 1 != message["try"]:
        return "stale"
    webhook = ctx.webhooks.find(namespace, name)
    after = _tried(ctx, post, delivery, webhook)
    return after.status if ctx.webhooks.save_delivery(delivery, after, by_time=False) else "stale"


def _tried(ctx: Context, post: HttpClient, delivery: Delivery, webhook: Webhook | None) -> Delivery:
    url = delivery.url or (webhook and webhook.url)
    if webhook is None or not webhook.enabled or not url:
        why = "The webhook is disabled" if webhook else "The webhook was deleted"
        return delivery.given_up(why, ctx.now())
    at = ctx.now()
    body = delivery.body.encode()
    headers = signed_headers(webhook.secrets(at), delivery.delivery_id, at, body)
    status, error, wished = None, None, None
    try:
        reply = post.request(
            "POST",
            url,
            headers={"Content-Type": "application/json", **headers},
            body=body,
            timeout_s=TRY_S,
            max_answer_bytes=_ANSWER_BYTES,
        )
        status, wished = reply.status, retry_after_s(reply.headers.get("retry-after"), ctx.now())
    except (TargetRefused, TargetUnreachable) as problem:
        error = problem.message
    tried = Try(at=at, duration_ms=int((ctx.now() - at).total_seconds() * 1000), status=status, error=error)
    if status == 410 and delivery.url is None:
        _disable(ctx, webhook)
    return delivery.after(tried, retry_after_s=wished, chance=ctx.chance())


def _disable(ctx: Context, webhook: Webhook) -> None:
    """Whoever changed the webhook meanwhile may have given it another address: then it stays as it is."""
    try:
        ctx.webhooks.save(webhook, webhook.disabled("The receiver wants no more (410)", ctx.now()))
    except ConditionFailed:
        return


def _message(delivery: Delivery) -> str:
    return dumps(
        {
            "namespace": delivery.namespace,
            "webhook": delivery.webhook,
            "delivery": delivery.delivery_id,
            "try": delivery.failed_tries + 1,
        }
    )
