"""Render the graph of a run as a diagram: Mermaid, Graphviz or SVG. Pure.

Names and reasons come from clients and can contain any character. Each format escapes the characters that have a
meaning in its own syntax.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from unicodedata import east_asian_width

from vigil_core.domain.diagrams.clustering import Cluster, cluster_nodes
from vigil_core.domain.diagrams.layout import Layout, compute_layout
from vigil_core.domain.jobs.status import JobStatus
from vigil_core.domain.jobs.trigger_rules import TriggerRule
from vigil_core.domain.text_rule import printable

COLLAPSE_THRESHOLD = 120
"""The number of jobs above which the SVG draws similar jobs as one box."""
MAX_LABEL_CHARS = 160
"""The length of a reason or condition in Mermaid and Graphviz. The SVG shows as much as fits into a box."""


@dataclass(frozen=True, kw_only=True)
class DiagramJob:
    """The attributes of a job that a diagram shows."""

    name: str
    status: JobStatus
    depends_on: tuple[int, ...]
    """Indexes into the sequence of jobs."""
    job_type: str
    trigger_rule: TriggerRule = "all_success"
    condition: str | None = None
    reason: str | None = None
    """Why the job failed or was skipped, or what it waits for."""

    @property
    def start_rule(self) -> str | None:
        """The trigger rule and the condition of the job, or None if it starts after the success of all dependencies."""
        rule = None if self.trigger_rule == "all_success" else self.trigger_rule
        condition = None if self.condition is None else f"if {self.condition}"
        return " · ".join(filter(None, (rule, condition))) or None


@dataclass(frozen=True, kw_only=True)
class _StatusColours:
    """The colours of a status: a strong one, and text and background for each theme."""

    strong: str
    day: tuple[str, str]
    night: tuple[str, str]


_STATUS_COLOURS: dict[JobStatus, _StatusColours] = {
    "scheduled": _StatusColours(strong="#8b5cf6", day=("#6d28d9", "#f7f5ff"), night=("#c4b5fd", "#1c1733")),
    "waiting": _StatusColours(strong="#64748b", day=("#475569", "#f8fafc"), night=("#a9b6c9", "#161c27")),
    "pending": _StatusColours(strong="#d98a06", day=("#92580a", "#fffaf0"), night=("#fbbf4a", "#281e0a")),
    "running": _StatusColours(strong="#2f6feb", day=("#1d4fd8", "#f1f6ff"), night=("#82b1ff", "#0f1d38")),
    "completed": _StatusColours(strong="#1f9d55", day=("#147a3f", "#f2fbf5"), night=("#5fd68f", "#0e2217")),
    "failed": _StatusColours(strong="#dc3545", day=("#b4212f", "#fff4f4"), night=("#ff8d94", "#2e1215")),
    "cancelled": _StatusColours(strong="#8a6d5b", day=("#6b5244", "#faf7f5"), night=("#cdb3a3", "#211b17")),
    "skipped": _StatusColours(strong="#94a3b8", day=("#55637a", "#fbfcfd"), night=("#9aa8bb", "#12161e")),
}


def mermaid(title: str, jobs: Sequence[DiagramJob]) -> str:
    """Render a Mermaid flowchart.

    Syntax: https://mermaid.js.org/syntax/flowchart.html
    """
    lines = ["---", f"title: {_yaml_text(title)}", "---", "flowchart LR"]
    for n, job in enumerate(jobs):
        label = "<br/>".join(map(_mermaid_text, _label(job)))
        lines.append(f'    n{n}["{label}"]:::{job.status}')
    for n, job in enumerate(jobs):
        lines += [f"    n{other} --> n{n}" for other in job.depends_on]
    for status in _sort_statuses(job.status for job in jobs):
        colours = _STATUS_COLOURS[status]
        dashed = ",stroke-dasharray:4 3" if status in _DASHED_STATUSES else ""
        ink, ground = colours.day
        lines.append(f"    classDef {status} fill:{ground},stroke:{colours.strong},color:{ink}{dashed}")
    return "\n".join(lines) + "\n"


def dot(title: str, jobs: Sequence[DiagramJob]) -> str:
    """Render a Graphviz digraph.

    Syntax: https://graphviz.org/doc/info/lang.html
    """
    lines = [
        "digraph workflow {",
        f'    graph [rankdir=LR, label="{_dot_text(title)}", labelloc=t, fontname="Helvetica"];',
        '    node [shape=box, fontname="Helvetica", fontsize=11];',
        '    edge [color="#94a3b8", arrowsize=0.7];',
    ]
    for n, job in enumerate(jobs):
        colours = _STATUS_COLOURS[job.status]
        ink, ground = colours.day
        style = "rounded,filled,dashed" if job.status in _DASHED_STATUSES else "rounded,filled"
        label = r"\n".join(map(_dot_text, _label(job)))
        lines.append(
            f'    n{n} [label="{label}", tooltip="{_dot_text(job.name)}", style="{style}", '
            f'color="{colours.strong}", fillcolor="{ground}", fontcolor="{ink}"];'
        )
    for n, job in enumerate(jobs):
        lines += [f"    n{other} -> n{n};" for other in job.depends_on]
    return "\n".join([*lines, "}"]) + "\n"


def _label(job: DiagramJob) -> list[str]:
    lines = [job.name, job.status, job.start_rule, job.reason]
    return [lines[0] or "", *(_truncate(line, MAX_LABEL_CHARS) for line in lines[1:] if line)]


def _truncate(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


_PLAIN_CHARACTER = re.compile(r"(?<=[^\W_])[-_.](?=[^\W_])|[^\W_]| ")
_MERMAID_ESCAPES = re.compile(r"\\n|\$\$|:fa-")
"""Sequences that Mermaid turns into a line break, a formula or an icon, even if their characters are escaped."""


def _mermaid_text(text: str) -> str:
    """Escape every character with a possible meaning in Mermaid or its Markdown by its number, for example `#34;`.

    Dots, hyphens and underscores within words have no meaning and stay.
    """
    line = _MERMAID_ESCAPES.sub(lambda match: match[0][0] + "\u200b" + match[0][1:], _one_line(text))
    return "".join(
        part if _PLAIN_CHARACTER.match(line, position) else f"#{ord(part)};" for position, part in enumerate(line)
    )


def _yaml_text(text: str) -> str:
    """Quote a YAML string. `%` is escaped, because Mermaid reads `%%{` as a directive even inside quotes."""
    return json.dumps(_one_line(text), ensure_ascii=False).replace("%", r"\u0025")


def _dot_text(text: str) -> str:
    """Escape a text inside double quotes. Graphviz interprets backslashes and HTML entities there."""
    return _one_line(text).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')


_BLANKS = re.compile("[\t\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
"""Tabs and line separators."""


def _one_line(text: str) -> str:
    """Make a foreign text printable, on one line. XML excludes the characters that this replaces."""
    return printable(_BLANKS.sub(" ", text))


# SVG

_DASHED_STATUSES = frozenset({"cancelled", "skipped"})
_STATUS_PRIORITY: tuple[JobStatus, ...] = (
    "failed", "running", "pending", "scheduled", "waiting", "cancelled", "skipped", "completed",
)  # fmt: skip
"""The colour of a box with several jobs is that of the first of these statuses that one of its jobs has."""

_LEGEND_ORDER: tuple[JobStatus, ...] = (
    "completed", "running", "pending", "scheduled", "waiting", "failed", "cancelled", "skipped",
)  # fmt: skip
"""The order of the statuses in a legend and in a status bar."""

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
_MIN_WIDTH = 440.0
_PADDING = 12.0
_TEXT_OFFSET = 34.0
"""The distance of the text from the left side of a box. The icon is before it."""
_LINE_HEIGHT = 15.0
_MAX_CARD_WIDTH, _MIN_CARD_WIDTH = 280.0, 132.0
_MAX_TEXT_WIDTH = _MAX_CARD_WIDTH - _TEXT_OFFSET - _PADDING
"""The width of a line of text in the widest box."""
_BAR_HEIGHT = 12.0
"""The height of the status bar in a box."""
_PORT_GAP = 9.0
"""The distance between the ends of edges at a box. If they do not fit, all edges end at one point."""
_NARROW_CHARACTERS, _SLIM_CHARACTERS, _BROAD_CHARACTERS = (
    frozenset("iljI.,:;'|! "),
    frozenset("tfr()[]-/*"),
    frozenset("mMW@%—…"),
)
_FONT_SIZES = {
    "title": 20.0,
    "name": 15.2,
    "status": 11.5,
    "counts": 11.5,
    "legend": 12.0,
    "terms": 10.0,
    "reason": 11.0,
}
"""The font size of each text style, for estimates of the width. Bold text counts as larger."""


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of text in a box, with its text style."""

    text: str
    style: str


@dataclass(frozen=True, kw_only=True)
class _Card:
    """The content of a box."""

    status: JobStatus
    lines: Sequence[_Line]
    tooltip: str
    counts: Sequence[tuple[JobStatus, int]] = ()
    """The number of jobs for each status in a box with several jobs. Such a box has a status bar."""

    @property
    def height(self) -> float:
        return 2 * _PADDING - 3 + _LINE_HEIGHT * len(self.lines) + (_BAR_HEIGHT if self.counts else 0)

    @property
    def width(self) -> float:
        needed = max(_text_width(line.text, line.style) for line in self.lines) + _TEXT_OFFSET + _PADDING
        return min(max(needed, _MIN_CARD_WIDTH), _MAX_CARD_WIDTH)


def svg(title: str, jobs: Sequence[DiagramJob], *, collapse_threshold: int = COLLAPSE_THRESHOLD) -> str:
    """Render an SVG for the light and the dark theme.

    If the graph has more jobs than `collapse_threshold`, similar jobs share one box.
    """
    clusters = cluster_nodes([job.depends_on for job in jobs], [job.status for job in jobs], limit=collapse_threshold)
    cards = [_cluster_card(cluster, jobs) for cluster in clusters]
    layout_result = compute_layout(
        [cluster.depends_on for cluster in clusters], [card.width for card in cards], [card.height for card in cards]
    )
    counts = _status_counts(job.status for job in jobs)
    legend = _legend(counts)
    width = max(layout_result.width, legend[1], _MIN_WIDTH) + 2 * _MARGIN
    height = layout_result.height + _HEADER + _MARGIN + _MARGIN / 2
    left = _MARGIN + max(0.0, (width - 2 * _MARGIN - layout_result.width) / 2)
    summary = f"{len(jobs):,} jobs: " + ", ".join(f"{count:,} {status}" for status, count in counts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" class="vigil">',
        f"<title>{_escape_xml(title)}</title>",
        f"<desc>{_escape_xml(summary)}</desc>",
        f"<style>{_style([status for status, _ in counts])}</style>",
        '<rect class="ground" width="100%" height="100%" rx="12"/>',
        _text(_truncate_to_width(title, width - 2 * _MARGIN, "title"), _MARGIN, 36, "title"),
        f'<g transform="translate({_MARGIN:.0f} 52)">{legend[0]}</g>',
        f'<g transform="translate({left:.1f} {_HEADER + _MARGIN / 2:.1f})">',
        *_edges(layout_result, cards),
        *(_card_svg(card, layout_result, n) for n, card in enumerate(cards)),
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _cluster_card(cluster: Cluster, jobs: Sequence[DiagramJob]) -> _Card:
    return _job_card(jobs[cluster.members[0]]) if len(cluster.members) == 1 else _group_card(cluster, jobs)


def _job_card(job: DiagramJob) -> _Card:
    kind = "" if job.job_type == job.name else f" · {job.job_type}"
    lines = [*_wrap(job.name, "name", max_lines=1), *_wrap(job.status + kind, "status", max_lines=1)]
    lines += _wrap(job.start_rule or "", "terms", max_lines=1)
    lines += _wrap(job.reason or "", "reason")
    tooltip_lines = [f"{job.name}: {job.status}", f"type {job.job_type}", job.start_rule, job.reason]
    return _Card(status=job.status, lines=lines, tooltip="\n".join(_one_line(line) for line in tooltip_lines if line))


def _group_card(cluster: Cluster, jobs: Sequence[DiagramJob]) -> _Card:
    members = [jobs[member] for member in cluster.members]
    counts = _status_counts(job.status for job in members)
    count_text = f"{len(members):,} jobs" + (" in sequence" if cluster.kind == "sequence" else "")
    name = _common_name([job.name for job in members])
    if name.endswith("*") and cluster.kind != "sequence":
        lines = _wrap(f"{name} × {len(members):,}", "name", max_lines=1)
    else:
        lines = [*_wrap(count_text, "name", max_lines=1), *_wrap(name, "terms", max_lines=1)]
    lines += _wrap(", ".join(f"{count:,}\u00a0{status}" for status, count in counts), "counts", max_lines=4)
    failed = [job for job in members if job.status == "failed"]
    if failed:
        more = f" and {len(failed) - 1:,} more" if len(failed) > 1 else ""
        reason = f": {failed[0].reason}" if failed[0].reason else ""
        lines += _wrap(f"{failed[0].name}{more} failed{reason}", "reason")
    tooltip_lines = [
        f"{name}: {count_text}",
        ", ".join(f"{count:,} {status}" for status, count in counts),
        *(f"{job.name}: {job.reason or job.status}" for job in failed[:10]),
    ]
    status = next(status for status in _STATUS_PRIORITY if any(job.status == status for job in members))
    return _Card(status=status, lines=lines, tooltip="\n".join(map(_one_line, tooltip_lines)), counts=counts)


def _common_name(names: Sequence[str]) -> str:
    """Return the common prefix of the names, for example `chunk_*`, or the first and the last name."""
    low, high = min(names), max(names)
    differs = next((n for n, (one, other) in enumerate(zip(low, high, strict=False)) if one != other), len(low))
    common = low[:differs].rstrip("0123456789")
    return f"{common}*" if len(common) > 1 else f"{_truncate(names[0], 12)} … {_truncate(names[-1], 12)}"


def _status_counts(statuses: Iterable[JobStatus]) -> list[tuple[JobStatus, int]]:
    counted = Counter(statuses)
    return [(status, counted[status]) for status in _sort_statuses(counted)]


def _sort_statuses(statuses: Iterable[JobStatus]) -> list[JobStatus]:
    present = set(statuses)
    return [status for status in _LEGEND_ORDER if status in present]


def _legend(counts: Sequence[tuple[JobStatus, int]]) -> tuple[str, float]:
    """Render the legend with the number of jobs for each status, and return it with its width."""
    parts, x = [], 0.0
    for status, count in counts:
        text = f"{count:,} {status}"
        parts += [_icon(status, x, 0), _text(text, x + 20, 11.5, f"legend {status}")]
        x += 20 + _text_width(text, "legend") + 16
    return "".join(parts), x


def _ports(layout_result: Layout) -> dict[tuple[int, int], float]:
    """Return for each edge segment (source, target) the vertical position of its end at the target.

    The ends at a box are spread in the order of their sources, if the box is high enough for that.
    """
    sources_of: dict[int, list[int]] = {}
    for hops in layout_result.edges:
        for source, target in hops:
            sources_of.setdefault(target, []).append(source)
    ports: dict[tuple[int, int], float] = {}
    for target, sources in sources_of.items():
        node = layout_result.nodes[target]
        sources.sort(key=lambda source: layout_result.nodes[source].y)
        together = not node.is_box or len(sources) * _PORT_GAP > node.height - 16
        for position, source in enumerate(sources):
            offset = 0.0 if together else (position - (len(sources) - 1) / 2) * _PORT_GAP
            ports[source, target] = node.y + offset
    return ports


def _edges(layout_result: Layout, cards: Sequence[_Card]) -> Iterator[str]:
    """Yield for each box one path with all edges that leave it, and one path with their arrowheads."""
    ports = _ports(layout_result)
    for n, hops in enumerate(layout_result.edges):
        if not hops:
            continue
        curves, heads = [], []
        for source, target in hops:
            start, end = layout_result.nodes[source], layout_result.nodes[target]
            x, y = start.x + start.width, start.y
            tip, port = end.x - 1.0, ports[source, target]
            to_x = tip - 5 if end.is_box else end.x
            bend = (to_x - x) / 2
            curves.append(
                f"M{x:.1f} {y:.1f}C{x + bend:.1f} {y:.1f} {to_x - bend:.1f} {port:.1f} {to_x:.1f} {port:.1f}"
                + ("" if end.is_box else f"h{end.width:.1f}")
            )
            if end.is_box:
                heads.append(f"M{tip:.1f} {port:.1f}l-7-3.6v7.2z")
        status = cards[n].status
        style = status if status in ("completed", "failed") else "skipped" if status in _DASHED_STATUSES else "open"
        yield f'<path class="line after-{style}" d="{"".join(curves)}"/>'
        yield f'<path class="head after-{style}" d="{"".join(heads)}"/>'


def _card_svg(card: _Card, layout_result: Layout, n: int) -> str:
    node = layout_result.nodes[n]
    top = node.y - node.height / 2
    outline = f'width="{node.width:.1f}" height="{node.height:.1f}" rx="9"'
    behind = [f'<rect class="box {card.status}" x="{shift}" y="{shift}" {outline}/>' for shift in (6, 3)]
    parts = [
        f'<g transform="translate({node.x:.1f} {top:.1f})">',
        f"<title>{_escape_xml(card.tooltip)}</title>",
        *(behind if card.counts else ()),
        f'<rect class="box {card.status}" {outline}/>',
        _icon(card.status, _PADDING - 1, _PADDING - 2),
    ]
    for line_no, line in enumerate(card.lines):
        style = f"{line.style} {card.status}" if line.style == "status" else line.style
        parts.append(_text(line.text, _TEXT_OFFSET, _PADDING + 9.5 + _LINE_HEIGHT * line_no, style))
    if card.counts:
        parts.append(_status_bar(card, node.width - _TEXT_OFFSET - _PADDING, node.height - _PADDING - 6))
    return "".join([*parts, "</g>"])


def _status_bar(card: _Card, width: float, top: float) -> str:
    """Render the shares of the statuses side by side. Even the smallest share is visible."""
    min_share = 3.0
    total = sum(count for _, count in card.counts)
    parts, x = [], _TEXT_OFFSET
    for status, count in card.counts:
        share = min_share + (width - min_share * len(card.counts)) * count / total
        parts.append(f'<rect class="share {status}" x="{x:.1f}" y="{top:.1f}" width="{share:.1f}" height="6"/>')
        x += share
    return "".join(parts)


def _icon(status: JobStatus, x: float, y: float) -> str:
    return (
        f'<g transform="translate({x:.1f} {y:.1f})"><circle class="disc {status}" cx="7" cy="7" r="7"/>'
        f'<path class="sign" d="{_ICONS[status]}"/></g>'
    )


def _text(text: str, x: float, y: float, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{_escape_xml(text)}</text>'


def _style(statuses: Sequence[JobStatus]) -> str:
    """Return the style sheet for both themes. The SVG draws its own background, so it fits on any page."""
    day, night = [], []
    for status in statuses:
        colours = _STATUS_COLOURS[status]
        dashes = ";stroke-dasharray:5 4" if status in _DASHED_STATUSES else ""
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


def _escape_xml(text: str) -> str:
    """Escape a text for XML. Line breaks stay, and characters that XML excludes are removed."""
    return escape("\n".join(map(_one_line, text.split("\n"))))


def _text_width(text: str, style: str) -> float:
    """Estimate the width of a text in a wide font, because the font of the viewer is unknown."""
    return sum(_character_width(character, style) for character in text) * _FONT_SIZES[style]


def _character_width(character: str, style: str) -> float:
    """Estimate the width of a character, relative to the font size."""
    if character in _BROAD_CHARACTERS or east_asian_width(character) in "WF":
        return 1.02
    if style == "terms":
        return 0.62
    if character in _NARROW_CHARACTERS:
        return 0.34
    if character in _SLIM_CHARACTERS:
        return 0.42
    return 0.72 if character.isupper() else 0.62


def _truncate_to_width(text: str, max_width: float, style: str) -> str:
    """Shorten a line to this width."""
    line = _one_line(text)
    if _text_width(line, style) <= max_width:
        return line
    max_width -= _text_width("…", style)
    for n, character in enumerate(line):
        max_width -= _character_width(character, style) * _FONT_SIZES[style]
        if max_width < 0:
            return line[:n] + "…"
    return line


def _wrap(text: str, style: str, *, max_lines: int = 2) -> list[_Line]:
    """Wrap a text into a few lines of the width of a box, between words if possible."""
    words = [word for word in _one_line(text).split(" ") if word]
    lines = [""]
    for n, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _text_width(longer, style) > _MAX_TEXT_WIDTH:
            if len(lines) == max_lines:
                lines[-1] = " ".join([lines[-1], *words[n:]])
                break
            longer = word
            lines.append("")
        lines[-1] = longer
    return [_Line(text=_truncate_to_width(line, _MAX_TEXT_WIDTH, style), style=style) for line in lines if line]
