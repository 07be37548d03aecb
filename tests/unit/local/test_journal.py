"""The journal: cut at any byte, it is a valid prefix; changed inside, it is refused; a full disk tears no line."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil.local.journal import CorruptFileError, Journal, Reader, encode

ENTRIES = st.lists(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal") / "journal.jsonl"


def content(path: Path) -> tuple[list[Any], Reader]:
    reader = Reader(path)
    return list(reader), reader


@given(entries=ENTRIES, data=st.data())
def test_journal_cut_at_any_byte_is_a_prefix_and_can_be_continued(path: Path, entries: list[Any], data: Any) -> None:
    lines = [encode(entry) for entry in entries]
    whole = b"".join(lines)
    size = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:size])
    read, reader = content(path)
    complete = sum(1 for count in range(1, len(lines) + 1) if sum(map(len, lines[:count])) <= size)
    assert read == entries[:complete]
    assert reader.is_torn is (size != sum(map(len, lines[:complete])))
    journal = Journal(path, valid_size=reader.valid_size)
    journal.append("later")
    journal.close()
    assert content(path)[0] == [*entries[:complete], "later"]


@given(entries=ENTRIES, data=st.data())
def test_changed_byte_is_refused_in_the_middle_and_cuts_the_end(path: Path, entries: list[Any], data: Any) -> None:
    lines = [encode(entry) for entry in [*entries, "last"]]
    whole = bytearray(b"".join(lines))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    if position < len(whole) - len(lines[-1]) - 1:
        with pytest.raises(CorruptFileError, match="--fresh"):
            content(path)
        assert path.read_bytes() == whole
    else:
        read, reader = content(path)
        assert reader.is_torn
        assert read == [*entries, "last"][: len(read)]


def test_torn_file_that_must_be_complete_is_refused(path: Path) -> None:
    path.write_bytes(encode(1) + encode(2)[:-1])
    with pytest.raises(CorruptFileError, match="line 2"):
        list(Reader(path, must_be_complete=True))


@pytest.mark.parametrize("written", [0, 1, 7, 10**6])
def test_line_that_a_full_disk_refuses_stays_pending_and_is_written_later(
    path: Path, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path)
    journal.append("before")
    write = os.pwrite

    def write_a_part(descriptor: int, data: bytes, offset: int) -> int:
        if written < len(data):
            if written:
                write(descriptor, data[:written], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", write_a_part)
        if written < len(encode("pending")):
            with pytest.raises(OSError, match="No space"):
                journal.append("pending")
            with pytest.raises(OSError, match="No space"):
                journal.retry()
            assert journal.has_pending
            # The file contains no part of a line.
            assert content(path)[0] == ["before"]
        else:
            journal.append("pending")
    journal.retry()
    journal.append("after")
    journal.sync()
    journal.close()
    assert content(path)[0] == ["before", "pending", "after"]


def test_sync_of_a_closed_journal_does_nothing(path: Path) -> None:
    journal = Journal(path)
    journal.append(1)
    journal.close()
    journal.sync()
    assert content(path)[0] == [1]
