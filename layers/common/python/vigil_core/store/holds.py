"""Holds: which job has a `unique_key` or a mutex. Nothing releases one: it is taken over once its holder has ended."""

from __future__ import annotations

from dataclasses import dataclass

from vigil_core.domain.jobs import Job
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, Condition, Put, Table


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Who has a hold. Every taking raises `counter`, so that two takers who saw the same holder cannot both win."""

    kind: keys.HoldKind
    name: str
    job_id: str
    counter: int


@dataclass(frozen=True, kw_only=True)
class HoldClaim:
    """The wish to take a hold that was seen with this counter; 0 when nobody ever had it."""

    kind: keys.HoldKind
    name: str
    seen_counter: int


class HoldStore:
    """Reads holds; they are written in the transaction that stores their job."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def find(self, namespace: str, kind: keys.HoldKind, name: str) -> Hold | None:
        """Who has it, consistently; None when nobody ever had."""
        row = self._table.get(keys.hold(namespace, kind, name))
        return None if row is None else Hold(kind=kind, name=name, job_id=row["job_id"], counter=row["counter"])


def hold_put(job: Job, claim: HoldClaim) -> Put:
    """The write by which a job takes a hold."""
    key = keys.hold(job.namespace, claim.kind, claim.name)
    row = {
        "pk": key.pk,
        "sk": key.sk,
        "entity": "hold",
        "schema_version": 1,
        "job_id": job.job_id,
        "counter": claim.seen_counter + 1,
    }
    unchanged = Condition(
        expression="#counter = :seen", names={"#counter": "counter"}, values={":seen": claim.seen_counter}
    )
    return Put(row=row, condition=ABSENT if claim.seen_counter == 0 else unchanged)
