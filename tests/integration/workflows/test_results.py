"""Results of any number and size: each reader sees the exact data, a mark, or a failure that names the limit."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.runs import RunWorld
from tests.support.world import NAMESPACE
from vigil_core.domain.exact_json import dumps, loads
from vigil_core.domain.jobs.dependency_results import (
    BYTES_LIMIT,
    DEPENDENCIES_LIMIT,
    RESULT_TOO_LARGE,
    RESULT_UNAVAILABLE,
)
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.gateways.outbound_http import HttpResponse
from vigil_core.services.executors import dispatch
from vigil_core.services.executors.call_http import call_target
from vigil_core.services.jobs import dependency_results
from vigil_core.services.jobs.dependency_results import (
    dependency_results_json,
    load_claimed_results,
    load_inline_results,
    load_results_page,
)
from vigil_core.store import keys
from vigil_core.store.jobs import payloads
from vigil_core.store.workflows import runs
from vigil_tasks.dependencies import Dependencies

LIMITS = {
    "MAX_INLINE_DEPENDENCIES": 4,
    "MAX_PAGE_BYTES": 500,
    "MAX_EXPRESSION_DEPENDENCIES": 6,
    "MAX_EXPRESSION_BYTES": 1_500,
    "JOBS_PER_READ": 3,
}
INLINE_BYTES, ROW_BYTES = 400, 300
"""Small limits in the ratio of the true ones: a row is smaller than a page, and a page than an expression."""
SIZES = (12, 150, ROW_BYTES + 1, INLINE_BYTES, 700, 1_600)
CASES = [
    (seed, count, uploads)
    for seed, (count, uploads) in enumerate([(1, False), (4, False), (5, True), (6, False), (7, False), (3, True)] * 2)
]


class HttpTargets:
    """HTTP targets that record the request of each URL."""

    def __init__(self) -> None:
        self.bodies: dict[str, Any] = {}

    def request(self, method: str, url: str, *, body: bytes | None, **_: Any) -> HttpResponse:
        self.bodies[url] = None if body is None else loads(body)
        return HttpResponse(status=200, headers={}, body=b"")


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in LIMITS.items():
        monkeypatch.setattr(dependency_results, name, limit)
    monkeypatch.setattr(payloads, "MAX_ROW_BYTES", ROW_BYTES)
    monkeypatch.setattr(payloads, "RESULT_ROWS_PER_READ", 2)
    monkeypatch.setattr(runs, "MAX_ROW_BYTES", ROW_BYTES)
    monkeypatch.setattr(dispatch, "MAX_INLINE_JOIN", 4)
    load = dependency_results.load_inline_results
    monkeypatch.setattr(dispatch, "load_inline_results", lambda ctx, job: load(ctx, job, max_bytes=INLINE_BYTES))


def define(world: RunWorld, name: str, executor: Any, target: Any) -> None:
    now = world.ctx.now()
    job_type = JobType(
        namespace=NAMESPACE, name=name, executor=executor, queue="default", stages=("submit", "complete"),
        defaults={}, payload_schema=None, description=None, created_at=now, updated_at=now, target=target,
    )  # fmt: skip
    world.ctx.job_types.store_target(job_type)
    world.ctx.job_types.save(None, job_type)


def result_of_size(number: int, size: int) -> dict[str, Any]:
    empty = len(dumps({"i": number, "x": ""}))
    return {"i": number, "x": "x" * max(0, size - empty)}


def finish_all(world: RunWorld, results: Mapping[str, Any], uploaded: frozenset[str]) -> None:
    """Complete each source, and leave every other job to its executor or its worker."""
    world.run_until_idle()
    while job := world.claim("sources"):
        result = results[str(job.name)]
        assert job.lease is not None
        if job.name in uploaded:
            reference = world.ctx.new_id()
            world.objects.put(keys.upload_name(NAMESPACE, reference), dumps(result), retention_class="open")
            world.complete(job.job_id, result_upload=reference, lease_token=job.lease.token)
        else:
            world.complete(job.job_id, result=result, lease_token=job.lease.token)
        world.run_until_idle()


def result_text(world: RunWorld, job: Job) -> Any:
    text, _ = stored_text(world, world.ctx.jobs.payloads(job, payload=False))
    return None if text is None else loads(text)


def stored_text(world: RunWorld, stored: Any) -> tuple[str | None, str | None]:
    """Return a result as JSON text, wherever it is."""
    if stored.result_url is None:
        return stored.result, None
    return world.objects.get(stored.result_url.removeprefix("https://objects/")), stored.result_url


def as_worker_sees(world: RunWorld, job: Job, document: Mapping[str, Any]) -> Dependencies:
    """Return the dependencies as the worker or the Lambda function of a job sees them."""

    def fetch_all() -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        start: int | None = 0
        while start is not None:
            page, start = load_results_page(world.ctx, job, start=start, page_size=3)
            entries += [{"name": name, **entry} for name, entry in dependency_results_json(page).items()]
        return entries

    def fetch_result(job_id: str) -> Any:
        found = world.ctx.jobs.find(NAMESPACE, job_id)
        assert found is not None
        return result_text(world, found)

    return Dependencies(
        document["dependencies"],
        is_complete=not document["dependencies_truncated"],
        fetch_all=fetch_all,
        fetch_result=fetch_result,
    )


def check_inline(document: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Check that a claim or an event contains exact data, and marks everything that it leaves out."""
    shown = document["dependencies"]
    assert list(shown) == list(results)[: LIMITS["MAX_INLINE_DEPENDENCIES"]]
    for name, entry in shown.items():
        assert (entry["result"], entry["truncated"]) in ((results[name], False), (None, True)), name
    leaves_out = len(shown) < len(results) or any(entry["truncated"] for entry in shown.values())
    assert document["dependencies_truncated"] == leaves_out


def limit_of(results: Mapping[str, Any]) -> str | None:
    """Return the limit that prevents an expression over all results."""
    if len(results) > LIMITS["MAX_EXPRESSION_DEPENDENCIES"]:
        return DEPENDENCIES_LIMIT
    too_large = sum(len(dumps(result)) for result in results.values()) > LIMITS["MAX_EXPRESSION_BYTES"]
    return BYTES_LIMIT if too_large else None


def assert_refused(job: Job, limit: str) -> None:
    assert job.error is not None, job.status
    assert (job.status, job.error.code) == ("failed", RESULT_TOO_LARGE)
    assert limit in job.error.message


@pytest.mark.parametrize(("seed", "count", "has_uploads"), CASES)
def test_every_reader_sees_exact_data_or_a_mark_or_fails(
    world: RunWorld, seed: int, count: int, has_uploads: bool
) -> None:
    draw = random.Random(seed)
    largest = SIZES if seed % 2 else SIZES[:3]
    names = [f"t{number}" for number in range(count)]
    results = {name: result_of_size(number, draw.choice(largest)) for number, name in enumerate(names)}
    uploaded = frozenset(name for name in names if has_uploads and draw.random() < 0.5)
    define(world, "function", "lambda", {"function": "f"})
    define(world, "all", "http", {"url": "https://a.example/all", "body": "{{dependencies}}"})
    define(world, "one", "http", {"url": "https://a.example/one", "body": f"{{{{dependencies.{names[-1]}.result.i}}}}"})
    readers: dict[str, dict[str, Any]] = {
        "worker": {},
        "reads_all": {"condition": f"length(keys(@)) > `{count}`"},
        "reads_one": {"condition": f"{names[-1]}.result.i == `{count - 1}`"},
        "join": {"executor": "join"},
        "race": {"executor": "join", "trigger_rule": "one_success"},
        "function": {}, "all": {}, "one": {},
    }  # fmt: skip
    run = world.run(
        *({"name": name, "queue": "sources"} for name in names),
        *({"name": name, "depends_on": names, **members} for name, members in readers.items()),
        failure_policy="continue_on_failure",
    )
    finish_all(world, results, uploaded)
    world.pass_time(1)
    targets = HttpTargets()
    for message in list(world.executors.calls):
        call_target(world.ctx, targets, None, message)  # type: ignore[arg-type]

    # Workers and functions
    worker = world.at(run, "worker")
    inline = load_inline_results(world.ctx, worker, max_bytes=INLINE_BYTES)
    claim = {"dependencies": dependency_results_json(inline.results), "dependencies_truncated": inline.truncated}
    ((_, event),) = world.executors.invocations
    for job, document in ((worker, claim), (world.at(run, "function"), event)):
        check_inline(document, results)
        seen = as_worker_sees(world, job, document)
        assert seen.status(names[-1]) == "completed"
        assert {name: entry["result"] for name, entry in seen.items()} == results
        assert (len(seen), names[-1] in seen, "other" in seen) == (count, True, False)

    # Readers of all results
    limit = limit_of(results)
    if limit is None:
        assert world.at(run, "reads_all").status == "pending"
        assert result_text(world, world.at(run, "join")) == results
        body = targets.bodies["https://a.example/all"]
        assert [entry["result"] for entry in body] == list(results.values())
    else:
        for name in ("reads_all", "join", "all"):
            assert_refused(world.at(run, name), limit)
        assert "https://a.example/all" not in targets.bodies

    # Readers of one result
    if len(dumps(results[names[-1]])) <= LIMITS["MAX_EXPRESSION_BYTES"]:
        assert world.at(run, "reads_one").status == "pending"
        assert targets.bodies["https://a.example/one"] == count - 1
    else:
        assert_refused(world.at(run, "reads_one"), BYTES_LIMIT)
        assert_refused(world.at(run, "one"), BYTES_LIMIT)
    assert result_text(world, world.at(run, "race")) in results.values(), "a result that is passed on has no limit"


@pytest.mark.parametrize("size", [12, 150, 290])
def test_jobs_of_one_claim_share_the_size_of_its_answer(
    world: RunWorld, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(dependency_results, "MAX_INLINE_BYTES", INLINE_BYTES)
    monkeypatch.setattr(dependency_results, "MAX_CLAIM_BYTES", 600)
    names = ["a", "b"]
    run = world.run(
        *({"name": name, "queue": "sources"} for name in names),
        *({"name": f"job{number}", "depends_on": names} for number in range(4)),
    )
    results = {name: result_of_size(number, size) for number, name in enumerate(names)}
    finish_all(world, results, frozenset())
    claimed = load_claimed_results(world.ctx, [world.at(run, f"job{number}") for number in range(4)])
    texts = [result.result for inline in claimed for result in inline.results if result.result is not None]
    assert sum(map(len, texts)) <= 600
    assert len(texts) == min(8, 600 // size if size < 200 else 2)
    for inline in claimed:
        shown = dependency_results_json(inline.results)
        check_inline({"dependencies": shown, "dependencies_truncated": inline.truncated}, results)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("output", [None, "last.result"])
@pytest.mark.parametrize("is_upload", [False, True])
def test_output_that_passes_on_a_result_has_no_limit(
    world: RunWorld, size: int, output: str | None, is_upload: bool
) -> None:
    result = result_of_size(0, size)
    rest = {} if output is None else {"output": output}
    run = world.run({"name": "last", "queue": "sources"}, **rest)
    finish_all(world, {"last": result}, frozenset({"last"} if is_upload else ()))
    ended = world.find_run(run)
    text, url = world.ctx.runs.result(ended)
    assert (ended.status, ended.error) == ("completed", None)
    assert (url is not None) == (is_upload or size > ROW_BYTES)
    if url is not None:
        text = world.objects.get(url.removeprefix("https://objects/"))
    assert text is not None
    assert loads(text) == result


@pytest.mark.parametrize("seed", range(6))
def test_output_of_several_results_is_exact_or_fails_the_run(world: RunWorld, seed: int) -> None:
    draw = random.Random(seed)
    count = draw.choice([2, 6, 7])
    results = {f"t{number}": result_of_size(number, draw.choice(SIZES[:4])) for number in range(count)}
    paths = ", ".join(f"{name}.result" for name in results)
    run = world.run(*({"name": name, "queue": "sources"} for name in results), output=f"[{paths}]")
    finish_all(world, results, frozenset())
    ended = world.find_run(run)
    if (limit := limit_of(results)) is None:
        text, url = world.ctx.runs.result(ended)
        text = text if url is None else world.objects.get(url.removeprefix("https://objects/"))
        assert (ended.status, text and loads(text)) == ("completed", list(results.values()))
    else:
        assert ended.error is not None
        assert (ended.status, ended.error.code, ended.result_ref) == ("failed", RESULT_TOO_LARGE, None)
        assert limit in ended.error.message


@pytest.mark.parametrize("size", [12, ROW_BYTES + 1])
def test_result_that_is_gone_fails_its_readers(world: RunWorld, size: int) -> None:
    run = world.run(
        {"name": "gone", "queue": "sources"},
        {"name": "hold", "queue": "sources_too"},
        {"name": "join", "depends_on": ["gone", "hold"], "executor": "join"},
        {"name": "race", "depends_on": ["gone", "hold"], "executor": "join", "trigger_rule": "all_done"},
        {"name": "test", "depends_on": ["gone", "hold"], "condition": "gone.result.i == `1`"},
        failure_policy="continue_on_failure",
    )
    finish_all(world, {"gone": result_of_size(1, size)}, frozenset())
    gone = world.at(run, "gone")
    assert gone.result_ref is not None
    if (parsed := keys.parse_object_ref(gone.result_ref)) is None:
        world.table.batch_write(deletes=[keys.Key(keys.job(NAMESPACE, gone.job_id).pk, gone.result_ref)])
    else:
        world.objects.remove([keys.object_name(NAMESPACE, gone.job_id, parsed[1])])
    world.work(queue="sources_too")
    for name in ("join", "race", "test"):
        job = world.at(run, name)
        assert job.error is not None
        assert (job.status, job.error.code) == ("failed", RESULT_UNAVAILABLE)


def test_uploaded_result_that_is_not_json_fails_a_join(world: RunWorld) -> None:
    run = world.run({"name": "a", "queue": "sources"}, {"name": "join", "depends_on": ["a"], "executor": "join"})
    world.run_until_idle()
    job, reference = world.claim("sources"), world.ctx.new_id()
    assert job is not None
    assert job.lease is not None
    world.objects.put(keys.upload_name(NAMESPACE, reference), "{", retention_class="open")
    world.complete(job.job_id, result_upload=reference, lease_token=job.lease.token)
    world.run_until_idle()
    error = world.at(run, "join").error
    assert error is not None
    assert error.code == RESULT_UNAVAILABLE
