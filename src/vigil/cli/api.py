"""How users' commands speak with the API: with a key, and one readable line when it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vigil.cli.admin import fail


@contextmanager
def exit_on_refusal() -> Iterator[None]:
    """Have a VigilError end the command with what it says and exit code 1."""
    from vigil.client import VigilError

    try:
        yield
    except VigilError as error:
        problems = [f"{problem['pointer']}: {problem['detail']}" for problem in error.errors]
        raise fail(f"{error.code}: {'; '.join(problems) or error.message}") from error
