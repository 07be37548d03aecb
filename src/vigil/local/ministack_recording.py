"""Patches of ministack that report each write to the state store, and let the store save and restore the state."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vigil.local.ministack_state import MinistackState
from vigil.local.state_store import SavingFailedError, StateStore

WRITE_HANDLERS = (
    "_put_item",
    "_update_item",
    "_delete_item",
    "_batch_write_item",
    "_transact_write_items",
    "_execute_statement",
    "_batch_execute_statement",
    "_execute_transaction",
)


def record_writes(store: StateStore, state: MinistackState) -> None:
    """Patch ministack so that every write of an item, an object or a message reaches the store."""
    _record_items(store)
    _record_stream_records(store)
    _record_messages(store, state)
    _record_objects(store, state)
    _keep_code_until_snapshot(state)


def _record_items(store: StateStore) -> None:
    from ministack.services import dynamodb

    set_item, remove_item = dynamodb._set_item, dynamodb._remove_item

    @functools.wraps(set_item)
    def set_and_record(table: Any, pk: str, sk: str, item: Any) -> Any:
        with store.write() as entries:
            old_item = set_item(table, pk, sk, item)
            entries.append(["put", table["TableArn"], pk, sk, item])
            return old_item

    @functools.wraps(remove_item)
    def remove_and_record(table: Any, pk: str, sk: str) -> Any:
        with store.write() as entries:
            old_item = remove_item(table, pk, sk)
            if old_item is not None:
                entries.append(["delete", table["TableArn"], pk, sk])
            return old_item

    dynamodb._set_item, dynamodb._remove_item = set_and_record, remove_and_record
    # Two locks could be taken in either order: the deletion of expired items takes this one first.
    dynamodb._lock = store.lock
    for name in WRITE_HANDLERS:
        setattr(dynamodb, name, _recorded(store, getattr(dynamodb, name), discards=name == "_execute_transaction"))


def _recorded(store: StateStore, handler: Callable[[Any], Any], *, discards: bool) -> Callable[[Any], Any]:
    """Return a handler whose items become one line of the journal, and which refuses while that is not possible.

    Args:
        discards: Whether the handler undoes its writes before it returns an error.
    """

    @functools.wraps(handler)
    def handle(request: Any) -> Any:
        from ministack.core.responses import error_response_json

        try:
            with store.write() as entries:
                before = len(entries)
                response = handler(request)
                if discards and response[0] != 200:
                    del entries[before:]
                return response
        except SavingFailedError as error:
            return error_response_json("ServiceUnavailable", f"The state cannot be saved: {error}", 503)

    return handle


def _record_stream_records(store: StateStore) -> None:
    from ministack.services import dynamodb

    emit = dynamodb._emit_stream_event

    @functools.wraps(emit)
    def emit_and_record(table_name: str, event: str, old_item: Any, new_item: Any, *rest: Any, **options: Any) -> None:
        with store.write() as entries:
            before = (dynamodb._stream_records.get(table_name) or [None])[-1]
            emit(table_name, event, old_item, new_item, *rest, **options)
            record = (dynamodb._stream_records.get(table_name) or [None])[-1]
            if record is not before and record is not None:
                images = record["dynamodb"]
                core = {name: value for name, value in images.items() if name not in {"OldImage", "NewImage"}}
                arn = dynamodb._tables[table_name]["TableArn"]
                entries.append(
                    ["stream", arn, {**record, "dynamodb": core}, "OldImage" in images, "NewImage" in images]
                )

    dynamodb._emit_stream_event = emit_and_record


def _record_messages(store: StateStore, state: MinistackState) -> None:
    """Record a message when it is sent. `MinistackState.collect` records all other changes of queues."""
    from ministack.core.responses import get_account_id, get_region
    from ministack.services import sqs

    send = sqs._act_send_message

    @functools.wraps(send)
    def send_and_record(request: Any, url: str) -> Any:
        response = send(request, url)
        queue = sqs._get_q(request.get("QueueUrl", url))
        for message in reversed(list(queue["messages"])):
            if message["id"] == response["MessageId"]:
                scope = (get_account_id(), get_region(), queue["name"])
                with contextlib.suppress(SavingFailedError), store.write() as entries:
                    entries.append(["sent", *scope, dict(message)])
                    state.note_message(*scope, message["id"])
                break
        return response

    sqs._act_send_message = send_and_record
    sqs._HANDLERS["SendMessage"] = send_and_record


def _record_objects(store: StateStore, state: MinistackState) -> None:
    """Note each file of a bucket for the next sync, and refuse writes that cannot be saved."""
    from ministack.core.responses import get_account_id, get_region
    from ministack.services import s3

    atomic_write, save_object, handle = s3._atomic_write, s3._persist_object, s3.handle_request
    current = threading.local()

    @functools.wraps(atomic_write)
    def write_and_note(path: str, *arguments: Any, **options: Any) -> None:
        try:
            atomic_write(path, *arguments, **options)
        except OSError as error:
            current.error = error
            raise
        state.note_file(Path(path))

    @functools.wraps(save_object)
    def save_and_check(bucket: str, key: str, record: Any) -> None:
        current.error = None
        # ministack only logs an error.
        save_object(bucket, key, record)
        if current.error is not None:
            state.note_unsaved_object(get_account_id(), get_region(), bucket, key, current.error)
            store.fail(current.error)

    @functools.wraps(handle)
    async def handle_or_refuse(method: str, *arguments: Any, **options: Any) -> Any:
        is_write = method in {"PUT", "POST", "DELETE"}
        if is_write and store.refusal is not None:
            return _unavailable(store.refusal)
        response = await handle(method, *arguments, **options)
        return _unavailable(store.refusal) if is_write and store.refusal is not None else response

    s3._atomic_write, s3._persist_object, s3.handle_request = write_and_note, save_and_check, handle_or_refuse


def _unavailable(reason: str) -> tuple[int, dict[str, str], bytes]:
    body = f"<Error><Code>ServiceUnavailable</Code><Message>The state cannot be saved: {reason}</Message></Error>"
    return 503, {"Content-Type": "application/xml"}, body.encode()


def _keep_code_until_snapshot(state: MinistackState) -> None:
    """Delete the code of deleted functions only if a snapshot without them exists."""
    from ministack.services import lambda_svc

    prune = lambda_svc._prune_orphan_code_blobs

    @functools.wraps(prune)
    def note_and_keep(referenced: set[str]) -> None:
        state.note_referenced_blobs(referenced)
        for name in referenced:
            state.note_file(Path(lambda_svc.CODE_BLOB_DIR) / f"{name}.zip")

    lambda_svc._prune_orphan_code_blobs = note_and_keep


def replace_saving(recover: Callable[[], None]) -> None:
    """Let the store save and restore the state. ministack ignores files that it cannot read or write."""
    from ministack import app

    app._load_persisted_state = recover
    app.save_all = lambda _services: None
