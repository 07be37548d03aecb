"""A wait request as a client writes it."""

from __future__ import annotations

import pytest

from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.exact_json import JsonValue, loads
from vigil_core.schemas.waits import parse_wait_request

WAIT_ID = "019bf000-0000-7000-8000-000000000013"


def test_response_with_empty_wait_on_continues_its_wait() -> None:
    """Note: for a moment every job of a large wait is decided while the wait is open."""
    request = parse_wait_request({"wait_id": WAIT_ID, "status": "waiting", "wait_on": {}, "waited_jobs": {}})
    assert (request.wait_id, request.wait_on) == (WAIT_ID, {})


@pytest.mark.parametrize("body", [{}, {"wait_on": {}}, {"wait_on": None}, {"wait_id": None, "wait_on": {}}])
def test_new_wait_without_jobs_is_refused(body: JsonValue) -> None:
    with pytest.raises(ValidationFailed) as refusal:
        parse_wait_request(body)
    assert [problem.pointer for problem in refusal.value.problems] == ["/wait_on"]


def test_whole_number_is_accepted_in_every_notation() -> None:
    request = parse_wait_request(loads(f'{{"wait_on": {{"{WAIT_ID}": null}}, "wait_options": {{"expires_in": 6e1}}}}'))
    assert request.expires_in_s == 60
    with pytest.raises(ValidationFailed, match="/wait_options/expires_in"):
        parse_wait_request(loads(f'{{"wait_on": {{"{WAIT_ID}": null}}, "wait_options": {{"expires_in": 60.5}}}}'))
