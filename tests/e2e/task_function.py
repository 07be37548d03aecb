"""A function of executor `lambda`, deployed by the tests: the payload decides what it does."""

from __future__ import annotations

import time
from typing import Any

from vigil_tasks import Permanent, Task, task


@task
def handler(job: Task) -> Any:
    match job.payload["do"]:
        case "count":
            job.report(stage="running", milestones=["counted"])
            job.progress(0.5, "half of it")
            return {"counted": len(job.payload["what"]), "attempt": job.attempt}
        case "fail once":
            if job.attempt == 1:
                raise RuntimeError("not yet")
            return "then"
        case "refuse":
            raise Permanent("never")
        case "wait for a cancel":
            job.progress(0.25, "waiting")
            while True:
                job.raise_if_cancelled()
                time.sleep(0.05)
    raise ValueError(job.payload["do"])
