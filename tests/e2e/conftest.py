"""Deploy one stack per worker for all tests of this folder, as to AWS; each test is a tenant of its own."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.harness import Aws, Client, Key
from tests.support.receiver import Receiver
from vigil.client import Vigil
from vigil.local import Stack, running_stack

ROOT = Path(__file__).resolve().parents[2]
# Below the range of ephemeral ports, and different from the port of `vigil local up`.
PORTS = range(4760, 4960)


def free_port() -> int:
    """Return a random free port, so that two stacks that start at the same time choose different ones."""
    for port in random.sample(PORTS, len(PORTS)):
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
    """Return the directory in which the stack starts, where an operator types commands."""
    return tmp_path_factory.mktemp("stack")


@pytest.fixture(scope="session")
def stack(directory: Path) -> Iterator[Stack]:
    """Start a stack that enforces the role of every function."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VIGIL_LOCAL_ENFORCE_IAM", "true")
        parameters = {"AllowedPrivateHosts": "127.0.0.1"}
        with running_stack(ROOT, free_port(), home=directory / ".local", parameters=parameters) as running:
            yield running


@pytest.fixture(scope="session")
def aws(stack: Stack) -> Aws:
    return Aws(stack)


@dataclass(frozen=True)
class SlowScenario:
    """The entities that the last tests read. `revoked_at` is monotonic time, `asked_at` is ISO 8601."""

    revoked: Key
    revoked_at: float
    owner: Key
    job_to_cancel: str
    cancel_requested_at: str
    receiver: Receiver


@pytest.fixture(scope="session")
def slow_scenario(stack: Stack, aws: Aws) -> Iterator[SlowScenario]:
    """Create slow entities before the first test.

    A key that is used and then revoked, a running job with a cancel request, and a webhook whose receiver refuses the
    first message.
    """
    revoked, owner = aws.key(), aws.key()
    with Client(stack, revoked.token) as client:
        client.get("/v1/jobs")
    aws.admin("revoke_key", namespace=revoked.namespace, key_id=revoked.key_id)
    revoked_at = time.monotonic()
    with Client(stack, owner.token) as client:
        job_id = client.running()
        asked = client.post(f"/v1/jobs/{job_id}/cancel", status=202)
        receiver = Receiver(503)
        client.put_webhook("slow", receiver, "vigil.job.completed")
        client.complete(client.running())
    assert asked["cancel_requested"]
    yield SlowScenario(revoked, revoked_at, owner, job_id, asked["updated_at"], receiver)
    receiver.close()


@pytest.fixture
def key(aws: Aws, slow_scenario: SlowScenario) -> Key:
    """Create a key with every scope, in a namespace of the test's own."""
    return aws.key()


@pytest.fixture
def client(stack: Stack, key: Key) -> Iterator[Client]:
    """Return an HTTP client with that key."""
    with Client(stack, key.token) as made:
        yield made


@pytest.fixture
def other_tenant(stack: Stack, aws: Aws) -> Iterator[Client]:
    """Return an HTTP client of another tenant, with every scope."""
    with Client(stack, aws.key().token) as made:
        yield made


@pytest.fixture
def tracker(stack: Stack, key: Key) -> Iterator[Vigil]:
    """Return the Python client with that key."""
    with Vigil(stack.api_url, key.token) as made:
        yield made
