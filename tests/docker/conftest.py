"""Run the functions in containers of `sam local`, against the tables of a stack on this machine (needs Docker)."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, free_port
from tests.e2e.harness import Aws, eventually
from tests.support.template import resources
from vigil.local import Stack, running_stack
from vigil.local.sam import build, find_sam

# Without this option every invocation looks for a newer runtime image. A missing image is fetched anyway.
COMMON = ("--skip-pull-image",)
# The first invocation builds the image with the layer, and the whole test has 300 s.
INVOCATION_S = 240


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder: it needs Docker, and time to build images with the layer."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.docker)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def bridge() -> str:
    """Return this machine's address as containers reach it."""
    inspected = subprocess.run(
        ["docker", "network", "inspect", "bridge"], capture_output=True, text=True, timeout=30, check=False
    )
    assert inspected.returncode == 0, inspected.stderr
    subnet = ipaddress.ip_network(json.loads(inspected.stdout)[0]["IPAM"]["Config"][0]["Subnet"])
    return str(next(subnet.hosts()))


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sam-local")


@pytest.fixture(scope="session")
def stack(directory: Path, bridge: str) -> Iterator[Stack]:
    with running_stack(ROOT, free_port(), home=directory / ".local", addresses=(bridge,)) as running:
        yield running


@pytest.fixture(scope="session")
def aws(stack: Stack) -> Aws:
    return Aws(stack)


@dataclass(frozen=True)
class SamLocal:
    """Run `sam local` with the built template; functions are invoked by their names in it."""

    template: Path
    variables: Path
    endpoint_url: str

    def command(self, verb: str, *arguments: str) -> list[str]:
        """Return the command line."""
        given = ["--template", str(self.template), "--env-vars", str(self.variables), *COMMON]
        return [str(find_sam(ROOT)), "local", verb, *arguments, *given]

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of the command; containers get its credentials.

        It asks the emulator's STS, not AWS, for the identity.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SAM_CLI_"))}
        return {
            **kept,
            "SAM_CLI_TELEMETRY": "0",
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "NO_PROXY": "localhost,127.0.0.1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def invoke(self, function: str, event: Any) -> Any:
        """Return what a function returns for an event."""
        done = subprocess.run(
            self.command("invoke", function, "--event", "-"),
            cwd=self.template.parent,
            env=self.environment,
            input=json.dumps(event),
            capture_output=True,
            text=True,
            check=False,
            timeout=INVOCATION_S,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def sam_local(stack: Stack, aws: Aws, directory: Path, bridge: str) -> SamLocal:
    """Return the environment of the deployed functions, with an address that containers reach."""
    variables: dict[str, Mapping[str, str]] = {}
    for logical_id, properties in resources("AWS::Serverless::Function").items():
        name = aws.function_names[Path(properties["CodeUri"]).name]
        deployed = aws.functions.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
        there = {name: value.replace("//localhost:", f"//{bridge}:") for name, value in deployed.items()}
        endpoint = stack.endpoint_url.replace("//127.0.0.1:", f"//{bridge}:")
        variables[logical_id] = {**there, "AWS_ENDPOINT_URL": endpoint}
    file = directory / "variables.json"
    file.write_text(json.dumps(variables))
    return SamLocal(build(ROOT, directory / "build.log"), file, stack.endpoint_url)


@pytest.fixture(scope="session")
def local_api(sam_local: SamLocal, directory: Path) -> Iterator[str]:
    """Return the URL of `sam local start-api`."""
    port = free_port()
    log = directory / "start-api.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            sam_local.command("start-api", "--port", str(port), "--warm-containers", "LAZY"),
            cwd=sam_local.template.parent,
            env=sam_local.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: process.poll() is not None or listens(port), within_s=60, what="start-api")
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            sys.stdout.write(log.read_text())


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
