"""Targets of the executors `lambda` and `http`: validated with their job type, and rendered for each job."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vigil_core.domain.errors import FieldProblem, ValidationFailed, VigilError, escape_pointer_token
from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.executors.templates import (
    Absent,
    NamedList,
    PathPlaceholder,
    Placeholder,
    RenderContext,
    SecretPlaceholder,
    Template,
    TemplateFailed,
    render,
    render_json,
    templates_in_json,
)
from vigil_core.domain.jobs.job import Job

BODILESS = frozenset({"GET", "HEAD"})
MAX_URL_CHARS = 2_048
MAX_HEADER_CHARS = 8_192
MAX_CALL_TIMEOUT_S = 840
"""One minute less than the maximum duration of a Lambda function."""
DEFAULT_CALL_TIMEOUT_S = 30
DEFAULT_LEASE_S = 120
MAX_LEASE_S = 43_200
STORED_HEADERS = ("content-type", "location", "etag", "last-modified", "link", "retry-after", "x-request-id")
"""The response headers that become part of the result of the job."""

_AUTHORITY = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?=[/?]|$)", re.ASCII)
_URL_TEXT = re.compile(r"[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=%]*", re.ASCII)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", re.ASCII)
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*", re.ASCII)
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_RESERVED_HEADERS = frozenset(
    {
        "accept-encoding", "connection", "content-length", "expect", "host", "idempotency-key", "keep-alive", "te",
        "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""Headers of the connection, and headers that Vigil sets itself."""


class ExecutorRefused(VigilError):
    """The function of a job cannot be invoked, now or later: it does not exist, or Vigil has no permission."""

    code = "FUNCTION_NOT_INVOCABLE"


class ExecutorBusy(VigilError):
    """The function of a job may not have been invoked. A later invocation can succeed."""

    code = "FUNCTION_BUSY"
    transient = True


def is_own_function(function: str, stack_name: str) -> bool:
    """Return whether a function belongs to Vigil itself: its name begins with the stack's name, but not with `-task-`.

    Args:
        function: The name or the ARN, with or without a version or alias.
        stack_name: The name of the stack; empty if it is unknown.
    """
    name = function.rpartition(":function:")[2].partition(":")[0].lower()
    prefix = f"{stack_name.lower()}-"
    return bool(stack_name) and name.startswith(prefix) and not name.startswith(f"{prefix}task-")


class SecretUnavailable(VigilError):
    """A secret of a target cannot be read: it does not exist, or Vigil has no permission."""

    code = "SECRET_UNAVAILABLE"


@dataclass(frozen=True, kw_only=True)
class LambdaTarget:
    """A Lambda function by name or ARN. Its lease expires after `lease_s` seconds without a heartbeat."""

    function: str
    lease_s: int = DEFAULT_LEASE_S

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> LambdaTarget:
        """Create the target from the document that its job type stores."""
        return cls(function=document["function"], lease_s=document.get("lease") or DEFAULT_LEASE_S)


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """A rendered request."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None


@dataclass(frozen=True, kw_only=True)
class HttpTarget:
    """An HTTP request whose URL, headers and body are templates.

    A body of None means no body. `timeout_s` limits the whole call.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: JsonValue = None
    timeout_s: int = DEFAULT_CALL_TIMEOUT_S

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> HttpTarget:
        """Create the target from the document that its job type stores."""
        return cls(
            method=document.get("method") or "POST",
            url=document["url"],
            headers=document.get("headers") or {},
            body=document.get("body"),
            timeout_s=document.get("timeout") or DEFAULT_CALL_TIMEOUT_S,
        )

    @property
    def origin(self) -> str:
        """The beginning of the URL, which has no placeholders: scheme, host and port."""
        match = _AUTHORITY.match(self.url)
        return match.group() if match else self.url

    def validate(self) -> None:
        """Check every part of the target.

        Raises:
            ValidationFailed: A part can never result in a valid request. The error lists every problem.
        """
        problems = list(_url_problems(self.url))
        for name, value in self.headers.items():
            problems += _header_problems(name, value)
        if self.body is not None and self.method in BODILESS:
            problems.append(FieldProblem(pointer="/body", detail=f"a {self.method} request has no body"))
        try:
            list(templates_in_json(self.body))
        except TemplateFailed as error:
            problems.append(FieldProblem(pointer="/body", detail=str(error)))
        if problems:
            raise ValidationFailed(problems)

    def secrets(self) -> frozenset[SecretPlaceholder]:
        """Return every secret that the target names."""
        return frozenset(
            placeholder for placeholder in self._placeholders() if isinstance(placeholder, SecretPlaceholder)
        )

    def used_dependencies(self, names: Sequence[str]) -> frozenset[str]:
        """Return those dependencies of a job, by name in the job's order, that the templates use."""
        items = NamedList(names, names)
        used: set[str] = set()
        for placeholder in self._placeholders():
            if not isinstance(placeholder, PathPlaceholder) or placeholder.names[0] != "dependencies":
                continue
            if len(placeholder.names) == 1:
                return frozenset(names)
            if (index := items.index_of(placeholder.names[1])) is not None:
                used.add(names[index])
        return frozenset(used)

    def _placeholders(self) -> Iterator[Placeholder]:
        templates = [Template.parse(text) for text in (self.url, *self.headers.values())]
        for template in (*templates, *templates_in_json(self.body)):
            yield from template.placeholders

    def render_request(self, context: RenderContext) -> HttpRequest:
        """Render the request for one job.

        Raises:
            TemplateFailed: The values of the job do not result in a valid request. The error never quotes a value.
        """
        body = None if self.body is None else render_json(self.body, context)
        headers = {name.title(): _render_header(name, value, context) for name, value in self.headers.items()}
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        return HttpRequest(
            method=self.method,
            url=_render_url(Template.parse(self.url), context),
            headers=headers,
            body=None if body is None else dumps(None if isinstance(body, Absent) else body).encode(),
        )


def template_context(job: Job, payload: JsonValue, dependencies: NamedList) -> dict[str, JsonValue]:
    """Return the values of a job for the templates of its target, with dependencies in their order in the job."""
    return {
        "payload": payload,
        "dependencies": dependencies,
        "fields": job.fields,
        "job": {
            "id": job.job_id,
            "type": job.job_type,
            "name": job.name,
            "queue": job.queue,
            "attempt": job.attempt,
            "tags": list(job.tags),
            "trace_id": job.trace_id,
            "correlation_id": job.correlation_id,
        },
    }


def _url_problems(url: str) -> Iterator[FieldProblem]:
    def problem(detail: str) -> FieldProblem:
        return FieldProblem(pointer="/url", detail=detail)

    if _AUTHORITY.match(url) is None:
        yield problem(
            "must begin with http:// or https:// and a host, without user and placeholder, followed by / or ?"
        )
        return
    try:
        template = Template.parse(url)
    except TemplateFailed as error:
        yield problem(str(error))
        return
    if not all(_URL_TEXT.fullmatch(fragment) for fragment in template.fragments if isinstance(fragment, str)):
        yield problem("contains an invalid character: use percent-encoding for non-ASCII characters, and no #")


def _header_problems(name: str, value: str) -> Iterator[FieldProblem]:
    pointer = f"/headers/{escape_pointer_token(name)}"
    if not _HEADER_NAME.fullmatch(name):
        yield FieldProblem(pointer=pointer, detail="is not a valid header name")
    elif name.lower() in _RESERVED_HEADERS or name.lower().startswith("proxy-"):
        yield FieldProblem(pointer=pointer, detail="is a header that a target must not set")
    try:
        template = Template.parse(value)
    except TemplateFailed as error:
        yield FieldProblem(pointer=pointer, detail=str(error))
        return
    if not all(_HEADER_VALUE.fullmatch(fragment) for fragment in template.fragments if isinstance(fragment, str)):
        yield FieldProblem(pointer=pointer, detail="must be ASCII without control characters")


def _render_header(name: str, value: str, context: RenderContext) -> str:
    text = render(Template.parse(value), context.scalar).strip()
    if not _HEADER_VALUE.fullmatch(text):
        raise TemplateFailed(f"the rendered header {name} is not ASCII without control characters")
    if len(text) > MAX_HEADER_CHARS:
        raise TemplateFailed(f"the rendered header {name} is longer than {MAX_HEADER_CHARS} characters")
    return text


def _render_url(template: Template, context: RenderContext) -> str:
    """Render a URL, and percent-encode every inserted value, so that it cannot add a path segment or a parameter."""
    in_path = True
    url = ""
    for fragment in template.fragments:
        if isinstance(fragment, str):
            url += fragment
            in_path = in_path and "?" not in fragment
            continue
        text = context.scalar(fragment)
        url += text if len(text) > MAX_URL_CHARS else _percent_encode(text, fragment, in_path=in_path)
        if len(url) > MAX_URL_CHARS:
            break
    if len(url) > MAX_URL_CHARS:
        raise TemplateFailed(f"the rendered URL is longer than {MAX_URL_CHARS} characters")
    path = url.partition("?")[0].partition("://")[2]
    if any(segment.lower().replace("%2e", ".") in (".", "..") for segment in path.split("/")[1:]):
        raise TemplateFailed("a segment of the rendered URL's path is . or ..")
    return url


def _percent_encode(text: str, placeholder: Placeholder, *, in_path: bool) -> str:
    if in_path and not text:
        raise TemplateFailed(f"{placeholder} is empty, but the path of a URL needs a value")
    return "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in text.encode())
