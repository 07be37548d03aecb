"""The process behind `vigil local up`: it runs the emulator and the stream poller until a signal.

Started as `python -m vigil.local.supervisor <root> <home> <port> [<address>…]`; its output is the supervisor's log.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from botocore.exceptions import BotoCoreError, ClientError

from vigil.local.emulator import Emulator, stop_orphan
from vigil.local.errors import LocalError
from vigil.local.stack import endpoint
from vigil.local.state_dir import StateDir, read_json
from vigil.local.stream_poller import FINISH_TIMEOUT_S, StreamPoller

SAVE_INTERVAL_S = 0.2
REFRESH_INTERVAL_S = 1.0

logger = logging.getLogger(__name__)


def supervise(state_dir: StateDir, port: int, addresses: list[str]) -> int:
    """Run until a signal (exit code 0) or until the emulator exits by itself (1), and return the exit code."""
    process_file = state_dir.supervisor
    if not process_file.claim(port=port):
        logger.error("Another supervisor runs in %s", state_dir.directory)
        return 1
    stop = threading.Event()

    def on_signal(signum: int, _frame: FrameType | None) -> None:
        logger.info("Stopping on %s", signal.Signals(signum).name)
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        read_json(state_dir.streams_file)
        _stop_orphan(state_dir)
        emulator = Emulator.start(state_dir, port, addresses)
    except LocalError as error:
        logger.error("%s\n%s", error, error.details)
        state_dir.start_error.write_text(str(error), encoding="utf-8")
        return 1
    logger.info("The emulator runs on port %d (pid %d)", port, emulator.process.pid)
    poller = StreamPoller(endpoint(port), emulator.wakeup_fd, state_dir.streams_file)
    try:
        return _watch(emulator, poller, stop)
    finally:
        # Without an emulator, no invocation ends.
        poller.stop(FINISH_TIMEOUT_S if emulator.exit_code is None else 0)
        _stop_emulator(emulator)


def _stop_orphan(state_dir: StateDir) -> None:
    """Stop the emulator of a supervisor that was killed. If it cannot save its state, the journal still has it."""
    try:
        stop_orphan(state_dir)
    except LocalError as error:
        logger.warning("%s", error)


def _watch(emulator: Emulator, poller: StreamPoller, stop: threading.Event) -> int:
    poller.listen()
    refresh_at = 0.0
    while not stop.wait(SAVE_INTERVAL_S):
        if emulator.exit_code is not None:
            logger.error("The emulator ended by itself (exit code %s)", emulator.exit_code)
            return 1
        if time.monotonic() >= refresh_at:
            refresh_at = time.monotonic() + REFRESH_INTERVAL_S
            try:
                poller.refresh()
            except (BotoCoreError, ClientError, ValueError) as error:
                logger.warning("Cannot read the event source mappings: %s", error)
        poller.save()
    return 0


def _stop_emulator(emulator: Emulator) -> None:
    if emulator.exit_code is not None:
        emulator.kill_functions()
        return
    try:
        emulator.stop()
    except LocalError as error:
        logger.error("%s\n%s", error, error.details)
    else:
        logger.info("Stopped; the state is saved")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    logging.getLogger("botocore").setLevel(logging.WARNING)
    root_text, home_text, port_text, *more = sys.argv[1:]
    sys.exit(supervise(StateDir(Path(root_text), Path(home_text)), int(port_text), more))
