"""The worker: claims jobs of a queue and runs a function on each. See docs/workers.md."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias
from uuid import uuid4

from vigil.client import Json, Vigil, VigilError
from vigil_core.domain.exact_json import dumps
from vigil_core.domain.text_limits import format_exception, sanitize, truncate_message

LOG = logging.getLogger("vigil.worker")

MAX_CLAIM = 10
"""The API hands out no more at once."""
MAX_NAME = 128

_PROGRESS_INTERVAL_S = 1.0
"""Progress is sent no more often: of what a handler says in between, the newest counts."""
_EMPTY_CLAIM_INTERVAL_S = 1.0
"""An empty queue is asked no more often, should answers not be held."""
_MAX_BACKOFF_S = 30.0
_RELEASE_TIMEOUT_S = 10.0
_CLAIM_RESPONSE_S = 15.0
"""A claim that was held is then answered within this time, or asked for anew."""
_MIN_REQUEST_TIMEOUT_S = 5.0
"""No heartbeat or outcome is given up sooner, however short the lease: an API that was idle takes seconds to answer."""


class Permanent(Exception):
    """Raised by a handler: the job failed, and trying it again is of no use."""


class Cancelled(Exception):
    """Raised by `raise_if_cancelled`: the job is to end, or is no longer this worker's."""


class ClaimedJob:
    """A job as its handler sees it. `dependencies` are the results of the jobs it depends on, `document` is all that
    the API told of it when it was claimed.

    `cancel_requested` is set when the job was asked to cancel; `lost` when it is no longer this worker's: its lease
    ended, or it was given back. Whatever the handler returns then is dropped.
    """

    def __init__(self, client: Vigil, document: Json, lease_s: float) -> None:
        self.job_id: str = document["job_id"]
        self.job_type: str = document["job_type"]
        self.name: str | None = document["name"]
        self.payload: Any = document["payload"]
        self.fields: Json = document["fields"]
        self.attempt: int = document["attempt"]
        self.dependencies: Json = document["dependencies"]
        self.document = document
        self.cancel_requested = threading.Event()
        self.lost = threading.Event()
        self._client = client
        self._token: str = document["lease_token"]
        self._lease_s = lease_s
        # Measured here and monotonic: no clock has to be right, here or there.
        self._lease_expires = time.monotonic() + lease_s
        self._progress_pending = threading.Event()
        self._ended = threading.Event()
        self._unsent: Json = {}
        self._progress_lock = threading.Lock()
        self._report_lock = threading.Lock()
        if document["cancel_requested"]:
            self.cancel_requested.set()

    def progress(self, value: float, message: str | None = None) -> None:
        """Say how far it is, from 0 to 1. It is sent in the background within a second; never blocks, never fails."""
        if not 0 <= value <= 1:
            raise ValueError(f"progress is from 0 to 1, not {value}")
        update = {"progress": value} if message is None else {"progress": value, "message": truncate_message(message)}
        with self._progress_lock:
            self._unsent |= update
        self._progress_pending.set()

    def report(
        self,
        *,
        stage: str | None = None,
        milestones: Sequence[str] | None = None,
        fields: Mapping[str, Any] | None = None,
        message: str | None = None,
    ) -> None:
        """Report what others can wait for, at once. Raises VigilError for what the API refuses, Cancelled when the job
        is no longer this worker's."""
        self._raise_if_lost()
        try:
            job = self._client.report(
                self.job_id,
                stage=stage,
                milestones=milestones,
                fields=fields,
                message=None if message is None else truncate_message(message),
                lease_token=self._token,
            )
        except VigilError as error:
            # INVALID_TRANSITION may be about the stage.
            if error.code in ("LEASE_LOST", "JOB_NOT_FOUND"):
                self._mark_lost(error)
                self._raise_if_lost()
            raise
        if job.get("cancel_requested"):
            self.cancel_requested.set()

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled when the job was asked to cancel, or is no longer this worker's. Call it now and then."""
        self._raise_if_lost()
        if self.cancel_requested.is_set():
            raise Cancelled(f"Job {self.job_id} was asked to cancel")

    def _raise_if_lost(self) -> None:
        if self.lost.is_set():
            raise Cancelled(f"Job {self.job_id} is no longer this worker's")

    # What the worker does with it

    def _run(self, handler: Handler) -> None:
        """Run the handler and tell what came of it, with heartbeats all the while."""
        heartbeat_thread = threading.Thread(target=self._heartbeat_loop, name=f"heart of {self.job_id}", daemon=True)
        heartbeat_thread.start()
        try:
            report_outcome = self._attempt(handler)
            try:
                self._report_until_known(report_outcome)
            except VigilError as refusal:
                # The result is what is wrong, say too large: then that is how the job ends.
                LOG.warning("job %s: the result is refused: %s", self.job_id, refusal)
                self._report_until_known(self._failure(refusal.code, str(refusal), retryable=refusal.status == 500))
        except VigilError as error:
            LOG.error("job %s: what came of it cannot be told: %s", self.job_id, error)
        finally:
            self._mark_ended()
            heartbeat_thread.join()

    def _attempt(self, handler: Handler) -> ReportOutcome:
        """Run the handler; how to tell what came of it."""
        try:
            result = handler(self)
            dumps(result).encode()  # What is not JSON is the handler's failure.
        except BaseException as error:
            first_frame = error.__traceback__
            trace = sanitize(
                "".join(traceback.format_exception(type(error), error, first_frame and first_frame.tb_next))
            )
            LOG.warning("job %s failed\n%s", self.job_id, trace.rstrip())
            code = "CANCELLED" if isinstance(error, Cancelled) else type(error).__name__[:MAX_NAME]
            return self._failure(code, format_exception(error, trace), retryable=not isinstance(error, Permanent))
        return lambda client: client.complete(self.job_id, result, lease_token=self._token)

    def _failure(self, code: str, message: str, *, retryable: bool) -> ReportOutcome:
        return lambda client: client.fail(
            self.job_id, code, truncate_message(message), retryable=retryable, lease_token=self._token
        )

    def _report_until_known(self, report_outcome: ReportOutcome) -> None:
        """Tell how it ended, as often as it takes, until that is known or the job is lost. Raises VigilError for a
        refusal."""
        while not self.lost.is_set():
            try:
                with self._report_lock:
                    job = report_outcome(self._client.bounded(max(_MIN_REQUEST_TIMEOUT_S, self._lease_s / 3)))
                    self._mark_ended()
            except VigilError as error:
                if _is_loss(error):
                    self._mark_lost(error)
                elif not error.is_transient:
                    raise
                else:
                    self.lost.wait(random.uniform(0, min(_PROGRESS_INTERVAL_S, self._lease_s / 6)))
            else:
                LOG.info("job %s is %s", self.job_id, job["status"])
                return
        LOG.warning("job %s: its outcome is dropped", self.job_id)

    def _heartbeat_loop(self) -> None:
        """Heartbeats until the end: every third of the lease, sooner when there is progress to tell or the last one
        failed."""
        interval_s = self._lease_s / 3
        min_interval_s = min(_PROGRESS_INTERVAL_S, interval_s / 2)
        due = self._lease_expires - 2 * interval_s
        while True:
            self._progress_pending.wait(max(0.0, due - time.monotonic()))
            with self._report_lock:
                if self._ended.is_set() or self.lost.is_set():
                    return
                left_s = self._lease_expires - time.monotonic()
                acknowledged = self._send_heartbeat(max(_MIN_REQUEST_TIMEOUT_S, min(interval_s, left_s)))
                due = time.monotonic() + (interval_s if acknowledged else min_interval_s)
            if self._ended.wait(min_interval_s):
                return

    def _send_heartbeat(self, within_s: float) -> bool:
        """Send one; whether it was heard."""
        self._progress_pending.clear()
        with self._progress_lock:
            progress, self._unsent = self._unsent, {}
        sent_at = time.monotonic()
        try:
            response = self._client.bounded(within_s).heartbeat(self.job_id, lease_token=self._token, **progress)
        except VigilError as error:
            if _is_loss(error) or time.monotonic() >= self._lease_expires:
                self._mark_lost(error)
            else:
                LOG.warning("job %s: heartbeat failed: %s", self.job_id, error)
            if error.is_transient:
                with self._progress_lock:
                    self._unsent = progress | self._unsent
            return False
        self._lease_expires = sent_at + self._lease_s
        if response.get("cancel_requested"):
            self.cancel_requested.set()
        return True

    def _release(self) -> None:
        """Release it while its handler still runs."""
        # What is being told right now may be how it ended.
        locked = self._report_lock.acquire(timeout=_PROGRESS_INTERVAL_S)
        ended = self._ended.is_set() or self.lost.is_set()
        self.lost.set()
        self._mark_ended()
        if locked:
            self._report_lock.release()
        if ended:
            return
        try:
            self._client.bounded(_RELEASE_TIMEOUT_S).release(self.job_id, lease_token=self._token)
            LOG.info("job %s was given back", self.job_id)
        except VigilError as error:
            LOG.warning("job %s could not be given back: %s", self.job_id, error)

    def _mark_lost(self, error: VigilError) -> None:
        LOG.warning("job %s is lost: %s", self.job_id, error)
        self.lost.set()

    def _mark_ended(self) -> None:
        self._ended.set()
        self._progress_pending.set()


Handler: TypeAlias = Callable[[ClaimedJob], Any]
"""Takes the job, returns its result: anything that is JSON."""
ReportOutcome: TypeAlias = Callable[[Vigil], Json]


@dataclass(frozen=True)
class _SignalReceived:
    number: int


@dataclass(frozen=True)
class _JobEnded:
    job: ClaimedJob


@dataclass(frozen=True)
class _JobsClaimed:
    jobs: list[ClaimedJob]


@dataclass(frozen=True)
class _ClaimRefused:
    error: VigilError


class Worker:
    """Runs `handler` on the jobs of a queue, up to `concurrency` at once, each in a thread. Never claims more than it
    can run. A job is this worker's for `lease` seconds at a time, extended by heartbeats while the handler runs.

    `grace` is how many seconds running handlers get when it is to stop; `hold` how many a claim waits for a job, up to
    25, and so how long an idle worker may take to stop.
    """

    def __init__(
        self,
        client: Vigil,
        queue: str,
        handler: Handler,
        *,
        concurrency: int = 1,
        lease: int = 60,
        name: str | None = None,
        grace: float = 30,
        hold: int = 20,
    ) -> None:
        if concurrency < 1:
            raise ValueError("concurrency is at least 1")
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"[:MAX_NAME]
        self._client = client
        self._queue = queue
        self._handler = handler
        self._concurrency = concurrency
        self._lease = lease
        self._grace_s = grace
        self._long_poll_s = hold
        # All that happens comes through here, one thing at a time. Unlike most, its `put` may be called by a signal.
        self._inbox: SimpleQueue[_SignalReceived | _JobEnded | _JobsClaimed | _ClaimRefused] = SimpleQueue()
        self._stopping = threading.Event()
        self._running: set[ClaimedJob] = set()

    def stop(self) -> None:
        """Stop as SIGTERM does: gracefully, and at once when called again. From any thread."""
        self._inbox.put(_SignalReceived(signal.SIGTERM))

    def run(self) -> None:
        """Work until SIGTERM or SIGINT, or `stop`. Then: claim no more, give running handlers their grace, give back
        what has not ended; after a second signal, give it back at once.

        A handler cannot be ended from outside: one whose job was given back goes on until it notices, or the process
        ends.
        Raises VigilError when the API refuses claims altogether, after the same stop.
        """
        self._stopping.clear()
        refusal: VigilError | None = None
        claiming = False
        deadline: float | None = None
        LOG.info("%s works on queue %s, %d at once", self.name, self._queue, self._concurrency)
        with self._handle_signals():
            while True:
                free = self._concurrency - len(self._running)
                if free and not claiming and deadline is None:
                    claiming = True
                    self._start_thread(self._claim, min(free, MAX_CLAIM))
                if deadline is not None and not self._running and not claiming:
                    break
                match self._next_event(deadline if self._running else None):
                    case _SignalReceived() if deadline is None:
                        LOG.info("stopping: %d jobs run, up to %s s", len(self._running), self._grace_s)
                        deadline = time.monotonic() + self._grace_s
                        self._stopping.set()
                    case _SignalReceived():
                        self._release_all(self._running)
                        break
                    case None:
                        self._release_all(self._running)
                    case _JobEnded(job):
                        self._running.discard(job)
                    case _JobsClaimed(jobs):
                        claiming = False
                        if deadline is None:
                            self._start(jobs)
                        else:
                            self._release_all(jobs)
                    case _ClaimRefused(error):
                        claiming = False
                        LOG.error("claims are refused: %s", error)
                        refusal = error
                        deadline = deadline or time.monotonic() + self._grace_s
                        self._stopping.set()
        LOG.info("stopped")
        if refusal is not None:
            raise refusal

    def _next_event(self, deadline: float | None) -> _SignalReceived | _JobEnded | _JobsClaimed | _ClaimRefused | None:
        """What happens next; None when the deadline passes first."""
        try:
            return self._inbox.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except Empty:
            return None

    def _start(self, jobs: Sequence[ClaimedJob]) -> None:
        for job in jobs:
            LOG.info("job %s (%s), attempt %d, begins", job.job_id, job.job_type, job.attempt)
            self._running.add(job)
            self._start_thread(self._work, job)

    def _work(self, job: ClaimedJob) -> None:
        try:
            job._run(self._handler)
        finally:
            self._inbox.put(_JobEnded(job))

    def _release_all(self, jobs: Sequence[ClaimedJob] | set[ClaimedJob]) -> None:
        """All at once, and without waiting for an API that does not answer."""
        releases = [self._start_thread(job._release) for job in jobs]
        deadline = time.monotonic() + _RELEASE_TIMEOUT_S
        for release in releases:
            release.join(max(0.0, deadline - time.monotonic()))
        self._running.difference_update(jobs)

    def _claim(self, free: int) -> None:
        """Have up to so many jobs claimed, or the refusal, come through the inbox."""
        try:
            self._inbox.put(_JobsClaimed(self._claim_jobs(free)))
        except VigilError as error:
            self._inbox.put(_ClaimRefused(error))
        except Exception as error:
            self._inbox.put(_ClaimRefused(VigilError("NOT_UNDERSTOOD", f"the claim's answer: {error!r}")))

    def _claim_jobs(self, free: int) -> list[ClaimedJob]:
        """Ask until there is a job, or it is to stop. An answer that was lost is asked for again under the same id, for
        as long as what it granted may still be leased."""
        claim_id, first_sent_at = str(uuid4()), time.monotonic()
        failures = 0
        while not self._stopping.is_set():
            sent_at = time.monotonic()
            try:
                documents = self._client.bounded(self._long_poll_s + _CLAIM_RESPONSE_S).claim(
                    self._queue,
                    max=free,
                    lease=self._lease,
                    worker=self.name,
                    wait=self._long_poll_s,
                    claim_id=claim_id,
                )
                if documents:
                    return [ClaimedJob(self._client, document, self._lease) for document in documents]
                failures = 0
                pause_s = _EMPTY_CLAIM_INTERVAL_S - (time.monotonic() - sent_at)
            except VigilError as error:
                if not (error.is_transient or error.status == 500):
                    raise
                LOG.warning("cannot claim: %s", error)
                failures += 1
                pause_s = random.uniform(0, min(_MAX_BACKOFF_S, 2.0**failures))
            if not failures or time.monotonic() - first_sent_at > self._lease:
                claim_id, first_sent_at = str(uuid4()), time.monotonic()
            self._stopping.wait(max(0.0, pause_s))
        return []

    def _start_thread(self, target: Callable[..., None], *arguments: object) -> threading.Thread:
        """Threads that the process does not wait for: it ends though a handler does not."""
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        return thread

    @contextmanager
    def _handle_signals(self) -> Iterator[None]:
        """Only the main thread may ask for signals; elsewhere there is `stop`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous_handlers = {
            number: signal.signal(number, lambda number, _: self._inbox.put(_SignalReceived(number)))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)


def _is_loss(error: VigilError) -> bool:
    """Whether a refusal means that the job is no longer ours: another has it, or it has ended, or is gone."""
    return error.code in ("LEASE_LOST", "INVALID_TRANSITION", "JOB_NOT_FOUND")
