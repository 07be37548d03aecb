"""From errors to problem documents."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from vigil_core.api.problems import STATUS, Fault, TooManyRequests, problem, retry_after, understood
from vigil_core.domain import errors
from vigil_core.domain.errors import IdempotencyInProgress, InvalidTransition, StoreConflict, VigilError
from vigil_core.store.table import ConditionFailed

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
OF_THE_DOMAIN = [
    error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, VigilError) and error not in (VigilError, StoreConflict)
]


@pytest.mark.parametrize("error", OF_THE_DOMAIN, ids=lambda error: error.__name__)
def test_every_error_of_the_domain_has_its_status(error: type[VigilError]) -> None:
    assert 400 <= STATUS[error] < 500


def test_codes_are_used_once() -> None:
    assert len({error.code for error in STATUS}) == len(STATUS)


def test_a_lost_race_is_too_many_requests() -> None:
    assert type(understood(ConditionFailed(None))) is TooManyRequests
    assert type(understood(StoreConflict("lost"))) is TooManyRequests


def test_what_nobody_meant_to_raise_is_a_fault() -> None:
    assert type(understood(KeyError("x"))) is Fault
    assert type(understood(VigilError("x"))) is Fault
    known = InvalidTransition("no")
    assert understood(known) is known


def test_a_path_becomes_a_uri_reference() -> None:
    shown = problem(InvalidTransition("no"), path="/v1/jobs/ä b%20", request_id="r", now=NOW)
    assert shown.instance == "/v1/jobs/%C3%A4%20b%20"


def test_when_to_try_again() -> None:
    assert retry_after(IdempotencyInProgress(NOW + timedelta(seconds=1.2)), NOW) == {"retry-after": "2"}
    assert retry_after(IdempotencyInProgress(NOW - timedelta(seconds=9)), NOW) == {"retry-after": "1"}
    assert retry_after(TooManyRequests("x"), NOW) == {"retry-after": "1"}
    assert retry_after(InvalidTransition("x"), NOW) == {}
