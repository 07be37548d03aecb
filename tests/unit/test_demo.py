"""The demo's story, its facts and its screen, without the playback."""

from __future__ import annotations

import json
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from vigil.demo import screen
from vigil.demo.facts import ClientAnswered, DemoState, EventReceived, MachineReported, run_checks
from vigil.demo.story import CLIENTS, LATE_CLIENTS, MACHINES, Client, relevant_part
from vigil_core.domain.jobs.stages import DEFAULT_STAGES
from vigil_core.schemas.waits import parse_wait_request

JOB_IDS = {machine.name: f"01980c4e-5a00-7c3b-9e21-00000000000{n}" for n, machine in enumerate(MACHINES)}


def job(machine: str, **told: Any) -> dict[str, Any]:
    """Return a job as the API shows it, with the members that the board reads."""
    return {
        "job_id": JOB_IDS[machine], "status": "running", "job_stage": "boot", "job_health": None, "progress": 0.25,
        "message": "booting", "error": None, **told,
    }  # fmt: skip


def answer(client: Client, *, over: bool = True) -> dict[str, Any]:
    """Return the expected response of a client, or a wait that is still open."""
    told = {"wait_id": f"wait-{client.name}", "counts": {"total": 3, "met": 2, "unmet": 0}, "unmet_jobs": {}}
    if over:
        return {**told, **deepcopy(client.expected(JOB_IDS))}
    return {**told, "status": "waiting", "waited_jobs": {}, "wait_on": client.request(JOB_IDS)["wait_on"]}


def wait_event(client: Client) -> dict[str, Any]:
    """Return the event of a wait's end."""
    return {
        "id": f"wait-{client.name}.2", "type": f"vigil.wait.{client.status}", "subject": f"wait-{client.name}",
        "time": "2026-01-31T09:30:00.123Z", "data": {},
    }  # fmt: skip


@pytest.fixture
def known() -> DemoState:
    """Return the facts of a demo without failures."""
    known = DemoState(job_ids=dict(JOB_IDS))
    for machine in MACHINES:
        known.apply(MachineReported(1, machine.name, job(machine.name)))
    for client in CLIENTS:
        known.apply(ClientAnswered(2, client.name, 3, answer(client)))
        known.apply(EventReceived(2, wait_event(client)))
    for client in LATE_CLIENTS:
        known.apply(ClientAnswered(3, client.name, 1, answer(client)))
    return known


def drawn(*shown: RenderableType, width: int = 100) -> str:
    """Return the text that a terminal of this width shows."""
    console = Console(file=StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(*shown, sep="\n")
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("client", [*CLIENTS, *LATE_CLIENTS], ids=lambda client: client.name)
def test_demo_client_sends_a_valid_wait_request(client: Client) -> None:
    request = parse_wait_request(client.request(JOB_IDS))
    assert set(request.wait_on) <= set(JOB_IDS.values())
    assert set(client.expected(JOB_IDS)["waited_jobs"]) <= set(request.wait_on)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_demo_machine_moves_forward_and_ends(machine: Any) -> None:
    stages = [step.body["job_stage"] for step in machine.steps if "job_stage" in step.body]
    progress = [step.body["progress"] for step in machine.steps if "progress" in step.body]
    assert stages == sorted(stages, key=DEFAULT_STAGES.index)
    assert progress == sorted(progress)
    assert [step.verb for step in machine.steps].count("start") == 1
    assert machine.steps[0].verb == "start"
    assert machine.steps[-1].verb in {"complete", "fail"}


def test_demo_takes_less_than_12_seconds() -> None:
    assert max(sum(step.after_s for step in machine.steps) for machine in MACHINES) < 12


def test_essence_contains_only_the_relevant_members() -> None:
    open_answer = answer(CLIENTS[0], over=False)
    assert set(relevant_part(open_answer)) == {"status", "waited_jobs", "wait_on"}
    assert set(relevant_part(answer(CLIENTS[0]))) == {"status", "waited_jobs"}
    assert set(relevant_part({**answer(CLIENTS[0]), "unmet_jobs": {"x": {}}})) == {
        "status",
        "waited_jobs",
        "unmet_jobs",
    }


def test_demo_as_scripted_passes_every_check(known: DemoState) -> None:
    assert [check.passed for check in run_checks(known)] == [True] * 5
    assert known.is_any_over
    assert known.all_waits_announced


def test_repeated_event_with_one_id_counts_once(known: DemoState) -> None:
    known.apply(EventReceived(3, wait_event(CLIENTS[0])))
    assert all(check.passed for check in run_checks(known))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda known: known.answers["boot"].answer["waited_jobs"].popitem(), id="a job is left out"),
        pytest.param(lambda known: known.answers["watch"].answer.update(status="met"), id="another status"),
        pytest.param(
            lambda known: known.answers["results"].answer["waited_jobs"][JOB_IDS["aspen"]].update(boot_seconds="46"),
            id="another value",
        ),
        pytest.param(lambda known: known.answers["results"].answer.update(wait_on={"x": None}), id="still waiting"),
        pytest.param(lambda known: known.answers["results"].answer.update(unmet_jobs={"x": {}}), id="an unmet job"),
        pytest.param(
            lambda known: known.apply(ClientAnswered(4, "late", 2, known.answers["late"].answer)), id="not at once"
        ),
        pytest.param(lambda known: known.answers.pop("later"), id="no answer"),
        pytest.param(lambda known: known.events.pop(), id="no event"),
        pytest.param(
            lambda known: known.apply(EventReceived(4, {**wait_event(CLIENTS[0]), "id": "wait-boot.3"})),
            id="two events",
        ),
        pytest.param(
            lambda known: known.apply(EventReceived(4, {**wait_event(CLIENTS[1]), "type": "vigil.wait.met"})),
            id="another event",
        ),
    ],
)
def test_deviation_fails_exactly_one_check(known: DemoState, spoil: Any) -> None:
    spoil(known)
    broken = [check for check in run_checks(known) if not check.passed]
    assert len(broken) == 1
    assert "✗" in drawn(screen.verdict(broken))


@pytest.mark.parametrize("width", [80, 100, 200])
def test_demo_board_fits_the_terminal(known: DemoState, width: int) -> None:
    lines = drawn(screen.Board(known), width=width).splitlines()
    assert len(lines) < 24
    assert {len(line) for line in lines} == {width}
    shown = "\n".join(lines)
    assert all(machine.name in shown for machine in MACHINES)
    assert "failed_fast" in shown


def test_demo_board_is_drawn_before_the_first_fact() -> None:
    assert "aspen" in drawn(screen.Board(DemoState(job_ids=dict(JOB_IDS))))


def test_demo_board_shows_the_error_of_a_failed_job(known: DemoState) -> None:
    error = {"code": "KERNEL_PANIC", "message": "no init"}
    known.apply(MachineReported(3, "cedar", job("cedar", status="failed", error=error, job_health="failed")))
    assert "KERNEL_PANIC: no init" in drawn(screen.Board(known))


def test_demo_facts_are_printed_as_log_lines(known: DemoState) -> None:
    moved = {"job_stage": "boot", "from": {"status": "running", "job_stage": "download"}}
    event = {"id": "1.2", "type": "vigil.job.updated", "subject": JOB_IDS["birch"], "data": moved}
    lines = [
        screen.plain_line(fact, known)
        for fact in (
            MachineReported(1.25, "aspen", job("aspen")),
            known.answers["boot"],
            EventReceived(3, event),
            known.events[0],
        )
    ]
    assert lines == [
        "  1.2 s  aspen: running at boot, 25%",
        "  2.0 s  client boot: met, 2 of 3 jobs, post 3",
        "  3.0 s  event vigil.job.updated: birch: download → boot",
        "  2.0 s  event vigil.wait.met: boot",
    ]


def test_demo_responses_are_printed_as_readable_json(known: DemoState) -> None:
    told = relevant_part(known.answers["boot"].answer)
    pretty = screen.pretty(told, 76)
    assert json.loads(pretty) == told
    assert max(map(len, pretty.splitlines())) <= 76
    assert f'    "{JOB_IDS["aspen"]}": {{"job_stage": "boot"}},' in pretty.splitlines()
    long = relevant_part(known.answers["results"].answer)
    assert max(map(len, screen.pretty(long, 76).splitlines())) <= 76
    assert json.loads(screen.pretty(long, 76)) == long


def test_demo_next_steps_fit_a_narrow_terminal() -> None:
    steps = drawn(screen.next_steps(".venv/bin/vigil", ".local/stack.json", JOB_IDS["aspen"]), width=80)
    assert "\ncurl -H" in steps.replace("\n  ", "\n")
    assert f"job={JOB_IDS['aspen']}\n" in steps.replace(" ", "")


def test_demo_picture_has_no_external_resources(known: DemoState, tmp_path: Path) -> None:
    moment = deepcopy(known)
    screen.save_picture(tmp_path / "demo.svg", "make demo", screen.Board(moment), screen.answers(known))
    picture = (tmp_path / "demo.svg").read_text()
    assert picture.startswith("<svg")
    assert "make" in picture
    assert "cdnjs" not in picture
    assert "@font-face" not in picture
    assert "aspen" in picture
