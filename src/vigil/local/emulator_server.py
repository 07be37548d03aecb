"""The emulator's process: ministack with Vigil's patches, on the loopback address and on further ones if given.

`vigil.local.emulator` starts it: `python -m vigil.local.emulator_server <home> <port> <wakeup_fd> [<address>…]`.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uvicorn import Config, Server

from vigil.local import ministack_patches
from vigil.local.origin_guard import OriginRule, guard
from vigil.local.state_dir import StateDir

LOOPBACK = "127.0.0.1"


def main(state_dir: StateDir, port: int, wakeup_fd: int, addresses: list[str]) -> int:
    """Serve until SIGTERM, then save the state and return the exit code."""
    ministack_patches.check_version()
    process_file = state_dir.emulator
    if not process_file.claim(port=port):
        print("Another emulator runs in this directory.", file=sys.stderr)  # noqa: T201
        return 1

    # Importing ministack reads the environment and configures logging.
    from ministack.app import app

    ministack_patches.disable_stream_poller()
    ministack_patches.deliver_groups_in_parallel()
    ministack_patches.keep_stream_records()
    ministack_patches.signal_stream_records(wakeup_fd)
    ministack_patches.share_layers()
    ministack_patches.authorize_batches_as_messages()
    ministack_patches.authorize_schedules_by_group()

    # With these libraries, a request costs half the CPU time of hypercorn, which ministack uses by default.
    config = Config(
        guard(app, OriginRule(addresses)),
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
    _Server(config).run(sockets=sockets)
    return 0


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
