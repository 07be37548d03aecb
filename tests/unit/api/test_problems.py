"""Mapping of errors to problem documents."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from vigil_core.api.problems import (
    HTTP_STATUS,
    InternalError,
    TooManyRequests,
    problem_document,
    retry_after_headers,
    to_client_error,
)
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
def test_every_domain_error_has_a_4xx_status(error: type[VigilError]) -> None:
    assert 400 <= HTTP_STATUS[error] < 500


def test_error_codes_are_unique() -> None:
    assert len({error.code for error in HTTP_STATUS}) == len(HTTP_STATUS)


def test_optimistic_lock_conflict_becomes_429() -> None:
    assert type(to_client_error(ConditionFailed(None))) is TooManyRequests
    assert type(to_client_error(StoreConflict("lost"))) is TooManyRequests


def test_unexpected_exception_becomes_an_internal_error() -> None:
    assert type(to_client_error(KeyError("x"))) is InternalError
    assert type(to_client_error(VigilError("x"))) is InternalError
    known = InvalidTransition("no")
    assert to_client_error(known) is known


def test_problem_instance_is_a_percent_encoded_path() -> None:
    shown = problem_document(InvalidTransition("no"), path="/v1/jobs/ä b%20", request_id="r", now=NOW)
    assert shown.instance == "/v1/jobs/%C3%A4%20b%20"


def test_retry_after_header_is_set_for_temporary_errors() -> None:
    assert retry_after_headers(IdempotencyInProgress(NOW + timedelta(seconds=1.2)), NOW) == {"retry-after": "2"}
    assert retry_after_headers(IdempotencyInProgress(NOW - timedelta(seconds=9)), NOW) == {"retry-after": "1"}
    assert retry_after_headers(TooManyRequests("x"), NOW) == {"retry-after": "1"}
    assert retry_after_headers(InvalidTransition("x"), NOW) == {}
