"""A job calls a real ChromaDB over HTTP and stores the response, by the example's own script."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.harness import Client, Key
from vigil.client import Vigil
from vigil.demo import examples
from vigil.local import Stack

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def chroma(tmp_path: Path) -> Iterator[str]:
    """Start a new ChromaDB; return its URL."""
    with examples.chroma_server(ROOT, tmp_path) as url:
        yield url


def test_http_jobs_create_fill_and_query_a_collection(
    stack: Stack, key: Key, client: Client, chroma: str, tmp_path: Path
) -> None:
    curl = tmp_path / "bin/curl"
    curl.parent.mkdir()
    curl.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/support/curl.py "$@"\n')
    curl.chmod(0o755)
    environment = {
        "PATH": f"{curl.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "VIGIL_URL": stack.api_url, "VIGIL_KEY": key.token,
    }  # fmt: skip
    script = [str(ROOT / "examples/chromadb/collection.sh"), chroma]
    for _ in range(2):  # Every job can be repeated.
        ran = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=100, check=False)
        assert (ran.returncode, ran.stdout) == (0, '"pear","apple"\n'), ran.stderr
    created, filled, found = (
        client.get(f"/v1/jobs?job_type={name}")["jobs"][0]["job_id"]
        for name in ("create_collection", "add_documents", "query_documents")
    )
    collection = client.get(f"/v1/jobs/{created}/result")["result"]["body"]
    metadata = {"created_by": "vigil", "description": "What grows on trees"}
    assert (collection["name"], collection["metadata"]) == ("fruit", metadata)
    bare = {"job_type": "create_collection", "payload": {"name": "bare"}}
    assert client.post("/v1/jobs", bare, prefer="wait=20")["status"] == "completed"
    assert client.get(f"/v1/jobs/{filled}")["depends_on"] == [created]
    answer = client.get(f"/v1/jobs/{found}/result")["result"]
    assert (answer["status"], answer["body"]["documents"]) == (200, [["A pear", "An apple"]])


def test_request_refused_by_chromadb_fails_the_job_with_its_http_code(client: Client, chroma: str) -> None:
    target = {"url": f"{chroma}/api/v2/tenants/default_tenant/databases/default_database/collections", "body": {}}
    client.call("PUT", "/v1/job-types/create_nothing", {"executor": "http", "target": target})
    job = client.post("/v1/jobs", {"job_type": "create_nothing", "retry": {}}, prefer="wait=20")
    assert job["status"] == "failed"
    assert job["error"]["code"].startswith("HTTP_4")


def test_chromadb_demo_finds_the_documents(stack: Stack, key: Key, tracker: Vigil, chroma: str) -> None:
    examples.define_job_types(ROOT, examples.CHROMADB, examples.REQUESTS, stack.api_url, key.token, server=chroma)
    assert list(examples.play_chromadb(tracker))[-1] == "query_documents has found A pear, An apple"
