"""Every limit below, at and above its value, with overrides; a refused request writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.api import KEY_ID, Client
from tests.support.table import TABLE_NAME, aws
from vigil_core import wiring
from vigil_core.domain.limits import LIMIT_NAMES, LIMITS, LimitName

LIMIT = 3
NAMES = iter(range(1_000_000))


def set_limit(client: Client, name: LimitName, value: int) -> None:
    wiring.context().limits.namespaces.set_limit(client.namespace, name, value)


def rows() -> dict[tuple[str, str], Any]:
    """Return every row, without the counters, which may be written and restored."""
    items = aws("dynamodb").scan(TableName=TABLE_NAME)["Items"]
    all_rows = {(item["pk"]["S"], item["sk"]["S"]): item for item in items}
    return {key: row for key, row in all_rows.items() if not key[0].endswith("#counters")}


def jobs(count: int, **members: object) -> list[dict[str, object]]:
    return [{"job_type": "t", **members} for _ in range(count)]


def new_job(client: Client) -> Any:
    return client.post("/v1/jobs", {"job_type": "t"})


def new_wait(client: Client) -> Any:
    job_id = wiring.context().new_id()
    body = {"wait_on": {job_id: None}, "wait_options": {"allow_missing": None}}
    return client.post("/v1/waits", body, headers={"prefer": "wait=0"})


def new_queue(client: Client) -> Any:
    return client.post("/v1/jobs", {"job_type": "t", "queue": f"q{next(NAMES)}"})


def new_schedule(client: Client) -> Any:
    return client.call("PUT", f"/v1/schedules/s{next(NAMES)}", {"rate": "1 day", "job": {"job_type": "t"}})


def new_type(client: Client) -> Any:
    return client.call("PUT", f"/v1/job-types/t{next(NAMES)}", {})


def new_webhook(client: Client) -> Any:
    body = {"url": "https://hooks.example.com/", "events": ["vigil.job.failed"]}
    return client.call("PUT", f"/v1/webhooks/w{next(NAMES)}", body)


def new_upload(client: Client) -> Any:
    return client.post("/v1/uploads", {"size": 1})


CREATIONS: dict[LimitName, Callable[[Client], Any]] = {
    "open_jobs": new_job,
    "open_waits": new_wait,
    "open_waits_per_read_key": new_wait,
    "queues": new_queue,
    "schedules": new_schedule,
    "job_types": new_type,
    "webhooks": new_webhook,
    "upload_bytes_per_day": new_upload,
}
ELSEWHERE = {
    "jobs_per_request",  # test_request_size.py
    "websocket_connections",  # test_connections.py
    "websocket_connections_per_key",
    "long_polls",  # test_long_polls.py
    "requests_per_second",  # test_request_rates.py
    "executor_calls",  # the tests of executors
}


def test_matrix_has_every_limit() -> None:
    assert CREATIONS.keys() | ELSEWHERE == set(LIMIT_NAMES)


@pytest.mark.parametrize("name", CREATIONS)
def test_objects_up_to_the_limit_are_created_and_one_more_is_refused(client: Client, name: LimitName) -> None:
    creator = Client(scopes="read") if name == "open_waits_per_read_key" else client
    create = CREATIONS[name]
    set_limit(client, name, LIMIT)
    for _ in range(LIMIT):
        assert create(creator).status < 300
    before = rows()
    for _ in range(2):
        problem = create(creator)
        code = "REQUEST_LIMIT_EXCEEDED" if LIMITS[name].status == 422 else "LIMIT_EXCEEDED"
        assert problem.problem(LIMITS[name].status or 0, code)["limit"] == name
        assert ("retry-after" in problem.headers) == (LIMITS[name].status == 429)
    assert rows() == before
    assert create(Client(namespace="other", scopes=creator.scopes)).status < 300
    set_limit(client, name, LIMIT + 1)
    assert create(creator).status < 300


@pytest.mark.parametrize("name", CREATIONS)
def test_limit_of_zero_refuses_everything(client: Client, name: LimitName) -> None:
    set_limit(client, name, 0)
    creator = Client(scopes="read") if name == "open_waits_per_read_key" else client
    assert CREATIONS[name](creator).json["limit"] == name


@pytest.mark.parametrize(("open_jobs", "refused"), [(0, False), (1, False), (2, True)])
@pytest.mark.parametrize("kind", ["bulk", "run", "batch", "batches of a run"])
def test_request_over_the_open_jobs_is_refused_as_a_whole(
    client: Client, kind: str, open_jobs: int, refused: bool
) -> None:
    for _ in range(open_jobs):
        client.create()
    set_limit(client, "open_jobs", 6)
    before = rows()
    reply = {
        "bulk": lambda: client.post("/v1/jobs/bulk", {"jobs": [*jobs(2), *jobs(1, batch=[0, 0])]}),
        "run": lambda: client.post(
            "/v1/workflows", {"name": "w", "jobs": [{"name": f"n{number}"} for number in range(5)]}
        ),
        "batch": lambda: client.post("/v1/jobs", {"job_type": "t", "batch": [0] * 4}),
        "batches of a run": lambda: client.post(
            "/v1/workflows", {"name": "w", "jobs": [{"name": "a", "batch": [0] * 4}]}
        ),
    }[kind]()
    if not refused:
        assert reply.status < 300
        return
    assert reply.problem(429, "LIMIT_EXCEEDED")["limit"] == "open_jobs"
    assert rows() == before
    assert wiring.context().limits.counters.read(client.namespace).jobs == open_jobs


def test_bulk_request_over_the_queues_is_refused_as_a_whole(client: Client) -> None:
    set_limit(client, "queues", 3)
    client.create(queue="q1")
    before = rows()
    over = [{"job_type": "t", "queue": f"q{number}"} for number in range(4)]
    assert client.post("/v1/jobs/bulk", {"jobs": over}).problem(422, "REQUEST_LIMIT_EXCEEDED")["limit"] == "queues"
    run = {"name": "w", "jobs": [{"name": f"n{number}", "queue": f"q{number}"} for number in range(4)]}
    assert client.post("/v1/workflows", run).problem(422, "REQUEST_LIMIT_EXCEEDED")["limit"] == "queues"
    assert rows() == before
    assert client.post("/v1/jobs/bulk", {"jobs": over[:3]}).status == 200


def test_queue_of_a_job_type_counts(client: Client) -> None:
    client.call("PUT", "/v1/job-types/builds", {"queue": "builders"}).ok(201)
    client.create(queue="one")
    set_limit(client, "queues", 1)
    body = {"jobs": [{"job_type": "builds"}]}
    assert client.post("/v1/jobs/bulk", body).problem(422, "REQUEST_LIMIT_EXCEEDED")["limit"] == "queues"
    assert client.post("/v1/jobs", {"job_type": "builds", "queue": "one"}).status == 202


def test_refused_creations_and_repetitions_are_not_counted(client: Client) -> None:
    counters = wiring.context().limits.counters
    first = client.post("/v1/jobs", {"job_type": "t", "unique_key": "u"}, headers={"idempotency-key": "k"}).ok(202)
    assert counters.read(client.namespace).jobs == 1
    client.post("/v1/jobs", {"job_type": "t", "unique_key": "u"}, headers={"idempotency-key": "k"}).ok(202)
    client.post("/v1/jobs", {"job_type": "t", "unique_key": "u"}).ok(200)
    client.post("/v1/jobs", {"job_type": "t", "job_id": first["job_id"]}).problem(409, "JOB_CREATION_FAILED")
    taken = {"job_type": "t", "job_id": first["job_id"], "batch": [1]}
    client.post("/v1/jobs", taken).problem(409, "JOB_CREATION_FAILED")
    mixed = [{"job_type": "t"}, {"job_type": 5}, {"job_type": "t", "unique_key": "u"}]
    client.post("/v1/jobs/bulk", {"jobs": mixed}).ok()
    assert counters.read(client.namespace).jobs == 2


def test_wait_that_is_decided_at_once_is_not_counted(client: Client) -> None:
    ended = client.ended()["job_id"]
    client.post("/v1/waits", {"wait_on": {ended: None}}, headers={"prefer": "wait=0"}).ok()
    assert wiring.context().limits.counters.read(client.namespace).waits == 0
    new_wait(client).ok()
    assert wiring.context().limits.counters.read(client.namespace).waits_by_key == {KEY_ID: 1}


def test_usage_shows_every_limit(client: Client) -> None:
    client.create(queue="q")
    client.create(queue="q", batch=[1, 2])
    new_wait(client).ok()
    new_schedule(client)
    new_type(client)
    new_webhook(client)
    client.post("/v1/uploads", {"size": 1_000}).ok(201)
    set_limit(client, "webhooks", 7)
    document = Client(scopes="read").get("/v1/usage").ok()
    assert document["namespace"] == client.namespace
    shown = {limit["name"]: limit for limit in document["limits"]}
    assert tuple(shown) == LIMIT_NAMES
    used = {name: limit["used"] for name, limit in shown.items() if limit["used"]}
    assert used == {
        "open_jobs": 4, "open_waits": 1, "open_waits_per_read_key": 1, "queues": 1, "schedules": 1, "job_types": 1,
        "webhooks": 1, "upload_bytes_per_day": 1_000,
    }  # fmt: skip
    assert (shown["webhooks"]["limit"], shown["webhooks"]["overridden"]) == (7, True)
    assert (shown["queues"]["limit"], shown["queues"]["overridden"]) == (1_000, False)
    assert shown["jobs_per_request"]["used"] is None
    nothing = Client(namespace="other").get("/v1/usage").ok()["limits"]
    assert not any(limit["used"] for limit in nothing)
