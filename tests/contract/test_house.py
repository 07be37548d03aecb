"""Promises that no other tool checks: locked versions, thin handlers, a pure domain, an honest changelog."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = ROOT / "functions"
CORE = ROOT / "layers/common/python/vigil_core"
TASKS = ROOT / "layers/common/python/vigil_tasks"
LAYER_LOCK = ROOT / "layers/common/python/requirements.txt"
DEV_LOCK = ROOT / "requirements/dev.txt"
SAM_LOCK = ROOT / "requirements/sam.txt"

HANDLERS = sorted(FUNCTIONS.glob("*/handler.py"))
LONGEST_HANDLER = 60
"""Lines: parse, one service call, respond."""

OF_THE_LAMBDA_RUNTIME = {"boto3", "botocore"}
CLOCKS = {"now", "today", "utcnow"}
"""Methods of `datetime` and `date`; the dependency rule excludes the module `time`."""


def pins(lock: Path) -> dict[str, str]:
    """Return the single version that a lock file allows for each name."""
    found: dict[str, str] = {}
    for line in lock.read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            assert pin.operator == "==", f"{lock.name} does not lock {line}"
            found[canonicalize_name(requirement.name)] = pin.version
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """Return the top-level names that a module imports at run time, without those for the type checker."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module)):
                yield module.partition(".")[0]
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pass
            case _:
                yield from imported(node)


def test_layer_versions_equal_the_versions_under_test() -> None:
    dev = pins(DEV_LOCK)
    assert pins(LAYER_LOCK).items() <= dev.items()


@pytest.mark.parametrize("lock", [DEV_LOCK, SAM_LOCK, LAYER_LOCK], ids=lambda lock: str(lock.relative_to(ROOT)))
def test_lock_file_contains_no_host_and_no_path(lock: Path) -> None:
    assert pins(lock)
    assert not re.search(r"://|^-|[ @]/|file:", lock.read_text(), re.MULTILINE)


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["local"],
        *project["dependency-groups"]["dev"],
    ]
    dev = pins(DEV_LOCK)
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(dev[canonicalize_name(requirement.name)]), f"run make lock: {requirement}"


def test_deployed_code_imports_only_packages_of_the_layer() -> None:
    in_the_layer = (ROOT / "layers/common/python/requirements.in").read_text().splitlines()
    allowed = {name.replace("-", "_") for name in in_the_layer if name and not name.startswith("#")}
    allowed |= OF_THE_LAMBDA_RUNTIME | sys.stdlib_module_names | {"vigil_core"}
    for module in [*CORE.rglob("*.py"), *FUNCTIONS.rglob("*.py")]:
        assert set(imported(ast.parse(module.read_text()))) <= allowed, module.relative_to(ROOT)


def test_task_sdk_imports_only_the_standard_library_and_the_domain() -> None:
    allowed = OF_THE_LAMBDA_RUNTIME | sys.stdlib_module_names | {"vigil_core", "vigil_tasks"}
    for module in TASKS.rglob("*.py"):
        assert set(imported(ast.parse(module.read_text()))) <= allowed, module.relative_to(ROOT)


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.parent.name)
def test_handler_stays_below_the_line_limit(handler: Path) -> None:
    assert len(handler.read_text().splitlines()) <= LONGEST_HANDLER


def test_import_linter_sees_every_function() -> None:
    """Note: with one `__init__.py`, functions/ is no namespace package, and the contracts do not see it."""
    assert HANDLERS
    assert not list(FUNCTIONS.rglob("__init__.py"))


def test_domain_never_reads_the_system_time() -> None:
    for module in (CORE / "domain").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in CLOCKS, f"{module.relative_to(ROOT)}:{node.lineno} reads a clock"


def test_project_version_matches_the_changelog() -> None:
    """Note: a development version has unreleased entries; a release is the newest heading, without entries above it."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    _, unreleased, *released = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert unreleased.startswith("[Unreleased]\n")
    if ".dev" in version:
        assert re.search(r"^- ", unreleased, re.MULTILINE)
    else:
        assert released[0].startswith(f"[{version}] - ")
        assert not re.search(r"^- ", unreleased, re.MULTILINE)


def test_each_ci_job_runs_a_make_target() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for job in jobs.values():
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert commands == ["make ${{ matrix.target }}"]
        assert set(job["strategy"]["matrix"]["target"]) <= targets
