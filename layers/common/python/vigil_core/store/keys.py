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

LISTING_SHARDS = 4
DUE_SHARDS = 4
DELIVERY_SHARDS = 4
CHUNK_ENTRIES = 64
"""How many entries of a large wait share one row that counts them."""

Listed: TypeAlias = Literal["jobs", "waits", "workflows"]
DueKind: TypeAlias = Literal["wait_expiry", "wait_registration", "queue", "mutex", "delivery", "schedule", "run"]
HoldKind: TypeAlias = Literal["unique", "mutex"]


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


def hold(namespace: str, kind: HoldKind, name: str) -> Key:
    return Key(f"{namespace}#hold#{kind}#{name}", "A")


def line(namespace: str, mutex: str) -> str:
    return f"{namespace}#line#{mutex}"


def place_in_line(namespace: str, mutex: str, place: int) -> Key:
    return Key(line(namespace, mutex), f"{place:015}")


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
def ready_jobs(namespace: str, queue_name: str, shard: int = 0) -> str:
    return _of_queue(namespace, "ready", queue_name, shard)


def jobs_to_dispatch(namespace: str, queue_name: str, shard: int = 0) -> str:
    return _of_queue(namespace, "dispatch", queue_name, shard)


def ready_job(rank: int, since: datetime, job_id: str) -> str:
    return f"{rank}#{to_text(since)}#{job_id}"


def timed_jobs(namespace: str, queue_name: str, shard: int = 0) -> str:
    return _of_queue(namespace, "timed", queue_name, shard)


def _of_queue(namespace: str, what: str, queue_name: str, shard: int) -> str:
    # The first shard has the name of the queue that has only one: more of them can be had at any time.
    return f"{namespace}#{what}{f'.{shard}' if shard else ''}#{queue_name}"


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
    return due_partition(shard_of(f"{namespace}#{name}", DUE_SHARDS)), f"0#queue#{namespace}#{name}"


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


def deliveries(namespace: str, webhook_name: str, shard: int) -> str:
    return f"{namespace}#deliveries#{shard}#{webhook_name}"


def delivery(namespace: str, webhook_name: str, delivery_id: str) -> Key:
    return Key(deliveries(namespace, webhook_name, shard_of(delivery_id, DELIVERY_SHARDS)), delivery_id)


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


GRAPH_PIECES = "G#"
RUN_CHUNKS = "C#"
HELD_JOBS = "H#"
DECISIONS = "V#"


def graph_piece(namespace: str, workflow_id: str, piece: int) -> Key:
    return Key(run(namespace, workflow_id).pk, f"{GRAPH_PIECES}{piece:03}")


def run_bodies(namespace: str, workflow_id: str, chunk: int) -> Key:
    return Key(run(namespace, workflow_id).pk, f"S#{chunk:03}")


def run_chunk(namespace: str, workflow_id: str, chunk: int) -> Key:
    return Key(run(namespace, workflow_id).pk, f"{RUN_CHUNKS}{chunk:03}")


def run_slots(namespace: str, workflow_id: str) -> Key:
    return Key(run(namespace, workflow_id).pk, "T")


def held_job(namespace: str, workflow_id: str, rank: int, place: int) -> Key:
    return Key(run(namespace, workflow_id).pk, f"{HELD_JOBS}{rank}#{place:05}")


def held_rank(sk: str) -> int:
    """The rank of the job's priority, 0 the highest: of `held_job`."""
    return int(sk.removeprefix(HELD_JOBS).split("#", 1)[0])


def held_place(sk: str) -> int:
    """The job's place in its run: of `held_job`."""
    return int(sk.rsplit("#", 1)[1])


def decision(namespace: str, workflow_id: str, place: int) -> Key:
    return Key(run(namespace, workflow_id).pk, f"{DECISIONS}{place:05}")


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


def wait_chunk(namespace: str, wait_id: str, chunk: int) -> Key:
    return Key(f"{namespace}#wait#{wait_id}", f"C#{chunk:03}")


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


def signing_secret(namespace: str) -> Key:
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
def listed_day(namespace: str, listed: Listed, day: date) -> Key:
    """The row that says that something was created on this day."""
    return Key(f"{namespace}#days", f"{listed}#{day.isoformat()}")


def listing(namespace: str, listed: Listed, created_at: datetime, entity_id: str) -> tuple[str, str]:
    """The keys of index `listing` for an entity: (g2pk, g2sk)."""
    partition = listing_partition(namespace, listed, created_at.date(), shard_of(entity_id, LISTING_SHARDS))
    return partition, f"{to_text(created_at)}#{entity_id}"


def listing_partition(namespace: str, listed: Listed, day: date, shard: int) -> str:
    return f"{namespace}#{listed}#{day.isoformat()}#{shard}"


def listed_id(g2sk: str) -> str:
    return g2sk.rsplit("#", 1)[1]


# The sweeper: index `due`, across namespaces
def due(at: datetime, kind: DueKind, namespace: str, entity_id: str) -> tuple[str, str]:
    """The keys of index `due`: (g1pk, g1sk)."""
    return due_partition(shard_of(entity_id, DUE_SHARDS)), f"{to_text(at)}#{kind}#{namespace}#{entity_id}"


def due_partition(shard: int) -> str:
    return f"due#{shard}"


def parse_due(g1sk: str) -> tuple[str, DueKind, str, str]:
    """(time, kind, namespace, entity id): the inverse of `due`."""
    at, kind, namespace, entity_id = g1sk.split("#", 3)
    return at, cast(DueKind, kind), namespace, entity_id


def sweep_lock(shard: int) -> Key:
    return Key("sweep#lease", str(shard))


# Large waits: entries in chunks
def chunk_of(index: int) -> int:
    return index // CHUNK_ENTRIES


def chunk_size(chunk: int, total: int) -> int:
    return min(CHUNK_ENTRIES, total - chunk * CHUNK_ENTRIES)


def chunks(total: int) -> Iterator[int]:
    return iter(range((total + CHUNK_ENTRIES - 1) // CHUNK_ENTRIES))


def shard_of(entity_id: str, shards: int) -> int:
    """The same shard for the same id, in every process."""
    return zlib.crc32(entity_id.encode()) % shards
