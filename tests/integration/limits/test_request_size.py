"""A request that creates too many jobs is refused as a whole."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import Client
from tests.support.table import TABLE_NAME, aws
from vigil_core import wiring


def rows() -> int:
    return int(aws("dynamodb").scan(TableName=TABLE_NAME, Select="COUNT")["Count"])


def batches(*sizes: int) -> list[Any]:
    return [{"name": f"n{number}", "job_type": "t", "batch": [0] * size} for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/jobs/bulk", {"jobs": batches(*[1_000] * 10)}),
        ("/v1/workflows", {"name": "w", "jobs": batches(*[1_000] * 10)}),
        ("/v1/workflows/validate", {"name": "w", "jobs": batches(*[1_000] * 140)}),
    ],
)
def test_request_over_10_000_jobs_writes_nothing(client: Client, path: str, body: Any) -> None:
    before = rows()
    problem = client.post(path, body).problem(422, "REQUEST_LIMIT_EXCEEDED")
    assert problem["limit"] == "jobs_per_request"
    assert "10,000" in problem["detail"]
    assert rows() == before


@pytest.mark.parametrize(("limit", "status"), [(5, 422), (6, 200), (7, 200)])
def test_override_decides_below_at_and_above_the_limit(client: Client, limit: int, status: int) -> None:
    wiring.context().limits.namespaces.set_limit(client.namespace, "jobs_per_request", limit)
    assert client.post("/v1/jobs/bulk", {"jobs": [*batches(2, 1), {"job_type": "t"}]}).status == status
    assert Client(namespace="other").post("/v1/jobs/bulk", {"jobs": batches(5, 5)}).status == 200


def test_error_of_another_kind_has_no_limit(client: Client) -> None:
    assert "limit" not in client.post("/v1/jobs", {"job_type": 5}).problem(422, "VALIDATION_FAILED")
