"""No function has a superfluous right. The stack enforces roles, so every passing test proves that they suffice."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.harness import Aws, Client, Key
from vigil.local import Stack
from vigil.local.stack import client_config, session


def attempts(stack: Stack, key: Key, matcher: str, alarms: str) -> dict[str, list[Any]]:
    """The calls that only the functions listed in `ALLOWED` may make."""
    row = {"pk": {"S": f"{key.namespace}#trespass"}, "sk": {"S": "A"}}
    table = {"TableName": stack.table_name}
    event = {"InvocationType": "Event", "Payload": "{}"}
    one_row = {"KeyConditionExpression": "pk = :pk", "ExpressionAttributeValues": {":pk": row["pk"]}}
    return {
        "read a row": ["dynamodb", "get_item", {**table, "Key": row}],
        "write a row": ["dynamodb", "put_item", {**table, "Item": row}],
        "scan": ["dynamodb", "scan", table],
        "drop the table": ["dynamodb", "delete_table", table],
        "send a page": [
            "sqs",
            "send_message",
            {
                "QueueUrl": stack.fan_out_queue_url,
                "MessageBody": '{"kind": "register_page", "namespace": "nobody", "wait_id": "none", "page": 0,'
                '"sent_at": ""}',
                "MessageGroupId": "trespass",
                "MessageDeduplicationId": key.namespace,
            },
        ],
        "list dead letters": ["s3", "list_objects_v2", {"Bucket": stack.dead_letter_bucket}],
        "run the matcher": ["lambda", "invoke", {"FunctionName": matcher, "Payload": '{"Records": []}'}],
        "arm an alarm": [
            "scheduler",
            "create_schedule",
            {
                "Name": key.key_id,
                "GroupName": alarms,
                "ScheduleExpression": "at(2099-01-01T00:00:00)",
                "FlexibleTimeWindow": {"Mode": "OFF"},
                "Target": {"Arn": matcher, "RoleArn": matcher},
            },
        ],
        "start a supervisor": [
            "stepfunctions",
            "start_execution",
            {
                "stateMachineArn": matcher.replace(":lambda:", ":states:").replace(
                    ":function:vigil-matcher", ":stateMachine:vigil-supervisor"
                ),
                "name": key.key_id,
                "input": '{"pk": "nobody#workflow#none", "namespace": "nobody", "workflow_id": "none"}',
            },
        ],
        "see what is due": ["dynamodb", "query", {**table, "IndexName": "due", **one_row}],
        "call a target": ["lambda", "invoke", {"FunctionName": matcher.replace("matcher", "http_executor"), **event}],
        "run a task": ["lambda", "invoke", {"FunctionName": matcher.replace("matcher", "task-trespass"), **event}],
        "read a secret for targets": ["ssm", "get_parameter", {"Name": f"/{stack.stack_name}/trespass"}],
        "read any secret": ["ssm", "get_parameter", {"Name": "/somebody/else"}],
    }


ALLOWED = {
    "authorizer": {"read a row"},
    "api": {"read a row", "write a row", "send a page", "see what is due", "arm an alarm", "start a supervisor"},
    "websocket": {"read a row", "write a row", "send a page"},
    "http_executor": {"read a row", "write a row", "read a secret for targets"},
    "supervisor": {"read a row", "write a row", "send a page", "start a supervisor"},
    "notifier": {"read a row", "write a row", "list dead letters", "send a page"},
    "webhooks": {"read a row", "write a row"},
    "admin": {
        *(
            "read a row",
            "write a row",
            "scan",
            "list dead letters",
            "run the matcher",
            "send a page",
            "see what is due",
        ),
    },
}


@pytest.mark.parametrize("function", ALLOWED)
def test_function_role_denies_every_call_outside_its_needs(
    function: str, stack: Stack, aws: Aws, client: Client, key: Key
) -> None:
    ssm = session().client("ssm", endpoint_url=stack.endpoint_url, config=client_config())
    for name in (f"/{stack.stack_name}/trespass", "/somebody/else"):
        ssm.put_parameter(Name=name, Value="x", Type="String", Overwrite=True)
    with aws.with_fault(function, "trespass"):
        answers = aws.invoke(function, attempts(stack, key, aws.function_names["matcher"], aws.timer_group))
    assert {name for name, answer in answers.items() if answer == "allowed"} <= ALLOWED[function], answers
    refused = {answer for name, answer in answers.items() if name not in ALLOWED[function]}
    assert all("AccessDenied" in code for code in refused), answers
    assert client.get("/v1/jobs")["jobs"] == [], "itself again"
