"""One stack for all tests of this folder, deployed as it would be to AWS; each test is a tenant of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Aws, Client, Key
from vigil.local import Stack, running_stack

ROOT = Path(__file__).resolve().parents[2]
# Below the ports that outgoing connections take, and off the port of `vigil local up`.
PORTS = range(4760, 4800)


def free_port() -> int:
    """A port that nobody listens on."""
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"every port from {PORTS.start} to {PORTS.stop} is taken")


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the stack was started in: where an operator would type commands."""
    return tmp_path_factory.mktemp("stack")


@pytest.fixture(scope="session")
def stack(directory: Path) -> Iterator[Stack]:
    with running_stack(ROOT, free_port(), home=directory / ".local") as running:
        yield running


@pytest.fixture(scope="session")
def aws(stack: Stack) -> Aws:
    return Aws(stack)


@pytest.fixture
def key(aws: Aws) -> Key:
    """For everything, in a namespace of the test's own."""
    return aws.key()


@pytest.fixture
def client(stack: Stack, key: Key) -> Iterator[Client]:
    """With that key."""
    made = Client(stack, key.token)
    yield made
    made.close()
