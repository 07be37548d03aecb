"""The classification of errors, and what contains the permanent ones."""

from __future__ import annotations

from http.client import BadStatusLine
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
)

from vigil_core.domain.errors import (
    InvalidTransition,
    MalformedRequest,
    StoreConflict,
    TargetUnreachable,
    ValidationFailed,
)
from vigil_core.domain.executors.targets import ExecutorBusy, ExecutorRefused
from vigil_core.gateways.sqs import NotSent
from vigil_core.runtime.failures import add_error, apply_in_halves, contain, error_name, is_transient
from vigil_core.store.table import ConditionFailed


def aws_error(code: str, *, status: int = 400, reasons: tuple[str, ...] = ()) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": "secret data"},
        "ResponseMetadata": {"HTTPStatusCode": status},
        "CancellationReasons": [{"Code": reason} for reason in reasons],
    }
    return ClientError(response, "Operation")


TRANSIENT: list[Exception] = [
    aws_error("ProvisionedThroughputExceededException"),
    aws_error("ThrottlingException"),
    aws_error("TooManyRequestsException", status=429),
    aws_error("TransactionConflictException"),
    aws_error("TransactionCanceledException", reasons=("None", "ThrottlingError")),
    aws_error("AnyCode", status=503),
    aws_error("AccessDeniedException"),
    aws_error("ExpiredTokenException"),
    EndpointConnectionError(endpoint_url="https://sqs"),
    ReadTimeoutError(endpoint_url="https://sqs"),
    NoCredentialsError(),
    ConnectionResetError(),
    TimeoutError(),
    BadStatusLine("garbage"),
    StoreConflict("busy"),
    ConditionFailed(None),
    ExecutorBusy("busy"),
    TargetUnreachable("no answer"),
    NotSent("throttled"),
]
PERMANENT: list[Exception] = [
    aws_error("ValidationException"),
    aws_error("InvalidMessageContents"),
    aws_error("TransactionCanceledException", reasons=("None", "ValidationError")),
    ParamValidationError(report="bad"),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    ValueError("bad"),
    KeyError("bad"),
    RecursionError(),
    MemoryError(),
    OverflowError(),
    AssertionError(),
    InvalidTransition("bad"),
    MalformedRequest("bad"),
    ValidationFailed.at("/x", "bad"),
    ExecutorRefused("bad"),
    NotSent("refused", transient=False),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_error_from_outside_is_transient(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", PERMANENT, ids=repr)
def test_error_that_the_data_causes_is_permanent(error: Exception) -> None:
    assert not is_transient(error)


@pytest.mark.parametrize("error", [*TRANSIENT, *PERMANENT], ids=repr)
def test_name_of_an_error_contains_none_of_its_data(error: Exception) -> None:
    assert error_name(error).replace("_", "").isalnum()


def test_permanent_error_is_contained_and_a_transient_one_is_raised() -> None:
    def fail(error: Exception) -> str:
        raise error

    assert contain(lambda: "done", lambda _: "ended") == "done"
    assert contain(lambda: fail(ValueError("bad")), error_name) == "ValueError"
    with pytest.raises(TimeoutError):
        contain(lambda: fail(TimeoutError()), error_name)


def test_transient_error_replaces_a_permanent_one() -> None:
    errors: dict[str, Exception] = {}
    first, transient = ValueError("first"), TimeoutError()
    for error in (first, ValueError("second"), transient, TimeoutError()):
        add_error(errors, "key", error)
    assert errors["key"] is transient
    add_error(errors, "key", first)
    assert errors["key"] is transient


@pytest.mark.parametrize("bad", [set(), {0}, {6}, {1, 2, 5}, set(range(7))])
def test_permanent_error_of_a_group_is_reported_for_its_items_only(bad: set[int]) -> None:
    done: list[int] = []
    reported: list[int] = []

    def work(items: Any) -> None:
        if bad.intersection(items):
            raise ValueError(items)
        done.extend(items)

    apply_in_halves(range(7), work, lambda items, _: reported.extend(items))
    assert set(reported) == bad
    assert sorted(done) == sorted(set(range(7)) - bad)


def test_transient_error_of_a_group_is_reported_for_all_its_items() -> None:
    def work(_: Any) -> None:
        raise TimeoutError

    reported: list[Any] = []
    apply_in_halves(range(7), work, lambda items, _: reported.append(list(items)))
    assert reported == [list(range(7))]
