"""The publication of events: receivers, order, number of repetitions, and behaviour during failures."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.support.live import Live, envelopes, stored, types
from tests.support.world import KEY, NAMESPACE, World
from vigil_core.domain.events import event as events
from vigil_core.domain.events.event import MAX_WAIT_BYTES, PublishRejected
from vigil_core.domain.exact_json import dumps
from vigil_core.services.events.publish import events_of
from vigil_core.services.jobs import transitions
from vigil_core.store.stream import StreamRecord
from vigil_core.store.table import DynamoTable
from vigil_core.store.waits.waits import WaitStore


@pytest.fixture
def live(world: World, table: DynamoTable) -> Live:
    return Live(world, table)


class TestJobs:
    def test_every_job_version_is_published_in_order_with_its_own_id(self, live: Live) -> None:
        live.connect()
        job = live.world.job()
        live.subscribe(f"job:{job}")
        live.world.do(transitions.start, job)
        live.world.report(job, stage="boot", milestones=["up"])
        live.world.do(transitions.cancel, job)
        live.world.fail(job)
        live.world.do(transitions.retry, job)
        live.world.do(transitions.cancel, job)
        live.world.delete(job)
        frames = live.new_frames()
        # The job was created before the subscription, but the notifier had not published that event yet.
        assert types(frames) == [
            "job.created", "job.started", "job.updated", "job.cancel_requested", "job.cancelled", "job.retried",
            "job.cancelled", "job.deleted",
        ]  # fmt: skip
        assert [frame["id"] for frame in frames] == ["s1"] * 8
        assert [envelope["id"] for envelope in envelopes(frames)] == [f"{job}.{version}" for version in range(1, 9)]

    def test_job_event_envelope_has_every_member(self, live: Live) -> None:
        live.connect()
        live.subscribe("namespace")
        job = live.world.job(name="nightly", queue="lab", priority="high", trace_id="t", correlation_id="c")
        live.world.do(transitions.start, job)
        live.world.report(job, stage="boot")
        live.world.complete(job, health="degraded")
        started, completed = envelopes(live.new_frames())[1::2]
        assert completed == {
            "specversion": "1.0",
            "id": f"{job}.4",
            "source": f"/vigil/{NAMESPACE}",
            "type": "vigil.job.completed",
            "subject": job,
            "time": "2026-01-31T09:00:00.000Z",
            "datacontenttype": "application/json",
            "data": {
                "job_id": job,
                "job_type": "test",
                "name": "nightly",
                "queue": "lab",
                "workflow_id": None,
                "priority": "high",
                "trace_id": "t",
                "correlation_id": "c",
                "created_at": "2026-01-31T09:00:00.000Z",
                "version": 4,
                "from": {"status": "running", "job_stage": "boot"},
                "status": "completed",
                "job_stage": "complete",
                "job_health": "degraded",
                "by": KEY,
                "why": "degraded",
            },
        }
        assert started["data"]["from"] == {"status": "pending", "job_stage": "submit"}
        assert started["data"]["job_health"] is None

    def test_progress_alone_is_published_to_sockets_and_never_to_sns(self, live: Live) -> None:
        live.connect()
        job = live.world.running()
        live.subscribe(f"job:{job}")
        live.run_notifier()
        live.world.report(job, progress=Decimal("0.5"), message="half")
        live.world.report(job, progress=Decimal("0.75"))
        first, second = envelopes(live.new_frames())
        assert (first["type"], first["id"]) == ("vigil.job.progress", f"{job}.2.1")
        assert first["data"] == {
            "job_id": job, "job_type": "test", "queue": "default", "attempt": 1, "version": 2,
            "progress": Decimal("0.5"), "message": "half",
        }  # fmt: skip
        assert (second["id"], second["data"]["progress"]) == (f"{job}.2.2", Decimal("0.75"))
        live.world.report(job, progress=Decimal("0.8"))
        live.run_notifier(all_changes=True)
        assert live.topic.events == []

    def test_progress_with_a_state_change_is_published_as_a_separate_event(self, live: Live) -> None:
        live.connect()
        job = live.world.running()
        live.subscribe(f"job:{job}")
        live.world.report(job, progress=Decimal("0.25"))
        live.run_notifier()
        live.world.report(job, stage="boot", progress=Decimal("0.5"), message="booted")
        live.world.report(job, stage="setup")
        events_received = envelopes(live.new_frames())
        assert [envelope["id"] for envelope in events_received] == [f"{job}.3", f"{job}.3.1", f"{job}.4"]
        assert (
            events_received[1]["data"] | {"progress": Decimal("0.5"), "message": "booted"} == events_received[1]["data"]
        )

    def test_queue_topic_and_namespace_topic_receive_only_their_jobs(self, live: Live, table: DynamoTable) -> None:
        for connection, topic in (("c1", "queue:lab"), ("c2", "queue:default"), ("c3", "namespace")):
            live.connect(connection)
            live.subscribe(topic, connection_id=connection)
        live.world.job(queue="lab")
        live.run_notifier()
        assert [types(live.received(c)[1:]) for c in ("c1", "c2", "c3")] == [["job.created"], [], ["job.created"]]

    def test_event_of_two_topics_reaches_a_subscription_once(self, live: Live) -> None:
        live.connect()
        job = live.world.running()
        live.run_notifier()
        live.subscribe(f"job:{job}", "namespace")
        live.send({"action": "subscribe", "id": "s2", "topics": ["queue:default"]})
        live.world.complete(job)
        assert [(f["id"], f["data"]["id"]) for f in live.new_frames()] == [("s1", f"{job}.3"), ("s2", f"{job}.3")]

    def test_other_namespaces_receive_no_events(self, live: Live) -> None:
        live.connect()
        live.subscribe("namespace", "queue:default")
        job = live.world.job()
        (record,) = [r for r in live.records() if r.new() is not None and r.key.pk == f"{NAMESPACE}#job#{job}"]
        image = record.change["NewImage"] | {"pk": {"S": f"others#job#{job}"}}
        foreign = replace(record, change={**record.change, "NewImage": image})
        assert not live.run_notifier([foreign]).failed
        assert types(live.received()[1:]) == []


class TestWaits:
    def test_met_wait_is_published_with_its_response(self, live: Live) -> None:
        live.connect()
        job = live.world.running(fields={"root": "/r"})
        answer = live.world.wait({job: {"job_stage": "boot"}}, wait_options={"get_fields": {"root": None}})
        live.subscribe(f"wait:{answer['wait_id']}")
        live.world.report(job, stage="boot")
        live.world.run_matcher()
        (event,) = envelopes(live.new_frames())
        assert event["type"] == "vigil.wait.met"
        assert (event["id"], event["subject"]) == (f"{answer['wait_id']}.2", answer["wait_id"])
        assert event["data"] == live.world.show(answer)
        assert event["data"]["waited_jobs"] == {job: {"job_stage": "boot", "root": "/r"}}
        (announced,) = live.topic.events
        assert announced.envelope() == event
        assert announced.attributes == {"wait_id": answer["wait_id"]}

    def test_wait_met_at_registration_is_published(self, live: Live) -> None:
        live.world.wait({live.world.running(): {"status": "running"}})
        live.run_notifier()
        assert [event.type for event in live.topic.events] == ["vigil.wait.met"]

    def test_wait_with_sns_disabled_is_published_only_to_sockets(self, live: Live) -> None:
        live.connect()
        live.subscribe("namespace")
        job = live.world.running()
        live.world.wait({job: {"status": "running"}}, wait_options={"notify": {"sns": False}})
        assert types(live.new_frames()) == ["job.created", "job.started", "wait.met"]
        assert live.topic.events == []

    @pytest.mark.parametrize("inline", [True, False])
    def test_repeated_publication_of_an_expired_wait_is_identical(
        self, live: Live, table: DynamoTable, inline: bool
    ) -> None:
        live.connect()
        jobs = [live.world.running() for _ in range(2 if inline else 6)]
        answer = live.world.wait(dict.fromkeys(jobs), wait_options={"expires_in": 60})
        live.subscribe(f"wait:{answer['wait_id']}")
        live.run_notifier()
        live.world.complete(jobs[0])
        live.world.run_matcher()
        live.world.pass_time(61)
        live.world.sweep()
        records = live.records()
        live.run_notifier(records)
        live.world.complete(jobs[1])
        live.run_notifier(records)
        first, second = envelopes(live.received()[1:])
        assert first == second
        assert first["type"] == "vigil.wait.expired"
        assert first["data"]["waited_jobs"] == {jobs[0]: {"job_stage": "complete"}}
        stage = "submit" if inline else None
        assert first["data"]["unmet_jobs"] == {job: {"job_stage": stage, "reason": "expired"} for job in jobs[1:]}

    def test_response_over_the_size_limit_becomes_counts_and_a_link(self, live: Live) -> None:
        long = "x" * MAX_WAIT_BYTES
        job = live.world.running(fields={"log": long})
        answer = live.world.wait({job: {"status": "running"}}, wait_options={"get_fields": {"log": None}})
        live.run_notifier()
        (event,) = live.topic.events
        assert event.data == {
            "wait_id": answer["wait_id"],
            "status": "met",
            "counts": {"total": 1, "met": 1, "unmet": 0},
            "created_at": "2026-01-31T09:00:00.000Z",
            "expires_at": "2026-02-01T09:00:00.000Z",
            "ended_at": "2026-01-31T09:00:00.000Z",
            "truncated": True,
            "wait_url": f"/v1/waits/{answer['wait_id']}",
        }

    def test_outcomes_of_a_large_wait_are_not_read_for_its_event(
        self, live: Live, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(events, "MAX_WAIT_BYTES", 600)
        jobs = [live.world.running() for _ in range(12)]
        live.world.wait({job: {"status": "running"} for job in jobs})
        monkeypatch.setattr(WaitStore, "outcomes", lambda *_, **__: pytest.fail("read"))
        live.run_notifier()
        (event,) = live.topic.events
        assert (event.data["counts"], event.data["truncated"]) == ({"total": 12, "met": 12, "unmet": 0}, True)


class TestSns:
    def test_sns_receives_only_end_events_unless_all_changes_are_enabled(self, live: Live) -> None:
        for end in (live.world.complete, live.world.fail):
            end(live.world.running())
        live.world.do(transitions.cancel, live.world.job())
        records = live.records()
        live.run_notifier(records)
        endings = ["vigil.job.completed", "vigil.job.failed", "vigil.job.cancelled"]
        assert [event.type for event in live.topic.events] == endings
        live.topic.events.clear()
        live.run_notifier(records, all_changes=True)
        assert len(live.topic.events) == 8

    def test_sns_attributes_contain_job_type_and_job_id(self, live: Live) -> None:
        job = live.world.running(job_type="spark")
        live.world.complete(job)
        live.run_notifier()
        (event,) = live.topic.events
        assert event.attributes == {"job_type": "spark", "job_id": job}

    def test_event_refused_by_sns_fails_its_record(self, live: Live) -> None:
        published, refused = live.world.running(), live.world.running()
        live.world.complete(published)
        live.world.complete(refused)
        live.topic.refused_ids = {f"{refused}.3"}
        records = live.records()
        report = live.run_notifier(records)
        (failed,) = [r for r in records if r.sequence_number in report.failed]
        assert failed.key.pk == f"{NAMESPACE}#job#{refused}"
        assert isinstance(report.failed[failed.sequence_number], PublishRejected)


class TestFaults:
    def test_repeated_record_is_published_identically(self, live: Live) -> None:
        live.connect()
        live.subscribe("namespace")
        job = live.world.running()
        live.world.report(job, stage="boot")
        live.world.complete(job)
        records = live.records()
        live.run_notifier(records)
        live.run_notifier(records)
        events_received = envelopes(live.received()[1:])
        assert events_received[:4] == events_received[4:]
        assert len({envelope["id"] for envelope in events_received}) == 4

    def test_unreadable_record_fails_alone(self, live: Live) -> None:
        live.connect()
        live.subscribe("namespace")
        live.world.job()
        live.world.job()
        first, *rest = [r for r in live.records() if "#job#" in r.key.pk]
        broken = [
            StreamRecord(sequence_number="1", change={**first.change, "NewImage": {"entity": {"S": "job"}}}),
            StreamRecord(sequence_number="2", change={**first.change, "NewImage": {"entity": {"X": "job"}}}),
        ]
        report = live.run_notifier([*broken[:1], *rest, *broken[1:]])
        assert list(report.failed) == ["1", "2"]
        assert types(live.received()[1:]) == ["job.created"]

    def test_rows_of_a_gone_socket_are_deleted_without_failure(self, live: Live, table: DynamoTable) -> None:
        live.connect("gone")
        live.connect("here")
        job = live.world.running()
        live.run_notifier()
        for connection in ("gone", "here"):
            live.subscribe(f"job:{job}", "namespace", "queue:default", connection_id=connection)
        live.sockets.gone.add("gone")
        live.world.complete(job)
        assert types(live.new_frames("here")) == ["job.completed"]
        assert not [row for row in stored(table) if "gone" in row["pk"]["S"] + row["sk"]["S"]]
        assert len([row for row in stored(table) if "here" in row["pk"]["S"] + row["sk"]["S"]]) == 6

    def test_failing_socket_is_closed_and_does_not_affect_the_others(self, live: Live) -> None:
        live.connect("bad")
        live.connect("good")
        job, other = live.world.running(), live.world.running()
        live.run_notifier()
        live.subscribe(f"job:{job}", connection_id="bad")
        live.subscribe("namespace", connection_id="good")
        live.sockets.failing.add("bad")
        live.world.complete(job)
        live.world.complete(other)
        records = live.records()
        report = live.run_notifier(records)
        assert types(live.received("good")[1:]) == ["job.completed", "job.completed"]
        assert len(live.topic.events) == 2
        assert not report.failed
        assert live.sockets.closed == ["bad"]

    def test_record_fails_if_the_sockets_of_the_whole_batch_fail(self, live: Live) -> None:
        live.connect("bad")
        job = live.world.running()
        live.run_notifier()
        live.subscribe(f"job:{job}", connection_id="bad")
        live.sockets.failing.add("bad")
        live.world.complete(job)
        records = [record for record in live.records() if f"#job#{job}" in record.key.pk]
        (failed,) = live.run_notifier(records).failed
        assert live.sockets.closed == []
        live.sockets.failing.clear()
        assert not live.run_notifier([record for record in records if record.sequence_number == failed]).failed
        assert types(live.received("bad")[1:]) == ["job.completed"]

    def test_unreadable_subscribers_fail_only_their_records(self, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
        live.world.job(queue="lab")
        live.world.job(queue="default")
        records = [r for r in live.records() if "#job#" in r.key.pk]
        read = live.ctx.connections.subscribers

        def throttled(namespace: str, topic: str) -> Any:
            if topic == "queue:lab":
                raise ConnectionError
            return read(namespace, topic)

        monkeypatch.setattr(live.ctx.connections, "subscribers", throttled)
        assert list(live.run_notifier(records).failed) == [records[0].sequence_number]

    def test_rows_other_than_jobs_and_ended_waits_produce_no_events(self, live: Live) -> None:
        job = live.world.running()
        live.world.wait({job: None})
        live.world.run_matcher()
        records = [r for r in live.records() if "#job#" not in r.key.pk]
        assert len(records) > 3
        assert [events_of(live.ctx, record) for record in records] == [[]] * len(records)

    def test_removed_row_produces_no_event(self, live: Live, table: DynamoTable) -> None:
        job = live.world.running()
        live.world.report(job, message="hello")
        live.records()
        stored = live.ctx.jobs.find(NAMESPACE, job)
        assert stored is not None
        live.ctx.jobs.purge(stored)
        (removal,) = live.records()
        assert removal.new() is None
        assert events_of(live.ctx, removal) == []


def test_every_event_fits_a_websocket_frame(live: Live) -> None:
    """Check the size of events: a WebSocket frame may have at most 32 KB."""
    live.connect()
    live.subscribe("namespace")
    long_text = "\U0001f525" * 128
    job = live.world.running(
        name=long_text,
        queue=long_text,
        job_type=long_text,
        trace_id="\U0001f525" * 1024,
        correlation_id="\U0001f525" * 1024,
    )
    live.world.report(job, stage="boot", message="\U0001f525" * 1024, fields={"f": "\U0001f525" * 7_000})
    live.world.wait({job: {"job_stage": "boot"}}, wait_options={"get_fields": {"f": None, "message": None}})
    frames = live.new_frames()
    assert len(frames) == 5
    assert max(len(dumps(frame).encode()) for frame in frames) < 32 * 1024


def test_subscribers_of_a_topic_are_read_once_per_batch(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    job = live.world.running()
    for stage in ("download", "boot", "setup"):
        live.world.report(job, stage=stage)
    records = live.records()
    topics: list[str] = []
    read = live.ctx.connections.subscribers

    def counted(namespace: str, topic: str) -> Any:
        topics.append(topic)
        return read(namespace, topic)

    monkeypatch.setattr(live.ctx.connections, "subscribers", counted)
    live.run_notifier(records)
    assert sorted(topics) == ["namespace", "queue:default"], "the job has no subscriber mark"
    topics.clear()
    live.connect()
    live.subscribe(f"job:{job}")
    live.connect("c2")
    live.subscribe(f"job:{job}", connection_id="c2")
    assert topics == [], "the subscriber mark alone causes no event"
    for stage in ("running", "post_run"):
        live.world.report(job, stage=stage)
    live.run_notifier()
    assert sorted(topics) == sorted({f"job:{job}", "queue:default", "namespace"})


def test_event_is_sent_after_the_pending_acknowledgement(live: Live) -> None:
    """Check a quiet subscription: it receives no event before its acknowledgement, and misses none."""
    live.connect()
    soon = live.ctx.now() + timedelta(seconds=2)
    live.ctx.connections.register_topics(NAMESPACE, "c1", "s1", ["namespace"], now=live.ctx.now())
    live.ctx.connections.subscribe(NAMESPACE, "c1", "s1", ["namespace"], now=live.ctx.now(), quiet_until=soon)
    live.world.job()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        live.world.pass_time(seconds)
        if len(slept) == 3:
            assert live.received() == []
            live.sockets.post("c1", '{"type":"ack"}')
            live.ctx.connections.subscribe(NAMESPACE, "c1", "s1", ["namespace"], now=live.ctx.now())

    live.ctx = replace(live.ctx, sleep=sleep)
    live.run_notifier()
    assert [frame["type"] for frame in live.received()] == ["ack", "event"]
    assert len(slept) == 3


def test_lost_acknowledgement_delays_events_only_until_the_quiet_period_ends(live: Live) -> None:
    live.connect()
    started_at = live.ctx.now()
    soon = started_at + timedelta(seconds=2)
    live.ctx.connections.subscribe(NAMESPACE, "c1", "s1", ["namespace"], now=started_at, quiet_until=soon)
    live.world.job()
    assert types(live.new_frames()) == ["job.created"]
    assert live.ctx.now() - soon < timedelta(seconds=0.1)
