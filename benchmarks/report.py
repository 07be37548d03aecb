"""The results as tables: for the terminal, and as the page `docs/benchmarks.md`. Made of what the JSON holds alone."""

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
"""Memory of the function that holds answers."""
POLL_S = 20

MAX_JOB_WRITE_UNITS = 12
MAX_WAIT_WRITE_UNITS = 8
MAX_LATENCY_RATIO = 1.5
MAX_RUN_JOB_DOLLARS = 12
MAX_RUN_DOLLARS = 0.0003
RUNS_SHOWN = (10, 1_000, 10_000)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, a table and what to know of it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that must hold."""

    label: str
    limit: float
    measured: float

    @property
    def is_met(self) -> bool:
        return self.measured <= self.limit


def targets(results: Json) -> list[Target]:
    """What must hold of these results."""
    job, wait, latency = _bill(results["job"]["total"]), _wait_total(results["wait"]), results["latency"]
    ratio = latency["job"]["median_ms"] / latency["bare"]["median_ms"]
    few, many = (results["match"][count] for count in sorted(results["match"], key=int))
    short, long = (results["claims"][count] for count in sorted(results["claims"], key=int))
    return [
        Target(
            label="write units of a tracked job with five reports", limit=MAX_JOB_WRITE_UNITS, measured=job.write_units
        ),
        Target(label="write units of a wait on it", limit=MAX_WAIT_WRITE_UNITS, measured=wait.write_units),
        Target(
            label="quantities in which a match differs among few and many waits",
            limit=0,
            measured=_differences(few, many),
        ),
        Target(
            label="quantities in which a claim differs from a short and from a long queue",
            limit=0,
            measured=_count_differences(short, long),
        ),
        Target(
            label="update to WebSocket, as a multiple of the bare path",
            limit=MAX_LATENCY_RATIO,
            measured=round(ratio, 2),
        ),
        Target(
            label="dollars for a million jobs of a run",
            limit=MAX_RUN_JOB_DOLLARS,
            measured=round(_cost_per_job(results).dollars(), 2),
        ),
        Target(
            label="dollars for a run besides its jobs",
            limit=MAX_RUN_DOLLARS,
            measured=round(_fixed_run_cost(results).dollars() / 1e6, 6),
        ),
    ]


def sections(results: Json) -> Iterator[Section]:
    """Every table, in order."""
    yield Section(
        title="What must hold",
        columns=["", "at most", "found", ""],
        rows=[
            [bar.label, f"{bar.limit:g}", f"{bar.measured:g}", "holds" if bar.is_met else "**does not hold**"]
            for bar in targets(results)
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
    """The page."""
    about = results["about"]
    lines = [
        "# Measured",
        "",
        "Made by `make bench` of `benchmarks/results/latest.json`; not to be edited by hand.",
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
    """The same in the terminal."""
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


# ---------------------------------------------------------------- costs

_COST_COLUMNS = ["requests", "read units", "write units", "of these index", "invocations", "DynamoDB $", "all $"]


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
    rows += [_cost_row("authorising a key, once in 60 s", _bill(results["authorization"]))]
    prices = ", ".join(f"{_PRICED[name]} ${price:g}" for name, price in PRICES.items() if name in _PRICED)
    agreement = results["agreement"]
    return Section(
        title="A tracked job",
        columns=["", *_COST_COLUMNS],
        rows=rows,
        notes=[
            "Created with a payload, started, reported on five times (stage, progress and now and then a milestone, "
            "fields or a message), completed with a result; the stream's work included, one invocation a record, as "
            "when changes are far apart. Left out: what is written once a process and day.",
            f"Dollars are for a million, at list price ({PRICE_LIST}), a million each: {prices}. Lambda's compute time "
            "is left out, for no emulator tells AWS's; "
            f"10 ms in each invocation at 256 MB would be ${_compute(job['total']):.2f}.",
            f"The largest state row was {results['largest']['job']} bytes: beyond 1,024 each change takes a unit more.",
            f"Units are computed from the items by DynamoDB's rules. Of {agreement['same'] + agreement['different']} "
            f"writes and reads of one item that the emulator gave units for, {agreement['different']} differed.",
        ],
    )


def _worker_job(results: Json) -> Section:
    steps = {name: _bill(bill) for name, bill in results["worker_job"].items()}
    rows = [_cost_row("**a job of a queue**", sum(steps.values(), Bill()))]
    rows += [_cost_row(f"– {_WORK[name]}", bill) for name, bill in steps.items()]
    for length in sorted(results["claims"], key=int):
        rows.append(_cost_row(f"a claim from a queue of {int(length):,}, alone", _bill(results["claims"][length])))
    return Section(
        title="A job of a queue",
        columns=["", *_COST_COLUMNS],
        rows=rows,
        notes=[
            "Created with a payload, claimed by a worker, one heartbeat, completed with a result; the stream's work "
            "included, but for the claims in the last two rows."
        ],
    )


_WORK = {"create": "create", "claim": "claim", "heartbeat": "a heartbeat", "complete": "complete"}
_STEPS = {"create": "create", "start": "start", "report": "five reports", "complete": "complete"}
_VARIANTS = {
    "side_by_side": "a job among 25 side by side, in batches of the stream",
    "progress": "a job whose reports are progress and message alone",
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
    look, looks = _bill(wait["look"]), wait["looks_in_20_s"]
    held = look.dollars() * looks + POLL_S * API_GB * GB_SECOND
    return Section(
        title="A wait on one job",
        columns=["", *_COST_COLUMNS],
        rows=[
            _cost_row("**a wait**", _wait_total(wait)),
            _cost_row("– register", _bill(wait["registered"])),
            _cost_row("– match, close, announce", _bill(wait["matched"])),
            _cost_row("each look while it is held", look),
        ],
        notes=[
            "Registered without a hold before its job ends, met by that end. The job's own costs are taken off: what "
            "is left is what the wait adds.",
            f"An answer held for the whole {POLL_S} s looks {looks} times. With the function's memory for so long a "
            f"million of them are ${held:.0f}, nearly all of it Lambda's; hearing of the end on SNS or a WebSocket "
            "costs nothing while waiting.",
        ],
    )


def _match(results: Json) -> Section:
    waits_by_count = {int(count): wait for count, wait in results["match"].items()}
    return Section(
        title="A wait among others",
        columns=["other waits stored", *_COST_COLUMNS],
        rows=[_cost_row(f"{count:,}", _wait_total(waits_by_count[count])) for count in sorted(waits_by_count)],
        notes=["The same wait's whole life, while so many others are stored, each on a job of its own."],
    )


# ---------------------------------------------------------------- runs


def _lives(results: Json) -> tuple[runs.RunLife, runs.RunLife]:
    """The smallest run and the largest that were measured."""
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
    rows += [_run_row("a payload of a job's own, besides", _bill(results["runs"]["payload"]))]
    rows += [_run_row("**a run besides its jobs**", _fixed_run_cost(results))]
    rows += [
        _run_row(f"a run of {int(jobs):,} jobs, all of it", _bill(life["total"]))
        for jobs, life in results["runs"]["lives"].items()
    ]
    return Section(
        title="A run of a workflow",
        columns=["", *_COST_COLUMNS[:-2], "transitions", *_COST_COLUMNS[-2:]],
        rows=rows,
        notes=[
            "One job, all but two of the rest after it, one after those: created in one request, claimed by workers "
            f"{runs.MAX_CLAIM_JOBS} at a time, completed one by one, each with a result; everything included that "
            f"follows, in batches of the stream as full as they can be (100 records). Measured: runs of {few.jobs:,} "
            f"and of {many.jobs:,} jobs. What a job takes is their difference by {more:,}, what a run takes besides "
            "is what is left of the smaller one. Where changes trickle, each is an invocation of its own: see the jobs "
            "above. Dollars are for a million of each; Lambda's compute time is left out, as above.",
            "Transitions are states entered by the supervisor: no run has more because it has more jobs. Were the "
            "start and the end of an execution counted too, it would be $0.00005 a run more.",
        ],
    )


_RUN_STEPS = {
    "create": "create",
    "claim": "claim",
    "complete": "complete, note, release the next",
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
            "a state each $",
        ],
        rows=rows,
        notes=[
            "Vigil's are the measurements above, at list price; the others are computed from list prices: "
            f"${1000 * price:g} for 1,000 transitions of Standard executions "
            "(https://aws.amazon.com/step-functions/pricing/), and for each job its task token's way to a worker, "
            f"three SQS requests (send, receive, delete; ${token:.7f}). For n jobs: inline Map n + 1 transitions, the "
            "Map's own among them, and n tokens; distributed Map as many and n – 2 more, for the start of each child "
            "execution is taken to count as one; a state for each job n + 1 transitions, the Parallel state's among "
            "them, and n tokens. "
            "Retries, which AWS counts as transitions, and whatever would store payloads, results, leases, statistics "
            "and events are left out of the others, and are in Vigil's.",
            "An inline Map runs at most 40 iterations at once, and an execution's history ends after 25,000 events, of "
            "which a task that waits for its token takes six: 10,000 jobs fit neither an inline Map nor states "
            "of their own. https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html",
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
            row(
                "Step Functions alone: a Lambda task returns → the next one's function begins", "native", compared=True
            ),
            row(
                "the same, its first task's token sent back → the next one's function begins",
                "native_outside",
                compared=True,
            ),
            row("`POST …/complete` sent → the next job of the chain is pending", "release", compared=True),
            row("`POST …/complete` sent → answered", "answered", compared=False),
        ],
        notes=[
            "On one local stack, in turn. Vigil's hop begins with a client's HTTP request, authorizer and function "
            "included, and then takes the stream; the native one stays inside of Step Functions, or begins with a "
            "request to it. "
            f"{results['runs']['busy']}. The emulator, the functions and whatever else runs share two processors."
        ],
    )


# ---------------------------------------------------------------- time


def _latency(results: Json) -> Section:
    latency = results["latency"]
    bare = latency["bare"]

    def row(name: str, kind: str, *, compared: bool) -> list[str]:
        spread = latency[kind]
        ratios = [
            f"{spread[percentile] / bare[percentile]:.2f}" if compared else "" for percentile in ("median_ms", "p95_ms")
        ]
        return [name, str(spread["samples"]), f"{spread['median_ms']:.1f}", f"{spread['p95_ms']:.1f}", *ratios]

    return Section(
        title="From a change to a WebSocket",
        columns=["", "samples", "median ms", "p95 ms", "median ÷ bare", "p95 ÷ bare"],
        rows=[
            row("bare path: row → stream → function → frame", "bare", compared=True),
            row("job changed → event of its subscription", "job", compared=True),
            row("job changed → end of a wait for it", "wait", compared=True),
            row("job with a mutex ended → the next in line is ready", "hand_over", compared=True),
            row("job ended → the one that depends on it is ready", "release", compared=True),
            row("PATCH sent → event of the job", "job_by_http", compared=False),
            row("PATCH sent → end of the wait", "wait_by_http", compared=False),
            row("PATCH sent → answered", "patch", compared=False),
        ],
        notes=[
            "All on one local stack, taken in turn. The first five begin when the row's write is sent by the same "
            "client, and end with the frame on the same WebSocket; the bare path is a table, its stream and a "
            "function that posts what it is told to whom it is told. A wait's end takes the stream twice, the job's "
            "change and then the wait's; so does the next job, which is heard to be ready. The emulator, the functions "
            "and whatever else runs share one processor, so the multiples mean more than milliseconds do. AWS looks at "
            "a stream four times a second, which adds up to 250 ms to either path: "
            "https://docs.aws.amazon.com/lambda/latest/dg/with-ddb.html",
        ],
    )


def _imports(results: Json) -> Section:
    return Section(
        title="Importing a function",
        columns=[
            "function",
            "handler ms",
            "of it at the first event",
            "its libraries ms",
            "Vigil's own ms",
            "with bytecode ms",
        ],
        rows=[
            [
                name,
                f"{found['handler']:.0f}",
                f"{found['late']:.0f}",
                f"{found['floor']:.0f}",
                f"{found['handler'] - found['floor']:.0f}",
                f"{found['with_bytecode']:.0f}",
            ]
            for name, found in sorted(results["imports"].items())
        ],
        notes=[
            "Milliseconds of processor time, medians of fresh processes, from the built layer (boto3 is the runtime's, "
            "with bytecode). A built layer holds no bytecode: each cold start compiles what it imports.",
        ],
    )


def _idle(results: Json) -> Section:
    lines = results["idle"]
    total = sum(line["dollars"] for line in lines)
    return Section(
        title="A month of nothing",
        columns=["", "a month", "", "$", "basis"],
        rows=[
            *(
                [
                    line["what"],
                    f"{line['quantity']:,.3g}" if line["quantity"] < 1 else f"{line['quantity']:,.0f}",
                    line["unit"],
                    f"{line['dollars']:.2f}",
                    line["basis"],
                ]
                for line in lines
            ),
            ["**in all**", "", "", f"{total:.2f}", ""],
        ],
        notes=[
            "Computed from one idle minute as it was measured, at list prices, without AWS's free tier, which covers "
            "nearly all of it in an account that does little else.",
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
