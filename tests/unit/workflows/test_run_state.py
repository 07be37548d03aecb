"""Planning of transitions from the state of a run's jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_core.domain.jobs.trigger_rules import TriggerRule
from vigil_core.domain.workflows.graph import Graph, Node, block_numbers, block_of, indexes_in_block
from vigil_core.domain.workflows.planning import (
    failed_nodes,
    forecast_rule,
    is_failure,
    losers,
    nodes_to_rerun,
    plan_transitions,
)
from vigil_core.domain.workflows.run_state import (
    OPEN_STATES,
    NodeState,
    RunState,
    StateBlock,
    StateRecord,
    initial_state,
    status_of,
    with_decision,
)

RULES: tuple[TriggerRule, ...] = get_args(TriggerRule)
STANDINGS: tuple[NodeState, ...] = get_args(NodeState)


def graph(*after: tuple[int, ...], **rest: Any) -> Graph:
    """Return a graph of jobs a, b, c ... from their dependencies; `rest` has further options by job name."""
    nodes = [Node(name=chr(97 + at), job_type="test", depends_on=its) for at, its in enumerate(after)]
    return Graph(nodes=[replace(node, **rest.get(node.name, {})) for node in nodes])


def state_of(jobs: Graph, /, lost: Any = (), **standing: Any) -> RunState:
    """Return a run state from node states by name; a job without a state has no state record."""
    by_place = {jobs.index_of[name]: its for name, its in standing.items()}
    return RunState(graph=jobs, load_block=lambda chunk: _chunk(jobs, by_place, frozenset(lost), chunk))


def _chunk(jobs: Graph, by_place: Mapping[int, NodeState], lost: frozenset[int], chunk: int) -> StateBlock:
    mine = indexes_in_block(chunk, len(jobs.nodes))
    notes = {place: StateRecord(state=by_place[place], state_version=2) for place in mine if place in by_place}
    return StateBlock(records=notes, race_losers=lost & set(mine))


@st.composite
def situations(
    draw: st.DrawFn, rules: Sequence[TriggerRule] = RULES, standings: Sequence[NodeState] = STANDINGS
) -> tuple[Graph, dict[str, NodeState]]:
    """Return a random graph of up to 12 jobs, and its run state."""
    total = draw(st.integers(1, 12))
    nodes = [
        Node(
            name=f"j{at}",
            job_type="test",
            depends_on=tuple(draw(st.lists(st.integers(0, at - 1), unique=True, max_size=4))) if at else (),
            trigger_rule=draw(st.sampled_from(rules)),
        )
        for at in range(total)
    ]
    standing = {node.name: draw(st.sampled_from(standings)) for node in nodes if draw(st.booleans())}
    return Graph(nodes=nodes), standing


@st.composite
def spread(draw: st.DrawFn) -> tuple[Graph, dict[str, NodeState], int, list[int]]:
    """Return a join of jobs in several blocks, their run state, the join, and the blocks that were loaded."""
    places = draw(st.lists(st.integers(0, 255), min_size=1, max_size=8, unique=True))
    rule = draw(st.sampled_from(RULES))
    nodes = [Node(name=f"j{at}", job_type="test") for at in range(256)]
    nodes.append(Node(name="join", job_type="test", depends_on=tuple(places), trigger_rule=rule))
    standing: dict[str, NodeState] = {f"j{at}": draw(st.sampled_from(STANDINGS)) for at in places}
    return Graph(nodes=nodes), standing, 256, draw(st.lists(st.integers(0, 3), unique=True))


@given(spread())
def test_rule_evaluation_is_independent_of_the_blocks_read(
    told: tuple[Graph, dict[str, NodeState], int, list[int]],
) -> None:
    jobs, standing, join, read = told
    whole, lazy = state_of(jobs, **standing), state_of(jobs, **standing)
    for chunk in block_numbers(len(jobs.nodes)):
        whole.block(chunk)
    for chunk in read:
        lazy.block(chunk)
    certain, some = forecast_rule(whole, join)[0], forecast_rule(lazy, join)[0]
    by_chunk = {block_of(place) for place in jobs.nodes[join].depends_on}
    if some is None and certain is not None:
        # Unknown only where a block was not loaded and a loaded one shows an open job.
        assert not all(map(lazy.is_loaded, by_chunk))
        assert any(
            whole.end_state(place) is None for place in jobs.nodes[join].depends_on if lazy.is_loaded(block_of(place))
        )
    else:
        assert some == certain


@given(spread())
def test_fan_in_reads_only_the_required_blocks(told: tuple[Graph, dict[str, NodeState], int, list[int]]) -> None:
    jobs, _, join, _ = told
    jobs = Graph(nodes=[*jobs.nodes[:-1], replace(jobs.nodes[-1], trigger_rule="all_success")])
    read: list[int] = []

    def look(chunk: int) -> StateBlock:
        read.append(chunk)
        return StateBlock()

    standings = RunState(graph=jobs, load_block=look)
    first = block_of(jobs.nodes[join].depends_on[0])
    standings.block(first)
    assert forecast_rule(standings, join)[0] is None
    assert read == [first]


ONE_REASON: list[TriggerRule] = ["all_success", "one_success", "all_done", "one_done", "always"]
"""Rules that skip a job only because of a failure, unless an earlier job was skipped.

If there are two reasons, the first recorded one counts.
"""


@given(
    situations(ONE_REASON, [standing for standing in STANDINGS if standing != "skipped"]),
    st.randoms(use_true_random=False),
)
def test_planned_transitions_are_independent_of_the_order(
    told: tuple[Graph, dict[str, NodeState]], chance: Any
) -> None:
    jobs, standing = told
    places = list(range(len(jobs.nodes)))
    first = plan_transitions(state_of(jobs, **standing), places)
    chance.shuffle(places)
    second = plan_transitions(state_of(jobs, **standing), [*places, *places])
    assert first == second
    assert not first.releases.keys() & first.skips.keys()


@given(situations())
def test_every_decidable_waiting_node_is_released_or_skipped(told: tuple[Graph, dict[str, NodeState]]) -> None:
    jobs, standing = told
    before, after = state_of(jobs, **standing), state_of(jobs, **standing)
    found = plan_transitions(after, range(len(jobs.nodes)))
    for place in range(len(jobs.nodes)):
        held = forecast_rule(after, place)[0]
        state = before.state_of(place)
        assert (place in found.releases) == (state == "waiting" and held is True)
        assert (place in found.skips) == (state in ("waiting", "scheduled") and held is False)


def test_skips_propagate_with_their_reasons() -> None:
    jobs = graph((), (0,), (1,), (2,), (0, 2), e={"trigger_rule": "one_failed"})
    found = plan_transitions(state_of(jobs, a="failed"), [1, 4])
    assert set(found.skips) == {1, 2, 3}
    assert all(verdict.through_failure for verdict in found.skips.values())
    assert set(found.releases) == {4}
    assert found.releases[4].explanation == "one_failed holds: of 2 dependencies 2 failed (a, c)"


def test_successors_of_already_skipped_nodes_are_evaluated() -> None:
    # The process that skipped b and c may have crashed before it evaluated d.
    jobs = graph((), (0,), (1,), (2,), (0, 3), d={"trigger_rule": "all_done"})
    found = plan_transitions(state_of(jobs, a="failed", b="skipped_by_failure", c="skipped_by_failure"), [1])
    assert [sorted(each) for each in (found.already_skipped, found.releases, found.skips)] == [[1, 2], [3], []]
    done = plan_transitions(
        state_of(jobs, a="failed", b="skipped_by_failure", c="skipped_by_failure", d="running"), [1]
    )
    assert [sorted(each) for each in (done.already_skipped, done.decided_indexes)] == [[1, 2], []]


def test_skip_without_failure_does_not_count_as_failure_downstream() -> None:
    jobs = graph((), (0,), (1,), c={"trigger_rule": "none_failed"})
    assert set(plan_transitions(state_of(jobs, a="skipped"), [1]).releases) == {2}
    assert set(plan_transitions(state_of(jobs, a="skipped_by_failure"), [1]).skips) == {1, 2}


def test_skip_for_several_reasons_counts_as_caused_by_failure() -> None:
    # An evaluation of e after c and before d would see only that c was skipped.
    jobs = graph((), (), (1,), (0, 2), (2, 3), d={"trigger_rule": "one_success"})
    found = plan_transitions(state_of(jobs, a="failed", b="skipped"), [4, 3, 2])
    assert {place: verdict.through_failure for place, verdict in found.skips.items()} == {2: False, 3: True, 4: True}


@pytest.mark.parametrize("rule", ["all_failed", "none_skipped"])
def test_skip_by_a_rule_unaffected_by_failures_is_not_caused_by_failure(rule: str) -> None:
    jobs = graph((), (), (0, 1), c={"trigger_rule": rule})
    found = plan_transitions(state_of(jobs, a="failed", b="skipped"), [2])
    assert not found.skips[2].through_failure


def test_delayed_node_is_not_evaluated_before_its_start_time() -> None:
    jobs = graph((), (0,), b={"has_start_delay": True})
    assert initial_state(jobs.nodes[1]) == "scheduled"
    assert plan_transitions(state_of(jobs, a="completed"), [1]).releases == {}
    assert set(plan_transitions(state_of(jobs, a="completed", b="waiting"), [1]).releases) == {1}


@pytest.mark.parametrize(
    ("standing", "lost", "failed"),
    [
        ({"a": "failed", "b": "running"}, (), False),
        ({"a": "failed", "b": "waiting"}, (), False),
        ({"a": "failed", "b": "completed"}, (), False),
        ({"a": "failed", "b": "ignored_failure"}, (), False),
        ({"a": "failed", "b": "failed"}, (), True),
        ({"a": "awaiting_decision", "b": "failed"}, (), True),
        ({"a": "failed", "b": "awaiting_decision"}, (), True),
        ({"a": "failed", "b": "skipped"}, (), True),
        ({"a": "cancelled", "b": "cancelled", "c": "cancelled"}, (), True),
        ({"a": "cancelled", "b": "completed"}, (0,), False),
        ({"a": "failed", "b": "completed", "c": "failed"}, (), False),
        ({"a": "completed", "b": "failed"}, (), False),
    ],
)
def test_failed_racer_counts_once_the_race_cannot_be_won(
    standing: dict[str, NodeState], lost: tuple[int, ...], *, failed: bool
) -> None:
    jobs = graph((), (), (0, 1), c={"trigger_rule": "one_success", "cancel_losers": True})
    assert is_failure(state_of(jobs, lost=lost, **standing), 0) is failed


def test_failures_and_race_losers_are_identified() -> None:
    jobs = graph((), (), (0, 1), (2,), c={"trigger_rule": "one_success", "cancel_losers": True})
    standings = state_of(jobs, a="completed", b="running", c="completed", d="failed")
    assert list(failed_nodes(standings)) == [3]
    assert losers(standings, 2) == [1]
    assert losers(state_of(jobs, lost=(1,), a="completed", b="cancelled"), 2) == []


@pytest.mark.parametrize("state", get_args(NodeState))
def test_race_loser_counts_as_skipped_and_cancelled_in_any_state(state: NodeState) -> None:
    standings = state_of(graph((), ()), lost=(0,), a=state, b="completed")
    assert (standings.end_state(0), standings.status(0)) == ("skipped", "cancelled")
    assert not standings.is_open(0)
    assert standings.is_drained()
    assert standings.may_still_run(0) == (state in OPEN_STATES)


def test_waiting_race_loser_is_not_released() -> None:
    jobs = graph((), (0,), (1,), c={"trigger_rule": "all_done"})
    plan = plan_transitions(state_of(jobs, lost=(1,), a="completed"), [1, 2])
    assert (set(plan.releases), set(plan.skips)) == ({2}, set())


def test_retry_reruns_unsuccessful_nodes_and_their_successors() -> None:
    jobs = graph((), (0,), (1,), (0,), (3,), (2, 4), f={"trigger_rule": "all_done"})
    ended = state_of(
        jobs, a="completed", b="failed", c="skipped_by_failure", d="completed", e="completed", f="completed"
    )
    assert nodes_to_rerun(ended, None) == {1, 2}, "what has succeeded is kept"
    assert nodes_to_rerun(ended, 3) == {1, 2, 3, 4, 5}
    assert nodes_to_rerun(state_of(jobs, **dict.fromkeys("abcdef", "completed")), None) == set()
    assert nodes_to_rerun(state_of(jobs, **dict.fromkeys("abcdef", "cancelled")), None) == set(range(6))


def test_decision_version_is_between_the_failure_and_the_next_version() -> None:
    failed = StateRecord(state="awaiting_decision", state_version=2 * 7)
    assert 2 * 7 < with_decision(failed, "ignored_failure").state_version < 2 * 8


def test_assumed_state_is_replaced_by_the_loaded_one() -> None:
    jobs = graph((), (0,))
    standings = state_of(jobs)
    standings.assume(0, "failed")
    assert standings.state_of(0) == "failed"
    standings.put_block(0, StateBlock(records={0: StateRecord(state="completed", state_version=4)}))
    assert standings.state_of(0) == "completed"


@given(situations())
def test_statistics_sum_to_the_number_of_nodes(told: tuple[Graph, dict[str, NodeState]]) -> None:
    jobs, standing = told
    standings = state_of(jobs, **standing)
    counted = standings.statistics()
    assert sum(counted.values()) == len(jobs.nodes)
    assert all(counted[standings.status(place)] for place in range(len(jobs.nodes)))
    assert standings.is_drained() == (not any(standings.is_open(place) for place in range(len(jobs.nodes))))


def test_every_node_state_maps_to_a_status() -> None:
    assert {status_of(standing) for standing in STANDINGS} == {
        "waiting", "scheduled", "pending", "running", "completed", "failed", "cancelled", "skipped",
    }  # fmt: skip


def test_graph_returns_successors_roots_and_races() -> None:
    jobs = graph((), (0,), (0,), (1, 2), d={"cancel_losers": True}, c={"trigger_rule": "always"})
    assert jobs.dependents == [[1, 2], [3], [3], []]
    assert jobs.roots == [0, 2]
    assert jobs.edge_count == 4
    assert jobs.dependency_names(3) == ["b", "c"]
    assert jobs.race_joins(1) == [3]
    assert jobs.race_joins(0) == []
    assert jobs.downstream([1]) == {1, 3}
    assert jobs.downstream([0], traverses=lambda place: place != 1) == {0, 2, 3}


@pytest.mark.parametrize(("total", "rows"), [(1, 1), (64, 1), (65, 2), (10_000, 157)])
def test_every_node_is_in_exactly_one_block(total: int, rows: int) -> None:
    assert len(block_numbers(total)) == rows
    assert [place for chunk in block_numbers(total) for place in indexes_in_block(chunk, total)] == list(range(total))
    assert all(place in indexes_in_block(block_of(place), total) for place in (0, total // 2, total - 1))
