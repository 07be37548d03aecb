"""What follows from how the jobs of a run stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_core.domain.jobs.dependencies import TriggerRule
from vigil_core.domain.workflows.graph import Graph, Node, chunk_of, chunks, places_of
from vigil_core.domain.workflows.run_state import (
    Chunk,
    Note,
    Standing,
    Standings,
    decided,
    failures,
    first_standing,
    follow_up,
    is_failure,
    losers,
    outlook,
    status_of,
    to_run_again,
)

RULES: tuple[TriggerRule, ...] = get_args(TriggerRule)
STANDINGS: tuple[Standing, ...] = get_args(Standing)


def graph(*after: tuple[int, ...], **rest: Any) -> Graph:
    """A graph of jobs a, b, c ... by what each depends on; `rest`: more about one of them, by its name."""
    nodes = [Node(name=chr(97 + at), job_type="test", depends_on=its) for at, its in enumerate(after)]
    return Graph(nodes=[replace(node, **rest.get(node.name, {})) for node in nodes])


def stand(jobs: Graph, /, lost: Any = (), **standing: Any) -> Standings:
    """How jobs stand, by their names; who is not told of has no note."""
    by_place = {jobs.place_of[name]: its for name, its in standing.items()}
    return Standings(graph=jobs, read=lambda chunk: _chunk(jobs, by_place, frozenset(lost), chunk))


def _chunk(jobs: Graph, by_place: Mapping[int, Standing], lost: frozenset[int], chunk: int) -> Chunk:
    mine = places_of(chunk, len(jobs.nodes))
    notes = {place: Note(standing=by_place[place], moment=2) for place in mine if place in by_place}
    return Chunk(notes=notes, lost=lost & set(mine))


@st.composite
def situations(
    draw: st.DrawFn, rules: Sequence[TriggerRule] = RULES, standings: Sequence[Standing] = STANDINGS
) -> tuple[Graph, dict[str, Standing]]:
    """A graph of up to 12 jobs, and how they stand."""
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
def spread(draw: st.DrawFn) -> tuple[Graph, dict[str, Standing], int, list[int]]:
    """A join of jobs in several chunks, how these stand, the join, and the chunks that somebody has read."""
    places = draw(st.lists(st.integers(0, 255), min_size=1, max_size=8, unique=True))
    rule = draw(st.sampled_from(RULES))
    nodes = [Node(name=f"j{at}", job_type="test") for at in range(256)]
    nodes.append(Node(name="join", job_type="test", depends_on=tuple(places), trigger_rule=rule))
    standing: dict[str, Standing] = {f"j{at}": draw(st.sampled_from(STANDINGS)) for at in places}
    return Graph(nodes=nodes), standing, 256, draw(st.lists(st.integers(0, 3), unique=True))


@given(spread())
def test_what_is_certain_does_not_depend_on_which_chunks_were_read(
    told: tuple[Graph, dict[str, Standing], int, list[int]],
) -> None:
    jobs, standing, join, read = told
    whole, lazy = stand(jobs, **standing), stand(jobs, **standing)
    for chunk in chunks(len(jobs.nodes)):
        whole.chunk(chunk)
    for chunk in read:
        lazy.chunk(chunk)
    certain, some = outlook(whole, join)[0], outlook(lazy, join)[0]
    by_chunk = {chunk_of(place) for place in jobs.nodes[join].depends_on}
    if some is None and certain is not None:
        # Left open only where a chunk was not read, and one that was shows a job that has not ended.
        assert not all(map(lazy.has_read, by_chunk))
        assert any(
            whole.ending(place) is None for place in jobs.nodes[join].depends_on if lazy.has_read(chunk_of(place))
        )
    else:
        assert some == certain


@given(spread())
def test_a_fan_in_reads_only_what_it_must(told: tuple[Graph, dict[str, Standing], int, list[int]]) -> None:
    jobs, _, join, _ = told
    jobs = Graph(nodes=[*jobs.nodes[:-1], replace(jobs.nodes[-1], trigger_rule="all_success")])
    read: list[int] = []

    def look(chunk: int) -> Chunk:
        read.append(chunk)
        return Chunk()

    standings = Standings(graph=jobs, read=look)
    first = chunk_of(jobs.nodes[join].depends_on[0])
    standings.chunk(first)
    assert outlook(standings, join)[0] is None
    assert read == [first]


ONE_REASON: list[TriggerRule] = ["all_success", "one_success", "all_done", "one_done", "always"]
"""Rules by which nobody is skipped but through a failure, unless somebody was before. Where there may be two reasons,
the one that is heard of first counts."""


@given(
    situations(ONE_REASON, [standing for standing in STANDINGS if standing != "skipped"]),
    st.randoms(use_true_random=False),
)
def test_what_is_released_and_skipped_depends_on_no_order(told: tuple[Graph, dict[str, Standing]], chance: Any) -> None:
    jobs, standing = told
    places = list(range(len(jobs.nodes)))
    first = follow_up(stand(jobs, **standing), places)
    chance.shuffle(places)
    second = follow_up(stand(jobs, **standing), [*places, *places])
    assert first == second
    assert not first.releases.keys() & first.skips.keys()


@given(situations())
def test_only_who_waits_is_released_or_skipped_and_all_of_these_are(told: tuple[Graph, dict[str, Standing]]) -> None:
    jobs, standing = told
    before, after = stand(jobs, **standing), stand(jobs, **standing)
    found = follow_up(after, range(len(jobs.nodes)))
    for place in range(len(jobs.nodes)):
        held = outlook(after, place)[0]
        waited = before.of(place) == "waiting"
        assert (place in found.releases) == (waited and held is True)
        assert (place in found.skips) == (waited and held is False)


def test_skips_follow_from_skips_with_their_reasons() -> None:
    jobs = graph((), (0,), (1,), (2,), (0, 2), e={"trigger_rule": "one_failed"})
    found = follow_up(stand(jobs, a="failed"), [1, 4])
    assert set(found.skips) == {1, 2, 3}
    assert all(verdict.through_failure for verdict in found.skips.values())
    assert set(found.releases) == {4}
    assert found.releases[4].reason == "one_failed holds: of 2 dependencies 2 failed"


def test_who_comes_after_what_was_skipped_before_is_looked_at() -> None:
    # Whoever skipped b and c may have died before looking at d.
    jobs = graph((), (0,), (1,), (2,), (0, 3), d={"trigger_rule": "all_done"})
    found = follow_up(stand(jobs, a="failed", b="skipped_by_failure", c="skipped_by_failure"), [1])
    assert [sorted(each) for each in (found.skipped_before, found.releases, found.skips)] == [[1, 2], [3], []]
    done = follow_up(stand(jobs, a="failed", b="skipped_by_failure", c="skipped_by_failure", d="running"), [1])
    assert [sorted(each) for each in (done.skipped_before, done.certain)] == [[1, 2], []]


def test_who_was_skipped_without_a_failure_is_none_downstream() -> None:
    jobs = graph((), (0,), (1,), c={"trigger_rule": "none_failed"})
    assert set(follow_up(stand(jobs, a="skipped"), [1]).releases) == {2}
    assert set(follow_up(stand(jobs, a="skipped_by_failure"), [1]).skips) == {1, 2}


def test_who_is_skipped_for_two_reasons_at_once_is_so_through_a_failure() -> None:
    # Whoever looked at e after c, and before d, would see only that c was skipped.
    jobs = graph((), (), (1,), (0, 2), (2, 3), d={"trigger_rule": "one_success"})
    found = follow_up(stand(jobs, a="failed", b="skipped"), [4, 3, 2])
    assert {place: verdict.through_failure for place, verdict in found.skips.items()} == {2: False, 3: True, 4: True}


@pytest.mark.parametrize("rule", ["all_failed", "none_skipped"])
def test_who_is_skipped_by_a_rule_that_no_failure_hinders_is_not_so_through_a_failure(rule: str) -> None:
    jobs = graph((), (), (0, 1), c={"trigger_rule": rule})
    found = follow_up(stand(jobs, a="failed", b="skipped"), [2])
    assert not found.skips[2].through_failure


def test_who_has_a_time_of_its_own_is_not_judged_before() -> None:
    jobs = graph((), (0,), b={"delayed": True})
    assert first_standing(jobs.nodes[1]) == "scheduled"
    assert follow_up(stand(jobs, a="completed"), [1]).releases == {}
    assert set(follow_up(stand(jobs, a="completed", b="waiting"), [1]).releases) == {1}


@pytest.mark.parametrize(
    ("standing", "lost", "failed"),
    [
        ({"a": "failed", "b": "running"}, (), False),
        ({"a": "failed", "b": "waiting"}, (), False),
        ({"a": "failed", "b": "completed"}, (), False),
        ({"a": "failed", "b": "pardoned"}, (), False),
        ({"a": "failed", "b": "failed"}, (), True),
        ({"a": "undecided", "b": "failed"}, (), True),
        ({"a": "failed", "b": "undecided"}, (), True),
        ({"a": "failed", "b": "skipped"}, (), True),
        ({"a": "cancelled", "b": "cancelled", "c": "cancelled"}, (), True),
        ({"a": "cancelled", "b": "completed"}, (0,), False),
        ({"a": "failed", "b": "completed", "c": "failed"}, (), False),
        ({"a": "completed", "b": "failed"}, (), False),
    ],
)
def test_a_racers_failure_counts_once_nobody_can_win(
    standing: dict[str, Standing], lost: tuple[int, ...], *, failed: bool
) -> None:
    jobs = graph((), (), (0, 1), c={"trigger_rule": "one_success", "cancel_losers": True})
    assert is_failure(stand(jobs, lost=lost, **standing), 0) is failed


def test_failures_and_losers() -> None:
    jobs = graph((), (), (0, 1), (2,), c={"trigger_rule": "one_success", "cancel_losers": True})
    standings = stand(jobs, a="completed", b="running", c="completed", d="failed")
    assert list(failures(standings)) == [3]
    assert losers(standings, 2) == [1]
    assert losers(stand(jobs, lost=(1,), a="completed", b="cancelled"), 2) == []


def test_who_has_lost_counts_as_skipped_however_it_ended() -> None:
    jobs = graph((), ())
    for standing in ("failed", "cancelled", "undecided"):
        standings = stand(jobs, lost=(0,), a=standing)
        assert standings.ending(0) == "skipped"
        assert not standings.is_open(0)
    assert stand(jobs, lost=(0,), a="completed").ending(0) == "success"
    assert stand(jobs, lost=(0,), a="running").is_open(0)


def test_what_a_retry_runs_again() -> None:
    jobs = graph((), (0,), (1,), (0,), (3,), (2, 4), f={"trigger_rule": "all_done"})
    ended = stand(jobs, a="completed", b="failed", c="skipped_by_failure", d="completed", e="completed", f="completed")
    assert to_run_again(ended, None) == {1, 2}, "what has succeeded is kept"
    assert to_run_again(ended, 3) == {1, 2, 3, 4, 5}
    assert to_run_again(stand(jobs, **dict.fromkeys("abcdef", "completed")), None) == set()
    assert to_run_again(stand(jobs, **dict.fromkeys("abcdef", "cancelled")), None) == set(range(6))


def test_an_operators_decision_is_later_than_the_failure_and_earlier_than_the_next_version() -> None:
    failed = Note(standing="undecided", moment=2 * 7)
    assert 2 * 7 < decided(failed, "pardoned").moment < 2 * 8


def test_what_is_assumed_is_forgotten_once_it_is_known() -> None:
    jobs = graph((), (0,))
    standings = stand(jobs)
    standings.assume(0, "failed")
    assert standings.of(0) == "failed"
    standings.put(0, Chunk(notes={0: Note(standing="completed", moment=4)}))
    assert standings.of(0) == "completed"


@given(situations())
def test_statistics_add_up(told: tuple[Graph, dict[str, Standing]]) -> None:
    jobs, standing = told
    standings = stand(jobs, **standing)
    counted = standings.statistics()
    assert sum(counted.values()) == len(jobs.nodes)
    assert all(counted[standings.status(place)] for place in range(len(jobs.nodes)))
    assert standings.all_over() == (not any(standings.is_open(place) for place in range(len(jobs.nodes))))


def test_every_standing_is_a_status() -> None:
    assert {status_of(standing) for standing in STANDINGS} == {
        "waiting", "scheduled", "pending", "running", "completed", "failed", "cancelled", "skipped",
    }  # fmt: skip


def test_a_graph_knows_who_comes_after_whom() -> None:
    jobs = graph((), (0,), (0,), (1, 2), d={"cancel_losers": True}, c={"trigger_rule": "always"})
    assert jobs.dependents == [[1, 2], [3], [3], []]
    assert jobs.beginnings == [0, 2]
    assert jobs.edges == 4
    assert jobs.names_before(3) == ["b", "c"]
    assert jobs.races(1) == [3]
    assert jobs.races(0) == []
    assert jobs.downstream([1]) == {1, 3}
    assert jobs.downstream([0], passes=lambda place: place != 1) == {0, 2, 3}


@pytest.mark.parametrize(("total", "rows"), [(1, 1), (64, 1), (65, 2), (10_000, 157)])
def test_every_job_is_in_one_chunk(total: int, rows: int) -> None:
    assert len(chunks(total)) == rows
    assert [place for chunk in chunks(total) for place in places_of(chunk, total)] == list(range(total))
    assert all(place in places_of(chunk_of(place), total) for place in (0, total // 2, total - 1))
