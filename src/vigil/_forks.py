"""Default signal handlers for the child processes that a worker's jobs fork.

A forked child inherits the worker's Python handlers of the stop signals, but not the loop that acts on them. SIGTERM
would then not end the child, and `multiprocessing.Pool.terminate` would wait for it without end.

1. Before a fork, the forking thread blocks the stop signals.
2. The child sets the default handlers and then unblocks the signals. A signal that the parent sends in between stays
   pending and ends the child in step 2.
3. The parent unblocks the signals. Its other threads receive signals all the time.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable

_stop_signals: set[signal.Signals] = set()
_forking = threading.local()


def reset_in_children(numbers: Iterable[signal.Signals]) -> None:
    """Give these signals their default handlers in each child that this process forks from now on."""
    _stop_signals.clear()
    _stop_signals.update(numbers)


def _block() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _stop_signals) if _stop_signals else None


def _unblock() -> None:
    if _forking.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _reset_and_unblock() -> None:
    if _forking.mask is not None:
        for number in _stop_signals:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        reset_in_children(())
    _unblock()


if hasattr(os, "register_at_fork"):  # Windows has no fork.
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_reset_and_unblock)
