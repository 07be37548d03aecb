"""A run ends, whatever its jobs report and whatever its output is."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.support.runs import RunWorld
from tests.support.world import NAMESPACE
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.workflows.output import OUTPUT_INVALID
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
    run = world.run({"name": "a"}, output=output)
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


def test_every_hostile_value_of_an_output_fails_the_run(world: RunWorld) -> None:
    run = world.run({"name": "a"}, output="to_number('inf')")
    world.work()
    error = world.find_run(run).error
    assert error is not None
    assert error.message.startswith("The output is not JSON: ")


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
