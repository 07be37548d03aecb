"""The task SDK for Lambda functions, on a fake Vigil server that fails now and then."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_vigil import API_KEY, FakeVigil
from tests.support.http_target import HttpTarget, Reply
from tests.support.pages import python_session
from vigil.client import Vigil
from vigil_tasks import Cancelled, Permanent, Task, TaskError, TaskFunction, lambda_handler, task
from vigil_tasks.api import ApiKey

DEADLINE_S = 20


class Context:
    def __init__(self, left_s: float = 60) -> None:
        self._ends_at = time.monotonic() + left_s

    def get_remaining_time_in_millis(self) -> int:
        return int(1000 * (self._ends_at - time.monotonic()))


@pytest.fixture(autouse=True)
def environment(fake: FakeVigil, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIGIL_API_URL", fake.url)
    monkeypatch.setenv("VIGIL_API_KEY", API_KEY)
    monkeypatch.setattr(lambda_handler, "API_KEY", ApiKey())


def new_event(client: Vigil, lease: float = 60, **wanted: Any) -> dict[str, Any]:
    """Return the event of a new job, as Vigil builds it."""
    client.submit("resize", queue="q", **wanted)
    (job,) = client.claim("q", lease=60)
    names = ("job_id", "job_type", "name", "queue", "attempt", "payload", "fields", "tags", "lease_token")
    return {**{name: job[name] for name in names}, "lease": lease, "dependencies": {}, "payload_omitted": False}


def run(work: TaskFunction, event: dict[str, Any], left_s: float = 60) -> None:
    assert task(work)(event, Context(left_s)) is None


def test_return_value_becomes_the_result(client: Vigil, fake: FakeVigil) -> None:
    event = new_event(client, payload={"n": 21}, fields={"box": "aspen"}, name="nightly")

    def work(job: Task) -> object:
        assert (job.job_id, job.name, job.attempt) == (event["job_id"], "nightly", 1)
        job.report(stage="running", milestones=["begun"], fields={"at": 1}, message="x" * 2000)
        return {"doubled": job.payload["n"] * 2, "box": job.fields["box"]}

    run(work, event)
    job = fake.job(event["job_id"])
    assert (job["status"], job["result"]) == ("completed", {"doubled": 42, "box": "aspen"})
    assert (job["job_stage"], job["milestones"], job["fields"]["at"]) == ("complete", ["begun"], 1)
    (begun,) = fake.requests_to("POST", f"/v1/jobs/{event['job_id']}/heartbeat")
    assert begun.body == {"first": True, "lease_token": event["lease_token"]}


def test_example_function_of_the_docs_page_works(client: Vigil, fake: FakeVigil) -> None:
    (block,) = python_session((Path(__file__).parents[3] / "docs/executors.md").read_text())
    said: dict[str, Any] = {}
    exec(block.commands, said)
    event = new_event(client, payload={"of": "cat", "sizes": [64, 256]})
    assert said["handler"](event, Context()) is None
    job = fake.job(event["job_id"])
    assert (job["status"], job["result"]) == ("completed", {"made": ["cat-64.png", "cat-256.png"]})
    assert (job["milestones"], job["fields"]["count"]) == (["uploaded"], 2)


def test_payload_left_out_of_the_event_is_fetched(client: Vigil, fake: FakeVigil) -> None:
    event = {**new_event(client, payload=[1, 2]), "payload": None, "payload_omitted": True}
    run(lambda job: job.payload, event)
    assert fake.job(event["job_id"])["result"] == [1, 2]


def test_large_payload_is_downloaded_from_its_url(client: Vigil, fake: FakeVigil) -> None:
    event = {**new_event(client), "payload": None, "payload_omitted": True}
    with HttpTarget().serving() as store:
        store.replies("/large", Reply(200, {"rows": [1]}))
        fake.jobs[event["job_id"]].shown["payload_url"] = f"{store.url}/large?signature=x"
        run(lambda job: job.payload, event)
        assert "authorization" not in store.recorded[0].headers
    assert fake.job(event["job_id"])["result"] == {"rows": [1]}


def test_function_sees_every_dependency_with_its_result(client: Vigil, fake: FakeVigil) -> None:
    results = {"a": 1, "b": "x" * 30, "c": "y" * 100}
    ids = {}
    for name, result in results.items():
        ids[name] = client.submit("test").job_id
        client.start(ids[name])
        client.complete(ids[name], result)
    event = new_event(client)
    fake.depends_on[event["job_id"]] = ids
    event |= fake.inline_dependencies(event["job_id"])
    run(lambda job: {name: entry["result"] for name, entry in job.dependencies.items()}, event)
    assert fake.job(event["job_id"])["result"] == results


def test_large_result_of_a_dependency_is_downloaded_from_its_url(client: Vigil, fake: FakeVigil) -> None:
    event = new_event(client)
    entry = {"job_id": event["job_id"], "status": "completed", "job_health": "success", "result": None}
    event |= {"dependencies": {"a": {**entry, "truncated": True}}, "dependencies_truncated": True}
    answers: list[Any] = [{"result": None, "result_url": f"{fake.url}/v1/large"}, {"rows": [1]}]
    act = fake._act
    fake._act = lambda request: (200, answers.pop(0)) if request.method == "GET" else act(request)  # type: ignore[method-assign]
    run(lambda job: job.dependencies["a"]["result"], event)
    assert fake.job(event["job_id"])["result"] == {"rows": [1]}


def test_exception_fails_the_job_with_its_traceback(client: Vigil, fake: FakeVigil) -> None:
    event = new_event(client, payload={})
    run(lambda job: job.payload["nothing"], event)
    error = fake.job(event["job_id"])["error"]
    assert (error["code"], error["type"], error["message"]) == ("KeyError", "builtins.KeyError", "'nothing'")
    assert error["traceback"].splitlines()[-1] == "KeyError: 'nothing'"
    assert fake.requests_to("POST", f"/v1/jobs/{event['job_id']}/fail")[0].body["retryable"] is True


@pytest.mark.parametrize("error", [Permanent("no"), SystemExit(3), ValueError("\x00\ud800" * 3000)])
def test_any_exception_is_reported_as_failure(client: Vigil, fake: FakeVigil, error: BaseException) -> None:
    event = new_event(client)

    def work(_: Task) -> object:
        raise error

    run(work, event)
    told = fake.requests_to("POST", f"/v1/jobs/{event['job_id']}/fail")[0].body
    assert told["error"]["code"] == type(error).__name__
    assert told["retryable"] is not isinstance(error, Permanent)
    assert len(told["error"]["message"]) <= 1024


def test_result_that_is_not_json_fails_the_job(client: Vigil, fake: FakeVigil) -> None:
    event = new_event(client)
    run(lambda _: {1, 2}, event)
    assert fake.job(event["job_id"])["error"]["code"] == "TypeError"


def test_repeated_event_does_not_run_the_function_again(client: Vigil, fake: FakeVigil) -> None:
    """Note: Lambda delivers at least once, and repeats a crashed invocation."""
    event = new_event(client)
    ran: list[int] = []

    def work(job: Task) -> object:
        ran.append(1)
        run(lambda _: ran.append(2), event)  # While the task runs.
        return None

    run(work, event)
    run(work, event)
    assert ran == [1]
    assert fake.job(event["job_id"])["status"] == "completed"


def test_event_with_a_lost_lease_does_not_run_the_function(client: Vigil, fake: FakeVigil) -> None:
    event = new_event(client)
    fake.revoke_lease(event["job_id"])
    ran: list[int] = []
    run(lambda _: ran.append(1), event)
    unknown = {**event, "job_id": "0197f000-0000-7000-8000-000000000000"}
    run(lambda _: ran.append(1), unknown)
    assert ran == []


def test_result_after_a_lost_lease_is_dropped(client: Vigil, fake: FakeVigil) -> None:
    event = new_event(client, lease=1)

    def work(job: Task) -> object:
        fake.revoke_lease(event["job_id"])
        assert job.lost.wait(DEADLINE_S)
        with pytest.raises(Cancelled):
            job.report(message="still here")
        job.raise_if_cancelled()
        return None

    run(work, event)
    assert fake.requests_to("POST", f"/v1/jobs/{event['job_id']}/fail") == []


def test_heartbeats_continue_and_send_progress(client: Vigil, fake: FakeVigil) -> None:
    event = new_event(client, lease=1.5)

    def work(job: Task) -> object:
        job.progress(0.5, "half")
        fake.until(lambda: fake.job(event["job_id"])["progress"] == 0.5)
        fake.until(lambda: len(fake.requests_to("POST", f"/v1/jobs/{event['job_id']}/heartbeat")) > 4)
        with pytest.raises(ValueError, match="from 0 to 1"):
            job.progress(2)
        return "done"

    run(work, event)
    assert fake.job(event["job_id"])["message"] == "half"


def test_cancel_request_reaches_the_function_and_ends_the_job(client: Vigil, fake: FakeVigil) -> None:
    event = new_event(client, lease=1)

    def work(job: Task) -> object:
        client.cancel(event["job_id"])
        assert job.cancel_requested.wait(DEADLINE_S)
        job.raise_if_cancelled()
        return None

    run(work, event)
    job = fake.job(event["job_id"])
    assert (job["status"], job["error"]["code"]) == ("cancelled", "CANCELLED")


def test_attempt_fails_just_before_the_lambda_timeout(client: Vigil, fake: FakeVigil) -> None:
    event = new_event(client)
    stuck = threading.Event()

    def work(job: Task) -> object:
        assert job.lost.wait(DEADLINE_S)
        fake.until(lambda: fake.job(event["job_id"])["status"] == "failed")
        stuck.set()
        return "too late"

    run(work, event, left_s=lambda_handler.REPORT_MARGIN_S + 0.5)
    assert stuck.is_set()
    assert fake.job(event["job_id"])["error"]["code"] == "FUNCTION_TIMED_OUT"


def test_temporary_errors_are_retried(client: Vigil, fake: FakeVigil) -> None:
    event = new_event(client)
    fake.refuse("POST", f"/v1/jobs/{event['job_id']}/heartbeat", 503)
    fake.refuse("POST", f"/v1/jobs/{event['job_id']}/complete", 429, times=2)
    fake.drop("POST", f"/v1/jobs/{event['job_id']}/complete")
    run(lambda _: 1, event)
    assert fake.job(event["job_id"])["status"] == "completed"


def test_refused_result_fails_the_job(client: Vigil, fake: FakeVigil) -> None:
    event = new_event(client)
    fake.refuse("POST", f"/v1/jobs/{event['job_id']}/complete", 413)
    run(lambda _: 1, event)
    assert fake.job(event["job_id"])["status"] == "failed"
    assert fake.requests_to("POST", f"/v1/jobs/{event['job_id']}/fail")[0].body["retryable"] is False


def test_missing_key_raises_an_error_that_names_the_variable(client: Vigil, monkeypatch: pytest.MonkeyPatch) -> None:
    event = new_event(client)
    monkeypatch.delenv("VIGIL_API_KEY")
    with pytest.raises(TaskError, match="VIGIL_API_KEY_PARAMETER"):
        run(lambda _: 1, event)


def test_refused_key_raises_task_error(client: Vigil, fake: FakeVigil, monkeypatch: pytest.MonkeyPatch) -> None:
    event = new_event(client)
    monkeypatch.setenv("VIGIL_API_KEY", "vgl_nobody")
    with pytest.raises(TaskError):
        run(lambda _: 1, event)
