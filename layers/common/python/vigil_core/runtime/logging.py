"""The log: structured lines on standard output, which Lambda keeps."""

from __future__ import annotations

from aws_lambda_powertools import Logger

logger = Logger()
