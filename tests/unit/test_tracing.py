"""Subsegments as they are sent to the X-Ray daemon; a missing daemon causes no failure."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.daemon import Daemon
from vigil_core.runtime import tracing
from vigil_core.runtime.tracing import traced
from vigil_core.services.parallel import thread_pool_map

ABOUT = {"action": "advance_run", "namespace": "team", "correlation_id": "daily-report-001"}


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    daemon = Daemon(monkeypatch)
    yield daemon
    daemon.close()


def test_subsegment_has_the_final_ids_and_nothing_else(daemon: Daemon) -> None:
    before = time.time()
    with traced({**ABOUT, "job": "classified", "trace_id": None}) as said:
        said |= {"job_id": "j", "action": "create_job", "payload": "classified"}
    sent = daemon.take()
    assert before <= sent["start_time"] <= sent["end_time"] <= time.time()
    assert sent["name"] == "create_job"
    assert sent["annotations"] == {"namespace": "team", "correlation_id": "daily-report-001", "job_id": "j"}
    assert "classified" not in str(sent)


def test_each_subsegment_has_a_unique_id(daemon: Daemon) -> None:
    for _ in range(2):
        with traced({**ABOUT}):
            pass
    first, second = daemon.take_all()
    assert first["id"] != second["id"]


def test_subsegments_of_threads_are_separate(daemon: Daemon) -> None:
    def work(number: int) -> None:
        with traced({"action": "dispatch", "job_id": str(number)}):
            pass

    thread_pool_map(8)(work, range(100))
    assert sorted(int(sent["annotations"]["job_id"]) for sent in daemon.take_all()) == list(range(100))


def test_failed_work_records_a_subsegment_and_raises(daemon: Daemon) -> None:
    with pytest.raises(KeyError, match="broken"), traced({**ABOUT}):
        raise KeyError("broken")
    assert daemon.take()["name"] == "advance_run"


@pytest.mark.parametrize(
    ("value", "annotated"),
    [
        ("x" * 5_000, "x" * 1_000),
        ("\U0001f600" * 5_000, "\U0001f600" * 1_000),
        ("a\ud800b\udfffc", "a?b?c"),
        ('a\x00b\nc\x7fd"\\', 'a?b?c?d"\\'),
        ("größe\u3000量", "größe\u3000量"),
        ("", ""),
        (7, "7"),
        (["a", {"b": 1}], "['a', {'b': 1}]"),
    ],
)
def test_any_id_is_sanitized_for_the_daemon(daemon: Daemon, value: object, annotated: str) -> None:
    with traced({"action": "get_job", **dict.fromkeys(tracing.IDS, value)}):
        pass
    assert daemon.take()["annotations"] == dict.fromkeys(tracing.IDS, annotated)


def test_unsampled_work_records_nothing(daemon: Daemon) -> None:
    daemon.trace(sampled=False)
    with traced({**ABOUT}):
        pass
    assert daemon.take_all() == []


@pytest.mark.parametrize(
    "header", ["", "nonsense", ";;==", "Sampled=1", "Root=1-2-3;Sampled=1", "Root=;Parent=;Sampled="]
)
def test_incomplete_trace_header_records_nothing(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, header: str) -> None:
    monkeypatch.setenv("_X_AMZN_TRACE_ID", header)
    with traced({**ABOUT}):
        pass
    assert daemon.take_all() == []


@pytest.mark.parametrize("address", ["", ":", "127.0.0.1", "127.0.0.1:", "127.0.0.1:port", "127.0.0.1:1"])
def test_work_succeeds_without_a_daemon(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("AWS_XRAY_DAEMON_ADDRESS", address)
    for _ in range(3):
        with traced({**ABOUT}):
            pass
    assert daemon.take_all() == []


@pytest.mark.parametrize("address", ["daemon.example:2000", "::1:2000", "udp:127.0.0.1:2000"])
def test_invalid_daemon_address_opens_no_socket(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("AWS_XRAY_DAEMON_ADDRESS", address)
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was asked for"))
    with traced({**ABOUT}):
        pass
    monkeypatch.undo()


def test_no_socket_is_opened_outside_lambda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("_X_AMZN_TRACE_ID", raising=False)
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was asked for"))
    with traced({**ABOUT}):
        pass
