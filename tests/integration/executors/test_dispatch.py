"""Jobs of the executors `lambda` and `http`, on moto. Vigil claims each attempt and then invokes its target once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest
from boto3.dynamodb.types import TypeSerializer

from tests.support.world import NAMESPACE, World
from vigil_core.domain.errors import LeaseLost, StoreConflict, TargetRefused, TargetUnreachable
from vigil_core.domain.exact_json import loads
from vigil_core.domain.executors.targets import ExecutorBusy, ExecutorRefused, SecretUnavailable
from vigil_core.domain.executors.templates import SecretPlaceholder
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.jobs.retry import RetryPolicy
from vigil_core.gateways.outbound_http import HttpResponse
from vigil_core.services.background.fan_out import fan_out
from vigil_core.services.background.matcher import match_records
from vigil_core.services.executors.call_http import call_target
from vigil_core.services.executors.calls import MAX_CALL
from vigil_core.services.executors.dispatch import BUSY_DELAY, HANDOVER_LEASE_S, MAX_EVENT_BYTES, dispatch
from vigil_core.services.jobs import transitions
from vigil_core.services.queues import claim as claim_jobs
from vigil_core.services.queues import stats
from vigil_core.services.queues.claim import ClaimRequest
from vigil_core.store.jobs.job_rows import job_to_row
from vigil_core.store.stream import StreamRecord
from vigil_core.store.table import Table

TRIES = RetryPolicy(max_attempts=3, initial_delay=10, jitter=False)  # type: ignore[arg-type]


class ProcessCrashed(BaseException):
    """Error that simulates the crash of the process."""


@pytest.fixture
def world(table: Table) -> World:
    return World(table)


def store_target(world: World, executor: str = "http", **target: Any) -> str:
    """Store a target and return its name."""
    now = world.ctx.now()
    job_type = JobType(
        namespace=NAMESPACE,
        name="kind",
        executor="lambda" if executor == "lambda" else "http",
        queue="default",
        stages=("submit", "complete"),
        defaults={},
        payload_schema=None,
        description=None,
        created_at=now,
        updated_at=now,
        target=target or ({"function": "f"} if executor == "lambda" else {"url": "https://a.example/"}),
    )
    world.ctx.job_types.store_target(job_type)
    assert job_type.target_ref is not None
    return job_type.target_ref


def new_job(world: World, executor: str = "http", target: Mapping[str, Any] | None = None, **attributes: Any) -> str:
    """Create a job of this executor and return its id."""
    return world.job(executor=executor, target_ref=store_target(world, executor, **(target or {})), **attributes)


def stored_job(world: World, job_id: str) -> Job:
    job = world.ctx.jobs.find(NAMESPACE, job_id)
    assert job is not None
    return job


def stream_record(number: str, job: Job) -> StreamRecord:
    row = {name: value for name, value in job_to_row(job).items() if value is not None}
    image = {name: TypeSerializer().serialize(value) for name, value in row.items()}
    return StreamRecord(sequence_number=number, change={"NewImage": image})


def run_matcher(world: World) -> dict[str, Exception]:
    """Deliver all job changes since the last call to the matcher."""
    batch = list(world.unmatched)
    world.unmatched.clear()
    return match_records(world.ctx, [stream_record(str(n), job) for n, job in enumerate(batch) if job.needs_matching])


class TestDispatch:
    def test_pending_job_is_claimed_and_dispatched_once(self, world: World) -> None:
        job_id = new_job(world)
        record = stream_record("1", stored_job(world, job_id))
        assert match_records(world.ctx, [record, record]) == {}
        assert match_records(world.ctx, [record]) == {}, "the record is delivered once more, later"
        (event,) = world.executors.calls
        job = stored_job(world, job_id)
        assert job.lease is not None
        assert (job.status, job.lease.token, job.lease.worker) == ("running", event["lease_token"], "executor http")
        assert event == {"namespace": NAMESPACE, "job_id": job_id, "lease_token": job.lease.token}

    def test_invocation_event_contains_payload_fields_and_lease(self, world: World) -> None:
        target = {"function": "resize", "lease": 40}
        job_id = new_job(world, "lambda", target, payload={"n": [1, 2]}, fields={"a": 1}, correlation_id="c")
        run_matcher(world)
        ((function, event),) = world.executors.invocations
        assert function == "resize"
        assert (event["job_id"], event["payload"], event["fields"], event["attempt"]) == (
            job_id,
            {"n": [1, 2]},
            {"a": 1},
            1,
        )
        assert (event["lease"], event["correlation_id"], event["payload_omitted"]) == (40, "c", False)

    def test_payload_too_large_for_an_event_is_left_out(self, world: World) -> None:
        new_job(world, "lambda", payload="x" * MAX_EVENT_BYTES)
        run_matcher(world)
        ((_, event),) = world.executors.invocations
        assert (event["payload"], event["payload_omitted"]) == (None, True)

    def test_payload_stored_in_s3_is_left_out_without_a_read(self, world: World) -> None:
        payload = "x" * 500_000
        function, http = new_job(world, "lambda", payload=payload), new_job(world, payload=payload, target={
            "url": "https://a.example/", "body": {"all": "{{payload}}"}
        })  # fmt: skip
        run_matcher(world)
        ((_, event),) = world.executors.invocations
        assert (event["job_id"], event["payload"], event["payload_omitted"]) == (function, None, True)
        world.pass_time(1)
        target = Target()
        assert call_target(world.ctx, target, Secrets(), world.executors.calls[-1]) == "completed"
        assert len(target.asked[0]["body"]) == len('{"all":""}') + len(payload)
        assert stored_job(world, http).status == "completed"

    def test_worker_jobs_are_only_claimed_and_executor_jobs_only_dispatched(self, world: World) -> None:
        for executor in ("worker", "none"):
            world.job(executor=executor)
        job_id = new_job(world)
        request = ClaimRequest(queue="default", worker="w", limit=10, lease_s=60, claim_id=None)
        granted = claim_jobs.claim_jobs(world.ctx, NAMESPACE, request, actor="k", until=world.time)
        assert [job.executor for job in granted] == ["worker"]
        run_matcher(world)
        assert [event["job_id"] for event in world.executors.calls] == [job_id]

    def test_concurrent_dispatches_send_the_job_once(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        job_id = new_job(world)
        save = world.ctx.jobs.save

        def save_after_another(before: Job, after: Job) -> None:
            monkeypatch.undo()
            assert dispatch(world.ctx, NAMESPACE, job_id, actor="sweeper")
            save(before, after)

        monkeypatch.setattr(world.ctx.jobs, "save", save_after_another)
        assert not dispatch(world.ctx, NAMESPACE, job_id, actor="matcher")
        assert len(world.executors.calls) == 1

    def test_wait_registered_during_dispatch_does_not_prevent_it(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = new_job(world)
        save = world.ctx.jobs.save

        def save_after_another(before: Job, after: Job) -> None:
            monkeypatch.undo()
            world.ctx.jobs.mark_has_waits(before)
            save(before, after)

        monkeypatch.setattr(world.ctx.jobs, "save", save_after_another)
        assert run_matcher(world) == {}
        assert [event["job_id"] for event in world.executors.calls] == [job_id]
        assert stored_job(world, job_id).has_waits

    def test_function_that_cannot_be_invoked_fails_the_job_without_retry(self, world: World) -> None:
        job_id = new_job(world, "lambda", retry=TRIES)
        world.executors.error = ExecutorRefused("The function f cannot be invoked: ResourceNotFoundException")
        run_matcher(world)
        job = stored_job(world, job_id)
        assert job.error is not None
        assert (job.status, job.attempt, job.error.code) == ("failed", 1, "FUNCTION_NOT_INVOCABLE")

    def test_busy_function_snoozes_the_job_without_using_an_attempt(self, world: World) -> None:
        job_id = new_job(world, "lambda")
        world.executors.error = ExecutorBusy("TooManyRequestsException")
        run_matcher(world)
        job = stored_job(world, job_id)
        assert (job.status, job.attempt, job.scheduled_at) == ("scheduled", 1, world.time + BUSY_DELAY)
        world.executors.error = None
        world.pass_time(61)
        world.sweep()
        dispatch(world.ctx, NAMESPACE, job_id, actor="matcher")
        assert len(world.executors.invocations) == 1

    def test_failed_dispatch_fails_its_record_and_blocks_no_other_job(self, world: World) -> None:
        good, bad = new_job(world), world.job(executor="http", target_ref="lost", queue="other")
        find = world.ctx.job_queues.is_paused

        def is_paused(namespace: str, queue: str) -> bool:
            if queue == "other":
                raise TimeoutError
            return find(namespace, queue)

        world.ctx.job_queues.is_paused = is_paused  # type: ignore[method-assign]
        assert set(run_matcher(world)) == {"1"}
        assert [stored_job(world, job_id).status for job_id in (good, bad)] == ["running", "pending"]


class TestRecovery:
    def test_crash_before_the_invocation_is_recovered_by_lease_expiry(self, world: World) -> None:
        job_id = new_job(world, retry=TRIES)
        world.executors.error = ProcessCrashed()
        with pytest.raises(ProcessCrashed):
            run_matcher(world)
        assert stored_job(world, job_id).status == "running"
        world.executors.error = None
        world.pass_time(HANDOVER_LEASE_S - 1)
        world.sweep()
        assert stored_job(world, job_id).attempt == 1
        world.pass_time(2)
        world.sweep()
        job = stored_job(world, job_id)
        assert job.error is not None
        assert (job.attempt, job.error.code) == (2, "LEASE_EXPIRED")
        world.sweep()
        (event,) = world.executors.calls
        running = stored_job(world, job_id)
        assert running.lease is not None
        assert (running.status, event["lease_token"]) == ("running", running.lease.token)

    def test_sweep_dispatches_jobs_whose_records_were_lost(self, world: World) -> None:
        ids = [new_job(world, priority=priority) for priority in ("low", "critical", "normal")]
        world.unmatched.clear()
        world.sweep()
        assert [event["job_id"] for event in world.executors.calls] == [ids[1], ids[2], ids[0]]
        world.sweep()
        assert len(world.executors.calls) == 3

    def test_paused_queue_dispatches_nothing_until_resumed(self, world: World) -> None:
        world.ctx.job_queues.set_paused(NAMESPACE, "default", True)
        job_id = new_job(world, priority="high")
        world.pass_time(5)
        run_matcher(world)
        assert world.sweep() == 0, "nothing is due, and no job of the paused queue is read"
        assert world.executors.calls == []
        state = stats.queue_state(world.ctx, NAMESPACE, "default")
        assert (state.ready["high"], sum(state.ready.values()), state.paused) == (1, 1, True)
        assert state.oldest_ready == stored_job(world, job_id).created_at
        world.ctx.job_queues.set_paused(NAMESPACE, "default", False)
        world.sweep()
        assert [event["job_id"] for event in world.executors.calls] == [job_id]
        state = stats.queue_state(world.ctx, NAMESPACE, "default")
        assert (sum(state.ready.values()), state.timed["running"]) == (0, 1)

    def test_dispatched_job_receives_the_results_of_its_dependencies(self, world: World) -> None:
        before = [world.running(), world.running()]
        target = {"url": "https://a.example/{{dependencies.1.result.id}}", "body": "{{dependencies}}"}
        http = new_job(world, target=target, depends_on=before)
        function = new_job(world, "lambda", depends_on=before)
        large = new_job(world, "lambda", depends_on=before[:1], payload="x" * 100)
        world.complete(before[0], result="x" * (MAX_EVENT_BYTES - 100))
        world.complete(before[1], result={"id": "a b"})
        while world.unmatched:
            assert run_matcher(world) == {}
        assert [stored_job(world, job_id).status for job_id in (http, function, large)] == ["running"] * 3
        world.pass_time(1)
        http_target = Target()
        assert call_target(world.ctx, http_target, Secrets(), world.executors.calls[-1]) == "completed"
        assert http_target.asked[0]["url"] == "https://a.example/a%20b"
        events_by_job = {event["job_id"]: event for _, event in world.executors.invocations}
        assert events_by_job[function]["dependencies"][before[1]] == {
            "job_id": before[1], "status": "completed", "job_health": "success", "result": None, "truncated": True
        }  # fmt: skip
        assert events_by_job[large]["dependencies"][before[0]]["truncated"]
        assert events_by_job[large]["payload_omitted"]

    def test_job_queued_for_a_mutex_is_dispatched_when_it_acquires_it(self, world: World) -> None:
        first, second = (new_job(world, mutex_key="m", queue_on_conflict=True) for _ in range(2))
        assert [stored_job(world, job_id).status for job_id in (first, second)] == ["pending", "waiting"]
        run_matcher(world)
        assert [event["job_id"] for event in world.executors.calls] == [first]
        world.pass_time(1)
        call_target(world.ctx, Target(), Secrets(), world.executors.calls[-1])
        for job_id in (first, second):
            assert match_records(world.ctx, [stream_record("1", stored_job(world, job_id))]) == {}
        assert [event["job_id"] for event in world.executors.calls] == [first, second]

    def test_cancelled_job_is_not_dispatched(self, world: World) -> None:
        job_id = new_job(world)
        world.do(transitions.cancel, job_id)
        run_matcher(world)
        world.sweep()
        assert world.executors.calls == []


Answering = Callable[..., HttpResponse]


class Target:
    """HTTP target that records its requests and returns one response."""

    def __init__(self, answer: HttpResponse | Exception | None = None) -> None:
        self.answer = answer or HttpResponse(status=200, headers={}, body=b"")
        self.asked: list[dict[str, Any]] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def request(self, method: str, url: str, **asked: Any) -> HttpResponse:
        self.asked.append({"method": method, "url": url, **asked})
        self.meanwhile()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Secrets:
    def value(self, namespace: str, secret: SecretPlaceholder) -> str:
        if secret.name == "/missing":
            raise SecretUnavailable(f"{secret} cannot be read: ParameterNotFound")
        return f"{namespace}:{secret.name}"


def answer(status: int, body: bytes = b"", **headers: str) -> HttpResponse:
    return HttpResponse(
        status=status, headers={name.replace("_", "-"): value for name, value in headers.items()}, body=body
    )


def run_and_call(world: World, target: Target) -> str:
    """Dispatch the new jobs, call the target of the last one, and return the outcome of the call."""
    run_matcher(world)
    world.pass_time(1)
    return call_target(world.ctx, target, Secrets(), world.executors.calls[-1])


class TestHttpCall:
    def test_http_response_becomes_the_result_of_the_job(self, world: World) -> None:
        job_id = new_job(
            world,
            target={
                "method": "PUT",
                "url": "https://a.example/{{payload.id}}",
                "headers": {"authorization": "Bearer {{secret:ssm:/key}}"},
                "body": {"n": "{{payload.n}}"},
                "timeout": 7,
            },
            payload={"id": "x/y", "n": 3},
        )
        body = b'{"rows": 1.50}'
        target = Target(answer(201, body, content_type="application/json", etag='"1"', set_cookie="no"))
        assert run_and_call(world, target) == "completed"
        (request,) = target.asked
        assert (request["method"], request["url"]) == ("PUT", "https://a.example/x%2Fy")
        assert request["headers"] == {
            "Authorization": f"Bearer {NAMESPACE}:/key", "Content-Type": "application/json",
            "Idempotency-Key": f"{job_id}.1",
        }  # fmt: skip
        assert (request["body"], request["timeout_s"]) == (b'{"n":3}', 7)
        job = stored_job(world, job_id)
        assert (job.status, job.health) == ("completed", "success")
        headers = '{"content-type":"application/json","etag":"\\"1\\""}'
        assert world.ctx.jobs.payloads(job).result == f'{{"status":201,"headers":{headers},"body":{{"rows":1.50}}}}'

    @pytest.mark.parametrize(
        ("response", "stored_text"),
        [
            (answer(204), '"body":null'),
            (answer(200, b"plain"), '"body":"plain"'),
            (answer(200, b"{no", content_type="application/json"), '"body":"{no"'),
            (answer(200, b"\xff\xfe"), '"body":"//4=","encoding":"base64"'),
            (answer(200, b"[" * 99 + b"]" * 99, content_type="application/json"), f'"body":{"[" * 99}'),
            (answer(200, b"[" * 100 + b"]" * 100, content_type="application/json"), f'"body":"{"[" * 100}'),
            (answer(200, b"9" * 4301, content_type="application/json"), f'"body":"{"9" * 4301}"'),
            (answer(200, b'["\\ud800"]', content_type="application/json"), r'"body":"[\"\\ud800\"]"'),
            (answer(200, b'"\\u0000\\uffff"', content_type="application/json"), '"body":"\\u0000\uffff"'),
            (HttpResponse(status=200, headers={}, body=b"cut", truncated=True), '"body":"cut","truncated":true'),
        ],
    )
    def test_response_body_of_any_type_is_stored(self, world: World, response: HttpResponse, stored_text: str) -> None:
        job_id = new_job(world)
        assert run_and_call(world, Target(response)) == "completed"
        assert stored_text in (world.ctx.jobs.payloads(stored_job(world, job_id)).result or "")

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            (b'{"n": 1e99999999999999999999999}', "/n"),
            (b"[0, -1e10000]", "/1"),
            (b'{"a/b": 0e99999, "s": "\\ud800"}', "/a~1b"),
        ],
    )
    def test_response_with_a_huge_exponent_fails_the_job_at_once(self, world: World, body: bytes, pointer: str) -> None:
        job_id = new_job(world, retry=TRIES)
        assert run_and_call(world, Target(answer(200, body, content_type="application/json"))) == "RESPONSE_INVALID"
        job = stored_job(world, job_id)
        assert job.error is not None
        assert (job.status, job.error.code, job.lease) == ("failed", "RESPONSE_INVALID", None)
        assert job.error.message.startswith(f"The body of the response is refused: {pointer}: must")

    @pytest.mark.parametrize(
        ("response", "status", "code", "delay_s"),
        [
            (answer(429, retry_after="25"), "scheduled", "HTTP_429", 25),
            (answer(429, retry_after="3"), "scheduled", "HTTP_429", 10),
            (answer(503, retry_after="Sat, 31 Jan 2026 09:00:41 GMT"), "scheduled", "HTTP_503", 40),
            (answer(500, b"oh no"), "scheduled", "HTTP_500", 10),
            (TargetUnreachable("The host did not answer in time"), "scheduled", "TARGET_UNREACHABLE", 10),
            (answer(404, b"no such thing", retry_after="5"), "failed", "HTTP_404", None),
            (answer(302, location="https://b.example/"), "failed", "HTTP_302", None),
            (TargetRefused("The host has an address that is not public"), "failed", "TARGET_REFUSED", None),
        ],
    )
    def test_failed_response_sets_error_code_status_and_retry_delay(
        self, world: World, response: HttpResponse | Exception, status: str, code: str, delay_s: int | None
    ) -> None:
        job_id = new_job(world, retry=TRIES)
        assert run_and_call(world, Target(response)) == code
        job = stored_job(world, job_id)
        assert job.error is not None
        assert (job.status, job.error.code) == (status, code)
        if delay_s is not None:
            assert job.scheduled_at == world.time + timedelta(seconds=delay_s)

    def test_retry_after_without_retry_policy_fails_the_job(self, world: World) -> None:
        job_id = new_job(world)
        run_and_call(world, Target(answer(429, retry_after="1")))
        assert stored_job(world, job_id).status == "failed"

    def test_error_message_of_a_refusal_is_truncated(self, world: World) -> None:
        job_id = new_job(world)
        run_and_call(world, Target(answer(400, b"x" * 10_000 + b"\x00")))
        error = stored_job(world, job_id).error
        assert error is not None
        assert error.message.startswith("The target responded with status 400: xxx")
        assert len(error.message) < 600

    @pytest.mark.parametrize(
        ("target", "code"),
        [
            ({"url": "https://a.example/{{payload.x}}"}, "TEMPLATE_FAILED"),
            ({"url": "https://a.example/", "headers": {"x": "{{secret:ssm:/missing}}"}}, "SECRET_UNAVAILABLE"),
        ],
    )
    def test_request_that_cannot_be_rendered_fails_without_a_call(
        self, world: World, target: Mapping[str, Any], code: str
    ) -> None:
        job_id = new_job(world, target=target, retry=TRIES)
        http_target = Target()
        assert run_and_call(world, http_target) == code
        assert http_target.asked == []
        assert stored_job(world, job_id).status == "failed"

    def test_payload_too_large_for_a_call_fails_without_a_call(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("vigil_core.services.executors.call_http.MAX_RENDERED_BYTES", 1_000)
        job_id = new_job(world, payload="x" * 500_000, retry=TRIES)
        target = Target()
        assert run_and_call(world, target) == "PAYLOAD_TOO_LARGE"
        assert target.asked == []
        assert stored_job(world, job_id).status == "failed"

    def test_repeated_event_calls_the_target_once(self, world: World) -> None:
        job_id = new_job(world)
        target = Target()
        target.meanwhile = lambda: repeated_outcomes.append(
            call_target(world.ctx, Target(), Secrets(), world.executors.calls[-1])
        )
        repeated_outcomes: list[str] = []
        assert run_and_call(world, target) == "completed"
        assert repeated_outcomes == ["lease_lost"], "the first call is still running"
        assert call_target(world.ctx, target, Secrets(), world.executors.calls[-1]) == "lease_lost"
        assert len(target.asked) == 1
        assert stored_job(world, job_id).version == 3, "the versions are created, claimed and completed"

    def test_event_after_lease_expiry_calls_nothing(self, world: World) -> None:
        job_id = new_job(world, retry=TRIES)
        run_matcher(world)
        world.pass_time(HANDOVER_LEASE_S + 1)
        target = Target()
        assert call_target(world.ctx, target, Secrets(), world.executors.calls[-1]) == "lease_lost"
        assert target.asked == []
        world.sweep()
        assert stored_job(world, job_id).attempt == 2

    def test_response_after_redispatch_changes_nothing(self, world: World) -> None:
        job_id = new_job(world, retry=TRIES, target={"url": "https://a.example/", "timeout": 5})
        target = Target(answer(200, b"late"))

        def lapse() -> None:
            world.pass_time(HANDOVER_LEASE_S)
            world.sweep()
            world.sweep()

        target.meanwhile = lapse
        assert run_and_call(world, target) == "lease_lost"
        job = stored_job(world, job_id)
        assert (job.status, job.attempt, job.result_ref) == ("running", 2, None)

    def test_call_may_use_its_whole_timeout(self, world: World) -> None:
        job_id = new_job(world, target={"url": "https://a.example/", "timeout": 800})
        target = Target()

        def slow() -> None:
            world.pass_time(800)
            world.sweep()

        target.meanwhile = slow
        assert run_and_call(world, target) == "completed"
        assert stored_job(world, job_id).status == "completed"

    def test_job_with_a_cancel_request_is_not_called(self, world: World) -> None:
        job_id = new_job(world)
        run_matcher(world)
        world.do(transitions.cancel, job_id)
        world.pass_time(1)
        target = Target()
        call_target(world.ctx, target, Secrets(), world.executors.calls[-1])
        assert target.asked == []
        assert stored_job(world, job_id).status == "cancelled"

    def test_failed_call_completes_with_the_fallback(self, world: World) -> None:
        job_id = new_job(world, fallback={"rows": 0})
        run_and_call(world, Target(answer(500)))
        job = stored_job(world, job_id)
        assert (job.status, job.health) == ("completed", "fallback")


def test_first_heartbeat_of_a_lease_succeeds_once(world: World) -> None:
    new_job(world, "lambda")
    run_matcher(world)
    ((_, event),) = world.executors.invocations
    world.pass_time(1)

    def begin() -> Job:
        return transitions.heartbeat(
            world.ctx, NAMESPACE, event["job_id"], lease_token=event["lease_token"], lease_s=None, first=True
        )

    assert begin().status == "running"
    with pytest.raises(LeaseLost):
        begin()


def raise_fault(*_: object) -> None:
    raise RuntimeError("the function is broken")


class TestCallsInFlight:
    """A namespace has a limited number of calls in flight; the other jobs are dispatched when calls end."""

    LIMIT = 3

    @pytest.fixture(autouse=True)
    def _limit(self, world: World) -> None:
        world.ctx.limits.namespaces.set_limit(NAMESPACE, "executor_calls", self.LIMIT)

    def running_jobs(self, world: World, job_ids: Sequence[str]) -> list[str]:
        return [job_id for job_id in job_ids if stored_job(world, job_id).status == "running"]

    def token(self, world: World, job_id: str) -> str:
        lease = stored_job(world, job_id).lease
        assert lease is not None
        return lease.token

    def run_fan_out(self, world: World, looks: int = 3) -> None:
        """Process the messages to `fan_out`, each with time for a few looks at the slots."""
        messages, world.queues.fan_out_messages[:] = list(world.queues.fan_out_messages), []
        for body in dict.fromkeys(message.body for message in messages):
            left = iter(range(looks))
            fan_out(world.ctx, loads(body), has_time_left=lambda left=left: next(left, None) is not None)  # type: ignore[misc]

    @pytest.mark.parametrize("executor", ["http", "lambda"])
    def test_jobs_beyond_the_limit_wait_for_the_ends_of_calls(self, world: World, executor: str) -> None:
        job_ids = [new_job(world, executor) for _ in range(10)]
        assert run_matcher(world) == {}
        for _ in range(4):
            running = self.running_jobs(world, job_ids)
            assert len(running) == min(self.LIMIT, sum(not stored_job(world, job_id).ended for job_id in job_ids))
            for job_id in running:
                world.complete(job_id, lease_token=self.token(world, job_id))
            world.pass_time(2)
            self.run_fan_out(world)
        assert all(stored_job(world, job_id).status == "completed" for job_id in job_ids)

    @pytest.mark.parametrize("end", ["complete", "fail", "cancel", "lease"])
    def test_each_end_of_a_run_frees_the_slot(self, world: World, end: str) -> None:
        job_ids = [new_job(world) for _ in range(self.LIMIT)]
        run_matcher(world)
        for job_id in job_ids:
            match end:
                case "complete":
                    world.complete(job_id, lease_token=self.token(world, job_id))
                case "fail":
                    token = self.token(world, job_id)
                    world.do(transitions.fail, job_id, JobError(code="BROKEN", message=""), lease_token=token)
                case "cancel":
                    world.do(transitions.cancel, job_id)
                    world.pass_time(61)
                    transitions.apply_timers(world.ctx, NAMESPACE, job_id)
                case _:
                    world.pass_time(HANDOVER_LEASE_S + 1)
                    transitions.apply_timers(world.ctx, NAMESPACE, job_id)
        world.unmatched.clear()
        later_ids = [new_job(world) for _ in range(self.LIMIT)]
        run_matcher(world)
        assert self.running_jobs(world, later_ids) == later_ids

    def test_slot_of_a_lost_release_becomes_free(self, world: World) -> None:
        now = world.ctx.now()
        for number in range(self.LIMIT):
            assert world.ctx.work_slots.acquire_call(
                NAMESPACE, limit=self.LIMIT, owner=f"lost-{number}", until=now + MAX_CALL, now=now
            )
        job_id = new_job(world)
        run_matcher(world)
        assert stored_job(world, job_id).status == "pending"
        world.pass_time(MAX_CALL.total_seconds() + 1)
        dispatch(world.ctx, NAMESPACE, job_id, actor="sweeper")
        assert stored_job(world, job_id).status == "running"

    def test_lane_of_fan_out_is_free_again_soon_while_no_call_ends(self, world: World) -> None:
        queues = [f"queue{number}" for number in range(10)]
        for queue in queues:
            for _ in range(self.LIMIT):
                new_job(world, queue=queue)
        run_matcher(world)
        messages, world.queues.fan_out_messages[:] = list(world.queues.fan_out_messages), []
        assert len({message.group for message in messages}) == 1
        for message in messages:
            started_at = world.time
            fan_out(world.ctx, loads(message.body), has_time_left=lambda: True)
            assert world.time - started_at <= timedelta(seconds=11)

    def test_failed_dispatch_frees_its_slot(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        job_id = new_job(world)

        def refuse(*_: object) -> None:
            raise StoreConflict("throttled")

        with monkeypatch.context() as patched:
            patched.setattr(type(world.ctx.jobs), "save", refuse)
            dispatch(world.ctx, NAMESPACE, job_id, actor="sweeper")
            patched.setattr(type(world.ctx.jobs), "save", raise_fault)
            with pytest.raises(RuntimeError):
                dispatch(world.ctx, NAMESPACE, job_id, actor="sweeper")
        assert world.ctx.work_slots.calls_in_flight(NAMESPACE, world.ctx.now()) == 0

    def test_other_namespace_and_workers_are_not_limited(self, world: World) -> None:
        for _ in range(self.LIMIT + 1):
            new_job(world)
        run_matcher(world)
        now = world.ctx.now()
        assert world.ctx.work_slots.acquire_call("other", limit=1, owner="o", until=now + MAX_CALL, now=now)
        job_id = world.job()
        world.do(transitions.start, job_id)
        assert stored_job(world, job_id).status == "running"
