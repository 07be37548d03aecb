"""The output of the commands. It is the only module that writes to a terminal.

Names, messages and errors come from workers and targets, and a terminal executes the escape sequences in them. Every
text is therefore made printable on its way out: by `Console` for laid-out output, and by `echo` for lines.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from typing import Any

import rich.console
import rich.markup
import typer
from rich.segment import Segment

from vigil_core.domain.exact_json import dumps
from vigil_core.domain.text_rule import printable

KEPT_CHARACTERS = "\n\t"


class Console(rich.console.Console):
    """A console that makes the text of every renderable printable. Its own styles and cursor movements stay."""

    def render(
        self, renderable: rich.console.RenderableType, options: rich.console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render an object as segments of printable text."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text, keep=KEPT_CHARACTERS), style, control)


class LogFormatter(logging.Formatter):
    """A formatter that makes log lines and tracebacks printable."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as printable text."""
        return printable(super().format(record), keep=KEPT_CHARACTERS)


def escape(text: str) -> str:
    """Make a foreign text printable, and escape Rich's markup in it."""
    return rich.markup.escape(printable(text, keep=KEPT_CHARACTERS))


def echo(text: str, *, err: bool = False, color: str | None = None) -> None:
    """Print a text that may be foreign."""
    typer.secho(printable(text, keep=KEPT_CHARACTERS), err=err, fg=color)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print JSON for programs, without wrapping and colours. JSON's escapes replace the unprintable characters."""
    text = json.dumps(value, ensure_ascii=False, indent=indent) if indent else dumps(value)
    typer.echo(escape_json(text))


def escape_json(json_text: str) -> str:
    """Replace the unprintable characters in the strings of a JSON text by JSON's escapes, which lose nothing."""
    return re.sub(r"[^\x00-\x7e]|\x7f", _escape_character, json_text)


def _escape_character(match: re.Match[str]) -> str:
    character = match[0]
    return character if printable(character) == character else json.dumps(character)[1:-1]
