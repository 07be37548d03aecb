"""The position from which the stream poller resumes, and the number of its reads."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from tests.integration.local.streams import mapping, raw_record
from vigil.local import stream_poller
from vigil.local.state_dir import wait_until
from vigil.local.stream_poller import SequenceTracker, ShardReader


def test_position_is_just_before_the_first_open_record() -> None:
    ledger = SequenceTracker("0")
    for sequence in ("1", "2", "3", "4"):
        ledger.add(sequence, is_matching=True)
    assert (ledger.position, ledger.pending) == ("0", 4)
    ledger.close(["2", "3"])
    assert (ledger.position, ledger.pending) == ("0", 2)
    ledger.close(["1"])
    assert (ledger.position, ledger.pending) == ("3", 1)
    ledger.close(["4"])
    assert (ledger.position, ledger.pending) == ("4", 0)


def test_filtered_records_advance_the_position() -> None:
    ledger = SequenceTracker(None)
    ledger.add("1", is_matching=False)
    assert ledger.position == "1"
    ledger.add("2", is_matching=True)
    ledger.add("3", is_matching=False)
    assert ledger.position == "1"
    ledger.close(["2"])
    assert ledger.position == "3"


def test_reader_waits_until_pending_records_are_processed() -> None:
    ledger = SequenceTracker(None)
    ledger.add("1", is_matching=True)
    ledger.wait_below(1, timeout_s=0.01)
    assert ledger.pending == 1
    closing = threading.Timer(0.05, ledger.close, [["1"]])
    closing.start()
    ledger.wait_below(1, timeout_s=10)
    assert ledger.pending == 0
    closing.join()


class OneStream:
    """A stream that receives records while it is read, and a function that accepts every record."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.asked = 0
        self.streams = SimpleNamespace(get_shard_iterator=lambda **_: {"ShardIterator": "0"}, get_records=self.page)
        self.functions = SimpleNamespace(invoke=lambda **_: {"Payload": io.BytesIO(b"null")})

    def page(self, ShardIterator: str) -> dict[str, Any]:
        self.asked += 1
        start = int(ShardIterator)
        records = self.records[start : start + 2]
        return {"Records": records, "NextShardIterator": str(start + len(records))}


@pytest.mark.parametrize(("whole_page", "reads"), [(3, 1), (2, 2)])
def test_only_a_full_page_is_followed_by_another_read(
    monkeypatch: pytest.MonkeyPatch, whole_page: int, reads: int
) -> None:
    monkeypatch.setattr(stream_poller, "FULL_PAGE_RECORDS", whole_page)
    monkeypatch.setattr(stream_poller, "POLL_INTERVAL_S", 60)
    stream = OneStream()
    stream.records = [raw_record(1), raw_record(2)]
    reader = ShardReader(stream, mapping(), "shard", None)  # type: ignore[arg-type]
    reader.start()
    assert wait_until(lambda: reader.progress.position == "2" and stream.asked >= reads, 10)
    reader.stop()
    reader.finish(10)
    assert stream.asked == reads
