"""Templates: text with placeholders for the values of a job. Placeholders are looked up, never evaluated.

There are three kinds of placeholder:

- A path of names, `{{payload.items.0.id}}`. With a final `?` the value may be absent. A dependency has a number and a
  name: `{{dependencies.0.result}}` or `{{dependencies.extract.result}}`.
- A secret by name, `{{secret:ssm:/name}}` or `{{secret:secretsmanager:/name#key}}`.
- `{{"{{"}}`, which renders as two braces.

An inserted value is never parsed as a template. The module that renders the template escapes each value for its
position, for example in a URL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Final, Literal, TypeAlias, cast

from vigil_core.domain.cpu_budget import UNLIMITED, CpuBudget, CpuLimitExceeded
from vigil_core.domain.errors import VigilError
from vigil_core.domain.exact_json import JsonValue, dumps

CONTEXT_NAMES = frozenset({"payload", "fields", "dependencies", "job"})
JOB_MEMBERS = ("id", "type", "name", "queue", "attempt", "tags", "trace_id", "correlation_id")
MAX_RENDERED_BYTES = 3 * 1024 * 1024
"""Maximum size of all values in one rendering: a small template must not insert a payload a thousand times."""

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
    """A template is invalid, or cannot be rendered with the values of a job. The error never quotes a value."""

    code = "TEMPLATE_FAILED"


class Absent(Enum):
    """The value of an optional placeholder without a value, as opposed to null."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT


@dataclass(frozen=True)
class PathPlaceholder:
    """A placeholder for a value of the job, by its path."""

    names: tuple[str, ...]
    optional: bool = False

    def __str__(self) -> str:
        return "{{" + ".".join(self.names) + "}}"


@dataclass(frozen=True)
class SecretPlaceholder:
    """A placeholder for a secret, by its name in the namespace. `key` selects a member of a JSON secret."""

    source: SecretSource
    name: str
    key: str | None = None

    def __str__(self) -> str:
        return "{{secret:" + self.source + ":" + self.name + (f"#{self.key}" if self.key else "") + "}}"


class NamedList(list[JsonValue]):
    """A list whose items also have names. A placeholder may use either."""

    def __init__(self, names: Sequence[str], items: Sequence[JsonValue]) -> None:
        super().__init__(items)
        self._index_of = {name: index for index, name in enumerate(names)}

    def index_of(self, name: str) -> int | None:
        """Return the index of an item by its number or name, or None. A number counts as a number."""
        return item_index(name, len(self)) if name.isdecimal() else self._index_of.get(name)


Placeholder: TypeAlias = PathPlaceholder | SecretPlaceholder
Fragment: TypeAlias = str | Placeholder


@dataclass(frozen=True)
class Template:
    """A parsed template: text and placeholders in order, without empty or adjacent texts."""

    fragments: tuple[Fragment, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Parse a template.

        Raises:
            TemplateFailed: The text contains braces that are not a placeholder, or a path that no job has.
        """
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
                    f"the text at position {opening} is not a placeholder: "
                    'use {{payload.name}}, {{secret:ssm:/name}}, or {{"{{"}} for the braces themselves'
                )
            if match["braces"]:
                _append_text(fragments, "{{")
            else:
                fragments.append(_parse_placeholder(match))
            position = match.end()
        return cls(tuple(fragments))

    @property
    def placeholders(self) -> Iterator[Placeholder]:
        """The placeholders, in order."""
        return (fragment for fragment in self.fragments if not isinstance(fragment, str))


class RenderContext:
    """The values of a job and the secrets for one rendering. It counts the bytes that the rendering inserts."""

    def __init__(
        self,
        roots: Mapping[str, JsonValue],
        secrets: Mapping[SecretPlaceholder, str],
        cpu: CpuBudget = UNLIMITED,
    ) -> None:
        self._roots = roots
        self._cpu = cpu
        self._secrets = secrets
        self._remaining_bytes = MAX_RENDERED_BYTES

    def value(self, placeholder: Placeholder) -> JsonValue | Absent:
        """Return the value of a placeholder.

        Raises:
            TemplateFailed: There is no such value, or the rendering exceeds its maximum size or its CPU time.
        """
        try:
            self._cpu.check()
        except CpuLimitExceeded as error:
            raise TemplateFailed(f"the rendering takes too long: {error}") from error
        value = self._secrets[placeholder] if isinstance(placeholder, SecretPlaceholder) else self._lookup(placeholder)
        if value is not ABSENT:
            self._remaining_bytes -= len(value if isinstance(value, str) else dumps(value))
            if self._remaining_bytes < 0:
                raise TemplateFailed(f"the values of the placeholders have more than {MAX_RENDERED_BYTES} bytes")
        return value

    def text(self, placeholder: Placeholder) -> str:
        """Return the value of a placeholder as text: strings unchanged, other values as JSON, absent values as ""."""
        value = self.value(placeholder)
        return "" if isinstance(value, Absent) else value if isinstance(value, str) else dumps(value)

    def scalar(self, placeholder: Placeholder) -> str:
        """Return the value of a placeholder as text, like `text`, if it is a string, a number or a boolean.

        Raises:
            TemplateFailed: The value has another type.
        """
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
            elif _is_list(node) and (index := _index_in(cast(Sequence[JsonValue], node), name)) is not None:
                node = cast(Sequence[JsonValue], node)[index]
            elif path.optional:
                return ABSENT
            else:
                raise TemplateFailed(f"the job has no value for {path}")
        return ABSENT if node is None and path.optional else node


def item_index(name: str, length: int) -> int | None:
    """Return the index that a number in a path stands for, or None if no item has it."""
    return int(name) if name.isdecimal() and len(name) < 10 and int(name) < length else None


def render(template: Template, render_placeholder: Callable[[Placeholder], str]) -> str:
    """Return the text of a template, with the result of `render_placeholder` for each placeholder."""
    return "".join(
        fragment if isinstance(fragment, str) else render_placeholder(fragment) for fragment in template.fragments
    )


def render_json(value: JsonValue, context: RenderContext) -> JsonValue | Absent:
    """Render a JSON value whose strings are templates.

    A string that consists of one placeholder becomes the value itself, with its type. If that value is absent, the
    member or item is omitted. In any other string the values become text.
    """
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
    """Yield the strings of a JSON value as parsed templates.

    Raises:
        TemplateFailed: One of the strings is not a valid template.
    """
    if isinstance(value, str):
        yield Template.parse(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from templates_in_json(item)
    elif _is_list(value):
        for item in cast(Sequence[JsonValue], value):
            yield from templates_in_json(item)


def _index_in(items: Sequence[JsonValue], name: str) -> int | None:
    return items.index_of(name) if isinstance(items, NamedList) else item_index(name, len(items))


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
        raise TemplateFailed(f"{path} must begin with one of {', '.join(sorted(CONTEXT_NAMES))}")
    if path.names[0] == "job" and (len(path.names) < 2 or path.names[1] not in JOB_MEMBERS):
        raise TemplateFailed(f"{path} must be one of {', '.join(f'job.{name}' for name in JOB_MEMBERS)}")
    return path
