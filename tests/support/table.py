"""The table of the template, on moto."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import boto3

from tests.support.quick_moto import install_fast_paths
from tests.support.template import template
from vigil_core.store.table import DynamoTable

TABLE_NAME = "vigil"
OF_A_TABLE = {"BillingMode", "AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "StreamSpecification"}


aws = boto3.client if TYPE_CHECKING else cache(boto3.client)
"""A client. One for all tests: making it takes longer than most of them, and moto gets hold of it all the same."""


def create_table() -> DynamoTable:
    """As the template has it. Call it inside `mock_aws`."""
    install_fast_paths()
    client = aws("dynamodb")
    properties = template()["Resources"]["Table"]["Properties"]
    wanted = {name: value for name, value in properties.items() if name in OF_A_TABLE}
    wanted["StreamSpecification"] = {"StreamEnabled": True, **wanted["StreamSpecification"]}
    client.create_table(TableName=TABLE_NAME, **wanted)
    return DynamoTable(client, TABLE_NAME)
