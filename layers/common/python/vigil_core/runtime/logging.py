"""The structured log on standard output, which Lambda sends to CloudWatch Logs."""

from __future__ import annotations

from aws_lambda_powertools import Logger

logger = Logger()
