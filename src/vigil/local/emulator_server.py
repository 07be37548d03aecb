"""The emulator's process: ministack with Vigil's patches, on the loopback address and on further ones if given.

`vigil.local.emulator` starts it: `python -m vigil.local.emulator_server <home> <port> <wakeup_fd> [<address>…]`.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from uvicorn import Config, Server

from vigil.local import ministack_patches
from vigil.local.errors import LocalError
from vigil.local.ministack_health import examine
from vigil.local.ministack_recording import record_writes, replace_saving
from vigil.local.ministack_state import MinistackState, check_objects
from vigil.local.origin_guard import OriginRule, guard
from vigil.local.state_api import serve_state
from vigil.local.state_dir import StateDir
from vigil.local.state_store import StateStore

LOOPBACK = "127.0.0.1"
RESUME_DELAY_S = 0.5


def main(state_dir: StateDir, port: int, wakeup_fd: int, addresses: list[str]) -> int:
    """Serve until SIGTERM, then save the state and return the exit code.

    The code is 1 if the state cannot be read or saved. `start_error` then contains the reason why it cannot be read.
    """
    ministack_patches.check_version()
    process_file = state_dir.emulator
    if not process_file.claim(port=port):
        print("Another emulator runs in this directory.", file=sys.stderr)  # noqa: T201
        return 1
    state = MinistackState(state_dir.state, port, state_dir.streams_file)
    store = StateStore(state_dir.state, port, state)
    try:
        check_objects(state_dir.state / "s3")
        _serve(store, state, port, wakeup_fd, addresses)
    except LocalError as error:
        state_dir.start_error.write_text(str(error), encoding="utf-8")
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    try:
        store.close()
    except OSError as error:
        print(f"The state cannot be saved: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _serve(store: StateStore, state: MinistackState, port: int, wakeup_fd: int, addresses: list[str]) -> None:
    """Serve until SIGTERM.

    Raises:
        LocalError: The saved state cannot be read.
    """
    # Importing ministack reads the environment and configures logging.
    from ministack.app import app

    errors: list[LocalError] = []

    def recover() -> None:
        try:
            store.recover()
        except OSError as error:
            errors.append(LocalError(f"The journal in {store.directory} cannot be written: {error}"))
            raise
        except LocalError as error:
            errors.append(error)
            raise
        store.start()
        # The functions of the executions need the server, which starts when this function has returned.
        resume = threading.Timer(RESUME_DELAY_S, state.resume_executions)
        resume.daemon = True
        resume.start()

    record_writes(store, state)
    replace_saving(recover)
    ministack_patches.disable_stream_poller()
    ministack_patches.deliver_groups_in_parallel()
    ministack_patches.signal_stream_records(wakeup_fd)
    ministack_patches.share_layers()
    ministack_patches.authorize_batches_as_messages()
    ministack_patches.authorize_schedules_by_group()

    # With these libraries, a request costs half the CPU time of hypercorn, which ministack uses by default.
    config = Config(
        guard(serve_state(app, store, partial(examine, time.time())), OriginRule(addresses)),
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_keep_alive=75,
        # A stop interrupts long polls and open sockets; clients reconnect.
        timeout_graceful_shutdown=1,
    )
    sockets = [_listen(address, port) for address in dict.fromkeys([LOOPBACK, *addresses])]
    try:
        _Server(config).run(sockets=sockets)
    finally:
        # Uvicorn exits if its application does not start.
        if errors:
            raise errors[0]


class _Server(Server):
    """A server that exits with code 0 after SIGTERM. Uvicorn's own raises the signal again."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, and save the state."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def _listen(address: str, port: int) -> socket.socket:
    """Return a socket that listens on this address."""
    return socket.create_server((address, port), backlog=1_024)


if __name__ == "__main__":
    directory, port_text, wakeup_text, *more = sys.argv[1:]
    sys.exit(main(StateDir(Path.cwd(), Path(directory)), int(port_text), int(wakeup_text), more))
