"""Timers: delayed messages to the sweeper that make a due time exact to the second.

A message only saves time. If it is lost, the sweeper finds the due row within a minute.
"""

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
    """The collaborators of the timers."""


MAX_DELAY_S = 900
"""The longest delay of an SQS message. The sweep handles later times, exact to the minute."""


def start_wait_timer(ctx: TimersContext, wait: Wait) -> None:
    """Start the timer for the expiry of an open wait, if it expires soon."""
    if not wait.ended:
        _start_timer(ctx, WaitExpiry(namespace=wait.namespace, id=wait.wait_id), wait.expires_at)


def start_job_timer(ctx: TimersContext, job: Job, previous: Job | None) -> None:
    """Start the timer of a job's start, timeout or cancel, if this version has set a time that is soon."""
    timer_at = job.timer_at
    if timer_at is not None and (previous is None or previous.timer_at != timer_at):
        _start_timer(ctx, JobTimer(namespace=job.namespace, id=job.job_id), timer_at)


def start_run_timer(ctx: TimersContext, run: WorkflowRun) -> None:
    """Start the timer for the deadline of a run, if it is due soon."""
    _start_timer(ctx, RunCheck(namespace=run.namespace, id=run.workflow_id), run.deadline_at)


def start_cancel_timer(ctx: TimersContext, run: WorkflowRun) -> None:
    """Start the timer for the check whether the supervisor of a cancelled run has begun to end it."""
    if run.next_check_at is not None:
        _start_timer(ctx, RunCheck(namespace=run.namespace, id=run.workflow_id), run.next_check_at)


def request_queue_sweep(ctx: TimersContext, namespace: str, queue: str) -> None:
    """Request an immediate sweep of a queue: it was resumed and has undispatched jobs."""
    ctx.message_queues.send_to_sweeper(QueueSweep(namespace=namespace, id=queue).to_json(), 0)


def request_processing(
    ctx: TimersContext, kind: Literal["dispatch", "schedule", "run"], namespace: str, entity_id: str
) -> None:
    """Request an action for which only the sweeper has permissions: a dispatch, a schedule fire, a reconciliation."""
    message = {"dispatch": DispatchJob, "schedule": ScheduleDue, "run": RunCheck}[kind](
        namespace=namespace, id=entity_id
    )
    ctx.message_queues.send_to_sweeper(message.to_json(), 0)


def _start_timer(ctx: TimersContext, message: WaitExpiry | JobTimer | RunCheck, timer_at: datetime) -> None:
    delay_s = (timer_at - ctx.now()).total_seconds()
    if delay_s > MAX_DELAY_S:
        return
    # The clocks of two functions differ by milliseconds, and the sweeper would ignore a message that is too early.
    ctx.message_queues.send_to_sweeper(message.to_json(), min(MAX_DELAY_S, max(0, math.ceil(delay_s + 0.01))))
