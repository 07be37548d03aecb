"""The state directory. A lock shows whether a process is alive, because its file may be stale."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vigil.local import cloud
from vigil.local.errors import LocalError
from vigil.local.stack import Stack
from vigil.local.state_dir import ProcessFile, StateDir, read_json, tail, wait_until, write_json

CLAIM = """
import pathlib, sys
from vigil.local.state_dir import ProcessFile
role = ProcessFile(pathlib.Path(sys.argv[1]))
print(role.claim(port=4711), flush=True)
sys.stdin.read()
"""


def lock_holder(path: Path) -> subprocess.Popen[str]:
    source = Path(__file__).parents[3] / "src"
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(source)},
    )
    assert process.stdout
    assert process.stdout.readline() == "True\n"
    return process


def test_process_lock_is_released_when_its_process_ends(tmp_path: Path) -> None:
    role = ProcessFile(tmp_path / "role.pid")
    assert role.holder() is None
    with lock_holder(tmp_path / "role.pid") as process:
        assert role.holder() == {"pid": process.pid, "port": 4711}
        assert not role.claim()
        process.kill()
        process.wait()
        # The file still exists, but its content is stale.
        assert (tmp_path / "role.pid").read_text()
        assert role.holder() is None
        assert role.claim(port=1)
        assert role.holder() is not None
        role.release()
        assert role.holder() is None


def test_reading_a_process_lock_does_not_block_its_acquisition(tmp_path: Path) -> None:
    path = tmp_path / "role.pid"
    path.touch()
    looking = [ProcessFile(path) for _ in range(50)]
    assert not any(role.alive for role in looking)
    with lock_holder(path) as process:
        assert all(role.alive for role in looking)
        process.kill()


def test_json_file_is_replaced_atomically_with_private_mode(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "stack.json"
    assert read_json(file) is None
    write_json(file, {"a": 1}, mode=0o600)
    write_json(file, {"a": 2}, mode=0o600)
    assert read_json(file) == {"a": 2}
    assert file.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in file.parent.iterdir()] == ["stack.json"]


def test_state_of_a_running_stack_is_not_wiped(tmp_path: Path) -> None:
    home = StateDir.of(tmp_path)
    assert home.directory == tmp_path / ".local"
    role = home.supervisor
    assert role.claim(port=1)
    with pytest.raises(LocalError, match="vigil local down"):
        home.wipe()
    assert home.directory.exists()
    role.release()


def test_state_of_a_stopped_stack_is_wiped(tmp_path: Path) -> None:
    home = StateDir.of(tmp_path, tmp_path / "elsewhere")
    write_json(home.stack_file, {})
    home.wipe()
    assert not home.directory.exists()
    home.wipe()


def test_paths_may_be_texts(tmp_path: Path) -> None:
    assert StateDir.of(str(tmp_path)) == StateDir.of(tmp_path)
    assert StateDir.of(str(tmp_path), str(tmp_path / "x")) == StateDir.of(tmp_path, tmp_path / "x")


def test_damaged_json_file_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "streams.json").write_text('{"readers":')
    with pytest.raises(LocalError, match="vigil local up --fresh"):
        read_json(tmp_path / "streams.json")
    assert (tmp_path / "streams.json").exists()


def test_json_file_that_cannot_be_written_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "a.json", 1)

    def refuse(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        write_json(tmp_path / "a.json", 2)
    assert read_json(tmp_path / "a.json") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_missing_emulator_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "EMULATOR_PACKAGES", ("json", "no_such_package"))
    with pytest.raises(LocalError, match=r"needs no_such_package: run `make venv`") as refused:
        cloud.up(StateDir.of(tmp_path))
    assert not refused.value.details


def test_tail_returns_the_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == ""
    log.write_text("one\ntwo\nthree\n")
    assert tail(log, 2) == "two\nthree"


def test_wait_until_ends_with_the_condition_or_the_timeout() -> None:
    seen = iter([False, False, True])
    assert wait_until(lambda: next(seen), 10, interval_s=0)
    started_at = time.monotonic()
    assert not wait_until(lambda: False, 0.05, interval_s=0.01)
    assert time.monotonic() - started_at >= 0.05


def test_stack_file_of_another_version_raises_a_helpful_error(tmp_path: Path) -> None:
    assert Stack.read(tmp_path / "none.json") is None
    write_json(tmp_path / "stack.json", {"api_url": "http://localhost"})
    with pytest.raises(LocalError, match="vigil local up"):
        Stack.read(tmp_path / "stack.json")
