"""The harness: Vigil's functions in this process, on the template's table, with every AWS request counted.

The requests go to moto's mock, or to the emulator that AWS_ENDPOINT_URL names.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from types import ModuleType
from typing import Any, TypeAlias
from unittest.mock import patch

import boto3
from botocore import xform_name
from botocore.exceptions import ClientError

import functions.authorizer.handler
import functions.fan_out.handler
import functions.matcher.handler
import functions.notifier.handler
import functions.supervisor.handler
import functions.sweeper.handler
from benchmarks.cost_model import HTTP, INVOCATION, SQS, TRANSITIONS, Bill
from benchmarks.request_counter import RequestCounter
from tests.support.api import Client, LambdaContext, Reply
from tests.support.dead_letters import InvokedFunction
from tests.support.state_machine import Machine, StateFailed
from tests.support.table import TABLE_NAME, create_table
from tests.support.template import resources
from vigil.local.event_filters import passes
from vigil.local.event_source_mapping import Record, StreamMapping
from vigil_core import wiring
from vigil_core.domain.limits import LIMITS
from vigil_core.store import counters, namespaces
from vigil_core.store.keys import Key
from vigil_core.store.table import DynamoTable

NAMESPACE = "bench"
CONSUMERS: dict[str, ModuleType] = {
    "matcher": functions.matcher.handler,
    "notifier": functions.notifier.handler,
}
"""The consumers of the stream, by the name of the template's function."""
QUEUES = {"FAN_OUT_QUEUE_URL": "fan-out.fifo", "SWEEPER_QUEUE_URL": "sweeper"}

Row: TypeAlias = dict[str, Any]


class FanOutContext(LambdaContext):
    """A context with the remaining time of the fan-out function, which runs for minutes."""

    def get_remaining_time_in_millis(self) -> int:
        """Return five minutes."""
        return 300_000


class SweeperContext(LambdaContext):
    """A context with the remaining time of the sweeper function."""

    def get_remaining_time_in_millis(self) -> int:
        """Return a minute."""
        return 60_000


class Harness:
    """The functions, the request counter, and the stream, which `deliver` passes to its consumers."""

    def __init__(self, session: boto3.Session, uncounted_session: boto3.Session) -> None:
        self.client = Client(namespace=NAMESPACE)
        self.rows = uncounted_session.client("dynamodb")
        self.counter = RequestCounter(session, self.rows)
        self._messages = uncounted_session.client("sqs")
        self._stream: Any = uncounted_session.client("dynamodbstreams")
        arn = self.rows.describe_table(TableName=TABLE_NAME)["Table"]["LatestStreamArn"]
        (shard,) = self._stream.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]
        self._shard = {"StreamArn": arn, "ShardId": shard["ShardId"]}
        self.skip_stream()
        self._mappings = {name: _mapping(name, arn) for name in CONSUMERS}
        self._by_function: dict[str, Bill] = {}
        self.supervisors = Machine(
            table=self._call_service,
            act=lambda event: self._run(
                "supervisor", lambda: functions.supervisor.handler.handler(dict(event), LambdaContext())
            ),
        )
        self._states = session.client("dynamodb")

    def call(self, method: str, target: str, json: object = None, *, wait_s: int | None = None) -> Reply:
        """Send one request to the HTTP API. `wait_s` is the longest time of a long poll."""
        self.counter.add(HTTP)
        headers = {} if wait_s is None else {"prefer": f"wait={wait_s}"}
        reply: Reply = self._run("api", lambda: self.client.call(method, target, json, headers=headers))
        return reply

    def deliver(self, *, batch_size: int = 1) -> bool:
        """Pass the stream's records to each consumer whose filters match, until the stream is empty.

        With a batch size of 1, each record is a separate invocation, as if updates were far apart.

        Returns:
            Whether the stream had records.
        """
        delivered = False
        while records := self._read():
            delivered = True
            for name, mapping in self._mappings.items():
                matching = [record for record in records if passes(record.event, mapping.patterns)]
                for start in range(0, len(matching), batch_size):
                    self._invoke_consumer(name, matching[start : start + batch_size])
        return delivered

    def settle_all(self) -> None:
        """Run supervisors, fan-out function and stream until all are idle, in batches of up to 100 records."""
        is_active = True
        while is_active:
            before = self._visited_states
            self.supervisors.run()
            self.counter.add(TRANSITIONS, self._visited_states - before)
            fanned_out = any(list(iter(self._run_fan_out, False)))
            is_active = self.deliver(batch_size=100) or fanned_out or self._visited_states > before

    def authorize(self, event: Row) -> Row:
        """Invoke the authorizer once."""
        answer: Row = self._run("authorizer", lambda: functions.authorizer.handler.handler(event, LambdaContext()))
        return answer

    def tick(self) -> None:
        """Run the sweeper for one minute: it sweeps every partition."""
        answers = [self._run("sweeper", lambda: functions.sweeper.handler.handler({}, LambdaContext()))]
        url = os.environ["SWEEPER_QUEUE_URL"]
        while messages := self._messages.receive_message(QueueUrl=url, MaxNumberOfMessages=1).get("Messages"):
            records = [{"messageId": message["MessageId"], "body": message["Body"]} for message in messages]
            answers.append(
                self._run("sweeper", partial(functions.sweeper.handler.handler, {"Records": records}, SweeperContext()))
            )
            for message in messages:
                self._messages.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        assert not any(answer.get("batchItemFailures") for answer in answers), answers

    def row(self, key: Key) -> Row:
        """Read a row in DynamoDB's JSON, without counting the request."""
        return self.rows.get_item(TableName=TABLE_NAME, Key={"pk": {"S": key.pk}, "sk": {"S": key.sk}})["Item"]

    def put_rows(self, rows: Sequence[Row]) -> None:
        """Store rows without counting the requests."""
        for start in range(0, len(rows), 25):
            puts: list[Any] = [{"PutRequest": {"Item": row}} for row in rows[start : start + 25]]
            answer = self.rows.batch_write_item(RequestItems={TABLE_NAME: puts})
            assert not answer["UnprocessedItems"]

    def skip_stream(self) -> None:
        """Skip the records in the stream."""
        answer = self._stream.get_shard_iterator(**self._shard, ShardIteratorType="LATEST")
        self._iterator = answer["ShardIterator"]

    def create_due_counter(self) -> None:
        """Create the counter row with the due time of the recount, so that no measurement contains its index entry."""
        table = DynamoTable(self.rows, TABLE_NAME)
        first_row = counters.CounterStore(table, now=wiring.now, choose=lambda _: 0)
        first_row.add(NAMESPACE, jobs=1)
        first_row.add(NAMESPACE, jobs=-1)

    @contextmanager
    def billed(self) -> Iterator[Callable[[str | None], Bill]]:
        """Count inside the block. The given function returns the bill in total or of one function."""
        before, parts_before = self.counter.bill, dict(self._by_function)

        def bill(function: str | None = None) -> Bill:
            if function is None:
                return self.counter.bill - before
            return self._by_function.get(function, Bill()) - parts_before.get(function, Bill())

        yield bill

    @property
    def _visited_states(self) -> int:
        """The number of states that supervisors have entered."""
        return sum(len(execution.visited) for execution in self.supervisors.executions.values())

    def _run_fan_out(self) -> bool:
        """Process one message of the fan-out queue, if there is one. Its receipt and deletion are one request each."""
        url = os.environ["FAN_OUT_QUEUE_URL"]
        messages = self._messages.receive_message(QueueUrl=url, MaxNumberOfMessages=1).get("Messages", [])
        for message in messages:
            record = {"messageId": message["MessageId"], "body": message["Body"]}
            event = {"Records": [{**record, "receiptHandle": message["ReceiptHandle"]}]}
            self._run("fan_out", partial(functions.fan_out.handler.handler, event, FanOutContext()))
            self._messages.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            self.counter.add(SQS, 2)
        return bool(messages)

    def _call_service(self, operation: str, request: Mapping[str, Any]) -> Any:
        """Send a request of the supervisor's state machine to DynamoDB."""
        call = getattr(self._states, xform_name(operation))
        try:
            answer = call(**{**request, "TableName": TABLE_NAME})
        except ClientError as error:
            raise StateFailed(f"DynamoDb.{error.response['Error']['Code']}") from error
        return {name: value for name, value in answer.items() if name != "ResponseMetadata"}

    def _invoke_consumer(self, name: str, records: Sequence[Record]) -> None:
        event = {"Records": [json.loads(record.text) for record in records]}
        for record in event["Records"]:
            # A late record costs two write units more. The duration of a test must not decide about that.
            record["dynamodb"]["ApproximateCreationDateTime"] = time.time()
        answer = self._run(name, lambda: CONSUMERS[name].handler(event, InvokedFunction()))
        assert not answer["batchItemFailures"], (name, answer)

    def _run(self, function: str, work: Callable[[], Any]) -> Any:
        before = self.counter.bill
        self.counter.add(f"{INVOCATION}{function}")
        done = work()
        self._by_function[function] = self._by_function.get(function, Bill()) + (self.counter.bill - before)
        return done

    def _read(self) -> list[Record]:
        records: list[Record] = []
        any_mapping = self._mappings["matcher"]
        while True:
            answer = self._stream.get_records(ShardIterator=self._iterator)
            self._iterator = answer["NextShardIterator"]
            if not answer["Records"]:
                return records
            records += [Record.parse(raw_record, any_mapping) for raw_record in answer["Records"]]


@contextmanager
def open_harness() -> Iterator[Harness]:
    """Open a harness with an empty table and new queues.

    Only one can be open at a time, because the functions' clients belong to the process.
    """
    boto3.setup_default_session()
    uncounted_session = boto3.Session()
    create_table()
    variables = {"TABLE_NAME": TABLE_NAME, "WEBSOCKET_ENDPOINT": "http://localhost/none"}
    queues = uncounted_session.client("sqs")
    for variable, name in QUEUES.items():
        attributes: Any = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
        variables[variable] = queues.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
    variables["TOPIC_ARN"] = uncounted_session.client("sns").create_topic(Name="announcements")["TopicArn"]
    session = boto3.DEFAULT_SESSION
    assert session is not None
    try:
        with patch.dict(os.environ, variables):
            _forget_clients()
            new_harness = Harness(session, uncounted_session)
            new_harness.create_due_counter()
            with (
                patch.object(wiring, "StepFunctionsSupervisors", lambda *_: new_harness.supervisors),
                # A process reads these rows once in a time, not once in a request: no measurement contains the read.
                patch.object(counters, "CACHE", timedelta(days=1)),
                patch.object(namespaces, "SETTINGS_CACHE", timedelta(days=1)),
                patch.dict(LIMITS, {"requests_per_second": replace(LIMITS["requests_per_second"], default=10**9)}),
            ):
                yield new_harness
    finally:
        _forget_clients()
        boto3.DEFAULT_SESSION = None


def _forget_clients() -> None:
    for built in [*vars(wiring).values(), functions.authorizer.handler.auth_context]:
        if hasattr(built, "cache_clear"):
            built.cache_clear()


def _mapping(function: str, stream_arn: str) -> StreamMapping:
    """Return the template's mapping of the stream to a function."""
    function_ref = {"Ref": f"{function.capitalize()}Function"}
    (properties,) = (
        mapping
        for mapping in resources("AWS::Lambda::EventSourceMapping").values()
        if mapping["FunctionName"] == function_ref
    )
    identity = {"UUID": function, "FunctionArn": f"arn:aws:lambda:::function:{function}", "State": "Enabled"}
    settings = {name: properties[name] for name in ("BatchSize", "FilterCriteria")}
    return StreamMapping.parse({**identity, **settings, "EventSourceArn": stream_arn})
