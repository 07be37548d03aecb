"""The planner of a workflow run: which jobs to release, skip, cancel or rerun for given node states. Pure.

Every plan is computed from the graph and the recorded states alone. The same states always give the same plan, so a
plan that a crash interrupted is simply computed and applied once more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from vigil_core.domain.jobs.trigger_rules import (
    FAILED_END_STATES,
    MAX_NAMED_FAILURES,
    DependencyCounts,
    EndState,
    Verdict,
    evaluate_rule,
    rule_verdict,
)
from vigil_core.domain.workflows.run_state import RunState, StateRecord


@dataclass(frozen=True, kw_only=True)
class TransitionPlan:
    """The transitions of waiting jobs that follow from a run state: each job's index with its verdict."""

    releases: Mapping[int, Verdict] = field(default_factory=dict)
    skips: Mapping[int, Verdict] = field(default_factory=dict)
    already_skipped: frozenset[int] = frozenset()
    """The jobs that the planner visited and that were skipped before."""

    @property
    def decided_indexes(self) -> frozenset[int]:
        """The indexes of all jobs with a transition."""
        return frozenset(self.releases).union(self.skips)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to apply: no transition, and no earlier skip whose effects could be missing."""
        return not (self.releases or self.skips or self.already_skipped)

    def restricted_to(self, indexes: Set[int]) -> TransitionPlan:
        """Return the part of the plan that concerns these jobs."""
        return TransitionPlan(
            releases={index: verdict for index, verdict in self.releases.items() if index in indexes},
            skips={index: verdict for index, verdict in self.skips.items() if index in indexes},
            already_skipped=self.already_skipped & indexes,
        )


def plan_transitions(run_state: RunState, indexes: Iterable[int]) -> TransitionPlan:
    """Plan the releases and skips of these jobs, and of the jobs that a skip reaches.

    1. Jobs are visited in topological order, so that every dependency is decided before its successors. If a job has
       several reasons to be skipped and one of them is a failed dependency, the skip counts as caused by failure. The
       result does not depend on the order of `indexes`.
    2. A planned skip is assumed at once, and the successors of the skipped job are visited as well.
    3. The successors of a job that was skipped before are visited as well. If the process that recorded the skip
       crashed before it planned them, this plan contains their transitions.

    Jobs that do not wait, and jobs whose trigger rule is still open, get no transition. A job before its start time is
    skipped if its rule can no longer be satisfied, but not released.
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
        _, index = heappop(pending)
        if index in visited:
            continue
        visited.add(index)
        if run_state.status(index) == "skipped":
            already_skipped.add(index)
            push_successors(index)
        state = run_state.state_of(index)
        if state not in ("waiting", "scheduled") or run_state.lost_race(index):
            continue
        is_satisfied, counts = forecast_rule(run_state, index)
        if is_satisfied is None or (is_satisfied and state == "scheduled"):
            continue
        node = run_state.graph.nodes[index]
        verdict = rule_verdict(node.trigger_rule, counts, is_satisfied)
        if not node.depends_on:
            verdict = verdict.with_reason("it depends on no other job")
        if is_satisfied:
            releases[index] = verdict
            continue
        skips[index] = verdict
        run_state.assume(index, "skipped_by_failure" if verdict.through_failure else "skipped")
        push_successors(index)
    return TransitionPlan(releases=releases, skips=skips, already_skipped=frozenset(already_skipped))


def plan_blocks(run_state: RunState, indexes: Set[int]) -> tuple[TransitionPlan, frozenset[int]]:
    """Plan the whole run, and return the part for these jobs and the indexes of all planned transitions.

    The part also contains the transitions downstream of jobs in `indexes` that were skipped before. If the process
    that skipped them crashed before it planned their successors, no other message contains those transitions.
    """
    plan = plan_transitions(run_state, range(len(run_state.graph.nodes)))
    decided = plan.decided_indexes
    missed = decided & set(run_state.graph.successors(plan.already_skipped & indexes))
    missed |= run_state.graph.downstream(missed, traverses=decided.__contains__)
    return plan.restricted_to(indexes | missed), decided


def forecast_rule(run_state: RunState, index: int) -> tuple[bool | None, DependencyCounts]:
    """Forecast a job's trigger rule, and count its ended dependencies.

    Blocks that are loaded are evaluated first. While they show an open dependency and leave the rule open, no further
    block is read: the change of a job in another block is processed with that block loaded.

    Returns:
        True if the rule is satisfied, False if it can no longer be satisfied, None if it is open; and the counts of
        the dependencies that were evaluated.
    """
    node = run_state.graph.nodes[index]
    dependencies_by_block = run_state.graph.dependencies_by_block[index]
    ended: Counter[EndState] = Counter()
    failures: list[str] = []
    is_satisfied, has_open_dependency = None, False
    for block_number in sorted(dependencies_by_block, key=lambda block: not run_state.is_loaded(block)):
        if is_satisfied is None and has_open_dependency and not run_state.is_loaded(block_number):
            break
        for dependency in dependencies_by_block[block_number]:
            if (end_state := run_state.end_state(dependency)) is None:
                has_open_dependency = True
            else:
                ended[end_state] += 1
                if end_state in FAILED_END_STATES and len(failures) < MAX_NAMED_FAILURES:
                    failures.append(run_state.graph.nodes[dependency].name)
        is_satisfied = evaluate_rule(node.trigger_rule, DependencyCounts.of(len(node.depends_on), ended))
    counts = DependencyCounts.of(len(node.depends_on), ended, failures)
    return evaluate_rule(node.trigger_rule, counts) if node.depends_on else True, counts


def is_failure(run_state: RunState, index: int) -> bool:
    """Return whether a job has failed its run.

    A job that lost a race has not. A job that failed in a race has only failed its run if the race cannot be won.
    """
    states = ("failed", "cancelled", "awaiting_decision")
    if run_state.state_of(index) not in states or run_state.lost_race(index):
        return False
    return not any(_race_is_winnable(run_state, join) for join in run_state.graph.race_joins(index))


def as_awaiting_decision(run_state: RunState, index: int, record: StateRecord) -> StateRecord:
    """Return the record of a failure under policy `manual`: it awaits a decision if it has failed the run."""
    if record.state not in ("failed", "cancelled") or run_state.lost_race(index):
        return record
    run_state.assume(index, record.state)
    if not is_failure(run_state, index):
        return record
    return StateRecord(state="awaiting_decision", state_version=record.state_version)


def failed_nodes(run_state: RunState) -> Iterator[int]:
    """Yield the indexes of the jobs that have failed their run."""
    return (index for index in range(len(run_state.graph.nodes)) if is_failure(run_state, index))


def losers(run_state: RunState, join: int) -> list[int]:
    """Return the jobs without a recorded end in a race that is over, recorded as losers or not."""
    return [index for index in run_state.graph.nodes[join].depends_on if run_state.may_still_run(index)]


def nodes_to_rerun(run_state: RunState, start: int | None) -> set[int]:
    """Return the jobs that a retry of the run runs again.

    These are the failed jobs, the jobs that were skipped because of a failure, and all jobs downstream that have not
    succeeded. With `start`, that job and all jobs downstream of it are added, whatever their state is.
    """
    failed_indexes = {
        index
        for index in range(len(run_state.graph.nodes))
        if run_state.state_of(index) == "skipped_by_failure" or is_failure(run_state, index)
    }
    rerun_indexes = run_state.graph.downstream(
        failed_indexes, traverses=lambda index: run_state.end_state(index) != "success"
    )
    return rerun_indexes if start is None else rerun_indexes | run_state.graph.downstream({start})


def _race_is_winnable(run_state: RunState, join: int) -> bool:
    """Return whether a dependency of a race join has won or is still open.

    The state of the join itself does not count.
    """
    return any(
        run_state.end_state(index) == "success"
        or (run_state.end_state(index) is None and not run_state.awaits_decision(index))
        for index in run_state.graph.nodes[join].depends_on
    )
