"""A stand-in for curl, where a machine has none: the options that the README, the pages and the examples use."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import httpx


def main() -> int:
    """Make one request. Exit code 22 for a refusal that is to be a failure, 7 when nobody answers, as curl has them."""
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
    wanted = options.parse_args()
    headers = dict(header.split(": ", 1) for header in wanted.H)
    method = wanted.X or ("PUT" if wanted.T else "GET" if wanted.d is None else "POST")
    content = Path(wanted.T).read_bytes() if wanted.T else wanted.d
    try:
        answer = httpx.request(method, wanted.url, headers=headers, content=content, timeout=60, trust_env=False)
    except httpx.TransportError as error:
        sys.stderr.write(f"{error}\n")
        return 7
    if wanted.o:
        Path(wanted.o).write_text(answer.text)
    else:
        sys.stdout.write(answer.text)
    sys.stdout.write(wanted.w.replace("\\n", "\n"))
    return 22 if wanted.fail_with_body and answer.is_error else 0


if __name__ == "__main__":
    sys.exit(main())
