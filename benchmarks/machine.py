"""The machine of the measurements."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path


def describe(root: Path) -> dict[str, str]:
    """Return the commit, the date and the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    changed = _git(
        root, "status", "--porcelain", "--", "functions", "layers", "src", "template.yaml", "benchmarks/*.py"
    )
    return {
        "commit": _git(root, "rev-parse", "--short=12", "HEAD") + (" and uncommitted changes" if changed else ""),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "emulator": f"ministack {importlib.metadata.version('ministack')}",
        "load": f"load average {os.getloadavg()[0]:.1f} at the end",
    }


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    """Return the processor's name. Linux has it in /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
