"""`vigil doctor` on a stack: it finds nothing after normal work, and it finds and repairs stuck entities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Aws, Client, Key, eventually, vigil
from vigil_core.domain.exact_json import loads
from vigil_core.store import keys


def found(directory: Path, key: Key, *options: str) -> list[Any]:
    """Return the doctor's findings about one tenant. Its exit code covers all tenants."""
    ran = vigil(directory, "doctor", "--json", *options)
    answer: Any = loads(ran.stdout) if ran.stdout else ran.stderr
    assert ran.returncode == int(any(not finding["repaired"] for finding in answer["findings"])), ran.stderr
    return [finding for finding in answer["findings"] if finding["namespace"] == key.namespace]


@pytest.mark.smoke
def test_doctor_finds_nothing_after_normal_work(client: Client, key: Key, directory: Path) -> None:
    jobs = [client.running() for _ in range(3)]
    wait = client.wait(dict.fromkeys(jobs))
    after = client.job(depends_on=jobs)
    for job_id in jobs:
        client.complete(job_id)
    assert client.ended(wait)["status"] == "met"
    eventually(lambda: client.get(f"/v1/jobs/{after}")["status"] == "pending", within_s=30, what="the job released")
    assert found(directory, key) == []
    assert "queues" in vigil(directory, "doctor").stdout


def test_doctor_finds_and_repairs_a_job_missing_from_its_queue(
    aws: Aws, client: Client, key: Key, directory: Path
) -> None:
    job_id = client.job()
    claim = {"worker": "w", "max": 1}
    row = keys.job(key.namespace, job_id)
    aws.dynamodb.update_item(
        TableName=aws.stack.table_name,
        Key={"pk": {"S": row.pk}, "sk": {"S": row.sk}},
        UpdateExpression="REMOVE g1pk, g1sk SET created_at = :long_ago",
        ExpressionAttributeValues={":long_ago": {"S": "2026-11-01T00:00:00.000Z"}},
    )
    assert client.post("/v1/queues/default/claim", claim)["jobs"] == []
    (finding,) = found(directory, key)
    assert (finding["kind"], finding["id"], finding["repaired"]) == ("job_misplaced", job_id, False)
    (repaired,) = found(directory, key, "--fix")
    assert (repaired["repaired"], repaired["outcome"]) == (True, "done")
    assert found(directory, key) == []
    assert [job["job_id"] for job in client.post("/v1/queues/default/claim", claim)["jobs"]] == [job_id]
