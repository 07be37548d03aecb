"""The sample payloads in events/, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EVENTS = Path(__file__).resolve().parents[2] / "events"


def sample(name: str) -> Any:
    """events/<name>.json, read anew each time: the caller may change it."""
    return json.loads((EVENTS / f"{name}.json").read_text())
