"""A substitute for curl on a machine without it. It has the options that the README, pages and examples use."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import httpx


def main() -> int:
    """Make one request.

    As with curl, the exit code is 22 if `--fail-with-body` is set and the server refuses the request, and 7 if the
    server does not answer.
    """
    options = argparse.ArgumentParser()
    for flag in ("-s", "-S", "--fail-with-body", "--retry-connrefused"):
        options.add_argument(flag, action="store_true")
    options.add_argument("--retry")
    options.add_argument("-X", default=None)
    options.add_argument("-H", action="append", default=[])
    options.add_argument("-d", default=None)
    options.add_argument("-T", default=None)
    options.add_argument("-o", default=None)
    options.add_argument("-w", default="")
    options.add_argument("url")
    arguments = options.parse_args()
    headers = dict(header.split(": ", 1) for header in arguments.H)
    method = arguments.X or ("PUT" if arguments.T else "GET" if arguments.d is None else "POST")
    content = Path(arguments.T).read_bytes() if arguments.T else arguments.d
    try:
        answer = httpx.request(method, arguments.url, headers=headers, content=content, timeout=60, trust_env=False)
    except httpx.TransportError as error:
        sys.stderr.write(f"{error}\n")
        return 7
    if arguments.o:
        Path(arguments.o).write_text(answer.text)
    else:
        sys.stdout.write(answer.text)
    sys.stdout.write(arguments.w.replace("\\n", "\n"))
    return 22 if arguments.fail_with_body and answer.is_error else 0


if __name__ == "__main__":
    sys.exit(main())
