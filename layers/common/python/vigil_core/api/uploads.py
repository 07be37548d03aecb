"""The route of uploads."""

from __future__ import annotations

from vigil_core.api.routing import Call, ResponseSpec, RouteResponse, Routes
from vigil_core.domain.access import Scope
from vigil_core.domain.errors import IdempotencyInProgress, IdempotencyKeyReused
from vigil_core.domain.timestamps import to_text
from vigil_core.schemas.base import ResponseModel, TimestampText
from vigil_core.schemas.uploads import NewUploadBody
from vigil_core.services.idempotency import HttpResponse, run_idempotent
from vigil_core.services.jobs.uploads import create_upload_url
from vigil_core.services.limits.admission import admit_upload

ROUTES = Routes("jobs")


class UploadView(ResponseModel):
    """The URL of an upload, for a PUT without API key until `expires_at`.

    `reference` names the upload in `payload_ref` or `result_ref` for one day.
    """

    reference: str
    url: str
    size: int
    expires_at: TimestampText


@ROUTES.route(
    "POST",
    "/v1/uploads",
    scope=Scope.READ,
    headers=("Idempotency-Key",),
    responses={201: ResponseSpec(description="The URL and the reference of the upload", models=(UploadView,))},
    problems=(IdempotencyKeyReused, IdempotencyInProgress),
)
def create_upload(call: Call, body: NewUploadBody) -> RouteResponse:
    """Create an upload for a payload or result over 2 MB.

    Send the content to the URL with PUT, then use the reference in the request that needs it. The API key must have
    `submit` or `work`.
    """
    if not call.access.allows(Scope.WORK):
        call.access.require(Scope.SUBMIT)

    def reserve(reserved_id: str, resumed: bool) -> HttpResponse:
        if not resumed:
            admit_upload(call.context, call.namespace, body.size)
        return 201, reserved_id

    status, reference = run_idempotent(
        call.context,
        call.namespace,
        route="POST /v1/uploads",
        key=call.request.idempotency_key,
        request=body.model_dump(),
        action=reserve,
    )
    # A repeated request returns the same reference with a new signed URL.
    upload = create_upload_url(call.context, call.namespace, str(reference), body.size)
    view = UploadView(
        reference=upload.reference, url=upload.url, size=upload.size, expires_at=to_text(upload.expires_at)
    )
    return RouteResponse(status=status, body=view)
