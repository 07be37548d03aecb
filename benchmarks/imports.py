"""How long each function's handler takes to import, in a fresh process, from what `sam build` made of it.

What `vigil_core.wiring` imports only when it is first asked for something counts as well: the first event waits for it.
The floor is the same process importing only the libraries that the handler's own code asks for, so what lies between
the two is Vigil's. A built layer holds no bytecode and Lambda mounts it read-only, so each cold start compiles what it
imports: measured so, and once more with bytecode, to see what that costs. Times are of the processor, which importing
keeps busy: what else this machine does then matters little.
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

# A library's name, and what is taken from it: some import their parts when these are first asked for.
_COLLECT_IMPORTS = """
import ast, builtins, importlib, inspect, json, sys
asked, plain = {}, builtins.__import__
def ask(name, globals=None, locals=None, fromlist=(), level=0):
    by = (globals or {}).get("__name__", "").split(".")[0]
    if level == 0 and by in {"handler", "vigil_core"}:
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names | {"__future__", "handler", "vigil_core"}:
            asked.setdefault(name, set()).update(fromlist or ())
    return plain(name, globals, locals, fromlist, level)
builtins.__import__ = ask
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
place = sys.modules["vigil_core"].__file__
assert place.startswith(sys.path[1]), place
print(json.dumps({"libraries": {name: sorted(parts) for name, parts in sorted(asked.items())}, "late": late}))
"""
_TIME_IMPORTS = """
import json, sys, time
sys.path[:0] = json.loads(sys.argv[1])
wanted = json.loads(sys.argv[2])
began = time.process_time()
for name, parts in wanted.items():
    __import__(name)
    for part in parts:
        getattr(sys.modules[name], part, None)
print(json.dumps(1000 * (time.process_time() - began)))
"""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Milliseconds of processor time to import a handler, medians of fresh processes. `late` is how much of it comes
    with the first event, `libraries` are those of its own code."""

    handler: float
    late: float
    floor: float
    with_bytecode: float
    libraries: Sequence[str]


def measure(build: Path, repeats: int) -> dict[str, Import]:
    """Every function of a build, by name."""
    with tempfile.TemporaryDirectory() as directory:
        plain, compiled = Path(directory) / "plain", Path(directory) / "compiled"
        # Whoever has imported from the build since may have left bytecode in it.
        shutil.copytree(build, plain, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(plain, compiled)
        compileall.compile_dir(compiled, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        folders = sorted(folder.name for folder in build.glob("*Function"))
        return {
            folder.removesuffix("Function").lower(): _function(plain, compiled, folder, repeats) for folder in folders
        }


def _function(plain: Path, compiled: Path, folder: str, repeats: int) -> Import:
    as_built, with_bytecode = ([str(place / folder), str(place / LAYER)] for place in (plain, compiled))
    imported = _run(_COLLECT_IMPORTS, as_built)
    with_late = {"handler": [], **imported["late"]}
    variants = {
        "handler": (as_built, with_late),
        "at_once": (as_built, {"handler": []}),
        "floor": (as_built, imported["libraries"]),
        "with_bytecode": (with_bytecode, with_late),
    }
    # In turn, for the same work takes a busy machine's processor longer.
    times: dict[str, list[float]] = {kind: [] for kind in variants}
    for _ in range(repeats):
        for kind, (paths, names) in variants.items():
            times[kind].append(_run(_TIME_IMPORTS, paths, json.dumps(names)))
    median = {kind: statistics.median(found) for kind, found in times.items()}
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
