"""A wait as its client sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Protocol, TypeAlias

from vigil_core.domain.exact_json import JsonValue, dumps, loads
from vigil_core.domain.timestamps import to_text
from vigil_core.domain.waits.wait import EntryOutcome, Wait, WaitOnJob
from vigil_core.services.context import UsesWaits


class WaitViewContext(UsesWaits, Protocol):
    """What this module uses of the outside world."""


MAX_ENTRIES = 1_000
"""A larger wait's answer shows no more of it, says `truncated`, and tells where the rest is read page by page."""
MAX_BYTES = 1024 * 1024

WaitAnswer: TypeAlias = dict[str, JsonValue]


def wait_answer(ctx: WaitViewContext, wait: Wait) -> WaitAnswer:
    """The whole answer. `wait_on` is there only while something is left to wait for."""
    counted, met, unmet = _counted_outcomes(ctx, wait)
    shown_outcomes, all_shown = _take_fitting(counted, ctx.waits.echo(wait))
    waited_jobs: dict[str, JsonValue] = dict(ctx.waits.echo(wait))
    waited_jobs |= {o.job_id: dict(o.values) for o in shown_outcomes if o.status != "unmet"}
    open_entries = _open_entries(ctx, wait, met | unmet) if not wait.ended or wait.status == "expired" else []
    unmet_jobs: dict[str, JsonValue] = {
        o.job_id: {"job_stage": o.stage, "reason": o.reason} for o in shown_outcomes if o.status == "unmet"
    }
    if wait.status == "expired":
        unmet_jobs |= {entry.job_id: {"job_stage": None, "reason": "expired"} for entry in open_entries}
    body = wait_summary(wait) | {
        "counts": {"total": wait.total, "met": len(met), "unmet": len(unmet)},
        "waited_jobs": waited_jobs,
        "unmet_jobs": unmet_jobs,
    }
    if not wait.registration_complete and not wait.ended:
        body["registering"] = True
    if not wait.ended:
        body["wait_on"] = {entry.job_id: entry.raw_condition for entry in open_entries}
    if not all_shown or len(open_entries) == MAX_ENTRIES < wait.total:
        body |= {"truncated": True, "jobs_url": f"/v1/waits/{wait.wait_id}/jobs"}
    return body


def wait_summary(wait: Wait) -> WaitAnswer:
    """A wait in a list: what costs no further read."""
    return {
        "wait_id": wait.wait_id,
        "status": wait.status,
        "counts": {"total": wait.total, "met": wait.counts.met, "unmet": wait.counts.unmet},
        "wait_options": loads(wait.raw_options),
        "created_at": to_text(wait.created_at),
        "expires_at": to_text(wait.expires_at),
        "ended_at": to_text(wait.ended_at) if wait.ended_at else None,
    }


def jobs_page(
    ctx: WaitViewContext, wait: Wait, *, after_index: int, page_size: int
) -> tuple[list[WaitAnswer], int | None]:
    """Outcomes that count, in the order of `wait_on`; and the index to go on after, None at the end."""
    outcomes, met, unmet = _counted_outcomes(ctx, wait, after_index=after_index)
    page = list(islice((o for o in outcomes if o.index > after_index), page_size))
    has_more = len(page) == page_size and any(index > page[-1].index for index in met | unmet)
    return [_outcome_json(outcome) for outcome in page], page[-1].index if has_more else None


def _outcome_json(outcome: EntryOutcome) -> WaitAnswer:
    if outcome.status == "unmet":
        return {"job_id": outcome.job_id, "met": False, "job_stage": outcome.stage, "reason": outcome.reason}
    return {"job_id": outcome.job_id, "met": True, "values": dict(outcome.values)}


def _counted_outcomes(
    ctx: WaitViewContext, wait: Wait, *, after_index: int = -1
) -> tuple[Iterable[EntryOutcome], frozenset[int], frozenset[int]]:
    """The outcomes that count, lazily and in order, and which entries they are of."""
    if wait.is_inline:
        unmet = frozenset(o.index for o in wait.outcomes.values() if o.status == "unmet")
        return _with_values(ctx, wait), frozenset(wait.outcomes) - unmet, unmet
    met, unmet = (wait.final_met, wait.final_unmet) if wait.ended else ctx.waits.counted_entries(wait)
    rows = ctx.waits.outcomes(wait.namespace, wait.wait_id, after_index=after_index, limit=MAX_ENTRIES)
    return (outcome for outcome in rows if outcome.index in met | unmet), met, unmet


def _with_values(ctx: WaitViewContext, wait: Wait) -> list[EntryOutcome]:
    separate_indexes = [o.index for o in wait.outcomes.values() if o.status != "unmet" and not o.values]
    stored = ctx.waits.outcomes_at(wait.namespace, wait.wait_id, separate_indexes) if separate_indexes else {}
    return [stored.get(index, outcome) for index, outcome in sorted(wait.outcomes.items())]


def _take_fitting(outcomes: Iterable[EntryOutcome], echo: Mapping[str, JsonValue]) -> tuple[list[EntryOutcome], bool]:
    fitting: list[EntryOutcome] = []
    bytes_left = MAX_BYTES - len(dumps(echo))
    for outcome in outcomes:
        bytes_left -= len(dumps(dict(outcome.values))) + len(outcome.job_id)
        if len(fitting) == MAX_ENTRIES or (bytes_left < 0 and fitting):
            return fitting, False
        fitting.append(outcome)
    return fitting, True


def _open_entries(ctx: WaitViewContext, wait: Wait, decided_indexes: frozenset[int]) -> list[WaitOnJob]:
    """The first entries without an outcome, as many as an answer shows."""
    if wait.wait_on_jobs is not None:
        return [entry for entry in wait.wait_on_jobs if entry.index not in decided_indexes]
    pages: Iterable[Any] = (ctx.waits.spec_page(wait, page) or () for page in range(wait.pages))
    return list(islice((e for page in pages for e in page if e.index not in decided_indexes), MAX_ENTRIES))
