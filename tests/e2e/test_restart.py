"""`vigil local down` and `up`: open jobs, waits and runs continue."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, free_port
from tests.e2e.harness import Aws, Client, eventually, websocket
from vigil.local import StateDir
from vigil.local.cloud import NAMESPACE, down, up

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[StateDir]:
    """Start an emulator of the test's own, to stop and restart it."""
    home = StateDir.of(ROOT, tmp_path / ".local")
    yield home
    down(home)
    shutil.rmtree(tmp_path)


def test_open_waits_survive_a_restart_of_the_local_stack(home: StateDir) -> None:
    port = free_port()
    before = up(home, port=port)
    with Client(before, before.api_key) as client, websocket(before, before.api_key) as socket:
        small, late = client.running(), client.running()
        many = client.jobs(6)
        waits = [client.wait({small: {"job_stage": "boot"}}), client.wait(dict.fromkeys(many), mode="any")]
        expiring = client.wait({small: None}, expires_in=10)
        socket.subscribe("s1", f"job:{small}")
        # The stream may or may not deliver this record before the stop.
        last_minute = client.wait({late: {"milestone": "just-in-time"}})
        client.report(late, milestones=["just-in-time"])
        assert down(home)
    after = up(home, port=port)
    assert (after.api_url, after.ws_url, after.api_key) == (before.api_url, before.ws_url, before.api_key)
    with Client(after, after.api_key) as client:
        assert client.ended(last_minute)["status"] == "met"
        client.report(small, job_stage="boot")
        client.post(f"/v1/jobs/{many[3]}/cancel")
        assert [client.ended(wait)["status"] for wait in waits] == ["met", "met"]
        assert client.ended(expiring, within_s=90)["status"] == "expired"
    # The sockets of before the stop are closed; the first event after it removes their rows.
    aws = Aws(after)
    eventually(lambda: not aws.rows(f"{NAMESPACE}#topic#job:{small}"), what="the lost socket forgotten")
