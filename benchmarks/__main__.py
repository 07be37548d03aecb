"""Measure everything, print the tables, and store them in `benchmarks/results/` and `docs/benchmarks.md`."""

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
    """Run the benchmarks and return exit code 1 if a target is missed."""
    options = _arguments()
    console = Console()
    with _isolated_environment():
        # The functions read their environment when they are imported.
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
        return 0 if all(target.is_met for target in report.targets(results)) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--port", type=int, help="the port of the local cloud [default: a free one]")
    parser.add_argument("--samples", type=int, default=200, help="samples of each latency")
    parser.add_argument("--repeats", type=int, default=7, help="samples of each import")
    parser.add_argument(
        "--others",
        type=int,
        default=10_000,
        help="other waits stored during a match",
    )
    parser.add_argument("--ready", type=int, default=100_000, help="ready jobs in the queue of a claim")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1_000, 10_000], help="sizes of the larger runs")
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--render", action="store_true", help="only render the page and the tables from the stored results"
    )
    only.add_argument("--claims", action="store_true", help="only measure claims, and keep the other results")
    only.add_argument("--runs", action="store_true", help="only measure runs, and keep the other results")
    return parser.parse_args()


def _stored_results() -> dict[str, Any]:
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def _with_claims(stored: dict[str, Any], options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Return the stored results with new measurements of claims."""
    from benchmarks import costs
    from benchmarks.harness import open_harness
    from benchmarks.machine import describe
    from vigil.local.cloud import running_stack

    with (
        console.status("costs of claims"),
        tempfile.TemporaryDirectory(prefix="vigil-bench-") as directory,
        running_stack(ROOT, options.port or _free_port(), home=Path(directory)) as stack,
        patch.dict(os.environ, {"AWS_ENDPOINT_URL": stack.endpoint_url}),
        open_harness() as harness,
    ):
        costs.warm_up(harness)
        claims = _claims(harness, options.ready)
    machine = describe(ROOT)
    about = {**stored["about"], "claims": f"measured separately at {machine['commit']} on {machine['date']}"}
    return {**stored, "about": about, "claims": claims}


def _claims(harness: Harness, ready: int) -> dict[str, dict[str, float]]:
    """Return the costs of a claim from a short queue and from a long one."""
    from benchmarks import costs

    return {str(count): _quantities(costs.claim_among(harness, count)) for count in (10, ready)}


def _with_runs(stored: dict[str, Any], options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Return the stored results with new measurements of workflow runs."""
    from benchmarks.harness import open_harness
    from benchmarks.machine import describe
    from vigil.local.cloud import running_stack

    with (
        console.status("costs and latency of runs"),
        tempfile.TemporaryDirectory(prefix="vigil-bench-") as directory,
        running_stack(ROOT, options.port or _free_port(), home=Path(directory)) as stack,
    ):
        hops = _hops(stack, options.samples)
        with patch.dict(os.environ, {"AWS_ENDPOINT_URL": stack.endpoint_url}), open_harness() as harness:
            run_results = _runs(harness, options.jobs)
    machine = describe(ROOT)
    about = {
        **stored["about"],
        "runs": f"measured separately at {machine['commit']} on {machine['date']}, {machine['load']}",
    }
    return {**stored, "about": about, "runs": {**run_results, **hops}}


def _runs(harness: Harness, sizes: Sequence[int]) -> dict[str, Any]:
    """Return the costs of a run of ten jobs, of larger runs, and of a payload."""
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
    """Measure the latency from a completion to the next job, with a quarter of the samples."""
    from benchmarks import chain_latency

    spreads = chain_latency.measure(stack, samples // 4)
    load = f"Load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores during the measurement"
    return {"hops": {name: _spread(spread) for name, spread in spreads.items()}, "load": load}


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

        def add_step(label: str) -> Any:
            return progress.add_task(label, total=1)

        state_dir = StateDir.of(ROOT, Path(directory) / "cloud")
        starting = add_step("starting the local cloud")
        with running_stack(ROOT, options.port or _free_port(), home=state_dir.directory) as stack:
            progress.update(starting, completed=1)
            task = progress.add_task("latency of events", total=options.samples)
            spreads = latency.measure(state_dir, stack, options.samples, lambda n: progress.update(task, completed=n))
            task = add_step("latency from a job to the next")
            hops = _hops(stack, options.samples)
            progress.update(task, completed=1)
            # Costs come last, because they fill the emulator with rows.
            task = add_step("costs of jobs, waits and runs")
            with patch.dict(os.environ, {"AWS_ENDPOINT_URL": stack.endpoint_url}):
                cost_results = _costs(options)
            cost_results["runs"] |= hops
            progress.update(task, completed=1)
        task = add_step("importing the functions")
        build = sam.build(ROOT, state_dir.directory / "build.log").parent
        imported = imports.measure(build, options.repeats)
        progress.update(task, completed=1)
    return {
        "about": describe(ROOT),
        **cost_results,
        "latency": {name: _spread(spread) for name, spread in spreads.items()},
        "imports": {
            name: {
                "handler": round(times.handler, 1),
                "late": round(times.late, 1),
                "floor": round(times.floor, 1),
                "with_bytecode": round(times.with_bytecode, 1),
                "libraries": list(times.libraries),
            }
            for name, times in imported.items()
        },
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _costs(options: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from benchmarks import costs, idle_cost
    from benchmarks.harness import open_harness

    def plain_wait(wait: costs.WaitLife) -> dict[str, Any]:
        return {
            "registered": _quantities(wait.registered),
            "matched": _quantities(wait.matched),
            "poll": _quantities(wait.poll),
            "polls_in_20_s": wait.polls_in_20_s,
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
        "match": {str(count): plain_wait(wait_life) for count, wait_life in match.items()},
        "authorization": _quantities(authorization),
        "largest": largest,
        "agreement": {
            "same": sum(amount for name, amount in agreement.same.items()),
            "different": len(agreement.different),
        },
        "idle": [asdict(line) for line in idle_cost.month(minute)],
    }


@contextmanager
def _isolated_environment() -> Iterator[None]:
    """Remove the caller's AWS credentials from the environment and disable logs while the block runs."""
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
