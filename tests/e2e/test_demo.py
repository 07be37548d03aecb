"""Run the demo at high speed."""

from __future__ import annotations

from tests.e2e.harness import Key
from vigil.demo.facts import ClientAnswered, EventReceived, MachineReported, run_checks
from vigil.demo.play import Play
from vigil.demo.story import CLIENTS, LATE_CLIENTS, MACHINES, relevant_part
from vigil.local import Stack


def test_demo_meets_all_its_checks(stack: Stack, key: Key) -> None:
    with Play(stack.api_url, stack.ws_url, key.token, pace=0.3) as play:
        facts = list(play)
    assert [check for check in run_checks(play.state) if not check.passed] == []
    assert {fact.machine for fact in facts if isinstance(fact, MachineReported)} == {
        machine.name for machine in MACHINES
    }
    told = {fact.client for fact in facts if isinstance(fact, ClientAnswered) and fact.is_over}
    assert told == {client.name for client in (*CLIENTS, *LATE_CLIENTS)}
    assert any(isinstance(fact, EventReceived) for fact in facts)
    # The two worked examples of the wait API's specification.
    aspen, birch = play.state.job_ids["aspen"], play.state.job_ids["birch"]
    basic = {aspen: {"job_stage": "complete"}, birch: {"job_stage": "complete"}}
    advanced = {aspen: {"job_stage": "complete", "result_root": "/result/boot/aspen/0", "boot_seconds": "45"}}
    assert relevant_part(play.state.answers["late"].answer) == {"status": "met", "waited_jobs": basic}
    assert relevant_part(play.state.answers["later"].answer) == {"status": "met", "waited_jobs": advanced}
