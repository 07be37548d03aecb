"""The wheel contains the packages for users, and its command line works without the demo."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the content of the wheel."""
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory / "content")
    return directory / "content"


def test_wheel_contains_client_domain_and_task_sdk_but_no_demo(installed: Path) -> None:
    assert (installed / "vigil/client.py").exists()
    assert (installed / "vigil_core/domain/jobs/job.py").exists()
    assert (installed / "vigil_tasks/lambda_handler.py").exists()
    assert not (installed / "vigil/demo").exists()


def test_command_line_of_the_wheel_works_without_the_demo(installed: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "typer", "vigil.cli.main", "run", "--help"],
        env={"PYTHONPATH": str(installed), "COLUMNS": "100"},
        cwd=installed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "worker" in done.stdout
    assert "demo" not in done.stdout
