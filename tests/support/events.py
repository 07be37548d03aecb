"""The sample payloads in `events/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EVENTS = Path(__file__).resolve().parents[2] / "events"


def sample(name: str) -> Any:
    """Read `events/<name>.json`. Each call returns a new object, which the caller may change."""
    return json.loads((EVENTS / f"{name}.json").read_text())
