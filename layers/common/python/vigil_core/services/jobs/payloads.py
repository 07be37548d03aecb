"""Payloads and results of several jobs in one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vigil_core.domain.jobs.job import Job
from vigil_core.services.context import UsesJobs, UsesThreads
from vigil_core.store.jobs.jobs import MAX_ROW_BYTES, JobPayloads
from vigil_core.store.keys import parse_object_ref


class PayloadsContext(UsesJobs, UsesThreads, Protocol):
    """What this module uses of the outside world."""


MAX_TOTAL_BYTES = 10 * MAX_ROW_BYTES
"""Of the payloads and results of several jobs together, whose other parts take room too: as much as a claim of ten jobs
brings whose payloads are in rows."""


def bodies_of_jobs(ctx: PayloadsContext, jobs: Sequence[Job]) -> list[JobPayloads]:
    """Those of each job: rows whole, objects as far as there is room, URLs in place of the rest."""
    refs = [[parse_object_ref(ref) for ref in (job.payload_ref, job.result_ref) if ref] for job in jobs]
    bytes_left = MAX_TOTAL_BYTES - sum(MAX_ROW_BYTES for job_refs in refs for parsed in job_refs if parsed is None)
    byte_limits: list[int] = []
    for job_refs in refs:
        object_bytes = sum(parsed[0] or 0 for parsed in job_refs if parsed)
        byte_limits.append(object_bytes if object_bytes <= bytes_left else 0)
        bytes_left -= byte_limits[-1]
    jobs_with_limits = list(zip(jobs, byte_limits, strict=True))
    return ctx.in_parallel(lambda limited: ctx.jobs.payloads(limited[0], max_bytes=limited[1]), jobs_with_limits)
