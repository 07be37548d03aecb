"""events/ holds a sample payload for each function, and every sample is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.events import EVENTS

ROOT = EVENTS.parent
FUNCTIONS = sorted(handler.parent.name for handler in ROOT.glob("functions/*/handler.py"))
SAMPLES = sorted(path.stem for path in EVENTS.iterdir())


@pytest.fixture(scope="module")
def sources_of_tests() -> str:
    """Return the text of all tests except those in containers, which need Docker."""
    others = (path for path in Path(ROOT, "tests").rglob("*.py") if path.parent.name != "docker")
    return "\n".join(path.read_text() for path in others)


def belongs_to(name: str, function: str) -> bool:
    return name.startswith(f"{function}_")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_has_a_sample(function: str) -> None:
    assert [name for name in SAMPLES if belongs_to(name, function)]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_belongs_to_a_function_and_is_used(name: str, sources_of_tests: str) -> None:
    assert any(belongs_to(name, function) for function in FUNCTIONS)
    assert f'"{name}"' in sources_of_tests
