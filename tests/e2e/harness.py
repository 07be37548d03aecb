"""What the tests see of a stack from outside: HTTP clients, WebSockets, what SNS announces, and AWS behind it."""

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
SABOTEUR = Path(__file__).parent / "fault_injection.py"
# The longest that a held answer takes, a cold start on a busy machine included.
ANSWER_S = 60


def eventually(condition: Callable[[], T], within_s: float = 20, *, every_s: float = 0.05, what: str = "") -> T:
    """What the condition gives once that is true. Fails with what it gave last, or with its last complaint."""
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
    """Work that goes on while the block runs; the block ends when both have."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool.submit(work)


def side_by_side(work: Callable[[Any], T], items: Sequence[Any], at_once: int) -> list[T]:
    """Work on every item, so many at once, results in order."""
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        return list(pool.map(work, items))


def vigil(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, run in the directory that a stack was started in."""
    return subprocess.run([VIGIL, *arguments], cwd=directory, capture_output=True, text=True, timeout=120, check=False)


@dataclass(frozen=True)
class Key:
    """An API key of its own, which is its own tenant unless told otherwise."""

    namespace: str
    key_id: str
    token: str


class Client:
    """An HTTP client with one key. What is not a plain `call` expects success, and fails with the answer."""

    def __init__(self, stack: Stack, token: str | None, transport: httpx.BaseTransport | None = None) -> None:
        self.http = httpx.Client(
            base_url=stack.api_url,
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=ANSWER_S,
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
        """Any request. A header's underscores are hyphens; `prefer` is the header of that name."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if prefer is not None:
            given["prefer"] = prefer
        content = None if body is None else simplejson.dumps(body, use_decimal=True)
        return self.http.request(method, path, content=content, headers=given)

    def get(self, path: str, **headers: str) -> Any:
        """The body of a 200."""
        return said(self.call("GET", path, **headers))

    def post(self, path: str, body: Any = None, *, status: int = 200, **headers: str) -> Any:
        """The body of an answer with this status."""
        return said(self.call("POST", path, body, **headers), status)

    def put_webhook(self, name: str, receiver: Receiver | None, *events: str) -> str:
        """A new webhook; its secret."""
        body = {"url": receiver.url, "events": list(events)} if receiver else {}
        return str(said(self.call("PUT", f"/v1/webhooks/{name}", body), 201)["secret"])

    # Jobs

    def job(self, **wanted: Any) -> str:
        """A new job; its id."""
        return str(self.post("/v1/jobs", {"job_type": "test", **wanted}, status=202)["job_id"])

    def running(self, **wanted: Any) -> str:
        """A new job that runs; its id."""
        job_id = self.job(**wanted)
        self.start(job_id)
        return job_id

    def jobs(self, count: int, **wanted: Any) -> list[str]:
        """Many new jobs; their ids."""
        made: list[str] = []
        for first in range(0, count, 100):
            several = [{"job_type": "test", **wanted} for _ in range(first, min(first + 100, count))]
            made += [result["job_id"] for result in self.post("/v1/jobs/bulk", {"jobs": several})["results"]]
        return made

    def start(self, job_id: str) -> Any:
        return self.post(f"/v1/jobs/{job_id}/start")

    def report(self, job_id: str, **told: Any) -> Any:
        return said(self.call("PATCH", f"/v1/jobs/{job_id}", told))

    def complete(self, job_id: str, **told: Any) -> Any:
        return self.post(f"/v1/jobs/{job_id}/complete", told)

    def fail(self, job_id: str, code: str = "BROKEN", **told: Any) -> Any:
        return self.post(f"/v1/jobs/{job_id}/fail", {"error": {"code": code, "message": "it broke"}, **told})

    # Waits

    def wait(self, wait_on: Mapping[str, Any], *, hold_s: int = 0, **options: Any) -> Any:
        """Post a wait; its answer."""
        return self.post_wait({"wait_on": wait_on, "wait_options": options}, hold_s=hold_s)

    def post_wait(self, body: Any, *, hold_s: int = 0, path: str = "/v1/waits") -> Any:
        """Post a wait, or the answer to one; its answer."""
        return self.post(path, body, prefer=f"wait={hold_s}")

    def follow(self, answer: Any, *, within_s: float = 30, hold_s: int = 2) -> Any:
        """A client's whole loop: post back what comes, until there is no `wait_on`."""
        deadline = time.monotonic() + within_s
        while "wait_on" in answer:
            assert time.monotonic() < deadline, f"still waiting after {within_s} s: {answer}"
            answer = self.post_wait(answer, hold_s=hold_s)
        return answer

    def ended(self, answer: Any, *, within_s: float = 20) -> Any:
        """The answer to a wait once it is over, which is held and not asked for again and again."""
        return self.follow(answer, within_s=within_s, hold_s=max(1, int(min(within_s, 20))))


def said(response: httpx.Response, status: int = 200) -> Any:
    """The body of an answer with this status, numbers exact."""
    assert response.status_code == status, f"{response.request.method} {response.request.url}: {response.text}"
    return simplejson.loads(response.text, use_decimal=True) if response.text else None


def problem(response: httpx.Response, status: int, error: str) -> Any:
    """The body of an answer, which is a problem document that says this."""
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
        """The next message. Raises TimeoutError, or ConnectionClosed."""
        return json.loads(self.connection.recv(timeout=within_s))

    def expect(self, kind: str, frame_id: str | None) -> Any:
        """The `data` of the next message, which is of this kind and answers this frame."""
        message = self.next()
        assert (message["type"], message["id"]) == (kind, frame_id), message
        return message["data"]

    def subscribe(self, frame_id: str, *topics: str, **told: Any) -> None:
        """Subscribe, and be acknowledged."""
        self.send("subscribe", frame_id, topics=topics, **told)
        self.expect("ack", frame_id)

    def events(self, frame_id: str, count: int) -> list[Any]:
        """The next so many messages, all events for this subscription."""
        return [self.expect("event", frame_id) for _ in range(count)]

    def silent(self) -> None:
        """Nothing is on its way: the next message answers a ping sent now."""
        self.send("ping", "anything else?")
        self.expect("pong", "anything else?")


@contextmanager
def websocket(stack: Stack, token: str | None = None, ticket: str | None = None) -> Iterator[Socket]:
    """An open WebSocket. Raises InvalidStatus when it is not let in."""
    url = f"{stack.ws_url}?ticket={ticket}" if ticket else stack.ws_url
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with open_websocket(
        url, additional_headers=headers, open_timeout=ANSWER_S, close_timeout=5, proxy=None, max_size=None
    ) as connection:
        yield Socket(connection)


@dataclass
class Announcements:
    """What SNS has announced to a queue that is subscribed to the topic."""

    queues: SQSClient
    url: str
    arn: str
    envelopes: list[Any] = field(default_factory=list)

    def collect(self) -> list[Any]:
        """Everything until now, oldest first."""
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
        """Everything until now about one job or wait."""
        return [envelope for envelope in self.collect() if envelope["subject"] == subject]


@dataclass(frozen=True)
class Aws:
    """The AWS behind a stack, as its owner sees it."""

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
        """What the admin function answers."""
        answer: dict[str, Any] = self.invoke("admin", {"action": action, **told})
        assert "error" not in answer, answer
        return answer

    def key(self, *scopes: str, namespace: str | None = None) -> Key:
        """A new key; of a tenant of its own, and for everything, unless told otherwise."""
        where = namespace or f"t{uuid4().hex[:12]}"
        made = self.admin("create_key", namespace=where, scopes=list(scopes) or ["admin"])
        return Key(where, made["key"]["key_id"], made["token"])

    @cached_property
    def function_names(self) -> dict[str, str]:
        """The deployed functions' names, by the names of their folders."""
        formation = session().client("cloudformation", endpoint_url=self.stack.endpoint_url, config=client_config())
        found = formation.describe_stack_resources(StackName=self.stack.stack_name)["StackResources"]
        names = {resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in found}
        return {
            Path(properties["CodeUri"]).name: names[logical_id]
            for logical_id, properties in resources("AWS::Serverless::Function").items()
        }

    @cached_property
    def alarm_group(self) -> str:
        """The group of the stack's alarms."""
        return self._resource("Alarms")

    @cached_property
    def bodies_bucket(self) -> str:
        """The bucket of payloads and results that no row can hold."""
        return self._resource("BodiesBucket")

    def _resource(self, logical_id: str) -> str:
        formation = session().client("cloudformation", endpoint_url=self.stack.endpoint_url, config=client_config())
        found = formation.describe_stack_resources(StackName=self.stack.stack_name, LogicalResourceId=logical_id)
        return found["StackResources"][0]["PhysicalResourceId"]

    @cached_property
    def alarms(self) -> EventBridgeSchedulerClient:
        return session().client("scheduler", endpoint_url=self.stack.endpoint_url, config=client_config())

    def invoke(self, function: str, event: Any) -> Any:
        """What a function, by its folder's name, returns for an event."""
        answer = self.functions.invoke(FunctionName=self.function_names[function], Payload=json.dumps(event).encode())
        body = json.loads(answer["Payload"].read())
        assert not answer.get("FunctionError"), body
        return body

    def rows(self, partition: str) -> list[dict[str, Any]]:
        """Every row of a partition, as DynamoDB has it."""
        pages = self.dynamodb.get_paginator("query").paginate(
            TableName=self.stack.table_name,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": partition}},
            ConsistentRead=True,
        )
        return [dict(item) for page in pages for item in page["Items"]]

    @contextmanager
    def sabotaged(self, function: str, how: str) -> Iterator[None]:
        """Make a function fail inside the block, by a handler of `fault_injection.py`."""
        name = self.function_names[function]
        before = self.functions.get_function_configuration(FunctionName=name)
        layers = [layer["Arn"] for layer in before["Layers"]]
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as packed:
            packed.write(SABOTEUR, f"python/{SABOTEUR.name}")
        fault_layer = self.functions.publish_layer_version(
            LayerName=SABOTEUR.stem, Content={"ZipFile": archive.getvalue()}
        )["LayerVersionArn"]
        self._configure(name, f"{SABOTEUR.stem}.{how}", [*layers, fault_layer])
        try:
            yield
        finally:
            self._configure(name, before["Handler"], layers)

    def _configure(self, name: str, handler: str, layers: list[str]) -> None:
        self.functions.update_function_configuration(FunctionName=name, Handler=handler, Layers=layers)
        self.functions.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1})

    def sabotages(self, function: str) -> int:
        """How often a sabotaged function has said so in its log."""
        group = f"/aws/lambda/{self.stack.stack_name}-{function.replace('_', '-')}"
        pages = self.logs.get_paginator("filter_log_events").paginate(logGroupName=group)
        return sum('"injected_fault"' in event["message"] for page in pages for event in page["events"])

    @contextmanager
    def announcements(self, **filter_policy: Sequence[Any]) -> Iterator[Announcements]:
        """A queue that hears of what the filter lets through, from now on."""
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
