"""The verdict log of waiting jobs: each line has the ids and the reason of a verdict, and contains no secret."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest

from tests.support.runs import RunWorld
from tests.support.world import KEY, NAMESPACE
from vigil_core.runtime.logging import logger
from vigil_core.services.jobs import transitions
from vigil_core.services.workflows import commands as runs

TRACE_IDS = {"trace_id": "t", "correlation_id": "daily-report-001"}


class Log:
    """The log output since the last read."""

    def __init__(self, stream: StringIO) -> None:
        self._stream = stream

    def text(self) -> str:
        text = self._stream.getvalue()
        self._stream.seek(0)
        self._stream.truncate()
        return text

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of verdicts, without the members that every log line has."""
        lines = [json.loads(line) for line in self.text().splitlines()]
        assert {line["level"] for line in lines} <= {"INFO"}
        own = {"level", "location", "timestamp", "service", "message", "action"}
        return [
            {"said": line["message"], **{name: value for name, value in line.items() if name not in own}}
            for line in lines
            if line["action"] == "verdict"
        ]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    output = StringIO()
    monkeypatch.setattr(logger.registered_handler, "stream", output)
    return Log(output)


def test_release_and_skip_log_one_line_each_with_ids_and_reason(world: RunWorld, log: Log) -> None:
    run = world.run(
        {"name": "a", "payload": "classified", "fields": {"f": "classified"}},
        {"name": "b", "depends_on": ["a"], "trace_id": "own"},
        {"name": "c", "depends_on": ["a"], "condition": "a.result.rows > `5`"},
        {"name": "d", "depends_on": ["c"]},
        **TRACE_IDS,
    )
    world.run_until_idle()

    def line(log_text: str, name: str, reason: str, **other: str) -> dict[str, Any]:
        ids = {"namespace": NAMESPACE, "workflow_id": run, "job_id": world.id_of(run, name), **TRACE_IDS}
        return {"said": log_text, **ids, "job": name, "reason": reason, **other}

    assert log.lines() == [line("released", "a", "it depends on no other job")]
    assert world.work({"a": {"rows": 3, "key": "classified"}}) == ["a", "b"]
    log_text = log.text()
    assert "classified" not in log_text
    lines = [json.loads(text) for text in log_text.splitlines()]
    expected = [
        line("released", "b", "all_success holds: of 1 dependencies 1 success", trace_id="own"),
        line("skipped", "c", "the condition is false"),
        line("skipped", "d", "all_success can no longer hold: of 1 dependencies 1 skipped"),
    ]
    logged = [{name: each.get(name) for name in expected[0] if name != "said"} for each in lines]
    assert sorted(logged, key=str) == sorted(
        [{k: v for k, v in each.items() if k != "said"} for each in expected], key=str
    )
    assert [each["message"] for each in lines].count("skipped") == 2


def test_repeated_records_log_nothing(world: RunWorld, log: Log) -> None:
    world.run({"name": "a"}, {"name": "b", "depends_on": ["a"]}, {"name": "c", "depends_on": ["a"]})
    assert world.work({"a": Exception("NO")}) == ["a"]
    assert log.lines()
    world.table.records = list(world.delivered)
    world.run_until_idle()
    assert log.lines() == []


def test_condition_error_details_are_not_logged(world: RunWorld, log: Log) -> None:
    run = world.run({"name": "a"}, {"name": "b", "depends_on": ["a"], "condition": "abs(a.result.key) > `0`"})
    world.work({"a": {"key": "classified"}})
    assert "classified" in str(world.at(run, "b").dependencies.verdict)
    log_text = log.text()
    assert "classified" not in log_text
    (failed,) = [line for line in map(json.loads, log_text.splitlines()) if line["message"] == "failed"]
    assert (failed["job"], failed["reason"]) == ("b", "CONDITION_FAILED")


def test_many_equal_verdicts_share_one_line(world: RunWorld, log: Log) -> None:
    total = 150
    chain = [{"name": f"n{n}", "depends_on": [f"n{n - 1}"] if n else []} for n in range(total)]
    run = world.run(*chain, failure_policy="continue_on_failure", **TRACE_IDS)
    world.run_until_idle()
    log.text()
    assert world.work({"n0": Exception("NO")}) == ["n0"]
    assert world.at(run, f"n{total - 1}").status == "skipped"
    (line,) = log.lines()
    assert line == {
        "said": "skipped", "namespace": NAMESPACE, "workflow_id": run, **TRACE_IDS, "jobs": total - 1,
        "first": ["n1", "n2", "n3", "n4", "n5"],
        "reason": "all_success can no longer hold: of 1 dependencies 1 failed",
    }  # fmt: skip


def test_parked_and_unparked_jobs_are_logged(world: RunWorld, log: Log) -> None:
    run = world.run({"name": "a"}, {"name": "b"}, max_concurrency=1)
    world.run_until_idle()
    first, second = ("a", "b") if world.at(run, "b").workflow.parked else ("b", "a")
    assert {(line["said"], line["job"]) for line in log.lines()} == {("released", first), ("parked", second)}
    assert world.work() == [first, second]
    (line,) = log.lines()
    assert (line["said"], line["job"], line["reason"]) == ("unparked", second, "workflow")


def test_job_parked_by_a_paused_run_is_logged_once(world: RunWorld, log: Log) -> None:
    run = world.run({"name": "a"})
    world.run_until_idle()
    runs.pause(world.ctx, NAMESPACE, run, actor=KEY)
    log.text()
    for _ in range(2):
        assert world.claim() is None
    (line,) = log.lines()
    assert (line["said"], line["job"], line["job_id"]) == ("parked", "a", world.id_of(run, "a"))
    world.run_until_idle()
    runs.resume(world.ctx, NAMESPACE, run, actor=KEY)
    assert world.work() == ["a"]
    assert [line["said"] for line in log.lines()] == ["unparked"]


def test_mutex_queueing_and_acquisition_are_logged(world: RunWorld, log: Log) -> None:
    mutex = {"key": "box", "on_conflict": "queue"}
    world.run({"name": "a", "mutex": mutex}, {"name": "b", "mutex": mutex})
    first, second = world.work()
    logged = [(line["said"], line["job"], line["reason"]) for line in log.lines()]
    alone = "it depends on no other job"
    assert logged == [("released", first, alone), ("mutex_queued", second, alone), ("mutex_acquired", second, "mutex")]


def test_verdict_of_a_job_without_run_is_logged(world: RunWorld, log: Log) -> None:
    other = world.job()
    job_id = world.job(depends_on=(other,), name="report", correlation_id="daily-report-001")
    world.run_until_idle()
    assert log.lines() == []
    world.fail(world.do(transitions.start, other).job_id)
    world.run_until_idle()
    (line,) = log.lines()
    assert line == {
        "said": "skipped", "namespace": NAMESPACE, "job_id": job_id, "correlation_id": "daily-report-001",
        "job": "report", "reason": "all_success can no longer hold: of 1 dependencies 1 failed",
    }  # fmt: skip
