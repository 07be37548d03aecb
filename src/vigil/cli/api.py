"""Error handling for commands that call the API with a key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vigil.cli.admin import fail


@contextmanager
def exit_on_refusal() -> Iterator[None]:
    """End the command with exit code 1 and a one-line message on a VigilError."""
    from vigil.client import VigilError

    try:
        yield
    except VigilError as error:
        problems = [f"{problem['pointer']}: {problem['detail']}" for problem in error.errors]
        raise fail(f"{error.code}: {'; '.join(problems) or error.message}") from error
