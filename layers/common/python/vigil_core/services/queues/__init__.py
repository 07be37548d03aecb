"""Use cases of queues: claim, sweep, renew TTLs, statistics."""
