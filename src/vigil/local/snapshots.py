"""The files of a saved state: generations of snapshots, and the journal of the writes after each.

`generation-7/` is a complete snapshot: it is renamed to this name when all its files are durable. `journal-7.jsonl`
contains the writes after it. A state is the newest snapshot and every journal from its number on. A stop leaves a
snapshot without a journal.
"""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vigil.local.errors import LocalError
from vigil.local.journal import CorruptFileError, Reader, encode, sync_directory

LAYOUT = 1
MANIFEST = "manifest.jsonl"
ITEMS = "items.jsonl"
_GENERATION = re.compile(r"generation-(\d+)")
_JOURNAL = re.compile(r"journal-(\d+)\.jsonl")
# A file of the layout before generations.
_OLD_LAYOUT_FILE = "dynamodb.json"


@dataclass(frozen=True)
class Manifest:
    """The description of a snapshot: its time, the emulator's port, and the size and CRC-32 of each file."""

    layout: int
    saved_at: float
    port: int
    files: dict[str, list[int]]


@dataclass(frozen=True)
class Snapshot:
    """The content of a snapshot: JSON documents by name, and entries like those of a journal."""

    manifest: Manifest
    documents: Mapping[str, bytes]
    entries: Iterable[Any]


def _write_durably(path: Path, chunks: Iterable[bytes]) -> list[int]:
    """Write a file and return its size and CRC-32."""
    size = checksum = 0
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
        file.flush()
        os.fsync(file.fileno())
    return [size, checksum]


class SavedState:
    """The directory with the generations of one local cloud."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def generation(self, number: int) -> Path:
        """Return the directory of a snapshot."""
        return self._directory / f"generation-{number}"

    def journal(self, number: int) -> Path:
        """Return the journal of the writes after a snapshot."""
        return self._directory / f"journal-{number}.jsonl"

    def _numbers(self, pattern: re.Pattern[str]) -> list[int]:
        names = [path.name for path in self._directory.iterdir()] if self._directory.exists() else []
        return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))

    @property
    def newest(self) -> int:
        """The number of the newest snapshot, or 0 without one."""
        return max(self._numbers(_GENERATION), default=0)

    @property
    def journals(self) -> list[int]:
        """The numbers of the journals after the newest snapshot."""
        return [number for number in self._numbers(_JOURNAL) if number >= self.newest]

    @property
    def is_complete(self) -> bool:
        """Whether the newest snapshot contains everything, because it was taken at a stop."""
        return self.newest > 0 and not self.journals

    def write(self, number: int, documents: Mapping[str, bytes], entries: Iterable[Any], **facts: Any) -> None:
        """Write a snapshot. It exists after this call, or not at all.

        Raises:
            OSError: A file cannot be written. Earlier snapshots and journals remain.
        """
        unfinished = self._directory / f"unfinished-{number}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            files = {name: _write_durably(unfinished / name, [content]) for name, content in documents.items()}
            files[ITEMS] = _write_durably(unfinished / ITEMS, map(encode, entries))
            manifest = Manifest(layout=LAYOUT, files=files, **facts)
            _write_durably(unfinished / MANIFEST, [encode(asdict(manifest))])
            sync_directory(unfinished)
            unfinished.rename(self.generation(number))
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        sync_directory(self._directory)

    def remove_older(self) -> None:
        """Delete what the newest snapshot replaces, and unfinished snapshots."""
        newest = self.newest
        for number in self._numbers(_GENERATION):
            if number < newest:
                shutil.rmtree(self.generation(number), ignore_errors=True)
        for number in self._numbers(_JOURNAL):
            if number < newest:
                self.journal(number).unlink(missing_ok=True)
        for path in self._directory.glob("unfinished-*"):
            shutil.rmtree(path, ignore_errors=True)

    def read(self) -> Snapshot | None:
        """Read the newest snapshot and check each of its files. Return None without a snapshot.

        Raises:
            LocalError: A file is missing or damaged, or the state has another layout.
        """
        if not self.newest:
            if (self._directory / _OLD_LAYOUT_FILE).exists():
                raise LocalError(
                    f"The state in {self._directory} is of an earlier version of Vigil; delete it with "
                    "`vigil local up --fresh`."
                )
            return None
        directory = self.generation(self.newest)
        manifest = self._manifest(directory / MANIFEST)
        documents = {name: _checked(directory / name, *facts) for name, facts in manifest.files.items()}
        del documents[ITEMS]
        return Snapshot(manifest, documents, Reader(directory / ITEMS, must_be_complete=True))

    def _manifest(self, path: Path) -> Manifest:
        try:
            [values] = Reader(path, must_be_complete=True)
            manifest = Manifest(**values)
        except (OSError, TypeError, ValueError) as error:
            raise CorruptFileError(path, str(error)) from error
        if manifest.layout != LAYOUT:
            raise LocalError(f"{path} is of another version of Vigil; delete it with `vigil local up --fresh`.")
        return manifest

    def read_journals(self) -> Iterator[tuple[Reader, int]]:
        """Yield a reader and the number of each journal after the newest snapshot. Only the last one may be torn."""
        numbers = self.journals
        for number in numbers:
            yield Reader(self.journal(number), must_be_complete=number != numbers[-1]), number


def _checked(path: Path, size: int, checksum: int) -> bytes:
    """Read a file of a snapshot.

    Raises:
        CorruptFileError: It is missing, or its size or checksum differs.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptFileError(path, error.strerror or str(error)) from error
    if len(content) != size:
        raise CorruptFileError(path, f"it has {len(content)} bytes instead of {size}")
    if zlib.crc32(content) != checksum:
        raise CorruptFileError(path, "its checksum differs")
    return content
