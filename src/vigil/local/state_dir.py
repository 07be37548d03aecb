"""The state directory of one local cloud: its files, and which of its two processes is alive."""

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
from vigil.local.journal import CorruptFileError

DEFAULT_NAME = ".local"


def write_json(path: Path, value: object, mode: int = 0o644) -> None:
    """Replace a JSON file atomically and durably, so that a reader never sees a part of it.

    Raises:
        OSError: The file cannot be written. The earlier one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """Read a JSON file. Return None if it does not exist.

    Raises:
        CorruptFileError: The file is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CorruptFileError(path, str(error)) from error


def tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a log, for an error message."""
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def wait_until(is_done: Callable[[], bool], timeout_s: float, interval_s: float = 0.05) -> bool:
    """Wait for a condition, and return whether it became true in time."""
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
    """A file that names the process of a role and is locked while that process lives.

    The operating system releases the lock when the process ends. A stale file therefore misleads no reader, even if
    another process has the same id.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def claim(self, **facts: object) -> bool:
        """Claim the role for this process until it ends. Return False if another process has the role."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+", encoding="utf-8")
        # Retry for a moment: `holder` of another process also takes the lock briefly.
        if not wait_until(lambda: _locked(file, fcntl.LOCK_EX), timeout_s=0.5, interval_s=0.01):
            file.close()
            return False
        file.truncate(0)
        json.dump({"pid": os.getpid(), **facts}, file)
        file.flush()
        self._file = file
        return True

    def release(self) -> None:
        """Release the role before this process ends."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def holder(self) -> dict[str, Any] | None:
        """Return `pid` and the facts of the living process, or None."""
        try:
            file = self._path.open("r", encoding="utf-8")
        except FileNotFoundError:
            return None
        with file:
            if _locked(file, fcntl.LOCK_SH):
                return None
            text = file.read()
            # A process that has just taken the lock may not have written its id yet.
            return json.loads(text) if text else None

    @property
    def alive(self) -> bool:
        """Whether a process has the role."""
        return self.holder() is not None


@dataclass(frozen=True)
class StateDir:
    """One local cloud on disk: `directory` is its state directory, `root` is the checkout that it deploys."""

    root: Path
    directory: Path

    @classmethod
    def of(cls, root: Path | str, directory: Path | str | None = None) -> StateDir:
        """Return the state directory of a checkout. The default is its `.local`."""
        return cls(Path(root).resolve(), Path(directory or Path(root) / DEFAULT_NAME).resolve())

    @property
    def stack_file(self) -> Path:
        """The addresses and the key of the deployed stack."""
        return self.directory / "stack.json"

    @property
    def state(self) -> Path:
        """The directory for the emulator's saved state."""
        return self.directory / "state"

    @property
    def streams_file(self) -> Path:
        """The current positions of the stream mappings."""
        return self.directory / "streams.json"

    @property
    def start_error(self) -> Path:
        """The reason why the emulator refused to start, until the next start."""
        return self.directory / "start-error.txt"

    @property
    def supervisor(self) -> ProcessFile:
        """The process file of the supervisor."""
        return ProcessFile(self.directory / "supervisor.pid")

    @property
    def emulator(self) -> ProcessFile:
        """The process file of the emulator."""
        return ProcessFile(self.directory / "emulator.pid")

    @property
    def supervisor_log(self) -> Path:
        """The log of the supervisor."""
        return self.directory / "supervisor.log"

    @property
    def emulator_log(self) -> Path:
        """The log of the emulator."""
        return self.directory / "emulator.log"

    @property
    def temporary(self) -> Path:
        """The directory for temporary files of the emulator."""
        return self.directory / "tmp"

    def wipe(self) -> None:
        """Delete the whole state.

        Raises:
            LocalError: The local cloud is running.
        """
        if self.supervisor.alive or self.emulator.alive:
            raise LocalError("The local cloud is running; stop it first with `vigil local down`.")
        shutil.rmtree(self.directory, ignore_errors=True)
