"""Waits as a client sees them. Tests run the matcher explicitly where its timing matters."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import uuid6

from tests.support.world import KEY, NAMESPACE, World
from vigil_core.domain.access import Access, Scope
from vigil_core.domain.errors import InvalidTransition, JobNotFound, ValidationFailed, WaitNotFound
from vigil_core.domain.events.event import wait_event_data
from vigil_core.services.background import matcher
from vigil_core.services.jobs import transitions
from vigil_core.services.waits import requests, view
from vigil_core.services.waits import resolve as resolve_wait
from vigil_core.store import keys
from vigil_core.store.table import DynamoTable, query_all

ACCESS = Access(namespace=NAMESPACE, scopes=frozenset({Scope.READ}), key_id=KEY)


class TestApiExamples:
    def test_wait_on_two_jobs_is_met_when_both_complete(self, world: World) -> None:
        one, two = world.running(), world.running()
        answer = world.wait({one: {"job_stage": "complete"}, two: None})
        assert answer["status"] == "waiting"
        world.complete(one)
        world.complete(two)
        world.run_matcher()
        answer = world.post(answer)
        assert answer["waited_jobs"] == {one: {"job_stage": "complete"}, two: {"job_stage": "complete"}}
        assert "wait_on" not in answer
        assert answer["status"] == "met"

    def test_wait_for_a_milestone_returns_the_requested_fields(self, world: World) -> None:
        job = world.running(fields={"result_root": "/result/...", "boot_seconds": 45})
        world.report(job, milestones=["final"])
        world.complete(job)
        answer = world.wait(
            {job: {"milestone": "final"}},
            wait_options={"get_fields": {"result_root": None, "boot_seconds": None}, "fail_fast": None},
        )
        assert answer["waited_jobs"] == {
            job: {"job_stage": "complete", "result_root": "/result/...", "boot_seconds": "45"}
        }
        assert "wait_on" not in answer

    def test_waited_jobs_of_an_earlier_response_are_preserved(self, world: World) -> None:
        one, two = world.running(), world.running()
        earlier = {str(uuid6.uuid7()): {"job_stage": "complete", "job_health": "success"}}
        answer = world.wait(
            {one: {"job_stage": "complete"}, two: None},
            wait_options={"get_fields": {"job_health": None}, "fail_fast": None},
            waited_jobs=earlier,
        )
        assert answer["waited_jobs"] == earlier
        world.complete(one)
        world.complete(two)
        world.run_matcher()
        success = {"job_stage": "complete", "job_health": "success"}
        assert world.post(answer)["waited_jobs"] == {**earlier, one: success, two: success}


class TestConditions:
    @pytest.mark.parametrize(("stage", "met"), [("download", True), ("boot", True), ("setup", False)])
    def test_stage_condition_is_met_by_the_stage_or_a_later_one(self, world: World, stage: str, met: bool) -> None:
        job = world.running()
        answer = world.wait({job: {"job_stage": stage}})
        world.report(job, stage="boot")
        world.run_matcher()
        assert world.show(answer)["status"] == ("met" if met else "waiting")

    def test_incomplete_condition_is_met_only_by_incomplete_jobs(self, world: World) -> None:
        good, bad = world.running(), world.running()
        answers = [world.wait({job: {"job_stage": "incomplete"}}) for job in (good, bad)]
        world.complete(good)
        world.fail(bad)
        world.run_matcher()
        assert [world.show(answer)["status"] for answer in answers] == ["unmet", "met"]

    def test_all_parts_of_a_condition_must_match_one_version(self, world: World) -> None:
        job = world.running()
        answer = world.wait({job: {"milestones": ["a", "b"], "mode": "fast"}})
        world.report(job, milestones=["a"], fields={"mode": "fast"})
        world.report(job, milestones=["b"], fields={"mode": "slow"})
        world.run_matcher()
        assert world.show(answer)["status"] == "waiting"
        world.report(job, fields={"mode": "fast"})
        world.run_matcher()
        assert world.show(answer)["status"] == "met"

    @pytest.mark.parametrize(
        ("value", "expected"), [(7, "7"), ("7", 7), (True, "true"), ([1, "x"], "1 x"), ({"a": 1}, '{"a":1}')]
    )
    def test_field_values_are_compared_as_text(self, world: World, value: Any, expected: Any) -> None:
        job = world.running(fields={"value": value})
        assert world.wait({job: {"value": expected}})["status"] == "met"

    @pytest.mark.parametrize(
        ("value", "expected", "status"),
        [
            (Decimal("1.50"), Decimal("1.5"), "met"),
            (7, Decimal("7.0"), "met"),
            (Decimal("1e2"), 100, "met"),
            (Decimal("0.1"), Decimal("0.10000000000000000000000000000000000000001"), "waiting"),
            ("1.50", Decimal("1.5"), "waiting"),
            ("6.10", "6.1", "waiting"),
            (True, 1, "waiting"),
        ],
    )
    def test_two_numbers_are_compared_as_numbers(self, world: World, value: Any, expected: Any, status: str) -> None:
        job = world.running(fields={"value": value})
        assert world.wait({job: {"value": expected}})["status"] == status

    def test_absent_field_matches_no_value(self, world: World) -> None:
        job = world.running()
        assert world.wait({job: {"nothing": ""}})["status"] == "waiting"

    def test_condition_met_by_one_update_captures_the_values_of_that_update(self, world: World) -> None:
        job = world.running()
        answer = world.wait({job: {"light": "green"}}, wait_options={"get_fields": {"light": None, "n": None}})
        world.report(job, fields={"light": "green", "n": 1})
        world.report(job, fields={"light": "red", "n": 2})
        world.run_matcher()
        assert world.show(answer)["waited_jobs"] == {job: {"job_stage": "submit", "light": "green", "n": "1"}}

    def test_update_before_the_registration_does_not_count(self, world: World) -> None:
        job = world.running()
        world.report(job, fields={"light": "green"})
        world.report(job, fields={"light": "red"})
        answer = world.wait({job: {"light": "green"}})
        world.run_matcher()
        assert world.show(answer)["status"] == "waiting"

    def test_null_condition_is_met_by_any_end(self, world: World) -> None:
        good, bad, gone = world.running(), world.running(), world.job()
        answer = world.wait({good: None, bad: {}, gone: None})
        world.complete(good)
        world.fail(bad)
        world.do(transitions.cancel, gone)
        world.run_matcher()
        stages = {job: values["job_stage"] for job, values in world.show(answer)["waited_jobs"].items()}
        assert stages == {good: "complete", bad: "incomplete", gone: "incomplete"}


class TestGetFields:
    def test_fields_of_every_type_are_captured_as_text(self, world: World) -> None:
        job = world.running(
            name="box", fields={"text": "t", "list": ["a", 1, 2.50], "object": {"k": [1]}, "flag": True}
        )
        world.report(job, progress=Decimal("0.5"), message="half way")
        world.complete(job, result={"rows": 12345678901234567890123})
        names = ["text", "list", "object", "flag", "absent", "name", "queue", "result", "message", "status"]
        answer = world.wait({job: None}, wait_options={"get_fields": dict.fromkeys(names)})
        assert answer["waited_jobs"][job] == {
            "job_stage": "complete", "text": "t", "list": "a 1 2.5", "object": '{"k":[1]}', "flag": "true",
            "absent": "", "name": "box", "queue": "default", "result": '{"rows":12345678901234567890123}',
            "message": "half way", "status": "completed",
        }  # fmt: skip

    def test_long_result_is_captured_completely(self, world: World) -> None:
        job = world.running()
        answer = world.wait({job: None}, wait_options={"get_fields": {"result": None}})
        world.complete(job, result="x" * 300_000)
        world.run_matcher()
        assert world.show(answer)["waited_jobs"][job]["result"] == "x" * 300_000


class TestEndings:
    def test_fail_fast_wait_ends_at_once_with_the_failed_job(self, world: World) -> None:
        slow, bad = world.running(), world.running()
        answer = world.wait({slow: None, bad: {"job_stage": "boot"}}, wait_options={"fail_fast": None})
        world.fail(bad)
        world.run_matcher()
        answer = world.post(answer)
        assert answer["status"] == "failed_fast"
        assert answer["waited_jobs"] == {bad: {"job_stage": "incomplete"}}
        assert "wait_on" not in answer

    @pytest.mark.parametrize("total", [3, 8])
    def test_counts_do_not_contain_the_job_that_failed_the_wait(self, world: World, total: int) -> None:
        jobs = [world.running() for _ in range(total)]
        options = {"fail_fast": None, "get_fields": {"error": None}}
        answer = world.wait(dict.fromkeys(jobs), wait_options=options)
        world.run_fan_out()
        world.complete(jobs[0])
        world.run_matcher()
        world.fail(jobs[1])
        world.run_matcher()
        answer = world.show(answer)
        assert (answer["status"], answer["counts"]) == ("failed_fast", {"total": total, "met": 1, "unmet": 0})
        assert answer["waited_jobs"] == {
            jobs[0]: {"job_stage": "complete", "error": ""},
            jobs[1]: {"job_stage": "incomplete", "error": '{"code":"BROKEN","message":"it broke"}'},
        }
        wait = world.ctx.waits.find(NAMESPACE, str(answer["wait_id"]))
        assert wait is not None
        assert wait_event_data(wait, None)["counts"] == answer["counts"]
        listed, _ = view.jobs_page(world.ctx, wait, after_index=-1, page_size=10)
        assert {entry["job_id"]: entry["met"] for entry in listed} == {jobs[0]: True, jobs[1]: False}

    @pytest.mark.parametrize("size", [100, 500_000])
    def test_captured_value_that_is_cut_is_marked(self, world: World, size: int) -> None:
        job_id = world.running()
        answer = world.wait({job_id: None}, wait_options={"get_fields": {"result": None, "queue": None}})
        world.complete(job_id, result="x" * size)
        world.run_matcher()
        values = world.show(answer)["waited_jobs"][job_id]
        is_complete = values["result"] == "x" * size
        assert is_complete == (size == 100)
        assert values.get("truncated") == (None if is_complete else "result")
        assert values["queue"] == "default"

    def test_fail_fast_wait_on_an_already_incomplete_job_ends_at_once(self, world: World) -> None:
        slow, bad = world.running(), world.running()
        world.fail(bad)
        answer = world.wait({slow: None, bad: None}, wait_options={"fail_fast": True, "mode": "any"})
        assert answer["status"] == "failed_fast"

    def test_unmet_job_does_not_end_a_wait_for_all(self, world: World) -> None:
        bad, good = world.running(), world.running()
        answer = world.wait({bad: {"job_stage": "boot"}, good: {"job_stage": "boot"}})
        world.fail(bad)
        world.run_matcher()
        answer = world.post(answer)
        assert answer["unmet_jobs"] == {bad: {"job_stage": "incomplete", "reason": "ended"}}
        assert answer["status"] == "waiting"
        assert list(answer["wait_on"]) == [good]
        world.report(good, stage="boot")
        world.run_matcher()
        assert world.post(answer)["status"] == "unmet"

    def test_any_and_at_least_modes_are_met_by_enough_jobs(self, world: World) -> None:
        jobs = [world.running() for _ in range(3)]
        first = world.wait(dict.fromkeys(jobs), wait_options={"mode": "any"})
        two = world.wait(dict.fromkeys(jobs), wait_options={"mode": {"at_least": 2}})
        hopeless = world.wait({key: {"job_stage": "complete"} for key in jobs}, wait_options={"mode": {"at_least": 3}})
        world.complete(jobs[0])
        world.run_matcher()
        assert [world.show(a)["status"] for a in (first, two, hopeless)] == ["met", "waiting", "waiting"]
        world.fail(jobs[1])
        world.run_matcher()
        assert [world.show(a)["status"] for a in (first, two, hopeless)] == ["met", "met", "unmet"]

    def test_wait_expires_at_its_deadline(self, world: World) -> None:
        job = world.running()
        answer = world.wait({job: {"job_stage": "boot"}}, wait_options={"expires_in": 120})
        assert world.queues.sweeper_messages[0][1] == 121
        world.pass_time(119)
        assert world.sweep() == 0
        world.pass_time(2)
        assert world.sweep() == 1
        answer = world.post(answer)
        assert answer["status"] == "expired"
        assert answer["unmet_jobs"] == {job: {"job_stage": "submit", "reason": "expired"}}
        assert world.sweep() == 0

    def test_cancelled_wait_stays_cancelled_and_a_met_one_cannot_be_cancelled(self, world: World) -> None:
        job = world.running()
        answer = world.wait({job: None})
        for _ in range(2):
            cancelled = requests.cancel_wait(world.ctx, NAMESPACE, answer["wait_id"], access=ACCESS)
            assert cancelled["status"] == "cancelled"
        world.complete(job)
        world.run_matcher()
        assert world.show(answer)["waited_jobs"] == {}
        met = world.wait({job: None})
        with pytest.raises(InvalidTransition):
            requests.cancel_wait(world.ctx, NAMESPACE, met["wait_id"], access=ACCESS)

    def test_deleted_job_is_unmet_with_reason_deleted(self, world: World) -> None:
        job = world.running()
        answer = world.wait({job: {"job_stage": "incomplete"}})
        world.complete(job, result=1)
        world.delete(job)
        world.unmatched[:] = world.unmatched[
            -1:
        ]  # The completed version is not matched, because it is older than the wait.
        world.run_matcher()
        assert world.show(answer)["unmet_jobs"][job]["reason"] == "deleted"
        with pytest.raises(JobNotFound):
            world.wait({job: None})

    def test_wait_with_allow_missing_is_met_by_a_job_created_later(self, world: World) -> None:
        job = str(uuid6.uuid7())
        options = {"allow_missing": None}
        answer = world.wait({job: {"job_stage": "boot"}}, wait_options=options)
        strange = world.wait({job: {"job_stage": "no-such-stage"}}, wait_options=options)
        world.running(job_id=job)
        world.report(job, stage="boot")
        world.run_matcher()
        assert world.show(answer)["status"] == "met"
        assert world.show(strange)["unmet_jobs"][job]["reason"] == "unknown_stage"


class TestLongPoll:
    def test_long_poll_returns_when_the_wait_ends(self, world: World) -> None:
        job = world.running()
        answer = world.wait({job: None}, poll_s=0)
        finished = False

        def someone_else(seconds: float) -> None:
            nonlocal finished
            world.pass_time(seconds)
            if not finished:
                finished = True
                world.complete(job)
                world.run_matcher()

        object.__setattr__(world.ctx, "sleep", someone_else)
        started_at = world.time
        assert world.post(answer, poll_s=20)["status"] == "met"
        assert (world.time - started_at).total_seconds() < 1

    def test_long_poll_returns_waiting_after_its_timeout(self, world: World) -> None:
        started_at = world.time
        assert world.wait({world.running(): None}, poll_s=20)["status"] == "waiting"
        assert 20 <= (world.time - started_at).total_seconds() < 20.6

    def test_long_poll_with_return_on_progress_returns_after_each_outcome(self, world: World) -> None:
        one, two, three = world.running(), world.running(), world.running()
        answer = world.wait(
            {one: None, two: None, three: {"job_stage": "boot"}}, wait_options={"return_on": "progress"}
        )
        world.complete(one)
        world.run_matcher()
        started_at = world.time
        answer = world.post(answer, poll_s=20)
        assert (answer["status"], list(answer["waited_jobs"]), world.time) == ("waiting", [one], started_at)
        assert world.post(answer, poll_s=20)["status"] == "waiting"
        assert world.time > started_at
        world.fail(three)
        world.run_matcher()
        started_at = world.time
        assert list(world.post(answer, poll_s=20)["unmet_jobs"]) == [three]
        assert world.time == started_at

    def test_ended_response_posted_back_is_returned_unchanged(self, world: World) -> None:
        job = world.running()
        world.complete(job)
        answer = world.wait({job: None})
        assert world.post(answer) == answer

    def test_unknown_wait_id_registers_a_new_wait(self, world: World) -> None:
        job = world.running()
        unknown_id = str(uuid6.uuid7())
        answer = world.post({"wait_id": unknown_id, "wait_on": {job: None}})
        assert answer["wait_id"] != unknown_id
        with pytest.raises(ValidationFailed, match="/wait_on"):
            world.post({"wait_id": unknown_id, "waited_jobs": {}})
        with pytest.raises(WaitNotFound):
            world.show({"wait_id": unknown_id})


class TestBadRequests:
    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ([], ""),
            ({}, "/wait_on"),
            ({"wait_on": {}}, "/wait_on"),
            ({"wait_on": None}, "/wait_on"),
            ({"wait_on": {"x": None}, "surprise": 1}, "/surprise"),
            ({"wait_on": {"x": "boot"}}, "/wait_on/x"),
            ({"wait_on": {"a/b~": {"job_stage": None}}}, "/wait_on/a~1b~0/job_stage"),
            ({"wait_on": {"x": {"job_stage": 3}}}, "/wait_on/x/job_stage"),
            ({"wait_on": {"x": {"arch": None}}}, "/wait_on/x/arch"),
            ({"wait_on": {"x": {"arch": {}}}}, "/wait_on/x/arch"),
            ({"wait_on": {"x": {"milestones": []}}}, "/wait_on/x/milestones"),
            ({"wait_on": {"x": {"milestone": 1}}}, "/wait_on/x/milestone"),
            ({"wait_on": {"x": {"progress": 1}}}, "/wait_on/x/progress"),
            ({"wait_on": {"x": None}, "wait_options": {"mode": "most"}}, "/wait_options/mode"),
            ({"wait_on": {"x": None}, "wait_options": {"mode": {"at_least": 2}}}, "/wait_options/mode/at_least"),
            ({"wait_on": {"x": None}, "wait_options": {"mode": {"at_least": True}}}, "/wait_options/mode/at_least"),
            ({"wait_on": {"x": None}, "wait_options": {"expires_in": -1}}, "/wait_options/expires_in"),
            ({"wait_on": {"x": None}, "wait_options": {"expires_in": 2_592_001}}, "/wait_options/expires_in"),
            ({"wait_on": {"x": None}, "wait_options": {"fail_fast": "yes"}}, "/wait_options/fail_fast"),
            ({"wait_on": {"x": None}, "wait_options": {"get_fields": {"a": 1}}}, "/wait_options/get_fields/a"),
            (
                {"wait_on": {"x": None}, "wait_options": {"notify": {"webhook": 7}}},
                "/wait_options/notify/webhook",
            ),
            ({"wait_on": {"x": None}, "waited_jobs": []}, "/waited_jobs"),
            ({"wait_on": {str(n): None for n in range(10_001)}}, "/wait_on"),
        ],
    )
    def test_invalid_field_is_named(self, world: World, body: Any, pointer: str) -> None:
        with pytest.raises(ValidationFailed) as refused:
            world.post(body)
        assert pointer in [problem.pointer for problem in refused.value.problems]

    def test_all_problems_are_returned_together(self, world: World) -> None:
        with pytest.raises(ValidationFailed) as refused:
            world.post(
                {"wait_on": {"x": 1, "y": {"z": None}}, "wait_options": {"mode": 1, "expires_in": "1"}, "more": 1}
            )
        assert len(refused.value.problems) == 5

    def test_all_unknown_jobs_are_named(self, world: World) -> None:
        known, unknown = world.running(), str(uuid6.uuid7())
        with pytest.raises(JobNotFound) as refused:
            world.wait({known: None, unknown: None, "job123": None})
        assert refused.value.job_ids == (unknown, "job123")
        with pytest.raises(JobNotFound):
            world.wait({"job123": None}, wait_options={"allow_missing": None})

    def test_stage_outside_the_order_of_the_job_is_refused(self, world: World) -> None:
        job = world.running()
        with pytest.raises(ValidationFailed, match=f"/wait_on/{job}/job_stage"):
            world.wait({job: {"job_stage": "lunch"}})


class TestLargeWaits:
    @pytest.fixture
    def world(self, table: DynamoTable, monkeypatch: pytest.MonkeyPatch) -> World:
        monkeypatch.setattr(keys, "BLOCK_ENTRIES", 3)
        return World(table, spec_page_entries=4)

    def test_large_wait_for_all_is_met_by_the_last_job(self, world: World) -> None:
        jobs = [world.running() for _ in range(10)]
        world.complete(jobs[4])
        answer = world.wait(dict.fromkeys(jobs), waited_jobs={"before": {"job_stage": "complete"}})
        assert answer["status"] == "waiting"
        world.run_fan_out()
        answer = world.post(answer)
        assert list(answer["waited_jobs"]) == ["before", jobs[4]]
        for job in jobs:
            if job != jobs[4]:
                assert world.show(answer)["status"] == "waiting"
                world.complete(job)
                world.run_matcher()
        answer = world.post(answer)
        assert answer["status"] == "met"
        assert list(answer["waited_jobs"]) == ["before", *jobs]
        assert answer["counts"] == {"total": 10, "met": 10, "unmet": 0}

    def test_updates_before_the_fan_out_registration_are_counted(self, world: World) -> None:
        jobs = [world.running() for _ in range(9)]
        answer = world.wait(dict.fromkeys(jobs))
        for job in jobs:
            world.complete(job)
        world.run_matcher()
        assert world.show(answer)["status"] == "waiting"
        world.run_fan_out()
        assert world.show(answer)["status"] == "met"

    def test_sweeper_finishes_a_registration_whose_messages_were_lost(self, world: World) -> None:
        jobs = [world.running() for _ in range(9)]
        answer = world.wait(dict.fromkeys(jobs))
        world.queues.fan_out_messages.clear()
        world.pass_time(61)
        assert world.sweep() == 1
        for job in jobs:
            world.complete(job)
        world.run_matcher()
        world.run_fan_out()
        assert world.show(answer)["status"] == "met"

    @pytest.mark.parametrize(("mode", "sufficient"), [("any", 1), ({"at_least": 5}, 5)])
    def test_large_wait_for_some_is_met_by_enough_jobs(self, world: World, mode: Any, sufficient: int) -> None:
        jobs = [world.running() for _ in range(8)]
        answer = world.wait(dict.fromkeys(jobs), wait_options={"mode": mode})
        world.run_fan_out()
        for count, job in enumerate(jobs, 1):
            world.complete(job)
            world.run_matcher()
            assert world.show(answer)["status"] == ("met" if count >= sufficient else "waiting")
        assert list(world.show(answer)["waited_jobs"]) == jobs[:sufficient]

    def test_large_fail_fast_wait_ends_with_the_failed_job(self, world: World) -> None:
        jobs = [world.running() for _ in range(8)]
        answer = world.wait(dict.fromkeys(jobs), wait_options={"fail_fast": None})
        world.run_fan_out()
        world.complete(jobs[0])
        world.fail(jobs[6])
        world.complete(jobs[1])
        world.run_matcher()
        answer = world.show(answer)
        assert answer["status"] == "failed_fast"
        assert jobs[6] in answer["waited_jobs"]

    def test_expired_large_wait_lists_the_remaining_jobs_as_unmet(self, world: World) -> None:
        jobs = [world.running() for _ in range(6)]
        answer = world.wait(dict.fromkeys(jobs), wait_options={"expires_in": 100})
        world.run_fan_out()
        world.complete(jobs[2])
        world.run_matcher()
        world.pass_time(102)
        assert world.sweep() == 1
        answer = world.show(answer)
        assert answer["status"] == "expired"
        assert list(answer["waited_jobs"]) == [jobs[2]]
        assert answer["unmet_jobs"] == {job: {"job_stage": None, "reason": "expired"} for job in jobs if job != jobs[2]}

    def test_outcomes_of_a_large_wait_are_paged(self, world: World) -> None:
        jobs = [world.running() for _ in range(7)]
        answer = world.wait({key: {"job_stage": "complete"} for key in jobs})
        world.run_fan_out()
        for job in jobs[:5]:
            world.complete(job)
        world.fail(jobs[5])
        world.run_matcher()
        listed: list[Any] = []
        after: int | None = -1
        while after is not None:
            page, after = requests.list_wait_jobs(
                world.ctx, NAMESPACE, answer["wait_id"], after_index=after, page_size=2
            )
            listed += page
        assert [(line["job_id"], line["met"]) for line in listed] == [
            *((job, True) for job in jobs[:5]),
            (jobs[5], False),
        ]


class TestManyWaitsOnOneJob:
    def test_fan_out_matches_waits_over_the_inline_limit_with_the_first_version(
        self, world: World, table: DynamoTable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(matcher, "MAX_INLINE_WAITS", 3)
        job = world.running()
        world.run_matcher()
        answers = [world.wait({job: {"light": "green"}}, wait_options={"get_fields": {"n": None}}) for _ in range(8)]
        world.report(job, fields={"light": "green", "n": 1})
        world.run_matcher()
        world.report(job, fields={"n": 2})
        world.run_matcher()
        assert {world.show(answer)["status"] for answer in answers} == {"waiting"}
        world.run_fan_out()
        assert [world.show(answer)["waited_jobs"][job]["n"] for answer in answers] == ["1"] * 8
        assert list(query_all(table, keys.entries_of_job(NAMESPACE, job))) == []


def test_waits_are_listed_newest_first(world: World) -> None:
    job = world.running()
    answers = []
    for _ in range(5):
        answers.append(world.wait({job: None}))
        world.pass_time(3600 * 13)
    requests.cancel_wait(world.ctx, NAMESPACE, answers[2]["wait_id"], access=ACCESS)
    listed: list[Any] = []
    cursor: str | None = None
    while True:
        page, cursor = requests.list_waits(world.ctx, NAMESPACE, status="waiting", before_cursor=cursor, page_size=2)
        listed += page
        if cursor is None:
            break
    expected = [answers[n]["wait_id"] for n in (4, 3, 1, 0)]
    assert [line["wait_id"] for line in listed] == expected


def test_wait_matched_before_its_row_exists_is_met(world: World) -> None:
    """Change and match the job after the registrar has written the wait entry and before it writes the wait's row."""
    job = world.running()
    world.run_matcher()
    create, inner = world.ctx.waits.create, world.ctx.waits

    def update_first(wait: Any) -> bool:
        world.complete(job)
        world.run_matcher()
        return create(wait)

    inner.create = update_first  # type: ignore[method-assign]
    assert world.wait({job: {"job_stage": "complete"}})["status"] == "met"


def test_second_resolution_changes_nothing(world: World) -> None:
    job = world.running()
    answer = world.wait({job: None})
    world.complete(job)
    batch = list(world.unmatched)
    world.run_matcher()
    first = world.show(answer)
    matcher.match_versions(world.ctx, batch)
    resolve_wait.expire(world.ctx, NAMESPACE, answer["wait_id"])
    assert world.show(answer) == first
