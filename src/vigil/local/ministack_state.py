"""The state of ministack: what a snapshot contains, which writes the journal records, and how both are restored.

Entries of the journal:

- `["put", table, pk, sk, item]`, `["delete", table, pk, sk]`: an item of the table with this ARN;
- `["stream", table, record, has_old_image, has_new_image]`: a stream record, whose images are those of the last item;
- `["sent", account, region, queue, message]`, `["gone", account, region, queue, ids]`: messages of a queue;
- `["started", account, region, execution, request]`, `["ended", account, region, execution]`: executions of the stack.

The objects of the buckets are files of their own, which ministack writes at each request.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vigil.local.journal import CorruptFileError, sync_directory
from vigil.local.snapshots import Snapshot
from vigil.local.stack import STACK_NAME
from vigil.local.state_dir import read_json
from vigil.local.state_store import Capture, Entry

# The documents that contain addresses of the emulator. Documents with the data of users are left as they are.
DOCUMENTS_WITH_ADDRESSES = {"apigateway.json", "apigateway_v1.json", "cloudformation.json", "lambda.json"}
# A thousand executions start within 20 s, so that their functions do not exceed the concurrency.
RESUME_INTERVAL_S = 0.02
_CAPTURE_ATTEMPTS = 10
_BLOB_REFERENCE = re.compile(rb'"code_blob_ref": ?"([0-9a-f]{64})"')


class MinistackState:
    """The backend of a `StateStore` in ministack's process.

    Args:
        directory: The directory of the state, with `s3/` and `lambda-blobs/`.
        streams_file: The positions of the stream consumers.
    """

    def __init__(self, directory: Path, port: int, streams_file: Path) -> None:
        self._directory = directory
        self._port = port
        self._streams_file = streams_file
        self._tables: dict[str, Any] = {}
        # The item before and after the last "put" or "delete".
        self._last_images: tuple[Any, Any] = (None, None)
        self._known_messages: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        # The requests that started the running executions of the stack.
        self._executions: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._is_resumed = False
        self._files_lock = threading.Lock()
        self._unsynced: set[Path] = set()
        self._unsaved_objects: dict[tuple[str, str, str, str], OSError] = {}
        self._referenced_blobs: set[str] = set()

    # ---------------------------------------------------------------- Snapshots

    def capture(self) -> Capture:
        """Copy the state of every service. The store holds the lock."""
        from ministack import app
        from ministack.services import dynamodb

        description, items = _capture_tables()
        documents = {"dynamodb.json": _serialised(lambda: description)}
        for name, get_state in app._build_persistence_save_dict().items():
            if name != "dynamodb":
                documents[f"{name}.json"] = _serialised(get_state)
        consumed = _consumed_position(read_json(self._streams_file))
        records = [
            ["stream", f"arn:aws:dynamodb:{region}:{account}:table/{table}", record, False, False]
            for (account, region, table), entries in list(dynamodb._stream_records.all_items())
            for record in list(entries)
            if record["dynamodb"]["SequenceNumber"] > consumed
        ]
        executions = [["started", *key, request] for key, request in self._executions.items()]
        return Capture(documents, [*items, *records, *executions])

    def restore(self, snapshot: Snapshot) -> None:
        """Restore every service, and let the addresses in the documents name the present port.

        Raises:
            CorruptFileError: A document cannot be restored.
        """
        from ministack import app
        from ministack.core.persistence import _json_object_hook

        self._require_blobs(snapshot.documents.get("lambda.json", b""))
        for name, module in app._state_map.items():
            content = snapshot.documents.get(f"{name}.json")
            if content is None:
                continue
            if f"{name}.json" in DOCUMENTS_WITH_ADDRESSES:
                content = _with_port(content, snapshot.manifest.port, self._port)
            try:
                app._get_module(module).load_persisted_state(json.loads(content, object_hook=_json_object_hook))
            except Exception as error:
                raise CorruptFileError(self._directory / f"{name}.json", repr(error)) from error
        _rename_queues()
        for entry in snapshot.entries:
            self.apply(entry)

    def _require_blobs(self, content: bytes) -> None:
        """Check the code of each function, which ministack keeps in files named after their content."""
        for name in {match.decode() for match in _BLOB_REFERENCE.findall(content)}:
            path = self._directory / "lambda-blobs" / f"{name}.zip"
            try:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise CorruptFileError(path, error.strerror or str(error)) from error
            if digest != name:
                raise CorruptFileError(path, "its checksum differs")

    def on_snapshot(self) -> None:
        """Delete the code of functions that the newest snapshot does not contain."""
        from ministack.services import lambda_svc

        lambda_svc._prune_orphan_code_blobs.__wrapped__(self._referenced_blobs)

    # ---------------------------------------------------------------- Journal

    def apply(self, entry: Entry) -> bool:
        """Apply an entry. Return False if no table or queue has its name."""
        match entry:
            case ["put" | "delete", table_arn, pk, sk, *item]:
                return self._apply_item(table_arn, pk, sk, item[0] if item else None)
            case ["stream", table_arn, record, has_old, has_new]:
                return self._apply_record(table_arn, record, has_old, has_new)
            case ["sent", account, region, queue_name, message]:
                return self._apply_message(account, region, queue_name, message)
            case ["gone", account, region, queue_name, ids]:
                queue = _queue(account, region, queue_name)
                if queue is not None:
                    queue["messages"] = [message for message in queue["messages"] if message["id"] not in set(ids)]
                return queue is not None
            case ["started", account, region, execution, request]:
                self._executions[account, region, execution] = request
                return True
            case ["ended", account, region, execution]:
                self._executions.pop((account, region, execution), None)
                return True
        raise ValueError(entry[:1])

    def _table(self, table_arn: str) -> Any:
        from ministack.services import dynamodb

        if table_arn not in self._tables:
            account, region, name = _parse_arn(table_arn)
            self._tables[table_arn] = dynamodb._tables.get_scoped(account, region, name)
        return self._tables[table_arn]

    def _apply_item(self, table_arn: str, pk: str, sk: str, item: Any) -> bool:
        from ministack.services import dynamodb

        if (table := self._table(table_arn)) is None:
            return False
        # Without the patches, which would record the entry again.
        set_item, remove_item = inspect.unwrap(dynamodb._set_item), inspect.unwrap(dynamodb._remove_item)
        old_item = remove_item(table, pk, sk) if item is None else set_item(table, pk, sk, item)
        self._last_images = (old_item, item)
        return True

    def _apply_record(self, table_arn: str, record: dict[str, Any], has_old: bool, has_new: bool) -> bool:
        from ministack.services import dynamodb

        if self._table(table_arn) is None:
            return False
        for name, has_image, image in zip(("OldImage", "NewImage"), (has_old, has_new), self._last_images, strict=True):
            if has_image:
                record["dynamodb"][name] = image
        account, region, table = _parse_arn(table_arn)
        records = dynamodb._stream_records.get_scoped(account, region, table)
        if records is None:
            dynamodb._stream_records.set_scoped(account, region, table, records := [])
        records.append(record)
        return True

    def _apply_message(self, account: str, region: str, queue_name: str, message: dict[str, Any]) -> bool:
        queue = _queue(account, region, queue_name)
        if queue is None:
            return False
        if all(message["id"] != existing["id"] for existing in queue["messages"]):
            queue["messages"].append(message)
            queue["fifo_seq"] = max(queue.get("fifo_seq", 0), int(message.get("seq") or 0))
        return True

    def complete_recovery(self) -> None:
        """Return received messages to their queues: their consumers have ended."""
        from ministack.services import sqs

        for (account, region, _), queue in sqs._queues.all_items():
            for message in queue["messages"]:
                if message.get("receive_count"):
                    message["visible_at"] = min(message["visible_at"], time.time())
            self._known_messages[account, region, queue["name"]] = {message["id"] for message in queue["messages"]}

    def resume_executions(self) -> None:
        """Start the executions again that were running at the end of the last emulator.

        ministack ends them, and their task tokens are lost. An execution of the stack begins with a step that may be
        repeated, and then reads the state of its run.
        """
        from ministack.core.responses import request_scope
        from ministack.services import stepfunctions

        for (account, region, execution), request in list(self._executions.items()):
            with request_scope(account, region):
                stepfunctions._executions.pop(execution, None)
                stepfunctions._start_execution(dict(request))
            time.sleep(RESUME_INTERVAL_S)
        self._is_resumed = True

    def collect(self) -> list[Entry]:
        """Return entries for the messages and executions that came or went since the last call."""
        from ministack.services import sqs, stepfunctions

        entries: list[Entry] = []
        running = _running_executions(stepfunctions._executions)
        if self._is_resumed:
            entries += [["started", *key, running[key]] for key in running.keys() - self._executions.keys()]
            entries += [["ended", *key] for key in self._executions.keys() - running.keys()]
            self._executions = running
        for (account, region, _), queue in list(sqs._queues.all_items()):
            known = self._known_messages[account, region, queue["name"]]
            messages = {message["id"]: message for message in list(queue["messages"])}
            scope = [account, region, queue["name"]]
            entries += [["sent", *scope, dict(messages[name])] for name in messages.keys() - known]
            if gone := known - messages.keys():
                entries.append(["gone", *scope, sorted(gone)])
            self._known_messages[account, region, queue["name"]] = set(messages)
        return entries

    # ---------------------------------------------------------------- Files of the buckets

    def note_file(self, path: Path) -> None:
        """Remember a file that is to be synced."""
        with self._files_lock:
            self._unsynced.add(path)

    def sync_files(self) -> None:
        """Save again the objects that could not be saved, and sync all new files.

        Raises:
            OSError: A file cannot be written.
        """
        unsaved, self._unsaved_objects = self._unsaved_objects, {}
        for scope in unsaved:
            _save_object(*scope)
        if self._unsaved_objects:
            raise next(iter(self._unsaved_objects.values()))
        with self._files_lock:
            paths, self._unsynced = self._unsynced, set()
        try:
            _sync(paths)
        except OSError:
            with self._files_lock:
                self._unsynced |= paths
            raise

    def note_unsaved_object(self, account: str, region: str, bucket: str, key: str, error: OSError) -> None:
        """Remember an object that could not be saved."""
        self._unsaved_objects[account, region, bucket, key] = error

    def note_message(self, account: str, region: str, queue_name: str, message_id: str) -> None:
        """Remember that the journal contains a message."""
        self._known_messages[account, region, queue_name].add(message_id)

    def note_referenced_blobs(self, names: set[str]) -> None:
        """Remember which code the captured functions need."""
        self._referenced_blobs = names


# ---------------------------------------------------------------- Reading and changing ministack's state


def _parse_arn(arn: str) -> tuple[str, str, str]:
    """Return account, region and name of a table."""
    _, _, _, region, account, resource = arn.split(":", 5)
    return account, region, resource.removeprefix("table/")


def _running_executions(executions: Any) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return the requests that started the running executions of the stack, by account, region and ARN."""
    running = {}
    for (account, region, arn), execution in list(executions._data.items()):
        machine = execution["stateMachineArn"]
        if execution["status"] == "RUNNING" and machine.rsplit(":", 1)[-1].startswith(f"{STACK_NAME}-"):
            request = {"stateMachineArn": machine, "name": execution["name"], "input": execution["input"]}
            running[account, region, arn] = request
    return running


def _queue(account: str, region: str, name: str) -> Any:
    from ministack.services import sqs

    return sqs._queues.get_scoped(account, region, sqs._queue_url_for_account(account, name))


def _serialised(get_state: Callable[[], Any]) -> bytes:
    """Return a service's state as JSON text. Try again if a thread of the emulator changes a dictionary meanwhile."""
    from ministack.core.persistence import _json_default

    for _ in range(_CAPTURE_ATTEMPTS - 1):
        with contextlib.suppress(RuntimeError):
            return json.dumps(get_state(), default=_json_default).encode()
    return json.dumps(get_state(), default=_json_default).encode()


def _capture_tables() -> tuple[dict[str, Any], list[Entry]]:
    """Copy the descriptions of the tables without items, and the items as entries. Items are never changed in place."""
    from ministack.core.responses import AccountRegionScopedDict
    from ministack.services import dynamodb

    tables = AccountRegionScopedDict()
    items: list[Entry] = []
    for (account, region, name), table in dynamodb._tables.all_items():
        excluded = {"items", dynamodb._INDEX_MEMBERS}
        description = copy.deepcopy({key: value for key, value in table.items() if key not in excluded})
        tables.set_scoped(account, region, name, {**description, "items": {}, "ItemCount": 0, "TableSizeBytes": 0})
        arn = f"arn:aws:dynamodb:{region}:{account}:table/{name}"
        items += [["put", arn, pk, sk, item] for pk, sort in table["items"].items() for sk, item in sort.items()]
    state = {
        name: copy.deepcopy(getattr(dynamodb, f"_{name}"))
        for name in ("tags", "ttl_settings", "pitr_settings", "kinesis_destinations", "contributor_insights")
    }
    state |= {name: copy.deepcopy(getattr(dynamodb, f"_{name}")) for name in ("resource_policies", "backups")}
    return {"tables": tables, **state}, items


def _consumed_position(streams: Any) -> str:
    """Return the position that every stream mapping has passed, or "" if one has no position yet."""
    from ministack.services import lambda_svc

    positions = (streams or {}).get("positions", {})
    mappings = [
        mapping["UUID"]
        for mapping in list(lambda_svc._esms._data.values())
        if ":dynamodb:" in mapping.get("EventSourceArn", "")
    ]
    return min((min(positions.get(mapping, {}).values(), default="") for mapping in mappings), default="")


def _with_port(content: bytes, old_port: int, port: int) -> bytes:
    """Let the addresses of the emulator in a document name its present port."""
    for host in (b"localhost", b"127.0.0.1"):
        content = re.sub(rb"//%b:%d(?![0-9])" % (re.escape(host), old_port), b"//%b:%d" % (host, port), content)
    return content


def _rename_queues() -> None:
    """Let the URLs of the queues name the present port.

    ministack finds the queue of a mapping only by this URL.
    """
    from ministack.services import sqs

    for (account, region, url), queue in list(sqs._queues.all_items()):
        present_url = sqs._queue_url_for_account(account, queue["name"])
        if url != present_url:
            sqs._queues.pop_scoped(account, region, url, None)
            sqs._queues.set_scoped(account, region, present_url, {**queue, "url": present_url})
        sqs._queue_name_to_url.set_scoped(account, region, queue["name"], present_url)


def _save_object(account: str, region: str, bucket: str, key: str) -> None:
    from ministack.core.responses import request_scope
    from ministack.services import s3

    with request_scope(account, region):
        record = (s3._buckets.get(bucket) or {"objects": {}})["objects"].get(key)
        if record is not None:
            s3._persist_object(bucket, key, record)


def _sync(paths: Iterable[Path]) -> None:
    directories = set()
    for path in paths:
        directories |= {path.parent, path.parent.parent}
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    for directory in directories:
        with contextlib.suppress(FileNotFoundError):
            sync_directory(directory)


def check_objects(directory: Path) -> None:
    """Check the descriptions of the objects before ministack reads them, and complete an interrupted write.

    ministack first replaces the content of an object and then its description. If it is killed in between, the size
    in the description is that of the earlier content: remove it, so that ministack computes it.

    Raises:
        CorruptFileError: A description is no JSON.
    """
    for path in directory.rglob("*.tmp"):
        path.unlink()
    for path in directory.rglob("*.meta.json"):
        content = path.with_name(path.name.removesuffix(".meta.json"))
        try:
            description = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise CorruptFileError(path, str(error)) from error
        if content.is_file() and description.get("size") not in {None, content.stat().st_size}:
            path.write_text(
                json.dumps({name: value for name, value in description.items() if name not in {"size", "etag"}}),
                encoding="utf-8",
            )
