"""Delayed messages that make a due time exact to the second. The due row is the truth; a message only hurries."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Literal

from vigil_core.domain.exact_json import dumps
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.waits.wait import Wait
from vigil_core.domain.workflows.run import Run
from vigil_core.services.context import Context

LONGEST_DELAY_S = 900
"""What SQS allows. Later times are left to the sweep, which is exact to the minute."""


def wake_for_expiry(ctx: Context, wait: Wait) -> None:
    """Have the sweeper end an open wait when its time is over, if that is soon."""
    if not wait.ended:
        _wake(ctx, "wait_expiry", wait.namespace, wait.wait_id, wait.expires_at)


def wake_for_job(ctx: Context, job: Job, before: Job | None) -> None:
    """Have the sweeper do what this version of a job is due for, if that has to be exact, is soon, and came with it."""
    at = job.exactly_due_at
    if at is not None and (before is None or before.exactly_due_at != at):
        _wake(ctx, "job", job.namespace, job.job_id, at)


def wake_for_run(ctx: Context, run: Run) -> None:
    """Have the sweeper say when the time of a run is over, if that is soon."""
    _wake(ctx, "run", run.namespace, run.workflow_id, run.deadline_at)


def wake_for_queue(ctx: Context, namespace: str, queue: str) -> None:
    """Have the sweeper look after a queue now: it was resumed, and holds jobs that Vigil dispatches."""
    ctx.queues.wake_up(dumps({"kind": "queue", "namespace": namespace, "id": queue}), 0)


def request_processing(
    ctx: Context, kind: Literal["dispatch", "schedule", "run"], namespace: str, entity_id: str
) -> None:
    """Have the sweeper do now what it alone has the right to: set a job going, run a schedule, look after a run."""
    ctx.queues.wake_up(dumps({"kind": kind, "namespace": namespace, "id": entity_id}), 0)


def _wake(ctx: Context, kind: str, namespace: str, entity_id: str, at: datetime) -> None:
    left_s = (at - ctx.now()).total_seconds()
    if left_s > LONGEST_DELAY_S:
        return
    message = dumps({"kind": kind, "namespace": namespace, "id": entity_id})
    # Clocks of two functions differ by milliseconds, and a message that came too early would be for nothing.
    ctx.queues.wake_up(message, min(LONGEST_DELAY_S, max(0, math.ceil(left_s + 0.01))))
