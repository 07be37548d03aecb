"""A small HTTP server that behaves like Vigil: jobs, leases, fencing, idempotent requests, and faults on demand."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

from uuid6 import uuid7

from vigil_core.domain.jobs.status import TERMINAL
from vigil_core.domain.timestamps import to_text

API_KEY = "vgl_test_k1_secret"
PRIORITIES = ("background", "low", "normal", "high", "critical")
ROUTE = re.compile(r"/v1/(jobs|queues|waits|workflows)(?:/([^/]*))?(?:/([^/]*(?:/results)?))?")


class Problem(Exception):
    """Error that becomes a problem response."""

    def __init__(self, status: int, error: str, message: str = "no") -> None:
        super().__init__(message)
        self.status = status
        self.body = {"status": status, "error": error, "message": message, "request_id": "r1"}


@dataclass
class Job:
    """A job as the API shows it, with its lease."""

    shown: dict[str, Any]
    token: str | None = None
    lease_s: float = 0
    ends_at: float = 0
    lease_text: str = ""
    worker: str | None = None
    used: bool = False

    def extend_lease(self, lease_s: float) -> None:
        self.ends_at = time.monotonic() + lease_s
        self.lease_text = f"{_now()} + {self.ends_at}"


@dataclass
class Request:
    """One recorded request."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    at: float


@dataclass
class Fault:
    """The fault of the next matching requests. With `after`, the request is carried out before it fails."""

    method: str
    path: str
    left: int
    status: int | None = None
    after: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    body: str = '{"message": "Service Unavailable"}'

    def matches(self, request: Request) -> bool:
        return self.left > 0 and request.method == self.method and re.search(self.path, request.path) is not None


class FakeVigil:
    """One namespace of a Vigil. `requests` contains every request, oldest first."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.expired_leases: list[str] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.most_leased = 0
        self.depends_on: dict[str, dict[str, str]] = {}
        """The ids of the dependencies of a job by name. A claim contains the first two, with short results only."""
        self._once: dict[str, tuple[int, Any]] = {}
        self._claims: dict[str, list[tuple[str, str]]] = {}
        self.changed = threading.Condition(threading.RLock())
        self.closing = False
        """Whether the server stops, which ends every long poll."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator[FakeVigil]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            with self.changed:
                self.closing = True
                self.changed.notify_all()
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    # For tests

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job in its current state."""
        with self.changed:
            self._expire_leases()
            return dict(self.jobs[job_id].shown)

    def requests_to(self, method: str, path: str) -> list[Request]:
        """Return the requests to a route."""
        return [each for each in list(self.requests) if each.method == method and re.fullmatch(path, each.path)]

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait until a job has ended and return it."""
        self.until(lambda: self.jobs[job_id].shown["finished_at"])
        return self.job(job_id)

    def reported(self, job_id: str) -> list[str]:
        """Return the reported ends of a job in order: complete, fail, release."""
        paths = [request.path for request in self.requests_to("POST", f"/v1/jobs/{job_id}/(complete|fail|release)")]
        return [path.rpartition("/")[2] for path in paths]

    def refuse(self, method: str, path: str, status: int, times: int = 1, **headers: str) -> None:
        """Answer the next matching requests with this status, without carrying them out."""
        response_headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(method, path, times, status, headers=response_headers))

    def drop(self, method: str, path: str, times: int = 1) -> None:
        """Carry out the next matching requests, and close the connection without a response."""
        self.faults.append(Fault(method, path, times, after=True))

    def revoke_lease(self, job_id: str) -> None:
        """Give the job to another worker, as if its lease had expired."""
        with self.changed:
            self.jobs[job_id].token = "token-of-another-worker"
            self.jobs[job_id].ends_at = time.monotonic() + 600

    def until(self, condition: Callable[[], Any], within_s: float = 20) -> Any:
        """Evaluate the condition after each change until it is true, and return its value."""
        deadline = time.monotonic() + within_s
        with self.changed:
            while not (value := condition()):
                assert time.monotonic() < deadline, f"the condition was not met within {within_s} s"
                self.changed.wait(0.05)
                self._expire_leases()
            return value

    # The server

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Otherwise the second packet of a response waits for the acknowledgement of the first.
            disable_nagle_algorithm = True

            def _do(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length) if length else b"{}"
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, json.loads(body), time.monotonic())
                answer = fake.answer(request)
                if answer is None:
                    self.close_connection = True
                    return
                status, text, more = answer
                self.send_response(status)
                for name, value in {"content-length": str(len(text)), **more}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PATCH = _do

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing."""

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    self.close_connection = True

        return Handler

    def answer(self, request: Request) -> tuple[int, bytes, dict[str, str]] | None:
        """Return status, body and headers, or None to close the connection without a response."""
        with self.changed:
            self.requests.append(request)
            fault = next((fault for fault in self.faults if fault.matches(request)), None)
            if fault:
                fault.left -= 1
            if fault and not fault.after:
                assert fault.status
                return fault.status, fault.body.encode(), fault.headers
            try:
                status, body = self._act(request)
            except Problem as problem:
                status, body = problem.status, problem.body
            self.changed.notify_all()
        text = body if isinstance(body, str) else json.dumps(body)
        return None if fault else (status, text.encode(), {"content-type": "application/json"})

    def _act(self, request: Request) -> tuple[int, Any]:
        self._expire_leases()
        if request.headers.get("authorization") != f"Bearer {API_KEY}":
            raise Problem(401, "UNAUTHORIZED", "the API key is missing or unknown")
        parts = urlsplit(request.path)
        route = ROUTE.fullmatch(parts.path)
        assert route, request.path
        kind, name, verb = (unquote(part) if part else None for part in route.groups())
        poll_s = int(request.headers.get("prefer", "wait=0").removeprefix("wait="))
        match (request.method, kind, name, verb):
            case ("POST", "jobs" | "workflows", None, None):
                key = request.headers["idempotency-key"]
                if key not in self._once:
                    create = self._create if kind == "jobs" else self._start_run
                    self._once[key] = 202, create(request.body)
                return self._once[key]
            case (method, "workflows", name, verb):
                if name in self.runs and method == "GET" and not verb:
                    self._long_poll(lambda: self.runs[str(name)]["status"] not in ("running", "paused"), poll_s)
                return 200, self._workflow_route(method, name, verb, request.body, parse_qs(parts.query))
            case ("GET", "jobs", None, None):
                return 200, self._list(parse_qs(parts.query))
            case ("POST", "queues", str(queue), "claim"):
                return 200, {"jobs": self._claim(queue, request.body, poll_s)}
            case ("POST", "waits", None, None):
                return 200, self._wait(request.body, poll_s)
            case (method, "jobs", str(job_id), verb):
                if verb == "dependencies/results":
                    return 200, self._dependency_page(job_id, parse_qs(parts.query))
                return self._job_route(method, job_id, verb, request.body, poll_s)
        raise Problem(404, "NOT_FOUND", f"no route {request.method} {request.path}")

    def _job_route(self, method: str, job_id: str, verb: str | None, body: Any, poll_s: int) -> tuple[int, Any]:
        if job_id not in self.jobs:
            raise Problem(404, "JOB_NOT_FOUND", f"Job with ID {job_id} not found")
        job = self.jobs[job_id]
        shown = job.shown
        match (method, verb):
            case ("GET", None):
                self._long_poll(lambda: shown["status"] in TERMINAL, poll_s)
            case ("GET", "status"):
                return 200, {"job_id": job_id, "status": shown["status"]}
            case ("GET", "result"):
                if shown["status"] not in TERMINAL:
                    raise Problem(409, "JOB_NOT_COMPLETED", f"Job {job_id} is not yet completed")
                return 200, {name: shown[name] for name in ("job_id", "status", "result", "error")}
            case ("POST", "cancel"):
                return self._cancel(job)
            case ("POST", "retry"):
                self._allow(job, "failed", "cancelled", "skipped")
                shown.update(status="pending", error=None, finished_at=None, attempt=shown["attempt"] + 1)
            case ("POST", "start"):
                self._allow(job, "pending")
                shown.update(status="running", started_at=_now())
            case ("PATCH", None):
                self._report(job, body)
            case ("POST", "heartbeat" | "complete" | "fail" | "release"):
                self._fence(job, body)
                self._allow(job, "running")
                return 200, getattr(self, f"_{verb}")(job, body)
        return 200, dict(shown)

    def _workflow_route(
        self, method: str, name: str | None, verb: str | None, body: Any, query: dict[str, list[str]]
    ) -> Any:
        start = int(query.get("page_token", ["0"])[0])
        size = int(query.get("page_size", ["200"])[0])
        match (method, name, verb):
            case ("POST", "validate", None):
                if not body["jobs"]:
                    raise Problem(422, "VALIDATION_FAILED", "/jobs: must hold at least one job")
                return {"valid": True, "jobs": len(body["jobs"]), "edges": 7}
            case ("POST", "cancel", None):
                start = int(body.pop("page_token", "0"))
                matching = [run for run in self.runs.values() if all(run.get(name) == body[name] for name in body)]
                for run in matching[start : start + 1]:  # Each page has one run.
                    run["status"] = "cancelled"
                ids = [run["workflow_id"] for run in matching[start : start + 1]]
                return {"cancelled": ids, "next_page_token": str(start + 1) if start + 1 < len(matching) else None}
            case ("GET", None, None):
                runs = [
                    {name: value for name, value in run.items() if name != "jobs"}
                    for run in reversed(self.runs.values())
                    if all(run[name] in query[name] for name in ("status", "name", "correlation_id") if name in query)
                ]
                return {"workflows": runs[start : start + size], "next_page_token": None}
        if name not in self.runs:
            raise Problem(404, "WORKFLOW_NOT_FOUND", f"Workflow with ID {name} not found")
        run = self.runs[name]
        statuses = [job["status"] for job in run["jobs"]]
        match (method, verb):
            case ("GET", "stats"):
                known = ("completed", "failed", "skipped", "cancelled", "waiting", "scheduled", "pending", "running")
                ended = sum(status in TERMINAL for status in statuses)
                shown: dict[str, Any] = {"total": len(statuses), **{each: statuses.count(each) for each in known}}
                return shown | {"completion_percentage": round(100 * ended / len(statuses), 1)}
            case ("GET", "graph"):
                return f"{query['format'][0]} of {run['name']}\n"
            case ("POST", "cancel" | "retry" | "pause" | "resume" | "decisions"):
                at_once = verb == "cancel" and "running" not in statuses
                run["status"] = "cancelled" if at_once else "paused" if verb == "pause" else "running"
                run["cancel_requested"] = verb == "cancel"
        more = str(start + size) if start + size < len(statuses) else None
        return {**run, "jobs": run["jobs"][start : start + size], "next_page_token": more}

    def _start_run(self, body: Any) -> dict[str, Any]:
        workflow_id = str(uuid7())
        names = ("description", "correlation_id", "error", "result", "finished_at")
        jobs = [
            {
                "name": job["name"], "job_id": str(uuid7()), "job_type": job.get("job_type", job["name"]),
                "status": "waiting" if job.get("depends_on") else "pending", "error": None, "verdict": None,
            }
            for job in body["jobs"]
        ]  # fmt: skip
        run = {"workflow_id": workflow_id, **dict.fromkeys(names), "status": "running", "created_at": _now()}
        line = {"at": _now(), "event": "created", "by": "k1", "why": None}
        run |= {"total": len(jobs), "cancel_requested": False, "undecided": [], "events": [line]}
        self.runs[workflow_id] = {**run, **body, "jobs": jobs}
        return {**self.runs[workflow_id], "next_page_token": None}

    def _create(self, body: Any) -> dict[str, Any]:
        job_id = body.get("job_id") or str(uuid7())
        shown: dict[str, Any] = dict.fromkeys(
            ("name", "job_health", "message", "payload", "result", "error", "waiting_for", "verdict", "workflow_id",
             "batch_id", "trace_id", "correlation_id", "scheduled_at", "started_at", "finished_at")
        )  # fmt: skip
        shown |= {
            "job_id": job_id, "job_type": body["job_type"], "queue": "default", "priority": "normal",
            "status": "scheduled" if body.get("scheduled_at") else "pending", "dependency_status": "none",
            "job_stage": "submit", "progress": 0.0, "milestones": [], "fields": {}, "tags": [], "attempt": 1,
            "max_attempts": body.get("retry", {}).get("max_attempts", 1), "depends_on": [],
            "cancel_requested": False, "created_at": _now(), "updated_at": _now(),
        }  # fmt: skip
        shown |= {name: value for name, value in body.items() if name in shown}
        self.jobs[job_id] = Job(shown)
        return dict(shown)

    def _list(self, query: dict[str, list[str]]) -> dict[str, Any]:
        size, start = int(query["page_size"][0]), int(query.get("page_token", ["0"])[0])
        newest_first = [
            {name: value for name, value in job.shown.items() if name not in ("payload", "result")}
            for job in reversed(self.jobs.values())
            if job.shown["status"] in query.get("status", [job.shown["status"]])
            and job.shown["queue"] in query.get("queue", [job.shown["queue"]])
        ]
        more = start + size < len(newest_first)
        return {"jobs": newest_first[start : start + size], "next_page_token": str(start + size) if more else None}

    def _claim(self, queue: str, body: Any, poll_s: int) -> list[dict[str, Any]]:
        if body["claim_id"] not in self._claims:
            self._long_poll(lambda: self._ready(queue), poll_s)
            ready = self._ready(queue)[: body["max"]]
            for job in ready:
                job.token, job.lease_s, job.worker = str(uuid4()), body["lease"], body.get("worker")
                job.extend_lease(job.lease_s)
                job.shown.update(status="running", started_at=_now())
            self._claims[body["claim_id"]] = [(job.shown["job_id"], job.token or "") for job in ready]
            self.most_leased = max(self.most_leased, sum(job.token is not None for job in self.jobs.values()))
        granted = [(self.jobs[job_id], token) for job_id, token in self._claims[body["claim_id"]]]
        return [
            {
                **job.shown,
                "lease_token": token,
                "lease_expires_at": job.lease_text,
                **self.inline_dependencies(job.shown["job_id"]),
            }
            for job, token in granted
        ]

    def inline_dependencies(self, job_id: str) -> dict[str, Any]:
        """Return the members about dependencies of a claim or an event."""
        names = self.depends_on.get(job_id, {})
        entries = {name: self._dependency(names[name]) for name in list(names)[:2]}
        is_truncated = len(names) > 2 or any(entry["truncated"] for entry in entries.values())
        return {
            "dependencies": entries,
            "dependencies_truncated": is_truncated,
            "dependencies_url": f"/v1/jobs/{job_id}/dependencies/results" if is_truncated else None,
        }

    def _dependency(self, job_id: str, max_chars: int = 20) -> dict[str, Any]:
        shown = self.jobs[job_id].shown
        fits = len(json.dumps(shown["result"])) <= max_chars
        return {
            "job_id": job_id, "status": shown["status"], "job_health": shown["job_health"],
            "result": shown["result"] if fits else None, "truncated": not fits,
        }  # fmt: skip

    def _dependency_page(self, job_id: str, query: dict[str, list[str]]) -> dict[str, Any]:
        names, start = self.depends_on.get(job_id, {}), int(query.get("page_token", ["0"])[0])
        page = [{"name": name, **self._dependency(names[name], 40)} for name in list(names)[start : start + 2]]
        more = str(start + 2) if start + 2 < len(names) else None
        return {"job_id": job_id, "dependencies": page, "next_page_token": more}

    def _ready(self, queue: str) -> list[Job]:
        ready = [job for job in self.jobs.values() if (job.shown["queue"], job.shown["status"]) == (queue, "pending")]
        return sorted(ready, key=lambda job: -PRIORITIES.index(job.shown["priority"]))

    def _wait(self, body: Any, poll_s: int) -> dict[str, Any]:
        self._long_poll(
            lambda: all(self.jobs[job_id].shown["status"] in TERMINAL for job_id in body["wait_on"]), poll_s
        )
        ended = {job_id: self.jobs[job_id].shown for job_id in body["wait_on"]}
        names = ["job_stage", *body.get("wait_options", {}).get("get_fields", {})]
        waited = {i: {name: job[name] for name in names} for i, job in ended.items() if job["status"] in TERMINAL}
        left = {job_id: None for job_id in body["wait_on"] if job_id not in waited}
        status = {"status": "waiting", "wait_on": left} if left else {"status": "met"}
        return {"wait_id": "w1", "waited_jobs": body.get("waited_jobs", {}) | waited, **status}

    def _report(self, job: Job, body: Any) -> None:
        self._fence(job, body)
        if job.shown["status"] in TERMINAL:
            raise Problem(409, "INVALID_TRANSITION", "ended")
        job.shown["fields"] = job.shown["fields"] | body.get("fields", {})
        job.shown["milestones"] = [*job.shown["milestones"], *body.get("milestones", [])]
        job.shown |= {name: body[name] for name in ("job_stage", "progress", "message") if name in body}

    def _heartbeat(self, job: Job, body: Any) -> dict[str, Any]:
        if body.get("first") and job.used:
            raise Problem(409, "LEASE_LOST", "the lease was used before")
        job.used = True
        if body.keys() - {"lease_token"} or job.ends_at - time.monotonic() <= job.lease_s / 2:
            job.extend_lease(body.get("lease", job.lease_s))
        job.shown |= {name: body[name] for name in ("progress", "message") if name in body}
        return {
            "job_id": job.shown["job_id"],
            "status": "running",
            "cancel_requested": job.shown["cancel_requested"],
            "lease_expires_at": job.lease_text,
        }

    def _complete(self, job: Job, body: Any) -> dict[str, Any]:
        return self._ended(job, "completed", result=body.get("result"), job_stage="complete", job_health="success")

    def _fail(self, job: Job, body: Any) -> dict[str, Any]:
        if job.shown["cancel_requested"]:
            return self._ended(job, "cancelled", error=body["error"], job_stage="incomplete")
        if body.get("retryable", True) and job.shown["attempt"] < job.shown["max_attempts"]:
            job.token = None
            job.shown.update(status="pending", attempt=job.shown["attempt"] + 1, error=body["error"])
            return dict(job.shown)
        return self._ended(job, "failed", error=body["error"], job_stage="incomplete", job_health="failed")

    def _release(self, job: Job, body: Any) -> dict[str, Any]:
        job.token = None
        job.shown.update(status="pending", started_at=None)
        return dict(job.shown)

    def _cancel(self, job: Job) -> tuple[int, Any]:
        if job.shown["status"] == "running":
            job.shown["cancel_requested"] = True
            return 202, dict(job.shown)
        self._allow(job, "scheduled", "waiting", "pending")
        return 200, self._ended(job, "cancelled", job_stage="incomplete")

    def _ended(self, job: Job, status: str, **more: Any) -> dict[str, Any]:
        job.token = None
        job.shown.update(status=status, finished_at=_now(), **more)
        return dict(job.shown)

    def _fence(self, job: Job, body: Any) -> None:
        if body.get("lease_token") != job.token:
            raise Problem(409, "LEASE_LOST", "another worker has the lease")

    def _allow(self, job: Job, *statuses: str) -> None:
        if job.shown["status"] not in statuses:
            raise Problem(409, "INVALID_TRANSITION", f"the job is {job.shown['status']}")

    def _expire_leases(self) -> None:
        for job_id, job in self.jobs.items():
            if job.token and time.monotonic() > job.ends_at:
                self.expired_leases.append(job_id)
                job.token = None
                if job.shown["attempt"] < job.shown["max_attempts"]:
                    job.shown.update(status="pending", attempt=job.shown["attempt"] + 1)
                else:
                    self._ended(job, "failed", error={"code": "LEASE_EXPIRED", "message": "the lease expired"})
                self.changed.notify_all()

    def _long_poll(self, over: Callable[[], Any], poll_s: int) -> None:
        deadline = time.monotonic() + poll_s
        while not (over() or self.closing) and time.monotonic() < deadline:
            self.changed.wait(0.05)
            self._expire_leases()


def _now() -> str:
    return to_text(datetime.now(UTC))
