"""The demo, played fast."""

from __future__ import annotations

from tests.e2e.harness import Key
from vigil.demo.facts import Answered, Heard, Reported, checks
from vigil.demo.play import Play
from vigil.demo.story import CLIENTS, LATECOMERS, MACHINES, essence
from vigil.local import Stack


def test_the_demo_is_told_what_it_promises(stack: Stack, key: Key) -> None:
    with Play(stack.api_url, stack.ws_url, key.token, pace=0.3) as play:
        facts = list(play)
    assert [check for check in checks(play.known) if not check.kept] == []
    assert {fact.machine for fact in facts if isinstance(fact, Reported)} == {machine.name for machine in MACHINES}
    told = {fact.client for fact in facts if isinstance(fact, Answered) and fact.over}
    assert told == {client.name for client in (*CLIENTS, *LATECOMERS)}
    assert any(isinstance(fact, Heard) for fact in facts)
    # The two worked examples that the wait API was first specified with.
    aspen, birch = play.known.job_ids["aspen"], play.known.job_ids["birch"]
    basic = {aspen: {"job_stage": "complete"}, birch: {"job_stage": "complete"}}
    advanced = {aspen: {"job_stage": "complete", "result_root": "/result/boot/aspen/0", "boot_seconds": "45"}}
    assert essence(play.known.answers["late"].answer) == {"status": "met", "waited_jobs": basic}
    assert essence(play.known.answers["later"].answer) == {"status": "met", "waited_jobs": advanced}
