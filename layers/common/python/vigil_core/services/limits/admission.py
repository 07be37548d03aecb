"""Admit requests within the limits of their namespace, and count what they create.

Counters are soft: concurrent requests may exceed a limit by a few objects, and a crash may leave an object uncounted.
The sweep recounts once a day.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from vigil_core.domain.errors import Forbidden, LimitExceeded
from vigil_core.domain.limits import limit_error
from vigil_core.runtime.logging import logger
from vigil_core.services.context import UsesClock, UsesLimits
from vigil_core.store.counters import Configuration, Counts


class AdmissionContext(UsesLimits, UsesClock, Protocol):
    """The limits, their counters and the time."""


@dataclass(kw_only=True)
class JobReservation:
    """The jobs that a request may create. `unused` of them were not created after all."""

    unused: int = 0


def admit_request(ctx: AdmissionContext, namespace: str) -> None:
    """Count a request of a client against the request rate of its namespace.

    Raises:
        Forbidden: The namespace is suspended.
        LimitExceeded: The namespace sends too many requests.
    """
    if not ctx.limits.namespaces.is_active(namespace):
        raise Forbidden(f"The namespace {namespace} is suspended")
    rate = ctx.limits.namespaces.limit(namespace, "requests_per_second")
    retry_after_s = ctx.limits.request_rates.try_request(namespace, rate)
    if retry_after_s is not None:
        message = f"{limit_error('requests_per_second', rate).message}. Try again in {retry_after_s} s"
        raise LimitExceeded(message, limit="requests_per_second", retry_after_s=retry_after_s)


@contextmanager
def reserve_jobs(ctx: AdmissionContext, namespace: str, amount: int) -> Iterator[JobReservation]:
    """Admit and count the jobs that the block creates.

    A single job is counted after its creation. More jobs are counted before, so that concurrent requests see them:

    1. Each request adds its jobs to the counters, then reads the counters.
    2. Of two requests that together exceed the limit, the one that reads later sees both and gives its jobs back.

    If the block fails, nothing stays counted. If the process crashes, or a counter cannot be written after the block,
    the counter is wrong until the recount. The answer of the request does not depend on it.

    Raises:
        LimitExceeded: The namespace has too many open jobs. Nothing was created.
    """
    counters, reservation = ctx.limits.counters, JobReservation()
    limit = ctx.limits.namespaces.limit(namespace, "open_jobs")
    if not counters.has_room(namespace, amount, limit, _jobs):
        raise limit_error("open_jobs", limit)
    if amount <= 1:
        yield reservation
        _correct_counter(ctx, namespace, amount - reservation.unused)
        return
    counters.add(namespace, jobs=amount)
    if counters.read(namespace).jobs > limit:
        _correct_counter(ctx, namespace, -amount)
        raise limit_error("open_jobs", limit)
    try:
        yield reservation
    except Exception:
        _correct_counter(ctx, namespace, -amount)
        raise
    _correct_counter(ctx, namespace, -reservation.unused)


def _correct_counter(ctx: AdmissionContext, namespace: str, jobs: int) -> None:
    """Count jobs after the request has created or refused them. If this fails, the recount does it."""
    try:
        ctx.limits.counters.add(namespace, jobs=jobs)
    except Exception:
        logger.exception("jobs are not counted", extra={"action": "count_jobs", "namespace": namespace, "jobs": jobs})


def require_room_for_jobs(ctx: AdmissionContext, namespace: str) -> None:
    """Check that a namespace may reopen an ended job, which the stream counts.

    Raises:
        LimitExceeded: The namespace has too many open jobs.
    """
    limit = ctx.limits.namespaces.limit(namespace, "open_jobs")
    if not ctx.limits.counters.has_room(namespace, 1, limit, _jobs):
        raise limit_error("open_jobs", limit)


def require_room_for_wait(ctx: AdmissionContext, namespace: str, key_id: str, *, read_only: bool) -> None:
    """Check that a key may register a wait. The registrar counts the wait when it exists.

    Raises:
        LimitExceeded: The namespace, or its key of scope `read`, has too many open waits.
    """
    counters, limits = ctx.limits.counters, ctx.limits.namespaces
    if read_only:
        limit = limits.limit(namespace, "open_waits_per_read_key")
        if not counters.has_room(namespace, 1, limit, lambda counts: counts.waits_by_key.get(key_id, 0)):
            raise limit_error("open_waits_per_read_key", limit)
    limit = limits.limit(namespace, "open_waits")
    if not counters.has_room(namespace, 1, limit, lambda counts: counts.waits):
        raise limit_error("open_waits", limit)


def require_room_for(ctx: AdmissionContext, namespace: str, kind: Configuration) -> None:
    """Check that a namespace may have one more schedule, job type or webhook.

    Raises:
        RequestLimitExceeded: The namespace has too many.
    """
    limit = ctx.limits.namespaces.limit(namespace, kind)
    if ctx.limits.counters.count_configuration(namespace, kind) >= limit:
        raise limit_error(kind, limit)


def require_queues(ctx: AdmissionContext, namespace: str, names: Iterable[str]) -> None:
    """Check that all these queues may exist: those that do not exist yet must be within the limit.

    Raises:
        RequestLimitExceeded: The namespace would have too many queues.
    """
    unknown = set(names) - ctx.limits.known_queues.get(namespace, set())
    if not unknown:
        return
    missing = ctx.limits.counters.missing_queues(namespace, unknown)
    if missing:
        limit = ctx.limits.namespaces.limit(namespace, "queues")
        if ctx.limits.counters.count_configuration(namespace, "queues") + len(missing) > limit:
            raise limit_error("queues", limit)
    ctx.limits.remember_queues(namespace, unknown)


def admit_upload(ctx: AdmissionContext, namespace: str, size: int) -> None:
    """Count an upload.

    Raises:
        LimitExceeded: The uploads of the day would exceed the limit.
    """
    limit = ctx.limits.namespaces.limit(namespace, "upload_bytes_per_day")
    if not ctx.limits.counters.add_upload(namespace, ctx.now().date(), size, limit):
        raise limit_error("upload_bytes_per_day", limit)


def _jobs(counts: Counts) -> int:
    return counts.jobs
