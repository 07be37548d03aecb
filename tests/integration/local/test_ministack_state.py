"""The state of ministack on disk: every prefix of the journal is a state that existed. Nothing synced is missing."""

from __future__ import annotations

import asyncio
import copy
import errno
import json
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ministack import app
from ministack.core.responses import AccountRegionScopedDict
from ministack.services import dynamodb, lambda_svc, s3, sqs, stepfunctions

from vigil.local.errors import LocalError
from vigil.local.journal import Reader
from vigil.local.ministack_recording import WRITE_HANDLERS, record_writes
from vigil.local.ministack_state import MinistackState, check_objects
from vigil.local.state_store import StateStore

PATCHED = [
    *((dynamodb, name) for name in ("_set_item", "_remove_item", "_emit_stream_event", "_lock", *WRITE_HANDLERS)),
    (sqs, "_act_send_message"),
    *((s3, name) for name in ("_atomic_write", "_persist_object", "handle_request", "S3_PERSIST", "DATA_DIR")),
    *((lambda_svc, name) for name in ("_prune_orphan_code_blobs", "CODE_BLOB_DIR")),
    (app, "_state_map"),
]
SERVICES = {"dynamodb": "dynamodb", "sqs": "sqs", "s3": "s3", "stepfunctions": "stepfunctions"}


@pytest.fixture(autouse=True)
def _unpatched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Remove the patches and the stored data of a test after it."""
    for module, name in PATCHED:
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setitem(sqs._HANDLERS, "SendMessage", sqs._act_send_message)
    monkeypatch.setattr(s3, "S3_PERSIST", True)
    monkeypatch.setattr(s3, "DATA_DIR", str(tmp_path / "state/s3"))
    monkeypatch.setattr(lambda_svc, "CODE_BLOB_DIR", str(tmp_path / "state/lambda-blobs"))
    monkeypatch.setattr(app, "_state_map", SERVICES)
    forget()
    yield
    forget()


def forget() -> None:
    """Lose everything in memory, as a killed process does."""
    for service in (dynamodb, sqs, s3, stepfunctions):
        service.reset()


class Emulator:
    """The stores of ministack in this process, on a directory."""

    def __init__(self, directory: Path, port: int = 4566) -> None:
        self.store = StateStore(
            directory, port, backend := MinistackState(directory, port, directory / "../streams.json")
        )
        self.backend = backend

    def start(self) -> Emulator:
        """Recover, without the thread that syncs."""
        self.store.recover()
        return self


@pytest.fixture
def emulator(tmp_path: Path) -> Emulator:
    """Return a started emulator with a table and two queues, after a snapshot."""
    emulator = Emulator(tmp_path / "state")
    record_writes(emulator.store, emulator.backend)
    emulator.start()
    create_resources()
    emulator.store.snapshot()
    return emulator


def create_resources() -> None:
    table(
        "CreateTable",
        TableName="jobs",
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[
            {"AttributeName": "pk", "AttributeType": "S"},
            {"AttributeName": "sk", "AttributeType": "S"},
        ],
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    for name in ("one", "two.fifo"):
        queue("CreateQueue", QueueName=name, Attributes={"FifoQueue": "true"} if name.endswith(".fifo") else {})


def table(action: str, *, status: int = 200, **request: Any) -> Any:
    headers = {"x-amz-target": f"DynamoDB_20120810.{action}"}
    received, _, body = asyncio.run(dynamodb.handle_request("POST", "/", headers, json.dumps(request).encode(), {}))
    assert received == status, body
    return json.loads(body)


def queue(action: str, **request: Any) -> Any:
    headers = {"x-amz-target": f"AmazonSQS.{action}", "content-type": "application/x-amz-json-1.0"}
    status, _, body = asyncio.run(sqs.handle_request("POST", "/", headers, json.dumps(request).encode(), {}))
    assert status == 200, body
    return json.loads(body) if body else None


def bucket(method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    query = {"tagging": [""]} if path.endswith("?tagging") else {}
    status, sent, content = asyncio.run(s3.handle_request(method, path.partition("?")[0], given, body, query))
    return status, sent, content


def state() -> Any:
    """Return everything that a restart must keep, in a form that can be compared."""
    tables = {name: copy.deepcopy(dict(entry["items"])) for (_, _, name), entry in dynamodb._tables.all_items()}
    records = {
        name: [copy.deepcopy(record) for record in entries]
        for (_, _, name), entries in dynamodb._stream_records.all_items()
    }
    messages = {
        entry["name"]: sorted(message["id"] for message in entry["messages"]) for _, entry in sqs._queues.all_items()
    }
    return tables, {name: entries for name, entries in records.items() if entries}, messages


def random_write(source: random.Random) -> None:
    """Send one request that writes to the table or to a queue."""
    key = {"pk": {"S": source.choice("abc")}, "sk": {"S": source.choice("xyz")}}
    item = {**key, "text": {"S": source.choice(["", "é\n", "\u2028", "x" * 500])}, "n": {"N": str(source.random())}}
    other = {"pk": {"S": "other"}, "sk": {"S": source.choice("xyz")}}
    choice = source.randrange(9)
    if choice == 0:
        table("PutItem", TableName="jobs", Item=item)
    elif choice == 1:
        table("DeleteItem", TableName="jobs", Key=key)
    elif choice == 2:
        table(
            "UpdateItem",
            TableName="jobs",
            Key=key,
            UpdateExpression="SET #t = :t ADD #c :one",
            ExpressionAttributeNames={"#t": "text", "#c": "count"},
            ExpressionAttributeValues={":t": item["text"], ":one": {"N": "1"}},
        )
    elif choice == 3:
        table(
            "BatchWriteItem",
            RequestItems={"jobs": [{"PutRequest": {"Item": item}}, {"DeleteRequest": {"Key": other}}]},
        )
    elif choice == 4:
        table(
            "TransactWriteItems",
            TransactItems=[
                {"Put": {"TableName": "jobs", "Item": item}},
                {"Put": {"TableName": "jobs", "Item": {**other, "of": {"S": "the same transaction"}}}},
            ],
        )
    elif choice == 5:
        table(
            "PutItem",
            status=400,
            TableName="jobs",
            Item=item,
            ConditionExpression="attribute_exists(#x)",
            ExpressionAttributeNames={"#x": "never"},
        )
    elif choice == 6:
        # As the deletion of expired items does.
        [(_, jobs)] = dynamodb._tables.all_items()
        dynamodb._remove_item(jobs, key["pk"]["S"], key["sk"]["S"])
    elif choice == 7:
        url = queue("GetQueueUrl", QueueName="one")["QueueUrl"]
        queue("SendMessage", QueueUrl=url, MessageBody="hello")
    else:
        url = queue("GetQueueUrl", QueueName="two.fifo")["QueueUrl"]
        number = str(source.random())
        queue("SendMessage", QueueUrl=url, MessageBody=number, MessageGroupId="g", MessageDeduplicationId=number)


@pytest.mark.parametrize("seed", range(6))
def test_journal_cut_at_any_byte_recovers_a_state_that_existed(emulator: Emulator, tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    directory = tmp_path / "state"
    journal = directory / "journal-1.jsonl"
    states = [(journal.stat().st_size, state())]
    for _ in range(40):
        random_write(source)
        states.append((journal.stat().st_size, state()))
    assert states[-1][1] != states[0][1]
    for _ in range(25):
        size = source.randint(states[0][0], states[-1][0])
        crashed = tmp_path / "crashed"
        shutil.rmtree(crashed, ignore_errors=True)
        shutil.copytree(directory, crashed)
        os.truncate(crashed / journal.name, size)
        forget()
        recovery = Emulator(crashed).start().store.recovery
        assert recovery is not None
        assert not recovery.is_complete
        # The newest state whose writes are complete in the file: a transaction is there as a whole or not at all.
        expected = [known for end, known in states if end <= size][-1]
        assert state() == expected
        assert recovery.is_torn is (size not in {end for end, _ in states})


def test_stop_leaves_a_snapshot_without_a_journal(emulator: Emulator, tmp_path: Path) -> None:
    for number in range(20):
        random_write(random.Random(number))
    before = state()
    emulator.store.close()
    assert sorted(path.name for path in (tmp_path / "state").glob("*-*")) == ["generation-2"]
    table("PutItem", status=503, TableName="jobs", Item={"pk": {"S": "late"}, "sk": {"S": "x"}})
    forget()
    recovery = Emulator(tmp_path / "state").start().store.recovery
    assert recovery is not None
    assert recovery.is_complete
    assert state() == before


def test_snapshots_beside_writes_and_syncs_lose_nothing(emulator: Emulator, tmp_path: Path) -> None:
    is_done = threading.Event()

    def sync() -> None:
        while not is_done.is_set():
            emulator.store.sync()

    def snapshot() -> None:
        for _ in range(10):
            emulator.store.snapshot()

    threads = [threading.Thread(target=sync), threading.Thread(target=snapshot)]
    for thread in threads:
        thread.start()
    for number in range(300):
        random_write(random.Random(number))
    threads[1].join()
    is_done.set()
    threads[0].join()
    assert emulator.store.status()["failure"] is None
    before = state()
    forget()
    Emulator(tmp_path / "state").start()
    assert state()[0] == before[0]
    assert state()[2] == before[2]


def test_consumed_stream_records_are_left_out_of_a_snapshot(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in "123":
        table("PutItem", TableName="jobs", Item={"pk": {"S": number}, "sk": {"S": "x"}})
    records = state()[1]["jobs"]
    positions = [record["dynamodb"]["SequenceNumber"] for record in records]
    for mapping in ("a", "b"):
        source = {"UUID": mapping, "EventSourceArn": "arn:aws:dynamodb:us-east-1:000000000000:table/jobs/stream/1"}
        monkeypatch.setitem(lambda_svc._esms._data, ("000000000000", "us-east-1", mapping), source)
    for consumed, kept in [
        ({}, 3),
        # A mapping that was never served has no position.
        ({"a": positions[1]}, 3),
        ({"a": positions[1], "b": positions[0]}, 2),
        ({"a": positions[2], "b": positions[2]}, 0),
    ]:
        saved = {"positions": {mapping: {"shard": position} for mapping, position in consumed.items()}}
        (tmp_path / "streams.json").write_text(json.dumps(saved))
        entries = emulator.backend.capture().entries
        assert sum(entry[0] == "stream" for entry in entries) == kept


def test_received_messages_return_to_their_queue_and_deleted_ones_do_not(emulator: Emulator, tmp_path: Path) -> None:
    url = queue("GetQueueUrl", QueueName="one")["QueueUrl"]
    for body in "123":
        queue("SendMessage", QueueUrl=url, MessageBody=body)
    received = queue("ReceiveMessage", QueueUrl=url, VisibilityTimeout=3600)["Messages"]
    deleted = queue("ReceiveMessage", QueueUrl=url, VisibilityTimeout=3600)["Messages"]
    queue("DeleteMessage", QueueUrl=url, ReceiptHandle=deleted[0]["ReceiptHandle"])
    emulator.store.sync()
    forget()
    Emulator(tmp_path / "state").start()
    again = queue("ReceiveMessage", QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    assert len(again) == 2
    assert received[0]["MessageId"] in {message["MessageId"] for message in again}
    assert deleted[0]["MessageId"] not in {message["MessageId"] for message in again}


@pytest.mark.parametrize("ends_by", ["a kill", "a kill after a snapshot", "a stop"])
def test_running_executions_of_the_stack_start_again(emulator: Emulator, tmp_path: Path, ends_by: str) -> None:
    definition = {"StartAt": "W", "States": {"W": {"Type": "Wait", "Seconds": 600, "End": True}}}
    started = {}
    emulator.backend.resume_executions()
    for name in ("vigil-supervisor", "other"):
        request = {"name": name, "definition": json.dumps(definition), "roleArn": "arn:aws:iam::000000000000:role/x"}
        machine = json.loads(stepfunctions._create_state_machine(request)[2])["stateMachineArn"]
        for number in ("1", "2"):
            execution = {"stateMachineArn": machine, "name": f"{name}-{number}", "input": f'{{"n": {number}}}'}
            started[execution["name"]] = json.loads(stepfunctions._start_execution(execution)[2])["executionArn"]
    emulator.store.snapshot()
    stepfunctions._stop_execution({"executionArn": started["vigil-supervisor-1"]})
    if ends_by == "a stop":
        emulator.store.close()
    elif ends_by == "a kill after a snapshot":
        emulator.store.snapshot()
    else:
        emulator.store.sync()
    forget()
    again = Emulator(tmp_path / "state").start()
    again.backend.resume_executions()
    statuses = {name: (stepfunctions._executions.get(arn) or {}).get("status") for name, arn in started.items()}
    # ministack ends the executions of other state machines: their steps may not be repeatable.
    assert statuses["vigil-supervisor-2"] == "RUNNING"
    assert "RUNNING" not in {status for name, status in statuses.items() if name != "vigil-supervisor-2"}
    assert stepfunctions._executions[started["vigil-supervisor-2"]]["input"] == '{"n": 2}'


def test_queues_are_found_on_another_port(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_url = queue("GetQueueUrl", QueueName="one")["QueueUrl"]
    queue("SendMessage", QueueUrl=old_url, MessageBody="moved")
    emulator.store.close()
    forget()
    monkeypatch.setattr(sqs, "DEFAULT_PORT", "4777")
    Emulator(tmp_path / "state", 4777).start()
    url = queue("GetQueueUrl", QueueName="one")["QueueUrl"]
    assert ":4777/" in url
    # ministack serves a mapping only if the queue has the URL of the present port.
    assert sqs._queues.get(url)["url"] == url
    for known in (url, old_url):
        assert (
            queue("GetQueueAttributes", QueueUrl=known, AttributeNames=["All"])["Attributes"][
                "ApproximateNumberOfMessages"
            ]
            == "1"
        )


def test_objects_survive_with_their_tags_and_an_interrupted_replacement_is_completed(
    emulator: Emulator, tmp_path: Path
) -> None:
    bucket("PUT", "/payloads")
    assert bucket("PUT", "/payloads/a/b", b"first", x_amz_tagging="retention=open")[0] == 200
    assert bucket("PUT", "/payloads/gone", b"first")[0] == 200
    assert bucket("PUT", "/payloads/copy", x_amz_copy_source="/payloads/a/b")[0] == 200
    bucket("DELETE", "/payloads/gone")
    emulator.store.sync()
    [content] = (tmp_path / "state/s3").rglob("b")
    content.write_bytes(b"second, longer")
    (content.parent / "c.tmp").touch()
    forget()
    check_objects(tmp_path / "state/s3")
    s3._load_persisted_data()
    status, headers, body = bucket("GET", "/payloads/a/b")
    assert (status, body, headers["Content-Length"]) == (200, b"second, longer", "14")
    assert b"retention" in bucket("GET", "/payloads/a/b?tagging")[2]
    assert bucket("GET", "/payloads/copy")[2] == b"first"
    assert bucket("GET", "/payloads/gone")[0] == 404
    assert not list((tmp_path / "state/s3").rglob("*.tmp"))


def test_unreadable_description_of_an_object_is_refused(emulator: Emulator, tmp_path: Path) -> None:
    bucket("PUT", "/payloads")
    bucket("PUT", "/payloads/a", b"first")
    [description] = (tmp_path / "state/s3").rglob("*.meta.json")
    description.write_text('{"size":')
    with pytest.raises(LocalError, match="--fresh"):
        check_objects(tmp_path / "state/s3")


class TestFullDisk:
    """Writes are refused while they cannot be saved, and are accepted as soon as they can."""

    def test_writes_to_the_table_get_503_until_the_disk_has_space(
        self, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        item = {"pk": {"S": "a"}, "sk": {"S": "x"}}
        with monkeypatch.context() as patch:

            def refuse(*_: Any) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, "pwrite", refuse)
            for _ in range(2):
                refused = table("PutItem", status=503, TableName="jobs", Item=item)
                assert "No space left" in refused["message"]
            assert table("GetItem", TableName="jobs", Key=item)
            emulator.store.sync()
            assert emulator.store.status()["failure"] == "No space left on device"
            with pytest.raises(OSError, match="No space"):
                emulator.store.snapshot()
        emulator.store.sync()
        assert emulator.store.status()["failure"] is None
        table("PutItem", TableName="jobs", Item={**item, "sk": {"S": "y"}})
        before = state()
        forget()
        Emulator(tmp_path / "state").start()
        assert state() == before

    def test_objects_get_503_until_the_disk_has_space(
        self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        bucket("PUT", "/payloads")
        bucket("PUT", "/payloads/a", b"old")
        with monkeypatch.context() as patch:

            def refuse(*_: Any) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, "open", refuse)
            assert bucket("PUT", "/payloads/a", b"new")[0] == 503
            assert bucket("PUT", "/payloads/b", b"new")[0] == 503
            assert bucket("GET", "/payloads/a")[0] == 200
        table("PutItem", status=503, TableName="jobs", Item={"pk": {"S": "a"}, "sk": {"S": "x"}})
        emulator.store.sync()
        assert bucket("PUT", "/payloads/c", b"new")[0] == 200
        forget()
        s3._load_persisted_data()
        assert bucket("GET", "/payloads/a")[2] == b"new"

    def test_snapshot_that_fails_leaves_the_last_good_files(
        self, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        table("PutItem", TableName="jobs", Item={"pk": {"S": "a"}, "sk": {"S": "x"}})
        before = state()
        with monkeypatch.context() as patch:

            def refuse(self: Path, target: Path) -> Path:
                raise OSError(errno.ENOSPC, f"No space left on device for {self} {target}")

            patch.setattr(Path, "rename", refuse)
            with pytest.raises(OSError, match="No space"):
                emulator.store.close()
        names = sorted(path.name for path in (tmp_path / "state").glob("*-*"))
        assert names == ["generation-1", "journal-1.jsonl"]
        forget()
        recovery = Emulator(tmp_path / "state").start().store.recovery
        assert recovery is not None
        assert not recovery.is_complete
        assert state() == before


@pytest.mark.parametrize("name", ["dynamodb.json", "items.jsonl", "manifest.jsonl", "sqs.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_snapshot_is_refused_and_kept(emulator: Emulator, tmp_path: Path, name: str, damage: str) -> None:
    table("PutItem", TableName="jobs", Item={"pk": {"S": "a"}, "sk": {"S": "x"}})
    emulator.store.close()
    path = tmp_path / "state/generation-2" / name
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[:-3])
    elif damage == "flip":
        path.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    else:
        path.unlink()
    left = sorted(entry.name for entry in (tmp_path / "state").rglob("*"))
    forget()
    with pytest.raises(LocalError, match="--fresh") as refused:
        Emulator(tmp_path / "state").start()
    assert name in str(refused.value)
    assert sorted(entry.name for entry in (tmp_path / "state").rglob("*")) == left


def test_state_of_the_earlier_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dynamodb.json").write_text("{}")
    with pytest.raises(LocalError, match="--fresh"):
        Emulator(tmp_path).start()


def test_entries_of_unknown_tables_are_skipped(emulator: Emulator, tmp_path: Path) -> None:
    table(
        "CreateTable",
        TableName="later",
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
    )
    table("PutItem", TableName="later", Item={"pk": {"S": "a"}})
    forget()
    recovery = Emulator(tmp_path / "state").start().store.recovery
    assert recovery is not None
    assert (recovery.writes, recovery.skipped) == (0, 1)
    assert len(list(Reader(tmp_path / "state/journal-1.jsonl"))) == 3
    assert isinstance(dynamodb._tables, AccountRegionScopedDict)
