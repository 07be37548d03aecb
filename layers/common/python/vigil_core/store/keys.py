"""The keys of the table: this module alone builds and parses them.

A partition key begins with its namespace, so that nothing crosses from one namespace to another. Only the sweeper's
index, its sweep leases and the slots of long polls span namespaces. Namespaces, ids and partition numbers contain no
`#`. A part that may contain one (a key of the user) is the last part or is hashed.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from datetime import date, datetime
from typing import Literal, NamedTuple, TypeAlias, cast

from vigil_core.domain.timestamps import from_text, to_text

MAX_CORRELATION_BYTES = 512
LISTING_PARTITIONS = 4
DUE_PARTITIONS = 4
DELIVERY_PARTITIONS = 4
BLOCK_ENTRIES = 64
"""The number of entries of a large wait that one block row counts."""

ListName: TypeAlias = Literal["jobs", "waits", "workflows"]
DueKind: TypeAlias = Literal[
    "recount", "wait_expiry", "wait_registration", "queue", "mutex", "delivery", "schedule", "run", "postponed"
]
LockKind: TypeAlias = Literal["unique", "mutex"]


class Key(NamedTuple):
    """A primary key."""

    pk: str
    sk: str


# Jobs
def job(namespace: str, job_id: str) -> Key:
    """Return the key of a job's state row."""
    return Key(f"{namespace}#job#{job_id}", "A")


def parse_job(pk: str) -> tuple[str, str]:
    """Return (namespace, job id) of the partition key of a job."""
    namespace, _, job_id = pk.split("#")
    return namespace, job_id


def live(namespace: str, job_id: str) -> Key:
    """Return the key of the row with progress and heartbeats of a job."""
    return Key(f"{namespace}#job#{job_id}", "B")


def payload(namespace: str, job_id: str, nonce: str) -> Key:
    """Return the key of a payload row."""
    return Key(f"{namespace}#job#{job_id}", f"P#{nonce}")


def result(namespace: str, job_id: str, attempt: int, nonce: str) -> Key:
    """Return the key of a result row of one attempt."""
    return Key(f"{namespace}#job#{job_id}", f"R#{attempt:05}#{nonce}")


def dependencies(namespace: str, job_id: str, attempt: int) -> Key:
    """Return the key of the row that counts the end states of a job's dependencies."""
    return Key(f"{namespace}#job#{job_id}", f"D#{attempt:05}")


def batch_pages(attempt: int) -> str:
    """Return the prefix of the sort keys of a batch's pages in one attempt."""
    return f"I#{attempt:05}#"


def batch_page(namespace: str, job_id: str, attempt: int, page: int) -> Key:
    """Return the key of the row that counts the end states of one page of items."""
    return Key(f"{namespace}#job#{job_id}", f"{batch_pages(attempt)}{page:03}")


LOG = "L#"


def log(namespace: str, job_id: str, first_version: int) -> Key:
    """Return the key of the row with older history lines, from this version on."""
    return Key(f"{namespace}#job#{job_id}", f"{LOG}{first_version:010}")


# Payloads and results too large for a row: objects, each named after the row that it replaces
def object_ref(size: int | None, sk: str) -> str:
    """Build the pointer to an object.

    Args:
        size: The number of bytes of its JSON text; None for an upload, whose content is not known.
        sk: The sort key of the row that the object replaces.
    """
    return f"@{'' if size is None else size}@{sk}"


def parse_object_ref(ref: str) -> tuple[int | None, str] | None:
    """Return (size, sort key) of a pointer to an object, or None for a pointer to a row."""
    if not ref.startswith("@"):
        return None
    size, sk = ref[1:].split("@")
    return int(size) if size else None, sk


def object_name(namespace: str, job_id: str, sk: str) -> str:
    """Return the name of the S3 object that replaces a row of a job."""
    return f"payloads/{namespace}/{job_id}/{sk.replace('#', '/')}"


def upload_name(namespace: str, upload_id: str) -> str:
    """Return the name of the S3 object of an upload."""
    return f"uploads/{namespace}/{upload_id}"


def upload(namespace: str, upload_id: str) -> Key:
    """Return the key of the row with the job to which an upload belongs."""
    return Key(f"{namespace}#upload#{upload_id}", "A")


def lock(namespace: str, kind: LockKind, name: str) -> Key:
    """Return the key of a lock: a unique key or a mutex."""
    return Key(f"{namespace}#lock#{kind}#{name}", "A")


def mutex_queue(namespace: str, mutex: str) -> str:
    """Return the partition key of a mutex queue."""
    return f"{namespace}#mutex#{mutex}"


def mutex_queue_entry(namespace: str, mutex: str, position: int) -> Key:
    """Return the key of a job's entry in a mutex queue."""
    return Key(mutex_queue(namespace, mutex), f"{position:015}")


def idempotency(namespace: str, route: str, key: str) -> Key:
    """Return the key of a reservation of an idempotency key, which is hashed."""
    digest = hashlib.sha256(f"{route}\n{key}".encode()).hexdigest()
    return Key(f"{namespace}#idempotency#{digest}", "A")


# Queues
def queues(namespace: str) -> str:
    """Return the partition key of the queues of a namespace."""
    return f"{namespace}#queues"


def queue(namespace: str, name: str) -> Key:
    """Return the key of a queue."""
    return Key(queues(namespace), name)


def workers(namespace: str, queue_name: str) -> str:
    """Return the partition key of the workers of a queue."""
    return f"{namespace}#workers#{queue_name}"


def worker(namespace: str, queue_name: str, name: str) -> Key:
    """Return the key of a worker of a queue."""
    return Key(workers(namespace, queue_name), name)


def claim(namespace: str, queue_name: str, claim_id: str) -> Key:
    """Return the key of the candidates of a claim with a `claim_id`, which is hashed."""
    digest = hashlib.sha256(f"{queue_name}\n{claim_id}".encode()).hexdigest()
    return Key(f"{namespace}#claim#{digest}", "A")


# The open jobs of a queue in index `due`: ready jobs for workers, undispatched jobs, and jobs with a due time
def ready_jobs(namespace: str, queue_name: str, partition: int = 0) -> str:
    """Return the partition of index `due` with the jobs that workers may claim."""
    return _queue_partition(namespace, "ready", queue_name, partition)


def jobs_to_dispatch(namespace: str, queue_name: str, partition: int = 0) -> str:
    """Return the partition of index `due` with the undispatched jobs of a queue."""
    return _queue_partition(namespace, "dispatch", queue_name, partition)


def ready_job(rank: int, since: datetime, job_id: str) -> str:
    """Return the sort key of a ready or undispatched job: priority rank, then time."""
    return f"{rank}#{to_text(since)}#{job_id}"


def timed_jobs(namespace: str, queue_name: str, partition: int = 0) -> str:
    """Return the partition of index `due` with the jobs of a queue that have a due time."""
    return _queue_partition(namespace, "timed", queue_name, partition)


def _queue_partition(namespace: str, kind: str, queue_name: str, partition: int) -> str:
    # The first partition has the key of an unpartitioned queue, so the number of partitions may grow at any time.
    return f"{namespace}#{kind}{f'.{partition}' if partition else ''}#{queue_name}"


def timed_job(status: str, at: datetime, job_id: str) -> str:
    """Return the sort key of a job with a due time: status, then time."""
    return f"{status}#{to_text(at)}#{job_id}"


def job_of_queue(g1sk: str) -> str:
    """Return the job id in the sort key of a `ready_job` or `timed_job`."""
    return g1sk.rsplit("#", 1)[1]


def timed_at(g1sk: str) -> datetime:
    """Return the due time in the key of a `timed_job`, or the ready time in the key of a `ready_job`."""
    return from_text(g1sk.split("#")[1])


def queue_due(namespace: str, name: str) -> tuple[str, str]:
    """Return (g1pk, g1sk), the keys of index `due` by which every sweep finds a queue."""
    return due_partition(partition_of(f"{namespace}#{name}", DUE_PARTITIONS)), f"{QUEUES_DUE}{namespace}#{name}"


QUEUES_DUE = "0#queue#"
"""The prefix of the sort keys of queues in index `due`. It sorts before every time."""
AFTER_HASH = "$"
"""The character after `#`, which separates the parts of a key and occurs in no namespace."""


def queues_due_after(namespace: str | None) -> tuple[str, str]:
    """Return the bounds of the queues in index `due` of all namespaces, or of those after a namespace."""
    low = QUEUES_DUE if namespace is None else f"{QUEUES_DUE}{namespace}{AFTER_HASH}"
    return low, QUEUES_DUE.replace("#", AFTER_HASH)


def queues_due_of(namespace: str, *, after: str) -> tuple[str, str]:
    """Return the bounds of the queues in index `due` of one namespace after a queue."""
    return f"{QUEUES_DUE}{namespace}#{after}\0", f"{QUEUES_DUE}{namespace}{AFTER_HASH}"


# Job types
def job_types(namespace: str) -> str:
    """Return the partition key of the job types of a namespace."""
    return f"{namespace}#types"


def job_type(namespace: str, name: str) -> Key:
    """Return the key of a job type."""
    return Key(job_types(namespace), name)


def target(namespace: str, target_ref: str) -> Key:
    """Return the key of an executor target."""
    return Key(f"{namespace}#targets", target_ref)


# Webhooks
def webhooks(namespace: str) -> str:
    """Return the partition key of the webhooks of a namespace."""
    return f"{namespace}#webhooks"


def webhook(namespace: str, name: str) -> Key:
    """Return the key of a webhook."""
    return Key(webhooks(namespace), name)


def deliveries(namespace: str, webhook_name: str, partition: int) -> str:
    """Return the partition key of one partition of a webhook's deliveries."""
    return f"{namespace}#deliveries#{partition}#{webhook_name}"


def delivery(namespace: str, webhook_name: str, delivery_id: str) -> Key:
    """Return the key of a delivery."""
    return Key(deliveries(namespace, webhook_name, partition_of(delivery_id, DELIVERY_PARTITIONS)), delivery_id)


def delivery_due_id(webhook_name: str, delivery_id: str) -> str:
    """Return the entity id of a delivery in index `due`."""
    return f"{delivery_id}#{webhook_name}"


def parse_delivery_due_id(entity_id: str) -> tuple[str, str]:
    """Return (webhook, delivery id) of a delivery's entity id in index `due`."""
    delivery_id, _, webhook_name = entity_id.partition("#")
    return webhook_name, delivery_id


# Schedules
def schedules(namespace: str) -> str:
    """Return the partition key of the schedules of a namespace."""
    return f"{namespace}#schedules"


def parse_schedules(pk: str) -> str:
    """Return the namespace of the partition key of schedules."""
    return pk.partition("#")[0]


def schedule(namespace: str, name: str) -> Key:
    """Return the key of a schedule."""
    return Key(schedules(namespace), name)


# Workflows
def run(namespace: str, workflow_id: str) -> Key:
    """Return the key of a workflow run."""
    return Key(f"{namespace}#workflow#{workflow_id}", "A")


def parse_run(pk: str) -> tuple[str, str]:
    """Return (namespace, workflow id) of the partition key of a run."""
    namespace, _, workflow_id = pk.split("#")
    return namespace, workflow_id


GRAPH_PARTS = "G#"
RUN_STATE_BLOCKS = "C#"
PARKED_JOBS = "H#"
DECISIONS = "V#"


def graph_part(namespace: str, workflow_id: str, part: int) -> Key:
    """Return the key of one part of a run's graph."""
    return Key(run(namespace, workflow_id).pk, f"{GRAPH_PARTS}{part:03}")


def run_job_definitions(namespace: str, workflow_id: str, block: int) -> Key:
    """Return the key of the job definitions of one block of a run."""
    return Key(run(namespace, workflow_id).pk, f"S#{block:03}")


def run_state_block(namespace: str, workflow_id: str, block: int) -> Key:
    """Return the key of one state block of a run."""
    return Key(run(namespace, workflow_id).pk, f"{RUN_STATE_BLOCKS}{block:03}")


def run_slots(namespace: str, workflow_id: str) -> Key:
    """Return the key of the row with the slot owners of a run."""
    return Key(run(namespace, workflow_id).pk, "T")


def parked_job(namespace: str, workflow_id: str, rank: int, index: int) -> Key:
    """Return the key of a parked job, in the order of release: rank, then index."""
    return Key(run(namespace, workflow_id).pk, f"{PARKED_JOBS}{rank}#{index:05}")


def parked_rank(sk: str) -> int:
    """Return the rank of the job's priority in the sort key of a `parked_job`; 0 is the highest."""
    return int(sk.removeprefix(PARKED_JOBS).split("#", 1)[0])


def parked_index(sk: str) -> int:
    """Return the index of the job in its run, from the sort key of a `parked_job`."""
    return int(sk.rsplit("#", 1)[1])


def decision(namespace: str, workflow_id: str, index: int) -> Key:
    """Return the key of an operator's decision on a failed job of a run."""
    return Key(run(namespace, workflow_id).pk, f"{DECISIONS}{index:05}")


def run_result(namespace: str, workflow_id: str, generation: int, nonce: str) -> Key:
    """Return the key of the result of a run's generation."""
    return Key(run(namespace, workflow_id).pk, f"R#{generation:05}#{nonce}")


def run_object_name(namespace: str, workflow_id: str, sk: str) -> str:
    """Return the name of the S3 object that replaces a row of a run."""
    return f"payloads/{namespace}/{workflow_id}/{sk.replace('#', '/')}"


# Waits
def wait(namespace: str, wait_id: str) -> Key:
    """Return the key of a wait."""
    return Key(f"{namespace}#wait#{wait_id}", "A")


def wait_earlier_answer(namespace: str, wait_id: str) -> Key:
    """Return the key of the earlier answer that a wait returns unchanged."""
    return Key(f"{namespace}#wait#{wait_id}", "E")


def wait_spec(namespace: str, wait_id: str, page: int) -> Key:
    """Return the key of one page of a wait request."""
    return Key(f"{namespace}#wait#{wait_id}", f"S#{page:03}")


def wait_block(namespace: str, wait_id: str, block: int) -> Key:
    """Return the key of one block of a large wait."""
    return Key(f"{namespace}#wait#{wait_id}", f"C#{block:03}")


def wait_outcome(namespace: str, wait_id: str, index: int) -> Key:
    """Return the key of the outcome of one entry."""
    return Key(f"{namespace}#wait#{wait_id}", f"M#{index:05}")


def entries_of_job(namespace: str, job_id: str) -> str:
    """Return the partition key of the wait entries and dependents of a job."""
    return f"{namespace}#waits-on#{job_id}"


def entry(namespace: str, job_id: str, wait_id: str, index: int) -> Key:
    """Return the key of a wait entry at its job."""
    return Key(entries_of_job(namespace, job_id), f"{wait_id}#{index:05}")


def backlog(namespace: str, job_id: str) -> Key:
    """Return the key of the mark that matches of a job are delegated to `fan_out`."""
    # "!" sorts before every id, so the first page of a job's entries contains this row.
    return Key(entries_of_job(namespace, job_id), "!")


# Postponed stream records
POSTPONED = "!#"
"""The prefix of the sort keys of postponed records. It sorts before every id, and after the backlog mark."""


def postponed_group(consumer: str, record_pk: str) -> tuple[str, str]:
    """Return the namespace and the group of the records of one row, from its partition key `ns#kind#id`."""
    namespace, _, entity = record_pk.partition("#")
    return namespace, f"{consumer}#{entity}"


def consumer_of_group(group: str) -> str:
    """Return the name of the consumer of a group."""
    return group.partition("#")[0]


def postponed_records(namespace: str, group: str) -> str:
    """Return the partition key of a group. Those of a job for the matcher are with the job's wait entries."""
    consumer, kind, entity_id = group.split("#", 2)
    if (consumer, kind) == ("matcher", "job"):
        return entries_of_job(namespace, entity_id)
    return f"{namespace}#postponed#{group}"


def postponed_record(namespace: str, group: str, sequence_number: str) -> Key:
    """Return the key of a postponed record, in the order of the stream."""
    return Key(postponed_records(namespace, group), f"{POSTPONED}{sequence_number.zfill(40)}")


def postponed_sequence_number(sk: str) -> str:
    """Return the sequence number in the sort key of a postponed record."""
    return sk.removeprefix(POSTPONED).lstrip("0")


def postponed_due_id(group: str, sequence_number: str) -> str:
    """Return the entity id of a postponed record in index `due`."""
    return f"{group}#{sequence_number.lstrip('0')}"


def parse_postponed_due_id(entity_id: str) -> tuple[str, str]:
    """Return (group, sequence number) of a postponed record's entity id in index `due`."""
    group, _, sequence_number = entity_id.rpartition("#")
    return group, sequence_number


def record_attempts(namespace: str, consumer: str, sequence_number: str) -> Key:
    """Return the key of the row that counts the starts of attempts on one stream record."""
    return Key(f"{namespace}#attempts#{consumer}#{sequence_number}", "A")


# Access
def api_keys(namespace: str) -> str:
    """Return the partition key of the API keys of a namespace."""
    return f"{namespace}#keys"


def api_key(namespace: str, key_id: str) -> Key:
    """Return the key of an API key."""
    return Key(api_keys(namespace), key_id)


def ticket(namespace: str, ticket_id: str) -> Key:
    """Return the key of a WebSocket ticket."""
    return Key(f"{namespace}#ticket#{ticket_id}", "A")


def signing_key(namespace: str) -> Key:
    """Return the key of the key that signs page tokens."""
    return Key(f"{namespace}#signing-key", "page-token")


# Connections
def connection(namespace: str, connection_id: str) -> Key:
    """Return the key of a WebSocket connection."""
    return Key(f"{namespace}#connection#{connection_id}", "A")


def subscription_of_connection(namespace: str, connection_id: str, subscription_id: str) -> Key:
    """Return the key of a subscription in the partition of its connection."""
    return Key(f"{namespace}#connection#{connection_id}", f"S#{subscription_id}")


def subscribers(namespace: str, topic: str) -> str:
    """Return the partition key of the subscribers of a topic."""
    return f"{namespace}#topic#{topic}"


def subscription_to_topic(namespace: str, topic: str, connection_id: str, subscription_id: str) -> Key:
    """Return the key of a subscription in the partition of its topic."""
    return Key(subscribers(namespace, topic), f"{connection_id}#{subscription_id}")


def connections(namespace: str) -> str:
    """Return the partition key of the open connections of a namespace."""
    return f"{namespace}#connections"


def connection_of_key(namespace: str, key_id: str, connection_id: str) -> Key:
    """Return the key by which a connection is found from its namespace and its API key."""
    return Key(connections(namespace), f"{key_id}#{connection_id}")


# Limits
COUNTER_ROWS = 8
"""The number of rows over which the counters of a namespace are spread."""


def namespace(name: str) -> Key:
    """Return the key of the state and the limits of a namespace."""
    return Key(f"{name}#namespace", "A")


def counters(namespace: str) -> str:
    """Return the partition key of the counters of a namespace."""
    return f"{namespace}#counters"


def counter(namespace: str, row: int) -> Key:
    """Return the key of one row of the counters of a namespace."""
    return Key(counters(namespace), str(row))


def upload_counter(namespace: str, day: date) -> Key:
    """Return the key of the row that counts the uploads of one day."""
    return Key(f"{namespace}#uploads", day.isoformat())


def request_window(namespace: str, window: int) -> Key:
    """Return the key of the row with the requests leased in one window of the request rate."""
    return Key(f"{namespace}#requests", str(window))


def socket_backlog(namespace: str) -> Key:
    """Return the key of the mark that messages to the sockets of a namespace are in the queue of `fan_out`."""
    return Key(f"{namespace}#sockets", "backlog")


def work_slots(namespace: str, kind: str) -> Key:
    """Return the key of the row with the slots of one kind of work of a namespace."""
    return Key(f"{namespace}#slots", kind)


def long_poll_slots(row: int) -> Key:
    """Return the key of one row of long-poll slots, which all namespaces share."""
    return Key(f"long-polls#{row}", "A")


# Lists: index `listing`
def day_mark(namespace: str, list_name: ListName, day: date) -> Key:
    """Return the key of the row which records that an entity of this list was created on a day."""
    return Key(f"{namespace}#days", f"{list_name}#{day.isoformat()}")


def listing(namespace: str, list_name: ListName, created_at: datetime, entity_id: str) -> tuple[str, str]:
    """Return (g2pk, g2sk), the keys of an entity in index `listing`."""
    g2pk = listing_partition(namespace, list_name, created_at.date(), partition_of(entity_id, LISTING_PARTITIONS))
    return g2pk, f"{to_text(created_at)}#{entity_id}"


def correlation_partition(namespace: str, correlation_id: str, partition: int) -> str:
    """Return one partition of index `correlation`: jobs of a correlation id, sorted like those of index `listing`.

    A long correlation id is represented by its hash, because DynamoDB limits the size of a key.
    """
    content = correlation_id.encode()
    name = correlation_id if len(content) <= MAX_CORRELATION_BYTES else hashlib.sha256(content).hexdigest()
    return f"{namespace}#correlation#{partition}#{name}"


def correlation(namespace: str, correlation_id: str, job_id: str) -> str:
    """Return g3pk, the partition key of a job in index `correlation`."""
    return correlation_partition(namespace, correlation_id, partition_of(job_id, LISTING_PARTITIONS))


def listing_partition(namespace: str, list_name: ListName, day: date, partition: int) -> str:
    """Return the partition of index `listing` for one day and partition number."""
    return f"{namespace}#{list_name}#{day.isoformat()}#{partition}"


def listing_entity_id(g2sk: str) -> str:
    """Return the entity id in a sort key of index `listing`."""
    return g2sk.rsplit("#", 1)[1]


# The sweeper: index `due`, across namespaces
def due(at: datetime, kind: DueKind, namespace: str, entity_id: str) -> tuple[str, str]:
    """Return (g1pk, g1sk), the keys of an entity in index `due`."""
    return due_partition(partition_of(entity_id, DUE_PARTITIONS)), f"{to_text(at)}#{kind}#{namespace}#{entity_id}"


def due_partition(number: int) -> str:
    """Return the partition key of a partition of index `due`."""
    return f"due#{number}"


def parse_due(g1sk: str) -> tuple[str, DueKind, str, str]:
    """Return (time, kind, namespace, entity id) of a sort key of index `due`."""
    at, kind, namespace, entity_id = g1sk.split("#", 3)
    return at, cast(DueKind, kind), namespace, entity_id


def sweep_lease(name: str) -> Key:
    """Return the key of a sweep lease."""
    return Key("sweep#lease", name)


# Large waits: entries in blocks
def block_of(index: int) -> int:
    """Return the block of an entry."""
    return index // BLOCK_ENTRIES


def block_size(block: int, total: int) -> int:
    """Return the number of entries in a block."""
    return min(BLOCK_ENTRIES, total - block * BLOCK_ENTRIES)


def blocks(total: int) -> Iterator[int]:
    """Return the numbers of all blocks of a wait."""
    return iter(range((total + BLOCK_ENTRIES - 1) // BLOCK_ENTRIES))


def partition_of(entity_id: str, partitions: int) -> int:
    """Return the partition of an id, which is the same in every process."""
    return zlib.crc32(entity_id.encode()) % partitions
