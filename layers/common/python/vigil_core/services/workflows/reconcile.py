"""What the sweeper sees to for a run that has not ended: its deadline, a supervisor that has died or was not started, a
signal that was lost, jobs of which none goes on."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.graph import chunks
from vigil_core.domain.workflows.run import FIRST_LOOK, Run
from vigil_core.domain.workflows.run_state import Standings
from vigil_core.services.context import Context
from vigil_core.services.workflows import advance as follow_run
from vigil_core.services.workflows.commands import change_run, standings_of, start_supervisor
from vigil_core.services.workflows.create import prepare
from vigil_core.services.workflows.supervisor import replace_supervisor

NAMED = 5
"""Jobs that are named as the reason why nothing goes on."""


def look_after_run(ctx: Context, namespace: str, workflow_id: str) -> None:
    """Mend what is stuck, say what is late. Can be repeated."""
    run = ctx.runs.find(namespace, workflow_id)
    if run is None or run.ended:
        return
    run = change_run(ctx, namespace, workflow_id, lambda now: workflows.pass_deadline(now, now=ctx.now()))
    if not run.sealed:
        if ctx.now() - run.updated_at >= FIRST_LOOK:
            prepare(ctx, run)
    elif ctx.supervisors.is_at_work(run.execution):
        _mend(ctx, run)
    else:
        if run.status == "pending":
            start_supervisor(ctx, run)
        if run.status != "pending" or not ctx.supervisors.is_at_work(run.execution):
            replace_supervisor(ctx, run)
    change_run(ctx, namespace, workflow_id, lambda now: now if now.ended else workflows.look_again(now, now=ctx.now()))


def _mend(ctx: Context, run: Run) -> None:
    """A run whose supervisor is at work: what a lost message may have left behind, and whether anything goes on."""
    listening = ctx.runs.listening(run)
    if listening is not None and run.facts > listening.seen:
        ctx.supervisors.wake(listening.token)
    if run.status != "running":
        return
    found, last_noted = ctx.runs.chunks(run)
    standings = standings_of(ctx, run)
    for chunk, notes in found.items():
        standings.put(chunk, notes)
    if not run.stopping:
        follow_run.settle(ctx, run, standings, range(run.total))
        follow_run.let_go(ctx, run)
    follow_run.look_whether_over(ctx, run, standings_of(ctx, run), chunks(run.total)[-1:])
    if run.health_check_interval_s is None:
        return
    interval, now = timedelta(seconds=run.health_check_interval_s), ctx.now()
    if now - max(last_noted, run.stalled_at or last_noted) >= interval:
        why = _why_nothing_goes_on(standings, run)
        change_run(ctx, run.namespace, run.workflow_id, lambda now_: workflows.stall(now_, why, now=now))


def _why_nothing_goes_on(standings: Standings, run: Run) -> str:
    """In words: how many jobs stand how, and the first of those that others wait for."""
    by_status: dict[str, list[str]] = {}
    for place in range(run.total):
        if standings.is_open(place):
            by_status.setdefault(standings.status(place), []).append(standings.graph.nodes[place].name)
    counted = Counter({status: len(names) for status, names in by_status.items()})
    told = ", ".join(f"{count} {status}" for status, count in counted.most_common())
    first = next(
        (by_status[status] for status in ("running", "pending", "scheduled", "waiting") if status in by_status), []
    )
    return f"no job has changed for {run.health_check_interval_s} s: {told}; first {', '.join(first[:NAMED])}"
