"""Define job types, and hold creations to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from vigil_core.domain.errors import JobTypeNotFound
from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.services.context import UsesClock, UsesJobTypes
from vigil_core.services.optimistic import update_with_retry


class JobTypesContext(UsesJobTypes, UsesClock, Protocol):
    """What this module uses of the outside world."""


def put_job_type(ctx: JobTypesContext, job_type: JobType) -> tuple[JobType, bool]:
    """Store a type under its name, over what stands there; the type as it is now, and whether it is new.

    Raises:
        ValidationFailed: its payload_schema is none, or one that would take too long to apply.
    """
    if job_type.payload_schema is not None:
        # Imported here: it takes a tenth of a second, and most requests need no JSON Schema.
        from vigil_core.services.jobs.payload_schema import check_schema

        check_schema(job_type.payload_schema)

    def save(before: JobType | None, after: JobType) -> tuple[JobType, bool]:
        if after != before:
            ctx.job_types.store_target(after)
            ctx.job_types.save(before, after)
        return after, before is None

    return update_with_retry(
        lambda: ctx.job_types.find(job_type.namespace, job_type.name),
        lambda before: job_type if before is None else job_type.as_next_version(before),
        save,
        sleep=ctx.sleep,
        subject=f"job type {job_type.name}",
    )


def find_job_type(ctx: JobTypesContext, namespace: str, name: str) -> JobType:
    """The type as it is now. Raises JobTypeNotFound."""
    job_type = ctx.job_types.find(namespace, name)
    if job_type is None:
        raise JobTypeNotFound(name)
    return job_type


def delete_job_type(ctx: JobTypesContext, namespace: str, name: str) -> None:
    """Forget a type; its jobs stay as they are. Raises JobTypeNotFound."""
    if not ctx.job_types.remove(namespace, name):
        raise JobTypeNotFound(name)


def check_payloads(job_type: JobType, payloads: Mapping[str, JsonValue]) -> None:
    """Hold payloads to their type. Raises ValidationFailed with a pointer to each problem, at most 20: each payload is
    given under its own."""
    if job_type.payload_schema is not None:
        from vigil_core.services.jobs.payload_schema import check_instances

        check_instances(job_type.payload_schema, payloads)
