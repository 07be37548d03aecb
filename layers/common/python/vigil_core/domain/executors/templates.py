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

ROOTS = frozenset({"payload", "fields", "dependencies", "job"})
JOB_NAMES = ("id", "type", "name", "queue", "attempt", "tags", "trace_id", "correlation_id")
MAX_RENDERED_BYTES = 3 * 1024 * 1024
"""What all places of one rendering may bring, as text: a small template must not ask for a payload a thousand times."""

SecretStore: TypeAlias = Literal["ssm", "secretsmanager"]

_PLACE = re.compile(
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
class Path:
    """A place for a part of what the job brings."""

    names: tuple[str, ...]
    optional: bool = False

    def __str__(self) -> str:
        return "{{" + ".".join(self.names) + "}}"


@dataclass(frozen=True)
class Secret:
    """A place for a secret, by its name in the namespace. `key` is a member of one that is a JSON object."""

    store: SecretStore
    name: str
    key: str | None = None

    def __str__(self) -> str:
        return "{{secret:" + self.store + ":" + self.name + (f"#{self.key}" if self.key else "") + "}}"


Place: TypeAlias = Path | Secret
Part: TypeAlias = str | Place


@dataclass(frozen=True)
class Template:
    """Text and places, in their order; no two texts in a row, none empty."""

    parts: tuple[Part, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Raises TemplateFailed for braces that are no place, and for places that no job has."""
        parts: list[Part] = []
        at = 0
        while at < len(text):
            opening = text.find("{{", at)
            _add_text(parts, text[at : opening if opening >= 0 else len(text)])
            if opening < 0:
                break
            found = _PLACE.match(text, opening)
            if found is None:
                raise TemplateFailed(
                    f"what stands at {opening} is no place: "
                    'a place is {{payload.name}}, {{secret:ssm:/name}}, or {{"{{"}} for the braces themselves'
                )
            if found["braces"]:
                _add_text(parts, "{{")
            else:
                parts.append(_place(found))
            at = found.end()
        return cls(tuple(parts))

    @property
    def places(self) -> Iterator[Place]:
        """Every place, in order."""
        return (part for part in self.parts if not isinstance(part, str))


class Scope:
    """What a job brings to its templates, and the secrets that they name. Used for one rendering: it counts."""

    def __init__(self, roots: Mapping[str, JsonValue], secrets: Mapping[Secret, str]) -> None:
        self._roots = roots
        self._secrets = secrets
        self._left = MAX_RENDERED_BYTES

    def value(self, place: Place) -> JsonValue | Absent:
        """What belongs in a place. Raises TemplateFailed when there is nothing, or when it is all too much."""
        found = self._secrets[place] if isinstance(place, Secret) else self._at(place)
        if found is not ABSENT:
            self._left -= len(found if isinstance(found, str) else dumps(found))
            if self._left < 0:
                raise TemplateFailed(f"what the places hold is more than {MAX_RENDERED_BYTES} bytes")
        return found

    def text(self, place: Place) -> str:
        """A string as it is, anything else as JSON, nothing as ""."""
        found = self.value(place)
        return "" if isinstance(found, Absent) else found if isinstance(found, str) else dumps(found)

    def scalar(self, place: Place) -> str:
        """The same, but only of strings, numbers and booleans. Raises TemplateFailed for others."""
        found = self.value(place)
        if isinstance(found, Absent):
            return ""
        if not isinstance(found, str | int | Decimal):
            raise TemplateFailed(f"{place} must be a string, a number or a boolean here")
        return found if isinstance(found, str) else dumps(found)

    def _at(self, path: Path) -> JsonValue | Absent:
        here: JsonValue = self._roots
        for name in path.names:
            if isinstance(here, Mapping) and name in here:
                here = here[name]
            elif (
                _is_list(here) and name.isdecimal() and len(name) < 10 and int(name) < len(cast(Sequence[object], here))
            ):
                here = cast(Sequence[JsonValue], here)[int(name)]
            elif path.optional:
                return ABSENT
            else:
                raise TemplateFailed(f"there is no {path}")
        return ABSENT if here is None and path.optional else here


def render(template: Template, put: Callable[[Place], str]) -> str:
    """The text, with what `put` makes of each place."""
    return "".join(part if isinstance(part, str) else put(part) for part in template.parts)


def render_json(value: JsonValue, scope: Scope) -> JsonValue | Absent:
    """A JSON value whose strings are templates: one that is a single place becomes what the job brings, whatever its
    type, and is left out where that is absent; in any other the places become text."""
    if isinstance(value, str):
        template = Template.parse(value)
        if len(template.parts) == 1 and not isinstance(template.parts[0], str):
            return scope.value(template.parts[0])
        return render(template, scope.text)
    if isinstance(value, Mapping):
        members = {name: render_json(item, scope) for name, item in value.items()}
        return {name: item for name, item in members.items() if not isinstance(item, Absent)}
    if _is_list(value):
        items = [render_json(item, scope) for item in cast(Sequence[JsonValue], value)]
        return [item for item in items if not isinstance(item, Absent)]
    return value


def templates_in(value: JsonValue) -> Iterator[Template]:
    """The strings of a JSON value, parsed. Raises TemplateFailed for one that is no template."""
    if isinstance(value, str):
        yield Template.parse(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from templates_in(item)
    elif _is_list(value):
        for item in cast(Sequence[JsonValue], value):
            yield from templates_in(item)


def _is_list(value: JsonValue) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _add_text(parts: list[Part], text: str) -> None:
    if text and parts and isinstance(parts[-1], str):
        parts[-1] += text
    elif text:
        parts.append(text)


def _place(found: re.Match[str]) -> Place:
    if found["store"]:
        return Secret(store=cast(SecretStore, found["store"]), name=found["name"], key=found["key"])
    path = Path(names=tuple(found["path"].split(".")), optional=found["optional"] is not None)
    if path.names[0] not in ROOTS:
        raise TemplateFailed(f"{path} begins with none of {', '.join(sorted(ROOTS))}")
    if path.names[0] == "job" and (len(path.names) < 2 or path.names[1] not in JOB_NAMES):
        raise TemplateFailed(f"{path} is none of {', '.join(f'job.{name}' for name in JOB_NAMES)}")
    return path
