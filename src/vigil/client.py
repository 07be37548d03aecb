"""The client: create jobs, follow them, wait for them, and report on them. See docs/client.md."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import quote
from uuid import uuid4

from vigil._transport import API_KEY, API_URL, Transport
from vigil.errors import JobFailed, VigilError
from vigil.models import (
    NOT_FOUND,
    RUN_ENDED,
    Decision,
    GraphFormat,
    JobReference,
    JobStatusInfo,
    Json,
    LegacyStatus,
    Mutex,
    Retry,
    legacy_status,
    parse_time,
)
from vigil_core.domain.exact_json import dumps
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.jobs.batch import OnItemFailure
from vigil_core.domain.jobs.job import Priority
from vigil_core.domain.jobs.status import TERMINAL, JobStatus
from vigil_core.domain.jobs.trigger_rules import TriggerRule
from vigil_core.domain.timestamps import to_text

if TYPE_CHECKING:
    from vigil.workflow import Workflow

__all__ = [
    "API_KEY",
    "API_URL",
    "NOT_FOUND",
    "RUN_ENDED",
    "Decision",
    "GraphFormat",
    "JobFailed",
    "JobReference",
    "JobStatusInfo",
    "Json",
    "LegacyStatus",
    "Mutex",
    "Retry",
    "Vigil",
    "VigilError",
    "legacy_status",
]

_MAX_LONG_POLL_S = 20
"""The API allows 25; the rest is time for the answer."""
_MAX_INLINE_BYTES = 2 * 1024 * 1024
"""A larger payload or result is uploaded instead of sent in the request."""
_MAX_PAGE_SIZE = 200
_WAIT_POLL_INTERVAL_S = 0.1


class Vigil:
    """A client of one Vigil with one key. Threads may share it. It keeps connections open until `close`.

    Every method raises VigilError if the API refuses the request or does not answer. Connection errors and the statuses
    429, 502, 503 and 504 are retried if the request may be repeated.

    Args:
        api_url: The API's URL. Without `api_url` and `api_key`, the client takes the environment's VIGIL_API_URL and
            VIGIL_API_KEY, otherwise the local cloud of this directory or one above it.
        timeout_s: The longest time for an answer, without the time of a long poll.
        retries: The number of retries.
        backoff_s: The longest pause before the first retry. It doubles with each retry, has full jitter and respects
            `Retry-After`.
    """

    def __init__(
        self,
        api_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 30,
        retries: int = 4,
        backoff_s: float = 0.5,
    ) -> None:
        self._transport = Transport(api_url, api_key, timeout_s=timeout_s, retries=retries, backoff_s=backoff_s)
        self.api_url = self._transport.api_url

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def bounded(self, within_s: float) -> Self:
        """Return a client on the same connections, each of whose calls ends within this time with its retries."""
        bounded = copy.copy(self)
        bounded._transport = self._transport.bounded(within_s)
        return bounded

    # Creating and following

    def submit(
        self,
        job_type: str,
        payload: Any = None,
        *,
        name: str | None = None,
        queue: str | None = None,
        priority: Priority | None = None,
        scheduled_at: datetime | None = None,
        retry: Retry | None = None,
        timeout: int | None = None,
        heartbeat_timeout: int | None = None,
        fallback: Any = None,
        fields: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        unique_key: str | None = None,
        mutex: str | Mutex | None = None,
        depends_on: Sequence[str] | None = None,
        trigger_rule: TriggerRule | None = None,
        condition: str | None = None,
        batch: Sequence[Any] | None = None,
        on_item_failure: OnItemFailure | None = None,
        trace_id: str | None = None,
        correlation_id: str | None = None,
        job_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> JobReference:
        """Create a job. Retries of the request create it once.

        Args:
            scheduled_at: The start time, with a time zone.
            timeout: The longest time of an attempt, in seconds.
            heartbeat_timeout: The longest time between two reports of a job without a lease, in seconds.
            idempotency_key: A key that makes repeated calls with it create the job once.
        """
        key = _idempotency_headers(idempotency_key)
        body = {
            "job_type": job_type,
            **self._body_or_upload("payload", payload, key),
            "name": name,
            "queue": queue,
            "priority": priority,
            "scheduled_at": None if scheduled_at is None else to_text(scheduled_at),
            "retry": retry,
            "timeout": timeout,
            "heartbeat_timeout": heartbeat_timeout,
            "fallback": fallback,
            "fields": fields,
            "tags": tags,
            "unique_key": unique_key,
            "mutex": {"key": mutex} if isinstance(mutex, str) else mutex,
            "depends_on": depends_on,
            "trigger_rule": trigger_rule,
            "condition": condition,
            "batch": batch,
            "on_item_failure": on_item_failure,
            "trace_id": trace_id,
            "correlation_id": correlation_id,
            "job_id": job_id,
        }
        created = self._transport.call("POST", "/v1/jobs", _without_none(body), headers=key)
        return JobReference(
            created["job_id"], created["job_type"], parse_time(created["scheduled_at"]), created.get("existing", False)
        )

    def job(self, job_id: str) -> Json:
        """Return the whole representation of a job."""
        return self._fetch_urls(self._transport.call("GET", _path(job_id)))

    def dependencies(self, job_id: str) -> Json:
        """Return the current dependencies (`depends_on`) and `dependents` of a job."""
        return self._transport.call("GET", _path(job_id, "dependencies"))

    def dependency_results(self, job_id: str) -> Iterator[Json]:
        """Yield all dependencies of a job in its order, with `name`, `status` and `result`, of whatever size."""
        for dependency in self._dependency_pages(job_id):
            if dependency.pop("truncated"):
                dependency["result"] = self._result_of(dependency["job_id"])
            yield dependency

    def history(self, job_id: str) -> Iterator[Json]:
        """Yield the changes of a job, oldest first, page by page."""
        return self._pages(_path(job_id, "events"), "events", None, {})

    def jobs(self, *, limit: int | None = None, **filters: str | Sequence[str] | None) -> Iterator[Json]:
        """Yield jobs without payload and result, newest first.

        Args:
            limit: The largest number of jobs.
            filters: status (one or several), job_type, queue, tag, dependency_status, workflow_id, correlation_id,
                trace_id, created_after, created_before.
        """
        return self._pages("/v1/jobs", "jobs", limit, filters)

    def status(self, job_id: str) -> JobStatusInfo | None:
        """Return a job, or None if it does not exist."""
        return self._find_job(job_id, long_poll_s=0)

    def status_only(self, job_id: str) -> JobStatus | Literal["not_found"]:
        """Return only the status, by one small read, or "not_found" if the job does not exist."""
        try:
            status: JobStatus = self._transport.call("GET", _path(job_id, "status"))["status"]
        except VigilError as error:
            if error.code == "JOB_NOT_FOUND":
                return NOT_FOUND
            raise
        return status

    def exists(self, job_id: str) -> bool:
        """Return whether the job exists."""
        return self.status_only(job_id) != NOT_FOUND

    def is_complete(self, job_id: str) -> bool:
        """Return whether the job has ended, in whichever terminal status."""
        return self.status_only(job_id) in TERMINAL

    def await_completion(
        self, job_id: str, timeout: float | timedelta, poll_interval: float = 0.1
    ) -> JobStatusInfo | None:
        """Wait for a job to end and return it, or return its state at the timeout.

        Return None if it does not exist.

        Args:
            timeout: The longest time to wait, in seconds if it is a number.
            poll_interval: The pause between two long polls, in seconds. One long poll takes up to 20 seconds.
        """
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        deadline = time.monotonic() + seconds
        while True:
            remaining = max(0.0, deadline - time.monotonic())
            info = self._find_job(job_id, long_poll_s=min(_MAX_LONG_POLL_S, int(remaining)))
            remaining = deadline - time.monotonic()
            if info is None or info.is_terminal() or remaining <= 0:
                return info
            time.sleep(min(poll_interval, remaining))

    def error_message(self, job_id: str) -> str | None:
        """Return the error message of a failed job, or None if it did not fail or does not exist."""
        info = self.status(job_id)
        return info.error_message if info else None

    def result(self, job_id: str) -> Any:
        """Return the result of a completed job.

        Raises:
            JobFailed: The job ended without completing.
            VigilError: The code is JOB_NOT_COMPLETED while the job is open.
        """
        response = self._transport.call("GET", _path(job_id, "result"))
        if response["status"] != "completed":
            error = response["error"] or {"code": response["status"].upper(), "message": f"Job {job_id} was not run"}
            raise JobFailed(response["status"], error["code"], error["message"])
        return self._fetch_urls(response)["result"]

    def wait(self, wait_spec: Json, *, timeout: float | None = None) -> Json:
        """Wait for many jobs (docs/waits.md) and return the final answer, or the partial answer at the timeout.

        Args:
            wait_spec: The body of `POST /v1/waits`, or a partial answer, which continues its wait.
            timeout: The longest time to wait, in seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        response = wait_spec
        while True:
            remaining = _MAX_LONG_POLL_S if deadline is None else deadline - time.monotonic()
            long_poll_s = max(0, min(_MAX_LONG_POLL_S, int(remaining)))
            # A partial answer continues its wait and creates nothing.
            headers = None if "wait_id" in response else _idempotency_headers()
            response = self._transport.call("POST", "/v1/waits", response, long_poll_s=long_poll_s, headers=headers)
            if "wait_on" not in response or (deadline is not None and time.monotonic() >= deadline):
                return response
            pause_s = _WAIT_POLL_INTERVAL_S
            if deadline is not None:
                pause_s = max(0.0, min(pause_s, deadline - time.monotonic()))
            time.sleep(pause_s)

    def cancel(self, job_id: str) -> Json:
        """Cancel a job and return it. A running job gets `cancel_requested`; any other open job ends at once."""
        return self._transition_job(job_id, "cancel", was_done=lambda job: job["status"] == "cancelled")

    def retry(self, job_id: str) -> Json:
        """Retry a failed, cancelled or skipped job under the same id, and return it."""
        return self._transition_job(job_id, "retry", repeatable=False)

    # Workflows

    def create_workflow(self, workflow: Workflow | Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Start a workflow run and return it. Retries of the request start it once.

        Args:
            workflow: A `vigil.workflow.Workflow`, or the body of `POST /v1/workflows`.
            idempotency_key: A key that makes repeated calls with it start the run once.
        """
        return self._transport.call(
            "POST", "/v1/workflows", _definition(workflow), headers=_idempotency_headers(idempotency_key)
        )

    def validate_workflow(self, workflow: Workflow | Mapping[str, Any]) -> Json:
        """Validate a definition without storing it, and return its number of `jobs` and `edges`.

        Raises:
            VigilError: The definition is invalid; `errors` lists every problem.
        """
        return self._transport.call("POST", "/v1/workflows/validate", _definition(workflow))

    def get_workflow(self, workflow_id: str, *, page_size: int | None = None, page_token: str | None = None) -> Json:
        """Return a run with one page of its `jobs`, in the order of the definition."""
        query = _without_none({"page_size": page_size, "page_token": page_token})
        return self._transport.call("GET", _workflow_path(workflow_id), query=query)

    def workflow_jobs(self, workflow_id: str) -> Iterator[Json]:
        """Yield all jobs of a run, in the order of the definition."""
        token: str | None = None
        while True:
            page = self.get_workflow(workflow_id, page_size=_MAX_PAGE_SIZE, page_token=token)
            yield from page["jobs"]
            token = page["next_page_token"]
            if not token:
                return

    def list_workflows(self, *, limit: int | None = None, **filters: str | Sequence[str] | None) -> Iterator[Json]:
        """Yield runs, newest first.

        Args:
            limit: The largest number of runs.
            filters: status (one or several), name, correlation_id, trace_id, created_after, created_before.
        """
        return self._pages("/v1/workflows", "workflows", limit, filters)

    def workflow_stats(self, workflow_id: str) -> Json:
        """Return the number of a run's jobs by status, and its `completion_percentage`."""
        return self._transport.call("GET", _workflow_path(workflow_id, "stats"))

    def workflow_graph(self, workflow_id: str, format: GraphFormat = "mermaid") -> str:
        """Return the current graph of a run as text of this format."""
        return self._transport.request("GET", _workflow_path(workflow_id, "graph"), query={"format": format}).text

    def cancel_workflow(self, workflow_id: str) -> Json:
        """Cancel a run and return it. Its running jobs get `cancel_requested`; its other open jobs end."""
        return self._transition_run(workflow_id, "cancel", was_done=lambda run: bool(run["cancel_requested"]))

    def cancel_workflows(
        self,
        *,
        status: Literal["pending", "running", "paused"] | None = None,
        name: str | None = None,
        correlation_id: str | None = None,
        created_before: datetime | None = None,
    ) -> Iterator[str]:
        """Cancel all open runs that match every given filter, and yield their ids. At least one filter is needed."""
        filters = {
            "status": status,
            "name": name,
            "correlation_id": correlation_id,
            "created_before": None if created_before is None else to_text(created_before),
        }
        body = _without_none(filters)
        while True:
            page = self._transport.call("POST", "/v1/workflows/cancel", body)
            yield from page["cancelled"]
            body["page_token"] = page["next_page_token"]
            if not body["page_token"]:
                return

    def retry_workflow(self, workflow_id: str, from_job: str | None = None) -> Json:
        """Retry the failed jobs of a run and their successors, or `from_job` and its successors. Return the run."""
        return self._transition_run(workflow_id, "retry", {"from": from_job})

    def pause_workflow(self, workflow_id: str) -> Json:
        """Pause a run and return it. Running jobs continue; no further job starts until the run is resumed."""
        return self._transition_run(workflow_id, "pause", was_done=lambda run: run["status"] == "paused")

    def resume_workflow(self, workflow_id: str) -> Json:
        """Resume a paused run and return it."""
        return self._transition_run(workflow_id, "resume", was_done=lambda run: run["status"] == "running")

    def decide(self, workflow_id: str, job: str, action: Decision, note: str | None = None) -> Json:
        """Decide on a failed job, by its name, that has paused a run of failure policy `manual`. Return the run."""
        body = _without_none({"job": job, "action": action, "note": note})
        # The key makes the repetition after a lost answer return the first answer, not a refusal.
        return self._transport.call(
            "POST", _workflow_path(workflow_id, "decisions"), body, headers=_idempotency_headers(str(uuid4()))
        )

    def await_workflow(self, workflow_id: str, timeout: float | timedelta, poll_interval: float = 0.1) -> Json | None:
        """Wait for a run to end and return it, or return its state at the timeout.

        Return None if it does not exist.

        The arguments are those of `await_completion`.
        """
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        deadline = time.monotonic() + seconds
        while True:
            long_poll_s = max(0, min(_MAX_LONG_POLL_S, int(deadline - time.monotonic())))
            try:
                run = self._transport.call(
                    "GET", _workflow_path(workflow_id), query={"page_size": 1}, long_poll_s=long_poll_s
                )
            except VigilError as error:
                if error.code == "WORKFLOW_NOT_FOUND":
                    return None
                raise
            remaining = deadline - time.monotonic()
            if run["status"] in RUN_ENDED or remaining <= 0:
                return run
            time.sleep(min(poll_interval, remaining))

    def usage(self) -> Json:
        """Return the limits of the namespace and what it uses of them (docs/limits.md)."""
        return self._transport.call("GET", "/v1/usage")

    # Claims and reports. `lease_token` is the token of the claim; a job started without a lease has none.

    def claim(
        self,
        queue: str,
        *,
        max: int = 1,
        lease: int = 60,
        worker: str | None = None,
        wait: int = 0,
        claim_id: str | None = None,
    ) -> list[Json]:
        """Claim jobs of a queue and return them with `lease_token`, `lease_expires_at` and `dependencies`.

        Args:
            max: The largest number of jobs, 1 to 10.
            lease: The length of each lease, in seconds.
            wait: How long to wait for a first job, in seconds.
            claim_id: An id that makes the claim idempotent: a repeated claim with it returns the same jobs, so that a
                lost answer loses no job.
        """
        body = {"max": max, "lease": lease, "worker": worker, "claim_id": claim_id or str(uuid4())}
        response = self._transport.call(
            "POST", f"/v1/queues/{quote(queue, safe='')}/claim", _without_none(body), long_poll_s=wait
        )
        return [self._fetch_urls(job) for job in response["jobs"]]

    def start(self, job_id: str, *, lease_token: str | None = None) -> Json:
        """Start a pending job without a claim. The client does not retry this: another process may start the job."""
        return self._transition_job(job_id, "start", {"lease_token": lease_token}, repeatable=False)

    def report(
        self,
        job_id: str,
        *,
        stage: str | None = None,
        milestones: Sequence[str] | None = None,
        progress: float | None = None,
        message: str | None = None,
        fields: Mapping[str, Any] | None = None,
        lease_token: str | None = None,
    ) -> Json:
        """Report on a running job and return it.

        Args:
            milestones: Milestones to add.
            progress: From 0 to 1.
            fields: Fields to merge; the value None removes a field.
        """
        body = {
            "job_stage": stage,
            "milestones": milestones,
            "progress": progress,
            "message": message,
            "fields": fields,
            "lease_token": lease_token,
        }
        return self._transport.call("PATCH", _path(job_id), _without_none(body))

    def heartbeat(
        self,
        job_id: str,
        *,
        lease_token: str | None = None,
        lease: int | None = None,
        progress: float | None = None,
        message: str | None = None,
    ) -> Json:
        """Extend the lease from now, by its length or by `lease` seconds.

        Returns:
            `cancel_requested` and `lease_expires_at`.
        """
        body = {"lease_token": lease_token, "lease": lease, "progress": progress, "message": message}
        return self._transport.call("POST", _path(job_id, "heartbeat"), _without_none(body))

    def complete(
        self,
        job_id: str,
        result: Any = None,
        *,
        job_health: str | None = None,
        fields: Mapping[str, Any] | None = None,
        lease_token: str | None = None,
    ) -> Json:
        """Complete a job with its result, and return the job."""
        body = {
            **self._body_or_upload("result", result),
            "job_health": job_health,
            "fields": fields,
            "lease_token": lease_token,
        }
        return self._transition_job(
            job_id,
            "complete",
            body,
            was_done=lambda job: job["status"] == "completed" and job["result"] == json.loads(dumps(result)),
        )

    def fail(
        self,
        job_id: str,
        code: str,
        message: str,
        *,
        exception_type: str | None = None,
        traceback: str | None = None,
        retryable: bool = True,
        lease_token: str | None = None,
    ) -> Json:
        """Fail an attempt and return the job. With `retryable`, the retry policy of the job applies.

        Args:
            job_id: The job.
            code: The error code for programs.
            message: The message for people, at most 1,024 characters.
            exception_type: The full name of the exception.
            traceback: The last lines of the traceback, at most 1,024 characters.
            retryable: Whether another attempt may follow.
            lease_token: The token of the claim.
        """
        error = _without_none({"code": code, "message": message, "type": exception_type, "traceback": traceback})
        body = {"error": error, "retryable": retryable, "lease_token": lease_token}

        def was_done(job: Json) -> bool:
            return job["status"] != "running" and error.items() <= (job["error"] or {}).items()

        return self._transition_job(job_id, "fail", body, was_done=was_done)

    def release(self, job_id: str, *, lease_token: str) -> Json:
        """Release a claimed job and return it. The job becomes pending again and the attempt does not count."""
        body = {"lease_token": lease_token}
        return self._transition_job(job_id, "release", body, was_done=lambda job: job["status"] == "pending")

    # Payloads and results that are too large for a request or an answer

    def _body_or_upload(self, name: str, value: Any, key: Mapping[str, str] | None = None) -> Json:
        """Return the member of a request for a payload or result: the value, or the reference of its upload.

        With the same idempotency key, a repeated upload has the same reference.
        """
        content = dumps(value).encode()
        if len(content) <= _MAX_INLINE_BYTES:
            return {name: value}
        upload = self._transport.call("POST", "/v1/uploads", {"size": len(content)}, headers=key)
        self._transport.transfer("PUT", upload["url"], content)
        return {f"{name}_ref": upload["reference"]}

    def _fetch_urls(self, document: Json) -> Json:
        """Replace the URLs of a large payload and result by the values they lead to."""
        for name in ("payload", "result"):
            if (url := document.pop(f"{name}_url", None)) is not None:
                document[name] = _parse_json(self._transport.transfer("GET", url))
        return document

    def _dependency_pages(self, job_id: str) -> Iterator[Json]:
        """Yield all dependencies of a job. A large result is left out, and its dependency is `truncated`."""
        return self._pages(_path(job_id, "dependencies", "results"), "dependencies", None, {})

    def _result_of(self, job_id: str) -> Any:
        """Return the result of an ended job, whatever its status."""
        return self._fetch_urls(self._transport.call("GET", _path(job_id, "result")))["result"]

    # Requests

    def _find_job(self, job_id: str, long_poll_s: int) -> JobStatusInfo | None:
        try:
            return JobStatusInfo.of(self._transport.call("GET", _path(job_id), long_poll_s=long_poll_s))
        except VigilError as error:
            if error.code == "JOB_NOT_FOUND":
                return None
            raise

    def _transition_job(
        self,
        job_id: str,
        verb: str,
        body: Mapping[str, Any] | None = None,
        *,
        repeatable: bool = True,
        was_done: Callable[[Json], bool] | None = None,
    ) -> Json:
        """Request a transition and return the job.

        A retry after a lost answer may be refused because the first request succeeded. `was_done` recognises that by
        the current job.
        """
        try:
            return self._transport.call("POST", _path(job_id, verb), _without_none(body or {}), repeatable=repeatable)
        except VigilError as refusal:
            if was_done and refusal.status == HTTPStatus.CONFLICT and refusal.maybe_done:
                job = self.job(job_id)
                if was_done(job):
                    return job
            raise

    def _transition_run(
        self,
        workflow_id: str,
        verb: str,
        body: Mapping[str, Any] | None = None,
        *,
        was_done: Callable[[Json], bool] | None = None,
    ) -> Json:
        """Request a transition of a run and return the run.

        Without `was_done`, the client does not retry after a lost answer.
        """
        path = _workflow_path(workflow_id, verb)
        try:
            return self._transport.call("POST", path, _without_none(body or {}), repeatable=was_done is not None)
        except VigilError as refusal:
            if was_done and refusal.status == HTTPStatus.CONFLICT and refusal.maybe_done:
                run = self.get_workflow(workflow_id, page_size=1)
                if was_done(run):
                    return run
            raise

    def _pages(self, path: str, items_name: str, limit: int | None, filters: Mapping[str, Any]) -> Iterator[Json]:
        """Yield the items of a listing, page by page."""
        query: dict[str, Any] = {"page_size": min(limit or _MAX_PAGE_SIZE, _MAX_PAGE_SIZE), **_without_none(filters)}
        remaining = limit
        while True:
            page = self._transport.call("GET", path, query=query)
            yield from page[items_name][:remaining]
            remaining = None if remaining is None else remaining - len(page[items_name])
            query["page_token"] = page["next_page_token"]
            if not query["page_token"] or (remaining is not None and remaining <= 0):
                return


def _path(job_id: str, *suffix: str) -> str:
    """Return the path of a job.

    Text that is not an id never reaches a URL: such a job does not exist.
    """
    if not is_uuid7(job_id):
        raise VigilError("JOB_NOT_FOUND", f"Job with ID {job_id} not found", status=HTTPStatus.NOT_FOUND)
    return "/".join(("/v1/jobs", job_id, *suffix))


def _workflow_path(workflow_id: str, *suffix: str) -> str:
    """Return the path of a workflow run. Text that is not an id never reaches a URL."""
    if not is_uuid7(workflow_id):
        message = f"Workflow with ID {workflow_id} not found"
        raise VigilError("WORKFLOW_NOT_FOUND", message, status=HTTPStatus.NOT_FOUND)
    return "/".join(("/v1/workflows", workflow_id, *suffix))


def _definition(workflow: Workflow | Mapping[str, Any]) -> Mapping[str, Any]:
    return workflow if isinstance(workflow, Mapping) else workflow.to_dict()


def _idempotency_headers(key: str | None = None) -> dict[str, str]:
    """Return the header that makes a creating request safe to repeat."""
    return {"idempotency-key": key or uuid4().hex}


def _without_none(values: Mapping[str, Any]) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def _parse_json(content: bytes) -> Any:
    """Parse an uploaded payload or result. Another program may have uploaded something else."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise VigilError("NOT_UNDERSTOOD", "the uploaded object is not JSON") from error
