"""Schemathesis on the handler: every response matches the OpenAPI document, and no request causes a 5xx."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any
from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance, unsupported_method

from functions.api.handler import handler
from tests.model.moto_table import direct_tables
from tests.support.api import Client, LambdaContext, deployed, event
from tests.support.draws import no_constants_of_modules
from vigil_core.api.routes import openapi

KEY = "Bearer vgl_demo"
THOROUGH = "VIGIL_THOROUGH" in os.environ
"""Whether to send 15 random requests for each route, and one for each keyword of its schema: `make test-all` does."""
EXAMPLES = 15 if THOROUGH else 5
pytestmark = [pytest.mark.generated, pytest.mark.timeout(600)]

RELATIONS = (
    "/wait_options/mode/at_least", "no wait with this wait_id is stored",
    "TARGET_REFUSED", '"/url"', "/events: is required", "webhooks/waits", '"/target', "MISSING_DEPENDENCY",
    "unknown stage", '"/stages', '"/payload_schema', "is no JMESPath expression", '"/cron', '"/rate', '"/timezone',
    "either cron or rate", "either job or workflow", "at least one of status", "no such upload", "/jobs/", "/workflow",
    "is not the name of a job", "replaces ", "must be absent", "is only for a batch",
    "must be at most 9000-01-01", "needs `depends_on`", "no control characters, bidi controls or noncharacters",
)  # fmt: skip
"""Parts of refusals that depend on stored data or on other members, which no schema can express."""


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Serve the handler as a WSGI application, behind an authorizer that knows one key."""
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
    client = Client(scopes="admin" if headers.get("authorization") == KEY else None)
    asked = event(client, environ["REQUEST_METHOD"], quote(path), body or None, headers, environ["QUERY_STRING"])
    answered = handler({**asked, "rawPath": path}, LambdaContext())
    start_response(f"{answered['statusCode']} ", list(answered["headers"].items()))
    return [answered["body"].encode()]


schema = schemathesis.openapi.from_dict(openapi())
schema.app = app
schema.config.phases.coverage.enabled = THOROUGH


@pytest.fixture
def ids() -> Iterator[dict[str, list[str]]]:
    """Store jobs and waits in all their states, for use in paths.

    Each route has its own, so no other route affects it.
    """
    with deployed(), direct_tables(), no_constants_of_modules():
        client = Client()
        jobs = [client.create(), client.running(), client.ended(), client.ended(payload={"a": 1})]
        wait_on = [{job["job_id"]: {"job_stage": "complete"}} for job in jobs]
        waits = [client.post("/v1/waits", {"wait_on": jobs}, headers={"prefer": "wait=0"}).ok() for jobs in wait_on]
        yield {
            "job_id": [job["job_id"] for job in jobs],
            "wait_id": [wait["wait_id"] for wait in waits],
            "queue": ["default", "empty"],
            "job_type": ["nightly", "fürchterlich viel"],
            "webhook": ["ci", "fürchterlich viel", "waits"],
            "delivery_id": ["1769850043000_x_3"],
            "schedule": ["nightly", "fürchterlich oft"],
            "workflow_id": [
                client.post("/v1/workflows", {"name": "w", "failure_policy": policy, "jobs": [{"name": "a"}]}).ok(202)[
                    "workflow_id"
                ]
                for policy in ("fail_fast", "manual")
            ],
        }


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_generated_requests_get_only_documented_responses(
    case: schemathesis.Case[Any], ids: dict[str, list[str]], number: Iterator[int]
) -> None:
    """Use ids that exist, no long poll, no repeated key and no invented page token: those have tests of their own.

    An HTTP API of API Gateway returns no 405: an unknown route reaches $default, which returns 404.
    """
    turn = next(number)
    for name in case.path_parameters:
        case.path_parameters[name] = ids[name][turn % len(ids[name])]
    if "Prefer" in case.headers or "wait" in case.path:
        case.headers["Prefer"] = "wait=0"
    if re.fullmatch("[!#-~]{1,128}", str(case.headers.get("Idempotency-Key", ""))):
        case.headers["Idempotency-Key"] = str(turn)
    case.query.pop("page_token", None)
    response = case.call(headers={"Authorization": KEY})
    excluded = [unsupported_method]
    if "Idempotency-Key" in case.headers:
        # The value was replaced, or reaches the handler without its surrounding blanks, so it is not the generated one.
        excluded.append(negative_data_rejection)
    if any(said in response.text for said in RELATIONS):
        excluded.append(positive_data_acceptance)
    case.validate_response(response, headers={"Authorization": KEY}, excluded_checks=excluded)


@pytest.fixture
def number() -> Iterator[int]:
    """Yield distinct numbers."""
    return count()
