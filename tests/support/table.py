"""The table of the template on moto."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import boto3

from tests.support.quick_moto import install_fast_paths
from tests.support.template import template
from vigil_core.store.table import DynamoTable

TABLE_NAME = "vigil"
TABLE_SETTINGS = {"BillingMode", "AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "StreamSpecification"}


aws = boto3.client if TYPE_CHECKING else cache(boto3.client)
"""Return a boto3 client.

All tests share one client for each service, because its creation takes longer than most tests. moto intercepts it in
every test.
"""


def create_table() -> DynamoTable:
    """Create the table as the template defines it. Call it inside `mock_aws`."""
    install_fast_paths()
    client = aws("dynamodb")
    properties = template()["Resources"]["Table"]["Properties"]
    settings = {name: value for name, value in properties.items() if name in TABLE_SETTINGS}
    settings["StreamSpecification"] = {"StreamEnabled": True, **settings["StreamSpecification"]}
    client.create_table(TableName=TABLE_NAME, **settings)
    return DynamoTable(client, TABLE_NAME)
