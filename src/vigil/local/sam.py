"""Build and deploy the template with the `sam` CLI. An environment variable makes it use the emulator."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from vigil.local.errors import LocalError
from vigil.local.stack import ACCESS_KEY, REGION, SECRET_KEY
from vigil.local.state_dir import tail

SOURCES = ("template.yaml", "functions", "layers", "statemachines")
# Recent builds are kept: other local clouds of this checkout may still deploy them.
MAX_BUILDS = 4


def find_sam(root: Path) -> Path:
    """Find `sam` in the checkout's virtual environment, in the running one, or on the PATH.

    Raises:
        LocalError: `sam` is not installed.
    """
    for candidate in (root / ".venv/sam/bin/sam", Path(sys.prefix) / "sam/bin/sam", shutil.which("sam")):
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise LocalError("aws-sam-cli is missing: run `make venv` in the checkout, or put `sam` on the PATH.")


def _source_files(root: Path) -> Iterator[Path]:
    for name in SOURCES:
        path = root / name
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from sorted(
                file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.relative_to(root).parts
            )


def source_fingerprint(root: Path) -> str:
    """Return a hash of all files that are built.

    Raises:
        LocalError: The directory has no template.
    """
    if not (root / "template.yaml").is_file():
        raise LocalError(f"{root} contains no template.yaml: run this in a checkout of Vigil.")
    digest = hashlib.sha256()
    for file in _source_files(root):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def build(root: Path, log: Path) -> Path:
    """Build the sources, unless a process has already built them, and return the path of the built template.

    Raises:
        LocalError: The build failed.
    """
    builds = root / ".aws-sam/local"
    builds.mkdir(parents=True, exist_ok=True)
    with (builds / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = source_fingerprint(root)
        target = builds / f"build-{sources}"
        built, done_marker = target / "build/template.yaml", target / "done"
        if not done_marker.exists():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            _run(
                [
                    *(str(find_sam(root)), "build", "--template-file", str(root / "template.yaml")),
                    *("--build-dir", str(target / "build")),
                    # The cache reinstalls the layer's libraries only if its requirements change.
                    *("--cached", "--cache-dir", str(builds / "cache")),
                    *_ignore_samconfig(builds),
                ],
                root,
                log,
                {},
            )
            # If a source changed during the build, the build belongs to neither version.
            if source_fingerprint(root) == sources:
                done_marker.touch()
        os.utime(target)
        _remove_old(builds)
    return built


def _remove_old(builds: Path) -> None:
    newest_first = sorted(builds.glob("build-*"), key=lambda directory: directory.stat().st_mtime, reverse=True)
    for directory in newest_first[MAX_BUILDS:]:
        shutil.rmtree(directory, ignore_errors=True)


def deploy(
    root: Path,
    template: Path,
    log: Path,
    *,
    endpoint_url: str,
    stack_name: str,
    bucket: str,
    parameters: Mapping[str, str],
    tags: Mapping[str, str],
) -> None:
    """Deploy a built template to the emulator.

    Raises:
        LocalError: The deployment failed; `details` is the end of the log.
    """
    _run(
        [
            *(str(find_sam(root)), "deploy", "--template-file", str(template), "--stack-name", stack_name),
            *("--s3-bucket", bucket, "--region", REGION),
            *("--capabilities", "CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"),
            *("--no-confirm-changeset", "--no-fail-on-empty-changeset", "--no-progressbar"),
            *("--parameter-overrides", *(f"{name}={value}" for name, value in parameters.items())),
            *("--tags", *(f"{name}={value}" for name, value in tags.items())),
            *_ignore_samconfig(template.parent),
        ],
        root,
        log,
        {"AWS_ENDPOINT_URL": endpoint_url, "NO_PROXY": "localhost,127.0.0.1"},
    )


def _ignore_samconfig(directory: Path) -> list[str]:
    """Return options that replace samconfig.toml, which configures deployments to AWS."""
    file = directory / "samconfig.local.toml"
    file.write_text("version = 0.1\n", encoding="utf-8")
    return ["--config-file", str(file)]


def _run(command: list[str], root: Path, log: Path, extra_environment: Mapping[str, str]) -> None:
    # Remove the caller's AWS settings: a profile or region must not redirect the deployment.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SAM_CLI_"))}
    environment = {
        **inherited,
        # `sam build` needs a python3.11 with pip on the PATH; the running environment has one.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "SAM_CLI_TELEMETRY": "0",
        # SAM polls a deployment every 5 s by default; the emulator deploys within one.
        "SAM_CLI_POLL_DELAY": "0.1",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
        **extra_environment,
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        result = subprocess.run(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if result.returncode:
        raise LocalError(f"`sam {command[1]}` failed; the whole log is in {log}.", tail(log, 40))
