"""A wait request as a client writes it."""

from __future__ import annotations

import pytest

from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.exact_json import JsonValue, dumps, loads
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


def test_every_problem_of_a_wait_request_is_reported_at_once() -> None:
    wait_on: JsonValue = {
        "a/b": {"job_stage": "", "milestone": [], "message": 1, "cpus": None},
        "c": 3,
        "d": {"x": "y" * 9_000},
    }
    options: JsonValue = {
        "mode": {"at_least": 4},
        "get_fields": ["", 1],
        "notify": {"sns": None, "sms": True},
        "expires_in": 0,
    }
    with pytest.raises(ValidationFailed) as refusal:
        parse_wait_request({"wait_on": wait_on, "wait_options": options, "waited_jobs": {"e": 1}, "wait": 1})
    assert sorted(problem.pointer for problem in refusal.value.problems) == [
        "/wait",
        "/wait_on/a~1b/cpus",
        "/wait_on/a~1b/job_stage",
        "/wait_on/a~1b/message",
        "/wait_on/a~1b/milestone",
        "/wait_on/c",
        "/wait_on/d",
        "/wait_options/expires_in",
        "/wait_options/get_fields/0",
        "/wait_options/get_fields/1",
        "/wait_options/mode/at_least",
        "/wait_options/notify/sms",
        "/wait_options/notify/sns",
        "/waited_jobs",
    ]


def test_conditions_are_kept_as_the_client_wrote_them() -> None:
    body = loads(f'{{"wait_on": {{"{WAIT_ID}": {{"cpus": 1.50, "milestone": "a", "job_stage": "boot"}}}}}}')
    assert isinstance(body, dict)
    assert list(parse_wait_request(body).wait_on.items()) == list(body["wait_on"].items())
    assert dumps(parse_wait_request(body).wait_on) == dumps(body["wait_on"])
