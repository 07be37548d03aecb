"""The table of the template, on moto."""

from __future__ import annotations

import boto3

from tests.support.template import template
from vigil_core.store.table import DynamoTable

TABLE_NAME = "vigil"
OF_A_TABLE = {"BillingMode", "AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "StreamSpecification"}


def create_table() -> DynamoTable:
    """As the template has it. Call it inside `mock_aws`."""
    client = boto3.client("dynamodb")
    properties = template()["Resources"]["Table"]["Properties"]
    wanted = {name: value for name, value in properties.items() if name in OF_A_TABLE}
    wanted["StreamSpecification"] = {"StreamEnabled": True, **wanted["StreamSpecification"]}
    client.create_table(TableName=TABLE_NAME, **wanted)
    return DynamoTable(client, TABLE_NAME)
