"""A wait request as a client writes it, checked whole: every problem is reported at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vigil_core.domain.errors import FieldProblem, ValidationFailed, pointer_token
from vigil_core.domain.exact_json import JsonValue, dumps, whole
from vigil_core.domain.waits.wait import MAX_ENTRIES, WaitOptions, parse_condition

DEFAULT_EXPIRES_S = 86_400
MAX_EXPIRES_S = 30 * 86_400
MAX_GET_FIELDS = 100
MAX_NAME_CHARS = 128
MAX_TEXT_CHARS = 1_024
MAX_CONDITION_BYTES = 8 * 1024
MAX_ECHO_BYTES = 1024 * 1024

_REQUEST_KEYS = {"wait_on", "wait_options", "waited_jobs"}
ANSWER_KEYS = {
    "wait_id", "status", "unmet_jobs", "created_at", "expires_at", "ended_at", "truncated", "counts", "jobs_url",
    "registering",
}  # fmt: skip
"""What an answer has besides: accepted, so that an answer can be posted back as it stands."""
_OPTION_KEYS = {"get_fields", "fail_fast", "mode", "return_on", "expires_in", "allow_missing", "notify"}


@dataclass(frozen=True, kw_only=True)
class WaitRequest:
    """A checked wait request. `wait_on` keeps each condition as it was written. `echo` is `waited_jobs` of an earlier
    round, shown unchanged. `wait_id` is that of an answer posted back."""

    wait_id: str | None
    wait_on: Mapping[str, JsonValue]
    options: WaitOptions
    options_echo: Mapping[str, JsonValue]
    expires_in_s: int
    echo: Mapping[str, JsonValue]
    seen: frozenset[str]
    """The jobs whose outcome the client knows already, from the answer it posts back."""
    seen_count: int
    """How many outcomes the client knows of, which for a large wait is more than the answer lists."""


def parse_wait_request(body: JsonValue) -> WaitRequest:
    """Check a request and give it its defaults.

    An answer that is posted back need not have `wait_on`: then `wait_on` is empty here, and only a stored wait can make
    sense of it.

    Raises:
        ValidationFailed: with every problem found.
    """
    if not isinstance(body, Mapping):
        raise ValidationFailed.at("", "the body is an object")
    problems = _Problems()
    problems.unknown_keys(body, _REQUEST_KEYS | ANSWER_KEYS, "")
    wait_id = body.get("wait_id")
    if wait_id is not None and not isinstance(wait_id, str):
        problems.add("/wait_id", "an id is text")
    wait_on = _wait_on(body, problems)
    options, echo_options, expires_in_s = _options(body.get("wait_options"), len(wait_on), problems)
    if wait_on and wait_id is None and options.needed > len(wait_on):
        problems.add("/wait_options/mode/at_least", f"a whole number from 1 to {len(wait_on)}, the number of jobs")
    waited = _object_or_absent(body, "waited_jobs", problems)
    if len(dumps(waited).encode()) > MAX_ECHO_BYTES:
        problems.add("/waited_jobs", f"at most {MAX_ECHO_BYTES} bytes")
    unmet = _object_or_absent(body, "unmet_jobs", problems)
    problems.raise_any()
    return WaitRequest(
        wait_id=wait_id if isinstance(wait_id, str) else None,
        wait_on=wait_on,
        options=options,
        options_echo=echo_options,
        expires_in_s=expires_in_s,
        echo=waited,
        seen=frozenset(waited) | frozenset(unmet),
        seen_count=_seen_count(body.get("counts")) or len(waited) + len(unmet),
    )


class _Problems:
    def __init__(self) -> None:
        self.found: list[FieldProblem] = []

    def add(self, pointer: str, detail: str) -> None:
        self.found.append(FieldProblem(pointer=pointer, detail=detail))

    def unknown_keys(self, given: Mapping[str, JsonValue], known: set[str], pointer: str) -> None:
        for name in given:
            if name not in known:
                self.add(f"{pointer}/{pointer_token(name)}", "unknown field")

    def collect(self, check: Callable[[], object]) -> None:
        try:
            check()
        except ValidationFailed as error:
            self.found += error.problems

    def raise_any(self) -> None:
        if self.found:
            raise ValidationFailed(self.found[:100])


def _wait_on(body: Mapping[str, JsonValue], problems: _Problems) -> Mapping[str, JsonValue]:
    wait_on = body.get("wait_on")
    if wait_on is None:
        if "wait_on" in body or body.get("wait_id") is None:
            problems.add("/wait_on", "required: an object of job ids and what each has to reach")
        return {}
    if not isinstance(wait_on, Mapping):
        problems.add("/wait_on", "an object of job ids and what each has to reach")
        return {}
    # An answer may have nothing left to wait for a moment before its wait is over.
    least = 1 if body.get("wait_id") is None else 0
    if not least <= len(wait_on) <= MAX_ENTRIES:
        problems.add("/wait_on", f"1 to {MAX_ENTRIES} jobs")
    for job_id, asked in wait_on.items():
        pointer = f"/wait_on/{pointer_token(job_id)}"
        problems.collect(lambda asked=asked, pointer=pointer: parse_condition(asked, pointer))  # type: ignore[misc]
        if asked is not None and len(dumps(asked).encode()) > MAX_CONDITION_BYTES:
            problems.add(pointer, f"a condition takes at most {MAX_CONDITION_BYTES} bytes")
    return wait_on


def _options(given: JsonValue, jobs: int, problems: _Problems) -> tuple[WaitOptions, Mapping[str, JsonValue], int]:
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        problems.add("/wait_options", "an object")
        given = {}
    problems.unknown_keys(given, _OPTION_KEYS, "/wait_options")
    mode, needed = _mode(given.get("mode", "all"), jobs, problems)
    expires_in = whole(given.get("expires_in", DEFAULT_EXPIRES_S))
    if not isinstance(expires_in, int) or isinstance(expires_in, bool) or not 1 <= expires_in <= MAX_EXPIRES_S:
        problems.add("/wait_options/expires_in", f"whole seconds, 1 to {MAX_EXPIRES_S}")
        expires_in = DEFAULT_EXPIRES_S
    return_on = given.get("return_on", "done")
    if return_on not in ("done", "progress"):
        problems.add("/wait_options/return_on", "'done' or 'progress'")
    sns, webhook = _notify(given.get("notify"), problems)
    options = WaitOptions(
        mode=mode,
        needed=needed,
        get_fields=_get_fields(given.get("get_fields"), problems),
        fail_fast=_flag(given, "fail_fast", problems),
        return_on_progress=return_on == "progress",
        allow_missing=_flag(given, "allow_missing", problems),
        sns=sns,
        webhook=webhook,
    )
    return options, given, expires_in


def _mode(mode: JsonValue, jobs: int, problems: _Problems) -> tuple[Literal["all", "some"], int]:
    if mode == "all":
        return "all", jobs
    if mode == "any":
        return "some", 1
    if isinstance(mode, Mapping) and set(mode) == {"at_least"}:
        n = whole(mode["at_least"])
        # An answer that is posted back lists fewer jobs than the wait has: the caller checks n against them.
        if isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= MAX_ENTRIES:
            return "some", n
        problems.add("/wait_options/mode/at_least", "a whole number from 1 to the number of jobs")
    else:
        problems.add("/wait_options/mode", "'all', 'any' or {\"at_least\": n}")
    return "all", jobs


def _get_fields(given: JsonValue, problems: _Problems) -> tuple[str, ...]:
    """Names, as the keys of an object (the seed's form: each with null) or as a list."""
    if given is None:
        return ()
    if not isinstance(given, Mapping | list):
        problems.add("/wait_options/get_fields", "an object whose keys are the names to collect")
        return ()
    names: list[str] = []
    for position, name in enumerate(given):
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARS:
            at = pointer_token(name) if isinstance(given, Mapping) else str(position)
            problems.add(f"/wait_options/get_fields/{at[:MAX_NAME_CHARS]}", f"1 to {MAX_NAME_CHARS} characters")
        elif isinstance(given, Mapping) and given[name] is not None:
            problems.add(f"/wait_options/get_fields/{pointer_token(name)}", "null: only the name says something")
        else:
            names.append(name)
    if len(given) > MAX_GET_FIELDS:
        problems.add("/wait_options/get_fields", f"at most {MAX_GET_FIELDS} names")
    return tuple(name for name in names if name != "job_stage")


def _flag(given: Mapping[str, JsonValue], name: str, problems: _Problems) -> bool:
    """null or true is on, false or absent is off."""
    if name not in given:
        return False
    value = given[name]
    if value is None or isinstance(value, bool):
        return value is not False
    problems.add(f"/wait_options/{name}", "null, true or false")
    return False


def _notify(given: JsonValue, problems: _Problems) -> tuple[bool, str | None]:
    """Whether SNS is told, and a webhook's address. Whether that may be called, only a deployment can say."""
    if given is None:
        return True, None
    if not isinstance(given, Mapping):
        problems.add("/wait_options/notify", "an object")
        return True, None
    for name in given:
        if name not in ("sns", "webhook"):
            problems.add(f"/wait_options/notify/{pointer_token(name)}", "unknown field")
    sns = given.get("sns", True)
    if not isinstance(sns, bool):
        problems.add("/wait_options/notify/sns", "true or false")
    webhook = given.get("webhook")
    if webhook is not None and not isinstance(webhook, str):
        problems.add("/wait_options/notify/webhook", "a URL")
    return sns is not False, webhook if isinstance(webhook, str) else None


def _object_or_absent(body: Mapping[str, JsonValue], name: str, problems: _Problems) -> Mapping[str, JsonValue]:
    given = body.get(name)
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(v, Mapping) or v is None for v in _values(given)):
        problems.add(f"/{name}", "an object of job ids and objects")
        return {}
    return given


def _seen_count(counts: JsonValue) -> int:
    """What an answer's `counts` say is decided; 0 when they do not say it."""
    parts = [counts.get("met"), counts.get("unmet")] if isinstance(counts, Mapping) else []
    return sum(part for part in parts if isinstance(part, int))


def _values(given: Mapping[str, JsonValue]) -> Sequence[JsonValue]:
    return list(given.values())
