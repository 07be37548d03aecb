"""The examples of `examples/` as parts of the demo: each yields its progress, line by line."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from vigil.client import Vigil, VigilError
from vigil.demo.play import PlayFailed
from vigil.local import sam
from vigil.local.stack import Stack, client_config, session

COLONY = Path("examples/colony")
OPERATIONS = ("cache_refresh", "cache_upload", "search_subject")
CHROMADB = Path("examples/chromadb")
REQUESTS = ("create_collection", "add_documents", "query_documents")
CHROMA_HOST = "127.0.0.1"
_CHROMA_PYTHON = Path(".venv/chroma/bin/python")
_RUN_CHROMA = "import sys, chromadb_rust_bindings; chromadb_rust_bindings.cli(['chroma', 'run', *sys.argv[1:]])"
_TIMEOUT_S = 60


def deploy_colony(root: Path, stack: Stack, directory: Path, *, key: str, tags: dict[str, str]) -> None:
    """Deploy the function of `examples/colony` next to Vigil, with an API key.

    Raises:
        LocalError: The deployment failed.
    """
    aws, bucket = session(), "colony-artifacts"
    options: Any = {"endpoint_url": stack.endpoint_url, "config": client_config()}
    ssm = aws.client("ssm", **options)
    ssm.put_parameter(Name="/colony/vigil-key", Value=key, Type="SecureString", Overwrite=True)
    aws.client("s3", **options).create_bucket(Bucket=bucket)
    # The layer of Vigil's own functions contains `vigil_tasks`.
    layers = aws.client("lambda", **options).get_function_configuration(FunctionName=stack.admin_function)["Layers"]
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("template.yaml", "operations.py"):
        (directory / name).write_bytes((root / COLONY / name).read_bytes())
    sam.deploy(
        root,
        directory / "template.yaml",
        directory / "deploy.log",
        endpoint_url=stack.endpoint_url,
        stack_name="colony",
        bucket=bucket,
        parameters={"VigilApiUrl": stack.api_url, "VigilLayer": layers[0]["Arn"]},
        tags=tags,
    )


def define_job_types(
    root: Path, folder: Path, names: tuple[str, ...], api_url: str, api_key: str, *, server: str = ""
) -> None:
    """Create or replace the job types of an example. `server` replaces the address of its server.

    Raises:
        PlayFailed: The API refused a job type.
    """
    with httpx.Client(base_url=api_url, headers={"authorization": f"Bearer {api_key}"}, trust_env=False) as http:
        for name in names:
            text = (root / folder / f"{name}.json").read_text(encoding="utf-8")
            response = http.put(f"/v1/job-types/{name}", content=text.replace("http://localhost:8000", server))
            if response.is_error:
                raise PlayFailed(f"The API refused job type {name} with {response.status_code}: {response.text}")


def play_colony(client: Vigil) -> Iterator[str]:
    """Run operations that share a mutex, and yield their progress.

    Raises:
        PlayFailed: An answer is not the expected one.
    """
    refresh = _submit_when_free(client, "cache_refresh", {"depth": 4})
    yield "cache_refresh has started"
    try:
        client.submit("search_subject", {"subject": "ada"})
        raise PlayFailed("Two mutually exclusive operations run at the same time.")
    except VigilError as refusal:
        _expect(refusal.code, "JOB_CREATION_FAILED")
        yield f"search_subject is refused: {refusal.message}"
    last_message = ""
    while not client.is_complete(refresh):
        job = client.job(refresh)
        if job["progress"] and job["message"] != last_message:
            last_message = job["message"]
            yield f"cache_refresh: {float(job['progress']):.0%}, {last_message}"
        time.sleep(0.1)
    yield f"cache_refresh has completed: {_expect(client.result(refresh)['message'], 'Cache refreshed successfully')}"
    search = _submit_when_free(client, "search_subject", {"subject": "ada"})
    client.await_completion(search, _TIMEOUT_S)
    subjects = _expect(client.result(search)["found"], ["Notes on the engine", "Letters"])
    yield f"search_subject is accepted now and has found {', '.join(subjects)}"


def play_chromadb(client: Vigil) -> Iterator[str]:
    """Create, fill and query a collection over ChromaDB's API, and yield the progress.

    Raises:
        PlayFailed: An answer is not the expected one.
    """
    collection = client.submit("create_collection", {"name": "fruit", "description": "What grows on trees"}).job_id
    documents = {
        "ids": ["apple", "boat", "pear"],
        "documents": ["An apple", "A boat", "A pear"],
        "embeddings": [[1, 0.1], [0, 1], [0.99, 0]],
    }
    add_job_id = client.submit("add_documents", documents, depends_on=[collection]).job_id
    query = {"embeddings": [[1, 0]], "most": 2}
    query_job_id = client.submit("query_documents", query, depends_on=[collection, add_job_id]).job_id
    client.await_completion(query_job_id, _TIMEOUT_S)
    yield f"create_collection has created {client.result(collection)['body']['name']!r}"
    yield f"add_documents received the status {client.result(add_job_id)['status']}"
    (documents_nearest,) = client.result(query_job_id)["body"]["documents"]
    yield f"query_documents has found {', '.join(_expect(documents_nearest, ['A pear', 'An apple']))}"


def has_chroma(root: Path) -> bool:
    """Return whether ChromaDB is installed. `make venv` installs it for the tests."""
    return (root / _CHROMA_PYTHON).exists()


@contextmanager
def chroma_server(root: Path, directory: Path) -> Iterator[str]:
    """Serve a new, empty ChromaDB while the block runs, and give its URL.

    Raises:
        PlayFailed: The server does not start.
    """
    with socket.socket() as probe:
        probe.bind((CHROMA_HOST, 0))
        port = probe.getsockname()[1]
    options = ["--path", str(directory / "data"), "--host", CHROMA_HOST, "--port", str(port)]
    url = f"http://{CHROMA_HOST}:{port}"
    with (directory / "chroma.log").open("wb") as log:
        command = [str((root / _CHROMA_PYTHON).absolute()), "-c", _RUN_CHROMA, *options]
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)

    def is_up() -> bool:
        try:
            return httpx.get(f"{url}/api/v2/heartbeat", trust_env=False).is_success
        except httpx.TransportError:
            return False

    try:
        deadline = time.monotonic() + 30
        while not is_up():
            if server.poll() is not None or time.monotonic() > deadline:
                raise PlayFailed(f"ChromaDB does not start: {(directory / 'chroma.log').read_text()[-1000:]}")
            time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()


def _submit_when_free(client: Vigil, operation: str, payload: Any) -> str:
    """Create a job of an operation and return its id. Retry while another operation has the mutex."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            return client.submit(operation, payload).job_id
        except VigilError as refusal:
            if refusal.code != "JOB_CREATION_FAILED" or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _expect(actual: Any, expected: Any) -> Any:
    if actual != expected:
        raise PlayFailed(f"The answer was {json.dumps(actual)} instead of {json.dumps(expected)}.")
    return actual
