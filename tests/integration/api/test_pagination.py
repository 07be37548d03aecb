"""Lists over HTTP: filters, pages and page tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.support.api import Client, pages
from vigil_core import wiring
from vigil_core.domain.timestamps import from_text, to_text
from vigil_core.services import pagination
from vigil_core.services.jobs import listing


def ids(reply: Any) -> list[str]:
    return [job["job_id"] for job in reply["jobs"]]


def test_pages_list_each_job_once_newest_first(client: Client) -> None:
    job_ids = [client.create()["job_id"] for _ in range(7)]
    job_pages = pages(client, "/v1/jobs", page_size=3)
    assert [len(page["jobs"]) for page in job_pages[:2]] == [3, 3]
    assert [job_id for page in job_pages for job_id in ids(page)] == job_ids[::-1]
    assert all("payload" not in job and "result" not in job for page in job_pages for job in page["jobs"])


def test_each_list_filter_works_alone_and_combined(client: Client) -> None:
    matching_job = client.running(job_type="a", queue="q", tags=["x", "y"], correlation_id="c", trace_id="t")
    other = client.create(job_type="b")
    both = {matching_job["job_id"], other["job_id"]}
    matching = {
        "job_type": "a", "queue": "q", "tag": "x", "correlation_id": "c", "trace_id": "t", "status": "running",
    }  # fmt: skip
    for name, value in matching.items():
        assert ids(client.get("/v1/jobs", **{name: value}).ok()) == [matching_job["job_id"]], name
    assert ids(client.get("/v1/jobs", **matching).ok()) == [matching_job["job_id"]]
    assert ids(client.get("/v1/jobs", **{**matching, "tag": "z"}).ok()) == []
    assert set(ids(client.get("/v1/jobs", status=["running", "pending"]).ok())) == both
    assert set(ids(client.get("/v1/jobs", dependency_status="none").ok())) == both
    assert ids(client.get("/v1/jobs", dependency_status="waiting").ok()) == []
    assert ids(client.get("/v1/jobs", workflow_id="w").ok()) == []


def test_created_after_is_inclusive_and_created_before_exclusive(client: Client) -> None:
    job = client.create()
    at = from_text(job["created_at"])
    later, earlier = to_text(at + timedelta(milliseconds=1)), to_text(at - timedelta(milliseconds=1))
    for query, count in [
        ({"created_after": to_text(at)}, True),
        ({"created_after": later}, False),
        ({"created_before": to_text(at)}, False),
        ({"created_before": later}, True),
        ({"created_after": earlier, "created_before": later}, True),
    ]:
        assert ids(client.get("/v1/jobs", **query).ok()) == [job["job_id"]] * count, query


def test_created_after_accepts_other_time_zones(client: Client) -> None:
    job = client.create()
    assert ids(client.get("/v1/jobs?created_after=2020-01-01T00:00:00%2B02:00").ok()) == [job["job_id"]]


def test_page_ends_when_its_read_budget_is_used(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagination, "MAX_ROWS_READ", 4)
    monkeypatch.setattr(listing, "READ_BATCH", 2)
    first = client.create(trace_id="rare")
    for _ in range(9):
        client.create()
    job_pages = pages(client, "/v1/jobs", trace_id="rare")
    assert [ids(page) for page in job_pages[:2]] == [[], []]
    assert [job_id for page in job_pages for job_id in ids(page)] == [first["job_id"]]


def test_page_stays_within_the_response_size_limit(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagination, "MAX_PAGE_BYTES", 2_500)
    job_ids = [client.create(fields={"big": "x" * 1_000})["job_id"] for _ in range(5)]
    job_pages = pages(client, "/v1/jobs")
    assert [len(page["jobs"]) for page in job_pages] == [2, 2, 1]
    assert [job_id for page in job_pages for job_id in ids(page)] == job_ids[::-1]


@pytest.mark.parametrize(
    ("query", "pointers"),
    [
        ("page_size=0", ["?page_size"]),
        ("page_size=201", ["?page_size"]),
        ("page_size=-1", ["?page_size"]),
        ("page_size=1e1", ["?page_size"]),
        ("page_size=", ["?page_size"]),
        ("page_size=1&page_size=2", ["?page_size"]),
        ("status=ended", ["?status"]),
        ("status=running&status=ended", ["?status"]),
        ("status=running,pending", ["?status"]),
        ("created_after=yesterday", ["?created_after"]),
        ("created_after=2026-01-01", ["?created_after"]),
        ("created_after=2026-01-01T00:00:00", ["?created_after"]),
        ("created_before=0001-01-01T00:00:00%2B14:00", ["?created_before"]),
        ("dependency_status=maybe", ["?dependency_status"]),
        ("queue=", ["?queue"]),
        ("job_type=%00", ["?job_type"]),
        ("tag=" + "x" * 1025, ["?tag"]),
        ("page_token=x", ["?page_token"]),
        ("page_token=", ["?page_token"]),
        ("page_token=%C3%BC", ["?page_token"]),
        ("page_token=" + "A" * 1025, ["?page_token"]),
        ("nonsense=1", ["?nonsense"]),
        ("page_size=0&status=x&nonsense=1", ["?status", "?page_size", "?nonsense"]),
    ],
)
def test_invalid_query_parameters_are_named(client: Client, query: str, pointers: list[str]) -> None:
    assert sorted(client.get(f"/v1/jobs?{query}").pointers()) == sorted(pointers)


def test_page_token_is_refused_for_another_list(client: Client) -> None:
    for _ in range(3):
        client.create()
    token = client.get("/v1/jobs", page_size=1, queue="default").ok()["next_page_token"]
    refused = [
        client.get("/v1/jobs", queue="default", page_token=token[:-1] + ("A" if token[-1] != "A" else "B")),
        client.get("/v1/jobs", queue="default", page_token="B" + token[1:] if token[0] != "B" else "C" + token[1:]),
        client.get("/v1/jobs", queue="default", page_token=token + "A"),
        client.get("/v1/jobs", queue="default", page_token=token[:10]),
        client.get("/v1/jobs", queue="other", page_token=token),
        client.get("/v1/jobs", page_token=token),
        client.get("/v1/waits", page_token=token),
        Client(namespace="other").get("/v1/jobs", queue="default", page_token=token),
    ]
    for reply in refused:
        assert reply.pointers() == ["?page_token"]
    assert len(ids(client.get("/v1/jobs", queue="default", page_token=token, page_size=50).ok())) == 2


def test_page_token_is_valid_in_another_process(client: Client) -> None:
    for _ in range(3):
        client.create()
    token = client.get("/v1/jobs", page_size=1).ok()["next_page_token"]
    wiring.http_api.cache_clear()
    assert len(ids(client.get("/v1/jobs", page_token=token).ok())) == 2


def test_jobs_of_another_namespace_are_not_listed(client: Client) -> None:
    client.create()
    assert Client(namespace="other").get("/v1/jobs").ok() == {"jobs": [], "next_page_token": None}
