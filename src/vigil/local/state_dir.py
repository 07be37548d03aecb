"""The directory of one local cloud: where its files are, and which of its two processes is alive."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vigil.local.errors import LocalError

DEFAULT_NAME = ".local"


def write_json(path: Path, value: object, mode: int = 0o644) -> None:
    """Replace `path` in one step, so that no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
    Path(name).chmod(mode)
    Path(name).replace(path)


def read_json(path: Path) -> Any:
    """What `write_json` wrote, or None when there is nothing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, for a message about a failure."""
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def wait_until(is_done: Callable[[], bool], timeout_s: float, interval_s: float = 0.05) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_s)
    return True


def _locked(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class ProcessFile:
    """Says which process plays a role. A lock held for as long as that process lives is the proof: a stale file lies
    about nothing, whatever became of the process and whoever has its id now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def claim(self, **facts: object) -> bool:
        """Take the role for this process, until it ends; False when another process has it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+", encoding="utf-8")
        # Tried for a moment: who only looks holds the lock too, for an instant.
        if not wait_until(lambda: _locked(file, fcntl.LOCK_EX), timeout_s=0.5, interval_s=0.01):
            file.close()
            return False
        file.truncate(0)
        json.dump({"pid": os.getpid(), **facts}, file)
        file.flush()
        self._file = file
        return True

    def release(self) -> None:
        """Give the role up before this process ends."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def holder(self) -> dict[str, Any] | None:
        """`pid` and the facts of the living process, or None."""
        try:
            file = self._path.open("r", encoding="utf-8")
        except FileNotFoundError:
            return None
        with file:
            if _locked(file, fcntl.LOCK_SH):
                return None
            text = file.read()
            # Between its lock and its first words a process has not yet said who it is.
            return json.loads(text) if text else None

    @property
    def alive(self) -> bool:
        return self.holder() is not None


@dataclass(frozen=True)
class StateDir:
    """One local cloud on disk: `directory` is its own, `root` is the checkout that it deploys."""

    root: Path
    directory: Path

    @classmethod
    def of(cls, root: Path, directory: Path | None = None) -> StateDir:
        """The cloud of a checkout: in its `.local` unless told otherwise."""
        return cls(root.resolve(), (directory or root / DEFAULT_NAME).resolve())

    @property
    def stack_file(self) -> Path:
        return self.directory / "stack.json"

    @property
    def state(self) -> Path:
        """What the emulator keeps between starts."""
        return self.directory / "state"

    @property
    def streams_file(self) -> Path:
        """How far each stream mapping has come, as of now."""
        return self.directory / "streams.json"

    @property
    def saved_streams_file(self) -> Path:
        """How far each had come when `state` was saved: the two belong together."""
        return self.state / "streams.json"

    @property
    def supervisor(self) -> ProcessFile:
        return ProcessFile(self.directory / "supervisor.pid")

    @property
    def emulator(self) -> ProcessFile:
        return ProcessFile(self.directory / "emulator.pid")

    @property
    def supervisor_log(self) -> Path:
        return self.directory / "supervisor.log"

    @property
    def emulator_log(self) -> Path:
        return self.directory / "emulator.log"

    @property
    def temporary(self) -> Path:
        return self.directory / "tmp"

    def wipe(self) -> None:
        """Forget everything. Raises LocalError while the cloud runs."""
        if self.supervisor.alive or self.emulator.alive:
            raise LocalError("The local cloud is running; stop it first with `vigil local down`.")
        shutil.rmtree(self.directory, ignore_errors=True)
