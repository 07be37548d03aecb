"""Runs of workflows in the table: the run's own row, its graph and the bodies of its jobs, how its jobs stand, what is
held back, what operators have decided."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from threading import Lock
from typing import Any, get_args

from vigil_core.domain.errors import StoreConflict
from vigil_core.domain.exact_json import JsonValue, dumps, loads
from vigil_core.domain.jobs.job import JobError, NewJob, Priority
from vigil_core.domain.jobs.retention import DEFAULT, LIFE
from vigil_core.domain.timestamps import from_epoch_s, from_text, to_epoch_s, to_text
from vigil_core.domain.workflows.graph import Graph, Node, chunks
from vigil_core.domain.workflows.run import DecisionAction, Run, RunLine, supervised
from vigil_core.domain.workflows.run_state import Chunk, Note, Standing
from vigil_core.store import keys
from vigil_core.store.jobs.jobs import RANKS, ROW_BYTES, Objects, retry_from_row, retry_to_row
from vigil_core.store.table import (
    ABSENT,
    Condition,
    ConditionFailed,
    Delete,
    Put,
    Row,
    Table,
    Update,
    query_all,
    version_is,
)

SCHEMA_VERSION = 1
GRAPHS_CACHED = 32
CACHED_JOBS = 60_000
NOTED_AT_ONCE = 40
"""Notes of one update: each takes five operators of a condition, which may have 300."""
ATTEMPTS = 12
_STANDINGS: tuple[Standing, ...] = get_args(Standing)
_CODES: Mapping[Standing, int] = {standing: code for code, standing in enumerate(_STANDINGS)}
_CODE_SPACE = 16
_PREPARED_SPACE = 1_000


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Whether the supervisor of a run waits to be woken: its token, and up to which fact it has seen."""

    token: str
    seen: int


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What an operator said is to become of a failed job, as of one moment of its life."""

    place: int
    moment: int
    action: DecisionAction
    by: str
    at: datetime
    note: str | None


class RunStore:
    """Reads and writes runs. What has expired is not found. Graphs never change, and are kept by a warm process."""

    def __init__(
        self, table: Table, objects: Objects, *, now: Callable[[], datetime], retention: timedelta = DEFAULT
    ) -> None:
        self._table = table
        self._objects = objects
        self._now = now
        self._retention = retention
        self._graphs: OrderedDict[tuple[str, str], Graph] = OrderedDict()
        # Runs of a batch are followed by several threads, and one may let go of what another is about to take.
        self._graphs_lock = Lock()

    # The run itself

    def find(self, namespace: str, workflow_id: str) -> Run | None:
        """The run as it is now. One consistent read of its row, usually of 1 or 2 KB."""
        row = self._table.get(keys.run(namespace, workflow_id))
        return None if row is None else self._unless_expired(run_from_row(row))

    def find_many(self, namespace: str, workflow_ids: Iterable[str]) -> dict[str, Run]:
        """The runs that exist, by id."""
        rows = self._table.batch_get([keys.run(namespace, workflow_id) for workflow_id in workflow_ids])
        found = map(self._unless_expired, map(run_from_row, rows.values()))
        return {run.workflow_id: run for run in found if run is not None}

    def create(self, run: Run) -> None:
        """Store the first version; what it is made of is stored before. Raises ConditionFailed when the id is taken."""
        self._table.put(Put(row=run_to_row(replace(run, expires_at=self._expiry(run))), condition=ABSENT))

    def save(self, before: Run, after: Run) -> Run:
        """Store the version that follows `before`; nothing when they are the same. What the supervisor writes into the
        same row stays as it is. Returns what is stored.

        Raises:
            ConditionFailed: the run has moved on since it was read.
        """
        if after == before:
            return before
        after = replace(after, expires_at=self._expiry(after))
        old, new = run_to_row(before), run_to_row(after)
        changed = {name: value for name, value in new.items() if value is not None and value != old.get(name)}
        removed = [name for name, value in old.items() if value is not None and new.get(name) is None]
        names = {f"#{name}": name for name in (*changed, *removed)}
        sets = ", ".join(f"#{name} = :{name}" for name in changed)
        removes = f" REMOVE {', '.join(f'#{name}' for name in removed)}" if removed else ""
        self._table.update(
            Update(
                key=keys.run(after.namespace, after.workflow_id),
                expression=f"SET {sets}{removes}",
                names=names,
                values={f":{name}": value for name, value in changed.items()},
                condition=version_is(before.version),
            )
        )
        return after

    def mark_prepared(self, run: Run, chunk: int) -> int:
        """Note that the jobs of a chunk are there; of how many chunks that is so, in this generation."""
        row = self._table.update(
            Update(
                key=keys.run(run.namespace, run.workflow_id),
                expression="ADD prepared :chunk",
                values={":chunk": {run.generation * _PREPARED_SPACE + chunk}},
                condition=Condition(expression="attribute_exists(pk)"),
            )
        )
        return sum(number // _PREPARED_SPACE == run.generation for number in row["prepared"])

    def listening(self, run: Run) -> Listening | None:
        """Whether the supervisor of a run waits to be woken."""
        row = self._table.get(keys.run(run.namespace, run.workflow_id))
        return None if row is None else listening_of(row)

    def keep_beside(self, run: Run) -> None:
        """Have what lies beside the row of a run expire with it: soon once it has ended, late when it begins anew."""
        until = to_epoch_s(self._expiry(run))
        pk = keys.run(run.namespace, run.workflow_id).pk
        for row in query_all(self._table, pk, between=("B", "Z")):
            if row.get("ttl") != until:
                with suppress(ConditionFailed):
                    self._table.update(
                        Update(
                            key=keys.Key(pk, row["sk"]),
                            expression="SET #ttl = :ttl",
                            names={"#ttl": "ttl"},
                            values={":ttl": until},
                            condition=Condition(expression="attribute_exists(pk)"),
                        )
                    )

    # What never changes

    def put_graph(self, namespace: str, workflow_id: str, graph: Graph) -> None:
        """Store the graph, before the run. A row for each 350 KB, compressed."""
        packed = zlib.compress(dumps(_graph_to_json(graph)).encode(), 9)
        pieces = [packed[start : start + ROW_BYTES] for start in range(0, len(packed), ROW_BYTES)]
        for number, piece in enumerate(pieces):
            key = keys.graph_piece(namespace, workflow_id, number)
            self._table.put(Put(row={**self._head(key, "graph"), "body": piece}))
        self._remember((namespace, workflow_id), graph)

    def graph(self, namespace: str, workflow_id: str) -> Graph:
        """The graph of a run that exists."""
        which = namespace, workflow_id
        with self._graphs_lock:
            if which in self._graphs:
                self._graphs.move_to_end(which)
                return self._graphs[which]
        pieces = query_all(self._table, keys.run(namespace, workflow_id).pk, begins=keys.GRAPH_PIECES)
        graph = _graph_from_json(loads(zlib.decompress(b"".join(row["body"] for row in pieces))))
        self._remember(which, graph)
        return graph

    def put_bodies(self, namespace: str, workflow_id: str, chunk: int, bodies: Sequence[NewJob]) -> None:
        """Store what the jobs of a chunk are to be, before the run."""
        key = keys.run_bodies(namespace, workflow_id, chunk)
        text = dumps([_body_to_json(body) for body in bodies])
        packed = zlib.compress(text.encode())
        row: Row = {**self._head(key, "run_bodies"), "body": packed}
        if len(packed) > ROW_BYTES:
            self._objects.put(keys.run_object_name(namespace, workflow_id, key.sk), text, kept="open")
            row = self._head(key, "run_bodies")
        self._table.put(Put(row=row))

    def bodies(self, namespace: str, workflow_id: str, chunk: int) -> list[NewJob]:
        """What the jobs of a chunk are to be."""
        key = keys.run_bodies(namespace, workflow_id, chunk)
        row = self._table.get(key) or {}
        if "body" in row:
            text: str | None = zlib.decompress(row["body"]).decode()
        else:
            text = self._objects.get(keys.run_object_name(namespace, workflow_id, key.sk))
        found: Any = loads(text or "[]")
        return [_body_from_json(body) for body in found]

    def put_result(self, run: Run, nonce: str, text: str) -> str:
        """Store what the run came to, before the version that points to it. Returns the pointer."""
        key = keys.run_result(run.namespace, run.workflow_id, run.generation, nonce)
        if len(text.encode()) > ROW_BYTES:
            self._objects.put(keys.run_object_name(run.namespace, run.workflow_id, key.sk), text, kept="ended")
            return keys.object_ref(len(text.encode()), key.sk)
        self._table.put(Put(row={**self._head(key, "run_result"), "body": text}))
        return key.sk

    def result(self, run: Run) -> tuple[str | None, str | None]:
        """What the run came to as JSON text, or where it can be read when it is too large for an answer."""
        if run.result_ref is None:
            return None, None
        if (parsed := keys.parse_object_ref(run.result_ref)) is not None:
            return None, self._objects.url(keys.run_object_name(run.namespace, run.workflow_id, parsed[1]))
        row = self._table.get(keys.Key(keys.run(run.namespace, run.workflow_id).pk, run.result_ref))
        return (None if row is None else str(row["body"])), None

    # How its jobs stand

    def chunk(self, namespace: str, workflow_id: str, chunk: int) -> Chunk:
        """How the jobs of a chunk stand. One consistent read of a row of at most 1 KB."""
        return _chunk_from_row(self._table.get(keys.run_chunk(namespace, workflow_id, chunk)) or {})

    def chunks(self, run: Run) -> tuple[dict[int, Chunk], datetime]:
        """How all jobs stand, and when that was last noted. A read unit for each 4 KB, which 500 jobs take or more."""
        found = {number: Chunk() for number in chunks(run.total)}
        last = run.started_at or run.created_at
        for row in query_all(self._table, keys.run(run.namespace, run.workflow_id).pk, begins=keys.RUN_CHUNKS):
            found[int(row["sk"].removeprefix(keys.RUN_CHUNKS))] = _chunk_from_row(row)
            last = max(last, from_text(row["noted_at"]))
        return found, last

    def note(self, namespace: str, workflow_id: str, chunk: int, notes: Mapping[int, Note]) -> Chunk:
        """Note how jobs stand, each unless that moment of its life or a later one is noted; returns the chunk as it is
        then. An empty mapping only makes the row."""
        left = {place: _note_to_number(note) for place, note in notes.items()}
        while True:
            some = dict(list(left.items())[:NOTED_AT_ONCE])
            row = self._note(keys.run_chunk(namespace, workflow_id, chunk), some)
            left = {place: number for place, number in left.items() if place not in some}
            if not left:
                return _chunk_from_row(row)

    def note_lost(self, namespace: str, workflow_id: str, chunk: int, places: Iterable[int]) -> Chunk:
        """Note that the race of these jobs is over."""
        row = self._table.update(
            Update(
                key=keys.run_chunk(namespace, workflow_id, chunk),
                expression="ADD lost :places SET entity = :entity, schema_version = :one, noted_at = :now, #ttl = :ttl",
                names={"#ttl": "ttl"},
                values={":places": set(places), **self._noted_now()},
            )
        )
        return _chunk_from_row(row)

    def forget_lost(self, namespace: str, workflow_id: str, chunk: int, places: Iterable[int]) -> None:
        """These jobs, which are to run again, have lost no race."""
        self._table.update(
            Update(
                key=keys.run_chunk(namespace, workflow_id, chunk),
                expression="DELETE lost :places SET entity = :entity, schema_version = :one, noted_at = :now, "
                "#ttl = :ttl",
                names={"#ttl": "ttl"},
                values={":places": set(places), **self._noted_now()},
            )
        )

    def _note(self, key: keys.Key, numbers: Mapping[int, int]) -> Row:
        for _ in range(ATTEMPTS):
            sets = "".join(f", j{place} = :j{place}" for place in numbers)
            later = " AND ".join(f"(attribute_not_exists(j{place}) OR j{place} < :m{place})" for place in numbers)
            try:
                return self._table.update(
                    Update(
                        key=key,
                        expression=f"SET entity = :entity, schema_version = :one, noted_at = :now, #ttl = :ttl{sets}",
                        names={"#ttl": "ttl"},
                        values={**{f":j{place}": number for place, number in numbers.items()}, **self._noted_now()},
                        condition=Condition(
                            expression=later,
                            values={f":m{place}": _moment_only(number) for place, number in numbers.items()},
                        )
                        if later
                        else None,
                    )
                )
            except ConditionFailed as error:
                old = error.old if error.old is not None else self._table.get(key) or {}
                numbers = {
                    place: number
                    for place, number in numbers.items()
                    if old.get(f"j{place}", -1) < _moment_only(number)
                }
                if not numbers:
                    return old
        raise StoreConflict(f"How jobs stand in {key.pk} is being noted by too many at once")

    # Who may run at once

    def take_slot(self, run: Run, place: int) -> bool:
        """Have a job be one of those that may run at once, unless these are enough already. Having it twice is once."""
        try:
            self._table.update(
                Update(
                    key=keys.run_slots(run.namespace, run.workflow_id),
                    expression="ADD owners :place SET entity = :entity, schema_version = :one, #ttl = :ttl",
                    names={"#ttl": "ttl"},
                    values={":place": {place}, ":entity": "run_slots", ":one": SCHEMA_VERSION, ":ttl": self._ttl()},
                    condition=Condition(
                        expression="attribute_not_exists(owners) OR size(owners) < :most OR contains(owners, :owner)",
                        values={":most": run.max_concurrency, ":owner": place},
                    ),
                )
            )
        except ConditionFailed:
            return False
        return True

    def free_slots(self, run: Run, places: Iterable[int]) -> None:
        """These jobs have ended."""
        self._table.update(
            Update(
                key=keys.run_slots(run.namespace, run.workflow_id),
                expression="DELETE owners :places SET entity = :entity, schema_version = :one, #ttl = :ttl",
                names={"#ttl": "ttl"},
                values={":places": set(places), ":entity": "run_slots", ":one": SCHEMA_VERSION, ":ttl": self._ttl()},
            )
        )

    def slots(self, run: Run) -> set[int]:
        """Who has one."""
        row = self._table.get(keys.run_slots(run.namespace, run.workflow_id)) or {}
        return {int(place) for place in row.get("owners", ())}

    # What is held back

    def hold(self, namespace: str, workflow_id: str, priority: Priority, place: int) -> None:
        """Keep in mind that a job is ready, before it is held back."""
        key = keys.held_job(namespace, workflow_id, RANKS[priority], place)
        self._table.put(Put(row=self._head(key, "held_job")))

    def held(self, run: Run, limit: int) -> list[keys.Key]:
        """Jobs that are held back, in the order in which they are let go."""
        pk = keys.run(run.namespace, run.workflow_id).pk
        return [keys.Key(pk, row["sk"]) for row in self._table.query_page(pk, begins=keys.HELD_JOBS, limit=limit).rows]

    def forget_held(self, key: keys.Key) -> None:
        """A job is held back no longer."""
        self._table.delete(Delete(key=key))

    # What operators have decided

    def put_decision(self, run: Run, decision: Decision) -> None:
        """Keep a decision, before the run says that there is one. A later one about the same job replaces it."""
        key = keys.decision(run.namespace, run.workflow_id, decision.place)
        said: Row = {
            "moment": decision.moment,
            "action": decision.action,
            "by": decision.by,
            "at": to_text(decision.at),
            "note": decision.note,
        }
        self._table.put(Put(row={**self._head(key, "decision"), **said}))

    def decisions(self, run: Run) -> list[Decision]:
        """All decisions of a run, also those that have been carried out."""
        pk = keys.run(run.namespace, run.workflow_id).pk
        return [
            Decision(
                place=int(row["sk"].removeprefix(keys.DECISIONS)),
                moment=row["moment"],
                action=row["action"],
                by=row["by"],
                at=from_text(row["at"]),
                note=row.get("note"),
            )
            for row in query_all(self._table, pk, begins=keys.DECISIONS)
        ]

    def _unless_expired(self, run: Run) -> Run | None:
        return None if run.expires_at is not None and run.expires_at <= self._now() else run

    def _expiry(self, run: Run) -> datetime:
        if run.finished_at is not None:
            return (run.finished_at + self._retention).replace(microsecond=0)
        return (run.deadline_at + LIFE + self._retention).replace(microsecond=0)

    def _ttl(self) -> int:
        """Of what lies beside the row of a run that goes on."""
        return to_epoch_s(self._now() + LIFE + self._retention)

    def _noted_now(self) -> Row:
        return {":entity": "run_chunk", ":one": SCHEMA_VERSION, ":now": to_text(self._now()), ":ttl": self._ttl()}

    def _head(self, key: keys.Key, entity: str) -> Row:
        return {"pk": key.pk, "sk": key.sk, "entity": entity, "schema_version": SCHEMA_VERSION, "ttl": self._ttl()}

    def _remember(self, which: tuple[str, str], graph: Graph) -> None:
        with self._graphs_lock:
            self._graphs[which] = graph
            while len(self._graphs) > 1 and (
                len(self._graphs) > GRAPHS_CACHED
                or sum(len(kept.nodes) for kept in self._graphs.values()) > CACHED_JOBS
            ):
                self._graphs.popitem(last=False)


def run_from_row(row: Row) -> Run:
    """A run from its row."""
    namespace, workflow_id = keys.parse_run(row["pk"])
    log: Any = loads(row["log"])
    return Run(
        namespace=namespace,
        workflow_id=workflow_id,
        name=row["name"],
        description=row.get("description"),
        status=row["status"],
        failure_policy=row["failure_policy"],
        priority=row["priority"],
        timeout_s=row.get("timeout_s"),
        max_concurrency=row.get("max_concurrency"),
        health_check_interval_s=row.get("health_check_interval_s"),
        output=row.get("output"),
        trace_id=row.get("trace_id"),
        correlation_id=row.get("correlation_id"),
        total=row["total"],
        edges=row["edges"],
        generation=row["generation"],
        supervisor=row["supervisor"],
        created_at=from_text(row["created_at"]),
        updated_at=from_text(row["updated_at"]),
        started_at=_moment(row.get("started_at")),
        finished_at=_moment(row.get("finished_at")),
        deadline_at=from_text(row["deadline_at"]),
        version=row["version"],
        log=tuple(
            RunLine(version=version, at=from_text(at), kind=kind, by=by, status=status, why=why)
            for version, at, kind, by, status, why in log
        ),
        sealed=row.get("sealed", False),
        facts=row.get("facts", 0),
        failed_job=row.get("failed_job"),
        cancel_requested_by=row.get("cancel_requested_by"),
        deadline_passed=row.get("deadline_passed", False),
        aborted=row.get("aborted", False),
        drained=row.get("drained", False),
        decisions_open=row.get("decisions_open", False),
        closing=row.get("closing", False),
        paused_by_operator=row.get("paused_by_operator", False),
        again=frozenset(_places_from_bytes(row["again"])) if "again" in row else None,
        error=JobError(**row["error"]) if "error" in row else None,
        result_ref=row.get("result_ref"),
        statistics=row.get("statistics"),
        look_at=_moment(row.get("look_at")),
        stalled_at=_moment(row.get("stalled_at")),
        expires_at=from_epoch_s(row["ttl"]) if "ttl" in row else None,
    )


def run_to_row(run: Run) -> Row:
    """The row of a run, but for what its supervisor writes there: the inverse of `run_from_row`."""
    key = keys.run(run.namespace, run.workflow_id)
    row: Row = {
        "pk": key.pk,
        "sk": key.sk,
        "entity": "run",
        "schema_version": SCHEMA_VERSION,
        "name": run.name,
        "description": run.description,
        "status": run.status,
        "failure_policy": run.failure_policy,
        "priority": run.priority,
        "timeout_s": run.timeout_s,
        "max_concurrency": run.max_concurrency,
        "health_check_interval_s": run.health_check_interval_s,
        "output": run.output,
        "trace_id": run.trace_id,
        "correlation_id": run.correlation_id,
        "total": run.total,
        "edges": run.edges,
        "generation": run.generation,
        "supervisor": run.supervisor,
        "created_at": to_text(run.created_at),
        "updated_at": to_text(run.updated_at),
        "started_at": run.started_at and to_text(run.started_at),
        "finished_at": run.finished_at and to_text(run.finished_at),
        "deadline_at": to_text(run.deadline_at),
        "version": run.version,
        "log": dumps([[e.version, to_text(e.at), e.kind, e.by, e.status, e.why] for e in run.log]),
        "sealed": run.sealed or None,
        "facts": run.facts,
        "failed_job": run.failed_job,
        "cancel_requested_by": run.cancel_requested_by,
        "deadline_passed": run.deadline_passed or None,
        "aborted": run.aborted or None,
        "drained": run.drained or None,
        "decisions_open": run.decisions_open or None,
        "closing": run.closing or None,
        "paused_by_operator": run.paused_by_operator or None,
        "again": None if run.again is None else _places_to_bytes(run.again, run.total),
        "error": None if run.error is None else {"code": run.error.code, "message": run.error.message},
        "result_ref": run.result_ref,
        "statistics": None if run.statistics is None else dict(run.statistics),
        "look_at": run.look_at and to_text(run.look_at),
        "stalled_at": run.stalled_at and to_text(run.stalled_at),
        "ttl": run.expires_at and to_epoch_s(run.expires_at),
    }
    row["g2pk"], row["g2sk"] = keys.listing(run.namespace, "workflows", run.created_at, run.workflow_id)
    if run.look_at is not None:
        row["g1pk"], row["g1sk"] = keys.due(run.look_at, "run", run.namespace, run.workflow_id)
    return row


def listening_of(row: Row) -> Listening | None:
    """Whether the supervisor of this generation waits to be woken, as its run's row says."""
    if row.get("supervised") != supervised(row["generation"], row["supervisor"]):
        return None
    return Listening(token=row["supervisor_token"], seen=int(row.get("seen", 0)))


def _graph_to_json(graph: Graph) -> JsonValue:
    nodes = graph.nodes
    return {
        "names": [node.name for node in nodes],
        "types": [None if node.job_type == node.name else node.job_type for node in nodes],
        "after": [list(node.depends_on) for node in nodes],
        "rules": {str(at): node.trigger_rule for at, node in enumerate(nodes) if node.trigger_rule != "all_success"},
        "conditions": {str(at): node.condition for at, node in enumerate(nodes) if node.condition is not None},
        "races": [at for at, node in enumerate(nodes) if node.cancel_losers],
        "delayed": [at for at, node in enumerate(nodes) if node.delayed],
    }


def _graph_from_json(said: Any) -> Graph:
    races, delayed = set(said["races"]), set(said["delayed"])
    return Graph(
        nodes=[
            Node(
                name=name,
                job_type=job_type or name,
                depends_on=tuple(after),
                trigger_rule=said["rules"].get(str(at), "all_success"),
                condition=said["conditions"].get(str(at)),
                cancel_losers=at in races,
                delayed=at in delayed,
            )
            for at, (name, job_type, after) in enumerate(zip(said["names"], said["types"], said["after"], strict=True))
        ]
    )


_BODY_FIELDS = {each.name: each for each in fields(NewJob)}


def _body_to_json(body: NewJob) -> JsonValue:
    said: dict[str, Any] = {name: getattr(body, name) for name in _BODY_FIELDS}
    said |= {
        "retry": None if body.retry is None else retry_to_row(body.retry),
        "scheduled_at": body.scheduled_at and to_text(body.scheduled_at),
    }
    return {
        name: value for name, value in said.items() if value != _BODY_FIELDS[name].default and value not in ((), {})
    }


def _body_from_json(said: Mapping[str, Any]) -> NewJob:
    its: dict[str, Any] = dict(said)
    its |= {name: tuple(its[name]) for name in ("stages", "tags", "depends_on", "comes_after") if name in its}
    if "retry" in its:
        its["retry"] = retry_from_row(its["retry"])
    if "scheduled_at" in its:
        its["scheduled_at"] = from_text(its["scheduled_at"])
    return NewJob(**its)


def _moment_only(number: int) -> int:
    """What every note on an earlier moment is below, and none on the same or a later one."""
    return number - number % _CODE_SPACE


def _note_to_number(note: Note) -> int:
    """Later moments have higher numbers."""
    return note.moment * _CODE_SPACE + _CODES[note.standing]


def _chunk_from_row(row: Row) -> Chunk:
    notes = {
        int(name[1:]): Note(standing=_STANDINGS[number % _CODE_SPACE], moment=number // _CODE_SPACE)
        for name, number in row.items()
        if name[0] == "j" and name[1:].isdecimal()
    }
    return Chunk(notes=notes, lost=frozenset(int(place) for place in row.get("lost", ())))


def _places_to_bytes(places: Iterable[int], total: int) -> bytes:
    """A bit for each place."""
    bits = bytearray((total + 7) // 8)
    for place in places:
        bits[place // 8] |= 1 << place % 8
    return bytes(bits)


def _places_from_bytes(bits: bytes) -> Iterable[int]:
    return (8 * at + bit for at, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1)


def _moment(text: str | None) -> datetime | None:
    return from_text(text) if text else None
