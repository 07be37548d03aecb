"""Latency from a change to the WebSocket's event on a local cloud, compared with a baseline on the same cloud.

The baseline is a function of a few lines on the stream of the same table. It sends the text of a row to the same
socket. Vigil's filters reject such rows. A sample starts when this process sends the write of the row, and ends with
the frame. It does not start with the answer to the write: the emulator puts a change into the stream first, and the
frame may arrive before the answer. Samples of all kinds are taken in turn, so that load affects all of them.
"""

from __future__ import annotations

import io
import json
import queue
import statistics
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from vigil.local import cloud
from vigil.local.health import health
from vigil.local.stack import Stack, client_config, session
from vigil.local.state_dir import StateDir, wait_until
from vigil_core.domain.jobs.job import Report
from vigil_core.gateways.eventbridge_scheduler import SchedulerTimers
from vigil_core.gateways.payload_bucket import PayloadBucket
from vigil_core.gateways.sqs import SqsQueues
from vigil_core.services.jobs import transitions
from vigil_core.store import keys
from vigil_core.store.table import DynamoTable
from vigil_core.wiring import context_of, now

BASELINE = "baseline"
WARM_UP = 15
SETTLE_S = 0.04
"""The pause between two samples, in which other effects of the last one end."""
TIMEOUT_S = 10
HTTP_ROUND_INTERVAL = 4
"""Every fourth round also measures the HTTP API and the release of the next job."""
MAX_CHANGES_PER_JOB = 50
"""Changes after which a new job is used, because a job with hundreds of changes is unusual."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """Samples of one kind, in milliseconds."""

    samples: Sequence[float]

    @property
    def median(self) -> float:
        """The median in milliseconds."""
        return statistics.median(self.samples)

    @property
    def p95(self) -> float:
        """The 95th percentile in milliseconds."""
        return statistics.quantiles(self.samples, n=20)[-1]


class EventSocket:
    """A WebSocket that records the arrival time of each frame."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._frames: queue.Queue[tuple[float, Json]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, **frame: object) -> Json:
        """Send a request and return its acknowledgement."""
        self._socket.send(json.dumps(frame))
        _, ack = self.receive(lambda reply: reply["type"] in {"ack", "error"} and reply["id"] == frame["id"])
        assert ack["type"] == "ack", ack
        return ack

    def receive(self, is_match: Callable[[Json], bool]) -> tuple[float, Json]:
        """Return the next matching frame and its arrival time. Other frames are dropped.

        Raises:
            queue.Empty: No frame arrived for 10 s.
        """
        while True:
            at, frame = self._frames.get(timeout=TIMEOUT_S)
            if is_match(frame):
                return at, frame

    def _listen(self) -> None:
        try:
            for text in self._socket:
                self._frames.put((time.perf_counter(), json.loads(text)))
        except ConnectionClosed:
            return


class SampleTaker:
    """Takes samples of the baseline, of a job's change, and of a wait's end."""

    def __init__(self, stack: Stack, event_socket: EventSocket) -> None:
        aws = session()
        self._socket = event_socket
        self._dynamodb = aws.client("dynamodb", endpoint_url=stack.endpoint_url, config=client_config())
        self._dynamodb.meta.events.register("before-send.dynamodb.PutItem", self._on_sent)
        self._sent_at = 0.0
        self._table = stack.table_name
        table = DynamoTable(self._dynamodb, stack.table_name)
        self._namespace = cloud.NAMESPACE
        self._ctx = context_of(
            table,
            SqsQueues(lambda: None, fan_out_url=None, sweeper_url=None),  # type: ignore[arg-type,return-value]
            SchedulerTimers(lambda: None, group=None, function_arn=None, role_arn=None, now=now),  # type: ignore[arg-type,return-value]
            PayloadBucket(lambda: None, None),  # type: ignore[arg-type,return-value]
        )
        self._http = httpx.Client(
            base_url=stack.api_url,
            headers={"Authorization": f"Bearer {stack.api_key}"},
            timeout=40,
            trust_env=False,
        )
        key_partition = keys.connections(self._namespace)
        (row,) = table.query_page(key_partition).rows
        self._connection = row["sk"].split("#", 1)[1]
        self._count = 0
        self._jobs: dict[str, str] = {}

    def baseline(self) -> float:
        """Measure from the write of a row to its text, in seconds."""
        self._count += 1
        text = json.dumps({"type": BASELINE, "id": self._count, "data": "x" * 600})
        self._dynamodb.put_item(
            TableName=self._table,
            Item={
                "pk": {"S": f"{BASELINE}#{self._count}"},
                "sk": {"S": "A"},
                "entity": {"S": BASELINE},
                "connection": {"S": self._connection},
                "text": {"S": text},
            },
        )
        at, _ = self._socket.receive(lambda frame: frame["type"] == BASELINE and frame["id"] == self._count)
        return at - self._sent_at

    def job(self) -> float:
        """Measure from the write of a job's new version to its event on a subscription to the job."""
        job_id = self._job("watched")
        self._report(job_id)
        at, _ = self._socket.receive(lambda frame: _is_event(frame, "job.updated", job_id))
        return at - self._sent_at

    def wait(self) -> float:
        """Measure from the write of a job's new version to the end of a wait for it: two passes through the stream."""
        job_id = self._job("waited-for")
        wait_id = self._wait_for(job_id)
        self._report(job_id)
        at, _ = self._socket.receive(lambda frame: _is_event(frame, "wait.met", wait_id))
        self._socket.send(action="unsubscribe", id="w")
        return at - self._sent_at

    def job_by_http(self) -> tuple[float, float]:
        """Measure from a PATCH request to the event, and to the answer."""
        job_id = self._job("watched")
        return self._patch(job_id, "job.updated", job_id)

    def wait_by_http(self) -> tuple[float, float]:
        """Measure from a PATCH request to the end of the wait, and to the answer."""
        job_id = self._job("waited-for")
        received, answered = self._patch(job_id, "wait.met", self._wait_for(job_id))
        self._socket.send(action="unsubscribe", id="w")
        return received, answered

    def mutex_handover(self) -> float:
        """Measure from the write of a mutex owner's end to the event that the first queued job is ready."""
        mutex = {"key": f"bench-{self._count}", "on_conflict": "queue"}
        return self._release(self._new(mutex=mutex), {"mutex": mutex})

    def release(self) -> float:
        """Measure from the write of a job's end to the event that its dependent is ready."""
        first = self._new()
        return self._release(first, {"depends_on": [first]})

    def _release(self, first: str, second_options: Json) -> float:
        """Measure from a job's end to the event that a second job, which waits for the first, is ready."""
        second = self._new(**second_options)
        self._socket.send(action="subscribe", id="next", topics=[f"job:{second}"])
        self._http.post(f"/v1/jobs/{first}/start").raise_for_status()
        time.sleep(0.2)  # The matcher has registered the second job by then.
        transitions.complete(self._ctx, self._namespace, first, actor="bench")
        at, _ = self._socket.receive(lambda frame: _is_event(frame, "job.ready", second))
        self._socket.send(action="unsubscribe", id="next")
        return at - self._sent_at

    def _new(self, **options: Any) -> str:
        self._count += 1
        answer = self._http.post("/v1/jobs", json={"job_type": "bench", **options}).raise_for_status()
        return str(answer.json()["job_id"])

    def _patch(self, job_id: str, event: str, subject: str) -> tuple[float, float]:
        started_at = time.perf_counter()
        self._http.patch(f"/v1/jobs/{job_id}", json={"milestones": [self._milestone]}).raise_for_status()
        answered = time.perf_counter()
        at, _ = self._socket.receive(lambda frame: _is_event(frame, event, subject))
        return at - started_at, answered - started_at

    def _wait_for(self, job_id: str) -> str:
        """Register a wait for the milestone of the next report."""
        answer = self._socket.send(action="wait", id="w", wait_on={job_id: {"milestone": self._milestone}})
        return str(answer["data"]["wait_id"])

    def _report(self, job_id: str) -> None:
        transitions.report(self._ctx, self._namespace, job_id, Report(milestones=(self._milestone,)), actor="bench")

    @property
    def _milestone(self) -> str:
        return f"reached-{self._count}"

    def _job(self, kind: str) -> str:
        """Return a running job of this kind, and begin its next change. After some changes, create a new job."""
        self._count += 1
        if kind not in self._jobs or self._count % MAX_CHANGES_PER_JOB == 0:
            created = self._http.post("/v1/jobs", json={"job_type": "bench", "name": kind}).raise_for_status().json()
            self._http.post(f"/v1/jobs/{created['job_id']}/start").raise_for_status()
            if kind == "watched":
                self._socket.send(action="subscribe", id="j", topics=[f"job:{created['job_id']}"])
            self._jobs[kind] = created["job_id"]
            time.sleep(0.5)
        return self._jobs[kind]

    def _on_sent(self, **_: object) -> None:
        self._sent_at = time.perf_counter()


def _is_event(frame: Json, event: str, subject: str) -> bool:
    """Return whether a frame is this event of this job or wait."""
    data = frame["data"] if frame["type"] == "event" else {}
    return data.get("type") == f"vigil.{event}" and data["subject"] == subject


def measure(state_dir: StateDir, stack: Stack, samples: int, progress: Callable[[int], None]) -> Mapping[str, Spread]:
    """Take warm samples of each kind in turn, and a quarter as many through HTTP and to the next job."""
    samples_by_name: dict[str, list[float]] = {}
    with _baseline_function(state_dir, stack), _event_socket(stack) as event_socket:
        runner = SampleTaker(stack, event_socket)
        kinds = {"baseline": runner.baseline, "job": runner.job, "wait": runner.wait}
        for round_number in range(-WARM_UP, samples):
            seconds_by_name: dict[str, float] = {}
            for name in _rotated(list(kinds), round_number):
                seconds_by_name[name] = kinds[name]()
                time.sleep(SETTLE_S)
            if round_number % HTTP_ROUND_INTERVAL == 0:
                seconds_by_name["job_by_http"], seconds_by_name["patch"] = runner.job_by_http()
                time.sleep(SETTLE_S)
                seconds_by_name["wait_by_http"], _ = runner.wait_by_http()
                time.sleep(SETTLE_S)
                seconds_by_name["mutex_handover"] = runner.mutex_handover()
                time.sleep(SETTLE_S)
                seconds_by_name["release"] = runner.release()
                time.sleep(SETTLE_S)
            if round_number >= 0:
                for name, seconds in seconds_by_name.items():
                    samples_by_name.setdefault(name, []).append(1000 * seconds)
                progress(round_number + 1)
    return {name: Spread(samples_by_name[name]) for name in sorted(samples_by_name)}


def _rotated(names: Sequence[str], offset: int) -> Iterator[str]:
    start = offset % len(names)
    return iter([*names[start:], *names[:start]])


@contextmanager
def _event_socket(stack: Stack) -> Iterator[EventSocket]:
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    with connect(stack.ws_url, additional_headers=headers, proxy=None, open_timeout=30) as socket:
        yield EventSocket(socket)


@contextmanager
def _baseline_function(state_dir: StateDir, stack: Stack) -> Iterator[None]:
    """Deploy the baseline function on the table's stream, served by the same stream poller as Vigil's functions."""
    aws = session()
    dynamodb = aws.client("dynamodb", endpoint_url=stack.endpoint_url, config=client_config())
    functions = aws.client("lambda", endpoint_url=stack.endpoint_url, config=client_config())
    configuration = functions.get_function_configuration(FunctionName=f"{stack.stack_name}-notifier")
    variables = configuration["Environment"]["Variables"]
    stream = dynamodb.describe_table(TableName=stack.table_name)["Table"]["LatestStreamArn"]
    pattern = {"dynamodb": {"NewImage": {"entity": {"S": [BASELINE]}}}}
    functions.create_function(
        FunctionName=BASELINE,
        Runtime="python3.11",
        Role="arn:aws:iam::000000000000:role/baseline",
        Handler="handler.handler",
        Code={"ZipFile": zipped(Path(__file__).with_name("baseline_function.py").read_text())},
        Timeout=60,
        MemorySize=configuration["MemorySize"],
        Environment={"Variables": {"WEBSOCKET_ENDPOINT": variables["WEBSOCKET_ENDPOINT"]}},
    )
    mapping = functions.create_event_source_mapping(
        FunctionName=BASELINE,
        EventSourceArn=stream,
        StartingPosition="TRIM_HORIZON",
        BatchSize=100,
        FilterCriteria={"Filters": [{"Pattern": json.dumps(pattern)}]},
    )["UUID"]
    try:
        served = wait_until(lambda: any(reader["mapping"] == mapping for reader in health(state_dir).readers), 15)
        assert served, "the stream of the baseline function is not served"
        yield
    finally:
        functions.delete_event_source_mapping(UUID=mapping)
        functions.delete_function(FunctionName=BASELINE)


def zipped(code: str) -> bytes:
    """Return the deployment package of a function with one module."""
    archive_file = io.BytesIO()
    with zipfile.ZipFile(archive_file, "w") as archive:
        archive.writestr("handler.py", code)
    return archive_file.getvalue()
