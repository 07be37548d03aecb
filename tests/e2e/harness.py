"""Drive a stack from outside: HTTP clients, WebSockets, SNS messages, and the AWS services behind it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import uuid4

import httpx
import simplejson
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_websocket

from tests.support.receiver import Receiver
from tests.support.template import resources
from vigil.local import Stack
from vigil.local.stack import client_config, session

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient
    from mypy_boto3_lambda.client import LambdaClient
    from mypy_boto3_logs.client import CloudWatchLogsClient
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_scheduler.client import EventBridgeSchedulerClient
    from mypy_boto3_sns.client import SNSClient
    from mypy_boto3_sqs.client import SQSClient

T = TypeVar("T")

VIGIL = Path(sys.executable).parent / "vigil"
FAULT_INJECTION = Path(__file__).parent / "fault_injection.py"
# The longest long poll, including a cold start on a busy machine.
RESPONSE_TIMEOUT_S = 60


def eventually(condition: Callable[[], T], within_s: float = 20, *, every_s: float = 0.05, what: str = "") -> T:
    """Return the condition's value once it is true; fail with its last value or its last error."""
    deadline = time.monotonic() + within_s
    while True:
        complaint: AssertionError | None = None
        seen: object = None
        try:
            if value := condition():
                return value
            seen = value
        except AssertionError as error:
            complaint = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what or 'not'} within {within_s} s; last seen: {seen!r}") from complaint
        time.sleep(every_s)


@contextmanager
def in_background(work: Callable[[], T]) -> Iterator[Future[T]]:
    """Run work in a thread while the block runs; the block ends when both have ended."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool.submit(work)


def in_parallel(work: Callable[[Any], T], items: Sequence[Any], at_once: int) -> list[T]:
    """Run work on every item with a limited number of threads; return the results in order."""
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        return list(pool.map(work, items))


def vigil(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in the directory of a stack."""
    return subprocess.run([VIGIL, *arguments], cwd=directory, capture_output=True, text=True, timeout=120, check=False)


@dataclass(frozen=True)
class Key:
    """An API key; by default in a namespace of its own."""

    namespace: str
    key_id: str
    token: str


class Client:
    """An HTTP client with one key. Every method except `call` expects success, and fails with the response."""

    def __init__(self, stack: Stack, token: str | None, transport: httpx.BaseTransport | None = None) -> None:
        self.http = httpx.Client(
            base_url=stack.api_url,
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=RESPONSE_TIMEOUT_S,
            limits=httpx.Limits(max_connections=64),
            trust_env=False,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def call(
        self, method: str, path: str, body: Any = None, *, prefer: str | None = None, **headers: str
    ) -> httpx.Response:
        """Send a request. Underscores in a header's name become hyphens; `prefer` is the header of that name."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if prefer is not None:
            given["prefer"] = prefer
        content = None if body is None else simplejson.dumps(body, use_decimal=True)
        return self.http.request(method, path, content=content, headers=given)

    def get(self, path: str, **headers: str) -> Any:
        """Return the body of a 200."""
        return body_of(self.call("GET", path, **headers))

    def post(self, path: str, body: Any = None, *, status: int = 200, **headers: str) -> Any:
        """Return the body of a response with this status."""
        return body_of(self.call("POST", path, body, **headers), status)

    def put_webhook(self, name: str, receiver: Receiver | None, *events: str) -> str:
        """Create a webhook; return its secret."""
        body = {"url": receiver.url, "events": list(events)} if receiver else {}
        return str(body_of(self.call("PUT", f"/v1/webhooks/{name}", body), 201)["secret"])

    # Jobs

    def job(self, **wanted: Any) -> str:
        """Create a job; return its id."""
        return str(self.post("/v1/jobs", {"job_type": "test", **wanted}, status=202)["job_id"])

    def running(self, **wanted: Any) -> str:
        """Create a running job; return its id."""
        job_id = self.job(**wanted)
        self.start(job_id)
        return job_id

    def jobs(self, count: int, **wanted: Any) -> list[str]:
        """Create many jobs; return their ids."""
        made: list[str] = []
        for first in range(0, count, 100):
            several = [{"job_type": "test", **wanted} for _ in range(first, min(first + 100, count))]
            made += [result["job_id"] for result in self.post("/v1/jobs/bulk", {"jobs": several})["results"]]
        return made

    def start(self, job_id: str) -> Any:
        return self.post(f"/v1/jobs/{job_id}/start")

    def report(self, job_id: str, **told: Any) -> Any:
        return body_of(self.call("PATCH", f"/v1/jobs/{job_id}", told))

    def complete(self, job_id: str, **told: Any) -> Any:
        return self.post(f"/v1/jobs/{job_id}/complete", told)

    def fail(self, job_id: str, code: str = "BROKEN", **told: Any) -> Any:
        return self.post(f"/v1/jobs/{job_id}/fail", {"error": {"code": code, "message": "it broke"}, **told})

    # Waits

    def wait(self, wait_on: Mapping[str, Any], *, hold_s: int = 0, **options: Any) -> Any:
        """Post a wait; return the response."""
        return self.post_wait({"wait_on": wait_on, "wait_options": options}, hold_s=hold_s)

    def post_wait(self, body: Any, *, hold_s: int = 0, path: str = "/v1/waits") -> Any:
        """Post a wait, or a response to continue its wait; return the response."""
        return self.post(path, body, prefer=f"wait={hold_s}")

    def follow(self, answer: Any, *, within_s: float = 30, hold_s: int = 2) -> Any:
        """Run a client's whole loop: post each response back until it has no `wait_on`."""
        deadline = time.monotonic() + within_s
        while "wait_on" in answer:
            assert time.monotonic() < deadline, f"still waiting after {within_s} s: {answer}"
            answer = self.post_wait(answer, hold_s=hold_s)
        return answer

    def ended(self, answer: Any, *, within_s: float = 20) -> Any:
        """Return the final response of a wait, by long polls."""
        return self.follow(answer, within_s=within_s, hold_s=max(1, int(min(within_s, 20))))


def body_of(response: httpx.Response, status: int = 200) -> Any:
    """Return the body of a response with this status, with exact numbers."""
    assert response.status_code == status, f"{response.request.method} {response.request.url}: {response.text}"
    return simplejson.loads(response.text, use_decimal=True) if response.text else None


def problem(response: httpx.Response, status: int, error: str) -> Any:
    """Return the problem document of a response with this error code."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    document = response.json()
    assert (response.status_code, document["status"], document["error"]) == (status, status, error), document
    return document


class Socket:
    """A WebSocket."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def send(self, action: str, frame_id: str | None = None, **told: Any) -> None:
        """Send a frame."""
        frame = {"action": action, **({} if frame_id is None else {"id": frame_id}), **told}
        self.connection.send(json.dumps(frame))

    def next(self, within_s: float = 20) -> Any:
        """Return the next message. Raises TimeoutError or ConnectionClosed."""
        return json.loads(self.connection.recv(timeout=within_s))

    def expect(self, kind: str, frame_id: str | None) -> Any:
        """Return the `data` of the next message, which has this type and answers this frame."""
        message = self.next()
        assert (message["type"], message["id"]) == (kind, frame_id), message
        return message["data"]

    def subscribe(self, frame_id: str, *topics: str, **told: Any) -> None:
        """Subscribe, and receive the acknowledgement."""
        self.send("subscribe", frame_id, topics=topics, **told)
        self.expect("ack", frame_id)

    def events(self, frame_id: str, count: int) -> list[Any]:
        """Return the next messages, all of them events of this subscription."""
        return [self.expect("event", frame_id) for _ in range(count)]

    def silent(self) -> None:
        """Require that no message is pending: the next message answers a ping."""
        self.send("ping", "anything else?")
        self.expect("pong", "anything else?")


@contextmanager
def websocket(stack: Stack, token: str | None = None, ticket: str | None = None) -> Iterator[Socket]:
    """Open a WebSocket. Raises InvalidStatus when the connection is refused."""
    url = f"{stack.ws_url}?ticket={ticket}" if ticket else stack.ws_url
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with open_websocket(
        url, additional_headers=headers, open_timeout=RESPONSE_TIMEOUT_S, close_timeout=5, proxy=None, max_size=None
    ) as connection:
        yield Socket(connection)


@dataclass
class Announcements:
    """The SNS messages that a subscribed queue received."""

    queues: SQSClient
    url: str
    arn: str
    envelopes: list[Any] = field(default_factory=list)

    def collect(self) -> list[Any]:
        """Return all messages so far, oldest first."""
        while messages := self.queues.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10).get("Messages"):
            self.envelopes += [json.loads(message["Body"]) for message in messages]
            self.queues.delete_message_batch(
                QueueUrl=self.url,
                Entries=[
                    {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                    for number, message in enumerate(messages)
                ],
            )
        return self.envelopes

    def about(self, subject: str) -> list[Any]:
        """Return all messages so far about one job or wait."""
        return [envelope for envelope in self.collect() if envelope["subject"] == subject]


@dataclass(frozen=True)
class Aws:
    """The AWS services behind a stack, with its owner's rights."""

    stack: Stack

    @cached_property
    def dynamodb(self) -> DynamoDBClient:
        return session().client("dynamodb", endpoint_url=self.stack.endpoint_url, config=client_config())

    @cached_property
    def functions(self) -> LambdaClient:
        config = client_config(read_timeout_s=310, retries=0)
        return session().client("lambda", endpoint_url=self.stack.endpoint_url, config=config)

    @cached_property
    def logs(self) -> CloudWatchLogsClient:
        return session().client("logs", endpoint_url=self.stack.endpoint_url, config=client_config())

    @cached_property
    def queues(self) -> SQSClient:
        return session().client("sqs", endpoint_url=self.stack.endpoint_url, config=client_config())

    @cached_property
    def topics(self) -> SNSClient:
        return session().client("sns", endpoint_url=self.stack.endpoint_url, config=client_config())

    @cached_property
    def buckets(self) -> S3Client:
        return session().client("s3", endpoint_url=self.stack.endpoint_url, config=client_config())

    def admin(self, action: str, **told: Any) -> dict[str, Any]:
        """Return the response of the admin function."""
        answer: dict[str, Any] = self.invoke("admin", {"action": action, **told})
        assert "error" not in answer, answer
        return answer

    def key(self, *scopes: str, namespace: str | None = None) -> Key:
        """Create a key; by default with every scope, in a namespace of its own."""
        where = namespace or f"t{uuid4().hex[:12]}"
        made = self.admin("create_key", namespace=where, scopes=list(scopes) or ["admin"])
        return Key(where, made["key"]["key_id"], made["token"])

    @cached_property
    def function_names(self) -> dict[str, str]:
        """Return the names of the deployed functions by the names of their folders."""
        formation = session().client("cloudformation", endpoint_url=self.stack.endpoint_url, config=client_config())
        found = formation.describe_stack_resources(StackName=self.stack.stack_name)["StackResources"]
        names = {resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in found}
        return {
            Path(properties["CodeUri"]).name: names[logical_id]
            for logical_id, properties in resources("AWS::Serverless::Function").items()
        }

    @cached_property
    def timer_group(self) -> str:
        """Return the name of the stack's timer group."""
        return self._resource("Timers")

    @cached_property
    def bodies_bucket(self) -> str:
        """Return the bucket of payloads and results that exceed a row."""
        return self._resource("PayloadBucket")

    def _resource(self, logical_id: str) -> str:
        formation = session().client("cloudformation", endpoint_url=self.stack.endpoint_url, config=client_config())
        found = formation.describe_stack_resources(StackName=self.stack.stack_name, LogicalResourceId=logical_id)
        return found["StackResources"][0]["PhysicalResourceId"]

    @cached_property
    def scheduler(self) -> EventBridgeSchedulerClient:
        return session().client("scheduler", endpoint_url=self.stack.endpoint_url, config=client_config())

    def invoke(self, function: str, event: Any) -> Any:
        """Return what a function, named by its folder, returns for an event."""
        answer = self.functions.invoke(FunctionName=self.function_names[function], Payload=json.dumps(event).encode())
        body = json.loads(answer["Payload"].read())
        assert not answer.get("FunctionError"), body
        return body

    def rows(self, partition: str) -> list[dict[str, Any]]:
        """Return every row of a partition, as DynamoDB stores it."""
        pages = self.dynamodb.get_paginator("query").paginate(
            TableName=self.stack.table_name,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": partition}},
            ConsistentRead=True,
        )
        return [dict(item) for page in pages for item in page["Items"]]

    @contextmanager
    def with_fault(self, function: str, how: str) -> Iterator[None]:
        """Make a function fail inside the block, by a handler of `fault_injection.py`."""
        name = self.function_names[function]
        before = self.functions.get_function_configuration(FunctionName=name)
        layers = [layer["Arn"] for layer in before["Layers"]]
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as packed:
            packed.write(FAULT_INJECTION, f"python/{FAULT_INJECTION.name}")
        fault_layer = self.functions.publish_layer_version(
            LayerName=FAULT_INJECTION.stem, Content={"ZipFile": archive.getvalue()}
        )["LayerVersionArn"]
        self._configure(name, f"{FAULT_INJECTION.stem}.{how}", [*layers, fault_layer])
        try:
            yield
        finally:
            self._configure(name, before["Handler"], layers)

    def _configure(self, name: str, handler: str, layers: list[str]) -> None:
        self.functions.update_function_configuration(FunctionName=name, Handler=handler, Layers=layers)
        self.functions.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1})

    def fault_count(self, function: str) -> int:
        """Return how often the log of a sabotaged function contains its marker."""
        group = f"/aws/lambda/{self.stack.stack_name}-{function.replace('_', '-')}"
        pages = self.logs.get_paginator("filter_log_events").paginate(logGroupName=group)
        return sum('"injected_fault"' in event["message"] for page in pages for event in page["events"])

    @contextmanager
    def announcements(self, **filter_policy: Sequence[Any]) -> Iterator[Announcements]:
        """Subscribe a queue to the events that pass the filter, from now on."""
        url = self.queues.create_queue(QueueName=f"heard-{uuid4().hex}")["QueueUrl"]
        arn = self.queues.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        policy = {
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": arn,
            "Condition": {"ArnEquals": {"aws:SourceArn": self.stack.topic_arn}},
        }
        document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
        self.queues.set_queue_attributes(QueueUrl=url, Attributes={"Policy": document})
        subscription = self.topics.subscribe(
            TopicArn=self.stack.topic_arn,
            Protocol="sqs",
            Endpoint=arn,
            Attributes={"RawMessageDelivery": "true", "FilterPolicy": json.dumps(filter_policy)},
            ReturnSubscriptionArn=True,
        )["SubscriptionArn"]
        try:
            yield Announcements(self.queues, url, arn)
        finally:
            self.topics.unsubscribe(SubscriptionArn=subscription)
            self.queues.delete_queue(QueueUrl=url)
