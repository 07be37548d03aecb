"""The durable state of the emulator: record each write, take snapshots, and recover.

1. A write appends its entries to the journal before its response. If the process is killed, no acknowledged write is
   lost. Once a second, a thread syncs the journal: if the machine crashes, the last two seconds are lost.
2. A snapshot first starts the next journal and captures the state, both under the lock that every write takes. The
   snapshot then contains exactly the writes before that journal.
3. Entries describe results, not requests. Entries that are applied twice have no further effect.
4. If the journal cannot be written, every further write is refused until the entries that failed are written.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from vigil.local.journal import CorruptFileError, Journal
from vigil.local.snapshots import SavedState, Snapshot

SYNC_INTERVAL_S = 1.0
# Reading a journal of this size takes some seconds.
MAX_JOURNAL_BYTES = 256 * 2**20

Entry = list[Any]

logger = logging.getLogger(__name__)


class SavingFailedError(Exception):
    """The state cannot be saved, so a write is refused."""


@dataclass(frozen=True)
class Capture:
    """A consistent copy of the state. The entries are serialised later, and nothing changes them in place."""

    documents: Mapping[str, bytes]
    entries: Iterable[Entry]


class Backend(Protocol):
    """The emulator as the store sees it."""

    def capture(self) -> Capture:
        """Copy the state. The store holds the lock."""

    def restore(self, snapshot: Snapshot) -> None:
        """Replace the state by a snapshot."""

    def apply(self, entry: Entry) -> bool:
        """Apply an entry of a journal. Return False if the snapshot does not contain its resource."""

    def complete_recovery(self) -> None:
        """Continue after the last entry."""

    def collect(self) -> list[Entry]:
        """Return entries for changes that no write recorded."""

    def sync_files(self) -> None:
        """Write again the files that could not be written, and make all files durable."""

    def on_snapshot(self) -> None:
        """Delete what no snapshot needs any more."""


@dataclass(frozen=True)
class Recovery:
    """What a start found. `until` is the time of the last recovered write, in seconds since the epoch."""

    is_complete: bool
    saved_at: float | None
    writes: int
    skipped: int
    until: float | None
    is_torn: bool


class StateStore:
    """The state of one running emulator on disk."""

    def __init__(self, directory: Path, port: int, backend: Backend) -> None:
        self._files = SavedState(directory)
        self.directory = directory
        self._port = port
        self._backend = backend
        # Every write takes this lock.
        self.lock = threading.RLock()
        self._depth = 0
        self._entries: list[Entry] = []
        self._journal: Journal | None = None
        self._number = 0
        self._is_closed = False
        self._failure: str | None = None
        self._failed_at: float | None = None
        self._snapshot_lock = threading.Lock()
        self._stopping = threading.Event()
        self.recovery: Recovery | None = None

    # ---------------------------------------------------------------- Start and stop

    def recover(self) -> Recovery:
        """Restore the saved state and continue its journal.

        Raises:
            LocalError: A file cannot be read. Nothing is changed.
            OSError: The journal cannot be written.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        snapshot, is_complete = self._files.read(), self._files.is_complete
        if snapshot is not None:
            self._backend.restore(snapshot)
        writes = skipped = size = 0
        until, is_torn = None, False
        self._number = self._files.newest
        for reader, number in self._files.read_journals():
            for at, entries in reader:
                try:
                    applied = [self._backend.apply(entry) for entry in entries]
                except (LookupError, TypeError, ValueError) as error:
                    raise CorruptFileError(self._files.journal(number), f"an entry is unknown ({error!r})") from error
                writes += sum(applied)
                skipped += len(applied) - sum(applied)
                until = at if entries else until
            self._number, size, is_torn = number, reader.valid_size, reader.is_torn
        self._backend.complete_recovery()
        self._files.remove_older()
        self._journal = Journal(self._files.journal(self._number), valid_size=size)
        # With this line, a start that ends without a stop is no complete state.
        self._journal.append([time.time(), []])
        self.recovery = Recovery(
            is_complete=is_complete or (snapshot is None and not size),
            saved_at=snapshot.manifest.saved_at if snapshot else None,
            writes=writes,
            skipped=skipped,
            until=until,
            is_torn=is_torn,
        )
        return self.recovery

    def start(self) -> None:
        """Sync once a second, in a thread."""
        threading.Thread(target=self._sync_regularly, name="state-sync", daemon=True).start()

    def _sync_regularly(self) -> None:
        while not self._stopping.wait(SYNC_INTERVAL_S):
            self.sync()
            if self._journal and self._journal.size > MAX_JOURNAL_BYTES and not self._failure:
                with contextlib.suppress(OSError):
                    self.snapshot()

    def close(self) -> None:
        """Refuse further writes, take the last snapshot and delete the journal.

        Raises:
            OSError: The snapshot cannot be written. The last snapshot and its journals remain.
        """
        self._stopping.set()
        self.sync()
        self.snapshot(is_last=True)

    # ---------------------------------------------------------------- Writes

    @contextlib.contextmanager
    def write(self) -> Iterator[list[Entry]]:
        """Collect the entries of one write, and append them to the journal as one line.

        Raises:
            SavingFailedError: The state cannot be saved.
        """
        with self.lock:
            if self._depth == 0:
                self._require_saving()
            self._depth += 1
            try:
                yield self._entries
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._append_collected()
            if self._depth == 0:
                self._require_saving()

    def _append_collected(self) -> None:
        entries, self._entries = self._entries, []
        if not entries or self._journal is None:
            return
        try:
            self._journal.append([round(time.time(), 3), entries])
        except OSError as error:
            self.fail(error)

    @property
    def refusal(self) -> str | None:
        """The reason why writes are refused, or None."""
        return "the emulator is stopping" if self._is_closed else self._failure

    def _require_saving(self) -> None:
        if self.refusal is not None:
            raise SavingFailedError(self.refusal)

    def fail(self, error: OSError) -> None:
        """Refuse further writes, because this one could not be saved."""
        if self._failure is None:
            self._failed_at = time.time()
            logger.error("The state cannot be saved: %s. Writes are refused.", error)
        self._failure = error.strerror or str(error)

    def sync(self) -> None:
        """Record changes that no write recorded, and make everything durable. Try again what failed."""
        try:
            if self._journal is not None:
                with self.lock:
                    self._append_changes(self._journal)
                self._journal.sync()
            self._backend.sync_files()
        except OSError as error:
            self.fail(error)
            return
        if self._failure is not None:
            logger.warning("The state can be saved again.")
            self._failure = self._failed_at = None

    def _append_changes(self, journal: Journal) -> None:
        """Append what failed before, and the changes that no write recorded."""
        journal.retry()
        if entries := self._backend.collect():
            journal.append([round(time.time(), 3), entries])

    # ---------------------------------------------------------------- Snapshots

    def snapshot(self, *, is_last: bool = False) -> None:
        """Write a snapshot. With `is_last`, refuse every later write.

        Raises:
            OSError: The snapshot cannot be written. Earlier files remain.
        """
        with self._snapshot_lock:
            try:
                self._write_snapshot(is_last)
            except OSError as error:
                self.fail(error)
                raise
        self._backend.on_snapshot()

    def _write_snapshot(self, is_last: bool) -> None:
        with self.lock:
            assert self._journal is not None
            self._append_changes(self._journal)
            self._journal.sync()
            number, saved_at = self._number + 1, time.time()
            if is_last:
                self._is_closed = True
            else:
                following = self._start_journal(number, saved_at)
                self._journal.close()
                self._journal, self._number = following, number
            capture = self._backend.capture()
        self._backend.sync_files()
        self._files.write(number, capture.documents, capture.entries, saved_at=saved_at, port=self._port)
        self._files.remove_older()

    def _start_journal(self, number: int, at: float) -> Journal:
        path = self._files.journal(number)
        journal = Journal(path)
        try:
            # With this line, a start that ends without a stop is no complete state.
            journal.append([at, []])
        except OSError:
            journal.close()
            path.unlink()
            raise
        return journal

    # ---------------------------------------------------------------- Status

    def status(self) -> dict[str, Any]:
        """Return what `vigil local status` and `up` report."""
        return {
            "failure": self._failure,
            "failed_at": self._failed_at,
            "recovery": asdict(self.recovery) if self.recovery else None,
            "journal_bytes": self._journal.size if self._journal else 0,
        }
