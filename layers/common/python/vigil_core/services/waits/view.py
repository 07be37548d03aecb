"""The answers about a wait, as the client receives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Protocol, TypeAlias

from vigil_core.domain.exact_json import JsonValue, dumps, loads_stored
from vigil_core.domain.timestamps import to_text
from vigil_core.domain.waits.wait import EntryOutcome, Wait, WaitOnJob
from vigil_core.schemas.waits import UnmetJob, WaitCountsView, WaitJobOutcome, WaitSummary, WaitView
from vigil_core.services.context import UsesWaits


class WaitViewContext(UsesWaits, Protocol):
    """The waits with their outcomes."""


MAX_ENTRIES = 1_000
"""The number of jobs that an answer lists. A larger wait is `truncated`, and `jobs_url` lists the rest page by page."""
MAX_BYTES = 1024 * 1024

WaitAnswer: TypeAlias = dict[str, JsonValue]


def wait_answer(ctx: WaitViewContext, wait: Wait) -> WaitAnswer:
    """Return the wait with its jobs. `wait_on` is present only while the wait is open."""
    earlier_answer = ctx.waits.earlier_answer(wait)
    outcomes, met, unmet = _counted_outcomes(ctx, wait)
    listed_outcomes, all_listed = _take_fitting(outcomes, earlier_answer)
    open_entries = _open_entries(ctx, wait, met | unmet) if not wait.ended or wait.status == "expired" else []
    members = _summary_members(wait) | {
        "counts": WaitCountsView(total=wait.total, met=len(met) - wait.failed_count, unmet=len(unmet)),
        "waited_jobs": {
            **earlier_answer,
            **{outcome.job_id: dict(outcome.values) for outcome in listed_outcomes if outcome.status != "unmet"},
        },
        "unmet_jobs": _unmet_jobs(wait, listed_outcomes, open_entries),
    }
    if not wait.registration_complete and not wait.ended:
        members["registering"] = True
    if not wait.ended:
        members["wait_on"] = {entry.job_id: entry.raw_condition for entry in open_entries}
    if not all_listed or len(open_entries) == MAX_ENTRIES < wait.total:
        members |= {"truncated": True, "jobs_url": f"/v1/waits/{wait.wait_id}/jobs"}
    return WaitView(**members).to_json()


def wait_summary(wait: Wait) -> WaitAnswer:
    """Return the wait without its jobs. It needs no further read."""
    return WaitSummary(**_summary_members(wait)).to_json()


def jobs_page(
    ctx: WaitViewContext, wait: Wait, *, after_index: int, page_size: int
) -> tuple[list[WaitAnswer], int | None]:
    """List outcomes in the order of `wait_on`.

    Returns:
        The page, and the index after which the next page starts, or None at the end.
    """
    outcomes, met, unmet = _counted_outcomes(ctx, wait, after_index=after_index)
    page = list(islice((outcome for outcome in outcomes if outcome.index > after_index), page_size))
    has_more = len(page) == page_size and any(index > page[-1].index for index in met | unmet)
    return [_outcome_json(outcome) for outcome in page], page[-1].index if has_more else None


def _summary_members(wait: Wait) -> dict[str, Any]:
    return {
        "wait_id": wait.wait_id,
        "status": wait.status,
        "counts": WaitCountsView(total=wait.total, met=wait.counts.met, unmet=wait.counts.unmet),
        "wait_options": loads_stored(wait.raw_options),
        "created_at": to_text(wait.created_at),
        "expires_at": to_text(wait.expires_at),
        "ended_at": to_text(wait.ended_at) if wait.ended_at else None,
    }


def _unmet_jobs(wait: Wait, outcomes: Iterable[EntryOutcome], open_entries: Iterable[WaitOnJob]) -> dict[str, UnmetJob]:
    unmet_jobs = {
        outcome.job_id: UnmetJob(job_stage=outcome.stage, reason=outcome.reason)
        for outcome in outcomes
        if outcome.status == "unmet"
    }
    if wait.status == "expired":
        unmet_jobs |= {entry.job_id: UnmetJob(job_stage=None, reason="expired") for entry in open_entries}
    return unmet_jobs


def _outcome_json(outcome: EntryOutcome) -> WaitAnswer:
    if outcome.status == "unmet":
        return WaitJobOutcome(
            job_id=outcome.job_id, met=False, job_stage=outcome.stage, reason=outcome.reason
        ).to_json()
    return WaitJobOutcome(job_id=outcome.job_id, met=outcome.status == "met", values=dict(outcome.values)).to_json()


def _counted_outcomes(
    ctx: WaitViewContext, wait: Wait, *, after_index: int = -1
) -> tuple[Iterable[EntryOutcome], frozenset[int], frozenset[int]]:
    """Return the outcomes that count, lazily and in order, and the indexes of the met and the unmet entries.

    The entries that failed the wait are among the met ones, because the answer shows their values.
    """
    if wait.is_inline:
        unmet = frozenset(outcome.index for outcome in wait.outcomes.values() if outcome.status == "unmet")
        return _with_values(ctx, wait), frozenset(wait.outcomes) - unmet, unmet
    met, unmet = (wait.final_met, wait.final_unmet) if wait.ended else ctx.waits.counted_entries(wait)
    rows = ctx.waits.outcomes(wait.namespace, wait.wait_id, after_index=after_index, limit=MAX_ENTRIES)
    return (outcome for outcome in rows if outcome.index in met | unmet), met, unmet


def _with_values(ctx: WaitViewContext, wait: Wait) -> list[EntryOutcome]:
    """Return the outcomes of an inline wait. Large captured values are read from rows of their own."""
    separate_indexes = [
        outcome.index for outcome in wait.outcomes.values() if outcome.status != "unmet" and not outcome.values
    ]
    stored = ctx.waits.outcomes_at(wait.namespace, wait.wait_id, separate_indexes) if separate_indexes else {}
    return [stored.get(index, outcome) for index, outcome in sorted(wait.outcomes.items())]


def _take_fitting(
    outcomes: Iterable[EntryOutcome], earlier_answer: Mapping[str, JsonValue]
) -> tuple[list[EntryOutcome], bool]:
    """Return the first outcomes that fit into an answer, and whether these are all."""
    fitting: list[EntryOutcome] = []
    bytes_left = MAX_BYTES - len(dumps(earlier_answer))
    for outcome in outcomes:
        bytes_left -= len(dumps(dict(outcome.values))) + len(outcome.job_id)
        if len(fitting) == MAX_ENTRIES or (bytes_left < 0 and fitting):
            return fitting, False
        fitting.append(outcome)
    return fitting, True


def _open_entries(ctx: WaitViewContext, wait: Wait, decided_indexes: frozenset[int]) -> list[WaitOnJob]:
    """Return the first entries without an outcome, at most as many as an answer lists."""
    if wait.wait_on_jobs is not None:
        return [entry for entry in wait.wait_on_jobs if entry.index not in decided_indexes]
    pages: Iterable[Iterable[WaitOnJob]] = (ctx.waits.spec_page(wait, page) or () for page in range(wait.pages))
    open_entries = (entry for page in pages for entry in page if entry.index not in decided_indexes)
    return list(islice(open_entries, MAX_ENTRIES))
