"""Job types over HTTP: their definition, and their effect on the creation of jobs."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from functools import cache
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.api import Client, Reply, pages
from tests.support.table import TABLE_NAME
from vigil_core import wiring
from vigil_core.api.jobs.job_type_models import parse_job_type
from vigil_core.domain.exact_json import dumps
from vigil_core.domain.jobs.stages import DEFAULT_STAGES
from vigil_core.services.jobs.job_types import put_job_type
from vigil_core.store.jobs.job_types import JobTypeStore
from vigil_core.store.table import DynamoTable, Row

FLASH: dict[str, Any] = {
    "executor": "none",
    "queue": "boards",
    "stages": ["flash", "boot", "test"],
    "defaults": {"priority": "high", "fields": {"arch": "arm64", "lab": "west"}, "tags": ["nightly"]},
    "payload_schema": {"type": "object", "required": ["board"], "properties": {"board": {"type": "string"}}},
    "description": "Flashes a board and boots it",
}
SHOWN = {**FLASH, "name": "flash", "target": None, "stages": ["submit", "flash", "boot", "test", "complete"]}


def put(client: Client, name: str, body: Any = None, **more: Any) -> Reply:
    return client.call("PUT", f"/v1/job-types/{quote(name, safe='')}", {} if body is None else body, **more)


def without_times(job_type: Any) -> Any:
    return {name: value for name, value in job_type.items() if name not in ("created_at", "updated_at")}


class TestDefining:
    def test_put_creates_a_type_once_and_then_returns_it_unchanged(self, client: Client) -> None:
        created = put(client, "flash", FLASH).ok(201)
        assert without_times(created) == SHOWN
        assert created["created_at"] == created["updated_at"]
        assert put(client, "flash", FLASH).ok(200) == created
        assert client.get("/v1/job-types/flash").ok() == created
        assert client.get("/v1/job-types").ok() == {"job_types": [created], "next_page_token": None}

    def test_second_put_replaces_the_whole_type(self, client: Client) -> None:
        created = put(client, "flash", FLASH).ok(201)
        changed = put(client, "flash", {"queue": "q"}).ok(200)
        assert changed["created_at"] == created["created_at"]
        assert changed["updated_at"] >= created["updated_at"]
        assert without_times(changed) == {
            "name": "flash", "executor": "worker", "target": None, "queue": "q", "stages": list(DEFAULT_STAGES),
            "defaults": {}, "payload_schema": None, "description": None,
        }  # fmt: skip
        assert client.get("/v1/job-types/flash").ok() == changed

    def test_null_members_count_as_absent(self, client: Client) -> None:
        created = put(client, "plain").ok(201)
        nothing = dict.fromkeys(FLASH)
        assert put(client, "plain", nothing).ok(200) == created
        assert put(client, "plain", {"defaults": {"queue": None}}).ok(200) == created

    def test_deleted_type_is_not_found(self, client: Client) -> None:
        put(client, "flash", FLASH).ok(201)
        assert client.delete("/v1/job-types/flash").status == 204
        for method in ("GET", "DELETE"):
            gone = client.call(method, "/v1/job-types/flash").problem(404, "JOB_TYPE_NOT_FOUND")
            assert gone["message"] == "Job type flash not found"
        put(client, "flash", FLASH).ok(201)

    @pytest.mark.parametrize(
        "name",
        ["flash test", "größe", "100%", "a+b&c=d", "a#b", '"\\`', "a%b", "..", "x" * 128, "漢" * 128, "{job_type}"],
    )
    def test_name_is_the_decoded_path_segment(self, client: Client, name: str) -> None:
        assert put(client, name).ok(201)["name"] == name
        assert client.get(f"/v1/job-types/{quote(name, safe='')}").ok()["name"] == name
        job = client.create(job_type=name)
        assert job["job_type"] == name

    @pytest.mark.parametrize("name", ["x" * 129, "a\nb", "a\x00", "\x7f"])
    def test_invalid_type_name_is_refused(self, client: Client, name: str) -> None:
        assert put(client, name).pointers() == ["{job_type}"]
        for method in ("GET", "DELETE"):
            client.call(method, f"/v1/job-types/{quote(name)}").problem(404, "JOB_TYPE_NOT_FOUND")

    def test_path_that_is_not_utf8_returns_404(self, client: Client) -> None:
        for path in ("/v1/job-types/%ff", "/v1/job-types/\ud800", "/v1/job-types/%"):
            assert client.get(path).status == 404

    def test_concurrent_puts_create_then_replace_the_type(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two requests find no type. One creates it, and the other then replaces it."""
        find = JobTypeStore.find
        first: list[bool] = []

        def find_during_creation(store: JobTypeStore, namespace: str, name: str) -> Any:
            job_type = find(store, namespace, name)
            if not first:
                first.append(job_type is None)
                other_type = parse_job_type(namespace, name, {"queue": "one"}, wiring.now())
                first.append(put_job_type(wiring.context(), other_type)[1])
            return job_type

        monkeypatch.setattr(JobTypeStore, "find", find_during_creation)
        assert put(client, "flash", {"queue": "two"}).ok()["queue"] == "two"
        assert first == [True, True], "the other request found no type and created it"
        assert client.get("/v1/job-types/flash").ok()["queue"] == "two"


class TestInvalidTypes:
    @pytest.mark.parametrize(
        ("wrong", "pointers"),
        [
            ({"executor": "lambda"}, ["/target"]),
            ({"executor": "http"}, ["/target"]),
            ({"executor": "ssh"}, ["/executor"]),
            ({"queue": ""}, ["/queue"]),
            ({"stages": []}, ["/stages"]),
            ({"stages": "boot"}, ["/stages"]),
            ({"stages": ["a", "", "b\n", 5, "x" * 129]}, ["/stages/1", "/stages/2", "/stages/3", "/stages/4"]),
            ({"stages": [f"s{n}" for n in range(65)]}, ["/stages"]),
            ({"stages": ["a", "incomplete"]}, ["/stages/1"]),
            ({"stages": ["a", "a"]}, ["/stages/1"]),
            ({"stages": ["a", "submit"]}, ["/stages/1"]),
            ({"defaults": []}, ["/defaults"]),
            ({"defaults": {"job_id": "01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e"}}, ["/defaults/job_id"]),
            ({"defaults": {"job_type": "t"}}, ["/defaults/job_type"]),
            ({"defaults": {"idempotency_key": "k"}}, ["/defaults/idempotency_key"]),
            ({"defaults": {"fields": {"status": 1}}}, ["/defaults/fields/status"]),
            ({"defaults": {"mutex": {}}}, ["/defaults/mutex/key"]),
            ({"defaults": {"payload": "x" * 70_000}}, ["/defaults"]),
            ({"payload_schema": True}, ["/payload_schema"]),
            ({"payload_schema": {"type": "objekt"}}, ["/payload_schema/type"]),
            ({"payload_schema": {"description": "x" * 70_000}}, ["/payload_schema"]),
            ({"payload_schema": {"$ref": "https://example.com/s"}}, ["/payload_schema/$ref"]),
            ({"description": "x" * 1_025}, ["/description"]),
            ({"name": "t", "targets": {}}, ["/name", "/targets"]),
        ],
        ids=lambda value: str(value)[:50],
    )
    def test_each_invalid_member_is_named(self, client: Client, wrong: dict[str, Any], pointers: list[str]) -> None:
        reply = put(client, "t", wrong)
        assert reply.pointers() == pointers
        assert len(reply.text) < 2_000
        client.get("/v1/job-types/t").problem(404, "JOB_TYPE_NOT_FOUND")

    @pytest.mark.parametrize(
        ("executor", "target", "pointers"),
        [
            ("worker", {"function": "f"}, ["/target"]),
            (None, {}, ["/target"]),
            ("lambda", {}, ["/target/function"]),
            ("lambda", {"function": "a b", "lease": 9}, ["/target/function", "/target/lease"]),
            ("lambda", {"function": "arn:aws:s3:::bucket"}, ["/target/function"]),
            ("lambda", {"function": "f", "url": "https://a/"}, ["/target/url"]),
            ("http", {}, ["/target/url"]),
            ("http", {"url": "ftp://a/", "headers": {"a b": "x"}}, ["/target/url", "/target/headers/a b"]),
            ("http", {"url": "https://{{payload.host}}/"}, ["/target/url"]),
            ("http", {"url": "https://a.example{{payload.port}}/"}, ["/target/url"]),
            ("http", {"url": "https://me:pw@a.example/"}, ["/target/url"]),
            ("http", {"url": "https://a.example/#{{payload.x}}"}, ["/target/url"]),
            ("http", {"url": "https://a.example/{{nothing}}"}, ["/target/url"]),
            ("http", {"url": "https://a/", "timeout": 841}, ["/target/timeout"]),
            ("http", {"url": "https://a/", "method": "CONNECT"}, ["/target/method"]),
            ("http", {"url": "https://a/", "method": "GET", "body": {}}, ["/target/body"]),
            ("http", {"url": "https://a/", "body": [{"x": "{{payload"}]}, ["/target/body"]),
            ("http", {"url": "https://a/", "headers": {"x": "a\r\nb: c"}}, ["/target/headers/x"]),
            ("http", {"url": "https://a/", "headers": {"Host": "b", "x/y": "{{}}"}}, ["/target/headers/Host"]
             + ["/target/headers/x~1y"] * 2),
            ("http", {"url": "https://a/", "headers": {"x": 1}}, ["/target/headers/x"]),
            ("http", {"url": "https://a/", "body": "x" * 16_384}, ["/target"]),
        ],
    )  # fmt: skip
    def test_each_invalid_member_of_a_target_is_named(
        self, client: Client, executor: str | None, target: Any, pointers: list[str]
    ) -> None:
        assert put(client, "t", {"executor": executor, "target": target}).pointers() == pointers

    def test_job_retains_the_target_of_its_creation(self, client: Client) -> None:
        first = {
            "url": "https://a.example/{{payload.x}}",
            "method": "GET",
            "headers": {"x": "{{job.id}}"},
            "timeout": 9,
        }
        assert put(client, "t", {"executor": "http", "target": first}).ok(201)["target"] == first
        job = client.create(job_type="t", payload={"x": 1})
        put(client, "t", {"executor": "http", "target": {"url": "https://b.example/"}}).ok(200)
        stored = wiring.context().jobs.find(client.namespace, job["job_id"])
        assert stored is not None
        assert stored.target_ref is not None
        assert wiring.context().job_types.target(client.namespace, stored.target_ref) == first
        client.call("POST", f"/v1/jobs/{job['job_id']}/start").problem(409, "INVALID_TRANSITION")

    @pytest.mark.parametrize("body", ["null", "[]", "5", '"text"'])
    def test_json_that_is_not_an_object_is_refused(self, client: Client, body: str) -> None:
        assert client.call("PUT", "/v1/job-types/t", body=body).pointers() == [""]

    @pytest.mark.parametrize("body", ["", "{", "[" * 100_000, '{"payload_schema":' * 5_000, "\ud800"])
    def test_malformed_json_returns_400(self, client: Client, body: str) -> None:
        client.call("PUT", "/v1/job-types/t", body=body).problem(400, "MALFORMED_REQUEST")

    def test_type_of_maximum_size_is_accepted(self, client: Client) -> None:
        schema = {"description": "x" * (64 * 1024 - len(dumps({"description": ""})))}
        defaults = {"payload": "x" * (64 * 1024 - len(dumps({"payload": ""})))}
        stages = [f"{n}".ljust(128, "x") for n in range(62)]
        created = put(client, "large", {"payload_schema": schema, "defaults": defaults, "stages": stages}).ok(201)
        assert client.get("/v1/job-types/large").ok() == created
        assert client.create(job_type="large")["payload"] == defaults["payload"]


class TestLists:
    def test_types_are_listed_by_name_page_by_page(self, client: Client) -> None:
        names = sorted(f"t{n:02}" for n in range(7))
        for name in reversed(names):
            put(client, name).ok(201)
        type_pages = pages(client, "/v1/job-types", page_size=3)
        assert [job_type["name"] for page in type_pages for job_type in page["job_types"]] == names
        assert [len(page["job_types"]) for page in type_pages[:2]] == [3, 3]

    def test_large_types_shorten_the_pages(self, client: Client) -> None:
        large = {"payload_schema": {"description": '"' * 32_000}, "defaults": {"payload": '"' * 32_000}}
        for n in range(40):
            put(client, f"t{n:02}", large).ok(201)
        type_pages = pages(client, "/v1/job-types", page_size=200)
        assert sum(len(page["job_types"]) for page in type_pages) == 40
        assert len(type_pages) > 1

    def test_page_token_is_refused_for_another_list(self, client: Client) -> None:
        for n in range(3):
            put(client, f"t{n}").ok(201)
            client.create()
        token = client.get("/v1/job-types", page_size=1).ok()["next_page_token"]
        other = client.get("/v1/jobs", page_size=1).ok()["next_page_token"]
        for wrong in (token[:-1], f"{token}A", other, "t0", ""):
            assert client.get("/v1/job-types", page_token=wrong).pointers() == ["?page_token"]
        assert client.get("/v1/jobs", page_token=token).pointers() == ["?page_token"]
        assert Client(namespace="other").get("/v1/job-types", page_token=token).pointers() == ["?page_token"]

    def test_types_of_another_namespace_are_neither_listed_nor_applied(self, client: Client) -> None:
        put(client, "flash", FLASH).ok(201)
        other = Client(namespace="other")
        assert other.get("/v1/job-types").ok()["job_types"] == []
        assert other.create(job_type="flash")["queue"] == "default"


class TestCreating:
    def test_created_job_takes_the_defaults_of_its_type(self, client: Client) -> None:
        put(client, "flash", FLASH).ok(201)
        job = client.create(job_type="flash", payload={"board": "aspen"})
        assert (job["queue"], job["priority"], job["tags"]) == ("boards", "high", ["nightly"])
        assert job["fields"] == {"arch": "arm64", "lab": "west"}

    def test_request_overrides_and_merges_the_defaults_of_the_type(self, client: Client) -> None:
        put(client, "flash", FLASH).ok(201)
        job = client.create(
            job_type="flash", payload={"board": "aspen"}, queue="mine", priority="low",
            fields={"lab": "east", "arch": None, "rev": 2}, tags=["mine", "nightly"],
        )  # fmt: skip
        assert (job["queue"], job["priority"], job["tags"]) == ("mine", "low", ["nightly", "mine"])
        assert job["fields"] == {"lab": "east", "rev": 2}

    def test_every_creation_member_may_be_a_default(self, client: Client) -> None:
        defaults = {
            "name": "n", "queue": "q", "priority": "critical", "payload": {"n": Decimal("0.10")},
            "fields": {"a": 1}, "tags": ["t"],
            "unique_key": "u", "mutex": {"key": "m"}, "trace_id": "tr", "correlation_id": "c",
        }  # fmt: skip
        put(client, "all", {"defaults": defaults, "queue": "less than that of the defaults"}).ok(201)
        job = client.create(job_type="all")
        alike = ("name", "queue", "priority", "payload", "fields", "tags", "trace_id", "correlation_id")
        assert {name: job[name] for name in alike} == {name: defaults[name] for name in alike}
        assert client.post("/v1/jobs", {"job_type": "all"}).ok(200)["job_id"] == job["job_id"]
        refused = client.post("/v1/jobs", {"job_type": "all", "unique_key": "another"})
        assert refused.problem(409, "JOB_CREATION_FAILED")["message"] == "Another operation is already running"
        assert client.create(job_type="all", unique_key="another", mutex={"key": "another"})

    def test_payload_of_the_request_replaces_the_default_payload(self, client: Client) -> None:
        put(client, "t", {"defaults": {"payload": {"a": 1, "b": 2}}}).ok(201)
        assert client.create(job_type="t", payload={"a": 3})["payload"] == {"a": 3}
        assert client.create(job_type="t", payload=None)["payload"] == {"a": 1, "b": 2}

    def test_merged_tags_and_fields_over_the_limit_are_refused(self, client: Client) -> None:
        put(client, "t", {"defaults": {"tags": [f"t{n}" for n in range(20)], "fields": {"a": "x" * 20_000}}}).ok(201)
        client.create(job_type="t", tags=["t0"])
        assert client.post("/v1/jobs", {"job_type": "t", "tags": ["one more"]}).pointers() == ["/tags"]
        assert client.post("/v1/jobs", {"job_type": "t", "fields": {"b": "x" * 20_000}}).pointers() == ["/fields"]

    def test_payload_that_violates_the_schema_is_refused(self, client: Client) -> None:
        put(client, "flash", FLASH).ok(201)
        rows = stored()
        assert client.post("/v1/jobs", {"job_type": "flash", "payload": {"board": 5}}).pointers() == ["/payload/board"]
        assert client.post("/v1/jobs", {"job_type": "flash", "payload": {}}).pointers() == ["/payload"]
        assert client.post("/v1/jobs", {"job_type": "flash"}).pointers() == ["/payload"]
        assert stored() == rows

    def test_each_bulk_job_follows_its_own_type(self, client: Client) -> None:
        put(client, "flash", FLASH).ok(201)
        put(client, "plain", {"queue": "p"}).ok(201)
        bodies = [
            {"job_type": "flash", "payload": {"board": "aspen"}}, {"job_type": "flash", "payload": {"board": 5}},
            {"job_type": "plain"}, {"job_type": "unregistered"}, {"job_type": 7}, "no job", {"job_type": "x" * 200},
        ]  # fmt: skip
        results = client.post("/v1/jobs/bulk", {"jobs": bodies}).ok()["results"]
        assert [result["job"]["queue"] for result in results if "job" in result] == ["boards", "p", "default"]
        problems = [
            error["pointer"] for result in results if "problem" in result for error in result["problem"]["errors"]
        ]
        assert problems == ["/jobs/1/payload/board", "/jobs/4/job_type", "/jobs/5", "/jobs/6/job_type"]

    def test_creation_reads_its_types_with_one_request(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        """Check the reads: one consistent read for one creation, one request for all types of a bulk creation."""
        put(client, "flash", FLASH).ok(201)
        reads: list[list[str]] = []
        get, batch_get = DynamoTable.get, DynamoTable.batch_get

        def counted_get(table: DynamoTable, key: Any) -> Row | None:
            reads.extend([[key.pk]] if key.pk == "demo#types" else [])
            return get(table, key)

        def counted_batch_get(table: DynamoTable, keys: Any, *, consistent: bool = True) -> Any:
            if keys[0].pk == "demo#types":
                reads.append([key.pk for key in keys])
                assert consistent
            return batch_get(table, keys, consistent=consistent)

        monkeypatch.setattr(DynamoTable, "get", counted_get)
        monkeypatch.setattr(DynamoTable, "batch_get", counted_batch_get)
        board = {"job_type": "flash", "payload": {"board": "aspen"}}
        client.create(**board)
        assert reads == [["demo#types"]]
        reads.clear()
        client.post("/v1/jobs/bulk", {"jobs": [board] * 50 + [{"job_type": "other"}] * 50}).ok()
        assert reads == [["demo#types"] * 2]

    def test_jobs_of_a_deleted_type_continue_and_new_ones_take_no_defaults(self, client: Client) -> None:
        put(client, "flash", FLASH).ok(201)
        old = client.create(job_type="flash", payload={"board": "aspen"})
        client.delete("/v1/job-types/flash")
        assert client.create(job_type="flash")["queue"] == "default"
        assert client.post(f"/v1/jobs/{old['job_id']}/complete").ok()["status"] == "completed"

    def test_repeated_request_returns_its_job_despite_a_stricter_type(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Repeat a request that created its job and crashed before the response, after its type became stricter."""
        put(client, "flash", {"defaults": {"payload": {"n": 1}}}).ok(201)
        ids = iter([f"01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4{n}" for n in "123456789abcdef"])
        context = replace(wiring.context(), new_id=lambda: next(ids))
        monkeypatch.setattr(wiring, "context", cache(lambda: context))
        wiring.http_api.cache_clear()
        key = {"idempotency-key": "k"}
        body = {"job_type": "flash"}
        with monkeypatch.context() as patched:
            patched.setattr("vigil_core.store.idempotency.IdempotencyStore.save_response", raise_crash)
            assert client.post("/v1/jobs", body, headers=key).status == 500
        put(client, "flash", {"payload_schema": {"type": "string"}}).ok(200)
        pass_minutes(monkeypatch, minutes=10)
        repeated = client.post("/v1/jobs", body, headers=key).ok(202)
        assert repeated["payload"] == {"n": 1}
        assert len(client.get("/v1/jobs").ok()["jobs"]) == 1
        assert client.post("/v1/jobs", body).pointers() == ["/payload"]


class TestStages:
    def test_reports_follow_the_stage_order_of_the_type(self, client: Client) -> None:
        put(client, "flash", {"stages": ["flash", "boot", "test"]}).ok(201)
        path = f"/v1/jobs/{client.running(job_type='flash')['job_id']}"
        assert client.patch(path, {"job_stage": "boot"}).ok()["job_stage"] == "boot"
        client.patch(path, {"job_stage": "flash"}).problem(409, "INVALID_TRANSITION")
        for unknown in ("download", "complete", "incomplete"):
            assert client.patch(path, {"job_stage": unknown}).pointers() == ["/job_stage"]
        assert client.post(f"{path}/complete").ok()["job_stage"] == "complete"

    def test_job_retains_the_stage_order_of_its_creation(self, client: Client) -> None:
        put(client, "flash", {"stages": ["flash", "boot"]}).ok(201)
        old = f"/v1/jobs/{client.running(job_type='flash')['job_id']}"
        put(client, "flash", {"stages": ["boot", "burn"]}).ok(200)
        new = f"/v1/jobs/{client.running(job_type='flash')['job_id']}"
        assert client.patch(old, {"job_stage": "flash"}).ok()
        assert client.patch(old, {"job_stage": "burn"}).pointers() == ["/job_stage"]
        assert client.patch(new, {"job_stage": "burn"}).ok()
        assert client.patch(new, {"job_stage": "flash"}).pointers() == ["/job_stage"]

    def test_waits_follow_the_stage_order_of_the_job(self, client: Client) -> None:
        put(client, "flash", {"stages": ["flash", "boot"]}).ok(201)
        job_id = client.running(job_type="flash")["job_id"]
        client.patch(f"/v1/jobs/{job_id}", {"job_stage": "boot"}).ok()
        now = {"prefer": "wait=0"}
        met = client.post("/v1/waits", {"wait_on": {job_id: {"job_stage": "flash"}}}, headers=now).ok()
        assert (met["status"], met["waited_jobs"]) == ("met", {job_id: {"job_stage": "boot"}})
        refused = client.post("/v1/waits", {"wait_on": {job_id: {"job_stage": "download"}}}, headers=now)
        assert refused.pointers() == [f"/wait_on/{job_id}/job_stage"]
        assert "submit, flash, boot, complete" in refused.text

    def test_pending_job_without_executor_can_be_completed_or_failed(self, client: Client) -> None:
        put(client, "followed", {"executor": "none"}).ok(201)
        completed = client.create(job_type="followed")
        assert client.post(f"/v1/jobs/{completed['job_id']}/complete", {"result": 1}).ok()["status"] == "completed"
        broken = client.create(job_type="followed")
        error = {"error": {"code": "E", "message": "m"}}
        assert client.post(f"/v1/jobs/{broken['job_id']}/fail", error).ok()["status"] == "failed"
        usual = client.create(job_type="usual")
        client.post(f"/v1/jobs/{usual['job_id']}/complete").problem(409, "INVALID_TRANSITION")


def stored() -> int:
    return int(wiring.dynamodb().scan(TableName=TABLE_NAME)["Count"])


def raise_crash(*_: object) -> None:
    raise OSError("the function died")


def pass_minutes(monkeypatch: pytest.MonkeyPatch, *, minutes: int) -> None:
    """Move the clock forward by some minutes."""
    context = wiring.context()
    changed = replace(context, clock=lambda: context.clock() + timedelta(minutes=minutes))
    monkeypatch.setattr(wiring, "context", cache(lambda: changed))
    wiring.http_api.cache_clear()
