"""Templates: text with places, `{{payload.name}}`, for what a job brings. Places are looked up, never evaluated.

A place is a path of names, `{{payload.items.0.id}}`, absent without complaint when it ends in `?`; a secret by name,
`{{secret:ssm:/name}}` or `{{secret:secretsmanager:/name#key}}`; or `{{"{{"}}`, which stands for two braces. What is put
in a place is never read as a template again, and it is made safe for where it stands by whoever renders the template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Final, Literal, TypeAlias, cast

from vigil_core.domain.errors import VigilError
from vigil_core.domain.exact_json import JsonValue, dumps

CONTEXT_NAMES = frozenset({"payload", "fields", "dependencies", "job"})
JOB_MEMBERS = ("id", "type", "name", "queue", "attempt", "tags", "trace_id", "correlation_id")
MAX_RENDERED_BYTES = 3 * 1024 * 1024
"""What all places of one rendering may bring, as text: a small template must not ask for a payload a thousand times."""

SecretSource: TypeAlias = Literal["ssm", "secretsmanager"]

_PLACEHOLDER = re.compile(
    r"""\{\{\s*(?:
        (?P<braces>"\{\{")
      | secret:(?P<store>ssm|secretsmanager):(?P<name>(?:/[A-Za-z0-9_.-]+)+)(?:\#(?P<key>[A-Za-z0-9_.-]+))?
      | (?P<path>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)(?P<optional>\?)?
    )\s*\}\}""",
    re.VERBOSE | re.ASCII,
)


class TemplateFailed(VigilError):
    """A template that is none, or that cannot be rendered with what a job brings. Never quotes what was put in."""

    code = "TEMPLATE_FAILED"


class Absent(Enum):
    """What an optional place holds when there is nothing: not even null."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT


@dataclass(frozen=True)
class PathPlaceholder:
    """A place for a part of what the job brings."""

    names: tuple[str, ...]
    optional: bool = False

    def __str__(self) -> str:
        return "{{" + ".".join(self.names) + "}}"


@dataclass(frozen=True)
class SecretPlaceholder:
    """A place for a secret, by its name in the namespace. `key` is a member of one that is a JSON object."""

    source: SecretSource
    name: str
    key: str | None = None

    def __str__(self) -> str:
        return "{{secret:" + self.source + ":" + self.name + (f"#{self.key}" if self.key else "") + "}}"


Placeholder: TypeAlias = PathPlaceholder | SecretPlaceholder
Fragment: TypeAlias = str | Placeholder


@dataclass(frozen=True)
class Template:
    """Text and places, in their order; no two texts in a row, none empty."""

    fragments: tuple[Fragment, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Raises TemplateFailed for braces that are no place, and for places that no job has."""
        fragments: list[Fragment] = []
        position = 0
        while position < len(text):
            opening = text.find("{{", position)
            _append_text(fragments, text[position : opening if opening >= 0 else len(text)])
            if opening < 0:
                break
            match = _PLACEHOLDER.match(text, opening)
            if match is None:
                raise TemplateFailed(
                    f"what stands at {opening} is no place: "
                    'a place is {{payload.name}}, {{secret:ssm:/name}}, or {{"{{"}} for the braces themselves'
                )
            if match["braces"]:
                _append_text(fragments, "{{")
            else:
                fragments.append(_parse_placeholder(match))
            position = match.end()
        return cls(tuple(fragments))

    @property
    def placeholders(self) -> Iterator[Placeholder]:
        """Every place, in order."""
        return (part for part in self.fragments if not isinstance(part, str))


class RenderContext:
    """What a job brings to its templates, and the secrets that they name. Used for one rendering: it counts."""

    def __init__(self, roots: Mapping[str, JsonValue], secrets: Mapping[SecretPlaceholder, str]) -> None:
        self._roots = roots
        self._secrets = secrets
        self._remaining_bytes = MAX_RENDERED_BYTES

    def value(self, placeholder: Placeholder) -> JsonValue | Absent:
        """What belongs in a place. Raises TemplateFailed when there is nothing, or when it is all too much."""
        value = self._secrets[placeholder] if isinstance(placeholder, SecretPlaceholder) else self._lookup(placeholder)
        if value is not ABSENT:
            self._remaining_bytes -= len(value if isinstance(value, str) else dumps(value))
            if self._remaining_bytes < 0:
                raise TemplateFailed(f"what the places hold is more than {MAX_RENDERED_BYTES} bytes")
        return value

    def text(self, placeholder: Placeholder) -> str:
        """A string as it is, anything else as JSON, nothing as ""."""
        value = self.value(placeholder)
        return "" if isinstance(value, Absent) else value if isinstance(value, str) else dumps(value)

    def scalar(self, placeholder: Placeholder) -> str:
        """The same, but only of strings, numbers and booleans. Raises TemplateFailed for others."""
        value = self.value(placeholder)
        if isinstance(value, Absent):
            return ""
        if not isinstance(value, str | int | Decimal):
            raise TemplateFailed(f"{placeholder} must be a string, a number or a boolean here")
        return value if isinstance(value, str) else dumps(value)

    def _lookup(self, path: PathPlaceholder) -> JsonValue | Absent:
        node: JsonValue = self._roots
        for name in path.names:
            if isinstance(node, Mapping) and name in node:
                node = node[name]
            elif (
                _is_list(node) and name.isdecimal() and len(name) < 10 and int(name) < len(cast(Sequence[object], node))
            ):
                node = cast(Sequence[JsonValue], node)[int(name)]
            elif path.optional:
                return ABSENT
            else:
                raise TemplateFailed(f"there is no {path}")
        return ABSENT if node is None and path.optional else node


def render(template: Template, render_placeholder: Callable[[Placeholder], str]) -> str:
    """The text, with what `put` makes of each place."""
    return "".join(part if isinstance(part, str) else render_placeholder(part) for part in template.fragments)


def render_json(value: JsonValue, context: RenderContext) -> JsonValue | Absent:
    """A JSON value whose strings are templates: one that is a single place becomes what the job brings, whatever its
    type, and is left out where that is absent; in any other the places become text."""
    if isinstance(value, str):
        template = Template.parse(value)
        if len(template.fragments) == 1 and not isinstance(template.fragments[0], str):
            return context.value(template.fragments[0])
        return render(template, context.text)
    if isinstance(value, Mapping):
        members = {name: render_json(item, context) for name, item in value.items()}
        return {name: item for name, item in members.items() if not isinstance(item, Absent)}
    if _is_list(value):
        items = [render_json(item, context) for item in cast(Sequence[JsonValue], value)]
        return [item for item in items if not isinstance(item, Absent)]
    return value


def templates_in_json(value: JsonValue) -> Iterator[Template]:
    """The strings of a JSON value, parsed. Raises TemplateFailed for one that is no template."""
    if isinstance(value, str):
        yield Template.parse(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from templates_in_json(item)
    elif _is_list(value):
        for item in cast(Sequence[JsonValue], value):
            yield from templates_in_json(item)


def _is_list(value: JsonValue) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _append_text(fragments: list[Fragment], text: str) -> None:
    if text and fragments and isinstance(fragments[-1], str):
        fragments[-1] += text
    elif text:
        fragments.append(text)


def _parse_placeholder(match: re.Match[str]) -> Placeholder:
    if match["store"]:
        return SecretPlaceholder(source=cast(SecretSource, match["store"]), name=match["name"], key=match["key"])
    path = PathPlaceholder(names=tuple(match["path"].split(".")), optional=match["optional"] is not None)
    if path.names[0] not in CONTEXT_NAMES:
        raise TemplateFailed(f"{path} begins with none of {', '.join(sorted(CONTEXT_NAMES))}")
    if path.names[0] == "job" and (len(path.names) < 2 or path.names[1] not in JOB_MEMBERS):
        raise TemplateFailed(f"{path} is none of {', '.join(f'job.{name}' for name in JOB_MEMBERS)}")
    return path
