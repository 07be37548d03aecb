"""Delayed messages that make a due time exact to the second. The due row is the truth; a message only hurries."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Literal, Protocol

from vigil_core.domain.jobs.job import Job
from vigil_core.domain.waits.wait import Wait
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.services.context import UsesClock, UsesMessageQueues
from vigil_core.services.messages import DispatchJob, JobTimer, QueueSweep, RunCheck, ScheduleDue, WaitExpiry


class TimersContext(UsesMessageQueues, UsesClock, Protocol):
    """What this module uses of the outside world."""


MAX_DELAY_S = 900
"""What SQS allows. Later times are left to the sweep, which is exact to the minute."""


def start_wait_timer(ctx: TimersContext, wait: Wait) -> None:
    """Have the sweeper end an open wait when its time is over, if that is soon."""
    if not wait.ended:
        _start_timer(ctx, WaitExpiry(namespace=wait.namespace, id=wait.wait_id), wait.expires_at)


def start_job_timer(ctx: TimersContext, job: Job, previous: Job | None) -> None:
    """Have the sweeper do what this version of a job is due for, if that has to be exact, is soon, and came with it."""
    timer_at = job.timer_at
    if timer_at is not None and (previous is None or previous.timer_at != timer_at):
        _start_timer(ctx, JobTimer(namespace=job.namespace, id=job.job_id), timer_at)


def start_run_timer(ctx: TimersContext, run: WorkflowRun) -> None:
    """Have the sweeper say when the time of a run is over, if that is soon."""
    _start_timer(ctx, RunCheck(namespace=run.namespace, id=run.workflow_id), run.deadline_at)


def request_queue_sweep(ctx: TimersContext, namespace: str, queue: str) -> None:
    """Have the sweeper look after a queue now: it was resumed, and holds jobs that Vigil dispatches."""
    ctx.message_queues.send_to_sweeper(QueueSweep(namespace=namespace, id=queue).to_json(), 0)


def request_processing(
    ctx: TimersContext, kind: Literal["dispatch", "schedule", "run"], namespace: str, entity_id: str
) -> None:
    """Have the sweeper do now what it alone has the right to: set a job going, run a schedule, look after a run."""
    message = {"dispatch": DispatchJob, "schedule": ScheduleDue, "run": RunCheck}[kind](
        namespace=namespace, id=entity_id
    )
    ctx.message_queues.send_to_sweeper(message.to_json(), 0)


def _start_timer(ctx: TimersContext, message: WaitExpiry | JobTimer | RunCheck, timer_at: datetime) -> None:
    delay_s = (timer_at - ctx.now()).total_seconds()
    if delay_s > MAX_DELAY_S:
        return
    # Clocks of two functions differ by milliseconds, and a message that came too early would be for nothing.
    ctx.message_queues.send_to_sweeper(message.to_json(), min(MAX_DELAY_S, max(0, math.ceil(delay_s + 0.01))))
