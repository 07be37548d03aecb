"""The client: create jobs, follow them, wait for them, and report on them. See docs/client.md."""

from __future__ import annotations

import copy
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Self, TypeAlias, TypedDict
from urllib.parse import quote
from uuid import uuid4

import httpx

from vigil_core.domain.exact_json import dumps
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.jobs.batch import OnItemFailure
from vigil_core.domain.jobs.dependencies import TriggerRule
from vigil_core.domain.jobs.job import Priority
from vigil_core.domain.jobs.status import TERMINAL, JobStatus
from vigil_core.domain.timestamps import from_text, to_text

if TYPE_CHECKING:
    from vigil.workflow import Workflow

Json: TypeAlias = dict[str, Any]
LegacyStatus: TypeAlias = Literal["PENDING", "SCHEDULED", "IN_PROGRESS", "COMPLETED", "FAILED", "NOT_FOUND"]

Decision: TypeAlias = Literal["retry", "skip", "abort"]
GraphFormat: TypeAlias = Literal["mermaid", "dot", "json", "svg"]

API_URL = "VIGIL_API_URL"
API_KEY = "VIGIL_API_KEY"
NOT_FOUND: Literal["not_found"] = "not_found"
"""What `status_only` answers for a job that there is not."""

RUN_ENDED = frozenset({"completed", "failed", "cancelled"})
"""The statuses of a workflow in which nothing happens any more, but for a retry."""

_MAX_LONG_POLL_S = 20
"""The API holds an answer for 25 at most."""
_MAX_INLINE_BYTES = 2 * 1024 * 1024
"""Of a payload or result in a request: what is larger is uploaded."""
_MAX_BACKOFF_S = 20.0
_MAX_RETRY_AFTER_S = 60.0
_TRANSIENT_STATUSES = frozenset({429, 502, 503, 504})
_NOT_SENT_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_LEGACY_STATUSES: dict[str, LegacyStatus] = {
    "scheduled": "SCHEDULED",
    "waiting": "PENDING",
    "pending": "PENDING",
    "running": "IN_PROGRESS",
    "completed": "COMPLETED",
    "failed": "FAILED",
    "cancelled": "FAILED",
    "skipped": "FAILED",
    NOT_FOUND: "NOT_FOUND",
}


def legacy_status(status: JobStatus | Literal["not_found"]) -> LegacyStatus:
    """One of the six statuses that trackers of older kinds know."""
    return _LEGACY_STATUSES[status]


class VigilError(Exception):
    """What went wrong: the API refused (`status` is HTTP's), or could not be asked (`status` is None).

    `code` is what to program against (docs/errors.md), `errors` names every wrong part of an invalid request, and
    `maybe_done` says that the request may have been carried out although its answer never came.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        errors: Sequence[Mapping[str, str]] = (),
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.errors = tuple(errors)
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.maybe_done = False

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    @property
    def is_transient(self) -> bool:
        """Whether the same request may go well a little later."""
        return self.status in _TRANSIENT_STATUSES or self.code in ("UNREACHABLE", "IDEMPOTENCY_IN_PROGRESS")

    @classmethod
    def of(cls, response: httpx.Response) -> Self:
        """What an answer says that is no success: a problem document, or whatever stands between us and the API."""
        try:
            body = response.json()
        except ValueError:
            body = None
        body_fields = body if isinstance(body, dict) else {}
        try:
            name = HTTPStatus(response.status_code).name
        except ValueError:
            name = f"HTTP_{response.status_code}"
        return cls(
            body_fields.get("error") or name,
            body_fields.get("message") or response.reason_phrase or name,
            status=response.status_code,
            errors=body_fields.get("errors") or (),
            request_id=body_fields.get("request_id"),
            retry_after_s=_parse_retry_after(response.headers.get("retry-after")),
        )


class JobFailed(VigilError):
    """The result was asked for of a job that ended without one. `code` is the job's own, `job_status` how it ended."""

    def __init__(self, job_status: JobStatus, code: str, message: str) -> None:
        super().__init__(code, message)
        self.job_status = job_status


class Retry(TypedDict, total=False):
    """How often and when a failed attempt is tried again; delays in seconds."""

    max_attempts: int
    initial_delay: float
    max_delay: float
    multiplier: float
    jitter: bool


class Mutex(TypedDict):
    """At most one job that has not ended has each key."""

    key: str
    on_conflict: NotRequired[Literal["reject", "queue"]]


@dataclass(frozen=True)
class JobReference:
    """A job that was created. `existing` when a job with the `unique_key` was there already, and this is it."""

    job_id: str
    job_type: str
    scheduled_at: datetime | None
    existing: bool = False

    def is_scheduled(self) -> bool:
        """Whether it starts later."""
        return self.scheduled_at is not None


@dataclass(frozen=True, kw_only=True)
class JobStatusInfo:
    """A job as it was when it was asked for. `document` is all that the API tells of it."""

    job_id: str
    status: JobStatus
    job_type: str
    queue: str
    priority: Priority
    name: str | None
    job_stage: str
    job_health: str | None
    progress: float
    message: str | None
    attempt: int
    created_at: datetime
    scheduled_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    error_code: str | None
    error_message: str | None
    result: Any
    document: Json = field(repr=False)

    @classmethod
    def of(cls, job: Json) -> Self:
        """From the job as the API tells it."""
        error = job["error"] or {}
        return cls(
            job_id=job["job_id"],
            status=job["status"],
            job_type=job["job_type"],
            queue=job["queue"],
            priority=job["priority"],
            name=job["name"],
            job_stage=job["job_stage"],
            job_health=job["job_health"],
            progress=job["progress"],
            message=job["message"],
            attempt=job["attempt"],
            created_at=from_text(job["created_at"]),
            scheduled_at=_parse_time(job["scheduled_at"]),
            started_at=_parse_time(job["started_at"]),
            finished_at=_parse_time(job["finished_at"]),
            error_code=error.get("code"),
            error_message=error.get("message"),
            result=job["result"],
            document=job,
        )

    def is_terminal(self) -> bool:
        """Whether it has ended: completed, failed, cancelled or skipped."""
        return self.status in TERMINAL

    def is_successful(self) -> bool:
        """Whether it completed."""
        return self.status == "completed"

    def is_failed(self) -> bool:
        """Whether it ended in any other way."""
        return self.is_terminal() and not self.is_successful()

    def is_active(self) -> bool:
        """Whether it has not ended: scheduled, waiting, pending or running."""
        return not self.is_terminal()

    def is_scheduled(self) -> bool:
        """Whether its start, or its next try, lies ahead."""
        return self.status == "scheduled"

    def legacy_status(self) -> LegacyStatus:
        """One of the six statuses that trackers of older kinds know."""
        return legacy_status(self.status)


class Vigil:
    """A client of one Vigil, with one key. Threads may share it; it keeps connections open until `close`.

    Without `api_url` and `api_key`: the environment's VIGIL_API_URL and VIGIL_API_KEY, else the local cloud of this
    directory or one above it. `timeout_s` is how long an answer may take that is not held on purpose. Connection errors
    and 429, 502, 503 and 504 are tried again, `retries` times, after pauses (full jitter) that begin with up to
    `backoff_s` and heed `Retry-After`; only what may be repeated is. Every method raises VigilError.
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
        url, key = _resolve_connection(api_url, api_key)
        self.api_url = url
        self._timeout_s = timeout_s
        self._retries = retries
        self._backoff_s = backoff_s
        self._within_s: float | None = None
        self._http = httpx.Client(
            base_url=url,
            headers={"authorization": f"Bearer {key}"},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            # What runs on this machine is not reached through a proxy.
            trust_env=not _is_local(url),
        )
        # For the URLs that the API hands out: they are good without a key, and refuse one.
        self._store = httpx.Client(timeout=httpx.Timeout(timeout_s, connect=10), trust_env=not _is_local(url))

    def close(self) -> None:
        """Close its connections."""
        self._http.close()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def bounded(self, within_s: float) -> Self:
        """The same client, on the same connections, whose every call gives up after so many seconds, retries
        included."""
        bounded = copy.copy(self)
        bounded._within_s = within_s
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
        """Create a job. Timeouts in seconds, `scheduled_at` with a zone. It is created once, however often the request
        has to be repeated; with an `idempotency_key` of one's own, also across calls."""
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
        created = self._call("POST", "/v1/jobs", _without_none(body), headers=key)
        return JobReference(
            created["job_id"], created["job_type"], _parse_time(created["scheduled_at"]), created.get("existing", False)
        )

    def job(self, job_id: str) -> Json:
        """All that the API tells of a job."""
        return self._fetch_urls(self._call("GET", _path(job_id)))

    def dependencies(self, job_id: str) -> Json:
        """What a job depends on (`depends_on`) and which jobs wait for it to end (`dependents`), each as it is now."""
        return self._call("GET", _path(job_id, "dependencies"))

    def jobs(self, *, limit: int | None = None, **filters: str | Sequence[str] | None) -> Iterator[Json]:
        """Jobs without payload and result, newest first. Filters: status (one or several), job_type, queue, tag,
        dependency_status, workflow_id, correlation_id, trace_id, created_after, created_before."""
        return self._pages("/v1/jobs", "jobs", limit, filters)

    def status(self, job_id: str) -> JobStatusInfo | None:
        """A job, or None when there is none."""
        return self._find_job(job_id, long_poll_s=0)

    def status_only(self, job_id: str) -> JobStatus | Literal["not_found"]:
        """The status alone, in one small read; "not_found" when there is no such job."""
        try:
            status: JobStatus = self._call("GET", _path(job_id, "status"))["status"]
        except VigilError as error:
            if error.code == "JOB_NOT_FOUND":
                return NOT_FOUND
            raise
        return status

    def exists(self, job_id: str) -> bool:
        """Whether there is such a job."""
        return self.status_only(job_id) != NOT_FOUND

    def is_complete(self, job_id: str) -> bool:
        """Whether it has ended, well or badly."""
        return self.status_only(job_id) in TERMINAL

    def await_completion(
        self, job_id: str, timeout: float | timedelta, poll_interval: float = 0.1
    ) -> JobStatusInfo | None:
        """The job once it has ended, or as it was when `timeout` seconds were over; None when there is none.

        The API holds its answers, so that one request covers up to 20 seconds; `poll_interval` is the pause in between.
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
        """What a failed job said; None when it did not fail, or there is no such job."""
        info = self.status(job_id)
        return info.error_message if info else None

    def result(self, job_id: str) -> Any:
        """The result of a completed job. Raises JobFailed when it ended otherwise, VigilError with the code
        JOB_NOT_COMPLETED before it has ended."""
        response = self._call("GET", _path(job_id, "result"))
        if response["status"] != "completed":
            error = response["error"] or {"code": response["status"].upper(), "message": f"Job {job_id} was not run"}
            raise JobFailed(response["status"], error["code"], error["message"])
        return self._fetch_urls(response)["result"]

    def wait(self, wait_spec: Json, *, timeout: float | None = None) -> Json:
        """Wait for many jobs (docs/waits.md): `wait_spec` is the body of `POST /v1/waits`, or an answer to go on with.
        Returns the answer once nothing is left to wait for, or as it stands when `timeout` seconds are over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        response = wait_spec
        while True:
            remaining = _MAX_LONG_POLL_S if deadline is None else deadline - time.monotonic()
            long_poll_s = max(0, min(_MAX_LONG_POLL_S, int(remaining)))
            headers = None if "wait_id" in response else _idempotency_headers()  # Going on with a wait creates nothing.
            response = self._call("POST", "/v1/waits", response, long_poll_s=long_poll_s, headers=headers)
            if "wait_on" not in response or (deadline is not None and time.monotonic() >= deadline):
                return response
            time.sleep(0.1 if deadline is None else max(0.0, min(0.1, deadline - time.monotonic())))

    def cancel(self, job_id: str) -> Json:
        """Cancel a job: at once, or by asking when it runs (`cancel_requested`). The job."""
        return self._transition_job(job_id, "cancel", was_done=lambda job: job["status"] == "cancelled")

    def retry(self, job_id: str) -> Json:
        """Try a failed, cancelled or skipped job again, under the same id. The job."""
        return self._transition_job(job_id, "retry", repeatable=False)

    # Workflows

    def create_workflow(self, workflow: Workflow | Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Begin a run of a workflow, which is put together by `vigil.workflow` or is the body of `POST /v1/workflows`.
        It is begun once, however often the request has to be repeated. The run."""
        return self._call("POST", "/v1/workflows", _definition(workflow), headers=_idempotency_headers(idempotency_key))

    def validate_workflow(self, workflow: Workflow | Mapping[str, Any]) -> Json:
        """Have a definition checked, and nothing stored. How many `jobs` and `edges` it has; VigilError names all that
        is wrong with it."""
        return self._call("POST", "/v1/workflows/validate", _definition(workflow))

    def get_workflow(self, workflow_id: str, *, page_size: int | None = None, page_token: str | None = None) -> Json:
        """A run, with a page of its `jobs` in the definition's order."""
        query = _without_none({"page_size": page_size, "page_token": page_token})
        return self._call("GET", _workflow_path(workflow_id), query=query)

    def workflow_jobs(self, workflow_id: str) -> Iterator[Json]:
        """All jobs of a run, in the definition's order."""
        token: str | None = None
        while True:
            page = self.get_workflow(workflow_id, page_size=200, page_token=token)
            yield from page["jobs"]
            token = page["next_page_token"]
            if not token:
                return

    def list_workflows(self, *, limit: int | None = None, **filters: str | Sequence[str] | None) -> Iterator[Json]:
        """Runs, newest first. Filters: status (one or several), name, correlation_id, trace_id, created_after,
        created_before."""
        return self._pages("/v1/workflows", "workflows", limit, filters)

    def workflow_stats(self, workflow_id: str) -> Json:
        """How many of a run's jobs are in which status, and `completion_percentage`."""
        return self._call("GET", _workflow_path(workflow_id, "stats"))

    def workflow_graph(self, workflow_id: str, format: GraphFormat = "mermaid") -> str:
        """A run's graph as it stands, as text of this format."""
        return self._request("GET", _workflow_path(workflow_id, "graph"), query={"format": format}).text

    def cancel_workflow(self, workflow_id: str) -> Json:
        """Cancel a run: at once, or by asking the jobs of it that run (`cancel_requested`). The run."""
        return self._transition_run(workflow_id, "cancel", was_done=lambda run: bool(run["cancel_requested"]))

    def cancel_workflows(
        self,
        *,
        status: Literal["pending", "running", "paused"] | None = None,
        name: str | None = None,
        correlation_id: str | None = None,
        created_before: datetime | None = None,
    ) -> Iterator[str]:
        """Cancel all runs that have not ended and of which all of this is true, at least one; their ids, as it goes."""
        filters = {
            "status": status,
            "name": name,
            "correlation_id": correlation_id,
            "created_before": None if created_before is None else to_text(created_before),
        }
        body = _without_none(filters)
        while True:
            page = self._call("POST", "/v1/workflows/cancel", body)
            yield from page["cancelled"]
            body["page_token"] = page["next_page_token"]
            if not body["page_token"]:
                return

    def retry_workflow(self, workflow_id: str, from_job: str | None = None) -> Json:
        """Run again what failed and what comes after it, or one job and what comes after that. The run."""
        return self._transition_run(workflow_id, "retry", {"from": from_job})

    def pause_workflow(self, workflow_id: str) -> Json:
        """Have a run begin nothing new until it is resumed. The run."""
        return self._transition_run(workflow_id, "pause", was_done=lambda run: run["status"] == "paused")

    def resume_workflow(self, workflow_id: str) -> Json:
        """Have a paused run go on. The run."""
        return self._transition_run(workflow_id, "resume", was_done=lambda run: run["status"] == "running")

    def decide(self, workflow_id: str, job: str, action: Decision, note: str | None = None) -> Json:
        """Say what is to become of a failed job, by its name, for which a run has paused. The run."""
        return self._transition_run(workflow_id, "decisions", {"job": job, "action": action, "note": note})

    def await_workflow(self, workflow_id: str, timeout: float | timedelta, poll_interval: float = 0.1) -> Json | None:
        """The run once it has ended, or as it was when `timeout` seconds were over; None when there is none.

        The API holds its answers, as it does for `await_completion`.
        """
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        deadline = time.monotonic() + seconds
        while True:
            long_poll_s = max(0, min(_MAX_LONG_POLL_S, int(deadline - time.monotonic())))
            try:
                run = self._call("GET", _workflow_path(workflow_id), query={"page_size": 1}, long_poll_s=long_poll_s)
            except VigilError as error:
                if error.code == "WORKFLOW_NOT_FOUND":
                    return None
                raise
            remaining = deadline - time.monotonic()
            if run["status"] in RUN_ENDED or remaining <= 0:
                return run
            time.sleep(min(poll_interval, remaining))

    # Running and reporting. `lease_token` is that of the claim; a job started without a lease has none.

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
        """Take up to `max` jobs (1 to 10) of a queue, each for `lease` seconds; with `wait`, hold on for up to so many
        seconds until there is one. Each is the whole job with `lease_token`, `lease_expires_at` and `dependencies`. The
        same `claim_id` again gives the same jobs again: a lost answer loses none."""
        body = {"max": max, "lease": lease, "worker": worker, "claim_id": claim_id or str(uuid4())}
        response = self._call(
            "POST", f"/v1/queues/{quote(queue, safe='')}/claim", _without_none(body), long_poll_s=wait
        )
        return [self._fetch_urls(job) for job in response["jobs"]]

    def start(self, job_id: str, *, lease_token: str | None = None) -> Json:
        """Begin to run a pending job without a claim. Not repeated by itself: somebody else may have started it."""
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
        """Say how a running job goes: its stage, milestones to add, progress from 0 to 1, fields to merge (None removes
        one). The job."""
        body = {
            "job_stage": stage,
            "milestones": milestones,
            "progress": progress,
            "message": message,
            "fields": fields,
            "lease_token": lease_token,
        }
        return self._call("PATCH", _path(job_id), _without_none(body))

    def heartbeat(
        self,
        job_id: str,
        *,
        lease_token: str | None = None,
        lease: int | None = None,
        progress: float | None = None,
        message: str | None = None,
    ) -> Json:
        """Say that it still runs: extends the lease from now, by its length or by `lease` seconds. Answers
        `cancel_requested` and `lease_expires_at`."""
        body = {"lease_token": lease_token, "lease": lease, "progress": progress, "message": message}
        return self._call("POST", _path(job_id, "heartbeat"), _without_none(body))

    def complete(
        self,
        job_id: str,
        result: Any = None,
        *,
        job_health: str | None = None,
        fields: Mapping[str, Any] | None = None,
        lease_token: str | None = None,
    ) -> Json:
        """End a job well, with its result. The job."""
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
        self, job_id: str, code: str, message: str, *, retryable: bool = True, lease_token: str | None = None
    ) -> Json:
        """End an attempt badly; when `retryable` the job may be tried again, as it was created to be. The job."""
        error = {"code": code, "message": message}
        body = {"error": error, "retryable": retryable, "lease_token": lease_token}
        return self._transition_job(
            job_id, "fail", body, was_done=lambda job: job["status"] != "running" and job["error"] == error
        )

    def release(self, job_id: str, *, lease_token: str) -> Json:
        """Give a claimed job back, as if it had not been claimed: the attempt does not count. The job."""
        body = {"lease_token": lease_token}
        return self._transition_job(job_id, "release", body, was_done=lambda job: job["status"] == "pending")

    # Below: what is too large for a request or an answer

    def _body_or_upload(self, name: str, value: Any, key: Mapping[str, str] | None = None) -> Json:
        """A payload or result as a request says it: itself, or the reference of its upload, the same under one key."""
        content = dumps(value).encode()
        if len(content) <= _MAX_INLINE_BYTES:
            return {name: value}
        upload = self._call("POST", "/v1/uploads", {"size": len(content)}, headers=key)
        self._transfer("PUT", upload["url"], content)
        return {f"{name}_ref": upload["reference"]}

    def _fetch_urls(self, document: Json) -> Json:
        """What the API tells, with the payload and result that URLs stand in for."""
        for name in ("payload", "result"):
            if (url := document.pop(f"{name}_url", None)) is not None:
                document[name] = _parse_json(self._transfer("GET", url))
        return document

    def _transfer(self, method: str, url: str, content: bytes | None = None) -> bytes:
        """Put or get an object, which may be repeated."""
        for attempt in count():
            try:
                response = self._store.request(method, url, content=content)
                if response.is_success:
                    return response.content
                error = VigilError("STORE_REFUSED", f"HTTP {response.status_code}", status=response.status_code)
            except httpx.HTTPError as failure:
                error = VigilError("UNREACHABLE", f"the store: {str(failure) or type(failure).__name__}")
            if not error.is_transient or attempt >= self._retries:
                raise error
            time.sleep(self._backoff_delay_s(attempt, error))
        raise AssertionError("unreachable")

    # Below: one way to ask

    def _find_job(self, job_id: str, long_poll_s: int) -> JobStatusInfo | None:
        try:
            return JobStatusInfo.of(self._call("GET", _path(job_id), long_poll_s=long_poll_s))
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
        """A transition. Repeated after a lost answer it may be refused because it was done: then the job shows it."""
        try:
            return self._call("POST", _path(job_id, verb), _without_none(body or {}), repeatable=repeatable)
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
        """The same of a run; one that does not show that it was done is not repeated after a lost answer."""
        path = _workflow_path(workflow_id, verb)
        try:
            return self._call("POST", path, _without_none(body or {}), repeatable=was_done is not None)
        except VigilError as refusal:
            if was_done and refusal.status == HTTPStatus.CONFLICT and refusal.maybe_done:
                run = self.get_workflow(workflow_id, page_size=1)
                if was_done(run):
                    return run
            raise

    def _pages(self, path: str, items_name: str, limit: int | None, filters: Mapping[str, Any]) -> Iterator[Json]:
        """What is listed at a path, page by page."""
        query: dict[str, Any] = {"page_size": min(limit or 200, 200), **_without_none(filters)}
        remaining = limit
        while True:
            page = self._call("GET", path, query=query)
            yield from page[items_name][:remaining]
            remaining = None if remaining is None else remaining - len(page[items_name])
            query["page_token"] = page["next_page_token"]
            if not query["page_token"] or (remaining is not None and remaining <= 0):
                return

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None, **options: Any) -> Json:
        """The body of a success, which is an object."""
        return _json_object(self._request(method, path, body, **options))

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        long_poll_s: int = 0,
        repeatable: bool = True,
    ) -> httpx.Response:
        """A success. What is not `repeatable` is tried again only if it surely was not carried out."""
        content = None if body is None else dumps(body).encode()
        request_headers = {**(headers or {}), "content-type": "application/json"}
        if long_poll_s:
            request_headers["prefer"] = f"wait={long_poll_s}"
        deadline = None if self._within_s is None else time.monotonic() + self._within_s
        maybe_done = False
        for attempt in count():
            timeout_s = self._timeout_s + long_poll_s
            if deadline is not None:
                timeout_s = min(timeout_s, max(0.05, deadline - time.monotonic()))
            try:
                response = self._http.request(
                    method,
                    path,
                    params=query,
                    content=content,
                    headers=request_headers,
                    timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
                )
                if response.is_success:
                    return response
                error = VigilError.of(response)
                carried_out = error.status is not None and error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
            except httpx.HTTPError as failure:
                error = VigilError("UNREACHABLE", f"{self.api_url}: {str(failure) or type(failure).__name__}")
                error.__cause__ = failure
                carried_out = not isinstance(failure, _NOT_SENT_ERRORS)
            maybe_done = error.maybe_done = maybe_done or carried_out
            pause_s = self._backoff_delay_s(attempt, error)
            if (
                not error.is_transient
                or attempt >= self._retries
                or (maybe_done and not repeatable)
                or pause_s > _MAX_RETRY_AFTER_S + _MAX_BACKOFF_S
                or (deadline is not None and time.monotonic() + pause_s >= deadline)
            ):
                raise error
            time.sleep(pause_s)
        raise AssertionError("unreachable")

    def _backoff_delay_s(self, attempt: int, error: VigilError) -> float:
        """Full jitter, and not before the API said."""
        return (error.retry_after_s or 0.0) + random.uniform(0, min(_MAX_BACKOFF_S, self._backoff_s * 2**attempt))


def _resolve_connection(api_url: str | None, api_key: str | None) -> tuple[str, str]:
    """The URL and the key to use."""
    url = api_url or os.environ.get(API_URL)
    key = api_key or os.environ.get(API_KEY)
    if not (url and key):
        from vigil.local import LocalError, Stack

        current_dir = Path.cwd()
        files = (directory / ".local/stack.json" for directory in (current_dir, *current_dir.parents))
        try:
            local_stack = next((stack for file in files if (stack := Stack.read(file))), None)
        except (LocalError, OSError) as error:
            raise VigilError("NOT_CONFIGURED", str(error)) from error
        # The local cloud's key is for the local cloud: it is not shown to anybody else.
        if local_stack and (not url or url == local_stack.api_url):
            url, key = local_stack.api_url, key or local_stack.api_key
    if not (url and key):
        missing = API_KEY if url else API_URL
        raise VigilError(
            "NOT_CONFIGURED", f"Which Vigil? Set {missing}, or start one in this directory with `vigil local up`."
        )
    return url.rstrip("/"), key.strip()


def _is_local(url: str) -> bool:
    """Whether this URL is of this machine. Raises VigilError for what is no URL."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise VigilError("NOT_CONFIGURED", f"Vigil's URL is none: {url}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise VigilError("NOT_CONFIGURED", f"Vigil's URL begins with http:// or https://, not as {url}")
    return parsed.host == "127.0.0.1" or parsed.host.endswith("localhost")


def _path(job_id: str, *suffix: str) -> str:
    """The path of a job. What can be no id needs no asking, and is kept out of URLs."""
    if not is_uuid7(job_id):
        raise VigilError("JOB_NOT_FOUND", f"Job with ID {job_id} not found", status=HTTPStatus.NOT_FOUND)
    return "/".join(("/v1/jobs", job_id, *suffix))


def _workflow_path(workflow_id: str, *suffix: str) -> str:
    """The same of a workflow."""
    if not is_uuid7(workflow_id):
        message = f"Workflow with ID {workflow_id} not found"
        raise VigilError("WORKFLOW_NOT_FOUND", message, status=HTTPStatus.NOT_FOUND)
    return "/".join(("/v1/workflows", workflow_id, *suffix))


def _definition(workflow: Workflow | Mapping[str, Any]) -> Mapping[str, Any]:
    return workflow if isinstance(workflow, Mapping) else workflow.to_dict()


def _idempotency_headers(key: str | None = None) -> dict[str, str]:
    """What makes a creating request safe to repeat."""
    return {"idempotency-key": key or uuid4().hex}


def _without_none(values: Mapping[str, Any]) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def _parse_time(text: str | None) -> datetime | None:
    return None if text is None else from_text(text)


def _json_object(response: httpx.Response) -> Json:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise VigilError(
            "NOT_UNDERSTOOD", f"{response.url} answers, but not as Vigil does", status=response.status_code
        )
    return body


def _parse_json(content: bytes) -> Any:
    """What was uploaded, if it is JSON as an upload of this client is."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise VigilError("NOT_UNDERSTOOD", "what was uploaded is no JSON") from error


def _parse_retry_after(retry_after: str | None) -> float | None:
    """What a `Retry-After` header says: seconds, or a date."""
    if retry_after is None:
        return None
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
