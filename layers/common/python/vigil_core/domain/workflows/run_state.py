"""How the jobs of a run stand, and all that follows from it: who may start, who is skipped, whether the run has failed,
what a retry runs again. Pure.

The matcher notes how jobs stand as it hears of them, never backwards. What follows is worked out anew from these notes
and the graph each time: hearing of something twice, late or out of order decides the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Literal, TypeAlias

from vigil_core.domain.jobs.dependencies import DependencyCounts, EndState, Verdict, evaluate_rule, rule_verdict
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.status import STATUSES, JobStatus
from vigil_core.domain.workflows.graph import Graph, Node, block_numbers, block_of, indexes_in_block

FailurePolicy: TypeAlias = Literal["fail_fast", "continue_on_failure", "manual"]
NodeState: TypeAlias = Literal[
    "waiting", "scheduled", "pending", "running", "completed", "failed", "cancelled", "skipped", "skipped_by_failure",
    "undecided", "pardoned",
]  # fmt: skip
"""The status of a job as its run sees it. `skipped_by_failure`: skipped because others failed, which counts as failed
for those after it. `undecided`: it failed, and an operator is to say what becomes of that. `pardoned`: it failed, and
the run goes on as if it had not."""

OPEN_STATES: frozenset[NodeState] = frozenset({"waiting", "scheduled", "pending", "running", "undecided"})
"""A run does not end while a job stands so."""
_STATUS_OF: Mapping[NodeState, JobStatus] = {
    "skipped_by_failure": "skipped", "undecided": "failed", "pardoned": "failed",
}  # fmt: skip
_END_STATE_OF: Mapping[NodeState, EndState] = {
    "completed": "success", "pardoned": "success", "failed": "failed", "cancelled": "cancelled", "skipped": "skipped",
    "skipped_by_failure": "failed",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StateRecord:
    """How a job stands, and from which moment of its life on: of two notes the later one counts."""

    state: NodeState
    state_version: int


@dataclass(frozen=True, kw_only=True)
class StateBlock:
    """The notes on the jobs that share a row. `lost`: those that were cancelled because their race was over. A job
    without a note has not moved since it was created."""

    records: Mapping[int, StateRecord] = field(default_factory=dict)
    race_losers: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How the jobs of a run stand. A chunk is read when it is first asked for."""

    graph: Graph
    load_block: Callable[[int], StateBlock]
    _blocks: dict[int, StateBlock] = field(default_factory=dict)
    _assumed: dict[int, NodeState] = field(default_factory=dict)

    def put_block(self, block_number: int, block: StateBlock) -> None:
        """A chunk as it is now: what was assumed of its jobs is forgotten."""
        self._blocks[block_number] = block
        for index in [place for place in self._assumed if block_of(place) == block_number]:
            del self._assumed[index]

    def is_loaded(self, block_number: int) -> bool:
        """Whether a chunk can be asked without reading it."""
        return block_number in self._blocks

    def block(self, number: int) -> StateBlock:
        """A chunk, read if need be."""
        if number not in self._blocks:
            self._blocks[number] = self.load_block(number)
        return self._blocks[number]

    def load_dependencies(self, index: int) -> None:
        """Read how all stand on which a job depends: they may have been heard of before it could be judged."""
        for block_number in self.graph.dependencies_by_block[index]:
            self.block(block_number)

    def assume(self, index: int, state: NodeState) -> None:
        """From now on answer as if a job stood so."""
        self._assumed[index] = state

    def state_of(self, index: int) -> NodeState:
        """How a job stands."""
        if index in self._assumed:
            return self._assumed[index]
        record = self.block(block_of(index)).records.get(index)
        return initial_state(self.graph.nodes[index]) if record is None else record.state

    def status(self, index: int) -> JobStatus:
        """The status of a job."""
        return status_of(self.state_of(index))

    def lost_race(self, index: int) -> bool:
        """Whether a job was cancelled because its race was over."""
        return index in self.block(block_of(index)).race_losers

    def end_state(self, index: int) -> EndState | None:
        """What the end of a job means for those after it; None while it has not ended."""
        state = self.state_of(index)
        if state in ("failed", "cancelled", "undecided") and self.lost_race(index):
            return "skipped"
        return _END_STATE_OF.get(state)

    def is_open(self, index: int) -> bool:
        """Whether the run has to wait for a job."""
        return self.state_of(index) in OPEN_STATES and self.end_state(index) is None

    def block_is_drained(self, block_number: int) -> bool:
        """Whether no job of a chunk is open."""
        return not any(map(self.is_open, indexes_in_block(block_number, len(self.graph.nodes))))

    def is_drained(self) -> bool:
        """Whether no job is open. Reads chunks until one is."""
        return all(map(self.block_is_drained, block_numbers(len(self.graph.nodes))))

    def statistics(self) -> dict[JobStatus, int]:
        """How many jobs have each status."""
        counts = Counter(self.status(index) for index in range(len(self.graph.nodes)))
        return {status: counts[status] for status in STATUSES}


@dataclass(frozen=True, kw_only=True)
class TransitionPlan:
    """What is to become of jobs that wait: by their places, each with the verdict that says why."""

    releases: Mapping[int, Verdict]
    skips: Mapping[int, Verdict]
    already_skipped: frozenset[int]
    """Who had been skipped already of those that were looked at, and of those after them."""

    @property
    def decided_indexes(self) -> frozenset[int]:
        """All these places."""
        return frozenset(self.releases).union(self.skips)

    def restricted_to(self, indexes: Set[int]) -> TransitionPlan:
        """As far as it is about these jobs."""
        return TransitionPlan(
            releases={place: verdict for place, verdict in self.releases.items() if place in indexes},
            skips={place: verdict for place, verdict in self.skips.items() if place in indexes},
            already_skipped=self.already_skipped & indexes,
        )


def initial_state(node: Node) -> NodeState:
    """How a job stands that has not moved since it was created."""
    return "scheduled" if node.has_start_delay else "waiting"


def status_of(state: NodeState) -> JobStatus:
    """The status of a job that stands so."""
    return _STATUS_OF.get(state) or state  # type: ignore[return-value]


def record_of(job: Job) -> StateRecord:
    """How a job stands by its own row."""
    through_failure = (
        job.status == "skipped" and job.dependencies.verdict is not None and job.dependencies.verdict.through_failure
    )
    return StateRecord(state="skipped_by_failure" if through_failure else job.status, state_version=2 * job.version)


def with_decision(record: StateRecord, state: NodeState) -> StateRecord:
    """The note on an operator's decision about what an earlier note says."""
    return StateRecord(state=state, state_version=record.state_version + 1)


def forecast_rule(run_state: RunState, index: int) -> tuple[bool | None, DependencyCounts]:
    """Whether a job's rule is satisfied (True), can no longer be (False), or may still go either way (None); and how
    its dependencies have ended as far as that was looked at.

    Chunks that were read come first: as long as they leave the rule open and show an open dependency, nothing else is
    read. Whoever hears of what another chunk says has read that one.
    """
    node = run_state.graph.nodes[index]
    dependencies_by_block = run_state.graph.dependencies_by_block[index]
    ended: Counter[str] = Counter()
    is_satisfied, has_open_dependency = None, False
    for block_number in sorted(dependencies_by_block, key=lambda chunk: not run_state.is_loaded(chunk)):
        if is_satisfied is None and has_open_dependency and not run_state.is_loaded(block_number):
            break
        for dependency in dependencies_by_block[block_number]:
            if (end_state := run_state.end_state(dependency)) is None:
                has_open_dependency = True
            else:
                ended[end_state] += 1
        is_satisfied = evaluate_rule(node.trigger_rule, DependencyCounts(total=len(node.depends_on), **ended))
    counts = DependencyCounts(total=len(node.depends_on), **ended)
    return evaluate_rule(node.trigger_rule, counts) if node.depends_on else True, counts


def plan_transitions(run_state: RunState, indexes: Iterable[int]) -> TransitionPlan:
    """What becomes of these jobs, as far as they wait and it is certain, and of those after them that are skipped with
    them. What is skipped is assumed from then on. Who comes after one that was skipped before is looked at as well:
    whoever skipped it may have died before he did.

    Nobody is judged before those on which he depends: who is skipped for two reasons at once is so through a failure if
    one of them is, in whichever order they are looked at.
    """
    depth = run_state.graph.depth
    releases: dict[int, Verdict] = {}
    skips: dict[int, Verdict] = {}
    already_skipped: set[int] = set()
    visited: set[int] = set()
    pending = [(depth[index], index) for index in indexes]
    heapify(pending)

    def push_successors(index: int) -> None:
        for successor in run_state.graph.dependents[index]:
            heappush(pending, (depth[successor], successor))

    while pending:
        _, place = heappop(pending)
        if place in visited:
            continue
        visited.add(place)
        if run_state.status(place) == "skipped":
            already_skipped.add(place)
            push_successors(place)
        if run_state.state_of(place) != "waiting":
            continue
        is_satisfied, counts = forecast_rule(run_state, place)
        if is_satisfied is None:
            continue
        node = run_state.graph.nodes[place]
        verdict = rule_verdict(node.trigger_rule, counts, is_satisfied)
        if not node.depends_on:
            verdict = verdict.with_reason("it depends on no other job")
        if is_satisfied:
            releases[place] = verdict
            continue
        skips[place] = verdict
        run_state.assume(place, "skipped_by_failure" if verdict.through_failure else "skipped")
        push_successors(place)
    return TransitionPlan(releases=releases, skips=skips, already_skipped=frozenset(already_skipped))


def is_failure(run_state: RunState, index: int) -> bool:
    """Whether a job has failed its run: not if it only lost a race, or runs in one that may yet be won, or was."""
    if run_state.state_of(index) not in ("failed", "cancelled", "undecided") or run_state.lost_race(index):
        return False
    return not any(_race_is_winnable(run_state, join) for join in run_state.graph.race_joins(index))


def failed_nodes(run_state: RunState) -> Iterator[int]:
    """The jobs that have failed their run."""
    return (index for index in range(len(run_state.graph.nodes)) if is_failure(run_state, index))


def losers(run_state: RunState, join: int) -> list[int]:
    """Who still runs in a race that is over."""
    return [index for index in run_state.graph.nodes[join].depends_on if run_state.is_open(index)]


def nodes_to_rerun(run_state: RunState, start: int | None) -> set[int]:
    """What a retry runs again: whatever has failed, was cancelled or skipped because of that, and all that comes after
    and has not succeeded. With `start` also that job and all that comes after it, whatever became of it."""
    all_indexes = range(len(run_state.graph.nodes))
    failed_indexes = {
        index
        for index in all_indexes
        if run_state.state_of(index) == "skipped_by_failure" or is_failure(run_state, index)
    }
    rerun_indexes = run_state.graph.downstream(
        failed_indexes, traverses=lambda place: run_state.end_state(place) != "success"
    )
    return rerun_indexes if start is None else rerun_indexes | run_state.graph.downstream({start})


def _race_is_winnable(run_state: RunState, join: int) -> bool:
    """Whether one of the jobs that race for a join has won, or still runs: whatever became of the join itself."""
    return any(
        run_state.end_state(index) == "success"
        or (run_state.end_state(index) is None and run_state.state_of(index) != "undecided")
        for index in run_state.graph.nodes[join].depends_on
    )
