"""`python -m benchmarks`: measure everything, show it, keep it in `benchmarks/results/` and `docs/benchmarks.md`."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from benchmarks.cost_model import Bill
    from benchmarks.harness import Lab
    from benchmarks.latency import Spread
    from vigil.local.stack import Stack

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/latest.json"
PAGE = ROOT / "docs/benchmarks.md"


def main() -> int:
    """Returns 1 when something that must hold does not."""
    asked = _arguments()
    console = Console()
    with _nobodys_account():
        # Imported here, for the functions read their environment as they are imported.
        from benchmarks import report

        if not asked.render:
            RESULTS.parent.mkdir(exist_ok=True)
            if asked.claims:
                found = _with_claims(_kept(), asked, console)
            elif asked.runs:
                found = _with_runs(_kept(), asked, console)
            else:
                found = _measure(asked, console)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        results = _kept()
        PAGE.write_text(report.markdown(results), encoding="utf-8")
        report.show(results, console)
        return 0 if all(bar.holds for bar in report.bars(results)) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--port", type=int, help="the port of the local stack that it starts [default: any free one]")
    parser.add_argument("--samples", type=int, default=200, help="of each latency")
    parser.add_argument("--repeats", type=int, default=7, help="of each import")
    parser.add_argument(
        "--others",
        type=int,
        default=10_000,
        help="other waits that a match is tried among",
    )
    parser.add_argument("--ready", type=int, default=100_000, help="ready jobs that a claim is tried among")
    parser.add_argument(
        "--jobs", type=int, nargs="+", default=[1_000, 10_000], help="of the larger runs whose costs are measured"
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--render", action="store_true", help="only make the page and the tables of kept results anew")
    only.add_argument("--claims", action="store_true", help="only measure claims, and keep the other results")
    only.add_argument("--runs", action="store_true", help="only measure runs, and keep the other results")
    return parser.parse_args()


def _kept() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return kept


def _with_claims(kept: dict[str, Any], asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The results that are kept, with claims measured anew."""
    from benchmarks import costs
    from benchmarks.harness import laboratory
    from benchmarks.machine import describe
    from vigil.local.cloud import running_stack

    with (
        console.status("what claims cost"),
        tempfile.TemporaryDirectory(prefix="vigil-bench-") as directory,
        running_stack(ROOT, asked.port or _free_port(), home=Path(directory)) as stack,
        patch.dict(os.environ, {"AWS_ENDPOINT_URL": stack.endpoint_url}),
        laboratory() as lab,
    ):
        costs.warm_up(lab)
        claims = _claims(lab, asked.ready)
    now = describe(ROOT)
    about = {**kept["about"], "claims": f"measured by themselves at {now['commit']} on {now['date']}"}
    return {**kept, "about": about, "claims": claims}


def _claims(lab: Lab, ready: int) -> dict[str, dict[str, float]]:
    """What a claim takes from a short queue and from a long one."""
    from benchmarks import costs

    return {str(count): _plain(costs.claim_among(lab, count)) for count in (10, ready)}


def _with_runs(kept: dict[str, Any], asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The results that are kept, with runs of workflows measured anew."""
    from benchmarks.harness import laboratory
    from benchmarks.machine import describe
    from vigil.local.cloud import running_stack

    with (
        console.status("what runs take"),
        tempfile.TemporaryDirectory(prefix="vigil-bench-") as directory,
        running_stack(ROOT, asked.port or _free_port(), home=Path(directory)) as stack,
    ):
        hops = _hops(stack, asked.samples)
        with patch.dict(os.environ, {"AWS_ENDPOINT_URL": stack.endpoint_url}), laboratory() as lab:
            found = _runs(lab, asked.jobs)
    now = describe(ROOT)
    about = {**kept["about"], "runs": f"measured by themselves at {now['commit']} on {now['date']}, {now['busy']}"}
    return {**kept, "about": about, "runs": {**found, **hops}}


def _runs(lab: Lab, sizes: Sequence[int]) -> dict[str, Any]:
    """What a run of ten jobs takes and what larger ones do, and what a payload adds to a job."""
    from benchmarks import runs

    runs.warm_up(lab)
    few, paid = runs.run_life(lab, 10), runs.run_life(lab, 10, payloads=True)
    return {
        "lives": {
            str(life.jobs): {
                "total": _plain(life.total),
                "by_step": {name: _plain(bill) for name, bill in life.by_step.items()},
                "by_function": {name: _plain(bill) for name, bill in life.by_function.items()},
            }
            for life in (few, *(runs.run_life(lab, jobs) for jobs in sizes))
        },
        "payload": _plain(runs.more(few.total, paid.total, few.jobs)),
    }


def _hops(stack: Stack, samples: int) -> dict[str, Any]:
    """How long from a completion to the next job, a fourth as many samples as of the rest."""
    from benchmarks import chain_latency as hops

    spreads = hops.measure(stack, samples // 4)
    load = f"Load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores when it was measured"
    return {"hops": {name: _spread(spread) for name, spread in spreads.items()}, "busy": load}


def _spread(spread: Spread) -> dict[str, Any]:
    return {"samples": len(spread.samples), "median_ms": round(spread.median, 2), "p95_ms": round(spread.p95, 2)}


def _plain(bill: Bill) -> dict[str, float]:
    return {name: round(amount, 3) for name, amount in sorted(bill.quantities.items())}


def _measure(asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    from benchmarks import imports, latency
    from benchmarks.machine import describe
    from vigil.local import sam
    from vigil.local.cloud import running_stack
    from vigil.local.state_dir import Home

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, tempfile.TemporaryDirectory(prefix="vigil-bench-") as kept:

        def step(what: str) -> Any:
            return progress.add_task(what, total=1)

        home = Home.of(ROOT, Path(kept) / "cloud")
        starting = step("starting the local stack")
        with running_stack(ROOT, asked.port or _free_port(), home=home.directory) as stack:
            progress.update(starting, completed=1)
            task = progress.add_task("how long news takes", total=asked.samples)
            spreads = latency.measure(home, stack, asked.samples, lambda n: progress.update(task, completed=n))
            task = step("how long from a job to the next")
            hops = _hops(stack, asked.samples)
            progress.update(task, completed=1)
            # Last, for it fills the emulator with rows.
            task = step("what jobs, waits and runs cost")
            with patch.dict(os.environ, {"AWS_ENDPOINT_URL": stack.endpoint_url}):
                found = _costs(asked)
            found["runs"] |= hops
            progress.update(task, completed=1)
        task = step("importing the functions")
        build = sam.build(ROOT, home.directory / "build.log").parent
        imported = imports.measure(build, asked.repeats)
        progress.update(task, completed=1)
    return {
        "about": describe(ROOT),
        **found,
        "latency": {name: _spread(spread) for name, spread in spreads.items()},
        "imports": {
            name: {
                "handler": round(each.handler, 1),
                "late": round(each.late, 1),
                "floor": round(each.floor, 1),
                "with_bytecode": round(each.with_bytecode, 1),
                "libraries": list(each.libraries),
            }
            for name, each in imported.items()
        },
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _costs(asked: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from benchmarks import costs
    from benchmarks import idle_cost as idle
    from benchmarks.harness import laboratory

    def plain_wait(wait: costs.WaitLife) -> dict[str, Any]:
        return {
            "registered": _plain(wait.registered),
            "matched": _plain(wait.matched),
            "look": _plain(wait.look),
            "looks_in_20_s": wait.looks_in_20_s,
        }

    with laboratory() as lab:
        costs.warm_up(lab)
        life = costs.job_life(lab)
        largest = dict(lab.meter.largest)
        variants = {
            "side_by_side": costs.job_life(lab, jobs=costs.SIDE_BY_SIDE).total,
            "progress": costs.job_life(lab, costs.PROGRESS).total,
            "more_fields": costs.job_life(lab, job=costs.JOB_WITH_MORE_FIELDS).total,
        }
        wait = costs.wait_life(lab)
        authorization = costs.authorization(lab)
        minute = costs.idle_minute(lab)
        worker = costs.worker_life(lab)
        match = {count: costs.match_among(lab, count) for count in (10, asked.others)}
        agreement = lab.meter.agreement
        ran = _runs(lab, asked.jobs)
        claims = _claims(lab, asked.ready)
    return {
        "job": {
            "total": _plain(life.total),
            "by_step": {name: _plain(bill) for name, bill in life.by_step.items()},
            "by_function": {name: _plain(bill) for name, bill in life.by_function.items()},
        },
        "job_variants": {name: _plain(bill) for name, bill in variants.items()},
        "worker_job": {name: _plain(bill) for name, bill in worker.items()},
        "claims": claims,
        "runs": ran,
        "wait": plain_wait(wait),
        "match": {str(count): plain_wait(each) for count, each in match.items()},
        "authorization": _plain(authorization),
        "largest": largest,
        "agreement": {
            "same": sum(amount for name, amount in agreement.same.items()),
            "different": len(agreement.different),
        },
        "idle": [asdict(line) for line in idle.month(minute)],
    }


@contextmanager
def _nobodys_account() -> Iterator[None]:
    """No account of the caller's, and no log in between the tables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "POWERTOOLS_"))}
    nobody = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "LOG_LEVEL": "ERROR",
        "POWERTOOLS_METRICS_DISABLED": "true",
    }
    with patch.dict(os.environ, {**kept, **nobody}, clear=True):
        yield


if __name__ == "__main__":
    sys.exit(main())
