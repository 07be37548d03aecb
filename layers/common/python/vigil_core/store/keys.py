"""Every key of the table is built here, and here alone is it taken apart.

A partition key begins with its namespace, so that nothing can cross into another one; only the sweeper's index and its
locks span namespaces. Namespaces, ids and shards contain no `#`; what may (a user's key) comes last or is hashed.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from datetime import date, datetime
from typing import Literal, NamedTuple, TypeAlias, cast

from vigil_core.domain.timestamps import from_text, to_text

LISTING_PARTITIONS = 4
DUE_PARTITIONS = 4
DELIVERY_PARTITIONS = 4
BLOCK_ENTRIES = 64
"""How many entries of a large wait share one row that counts them."""

ListName: TypeAlias = Literal["jobs", "waits", "workflows"]
DueKind: TypeAlias = Literal["wait_expiry", "wait_registration", "queue", "mutex", "delivery", "schedule", "run"]
LockKind: TypeAlias = Literal["unique", "mutex"]


class Key(NamedTuple):
    """A primary key."""

    pk: str
    sk: str


# Jobs
def job(namespace: str, job_id: str) -> Key:
    return Key(f"{namespace}#job#{job_id}", "A")


def parse_job(pk: str) -> tuple[str, str]:
    """(namespace, job id): the inverse of `job`."""
    namespace, _, job_id = pk.split("#")
    return namespace, job_id


def live(namespace: str, job_id: str) -> Key:
    return Key(f"{namespace}#job#{job_id}", "B")


def payload(namespace: str, job_id: str, nonce: str) -> Key:
    return Key(f"{namespace}#job#{job_id}", f"P#{nonce}")


def result(namespace: str, job_id: str, attempt: int, nonce: str) -> Key:
    return Key(f"{namespace}#job#{job_id}", f"R#{attempt:05}#{nonce}")


def dependencies(namespace: str, job_id: str, attempt: int) -> Key:
    return Key(f"{namespace}#job#{job_id}", f"D#{attempt:05}")


def batch_pages(attempt: int) -> str:
    return f"I#{attempt:05}#"


def batch_page(namespace: str, job_id: str, attempt: int, page: int) -> Key:
    return Key(f"{namespace}#job#{job_id}", f"{batch_pages(attempt)}{page:03}")


def log(namespace: str, job_id: str, first_version: int) -> Key:
    return Key(f"{namespace}#job#{job_id}", f"L#{first_version:010}")


# Payloads and results too large for a row: objects, named after the rows that they stand for
def object_ref(size: int | None, sk: str) -> str:
    """The pointer to an object of so many bytes of JSON; without a size, of anything that somebody has uploaded."""
    return f"@{'' if size is None else size}@{sk}"


def parse_object_ref(ref: str) -> tuple[int | None, str] | None:
    """(size, sort key): the inverse of `object_ref`; None for the pointer to a row."""
    if not ref.startswith("@"):
        return None
    size, sk = ref[1:].split("@")
    return int(size) if size else None, sk


def object_name(namespace: str, job_id: str, sk: str) -> str:
    return f"bodies/{namespace}/{job_id}/{sk.replace('#', '/')}"


def upload_name(namespace: str, upload_id: str) -> str:
    return f"uploads/{namespace}/{upload_id}"


def lock(namespace: str, kind: LockKind, name: str) -> Key:
    return Key(f"{namespace}#hold#{kind}#{name}", "A")


def mutex_queue(namespace: str, mutex: str) -> str:
    return f"{namespace}#line#{mutex}"


def mutex_queue_entry(namespace: str, mutex: str, position: int) -> Key:
    return Key(mutex_queue(namespace, mutex), f"{position:015}")


def idempotency(namespace: str, route: str, key: str) -> Key:
    digest = hashlib.sha256(f"{route}\n{key}".encode()).hexdigest()
    return Key(f"{namespace}#idempotency#{digest}", "A")


# Queues
def queues(namespace: str) -> str:
    return f"{namespace}#queues"


def queue(namespace: str, name: str) -> Key:
    return Key(queues(namespace), name)


def workers(namespace: str, queue_name: str) -> str:
    return f"{namespace}#workers#{queue_name}"


def worker(namespace: str, queue_name: str, name: str) -> Key:
    return Key(workers(namespace, queue_name), name)


def claim(namespace: str, queue_name: str, claim_id: str) -> Key:
    digest = hashlib.sha256(f"{queue_name}\n{claim_id}".encode()).hexdigest()
    return Key(f"{namespace}#claim#{digest}", "A")


# Jobs of a queue that have not ended, in index `due`: those that workers may have, those that Vigil itself has yet to
# dispatch, and those that time will change
def ready_jobs(namespace: str, queue_name: str, partition: int = 0) -> str:
    return _queue_partition(namespace, "ready", queue_name, partition)


def jobs_to_dispatch(namespace: str, queue_name: str, partition: int = 0) -> str:
    return _queue_partition(namespace, "dispatch", queue_name, partition)


def ready_job(rank: int, since: datetime, job_id: str) -> str:
    return f"{rank}#{to_text(since)}#{job_id}"


def timed_jobs(namespace: str, queue_name: str, partition: int = 0) -> str:
    return _queue_partition(namespace, "timed", queue_name, partition)


def _queue_partition(namespace: str, kind: str, queue_name: str, partition: int) -> str:
    # The first shard has the name of the queue that has only one: more of them can be had at any time.
    return f"{namespace}#{kind}{f'.{partition}' if partition else ''}#{queue_name}"


def timed_job(status: str, at: datetime, job_id: str) -> str:
    return f"{status}#{to_text(at)}#{job_id}"


def job_of_queue(g1sk: str) -> str:
    """The job's id: of `ready_job` and `timed_job`."""
    return g1sk.rsplit("#", 1)[1]


def timed_at(g1sk: str) -> datetime:
    """When a job is due, or since when it is ready: of `timed_job` and `ready_job`."""
    return from_text(g1sk.split("#")[1])


def queue_due(namespace: str, name: str) -> tuple[str, str]:
    """The keys of index `due` by which every sweep finds a queue: (g1pk, g1sk)."""
    return due_partition(partition_of(f"{namespace}#{name}", DUE_PARTITIONS)), f"0#queue#{namespace}#{name}"


# Job types
def job_types(namespace: str) -> str:
    return f"{namespace}#types"


def job_type(namespace: str, name: str) -> Key:
    return Key(job_types(namespace), name)


def target(namespace: str, target_ref: str) -> Key:
    return Key(f"{namespace}#targets", target_ref)


# Webhooks
def webhooks(namespace: str) -> str:
    return f"{namespace}#webhooks"


def webhook(namespace: str, name: str) -> Key:
    return Key(webhooks(namespace), name)


def deliveries(namespace: str, webhook_name: str, partition: int) -> str:
    return f"{namespace}#deliveries#{partition}#{webhook_name}"


def delivery(namespace: str, webhook_name: str, delivery_id: str) -> Key:
    return Key(deliveries(namespace, webhook_name, partition_of(delivery_id, DELIVERY_PARTITIONS)), delivery_id)


def delivery_due_id(webhook_name: str, delivery_id: str) -> str:
    """What index `due` calls a delivery."""
    return f"{delivery_id}#{webhook_name}"


def parse_delivery_due_id(entity_id: str) -> tuple[str, str]:
    """(webhook, delivery id): the inverse of `delivery_due_id`."""
    delivery_id, _, webhook_name = entity_id.partition("#")
    return webhook_name, delivery_id


# Schedules
def schedules(namespace: str) -> str:
    return f"{namespace}#schedules"


def schedule(namespace: str, name: str) -> Key:
    return Key(schedules(namespace), name)


# Workflows
def run(namespace: str, workflow_id: str) -> Key:
    return Key(f"{namespace}#workflow#{workflow_id}", "A")


def parse_run(pk: str) -> tuple[str, str]:
    """(namespace, workflow id): the inverse of `run`."""
    namespace, _, workflow_id = pk.split("#")
    return namespace, workflow_id


GRAPH_PARTS = "G#"
RUN_STATE_BLOCKS = "C#"
PARKED_JOBS = "H#"
DECISIONS = "V#"


def graph_part(namespace: str, workflow_id: str, part: int) -> Key:
    return Key(run(namespace, workflow_id).pk, f"{GRAPH_PARTS}{part:03}")


def run_job_definitions(namespace: str, workflow_id: str, block: int) -> Key:
    return Key(run(namespace, workflow_id).pk, f"S#{block:03}")


def run_state_block(namespace: str, workflow_id: str, block: int) -> Key:
    return Key(run(namespace, workflow_id).pk, f"{RUN_STATE_BLOCKS}{block:03}")


def run_slots(namespace: str, workflow_id: str) -> Key:
    return Key(run(namespace, workflow_id).pk, "T")


def parked_job(namespace: str, workflow_id: str, rank: int, index: int) -> Key:
    return Key(run(namespace, workflow_id).pk, f"{PARKED_JOBS}{rank}#{index:05}")


def parked_rank(sk: str) -> int:
    """The rank of the job's priority, 0 the highest: of `held_job`."""
    return int(sk.removeprefix(PARKED_JOBS).split("#", 1)[0])


def parked_index(sk: str) -> int:
    """The job's place in its run: of `held_job`."""
    return int(sk.rsplit("#", 1)[1])


def decision(namespace: str, workflow_id: str, index: int) -> Key:
    return Key(run(namespace, workflow_id).pk, f"{DECISIONS}{index:05}")


def run_result(namespace: str, workflow_id: str, generation: int, nonce: str) -> Key:
    return Key(run(namespace, workflow_id).pk, f"R#{generation:05}#{nonce}")


def run_object_name(namespace: str, workflow_id: str, sk: str) -> str:
    return f"bodies/{namespace}/{workflow_id}/{sk.replace('#', '/')}"


# Waits
def wait(namespace: str, wait_id: str) -> Key:
    return Key(f"{namespace}#wait#{wait_id}", "A")


def wait_echo(namespace: str, wait_id: str) -> Key:
    return Key(f"{namespace}#wait#{wait_id}", "E")


def wait_spec(namespace: str, wait_id: str, page: int) -> Key:
    return Key(f"{namespace}#wait#{wait_id}", f"S#{page:03}")


def wait_block(namespace: str, wait_id: str, block: int) -> Key:
    return Key(f"{namespace}#wait#{wait_id}", f"C#{block:03}")


def wait_outcome(namespace: str, wait_id: str, index: int) -> Key:
    return Key(f"{namespace}#wait#{wait_id}", f"M#{index:05}")


def entries_of_job(namespace: str, job_id: str) -> str:
    return f"{namespace}#waits-on#{job_id}"


def entry(namespace: str, job_id: str, wait_id: str, index: int) -> Key:
    return Key(entries_of_job(namespace, job_id), f"{wait_id}#{index:05}")


def backlog(namespace: str, job_id: str) -> Key:
    # "!" sorts before every id, so that the first page of a job's entries shows it.
    return Key(entries_of_job(namespace, job_id), "!")


# Access
def api_keys(namespace: str) -> str:
    return f"{namespace}#keys"


def api_key(namespace: str, key_id: str) -> Key:
    return Key(api_keys(namespace), key_id)


def ticket(namespace: str, ticket_id: str) -> Key:
    return Key(f"{namespace}#ticket#{ticket_id}", "A")


def signing_key(namespace: str) -> Key:
    return Key(f"{namespace}#secret", "page-token")


# Connections
def connection(namespace: str, connection_id: str) -> Key:
    return Key(f"{namespace}#connection#{connection_id}", "A")


def subscription_of_connection(namespace: str, connection_id: str, subscription_id: str) -> Key:
    return Key(f"{namespace}#connection#{connection_id}", f"S#{subscription_id}")


def subscribers(namespace: str, topic: str) -> str:
    return f"{namespace}#topic#{topic}"


def subscription_to_topic(namespace: str, topic: str, connection_id: str, subscription_id: str) -> Key:
    return Key(subscribers(namespace, topic), f"{connection_id}#{subscription_id}")


def connection_of_key(namespace: str, key_id: str, connection_id: str) -> Key:
    return Key(f"{namespace}#key#{key_id}", connection_id)


# Lists: index `listing`
def day_mark(namespace: str, list_name: ListName, day: date) -> Key:
    """The row that says that something was created on this day."""
    return Key(f"{namespace}#days", f"{list_name}#{day.isoformat()}")


def listing(namespace: str, list_name: ListName, created_at: datetime, entity_id: str) -> tuple[str, str]:
    """The keys of index `listing` for an entity: (g2pk, g2sk)."""
    g2pk = listing_partition(namespace, list_name, created_at.date(), partition_of(entity_id, LISTING_PARTITIONS))
    return g2pk, f"{to_text(created_at)}#{entity_id}"


def listing_partition(namespace: str, list_name: ListName, day: date, partition: int) -> str:
    return f"{namespace}#{list_name}#{day.isoformat()}#{partition}"


def listing_entity_id(g2sk: str) -> str:
    return g2sk.rsplit("#", 1)[1]


# The sweeper: index `due`, across namespaces
def due(at: datetime, kind: DueKind, namespace: str, entity_id: str) -> tuple[str, str]:
    """The keys of index `due`: (g1pk, g1sk)."""
    return due_partition(partition_of(entity_id, DUE_PARTITIONS)), f"{to_text(at)}#{kind}#{namespace}#{entity_id}"


def due_partition(number: int) -> str:
    return f"due#{number}"


def parse_due(g1sk: str) -> tuple[str, DueKind, str, str]:
    """(time, kind, namespace, entity id): the inverse of `due`."""
    at, kind, namespace, entity_id = g1sk.split("#", 3)
    return at, cast(DueKind, kind), namespace, entity_id


def sweep_lease(partition: int) -> Key:
    return Key("sweep#lease", str(partition))


# Large waits: entries in chunks
def block_of(index: int) -> int:
    return index // BLOCK_ENTRIES


def block_size(block: int, total: int) -> int:
    return min(BLOCK_ENTRIES, total - block * BLOCK_ENTRIES)


def blocks(total: int) -> Iterator[int]:
    return iter(range((total + BLOCK_ENTRIES - 1) // BLOCK_ENTRIES))


def partition_of(entity_id: str, partitions: int) -> int:
    """The same shard for the same id, in every process."""
    return zlib.crc32(entity_id.encode()) % partitions
