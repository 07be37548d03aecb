"""Workflow runs on moto. The test delivers the stream, and the supervisor runs in the test's process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from boto3.dynamodb.types import TypeSerializer
from botocore.exceptions import ClientError

from tests.model.moto_table import MotoClient
from tests.support.state_machine import Machine, StateFailed
from tests.support.table import TABLE_NAME
from tests.support.world import KEY, NAMESPACE, World
from vigil_core.api.workflows.models import parse_workflow
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.domain.workflows.run_state import RunState
from vigil_core.services.background.matcher import match_records
from vigil_core.services.jobs import transitions
from vigil_core.services.queues.claim import ClaimRequest, claim_jobs
from vigil_core.services.workflows import commands as runs
from vigil_core.services.workflows import create as create_run
from vigil_core.services.workflows import reconcile as run_reconciler
from vigil_core.services.workflows import supervisor
from vigil_core.store.jobs.job_rows import job_from_row
from vigil_core.store.keys import Key
from vigil_core.store.stream import StreamRecord
from vigil_core.store.table import Action, Check, Delete, DynamoTable, Put, Row, Table, Update
from vigil_core.store.workflows.run_rows import run_from_row

_to_dynamo = TypeSerializer()


class StreamedTable:
    """A table that records the stream records of jobs and runs."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.records: list[StreamRecord] = []
        self.jobs: dict[str, Job] = {}
        """The last stored version of each job by its id."""
        self.runs: dict[str, WorkflowRun] = {}
        """The last stored version of each run by its id."""
        self.on_change: Callable[[Job], None] = lambda _: None
        self._record_count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def put(self, put: Put) -> None:
        self._recording([Key(put.row["pk"], put.row["sk"])], lambda: self._table.put(put))

    def update(self, update: Update) -> Row:
        rows: list[Row] = []
        self._recording([update.key], lambda: rows.append(self._table.update(update)))
        return rows[0]

    def transact(self, actions: Sequence[Action]) -> None:
        touched = [_key_of(action) for action in actions if not isinstance(action, Check | Delete)]
        self._recording(touched, lambda: self._table.transact(actions))

    def record_change(self, key: Key, old: Row | None) -> None:
        """Record the change of a row that was not written through this table."""
        self._record(key, old, self._table.get(key))

    def _recording(self, touched: Sequence[Key], write: Any) -> None:
        touched = [key for key in touched if key.sk == "A" and ("#job#" in key.pk or "#workflow#" in key.pk)]
        before = {key: self._table.get(key) for key in touched}
        try:
            write()
        finally:  # A process that crashes after a write has written.
            for key in touched:
                self._record(key, before[key], self._table.get(key))

    def _record(self, key: Key, old: Row | None, new: Row | None) -> None:
        if new is None or old == new:
            return
        if new["entity"] == "job":
            job = job_from_row(new)
            self.jobs[job.job_id] = job
            self.on_change(job)
        if new["entity"] == "run":
            run = run_from_row(new)
            self.runs[run.workflow_id] = run
        of_job = new["entity"] == "job" and new.get("needs_matching")
        of_run = new["entity"] == "run" and old is not None and new["status"] in ("running", "paused")
        if of_job or of_run:
            self._record_count += 1
            images = {"Keys": _image({"pk": key.pk, "sk": key.sk}), "NewImage": _image(new)}
            change = images if old is None else {**images, "OldImage": _image(old)}
            self.records.append(StreamRecord(sequence_number=str(self._record_count), change=change))


class RunWorld(World):
    """One namespace and its runs. Nothing happens between two calls of `run_until_idle`."""

    def __init__(self, table: DynamoTable) -> None:
        self.table = StreamedTable(table)
        self.delivered: list[StreamRecord] = []
        super().__init__(self.table)
        self.machine = Machine(table=self._for_machine, act=self._act)
        self.ctx = replace(self.ctx, supervisors=self.machine)

    # Runs

    def run(self, *jobs: Mapping[str, Any], **rest: Any) -> str:
        """Create a run and return its id."""
        body = {"name": "test", "jobs": list(jobs), **rest}
        new = parse_workflow(NAMESPACE, body, self.ctx.new_id(), now=self.time, find_types=self.ctx.job_types.find_many)
        return create_run.create_run(self.ctx, NAMESPACE, new, actor=KEY).workflow_id

    def retry(self, workflow_id: str, start: str | None = None) -> None:
        retried = runs.retry(self.ctx, NAMESPACE, workflow_id, from_job=start, actor=KEY)
        create_run.prepare_jobs(self.ctx, retried)

    def find_run(self, workflow_id: str) -> WorkflowRun:
        return runs.find_run(self.ctx, NAMESPACE, workflow_id)

    def run_state(self, workflow_id: str) -> RunState:
        return runs.load_run_state(self.ctx, self.find_run(workflow_id), complete=True)

    def statuses(self, workflow_id: str) -> dict[str, str]:
        """Return the status of each job by its name, read from the job's own row."""
        graph = self.ctx.runs.graph(NAMESPACE, workflow_id)
        return {node.name: self.at(workflow_id, node.name).status for node in graph.nodes}

    def at(self, workflow_id: str, name: str) -> Job:
        job = self.ctx.jobs.find(NAMESPACE, self.id_of(workflow_id, name))
        assert job is not None, name
        return job

    def id_of(self, workflow_id: str, name: str) -> str:
        graph = self.ctx.runs.graph(NAMESPACE, workflow_id)
        return runs.job_id_at(self.ctx, self.find_run(workflow_id), graph.index_of[name])

    def claim(self, queue: str = "default") -> Job | None:
        """Claim one job as a worker. Return None if the queue grants none."""
        request = ClaimRequest(queue=queue, worker="w", limit=1, lease_s=3_600, claim_id=None)
        jobs = claim_jobs(self.ctx, NAMESPACE, request, actor=KEY, until=self.time)
        return jobs[0] if jobs else None

    def work(self, outcomes: Mapping[str, Any] | None = None, *, queue: str = "default") -> list[str]:
        """Run all jobs that workers can claim, until none is left, and return their names in order.

        An outcome is the result of a job, or an exception whose text is the error code.
        """
        names: list[str] = []
        self.run_until_idle()
        while (job := self.claim(queue)) is not None:
            self.finish(job, (outcomes or {}).get(str(job.name)))
            names.append(str(job.name))
            self.run_until_idle()
        return names

    def finish(self, job: Job, outcome: Any = None) -> None:
        assert job.lease is not None
        if isinstance(outcome, Exception):
            error = JobError(code=str(outcome) or "BROKEN", message="it broke")
            self.do(transitions.fail, job.job_id, error, lease_token=job.lease.token)
        else:
            self.do(transitions.complete, job.job_id, result=outcome, lease_token=job.lease.token)

    def run_until_idle(self) -> None:
        """Run supervisors, matcher and fan-out function until nothing is left to do."""
        while self.machine.ready() or self.table.records or self.queues.fan_out_messages:
            self.machine.run()
            self.deliver_stream()
            self.run_fan_out()

    def deliver_stream(self) -> None:
        batch, self.table.records = self.table.records[:100], self.table.records[100:]
        self.delivered += batch
        failed = match_records(self.ctx, batch)
        if failed:
            raise next(iter(failed.values()))

    def reconcile(self, workflow_id: str) -> None:
        run_reconciler.reconcile_run(self.ctx, NAMESPACE, workflow_id)

    def _act(self, event: Mapping[str, Any]) -> Any:
        supervisor.supervise(self.ctx, event)
        return {}

    def _for_machine(self, operation: str, request: Mapping[str, Any]) -> Any:
        key = Key(request["Key"]["pk"]["S"], request["Key"]["sk"]["S"])
        old = self.table.get(key)
        snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in operation)
        try:
            answer = getattr(MotoClient(), snake)(**{**request, "TableName": TABLE_NAME})
        except ClientError as error:
            raise StateFailed(f"DynamoDb.{error.response['Error']['Code']}") from error
        if operation == "updateItem":
            self.table.record_change(key, old)
        return answer


def _key_of(action: Put | Update) -> Key:
    return Key(action.row["pk"], action.row["sk"]) if isinstance(action, Put) else action.key


def _image(row: Row) -> dict[str, Any]:
    return {name: _to_dynamo.serialize(value) for name, value in row.items()}
