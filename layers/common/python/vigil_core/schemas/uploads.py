"""Request models of uploads."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from vigil_core.domain.exact_json import integral_to_int
from vigil_core.schemas.base import RequestModel

MAX_UPLOAD_BYTES = 100 * 1024 * 1024


class NewUploadBody(RequestModel):
    """An upload of exactly this size."""

    size: Annotated[int, Field(ge=1, le=MAX_UPLOAD_BYTES), BeforeValidator(integral_to_int)] = Field(
        description="Size in bytes"
    )
