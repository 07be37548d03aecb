"""A wait request as a client writes it, checked whole: every problem is reported at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vigil_core.domain.errors import FieldProblem, ValidationFailed, escape_pointer_token
from vigil_core.domain.exact_json import JsonValue, dumps, integral_to_int
from vigil_core.domain.waits.wait import MAX_WAIT_JOBS, WaitOptions, parse_condition

DEFAULT_EXPIRES_S = 86_400
MAX_EXPIRES_S = 30 * 86_400
MAX_GET_FIELDS = 100
MAX_NAME_CHARS = 128
MAX_TEXT_CHARS = 1_024
MAX_CONDITION_BYTES = 8 * 1024
MAX_WAITED_JOBS_BYTES = 1024 * 1024

_REQUEST_KEYS = {"wait_on", "wait_options", "waited_jobs"}
RESPONSE_KEYS = {
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
    raw_options: Mapping[str, JsonValue]
    expires_in_s: int
    waited_jobs: Mapping[str, JsonValue]
    known_job_ids: frozenset[str]
    """The jobs whose outcome the client knows already, from the answer it posts back."""
    known_outcomes: int
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
    problems = _ProblemList()
    problems.add_unknown_keys(body, _REQUEST_KEYS | RESPONSE_KEYS, "")
    wait_id = body.get("wait_id")
    if wait_id is not None and not isinstance(wait_id, str):
        problems.add("/wait_id", "an id is text")
    wait_on = _parse_wait_on(body, problems)
    options, raw_options, expires_in_s = _parse_options(body.get("wait_options"), len(wait_on), problems)
    if wait_on and wait_id is None and options.needed > len(wait_on):
        problems.add("/wait_options/mode/at_least", f"a whole number from 1 to {len(wait_on)}, the number of jobs")
    waited_jobs = _parse_optional_object(body, "waited_jobs", problems)
    if len(dumps(waited_jobs).encode()) > MAX_WAITED_JOBS_BYTES:
        problems.add("/waited_jobs", f"at most {MAX_WAITED_JOBS_BYTES} bytes")
    unmet_jobs = _parse_optional_object(body, "unmet_jobs", problems)
    problems.raise_if_any()
    return WaitRequest(
        wait_id=wait_id if isinstance(wait_id, str) else None,
        wait_on=wait_on,
        options=options,
        raw_options=raw_options,
        expires_in_s=expires_in_s,
        waited_jobs=waited_jobs,
        known_job_ids=frozenset(waited_jobs) | frozenset(unmet_jobs),
        known_outcomes=_decided_count(body.get("counts")) or len(waited_jobs) + len(unmet_jobs),
    )


class _ProblemList:
    def __init__(self) -> None:
        self.problems: list[FieldProblem] = []

    def add(self, pointer: str, detail: str) -> None:
        self.problems.append(FieldProblem(pointer=pointer, detail=detail))

    def add_unknown_keys(self, members: Mapping[str, JsonValue], known: set[str], pointer: str) -> None:
        for name in members:
            if name not in known:
                self.add(f"{pointer}/{escape_pointer_token(name)}", "unknown field")

    def collect(self, check: Callable[[], object]) -> None:
        try:
            check()
        except ValidationFailed as error:
            self.problems += error.problems

    def raise_if_any(self) -> None:
        if self.problems:
            raise ValidationFailed(self.problems[:100])


def _parse_wait_on(body: Mapping[str, JsonValue], problems: _ProblemList) -> Mapping[str, JsonValue]:
    wait_on = body.get("wait_on")
    if wait_on is None:
        if "wait_on" in body or body.get("wait_id") is None:
            problems.add("/wait_on", "required: an object of job ids and what each has to reach")
        return {}
    if not isinstance(wait_on, Mapping):
        problems.add("/wait_on", "an object of job ids and what each has to reach")
        return {}
    # An answer may have nothing left to wait for a moment before its wait is over.
    min_jobs = 1 if body.get("wait_id") is None else 0
    if not min_jobs <= len(wait_on) <= MAX_WAIT_JOBS:
        problems.add("/wait_on", f"1 to {MAX_WAIT_JOBS} jobs")
    for job_id, condition in wait_on.items():
        pointer = f"/wait_on/{escape_pointer_token(job_id)}"
        problems.collect(lambda asked=condition, pointer=pointer: parse_condition(asked, pointer))  # type: ignore[misc]
        if condition is not None and len(dumps(condition).encode()) > MAX_CONDITION_BYTES:
            problems.add(pointer, f"a condition takes at most {MAX_CONDITION_BYTES} bytes")
    return wait_on


def _parse_options(
    raw_options: JsonValue, job_count: int, problems: _ProblemList
) -> tuple[WaitOptions, Mapping[str, JsonValue], int]:
    if raw_options is None:
        raw_options = {}
    if not isinstance(raw_options, Mapping):
        problems.add("/wait_options", "an object")
        raw_options = {}
    problems.add_unknown_keys(raw_options, _OPTION_KEYS, "/wait_options")
    mode, needed = _parse_mode(raw_options.get("mode", "all"), job_count, problems)
    expires_in = integral_to_int(raw_options.get("expires_in", DEFAULT_EXPIRES_S))
    if not isinstance(expires_in, int) or isinstance(expires_in, bool) or not 1 <= expires_in <= MAX_EXPIRES_S:
        problems.add("/wait_options/expires_in", f"whole seconds, 1 to {MAX_EXPIRES_S}")
        expires_in = DEFAULT_EXPIRES_S
    return_on = raw_options.get("return_on", "done")
    if return_on not in ("done", "progress"):
        problems.add("/wait_options/return_on", "'done' or 'progress'")
    sns, webhook = _parse_notify(raw_options.get("notify"), problems)
    options = WaitOptions(
        mode=mode,
        needed=needed,
        get_fields=_parse_get_fields(raw_options.get("get_fields"), problems),
        fail_fast=_parse_flag(raw_options, "fail_fast", problems),
        return_on_progress=return_on == "progress",
        allow_missing=_parse_flag(raw_options, "allow_missing", problems),
        sns=sns,
        webhook=webhook,
    )
    return options, raw_options, expires_in


def _parse_mode(mode: JsonValue, job_count: int, problems: _ProblemList) -> tuple[Literal["all", "some"], int]:
    if mode == "all":
        return "all", job_count
    if mode == "any":
        return "some", 1
    if isinstance(mode, Mapping) and set(mode) == {"at_least"}:
        needed = integral_to_int(mode["at_least"])
        # An answer that is posted back lists fewer jobs than the wait has: the caller checks n against them.
        if isinstance(needed, int) and not isinstance(needed, bool) and 1 <= needed <= MAX_WAIT_JOBS:
            return "some", needed
        problems.add("/wait_options/mode/at_least", "a whole number from 1 to the number of jobs")
    else:
        problems.add("/wait_options/mode", "'all', 'any' or {\"at_least\": n}")
    return "all", job_count


def _parse_get_fields(value: JsonValue, problems: _ProblemList) -> tuple[str, ...]:
    """Names, as the keys of an object (the seed's form: each with null) or as a list."""
    if value is None:
        return ()
    if not isinstance(value, Mapping | list):
        problems.add("/wait_options/get_fields", "an object whose keys are the names to collect")
        return ()
    names: list[str] = []
    for position, name in enumerate(value):
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARS:
            token = escape_pointer_token(name) if isinstance(value, Mapping) else str(position)
            problems.add(f"/wait_options/get_fields/{token[:MAX_NAME_CHARS]}", f"1 to {MAX_NAME_CHARS} characters")
        elif isinstance(value, Mapping) and value[name] is not None:
            problems.add(f"/wait_options/get_fields/{escape_pointer_token(name)}", "null: only the name says something")
        else:
            names.append(name)
    if len(value) > MAX_GET_FIELDS:
        problems.add("/wait_options/get_fields", f"at most {MAX_GET_FIELDS} names")
    return tuple(name for name in names if name != "job_stage")


def _parse_flag(members: Mapping[str, JsonValue], name: str, problems: _ProblemList) -> bool:
    """null or true is on, false or absent is off."""
    if name not in members:
        return False
    value = members[name]
    if value is None or isinstance(value, bool):
        return value is not False
    problems.add(f"/wait_options/{name}", "null, true or false")
    return False


def _parse_notify(value: JsonValue, problems: _ProblemList) -> tuple[bool, str | None]:
    """Whether SNS is told, and a webhook's address. Whether that may be called, only a deployment can say."""
    if value is None:
        return True, None
    if not isinstance(value, Mapping):
        problems.add("/wait_options/notify", "an object")
        return True, None
    for name in value:
        if name not in ("sns", "webhook"):
            problems.add(f"/wait_options/notify/{escape_pointer_token(name)}", "unknown field")
    sns = value.get("sns", True)
    if not isinstance(sns, bool):
        problems.add("/wait_options/notify/sns", "true or false")
    webhook = value.get("webhook")
    if webhook is not None and not isinstance(webhook, str):
        problems.add("/wait_options/notify/webhook", "a URL")
    return sns is not False, webhook if isinstance(webhook, str) else None


def _parse_optional_object(body: Mapping[str, JsonValue], name: str, problems: _ProblemList) -> Mapping[str, JsonValue]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(v, Mapping) or v is None for v in _values(value)):
        problems.add(f"/{name}", "an object of job ids and objects")
        return {}
    return value


def _decided_count(counts: JsonValue) -> int:
    """What an answer's `counts` say is decided; 0 when they do not say it."""
    decided_counts = [counts.get("met"), counts.get("unmet")] if isinstance(counts, Mapping) else []
    return sum(part for part in decided_counts if isinstance(part, int))


def _values(members: Mapping[str, JsonValue]) -> Sequence[JsonValue]:
    return list(members.values())
