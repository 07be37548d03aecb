"""What travels over HTTP for waits. `domain.waitspec` checks requests and `services.wait_answer` builds answers; these
schemas tell the OpenAPI document about them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import RootModel, WithJsonSchema

from vigil_core.api.jobs.models import EXAMPLE_ID
from vigil_core.domain.outbound_policy import MAX_URL_CHARS
from vigil_core.domain.waits.request import MAX_EXPIRES_S, MAX_GET_FIELDS, RESPONSE_KEYS
from vigil_core.domain.waits.wait import MAX_WAIT_JOBS

_TEXT = {"type": "string", "minLength": 1}
_NAMES = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}
_NAME = {"type": "string", "minLength": 1, "maxLength": 128}
_FLAG = {"type": ["boolean", "null"], "description": "Null and true are on, false and absent are off"}
_TIME = {"type": "string", "format": "date-time"}
_STATUS = {"type": "string", "enum": ["waiting", "met", "unmet", "failed_fast", "expired", "cancelled"]}

_CONDITION = {
    "type": ["object", "null"],
    "description": "All of it must hold on one version of the job. Null and {}: the job has ended",
    "properties": {
        "job_stage": {**_TEXT, "description": "This stage or a later one"},
        "milestone": _NAMES,
        "milestones": {**_NAMES, "description": "Every one of them"},
        "progress": False,
        "message": False,
        "result": False,
    },
    "additionalProperties": {
        "type": ["string", "number", "boolean"],
        "description": "The name of a built-in or field, and what its value is as text",
    },
}
_OPTIONS = {
    "type": "object",
    "properties": {
        "get_fields": {
            "description": "What to show of each job that meets its condition",
            "anyOf": [
                {
                    "type": "object",
                    "propertyNames": _NAME,
                    "additionalProperties": {"type": "null"},
                    "maxProperties": MAX_GET_FIELDS,
                },
                {"type": "array", "items": _NAME, "maxItems": MAX_GET_FIELDS},
                {"type": "null"},
            ],
        },
        "fail_fast": _FLAG,
        "mode": {
            "anyOf": [
                {"type": "string", "enum": ["all", "any"]},
                {
                    "type": "object",
                    "properties": {"at_least": {"type": "integer", "minimum": 1, "maximum": MAX_WAIT_JOBS}},
                    "required": ["at_least"],
                    "additionalProperties": False,
                },
            ]
        },
        "return_on": {"type": "string", "enum": ["done", "progress"]},
        "expires_in": {"type": "integer", "minimum": 1, "maximum": MAX_EXPIRES_S, "description": "Seconds"},
        "allow_missing": {**_FLAG, "description": "Wait for jobs that do not exist yet, too"},
        "notify": {
            "type": ["object", "null"],
            "properties": {
                "sns": {"type": "boolean"},
                "webhook": {
                    "type": ["string", "null"],
                    "maxLength": MAX_URL_CHARS,
                    "description": "An https URL to be told how the wait ends, signed by the webhook `waits`",
                },
            },
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}
_JOBS = {"type": "object", "additionalProperties": {"type": "object"}}
_COUNTS = {
    "type": "object",
    "properties": {name: {"type": "integer"} for name in ("total", "met", "unmet")},
    "required": ["total", "met", "unmet"],
}
_SUMMARY = {
    "wait_id": {"type": "string"},
    "status": _STATUS,
    "counts": _COUNTS,
    "wait_options": {**_OPTIONS, "description": "As they were given"},
    "created_at": _TIME,
    "expires_at": _TIME,
    "ended_at": {"anyOf": [_TIME, {"type": "null"}]},
}
_WAIT = {
    **_SUMMARY,
    "waited_jobs": {
        "type": "object",
        "additionalProperties": {"type": "object", "additionalProperties": True},
        "description": "What was met: job_stage and the values asked for",
    },
    "unmet_jobs": {**_JOBS, "description": "What can no longer be met: job_stage and the reason"},
    "wait_on": {
        "type": "object",
        "additionalProperties": _CONDITION,
        "description": "What is left to wait for. Absent once the wait is over",
    },
    "registering": {"type": "boolean", "description": "Not all jobs have been looked at yet"},
    "truncated": {"type": "boolean", "description": "Not all jobs are shown: see jobs_url"},
    "jobs_url": {"type": "string"},
}
_RESPONSE_MEMBERS: dict[str, Any] = {name: {} for name in sorted(RESPONSE_KEYS)}
_REQUEST = {
    "type": "object",
    "properties": {
        "wait_on": {
            "type": "object",
            "additionalProperties": _CONDITION,
            "minProperties": 1,
            "maxProperties": MAX_WAIT_JOBS,
            "examples": [{EXAMPLE_ID: {"job_stage": "boot"}}],
        },
        "wait_options": {**_OPTIONS, "type": ["object", "null"]},
        "waited_jobs": {**_JOBS, "type": ["object", "null"], "description": "From an earlier round; shown unchanged"},
        **_RESPONSE_MEMBERS,
        "unmet_jobs": {**_JOBS, "type": ["object", "null"]},
        "wait_id": {"type": ["string", "null"], "description": "Of an answer posted back: the same wait goes on"},
    },
    "anyOf": [
        {"required": ["wait_on"]},
        {"required": ["wait_id"], "properties": {"wait_id": {"type": "string"}}},
    ],
    "additionalProperties": False,
}
_LIST = {
    "type": "object",
    "properties": {
        "waits": {"type": "array", "items": {"type": "object", "properties": _SUMMARY, "required": [*_SUMMARY]}},
        "next_page_token": {"type": ["string", "null"]},
    },
    "required": ["waits", "next_page_token"],
}
_JOBS_PAGE = {
    "type": "object",
    "properties": {
        "jobs": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "job_id": {"type": "string"},
                    "met": {"type": "boolean"},
                    "values": {"type": "object", "additionalProperties": {"type": "string"}},
                    "job_stage": {"type": ["string", "null"]},
                    "reason": {"type": "string"},
                },
                "required": ["job_id", "met"],
            },
        },
        "next_page_token": {"type": ["string", "null"]},
    },
    "required": ["jobs", "next_page_token"],
}


class WaitBody(RootModel[Annotated[Any, WithJsonSchema(_REQUEST)]]):
    """What to wait for; or the answer of an earlier round, as it stands, to go on with that wait."""


class WaitView(
    RootModel[
        Annotated[
            Any,
            WithJsonSchema(
                {
                    "type": "object",
                    "properties": _WAIT,
                    "required": [*_SUMMARY, "waited_jobs", "unmet_jobs"],
                }
            ),
        ]
    ]
):
    """A wait as it stands."""


class WaitList(RootModel[Annotated[Any, WithJsonSchema(_LIST)]]):
    """One page of waits, newest first. It may be short; only an absent token is the end."""


class WaitJobs(RootModel[Annotated[Any, WithJsonSchema(_JOBS_PAGE)]]):
    """What became of a wait's jobs, in the order of `wait_on`: values of those met, the reason for those not."""
