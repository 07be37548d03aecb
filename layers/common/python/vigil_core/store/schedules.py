"""Schedules: one partition per namespace, listed by name, and visible to the sweeper in index `due`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from vigil_core.domain.exact_json import dumps, loads
from vigil_core.domain.jobs.job import JobError
from vigil_core.domain.schedules import Schedule, ScheduleAction, ScheduleFire, ScheduleTiming
from vigil_core.domain.timestamps import from_text, to_text
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, Delete, Put, Row, Table, version_is

SWEEP_GRACE = timedelta(seconds=20)
"""The time that the sweep leaves to the timer of a schedule before it fires the schedule itself."""


class ScheduleStore:
    """The schedules of every namespace."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def find(self, namespace: str, name: str) -> Schedule | None:
        """Read a schedule with one strongly consistent read: one unit per 4 KB."""
        row = self._table.get(keys.schedule(namespace, name))
        return schedule_from_row(row) if row else None

    def page(self, namespace: str, *, after: str | None, limit: int) -> tuple[list[Schedule], str | None]:
        """Read a page of schedules, sorted by name.

        DynamoDB may end a page early, after 1 MB.

        Returns:
            The schedules after the name `after`, and the name after which the next page begins; None on the last page.
        """
        cursor = None if after is None else keys.schedule(namespace, after)._asdict()
        page = self._table.query_page(keys.schedules(namespace), limit=limit, cursor=cursor)
        return [schedule_from_row(row) for row in page.rows], page.cursor["sk"] if page.cursor else None

    def save(self, before: Schedule | None, after: Schedule) -> None:
        """Store the version that follows `before`, or raise ConditionFailed if the schedule has changed."""
        condition = ABSENT if before is None else version_is(before.version)
        self._table.put(Put(row=_to_row(after), condition=condition))

    def remove(self, schedule: Schedule) -> None:
        """Remove a schedule, or raise ConditionFailed if it has changed since the read."""
        key = keys.schedule(schedule.namespace, schedule.name)
        self._table.delete(Delete(key=key, condition=version_is(schedule.version)))


def _to_row(schedule: Schedule) -> Row:
    pk, sk = keys.schedule(schedule.namespace, schedule.name)
    row: Row = {
        "pk": pk,
        "sk": sk,
        "entity": "schedule",
        "schema_version": 1,
        "schedule_id": schedule.schedule_id,
        "cron": schedule.timing.cron,
        "rate": schedule.timing.rate,
        "timezone": schedule.timing.timezone,
        "anchor": to_text(schedule.timing.anchor),
        # JSON text returns every number as it was sent.
        schedule.action: dumps(schedule.body),
        "enabled": schedule.enabled,
        "misfire_policy": schedule.misfire_policy,
        "overlap_policy": schedule.overlap_policy,
        "generation": schedule.generation,
        "next_fire_at": schedule.next_fire_at and to_text(schedule.next_fire_at),
        "created_at": to_text(schedule.created_at),
        "updated_at": to_text(schedule.updated_at),
        "last_fire": schedule.last_fire and _fire_to_row(schedule.last_fire),
        "last_created_id": schedule.last_created_id,
        "unrecorded": [to_text(at) for at in schedule.unrecorded] or None,
        "version": schedule.version,
    }
    if schedule.next_fire_at is not None:
        row["g1pk"], row["g1sk"] = keys.due(
            schedule.next_fire_at + SWEEP_GRACE, "schedule", schedule.namespace, schedule.name
        )
    return row


def schedule_from_row(row: Row) -> Schedule:
    """Convert a row to a schedule."""
    action: ScheduleAction = "workflow" if "workflow" in row else "job"
    body: Any = loads(row[action])
    return Schedule(
        namespace=keys.parse_schedules(row["pk"]),
        name=row["sk"],
        schedule_id=row["schedule_id"],
        timing=ScheduleTiming(
            cron=row.get("cron"), rate=row.get("rate"), timezone=row["timezone"], anchor=from_text(row["anchor"])
        ),
        action=action,
        body=body,
        enabled=row["enabled"],
        misfire_policy=row["misfire_policy"],
        overlap_policy=row["overlap_policy"],
        generation=row["generation"],
        next_fire_at=from_text(row["next_fire_at"]) if "next_fire_at" in row else None,
        created_at=from_text(row["created_at"]),
        updated_at=from_text(row["updated_at"]),
        last_fire=_fire_from_row(row["last_fire"]) if "last_fire" in row else None,
        last_created_id=row.get("last_created_id"),
        unrecorded=tuple(from_text(at) for at in row.get("unrecorded", ())),
        version=row["version"],
    )


def _fire_to_row(fire: ScheduleFire) -> Row:
    row: Row = {"planned_at": to_text(fire.planned_at), "fired_at": to_text(fire.fired_at), "outcome": fire.outcome}
    if fire.created_id is not None:
        row["created_id"] = fire.created_id
    if fire.error is not None:
        row["error"] = {"code": fire.error.code, "message": fire.error.message}
    return row


def _fire_from_row(row: Row) -> ScheduleFire:
    return ScheduleFire(
        planned_at=from_text(row["planned_at"]),
        fired_at=from_text(row["fired_at"]),
        outcome=row["outcome"],
        created_id=row.get("created_id"),
        error=JobError(**row["error"]) if "error" in row else None,
    )
