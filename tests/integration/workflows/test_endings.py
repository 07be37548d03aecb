"""A run ends, whatever its jobs report and whatever its output is."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.support.runs import RunWorld
from tests.support.world import KEY, NAMESPACE
from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.output import OUTPUT_INVALID
from vigil_core.services.background import sweeper
from vigil_core.services.jobs import transitions
from vigil_core.services.timers import start_job_timer
from vigil_core.services.workflows import commands as runs
from vigil_core.services.workflows import create as create_run
from vigil_core.services.workflows import supervisor
from vigil_core.store.jobs.jobs import JobStore
from vigil_core.store.workflows.runs import RunStore

DIGITS = "9" * 4_300
HOSTILE_OUTPUTS = [
    ("a.result.x", '{"x": 1e999}'),
    ("to_number('inf')", "{}"),
    ("to_number('nan')", "{}"),
    ("&a", "{}"),
    ("[a, &a]", "{}"),
    ('`"\\ud800"`', "{}"),
    ('abs(`"\\ud800"`)', "{}"),
    ('{"\\ud800": `1`}', "{}"),
    ("sum(a.result.l)", f'{{"l": [{DIGITS}, {DIGITS}]}}'),
    ("length(a.status, `1`)", "{}"),
    ("sort_by(a.result, &x)", "[1, null]"),
    ("a.result" + "[0]" * 300, "[" * 95 + "]" * 95),
    ("to_string(a.result)", "[" * 95 + "]" * 95),
]


def complete_with_text(world: RunWorld, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Complete the claimed job with a result whose stored JSON text is `text`."""
    put_result = JobStore.put_result

    def put_text(store: JobStore, job: Job, nonce: str, _: str) -> Any:
        return put_result(store, job, nonce, text)

    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "put_result", put_text)
        world.work({"a": {}})


@pytest.mark.parametrize(("output", "result"), HOSTILE_OUTPUTS)
def test_run_ends_whatever_its_output_is(
    world: RunWorld, monkeypatch: pytest.MonkeyPatch, output: str, result: str
) -> None:
    try:
        run = world.run({"name": "a"}, output=output)
    except ValidationFailed:
        return
    complete_with_text(world, monkeypatch, result)
    ended = world.find_run(run)
    if ended.error is None:
        assert ended.status == "completed"
        text, _ = world.ctx.runs.result(ended)
        assert text is not None
        loads(text)
    else:
        assert (ended.status, ended.error.code, ended.result_ref) == ("failed", OUTPUT_INVALID, None)
        assert ended.error.message
    assert world.statuses(run) == {"a": "completed"}


def test_output_that_is_not_json_fails_the_run_with_the_reason(world: RunWorld) -> None:
    run = world.run({"name": "a"}, output="&a")
    world.work()
    error = world.find_run(run).error
    assert error is not None
    assert error.message.startswith("The output cannot be evaluated: ")


def test_failed_job_outranks_an_invalid_output(world: RunWorld) -> None:
    run = world.run({"name": "a"}, output="&a")
    world.work({"a": Exception("BROKEN")})
    error = world.find_run(run).error
    assert error is not None
    assert error.code == "JOB_FAILED"


@pytest.mark.parametrize("error", [ValueError("bad"), TypeError("bad"), RecursionError("bad"), OverflowError("bad")])
def test_output_that_cannot_be_stored_ends_the_run(
    world: RunWorld, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run = world.run({"name": "a"})

    def refuse(*_: Any) -> str:
        raise error

    monkeypatch.setattr(RunStore, "put_result", refuse)
    world.work({"a": {"rows": 1}})
    ended = world.find_run(run)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == ("failed", OUTPUT_INVALID)


def test_transient_error_leaves_the_end_to_the_next_attempt(world: RunWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    run = world.run({"name": "a"})
    world.run_until_idle()
    job = world.claim()
    assert job is not None
    throttled = ClientError({"Error": {"Code": "ThrottlingException", "Message": "slow down"}}, "PutItem")

    def refuse(*_: Any) -> str:
        raise throttled

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "put_result", refuse)
        patch.setattr(world.machine, "ready", lambda: [])
        world.finish(job, {"rows": 1})
        world.deliver_stream()
        with pytest.raises(ClientError):
            supervisor.finalise(world.ctx, world.find_run(run))
    world.run_until_idle()
    assert world.find_run(run).status == "completed"
    assert world.ctx.runs.find(NAMESPACE, run) is not None


MUTEX = {"key": "tape", "on_conflict": "queue"}
CANCEL_LIMIT_S = 120


def pass_seconds(world: RunWorld, seconds: int) -> None:
    """Let time pass second by second. Timers elapse to the second, and the sweep runs once a minute."""
    timers: list[tuple[int, str]] = []
    for second in range(seconds):
        messages, world.queues.sweeper_messages = world.queues.sweeper_messages, []
        timers += [(second + delay, message) for message, delay in messages]
        due, timers = [each for each in timers if each[0] <= second], [each for each in timers if each[0] > second]
        for _, message in due:
            sweeper.on_message(world.ctx, loads(message))
        if second % 60 == 59:
            world.sweep()
        world.run_until_idle()
        world.pass_time(1)


@pytest.mark.parametrize("supervisor_state", ["waits", "failed", "superseded", "never wakes"])
@pytest.mark.parametrize("paused", [False, True])
def test_cancel_ends_a_run_within_two_minutes(
    world: RunWorld, monkeypatch: pytest.MonkeyPatch, supervisor_state: str, *, paused: bool
) -> None:
    run = world.run(
        {"name": "running", "priority": "high"},
        {"name": "pending"},
        {"name": "waiting", "depends_on": ["running"]},
        {"name": "delayed", "start_delay": 86_400},
        {"name": "batch", "batch": [1, 2], "queue": "items"},
        {"name": "owner", "mutex": MUTEX, "queue": "locked"},
        {"name": "queued", "mutex": MUTEX, "queue": "locked", "priority": "low"},
    )
    world.run_until_idle()
    assert world.claim() is not None
    assert world.claim("items") is not None
    if paused:
        runs.pause(world.ctx, NAMESPACE, run, actor=KEY)
    world.run_until_idle()
    pass_seconds(world, 700)  # By now, the sweeper checks the run only every few minutes.
    if supervisor_state == "failed":
        world.machine.stop(world.find_run(run).execution_name, "FAILED")
    elif supervisor_state == "superseded":
        runs.change_run(
            world.ctx,
            NAMESPACE,
            run,
            lambda current: workflows.next_supervisor_generation(current, now=world.time),
        )
    elif supervisor_state == "never wakes":
        monkeypatch.setattr(world.machine, "ready", lambda: [])
    runs.request_cancel(world.ctx, NAMESPACE, run, actor=KEY)
    pass_seconds(world, CANCEL_LIMIT_S)
    assert world.find_run(run).status == "cancelled", world.statuses(run)
    assert set(world.statuses(run).values()) == {"cancelled"}


def test_cancel_ends_a_run_whose_creation_has_crashed(world: RunWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(create_run, "prepare_jobs", lambda _, run: run)
        run = world.run({"name": "a"}, {"name": "b", "depends_on": ["a"]})
    runs.request_cancel(world.ctx, NAMESPACE, run, actor=KEY)
    pass_seconds(world, CANCEL_LIMIT_S)
    assert world.find_run(run).status == "cancelled"


@pytest.mark.parametrize("batch", [False, True])
def test_cancel_ends_a_running_job_within_two_minutes(world: RunWorld, *, batch: bool) -> None:
    job_id = world.job(**({"batch_size": 2, "payload": [1, 2]} if batch else {}))
    world.run_matcher()
    world.run_fan_out()
    if not batch:
        assert world.claim() is not None
    cancelling = world.do(transitions.cancel, job_id)
    assert cancelling.needs_matching
    start_job_timer(world.ctx, cancelling, None)
    delays = [delay for message, delay in world.queues.sweeper_messages if job_id in message]
    assert delays
    assert max(delays) <= CANCEL_LIMIT_S
    world.pass_time(max(delays))
    transitions.apply_timers(world.ctx, NAMESPACE, job_id)
    job = world.ctx.jobs.find(NAMESPACE, job_id)
    assert job is not None
    assert job.status == "cancelled"


@pytest.mark.parametrize("synchronous_jobs", [256, 0])
@pytest.mark.parametrize("error", [OverflowError("date value out of range"), TypeError("no text")])
def test_run_with_a_job_that_cannot_be_created_ends_with_the_reason(
    world: RunWorld, monkeypatch: pytest.MonkeyPatch, synchronous_jobs: int, error: Exception
) -> None:
    monkeypatch.setattr(create_run, "MAX_SYNCHRONOUS_JOBS", synchronous_jobs)
    create = JobStore.create

    def refuse_one(store: JobStore, job: Job, *rest: Any) -> None:
        if job.name == "j1":
            raise error
        create(store, job, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "create", refuse_one)
        run = world.run({"name": "j0"}, *({"name": name, "depends_on": ["j0"]} for name in ("j1", "j2")))
        world.run_until_idle()
    ended = world.find_run(run)
    assert (ended.status, ended.error and ended.error.code) == ("failed", "PROCESSING_FAILED")
    assert (ended.statistics or {})["cancelled"] == 3
    retried = runs.retry(world.ctx, NAMESPACE, run, from_job=None, actor=KEY)
    create_run.prepare_jobs(world.ctx, retried)
    world.work()
    assert world.find_run(run).ended
