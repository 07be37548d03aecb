"""A fake Vigil server, a client of it with short pauses, and a runner for commands."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from typer.testing import CliRunner, Result

from tests.support.fake_vigil import API_KEY, FakeVigil
from vigil.cli.main import app
from vigil.client import Vigil

Run: TypeAlias = Callable[..., Result]


@pytest.fixture(autouse=True)
def no_thread_outlives_its_test() -> Iterator[None]:
    """Note: after two stop requests a worker may leave a thread, which would run into other tests."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive(), f"{thread} goes on"


@pytest.fixture
def fake() -> Iterator[FakeVigil]:
    with FakeVigil().serving() as serving:
        yield serving


@pytest.fixture
def client(fake: FakeVigil) -> Iterator[Vigil]:
    with Vigil(fake.url, API_KEY, backoff_s=0.01) as made:
        yield made


@pytest.fixture
def run(fake: FakeVigil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command with the expected exit code; return its output."""
    monkeypatch.setenv("VIGIL_API_URL", fake.url)
    monkeypatch.setenv("VIGIL_API_KEY", API_KEY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, arguments, input=stdin, terminal_width=200)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return run
