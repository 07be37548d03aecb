"""The messages between Vigil's functions: to `fan_out`, to the sweeper, and to the supervisor function.

Each kind of message is a frozen dataclass. `to_json` builds the text of a message, and the `parse_...` functions turn
the decoded text back into the dataclass. A message of an unknown kind, or one without a required member, is an error:
it is delivered again and ends as a dead letter.
"""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self, TypeAlias, TypeVar, cast

from vigil_core.domain.exact_json import JsonValue, ascii_size, dumps, loads
from vigil_core.store.keys import DueKind

MAX_MATCH_BYTES = 200 * 1024
"""The size of the rows in one `Match`, as ASCII JSON. SQS allows 256 KB for the whole message."""


@dataclass(frozen=True, kw_only=True)
class _Message:
    """The mapping between a message and JSON: one member for each field that is not None."""

    def to_document(self) -> dict[str, JsonValue]:
        """Return the message as a JSON object."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def to_json(self) -> str:
        """Return the message as JSON text."""
        return dumps(self.to_document())

    @classmethod
    def from_document(cls, document: Mapping[str, JsonValue]) -> Self:
        """Return the message of a JSON object, without the members that this kind does not know.

        Raises:
            TypeError: A required member is missing.
        """
        names = {field.name for field in fields(cls)}
        return cls(**{name: cast("object", value) for name, value in document.items() if name in names})


@dataclass(frozen=True, kw_only=True)
class _KindMessage(_Message):
    """A message whose member `kind` selects its dataclass."""

    KIND: ClassVar[str]

    def to_document(self) -> dict[str, JsonValue]:
        """Return the message as a JSON object that begins with its kind."""
        return {"kind": self.KIND, **super().to_document()}


@dataclass(frozen=True, kw_only=True)
class _RunMessage(_KindMessage):
    """A message about a workflow run, with the ids that logs and traces show."""

    namespace: str
    workflow_id: str
    trace_id: str | None = None
    correlation_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class _JobMessage(_KindMessage):
    """A message about a job, with the ids that logs and traces show."""

    namespace: str
    job_id: str
    workflow_id: str | None = None
    trace_id: str | None = None
    correlation_id: str | None = None


# Messages to `fan_out`. SQS discards a message whose text equals that of an earlier one. `sent_at` makes a text unique
# where a later message of the same content must be processed too.


@dataclass(frozen=True, kw_only=True)
class RegisterPage(_KindMessage):
    """Register one page of a large wait."""

    KIND = "register_page"
    namespace: str
    wait_id: str
    page: int
    sent_at: str


@dataclass(frozen=True, kw_only=True)
class Match(_JobMessage):
    """Match versions of a job that has very many waits and dependents."""

    KIND = "match"
    sent_at: str
    rows: Sequence[Mapping[str, JsonValue]] | None = None
    """The rows of the versions, in order."""
    packed_rows: str | None = None
    """Instead of `rows`: their compressed JSON in Base64."""

    @classmethod
    def of_rows(cls, ids: Mapping[str, str], sent_at: str, rows: Sequence[Mapping[str, JsonValue]]) -> Self:
        """Return the message of these rows. One row of much non-ASCII text exceeds a message, and is compressed."""
        message = cls(**ids, sent_at=sent_at, rows=rows)
        if ascii_size(rows) <= MAX_MATCH_BYTES:
            return message
        packed_rows = b64encode(zlib.compress(dumps(rows).encode(), 9)).decode()
        return replace(message, rows=None, packed_rows=packed_rows)

    def unpack_rows(self) -> Sequence[Mapping[str, JsonValue]]:
        """Return the rows of the versions, in order."""
        if self.packed_rows is None:
            return self.rows or ()
        rows: Any = loads(zlib.decompress(b64decode(self.packed_rows)))
        return cast("Sequence[Mapping[str, JsonValue]]", rows)


@dataclass(frozen=True, kw_only=True)
class RegisterDependencies(_JobMessage):
    """Register a waiting job with its dependencies, and evaluate its condition if they have ended."""

    KIND = "register_dependencies"
    sent_at: str


@dataclass(frozen=True, kw_only=True)
class CompleteJoin(_JobMessage):
    """Complete a join that has many dependencies."""

    KIND = "complete_join"
    version: int


@dataclass(frozen=True, kw_only=True)
class DispatchWaiting(_KindMessage):
    """Dispatch the jobs of a queue that wait for a slot of an executor call."""

    KIND = "dispatch_waiting"
    namespace: str
    queue: str
    sent_at: str


@dataclass(frozen=True, kw_only=True)
class SocketEvents(_KindMessage):
    """Send events to WebSockets of a namespace whose share of a batch was used."""

    KIND = "socket_events"
    namespace: str
    sent_at: str
    part: int
    events: Sequence[JsonValue]
    """The envelopes."""
    recipients: Sequence[Sequence[JsonValue]]
    """For each subscription its connection id, its id, and the numbers of its envelopes in order."""
    token: str | None = None
    """The backlog mark that this message removes, if it is the last one."""


@dataclass(frozen=True, kw_only=True)
class BatchPage(_JobMessage):
    """Create the missing items on one page of a batch, and with `stop` cancel the open ones.

    With `delete`, which the items of a deleted batch receive, delete the items instead.
    """

    KIND = "batch_page"
    attempt: int
    page: int
    stop: bool
    delete: bool | None = None


@dataclass(frozen=True, kw_only=True)
class BatchEnd(_JobMessage):
    """End a batch whose items have all ended."""

    KIND = "batch_end"
    attempt: int


@dataclass(frozen=True, kw_only=True)
class _RunBlocks(_RunMessage):
    """A message about some blocks of a generation of a run."""

    generation: int
    blocks: Sequence[int]
    sent_at: str

    @property
    def block(self) -> int:
        """The block of a message about a single block."""
        (block,) = self.blocks
        return block


@dataclass(frozen=True, kw_only=True)
class RunPrepare(_RunBlocks):
    """Create the jobs of one block, or return them to `waiting` for a rerun."""

    KIND = "run_prepare"


@dataclass(frozen=True, kw_only=True)
class RunApply(_RunBlocks):
    """Plan and apply the transitions of the jobs of some blocks."""

    KIND = "run_apply"


@dataclass(frozen=True, kw_only=True)
class RunCancel(_RunBlocks):
    """Cancel the open jobs of one block."""

    KIND = "run_cancel"


@dataclass(frozen=True, kw_only=True)
class RunUnpark(_RunMessage):
    """Release the parked jobs of a run."""

    KIND = "run_unpark"
    sent_at: str


FanOutRequest: TypeAlias = (
    RegisterPage
    | Match
    | RegisterDependencies
    | CompleteJoin
    | SocketEvents
    | DispatchWaiting
    | BatchPage
    | BatchEnd
    | RunPrepare
    | RunApply
    | RunCancel
    | RunUnpark
)
_FAN_OUT_KINDS: Sequence[type[FanOutRequest]] = (
    RegisterPage, Match, RegisterDependencies, CompleteJoin, SocketEvents, DispatchWaiting, BatchPage, BatchEnd,
    RunPrepare, RunApply, RunCancel, RunUnpark,
)  # fmt: skip


def parse_fan_out_request(document: JsonValue) -> FanOutRequest:
    """Return the message to `fan_out` in this JSON object.

    Raises:
        ValueError: The message has an unknown kind.
    """
    return _parse(document, _FAN_OUT_KINDS)


# Messages to the sweeper: hints that something is due. The due row decides what happens.


@dataclass(frozen=True, kw_only=True)
class Sweep(_KindMessage):
    """Sweep one partition of the due index."""

    KIND = "sweep"
    partition: int


@dataclass(frozen=True, kw_only=True)
class SweepQueues(_KindMessage):
    """Sweep further queues of one partition, under the sweep lease of a chain of such messages.

    Attributes:
        partition: The partition of the due index.
        chain: The owner of the sweep lease.
        namespace: The namespace whose queues follow; None for the first queues of other namespaces.
        after: The queue, or without a namespace the namespace, after which the invocation starts.
    """

    KIND = "sweep_queues"
    partition: int
    chain: str
    namespace: str | None = None
    after: str


@dataclass(frozen=True, kw_only=True)
class _DueMessage(_KindMessage):
    """A message about one row, by the id that its due row has."""

    namespace: str
    id: str


@dataclass(frozen=True, kw_only=True)
class _DueRowMessage(_DueMessage):
    """A message about a due row, of the same kind."""

    KIND: ClassVar[DueKind]


@dataclass(frozen=True, kw_only=True)
class RetryPostponed(_DueRowMessage):
    """Retry the postponed records of a group."""

    KIND = "postponed"


@dataclass(frozen=True, kw_only=True)
class JobTimer(_DueMessage):
    """Apply the due timers of a job."""

    KIND = "job"


@dataclass(frozen=True, kw_only=True)
class DispatchJob(_DueMessage):
    """Dispatch a pending job to its executor."""

    KIND = "dispatch"


@dataclass(frozen=True, kw_only=True)
class WaitExpiry(_DueRowMessage):
    """Expire a wait."""

    KIND = "wait_expiry"


@dataclass(frozen=True, kw_only=True)
class QueueSweep(_DueRowMessage):
    """Sweep a queue."""

    KIND = "queue"


@dataclass(frozen=True, kw_only=True)
class DeliveryRetry(_DueRowMessage):
    """Enqueue a webhook delivery that is due."""

    KIND = "delivery"


@dataclass(frozen=True, kw_only=True)
class ScheduleDue(_DueRowMessage):
    """Fire a schedule that is due."""

    KIND = "schedule"


@dataclass(frozen=True, kw_only=True)
class RunCheck(_DueRowMessage):
    """Reconcile a workflow run."""

    KIND = "run"


DueRequest: TypeAlias = WaitExpiry | QueueSweep | DeliveryRetry | ScheduleDue | RunCheck | RetryPostponed
SweeperRequest: TypeAlias = Sweep | SweepQueues | JobTimer | DispatchJob | DueRequest
_SWEEPER_KINDS: Sequence[type[SweeperRequest]] = (
    Sweep, SweepQueues, JobTimer, DispatchJob, WaitExpiry, QueueSweep, DeliveryRetry, ScheduleDue, RunCheck,
    RetryPostponed,
)  # fmt: skip


def parse_sweeper_request(document: JsonValue) -> SweeperRequest:
    """Return the message to the sweeper in this JSON object.

    Raises:
        ValueError: The message has an unknown kind.
    """
    return _parse(document, _SWEEPER_KINDS)


@dataclass(frozen=True, kw_only=True)
class ScheduleTimer(_Message):
    """The event of an EventBridge timer: a schedule's planned time has come."""

    namespace: str
    schedule: str
    generation: str


# Events of the state machine `supervisor`


@dataclass(frozen=True, kw_only=True)
class SupervisorInput(_Message):
    """The input of a supervisor: the key of the run's row, and the generation and number of the supervisor."""

    pk: str
    namespace: str
    workflow_id: str
    generation: str
    supervisor: str
    supervisor_id: str
    progress: Mapping[str, int]
    """The number of loops that the state machine has made."""


@dataclass(frozen=True, kw_only=True)
class SupervisedRun(_Message):
    """The run and the supervisor in the input of an execution that has ended."""

    namespace: str
    workflow_id: str
    supervisor_id: str | None = None
    """None if an operator started the execution by hand with an incomplete input. Such an execution supervises none."""


SupervisorAction: TypeAlias = Literal["start", "cancel_remaining", "apply_decisions", "finalise", "start_successor"]


@dataclass(frozen=True, kw_only=True)
class SupervisorRequest(_Message):
    """The request of one state of the supervisor to its function."""

    action: SupervisorAction
    namespace: str
    workflow_id: str
    supervisor_id: str


M = TypeVar("M", bound=_KindMessage)


def _parse(document: JsonValue, kinds: Sequence[type[M]]) -> M:
    assert isinstance(document, Mapping)
    for kind in kinds:
        if document["kind"] == kind.KIND:
            return kind.from_document(document)
    raise ValueError(f"Message of unknown kind {document['kind']!r}")
