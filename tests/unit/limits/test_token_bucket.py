"""The token buckets of many processes, against a plain simulation of the row."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from vigil_core.domain.token_bucket import MAX_LEASES, WINDOW_S, Lease, Proceed, Refuse, TokenBucket


class Row:
    """The rows of the windows, with conditional writes."""

    def __init__(self) -> None:
        self.leased: Counter[int] = Counter()
        self.writes = 0

    def serve(self, bucket: TokenBucket, lease: Lease) -> None:
        self.writes += 1
        granted = self.leased[lease.window] + lease.tokens <= lease.capacity
        self.leased[lease.window] += lease.tokens if granted else 0
        bucket.on_lease(lease, "granted" if granted else "refused", self.leased[lease.window])


def request(bucket: TokenBucket, row: Row, now_s: float, rate: int, processes: int) -> bool:
    decision = bucket.request(now_s, rate, processes)
    while isinstance(decision, Lease):
        row.serve(bucket, decision)
        decision = bucket.request(now_s, rate, processes)
    if isinstance(decision, Refuse):
        assert 1 <= decision.retry_after_s <= WINDOW_S
    return isinstance(decision, Proceed)


@pytest.mark.parametrize("seed", range(20))
def test_processes_together_admit_at_most_twice_the_rate(seed: int) -> None:
    random = Random(seed)
    rate, processes = random.choice([1, 10, 100]), random.choice([1, 2, 10, 100])
    buckets = [TokenBucket() for _ in range(processes)]
    row, now_s = Row(), random.uniform(0, 100)
    admitted: Counter[int] = Counter()
    writes_of: Counter[tuple[int, int]] = Counter()
    for _ in range(8_000):
        now_s += random.expovariate(rate * random.choice([0.2, 1, 5, 50]))
        number = random.randrange(processes)
        writes = row.writes
        if request(buckets[number], row, now_s, rate, processes):
            admitted[int(now_s // WINDOW_S)] += 1
        writes_of[number, int(now_s // WINDOW_S)] += row.writes - writes
    assert max(admitted.values()) <= 2 * rate * WINDOW_S
    assert max(writes_of.values()) <= MAX_LEASES


@pytest.mark.parametrize("burst", [1, 10, 100])
@pytest.mark.parametrize("used", [1, 3, 12])
@pytest.mark.parametrize("processes", [1, 12, 1_000])
def test_namespace_below_its_rate_is_never_refused(processes: int, used: int, burst: int) -> None:
    """Requests arrive in bursts, at 90 % of the rate on average, at some of the processes that can exist."""
    random, row, rate = Random(f"{processes}, {used}, {burst}"), Row(), 100
    buckets = [TokenBucket() for _ in range(min(used, processes))]
    for number in range(5_000):
        now_s = number // burst * burst / (0.9 * rate)
        assert request(random.choice(buckets), row, now_s, rate, processes)


def test_quiet_namespace_writes_nothing() -> None:
    bucket, row = TokenBucket(), Row()
    assert all(request(bucket, row, float(second), 100, 10) for second in range(100))
    assert row.writes == 0


def test_rate_of_zero_admits_nothing() -> None:
    assert not request(TokenBucket(), Row(), 3.0, 0, 10)


def test_flood_is_refused_until_the_window_ends_and_writes_little() -> None:
    bucket, row = TokenBucket(), Row()
    now_s = 1000.0
    admitted = sum(request(bucket, row, now_s + number / 1_000, 10, 10) for number in range(5_000))
    assert admitted <= 2 * 10 * WINDOW_S
    assert row.writes <= 2 * MAX_LEASES
    assert request(bucket, row, now_s + WINDOW_S, 10, 10)
