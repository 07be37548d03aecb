"""Bulk work on a run: messages that hand blocks of jobs to `fan_out`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.runtime.tracing import ids_of
from vigil_core.services.context import UsesClock, UsesMessageQueues
from vigil_core.services.fair_shares import fan_out_group
from vigil_core.services.messages import RunApply, RunCancel, RunPrepare
from vigil_core.services.ports import FanOutMessage


class EnqueueBlocksContext(UsesMessageQueues, UsesClock, Protocol):
    """The message queues, and the clock that makes each message unique."""


def enqueue_blocks(
    ctx: EnqueueBlocksContext,
    run: WorkflowRun,
    message_type: type[RunPrepare | RunApply | RunCancel],
    block_numbers: Iterable[int],
    *,
    per_message: int = 1,
) -> None:
    """Send the blocks of a run to `fan_out`, which processes some messages in parallel.

    Args:
        ctx: The message queues and the clock.
        run: The run, whose ids and generation each message carries.
        message_type: The kind of work.
        block_numbers: The blocks to process.
        per_message: The number of blocks in one message.
    """
    sorted_numbers = sorted(block_numbers)
    ctx.message_queues.send_fan_out(
        [
            FanOutMessage(
                group=fan_out_group(run.namespace, run.workflow_id, sorted_numbers[start] // per_message),
                body=message_type(
                    **ids_of(run),
                    generation=run.generation,
                    blocks=sorted_numbers[start : start + per_message],
                    # SQS discards a second message of the same text, but this one may find transitions that the
                    # earlier one could not see. The time makes the text unique.
                    sent_at=ctx.now().isoformat(),
                ).to_json(),
            )
            for start in range(0, len(sorted_numbers), per_message)
        ]
    )
