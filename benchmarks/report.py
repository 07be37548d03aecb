"""Render the stored results as tables in the terminal and as the page `docs/benchmarks.md`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import runs
from benchmarks.cost_model import (
    HTTP,
    INDEX_WRITE,
    INVOCATION,
    PRICE_LIST,
    PRICES,
    READ,
    REQUESTS,
    SQS,
    TRANSITIONS,
    WRITE,
    Bill,
)
from benchmarks.idle_cost import GB_SECOND

Json = Mapping[str, Any]

API_GB = 0.5
"""The memory of the API function in GB, which a long poll occupies."""
POLL_S = 20

MAX_JOB_WRITE_UNITS = 14
MAX_WAIT_WRITE_UNITS = 10
MAX_LATENCY_RATIO = 1.5
MAX_RUN_JOB_DOLLARS = 12
MAX_RUN_DOLLARS = 0.0003
RUNS_SHOWN = (10, 1_000, 10_000)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, a table and notes."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A limit for a measured value."""

    label: str
    limit: float
    measured: float

    @property
    def is_met(self) -> bool:
        """Whether the measured value is within the limit."""
        return self.measured <= self.limit


def targets(results: Json) -> list[Target]:
    """Return the targets with the measured values."""
    job, wait, latency = _bill(results["job"]["total"]), _wait_total(results["wait"]), results["latency"]
    ratio = latency["job"]["median_ms"] / latency["baseline"]["median_ms"]
    few, many = (results["match"][count] for count in sorted(results["match"], key=int))
    short, long = (results["claims"][count] for count in sorted(results["claims"], key=int))
    return [
        Target(
            label="write units of a tracked job with five reports", limit=MAX_JOB_WRITE_UNITS, measured=job.write_units
        ),
        Target(label="write units of a wait on that job", limit=MAX_WAIT_WRITE_UNITS, measured=wait.write_units),
        Target(
            label="quantities of a match that differ between few and many waits",
            limit=0,
            measured=_differences(few, many),
        ),
        Target(
            label="quantities of a claim that differ between a short and a long queue",
            limit=0,
            measured=_count_differences(short, long),
        ),
        Target(
            label="latency from an update to the WebSocket, as a multiple of the baseline",
            limit=MAX_LATENCY_RATIO,
            measured=round(ratio, 2),
        ),
        Target(
            label="dollars per million jobs of a run",
            limit=MAX_RUN_JOB_DOLLARS,
            measured=round(_cost_per_job(results).dollars(), 2),
        ),
        Target(
            label="dollars per run without its jobs",
            limit=MAX_RUN_DOLLARS,
            measured=round(_fixed_run_cost(results).dollars() / 1e6, 6),
        ),
    ]


def sections(results: Json) -> Iterator[Section]:
    """Yield the sections in the order of the page."""
    yield Section(
        title="Targets",
        columns=["", "limit", "measured", ""],
        rows=[
            [target.label, f"{target.limit:g}", f"{target.measured:g}", "met" if target.is_met else "**missed**"]
            for target in targets(results)
        ],
        notes=[],
    )
    yield _job(results)
    yield _worker_job(results)
    yield _wait(results)
    yield _match(results)
    yield _run(results)
    yield _step_functions_costs(results)
    yield _hop(results)
    yield _latency(results)
    yield _imports(results)
    yield _idle(results)


def markdown(results: Json) -> str:
    """Return the page."""
    about = results["about"]
    lines = [
        "# Benchmarks",
        "",
        "This page shows what jobs, waits and workflows cost on AWS and how fast they are. `make bench` measures and "
        "renders it from `benchmarks/results/latest.json`. Do not edit it by hand.",
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
        "",
    ]
    for section in sections(results):
        lines += [f"## {section.title}", ""]
        lines += ["| " + " | ".join(section.columns) + " |"]
        lines += ["| --- |" + " ---: |" * (len(section.columns) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in section.rows]
        lines += [""]
        for note in section.notes:
            lines += [note, ""]
    return "\n".join(lines)


def show(results: Json, console: Console) -> None:
    """Print the sections in the terminal."""
    for section in sections(results):
        table = Table(title=section.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for number, column in enumerate(section.columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in section.rows:
            table.add_row(*(cell.replace("**", "") for cell in row))
        console.print(table)
        for note in section.notes:
            console.print(f"[dim]{note.replace('`', '')}[/]", highlight=False)
        console.print()


# ---------------------------------------------------------------- Costs

_COST_COLUMNS = ["requests", "read units", "write units", "index write units", "invocations", "DynamoDB $", "total $"]


def _cost_row(name: str, bill: Bill) -> list[str]:
    return [
        name,
        _number(bill[REQUESTS]),
        _number(bill[READ]),
        _number(bill.write_units),
        _number(bill[INDEX_WRITE]),
        _number(bill.invocations),
        f"{bill.dollars('dynamodb.'):.2f}",
        f"{bill.dollars():.2f}",
    ]


def _job(results: Json) -> Section:
    job = results["job"]
    rows = [_cost_row("**a tracked job**", _bill(job["total"]))]
    rows += [_cost_row(f"– {_STEPS[name]}", _bill(bill)) for name, bill in job["by_step"].items()]
    rows += [_cost_row(f"by the {name}", _bill(bill)) for name, bill in job["by_function"].items()]
    rows += [_cost_row(f"{_VARIANTS[name]}", _bill(bill)) for name, bill in results["job_variants"].items()]
    rows += [_cost_row("authorization of a key, once per 60 s", _bill(results["authorization"]))]
    prices = ", ".join(f"{_PRICED[name]} ${price:g}" for name, price in PRICES.items() if name in _PRICED)
    agreement = results["agreement"]
    return Section(
        title="A tracked job",
        columns=["", *_COST_COLUMNS],
        rows=rows,
        notes=[
            "The job is created with a payload, started, reported on five times (stage, progress and sometimes a "
            "milestone, fields or a message) and completed with a result. The figures include the stream's work, with "
            "one invocation per record, as if changes were far apart. They exclude writes that happen once per process "
            "and day. Write units include the index write units.",
            f"Dollars are per million jobs at list price ({PRICE_LIST}). Prices per million: {prices}. Lambda's "
            "compute time is excluded, because an emulator cannot measure that of AWS. "
            f"10 ms in each invocation at 256 MB would cost ${_compute(job['total']):.2f}.",
            f"The largest state row had {results['largest']['job']} bytes. "
            "Above 1,024 bytes each change costs one more unit.",
            "Units are computed from the items by DynamoDB's rules. The emulator reported units for "
            f"{agreement['same'] + agreement['different']} writes and reads of one item, and {agreement['different']} "
            "of these differed.",
        ],
    )


def _worker_job(results: Json) -> Section:
    steps = {name: _bill(bill) for name, bill in results["worker_job"].items()}
    rows = [_cost_row("**a job of a queue**", sum(steps.values(), Bill()))]
    rows += [_cost_row(f"– {_WORK[name]}", bill) for name, bill in steps.items()]
    for length in sorted(results["claims"], key=int):
        rows.append(_cost_row(f"only a claim, from a queue of {int(length):,} jobs", _bill(results["claims"][length])))
    return Section(
        title="A job of a queue",
        columns=["", *_COST_COLUMNS],
        rows=rows,
        notes=[
            "The job is created with a payload, claimed by a worker, kept by one heartbeat with progress and completed "
            "with a result. The figures include the stream's work, except in the last two rows."
        ],
    )


_WORK = {"create": "create", "claim": "claim", "heartbeat": "heartbeat", "complete": "complete"}
_STEPS = {"create": "create", "start": "start", "report": "five reports", "complete": "complete"}
_VARIANTS = {
    "side_by_side": "a job among 25 concurrent ones, in full batches of the stream",
    "progress": "a job whose reports have only progress and message",
    "more_fields": "a job with 1 KB more of fields",
}
_PRICED = {
    WRITE: "write units",
    READ: "read units",
    INVOCATION: "Lambda requests",
    HTTP: "HTTP API requests",
    "sns.requests": "SNS requests",
    SQS: "SQS requests",
    TRANSITIONS: "state transitions",
}


def _compute(bill: Json) -> float:
    return _bill(bill).invocations * 0.01 * 0.25 * GB_SECOND


def _wait(results: Json) -> Section:
    wait = results["wait"]
    poll, polls = _bill(wait["poll"]), wait["polls_in_20_s"]
    long_poll_dollars = poll.dollars() * polls + POLL_S * API_GB * GB_SECOND
    return Section(
        title="A wait on one job",
        columns=["", *_COST_COLUMNS],
        rows=[
            _cost_row("**a wait**", _wait_total(wait)),
            _cost_row("– register", _bill(wait["registered"])),
            _cost_row("– match, close, notify", _bill(wait["matched"])),
            _cost_row("each read of a long poll", poll),
        ],
        notes=[
            "The wait is registered without a long poll before its job ends, and the end meets it. The costs of the "
            "job are subtracted: the figures are what the wait adds.",
            f"A long poll of {POLL_S} s reads the wait {polls} times. With the function's memory, a million long polls "
            f"cost ${long_poll_dollars:.0f}, almost all of it for Lambda. An event on SNS or a WebSocket costs nothing "
            "while a client waits.",
        ],
    )


def _match(results: Json) -> Section:
    waits_by_count = {int(count): wait for count, wait in results["match"].items()}
    return Section(
        title="A wait among other waits",
        columns=["other waits stored", *_COST_COLUMNS],
        rows=[_cost_row(f"{count:,}", _wait_total(waits_by_count[count])) for count in sorted(waits_by_count)],
        notes=["The costs of the same wait while other waits are stored, each on a separate job."],
    )


# ---------------------------------------------------------------- Runs


def _lives(results: Json) -> tuple[runs.RunLife, runs.RunLife]:
    """Return the smallest and the largest measured run."""
    lives = results["runs"]["lives"]
    few, *_, many = [
        runs.RunLife(
            jobs=int(jobs),
            total=_bill(lives[jobs]["total"]),
            by_step={name: _bill(bill) for name, bill in lives[jobs]["by_step"].items()},
            by_function={name: _bill(bill) for name, bill in lives[jobs]["by_function"].items()},
        )
        for jobs in sorted(lives, key=int)
    ]
    return few, many


def _cost_per_job(results: Json) -> Bill:
    few, many = _lives(results)
    return runs.extra_per_job(few.total, many.total, many.jobs - few.jobs)


def _fixed_run_cost(results: Json) -> Bill:
    few, _ = _lives(results)
    return few.total - runs.scaled(_cost_per_job(results), few.jobs)


def _run_row(name: str, bill: Bill) -> list[str]:
    *units, dynamodb, everything = _cost_row(name, bill)
    return [*units, _number(bill[TRANSITIONS]), dynamodb, everything]


def _run(results: Json) -> Section:
    few, many = _lives(results)
    more = many.jobs - few.jobs
    rows = [_run_row("**a job of a run**", _cost_per_job(results))]
    rows += [
        _run_row(f"– {_RUN_STEPS[name]}", runs.extra_per_job(few.by_step[name], bill, more))
        for name, bill in many.by_step.items()
    ]
    rows += [
        _run_row(f"by the {name}", runs.extra_per_job(few.by_function[name], bill, more))
        for name, bill in many.by_function.items()
    ]
    rows += [_run_row("additional costs of a payload", _bill(results["runs"]["payload"]))]
    rows += [_run_row("**a run without its jobs**", _fixed_run_cost(results))]
    rows += [
        _run_row(f"a run of {int(jobs):,} jobs, in total", _bill(life["total"]))
        for jobs, life in results["runs"]["lives"].items()
    ]
    return Section(
        title="A workflow run",
        columns=["", *_COST_COLUMNS[:-2], "transitions", *_COST_COLUMNS[-2:]],
        rows=rows,
        notes=[
            "The graph is a fan-out and a fan-in: one job, its successors, and one job after all of those. One request "
            f"creates the run. Workers claim {runs.MAX_CLAIM_JOBS} jobs at a time and complete them one by one, each "
            "with a result. The figures include all consequences, with full batches of the stream (100 records). "
            f"Runs of {few.jobs:,} and of {many.jobs:,} jobs were measured. The costs per job are the difference of "
            f"the two runs divided by {more:,}. The costs of a run without its jobs are the rest of the smaller run. "
            "If changes are far apart, each causes a separate invocation: see the jobs above. Dollars are per million; "
            "Lambda's compute time is excluded, as above.",
            "Transitions are the states that the supervisor enters. Their number does not depend on the jobs. "
            "If AWS also counts the start and the end of an execution, a run costs $0.00005 more.",
        ],
    )


_RUN_STEPS = {
    "create": "create",
    "claim": "claim",
    "complete": "complete, record, release the next",
}


def _step_functions_costs(results: Json) -> Section:
    lives = results["runs"]["lives"]
    rows = []
    for jobs in RUNS_SHOWN:
        measured = lives.get(str(jobs))
        vigil_bill = (
            _bill(measured["total"])
            if measured
            else _fixed_run_cost(results) + runs.scaled(_cost_per_job(results), jobs)
        )
        rows.append(
            [
                f"{jobs:,} jobs" + ("" if measured else ", extrapolated"),
                f"{vigil_bill.write_units:,.0f}",
                f"{vigil_bill[TRANSITIONS]:,.0f}",
                _dollars(vigil_bill),
                *(_dollars(other(jobs)) for other in (runs.as_inline_map, runs.as_distributed_map, runs.as_states)),
            ]
        )
    price = PRICES[TRANSITIONS] / 1e6
    token = runs.TOKEN.dollars() / 1e6
    return Section(
        title="The same graph in Step Functions alone",
        columns=[
            "a run of",
            "write units",
            "transitions",
            "**Vigil $**",
            "inline Map $",
            "distributed Map $",
            "one state per job $",
        ],
        rows=rows,
        notes=[
            "Vigil's figures are the measurements above at list price. The others are computed from list prices: "
            f"${1000 * price:g} for 1,000 transitions of Standard executions "
            "(https://aws.amazon.com/step-functions/pricing/), and for each job three SQS requests that bring its task "
            f"token to a worker (send, receive, delete; ${token:.7f}). For n jobs, an inline Map has n + 1 transitions "
            "including its own, and n tokens. A distributed Map has n – 2 transitions more, if the start of each child "
            "execution counts as one. One state per job has n + 1 transitions including that of the Parallel state, "
            "and n tokens. "
            "Vigil's figures include retries (AWS counts them as transitions) and the storage of payloads, results, "
            "leases, statistics and events. The other figures exclude them.",
            "An inline Map runs at most 40 iterations at once, and the history of an execution has at most 25,000 "
            "events, of which a task that waits for its token takes six. 10,000 jobs therefore fit neither into an "
            "inline Map nor into one state per job. "
            "https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html",
        ],
    )


def _dollars(bill: Bill) -> str:
    return f"{bill.dollars() / 1e6:.5f}"


def _hop(results: Json) -> Section:
    hops = results["runs"]["hops"]
    native = hops["native"]

    def row(name: str, kind: str, *, compared: bool) -> list[str]:
        spread = hops[kind]
        ratios = [
            f"{spread[percentile] / native[percentile]:.2f}" if compared else ""
            for percentile in ("median_ms", "p95_ms")
        ]
        return [name, str(spread["samples"]), f"{spread['median_ms']:.1f}", f"{spread['p95_ms']:.1f}", *ratios]

    return Section(
        title="From a completion to the next job",
        columns=["", "samples", "median ms", "p95 ms", "median ÷ native", "p95 ÷ native"],
        rows=[
            row("Step Functions alone: return of a Lambda task → start of the next function", "native", compared=True),
            row(
                "Step Functions alone: answer with a task token → start of the next function",
                "native_outside",
                compared=True,
            ),
            row("Vigil: request `POST …/complete` → the next job is pending", "release", compared=True),
            row("Vigil: request `POST …/complete` → answer", "answered", compared=False),
        ],
        notes=[
            "The samples are taken in turn on one local cloud. Vigil's hop begins with a client's HTTP request, "
            "including authorizer and function, and then passes through the stream. The native hop stays within Step "
            "Functions, or begins with a request to it. "
            f"{results['runs']['load']}. The emulator, the functions and all other programs share two processors."
        ],
    )


# ---------------------------------------------------------------- Latency


def _latency(results: Json) -> Section:
    latency = results["latency"]
    baseline = latency["baseline"]

    def row(name: str, kind: str, *, compared: bool) -> list[str]:
        spread = latency[kind]
        ratios = [
            f"{spread[percentile] / baseline[percentile]:.2f}" if compared else ""
            for percentile in ("median_ms", "p95_ms")
        ]
        return [name, str(spread["samples"]), f"{spread['median_ms']:.1f}", f"{spread['p95_ms']:.1f}", *ratios]

    return Section(
        title="From a change to a WebSocket",
        columns=["", "samples", "median ms", "p95 ms", "median ÷ baseline", "p95 ÷ baseline"],
        rows=[
            row("baseline: row → stream → function → frame", "baseline", compared=True),
            row("change of a job → event of its subscription", "job", compared=True),
            row("change of a job → end of a wait for it", "wait", compared=True),
            row("end of a mutex owner → the first queued job is ready", "mutex_handover", compared=True),
            row("end of a job → its dependent is ready", "release", compared=True),
            row("PATCH request → event of the job", "job_by_http", compared=False),
            row("PATCH request → end of the wait", "wait_by_http", compared=False),
            row("PATCH request → answer", "patch", compared=False),
        ],
        notes=[
            "The samples are taken in turn on one local cloud. The first five begin when the same client sends the "
            "write of the row, and end with the frame on the same WebSocket. The baseline is a table, its stream and a "
            "function that sends the text of a row to the connection that the row names. The end of a wait passes "
            "through the stream twice: the job's change, then the wait's. So does a job that becomes ready. "
            "The emulator, the functions and all other programs share one processor, so the multiples mean more than "
            "the milliseconds. Lambda polls a stream four times per second, which adds up to 250 ms to either path: "
            "https://docs.aws.amazon.com/lambda/latest/dg/with-ddb.html",
        ],
    )


def _imports(results: Json) -> Section:
    return Section(
        title="Import time of a function",
        columns=[
            "function",
            "handler ms",
            "of these at the first event",
            "its libraries ms",
            "Vigil's own ms",
            "with bytecode ms",
        ],
        rows=[
            [
                name,
                f"{times['handler']:.0f}",
                f"{times['late']:.0f}",
                f"{times['floor']:.0f}",
                f"{times['handler'] - times['floor']:.0f}",
                f"{times['with_bytecode']:.0f}",
            ]
            for name, times in sorted(results["imports"].items())
        ],
        notes=[
            "Milliseconds of processor time, as medians of fresh processes, from the built layer (boto3 is part of the "
            "runtime and has bytecode). A built layer contains no bytecode: each cold start compiles its modules.",
        ],
    )


def _idle(results: Json) -> Section:
    lines = results["idle"]
    total = sum(line["dollars"] for line in lines)
    return Section(
        title="An idle month",
        columns=["", "per month", "", "$", "basis"],
        rows=[
            *(
                [
                    line["label"],
                    f"{line['quantity']:,.3g}" if line["quantity"] < 1 else f"{line['quantity']:,.0f}",
                    line["unit"],
                    f"{line['dollars']:.2f}",
                    line["basis"],
                ]
                for line in lines
            ),
            ["**total**", "", "", f"{total:.2f}", ""],
        ],
        notes=[
            "The costs are computed from one measured idle minute at list prices, without AWS's free tier. In an "
            "account with little other use, the free tier covers almost all of them.",
        ],
    )


def _bill(quantities: Json) -> Bill:
    return Bill(dict(quantities))


def _wait_total(wait: Json) -> Bill:
    return _bill(wait["registered"]) + _bill(wait["matched"])


def _differences(one: Json, other: Json) -> int:
    difference = _wait_total(one) - _wait_total(other)
    return len(difference.quantities)


def _count_differences(one: Json, other: Json) -> int:
    return len((_bill(one) - _bill(other)).quantities)


def _number(amount: float) -> str:
    return f"{amount:.2f}".rstrip("0").rstrip(".")
