"""Import times of each function's handler, in fresh processes, from the result of `sam build`.

The time includes the modules that `vigil_core.wiring` imports at the first event, because that event waits for them.
The floor is the time to import only the libraries that the handler's code uses; the difference is Vigil's own time. A
built layer contains no bytecode and Lambda mounts it read-only, so each cold start compiles its modules. A second
measurement with bytecode shows the cost of that. Times are processor times, so that other load matters little.
"""

from __future__ import annotations

import compileall
import json
import os
import py_compile
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAYER = "VigilLayer/python"

# The names of the libraries and the names imported from them: some libraries import their parts on first access.
_COLLECT_IMPORTS = """
import ast, builtins, importlib, inspect, json, sys
imported, plain = {}, builtins.__import__
def record(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "").split(".")[0]
    if level == 0 and importer in {"handler", "vigil_core"}:
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names | {"__future__", "handler", "vigil_core"}:
            imported.setdefault(name, set()).update(fromlist or ())
    return plain(name, globals, locals, fromlist, level)
builtins.__import__ = record
sys.path[:0] = json.loads(sys.argv[1])
import handler
late = {}
for value in vars(handler).values():
    build = inspect.unwrap(value) if callable(value) else None
    if getattr(build, "__module__", None) == "vigil_core.wiring":
        for node in ast.walk(ast.parse(inspect.getsource(build))):
            if isinstance(node, ast.ImportFrom):
                late[node.module] = []
for name in late:
    importlib.import_module(name)
path = sys.modules["vigil_core"].__file__
assert path.startswith(sys.path[1]), path
print(json.dumps({"libraries": {name: sorted(parts) for name, parts in sorted(imported.items())}, "late": late}))
"""
_TIME_IMPORTS = """
import json, sys, time
sys.path[:0] = json.loads(sys.argv[1])
libraries = json.loads(sys.argv[2])
began = time.process_time()
for name, parts in libraries.items():
    __import__(name)
    for part in parts:
        getattr(sys.modules[name], part, None)
print(json.dumps(1000 * (time.process_time() - began)))
"""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Milliseconds of processor time to import a handler, as medians of fresh processes.

    `late` is the part at the first event. `libraries` are the libraries that its code uses.
    """

    handler: float
    late: float
    floor: float
    with_bytecode: float
    libraries: Sequence[str]


def measure(build: Path, repeats: int) -> dict[str, Import]:
    """Measure every function of a build, by name."""
    with tempfile.TemporaryDirectory() as directory:
        plain, compiled = Path(directory) / "plain", Path(directory) / "compiled"
        # An import from the build may have left bytecode in it.
        shutil.copytree(build, plain, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(plain, compiled)
        compileall.compile_dir(compiled, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        folders = sorted(folder.name for folder in build.glob("*Function"))
        return {
            folder.removesuffix("Function").lower(): _function(plain, compiled, folder, repeats) for folder in folders
        }


def _function(plain: Path, compiled: Path, folder: str, repeats: int) -> Import:
    as_built, with_bytecode = ([str(directory / folder), str(directory / LAYER)] for directory in (plain, compiled))
    imported = _run(_COLLECT_IMPORTS, as_built)
    with_late = {"handler": [], **imported["late"]}
    variants = {
        "handler": (as_built, with_late),
        "at_once": (as_built, {"handler": []}),
        "floor": (as_built, imported["libraries"]),
        "with_bytecode": (with_bytecode, with_late),
    }
    # Take the samples in turn: on a busy machine the same work takes more processor time.
    times: dict[str, list[float]] = {kind: [] for kind in variants}
    for _ in range(repeats):
        for kind, (paths, names) in variants.items():
            times[kind].append(_run(_TIME_IMPORTS, paths, json.dumps(names)))
    median = {kind: statistics.median(samples) for kind, samples in times.items()}
    return Import(
        handler=median["handler"],
        late=median["handler"] - median["at_once"] if imported["late"] else 0,
        floor=median["floor"],
        with_bytecode=median["with_bytecode"],
        libraries=sorted({library.split(".")[0] for library in imported["libraries"]}),
    )


def _run(code: str, paths: Sequence[str], *arguments: str) -> Any:
    process = subprocess.run(
        [sys.executable, "-c", code, json.dumps(paths), *arguments],
        env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=paths[0],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(process.stdout)
