"""The built layer satisfies every import: each handler is imported without other packages, as in Lambda."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vigil.local.sam import build

ROOT = Path(__file__).resolve().parents[2]
HANDLERS = sorted(path.parent.name for path in (ROOT / "functions").glob("*/handler.py"))
# Unzipped size of a function's package and its layers:
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
LARGEST_BYTES = 250 * 1024 * 1024

IMPORT_EVERYTHING = """
import importlib, json, pkgutil, sys
given = json.loads(sys.argv[1])
sys.path += given["path"]
import handler
assert callable(handler.handler)
import vigil_core, vigil_tasks
for package in (vigil_core, vigil_tasks):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
print(json.dumps(sorted({str(m.__file__) for m in list(sys.modules.values()) if getattr(m, "__file__", None)})))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that `sam build` wrote."""
    return build(ROOT, tmp_path_factory.mktemp("build") / "build.log").parent


def distributions(name: str) -> Iterator[importlib.metadata.Distribution]:
    """Return a distribution and all its dependencies."""
    distribution = importlib.metadata.distribution(name)
    yield distribution
    for requirement in map(Requirement, distribution.requires or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield from distributions(requirement.name)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with boto3 and its dependencies, which the Lambda runtime provides, and nothing else."""
    directory = tmp_path_factory.mktemp("runtime")
    for distribution in distributions("boto3"):
        for top in {file.parts[0] for file in distribution.files or () if ".." not in file.parts}:
            link = directory / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))
    return directory


@pytest.mark.parametrize("function", HANDLERS)
def test_every_handler_imports_with_the_layer_alone(function: str, built: Path, runtime: Path) -> None:
    code = built / f"{function.title().replace('_', '')}Function"
    layer = built / "VigilLayer/python"
    path = [str(code), str(layer), str(runtime)]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", IMPORT_EVERYTHING, json.dumps({"path": path})],
        env={"AWS_REGION": "us-east-1", "AWS_LAMBDA_FUNCTION_NAME": f"vigil-{function.replace('_', '-')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    standard_library = [str(Path(prefix).resolve()) for prefix in (sys.base_prefix, sys.base_exec_prefix)]
    for file in json.loads(done.stdout):
        assert file.startswith((*path, *standard_library)), f"{file} is not there on Lambda"


def test_layer_layout_and_size_satisfy_lambda(built: Path) -> None:
    layer = built / "VigilLayer"
    assert [child.name for child in layer.iterdir()] == ["python"]
    assert (layer / "python/vigil_core/__init__.py").exists()
    assert (layer / "python/vigil_tasks/__init__.py").exists()
    assert not (layer / "python/python").exists(), "nested, it could not be imported"
    size = sum(file.stat().st_size for file in built.rglob("*") if file.is_file())
    assert size < LARGEST_BYTES
