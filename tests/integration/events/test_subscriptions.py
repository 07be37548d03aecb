"""Frames that a client receives on a WebSocket, for any message and during concurrent changes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.live import ACCESS, Live, envelopes, stored, types
from tests.support.world import KEY, NAMESPACE, World
from vigil_core.domain.access import Access, Scope
from vigil_core.domain.events.websocket_protocol import MAX_MESSAGE_BYTES, MAX_TOPICS
from vigil_core.domain.exact_json import dumps
from vigil_core.domain.jobs.job import Job
from vigil_core.services.auth.disconnect import disconnect_key
from vigil_core.services.events import subscriptions
from vigil_core.services.events.subscriptions import MAX_SUBSCRIBED_TOPICS, Peer
from vigil_core.services.jobs import transitions
from vigil_core.store.connections import ConnectionStore
from vigil_core.store.table import DynamoTable

UNKNOWN_ID = "019c12de-8f00-7000-8000-000000000001"
OTHER_UNKNOWN_ID = "019c12de-8f00-7000-8000-000000000002"


@pytest.fixture
def live(world: World, table: DynamoTable) -> Live:
    live = Live(world, table)
    live.connect()
    return live


def rows_of_sockets(table: DynamoTable) -> list[str]:
    """Return the keys of all rows of connections and subscriptions."""
    kinds = {"connection", "subscription", "key_connection"}
    return sorted(f"{row['pk']['S']} {row['sk']['S']}" for row in stored(table) if row["entity"]["S"] in kinds)


def error_of(frames: list[Any], frame_id: str | None = "s1") -> Any:
    """Return the data of the only frame, which must be an error."""
    (frame,) = frames
    assert (frame["type"], frame["id"]) == ("error", frame_id), frame
    return frame["data"]


def pointers(frames: list[Any], frame_id: str | None = "s1") -> list[str]:
    data = error_of(frames, frame_id)
    assert data["error"] == "VALIDATION_FAILED"
    return [problem["pointer"] for problem in data["errors"]]


def before_step(monkeypatch: pytest.MonkeyPatch, step: str, do: Callable[[], object]) -> None:
    """Call a function once, directly before a step of the connection store."""
    original = getattr(ConnectionStore, step)
    left = [do]

    def stepped(*args: Any, **kwargs: Any) -> Any:
        while left:
            left.pop()()
        return original(*args, **kwargs)

    monkeypatch.setattr(ConnectionStore, step, stepped)


class TestConnecting:
    def test_socket_is_found_by_its_key_and_disconnect_removes_its_rows(self, live: Live, table: DynamoTable) -> None:
        job = live.world.running()
        live.subscribe(f"job:{job}", "namespace")
        live.send({"action": "subscribe", "id": "s2", "topics": ["queue:lab"]})
        assert list(live.ctx.connections.connection_ids_of_key(NAMESPACE, KEY)) == ["c1"]
        connection = live.ctx.connections.get(NAMESPACE, "c1")
        assert connection is not None
        assert connection.access == ACCESS
        subscriptions.disconnect(live.ctx, ACCESS, "c1")
        assert rows_of_sockets(table) == []
        subscriptions.disconnect(live.ctx, ACCESS, "c1")

    def test_key_revoked_during_connect_gets_no_socket(
        self, live: Live, table: DynamoTable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        subscriptions.disconnect(live.ctx, ACCESS, "c1")
        before_step(monkeypatch, "connect", lambda: live.api_keys.revoke(NAMESPACE, KEY, live.ctx.now()))
        assert not subscriptions.connect(live.ctx, live.api_keys, ACCESS, "c2")
        assert rows_of_sockets(table) == []

    def test_revoked_key_loses_only_its_own_sockets(self, live: Live) -> None:
        live.connect("c2")
        other = Access(namespace=NAMESPACE, scopes=ACCESS.scopes, key_id="other")
        subscriptions.connect(live.ctx, live.api_keys, other, "c3")
        assert disconnect_key(live.ctx.connections, live.sockets, NAMESPACE, KEY) == 2
        assert live.sockets.closed == ["c1", "c2"]


class TestSubscribing:
    def test_acknowledgement_precedes_the_first_event(self, live: Live) -> None:
        job = live.world.running()
        live.world.complete(job)
        frames = live.send({"action": "subscribe", "id": "s1", "topics": [f"job:{job}"]})
        assert frames[0] == {"type": "ack", "id": "s1", "data": {"topics": [f"job:{job}"]}}
        assert types(frames[1:]) == ["job.completed"]

    def test_subscription_to_an_ended_job_or_wait_gets_its_last_event(self, live: Live) -> None:
        job, other = live.world.running(), live.world.running()
        live.world.fail(job)
        answer = live.world.wait({job: None})
        open_wait = live.world.wait({other: None})
        live.run_notifier()
        announced = {event.event_id: event.envelope() for event in live.topic.events}
        frames = live.subscribe(
            f"job:{job}", f"wait:{answer['wait_id']}", f"job:{other}", f"wait:{open_wait['wait_id']}"
        )
        assert types(frames) == ["job.failed", "wait.met"]
        for envelope in envelopes(frames):
            assert envelope == announced[envelope["id"]]

    def test_update_between_the_two_reads_is_sent_once(self, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
        job = live.world.running()
        live.run_notifier()

        def report_and_notify() -> None:
            live.world.report(job, stage="boot")
            live.run_notifier()

        before_step(monkeypatch, "subscriptions", report_and_notify)
        assert [e["id"] for e in envelopes(live.subscribe(f"job:{job}"))] == [f"{job}.3"]

    def test_update_after_the_acknowledgement_is_sent(self, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
        """Change the job directly after the acknowledgement, when the rows of the subscription may not exist yet."""
        job = live.world.running()
        wait = live.world.wait({job: {"job_stage": "boot"}})
        live.run_notifier()
        post = live.sockets.post

        def act_on_ack(connection_id: str, text: str) -> bool:
            monkeypatch.setattr(live.sockets, "post", post)
            is_open = post(connection_id, text)
            live.world.report(job, stage="boot")
            live.world.run_matcher()
            live.run_notifier()
            return is_open

        monkeypatch.setattr(live.sockets, "post", act_on_ack)
        assert types(live.subscribe(f"job:{job}", f"wait:{wait['wait_id']}")) == ["job.updated", "wait.met"]

    def test_updates_around_the_subscriber_mark_are_sent_once(
        self, live: Live, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Change the job before and after its subscriber mark is written.

        The subscribing process sends the event before the mark, and the notifier sends the event after it.
        """
        job = live.world.running()
        live.run_notifier()
        mark = live.ctx.jobs.mark_has_subscribers

        def mark_between_updates(unmarked: Job) -> Job | None:
            live.world.report(job, stage="boot")
            live.run_notifier()
            marked = mark(unmarked)
            live.world.report(job, stage="setup")
            live.run_notifier()
            return marked

        monkeypatch.setattr(live.ctx.jobs, "mark_has_subscribers", mark_between_updates)
        assert sorted(e["id"] for e in envelopes(live.subscribe(f"job:{job}"))) == [f"{job}.3", f"{job}.4"]
        live.world.complete(job)
        assert types(live.new_frames()) == ["job.completed"]

    def test_shared_topic_is_active_after_the_acknowledgement(
        self, live: Live, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        live.run_notifier()
        post = live.sockets.post
        pending: list[Any] = []

        def act_on_ack(connection_id: str, text: str) -> bool:
            monkeypatch.setattr(live.sockets, "post", post)
            # A notifier that reads the subscription now must wait until the acknowledgement is sent.
            (subscriber,) = live.ctx.connections.subscribers(NAMESPACE, "namespace")
            assert subscriber.is_quiet(live.ctx.now())
            is_open = post(connection_id, text)
            live.world.job()
            pending.extend(live.records())
            return is_open

        monkeypatch.setattr(live.sockets, "post", act_on_ack)
        assert live.subscribe("namespace") == []
        (subscriber,) = live.ctx.connections.subscribers(NAMESPACE, "namespace")
        assert not subscriber.is_quiet(live.ctx.now())
        live.run_notifier(pending)
        assert types(live.received()[1:]) == ["job.created"]

    def test_retried_job_stays_subscribed(self, live: Live) -> None:
        job = live.world.running()
        live.world.fail(job)
        live.run_notifier()
        assert types(live.subscribe(f"job:{job}")) == ["job.failed"]
        live.world.do(transitions.retry, job)
        live.world.do(transitions.start, job)
        assert types(live.new_frames()) == ["job.retried", "job.started"]

    def test_second_subscribe_with_the_same_id_adds_topics(self, live: Live, table: DynamoTable) -> None:
        one, two = live.world.running(), live.world.running()
        live.run_notifier()
        live.subscribe(f"job:{one}")
        live.subscribe(f"job:{two}")
        live.world.complete(one)
        live.world.complete(two)
        assert types(live.new_frames()) == ["job.completed", "job.completed"]
        assert live.send({"action": "unsubscribe", "id": "s1"}) == [
            {"type": "ack", "id": "s1", "data": {"topics": sorted([f"job:{one}", f"job:{two}"])}}
        ]
        assert len(rows_of_sockets(table)) == 2

    def test_unsubscribed_socket_receives_no_events(self, live: Live) -> None:
        live.subscribe("namespace")
        live.send({"action": "unsubscribe", "id": "s1"})
        live.world.job()
        assert live.new_frames() == []
        assert live.send({"action": "unsubscribe", "id": "s1"})[0]["data"] == {"topics": []}

    def test_socket_gone_before_the_acknowledgement_leaves_no_rows(self, live: Live, table: DynamoTable) -> None:
        job = live.world.running()
        live.sockets.gone.add("c1")
        live.send({"action": "subscribe", "id": "s1", "topics": [f"job:{job}", "namespace"]})
        assert rows_of_sockets(table) == []


class TestUnknown:
    @pytest.mark.parametrize("name", [UNKNOWN_ID, "", "nonsense", "\x00", "x" * 100_000, UNKNOWN_ID.upper()])
    def test_subscription_to_an_unknown_job_or_wait_is_refused(self, live: Live, table: DynamoTable, name: str) -> None:
        before = rows_of_sockets(table)
        for kind, code in (("job", "JOB_NOT_FOUND"), ("wait", "WAIT_NOT_FOUND")):
            data = error_of(live.send({"action": "subscribe", "id": "s1", "topics": ["namespace", f"{kind}:{name}"]}))
            assert data["error"] == code
            assert name[:1_000] in data["message"]
        assert rows_of_sockets(table) == before

    def test_subscription_to_a_job_of_another_namespace_is_refused(self, live: Live) -> None:
        job = live.world.running()
        other_tenant = Access(namespace="others", scopes=frozenset({Scope.ADMIN}), key_id="k")
        peer = Peer(access=other_tenant, connection_id="c9", sockets=live.sockets)
        subscriptions.receive(live.ctx, peer, dumps({"action": "subscribe", "id": "s1", "topics": [f"job:{job}"]}))
        assert error_of(live.received("c9")) == {"error": "JOB_NOT_FOUND", "message": f"Job with ID {job} not found"}

    def test_subscription_to_a_deleted_job_is_refused(self, live: Live) -> None:
        job = live.world.running()
        live.world.complete(job)
        live.world.delete(job)
        assert (
            error_of(live.send({"action": "subscribe", "id": "s1", "topics": [f"job:{job}"]}))["error"]
            == "JOB_NOT_FOUND"
        )


class TestSince:
    def history(self, live: Live) -> tuple[str, list[Any]]:
        """Return a job with 14 versions, more than its state row contains, and its events as they were published."""
        live.connect("witness")
        live.subscribe("namespace", connection_id="witness")
        job = live.world.running()
        for number in range(10):
            live.world.report(job, fields={"n": number})
        live.world.report(job, stage="boot")
        live.world.complete(job)
        published = envelopes(live.new_frames("witness"))
        assert len(published) == 14
        return job, published

    @pytest.mark.parametrize("form", [lambda at: at, lambda at: {f"job:{at[:36]}": at}])
    def test_since_replays_later_events_unchanged(self, live: Live, form: Callable[[str], Any]) -> None:
        job, published = self.history(live)
        for known in range(14):
            replayed = envelopes(live.subscribe(f"job:{job}", since=form(f"{job}.{known}")))
            assert replayed == published[known:]

    def test_since_after_the_end_still_replays_the_end_event(self, live: Live) -> None:
        job, published = self.history(live)
        assert envelopes(live.subscribe(f"job:{job}", since=f"{job}.14")) == published[13:]
        assert envelopes(live.subscribe(f"job:{job}", since=f"{job}.99")) == published[13:]

    def test_since_accepts_the_id_of_a_progress_event(self, live: Live) -> None:
        job = live.world.running()
        live.world.report(job, stage="boot")
        assert types(live.subscribe(f"job:{job}", since=f"{job}.2.7")) == ["job.updated"]
        assert live.subscribe(f"job:{job}", since=f"{job}.3") == []

    def test_since_replays_at_most_one_day(self, live: Live) -> None:
        job = live.world.running()
        live.world.pass_time(60)
        live.world.report(job, stage="boot")
        live.world.pass_time(timedelta(hours=24).total_seconds())
        live.world.report(job, stage="setup")
        assert [e["id"] for e in envelopes(live.subscribe(f"job:{job}", since=f"{job}.0"))] == [f"{job}.3", f"{job}.4"]
        live.world.complete(job)
        live.world.pass_time(timedelta(hours=48).total_seconds())
        assert types(live.subscribe(f"job:{job}", since=f"{job}.0")) == ["job.completed"]

    def test_since_applies_per_topic(self, live: Live) -> None:
        one, two = live.world.running(), live.world.running()
        topics = [f"job:{one}", f"job:{two}"]
        assert [e["id"] for e in envelopes(live.subscribe(*topics, since=f"{two}.1"))] == [f"{two}.2"]
        since = {topics[0]: f"{one}.0", topics[1]: f"{two}.1"}
        assert [e["id"] for e in envelopes(live.subscribe(*topics, since=since))] == [
            f"{one}.1",
            f"{one}.2",
            f"{two}.2",
        ]

    def test_since_replays_the_end_of_a_wait(self, live: Live) -> None:
        answer = live.world.wait({live.world.running(): {"status": "running"}})
        topic = f"wait:{answer['wait_id']}"
        assert types(live.subscribe(topic, since=f"{answer['wait_id']}.0")) == ["wait.met"]

    @pytest.mark.parametrize(
        ("topics", "since", "pointer"),
        [
            (["namespace"], f"{UNKNOWN_ID}.1", "/since"),
            (["queue:lab"], f"{UNKNOWN_ID}.1", "/since"),
            ([f"job:{UNKNOWN_ID}"], "nonsense", "/since"),
            ([f"job:{UNKNOWN_ID}"], f"{OTHER_UNKNOWN_ID}.1", "/since"),
            ([f"job:{UNKNOWN_ID}"], f"{UNKNOWN_ID}.{'9' * 5_000}", "/since"),
            ([f"job:{UNKNOWN_ID}"], 7, "/since"),
            ([f"job:{UNKNOWN_ID}"], [f"{UNKNOWN_ID}.1"], "/since"),
            (["namespace"], {"namespace": f"{UNKNOWN_ID}.1"}, "/since/namespace"),
            (["queue:a/b"], {"queue:a/b": f"{UNKNOWN_ID}.1"}, "/since/queue:a~1b"),
            ([f"job:{UNKNOWN_ID}"], {f"job:{UNKNOWN_ID}": "x"}, f"/since/job:{UNKNOWN_ID}"),
            ([f"job:{UNKNOWN_ID}"], {f"job:{UNKNOWN_ID}": None}, f"/since/job:{UNKNOWN_ID}"),
            ([f"job:{UNKNOWN_ID}"], {f"wait:{UNKNOWN_ID}": f"{UNKNOWN_ID}.1"}, f"/since/wait:{UNKNOWN_ID}"),
        ],
    )
    def test_invalid_since_is_refused(self, live: Live, topics: list[str], since: Any, pointer: str) -> None:
        assert pointers(live.send({"action": "subscribe", "id": "s1", "topics": topics, "since": since})) == [pointer]


class TestWaiting:
    def test_wait_response_is_the_acknowledgement_and_its_end_an_event(self, live: Live) -> None:
        job = live.world.running()
        (ack,) = live.send({"action": "wait", "id": "w1", "wait_on": {job: {"job_stage": "boot"}}})
        assert (ack["type"], ack["id"], ack["data"]["status"]) == ("ack", "w1", "waiting")
        assert ack["data"]["wait_on"] == {job: {"job_stage": "boot"}}
        live.run_notifier()
        live.world.report(job, stage="boot")
        live.world.run_matcher()
        (event,) = live.new_frames()
        assert (event["id"], event["data"]["type"]) == ("w1", "vigil.wait.met")
        assert event["data"]["data"]["waited_jobs"] == {job: {"job_stage": "boot"}}
        assert event["data"]["subject"] == ack["data"]["wait_id"]

    def test_wait_met_at_registration_sends_acknowledgement_and_event(self, live: Live) -> None:
        job = live.world.running()
        ack, event = live.send({"action": "wait", "id": "w1", "wait_on": {job: {"status": "running"}}})
        assert ack["data"]["status"] == "met"
        assert types([event]) == ["wait.met"]

    def test_response_posted_back_continues_the_same_wait(self, live: Live) -> None:
        job = live.world.running()
        answer = live.world.wait({job: None})
        (ack,) = live.send({"action": "wait", "id": "w1", **answer})
        assert ack["data"]["wait_id"] == answer["wait_id"]

    def test_long_wait_response_becomes_counts_and_a_link(self, live: Live) -> None:
        jobs = [live.world.job() for _ in range(3)]
        wait_on = {job: {"arch": "x" * 7_000} for job in jobs}
        (ack,) = live.send({"action": "wait", "id": "w1", "wait_on": wait_on})
        assert ack["data"]["counts"] == {"total": 3, "met": 0, "unmet": 0}
        assert ack["data"]["truncated"] is True
        assert ack["data"]["wait_url"] == f"/v1/waits/{ack['data']['wait_id']}"

    def test_invalid_wait_is_refused_and_stores_nothing(self, live: Live, table: DynamoTable) -> None:
        before = list(stored(table))
        frame = {
            "action": "wait",
            "id": "w1",
            "wait_on": {UNKNOWN_ID: {"arch": None}},
            "wait_options": {"mode": "most"},
        }
        assert pointers(live.send(frame), "w1") == [f"/wait_on/{UNKNOWN_ID}/arch", "/wait_options/mode"]
        assert pointers(live.send({"action": "wait", "id": "w1"}), "w1") == ["/wait_on"]
        data = error_of(live.send({"action": "wait", "id": "w1", "wait_on": {UNKNOWN_ID: None}}), "w1")
        assert data["error"] == "JOB_NOT_FOUND"
        assert list(stored(table)) == before


class TestHostileMessages:
    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("", "MALFORMED_REQUEST"),
            ("{", "MALFORMED_REQUEST"),
            ("\x00", "MALFORMED_REQUEST"),
            ('{"action":"ping","id":NaN}', "MALFORMED_REQUEST"),
            ('{"action":"ping","id":"\\ud800"}', "VALIDATION_FAILED"),
            ('{"action":"ping","id":1e99999999999999999999999}', "VALIDATION_FAILED"),
            ("[" * 60_000, "MALFORMED_REQUEST"),
            ('{"action":' + "9" * 100_000 + "}", "VALIDATION_FAILED"),
            ("x" * (MAX_MESSAGE_BYTES + 1), "PAYLOAD_TOO_LARGE"),
            ("\U0001f525" * (MAX_MESSAGE_BYTES // 3), "PAYLOAD_TOO_LARGE"),
            ("7", "VALIDATION_FAILED"),
            ("[]", "VALIDATION_FAILED"),
            ("null", "VALIDATION_FAILED"),
            ("{}", "VALIDATION_FAILED"),
        ],
    )
    def test_malformed_text_gets_an_error(self, live: Live, text: str, code: str) -> None:
        assert error_of(live.send(text), None)["error"] == code

    @pytest.mark.parametrize(
        ("frame", "expected"),
        [
            ({"action": "dance"}, ["/action"]),
            ({"action": "$connect"}, ["/action"]),
            ({"action": ["subscribe"]}, ["/action"]),
            ({"action": None}, ["/action"]),
            ({}, ["/action"]),
            ({"action": "ping", "more": 1}, ["/more"]),
            ({"action": "unsubscribe", "topics": []}, ["/topics"]),
            ({"action": "subscribe"}, ["/topics"]),
            ({"action": "subscribe", "topics": []}, ["/topics"]),
            ({"action": "subscribe", "topics": "namespace"}, ["/topics"]),
            ({"action": "subscribe", "topics": {"namespace": 1}}, ["/topics"]),
            ({"action": "subscribe", "topics": ["queue:x"] * (MAX_TOPICS + 1)}, ["/topics"]),
            ({"action": "subscribe", "topics": [7, None, "job", ["namespace"]]}, [f"/topics/{n}" for n in range(4)]),
            ({"action": "subscribe", "topics": ["namespace", "run:x"]}, ["/topics/1"]),
            ({"action": "subscribe", "topics": ["queue:", "queue:\x00"]}, ["/topics/0", "/topics/1"]),
            ({"action": "subscribe", "topics": ["queue:" + "x" * 129]}, ["/topics/0"]),
            ({"action": "subscribe", "topics": ["namespace"], "a/b~c": 1}, ["/a~1b~0c"]),
        ],
    )  # fmt: skip
    def test_invalid_members_are_named(
        self, live: Live, table: DynamoTable, frame: dict[str, Any], expected: list[str]
    ) -> None:
        before = rows_of_sockets(table)
        assert pointers(live.send({**frame, "id": "s1"})) == expected
        assert rows_of_sockets(table) == before

    @pytest.mark.parametrize("frame_id", [None, 7, "", "x" * 129, "a\x00b", ["s1"], {}])
    @pytest.mark.parametrize("action", ["subscribe", "unsubscribe", "wait", "ping"])
    def test_invalid_message_id_is_refused(self, live: Live, action: str, frame_id: Any) -> None:
        frame = {"action": action, "id": frame_id, **({"topics": ["namespace"]} if action == "subscribe" else {})}
        if action == "ping" and frame_id is None:
            assert live.send(frame) == [{"type": "pong", "id": None, "data": {}}]
        else:
            assert pointers(live.send(frame), None) == ["/id"]

    def test_error_for_any_message_fits_a_frame(self, live: Live) -> None:
        long_values = {f"{number}" + "\U0001f525" * 1_000: "x" for number in range(25)}
        for frame in (
            {"action": "ping", **long_values},
            {"action": "subscribe", "id": "s1", "topics": [f"job:{name}" for name in long_values]},
            {"action": "wait", "id": "s1", "wait_on": long_values},
            {"action": "wait", "id": "s1", "wait_on": {name: {name: None} for name in list(long_values)[:12]}},
        ):
            (answer,) = live.send(frame)
            assert answer["type"] == "error"
            assert len(dumps(answer).encode()) < 32 * 1024

    def test_topics_over_the_connection_limit_are_refused(self, live: Live, table: DynamoTable) -> None:
        for first in range(0, MAX_SUBSCRIBED_TOPICS, MAX_TOPICS):
            topics = [f"queue:{number}" for number in range(first, first + MAX_TOPICS)]
            live.ctx.connections.register_topics(NAMESPACE, "c1", f"{first}", topics, now=live.ctx.now())
        before = rows_of_sockets(table)
        assert pointers(live.send({"action": "subscribe", "id": "s1", "topics": ["queue:x"]})) == ["/topics"]
        assert pointers(live.send({"action": "wait", "id": "w1", "wait_on": {UNKNOWN_ID: None}}), "w1") == ["/topics"]
        assert rows_of_sockets(table) == before
        assert live.send({"action": "subscribe", "id": "0", "topics": ["queue:1"]})[0]["type"] == "ack"

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        frame=st.fixed_dictionaries(
            {},
            optional={
                "action": st.sampled_from(["subscribe", "unsubscribe", "wait", "ping", "", 0, None]),
                "id": st.one_of(st.text(max_size=5), st.integers(), st.none()),
                "topics": st.one_of(
                    st.lists(
                        st.one_of(
                            st.text(max_size=8),
                            st.sampled_from(["namespace", "queue:", "job:", f"wait:{UNKNOWN_ID}", "queue:a"]),
                            st.none(),
                        ),
                        max_size=3,
                    ),
                    st.text(max_size=3),
                ),
                "since": st.one_of(st.none(), st.text(max_size=5), st.dictionaries(st.text(max_size=9), st.none())),
                "wait_on": st.one_of(st.none(), st.dictionaries(st.text(max_size=3), st.none()), st.text(max_size=3)),
                "wait_options": st.one_of(st.none(), st.integers(), st.dictionaries(st.text(max_size=3), st.none())),
            },
        )
    )
    def test_arbitrary_message_gets_one_response(self, live: Live, frame: dict[str, Any]) -> None:
        answers = live.send(frame)
        assert [answer["type"] for answer in answers] in (["ack"], ["error"], ["pong"])
        assert set(answers[0]) == {"type", "id", "data"}
