"""A journal of writes: one line per write, appended at once and synced once a second.

A line is the CRC-32 of its JSON text, a blank, the text in ASCII and a newline. A line is valid or absent, so a group
of entries in one line is atomic. If the process is killed, every appended line remains. If the machine crashes, every
synced line remains, and anything may follow the last synced line.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vigil.local.errors import LocalError


class CorruptFileError(LocalError):
    """A state file cannot be read. The file stays as it is."""

    def __init__(self, path: Path, reason: str) -> None:
        """Name the file, and the two ways on."""
        super().__init__(
            f"{path} cannot be read: {reason}. The local cloud does not start with a part of its state, and keeps the "
            "file. Restore the file, or delete all state with `vigil local up --fresh`."
        )


def encode(entry: Any) -> bytes:
    """Return the line of an entry."""
    text = json.dumps(entry, separators=(",", ":")).encode("ascii")
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _decode(line: bytes) -> Any:
    """Return the entry of a line without its newline.

    Raises:
        ValueError: The line is not valid.
    """
    if len(line) < 10 or line[8:9] != b" " or zlib.crc32(line[9:]) != int(line[:8], 16):
        raise ValueError("the checksum differs")
    return json.loads(line[9:])


def _is_valid(line: bytes) -> bool:
    try:
        _decode(line)
    except ValueError:
        return False
    return True


class Reader:
    """Read the valid prefix of a file of lines.

    After the iteration, `valid_size` is the number of bytes of the prefix, and `is_torn` tells whether bytes follow it.

    Args:
        must_be_complete: Whether a torn end is an error. A journal may have one; a snapshot may not.
    """

    def __init__(self, path: Path, *, must_be_complete: bool = False) -> None:
        self._path = path
        self._must_be_complete = must_be_complete
        self.valid_size = 0
        self.is_torn = False

    def __iter__(self) -> Iterator[Any]:
        """Yield the entries in order.

        Raises:
            CorruptFileError: A line is damaged, and a valid line follows: the file was not torn but changed.
        """
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    if not line.endswith(b"\n"):
                        raise ValueError("the last line is incomplete")
                    entry = _decode(line[:-1])
                except ValueError as error:
                    if self._must_be_complete or any(_is_valid(later.rstrip(b"\n")) for later in file):
                        raise CorruptFileError(self._path, f"line {number} is damaged ({error})") from error
                    self.is_torn = True
                    return
                yield entry
                self.valid_size += len(line)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Journal:
    """The writer of a journal. Every method may be called by any thread.

    A line that cannot be written stays pending. `retry` writes it later, so that no line is missing in the middle.
    """

    def __init__(self, path: Path, *, valid_size: int = 0) -> None:
        """Open the file and cut off a torn end.

        Args:
            valid_size: The number of valid bytes in an existing file.

        Raises:
            OSError: The file cannot be written.
        """
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._descriptor, valid_size)
        self._lock = threading.Lock()
        # A file that is closed during its sync would fail, or another file would have its descriptor.
        self._sync_lock = threading.Lock()
        self._is_closed = False
        self._size = valid_size
        self._synced_size = 0
        self._pending = b""
        sync_directory(path.parent)

    @property
    def size(self) -> int:
        """The number of bytes in the file."""
        return self._size

    @property
    def has_pending(self) -> bool:
        """Whether a line could not be written yet."""
        return bool(self._pending)

    def append(self, entry: Any) -> None:
        """Append a line.

        Raises:
            OSError: The line, or an earlier one, cannot be written. It stays pending.
        """
        line = encode(entry)
        with self._lock:
            self._pending += line
            self._write_pending()

    def retry(self) -> None:
        """Write the pending lines.

        Raises:
            OSError: They cannot be written.
        """
        with self._lock:
            self._write_pending()

    def _write_pending(self) -> None:
        if not self._pending:
            return
        written = 0
        try:
            while written < len(self._pending):
                written += os.pwrite(self._descriptor, self._pending[written:], self._size + written)
        except OSError:
            # A part of a line would make the next line invalid.
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += written
        self._pending = b""

    def sync(self) -> None:
        """Make every appended line durable.

        Raises:
            OSError: The disk reports an error.
        """
        with self._sync_lock:
            size = self._size
            if size != self._synced_size and not self._is_closed:
                os.fdatasync(self._descriptor)
                self._synced_size = size

    def close(self) -> None:
        """Close the file. The journal takes no further line."""
        with self._sync_lock:
            self._is_closed = True
            os.close(self._descriptor)
