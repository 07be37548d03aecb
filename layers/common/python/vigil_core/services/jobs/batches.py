"""Batches: one job whose items are created from a list of payloads.

The matcher receives the changes of batches and items. It sends bulk work to `fan_out`, in pages of items.

Stopping a batch reaches every item:

1. The batch becomes `running` before any of its items exists.
2. The messages about one page form a group, and SQS delivers a group in order. So a stop is processed after the
   creation of its page.
3. If the creation crashed, the stop creates the missing items of its page and cancels them.

A deleted batch deletes its items:

1. A batch is deleted only after its end, when all its items have ended.
2. The matcher receives the tombstone and requests the deletion of each page of each attempt. If it crashes, the stream
   delivers the tombstone again.
3. A page can be repeated: an item that is deleted already stays so.

A retried batch keeps the items that completed, and creates items only for the others:

1. The page that creates the items of an attempt finds the completed items of earlier attempts, and records their end.
2. A completed item never changes, so a page that is processed again keeps the same items.

A batch ends exactly once:

1. The end state of each item is recorded once, in a set of its page.
2. The process that completes a page reads all pages. The process that completes the last page finds all items ended,
   and requests the end of the batch.
3. One conditional write ends the batch. A second request finds it ended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

from vigil_core.domain.errors import JobCreationFailed, JobNotFound
from vigil_core.domain.exact_json import JsonValue, dumps, loads_stored
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.batch import item_id, items_on_page, page_numbers, page_of
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.status import JobStatus
from vigil_core.runtime.tracing import ids_of
from vigil_core.services.context import (
    ChangesJobs,
    UsesBatches,
    UsesJobQueues,
    UsesListing,
    UsesMessageQueues,
    UsesThreads,
)
from vigil_core.services.fair_shares import fan_out_group
from vigil_core.services.jobs.transitions import LOST_JOB_ERRORS, cancel, change, delete
from vigil_core.services.messages import BatchEnd, BatchPage
from vigil_core.services.ports import FanOutMessage


class BatchesContext(ChangesJobs, UsesBatches, UsesListing, UsesJobQueues, UsesMessageQueues, UsesThreads, Protocol):
    """The collaborators of batches."""


MAX_RESULT_BYTES = 1024 * 1024
"""The limit of all item results together in the result of their batch."""


def on_batch_changed(ctx: BatchesContext, batch: Job) -> None:
    """Start a pending batch, or request the creation, cancellation or deletion of its items. Can be repeated."""
    if batch.deleted:
        for attempt in range(1, batch.attempt + 1):
            _enqueue_pages(ctx, replace(batch, attempt=attempt), stop=False, delete=True)
    elif batch.status == "pending":
        with suppress(JobNotFound):
            change(
                ctx,
                batch.namespace,
                batch.job_id,
                lambda current: transitions.start_batch(current, now=ctx.now(), actor="matcher"),
            )
    elif batch.status == "running":
        _enqueue_pages(ctx, batch, stop=batch.cancel_requested_at is not None)


def on_item_ended(ctx: BatchesContext, item: Job) -> None:
    """Record the end of an item, which may end or stop its batch. Can be repeated."""
    batch = ctx.jobs.find(item.namespace, str(item.batch.batch_id))
    index = item.batch.index or 0
    if batch is None or batch.status != "running" or item.job_id != item_id(batch.job_id, batch.attempt, index):
        return
    if _record_ends(ctx, batch, page_of(index), [index], item.status):
        return
    if item.status == "failed" and batch.batch.on_item_failure == "fail_fast":
        _enqueue_pages(ctx, batch, stop=True)


def _record_ends(ctx: BatchesContext, batch: Job, page: int, indexes: Collection[int], end_state: JobStatus) -> bool:
    """Record the end of items on one page. If all items have ended, request the batch's end and return True."""
    page_complete = ctx.batches.record_end_state(batch, page, indexes, end_state)
    if not page_complete or len(ctx.batches.end_states(batch)) < (batch.batch.size or 0):
        return False
    _enqueue(ctx, batch, {0: BatchEnd(**ids_of(batch), attempt=batch.attempt)})
    return True


def process_page(ctx: BatchesContext, message: BatchPage) -> None:
    """Create the missing items of a page; with `stop`, then cancel the open ones; with `delete`, delete them."""
    namespace, batch_id, attempt = message.namespace, message.job_id, message.attempt
    batch = ctx.jobs.find(namespace, batch_id)
    if batch is None or batch.batch.size is None:
        return
    ids = {index: item_id(batch_id, attempt, index) for index in items_on_page(message.page, batch.batch.size)}
    jobs_by_id = ctx.jobs.find_many(namespace, ids.values())
    if message.delete:
        existing_ids = [job_id for job_id, item in jobs_by_id.items() if not item.deleted]
        ctx.in_parallel(lambda job_id: _delete(ctx, namespace, job_id), existing_ids)
        return
    if batch.status == "running" and batch.attempt == attempt:
        missing_indexes = [index for index, job_id in ids.items() if job_id not in jobs_by_id]
        kept_indexes = _kept_items(ctx, batch, missing_indexes).keys()
        _create_items(ctx, batch, [index for index in missing_indexes if index not in kept_indexes])
        if kept_indexes:
            _record_ends(ctx, batch, message.page, kept_indexes, "completed")
    if message.stop:
        open_ids = [job_id for job_id in ids.values() if job_id not in jobs_by_id or not jobs_by_id[job_id].ended]
        ctx.in_parallel(lambda job_id: _cancel(ctx, namespace, job_id), open_ids)


def _kept_items(ctx: BatchesContext, batch: Job, indexes: Collection[int]) -> dict[int, Job]:
    """Return the items that completed in an earlier attempt, by index. The batch keeps them and runs them no more.

    An item that is kept once stays so: a completed job never changes, and no item of this attempt is created for it.
    """
    kept: dict[int, Job] = {}
    for attempt in range(batch.attempt - 1, batch.batch.kept_since - 1, -1):
        ids = {item_id(batch.job_id, attempt, index): index for index in indexes if index not in kept}
        jobs_by_id = ctx.jobs.find_many(batch.namespace, ids) if ids else {}
        kept |= {
            ids[job_id]: item for job_id, item in jobs_by_id.items() if item.status == "completed" and not item.deleted
        }
    return kept


def end_batch(ctx: BatchesContext, message: BatchEnd) -> None:
    """End a batch whose items have all ended.

    1. Store the result.
    2. Write the ended version, which points to the result.

    If the process crashes after step 1, SQS delivers the message again and both steps run again.
    """
    namespace, batch_id, attempt = message.namespace, message.job_id, message.attempt
    batch = ctx.jobs.find(namespace, batch_id)
    if batch is None or not _is_running(batch, attempt):
        return
    end_statuses = ctx.batches.end_states(batch)
    result = dumps(_results(ctx, batch, end_statuses))
    failed_count = sum(status != "completed" for status in end_statuses.values())

    def decide(current: Job) -> Job:
        if not _is_running(current, attempt):
            return current
        ended = transitions.end_batch(current, failed_count, now=ctx.now(), actor="fan_out")
        return transitions.with_result(ended, ctx.jobs.put_result(ended, ctx.new_id()[-12:], result))

    with suppress(JobNotFound):
        change(ctx, namespace, batch_id, decide)


def _create_items(ctx: BatchesContext, batch: Job, indexes: Iterable[int]) -> None:
    missing_indexes = list(indexes)
    if not missing_indexes:
        return
    stored = ctx.jobs.payloads(replace(batch, result_ref=batch.fallback_ref))
    payloads, fallback = loads_stored(stored.payload or "[]"), stored.result
    assert isinstance(payloads, list)
    ctx.listing.mark_day(batch.namespace, "jobs", ctx.now().date())
    ctx.job_queues.register(batch.namespace, batch.queue)

    def create(index: int) -> None:
        item = transitions.create(
            batch.namespace, transitions.new_batch_item(batch, index), now=ctx.now(), actor="fan_out", payload_ref=None
        )
        payload, nonce = payloads[index], ctx.new_id()[-12:]
        text = None if payload is None else dumps(payload)
        item = ctx.jobs.put_payloads(item, nonce, payload=text, fallback=fallback)
        with suppress(JobCreationFailed):  # Another delivery of the message created the item first.
            ctx.jobs.create(item)

    ctx.in_parallel(create, missing_indexes)


def _cancel(ctx: BatchesContext, namespace: str, job_id: str) -> None:
    with suppress(*LOST_JOB_ERRORS):
        cancel(ctx, namespace, job_id, actor="fan_out")


def _delete(ctx: BatchesContext, namespace: str, job_id: str) -> None:
    with suppress(*LOST_JOB_ERRORS):
        delete(ctx, namespace, job_id, actor="fan_out")


def _results(ctx: BatchesContext, batch: Job, end_statuses: Mapping[int, JobStatus]) -> list[JsonValue]:
    """Build the result of a batch: one entry per item, in order. `truncated` replaces a result over the limit."""
    ids = {index: item_id(batch.job_id, batch.attempt, index) for index in sorted(end_statuses)}
    items_by_id = ctx.jobs.find_many(batch.namespace, ids.values())
    for index, kept in _kept_items(ctx, batch, [i for i in ids if ids[i] not in items_by_id]).items():
        ids[index], items_by_id[kept.job_id] = kept.job_id, kept
    bytes_left = MAX_RESULT_BYTES
    results: list[JsonValue] = []
    for page in page_numbers(len(ids)):
        items = [items_by_id[ids[index]] for index in items_on_page(page, len(ids)) if ids[index] in items_by_id]
        read_result = partial(ctx.jobs.payloads, payload=False, max_bytes=bytes_left)
        page_payloads = ctx.in_parallel(read_result, items)
        payloads_by_id = {item.job_id: stored for item, stored in zip(items, page_payloads, strict=True)}
        for index in items_on_page(page, len(ids)):
            item, stored = items_by_id.get(ids[index]), payloads_by_id.get(ids[index])
            text = None if stored is None else stored.result
            size = len((text or "").encode())
            is_missing = text is None and (item is None or item.result_ref is not None)
            truncated = size > bytes_left or is_missing
            bytes_left -= 0 if truncated else size
            results.append(
                {
                    "index": index,
                    "job_id": ids[index],
                    "status": end_statuses[index],
                    "result": None if text is None or truncated else loads_stored(text),
                    "error": _error_of(item),
                    **({"truncated": True} if truncated else {}),
                }
            )
    return results


def _error_of(item: Job | None) -> JsonValue:
    return None if item is None or item.error is None else {"code": item.error.code, "message": item.error.message}


def _is_running(batch: Job, attempt: int) -> bool:
    return batch.status == "running" and batch.attempt == attempt


def _enqueue_pages(ctx: BatchesContext, batch: Job, *, stop: bool, delete: bool | None = None) -> None:
    # SQS drops a message equal to another one of the last 5 minutes. Processing the page once has the same effect.
    _enqueue(
        ctx,
        batch,
        {
            page: BatchPage(**ids_of(batch), attempt=batch.attempt, page=page, stop=stop, delete=delete)
            for page in page_numbers(batch.batch.size or 0)
        },
    )


def _enqueue(ctx: BatchesContext, batch: Job, messages: Mapping[int, BatchPage | BatchEnd]) -> None:
    ctx.message_queues.send_fan_out(
        [
            FanOutMessage(group=fan_out_group(batch.namespace, batch.job_id, number), body=message.to_json())
            for number, message in messages.items()
        ]
    )
