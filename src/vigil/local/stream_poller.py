"""Serves DynamoDB stream mappings with AWS's semantics, over public APIs alone: a reader for each shard of each
mapping, and as many lanes behind it as the mapping's parallelisation factor.

A reader wakes when the emulator has new records (`vigil.local.ministack_patches`), and polls once a
second. Records of one partition key share a lane, so they are delivered in order.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from vigil.local import batch_delivery as delivery
from vigil.local import event_filters as filters
from vigil.local.event_source_mapping import Record, StreamMapping, failure_key, failure_record, payload, take_batch
from vigil.local.stack import client_config, session
from vigil.local.state_dir import read_json, write_json

if TYPE_CHECKING:
    from mypy_boto3_dynamodbstreams.client import DynamoDBStreamsClient
    from mypy_boto3_lambda.client import LambdaClient
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_sns.client import SNSClient
    from mypy_boto3_sqs.client import SQSClient

POLL_INTERVAL_S = 1.0
# A reader does not run ahead of its function by more than this many records.
MAX_READ_AHEAD = 2_000
# A page of GetRecords ends at 1,000 records or 1 MB, and a record's two images have at most 800 KB: what stays below
# these was not cut off, so there is nothing behind it until the bell rings again.
# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_streams_GetRecords.html
FULL_PAGE_RECORDS = 1_000
FULL_PAGE_BYTES = 128 * 1024
# The longest that a function may run on AWS, and then some.
INVOKE_TIMEOUT_S = 910
FINISH_TIMEOUT_S = 10.0
BEFORE_FIRST_RECORD = "0"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardProgress:
    """How far one shard of one mapping has come: every record up to `position` is handled or given up."""

    mapping: str
    shard: str
    function: str
    position: str | None
    pending: int
    given_up: int
    last_error: str | None


class AwsClients:
    """The clients that the pump works with; boto3's clients may be shared by threads."""

    def __init__(self, endpoint_url: str) -> None:
        aws = session()
        config = client_config()
        self.streams: DynamoDBStreamsClient = aws.client("dynamodbstreams", endpoint_url=endpoint_url, config=config)
        self.functions: LambdaClient = aws.client(
            "lambda",
            endpoint_url=endpoint_url,
            config=client_config(read_timeout_s=INVOKE_TIMEOUT_S, retries=0, connections=64),
        )
        self.buckets: S3Client = aws.client("s3", endpoint_url=endpoint_url, config=config)
        self.queues: SQSClient = aws.client("sqs", endpoint_url=endpoint_url, config=config)
        self.topics: SNSClient = aws.client("sns", endpoint_url=endpoint_url, config=config)


class SequenceTracker:
    """Which records of a shard are still open, in the order of the stream; its position is where a restart resumes."""

    def __init__(self, position: str | None) -> None:
        self._position = position
        self._entries: deque[str] = deque()
        self._open: set[str] = set()
        self._changed = threading.Condition()

    def add(self, sequence: str, *, is_matching: bool) -> None:
        """The next record was read; one that no filter lets through is closed from the start."""
        with self._changed:
            self._entries.append(sequence)
            if is_matching:
                self._open.add(sequence)
            else:
                self._advance()

    def close(self, sequences: Sequence[str]) -> None:
        """These are handled or given up."""
        with self._changed:
            self._open.difference_update(sequences)
            self._advance()
            self._changed.notify_all()

    def _advance(self) -> None:
        while self._entries and self._entries[0] not in self._open:
            self._position = self._entries.popleft()

    @property
    def position(self) -> str | None:
        """The last record before the first open one; None when there was none yet."""
        return self._position

    @property
    def pending(self) -> int:
        """Records read and not yet handled."""
        return len(self._open)

    def wait_below(self, count: int, timeout_s: float) -> None:
        """Wait until fewer are open, or until the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._open) < count, timeout_s)


class DeliveryLane(threading.Thread):
    """Delivers the records of some partition keys, a batch at a time."""

    def __init__(self, reader: ShardReader, index: int) -> None:
        super().__init__(name=f"{reader.mapping.function_name}-{index}", daemon=True)
        self._reader = reader
        self._queue: deque[Record] = deque()
        self._filled = threading.Condition()

    def put(self, record: Record) -> None:
        """Add a record to what is to be delivered."""
        with self._filled:
            self._queue.append(record)
            self._filled.notify()

    def wake(self) -> None:
        """Have it look whether it should stop."""
        with self._filled:
            self._filled.notify()

    def run(self) -> None:
        """Deliver until the reader stops."""
        while batch := self._next_batch():
            try:
                delivery.deliver(self._reader.mapping, batch, self._reader)
            except Exception:
                # A fault of the pump's own: the records stay open, so nothing is lost, and a restart tries again.
                logger.exception("Delivery to %s broke off", self._reader.mapping.function_name)
                self._reader.last_error = "delivery broke off; see the supervisor's log"
                return

    def _next_batch(self) -> list[Record]:
        mapping, stopping = self._reader.mapping, self._reader.stopping
        with self._filled:
            self._filled.wait_for(lambda: self._queue or stopping.is_set())
            if mapping.batching_window_s:
                self._filled.wait_for(
                    lambda: len(self._queue) >= mapping.batch_size or stopping.is_set(), mapping.batching_window_s
                )
            if stopping.is_set():
                return []
            batch = take_batch(
                [self._queue[i] for i in range(min(len(self._queue), mapping.batch_size))], mapping.batch_size
            )
            for _ in batch:
                self._queue.popleft()
            return batch


class ShardReader(threading.Thread):
    """Reads one shard for one mapping, and carries what its lanes deliver (`delivery.Courier`)."""

    def __init__(self, clients: AwsClients, mapping: StreamMapping, shard: str, position: str | None) -> None:
        super().__init__(name=f"{mapping.function_name}-reader", daemon=True)
        self.mapping = mapping
        self.shard = shard
        self.stopping = threading.Event()
        self.last_error: str | None = None
        self._clients = clients
        self._wakeup = threading.Event()
        self._tracker = SequenceTracker(position)
        self._last_read = position
        self._lanes = [DeliveryLane(self, index) for index in range(mapping.parallelization)]
        self._given_up = 0

    def wake(self) -> None:
        """There may be new records."""
        self._wakeup.set()

    def stop(self) -> None:
        """Begin no further invocation."""
        self.stopping.set()
        self._wakeup.set()
        for lane in self._lanes:
            lane.wake()

    def finish(self, timeout_s: float) -> None:
        """Wait for invocations under way after `stop`."""
        deadline = time.monotonic() + timeout_s
        for thread in [self, *self._lanes]:
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def progress(self) -> ShardProgress:
        """How far it has come."""
        return ShardProgress(
            mapping=self.mapping.uuid,
            shard=self.shard,
            function=self.mapping.function_name,
            position=self._tracker.position,
            pending=self._tracker.pending,
            given_up=self._given_up,
            last_error=self.last_error,
        )

    def run(self) -> None:
        """Read until stopped; an emulator that does not answer is asked again."""
        for lane in self._lanes:
            lane.start()
        try:
            self._read()
        except Exception:
            # A fault of the pump's own: what is not read stays in the stream, and a restart tries again.
            logger.exception("Reading for %s broke off", self.mapping.function_name)
            self.last_error = "reading broke off; see the supervisor's log"

    def _read(self) -> None:
        iterator: str | None = None
        while not self.stopping.is_set():
            self._wakeup.clear()
            try:
                iterator = self._read_on(iterator or self._iterator())
            except (BotoCoreError, ClientError) as error:
                iterator = None
                self.last_error = str(error)
                logger.warning("Reading %s for %s: %s", self.shard, self.mapping.function_name, error)
                self.stopping.wait(POLL_INTERVAL_S)
            self._wakeup.wait(POLL_INTERVAL_S)

    def _iterator(self) -> str:
        """Where to read on: after the last record read, else where the mapping says to start."""
        if self._last_read is None and self.mapping.starting_position == "LATEST":
            self._skip_to_end()
        if self._last_read is not None:
            try:
                return self._clients.streams.get_shard_iterator(
                    StreamArn=self.mapping.stream_arn,
                    ShardId=self.shard,
                    ShardIteratorType="AFTER_SEQUENCE_NUMBER",
                    SequenceNumber=self._last_read,
                )["ShardIterator"]
            except self._clients.streams.exceptions.TrimmedDataAccessException:
                # That record is gone, so whatever the stream still holds is newer.
                pass
        return self._oldest_iterator()

    def _oldest_iterator(self) -> str:
        return self._clients.streams.get_shard_iterator(
            StreamArn=self.mapping.stream_arn, ShardId=self.shard, ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]

    def _skip_to_end(self) -> None:
        """Start after what is there now, and remember so: a restart must not skip what comes later."""
        self._last_read = BEFORE_FIRST_RECORD
        iterator: str | None = self._oldest_iterator()
        while iterator:
            response = self._clients.streams.get_records(ShardIterator=iterator)
            if not response["Records"]:
                break
            self._last_read = response["Records"][-1]["dynamodb"]["SequenceNumber"]
            iterator = response.get("NextShardIterator")
        self._tracker = SequenceTracker(self._last_read)

    def _read_on(self, iterator: str) -> str | None:
        """Read until there is nothing left. Returns the next iterator; None begins again at the position."""
        while not self.stopping.is_set():
            self._tracker.wait_below(MAX_READ_AHEAD, POLL_INTERVAL_S)
            if self._tracker.pending >= MAX_READ_AHEAD:
                continue
            response = self._clients.streams.get_records(ShardIterator=iterator)
            size = sum(self._enqueue(found) for found in response["Records"])
            next_iterator = response.get("NextShardIterator")
            if not next_iterator or (len(response["Records"]) < FULL_PAGE_RECORDS and size < FULL_PAGE_BYTES):
                return next_iterator
            iterator = next_iterator
        return iterator

    def _enqueue(self, raw_record: Any) -> int:
        """Returns the record's length as text."""
        sequence = raw_record["dynamodb"]["SequenceNumber"]
        record = Record.parse(raw_record, self.mapping)
        is_matching = filters.passes(record.event, self.mapping.patterns)
        self._tracker.add(sequence, is_matching=is_matching)
        self._last_read = sequence
        if is_matching:
            self._lanes[zlib.crc32(record.partition.encode()) % len(self._lanes)].put(record)
        return len(record.text)

    # ---------------------------------------------------------------- delivery.Courier

    def invoke(self, records: Sequence[Record]) -> delivery.Outcome:
        """Call the function with these records."""
        try:
            response = self._clients.functions.invoke(
                FunctionName=self.mapping.function_arn, Payload=payload(records).encode()
            )
        except (BotoCoreError, ClientError) as error:
            self.last_error = str(error)
            return delivery.NotInvoked(str(error))
        body = response["Payload"].read()
        if kind := response.get("FunctionError"):
            self.last_error = body.decode(errors="replace")[:500]
            logger.warning("%s failed on %d records: %s", self.mapping.function_name, len(records), self.last_error)
            return delivery.Failed(kind)
        try:
            return delivery.Answered(json.loads(body))
        except ValueError:
            return delivery.Answered(body.decode(errors="replace"))

    def done(self, records: Sequence[Record]) -> None:
        """These are handled, or given up."""
        self._tracker.close([record.sequence for record in records])

    def give_up(self, records: Sequence[Record], condition: str, invocations: int, function_error: str | None) -> None:
        """Tell the failure destination, as often as it takes: what it is not told is lost."""
        self._given_up += len(records)
        logger.error("%s: gave up %d records (%s)", self.mapping.function_name, len(records), condition)
        if self.mapping.failure_destination is None:
            return
        now = datetime.now(UTC)
        failure = failure_record(
            self.mapping,
            self.shard,
            records,
            condition=condition,
            invocations=invocations,
            function_error=function_error,
            now=now,
        )
        key = failure_key(self.mapping, self.shard, now)
        while True:
            try:
                self._send_failure(self.mapping.failure_destination, failure, key, records)
            except (BotoCoreError, ClientError) as error:
                self.last_error = f"failure destination: {error}"
                logger.warning("%s: %s", self.mapping.function_name, self.last_error)
                if not self.pause(1.0):
                    raise
            else:
                return

    def _send_failure(self, destination: str, failure: dict[str, Any], key: str, records: Sequence[Record]) -> None:
        service, name = destination.split(":")[2], destination.rsplit(":", maxsplit=1)[-1]
        if service == "s3":
            # Only S3 gets the records themselves; the event is kept as text.
            body = json.dumps({**failure, "payload": payload(records)})
            self._clients.buckets.put_object(Bucket=name, Key=key, Body=body.encode())
        elif service == "sqs":
            queue = self._clients.queues.get_queue_url(QueueName=name)["QueueUrl"]
            self._clients.queues.send_message(QueueUrl=queue, MessageBody=json.dumps(failure))
        else:
            self._clients.topics.publish(TopicArn=destination, Message=json.dumps(failure))

    def pause(self, seconds: float) -> bool:
        """Wait; False when the pump stops."""
        return not self.stopping.wait(seconds)

    def now(self) -> float:
        """The time, in seconds since the epoch."""
        return time.time()


class StreamPoller:
    """All stream mappings of the emulator. `file` keeps their progress, for a restart and for `vigil local status`."""

    def __init__(self, endpoint_url: str, wakeup_fd: int, file: Path) -> None:
        self._services = AwsClients(endpoint_url)
        self._wakeup_fd = wakeup_fd
        self._file = file
        kept = read_json(file) or {}
        self._positions: dict[str, dict[str, str]] = kept.get("positions", {})
        self._readers: dict[tuple[str, str], ShardReader] = {}
        self._saved: object = None

    def listen(self) -> None:
        """Wake the readers whenever the bell rings."""
        threading.Thread(target=self._listen, name="bell", daemon=True).start()

    def refresh(self) -> None:
        """Serve what is mapped now: mappings come, change and go with deployments."""
        expected: dict[tuple[str, str], StreamMapping] = {}
        known: set[str] = set()
        pages = self._services.functions.get_paginator("list_event_source_mappings").paginate()
        for described in (entry for page in pages for entry in page["EventSourceMappings"]):
            if ":dynamodb:" not in described.get("EventSourceArn", ""):
                continue
            mapping = StreamMapping.parse(described)
            known.add(mapping.uuid)
            if mapping.enabled:
                for shard in self._shards(mapping):
                    expected[mapping.uuid, shard] = mapping
        for key, reader in list(self._readers.items()):
            if expected.get(key) != reader.mapping:
                self._stop_reader(key)
        self._positions = {uuid: shards for uuid, shards in self._positions.items() if uuid in known}
        for (uuid, shard), mapping in expected.items():
            if (uuid, shard) not in self._readers:
                reader = ShardReader(self._services, mapping, shard, self._positions.get(uuid, {}).get(shard))
                self._readers[uuid, shard] = reader
                reader.start()
                logger.info("Serving %s from %s", mapping.function_name, shard)

    def _shards(self, mapping: StreamMapping) -> list[str]:
        served = [shard for uuid, shard in self._readers if uuid == mapping.uuid]
        if served:
            return served
        described = self._services.streams.describe_stream(StreamArn=mapping.stream_arn)
        return [shard["ShardId"] for shard in described["StreamDescription"]["Shards"]]

    def _stop_reader(self, key: tuple[str, str]) -> None:
        reader = self._readers[key]
        reader.stop()
        reader.finish(FINISH_TIMEOUT_S)
        self._record_position(reader)
        del self._readers[key]

    def _record_position(self, reader: ShardReader) -> None:
        if position := reader.progress.position:
            self._positions.setdefault(reader.mapping.uuid, {})[reader.shard] = position

    def _listen(self) -> None:
        while os.read(self._wakeup_fd, 65536):
            for reader in list(self._readers.values()):
                reader.wake()

    def save(self) -> None:
        """Keep the progress, if it has changed since the last time."""
        readers = [reader.progress for reader in self._readers.values()]
        for reader in self._readers.values():
            self._record_position(reader)
        if (readers, self._positions) == self._saved:
            return
        write_json(self._file, {"positions": self._positions, "readers": [asdict(progress) for progress in readers]})
        self._saved = (readers, {uuid: dict(shards) for uuid, shards in self._positions.items()})

    def stop(self) -> None:
        """End invocations under way, begin none, and keep the progress."""
        for reader in self._readers.values():
            reader.stop()
        for reader in self._readers.values():
            reader.finish(FINISH_TIMEOUT_S)
        self.save()
