"""The background functions, invoked with the sample payloads on moto.

These are the matcher, `fan_out`, the sweeper, the HTTP executor and the supervisor. Clients never call them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from functions.fan_out import handler as fan_out
from functions.http_executor import handler as http_executor
from functions.matcher import handler as matcher
from functions.supervisor import handler as supervisor
from functions.sweeper import handler as sweeper
from tests.support.api import LambdaContext
from tests.support.api import deployed as on_moto
from tests.support.dead_letters import FUNCTION, FUNCTION_ARN, FakeDeadLetters
from tests.support.events import sample
from tests.support.table import TABLE_NAME, aws
from tests.support.world import FakeExecutors, FakeQueues
from vigil_core import wiring
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.batch import item_id
from vigil_core.domain.jobs.job import Job, NewJob
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.waits.wait import Wait
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.gateways.outbound_http import HttpResponse
from vigil_core.services.executors.dispatch import dispatch
from vigil_core.services.jobs.batches import on_batch_changed, on_item_ended
from vigil_core.services.jobs.submit import submit
from vigil_core.services.jobs.transitions import complete, find_job
from vigil_core.services.waits.requests import post_wait
from vigil_core.services.workflows.commands import find_run
from vigil_core.services.workflows.create import create_run
from vigil_core.store.jobs.job_rows import job_from_row, job_to_row
from vigil_core.store.keys import DUE_PARTITIONS, postponed_group
from vigil_core.store.stream import stream_records
from vigil_core.store.table import DynamoTable
from vigil_core.store.waits.waits import WaitStore

CONTEXT: Any = LambdaContext()


class SweeperContext(LambdaContext):
    """A context with the remaining time of the sweeper function."""

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


SWEEPER_CONTEXT = SweeperContext()
ALL_DONE: dict[str, Any] = {"batchItemFailures": []}
WAIT_ID = "019bf000-0000-7000-8000-0000000000ff"
"""The id of a wait that no sample contains."""


@dataclass
class Deployed:
    """The functions with their table and queues. The test chooses the time at which a wait is posted."""

    monkeypatch: pytest.MonkeyPatch
    dead_letters: FakeDeadLetters = field(default_factory=FakeDeadLetters)

    def __post_init__(self) -> None:
        self.monkeypatch.setattr(wiring, "dead_letters", lambda: self.dead_letters)

    def post(self, wait_id: str, *job_ids: str, days_ago: int = 0, **options: object) -> list[Any]:
        """Store a wait for jobs at stage `boot`, and return the messages that this sends."""
        queues = FakeQueues()
        posted_at = datetime.now(UTC) - timedelta(days=days_ago)
        context = replace(wiring.context(), message_queues=queues, clock=lambda: posted_at)
        body: Any = {
            "wait_on": {job_id: {"job_stage": "boot"} for job_id in job_ids},
            "wait_options": {"allow_missing": True, **options},
        }
        post_wait(context, "demo", body, actor="test", poll_until=context.now(), reserved_id=wait_id)
        return [loads(work.body) for work in queues.fan_out_messages] + [
            loads(message) for message, _ in queues.sweeper_messages
        ]

    def wait(self, wait_id: str) -> Wait:
        wait = wiring.context().waits.find("demo", wait_id)
        assert wait is not None
        return wait

    def set_page_size(self, entries: int) -> None:
        """Set the number of entries above which a wait is registered by the fan-out function."""
        waits = WaitStore(DynamoTable(aws("dynamodb"), TABLE_NAME), now=wiring.now, spec_page_entries=entries)
        context = replace(wiring.context(), waits=waits)
        self.monkeypatch.setattr(wiring, "context", lambda: context)


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployed]:
    with on_moto():
        yield Deployed(monkeypatch)


def message(name: str) -> Any:
    """Return the parsed body of a sample's only message."""
    (record,) = sample(name)["Records"]
    return loads(record["body"])


def sample_with(name: str, **members: object) -> Any:
    """Return a sample with changed members in its only message."""
    event = sample(name)
    (record,) = event["Records"]
    record["body"] = json.dumps({**json.loads(record["body"]), **members})
    return event


def matcher_sample_jobs() -> tuple[Job, Job]:
    """Return the old and the new version of the job in the matcher's sample."""
    (record,) = stream_records(sample("matcher_job_changed"))
    before, after = record.old(), record.new()
    assert before is not None
    assert after is not None
    return job_from_row(before), job_from_row(after)


# The matcher


def test_matcher_ends_a_wait_on_the_changed_job(deployed: Deployed) -> None:
    _, job = matcher_sample_jobs()
    deployed.post(WAIT_ID, job.job_id, get_fields=["boot_seconds"])
    assert matcher.handler(sample("matcher_job_changed"), FUNCTION) == ALL_DONE
    wait = deployed.wait(WAIT_ID)
    assert wait.status == "met"
    (outcome,) = wait.outcomes.values()
    assert (outcome.job_id, outcome.values["boot_seconds"]) == (job.job_id, "41")


def batch_with_an_unreadable_record() -> dict[str, Any]:
    """Return an event of the matcher whose first record is unreadable, and whose second one is valid."""
    good, bad = sample("matcher_job_changed")["Records"] * 2
    bad = {**bad, "dynamodb": {**bad["dynamodb"], "SequenceNumber": "7", "NewImage": {"entity": {"S": "job"}}}}
    return {"Records": [bad, good]}


def test_matcher_stores_an_unreadable_record_and_processes_the_others(
    deployed: Deployed, caplog: pytest.LogCaptureFixture
) -> None:
    _, job = matcher_sample_jobs()
    deployed.post(WAIT_ID, job.job_id)
    event = batch_with_an_unreadable_record()
    assert matcher.handler(event, FUNCTION) == ALL_DONE
    assert deployed.wait(WAIT_ID).status == "met"
    assert [line.levelname for line in caplog.records] == ["ERROR", "INFO"]
    (letter,) = deployed.dead_letters.parsed()
    assert (letter.function_arn, letter.condition, letter.records) == (FUNCTION_ARN, "PermanentError", 1)
    assert json.loads(letter.event) == {"Records": event["Records"][:1]}


def test_record_is_postponed_until_its_dead_letter_can_be_stored(deployed: Deployed) -> None:
    deployed.dead_letters.error = ConnectionError("the bucket does not answer")
    event = batch_with_an_unreadable_record()
    assert matcher.handler(event, FUNCTION) == ALL_DONE
    namespace, group = postponed_group("matcher", event["Records"][0]["dynamodb"]["Keys"]["pk"]["S"])
    store = wiring.context().postponed_records
    assert store.first(namespace, group) is not None
    deployed.dead_letters.error = None
    a_minute_later = replace(wiring.context(), clock=lambda: wiring.now() + timedelta(minutes=1))
    deployed.monkeypatch.setattr(wiring, "context", lambda: a_minute_later)
    request = {"postponed": {"namespace": namespace, "group": group}}
    assert matcher.handler(request, FUNCTION) == ALL_DONE
    assert store.first(namespace, group) is None
    assert [letter.condition for letter in deployed.dead_letters.parsed()] == ["PermanentError"]


def test_matcher_sample_has_the_shape_of_stored_rows() -> None:
    """Check the sample against the job store: a row that the store never writes would be a useless sample."""
    (record,) = stream_records(sample("matcher_job_changed"))
    for job, row in zip(matcher_sample_jobs(), (record.old(), record.new()), strict=True):
        assert {name: value for name, value in job_to_row(job).items() if value is not None} == row


# The fan-out function


def test_fan_out_matches_a_job_with_many_waits(deployed: Deployed) -> None:
    (row,) = message("fan_out_match")["rows"]
    deployed.post(WAIT_ID, job_from_row(row).job_id)
    fan_out.handler(sample("fan_out_match"), CONTEXT)
    assert deployed.wait(WAIT_ID).status == "met"


def test_fan_out_registers_a_large_wait_page_by_page(deployed: Deployed) -> None:
    deployed.set_page_size(4)
    registration = message("fan_out_register")
    wait_id = registration["wait_id"]
    jobs = [f"019bf000-0000-7000-8000-0000000001{n:02}" for n in range(6)]
    page_messages = [sent for sent in deployed.post(wait_id, *jobs) if sent["kind"] == "register_page"]
    assert [{**sent, "sent_at": registration["sent_at"]} for sent in page_messages] == [
        registration,
        {**registration, "page": 1},
    ]
    fan_out.handler(sample("fan_out_register"), CONTEXT)
    assert not deployed.wait(wait_id).registration_complete
    fan_out.handler(sample_with("fan_out_register", page=1), CONTEXT)
    assert deployed.wait(wait_id).registration_complete


def test_fan_out_creates_batch_items_and_ends_the_batch(deployed: Deployed) -> None:
    batch_page = message("fan_out_batch_page")
    batch = NewJob(job_id=batch_page["job_id"], job_type="test", executor="none", payload=[1, 2], batch_size=2)
    queues = FakeQueues()
    context = replace(wiring.context(), message_queues=queues)
    on_batch_changed(context, submit(context, "demo", batch, actor="test").job)
    on_batch_changed(context, find_job(context, "demo", batch.job_id))
    assert [loads(work.body) for work in queues.fan_out_messages] == [batch_page]
    fan_out.handler(sample("fan_out_batch_page"), CONTEXT)
    for index in range(2):
        complete(context, "demo", item_id(batch.job_id, 1, index), actor="test", result=index)
        on_item_ended(context, find_job(context, "demo", item_id(batch.job_id, 1, index)))
    fan_out.handler(sample_with("fan_out_batch_page", kind="batch_end"), CONTEXT)
    assert find_job(context, "demo", batch.job_id).status == "completed"


@pytest.mark.parametrize(
    ("event", "error"),
    [
        pytest.param(sample_with("fan_out_register", kind="nonsense"), ValueError, id="an unknown kind"),
        pytest.param(sample_with("fan_out_match", rows=[{}]), KeyError, id="an unreadable row"),
    ],
)
def test_failed_fan_out_message_becomes_visible_again_soon(
    deployed: Deployed, event: Any, error: type[Exception]
) -> None:
    event["Records"][0]["receiptHandle"] = receive_message(event["Records"][0]["body"])
    timeouts: list[int] = []
    queues = wiring.sqs()
    queues.meta.events.register(
        "before-parameter-build.sqs.ChangeMessageVisibility",
        lambda params, **_: timeouts.append(params["VisibilityTimeout"]),
    )
    with pytest.raises(error):
        fan_out.handler(event, CONTEXT)
    assert timeouts == [15]


def fan_out_queue_url() -> str:
    """Return the URL of the fan-out function's queue."""
    return aws("sqs").get_queue_url(QueueName="fan-out.fifo")["QueueUrl"]


def receive_message(body: str) -> str:
    """Send and receive a message of the fan-out function's queue, and return its receipt handle."""
    queues = aws("sqs")
    queues.send_message(QueueUrl=fan_out_queue_url(), MessageBody=body, MessageGroupId="g", MessageDeduplicationId="d")
    (message,) = queues.receive_message(QueueUrl=fan_out_queue_url())["Messages"]
    return message["ReceiptHandle"]


# The sweeper


def store_expired_wait(deployed: Deployed) -> str:
    """Store the wait of the sweeper's samples, which expired a day ago, and return its id."""
    due_message = message("sweeper_message")
    assert due_message in deployed.post(due_message["id"], WAIT_ID, days_ago=1, expires_in=600)
    assert deployed.wait(due_message["id"]).status == "waiting"
    return str(due_message["id"])


@pytest.mark.parametrize("name", ["sweeper_message", "sweeper_sweep"])
def test_sweeper_expires_an_overdue_wait(deployed: Deployed, name: str) -> None:
    wait_id = store_expired_wait(deployed)
    assert sweeper.handler(sample(name), SWEEPER_CONTEXT) == ALL_DONE
    assert deployed.wait(wait_id).status == "expired"


def test_tick_of_a_minute_sends_a_sweep_for_every_partition(deployed: Deployed) -> None:
    assert sweeper.handler(sample("sweeper_tick"), SWEEPER_CONTEXT) == {}
    queues = aws("sqs")
    url = queues.get_queue_url(QueueName="sweeper")["QueueUrl"]
    sent = [loads(m["Body"]) for m in queues.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]]
    assert sent == [{"kind": "sweep", "partition": partition} for partition in range(DUE_PARTITIONS)]
    assert message("sweeper_sweep") in sent


def test_sweeper_reports_only_the_failed_message(deployed: Deployed) -> None:
    wait_id = store_expired_wait(deployed)
    (bad,) = sample_with("sweeper_sweep", kind="nonsense")["Records"]
    (good,) = sample("sweeper_message")["Records"]
    answer = sweeper.handler({"Records": [bad, good]}, SWEEPER_CONTEXT)
    assert answer == {"batchItemFailures": [{"itemIdentifier": bad["messageId"]}]}
    assert deployed.wait(wait_id).status == "expired"


# The HTTP executor


def test_http_executor_calls_the_target_once_and_completes_the_job(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[tuple[str, str]] = []

    class Target:
        def request(self, method: str, url: str, **_: object) -> HttpResponse:
            requests.append((method, url))
            return HttpResponse(status=200, headers={}, body=b"fine")

    monkeypatch.setenv("SECRETS_PREFIX", "vigil")
    monkeypatch.setattr(wiring, "outbound_http", Target)
    event, now = sample("http_executor_call"), wiring.now()
    job_type = JobType(
        namespace="demo",
        name="call",
        executor="http",
        queue="default",
        stages=("submit", "complete"),
        defaults={},
        payload_schema=None,
        description=None,
        created_at=now,
        updated_at=now,
        target={"url": "https://a.example/"},
    )
    ctx = replace(wiring.context(), executors=FakeExecutors(), new_id=lambda: event["lease_token"])
    ctx.job_types.store_target(job_type)
    new = NewJob(job_id=event["job_id"], job_type="call", executor="http", target_ref=job_type.target_ref)
    submit(ctx, "demo", new, actor="test")
    assert dispatch(ctx, "demo", event["job_id"], actor="matcher")
    for _ in range(2):
        http_executor.handler(event, None)
    job = ctx.jobs.find("demo", event["job_id"])
    assert job is not None
    assert job.status == "completed"
    assert requests == [("POST", "https://a.example/")]


def test_supervisor_starts_a_run_and_starts_a_successor_when_stopped(deployed: Deployed) -> None:
    begin, stopped = sample("supervisor_start"), sample("supervisor_stopped")
    context = wiring.context()
    body: Any = {"name": "w", "jobs": [{"name": "a"}]}
    create_run(
        context, "demo", context.parse_run("demo", body, begin["workflow_id"], context.now(), None), actor="test"
    )

    def run() -> WorkflowRun:
        return find_run(context, "demo", begin["workflow_id"])

    assert run().status == "pending"
    assert [supervisor.handler(begin, None) for _ in range(2)] == [{}, {}]
    assert (run().status, run().supervisor) == ("running", 1)
    assert supervisor.handler(stopped, None) == {}
    assert (run().cancel_requested_by, run().supervisor) == ("supervisor", 2)
    assert supervisor.handler(stopped, None) == {}
    assert run().supervisor == 2, "a repeated event starts no second successor"
    executions = aws("stepfunctions").list_executions(stateMachineArn=os.environ["SUPERVISOR_MACHINE"])
    assert sorted(each["name"][37:] for each in executions["executions"]) == ["1-1", "1-2"]
