"""Latency from a job's completion to the release of the next one, compared with Step Functions alone.

Vigil: from the request that completes a job to the `pending` status in the next job's row. Step Functions: a state
machine of two tasks on the same local cloud, from the return of the first function to the start of the second one, by
the functions' own clocks. If the first task waits for a worker, the sample starts when its token is sent back. Samples
are taken in turn, so that load of the machine affects all of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx

from benchmarks.latency import Spread, zipped
from vigil.local import cloud
from vigil.local.stack import Stack, client_config, session
from vigil_core.domain.ids import workflow_job_id
from vigil_core.store import keys

WARM_UP = 3
POLL_INTERVAL_S = 0.003
TIMEOUT_S = 30
SETTLE_S = 0.1
"""The pause between two samples, in which other effects of the last one end."""
ROLE = "arn:aws:iam::000000000000:role/hop"
TASK = """
import time

def handler(event, context):
    began = time.time()
    print("called")
    return {**event, event["step"]: {"began": began, "ended": time.time()}}
"""


Json = dict[str, Any]


class Chain:
    """A run whose jobs form a chain. Each hop completes one job."""

    def __init__(self, stack: Stack, hops: int) -> None:
        self._dynamodb = session().client("dynamodb", endpoint_url=stack.endpoint_url, config=client_config())
        self._table = stack.table_name
        headers = {"Authorization": f"Bearer {stack.api_key}"}
        self._http = httpx.Client(base_url=stack.api_url, headers=headers, timeout=40, trust_env=False)
        self._http.put("/v1/job-types/hop", json={"executor": "none"}).raise_for_status()
        names = [f"job-{number}" for number in range(hops + 1)]
        jobs: list[Json] = [{"name": name, "job_type": "hop"} for name in names]
        for dependency, job in zip(names, jobs[1:], strict=False):
            job["depends_on"] = [dependency]
        answer = self._http.post("/v1/workflows", json={"name": "hops", "jobs": jobs}).raise_for_status().json()
        self._ids = [workflow_job_id(answer["workflow_id"], name) for name in names]
        self._done = 0
        self._wait_until_pending(self._ids[0])

    def hop(self) -> tuple[float, float]:
        """Complete a job and return the seconds until the next job is pending and until the answer."""
        job_id, next_job_id = self._ids[self._done : self._done + 2]
        self._done += 1
        with ThreadPoolExecutor(max_workers=1) as pool:
            started_at = time.perf_counter()
            answered = pool.submit(self._complete, job_id)
            released = self._wait_until_pending(next_job_id)
            return released - started_at, answered.result() - started_at

    def _complete(self, job_id: str) -> float:
        self._http.post(f"/v1/jobs/{job_id}/complete", json={"result": {"rows": 12}}).raise_for_status()
        return time.perf_counter()

    def _wait_until_pending(self, job_id: str) -> float:
        key = keys.job(cloud.NAMESPACE, job_id)
        deadline = time.perf_counter() + TIMEOUT_S
        while time.perf_counter() < deadline:
            item_key = {"pk": {"S": key.pk}, "sk": {"S": key.sk}}
            row = self._dynamodb.get_item(TableName=self._table, Key=item_key, ConsistentRead=True).get("Item", {})
            if row.get("status") == {"S": "pending"}:
                return time.perf_counter()
            time.sleep(POLL_INTERVAL_S)
        raise TimeoutError(f"Job {job_id} was not released within {TIMEOUT_S} s")


class StepFunctionsChain:
    """Two state machines of two tasks. The first task is a Lambda function or a callback; the second one a function."""

    def __init__(self, stack: Stack) -> None:
        functions = session().client("lambda", endpoint_url=stack.endpoint_url, config=client_config())
        name = f"hop-{uuid4().hex[:8]}"
        function = functions.create_function(
            FunctionName=name,
            Runtime="python3.11",
            Role=ROLE,
            Handler="handler.handler",
            Code={"ZipFile": zipped(TASK)},
            Timeout=30,
        )["FunctionArn"]
        self._states = session().client("stepfunctions", endpoint_url=stack.endpoint_url, config=client_config())

        self._queues = session().client("sqs", endpoint_url=stack.endpoint_url, config=client_config())
        self._queue = self._queues.create_queue(QueueName=name)["QueueUrl"]

        def task(step: str, **rest: Any) -> Json:
            parameters = {"step": step, **({} if step == "first" else {"first.$": "$.first"})}
            return {"Type": "Task", "Resource": function, "Parameters": parameters, **rest}

        callback_task = {
            "Type": "Task",
            "Resource": "arn:aws:states:::sqs:sendMessage.waitForTaskToken",
            "Parameters": {"QueueUrl": self._queue, "MessageBody.$": "$$.Task.Token"},
            "TimeoutSeconds": 60,
            "Next": "Second",
        }
        self._functions = self._machine(name, task("first", Next="Second"), task("second", End=True))
        self._outside = self._machine(f"{name}-outside", callback_task, task("second", End=True))

    def hop(self) -> float:
        """Return the seconds from the end of the first function to the start of the second one."""
        output = self._output(self._start(self._functions))
        return float(output["second"]["began"] - output["first"]["ended"])

    def hop_from_outside(self) -> float:
        """Return the seconds from the answer with the first task's token to the start of the second function."""
        execution = self._start(self._outside)
        (message,) = self._queues.receive_message(QueueUrl=self._queue, WaitTimeSeconds=20)["Messages"]
        self._queues.delete_message(QueueUrl=self._queue, ReceiptHandle=message["ReceiptHandle"])
        time.sleep(0.1)
        sent = time.time()
        self._states.send_task_success(taskToken=message["Body"], output='{"first": {}}')
        return float(self._output(execution)["second"]["began"] - sent)

    def _machine(self, name: str, first: Json, second: Json) -> str:
        definition = {"StartAt": "First", "States": {"First": first, "Second": second}}
        created = self._states.create_state_machine(name=name, definition=json.dumps(definition), roleArn=ROLE)
        return created["stateMachineArn"]

    def _start(self, machine: str) -> str:
        return self._states.start_execution(stateMachineArn=machine, input="{}")["executionArn"]

    def _output(self, execution: str) -> Any:
        deadline = time.perf_counter() + TIMEOUT_S
        while time.perf_counter() < deadline:
            description = self._states.describe_execution(executionArn=execution)
            if description["status"] == "SUCCEEDED":
                return json.loads(description["output"])
            assert description["status"] == "RUNNING", description
            time.sleep(0.05)
        raise TimeoutError(f"The execution did not end within {TIMEOUT_S} s")


def measure(stack: Stack, samples: int) -> Mapping[str, Spread]:
    """Take warm samples of each kind in turn."""
    samples_by_name: dict[str, list[float]] = {}
    chain, step_functions = Chain(stack, WARM_UP + samples), StepFunctionsChain(stack)
    for round_number in range(-WARM_UP, samples):
        seconds_by_name = {"native": step_functions.hop(), "native_outside": step_functions.hop_from_outside()}
        time.sleep(SETTLE_S)
        seconds_by_name["release"], seconds_by_name["answered"] = chain.hop()
        time.sleep(SETTLE_S)
        if round_number >= 0:
            for name, seconds in seconds_by_name.items():
                samples_by_name.setdefault(name, []).append(1000 * seconds)
    return {name: Spread(seconds) for name, seconds in samples_by_name.items()}
