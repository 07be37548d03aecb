"""The handle of a running job: what a handler sees, and the heartbeats that keep the lease.

`vigil.worker` and `vigil_tasks` share it. They differ in how they send requests and in how they end a job.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

from vigil_core.domain.exact_json import dumps
from vigil_core.domain.text_limits import exception_message, exception_type, last_lines, truncate_message
from vigil_core.domain.text_rule import sanitize
from vigil_tasks.dependencies import Dependencies
from vigil_tasks.errors import ApiError, Cancelled, Permanent

MAX_CODE_CHARS = 128
"""The API accepts no longer error code."""
PROGRESS_INTERVAL_S = 1.0
"""The shortest time between two heartbeats. Of the progress in between only the latest is sent."""


@dataclass(frozen=True)
class Completed:
    """The outcome of a handler that returned."""

    result: Any


@dataclass(frozen=True)
class Failed:
    """The outcome of a handler that raised."""

    code: str
    message: str
    retryable: bool
    type: str | None = None
    traceback: str | None = None

    def to_error(self) -> dict[str, str]:
        """Return the error of the report, without the members that are unknown."""
        error = {"code": self.code, "message": self.message, "type": self.type, "traceback": self.traceback}
        return {name: text for name, text in error.items() if text is not None}


Outcome: TypeAlias = Completed | Failed


class JobHandle(ABC):
    """A running job, as its handler sees it. `dependencies` are the results of the jobs that it depends on.

    `cancel_requested` is set when a client cancels the job. `lost` is set when the lease is lost: it expired, or the
    job was released. The handle then drops what the handler returns.

    Three threads use a handle: the handler's, the heartbeat loop, and the one that reports the outcome or releases the
    job. `_report_lock` keeps heartbeats and the outcome apart, so that no heartbeat follows the outcome.
    """

    log: ClassVar[logging.Logger]
    max_heartbeat_interval_s: ClassVar[float] = math.inf
    """The longest time between two heartbeats, however long the lease is: each one asks for a cancel request."""

    def __init__(self, document: Mapping[str, Any], lease_s: float) -> None:
        self.job_id: str = document["job_id"]
        self.job_type: str = document["job_type"]
        self.name: str | None = document["name"]
        self.payload: Any = document["payload"]
        self.fields: dict[str, Any] = document["fields"]
        self.attempt: int = document["attempt"]
        self.dependencies = Dependencies(
            document["dependencies"],
            is_complete=not document.get("dependencies_truncated"),
            fetch_all=self._fetch_dependencies,
            fetch_result=self._fetch_result,
        )
        self.cancel_requested = threading.Event()
        self.lost = threading.Event()
        self._token: str = document["lease_token"]
        self._lease_s = lease_s
        self._lease_expires_at: str | None = document.get("lease_expires_at")
        # Monotonic time of this machine: the system clocks of this machine and of Vigil may differ.
        self._lease_renewed_at = time.monotonic()
        self._deadline = math.inf
        self._ended = threading.Event()
        self._has_progress = threading.Event()
        self._unsent_progress: dict[str, Any] = {}
        self._progress_lock = threading.Lock()
        self._report_lock = threading.Lock()

    def progress(self, value: float, message: str | None = None) -> None:
        """Set the progress, from 0 to 1, and optionally the message of the job.

        The next heartbeat sends it, within a second. This method does not block and does not raise for a refusal.

        Raises:
            ValueError: `value` is not from 0 to 1.
        """
        if not 0 <= value <= 1:
            raise ValueError(f"progress is from 0 to 1, not {value}")
        update = {"progress": value} if message is None else {"progress": value, "message": truncate_message(message)}
        with self._progress_lock:
            self._unsent_progress |= update
        self._has_progress.set()

    def report(
        self,
        *,
        stage: str | None = None,
        milestones: Sequence[str] | None = None,
        fields: Mapping[str, Any] | None = None,
        message: str | None = None,
    ) -> None:
        """Report a stage, milestones, fields or a message at once. Waits can test all but the message.

        Raises:
            ApiError: Vigil refused the report (VigilError in a worker, TaskError in a Lambda function).
            Cancelled: The lease is lost.
        """
        self._raise_if_lost()
        try:
            job = self._send_report(
                stage=stage,
                milestones=milestones,
                fields=fields,
                message=None if message is None else truncate_message(message),
            )
        except ApiError as error:
            # INVALID_TRANSITION may also be about the stage.
            if error.code in ("LEASE_LOST", "JOB_NOT_FOUND"):
                self._mark_lost(error)
                self._raise_if_lost()
            raise
        self._note_cancel_request(job)

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled if a client cancelled the job or the lease is lost. Call it regularly in a long handler."""
        self._raise_if_lost()
        if self.cancel_requested.is_set():
            raise Cancelled(f"Job {self.job_id} was asked to cancel")

    # Requests: each subclass sends them in its own way and raises ApiError.

    @abstractmethod
    def _send_report(
        self,
        *,
        stage: str | None,
        milestones: Sequence[str] | None,
        fields: Mapping[str, Any] | None,
        message: str | None,
    ) -> Mapping[str, Any]:
        """Send a report and return the job."""

    @abstractmethod
    def _send_heartbeat(self, progress: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send one heartbeat with the progress and return the answer."""

    @abstractmethod
    def _fetch_dependencies(self) -> Iterable[Mapping[str, Any]]:
        """Read all dependencies of the job, page by page."""

    @abstractmethod
    def _fetch_result(self, job_id: str) -> Any:
        """Read the result of another job."""

    # Running the handler

    def _run_handler(self, handler: Callable[[Self], Any]) -> Outcome:
        """Run the handler and return its outcome. A result that is not JSON is a failure of the handler.

        A coroutine runs in an event loop of its own, in the thread of the handler.
        """
        try:
            result = handler(self)
            if isinstance(result, Coroutine):
                result = _run_coroutine(result)
            dumps(result).encode()
        except BaseException as error:
            first_frame = error.__traceback__  # This method's own; the report starts with the handler's.
            trace = sanitize(
                "".join(traceback.format_exception(type(error), error, first_frame and first_frame.tb_next))
            )
            self.log.warning("job %s failed\n%s", self.job_id, trace.rstrip())
            code = "CANCELLED" if isinstance(error, Cancelled) else type(error).__name__[:MAX_CODE_CHARS]
            return Failed(
                code,
                exception_message(error),
                retryable=not isinstance(error, Permanent),
                type=exception_type(error),
                traceback=last_lines(trace),
            )
        return Completed(result)

    @contextmanager
    def _heartbeats(self) -> Iterator[None]:
        """Send heartbeats in a thread while the block runs."""
        thread = threading.Thread(target=self._heartbeat_loop, name=f"heartbeats of {self.job_id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._mark_ended()
            thread.join()

    def _heartbeat_loop(self) -> None:
        """Send a heartbeat every third of the lease or more often, and at once after progress or a failed heartbeat."""
        interval_s = min(self._lease_s / 3, self.max_heartbeat_interval_s)
        min_interval_s = min(PROGRESS_INTERVAL_S, interval_s / 2)
        next_heartbeat_at = time.monotonic() + interval_s
        while True:
            self._has_progress.wait(max(0.0, min(next_heartbeat_at, self._deadline) - time.monotonic()))
            with self._report_lock:
                if self._ended.is_set() or self.lost.is_set():
                    return
                if time.monotonic() >= self._deadline:
                    self._on_deadline()
                    return
                acknowledged = self._heartbeat()
                next_heartbeat_at = time.monotonic() + (interval_s if acknowledged else min_interval_s)
            if self._ended.wait(min_interval_s):
                return

    def _heartbeat(self) -> bool:
        """Send a heartbeat and return whether Vigil acknowledged it. After a transient error, keep its progress."""
        self._has_progress.clear()
        with self._progress_lock:
            progress, self._unsent_progress = self._unsent_progress, {}
        sent_at = time.monotonic()
        try:
            answer = self._send_heartbeat(progress)
        except ApiError as error:
            if error.is_job_lost or self._is_lease_over():
                self._mark_lost(error)
            else:
                self.log.warning("job %s: heartbeat failed: %s", self.job_id, error)
            if error.is_transient:
                with self._progress_lock:
                    self._unsent_progress = progress | self._unsent_progress
            return False
        if answer.get("lease_expires_at") != self._lease_expires_at:  # Early heartbeats extend no lease.
            self._lease_expires_at = answer.get("lease_expires_at")
            self._lease_renewed_at = sent_at
        self._note_cancel_request(answer)
        return True

    def _is_lease_over(self) -> bool:
        """Return whether the lease has expired by this machine's clock."""
        return False

    def _on_deadline(self) -> None:
        """Report that the time of the attempt is over. Only a handle with a deadline overrides this."""
        raise NotImplementedError

    # State

    def _note_cancel_request(self, answer: Mapping[str, Any]) -> None:
        if answer.get("cancel_requested"):
            self.cancel_requested.set()

    def _mark_lost(self, error: ApiError) -> None:
        self.log.warning("job %s: the lease is lost: %s", self.job_id, error)
        self.lost.set()

    def _mark_ended(self) -> None:
        self._ended.set()
        self._has_progress.set()  # Wakes the heartbeat loop.

    def _raise_if_lost(self) -> None:
        if self.lost.is_set():
            raise Cancelled(f"The lease of job {self.job_id} is lost")


def _run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    import asyncio  # Only a handler that is a coroutine function pays for this import.

    async def run() -> Any:
        return await coroutine

    return asyncio.run(run())
