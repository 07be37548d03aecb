"""The emulator's process: ministack, corrected, on this machine's own address (and another when asked).

Started by `vigil.local.emulator` as `python -m vigil.local.emulator_server <home> <port> <bell> [<address>…]`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from vigil.local import ministack_patches as corrections
from vigil.local.state_dir import Home

LOOPBACK = "127.0.0.1"


def main(home: Home, port: int, bell: int, addresses: list[str]) -> int:
    """Serve until SIGTERM, then save the state. Returns the exit code."""
    corrections.check_version()
    role = home.emulator
    if not role.claim(port=port):
        print("Another emulator runs in this directory.", file=sys.stderr)  # noqa: T201
        return 1

    # Imported late: ministack reads the environment and configures logging as it is imported.
    from hypercorn.asyncio import serve
    from hypercorn.config import Config
    from ministack.app import app

    corrections.serve_no_streams()
    corrections.keep_stream_records()
    corrections.ring_on_stream_records(bell)
    corrections.share_layers()
    corrections.authorize_batches_as_messages()
    corrections.name_the_group_of_a_schedule()

    logging.getLogger("hypercorn.access").setLevel(logging.WARNING)
    config = Config()
    config.bind = [f"{address}:{port}" for address in dict.fromkeys([LOOPBACK, *addresses])]
    config.keep_alive_timeout = 75
    # Held answers and open sockets are cut off at a stop; their clients come back.
    config.graceful_timeout = 1
    asyncio.run(serve(app, config))
    return 0


if __name__ == "__main__":
    directory, port_text, bell_text, *more = sys.argv[1:]
    sys.exit(main(Home(Path.cwd(), Path(directory)), int(port_text), int(bell_text), more))
