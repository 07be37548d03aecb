"""Queries on workflow runs: lists, pages of jobs, statistics, and the jobs of a diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Protocol

from vigil_core.domain.diagrams.render import DiagramJob
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.status import JobStatus
from vigil_core.domain.workflows.run import RunStatus, WorkflowRun
from vigil_core.domain.workflows.run_state import RunState
from vigil_core.services.context import ChangesRuns, UsesListing
from vigil_core.services.pagination import fill_page
from vigil_core.services.workflows.commands import job_id_at, load_run_state


class RunQueriesContext(ChangesRuns, UsesListing, Protocol):
    """The run and job stores, and the listing index."""


READ_BATCH = 50
MAX_NAMES = 100
MAX_REASONS = 300
"""The number of failed and skipped jobs whose reasons a diagram shows. Further jobs show their status only."""


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """A filter for runs. None accepts every value. The times apply to `created_at`; `created_before` is exclusive."""

    statuses: tuple[RunStatus, ...] | None = None
    name: str | None = None
    correlation_id: str | None = None
    trace_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    def matches(self, run: WorkflowRun) -> bool:
        """Return whether a run matches. The listing index applies the times."""
        criteria = (
            (self.name, run.name),
            (self.correlation_id, run.correlation_id),
            (self.trace_id, run.trace_id),
        )
        return (self.statuses is None or run.status in self.statuses) and all(
            expected is None or expected == actual for expected, actual in criteria
        )


def list_runs(
    ctx: RunQueriesContext, namespace: str, run_filter: RunFilter, *, before_cursor: str | None, page_size: int
) -> tuple[list[WorkflowRun], str | None]:
    """Return a page of runs, newest first, and the cursor of the next page, or None at the end.

    A page may be short although further runs exist.
    """
    index_rows = ctx.listing.newest_first(
        namespace,
        "workflows",
        before_cursor=before_cursor,
        created_after=run_filter.created_after,
        created_before=run_filter.created_before,
    )
    return fill_page(
        index_rows,
        lambda ids: ctx.runs.find_many(namespace, ids),
        run_filter.matches,
        before_cursor=before_cursor,
        page_size=page_size,
        batch_size=READ_BATCH,
    )


def list_run_jobs(
    ctx: RunQueriesContext, run: WorkflowRun, *, start_index: int, page_size: int
) -> tuple[list[Job], int | None]:
    """Return a page of jobs of a run in the order of the definition, and the next index.

    The next index is None at the end.
    """
    indexes = range(start_index, min(start_index + page_size, run.total))
    ids = [job_id_at(ctx, run, index) for index in indexes]
    jobs_by_id = ctx.jobs.find_many(run.namespace, ids, live=True)
    next_index = indexes.stop if indexes.stop < run.total else None
    return [jobs_by_id[job_id] for job_id in ids if job_id in jobs_by_id], next_index


def run_statistics(ctx: RunQueriesContext, run: WorkflowRun) -> Mapping[JobStatus, int]:
    """Return the number of jobs for each status.

    An ended run has stored its statistics. Those of an open run are counted from the node states.
    """
    return run.statistics or load_run_state(ctx, run, complete=True).statistics()


def names_awaiting_decision(ctx: RunQueriesContext, run: WorkflowRun) -> list[str]:
    """Return the names of the first failed jobs that await a decision."""
    if run.failure_policy != "manual" or run.ended:
        return []
    run_state = load_run_state(ctx, run, complete=True)
    awaiting_indexes = (index for index in range(run.total) if run_state.awaits_decision(index))
    return [run_state.graph.nodes[index].name for index in islice(awaiting_indexes, MAX_NAMES)]


def diagram_jobs(ctx: RunQueriesContext, run: WorkflowRun) -> Sequence[DiagramJob]:
    """Return the jobs of a run for a diagram."""
    run_state = load_run_state(ctx, run, complete=True)
    reasons = _reasons(ctx, run, run_state)
    return [
        DiagramJob(
            name=node.name,
            status=run_state.status(index),
            depends_on=node.depends_on,
            job_type=node.job_type,
            trigger_rule=node.trigger_rule,
            condition=node.condition,
            reason=reasons.get(index),
        )
        for index, node in enumerate(run_state.graph.nodes)
    ]


def _reasons(ctx: RunQueriesContext, run: WorkflowRun, run_state: RunState) -> dict[int, str]:
    """Return the reasons of failed and skipped jobs, by index."""
    explained_indexes = [index for index in range(run.total) if run_state.status(index) in ("failed", "skipped")]
    indexes_by_id = {job_id_at(ctx, run, index): index for index in explained_indexes[:MAX_REASONS]}
    reasons: dict[int, str] = {}
    for job_id, job in ctx.jobs.find_many(run.namespace, indexes_by_id).items():
        if job.error is not None:
            reasons[indexes_by_id[job_id]] = f"{job.error.code}: {job.error.message}"
        elif job.dependencies.verdict is not None:
            reasons[indexes_by_id[job_id]] = job.dependencies.verdict.explanation
    return reasons
