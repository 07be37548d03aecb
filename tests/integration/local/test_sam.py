"""Builds are identified by their sources, and each is built once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vigil.local import LocalError, sam


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("template.yaml", "functions/api/handler.py", "layers/common/python/vigil_core/a.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path


class Builds:
    """Replacement for `sam build` that counts its calls and runs `meanwhile` during each."""

    def __init__(self) -> None:
        self.count = 0
        self.meanwhile: Callable[[], Any] = lambda: None

    def __call__(self, command: list[str], *_: object) -> None:
        self.count += 1
        directory = Path(command[command.index("--build-dir") + 1])
        directory.mkdir()
        (directory / "template.yaml").touch()
        self.meanwhile()


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    builds = Builds()
    monkeypatch.setattr(sam, "_run", builds)
    monkeypatch.setattr(sam, "find_sam", lambda _: Path("sam"))
    return builds


@pytest.mark.parametrize("name", ["template.yaml", "functions/api/handler.py", "layers/common/python/vigil_core/a.py"])
def test_changed_source_changes_the_fingerprint(checkout: Path, name: str) -> None:
    before = sam.source_fingerprint(checkout)
    (checkout / name).write_text("changed")
    assert sam.source_fingerprint(checkout) != before


def test_moved_file_changes_the_fingerprint_and_bytecode_does_not(checkout: Path) -> None:
    before = sam.source_fingerprint(checkout)
    cached = checkout / "functions/api/__pycache__/handler.pyc"
    cached.parent.mkdir()
    cached.touch()
    (checkout / "README.md").touch()
    assert sam.source_fingerprint(checkout) == before
    (checkout / "functions/api/handler.py").rename(checkout / "functions/api/other.py")
    assert sam.source_fingerprint(checkout) != before


def test_directory_without_template_raises_a_helpful_error(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="checkout of Vigil"):
        sam.source_fingerprint(tmp_path)


def test_unchanged_sources_are_built_once(checkout: Path, builds: Builds, tmp_path: Path) -> None:
    first = sam.build(checkout, tmp_path / "log")
    assert sam.build(checkout, tmp_path / "log") == first
    assert builds.count == 1
    assert first.is_file()


def test_oldest_builds_over_the_limit_are_removed(checkout: Path, builds: Builds, tmp_path: Path) -> None:
    directories = []
    for version in range(sam.MAX_BUILDS + 2):
        (checkout / "template.yaml").write_text(str(version))
        directories.append(sam.build(checkout, tmp_path / "log"))
    assert [template.exists() for template in directories] == [False] * 2 + [True] * sam.MAX_BUILDS


def test_sources_changed_during_a_build_are_built_again(checkout: Path, builds: Builds, tmp_path: Path) -> None:
    handler = checkout / "functions/api/handler.py"
    builds.meanwhile = lambda: handler.write_text("changed meanwhile")
    sam.build(checkout, tmp_path / "log")
    builds.meanwhile = lambda: None
    handler.write_text("functions/api/handler.py")
    sam.build(checkout, tmp_path / "log")
    assert builds.count == 2


def test_failed_build_shows_the_end_of_its_log(checkout: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sam, "find_sam", lambda _: Path("/bin/false"))
    log = tmp_path / "build.log"
    log.write_text("the reason\n")
    with pytest.raises(LocalError, match="sam build") as failure:
        sam.build(checkout, log)
    assert failure.value.details == "the reason"
