"""Faults of the emulator and their patches. Tests without the patch show the fault, tests with it the fix."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import io
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ministack.core import iam_actions, lambda_runtime
from ministack.services import dynamodb, lambda_svc

from vigil.local import ministack_patches


@pytest.fixture(autouse=True)
def _unpatched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove the patches and the stored data of a test after it."""
    for module, name in [
        (dynamodb, "_emit_stream_event"),
        (lambda_svc, "_poll_dynamodb_streams"),
        (lambda_svc, "_resolve_layer_zip"),
        (lambda_svc, "_sqs_esm_concurrency"),
        (lambda_runtime.Worker, "_spawn"),
        (iam_actions, "extract_iam_action"),
        (iam_actions, "extract_resource_arn"),
    ]:
        monkeypatch.setattr(module, name, getattr(module, name))
    dynamodb.reset()
    yield
    dynamodb.reset()


def call(action: str, **request: Any) -> None:
    headers = {"x-amz-target": f"DynamoDB_20120810.{action}"}
    status, _, body = asyncio.run(dynamodb.handle_request("POST", "/", headers, json.dumps(request).encode(), {}))
    assert status == 200, body


def table_with_one_item() -> None:
    call(
        "CreateTable",
        TableName="jobs",
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    call("PutItem", TableName="jobs", Item={"pk": {"S": "one"}})


def sequences() -> list[str]:
    return [record["dynamodb"]["SequenceNumber"] for record in dynamodb.stream_records_since("jobs", 0, 10)]


def fill_pipe(pipe: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b"." * 65536)


class TestRecordSignal:
    def test_each_record_writes_one_byte_to_the_pipe(self) -> None:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        try:
            table_with_one_item()
            with pytest.raises(BlockingIOError):
                os.read(read_end, 100)
            ministack_patches.signal_stream_records(write_end)
            call("PutItem", TableName="jobs", Item={"pk": {"S": "two"}})
            call("PutItem", TableName="jobs", Item={"pk": {"S": "three"}})
            assert len(os.read(read_end, 100)) == 2
        finally:
            os.close(read_end)
            os.close(write_end)

    def test_full_or_closed_pipe_does_not_fail_a_table_write(self) -> None:
        read_end, write_end = os.pipe()
        table_with_one_item()
        ministack_patches.signal_stream_records(write_end)
        try:
            fill_pipe(write_end)
            call("PutItem", TableName="jobs", Item={"pk": {"S": "full"}})
        finally:
            os.close(read_end)
        call("PutItem", TableName="jobs", Item={"pk": {"S": "deaf"}})
        os.close(write_end)
        assert len(sequences()) == 3


class TestMappings:
    def test_patched_emulator_leaves_stream_mappings_to_the_poller(self, monkeypatch: pytest.MonkeyPatch) -> None:
        polled: list[str] = []

        def mappings() -> list[Any]:
            polled.append("mappings")
            return []

        monkeypatch.setattr(lambda_svc, "_iter_all_esms", mappings)
        assert lambda_svc._poll_dynamodb_streams() is False
        assert polled == ["mappings"]
        ministack_patches.disable_stream_poller()
        assert lambda_svc._poll_dynamodb_streams() is False
        assert polled == ["mappings"]


# The emulator does not close the pipes of a process that it stops. The garbage collector closes them.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
class TestLayers:
    FUNCTION = "from shared import WORD\n\ndef handler(event, context):\n    print(WORD)\n    return WORD\n"
    CONFIG: dict[str, Any] = {  # noqa: RUF012
        "FunctionName": "f",
        "FunctionArn": "arn:aws:lambda:us-east-1:000000000000:function:f",
        "Runtime": "python3.11",
        "Handler": "handler.handler",
        "Role": "arn:aws:iam::000000000000:role/r",
        "Layers": [{"Arn": "arn:aws:lambda:us-east-1:000000000000:layer:l:1"}],
        "Environment": {"Variables": {"OWN": "1"}},
    }

    @pytest.fixture
    def workers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
        layer = self.zipped("python/shared.py", 'WORD = "from the layer"\n')
        monkeypatch.setattr(lambda_svc, "_resolve_layer_zip", lambda _: layer)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setenv("GATEWAY_PORT", "1")
        code = self.zipped("handler.py", self.FUNCTION)
        workers = [lambda_runtime.Worker("f", dict(self.CONFIG), code) for _ in range(2)]
        yield workers
        for worker in workers:
            worker.kill()

    @staticmethod
    def zipped(name: str, content: str) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, content)
        return file.getvalue()

    def answers(self, workers: list[Any]) -> list[Any]:
        return [worker.invoke({}, "request")["result"] for worker in workers]

    def test_layer_is_unpacked_per_process_without_the_patch(self, workers: list[Any], tmp_path: Path) -> None:
        assert self.answers(workers) == ["from the layer"] * 2
        assert len(list(tmp_path.rglob("shared.py"))) == 2

    def test_layer_is_unpacked_once_with_the_patch(self, workers: list[Any], tmp_path: Path) -> None:
        ministack_patches.share_layers()
        assert self.answers(workers) == ["from the layer"] * 2
        assert len(list(tmp_path.rglob("shared.py"))) == 1
        assert [worker.config for worker in workers] == [self.CONFIG] * 2

    def test_concurrent_workers_unpack_the_layer_once(self, workers: list[Any], tmp_path: Path) -> None:
        ministack_patches.share_layers()
        threads = [threading.Thread(target=worker.invoke, args=({}, "request")) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(tmp_path.rglob("shared.py"))) == 1


def test_other_emulator_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ministack_patches.check_version()
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "9.9.9")
    with pytest.raises(RuntimeError, match=r"9\.9\.9"):
        ministack_patches.check_version()


class TestActions:
    @staticmethod
    def needed(service: str, operation: str) -> object:
        form = f"Action={operation}".encode()
        headers = {"content-type": "application/x-www-form-urlencoded"}
        return iam_actions.extract_iam_action(service, "POST", "/", headers, form, {})

    def test_batch_call_requires_a_nonexistent_action_without_the_patch(self) -> None:
        assert self.needed("sns", "PublishBatch") == "sns:PublishBatch"

    def test_batch_call_requires_the_single_message_action_with_the_patch(self) -> None:
        ministack_patches.authorize_batches_as_messages()
        assert self.needed("sns", "PublishBatch") == "sns:Publish"
        assert self.needed("sqs", "SendMessageBatch") == "sqs:SendMessage"
        assert self.needed("sqs", "ReceiveMessage") == "sqs:ReceiveMessage"


class TestScheduleGroups:
    CREATE: Any = ("POST", json.dumps({"GroupName": "mine"}).encode(), {})
    DELETE: Any = ("DELETE", b"", {"groupName": ["mine"]})

    @staticmethod
    def resource(method: str, body: bytes, query: Any) -> object:
        rest = ("us-east-1", "1")
        return iam_actions.extract_resource_arn("scheduler", method, "/schedules/s", {}, body, query, *rest)

    @pytest.mark.parametrize("request_", [CREATE, DELETE])
    def test_schedule_group_is_always_default_without_the_patch(self, request_: Any) -> None:
        assert self.resource(*request_) == "arn:aws:scheduler:us-east-1:1:schedule/default/s"

    @pytest.mark.parametrize("request_", [CREATE, DELETE])
    def test_schedule_group_is_named_in_the_arn_with_the_patch(self, request_: Any) -> None:
        ministack_patches.authorize_schedules_by_group()
        assert self.resource(*request_) == "arn:aws:scheduler:us-east-1:1:schedule/mine/s"
        assert self.resource("POST", b"{}", {}) == "arn:aws:scheduler:us-east-1:1:schedule/default/s"


def test_groups_of_a_fifo_queue_are_processed_in_parallel_if_a_batch_has_one_message() -> None:
    mapping = {"BatchSize": 1, "ScalingConfig": {"MaximumConcurrency": 10}}
    queue = {"is_fifo": True}
    assert lambda_svc._sqs_esm_concurrency(mapping, {}, {}, queue) == 1
    ministack_patches.deliver_groups_in_parallel()
    assert lambda_svc._sqs_esm_concurrency(mapping, {}, {}, queue) == 10
    assert lambda_svc._sqs_esm_concurrency({**mapping, "BatchSize": 10}, {}, {}, queue) == 1
