"""Do once what a client may ask for twice: `Idempotency-Key`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol, TypeAlias

from vigil_core.domain.errors import IdempotencyInProgress, IdempotencyKeyReused, VigilError
from vigil_core.domain.exact_json import JsonValue, canonical, dumps, loads
from vigil_core.services.context import UsesClock, UsesIdempotency, UsesIds


class IdempotencyContext(UsesIdempotency, UsesClock, UsesIds, Protocol):
    """What this module uses of the outside world."""


HttpResponse: TypeAlias = tuple[int, JsonValue]
"""An HTTP status and the body that goes with it."""


def run_idempotent(
    ctx: IdempotencyContext,
    namespace: str,
    *,
    route: str,
    key: str | None,
    request: JsonValue,
    action: Callable[[str, bool], HttpResponse],
) -> HttpResponse:
    """Act, or give the answer that the same request got first.

    `act(reserved_id, resumed)` creates under the reserved id; `resumed` says that an earlier try with this id may have
    got anywhere, its answer unknown. A refusal (any VigilError) is not kept. After a fault of AWS the reservation
    stays, so that the next try resumes under the same id once the lock has lapsed.

    Raises:
        IdempotencyKeyReused: the key came first with another request.
        IdempotencyInProgress: the first request has not been answered yet.
    """
    new_id = ctx.new_id()
    if key is None:
        return action(new_id, False)
    body_hash = hashlib.sha256(canonical(request).encode()).hexdigest()
    reservation, is_ours = ctx.idempotency.reserve(
        namespace, route, key, body_hash=body_hash, new_id=new_id, now=ctx.now()
    )
    if reservation.body_hash != body_hash:
        raise IdempotencyKeyReused("This Idempotency-Key came first with another body")
    if reservation.response is not None:
        status, text = reservation.response
        return status, loads(text)
    if not is_ours and not reservation.completed:
        raise IdempotencyInProgress(reservation.locked_until)
    try:
        status, body = action(reservation.reserved_id, reservation.reserved_id != new_id)
    except VigilError:
        ctx.idempotency.release(namespace, route, key)
        raise
    ctx.idempotency.save_response(namespace, route, key, reservation, status, dumps(body), ctx.now())
    return status, body
