"""Run three operations on one cache, one at a time: the Lambda function of the job types in this folder."""

from __future__ import annotations

import time
from typing import Any

from vigil_tasks import Permanent, Task, task

SUBJECTS = {"ada": ["Notes on the engine", "Letters"], "grace": ["The first compiler"]}
STEP_S = 0.5
"""Seconds that one step of real work would take."""


@task
def handler(job: Task) -> Any:
    """Run the operation that the job type names."""
    match job.job_type:
        case "cache_refresh":
            return refresh(job, (job.payload or {}).get("depth", 1))
        case "cache_upload":
            return upload(job)
        case "search_subject":
            return search(job.payload["subject"])
    raise Permanent(f"there is no operation {job.job_type}")


def refresh(job: Task, depth: int) -> dict[str, str]:
    """Read the whole cache again, level by level."""
    for level in range(depth):
        job.raise_if_cancelled()
        job.progress(level / depth, "Starting cache refresh" if level == 0 else f"Refreshing level {level}")
        time.sleep(STEP_S)
    return {"status": "success", "message": "Cache refreshed successfully"}


def upload(job: Task) -> dict[str, int]:
    """Upload every subject."""
    for done, subject in enumerate(SUBJECTS):
        job.raise_if_cancelled()
        job.progress(done / len(SUBJECTS), f"Uploading {subject}")
        time.sleep(STEP_S)
    return {"uploaded": sum(map(len, SUBJECTS.values()))}


def search(subject: str) -> dict[str, Any]:
    """Return the titles of a subject."""
    if subject not in SUBJECTS:
        raise Permanent(f"nothing is known of {subject}")
    return {"subject": subject, "found": SUBJECTS[subject]}
