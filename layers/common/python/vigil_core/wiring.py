"""Construction of settings, AWS clients, stores and services: each is built once per process, on first use."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from uuid6 import uuid7

from vigil_core.domain.jobs.retention import DEFAULT_RETENTION
from vigil_core.gateways.eventbridge_scheduler import SchedulerTimers
from vigil_core.gateways.lambda_functions import LambdaExecutors, LambdaStreamConsumers
from vigil_core.gateways.payload_bucket import PayloadBucket
from vigil_core.gateways.sns import SnsTopic
from vigil_core.gateways.sqs import SqsQueues
from vigil_core.gateways.step_functions import StepFunctionsSupervisors
from vigil_core.gateways.websocket import WebSockets
from vigil_core.runtime.settings import (
    DEFAULT_CONCURRENCY,
    CoreSettings,
    NotifierSettings,
    OutboundSettings,
    StreamConsumerSettings,
    WebSocketSettings,
)
from vigil_core.services.auth.context import AuthContext
from vigil_core.services.context import Context
from vigil_core.services.page_tokens import PageTokens
from vigil_core.services.parallel import POOL_THREADS
from vigil_core.services.ports import (
    DeadLetterWriter,
    Executors,
    MessageQueues,
    NoExecutors,
    NoStreamConsumers,
    NoSupervisors,
    StreamConsumers,
    Supervisors,
    Timers,
)
from vigil_core.store.auth.api_keys import ApiKeyStore
from vigil_core.store.auth.tickets import TicketStore
from vigil_core.store.connections import ConnectionStore
from vigil_core.store.due_index import DueStore
from vigil_core.store.idempotency import IdempotencyStore
from vigil_core.store.jobs.batches import BatchStore
from vigil_core.store.jobs.dependencies import DependencyStore
from vigil_core.store.jobs.job_types import JobTypeStore
from vigil_core.store.jobs.jobs import JobStore
from vigil_core.store.jobs.payloads import PayloadStore
from vigil_core.store.limits import LimitStores
from vigil_core.store.listing import ListingStore
from vigil_core.store.locks import LockStore
from vigil_core.store.postponed_records import PostponedRecordStore
from vigil_core.store.queues import QueueStore
from vigil_core.store.schedules import ScheduleStore
from vigil_core.store.signing_keys import SigningKeyStore
from vigil_core.store.table import DynamoTable, Table
from vigil_core.store.waits.waits import WaitStore
from vigil_core.store.webhooks import WebhookStore
from vigil_core.store.work_slots import WorkSlotStore
from vigil_core.store.workflows.runs import RunStore

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient
    from mypy_boto3_lambda.client import LambdaClient
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_scheduler.client import EventBridgeSchedulerClient
    from mypy_boto3_sqs.client import SQSClient
    from mypy_boto3_stepfunctions.client import SFNClient

    from vigil_core.api.admin import Admin
    from vigil_core.api.app import HttpApi
    from vigil_core.domain.exact_json import JsonValue
    from vigil_core.domain.jobs.job import NewJob
    from vigil_core.domain.workflows.run import NewWorkflowRun
    from vigil_core.gateways.outbound_http import OutboundHttpClient
    from vigil_core.gateways.secrets_manager import SecretValues

CLIENT_CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": 4},
    # A lost packet costs a second instead of the default minute: these requests take milliseconds.
    connect_timeout=1,
    read_timeout=5,
    tcp_keepalive=True,
    max_pool_connections=2 * POOL_THREADS,
    # The validation of parameters takes a tenth of the processor time of a request.
    parameter_validation=False,
    user_agent="vigil",
)
# A slow socket delays the messages to others. If a send times out, the stream record is delivered again.
SOCKET_CONFIG = CLIENT_CONFIG.merge(Config(read_timeout=2, retries={"mode": "standard", "total_max_attempts": 2}))


def now() -> datetime:
    """Return the current time."""
    return datetime.now(UTC)


@cache
def dynamodb() -> DynamoDBClient:
    """Build the client of DynamoDB."""
    return boto3.client("dynamodb", config=CLIENT_CONFIG)


@cache
def sqs() -> SQSClient:
    """Build the client of SQS."""
    return boto3.client("sqs", config=CLIENT_CONFIG)


@cache
def lambda_client() -> LambdaClient:
    """Build the client of Lambda, for functions that dispatch jobs."""
    return boto3.client("lambda", config=CLIENT_CONFIG)


@cache
def step_functions() -> SFNClient:
    """Build the client of Step Functions, for functions that start or wake supervisors."""
    return boto3.client("stepfunctions", config=CLIENT_CONFIG)


@cache
def queues() -> SqsQueues:
    """Build the queues of the background functions."""
    settings = CoreSettings.from_environment()
    return SqsQueues(
        sqs,
        fan_out_url=settings.fan_out_queue_url,
        sweeper_url=settings.sweeper_queue_url,
        webhooks_url=settings.webhooks_queue_url,
    )


@cache
def scheduler() -> EventBridgeSchedulerClient:
    """Build the client of EventBridge Scheduler."""
    return boto3.client("scheduler", config=CLIENT_CONFIG)


@cache
def timers() -> SchedulerTimers:
    """Build the timers that invoke the sweeper."""
    settings = CoreSettings.from_environment()
    return SchedulerTimers(
        scheduler,
        group=settings.timer_group,
        function_arn=settings.sweeper_function,
        role_arn=settings.timer_role,
        now=now,
    )


@cache
def s3() -> S3Client:
    """Build the client of S3.

    Its signed URLs use signature version 4, which every region accepts, and the host of the bucket's region. The
    default is the global host, which does not know the region of a new bucket for some hours.
    """
    s3_config = Config(signature_version="s3v4", s3={"addressing_style": "path"})
    return boto3.client("s3", config=CLIENT_CONFIG.merge(s3_config))


@cache
def dead_letters() -> DeadLetterWriter:
    """Build the bucket for stream records that cannot be processed. Its first use builds the client."""
    from vigil_core.gateways.dead_letter_bucket import DeadLetterBucket

    return DeadLetterBucket(s3(), StreamConsumerSettings.from_environment().dead_letter_bucket)


@cache
def payload_bucket() -> PayloadBucket:
    """Build the bucket for payloads and results that are too large for a row."""
    return PayloadBucket(s3, CoreSettings.from_environment().payload_bucket)


@cache
def context() -> Context:
    """Build the context of the use cases."""
    settings = CoreSettings.from_environment()
    return context_of(
        DynamoTable(dynamodb(), settings.table_name),
        queues(),
        timers(),
        payload_bucket(),
        executors=LambdaExecutors(lambda_client, settings.http_executor_function),
        supervisors=StepFunctionsSupervisors(step_functions, settings.supervisor_machine),
        stream_consumers=LambdaStreamConsumers(
            lambda_client, {"matcher": settings.matcher_function, "notifier": settings.notifier_function}
        ),
        retention=settings.retention,
        queue_partitions=settings.queue_partitions,
        concurrency=settings.concurrency,
    )


def context_of(
    table: Table,
    queues: MessageQueues,
    timers: Timers,
    payload_store: PayloadStore,
    *,
    executors: Executors | None = None,
    supervisors: Supervisors | None = None,
    stream_consumers: StreamConsumers | None = None,
    retention: timedelta = DEFAULT_RETENTION,
    queue_partitions: int = 1,
    concurrency: int = DEFAULT_CONCURRENCY,
) -> Context:
    """Build a context over any table."""
    job_types = JobTypeStore(table, now=now)
    limits = LimitStores.over(table, now=now, concurrency=concurrency)

    return Context(
        jobs=JobStore(table, payload_store, now=now, retention=retention, queue_partitions=queue_partitions),
        job_types=job_types,
        dependencies=DependencyStore(table),
        batches=BatchStore(table),
        locks=LockStore(table),
        waits=WaitStore(table, now=now, retention=retention),
        idempotency=IdempotencyStore(table),
        listing=ListingStore(table),
        due_index=DueStore(table),
        job_queues=QueueStore(table, now=now, retention=retention, partitions=queue_partitions),
        connections=ConnectionStore(table),
        webhooks=WebhookStore(table),
        work_slots=WorkSlotStore(table),
        schedules=ScheduleStore(table),
        runs=RunStore(table, payload_store, now=now, retention=retention),
        limits=limits,
        postponed_records=PostponedRecordStore(table),
        message_queues=queues,
        executors=executors or NoExecutors(),
        supervisors=supervisors or NoSupervisors(),
        stream_consumers=stream_consumers or NoStreamConsumers(),
        timers=timers,
        parse_job=partial(_parse_job, job_types),
        parse_run=partial(_parse_run, job_types, limits),
        clock=now,
        new_id=lambda: str(uuid7()),
        allowed_private_hosts=OutboundSettings.from_environment().allowed_private_hosts,
        stack_name=OutboundSettings.from_environment().stack_name,
    )


def _parse_job(job_types: JobTypeStore, namespace: str, body: Mapping[str, JsonValue], job_id: str) -> NewJob:
    # Imported here because most functions parse no body.
    from vigil_core.api.schedules.models import parse_scheduled_job

    return parse_scheduled_job(namespace, body, job_id, find_type=job_types.find)


def _parse_run(
    job_types: JobTypeStore,
    limits: LimitStores,
    namespace: str,
    body: Mapping[str, JsonValue],
    workflow_id: str,
    now: datetime,
    schedule: str | None,
) -> NewWorkflowRun:
    from vigil_core.api.workflows.models import parse_workflow

    return parse_workflow(
        namespace,
        body,
        workflow_id,
        now=now,
        find_types=job_types.find_many,
        schedule=schedule,
        max_jobs=limits.namespaces.limit(namespace, "jobs_per_request"),
    )


@cache
def api_keys() -> ApiKeyStore:
    """Build the store of API keys."""
    return ApiKeyStore(DynamoTable(dynamodb(), CoreSettings.from_environment().table_name))


@cache
def auth_context() -> AuthContext:
    """Build the collaborators of the auth services."""
    table = DynamoTable(dynamodb(), CoreSettings.from_environment().table_name)
    return AuthContext(api_keys=api_keys(), tickets=TicketStore(table), namespaces=context().limits.namespaces, now=now)


@cache
def web_sockets() -> WebSockets:
    """Build the sender to open WebSockets."""
    endpoint = WebSocketSettings.from_environment().websocket_endpoint
    return WebSockets(boto3.client("apigatewaymanagementapi", endpoint_url=endpoint, config=SOCKET_CONFIG))


@cache
def sns_topic() -> SnsTopic:
    """Build the SNS topic for subscribers outside Vigil."""
    return SnsTopic(boto3.client("sns", config=CLIENT_CONFIG), NotifierSettings.from_environment().topic_arn)


@cache
def outbound_http() -> OutboundHttpClient:
    """Build the guarded HTTP client for addresses that users name."""
    from vigil_core.gateways.outbound_http import OutboundHttpClient

    return OutboundHttpClient(OutboundSettings.from_environment().allowed_private_hosts)


@cache
def secret_values() -> SecretValues:
    """Build the reader of the secrets that targets name."""
    from vigil_core.gateways.secrets_manager import SecretValues
    from vigil_core.runtime.settings import HttpExecutorSettings

    return SecretValues(
        cache(lambda: boto3.client("ssm", config=CLIENT_CONFIG)),
        cache(lambda: boto3.client("secretsmanager", config=CLIENT_CONFIG)),
        prefix=HttpExecutorSettings.from_environment().secrets_prefix,
        monotonic=time.monotonic,
    )


@cache
def http_api() -> HttpApi:
    """Build the HTTP API."""
    # Imported here because only one function serves the API.
    from vigil_core.api.app import HttpApi
    from vigil_core.api.routes import OPERATIONS
    from vigil_core.api.routing import Services

    table = DynamoTable(dynamodb(), CoreSettings.from_environment().table_name)
    services = Services(
        context=context(),
        page_tokens=PageTokens(signing_keys=SigningKeyStore(table), random_bytes=secrets.token_bytes),
        tickets=auth_context(),
    )
    return HttpApi(services, OPERATIONS)


@cache
def admin() -> Admin:
    """Build the commands of operators."""
    from vigil_core.api.admin import Admin
    from vigil_core.gateways.dead_letter_bucket import DeadLetterBucket
    from vigil_core.gateways.dead_letter_queue import DeadLetterQueue
    from vigil_core.gateways.lambda_functions import LONG_CALL_CONFIG, LambdaFunctions
    from vigil_core.runtime.settings import AdminSettings
    from vigil_core.services.auth.disconnect import disconnect_key
    from vigil_core.services.limits.namespaces import NamespaceContents
    from vigil_core.services.operations.dead_letters import DeadLettersContext
    from vigil_core.store.namespaces import NamespaceRows

    settings = AdminSettings.from_environment()
    dead_letters = DeadLettersContext(
        bucket=DeadLetterBucket(boto3.client("s3", config=CLIENT_CONFIG), settings.dead_letter_bucket),
        queues={
            "fan_out": DeadLetterQueue(
                sqs(), dead_letter_url=settings.fan_out_dead_letter_queue_url, source_url=settings.fan_out_queue_url
            ),
            "sweeper": DeadLetterQueue(
                sqs(), dead_letter_url=settings.sweeper_dead_letter_queue_url, source_url=settings.sweeper_queue_url
            ),
            "webhooks": DeadLetterQueue(
                sqs(), dead_letter_url=settings.webhooks_dead_letter_queue_url, source_url=settings.webhooks_queue_url
            ),
        },
        functions=LambdaFunctions(boto3.client("lambda", config=LONG_CALL_CONFIG)),
        consumers=[settings.matcher_function, settings.notifier_function],
        now=now,
    )
    disconnect = partial(disconnect_key, context().connections, web_sockets())
    table_name = CoreSettings.from_environment().table_name
    contents = NamespaceContents(
        table=DynamoTable(dynamodb(), table_name),
        rows=NamespaceRows(client=dynamodb(), table_name=table_name),
        objects=payload_bucket(),
    )
    return Admin(context(), keys=auth_context(), disconnect=disconnect, dead_letters=dead_letters, contents=contents)
