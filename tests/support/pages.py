"""Documentation pages as shell sessions: the commands that a reader pastes, and the output that the page shows."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import simplejson

from vigil_core.domain.exact_json import JsonValue

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELLIPSIS = "…"


@dataclass(frozen=True)
class CommandBlock:
    """One block of commands. `answer` is the text of the JSON that the page shows for it."""

    commands: str
    answer: str | None


def session(page: str, language: str = "sh", answers: str = "json") -> list[CommandBlock]:
    """Return the command blocks of a page in order. A JSON block directly after a command block is its answer."""
    blocks: list[CommandBlock] = []
    for kind, text in BLOCK.findall(page):
        if kind == language:
            blocks.append(CommandBlock(text, None))
        elif kind == answers:
            blocks[-1] = CommandBlock(blocks[-1].commands, text)
    return blocks


def python_session(page: str) -> list[CommandBlock]:
    """Return the Python blocks of a page in order. A text block directly after a Python block is its output."""
    return session(page, "python", "text")


def paste(blocks: list[CommandBlock], directory: Path, environment: Mapping[str, str]) -> list[str]:
    """Paste all blocks into one shell and return the output of each. A failed command fails the test."""
    script = "set -euo pipefail\n"
    names = sorted({name for block in blocks for name in re.findall(r"<(\w+)>", block.answer or "")})
    for number, block in enumerate(blocks):
        script += f"exec > {directory}/{number}.out\n{block.commands}\n"
        script += "".join(f'echo "${{{name}-}}" > {directory}/{number}.{name}\n' for name in names)
    process = subprocess.run(
        ["bash", "-c", script],
        check=False,
        cwd=directory,
        env={**environment},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert process.returncode == 0, process.stderr
    return [(directory / f"{number}.out").read_text() for number in range(len(blocks))]


def run_python(blocks: list[CommandBlock], directory: Path, environment: Mapping[str, str]) -> list[str]:
    """Run all blocks in one Python process and return the output of each. An exception fails the test."""
    script = "import sys\n"
    for number, block in enumerate(blocks):
        script += f"sys.stdout = open('{directory}/{number}.printed', 'w')\n{block.commands}\nsys.stdout.close()\n"
    process = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=directory,
        env={**environment},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert process.returncode == 0, process.stderr
    return [(directory / f"{number}.printed").read_text() for number in range(len(blocks))]


def shown_answer(block: CommandBlock, number: int, directory: Path) -> JsonValue:
    """Return the answer on the page. Values of shell variables replace their names in angle brackets."""
    assert block.answer is not None
    text = re.sub(r"<(\w+)>", lambda name: (directory / f"{number}.{name[1]}").read_text().strip(), block.answer)
    shown: JsonValue = simplejson.loads(text, use_decimal=True)
    return shown


def matches_shown(real: JsonValue, shown: JsonValue) -> bool:
    """Return whether a real answer matches the page. `…` matches any value; as a key it allows further keys."""
    if shown == ELLIPSIS:
        return True
    if isinstance(shown, dict) and isinstance(real, dict):
        named = {name: value for name, value in shown.items() if name != ELLIPSIS}
        if not (named.keys() <= real.keys() and (ELLIPSIS in shown or named.keys() == real.keys())):
            return False
        return all(matches_shown(real[name], value) for name, value in named.items())
    if isinstance(shown, list) and isinstance(real, list):
        return len(shown) == len(real) and all(map(matches_shown, real, shown))
    return real == shown
