"""What clients are shown of runs: lists, pages of jobs, statistics, the graph with how its jobs stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from vigil_core.domain.diagrams.render import DrawnJob
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.status import JobStatus
from vigil_core.domain.workflows.run import Run, RunStatus
from vigil_core.domain.workflows.run_state import Standings
from vigil_core.services.context import Context
from vigil_core.services.pagination import page_of
from vigil_core.services.workflows.commands import id_at, standings_of

BATCH = 50
MOST_NAMED = 100
REASONS_SHOWN = 300
"""Jobs that have failed or were skipped whose reasons are read for a graph; beyond that, how they stand is enough."""


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """Which runs: None lets all of them pass. Times are created_at, `created_before` excluded."""

    statuses: tuple[RunStatus, ...] | None = None
    name: str | None = None
    correlation_id: str | None = None
    trace_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    def takes(self, run: Run) -> bool:
        """Whether a run passes; the times are left to the index."""
        wanted = (
            (self.name, run.name),
            (self.correlation_id, run.correlation_id),
            (self.trace_id, run.trace_id),
        )
        return (self.statuses is None or run.status in self.statuses) and all(
            asked is None or asked == actual for asked, actual in wanted
        )


def list_runs(
    ctx: Context, namespace: str, wanted: RunFilter, *, before_place: str | None, page_size: int
) -> tuple[list[Run], str | None]:
    """One page, newest first, and the place to go on before, None at the end. It may be short while there is more."""
    listed = ctx.listing.newest_first(
        namespace,
        "workflows",
        before_place=before_place,
        created_after=wanted.created_after,
        created_before=wanted.created_before,
    )
    return page_of(
        listed,
        lambda ids: ctx.runs.find_many(namespace, ids),
        wanted.takes,
        before_place=before_place,
        page_size=page_size,
        batch_size=BATCH,
    )


def jobs_of(ctx: Context, run: Run, *, start: int, page_size: int) -> tuple[list[Job], int | None]:
    """Its jobs in the order of the definition, from a place on; and the place to go on from, None at the end."""
    places = range(start, min(start + page_size, run.total))
    ids = [id_at(ctx, run, place) for place in places]
    found = ctx.jobs.find_many(run.namespace, ids, live=True)
    after = places.stop if places.stop < run.total else None
    return [found[job_id] for job_id in ids if job_id in found], after


def statistics_of(ctx: Context, run: Run) -> Mapping[JobStatus, int]:
    """How many jobs stand how: of an ended run as they were at its end, else worked out from the notes."""
    return run.statistics or standings_of(ctx, run, whole=True).statistics()


def undecided_names(ctx: Context, run: Run) -> list[str]:
    """The first of the failed jobs that wait for a decision."""
    if run.failure_policy != "manual" or run.ended:
        return []
    standings = standings_of(ctx, run, whole=True)
    waiting = (place for place in range(run.total) if standings.of(place) == "undecided")
    return [standings.graph.nodes[place].name for place in islice(waiting, MOST_NAMED)]


def drawn(ctx: Context, run: Run) -> Sequence[DrawnJob]:
    """The jobs of a run for a picture of it."""
    standings = standings_of(ctx, run, whole=True)
    reasons = _reasons(ctx, run, standings)
    return [
        DrawnJob(
            name=node.name,
            status=standings.status(place),
            depends_on=node.depends_on,
            job_type=node.job_type,
            trigger_rule=node.trigger_rule,
            condition=node.condition,
            reason=reasons.get(place),
        )
        for place, node in enumerate(standings.graph.nodes)
    ]


def _reasons(ctx: Context, run: Run, standings: Standings) -> dict[int, str]:
    """Why jobs failed or were skipped."""
    telling = [place for place in range(run.total) if standings.status(place) in ("failed", "skipped")]
    ids = {id_at(ctx, run, place): place for place in telling[:REASONS_SHOWN]}
    reasons: dict[int, str] = {}
    for job_id, job in ctx.jobs.find_many(run.namespace, ids).items():
        if job.error is not None:
            reasons[ids[job_id]] = f"{job.error.code}: {job.error.message}"
        elif job.verdict is not None:
            reasons[ids[job_id]] = job.verdict.reason
    return reasons
