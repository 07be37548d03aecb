"""Call the HTTP target of a dispatched job, and report the outcome under the lease of the job."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Protocol

from vigil_core.domain.errors import (
    MalformedRequest,
    PayloadTooLarge,
    TargetRefused,
    TargetUnreachable,
    ValidationFailed,
    VigilError,
)
from vigil_core.domain.exact_json import JsonValue, json_problems, loads, loads_stored
from vigil_core.domain.executors.targets import (
    STORED_HEADERS,
    HttpRequest,
    HttpTarget,
    SecretUnavailable,
    template_context,
)
from vigil_core.domain.executors.templates import (
    MAX_RENDERED_BYTES,
    NamedList,
    RenderContext,
    SecretPlaceholder,
    TemplateFailed,
)
from vigil_core.domain.jobs.dependency_results import ResultUnreadable
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.jobs.retry import MAX_DELAY_S
from vigil_core.domain.number_rule import EXPONENT_RULE
from vigil_core.domain.retry_after import parse_retry_after
from vigil_core.domain.text_rule import sanitize
from vigil_core.services.context import ChangesJobs, UsesDependencies, UsesJobTypes, UsesRuns, UsesThreads
from vigil_core.services.cpu_limits import template_budget
from vigil_core.services.jobs.dependency_results import dependency_ids, dependency_results_json, load_all_results
from vigil_core.services.jobs.transitions import LOST_JOB_ERRORS, complete, fail, heartbeat
from vigil_core.services.ports import HttpClient, Response


class CallHttpContext(ChangesJobs, UsesJobTypes, UsesDependencies, UsesRuns, UsesThreads, Protocol):
    """The targets of job types, the results of dependencies, and the collaborators of a change of the job."""


ACTOR = "http_executor"
MAX_RESPONSE_BYTES = 256 * 1024
"""Maximum size of a response body; the rest is not read. Less than the limit of a result: text grows as JSON."""
MAX_EXCERPT_CHARS = 500
"""Length of the part of an error response that becomes part of the job's error."""
REPORTING_MARGIN_S = 30
"""Time that the lease adds to the timeout of the call: for the reads before it and the report after it."""
TOO_MANY_REQUESTS = 429


class ResponseInvalid(VigilError):
    """A target responds with a number whose exponent is out of range, such as 1e99999."""

    code = "RESPONSE_INVALID"


class SecretReader(Protocol):
    """The secrets of a namespace."""

    def value(self, namespace: str, secret: SecretPlaceholder) -> str:
        """Return the value of a secret.

        Raises:
            SecretUnavailable: The secret does not exist, or Vigil has no permission to read it.
        """


def call_target(
    ctx: CallHttpContext, client: HttpClient, secrets: SecretReader, message: Mapping[str, JsonValue]
) -> str:
    """Call the target of a job once per lease, and return the outcome as a word for the log.

    1. The first heartbeat marks the lease as used. A repeated invocation fails here, and so does an invocation after
       the lease has expired: both return `lease_lost` and change nothing.
    2. The target is read, and the lease is extended to the timeout of the target.
    3. The request is rendered and sent, with the job id and the attempt as its `Idempotency-Key`.
    4. The outcome is reported under the lease.

    If the process crashes after step 1, the lease expires and the sweeper retries the job as its retry policy allows.
    """
    namespace, job_id = str(message["namespace"]), str(message["job_id"])
    token = str(message["lease_token"])
    with suppress(*LOST_JOB_ERRORS):
        job = heartbeat(ctx, namespace, job_id, lease_token=token, lease_s=None, first=True)
        assert job.lease is not None
        assert job.target_ref is not None
        target = HttpTarget.from_document(ctx.job_types.target(namespace, job.target_ref))
        lease_s = target.timeout_s + REPORTING_MARGIN_S
        if lease_s > job.lease.duration_s:
            job = heartbeat(ctx, namespace, job_id, lease_token=token, lease_s=lease_s)
        return _call(ctx, client, secrets, job, target, token)
    return "lease_lost"


def _call(
    ctx: CallHttpContext, client: HttpClient, secrets: SecretReader, job: Job, target: HttpTarget, token: str
) -> str:
    """Render the request, send it and report its outcome."""
    report_failure = partial(_report_failure, ctx, job, token)
    if job.cancel_requested_at is not None:
        return report_failure("CANCELLED", "The job was cancelled before the call")
    try:
        request = _render_request(ctx, secrets, job, target)
        response = client.request(
            request.method,
            request.url,
            headers={**request.headers, "Idempotency-Key": f"{job.job_id}.{job.attempt}"},
            body=request.body,
            timeout_s=target.timeout_s,
            max_response_bytes=MAX_RESPONSE_BYTES,
        )
    except (TemplateFailed, SecretUnavailable, TargetRefused, PayloadTooLarge, ResultUnreadable) as error:
        return report_failure(error.code, error.message)
    except TargetUnreachable as error:
        return report_failure(error.code, error.message, retryable=True)
    if not 200 <= response.status < 300:
        is_retryable = response.status == TOO_MANY_REQUESTS or response.status >= 500
        after_s = (parse_retry_after(response.headers.get("retry-after"), ctx.now()) or 0) if is_retryable else 0
        return report_failure(
            f"HTTP_{response.status}", _error_message(response), retryable=is_retryable, after_s=after_s
        )
    try:
        complete(ctx, job.namespace, job.job_id, actor=ACTOR, result=_result(response), lease_token=token)
    except (PayloadTooLarge, ResponseInvalid) as error:
        return report_failure(error.code, error.message)
    return "completed"


def _report_failure(
    ctx: CallHttpContext,
    job: Job,
    lease_token: str,
    code: str,
    message: str,
    *,
    retryable: bool = False,
    after_s: float = 0,
) -> str:
    """Fail the attempt, and return the error code as the outcome for the log."""
    fail(
        ctx,
        job.namespace,
        job.job_id,
        JobError(code=code, message=message[:1024]),
        actor=ACTOR,
        retryable=retryable,
        lease_token=lease_token,
        min_delay=timedelta(seconds=min(after_s, MAX_DELAY_S)),
    )
    return code


def _render_request(ctx: CallHttpContext, secrets: SecretReader, job: Job, target: HttpTarget) -> HttpRequest:
    """Read the secrets, the payload and the results of dependencies, and render the request of a job.

    Raises:
        SecretUnavailable: A secret does not exist, or Vigil has no permission to read it.
        PayloadTooLarge: The payload exceeds the limit of one rendering.
        ResultUnreadable: The results of the dependencies that the templates use cannot all be read.
        TemplateFailed: The values of the job do not result in a valid request.
    """
    secret_values = {secret: secrets.value(job.namespace, secret) for secret in target.secrets()}
    bodies = ctx.jobs.payloads(job, max_bytes=MAX_RENDERED_BYTES)
    if bodies.payload_url is not None:
        raise PayloadTooLarge(f"The payload of a job with executor http has at most {MAX_RENDERED_BYTES} bytes")
    payload = None if bodies.payload is None else loads_stored(bodies.payload)
    context = template_context(job, payload, _referenced_dependencies(ctx, job, target))
    return target.render_request(RenderContext(context, secret_values, template_budget()))


def _referenced_dependencies(ctx: CallHttpContext, job: Job, target: HttpTarget) -> NamedList:
    """Read the dependencies that the templates of the target use. The others are null, and no template sees them.

    Raises:
        ResultUnreadable: Their results are too large, or one of them no longer exists.
    """
    ids_by_name = dependency_ids(ctx, job)
    names = list(ids_by_name)
    used = target.used_dependencies(names)
    results = load_all_results(ctx, job.namespace, {name: ids_by_name[name] for name in names if name in used})
    values = dependency_results_json(results)
    return NamedList(names, [values.get(name) for name in names])


def _result(response: Response) -> JsonValue:
    """Convert a response to a job result.

    A JSON body stays JSON, other text is a string, other bytes are Base64.

    Raises:
        ResponseInvalid: The body contains a number whose exponent is out of range.
    """
    result: dict[str, JsonValue] = {
        "status": response.status,
        "headers": {name: sanitize(response.headers[name]) for name in STORED_HEADERS if name in response.headers},
        "body": None,
    }
    if response.truncated:
        result["truncated"] = True
    if not response.body:
        return result
    try:
        text = response.body.decode()
    except UnicodeDecodeError:
        return {**result, "encoding": "base64", "body": base64.b64encode(response.body).decode()}
    result["body"] = text
    if not response.truncated and "json" in response.headers.get("content-type", "").lower():
        result["body"] = _parse_body(text)
    return result


def _parse_body(text: str) -> JsonValue:
    """Parse a response body. A text that is not JSON, or is no JSON that Vigil stores, is returned unchanged.

    Raises:
        ResponseInvalid: The body contains a number whose exponent is out of range.
    """
    try:
        body = loads(text)
    except MalformedRequest:
        return text
    except ValidationFailed as error:
        if any(problem.detail == EXPONENT_RULE for problem in error.problems):
            raise ResponseInvalid(f"The body of the response is refused: {error.message}") from error
        return text
    # The result has one level more than the body. A body that is too deep stays text.
    return text if any(json_problems({"body": body})) else body


def _error_message(response: Response) -> str:
    text = sanitize(response.body.decode("utf-8", "replace")).strip()
    excerpt = text if len(text) <= MAX_EXCERPT_CHARS else f"{text[: MAX_EXCERPT_CHARS - 1]}…"
    return f"The target responded with status {response.status}" + (f": {excerpt}" if excerpt else "")
