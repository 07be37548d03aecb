"""Where a restart resumes."""

from __future__ import annotations

import threading

from vigil.local.pump import Ledger


def test_the_position_is_just_before_the_first_open_record() -> None:
    ledger = Ledger("0")
    for sequence in ("1", "2", "3", "4"):
        ledger.add(sequence, wanted=True)
    assert (ledger.position, ledger.pending) == ("0", 4)
    ledger.close(["2", "3"])
    assert (ledger.position, ledger.pending) == ("0", 2)
    ledger.close(["1"])
    assert (ledger.position, ledger.pending) == ("3", 1)
    ledger.close(["4"])
    assert (ledger.position, ledger.pending) == ("4", 0)


def test_records_that_no_filter_lets_through_are_passed_over() -> None:
    ledger = Ledger(None)
    ledger.add("1", wanted=False)
    assert ledger.position == "1"
    ledger.add("2", wanted=True)
    ledger.add("3", wanted=False)
    assert ledger.position == "1"
    ledger.close(["2"])
    assert ledger.position == "3"


def test_a_reader_waits_until_its_function_has_caught_up() -> None:
    ledger = Ledger(None)
    ledger.add("1", wanted=True)
    ledger.wait_below(1, timeout_s=0.01)
    assert ledger.pending == 1
    closing = threading.Timer(0.05, ledger.close, [["1"]])
    closing.start()
    ledger.wait_below(1, timeout_s=10)
    assert ledger.pending == 0
    closing.join()
