"""Diagrams of a run's graph: three formats, any names, and ten thousand jobs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.scalars import HOSTILE_TEXTS
from vigil_core.domain.diagrams.clustering import Cluster, cluster_nodes
from vigil_core.domain.diagrams.layout import compute_layout
from vigil_core.domain.diagrams.render import DiagramJob, dot, mermaid, svg
from vigil_core.domain.jobs.status import STATUSES, JobStatus
from vigil_core.domain.text_rule import printable
from vigil_core.domain.workflows.graph import longest_path_layers

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '"];--</text><script>&lt; \\" \\n %%{init}%% `_x_` #35; 日本 🎉'


def drawn(name: str, *depends_on: int, status: JobStatus = "completed", **more: str) -> DiagramJob:
    return DiagramJob(name=name, status=status, depends_on=depends_on, **{"job_type": name, **more})  # type: ignore[arg-type]


def fan(width: int, status: JobStatus = "completed") -> list[DiagramJob]:
    chunks = [drawn(f"chunk_{n}", 0, status=status) for n in range(width)]
    return [drawn("split"), *chunks, drawn("join", *range(1, width + 1), status="waiting")]


def chain(length: int, failed: int) -> list[DiagramJob]:
    def status(n: int) -> JobStatus:
        return "completed" if n < failed else "failed" if n == failed else "skipped"

    return [drawn(f"step_{n}", *([n - 1] if n else []), status=status(n)) for n in range(length)]


def texts(picture: str) -> list[str]:
    """Return every visible text of an SVG, without tooltips."""
    return [element.text or "" for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def counted(picture: str) -> tuple[int, int]:
    """Return the number of jobs in the legend and in the boxes."""
    shown = texts(picture)
    legend = [re.fullmatch(rf"([\d,]+) ({'|'.join(STATUSES)})", text) for text in shown]
    in_groups = [int(found.replace(",", "")) for text in shown for found in re.findall("([\\d,]+)\u00a0", text)]
    alone = len(re.findall(f'<text class="status ({"|".join(STATUSES)})"', picture))
    return sum(int(found[1].replace(",", "")) for found in legend if found), sum(in_groups) + alone


BRANCHES = [
    drawn("validate"),
    drawn("process", 0, status="running", condition="validation_status == 'valid'", job_type="spark"),
    drawn(
        "quarantine", 0, status="skipped", condition="validation_status == 'invalid'", reason="the condition is false"
    ),
    drawn("tell", 1, 2, status="waiting", trigger_rule="one_success", reason="waits for process"),
]


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=lambda text: ascii(text)[:12])
@pytest.mark.parametrize("draw", [svg, dot, mermaid])
def test_diagram_contains_no_unprintable_character(draw: Callable[..., str], text: str) -> None:
    jobs = [
        drawn(f"a{text}", status="failed", job_type=f"t{text}", reason=f"r{text}", condition=f"c{text}"),
        *(drawn(f"{n}{text}", 0, status="waiting", reason=text) for n in range(40)),
    ]
    for line in draw(text, jobs).split("\n"):
        assert printable(line) == line


def test_svg_shows_names_statuses_rules_and_reasons() -> None:
    shown = texts(svg("branches", BRANCHES))
    assert shown[:5] == ["branches", "1 completed", "1 running", "1 waiting", "1 skipped"]
    assert shown[5:] == [
        *("validate", "completed"),
        *("process", "running · spark", "if validation_status == 'valid'"),
        *("quarantine", "skipped", "if validation_status == 'invalid'", "the condition is false"),
        *("tell", "waiting", "one_success", "waits for process"),
    ]
    tooltips = [title.text for title in ElementTree.fromstring(svg("branches", BRANCHES)).iter(f"{SVG}title")]
    assert (
        tooltips[3] == "quarantine: skipped\ntype quarantine\nif validation_status == 'invalid'\nthe condition is false"
    )


def test_svg_has_a_size_and_is_deterministic() -> None:
    root = ElementTree.fromstring(svg("branches", BRANCHES))
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    assert svg("branches", BRANCHES) == svg("branches", BRANCHES)
    assert ElementTree.fromstring(svg("nothing", [])).get("width")


@pytest.mark.parametrize("status", STATUSES)
def test_every_job_status_is_drawn(status: JobStatus) -> None:
    for picture in (svg("one", [drawn("a", status=status)]), dot("one", [drawn("a", status=status)])):
        assert status in picture
    assert f":::{status}" in mermaid("one", [drawn("a", status=status)])


def test_mermaid_contains_every_job_and_dependency() -> None:
    lines = mermaid("branches", BRANCHES).splitlines()
    assert lines[:4] == ["---", 'title: "branches"', "---", "flowchart LR"]
    assert lines[4] == '    n0["validate<br/>completed"]:::completed'
    assert lines[7] == '    n3["tell<br/>waiting<br/>one_success<br/>waits for process"]:::waiting'
    assert [line.strip() for line in lines[8:12]] == ["n0 --> n1", "n0 --> n2", "n1 --> n3", "n2 --> n3"]


def test_mermaid_escapes_hostile_names() -> None:
    picture = mermaid(HOSTILE, [drawn(HOSTILE, reason="two\nlines")])
    (node,) = re.findall(r'^    n0\["(.*)"\]:::completed$', picture, re.MULTILINE)
    name, status, reason = node.split("<br/>")
    assert re.fullmatch(r"(?:[\w. ]|#\d+;)*", name)
    decoded = re.sub(r"#(\d+);", lambda found: chr(int(found[1])), name).replace("\u200b", "")
    assert (decoded, status, reason) == (HOSTILE, "completed", "two lines")
    assert "%%{" not in picture


def test_graphviz_escapes_hostile_names() -> None:
    picture = dot(HOSTILE, [drawn(HOSTILE, reason="two\nlines"), drawn("b\\", 0)])
    strings = re.findall(r'"((?:[^"\\]|\\.)*)"', picture)
    assert '"' not in re.sub(r'"((?:[^"\\]|\\.)*)"', "", picture)
    escaped = HOSTILE.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
    assert f"{escaped}\\ncompleted\\ntwo lines" in strings
    assert "b\\\\\\ncompleted" in strings
    assert "    n0 -> n1;\n" in picture


anything = st.text(st.characters(exclude_categories=()), min_size=1, max_size=60)


@settings(deadline=None)
@given(
    st.lists(st.tuples(anything, anything, st.sampled_from(STATUSES), st.sets(st.integers(0, 20))), max_size=12),
    anything,
)
def test_svg_is_well_formed_for_any_names_and_reasons(
    sketches: list[tuple[str, str, JobStatus, set[int]]], title: str
) -> None:
    jobs = [
        drawn(name, *sorted(other for other in others if other < n), status=status, reason=reason, condition=reason)
        for n, (name, reason, status, others) in enumerate(sketches)
    ]
    root = ElementTree.fromstring(svg(title, jobs))
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        *("svg", "title", "desc", "style", "rect", "text", "g", "circle", "path"),
    }
    assert len(root.findall(f"{SVG}g/{SVG}g/{SVG}title")) == len(jobs)
    assert svg(title, jobs).encode()
    assert counted(svg(title, jobs, collapse_threshold=3)) == (len(jobs), len(jobs))
    edges = sum(len(job.depends_on) for job in jobs)
    statuses = {job.status for job in jobs}
    assert len(mermaid(title, jobs).splitlines()) == 4 + len(jobs) + edges + len(statuses)
    assert len(dot(title, jobs).splitlines()) == 5 + len(jobs) + edges


def test_similar_jobs_share_a_box_with_their_count() -> None:
    jobs = fan(1_000)
    jobs[40] = drawn("chunk_39", 0, status="failed", reason="the disk is full")
    shown = texts(svg("fan", jobs))
    assert "chunk_* × 1,000" in shown
    assert "999\u00a0completed, 1\u00a0failed" in shown
    assert "chunk_39 failed: the disk is full" in shown
    assert len(shown) < 15
    assert "chunk_* × 8" not in texts(svg("fan", fan(8)))
    assert "chunk_* × 8" in texts(svg("fan", fan(8), collapse_threshold=9))


def test_long_chain_shows_its_ends_and_status_changes() -> None:
    shown = texts(svg("chain", chain(10_000, failed=5_000)))[4:]
    assert [text for text in shown if re.match("step_|.*sequence", text)] == [
        *("step_0", "4,999 jobs in sequence", "step_*", "step_5000"),
        *("4,998 jobs in sequence", "step_*", "step_9999"),
    ]


def test_long_sequence_is_shortened_in_a_small_graph() -> None:
    assert len([text for text in texts(svg("chain", chain(24, failed=30))) if text.startswith("step_")]) == 24
    shown = texts(svg("chain", chain(25, failed=10)))
    assert {"9 jobs in sequence", "step_10", "13 jobs in sequence"} <= set(shown)


def test_similar_lanes_are_drawn_as_one_lane() -> None:
    lanes = [drawn("begin")]
    for n in range(300):
        at = len(lanes)
        lanes += [drawn(f"fetch_{n}", 0), drawn(f"store_{n}", at, status="running")]
    lanes.append(drawn("end", *range(2, 601, 2), status="waiting"))
    shown = texts(svg("lanes", lanes))
    assert {"fetch_* × 300", "store_* × 300"} <= set(shown)


graphs = st.lists(st.sets(st.integers(0, 39), max_size=4), min_size=1, max_size=40)


def before_only(graph: Sequence[set[int]]) -> list[tuple[int, ...]]:
    return [tuple(sorted(other for other in others if other < n)) for n, others in enumerate(graph)]


@settings(deadline=None)
@given(graphs, st.integers(1, 12), st.lists(st.sampled_from("ab"), min_size=40, max_size=40))
def test_clusters_contain_every_job_once_and_preserve_dependencies(
    graph: list[set[int]], at_most: int, keys: list[str]
) -> None:
    depends_on = before_only(graph)
    found = cluster_nodes(depends_on, keys[: len(graph)], limit=at_most)
    assert len(found) <= max(at_most, 1)
    assert sorted(member for box in found for member in box.members) == list(range(len(graph)))
    place = {member: n for n, box in enumerate(found) for member in box.members}
    wanted = {(place[other], place[n]) for n, others in enumerate(depends_on) for other in others}
    assert {(other, n) for n, box in enumerate(found) for other in box.depends_on} == {
        (one, other) for one, other in wanted if one != other
    }
    column = longest_path_layers([box.depends_on for box in found])
    assert all(column[other] < column[n] for n, box in enumerate(found) for other in box.depends_on)
    if len(graph) <= at_most:
        assert [box.members for box in found] == [(n,) for n in range(len(graph))]


def test_cluster_of_a_sequence_preserves_its_order() -> None:
    backwards = [*((n + 1,) for n in range(9)), ()]
    found = cluster_nodes(backwards, [None] * 10, limit=5)
    assert Cluster(members=tuple(range(8, 0, -1)), kind="sequence", depends_on=(2,)) in found


@settings(deadline=None)
@given(graphs)
def test_boxes_and_passing_lines_do_not_overlap(graph: list[set[int]]) -> None:
    depends_on = before_only(graph)
    found = compute_layout(depends_on, [100.0] * len(graph), [40.0 + n % 3 * 15 for n in range(len(graph))])
    by_column: dict[float, list[tuple[float, float]]] = {}
    for stop in found.nodes:
        by_column.setdefault(stop.x, []).append((stop.y - stop.height / 2, stop.y + stop.height / 2))
        assert -0.01 <= stop.y - stop.height / 2 <= stop.y + stop.height / 2 <= found.height + 0.01
        assert stop.x + stop.width <= found.width
    for column in by_column.values():
        column.sort()
        assert all(lower[1] + 10 < upper[0] for lower, upper in pairwise(column))
    for box, hops in enumerate(found.edges):
        reached = {box}
        for one, other in hops:
            assert one in reached
            assert found.nodes[one].x + found.nodes[one].width < found.nodes[other].x
            reached.add(other)
        ends = {other for other in reached if found.nodes[other].is_box} - {box}
        assert ends == {n for n, others in enumerate(depends_on) if box in others}


def test_ten_thousand_jobs_are_drawn_within_4_seconds() -> None:
    web = [
        drawn(f"job_{n}", *sorted({(n * 7 + k * k * 31) % n for k in range(10)} if n else ()), status=STATUSES[n % 8])
        for n in range(10_000)
    ]
    for jobs in (fan(9_998), chain(10_000, failed=3), web):
        began = time.process_time()
        picture = svg("large", jobs)
        assert time.process_time() - began < 4
        assert len(picture) < 1_000_000
        assert counted(picture) == (10_000, 10_000)


def ladder(size: int) -> list[Sequence[int]]:
    """Return a chain in which each job has a leaf. Each merge finds only the last two jobs alike."""
    return [[max(n - 2, 0)] if n % 2 == 0 and n else [n - 1] if n else [] for n in range(size)]


def reversed_ladder(size: int) -> list[Sequence[int]]:
    return [[] if n % 2 == 0 else [n - 1, *([n - 2] if n > 2 else [])] for n in range(size)]


def comb(size: int) -> list[Sequence[int]]:
    """Return a chain whose jobs have chains of seven jobs."""
    return [[n - 8] if n >= 8 and n % 8 == 0 else [n - 1] if n else [] for n in range(size)]


def lattice(size: int) -> list[Sequence[int]]:
    return [[other for other in (n - 1, n - 2) if other >= 0] for n in range(size)]


def tree(size: int) -> list[Sequence[int]]:
    return [[(n - 1) // 2] if n else [] for n in range(size)]


@pytest.mark.parametrize("shape", [ladder, reversed_ladder, comb, lattice, tree])
def test_time_of_diagram_grows_with_the_size_of_the_graph(shape: Callable[[int], list[Sequence[int]]]) -> None:
    def duration(size: int) -> float:
        jobs = [drawn(f"job_{n}", *others) for n, others in enumerate(shape(size))]
        durations = []
        for _ in range(3):
            began = time.process_time()
            picture = svg("shape", jobs)
            durations.append(time.process_time() - began)
            assert counted(picture) == (size, size)
        return min(durations)

    assert duration(10_000) < 8 * duration(2_500)
