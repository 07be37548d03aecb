"""The states of a run's jobs, as the run records them. Pure.

The matcher records the state of a job for each change that the stream delivers. A record never replaces a later one,
so a change that arrives twice, late or out of order has the same effect as one that arrives once and in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.status import STATUSES, JobStatus
from vigil_core.domain.jobs.trigger_rules import EndState
from vigil_core.domain.workflows.graph import Graph, Node, block_numbers, block_of, indexes_in_block

FailurePolicy: TypeAlias = Literal["fail_fast", "continue_on_failure", "manual"]
NodeState: TypeAlias = Literal[
    "waiting", "scheduled", "pending", "running", "completed", "failed", "cancelled", "skipped", "skipped_by_failure",
    "awaiting_decision", "ignored_failure",
]  # fmt: skip
"""The status of a job from the point of view of its run.

`skipped_by_failure`: skipped because of a failed dependency; the jobs that depend on it count it as failed.
`awaiting_decision`: failed, and an operator must decide on the failure.
`ignored_failure`: failed, and an operator has decided that the run continues as if the job had succeeded.
"""

OPEN_STATES: frozenset[NodeState] = frozenset({"waiting", "scheduled", "pending", "running", "awaiting_decision"})
"""The states of open jobs. A run with an open job does not end, unless the job has lost its race."""
_STATUS_OF: Mapping[NodeState, JobStatus] = {
    "skipped_by_failure": "skipped", "awaiting_decision": "failed", "ignored_failure": "failed",
}  # fmt: skip
_END_STATE_OF: Mapping[NodeState, EndState] = {
    "completed": "success", "ignored_failure": "success", "failed": "failed", "cancelled": "cancelled",
    "skipped": "skipped", "skipped_by_failure": "failed",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StateRecord:
    """The state of a job with its state version.

    Of two records of a job, the one with the higher version counts.
    """

    state: NodeState
    state_version: int


@dataclass(frozen=True, kw_only=True)
class StateBlock:
    """The state records of the jobs that share a row.

    A job without a record has not changed since its creation.
    """

    records: Mapping[int, StateRecord] = field(default_factory=dict)
    race_losers: frozenset[int] = frozenset()
    """The jobs that were open when another job won their race. They count as ended from then on."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The graph of a run with the states of its jobs. A block is read when it is first needed."""

    graph: Graph
    load_block: Callable[[int], StateBlock]
    _blocks: dict[int, StateBlock] = field(default_factory=dict)
    _assumed: dict[int, NodeState] = field(default_factory=dict)

    def put_block(self, block_number: int, block: StateBlock) -> None:
        """Replace a block by its stored version, and discard the assumed states of its jobs."""
        self._blocks[block_number] = block
        for index in [assumed for assumed in self._assumed if block_of(assumed) == block_number]:
            del self._assumed[index]

    def is_loaded(self, block_number: int) -> bool:
        """Return whether a block is available without a read."""
        return block_number in self._blocks

    def block(self, number: int) -> StateBlock:
        """Return a block, and read it if necessary."""
        if number not in self._blocks:
            self._blocks[number] = self.load_block(number)
        return self._blocks[number]

    def load_dependencies(self, index: int) -> None:
        """Read the states of all dependencies of a job.

        They may have been recorded before the job could be planned.
        """
        for block_number in self.graph.dependencies_by_block[index]:
            self.block(block_number)

    def assume(self, index: int, state: NodeState) -> None:
        """Use this state for a job until its block is replaced."""
        self._assumed[index] = state

    def state_of(self, index: int) -> NodeState:
        """Return the state of a job."""
        if index in self._assumed:
            return self._assumed[index]
        record = self.block(block_of(index)).records.get(index)
        return initial_state(self.graph.nodes[index]) if record is None else record.state

    def status(self, index: int) -> JobStatus:
        """Return the status of a job as the run counts it.

        A race loser counts as cancelled, also while it still runs.
        """
        return "cancelled" if self.lost_race(index) else status_of(self.state_of(index))

    def lost_race(self, index: int) -> bool:
        """Return whether a job was open when another job won its race."""
        return index in self.block(block_of(index)).race_losers

    def end_state(self, index: int) -> EndState | None:
        """Return the end state of a job as its successors count it, or None while the job is open.

        A race loser counts as skipped, whatever it reports after the end of its race.
        """
        return "skipped" if self.lost_race(index) else _END_STATE_OF.get(self.state_of(index))

    def is_open(self, index: int) -> bool:
        """Return whether the run must wait for a job."""
        return self.state_of(index) in OPEN_STATES and not self.lost_race(index)

    def may_still_run(self, index: int) -> bool:
        """Return whether no end of a job is recorded. This includes a race loser that has not stopped yet."""
        return self.state_of(index) in OPEN_STATES

    def awaits_decision(self, index: int) -> bool:
        """Return whether a job has failed and an operator must decide on the failure."""
        return self.state_of(index) == "awaiting_decision" and not self.lost_race(index)

    def is_latest(self, index: int, record: StateRecord) -> bool:
        """Return whether no record of a later version of a job is stored.

        A decision on the same version does not count as later.
        """
        stored = self.block(block_of(index)).records.get(index)
        return stored is None or stored.state_version <= with_decision(record, stored.state).state_version

    def block_is_drained(self, block_number: int) -> bool:
        """Return whether no job of a block is open."""
        return not any(map(self.is_open, indexes_in_block(block_number, len(self.graph.nodes))))

    def is_drained(self) -> bool:
        """Return whether no job of the run is open. Reads blocks until it finds an open job."""
        return all(map(self.block_is_drained, block_numbers(len(self.graph.nodes))))

    def statistics(self) -> dict[JobStatus, int]:
        """Return the number of jobs for each status."""
        counts = Counter(self.status(index) for index in range(len(self.graph.nodes)))
        return {status: counts[status] for status in STATUSES}


def initial_state(node: Node) -> NodeState:
    """Return the state of a job that has not changed since its creation."""
    return "scheduled" if node.has_start_delay else "waiting"


def status_of(state: NodeState) -> JobStatus:
    """Return the job status for a node state."""
    return _STATUS_OF.get(state) or state  # type: ignore[return-value]


def record_of(job: Job) -> StateRecord:
    """Return the state record for a version of a job.

    Its state version is even. The odd number after it is for an operator's decision.
    """
    verdict = job.dependencies.verdict
    through_failure = job.status == "skipped" and verdict is not None and verdict.through_failure
    return StateRecord(state="skipped_by_failure" if through_failure else job.status, state_version=2 * job.version)


def with_decision(record: StateRecord, state: NodeState) -> StateRecord:
    """Return the record of an operator's decision on a recorded state. It is older than the job's next version."""
    return StateRecord(state=state, state_version=record.state_version + 1)
