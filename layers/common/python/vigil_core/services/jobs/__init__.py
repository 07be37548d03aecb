"""Use cases of jobs: submit, report, complete, cancel, retry, list; dependencies, batches and payloads."""
