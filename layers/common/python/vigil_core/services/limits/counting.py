"""Count the ends of jobs and waits from the table's stream.

The creation of an object is counted when it is requested, and its end here: one write for all ends in a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Protocol

from vigil_core.domain.jobs.job import Job
from vigil_core.runtime.logging import logger
from vigil_core.services.context import UsesLimits
from vigil_core.store.stream import StreamRecord, job_version_of
from vigil_core.store.waits.wait_rows import wait_from_row


class CountingContext(UsesLimits, Protocol):
    """The counters of limits."""


def count_ends(ctx: CountingContext, records: Sequence[StreamRecord], failed: Collection[str]) -> None:
    """Count the jobs and waits that ended, and the jobs that were reopened.

    1. A failed record does not count now. It counts when it succeeds: a postponed record with its retry, and each
       record of a batch that failed as a whole with the next delivery.
    2. If the process crashes between this write and its answer, the batch counts twice, until the recount.
    3. A record that cannot be read, or a write that fails, is not counted until the recount: a counter delays nothing.

    Args:
        ctx: The counters.
        records: The batch, in the order of the stream.
        failed: The sequence numbers of the records that failed.
    """
    jobs: Counter[str] = Counter()
    waits: dict[str, Counter[str]] = {}
    for record in records:
        if record.sequence_number in failed:
            continue
        with suppress(Exception):  # The notifier has reported the error of an unreadable record.
            _count(record, jobs, waits)
    for namespace in sorted(jobs.keys() | waits.keys()):
        try:
            ctx.limits.counters.add(namespace, jobs=jobs[namespace], waits_by_key=waits.get(namespace))
        except Exception:
            logger.exception("ends are not counted", extra={"action": "count_ends", "namespace": namespace})


def _count(record: StreamRecord, jobs: Counter[str], waits: dict[str, Counter[str]]) -> None:
    """Add the change of one record to the sums of its namespace."""
    row, old = record.new(), record.old()
    match (row or {}).get("entity"):
        case "job" if (versions := job_version_of(record)) is not None:
            job, previous = versions
            jobs[job.namespace] += open_jobs_of(job) - _counted_before(job, previous)
        case "wait" if row is not None and old is not None:
            wait, earlier = wait_from_row(row), wait_from_row(old)
            if wait.ended and not earlier.ended:
                waits.setdefault(wait.namespace, Counter())[wait.created_by] -= 1


def open_jobs_of(job: Job) -> int:
    """Return how many open jobs a version of a job counts as.

    A batch that has not started counts for its items too, because the request that creates it counts them.
    """
    if job.ended:
        return 0
    return 1 if job.status == "running" else 1 + (job.batch.size or 0)


def _counted_before(job: Job, previous: Job | None) -> int:
    """Return how many open jobs were counted before this version of a job.

    The creation of a job is counted with its request. An item is created by its batch, which no longer counts for it.
    """
    if previous is not None:
        return open_jobs_of(previous)
    return 0 if job.batch.is_item else 1 + (job.batch.size or 0)
