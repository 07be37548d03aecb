"""Workflows on a deployed stack, one test per heading of the requirements.

Where an example exists, the test runs the example's file.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.harness import VIGIL, Aws, Client, Key, body_of, eventually, problem
from vigil.local import Stack
from vigil.local.stack import client_config, session
from vigil.workflow import Workflow, all_of, race

EXAMPLES = ROOT / "examples/workflows"

pytestmark = pytest.mark.timeout(300)

Shell: TypeAlias = Callable[..., str]


class JobFailure(Exception):
    """Return the expected error of a job that fails with this code."""


def example(name: str) -> dict[str, Any]:
    """Return the definition in a file of the examples."""
    return Workflow.from_file(EXAMPLES / name).to_dict()


def begin(client: Client, definition: Mapping[str, Any]) -> str:
    """Create a run; return its id."""
    return str(client.post("/v1/workflows", definition, status=202)["workflow_id"])


def run_of(client: Client, *jobs: Mapping[str, Any], **rest: Any) -> str:
    """Create a run of these jobs; return its id."""
    return begin(client, {"name": "test", "jobs": jobs, **rest})


def claimed(client: Client, queue: str = "default", most: int = 1, hold_s: int = 10) -> list[Any]:
    """Claim jobs as a worker, with a short long poll."""
    jobs = client.post(f"/v1/queues/{queue}/claim", {"max": most, "worker": "w"}, prefer=f"wait={hold_s}")["jobs"]
    return list(jobs)


def end(client: Client, job: Any, outcome: Any = None) -> None:
    """End a claimed job: complete it with this result, or fail it."""
    token = {"lease_token": job["lease_token"]}
    if isinstance(outcome, JobFailure):
        client.post(f"/v1/jobs/{job['job_id']}/fail", {**token, "error": {"code": str(outcome), "message": "planned"}})
    else:
        client.post(f"/v1/jobs/{job['job_id']}/complete", {**token, "result": outcome})


def work(
    client: Client,
    workflow_id: str,
    outcomes: Mapping[str, Any] | None = None,
    *,
    queue: str = "default",
    until: tuple[str, ...] = ("completed", "failed", "cancelled"),
) -> list[Any]:
    """Work for a run until it has one of these statuses; return the claimed jobs in order."""
    done: list[Any] = []
    while client.get(f"/v1/workflows/{workflow_id}")["status"] not in until:
        for job in claimed(client, queue, most=10, hold_s=1):
            outcome = (outcomes or {}).get(job["name"])
            end(client, job, outcome(job) if callable(outcome) else outcome)
            done.append(job)
    return done


def names(jobs: list[Any]) -> list[str]:
    return [job["name"] for job in jobs]


def ended(client: Client, workflow_id: str) -> Any:
    """Return the run once it has ended."""
    return eventually(
        lambda: (run := client.get(f"/v1/workflows/{workflow_id}", prefer="wait=5"))["finished_at"] and run, 60
    )


def statuses(client: Client, workflow_id: str) -> dict[str, str]:
    """Return a member of the jobs of a run, by job name."""
    return {job["name"]: job["status"] for job in client.get(f"/v1/workflows/{workflow_id}?page_size=200")["jobs"]}


def history(client: Client, workflow_id: str) -> list[str]:
    return [line["event"] for line in client.get(f"/v1/workflows/{workflow_id}")["events"]]


@pytest.fixture(scope="module", autouse=True)
def nightly(stack: Stack, aws: Aws) -> Iterator[Client]:
    """Create a tenant that runs the schedule of the examples every minute.

    It starts before the first test, because the first fire may take a minute.
    """
    schedule = json.loads((EXAMPLES / "nightly_schedule.json").read_text())
    with Client(stack, aws.key().token) as client:
        made = body_of(client.call("PUT", "/v1/schedules/nightly", schedule), 201)
        assert {moment[11:19] for moment in made["next_times"]} == {"02:00:00"}
        body_of(client.call("PUT", "/v1/schedules/nightly", {**schedule, "cron": "* * * * *"}))
        yield client
        client.call("DELETE", "/v1/schedules/nightly")


@pytest.fixture
def shell(stack: Stack, key: Key, tmp_path: Path) -> Shell:
    """Run a command with the expected exit code; return its output."""
    environment = {"VIGIL_API_URL": stack.api_url, "VIGIL_API_KEY": key.token, "HOME": str(tmp_path), "COLUMNS": "200"}

    def shell(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [VIGIL, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return shell


def test_job_dependencies_set_the_order_of_single_jobs(client: Client) -> None:
    """Core Concepts: Job Dependencies. Standalone jobs run in this order too."""
    first = client.job(job_type="data_processing", payload={"input_file": "raw_data.csv"})
    second = client.job(job_type="data_transformation", payload={"format": "parquet"}, depends_on=[first])
    third = client.job(job_type="data_export", payload={"destination": "s3://bucket/processed/"}, depends_on=[second])
    for expected in (first, second, third):
        (job,) = claimed(client, most=10)
        assert job["job_id"] == expected
        end(client, job)


def test_dependency_status_is_none_waiting_satisfied_or_failed(client: Client) -> None:
    """Core Concepts: Dependency Status: none, waiting, satisfied, failed."""
    run = run_of(
        client,
        {"name": "alone"}, {"name": "breaks"},
        {"name": "after", "depends_on": ["alone"]}, {"name": "doomed", "depends_on": ["breaks"]},
        failure_policy="continue_on_failure",
    )  # fmt: skip

    def seen() -> dict[str, str]:
        return {job["name"]: job["dependency_status"] for job in client.get(f"/v1/workflows/{run}")["jobs"]}

    assert seen() == {"alone": "none", "breaks": "none", "after": "waiting", "doomed": "waiting"}
    work(client, run, {"breaks": JobFailure("X")})
    assert seen() == {"alone": "none", "breaks": "none", "after": "satisfied", "doomed": "failed"}


def test_sequential_jobs_receive_the_result_of_the_job_before(client: Client) -> None:
    """Sequential Workflows: each job depends on the previous one and receives its result."""
    run = begin(client, example("etl_pipeline.yaml"))
    worked = work(client, run, {"extract": {"rows": 3}, "transform": {"rows": 2}, "load": {"loaded": 2}}, queue="etl")
    assert names(worked) == ["extract", "transform", "load"]
    assert [
        {name: (entry["status"], entry["result"]) for name, entry in job["dependencies"].items()} for job in worked[1:]
    ] == [{"extract": ("completed", {"rows": 3})}, {"transform": ("completed", {"rows": 2})}]
    assert worked[0]["payload"]["source"] == "database_table"
    found = client.get(f"/v1/workflows/{run}")
    assert (found["status"], found["result"]) == ("completed", {"loaded": 2})


def test_parallel_jobs_run_at_once_and_the_summary_last(client: Client) -> None:
    """Parallel Workflows: the regions run in parallel, the summary after all of them have succeeded."""
    run = begin(client, example("parallel_processing.yaml"))
    eventually(lambda: client.get(f"/v1/workflows/{run}/stats")["pending"] == 4)
    regions = claimed(client, "regions", most=10)
    assert sorted(job["payload"]["region"] for job in regions) == ["ap-south", "eu-west", "us-east", "us-west"]
    assert {job["job_type"] for job in regions} == {"process_region"}
    for number, job in enumerate(sorted(regions, key=lambda job: str(job["payload"]["region"]))):
        assert client.get(f"/v1/workflows/{run}/stats")["waiting"] == 1
        end(client, job, {"rows": number})
    (summary,) = work(client, run, {"create_summary": {"file": "global_summary.json"}}, queue="regions")
    assert {name: told["result"] for name, told in summary["dependencies"].items()} == {
        "ap_south": {"rows": 0}, "eu_west": {"rows": 1}, "us_east": {"rows": 2}, "us_west": {"rows": 3},
    }  # fmt: skip
    assert client.get(f"/v1/workflows/{run}")["result"] == {"regions": [2, 3, 1, 0], "file": "global_summary.json"}


def test_fan_in_job_receives_the_results_of_all_fan_out_jobs(client: Client) -> None:
    """Fan-out and Fan-in Patterns: one job splits, ten process a part each, one aggregates."""
    run = begin(client, example("fan_out_fan_in.json"))
    chunks = {f"chunk_{number}": {"sum": number} for number in range(10)}
    worked = work(client, run, chunks, queue="chunks")
    assert names(worked)[0] == "split_data"
    assert set(names(worked)[1:-1]) == chunks.keys()
    assert names(worked)[-1] == "aggregate_results"
    assert {name: told["result"] for name, told in worked[-1]["dependencies"].items()} == chunks
    stats = client.get(f"/v1/workflows/{run}/stats")
    assert (stats["total"], stats["completed"], stats["completion_percentage"]) == (12, 12, 100)


def test_job_with_multiple_dependencies_waits_for_all_of_them(client: Client) -> None:
    """Multiple Dependencies: a job waits for all three, in any order."""
    before = ["fetch_data", "load_config", "authenticate"]
    run = run_of(client, *({"name": name} for name in before), {"name": "process_with_deps", "depends_on": before})
    eventually(lambda: client.get(f"/v1/workflows/{run}/stats")["pending"] == 3)
    for job in claimed(client, most=3):
        assert statuses(client, run)["process_with_deps"] == "waiting"
        end(client, job)
    assert names(work(client, run)) == ["process_with_deps"]


@pytest.mark.parametrize(
    ("verdict", "taken", "left"),
    [
        ("valid", "process_valid_data", "handle_invalid_data"),
        ("invalid", "handle_invalid_data", "process_valid_data"),
    ],
)
def test_conditional_dependencies_run_one_branch_and_skip_the_other(
    client: Client, verdict: str, taken: str, left: str
) -> None:
    """Conditional Dependencies: one branch or the other, by the result of the validation."""
    run = begin(client, example("validate_then_branch.yaml"))
    worked = work(client, run, {"validate_input": {"validation_status": verdict}}, queue="branches")
    assert names(worked) == ["validate_input", taken, "report"]
    found = {job["name"]: job for job in client.get(f"/v1/workflows/{run}")["jobs"]}
    assert (found[left]["status"], found[left]["verdict"]["reason"]) == ("skipped", "the condition is false")
    assert client.get(f"/v1/workflows/{run}")["status"] == "completed"


def test_fail_fast_cancels_the_rest_of_the_run_after_the_first_failure(client: Client) -> None:
    """Failure Policies: FailFast, the default: the first failure stops the whole workflow."""
    run = run_of(client, {"name": "job1"}, {"name": "job2", "depends_on": ["job1"]}, {"name": "beside", "queue": "x"})
    assert names(work(client, run, {"job1": JobFailure("DISK_FULL")})) == ["job1"]
    found = client.get(f"/v1/workflows/{run}")
    assert (found["status"], found["failure_policy"]) == ("failed", "fail_fast")
    assert found["error"] == {"code": "JOB_FAILED", "message": "Job job1 failed: DISK_FULL: planned"}
    assert statuses(client, run) == {"job1": "failed", "job2": "cancelled", "beside": "cancelled"}


def test_continue_on_failure_skips_only_dependent_jobs(client: Client) -> None:
    """Failure Policies: ContinueOnFailure: jobs that depend on the failed job are skipped, all others continue."""
    run = begin(client, example("resilient_pipeline.yaml"))
    worked = work(client, run, {"job_a": JobFailure("X")}, queue="resilient")
    assert Counter(names(worked)) == {"job_a": 2, "job_b": 1, "job_c": 1, "clean_up": 1}
    found = client.get(f"/v1/workflows/{run}")
    assert (found["status"], found["error"]["code"]) == ("failed", "JOB_FAILED")
    assert statuses(client, run) == {
        "job_a": "failed", "job_b": "completed", "job_c": "completed", "final": "skipped", "clean_up": "completed",
    }  # fmt: skip
    (skipped,) = (job for job in found["jobs"] if job["name"] == "final")
    assert skipped["verdict"]["inputs"]["failed"] == 1


@pytest.mark.parametrize(
    ("action", "then", "status"),
    [
        ("retry", ["critical", "dependent"], "completed"), ("skip", ["dependent"], "completed"), ("abort", [], "failed")
    ],
)  # fmt: skip
def test_manual_policy_pauses_the_run_until_a_decision(
    client: Client, action: str, then: list[str], status: str
) -> None:
    """Failure Policies: Manual: the workflow pauses for a decision."""
    run = begin(client, example("manual_review_pipeline.yaml"))
    assert names(work(client, run, {"critical": JobFailure("X")}, queue="review", until=("paused",))) == ["critical"]
    assert client.get(f"/v1/workflows/{run}")["undecided"] == ["critical"]
    problem(client.call("POST", f"/v1/workflows/{run}/resume"), 409, "INVALID_TRANSITION")
    client.post(f"/v1/workflows/{run}/decisions", {"job": "critical", "action": action, "note": "seen to"})
    assert names(work(client, run, queue="review")) == then
    found = client.get(f"/v1/workflows/{run}")
    assert found["status"] == status
    assert f"{action} critical" in [line["why"] for line in found["events"]]
    if action == "abort":
        assert found["error"]["code"] == "ABORTED"


def test_run_is_created_read_listed_and_cancelled(client: Client) -> None:
    """Creating and Managing Workflows: description, timeout, priority, status, cancel."""
    told = {"description": "Generate daily sales and analytics reports", "timeout": 7200, "priority": "high"}
    steps = ["extract_sales_data", "generate_report", "send_report_email"]
    jobs = [{"name": name, "depends_on": steps[:at][-1:]} for at, name in enumerate(steps)]
    run = run_of(client, *jobs, name="daily_report_generation", **told)
    eventually(lambda: client.get(f"/v1/workflows/{run}")["status"] == "running")
    found = client.get(f"/v1/workflows/{run}")
    assert {name: found[name] for name in told} == told
    assert {job["priority"] for job in found["jobs"]} == {"high"}
    lasts = datetime.fromisoformat(found["deadline_at"]) - datetime.fromisoformat(found["created_at"])
    assert lasts == timedelta(hours=2)
    (job,) = claimed(client)
    client.call("POST", f"/v1/workflows/{run}/cancel")
    beat = eventually(
        lambda: (
            told := client.post(f"/v1/jobs/{job['job_id']}/heartbeat", {"lease_token": job["lease_token"]})
        )["cancel_requested"] and told
    )  # fmt: skip
    assert beat["status"] == "running"
    end(client, job, JobFailure("STOPPED"))
    assert ended(client, run)["status"] == "cancelled"
    assert set(statuses(client, run).values()) == {"cancelled"}
    listed = client.get("/v1/workflows?status=cancelled&name=daily_report_generation")["workflows"]
    assert [each["workflow_id"] for each in listed] == [run]


def test_workflow_statistics_count_jobs_by_status(client: Client) -> None:
    """Workflow Statistics: the number of jobs per status, and the completion percentage."""
    run = run_of(
        client,
        {"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d", "depends_on": ["a"]}, {"name": "e", "queue": "x"},
        failure_policy="continue_on_failure",
    )  # fmt: skip
    eventually(lambda: client.get(f"/v1/workflows/{run}/stats")["pending"] == 4)
    by_name = {job["name"]: job for job in claimed(client, most=3)}
    end(client, by_name["a"], JobFailure("X"))
    end(client, by_name["b"])

    def as_expected() -> bool:
        stats = client.get(f"/v1/workflows/{run}/stats")
        assert stats == {
            "total": 5, "completed": 1, "failed": 1, "skipped": 1, "cancelled": 0, "waiting": 0, "scheduled": 0,
            "pending": 1, "running": 1, "completion_percentage": 60,
        }  # fmt: skip
        return True

    eventually(as_expected)


def test_waiting_jobs_are_listed_with_their_dependencies(client: Client) -> None:
    """Dependency Storage: the upstream and downstream jobs of a job are listed."""
    run = run_of(client, {"name": "first"}, {"name": "second", "depends_on": ["first"]})
    (waiting,) = client.get("/v1/jobs?dependency_status=waiting")["jobs"]
    assert (waiting["workflow_id"], waiting["name"], waiting["depends_on"]) == (run, "second", ["first"])
    assert waiting["waiting_for"]["jobs"] == ["first"]


def test_claim_returns_only_jobs_with_satisfied_dependencies(client: Client) -> None:
    """Efficient Dependency Queries: a queue hands out only jobs whose dependencies are satisfied."""
    run = run_of(client, {"name": "ready"}, *({"name": f"not_{n}", "depends_on": ["ready"]} for n in range(5)))
    eventually(lambda: client.get(f"/v1/workflows/{run}/stats")["pending"] == 1)
    (job,) = claimed(client, most=10)
    assert job["name"] == "ready"
    assert claimed(client, most=10, hold_s=0) == []
    depth = client.get("/v1/queues/default")["depth"]
    assert (depth["pending"], depth["running"]) == (0, 1)


def test_workflow_commands_create_list_show_draw_cancel_and_retry(client: Client, shell: Shell) -> None:
    """CLI Workflow Commands: create, list, show, dependencies, graph, cancel, retry."""
    run = shell("workflow", "create", "--file", "examples/workflows/etl_pipeline.yaml").strip()
    assert run in shell("workflow", "list")
    assert "etl_pipeline" in shell("workflow", "show", run)
    transform = client.get(f"/v1/workflows/{run}")["jobs"][1]["job_id"]
    neighbours = shell("workflow", "dependencies", transform)
    assert "extract" in neighbours
    assert "load" in neighbours
    for kind, shown in (("dot", "digraph"), ("mermaid", "flowchart LR"), ("json", '"depends_on"'), ("svg", "<svg")):
        assert shown in shell("workflow", "graph", run, "--format", kind)
    shell("workflow", "cancel", run)
    ended(client, run)
    shell("workflow", "retry", run)
    assert names(work(client, run, queue="etl")) == ["extract", "transform", "load"]


def test_every_example_workflow_file_is_valid(shell: Shell, client: Client) -> None:
    """Workflow Configuration File: each file of the examples, in JSON or YAML, is a valid definition."""
    files = [
        path for path in sorted(EXAMPLES.iterdir()) if path.suffix in (".json", ".yaml") and "schedule" not in path.name
    ]
    assert len(files) == 6
    for path in files:
        definition = example(path.name)
        found = client.post("/v1/workflows/validate", definition)
        assert (found["valid"], found["jobs"]) == (True, len(definition["jobs"]))
        assert f"{definition['name']} is valid" in shell("workflow", "validate", "--offline", "--file", str(path))


def test_circular_dependency_is_refused_with_the_cycle_in_the_error(client: Client) -> None:
    """Circular Dependency Detection: the definition is refused with the full cycle."""
    jobs = [{"name": "a", "depends_on": ["c"]}, {"name": "b", "depends_on": ["a"]}, {"name": "c", "depends_on": ["b"]}]
    told = problem(client.call("POST", "/v1/workflows", {"name": "test", "jobs": jobs}), 422, "CIRCULAR_DEPENDENCY")
    assert "a -> b -> c -> a" in told["errors"][0]["detail"] or "a -> c -> b -> a" in told["errors"][0]["detail"]
    assert client.get("/v1/workflows")["workflows"] == []


def test_unknown_dependency_is_refused_with_its_pointer(client: Client) -> None:
    """Dependency Validation: every dependency must exist."""
    jobs = [{"name": "extract"}, {"name": "load", "depends_on": ["extrakt"]}]
    told = problem(client.call("POST", "/v1/workflows", {"name": "test", "jobs": jobs}), 422, "MISSING_DEPENDENCY")
    (wrong,) = told["errors"]
    assert wrong["pointer"] == "/jobs/1/depends_on/0"
    assert "extrakt" in wrong["detail"]


def test_dependencies_precede_priorities_and_ready_jobs_follow_priority(client: Client) -> None:
    """Priorities and Dependencies: a job waits for its dependency of low priority, whatever its own priority is.

    Among ready jobs the priority decides.
    """
    run = run_of(
        client,
        {"name": "low", "priority": "low"},
        {"name": "normal", "depends_on": ["low"]},
        {"name": "critical", "depends_on": ["low"], "priority": "critical"},
    )
    (job,) = claimed(client, most=10)
    assert job["name"] == "low"
    end(client, job)
    eventually(lambda: client.get(f"/v1/workflows/{run}/stats")["pending"] == 2)
    assert [claimed(client)[0]["name"] for _ in range(2)] == ["critical", "normal"]


def test_job_after_a_batch_receives_the_results_of_its_items(client: Client) -> None:
    """Batch Operations with Workflows: a job of many payloads, and a job that sums up."""
    run = run_of(
        client,
        {"name": "process_batch", "batch": [{"n": 1}, {"n": 2}, {"n": 3}]},
        {"name": "summarize", "depends_on": ["process_batch"]},
    )
    items: list[Any] = []
    while len(items) < 3:
        items += (some := claimed(client, most=3))
        for job in some:
            end(client, job, {"squared": job["payload"]["n"] ** 2})
    (summary,) = claimed(client)
    assert summary["name"] == "summarize"
    result = summary["dependencies"]["process_batch"]["result"]
    assert "squared" in json.dumps(result, default=str)
    end(client, summary)
    assert ended(client, run)["status"] == "completed"


def test_trace_and_correlation_ids_of_a_run_are_on_its_jobs_and_events(client: Client, aws: Aws, key: Key) -> None:
    """Distributed Tracing in Workflows: jobs and events have the trace id and the correlation id of the run."""
    ids = {"trace_id": "1-67890abc-0123456789abcdef01234567", "correlation_id": "daily-report-001"}
    with aws.announcements(namespace=[key.namespace]) as announcements:
        run = run_of(client, {"name": "a"}, {"name": "b", "depends_on": ["a"], "trace_id": "own"}, **ids)
        first, second = work(client, run)
        assert {name: first[name] for name in ids} == ids
        assert (second["trace_id"], second["correlation_id"]) == ("own", "daily-report-001")
        eventually(lambda: len(announcements.collect()) >= 3)
        told = {each["subject"]: each for each in announcements.envelopes}
        assert {name: told[run]["data"][name] for name in ids} == ids
        assert {name: told[first["job_id"]]["data"][name] for name in ids} == ids
        assert told[second["job_id"]]["data"]["workflow_id"] == run
    listed = client.get("/v1/workflows?correlation_id=daily-report-001")["workflows"]
    assert [each["workflow_id"] for each in listed] == [run]
    assert len(client.get("/v1/jobs?correlation_id=daily-report-001")["jobs"]) == 2


def test_jobs_of_a_dependency_web_run_in_topological_order(client: Client) -> None:
    """Best Practices: Keep Dependencies Simple. A dense graph runs too, each job after its dependencies."""
    run = run_of(
        client,
        {"name": "job1"}, {"name": "job2", "depends_on": ["job1"]}, {"name": "job3", "depends_on": ["job1"]},
        {"name": "job4", "depends_on": ["job2"]}, {"name": "job5", "depends_on": ["job3", "job2"]},
        {"name": "job6", "depends_on": ["job3"]},
    )  # fmt: skip
    order = names(work(client, run))
    assert sorted(order) == [f"job{number}" for number in range(1, 7)]
    for before, after in (("1", "2"), ("1", "3"), ("2", "4"), ("3", "5"), ("2", "5"), ("3", "6")):
        assert order.index(f"job{before}") < order.index(f"job{after}")


def test_job_names_of_the_definition_appear_in_the_graph(client: Client) -> None:
    """Best Practices: Use Meaningful Names: the names of the definition are on jobs, in the graph and in reasons."""
    steps = ["validate_customer_data", "create_customer_account", "send_welcome_email"]
    jobs = [{"name": name, "depends_on": steps[:at][-1:]} for at, name in enumerate(steps)]
    run = run_of(client, *jobs, name="customer_onboarding_pipeline")
    drawn = client.call("GET", f"/v1/workflows/{run}/graph?format=svg")
    assert drawn.headers["content-type"].startswith("image/svg+xml")
    assert all(name in drawn.text for name in ["customer_onboarding_pipeline", *steps])


def test_retry_policy_of_the_run_applies_to_jobs_without_their_own(client: Client) -> None:
    """Best Practices: Handle Failures Gracefully: a job without a retry policy has that of the run."""
    run = run_of(
        client,
        {"name": "flaky"},
        {"name": "once", "retry": {"max_attempts": 1}},
        retry={"max_attempts": 3, "initial_delay": 0, "max_delay": 300, "multiplier": 2.0, "jitter": False},
        failure_policy="continue_on_failure",
    )
    flaky = lambda job: None if job["attempt"] == 3 else JobFailure("LATER")  # noqa: E731
    worked = work(client, run, {"flaky": flaky, "once": JobFailure("X")})
    assert Counter(names(worked)) == {"flaky": 3, "once": 1}
    assert statuses(client, run) == {"flaky": "completed", "once": "failed"}


def test_run_without_changes_is_announced_as_stalled(client: Client, stack: Stack, aws: Aws, key: Key) -> None:
    """Best Practices: Monitor Workflow Health.

    If no job of a run changes for `health_check_interval`, Vigil announces the run as stalled, with the reason, and the
    run continues.
    """
    with aws.announcements(namespace=[key.namespace], type=["vigil.workflow.stalled"]) as announcements:
        run = run_of(
            client, {"name": "hangs"}, {"name": "after", "depends_on": ["hangs"]}, health_check_interval=1, timeout=900
        )
        (job,) = claimed(client)
        look = json.dumps({"kind": "run", "namespace": key.namespace, "id": run})

        def told() -> list[Any]:
            # The sweeper checks the run once a minute, or on request.
            aws.queues.send_message(QueueUrl=stack.sweeper_queue_url, MessageBody=look)
            return announcements.collect()

        (stalled, *_) = eventually(told, every_s=0.5)
    assert stalled["subject"] == run
    assert stalled["data"]["why"] == "no job has changed for 1 s: 1 running, 1 waiting; first hangs"
    end(client, job)
    assert names(work(client, run)) == ["after"]
    assert "stalled" in history(client, run)


def test_run_of_a_single_job_completes_with_its_result(client: Client) -> None:
    """Best Practices: Use Appropriate Granularity: a run may consist of one job."""
    run = run_of(client, {"name": "extract_customer_data"})
    assert names(work(client, run, {"extract_customer_data": 7})) == ["extract_customer_data"]
    assert client.get(f"/v1/workflows/{run}")["result"] == 7


def test_waiting_job_shows_its_reason_and_dependencies_cannot_be_deleted(client: Client) -> None:
    """Troubleshooting: Common Issues.

    The job shows why it does not start. No job of a run can lose its dependencies or become an orphan.
    """
    run = run_of(client, {"name": "parent"}, {"name": "child", "depends_on": ["parent"]})
    parent, child = client.get(f"/v1/workflows/{run}")["jobs"]
    assert client.get(f"/v1/jobs/{child['job_id']}")["waiting_for"] == {
        "mutex": None, "jobs": ["parent"], "workflow": None,
    }  # fmt: skip
    problem(client.call("DELETE", f"/v1/jobs/{parent['job_id']}"), 409, "INVALID_TRANSITION")
    client.call("POST", f"/v1/workflows/{run}/cancel")
    ended(client, run)
    problem(client.call("DELETE", f"/v1/jobs/{parent['job_id']}"), 409, "INVALID_TRANSITION")
    # A standalone job whose dependency failed or was deleted is not left waiting either.
    lone = client.job()
    orphan = client.job(depends_on=[lone])
    client.post(f"/v1/jobs/{lone}/cancel")
    eventually(lambda: client.get(f"/v1/jobs/{orphan}/status")["status"] == "skipped")


def test_commands_show_dependencies_graph_progress_and_stuck_jobs(client: Client, shell: Shell) -> None:
    """Debugging Workflows: dependencies of a job, the graph, live progress, and stuck jobs."""
    run = begin(client, example("etl_pipeline.yaml"))
    transform = client.get(f"/v1/workflows/{run}")["jobs"][1]["job_id"]
    assert "extract" in shell("job", "show", transform, "--include-dependencies")
    assert "extract" in shell("workflow", "graph", run, "--format", "mermaid")
    stuck = shell("job", "list", "--status", "waiting", "--dependency-status", "waiting")
    assert transform in stuck
    assert "extract" not in stuck
    work(client, run, {"transform": JobFailure("BAD_ROW")}, queue="etl")
    watched = shell("workflow", "status", run, "--watch", code=3)
    assert "etl_pipeline is failed" in watched
    assert "BAD_ROW" in watched


def test_race_cancels_the_loser_and_the_run_completes(client: Client) -> None:
    """The successor sees the first of two jobs that succeeds; the other is cancelled without failing the run."""
    mirrors = ["near", "far"]
    run = run_of(
        client,
        *({"name": name, "queue": name} for name in mirrors),
        {"name": "first", "executor": "join", "depends_on": mirrors, "trigger_rule": "one_success",
         "cancel_losers": True},
        {"name": "use", "depends_on": ["first"]},
    )  # fmt: skip
    end(client, claimed(client, "near")[0], {"from": "near"})
    (use,) = work(client, run)
    assert use["dependencies"]["first"]["result"] == {"from": "near"}
    assert statuses(client, run) == {"near": "completed", "far": "cancelled", "first": "completed", "use": "completed"}
    assert client.get(f"/v1/workflows/{run}")["status"] == "completed"


def test_stopped_supervisor_execution_cancels_its_run(client: Client, stack: Stack) -> None:
    machines = session().client("stepfunctions", endpoint_url=stack.endpoint_url, config=client_config())
    run = run_of(client, {"name": "a"}, {"name": "b", "depends_on": ["a"]})
    (job,) = claimed(client)
    (arn,) = [
        machine["stateMachineArn"]
        for machine in machines.list_state_machines()["stateMachines"]
        if machine["name"] == f"{stack.stack_name}-supervisor"
    ]
    machines.stop_execution(executionArn=f"{arn.replace(':stateMachine:', ':execution:')}:{run}-1-1", cause="by hand")
    eventually(lambda: client.get(f"/v1/jobs/{job['job_id']}")["cancel_requested"], 100)
    end(client, job)
    found = ended(client, run)
    assert found["status"] == "cancelled"
    assert statuses(client, run)["b"] == "cancelled"
    assert "its execution was stopped" in [line["why"] for line in found["events"]]


def test_run_over_its_timeout_fails_and_cancels_its_jobs(client: Client) -> None:
    run = run_of(client, {"name": "slow"}, {"name": "after", "depends_on": ["slow"]}, timeout=2)
    found = ended(client, run)
    assert (found["status"], found["error"]["code"]) == ("failed", "TIMED_OUT")
    lasted = datetime.fromisoformat(found["finished_at"]) - datetime.fromisoformat(found["created_at"])
    assert timedelta(seconds=2) <= lasted < timedelta(seconds=15)
    assert set(statuses(client, run).values()) == {"cancelled"}


def test_paused_run_parks_released_jobs_until_resume(client: Client) -> None:
    run = run_of(client, {"name": "a"}, {"name": "b", "depends_on": ["a"]}, {"name": "c", "depends_on": ["a"]})
    (job,) = claimed(client)
    assert client.post(f"/v1/workflows/{run}/pause")["status"] == "paused"
    end(client, job)

    def held() -> bool:
        jobs = client.get(f"/v1/workflows/{run}")["jobs"]
        return [(job["waiting_for"] or {}).get("workflow") for job in jobs] == [None, run, run]

    eventually(held)
    assert claimed(client, most=10, hold_s=0) == []
    assert client.post(f"/v1/workflows/{run}/resume")["status"] == "running"
    assert sorted(names(work(client, run))) == ["b", "c"]


def test_retried_run_reruns_only_unsuccessful_jobs(client: Client) -> None:
    definition = example("etl_pipeline.yaml")
    run = begin(client, definition)
    work(client, run, {"extract": {"rows": 3}, "transform": JobFailure("X")}, queue="etl")
    assert statuses(client, run) == {"extract": "completed", "transform": "failed", "load": "cancelled"}
    assert client.post(f"/v1/workflows/{run}/retry", {})["generation"] == 2
    again = work(client, run, queue="etl")
    assert names(again) == ["transform", "load"]
    assert again[0]["dependencies"]["extract"]["result"] == {"rows": 3}
    problem(client.call("POST", f"/v1/workflows/{run}/retry", {}), 409, "INVALID_TRANSITION")
    client.post(f"/v1/workflows/{run}/retry", {"from": "transform"})
    assert names(work(client, run, queue="etl")) == ["transform", "load"]
    assert client.get(f"/v1/workflows/{run}")["generation"] == 3


def test_max_concurrency_limits_the_jobs_that_run_at_once(client: Client) -> None:
    run = run_of(client, *({"name": f"job_{number}"} for number in range(12)), max_concurrency=3)
    most, done = 0, 0
    while done < 12:
        stats = client.get(f"/v1/workflows/{run}/stats")
        most = max(most, stats["pending"] + stats["running"])
        jobs = claimed(client, most=10)
        assert len(jobs) <= 3
        for job in jobs:
            end(client, job)
        done += len(jobs)
    assert most <= 3
    assert ended(client, run)["status"] == "completed"


def test_second_step_receives_the_result_of_the_first(client: Client) -> None:
    """Executor requirements: the second step receives the result of the first."""
    workflow = Workflow("compose")
    workflow.job("say_hello", payload={"name": "John"}).then("add_more")
    run = begin(client, workflow.to_dict())
    composed = lambda job: f"{job['dependencies']['say_hello']['result']} (composed)"  # noqa: E731
    work(client, run, {"say_hello": "hello John", "add_more": composed})
    assert client.get(f"/v1/workflows/{run}")["result"] == "hello John (composed)"


def test_race_returns_the_result_of_the_first_job(client: Client) -> None:
    """Executor requirements: three jobs at once; the result is that of the first to succeed."""
    workflow = Workflow("race")
    race(workflow.parallel([{"name": name, "queue": name} for name in ("slow", "fast", "medium")]), name="winner")
    run = begin(client, workflow.to_dict())
    end(client, claimed(client, "fast")[0], "Fast hello")
    found = ended(client, run)
    assert (found["status"], found["result"]) == ("completed", "Fast hello")
    assert statuses(client, run) == {
        "slow": "cancelled", "fast": "completed", "medium": "cancelled", "winner": "completed",
    }  # fmt: skip


def test_all_of_returns_every_result_by_name(client: Client) -> None:
    """Executor requirements: all jobs; the result has all results by name."""
    workflow = Workflow("all")
    all_of(workflow.parallel(["one", "two", "three"]), name="together")
    run = begin(client, workflow.to_dict())
    results = {"one": 1, "two": [2], "three": {"n": 3}}
    work(client, run, results)
    assert client.get(f"/v1/workflows/{run}")["result"] == results


def test_timed_out_job_fails_or_completes_with_its_fallback(client: Client) -> None:
    """Executor requirements: fail after a timeout, or continue with a default value."""
    workflow = Workflow("timeout", failure_policy="continue_on_failure")
    workflow.job("too_slow").with_timeout(1)
    workflow.job("late", queue="late").with_timeout(1).with_fallback("default").then("after")
    run = begin(client, workflow.to_dict())
    (too_slow,), (late,) = claimed(client), claimed(client, "late")
    assert (too_slow["name"], late["name"]) == ("too_slow", "late")
    (after,) = claimed(client, hold_s=20)
    assert after["dependencies"]["late"]["result"] == "default"
    end(client, after)
    found = ended(client, run)
    jobs = {job["name"]: job for job in found["jobs"]}
    assert (jobs["too_slow"]["status"], jobs["too_slow"]["error"]["code"]) == ("failed", "TIMED_OUT")
    assert (jobs["late"]["status"], jobs["late"]["job_health"]) == ("completed", "fallback")
    assert (found["status"], jobs["after"]["status"]) == ("failed", "completed")


@pytest.mark.timeout(600)
@pytest.mark.alone
def test_run_of_a_thousand_parallel_jobs_has_exact_counts(client: Client) -> None:
    """Performance Considerations: a thousand parallel jobs between two others, counted exactly.

    They are joins, which need no worker; each takes about ten reads and writes.
    """
    middle = [f"chunk_{number:03}" for number in range(1000)]
    jobs = [{"name": name, "executor": "join", "depends_on": ["split"]} for name in middle]
    run = run_of(client, {"name": "split"}, *jobs, {"name": "aggregate", "depends_on": middle})
    (split,) = claimed(client)
    assert split["name"] == "split"
    end(client, split, {"rows": 3})
    (aggregate,) = eventually(lambda: claimed(client), 500)
    assert aggregate["name"] == "aggregate"
    stats = client.get(f"/v1/workflows/{run}/stats")
    assert {name: count for name, count in stats.items() if count} == {
        "total": 1002, "completed": 1001, "running": 1, "completion_percentage": stats["completion_percentage"],
    }  # fmt: skip
    end(client, aggregate)
    assert ended(client, run)["status"] == "completed"
    stats = client.get(f"/v1/workflows/{run}/stats")
    assert {name: count for name, count in stats.items() if count} == {
        "total": 1002, "completed": 1002, "completion_percentage": 100,
    }  # fmt: skip


def test_cron_schedule_starts_a_run_with_delayed_jobs(nightly: Client) -> None:
    """Cron Jobs with Dependencies: extract at 2 and report at 8, every day.

    This is the last test, because its first fire may take a minute.
    """
    assert eventually(lambda: nightly.get("/v1/schedules/nightly")["last_run"], 100, every_s=0.5)
    nightly.post("/v1/schedules/nightly/pause")
    (run,) = nightly.get("/v1/workflows?name=nightly")["workflows"]
    (extract,) = claimed(nightly, "nightly")
    assert extract["name"] == "extract"
    end(nightly, extract, {"rows": 3})
    found = nightly.get(f"/v1/workflows/{run['workflow_id']}")
    report = found["jobs"][1]
    assert report["status"] == "scheduled"
    planned = datetime.fromisoformat(report["scheduled_at"]) - timedelta(hours=6)
    assert planned.second == planned.microsecond == 0
    late = datetime.fromisoformat(found["created_at"]) - planned
    assert timedelta(0) <= late < timedelta(seconds=60)
    created = found["events"][0]
    assert (created["event"], created["by"], created["why"]) == ("created", "schedule", "nightly")
    # The same, but six hours are two seconds.
    definition = json.loads((EXAMPLES / "nightly_schedule.json").read_text())["workflow"]
    definition["jobs"][1] |= {"start_delay": 2}
    short = begin(nightly, definition)
    extracted, reported = work(nightly, short, queue="nightly")
    assert (extracted["name"], reported["name"]) == ("extract", "report")
    assert reported["started_at"] >= reported["scheduled_at"]
