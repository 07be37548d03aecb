"""The worker: it claims jobs of a queue and runs a function on each. See docs/workers.md."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias
from uuid import uuid4

from vigil import _forks as forks
from vigil.client import Vigil
from vigil.errors import VigilError
from vigil.models import Json
from vigil_core.domain.text_limits import truncate_message
from vigil_tasks.errors import Cancelled, Permanent
from vigil_tasks.job_handle import PROGRESS_INTERVAL_S, Completed, Failed, JobHandle, Outcome

__all__ = ["Cancelled", "ClaimedJob", "Handler", "Permanent", "Worker"]

LOG = logging.getLogger("vigil.worker")

MAX_CLAIM = 10
"""The API grants at most this many jobs per claim."""
MAX_NAME_CHARS = 128

_EMPTY_CLAIM_INTERVAL_S = 1.0
"""The shortest time between two claims of an empty queue, if the API does not long-poll."""
_MAX_BACKOFF_S = 30.0
_RELEASE_TIMEOUT_S = 10.0
_CLAIM_RESPONSE_S = 15.0
"""The time for the answer of a claim after its long poll. Without an answer the worker repeats the claim."""
_MIN_REQUEST_TIMEOUT_S = 5.0
"""The shortest timeout of a heartbeat or outcome, even for a short lease: an idle API takes seconds to answer."""


_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ClaimedJob(JobHandle):
    """A claimed job, as its handler sees it. `document` is the whole answer of the claim."""

    log = LOG
    max_heartbeat_interval_s = 5.0

    def __init__(self, client: Vigil, document: Json, lease_s: float) -> None:
        super().__init__(document, lease_s)
        self.document = document
        self._client = client
        if document["cancel_requested"]:
            self.cancel_requested.set()

    def _run(self, handler: Handler) -> None:
        """Run the handler and report its outcome, with heartbeats until Vigil has accepted the outcome."""
        with self._heartbeats():
            outcome = self._run_handler(handler)
            try:
                self._report_or_fail(outcome)
            except VigilError as error:
                LOG.error("job %s: Vigil refuses the outcome: %s", self.job_id, error)

    def _report_or_fail(self, outcome: Outcome) -> None:
        """Report the outcome. If Vigil refuses the result (for example as too large), report a failure instead."""
        try:
            self._report_until_known(outcome)
        except VigilError as refusal:
            LOG.warning("job %s: Vigil refuses the result: %s", self.job_id, refusal)
            message = truncate_message(str(refusal))
            self._report_until_known(Failed(refusal.code, message, retryable=refusal.status == 500))

    def _report_until_known(self, outcome: Outcome) -> None:
        """Report the outcome, and retry transient errors until Vigil accepts it or the lease is lost.

        Raises:
            VigilError: Vigil refused the outcome.
        """
        while not self.lost.is_set():
            try:
                with self._report_lock:
                    job = self._send_outcome(outcome)
                    self._mark_ended()
            except VigilError as error:
                if error.is_job_lost:
                    self._mark_lost(error)
                elif not error.is_transient:
                    raise
                else:
                    self.lost.wait(random.uniform(0, min(PROGRESS_INTERVAL_S, self._lease_s / 6)))
            else:
                LOG.info("job %s is %s", self.job_id, job["status"])
                return
        LOG.warning("job %s: its outcome is dropped", self.job_id)

    def _send_outcome(self, outcome: Outcome) -> Json:
        client = self._client.bounded(max(_MIN_REQUEST_TIMEOUT_S, self._lease_s / 3))
        if isinstance(outcome, Completed):
            return client.complete(self.job_id, outcome.result, lease_token=self._token)
        return client.fail(
            self.job_id,
            outcome.code,
            outcome.message,
            exception_type=outcome.type,
            traceback=outcome.traceback,
            retryable=outcome.retryable,
            lease_token=self._token,
        )

    def _send_report(
        self,
        *,
        stage: str | None,
        milestones: Sequence[str] | None,
        fields: Mapping[str, Any] | None,
        message: str | None,
    ) -> Json:
        return self._client.report(
            self.job_id,
            stage=stage,
            milestones=milestones,
            fields=fields,
            message=message,
            lease_token=self._token,
        )

    def _send_heartbeat(self, progress: Mapping[str, Any]) -> Json:
        remaining_s = self._lease_renewed_at + self._lease_s - time.monotonic()
        within_s = max(_MIN_REQUEST_TIMEOUT_S, min(self._lease_s / 3, remaining_s))
        return self._client.bounded(within_s).heartbeat(self.job_id, lease_token=self._token, **progress)

    def _fetch_dependencies(self) -> Iterable[Mapping[str, Any]]:
        return self._client._dependency_pages(self.job_id)

    def _fetch_result(self, job_id: str) -> Any:
        return self._client._result_of(job_id)

    def _is_lease_over(self) -> bool:
        return time.monotonic() >= self._lease_renewed_at + self._lease_s

    def _release(self) -> None:
        """Release the job while its handler still runs, unless its outcome was accepted in the meantime.

        1. Take the report lock, so that a report of the outcome in progress finishes first. Wait for a second at most.
        2. Mark the job as lost and ended, so that no further heartbeat or outcome is sent.
        3. Release the job if it was neither ended nor lost in step 1.
        """
        locked = self._report_lock.acquire(timeout=PROGRESS_INTERVAL_S)
        ended = self._ended.is_set() or self.lost.is_set()
        self.lost.set()
        self._mark_ended()
        if locked:
            self._report_lock.release()
        if ended:
            return
        try:
            self._client.bounded(_RELEASE_TIMEOUT_S).release(self.job_id, lease_token=self._token)
            LOG.info("job %s is released", self.job_id)
        except VigilError as error:
            LOG.warning("job %s cannot be released: %s", self.job_id, error)


Handler: TypeAlias = Callable[[ClaimedJob], Any]
"""A function that takes the job and returns its result: any JSON value."""


@dataclass(frozen=True)
class _StopRequested:
    """SIGTERM, SIGINT or `stop`."""


@dataclass(frozen=True)
class _GraceOver:
    """The deadline of a graceful stop has passed."""


@dataclass(frozen=True)
class _JobEnded:
    job: ClaimedJob


@dataclass(frozen=True)
class _JobsClaimed:
    jobs: list[ClaimedJob]


@dataclass(frozen=True)
class _ClaimRefused:
    error: VigilError


_Event: TypeAlias = _StopRequested | _GraceOver | _JobEnded | _JobsClaimed | _ClaimRefused


class Worker:
    """Runs `handler` on the jobs of a queue, each in a thread.

    It claims only as many jobs as it has free threads.

    Args:
        concurrency: The largest number of jobs at the same time.
        lease: The length of a lease in seconds. Heartbeats extend it while the handler runs.
        name: The name of the worker in the API. The default is host:pid.
        grace: The time that running handlers get when the worker stops, in seconds.
        hold: The length of a claim's long poll in seconds, up to 25. An idle worker may take this long to stop.
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
            raise ValueError("concurrency must be at least 1")
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"[:MAX_NAME_CHARS]
        self._client = client
        self._queue = queue
        self._handler = handler
        self._concurrency = concurrency
        self._lease = lease
        self._grace_s = grace
        self._long_poll_s = hold
        # Only the thread of `run` reads the inbox and changes the four attributes of the loop's state below. A
        # SimpleQueue's `put` is reentrant, so that a signal handler may call it.
        self._inbox: SimpleQueue[_Event] = SimpleQueue()
        self._running: set[ClaimedJob] = set()
        self._is_claiming = False
        self._stop_deadline: float | None = None
        self._is_aborted = False
        self._refusal: VigilError | None = None
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Stop gracefully, as SIGTERM does. A second call stops at once. Any thread may call this."""
        self._inbox.put(_StopRequested())

    def run(self) -> None:
        """Work until SIGTERM, SIGINT or `stop`.

        The worker then claims no more jobs, gives the running handlers their grace and releases the jobs that have not
        ended. A second signal releases them at once. A released job's handler cannot be interrupted: it runs until it
        checks `lost` or the process ends.

        Raises:
            VigilError: The API refuses claims. The worker first stops in the same way.
        """
        self._reset()
        LOG.info("%s works on queue %s, up to %d jobs at once", self.name, self._queue, self._concurrency)
        with self._handle_signals():
            while not self._is_finished():
                self._claim_for_free_slots()
                self._process(self._next_event())
        LOG.info("stopped")
        if self._refusal is not None:
            raise self._refusal

    def _reset(self) -> None:
        self._running.clear()
        self._is_claiming = False
        self._stop_deadline = None
        self._is_aborted = False
        self._refusal = None
        self._stopping.clear()

    def _is_finished(self) -> bool:
        """Return whether the worker is stopping and nothing is left: no running job and no claim without an answer."""
        if self._is_aborted:
            return True
        return self._stop_deadline is not None and not self._running and not self._is_claiming

    def _claim_for_free_slots(self) -> None:
        """Start a claim in a thread if there are free slots. At most one claim is open at a time."""
        free = self._concurrency - len(self._running)
        if free and not self._is_claiming and self._stop_deadline is None:
            self._is_claiming = True
            _start_thread(self._claim, min(free, MAX_CLAIM))

    def _next_event(self) -> _Event:
        """Wait for the next event. While jobs run, the wait ends at the deadline of a graceful stop."""
        deadline = self._stop_deadline if self._running else None
        try:
            return self._inbox.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except Empty:
            return _GraceOver()

    def _process(self, event: _Event) -> None:
        match event:
            case _StopRequested() if self._stop_deadline is None:
                self._begin_stop()
            case _StopRequested():
                self._release_all(self._running)
                self._is_aborted = True
            case _GraceOver():
                self._release_all(self._running)
            case _JobEnded(job):
                self._running.discard(job)
            case _JobsClaimed(jobs):
                self._is_claiming = False
                if self._stop_deadline is None:
                    self._start(jobs)
                else:
                    self._release_all(jobs)
            case _ClaimRefused(error):
                LOG.error("Vigil refuses claims: %s", error)
                self._is_claiming = False
                self._refusal = error
                if self._stop_deadline is None:
                    self._begin_stop()

    def _begin_stop(self) -> None:
        LOG.info("stopping: %d running jobs have up to %s s", len(self._running), self._grace_s)
        self._stop_deadline = time.monotonic() + self._grace_s
        self._stopping.set()

    def _start(self, jobs: Sequence[ClaimedJob]) -> None:
        for job in jobs:
            LOG.info("job %s (%s), attempt %d, starts", job.job_id, job.job_type, job.attempt)
            self._running.add(job)
            _start_thread(self._work, job)

    def _work(self, job: ClaimedJob) -> None:
        try:
            job._run(self._handler)
        finally:
            self._inbox.put(_JobEnded(job))

    def _release_all(self, jobs: Sequence[ClaimedJob] | set[ClaimedJob]) -> None:
        """Release jobs in parallel. Wait for a limited time if the API does not answer."""
        threads = [_start_thread(job._release) for job in jobs]
        deadline = time.monotonic() + _RELEASE_TIMEOUT_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._running.difference_update(jobs)

    def _claim(self, free: int) -> None:
        """Claim up to `free` jobs and put them, or the refusal, into the inbox."""
        try:
            self._inbox.put(_JobsClaimed(self._claim_jobs(free)))
        except VigilError as error:
            self._inbox.put(_ClaimRefused(error))
        except Exception as error:
            self._inbox.put(_ClaimRefused(VigilError("NOT_UNDERSTOOD", f"the answer of the claim: {error!r}")))

    def _claim_jobs(self, free: int) -> list[ClaimedJob]:
        """Repeat the claim until it returns jobs or the worker stops.

        A claim whose answer is lost may have granted jobs. The worker repeats it with the same claim id, which returns
        the same jobs, for as long as their leases may last.

        Raises:
            VigilError: The API refused the claim.
        """
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

    @contextmanager
    def _handle_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT. Python allows signal handlers in the main thread only; elsewhere, use `stop`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous_handlers = {number: signal.signal(number, lambda *_: self.stop()) for number in _STOP_SIGNALS}
        forks.reset_in_children(_STOP_SIGNALS)
        try:
            yield
        finally:
            forks.reset_in_children(())
            for number, handler in previous_handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)


def _start_thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
    """Start a daemon thread: the process may exit although a handler still runs."""
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread
