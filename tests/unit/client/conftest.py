"""A server that is like Vigil, a client of it that does not pause for long, and its commands as a person types them."""

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
    """What a worker left running when it was told twice to stop would go on in the middle of other tests."""
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
    """Types a command; with the exit code it should have."""
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
