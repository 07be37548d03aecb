"""Definitions of jobs as a run stores them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vigil_core.domain.exact_json import dumps, loads
from vigil_core.domain.jobs.job import NewJob
from vigil_core.store.workflows.run_rows import definition_from_json, definition_to_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(payload=JSON, fallback=JSON, fields=st.dictionaries(st.text(min_size=1, max_size=3), st.integers(), max_size=2))
def test_stored_definition_keeps_every_payload_and_fallback(
    payload: Any, fallback: Any, fields: dict[str, int]
) -> None:
    new = NewJob(job_id="", job_type="t", payload=payload, fallback=fallback, fields=fields)
    stored = definition_from_json(loads(dumps(definition_to_json(new))))  # type: ignore[arg-type]
    assert (stored.payload, stored.fallback, stored.fields) == (payload, fallback, fields)
    assert type(stored.payload) is type(payload)
