"""A run's graph as a picture: for Mermaid, for Graphviz, and as an SVG that needs neither. Pure.

Names and reasons are anybody's: each language has its own way to say a character that it would otherwise understand.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from unicodedata import east_asian_width

from vigil_core.domain.diagrams.clustering import Box, boxes
from vigil_core.domain.diagrams.layout import Layout, layout
from vigil_core.domain.jobs.dependencies import TriggerRule
from vigil_core.domain.jobs.status import JobStatus

COLLAPSE_OVER = 120
MOST_SAID = 160
"""Characters of a reason or a condition in Mermaid and Graphviz; the SVG shows as much as it has room for."""


@dataclass(frozen=True, kw_only=True)
class DrawnJob:
    """What a picture shows of a job."""

    name: str
    status: JobStatus
    depends_on: tuple[int, ...]
    """Places in the sequence of jobs."""
    job_type: str
    trigger_rule: TriggerRule = "all_success"
    condition: str | None = None
    reason: str | None = None
    """Why it was skipped, or failed, or what it waits for."""

    @property
    def terms(self) -> str | None:
        """On what terms it runs, where that is not the success of all before it."""
        rule = None if self.trigger_rule == "all_success" else self.trigger_rule
        condition = None if self.condition is None else f"if {self.condition}"
        return " · ".join(filter(None, (rule, condition))) or None


@dataclass(frozen=True, kw_only=True)
class _Colours:
    """Of a status: its strong colour, the text and the ground of its boxes by day, and the same by night."""

    strong: str
    day: tuple[str, str]
    night: tuple[str, str]


_COLOURS: dict[JobStatus, _Colours] = {
    "scheduled": _Colours(strong="#8b5cf6", day=("#6d28d9", "#f7f5ff"), night=("#c4b5fd", "#1c1733")),
    "waiting": _Colours(strong="#64748b", day=("#475569", "#f8fafc"), night=("#a9b6c9", "#161c27")),
    "pending": _Colours(strong="#d98a06", day=("#92580a", "#fffaf0"), night=("#fbbf4a", "#281e0a")),
    "running": _Colours(strong="#2f6feb", day=("#1d4fd8", "#f1f6ff"), night=("#82b1ff", "#0f1d38")),
    "completed": _Colours(strong="#1f9d55", day=("#147a3f", "#f2fbf5"), night=("#5fd68f", "#0e2217")),
    "failed": _Colours(strong="#dc3545", day=("#b4212f", "#fff4f4"), night=("#ff8d94", "#2e1215")),
    "cancelled": _Colours(strong="#8a6d5b", day=("#6b5244", "#faf7f5"), night=("#cdb3a3", "#211b17")),
    "skipped": _Colours(strong="#94a3b8", day=("#55637a", "#fbfcfd"), night=("#9aa8bb", "#12161e")),
}


def mermaid(title: str, jobs: Sequence[DrawnJob]) -> str:
    """A Mermaid flowchart: https://mermaid.js.org/syntax/flowchart.html"""
    lines = ["---", f"title: {_yaml_text(title)}", "---", "flowchart LR"]
    for n, job in enumerate(jobs):
        label = "<br/>".join(map(_mermaid_text, _label(job)))
        lines.append(f'    n{n}["{label}"]:::{job.status}')
    for n, job in enumerate(jobs):
        lines += [f"    n{other} --> n{n}" for other in job.depends_on]
    for status in _in_order(job.status for job in jobs):
        colours = _COLOURS[status]
        dashed = ",stroke-dasharray:4 3" if status in _GIVEN_UP else ""
        ink, ground = colours.day
        lines.append(f"    classDef {status} fill:{ground},stroke:{colours.strong},color:{ink}{dashed}")
    return "\n".join(lines) + "\n"


def dot(title: str, jobs: Sequence[DrawnJob]) -> str:
    """A Graphviz digraph: https://graphviz.org/doc/info/lang.html"""
    lines = [
        "digraph workflow {",
        f'    graph [rankdir=LR, label="{_dot_text(title)}", labelloc=t, fontname="Helvetica"];',
        '    node [shape=box, fontname="Helvetica", fontsize=11];',
        '    edge [color="#94a3b8", arrowsize=0.7];',
    ]
    for n, job in enumerate(jobs):
        colours = _COLOURS[job.status]
        ink, ground = colours.day
        style = "rounded,filled,dashed" if job.status in _GIVEN_UP else "rounded,filled"
        label = r"\n".join(map(_dot_text, _label(job)))
        lines.append(
            f'    n{n} [label="{label}", tooltip="{_dot_text(job.name)}", style="{style}", '
            f'color="{colours.strong}", fillcolor="{ground}", fontcolor="{ink}"];'
        )
    for n, job in enumerate(jobs):
        lines += [f"    n{other} -> n{n};" for other in job.depends_on]
    return "\n".join([*lines, "}"]) + "\n"


def _label(job: DrawnJob) -> list[str]:
    lines = [job.name, job.status, job.terms, job.reason]
    return [lines[0] or "", *(_cut(line, MOST_SAID) for line in lines[1:] if line)]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


_PLAIN = re.compile(r"(?<=[^\W_])[-_.](?=[^\W_])|[^\W_]| ")
_READ_TWICE = re.compile(r"\\n|\$\$|:fa-")
"""Mermaid turns numbers back into characters, and these into a new line, a formula or an icon: they are kept apart."""


def _mermaid_text(text: str) -> str:
    """With every character that Mermaid or its Markdown might understand by its number, `#34;`.

    Dots, dashes and underscores within words stay: there they mean nothing.
    """
    line = _READ_TWICE.sub(lambda found: found[0][0] + "\u200b" + found[0][1:], _one_line(text))
    return "".join(part if _PLAIN.match(line, at) else f"#{ord(part)};" for at, part in enumerate(line))


def _yaml_text(text: str) -> str:
    """Between double quotes; `%%{` would begin a directive of Mermaid's even there."""
    return json.dumps(_one_line(text), ensure_ascii=False).replace("%", r"\u0025")


def _dot_text(text: str) -> str:
    """What stands between double quotes: Graphviz knows escapes after a backslash, and entities as HTML has them."""
    return _one_line(text).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')


_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
"""Controls, ends of lines, halves of characters: XML cannot say them, and no name holds them, but a reason may."""


def _one_line(text: str) -> str:
    return _UNFIT.sub(" ", text)


# What follows is the SVG.

_GIVEN_UP = frozenset({"cancelled", "skipped"})
_BY_URGENCY: tuple[JobStatus, ...] = (
    "failed", "running", "pending", "scheduled", "waiting", "cancelled", "skipped", "completed",
)  # fmt: skip
"""Of a box of many jobs: the first that any of them has gives the box its colour."""

_TOLD: tuple[JobStatus, ...] = (
    "completed", "running", "pending", "scheduled", "waiting", "failed", "cancelled", "skipped",
)  # fmt: skip
"""The order in a legend and in a bar."""

_ICONS: dict[JobStatus, str] = {
    "scheduled": "M7 3.9V7l2.2 1.4",
    "waiting": "M5.5 4.7v4.6M8.5 4.7v4.6",
    "pending": "M4.2 7h.01M7 7h.01M9.8 7h.01",
    "running": "M5.8 4.5 9.6 7 5.8 9.5Z",
    "completed": "m4.2 7.2 2 2 3.7-4",
    "failed": "m4.8 4.8 4.4 4.4M9.2 4.8 4.8 9.2",
    "cancelled": "M4.3 7h5.4",
    "skipped": "m4.3 4.8 2.2 2.2-2.2 2.2M7.6 4.8 9.8 7 7.6 9.2",
}

_MARGIN = 28.0
_HEADER = 84.0
_LEAST_WIDTH = 440.0
_PADDING = 12.0
_TEXT_AT = 34.0
"""From the left side of a box, behind its icon."""
_LINE = 15.0
_WIDEST, _NARROWEST = 280.0, 132.0
_ROOM = _WIDEST - _TEXT_AT - _PADDING
"""For a line of text in the widest box."""
_BAR = 12.0
"""The room that a bar of counts takes in a box."""
_PORTS = 9.0
"""Between the ends of lines at a box; where there is no room for all of them so, they end in one point."""
_NARROW, _SLIM, _BROAD = frozenset("iljI.,:;'|! "), frozenset("tfr()[]-/*"), frozenset("mMW@%—…")
_SIZES = {"title": 20.0, "name": 15.2, "status": 11.5, "counts": 11.5, "legend": 12.0, "terms": 10.0, "reason": 11.0}
"""Of the text of each look, for reckoning how wide it is; bold counts as larger."""


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of text in a box, and how it looks."""

    text: str
    look: str


@dataclass(frozen=True, kw_only=True)
class _Card:
    """What is written in a box."""

    status: JobStatus
    lines: Sequence[_Line]
    tooltip: str
    counts: Sequence[tuple[JobStatus, int]] = ()
    """Of a box of many jobs; it has a bar then."""

    @property
    def height(self) -> float:
        return 2 * _PADDING - 3 + _LINE * len(self.lines) + (_BAR if self.counts else 0)

    @property
    def width(self) -> float:
        needed = max(_width(line.text, line.look) for line in self.lines) + _TEXT_AT + _PADDING
        return min(max(needed, _NARROWEST), _WIDEST)


def svg(title: str, jobs: Sequence[DrawnJob], *, collapse_over: int = COLLAPSE_OVER) -> str:
    """A picture to look at, by day and by night. Of more jobs than `collapse_over`, those alike are drawn as one."""
    grouped = boxes([job.depends_on for job in jobs], [job.status for job in jobs], at_most=collapse_over)
    cards = [_card(box, jobs) for box in grouped]
    places = layout(
        [box.depends_on for box in grouped], [card.width for card in cards], [card.height for card in cards]
    )
    counts = _counts(job.status for job in jobs)
    legend = _legend(counts)
    width = max(places.width, legend[1], _LEAST_WIDTH) + 2 * _MARGIN
    height = places.height + _HEADER + _MARGIN + _MARGIN / 2
    left = _MARGIN + max(0.0, (width - 2 * _MARGIN - places.width) / 2)
    summary = f"{len(jobs):,} jobs: " + ", ".join(f"{count:,} {status}" for status, count in counts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" class="vigil">',
        f"<title>{_xml(title)}</title>",
        f"<desc>{_xml(summary)}</desc>",
        f"<style>{_style([status for status, _ in counts])}</style>",
        '<rect class="ground" width="100%" height="100%" rx="12"/>',
        _text(_fitted(title, width - 2 * _MARGIN, "title"), _MARGIN, 36, "title"),
        f'<g transform="translate({_MARGIN:.0f} 52)">{legend[0]}</g>',
        f'<g transform="translate({left:.1f} {_HEADER + _MARGIN / 2:.1f})">',
        *_edges(places, cards),
        *(_box(card, places, n) for n, card in enumerate(cards)),
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _card(box: Box, jobs: Sequence[DrawnJob]) -> _Card:
    return _card_of_one(jobs[box.members[0]]) if len(box.members) == 1 else _card_of_many(box, jobs)


def _card_of_one(job: DrawnJob) -> _Card:
    kind = "" if job.job_type == job.name else f" · {job.job_type}"
    lines = [*_wrapped(job.name, "name", most=1), *_wrapped(job.status + kind, "status", most=1)]
    lines += _wrapped(job.terms or "", "terms", most=1)
    lines += _wrapped(job.reason or "", "reason")
    said = [f"{job.name}: {job.status}", f"type {job.job_type}", job.terms, job.reason]
    return _Card(status=job.status, lines=lines, tooltip="\n".join(_one_line(line) for line in said if line))


def _card_of_many(box: Box, jobs: Sequence[DrawnJob]) -> _Card:
    members = [jobs[member] for member in box.members]
    counts = _counts(job.status for job in members)
    how_many = f"{len(members):,} jobs" + (" in sequence" if box.kind == "sequence" else "")
    name = _name_of_many([job.name for job in members])
    if name.endswith("*") and box.kind != "sequence":
        lines = _wrapped(f"{name} × {len(members):,}", "name", most=1)
    else:
        lines = [*_wrapped(how_many, "name", most=1), *_wrapped(name, "terms", most=1)]
    lines += _wrapped(", ".join(f"{count:,}\u00a0{status}" for status, count in counts), "counts", most=4)
    failed = [job for job in members if job.status == "failed"]
    if failed:
        more = f" and {len(failed) - 1:,} more" if len(failed) > 1 else ""
        reason = f": {failed[0].reason}" if failed[0].reason else ""
        lines += _wrapped(f"{failed[0].name}{more} failed{reason}", "reason")
    said = [
        f"{name}: {how_many}",
        ", ".join(f"{count:,} {status}" for status, count in counts),
        *(f"{job.name}: {job.reason or job.status}" for job in failed[:10]),
    ]
    status = next(status for status in _BY_URGENCY if any(job.status == status for job in members))
    return _Card(status=status, lines=lines, tooltip="\n".join(map(_one_line, said)), counts=counts)


def _name_of_many(names: Sequence[str]) -> str:
    """What the names have in common, `chunk_*`, or one and another of them."""
    low, high = min(names), max(names)
    differs = next((n for n, (one, other) in enumerate(zip(low, high, strict=False)) if one != other), len(low))
    common = low[:differs].rstrip("0123456789")
    return f"{common}*" if len(common) > 1 else f"{_cut(names[0], 12)} … {_cut(names[-1], 12)}"


def _counts(statuses: Iterable[JobStatus]) -> list[tuple[JobStatus, int]]:
    counted = Counter(statuses)
    return [(status, counted[status]) for status in _in_order(counted)]


def _in_order(statuses: Iterable[JobStatus]) -> list[JobStatus]:
    there = set(statuses)
    return [status for status in _TOLD if status in there]


def _legend(counts: Sequence[tuple[JobStatus, int]]) -> tuple[str, float]:
    """How many jobs are in which status; and how wide that is."""
    parts, x = [], 0.0
    for status, count in counts:
        text = f"{count:,} {status}"
        parts += [_icon(status, x, 0), _text(text, x + 20, 11.5, f"legend {status}")]
        x += 20 + _width(text, "legend") + 16
    return "".join(parts), x


def _edges(places: Layout, cards: Sequence[_Card]) -> Iterator[str]:
    """For each box one path of all lines that leave it, and one of their arrowheads."""
    ends: dict[int, list[int]] = {}
    for hops in places.lines:
        for one, other in hops:
            ends.setdefault(other, []).append(one)
    ports: dict[tuple[int, int], float] = {}
    for other, ones in ends.items():
        stop = places.stops[other]
        ones.sort(key=lambda one: places.stops[one].y)
        together = not stop.is_box or len(ones) * _PORTS > stop.height - 16
        for n, one in enumerate(ones):
            ports[one, other] = stop.y + (0.0 if together else (n - (len(ones) - 1) / 2) * _PORTS)
    for n, hops in enumerate(places.lines):
        if not hops:
            continue
        curves, heads = [], []
        for one, other in hops:
            start, end = places.stops[one], places.stops[other]
            x, y = start.x + start.width, start.y
            tip, port = end.x - 1.0, ports[one, other]
            to_x = tip - 5 if end.is_box else end.x
            bend = (to_x - x) / 2
            curves.append(
                f"M{x:.1f} {y:.1f}C{x + bend:.1f} {y:.1f} {to_x - bend:.1f} {port:.1f} {to_x:.1f} {port:.1f}"
                + ("" if end.is_box else f"h{end.width:.1f}")
            )
            if end.is_box:
                heads.append(f"M{tip:.1f} {port:.1f}l-7-3.6v7.2z")
        status = cards[n].status
        look = status if status in ("completed", "failed") else "skipped" if status in _GIVEN_UP else "open"
        yield f'<path class="line after-{look}" d="{"".join(curves)}"/>'
        yield f'<path class="head after-{look}" d="{"".join(heads)}"/>'


def _box(card: _Card, places: Layout, n: int) -> str:
    stop = places.stops[n]
    top = stop.y - stop.height / 2
    outline = f'width="{stop.width:.1f}" height="{stop.height:.1f}" rx="9"'
    behind = [f'<rect class="box {card.status}" x="{shift}" y="{shift}" {outline}/>' for shift in (6, 3)]
    parts = [
        f'<g transform="translate({stop.x:.1f} {top:.1f})">',
        f"<title>{_xml(card.tooltip)}</title>",
        *(behind if card.counts else ()),
        f'<rect class="box {card.status}" {outline}/>',
        _icon(card.status, _PADDING - 1, _PADDING - 2),
    ]
    for line_no, line in enumerate(card.lines):
        look = f"{line.look} {card.status}" if line.look == "status" else line.look
        parts.append(_text(line.text, _TEXT_AT, _PADDING + 9.5 + _LINE * line_no, look))
    if card.counts:
        parts.append(_bar(card, stop.width - _TEXT_AT - _PADDING, stop.height - _PADDING - 6))
    return "".join([*parts, "</g>"])


def _bar(card: _Card, width: float, top: float) -> str:
    """The share of each status, side by side; the smallest can still be seen."""
    least = 3.0
    total = sum(count for _, count in card.counts)
    parts, x = [], _TEXT_AT
    for status, count in card.counts:
        share = least + (width - least * len(card.counts)) * count / total
        parts.append(f'<rect class="share {status}" x="{x:.1f}" y="{top:.1f}" width="{share:.1f}" height="6"/>')
        x += share
    return "".join(parts)


def _icon(status: JobStatus, x: float, y: float) -> str:
    return (
        f'<g transform="translate({x:.1f} {y:.1f})"><circle class="disc {status}" cx="7" cy="7" r="7"/>'
        f'<path class="sign" d="{_ICONS[status]}"/></g>'
    )


def _text(text: str, x: float, y: float, look: str) -> str:
    return f'<text class="{look}" x="{x:.1f}" y="{y:.1f}">{_xml(text)}</text>'


def _style(statuses: Sequence[JobStatus]) -> str:
    """The looks of what is drawn, by day and by night; the ground is drawn too, so what is around does not matter."""
    day, night = [], []
    for status in statuses:
        colours = _COLOURS[status]
        dashes = ";stroke-dasharray:5 4" if status in _GIVEN_UP else ""
        day.append(
            f".disc.{status},.share.{status}{{fill:{colours.strong}}}"
            f".box.{status}{{fill:{colours.day[1]};stroke:{colours.strong}{dashes}}}"
            f"text.{status}{{fill:{colours.day[0]}}}"
        )
        night.append(f".box.{status}{{fill:{colours.night[1]}}}text.{status}{{fill:{colours.night[0]}}}")
    return (
        "text{font:11.5px ui-sans-serif,system-ui,-apple-system,'Segoe UI','Helvetica Neue',Arial,sans-serif;"
        "white-space:pre}"
        ".title{font-size:18px;font-weight:650}.name{font-size:13.5px;font-weight:600}.legend{font-size:12px}"
        ".status{font-weight:500}.terms{font-family:ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        "font-size:10px}.reason{font-size:11px}"
        ".ground{fill:#fff}.title,.name{fill:#0f172a}.terms,.counts{fill:#334155}.reason{fill:#55637a}"
        ".box{stroke-width:1.25}.line{fill:none;stroke-width:1.4}"
        ".sign{fill:none;stroke:#fff;stroke-width:1.6;stroke-linecap:round;stroke-linejoin:round}"
        ".line.after-completed{stroke:#86b89c}.head.after-completed{fill:#5c9d78}"
        ".line.after-failed{stroke:#e58b92}.head.after-failed{fill:#dc5560}"
        ".line.after-open{stroke:#b3bfcf}.head.after-open{fill:#8d9bb0}"
        ".line.after-skipped{stroke:#b3bfcf;stroke-dasharray:4 4}.head.after-skipped{fill:#8d9bb0}"
        + "".join(day)
        + "@media(prefers-color-scheme:dark){"
        ".ground{fill:#0b0f17}.title,.name{fill:#eef2f8}.terms,.counts{fill:#c3cddc}.reason{fill:#9aa8bb}"
        ".line.after-completed{stroke:#3c6f52}.head.after-completed{fill:#5c9d78}"
        ".line.after-failed{stroke:#8c3a41}.head.after-failed{fill:#dc5560}"
        ".line.after-open,.line.after-skipped{stroke:#3d4a5e}.head.after-open,.head.after-skipped{fill:#66758c}"
        + "".join(night)
        + "}"
    )


def _xml(text: str) -> str:
    """Text for XML: line ends stay, what XML cannot say goes."""
    return escape("\n".join(map(_one_line, text.split("\n"))))


def _width(text: str, look: str) -> float:
    """How wide the text is, about, in a wide font: there is none to measure it with."""
    return sum(_share(character, look) for character in text) * _SIZES[look]


def _share(character: str, look: str) -> float:
    """Of the size of the font."""
    if character in _BROAD or east_asian_width(character) in "WF":
        return 1.02
    if look == "terms":
        return 0.62
    if character in _NARROW:
        return 0.34
    if character in _SLIM:
        return 0.42
    return 0.72 if character.isupper() else 0.62


def _fitted(text: str, room: float, look: str) -> str:
    """As much of one line as there is room for."""
    line = _one_line(text)
    if _width(line, look) <= room:
        return line
    room -= _width("…", look)
    for n, character in enumerate(line):
        room -= _share(character, look) * _SIZES[look]
        if room < 0:
            return line[:n] + "…"
    return line


def _wrapped(text: str, look: str, *, most: int = 2) -> list[_Line]:
    """The text in a few lines, as wide as a box has room for, broken between words where it can be."""
    words = [word for word in _one_line(text).split(" ") if word]
    lines = [""]
    for n, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _width(longer, look) > _ROOM:
            if len(lines) == most:
                lines[-1] = " ".join([lines[-1], *words[n:]])
                break
            longer = word
            lines.append("")
        lines[-1] = longer
    return [_Line(text=_fitted(line, _ROOM, look), look=look) for line in lines if line]
