"""Puts the parts together: settings, AWS clients, stores, services. Each is built once a process, on first use."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from uuid6 import uuid7

from vigil_core.gateways.functions import LambdaExecutors
from vigil_core.gateways.queues import SqsQueues
from vigil_core.gateways.sns import Topic
from vigil_core.gateways.websocket import WebSockets
from vigil_core.runtime.settings import CoreSettings, NotifierSettings, OutgoingSettings, SocketSettings
from vigil_core.services.context import THREADS, Context, Executors, NoExecutors, Queues
from vigil_core.services.page_tokens import PageTokens
from vigil_core.services.tickets import IssueTicket
from vigil_core.store.api_keys import ApiKeyStore
from vigil_core.store.connections import ConnectionStore
from vigil_core.store.dependencies import DependencyStore
from vigil_core.store.holds import HoldStore
from vigil_core.store.idempotency import IdempotencyStore
from vigil_core.store.job_queues import JobQueueStore
from vigil_core.store.job_types import JobTypeStore
from vigil_core.store.jobs import JobStore
from vigil_core.store.listing import ListingStore
from vigil_core.store.schedule import DueStore
from vigil_core.store.secrets import SecretStore
from vigil_core.store.table import DynamoTable, Table
from vigil_core.store.tickets import TicketStore
from vigil_core.store.waits import WaitStore

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient
    from mypy_boto3_lambda.client import LambdaClient
    from mypy_boto3_sqs.client import SQSClient

    from vigil_core.api.admin import Admin
    from vigil_core.api.http import HttpApi
    from vigil_core.gateways.outgoing import Outgoing
    from vigil_core.gateways.secret_values import SecretValues

CLIENT_CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": 4},
    # A lost packet costs a second, not the minute of the defaults: requests here take milliseconds.
    connect_timeout=1,
    read_timeout=5,
    tcp_keepalive=True,
    max_pool_connections=2 * THREADS,
    # Each would be worked out anew for every request: a tenth of what a request costs in processor time.
    parameter_validation=False,
    user_agent="vigil",
)
# A socket that does not take a message in this time keeps others waiting; the message comes again.
SOCKET_CONFIG = CLIENT_CONFIG.merge(Config(read_timeout=2, retries={"mode": "standard", "total_max_attempts": 2}))


def now() -> datetime:
    """The time."""
    return datetime.now(UTC)


@cache
def dynamodb() -> DynamoDBClient:
    """The client of the table."""
    return boto3.client("dynamodb", config=CLIENT_CONFIG)


@cache
def sqs() -> SQSClient:
    """The client of the queues."""
    return boto3.client("sqs", config=CLIENT_CONFIG)


@cache
def lambda_client() -> LambdaClient:
    """The client of Lambda, for those that dispatch jobs."""
    return boto3.client("lambda", config=CLIENT_CONFIG)


@cache
def queues() -> SqsQueues:
    """The queues of Vigil's own workers."""
    settings = CoreSettings.from_environment()
    return SqsQueues(sqs, pages_url=settings.pages_queue_url, clock_url=settings.clock_queue_url)


@cache
def context() -> Context:
    """What the use cases need."""
    settings = CoreSettings.from_environment()
    executors = LambdaExecutors(lambda_client, settings.caller_function)
    return context_of(DynamoTable(dynamodb(), settings.table_name), queues(), executors)


def context_of(table: Table, queues: Queues, executors: Executors | None = None) -> Context:
    """A context over any table."""
    return Context(
        jobs=JobStore(table),
        job_types=JobTypeStore(table),
        dependencies=DependencyStore(table),
        holds=HoldStore(table),
        waits=WaitStore(table),
        idempotency=IdempotencyStore(table),
        listing=ListingStore(table),
        due=DueStore(table),
        job_queues=JobQueueStore(table),
        connections=ConnectionStore(table),
        queues=queues,
        executors=executors or NoExecutors(),
        clock=now,
        new_id=lambda: str(uuid7()),
    )


@cache
def api_keys() -> ApiKeyStore:
    """The API keys."""
    return ApiKeyStore(DynamoTable(dynamodb(), CoreSettings.from_environment().table_name))


@cache
def web_sockets() -> WebSockets:
    """The open WebSockets."""
    endpoint = SocketSettings.from_environment().websocket_endpoint
    return WebSockets(boto3.client("apigatewaymanagementapi", endpoint_url=endpoint, config=SOCKET_CONFIG))


@cache
def topic() -> Topic:
    """The topic for everybody outside."""
    return Topic(boto3.client("sns", config=CLIENT_CONFIG), NotifierSettings.from_environment().topic_arn)


@cache
def outgoing() -> Outgoing:
    """The guarded way to addresses that users name."""
    from vigil_core.gateways.outgoing import Outgoing

    return Outgoing(OutgoingSettings.from_environment().allowed_private_hosts)


@cache
def secret_values() -> SecretValues:
    """The secrets that targets name."""
    from vigil_core.gateways.secret_values import SecretValues
    from vigil_core.runtime.settings import CallerSettings

    return SecretValues(
        cache(lambda: boto3.client("ssm", config=CLIENT_CONFIG)),
        cache(lambda: boto3.client("secretsmanager", config=CLIENT_CONFIG)),
        prefix=CallerSettings.from_environment().secrets_prefix,
        monotonic=time.monotonic,
    )


@cache
def http_api() -> HttpApi:
    """The HTTP API."""
    # Imported here, for no other function serves it.
    from vigil_core.api.http import HttpApi
    from vigil_core.api.operation import Services
    from vigil_core.api.routes import OPERATIONS

    table = DynamoTable(dynamodb(), CoreSettings.from_environment().table_name)
    services = Services(
        context=context(),
        page_tokens=PageTokens(secrets=SecretStore(table), random_bytes=secrets.token_bytes),
        issue_ticket=IssueTicket(tickets=TicketStore(table), now=now, random_hex=secrets.token_hex),
    )
    return HttpApi(services, OPERATIONS)


@cache
def admin() -> Admin:
    """What operators may ask for."""
    from vigil_core.api.admin import Admin
    from vigil_core.gateways.dead_letter_bucket import DeadLetterBucket
    from vigil_core.gateways.dead_letter_queue import DeadLetterQueue
    from vigil_core.gateways.functions import PATIENTLY, Functions
    from vigil_core.runtime.settings import AdminSettings
    from vigil_core.services.dead_letters import DeadLetters
    from vigil_core.services.disconnect_key import DisconnectKey
    from vigil_core.services.manage_keys import ManageKeys

    its = AdminSettings.from_environment()
    dead_letters = DeadLetters(
        bucket=DeadLetterBucket(boto3.client("s3", config=CLIENT_CONFIG), its.dead_letter_bucket),
        queues={
            "pages": DeadLetterQueue(sqs(), dead_url=its.pages_dead_letter_queue_url, home_url=its.pages_queue_url),
            "clock": DeadLetterQueue(sqs(), dead_url=its.clock_dead_letter_queue_url, home_url=its.clock_queue_url),
        },
        functions=Functions(boto3.client("lambda", config=PATIENTLY)),
        consumers=[its.matcher_function, its.notifier_function],
        now=now,
    )
    disconnect = DisconnectKey(connections=context().connections, sockets=web_sockets())
    keys = ManageKeys(api_keys=api_keys(), disconnect=disconnect, now=now, random_hex=secrets.token_hex)
    return Admin(keys=keys, dead_letters=dead_letters)
