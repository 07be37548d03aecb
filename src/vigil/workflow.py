"""Workflow definitions: built in Python or read from a file, and validated before they are sent."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, TypedDict, Unpack, cast, get_args

from vigil.errors import VigilError
from vigil.models import Mutex, Retry
from vigil_core.domain.errors import FieldProblem, ValidationFailed, raise_if_any
from vigil_core.domain.jobs.batch import OnItemFailure
from vigil_core.domain.jobs.job import Priority
from vigil_core.domain.jobs.trigger_rules import TriggerRule
from vigil_core.domain.workflows.validation import NodeSpec, graph_problems

FailurePolicy: TypeAlias = Literal["fail_fast", "continue_on_failure", "manual"]


class WorkflowOptions(TypedDict, total=False):
    """The options of a workflow besides its name and its jobs. Times are in seconds.

    `retry`, `priority`, `trace_id` and `correlation_id` are also the defaults of its jobs.
    """

    description: str
    failure_policy: FailurePolicy
    priority: Priority
    timeout: int
    max_concurrency: int
    retry: Retry
    trace_id: str
    correlation_id: str
    health_check_interval: int
    output: str


class JobOptions(TypedDict, total=False):
    """The options of a workflow's job besides its name, type, payload and dependencies. Times are in seconds."""

    queue: str
    priority: Priority
    executor: Literal["join"]
    fields: Mapping[str, Any]
    tags: Sequence[str]
    mutex: Mutex
    condition: str
    trigger_rule: TriggerRule
    cancel_losers: bool
    retry: Retry
    timeout: int
    heartbeat_timeout: int
    scheduled_at: str
    start_delay: int
    fallback: Any
    batch: Sequence[Any]
    on_item_failure: OnItemFailure
    trace_id: str
    correlation_id: str


class Workflow:
    """A workflow definition under construction. `validate` checks it, and `Vigil.create_workflow` sends it."""

    def __init__(self, name: str, **options: Unpack[WorkflowOptions]) -> None:
        self._definition: dict[str, Any] = {"version": "1", "name": name, **options, "jobs": []}

    @property
    def name(self) -> str:
        """The name of the workflow and of its runs."""
        return str(self._definition["name"])

    def job(
        self,
        name: str,
        job_type: str | None = None,
        payload: Any = None,
        *,
        depends_on: After = (),
        **options: Unpack[JobOptions],
    ) -> Part:
        """Add a job that runs after those in `depends_on`. Without `job_type`, its type is its name."""
        job: dict[str, Any] = {"name": name}
        if job_type is not None:
            job["job_type"] = job_type
        if payload is not None:
            job["payload"] = payload
        self._definition["jobs"].append({**job, **options, "depends_on": _names(depends_on)})
        return Part(self, (name,))

    def parallel(self, jobs: Iterable[str | Mapping[str, Any]], *, depends_on: After = ()) -> Part:
        """Add jobs that run in parallel. Each is a name or the arguments of `job` by name."""
        definitions = [{"name": job} if isinstance(job, str) else job for job in jobs]
        parts = [self.job(**{"depends_on": depends_on, **definition}) for definition in definitions]
        return Part(self, tuple(name for part in parts for name in part.names))

    def to_dict(self) -> dict[str, Any]:
        """Return the definition as the API accepts it."""
        return copy.deepcopy(self._definition)

    def to_yaml(self) -> str:
        """Return the definition as YAML for `vigil workflow create`."""
        from vigil.strict_yaml import dumps

        return dumps(self._definition)

    def validate(self) -> None:
        """Validate names, dependencies and conditions as the API does.

        Raises:
            VigilError: The definition is invalid. `errors` lists every problem, with the path of each cycle.
        """
        specs, shape_problems = _node_specs(self._definition)
        try:
            raise_if_any(shape_problems or graph_problems(specs))
        except ValidationFailed as failure:
            errors = [
                {"pointer": problem.pointer, "detail": problem.detail, "code": problem.code}
                for problem in failure.problems
            ]
            raise VigilError(failure.code, failure.message, errors=errors) from failure

    @classmethod
    def from_dict(cls, definition: Mapping[str, Any]) -> Self:
        """Build a workflow from an existing definition. Members unknown to this module are left to the API."""
        workflow = cls(str(definition.get("name", "")))
        workflow._definition = {"jobs": [], **copy.deepcopy(dict(definition))}
        return workflow

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse a definition in JSON or YAML.

        Raises:
            ValueError: The text is neither.
        """
        from vigil.strict_json import loads as parse_json
        from vigil.strict_yaml import loads

        try:
            definition = parse_json(text)
        except json.JSONDecodeError as error:
            if text.lstrip().startswith("{"):
                raise ValueError(f"it is not JSON: {error}") from error
            definition = loads(text)
        if not isinstance(definition, dict):
            raise ValueError("it is not a workflow definition, which begins with `name` and `jobs`")
        return cls.from_dict(definition)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a definition from a JSON or YAML file.

        Raises:
            OSError: The file cannot be read.
            ValueError: The text is neither JSON nor YAML.
        """
        return cls.from_text(Path(path).read_text(encoding="utf-8"))

    def _jobs(self, names: Sequence[str]) -> list[dict[str, Any]]:
        return [job for job in self._definition["jobs"] if job["name"] in names]


@dataclass(frozen=True)
class Part:
    """One or more jobs of a workflow that a later job may depend on.

    The later job runs after all of them have succeeded.
    """

    workflow: Workflow
    names: tuple[str, ...]

    def then(self, name: str, job_type: str | None = None, payload: Any = None, **options: Unpack[JobOptions]) -> Part:
        """Add a job that runs after these."""
        return self.workflow.job(name, job_type, payload, depends_on=self, **options)

    def parallel(self, jobs: Iterable[str | Mapping[str, Any]]) -> Part:
        """Add jobs that run after these, in parallel. Each is a name or the arguments of `Workflow.job` by name."""
        return self.workflow.parallel(jobs, depends_on=self)

    def with_timeout(self, seconds: int) -> Part:
        """Set the longest time of an attempt of each of these jobs."""
        for job in self.workflow._jobs(self.names):
            job["timeout"] = seconds
        return self

    def with_fallback(self, value: Any) -> Part:
        """Set the result that replaces the final failure of each of these jobs. It counts as a success."""
        for job in self.workflow._jobs(self.names):
            job["fallback"] = value
        return self


After: TypeAlias = str | Part | Iterable[str | Part]


def race(parts: After, *, name: str) -> Part:
    """Add a race: the first of these jobs to succeed passes its result on, and the others are cancelled."""
    return _workflow_of(parts).job(
        name, depends_on=parts, executor="join", trigger_rule="one_success", cancel_losers=True
    )


def all_of(parts: After, *, name: str) -> Part:
    """Add a join of these jobs: it passes their results on, by job name."""
    return _workflow_of(parts).job(name, depends_on=parts, executor="join", trigger_rule="all_success")


def _workflow_of(parts: After) -> Workflow:
    for part in [parts] if isinstance(parts, Part) else parts:
        if isinstance(part, Part):
            return part.workflow
    raise ValueError("at least one part of a workflow is needed, not only names")


def _names(parts: After) -> list[str]:
    if isinstance(parts, str):
        return [parts]
    if isinstance(parts, Part):
        return list(parts.names)
    return [name for part in parts for name in _names(part)]


def _node_specs(definition: Mapping[str, Any]) -> tuple[list[NodeSpec], list[FieldProblem]]:
    """Return the nodes of a definition for the graph checks, and the problems of jobs whose types are wrong."""
    problems: list[FieldProblem] = []
    specs: list[NodeSpec] = []

    def check(is_valid: bool, pointer: str, detail: str) -> None:
        if not is_valid:
            problems.append(FieldProblem(pointer=pointer, detail=detail))

    jobs = definition["jobs"]
    check(isinstance(definition.get("name"), str), "/name", "must be text")
    check(isinstance(jobs, list), "/jobs", "must be a list")
    for index, job in enumerate(jobs if isinstance(jobs, list) else []):
        pointer_prefix, problem_count = f"/jobs/{index}", len(problems)
        if not isinstance(job, dict):
            check(False, pointer_prefix, "must be an object")
            continue
        depends_on, rule = job.get("depends_on") or [], job.get("trigger_rule") or "all_success"
        names = isinstance(depends_on, list) and all(isinstance(name, str) for name in depends_on)
        check(isinstance(job.get("name"), str), f"{pointer_prefix}/name", "must be text")
        check(names, f"{pointer_prefix}/depends_on", "must be a list of names")
        check(isinstance(job.get("condition"), str | None), f"{pointer_prefix}/condition", "must be text")
        check(
            rule in get_args(TriggerRule),
            f"{pointer_prefix}/trigger_rule",
            f"must be one of {', '.join(get_args(TriggerRule))}",
        )
        if len(problems) == problem_count:
            specs.append(
                NodeSpec(
                    name=job["name"],
                    depends_on=tuple(depends_on),
                    condition=job.get("condition"),
                    cancel_losers=job.get("cancel_losers") is True,
                    trigger_rule=cast(TriggerRule, rule),
                )
            )
    return specs, problems
