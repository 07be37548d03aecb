"""Idempotency keys: a repeated request returns the first answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol, TypeAlias

from vigil_core.domain.errors import IdempotencyInProgress, IdempotencyKeyReused, VigilError
from vigil_core.domain.exact_json import JsonValue, canonical, dumps, loads_stored
from vigil_core.services.context import UsesClock, UsesIdempotency, UsesIds


class IdempotencyContext(UsesIdempotency, UsesClock, UsesIds, Protocol):
    """The idempotency keys, the clock and new ids."""


HttpResponse: TypeAlias = tuple[int, JsonValue]
"""An HTTP status and its body."""


def run_idempotent(
    ctx: IdempotencyContext,
    namespace: str,
    *,
    route: str,
    key: str | None,
    request: JsonValue,
    action: Callable[[str, bool], HttpResponse],
) -> HttpResponse:
    """Run an action, or return the stored answer of the same request.

    1. Write order: reserve the key with a new id, run the action under that id, store the answer.
    2. A repeated request reads the reservation first. It returns the stored answer, or fails while the
       lock of the first request is valid.
    3. If the process crashes after the reservation, the next request runs the action under the same id. `resumed` is
       then true: the earlier action may have stopped at any step.

    A refusal (any VigilError) is not stored, and releases the key. After a fault of AWS the reservation remains.

    Args:
        ctx: The idempotency keys.
        namespace: The namespace of the API key.
        route: The route, for which the key is valid.
        key: The idempotency key. Without it the action simply runs.
        request: The request. A repeated request must be equal.
        action: Called as `action(reserved_id, resumed)`. It creates under the reserved id.

    Raises:
        IdempotencyKeyReused: An earlier request had the same key and another body.
        IdempotencyInProgress: The first request has no answer yet.
    """
    new_id = ctx.new_id()
    if key is None:
        return action(new_id, False)
    body_hash = hashlib.sha256(canonical(request).encode()).hexdigest()
    reservation, is_ours = ctx.idempotency.reserve(
        namespace, route, key, body_hash=body_hash, new_id=new_id, now=ctx.now()
    )
    if reservation.body_hash != body_hash:
        raise IdempotencyKeyReused("An earlier request had this Idempotency-Key and another body")
    if reservation.response is not None:
        status, text = reservation.response
        return status, loads_stored(text)
    if not is_ours and not reservation.completed:
        raise IdempotencyInProgress(reservation.locked_until)
    try:
        status, body = action(reservation.reserved_id, reservation.reserved_id != new_id)
    except VigilError:
        ctx.idempotency.release(namespace, route, key)
        raise
    ctx.idempotency.save_response(namespace, route, key, reservation, status, dumps(body), ctx.now())
    return status, body
