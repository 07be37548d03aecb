"""The screen of the demo: a live board, the final answers, and plain lines for a log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from vigil.cli.terminal import Console
from vigil.demo.facts import Check, ClientAnswered, DemoState, EventReceived, Fact, MachineReported
from vigil.demo.story import CLIENTS, LATE_CLIENTS, MACHINES, Client, Json, relevant_part

WIDTH = 100
"""The columns of a picture."""
MIN_WIDTH = 80
"""The columns for which the answers are laid out."""
EVENT_LINES = 6
_THEME = "ansi_dark"
_STATUS_STYLES = {
    "pending": "dim", "running": "cyan", "completed": "green", "failed": "red",
    "waiting": "cyan", "met": "green", "failed_fast": "red",
}  # fmt: skip
_PAGE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width;
}}
.{unique_id}-title {{ font-family: system-ui, sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def opening(api_url: str) -> RenderableType:
    """Return the introduction."""
    return Text.assemble(
        ("Three test machines run a job each, three clients wait for them.\n", "bold"),
        ("Every request uses the HTTP API at ", "dim"), (api_url, "cyan"),
    )  # fmt: skip


class Board:
    """The board with the current state. Rich renders it repeatedly."""

    def __init__(self, demo_state: DemoState) -> None:
        self._demo_state = demo_state
        self._spinner = Spinner("dots", style="cyan")

    def __rich__(self) -> RenderableType:
        return Group(self._machines(), self._clients(), self._events())

    def _machines(self) -> RenderableType:
        table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
        for name, ratio in (("machine", 3), ("status", 4), ("stage", 4), ("", 7), ("message", 10)):
            table.add_column(name, ratio=ratio, no_wrap=True)
        for machine in MACHINES:
            job = self._demo_state.jobs.get(machine.name)
            if job is None:
                table.add_row(machine.name)
                continue
            style = _STATUS_STYLES[job["status"]]
            bar = ProgressBar(total=1, completed=float(job["progress"]), complete_style=style, finished_style=style)
            message = f"{job['error']['code']}: {job['error']['message']}" if job["error"] else job["message"]
            stage = Text(job["job_stage"], style if job["job_health"] else "")
            table.add_row(Text(machine.name, "bold"), Text(job["status"], style), stage, bar, message)
        return _panel(table, "jobs")

    def _clients(self) -> RenderableType:
        table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
        table.add_column("client")
        table.add_column("waits for", ratio=1)
        for name, width in (("", 11), ("jobs", 6), ("posts", 5), ("after", 6)):
            table.add_column(name, width=width, no_wrap=True)
        for client in CLIENTS:
            last = self._demo_state.answers.get(client.name)
            table.add_row(Text(client.name, "bold"), client.wish, *self._state(last))
        return _panel(table, "waits")

    def _state(self, last: ClientAnswered | None) -> Sequence[RenderableType]:
        if last is None:
            return [self._spinner]
        counts, status = last.answer["counts"], last.answer["status"]
        state: RenderableType = Text(status, _STATUS_STYLES.get(status, "red")) if last.is_over else self._spinner
        return [state, f"{counts['met']} of {counts['total']}", str(last.rounds), f"{last.at_s:.1f} s"]

    def _events(self) -> RenderableType:
        table = Table(box=None, expand=True, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True, style="dim")
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, ratio=1)
        events = list(self._demo_state.events)
        latest = events[-EVENT_LINES:]
        for line in latest:
            table.add_row(line.event["time"][11:23], line.event["type"], _describe_event(line.event, self._demo_state))
        for _ in range(EVENT_LINES - len(latest)):
            table.add_row("", "", "")
        return _panel(table, f"events on the WebSocket: {len(events)}")


def answers(demo_state: DemoState) -> RenderableType:
    """Return the final answers to the three clients."""
    return Group(Text("The answers to the three clients", "bold"), *(_answer(client, demo_state) for client in CLIENTS))


def late_answers(demo_state: DemoState) -> RenderableType:
    """Return the answers to the clients that ask after the end."""
    title = Text("A client that asks after the end gets its answer at once", "bold")
    return Group(title, *(_answer(client, demo_state) for client in LATE_CLIENTS))


def verdict(checks: Sequence[Check]) -> RenderableType:
    """Return the results of the checks."""
    return Group(*(_check(check) for check in checks))


def next_steps(program: str, stack_file: str, job_id: str) -> RenderableType:
    """Return commands to try next."""
    commands = f"""\
url=$(sed -n 's/.*"api_url": "\\(.*\\)".*/\\1/p' {stack_file})
key=$(sed -n 's/.*"api_key": "\\(.*\\)".*/\\1/p' {stack_file})
job={job_id}
curl -H "Authorization: Bearer $key" $url/v1/jobs/$job
{program} local status
{program} local logs --follow
{program} local down"""
    return Group(
        Text("Vigil is still running. Try", "bold"),
        Syntax(commands, "sh", theme=_THEME, background_color="default", padding=(0, 2)),
        Text("and read README.md and docs/waits.md."),
    )


def pretty(value: object, width: int, *, indent: int = 0, remaining: int = 0) -> str:
    """Format JSON with each object on one line if it fits. `remaining` is the space left on the current line."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict) or len(line) <= remaining:
        return line
    inner = indent + 2
    parts = [
        f"{' ' * inner}{json.dumps(name)}: {pretty(part, width, indent=inner, remaining=width - inner - len(name) - 5)}"
        for name, part in value.items()
    ]
    return "{\n" + ",\n".join(parts) + f"\n{' ' * indent}}}"


def _answer(client: Client, demo_state: DemoState) -> RenderableType:
    last = demo_state.answers.get(client.name)
    text = pretty(relevant_part(last.answer), MIN_WIDTH - 4) if last else "nothing"
    wish = Text.assemble((client.name, "bold"), f": {client.wish}")
    code = Syntax(text, "json", theme=_THEME, background_color="default")
    return Panel(code, title=wish, title_align="left", box=box.ROUNDED, border_style="dim")


def _check(check: Check) -> RenderableType:
    mark = Text.assemble(("✓ ", "green")) if check.passed else Text.assemble(("✗ ", "bold red"))
    line = mark.append(check.promise)
    return line if check.passed else Group(line, Text(f"  actual: {check.actual}", "red"))


def _panel(content: RenderableType, title: str) -> RenderableType:
    return Panel(content, title=Text(title, "dim"), title_align="left", box=box.ROUNDED, border_style="dim")


def _describe_event(event: Json, demo_state: DemoState) -> str:
    """Describe an event by the names of the story."""
    data = event["data"]
    machine = next((name for name, job_id in demo_state.job_ids.items() if job_id == event["subject"]), None)
    if machine is None:
        clients_by_wait = {answered.answer["wait_id"]: client for client, answered in list(demo_state.answers.items())}
        return str(clients_by_wait.get(event["subject"], event["subject"]))
    if event["type"] == "vigil.job.progress":
        return f"{machine}: {float(data['progress']):.0%}, {data['message']}"
    stage_before, stage_after = (data["from"] or data)["job_stage"], data["job_stage"]
    return f"{machine}: {stage_after}" if stage_before == stage_after else f"{machine}: {stage_before} → {stage_after}"


def plain_line(fact: Fact, demo_state: DemoState) -> str:
    """Format a fact as a line of a log."""
    match fact:
        case MachineReported():
            job, prefix = fact.job, f"{fact.at_s:5.1f} s  {fact.machine}:"
            return f"{prefix} {job['status']} at {job['job_stage']}, {float(job['progress']):.0%}"
        case ClientAnswered():
            counts = fact.answer["counts"]
            met = f"{counts['met']} of {counts['total']} jobs, post {fact.rounds}"
            return f"{fact.at_s:5.1f} s  client {fact.client}: {fact.answer['status']}, {met}"
        case EventReceived():
            return f"{fact.at_s:5.1f} s  event {fact.event['type']}: {_describe_event(fact.event, demo_state)}"


def save_picture(path: Path, title: str, *parts: RenderableType) -> None:
    """Save a picture as an SVG that loads no font and no other file."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(*(part for item in parts for part in (item, "")))
    picture = console.export_svg(title=title, code_format=_PAGE, unique_id="vigil")
    path.write_text("".join(f"{line.rstrip()}\n" for line in picture.splitlines()), encoding="utf-8")
