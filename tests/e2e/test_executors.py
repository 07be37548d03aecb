"""Jobs that Vigil runs: Lambda functions that it invokes, HTTP targets that it calls."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Aws, Client, Key, body_of, eventually
from tests.support.http_target import HttpTarget, Reply
from vigil.local import Stack
from vigil.local.stack import client_config, session

TASK_SOURCE = Path(__file__).parent / "task_function.py"
TOKEN = "s3cr3t-of-the-target"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def target() -> Iterator[HttpTarget]:
    with HttpTarget().serving() as serving:
        yield serving


@pytest.fixture
def secrets(stack: Stack) -> Callable[[str, str], None]:
    """Store a secret in Parameter Store and in Secrets Manager."""
    ssm = session().client("ssm", endpoint_url=stack.endpoint_url, config=client_config())
    manager = session().client("secretsmanager", endpoint_url=stack.endpoint_url, config=client_config())

    def put(name: str, value: str) -> None:
        ssm.put_parameter(Name=f"/{name}", Value=value, Type="SecureString", Overwrite=True)
        manager.create_secret(Name=name, SecretString=json.dumps({"token": value}))

    return put


def deploy_task(aws: Aws, name: str, **environment: str) -> str:
    """Deploy a function from `task_function.py` with the stack's layer; return its name."""
    iam = session().client("iam", endpoint_url=aws.stack.endpoint_url, config=client_config())
    trust = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)["Role"]["Arn"]
    allowed = {"Effect": "Allow", "Action": "ssm:GetParameter", "Resource": f"arn:aws:ssm:*:*:parameter/{name}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_role_policy(RoleName=name, PolicyName="key", PolicyDocument=policy)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(TASK_SOURCE, "task_function.py")
    matcher = aws.functions.get_function_configuration(FunctionName=aws.function_names["matcher"])
    aws.functions.create_function(
        FunctionName=name,
        Runtime="python3.11",
        Role=role,
        Handler="task_function.handler",
        Code={"ZipFile": archive.getvalue()},
        Layers=[layer["Arn"] for layer in matcher["Layers"]],
        Timeout=60,
        MemorySize=256,
        Environment={"Variables": {"VIGIL_API_URL": aws.stack.api_url, **environment}},
    )
    return name


@pytest.fixture
def task_function(stack: Stack, aws: Aws, key: Key) -> Iterator[str]:
    """Deploy a function in the test's own namespace; it reads its key from Parameter Store."""
    name = f"{stack.stack_name}-task-{key.namespace}"
    ssm = session().client("ssm", endpoint_url=stack.endpoint_url, config=client_config())
    worker = aws.key("work", namespace=key.namespace)
    ssm.put_parameter(Name=f"/{name}/key", Value=worker.token, Type="SecureString")
    yield deploy_task(aws, name, VIGIL_API_KEY_PARAMETER=f"/{name}/key")
    aws.functions.delete_function(FunctionName=name)


def define(client: Client, name: str, executor: str, target: Any, **more: Any) -> None:
    body_of(client.call("PUT", f"/v1/job-types/{name}", {"executor": executor, "target": target, **more}), 201)


def ended(client: Client, job_id: str, within_s: float = 60) -> Any:
    return eventually(lambda: (job := client.get(f"/v1/jobs/{job_id}"))["finished_at"] and job, within_s)


class TestHttp:
    @pytest.mark.smoke
    def test_http_response_becomes_the_result_of_the_job(
        self, client: Client, key: Key, stack: Stack, target: HttpTarget, secrets: Callable[[str, str], None]
    ) -> None:
        secrets(f"{stack.stack_name}/{key.namespace}/target", TOKEN)
        target.replies("/v1/boxes/a%2Fb", Reply(201, {"id": 7, "size": 1.5}, {"etag": '"1"', "set-cookie": "x=y"}))
        define(
            client,
            "create_box",
            "http",
            {
                "method": "PUT",
                "url": f"{target.url}/v1/boxes/{{{{payload.name}}}}?lab={{{{fields.lab}}}}",
                "headers": {
                    "authorization": "Bearer {{secret:ssm:/target}}",
                    "x-token": "{{secret:secretsmanager:/target#token}}",
                },
                "body": {"size": "{{payload.size}}", "note": "for {{job.type}}"},
            },
        )
        wanted = {"job_type": "create_box", "payload": {"name": "a/b", "size": 1.5}, "fields": {"lab": "x&y"}}
        job = client.post("/v1/jobs", wanted, prefer="wait=20")
        assert (job["status"], job["job_health"]) == ("completed", "success"), job
        assert {**job["result"], "headers": {}} == {"status": 201, "headers": {}, "body": {"id": 7, "size": 1.5}}
        assert job["result"]["headers"] == {"content-type": "application/json", "etag": '"1"'}
        (asked,) = target.recorded
        assert (asked.method, asked.path) == ("PUT", "/v1/boxes/a%2Fb?lab=x%26y")
        assert json.loads(asked.body) == {"size": 1.5, "note": "for create_box"}
        assert (asked.headers["authorization"], asked.headers["x-token"]) == (f"Bearer {TOKEN}", TOKEN)
        assert asked.headers["idempotency-key"] == f"{job['job_id']}.1"

    def test_secrets_and_payload_of_an_http_job_are_not_logged(
        self, aws: Aws, client: Client, key: Key, stack: Stack, target: HttpTarget, secrets: Callable[[str, str], None]
    ) -> None:
        secrets(f"{stack.stack_name}/{key.namespace}/quiet", TOKEN)
        target.replies("/quiet", Reply(400, {"echo": TOKEN}))
        url = f"{target.url}/quiet?q={{{{payload}}}}"
        define(client, "quiet", "http", {"url": url, "headers": {"x": "{{secret:ssm:/quiet}}"}})
        job_id = client.job(job_type="quiet", payload="the-payload-itself")
        assert ended(client, job_id)["error"]["code"] == "HTTP_400"

        def lines() -> list[str]:
            groups = (
                f"/aws/lambda/{stack.stack_name}-{function}" for function in ("http-executor", "matcher", "sweeper")
            )
            pages = (aws.logs.get_paginator("filter_log_events").paginate(logGroupName=group) for group in groups)
            return [event["message"] for page in pages for found in page for event in found["events"]]

        assert eventually(lambda: [line for line in lines() if job_id in line and "HTTP_400" in line])
        assert not [line for line in lines() if TOKEN in line or "the-payload-itself" in line]

    def test_429_is_retried_after_the_delay_of_retry_after(self, client: Client, target: HttpTarget) -> None:
        target.replies("/busy", Reply(429, headers={"retry-after": "3"}), Reply(200, "now"))
        retry = {"max_attempts": 3, "initial_delay": 0}
        define(client, "busy", "http", {"url": f"{target.url}/busy"}, defaults={"retry": retry})
        job = client.post("/v1/jobs", {"job_type": "busy"}, prefer="wait=25")
        assert (job["status"], job["attempt"], job["result"]["body"]) == ("completed", 2, "now"), job
        first, second = target.requests("/busy")
        assert 3 <= second.at - first.at < 8
        assert [asked.headers["idempotency-key"] for asked in (first, second)] == [
            f"{job['job_id']}.{attempt}" for attempt in (1, 2)
        ]

    def test_target_failing_on_every_attempt_fails_the_job(self, client: Client, target: HttpTarget) -> None:
        target.replies("/broken", Reply(500, {"why": "it broke"}))
        retry = {"max_attempts": 2, "initial_delay": 0}
        define(client, "broken", "http", {"url": f"{target.url}/broken"}, defaults={"retry": retry})
        job = client.post("/v1/jobs", {"job_type": "broken"}, prefer="wait=20")
        assert (job["status"], job["attempt"], job["error"]["code"]) == ("failed", 2, "HTTP_500")
        assert "it broke" in job["error"]["message"]
        assert len(target.recorded) == 2

    def test_404_and_redirect_fail_the_job_without_retry(self, client: Client, target: HttpTarget) -> None:
        target.replies("/moved", Reply(302, headers={"location": "http://169.254.169.254/"}))
        retry = {"max_attempts": 3}
        for name, code in (("nowhere", "HTTP_404"), ("moved", "HTTP_302")):
            define(client, name, "http", {"url": f"{target.url}/{name}"}, defaults={"retry": retry})
            job = client.post("/v1/jobs", {"job_type": name}, prefer="wait=20")
            assert (job["status"], job["attempt"], job["error"]["code"]) == ("failed", 1, code)
        assert len(target.recorded) == 2

    def test_request_over_its_timeout_is_retried_then_falls_back(self, client: Client, target: HttpTarget) -> None:
        target.replies("/slow", Reply(200, "late", blocked=True))
        define(client, "slow", "http", {"url": f"{target.url}/slow", "timeout": 1})
        wanted = {"job_type": "slow", "retry": {"max_attempts": 2, "initial_delay": 0}, "fallback": {"rows": 0}}
        job = client.post("/v1/jobs", wanted, prefer="wait=25")
        assert (job["status"], job["attempt"], job["error"]["code"]) == ("completed", 2, "TARGET_UNREACHABLE"), job
        assert (job["job_health"], job["result"]) == ("fallback", {"rows": 0})

    def test_private_addresses_are_refused_as_targets_without_a_request(
        self, client: Client, target: HttpTarget, stack: Stack
    ) -> None:
        refused = ["https://169.254.169.254/latest/meta-data", stack.endpoint_url.replace("127.0.0.1", "localhost")]
        refused += [target.url.replace("127.0.0.1", name) for name in ("localhost", "127.1", "0.0.0.0", "[::1]")]
        for number, url in enumerate(refused):
            body = {"executor": "http", "target": {"url": f"{url}/", "method": "GET"}}
            refusal = body_of(client.call("PUT", f"/v1/job-types/guarded{number}", body), 422)
            assert [each["pointer"] for each in refusal["errors"]] == ["/target/url"], url
        assert target.recorded == []

    def test_paused_queue_dispatches_http_jobs_only_after_resume(self, client: Client, target: HttpTarget) -> None:
        target.replies("/later", Reply(200))
        define(client, "later", "http", {"url": f"{target.url}/later"}, queue="calls")
        client.post("/v1/queues/calls/pause")
        job_id = client.job(job_type="later")
        eventually(lambda: client.get("/v1/queues/calls")["depth"]["pending"] == 1)
        # The matcher processes records in order: once it has processed a later job, it has processed this one.
        define(client, "other", "http", {"url": f"{target.url}/later"})
        assert client.post("/v1/jobs", {"job_type": "other"}, prefer="wait=20")["status"] == "completed"
        assert client.get(f"/v1/jobs/{job_id}/status")["status"] == "pending"
        client.post("/v1/queues/calls/resume")
        assert ended(client, job_id, 30)["status"] == "completed"
        assert client.get("/v1/queues/calls")["depth"]["pending"] == 0

    def test_sweep_dispatches_a_job_whose_stream_record_was_lost(
        self, aws: Aws, client: Client, target: HttpTarget
    ) -> None:
        target.replies("/found", Reply(200))
        define(client, "found", "http", {"url": f"{target.url}/found"})
        with aws.with_fault("matcher", "ignore_events"):
            job_id = client.job(job_type="found")
            eventually(lambda: client.get("/v1/queues/default")["depth"]["pending"] == 1)
            aws.invoke("sweeper", {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}})
            assert ended(client, job_id)["status"] == "completed"


class TestLambda:
    def test_lambda_function_runs_the_job_and_reports_milestones_and_result(
        self, client: Client, task_function: str
    ) -> None:
        define(client, "count", "lambda", {"function": task_function})
        wanted = {"job_type": "count", "payload": {"do": "count", "what": [1, 2, 3]}}
        job = client.post("/v1/jobs", wanted, prefer="wait=25")
        assert (job["status"], job["result"]) == ("completed", {"counted": 3, "attempt": 1}), job
        assert job["milestones"] == ["counted"]
        history = client.get(f"/v1/jobs/{job['job_id']}/events")["events"]
        assert [line["event"] for line in history] == ["created", "claimed", "updated", "completed"]

    def test_lambda_function_receives_a_payload_larger_than_an_event(self, client: Client, task_function: str) -> None:
        define(client, "count", "lambda", {"function": task_function})
        wanted = {"job_type": "count", "payload": {"do": "count", "what": "x" * 300_000}}
        job = client.post("/v1/jobs", wanted, prefer="wait=25")
        assert job["result"] == {"counted": 300_000, "attempt": 1}, job["error"]

    def test_exception_is_retried_and_permanent_exception_is_not(self, client: Client, task_function: str) -> None:
        define(client, "try", "lambda", {"function": task_function})
        retry = {"max_attempts": 3, "initial_delay": 0}
        wanted = {"job_type": "try", "payload": {"do": "fail once"}, "retry": retry}
        job = client.post("/v1/jobs", wanted, prefer="wait=25")
        assert (job["status"], job["attempt"], job["result"]) == ("completed", 2, "then"), job
        final = client.post("/v1/jobs", {**wanted, "payload": {"do": "refuse"}}, prefer="wait=25")
        assert (final["status"], final["attempt"], final["error"]["code"]) == ("failed", 1, "Permanent")
        assert final["error"]["message"] == "never"
        assert "in handler" in final["error"]["traceback"]

    def test_lambda_task_reports_progress_and_stops_on_cancel(self, client: Client, task_function: str) -> None:
        define(client, "long", "lambda", {"function": task_function, "lease": 10})
        job_id = client.job(job_type="long", payload={"do": "wait for a cancel"})
        light = eventually(lambda: (s := client.get(f"/v1/jobs/{job_id}/status"))["progress"] and s, 30)
        assert (float(light["progress"]), light["message"]) == (0.25, "waiting")
        client.post(f"/v1/jobs/{job_id}/cancel", status=202)
        job = ended(client, job_id, 20)
        assert (job["status"], job["job_health"]) == ("cancelled", "cancelled")

    def test_repeated_lambda_event_leaves_the_completed_job_unchanged(
        self, aws: Aws, client: Client, task_function: str
    ) -> None:
        """Invoke the function twice with one event, as Lambda does when it repeats an invocation."""
        define(client, "count", "lambda", {"function": task_function})
        wanted = {"job_type": "count", "payload": {"do": "count", "what": ""}}
        job = client.post("/v1/jobs", wanted, prefer="wait=25")
        event = {
            "job_id": job["job_id"], "job_type": "count", "name": None, "attempt": 1, "payload": wanted["payload"],
            "fields": {}, "tags": [], "lease_token": "stale", "lease": 60, "dependencies": {},
            "payload_omitted": False,
        }  # fmt: skip
        answer = aws.functions.invoke(FunctionName=task_function, Payload=json.dumps(event).encode())
        assert not answer.get("FunctionError")
        assert client.get(f"/v1/jobs/{job['job_id']}") == job

    def test_function_of_vigil_is_refused_as_a_target(self, client: Client, stack: Stack) -> None:
        body = {"executor": "lambda", "target": {"function": f"{stack.stack_name}-admin"}}
        refusal = body_of(client.call("PUT", "/v1/job-types/trespass", body), 422)
        assert [each["pointer"] for each in refusal["errors"]] == ["/target/function"]

    def test_function_that_does_not_exist_fails_the_job(self, client: Client, stack: Stack) -> None:
        define(client, "trespass", "lambda", {"function": f"{stack.stack_name}-task-nobody"})
        job = client.post("/v1/jobs", {"job_type": "trespass", "retry": {}}, prefer="wait=25")
        assert (job["status"], job["error"]["code"]) == ("failed", "FUNCTION_NOT_INVOCABLE"), job
