"""One stack for all tests of this folder, deployed as it would be to AWS; each test is a tenant of its own."""

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
# Below the ports that outgoing connections take, and off the port of `vigil local up`.
PORTS = range(4760, 4960)


def free_port() -> int:
    """A port that nobody listens on; any of them, lest two that start at once take the same."""
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
    """The directory that the stack was started in: where an operator would type commands."""
    return tmp_path_factory.mktemp("stack")


@pytest.fixture(scope="session")
def stack(directory: Path) -> Iterator[Stack]:
    """Every function may do what its role says and no more."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VIGIL_LOCAL_ENFORCE_IAM", "true")
        parameters = {"AllowedPrivateHosts": "127.0.0.1"}
        with running_stack(ROOT, free_port(), home=directory / ".local", parameters=parameters) as running:
            yield running


@pytest.fixture(scope="session")
def aws(stack: Stack) -> Aws:
    return Aws(stack)


@dataclass(frozen=True)
class SlowBusiness:
    """What the last tests look at. `revoked_at` is monotonic time, `asked_at` ISO 8601."""

    revoked: Key
    revoked_at: float
    owner: Key
    asked_to_cancel: str
    asked_at: str
    receiver: Receiver


@pytest.fixture(scope="session")
def slow_scenario(stack: Stack, aws: Aws) -> Iterator[SlowBusiness]:
    """Begun before the first test: a key that was used and then revoked, a running job that was asked to cancel, a
    webhook whose receiver does not take the first message."""
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
    yield SlowBusiness(revoked, revoked_at, owner, job_id, asked["updated_at"], receiver)
    receiver.close()


@pytest.fixture
def key(aws: Aws, slow_scenario: SlowBusiness) -> Key:
    """For everything, in a namespace of the test's own."""
    return aws.key()


@pytest.fixture
def client(stack: Stack, key: Key) -> Iterator[Client]:
    """With that key."""
    with Client(stack, key.token) as made:
        yield made


@pytest.fixture
def other_tenant(stack: Stack, aws: Aws) -> Iterator[Client]:
    """Another tenant, with every scope."""
    with Client(stack, aws.key().token) as made:
        yield made


@pytest.fixture
def tracker(stack: Stack, key: Key) -> Iterator[Vigil]:
    """The Python client with that key."""
    with Vigil(stack.api_url, key.token) as made:
        yield made
