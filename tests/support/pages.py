"""Pages of the documentation as shell sessions: what they tell the reader to paste, and what they say comes of it."""

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
LEFT_OUT = "…"


@dataclass(frozen=True)
class Pasted:
    """One block of commands. `answer` is the JSON that the page shows for it, as it stands there."""

    commands: str
    answer: str | None


def session(page: str, language: str = "sh", answers: str = "json") -> list[Pasted]:
    """The blocks of commands of a page, in order; a block of JSON right after one is its answer."""
    found: list[Pasted] = []
    for kind, text in BLOCK.findall(page):
        if kind == language:
            found.append(Pasted(text, None))
        elif kind == answers:
            found[-1] = Pasted(found[-1].commands, text)
    return found


def python_session(page: str) -> list[Pasted]:
    """The blocks of Python of a page, in order; a block of text right after one is what it prints."""
    return session(page, "python", "text")


def paste(blocks: list[Pasted], directory: Path, environment: Mapping[str, str]) -> list[str]:
    """What each block prints, all of them pasted into one shell; a command that fails fails the test."""
    script = "set -euo pipefail\n"
    names = sorted({name for block in blocks for name in re.findall(r"<(\w+)>", block.answer or "")})
    for number, block in enumerate(blocks):
        script += f"exec > {directory}/{number}.out\n{block.commands}\n"
        script += "".join(f'echo "${{{name}-}}" > {directory}/{number}.{name}\n' for name in names)
    done = subprocess.run(
        ["bash", "-c", script],
        check=False,
        cwd=directory,
        env={**environment},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return [(directory / f"{number}.out").read_text() for number in range(len(blocks))]


def run_python(blocks: list[Pasted], directory: Path, environment: Mapping[str, str]) -> list[str]:
    """What each block prints, all of them run in one Python; an exception fails the test."""
    script = "import sys\n"
    for number, block in enumerate(blocks):
        script += f"sys.stdout = open('{directory}/{number}.printed', 'w')\n{block.commands}\nsys.stdout.close()\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=directory,
        env={**environment},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return [(directory / f"{number}.printed").read_text() for number in range(len(blocks))]


def shown_answer(block: Pasted, number: int, directory: Path) -> JsonValue:
    """The answer on the page, with the shell's variables for their names in angle brackets."""
    assert block.answer is not None
    text = re.sub(r"<(\w+)>", lambda name: (directory / f"{number}.{name[1]}").read_text().strip(), block.answer)
    shown: JsonValue = simplejson.loads(text, use_decimal=True)
    return shown


def matches_shown(real: JsonValue, shown: JsonValue) -> bool:
    """Whether an answer is what the page shows, where `…` stands for anything and as a key for further keys."""
    if shown == LEFT_OUT:
        return True
    if isinstance(shown, dict) and isinstance(real, dict):
        named = {name: value for name, value in shown.items() if name != LEFT_OUT}
        if not (named.keys() <= real.keys() and (LEFT_OUT in shown or named.keys() == real.keys())):
            return False
        return all(matches_shown(real[name], value) for name, value in named.items())
    if isinstance(shown, list) and isinstance(real, list):
        return len(shown) == len(real) and all(map(matches_shown, real, shown))
    return real == shown
