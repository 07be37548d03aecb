"""A wait as its client sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, TypeAlias

from vigil_core.domain.exact_json import JsonValue, dumps, loads
from vigil_core.domain.timestamps import to_text
from vigil_core.domain.waits.wait import Outcome, Wait, WaitEntry
from vigil_core.services.context import Context

SHOWN_ENTRIES = 1_000
"""A larger wait's answer shows no more of it, says `truncated`, and tells where the rest is read page by page."""
SHOWN_BYTES = 1024 * 1024

Answer: TypeAlias = dict[str, JsonValue]


def answer(ctx: Context, wait: Wait) -> Answer:
    """The whole answer. `wait_on` is there only while something is left to wait for."""
    decided, met, unmet = _decided(ctx, wait)
    shown, all_shown = _that_fit(decided, ctx.waits.echo(wait))
    waited: dict[str, JsonValue] = dict(ctx.waits.echo(wait))
    waited |= {o.job_id: dict(o.values) for o in shown if o.verdict != "unmet"}
    left = _left(ctx, wait, met | unmet) if not wait.ended or wait.status == "expired" else []
    unmet_jobs: dict[str, JsonValue] = {
        o.job_id: {"job_stage": o.stage, "reason": o.reason} for o in shown if o.verdict == "unmet"
    }
    if wait.status == "expired":
        unmet_jobs |= {entry.job_id: {"job_stage": None, "reason": "expired"} for entry in left}
    body = summary(wait) | {
        "counts": {"total": wait.total, "met": len(met), "unmet": len(unmet)},
        "waited_jobs": waited,
        "unmet_jobs": unmet_jobs,
    }
    if not wait.sealed and not wait.ended:
        body["registering"] = True
    if not wait.ended:
        body["wait_on"] = {entry.job_id: entry.asked for entry in left}
    if not all_shown or len(left) == SHOWN_ENTRIES < wait.total:
        body |= {"truncated": True, "jobs_url": f"/v1/waits/{wait.wait_id}/jobs"}
    return body


def summary(wait: Wait) -> Answer:
    """A wait in a list: what costs no further read."""
    return {
        "wait_id": wait.wait_id,
        "status": wait.status,
        "counts": {"total": wait.total, "met": wait.tally.met, "unmet": wait.tally.unmet},
        "wait_options": loads(wait.options_echo),
        "created_at": to_text(wait.created_at),
        "expires_at": to_text(wait.expires_at),
        "ended_at": to_text(wait.ended_at) if wait.ended_at else None,
    }


def jobs_page(ctx: Context, wait: Wait, *, after_index: int, page_size: int) -> tuple[list[Answer], int | None]:
    """Outcomes that count, in the order of `wait_on`; and the index to go on after, None at the end."""
    outcomes, met, unmet = _decided(ctx, wait, after_index=after_index)
    page = list(islice((o for o in outcomes if o.index > after_index), page_size))
    more = len(page) == page_size and any(index > page[-1].index for index in met | unmet)
    return [_line(outcome) for outcome in page], page[-1].index if more else None


def _line(outcome: Outcome) -> Answer:
    if outcome.verdict == "unmet":
        return {"job_id": outcome.job_id, "met": False, "job_stage": outcome.stage, "reason": outcome.reason}
    return {"job_id": outcome.job_id, "met": True, "values": dict(outcome.values)}


def _decided(
    ctx: Context, wait: Wait, *, after_index: int = -1
) -> tuple[Iterable[Outcome], frozenset[int], frozenset[int]]:
    """The outcomes that count, lazily and in order, and which entries they are of."""
    if wait.inline:
        unmet = frozenset(o.index for o in wait.outcomes.values() if o.verdict == "unmet")
        return _with_values(ctx, wait), frozenset(wait.outcomes) - unmet, unmet
    met, unmet = (wait.counted_met, wait.counted_unmet) if wait.ended else ctx.waits.counted(wait)
    rows = ctx.waits.outcomes(wait.namespace, wait.wait_id, after_index=after_index, limit=SHOWN_ENTRIES)
    return (outcome for outcome in rows if outcome.index in met | unmet), met, unmet


def _with_values(ctx: Context, wait: Wait) -> list[Outcome]:
    elsewhere = [o.index for o in wait.outcomes.values() if o.verdict != "unmet" and not o.values]
    found = ctx.waits.outcomes_at(wait.namespace, wait.wait_id, elsewhere) if elsewhere else {}
    return [found.get(index, outcome) for index, outcome in sorted(wait.outcomes.items())]


def _that_fit(outcomes: Iterable[Outcome], echo: Mapping[str, JsonValue]) -> tuple[list[Outcome], bool]:
    shown: list[Outcome] = []
    room = SHOWN_BYTES - len(dumps(echo))
    for outcome in outcomes:
        room -= len(dumps(dict(outcome.values))) + len(outcome.job_id)
        if len(shown) == SHOWN_ENTRIES or (room < 0 and shown):
            return shown, False
        shown.append(outcome)
    return shown, True


def _left(ctx: Context, wait: Wait, decided: frozenset[int]) -> list[WaitEntry]:
    """The first entries without an outcome, as many as an answer shows."""
    if wait.entries is not None:
        return [entry for entry in wait.entries if entry.index not in decided]
    pages: Iterable[Any] = (ctx.waits.spec_page(wait, page) or () for page in range(wait.pages))
    return list(islice((e for page in pages for e in page if e.index not in decided), SHOWN_ENTRIES))
