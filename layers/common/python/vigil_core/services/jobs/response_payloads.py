"""Payloads and results of several jobs in one response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vigil_core.domain.jobs.job import Job
from vigil_core.services.context import UsesJobs, UsesThreads
from vigil_core.store.jobs.payloads import MAX_ROW_BYTES, JobPayloads
from vigil_core.store.keys import parse_object_ref


class ResponsePayloadsContext(UsesJobs, UsesThreads, Protocol):
    """The job store, and the threads that read payloads in parallel."""


MAX_TOTAL_BYTES = 10 * MAX_ROW_BYTES
"""The limit of all payloads and results in one response, which also has the other members of the jobs. It equals the
payloads of ten claimed jobs, each in a row of the largest size."""


def payloads_of_jobs(ctx: ResponsePayloadsContext, jobs: Sequence[Job]) -> list[JobPayloads]:
    """Read the payloads and results of jobs.

    Every payload in a row is read. Payload objects are read while the limit permits; the others become URLs.
    """
    refs = [[parse_object_ref(ref) for ref in (job.payload_ref, job.result_ref) if ref] for job in jobs]
    bytes_left = MAX_TOTAL_BYTES - sum(MAX_ROW_BYTES for job_refs in refs for parsed in job_refs if parsed is None)
    byte_limits: list[int] = []
    for job_refs in refs:
        object_bytes = sum(parsed[0] or 0 for parsed in job_refs if parsed)
        byte_limits.append(object_bytes if object_bytes <= bytes_left else 0)
        bytes_left -= byte_limits[-1]
    jobs_with_limits = list(zip(jobs, byte_limits, strict=True))
    return ctx.in_parallel(lambda limited: ctx.jobs.payloads(limited[0], max_bytes=limited[1]), jobs_with_limits)
