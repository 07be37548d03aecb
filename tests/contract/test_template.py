"""The template's promises: which identity may call and do what, and that no failure is silent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.template import resources, template
from vigil_core.services import fair_shares

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = resources("AWS::Serverless::Function")
OPEN_ROUTES = {"GET /openapi.json", "$default"}


def routes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Return every HTTP route with its event's properties."""
    for function in FUNCTIONS.values():
        for event in function.get("Events", {}).values():
            if event["Type"] == "HttpApi":
                properties = event["Properties"]
                yield f"{properties['Method']} {properties['Path']}" if "Path" in properties else "$default", properties


def statements(function: str) -> list[dict[str, Any]]:
    return [statement for policy in FUNCTIONS[function]["Policies"] for statement in policy["Statement"]]


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def consumer(mapping: dict[str, Any]) -> dict[str, Any]:
    """Return the function of an event source mapping."""
    return FUNCTIONS[mapping["FunctionName"]["Ref"]]


def test_every_function_folder_is_deployed() -> None:
    folders = {path.parent.name for path in (ROOT / "functions").glob("*/handler.py")}
    deployed = {Path(function["CodeUri"]).name for function in FUNCTIONS.values()}
    assert folders <= deployed


def test_only_the_open_routes_skip_authorization() -> None:
    http = resources("AWS::Serverless::HttpApi")["HttpApi"]
    assert http["Auth"]["DefaultAuthorizer"] in http["Auth"]["Authorizers"]
    open_ = {route for route, properties in routes() if properties.get("Auth") == {"Authorizer": "NONE"}}
    assert open_ == OPEN_ROUTES
    assert all("Auth" not in properties for route, properties in routes() if route not in OPEN_ROUTES)


def test_authorizer_cache_lasts_at_most_one_minute() -> None:
    (authorizer,) = resources("AWS::Serverless::HttpApi")["HttpApi"]["Auth"]["Authorizers"].values()
    assert authorizer["Identity"]["ReauthorizeEvery"] <= 60


def test_websocket_connect_requires_the_authorizer() -> None:
    by_key = {route["RouteKey"]: route for route in resources("AWS::ApiGatewayV2::Route").values()}
    assert set(by_key) == {"$connect", "$disconnect", "$default"}
    assert by_key["$connect"]["AuthorizationType"] == "CUSTOM"


def test_route_throttles_name_existing_routes() -> None:
    known = {route for route, _ in routes()}
    assert set(resources("AWS::Serverless::HttpApi")["HttpApi"]["RouteSettings"]) <= known


@pytest.mark.parametrize("function", FUNCTIONS)
def test_role_statements_spell_out_actions_and_resources(function: str) -> None:
    for statement in statements(function):
        for action in listed(statement["Action"]):
            assert re.fullmatch(r"[a-z0-9-]+:[A-Za-z]+", action), "an action is spelled out"
        for resource in listed(statement["Resource"]):
            # These two actions take no resource: https://docs.aws.amazon.com/service-authorization/latest/reference/
            assert resource != "*" or statement["Action"] in ("dynamodb:ListStreams", "states:SendTaskSuccess")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_environment_matches_the_rights_of_its_role(function: str) -> None:
    """Note: a queue, topic or bucket in the environment has a permission, and each permission has a variable."""
    told = json.dumps(FUNCTIONS[function].get("Environment", {}))
    allowed = json.dumps(statements(function))
    for name in ("FanOutQueue", "SweeperQueue", "Topic"):
        assert (f'{{"Ref": "{name}"}}' in told) == (f'"{name}' in allowed), name
    assert ("ManageConnections" in allowed) == ("WEBSOCKET_ENDPOINT" in told)
    assert ("DeadLetterBucket" in allowed) == ("DEAD_LETTER_BUCKET" in told)
    assert ("${PayloadBucket.Arn}/payloads/*" in allowed) == ("PAYLOAD_BUCKET" in told)


@pytest.mark.parametrize("mapping", resources("AWS::Lambda::EventSourceMapping"))
def test_event_source_mappings_report_partial_batch_failures(mapping: str) -> None:
    its = resources("AWS::Lambda::EventSourceMapping")[mapping]
    assert its["BatchSize"] == 1 or its["FunctionResponseTypes"] == ["ReportBatchItemFailures"]


def test_discarded_stream_batch_is_stored_in_the_dead_letter_bucket() -> None:
    streams = [m for m in resources("AWS::Lambda::EventSourceMapping").values() if "StartingPosition" in m]
    assert len(streams) == 2
    for mapping in streams:
        assert mapping["DestinationConfig"]["OnFailure"]["Destination"] == {"Fn::GetAtt": "DeadLetterBucket.Arn"}
        assert mapping["BisectBatchOnFunctionError"]
        assert 0 < mapping["MaximumRetryAttempts"] < 100
        assert mapping["MaximumRecordAgeInSeconds"] < 24 * 3600, "the stream itself forgets after a day, in silence"
        for pattern in mapping["FilterCriteria"]["Filters"]:
            assert json.loads(pattern["Pattern"])["eventName"] == ["INSERT", "MODIFY"], "TTL's removals are no news"


def test_namespace_has_at_most_half_of_the_concurrency_of_its_work() -> None:
    mappings = resources("AWS::Lambda::EventSourceMapping")
    concurrency = mappings["FanOutMessages"]["ScalingConfig"]["MaximumConcurrency"]
    assert concurrency == fair_shares.FAN_OUT_CONCURRENCY
    invocations = mappings["WebhookMessages"]["ScalingConfig"]["MaximumConcurrency"]
    assert invocations == fair_shares.WEBHOOK_INVOCATIONS >= 2 * fair_shares.WEBHOOK_INVOCATIONS_PER_NAMESPACE
    groups = {fair_shares.fan_out_group("team", f"entity-{n}", n % 7) for n in range(1_000)}
    assert len(groups) <= concurrency // 2


def test_queue_visibility_timeout_is_six_times_the_function_timeout() -> None:
    queues = resources("AWS::SQS::Queue")
    for mapping in resources("AWS::Lambda::EventSourceMapping").values():
        if "StartingPosition" in mapping:
            continue
        queue = queues[mapping["EventSourceArn"]["Fn::GetAtt"].removesuffix(".Arn")]
        # https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html
        assert queue["VisibilityTimeout"] >= 6 * consumer(mapping)["Timeout"]
        dead = queues[queue["RedrivePolicy"]["deadLetterTargetArn"]["Fn::GetAtt"].removesuffix(".Arn")]
        assert dead["MessageRetentionPeriod"] == 14 * 24 * 3600


def test_table_and_buckets_are_retained_when_the_stack_is_deleted() -> None:
    for name in ("Table", "PayloadBucket", "DeadLetterBucket"):
        resource = template()["Resources"][name]
        assert (resource["DeletionPolicy"], resource["UpdateReplacePolicy"]) == ("Retain", "Retain")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_log_groups_have_a_retention_period(function: str) -> None:
    group = FUNCTIONS[function]["LoggingConfig"]["LogGroup"]["Ref"]
    logs = resources("AWS::Logs::LogGroup")[group]
    assert logs["RetentionInDays"] == {"Ref": "LogRetentionDays"}
    folder = Path(FUNCTIONS[function]["CodeUri"]).name.replace("_", "-")
    assert logs["LogGroupName"] == {"Fn::Sub": f"/aws/lambda/${{AWS::StackName}}-{folder}"}


def test_every_template_parameter_is_used() -> None:
    text = (ROOT / "template.yaml").read_text()
    for parameter in template()["Parameters"]:
        assert len(re.findall(rf"!Ref {parameter}\b|\${{{parameter}}}", text)) >= 1, parameter


def test_environment_variables_match_the_settings() -> None:
    """Note: a variable that no code reads, or that no function sets, is a mistake."""
    settings = (ROOT / "layers/common/python/vigil_core/runtime/settings.py").read_text()
    read = set(re.findall(r'(?:setting|environ\.get)\("([A-Z_]+)"', settings))
    everywhere = template()["Globals"]["Function"]["Environment"]["Variables"]
    set_ = set(everywhere).union(*(f.get("Environment", {}).get("Variables", {}) for f in FUNCTIONS.values()))
    of_the_libraries = {"AWS_ENDPOINT_URL", "LOG_LEVEL", "POWERTOOLS_SERVICE_NAME"}
    assert read == set_ - of_the_libraries
