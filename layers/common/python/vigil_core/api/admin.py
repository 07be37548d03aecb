"""The actions of the admin function, which operators invoke with AWS credentials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from vigil_core.domain.access import ApiKey, require_namespace, sort_scopes
from vigil_core.domain.errors import FieldProblem, ValidationFailed, VigilError
from vigil_core.domain.limits import LIMITS, NamespaceSettings, parse_override
from vigil_core.domain.timestamps import to_text
from vigil_core.services.auth.api_keys import ApiKeysContext, create_key, list_keys, revoke_key
from vigil_core.services.limits import namespaces
from vigil_core.services.operations import doctor
from vigil_core.services.operations.dead_letters import (
    DeadLetterBatch,
    DeadLettersContext,
    list_dead_letters,
    redrive,
)
from vigil_core.services.operations.doctor import DoctorContext, Finding, RepairOutcome

ACTIONS = (
    "create_key",
    "list_keys",
    "revoke_key",
    "list_limits",
    "set_limit",
    "suspend_namespace",
    "resume_namespace",
    "delete_namespace",
    "list_dead_letters",
    "redrive_dead_letters",
    "doctor",
)

RESPONSE_RESERVE = timedelta(seconds=15)
REPAIR_RESERVE = timedelta(minutes=2)
"""Of the 5 minutes that a request may take: the reserve for repairs and for the response."""


class Admin:
    """Answer requests `{"action": …, …}` with JSON.

    A response with `error` describes an invalid request. Faults of AWS are raised.
    """

    def __init__(
        self,
        ctx: DoctorContext,
        *,
        keys: ApiKeysContext,
        disconnect: Callable[[str, str], int],
        dead_letters: DeadLettersContext,
        contents: namespaces.NamespaceContents,
    ) -> None:
        self._ctx = ctx
        self._keys = keys
        self._disconnect = disconnect
        self._dead_letters = dead_letters
        self._contents = contents

    def handle(self, request: object, until: datetime) -> dict[str, Any]:
        """Run an action. Long work stops at `until`, and the response contains what was done."""
        try:
            return self._dispatch(request, until)
        except VigilError as error:
            problems = error.problems if isinstance(error, ValidationFailed) else ()
            return {
                "error": error.code,
                "message": error.message,
                "errors": [{"pointer": problem.pointer, "detail": problem.detail} for problem in problems],
            }

    def _dispatch(self, request: object, until: datetime) -> dict[str, Any]:
        if not isinstance(request, Mapping):
            raise ValidationFailed.at("", "must be an object")
        match request.get("action"):
            case "create_key":
                key, token = create_key(self._keys, *_require_fields(request, "namespace", "scopes", "name"))
                return {"key": _key_json(key), "token": token.to_text()}
            case "list_keys":
                return {
                    "keys": [_key_json(key) for key in list_keys(self._keys, *_require_fields(request, "namespace"))]
                }
            case "revoke_key":
                key, disconnected = revoke_key(
                    self._keys, *_require_fields(request, "namespace", "key_id"), disconnect=self._disconnect
                )
                return {"key": _key_json(key), "disconnected": disconnected}
            case "list_limits":
                return self._list_limits(require_namespace(*_require_fields(request, "namespace")))
            case "set_limit":
                namespace, name, value = _require_fields(request, "namespace", "limit", "value")
                self._ctx.limits.namespaces.set_limit(require_namespace(namespace), *parse_override(name, value))
                return self._list_limits(namespace)
            case "suspend_namespace":
                namespace = require_namespace(*_require_fields(request, "namespace"))
                done = namespaces.suspend(self._ctx, self._keys, namespace, self._disconnect)
                return {**_namespace_json(done.settings), "keys": done.keys, "disconnected": done.disconnected}
            case "resume_namespace":
                namespace = require_namespace(*_require_fields(request, "namespace"))
                return _namespace_json(namespaces.resume(self._ctx, namespace))
            case "delete_namespace":
                return self._delete_namespace(*_require_fields(request, "namespace", "cursor"), until=until)
            case "list_dead_letters":
                _require_fields(request)
                summary = list_dead_letters(self._dead_letters)
                batches = [_batch_json(batch) for batch in summary.batches]
                return {"batches": batches, "total": summary.total, "messages": dict(summary.messages)}
            case "redrive_dead_letters":
                _require_fields(request)
                report = redrive(self._dead_letters, until)
                failed = [_batch_json(batch) for batch in report.failed]
                return {
                    "batches": report.batches,
                    "failed": failed,
                    "not_tried": report.not_tried,
                    "messages": report.messages,
                }
            case "doctor":
                return self._run_doctor(*_require_fields(request, "fix"), until=until)
            case _:
                raise ValidationFailed.at("/action", f"must be one of {', '.join(ACTIONS)}")

    def _delete_namespace(self, namespace: object, cursor: object, *, until: datetime) -> dict[str, Any]:
        deletion = namespaces.delete(
            self._ctx,
            self._contents,
            self._keys,
            require_namespace(namespace),
            self._disconnect,
            cursor=cursor,
            until=until - RESPONSE_RESERVE,
        )
        return {
            "rows": deletion.rows,
            "objects": deletion.objects,
            "cursor": deletion.cursor,
            "wait_s": deletion.wait_s,
        }

    def _list_limits(self, namespace: str) -> dict[str, Any]:
        stored = self._ctx.limits.namespaces
        overrides = stored.read(namespace).overrides
        return {
            "limits": [
                {
                    "name": name,
                    "limit": overrides.get(name, stored.default(name)),
                    "default": stored.default(name),
                    "overridden": name in overrides,
                    "unit": limit.unit,
                    "counts": limit.counts,
                }
                for name, limit in LIMITS.items()
            ]
        }

    def _run_doctor(self, fix: object, *, until: datetime) -> dict[str, Any]:
        if fix not in (None, True, False):
            raise ValidationFailed.at("/fix", "must be true or false")
        checkup = doctor.examine(self._ctx, self._dead_letters, until - REPAIR_RESERVE)
        outcomes = (
            doctor.repair(self._ctx, checkup.findings, until - RESPONSE_RESERVE)
            if fix
            else [None] * len(checkup.findings)
        )
        return {
            "findings": [_finding_json(*pair) for pair in zip(checkup.findings, outcomes, strict=True)],
            "more": checkup.more,
            "examined": {"due": checkup.due_rows, "queues": checkup.queues, "jobs": checkup.jobs},
        }


def _require_fields(request: Mapping[str, Any], *names: str) -> list[Any]:
    """Return the values of an action's fields. An absent field is None. The services validate the values.

    Raises:
        ValidationFailed: The request has another field.
    """
    unknown = [name for name in request if name not in ("action", *names)]
    if unknown:
        raise ValidationFailed(
            FieldProblem(pointer=f"/{name}", detail=f"is not a field of {request['action']}") for name in unknown
        )
    return [request.get(name) for name in names]


def _key_json(key: ApiKey) -> dict[str, Any]:
    return {
        "namespace": key.namespace,
        "key_id": key.key_id,
        "name": key.name,
        "scopes": [str(scope) for scope in sort_scopes(key.scopes)],
        "created_at": to_text(key.created_at),
        "revoked_at": to_text(key.revoked_at) if key.revoked_at else None,
    }


def _namespace_json(settings: NamespaceSettings) -> dict[str, Any]:
    since = settings.state_since
    return {
        "namespace": settings.namespace,
        "state": str(settings.state),
        "since": None if since is None else to_text(since),
    }


def _finding_json(finding: Finding, outcome: RepairOutcome | None) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "namespace": finding.namespace,
        "id": finding.entity_id,
        "problem": finding.problem,
        "since": to_text(finding.since) if finding.since else None,
        "repair_hint": finding.repair_hint,
        "repaired": outcome.repaired if outcome else False,
        "outcome": outcome.message if outcome else None,
    }


def _batch_json(batch: DeadLetterBatch) -> dict[str, Any]:
    letter = batch.dead_letter
    return {
        "key": batch.key,
        "stored_at": to_text(batch.stored_at),
        "function": letter.function_arn if letter else None,
        "condition": letter.condition if letter else None,
        "records": letter.records if letter else None,
        "problem": batch.problem,
    }
