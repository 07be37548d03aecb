"""The stream poller: it serves DynamoDB stream mappings with AWS's semantics, through public APIs.

Each shard of each mapping has a reader, and each reader has as many lanes as the mapping's parallelisation factor. A
reader wakes if the emulator has new records (`vigil.local.ministack_patches`), and once a second. Records of one
partition key share a lane, so they are delivered in order.
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

from vigil.local import batch_delivery, event_filters
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
# The largest number of records that a reader has read and its function has not processed.
MAX_READ_AHEAD = 2_000
# A page of GetRecords ends at 1,000 records or 1 MB, and the two images of a record have at most 800 KB. A page below
# these limits is complete: no record follows it until the emulator signals one.
# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_streams_GetRecords.html
FULL_PAGE_RECORDS = 1_000
FULL_PAGE_BYTES = 128 * 1024
# The longest time of an invocation on AWS, and 10 seconds more.
INVOKE_TIMEOUT_S = 910
FINISH_TIMEOUT_S = 10.0
BEFORE_FIRST_RECORD = "0"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardProgress:
    """The progress of one mapping in one shard. Every record up to `position` is processed or abandoned."""

    mapping: str
    shard: str
    function: str
    position: str | None
    pending: int
    abandoned: int
    last_error: str | None


class AwsClients:
    """The AWS clients of the poller. Threads may share boto3 clients."""

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
    """The open records of a shard, in the order of the stream. A restart resumes after `position`."""

    def __init__(self, position: str | None) -> None:
        self._position = position
        self._entries: deque[str] = deque()
        self._open: set[str] = set()
        self._changed = threading.Condition()

    def add(self, sequence: str, *, is_matching: bool) -> None:
        """Add the next record. A record that matches no filter is closed from the beginning."""
        with self._changed:
            self._entries.append(sequence)
            if is_matching:
                self._open.add(sequence)
            else:
                self._advance()

    def close(self, sequences: Sequence[str]) -> None:
        """Mark records as processed or abandoned."""
        with self._changed:
            self._open.difference_update(sequences)
            self._advance()
            self._changed.notify_all()

    def _advance(self) -> None:
        while self._entries and self._entries[0] not in self._open:
            self._position = self._entries.popleft()

    @property
    def position(self) -> str | None:
        """The last record before the first open one, or None."""
        return self._position

    @property
    def pending(self) -> int:
        """The number of open records."""
        return len(self._open)

    def wait_below(self, count: int, timeout_s: float) -> None:
        """Wait until fewer than `count` records are open, or until the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._open) < count, timeout_s)


class DeliveryLane(threading.Thread):
    """A thread that delivers the records of some partition keys, one batch at a time."""

    def __init__(self, reader: ShardReader, index: int) -> None:
        super().__init__(name=f"{reader.mapping.function_name}-{index}", daemon=True)
        self._reader = reader
        self._queue: deque[Record] = deque()
        self._filled = threading.Condition()

    def put(self, record: Record) -> None:
        """Add a record to the queue of the lane."""
        with self._filled:
            self._queue.append(record)
            self._filled.notify()

    def wake(self) -> None:
        """Wake the lane, so that it checks whether it should stop."""
        with self._filled:
            self._filled.notify()

    def run(self) -> None:
        """Deliver until the reader stops."""
        while batch := self._next_batch():
            try:
                batch_delivery.deliver(self._reader.mapping, batch, self._reader)
            except Exception:
                # An error of the poller itself. The records stay open, and a restart delivers them again.
                logger.exception("Delivery to %s failed", self._reader.mapping.function_name)
                self._reader.last_error = "the delivery failed; see the supervisor's log"
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
    """A thread that reads one shard for one mapping. It is the `DeliveryTarget` of its lanes."""

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
        self._abandoned = 0

    def wake(self) -> None:
        """Wake the reader, because there may be new records."""
        self._wakeup.set()

    def stop(self) -> None:
        """Start no further invocation."""
        self.stopping.set()
        self._wakeup.set()
        for lane in self._lanes:
            lane.wake()

    def finish(self, timeout_s: float) -> None:
        """Wait for running invocations to end after `stop`."""
        deadline = time.monotonic() + timeout_s
        for thread in [self, *self._lanes]:
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def progress(self) -> ShardProgress:
        """The progress of this reader."""
        return ShardProgress(
            mapping=self.mapping.uuid,
            shard=self.shard,
            function=self.mapping.function_name,
            position=self._tracker.position,
            pending=self._tracker.pending,
            abandoned=self._abandoned,
            last_error=self.last_error,
        )

    def run(self) -> None:
        """Read until `stop`. Retry if the emulator does not answer."""
        for lane in self._lanes:
            lane.start()
        try:
            self._read()
        except Exception:
            # An error of the poller itself. Unread records stay in the stream, and a restart reads them.
            logger.exception("Reading for %s failed", self.mapping.function_name)
            self.last_error = "reading failed; see the supervisor's log"

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
        """Return an iterator after the last record read, otherwise at the starting position of the mapping."""
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
                # That record has expired, so every record left in the stream is newer.
                pass
        return self._oldest_iterator()

    def _oldest_iterator(self) -> str:
        return self._clients.streams.get_shard_iterator(
            StreamArn=self.mapping.stream_arn, ShardId=self.shard, ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]

    def _skip_to_end(self) -> None:
        """Move to the current end of the stream and store that position, so that a restart skips no later record."""
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
        """Read to the end of the shard and return the next iterator. None means: start again at the position."""
        while not self.stopping.is_set():
            self._tracker.wait_below(MAX_READ_AHEAD, POLL_INTERVAL_S)
            if self._tracker.pending >= MAX_READ_AHEAD:
                continue
            response = self._clients.streams.get_records(ShardIterator=iterator)
            size = sum(self._enqueue(raw_record) for raw_record in response["Records"])
            next_iterator = response.get("NextShardIterator")
            if not next_iterator or (len(response["Records"]) < FULL_PAGE_RECORDS and size < FULL_PAGE_BYTES):
                return next_iterator
            iterator = next_iterator
        return iterator

    def _enqueue(self, raw_record: Any) -> int:
        """Pass a record that matches to its lane, and return the length of its text."""
        sequence = raw_record["dynamodb"]["SequenceNumber"]
        record = Record.parse(raw_record, self.mapping)
        is_matching = event_filters.passes(record.event, self.mapping.patterns)
        self._tracker.add(sequence, is_matching=is_matching)
        self._last_read = sequence
        if is_matching:
            self._lanes[zlib.crc32(record.partition.encode()) % len(self._lanes)].put(record)
        return len(record.text)

    # ---------------------------------------------------------------- DeliveryTarget

    def invoke(self, records: Sequence[Record]) -> batch_delivery.Outcome:
        """Invoke the function with these records."""
        try:
            response = self._clients.functions.invoke(
                FunctionName=self.mapping.function_arn, Payload=payload(records).encode()
            )
        except (BotoCoreError, ClientError) as error:
            self.last_error = str(error)
            return batch_delivery.NotInvoked(str(error))
        body = response["Payload"].read()
        if kind := response.get("FunctionError"):
            self.last_error = body.decode(errors="replace")[:500]
            logger.warning("%s failed on %d records: %s", self.mapping.function_name, len(records), self.last_error)
            return batch_delivery.Failed(kind)
        try:
            return batch_delivery.Answered(json.loads(body))
        except ValueError:
            return batch_delivery.Answered(body.decode(errors="replace"))

    def done(self, records: Sequence[Record]) -> None:
        """Mark these records as processed or abandoned."""
        self._tracker.close([record.sequence for record in records])

    def abandon(self, records: Sequence[Record], condition: str, invocations: int, function_error: str | None) -> None:
        """Send the records to the failure destination, and retry until it succeeds: otherwise they would be lost."""
        self._abandoned += len(records)
        logger.error("%s: abandoned %d records (%s)", self.mapping.function_name, len(records), condition)
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
            # Only S3 receives the records themselves, as the text of the event.
            body = json.dumps({**failure, "payload": payload(records)})
            self._clients.buckets.put_object(Bucket=name, Key=key, Body=body.encode())
        elif service == "sqs":
            queue = self._clients.queues.get_queue_url(QueueName=name)["QueueUrl"]
            self._clients.queues.send_message(QueueUrl=queue, MessageBody=json.dumps(failure))
        else:
            self._clients.topics.publish(TopicArn=destination, Message=json.dumps(failure))

    def pause(self, seconds: float) -> bool:
        """Wait, and return False if the poller stops."""
        return not self.stopping.wait(seconds)

    def now(self) -> float:
        """Return the time in seconds since the epoch."""
        return time.time()


class StreamPoller:
    """The readers of all stream mappings. `file` stores their progress for a restart and for `vigil local status`."""

    def __init__(self, endpoint_url: str, wakeup_fd: int, file: Path) -> None:
        self._services = AwsClients(endpoint_url)
        self._wakeup_fd = wakeup_fd
        self._file = file
        saved_state = read_json(file) or {}
        self._positions: dict[str, dict[str, str]] = saved_state.get("positions", {})
        self._readers: dict[tuple[str, str], ShardReader] = {}
        self._saved: object = None

    def listen(self) -> None:
        """Wake the readers, in a thread, if the emulator signals new records."""
        threading.Thread(target=self._listen, name="wakeup", daemon=True).start()

    def refresh(self) -> None:
        """Start and stop readers to match the current mappings, which a deployment may create, change or delete."""
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
        """Write the progress to the file if it has changed."""
        readers = [reader.progress for reader in self._readers.values()]
        for reader in self._readers.values():
            self._record_position(reader)
        if (readers, self._positions) == self._saved:
            return
        write_json(self._file, {"positions": self._positions, "readers": [asdict(progress) for progress in readers]})
        self._saved = (readers, {uuid: dict(shards) for uuid, shards in self._positions.items()})

    def stop(self, timeout_s: float = FINISH_TIMEOUT_S) -> None:
        """Stop all readers, wait for running invocations and save the progress."""
        for reader in self._readers.values():
            reader.stop()
        deadline = time.monotonic() + timeout_s
        for reader in self._readers.values():
            reader.finish(max(0.0, deadline - time.monotonic()))
        self.save()
