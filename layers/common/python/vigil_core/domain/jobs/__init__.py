"""Rules of jobs: status, transitions, retries, leases, dependencies, batches and retention."""
