"""Three operations on one cache, of which only one may run at a time: the function of the job types next to this."""

from __future__ import annotations

import time
from typing import Any

from vigil_core.tasks import Permanent, Task, task

SUBJECTS = {"ada": ["Notes on the engine", "Letters"], "grace": ["The first compiler"]}
STEP_S = 0.5
"""How long a step of the real work would take."""


@task
def handler(job: Task) -> Any:
    """One function for all three: the job's type says which."""
    match job.job_type:
        case "cache_refresh":
            return refresh(job, (job.payload or {}).get("depth", 1))
        case "cache_upload":
            return upload(job)
        case "search_subject":
            return search(job.payload["subject"])
    raise Permanent(f"there is no operation {job.job_type}")


def refresh(job: Task, depth: int) -> dict[str, str]:
    """Read everything anew, level by level."""
    for level in range(depth):
        job.raise_if_cancelled()
        job.progress(level / depth, "Starting cache refresh" if level == 0 else f"Refreshing level {level}")
        time.sleep(STEP_S)
    return {"status": "success", "message": "Cache refreshed successfully"}


def upload(job: Task) -> dict[str, int]:
    """Upload everything."""
    for done, subject in enumerate(SUBJECTS):
        job.raise_if_cancelled()
        job.progress(done / len(SUBJECTS), f"Uploading {subject}")
        time.sleep(STEP_S)
    return {"uploaded": sum(map(len, SUBJECTS.values()))}


def search(subject: str) -> dict[str, Any]:
    """What there is by a subject."""
    if subject not in SUBJECTS:
        raise Permanent(f"nothing is known of {subject}")
    return {"subject": subject, "found": SUBJECTS[subject]}
