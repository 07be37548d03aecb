"""The emulator's process: ministack, corrected, on this machine's own address (and another when asked).

Started by `vigil.local.emulator` as `python -m vigil.local.emulator_server <home> <port> <bell> [<address>…]`.
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

from vigil.local import ministack_patches as corrections
from vigil.local.state_dir import StateDir

LOOPBACK = "127.0.0.1"


def main(state_dir: StateDir, port: int, wakeup_fd: int, addresses: list[str]) -> int:
    """Serve until SIGTERM, then save the state. Returns the exit code."""
    corrections.check_version()
    process_file = state_dir.emulator
    if not process_file.claim(port=port):
        print("Another emulator runs in this directory.", file=sys.stderr)  # noqa: T201
        return 1

    # Imported late: ministack reads the environment and configures logging as it is imported.
    from ministack.app import app

    corrections.disable_stream_poller()
    corrections.keep_stream_records()
    corrections.signal_stream_records(wakeup_fd)
    corrections.share_layers()
    corrections.authorize_batches_as_messages()
    corrections.authorize_schedules_by_group()

    # With these, a request costs half the CPU time of hypercorn, ministack's own choice.
    config = Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_keep_alive=75,
        # A stop cuts off held answers and open sockets; their clients come back.
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
    directory, port_text, bell_text, *more = sys.argv[1:]
    sys.exit(main(StateDir(Path.cwd(), Path(directory)), int(port_text), int(bell_text), more))
