"""Call the HTTP target of a job that was dispatched, and report what came of it under the job's lease."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Protocol

from vigil_core.domain.errors import (
    MalformedRequest,
    PayloadTooLarge,
    TargetRefused,
    TargetUnreachable,
)
from vigil_core.domain.exact_json import JsonValue, loads
from vigil_core.domain.executors.targets import KEPT_HEADERS, HttpTarget, SecretUnavailable, brings
from vigil_core.domain.executors.templates import MAX_RENDERED_BYTES, Scope, Secret, TemplateFailed
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.jobs.retry import LONGEST_DELAY_S, retry_after_s
from vigil_core.services.context import Context
from vigil_core.services.jobs.dependencies import inputs_of, told_of
from vigil_core.services.jobs.transitions import NO_LONGER_OURS, complete, fail, heartbeat
from vigil_core.services.ports import HttpClient, Response

BY = "http_executor"
MAX_ANSWER_BYTES = 256 * 1024
"""Of an answer's body; the rest is not read. Less than a result may take, for text grows when it becomes JSON."""
TOLD_CHARS = 500
"""How much of a refusal's body becomes part of the job's error."""
REPORTING_S = 30
"""What the lease leaves beyond the call itself, for reading before it and reporting after."""
TOO_MANY = 429


class SecretReader(Protocol):
    """The secrets of a namespace."""

    def value(self, namespace: str, secret: Secret) -> str:
        """Raises SecretUnavailable."""


def call_target(ctx: Context, client: HttpClient, secrets: SecretReader, told: Mapping[str, JsonValue]) -> str:
    """Do what `dispatch` asked for, once per lease; what became of it, in a word for the log.

    Whoever comes too late, or second, changes nothing: the lease is another's, or was used before.
    """
    namespace, job_id = str(told["namespace"]), str(told["job_id"])
    token = str(told["lease_token"])
    with suppress(*NO_LONGER_OURS):
        job = heartbeat(ctx, namespace, job_id, lease_token=token, length_s=None, first=True)
        assert job.lease is not None
        assert job.target_ref is not None
        target = HttpTarget.of(ctx.job_types.target(namespace, job.target_ref))
        length_s = target.timeout_s + REPORTING_S
        if length_s > job.lease.length_s:
            job = heartbeat(ctx, namespace, job_id, lease_token=token, length_s=length_s)
        return _called(ctx, client, secrets, job, target, token)
    return "not ours"


def _called(ctx: Context, client: HttpClient, secrets: SecretReader, job: Job, target: HttpTarget, token: str) -> str:
    def failed(code: str, message: str, *, retryable: bool = False, after_s: float = 0) -> str:
        fail(
            ctx,
            job.namespace,
            job.job_id,
            JobError(code=code, message=message[:1024]),
            by=BY,
            retryable=retryable,
            lease_token=token,
            at_least=timedelta(seconds=min(after_s, LONGEST_DELAY_S)),
        )
        return code

    if job.cancel_requested_at is not None:
        return failed("CANCELLED", "It was to be cancelled before it was called")
    try:
        known = {secret: secrets.value(job.namespace, secret) for secret in target.secrets()}
        bodies = ctx.jobs.bodies(job, room=MAX_RENDERED_BYTES)
        if bodies.payload_url is not None:
            return failed("PAYLOAD_TOO_LARGE", f"A call takes a payload of at most {MAX_RENDERED_BYTES} bytes")
        payload = bodies.payload
        others = list(told_of(inputs_of(ctx, job)).values())
        request = target.request(Scope(brings(job, None if payload is None else loads(payload), others), known))
        answer = client.request(
            request.method,
            request.url,
            headers={**request.headers, "Idempotency-Key": f"{job.job_id}.{job.attempt}"},
            body=request.body,
            timeout_s=target.timeout_s,
            max_answer_bytes=MAX_ANSWER_BYTES,
        )
    except (TemplateFailed, SecretUnavailable, TargetRefused) as error:
        return failed(error.code, error.message)
    except TargetUnreachable as error:
        return failed(error.code, error.message, retryable=True)
    if not 200 <= answer.status < 300:
        again = answer.status == TOO_MANY or answer.status >= 500
        after_s = (retry_after_s(answer.headers.get("retry-after"), ctx.now()) or 0) if again else 0
        return failed(f"HTTP_{answer.status}", _refusal(answer), retryable=again, after_s=after_s)
    try:
        complete(ctx, job.namespace, job.job_id, by=BY, result=_result(answer), lease_token=token)
    except PayloadTooLarge as error:
        return failed(error.code, error.message)
    return "completed"


def _result(answer: Response) -> JsonValue:
    """The answer as the job keeps it: a body of JSON as that, other text as a string, anything else as Base64."""
    kept: dict[str, JsonValue] = {
        "status": answer.status,
        "headers": {name: answer.headers[name] for name in KEPT_HEADERS if name in answer.headers},
        "body": None,
    }
    if answer.truncated:
        kept["truncated"] = True
    if not answer.body:
        return kept
    try:
        text = answer.body.decode()
    except UnicodeDecodeError:
        return {**kept, "encoding": "base64", "body": base64.b64encode(answer.body).decode()}
    kept["body"] = text
    if not answer.truncated and "json" in answer.headers.get("content-type", "").lower():
        with suppress(MalformedRequest):
            kept["body"] = loads(text)
    return kept


def _refusal(answer: Response) -> str:
    text = answer.body.decode("utf-8", "replace").replace("\x00", "\ufffd").strip()
    told = text if len(text) <= TOLD_CHARS else f"{text[: TOLD_CHARS - 1]}…"
    return f"The target answered {answer.status}" + (f": {told}" if told else "")
