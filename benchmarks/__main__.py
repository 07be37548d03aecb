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
    from benchmarks.harness import Harness
    from benchmarks.latency import Spread
    from vigil.local.stack import Stack

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/latest.json"
PAGE = ROOT / "docs/benchmarks.md"


def main() -> int:
    """Returns 1 when something that must hold does not."""
    options = _arguments()
    console = Console()
    with _isolated_environment():
        # Imported here, for the functions read their environment as they are imported.
        from benchmarks import report

        if not options.render:
            RESULTS.parent.mkdir(exist_ok=True)
            if options.claims:
                measured = _with_claims(_stored_results(), options, console)
            elif options.runs:
                measured = _with_runs(_stored_results(), options, console)
            else:
                measured = _measure(options, console)
            RESULTS.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        results = _stored_results()
        PAGE.write_text(report.markdown(results), encoding="utf-8")
        report.show(results, console)
        return 0 if all(bar.is_met for bar in report.targets(results)) else 1


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


def _stored_results() -> dict[str, Any]:
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def _with_claims(stored: dict[str, Any], options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The results that are kept, with claims measured anew."""
    from benchmarks import costs
    from benchmarks.harness import open_harness
    from benchmarks.machine import describe
    from vigil.local.cloud import running_stack

    with (
        console.status("what claims cost"),
        tempfile.TemporaryDirectory(prefix="vigil-bench-") as directory,
        running_stack(ROOT, options.port or _free_port(), home=Path(directory)) as stack,
        patch.dict(os.environ, {"AWS_ENDPOINT_URL": stack.endpoint_url}),
        open_harness() as harness,
    ):
        costs.warm_up(harness)
        claims = _claims(harness, options.ready)
    machine = describe(ROOT)
    about = {**stored["about"], "claims": f"measured by themselves at {machine['commit']} on {machine['date']}"}
    return {**stored, "about": about, "claims": claims}


def _claims(harness: Harness, ready: int) -> dict[str, dict[str, float]]:
    """What a claim takes from a short queue and from a long one."""
    from benchmarks import costs

    return {str(count): _quantities(costs.claim_among(harness, count)) for count in (10, ready)}


def _with_runs(stored: dict[str, Any], options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The results that are kept, with runs of workflows measured anew."""
    from benchmarks.harness import open_harness
    from benchmarks.machine import describe
    from vigil.local.cloud import running_stack

    with (
        console.status("what runs take"),
        tempfile.TemporaryDirectory(prefix="vigil-bench-") as directory,
        running_stack(ROOT, options.port or _free_port(), home=Path(directory)) as stack,
    ):
        hops = _hops(stack, options.samples)
        with patch.dict(os.environ, {"AWS_ENDPOINT_URL": stack.endpoint_url}), open_harness() as harness:
            run_results = _runs(harness, options.jobs)
    machine = describe(ROOT)
    about = {
        **stored["about"],
        "runs": f"measured by themselves at {machine['commit']} on {machine['date']}, {machine['busy']}",
    }
    return {**stored, "about": about, "runs": {**run_results, **hops}}


def _runs(harness: Harness, sizes: Sequence[int]) -> dict[str, Any]:
    """What a run of ten jobs takes and what larger ones do, and what a payload adds to a job."""
    from benchmarks import runs

    runs.warm_up(harness)
    few, with_payloads = runs.run_life(harness, 10), runs.run_life(harness, 10, payloads=True)
    return {
        "lives": {
            str(life.jobs): {
                "total": _quantities(life.total),
                "by_step": {name: _quantities(bill) for name, bill in life.by_step.items()},
                "by_function": {name: _quantities(bill) for name, bill in life.by_function.items()},
            }
            for life in (few, *(runs.run_life(harness, jobs) for jobs in sizes))
        },
        "payload": _quantities(runs.extra_per_job(few.total, with_payloads.total, few.jobs)),
    }


def _hops(stack: Stack, samples: int) -> dict[str, Any]:
    """How long from a completion to the next job, a fourth as many samples as of the rest."""
    from benchmarks import chain_latency as hops

    spreads = hops.measure(stack, samples // 4)
    load = f"Load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores when it was measured"
    return {"hops": {name: _spread(spread) for name, spread in spreads.items()}, "busy": load}


def _spread(spread: Spread) -> dict[str, Any]:
    return {"samples": len(spread.samples), "median_ms": round(spread.median, 2), "p95_ms": round(spread.p95, 2)}


def _quantities(bill: Bill) -> dict[str, float]:
    return {name: round(amount, 3) for name, amount in sorted(bill.quantities.items())}


def _measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    from benchmarks import imports, latency
    from benchmarks.machine import describe
    from vigil.local import sam
    from vigil.local.cloud import running_stack
    from vigil.local.state_dir import StateDir

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        Progress(*columns, console=console) as progress,
        tempfile.TemporaryDirectory(prefix="vigil-bench-") as directory,
    ):

        def add_step(what: str) -> Any:
            return progress.add_task(what, total=1)

        state_dir = StateDir.of(ROOT, Path(directory) / "cloud")
        starting = add_step("starting the local stack")
        with running_stack(ROOT, options.port or _free_port(), home=state_dir.directory) as stack:
            progress.update(starting, completed=1)
            task = progress.add_task("how long news takes", total=options.samples)
            spreads = latency.measure(state_dir, stack, options.samples, lambda n: progress.update(task, completed=n))
            task = add_step("how long from a job to the next")
            hops = _hops(stack, options.samples)
            progress.update(task, completed=1)
            # Last, for it fills the emulator with rows.
            task = add_step("what jobs, waits and runs cost")
            with patch.dict(os.environ, {"AWS_ENDPOINT_URL": stack.endpoint_url}):
                costs_found = _costs(options)
            costs_found["runs"] |= hops
            progress.update(task, completed=1)
        task = add_step("importing the functions")
        build = sam.build(ROOT, state_dir.directory / "build.log").parent
        imported = imports.measure(build, options.repeats)
        progress.update(task, completed=1)
    return {
        "about": describe(ROOT),
        **costs_found,
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


def _costs(options: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from benchmarks import costs
    from benchmarks import idle_cost as idle
    from benchmarks.harness import open_harness

    def plain_wait(wait: costs.WaitLife) -> dict[str, Any]:
        return {
            "registered": _quantities(wait.registered),
            "matched": _quantities(wait.matched),
            "look": _quantities(wait.poll),
            "looks_in_20_s": wait.polls_in_20_s,
        }

    with open_harness() as harness:
        costs.warm_up(harness)
        life = costs.job_life(harness)
        largest = dict(harness.counter.largest)
        variants = {
            "side_by_side": costs.job_life(harness, jobs=costs.CONCURRENT_JOBS).total,
            "progress": costs.job_life(harness, costs.PROGRESS).total,
            "more_fields": costs.job_life(harness, job=costs.JOB_WITH_MORE_FIELDS).total,
        }
        wait = costs.wait_life(harness)
        authorization = costs.authorization(harness)
        minute = costs.idle_minute(harness)
        worker = costs.worker_life(harness)
        match = {count: costs.match_among(harness, count) for count in (10, options.others)}
        agreement = harness.counter.agreement
        run_results = _runs(harness, options.jobs)
        claims = _claims(harness, options.ready)
    return {
        "job": {
            "total": _quantities(life.total),
            "by_step": {name: _quantities(bill) for name, bill in life.by_step.items()},
            "by_function": {name: _quantities(bill) for name, bill in life.by_function.items()},
        },
        "job_variants": {name: _quantities(bill) for name, bill in variants.items()},
        "worker_job": {name: _quantities(bill) for name, bill in worker.items()},
        "claims": claims,
        "runs": run_results,
        "wait": plain_wait(wait),
        "match": {str(count): plain_wait(each) for count, each in match.items()},
        "authorization": _quantities(authorization),
        "largest": largest,
        "agreement": {
            "same": sum(amount for name, amount in agreement.same.items()),
            "different": len(agreement.different),
        },
        "idle": [asdict(line) for line in idle.month(minute)],
    }


@contextmanager
def _isolated_environment() -> Iterator[None]:
    """No account of the caller's, and no log in between the tables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "POWERTOOLS_"))}
    overrides = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "LOG_LEVEL": "ERROR",
        "POWERTOOLS_METRICS_DISABLED": "true",
    }
    with patch.dict(os.environ, {**inherited, **overrides}, clear=True):
        yield


if __name__ == "__main__":
    sys.exit(main())
