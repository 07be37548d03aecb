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

from vigil_core.domain.jobs.dependencies import Ending, Tally, Verdict, holds, verdict_of
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.status import STATUSES, JobStatus
from vigil_core.domain.workflows.graph import Graph, Node, chunk_of, chunks, places_of

FailurePolicy: TypeAlias = Literal["fail_fast", "continue_on_failure", "manual"]
Standing: TypeAlias = Literal[
    "waiting", "scheduled", "pending", "running", "completed", "failed", "cancelled", "skipped", "skipped_by_failure",
    "undecided", "pardoned",
]  # fmt: skip
"""The status of a job as its run sees it. `skipped_by_failure`: skipped because others failed, which counts as failed
for those after it. `undecided`: it failed, and an operator is to say what becomes of that. `pardoned`: it failed, and
the run goes on as if it had not."""

OPEN: frozenset[Standing] = frozenset({"waiting", "scheduled", "pending", "running", "undecided"})
"""A run does not end while a job stands so."""
_STATUS_OF: Mapping[Standing, JobStatus] = {
    "skipped_by_failure": "skipped", "undecided": "failed", "pardoned": "failed",
}  # fmt: skip
_ENDING_OF: Mapping[Standing, Ending] = {
    "completed": "success", "pardoned": "success", "failed": "failed", "cancelled": "cancelled", "skipped": "skipped",
    "skipped_by_failure": "failed",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Note:
    """How a job stands, and from which moment of its life on: of two notes the later one counts."""

    standing: Standing
    moment: int


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The notes on the jobs that share a row. `lost`: those that were cancelled because their race was over. A job
    without a note has not moved since it was created."""

    notes: Mapping[int, Note] = field(default_factory=dict)
    lost: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Standings:
    """How the jobs of a run stand. A chunk is read when it is first asked for."""

    graph: Graph
    read: Callable[[int], Chunk]
    _chunks: dict[int, Chunk] = field(default_factory=dict)
    _assumed: dict[int, Standing] = field(default_factory=dict)

    def put(self, chunk: int, notes: Chunk) -> None:
        """A chunk as it is now: what was assumed of its jobs is forgotten."""
        self._chunks[chunk] = notes
        for place in [place for place in self._assumed if chunk_of(place) == chunk]:
            del self._assumed[place]

    def has_read(self, chunk: int) -> bool:
        """Whether a chunk can be asked without reading it."""
        return chunk in self._chunks

    def chunk(self, number: int) -> Chunk:
        """A chunk, read if need be."""
        if number not in self._chunks:
            self._chunks[number] = self.read(number)
        return self._chunks[number]

    def look_before(self, place: int) -> None:
        """Read how all stand on which a job depends: they may have been heard of before it could be judged."""
        for chunk in self.graph.dependencies_by_chunk[place]:
            self.chunk(chunk)

    def assume(self, place: int, standing: Standing) -> None:
        """From now on answer as if a job stood so."""
        self._assumed[place] = standing

    def of(self, place: int) -> Standing:
        """How a job stands."""
        if place in self._assumed:
            return self._assumed[place]
        note = self.chunk(chunk_of(place)).notes.get(place)
        return first_standing(self.graph.nodes[place]) if note is None else note.standing

    def status(self, place: int) -> JobStatus:
        """The status of a job."""
        return status_of(self.of(place))

    def has_lost(self, place: int) -> bool:
        """Whether a job was cancelled because its race was over."""
        return place in self.chunk(chunk_of(place)).lost

    def ending(self, place: int) -> Ending | None:
        """What the end of a job means for those after it; None while it has not ended."""
        standing = self.of(place)
        if standing in ("failed", "cancelled", "undecided") and self.has_lost(place):
            return "skipped"
        return _ENDING_OF.get(standing)

    def is_open(self, place: int) -> bool:
        """Whether the run has to wait for a job."""
        return self.of(place) in OPEN and self.ending(place) is None

    def chunk_is_over(self, chunk: int) -> bool:
        """Whether no job of a chunk is open."""
        return not any(map(self.is_open, places_of(chunk, len(self.graph.nodes))))

    def all_over(self) -> bool:
        """Whether no job is open. Reads chunks until one is."""
        return all(map(self.chunk_is_over, chunks(len(self.graph.nodes))))

    def statistics(self) -> dict[JobStatus, int]:
        """How many jobs have each status."""
        counted = Counter(self.status(place) for place in range(len(self.graph.nodes)))
        return {status: counted[status] for status in STATUSES}


@dataclass(frozen=True, kw_only=True)
class FollowUp:
    """What is to become of jobs that wait: by their places, each with the verdict that says why."""

    releases: Mapping[int, Verdict]
    skips: Mapping[int, Verdict]
    skipped_before: frozenset[int]
    """Who had been skipped already of those that were looked at, and of those after them."""

    @property
    def certain(self) -> frozenset[int]:
        """All these places."""
        return frozenset(self.releases).union(self.skips)

    def of(self, places: Set[int]) -> FollowUp:
        """As far as it is about these jobs."""
        return FollowUp(
            releases={place: verdict for place, verdict in self.releases.items() if place in places},
            skips={place: verdict for place, verdict in self.skips.items() if place in places},
            skipped_before=self.skipped_before & places,
        )


def first_standing(node: Node) -> Standing:
    """How a job stands that has not moved since it was created."""
    return "scheduled" if node.delayed else "waiting"


def status_of(standing: Standing) -> JobStatus:
    """The status of a job that stands so."""
    return _STATUS_OF.get(standing) or standing  # type: ignore[return-value]


def note_of(job: Job) -> Note:
    """How a job stands by its own row."""
    through_failure = job.status == "skipped" and job.verdict is not None and job.verdict.through_failure
    return Note(standing="skipped_by_failure" if through_failure else job.status, moment=2 * job.version)


def decided(note: Note, standing: Standing) -> Note:
    """The note on an operator's decision about what an earlier note says."""
    return Note(standing=standing, moment=note.moment + 1)


def outlook(standings: Standings, place: int) -> tuple[bool | None, Tally]:
    """Whether a job's rule is satisfied (True), can no longer be (False), or may still go either way (None); and how
    its dependencies have ended as far as that was looked at.

    Chunks that were read come first: as long as they leave the rule open and show an open dependency, nothing else is
    read. Whoever hears of what another chunk says has read that one.
    """
    node = standings.graph.nodes[place]
    by_chunk = standings.graph.dependencies_by_chunk[place]
    ended: Counter[str] = Counter()
    held, waits = None, False
    for chunk in sorted(by_chunk, key=lambda chunk: not standings.has_read(chunk)):
        if held is None and waits and not standings.has_read(chunk):
            break
        for dependency in by_chunk[chunk]:
            if (ending := standings.ending(dependency)) is None:
                waits = True
            else:
                ended[ending] += 1
        held = holds(node.trigger_rule, Tally(total=len(node.depends_on), **ended))
    tally = Tally(total=len(node.depends_on), **ended)
    return holds(node.trigger_rule, tally) if node.depends_on else True, tally


def follow_up(standings: Standings, places: Iterable[int]) -> FollowUp:
    """What becomes of these jobs, as far as they wait and it is certain, and of those after them that are skipped with
    them. What is skipped is assumed from then on. Who comes after one that was skipped before is looked at as well:
    whoever skipped it may have died before he did.

    Nobody is judged before those on which he depends: who is skipped for two reasons at once is so through a failure if
    one of them is, in whichever order they are looked at.
    """
    depth = standings.graph.depth
    releases: dict[int, Verdict] = {}
    skips: dict[int, Verdict] = {}
    skipped_before: set[int] = set()
    looked_at: set[int] = set()
    left = [(depth[place], place) for place in places]
    heapify(left)

    def look_after(place: int) -> None:
        for after in standings.graph.dependents[place]:
            heappush(left, (depth[after], after))

    while left:
        _, place = heappop(left)
        if place in looked_at:
            continue
        looked_at.add(place)
        if standings.status(place) == "skipped":
            skipped_before.add(place)
            look_after(place)
        if standings.of(place) != "waiting":
            continue
        held, tally = outlook(standings, place)
        if held is None:
            continue
        node = standings.graph.nodes[place]
        verdict = verdict_of(node.trigger_rule, tally, held)
        if not node.depends_on:
            verdict = verdict.because("it depends on no other job")
        if held:
            releases[place] = verdict
            continue
        skips[place] = verdict
        standings.assume(place, "skipped_by_failure" if verdict.through_failure else "skipped")
        look_after(place)
    return FollowUp(releases=releases, skips=skips, skipped_before=frozenset(skipped_before))


def is_failure(standings: Standings, place: int) -> bool:
    """Whether a job has failed its run: not if it only lost a race, or runs in one that may yet be won, or was."""
    if standings.of(place) not in ("failed", "cancelled", "undecided") or standings.has_lost(place):
        return False
    return not any(_may_be_won(standings, join) for join in standings.graph.races(place))


def failures(standings: Standings) -> Iterator[int]:
    """The jobs that have failed their run."""
    return (place for place in range(len(standings.graph.nodes)) if is_failure(standings, place))


def losers(standings: Standings, join: int) -> list[int]:
    """Who still runs in a race that is over."""
    return [place for place in standings.graph.nodes[join].depends_on if standings.is_open(place)]


def to_run_again(standings: Standings, start: int | None) -> set[int]:
    """What a retry runs again: whatever has failed, was cancelled or skipped because of that, and all that comes after
    and has not succeeded. With `start` also that job and all that comes after it, whatever became of it."""
    total = range(len(standings.graph.nodes))
    bad = {place for place in total if standings.of(place) == "skipped_by_failure" or is_failure(standings, place)}
    again = standings.graph.downstream(bad, passes=lambda place: standings.ending(place) != "success")
    return again if start is None else again | standings.graph.downstream({start})


def _may_be_won(standings: Standings, join: int) -> bool:
    """Whether one of the jobs that race for a join has won, or still runs: whatever became of the join itself."""
    return any(
        standings.ending(place) == "success" or (standings.ending(place) is None and standings.of(place) != "undecided")
        for place in standings.graph.nodes[join].depends_on
    )
