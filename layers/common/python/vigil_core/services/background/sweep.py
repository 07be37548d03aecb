"""The sweep of one partition of the due index: due rows, then queues, then deliveries.

No namespace delays another one:

- Namespaces take turns, and each has a limited time (`fair_order`).
- Of each namespace, the sweep takes `MAX_DUE_ROWS` due rows at once, and reads on until no time is left.
- Of each namespace, the sweep takes the first `INLINE_QUEUES` queues. If it has more, a message passes the rest to
  other invocations: each sweeps a part and sends the position for the next. Only one such chain of a namespace runs in
  each partition, under a sweep lease of its own.

Crashes: a due row stays due until it is processed, so the next sweep finds it. If an invocation of a chain crashes, its
sweep lease expires, and the sweep of the next minute starts the chain again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Protocol

from vigil_core.services.context import UsesDueIndex
from vigil_core.services.fair_order import FairOrderContext, FairRun, Step
from vigil_core.services.messages import SweepQueues
from vigil_core.services.queues.sweep import QueueSweepContext, find_due_steps
from vigil_core.store.due_index import DueItem


class SweepContext(QueueSweepContext, FairOrderContext, UsesDueIndex, Protocol):
    """The due index, the queues, and the queue of the sweeper."""


SWEEP_LEASE = timedelta(seconds=55)
"""Less than the timeout of the sweeper function. The sweep of the next minute can acquire the lease again."""
DUE_ROWS_TIME = timedelta(seconds=20)
QUEUES_TIME = timedelta(seconds=15)
DELIVERIES_TIME = timedelta(seconds=10)
CHAIN_TIME = timedelta(seconds=20)
NAMESPACE_TIME = timedelta(seconds=60)
"""The time of one namespace in one sweep, summed over the threads."""
MAX_DUE_ROWS = 200
"""The number of due rows of one namespace that a sweep takes at once."""
MAX_ROWS_READ = 100_000
INLINE_QUEUES = 16
"""The number of queues of one namespace that the sweep of a partition takes itself."""
QUEUES_AT_ONCE = 64

ProcessDue = Callable[[DueItem], int]


class SweepFailed(Exception):
    """Signal that some due rows failed. The other rows of the partition are processed, and the next sweep retries."""

    def __init__(self, errors: list[tuple[str, Exception]]) -> None:
        super().__init__(f"{len(errors)} due rows failed; first error: {errors[0][0]}: {errors[0][1]!r}")
        self.errors = errors


@dataclass(frozen=True, kw_only=True)
class _Queue:
    namespace: str
    name: str


def sweep_partition(ctx: SweepContext, partition: int, process: ProcessDue) -> int:
    """Sweep one partition, unless another sweep has its lease.

    Args:
        ctx: The collaborators.
        partition: The partition of the due index.
        process: Processes one due row, and returns the number of processed rows.

    Returns:
        The number of due rows and due jobs that were processed.

    Raises:
        SweepFailed: Some rows failed. All others are processed before.
    """
    started_at, owner = ctx.now(), ctx.new_id()
    lease = str(partition)
    if not ctx.due_index.acquire_sweep_lease(lease, owner, now=started_at, ttl=SWEEP_LEASE):
        return 0
    run = FairRun(namespace_time=NAMESPACE_TIME)
    deliveries = _sweep_due_rows(ctx, partition, process, run, until=started_at + DUE_ROWS_TIME)
    _sweep_first_queues(ctx, partition, None, run, until=ctx.now() + QUEUES_TIME)
    run.run(ctx, _steps(deliveries, process), until=ctx.now() + DELIVERIES_TIME)
    ctx.due_index.release_sweep_lease(lease, owner)
    if run.errors:
        raise SweepFailed(run.errors)
    return run.processed


def sweep_more_queues(ctx: SweepContext, message: SweepQueues) -> int:
    """Sweep the next part of a chain, and pass the rest on.

    Do nothing if another chain has the sweep lease.
    """
    lease = _chain_lease(message.partition, message.namespace)
    if not ctx.due_index.extend_sweep_lease(lease, message.chain, now=ctx.now(), ttl=SWEEP_LEASE):
        return 0
    run, until = FairRun(namespace_time=NAMESPACE_TIME), ctx.now() + CHAIN_TIME
    if message.namespace is None:
        _sweep_first_queues(ctx, message.partition, message, run, until=until)
    else:
        _sweep_queues_of_namespace(ctx, message, message.namespace, run, until=until)
    if run.errors:
        raise SweepFailed(run.errors)
    return run.processed


def _sweep_due_rows(
    ctx: SweepContext, partition: int, process: ProcessDue, run: FairRun, *, until: datetime
) -> Sequence[DueItem]:
    """Process the due rows of a partition except its deliveries, and return those.

    Deliveries come last: there are very many when a receiver is down, and they must not delay anything else.
    """
    seen: set[DueItem] = set()
    deliveries: list[DueItem] = []
    while ctx.now() < until:
        chosen, has_more = _choose(ctx.due_index.overdue(partition, ctx.now()), seen)
        seen.update(chosen)
        deliveries += [due for due in chosen if due.kind == "delivery"]
        run.run(ctx, _steps([due for due in chosen if due.kind != "delivery"], process), until=until)
        if not has_more or not chosen:
            break
    return deliveries


def _choose(due_items: Iterable[DueItem], seen: set[DueItem]) -> tuple[list[DueItem], bool]:
    """Choose the oldest due rows of each namespace, and return whether any namespace has more."""
    counts: Counter[str] = Counter()
    chosen: list[DueItem] = []
    has_more = False
    for due in islice(due_items, MAX_ROWS_READ):
        if due in seen:
            continue
        counts[due.namespace] += 1
        if counts[due.namespace] <= MAX_DUE_ROWS:
            chosen.append(due)
        else:
            has_more = True
    return chosen, has_more


def _steps(due_items: Iterable[DueItem], process: ProcessDue) -> Iterator[Step]:
    for due in due_items:
        label = f"{due.kind} of {due.namespace} {due.entity_id}"
        yield Step(namespace=due.namespace, label=label, run=lambda due=due: process(due))  # type: ignore[misc]


def _sweep_first_queues(
    ctx: SweepContext, partition: int, message: SweepQueues | None, run: FairRun, *, until: datetime
) -> None:
    """Sweep the first queues of each namespace, after the namespace in the message if there is one.

    If no time is left, pass the other namespaces on.
    """
    pending: list[_Queue] = []
    after = None if message is None else message.after
    for listed in ctx.due_index.first_queues(partition, after_namespace=after, limit=INLINE_QUEUES):
        if listed.has_more:
            _start_chain(ctx, partition, listed.namespace, listed.queues[-1])
        pending += [_Queue(namespace=listed.namespace, name=name) for name in listed.queues]
        if len(pending) >= QUEUES_AT_ONCE:
            _sweep_queues(ctx, pending, run, until=until)
            pending = []
            if ctx.now() >= until:
                _pass_on(ctx, partition, message, after=listed.namespace)
                return
    _sweep_queues(ctx, pending, run, until=until)
    if message is not None:
        ctx.due_index.release_sweep_lease(_chain_lease(partition, None), message.chain)


def _sweep_queues_of_namespace(
    ctx: SweepContext, message: SweepQueues, namespace: str, run: FairRun, *, until: datetime
) -> None:
    """Sweep the queues of one namespace after the position of the message, and pass on what is left."""
    after = message.after
    while True:
        names = ctx.due_index.queues_of(message.partition, namespace, after=after, limit=QUEUES_AT_ONCE)
        _sweep_queues(ctx, [_Queue(namespace=namespace, name=name) for name in names], run, until=until)
        if len(names) < QUEUES_AT_ONCE:
            ctx.due_index.release_sweep_lease(_chain_lease(message.partition, namespace), message.chain)
            return
        after = names[-1]
        if ctx.now() >= until:
            _send(ctx, SweepQueues(partition=message.partition, chain=message.chain, namespace=namespace, after=after))
            return


def _sweep_queues(ctx: SweepContext, queues: Sequence[_Queue], run: FairRun, *, until: datetime) -> None:
    """Find the due jobs of the queues, then process them in a fair order."""
    steps_of_queues: list[Step] = []

    def find(queue: _Queue) -> int:
        steps_of_queues.extend(find_due_steps(ctx, queue.namespace, queue.name))
        return 0

    finding = [
        Step(
            namespace=queue.namespace,
            label=f"queue of {queue.namespace} {queue.name}",
            run=lambda queue=queue: find(queue),  # type: ignore[misc]
        )
        for queue in queues
    ]
    run.run(ctx, finding, until=until)
    run.run(ctx, steps_of_queues, until=until)


def _start_chain(ctx: SweepContext, partition: int, namespace: str | None, after: str) -> None:
    """Pass the queues after a position to another invocation, unless a chain for them still runs."""
    chain = ctx.new_id()
    lease = _chain_lease(partition, namespace)
    if ctx.due_index.acquire_sweep_lease(lease, chain, now=ctx.now(), ttl=SWEEP_LEASE):
        _send(ctx, SweepQueues(partition=partition, chain=chain, namespace=namespace, after=after))


def _pass_on(ctx: SweepContext, partition: int, message: SweepQueues | None, *, after: str) -> None:
    """Pass the namespaces after a position to another invocation of the same chain, or of a new one."""
    if message is None:
        _start_chain(ctx, partition, None, after)
    else:
        _send(ctx, SweepQueues(partition=partition, chain=message.chain, after=after))


def _send(ctx: SweepContext, message: SweepQueues) -> None:
    ctx.message_queues.send_to_sweeper(message.to_json(), 0)


def _chain_lease(partition: int, namespace: str | None) -> str:
    return f"{partition}#" if namespace is None else f"{partition}#{namespace}"
