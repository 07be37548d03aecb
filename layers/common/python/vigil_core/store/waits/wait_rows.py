"""Mapping between waits and rows of the table: the wait's own row, its entries, outcomes and packed parts."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from vigil_core.domain.exact_json import JsonValue, dumps, loads
from vigil_core.domain.jobs.retention import DEFAULT_RETENTION
from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.domain.waits.wait import EntryOutcome, Wait, WaitEntry, WaitOnJob, WaitOptions, mark_truncated
from vigil_core.store import keys
from vigil_core.store.table import Row

MAX_INLINE_VALUES_BYTES = 4 * 1024
"""Larger captured values have a row of their own also in an inline wait, because its own row is written often."""
MAX_VALUES_BYTES = 360 * 1024
"""The limit of the values in one outcome row (DynamoDB: 400 KB). Longer values are truncated and marked."""


def wait_from_row(row: Row) -> Wait:
    """Convert a row to a wait."""
    entries: Any = loads(row["entries"]) if "entries" in row else None
    packed_outcomes: Any = loads(row["outcomes"]) if "outcomes" in row else []
    outcomes = [_outcome_from_json(packed, entries[packed[0]][0]) for packed in packed_outcomes]
    return Wait(
        namespace=row["namespace"],
        wait_id=row["wait_id"],
        status=row["status"],
        options=WaitOptions(
            mode=row["mode"],
            needed=row["needed"],
            get_fields=tuple(row.get("get_fields", ())),
            fail_fast=row["fail_fast"],
            return_on_progress=row["return_on_progress"],
            allow_missing=row["allow_missing"],
            sns=row["sns"],
            webhook=row.get("webhook"),
        ),
        raw_options=row["raw_options"],
        total=row["total"],
        created_by=row["created_by"],
        created_at=from_text(row["created_at"]),
        expires_at=from_text(row["expires_at"]),
        ended_at=from_text(row["ended_at"]) if "ended_at" in row else None,
        version=row["version"],
        has_waited_jobs=row.get("has_waited_jobs", False),
        wait_on_jobs=None if entries is None else tuple(entries_from_json(entries)),
        outcomes={outcome.index: outcome for outcome in outcomes},
        pages=row.get("pages", 0),
        registered_pages=frozenset(row.get("registered_pages", ())),
        met_counts={int(block): n for block, n in row.get("met_counts", {}).items()},
        unmet_counts={int(block): n for block, n in row.get("unmet_counts", {}).items()},
        final_met=from_bitmap(row.get("final_met", b"")),
        final_failed=int(row.get("final_failed", 0)),
        final_unmet=from_bitmap(row.get("final_unmet", b"")),
    )


def wait_to_row(wait: Wait, retention: timedelta = DEFAULT_RETENTION) -> Row:
    """Convert a new wait or an inline wait to a row. A large wait's counts change in place."""
    key = keys.wait(wait.namespace, wait.wait_id)
    row: Row = {
        **row_head(key, "wait"),
        "namespace": wait.namespace,
        "wait_id": wait.wait_id,
        "status": wait.status,
        "mode": wait.options.mode,
        "needed": wait.options.needed,
        "get_fields": list(wait.options.get_fields) or None,
        "fail_fast": wait.options.fail_fast,
        "return_on_progress": wait.options.return_on_progress,
        "allow_missing": wait.options.allow_missing,
        "sns": wait.options.sns,
        "webhook": wait.options.webhook,
        "raw_options": wait.raw_options,
        "total": wait.total,
        "created_by": wait.created_by,
        "created_at": to_text(wait.created_at),
        "expires_at": to_text(wait.expires_at),
        "ended_at": wait.ended_at and to_text(wait.ended_at),
        "version": wait.version,
        "has_waited_jobs": wait.has_waited_jobs or None,
        "ttl": to_epoch_s((wait.ended_at or wait.expires_at) + retention),
    }
    if wait.wait_on_jobs is not None:
        row["entries"] = dumps(entries_to_json(wait.wait_on_jobs))
        if wait.outcomes:
            row["outcomes"] = dumps(
                [_outcome_to_json(_without_large_values(outcome)) for outcome in wait.outcomes.values()]
            )
    else:
        row |= {"pages": wait.pages, "met_counts": {}, "unmet_counts": {}}
    row["g2pk"], row["g2sk"] = keys.listing(wait.namespace, "waits", wait.created_at, wait.wait_id)
    if not wait.ended:
        kind: keys.DueKind = "wait_expiry" if wait.registration_complete else "wait_registration"
        at = wait.expires_at if wait.registration_complete else wait.registration_due_at
        row["g1pk"], row["g1sk"] = keys.due(at, kind, wait.namespace, wait.wait_id)
    return row


def entry_to_row(wait: Wait, entry: WaitOnJob) -> Row:
    """Convert an entry to a row, without its TTL."""
    key = keys.entry(wait.namespace, entry.job_id, wait.wait_id, entry.index)
    return {
        **row_head(key, "entry"),
        "condition": dumps(entry.raw_condition),
        "known_version": entry.known_version,
        "get_fields": list(wait.options.get_fields) or None,
        "fail_fast": wait.options.fail_fast or None,
    }


def entry_from_row(row: Row, job_id: str) -> WaitEntry:
    """Convert a row to an entry of this job."""
    wait_id, index = row["sk"].split("#")
    return WaitEntry(
        wait_id=wait_id,
        wait_on_job=WaitOnJob(
            index=int(index), job_id=job_id, raw_condition=loads(row["condition"]), known_version=row["known_version"]
        ),
        get_fields=tuple(row.get("get_fields", ())),
        fail_fast=row.get("fail_fast", False),
    )


def entries_to_json(entries: Iterable[WaitOnJob]) -> list[JsonValue]:
    """Convert consecutive entries to JSON. Their indexes are not stored."""
    return [[entry.job_id, entry.raw_condition, entry.known_version] for entry in entries]


def entries_from_json(packed: Iterable[Any], *, first_index: int = 0) -> list[WaitOnJob]:
    """Convert JSON to consecutive entries."""
    return [
        WaitOnJob(index=index, job_id=job_id, raw_condition=condition, known_version=version)
        for index, (job_id, condition, version) in enumerate(packed, first_index)
    ]


def outcome_to_row(key: keys.Key, outcome: EntryOutcome, ttl: int) -> Row:
    """Convert an outcome to a row of its own. Values over `MAX_VALUES_BYTES` are truncated and marked."""
    text = dumps(_outcome_to_json(_truncated(outcome)))
    return {**row_head(key, "wait_outcome"), "job_id": outcome.job_id, "outcome": text, "ttl": ttl}


def outcome_from_row(row: Row) -> EntryOutcome:
    """Convert a row to an outcome."""
    return _outcome_from_json(loads(row["outcome"]), row["job_id"])


def has_large_values(outcome: EntryOutcome) -> bool:
    """Return whether the captured values need a row of their own."""
    return len(dumps(dict(outcome.values)).encode()) > MAX_INLINE_VALUES_BYTES


def to_bitmap(indexes: Iterable[int], total: int) -> bytes:
    """Convert indexes below `total` to a bitmap."""
    bits = bytearray((total + 7) // 8)
    for index in indexes:
        bits[index // 8] |= 1 << index % 8
    return bytes(bits)


def from_bitmap(bits: bytes) -> frozenset[int]:
    """Convert a bitmap to indexes."""
    return frozenset(8 * at + bit for at, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1)


def pack(value: object) -> bytes:
    """Compress a JSON value."""
    return zlib.compress(dumps(value).encode())


def unpack(packed: bytes) -> Any:
    """Decompress a JSON value."""
    return loads(zlib.decompress(packed))


def row_head(key: keys.Key, entity: str) -> Row:
    """Return the attributes that every row has."""
    return {"pk": key.pk, "sk": key.sk, "entity": entity, "schema_version": 1}


def _outcome_to_json(outcome: EntryOutcome) -> list[JsonValue]:
    return [outcome.index, outcome.status, outcome.version, outcome.stage, dict(outcome.values), outcome.reason]


def _outcome_from_json(packed: Any, job_id: str) -> EntryOutcome:
    index, status, version, stage, values, reason = packed
    return EntryOutcome(
        index=index, job_id=job_id, status=status, version=version, stage=stage, values=values, reason=reason
    )


def _without_large_values(outcome: EntryOutcome) -> EntryOutcome:
    """Return the outcome for the row of an inline wait. Large values are only in the outcome's own row."""
    return replace(outcome, values={}) if has_large_values(outcome) else outcome


def _truncated(outcome: EntryOutcome) -> EntryOutcome:
    values = dict(outcome.values)
    while len(dumps(values).encode()) > MAX_VALUES_BYTES:
        longest = max(values, key=lambda name: len(values[name]))
        values[longest] = values[longest][: len(values[longest]) // 2]
        values = mark_truncated(values, [longest])
    return replace(outcome, values=values)
