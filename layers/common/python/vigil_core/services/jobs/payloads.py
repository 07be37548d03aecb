"""Payloads and results of several jobs in one answer."""

from __future__ import annotations

from collections.abc import Sequence

from vigil_core.domain.jobs.job import Job
from vigil_core.services.context import Context
from vigil_core.store.jobs.jobs import ROW_BYTES, Bodies
from vigil_core.store.keys import parse_object_ref

MANY_BYTES = 10 * ROW_BYTES
"""Of the payloads and results of several jobs together, whose other parts take room too: as much as a claim of ten jobs
brings whose payloads are in rows."""


def bodies_of_many(ctx: Context, jobs: Sequence[Job]) -> list[Bodies]:
    """Those of each job: rows whole, objects as far as there is room, URLs in place of the rest."""
    refs = [[parse_object_ref(ref) for ref in (job.payload_ref, job.result_ref) if ref] for job in jobs]
    room = MANY_BYTES - sum(ROW_BYTES for its in refs for parsed in its if parsed is None)
    rooms: list[int] = []
    for its in refs:
        wanted = sum(parsed[0] or 0 for parsed in its if parsed)
        rooms.append(wanted if wanted <= room else 0)
        room -= rooms[-1]
    numbered = list(zip(jobs, rooms, strict=True))
    return ctx.in_parallel(lambda each: ctx.jobs.bodies(each[0], room=each[1]), numbered)
