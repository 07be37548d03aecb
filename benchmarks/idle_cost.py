"""What a deployment costs while nobody uses it: computed from one idle minute, which was measured, and AWS's prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cost_model import PRICES, READ, WRITE, Bill
from tests.support.template import resources

MINUTES = 730 * 60
"""In a month, as AWS counts them."""
POLLS = 5 * 3
"""A minute, of each queue: Lambda keeps five long polls of 20 s on it.
https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-scaling.html"""
INVOCATION_S = 0.05
SWEEPER_GB = 0.25
LOG_BYTES = 900
"""START, END, REPORT and the function's own line."""

GB_SECOND = 16.6667
FIFO = 0.50
LOG_GB = 500_000
TRACE = 5.00
"""Dollars a million."""
ALARM = 0.10
"""Dollars a month, at standard resolution: https://aws.amazon.com/cloudwatch/pricing/"""
FREE_ALARMS = 10


@dataclass(frozen=True, kw_only=True)
class CostLine:
    """One line of the month's bill. `basis` says where its quantity comes from."""

    label: str
    quantity: float
    unit: str
    dollars: float
    basis: str


def month(minute: Bill) -> Sequence[CostLine]:
    """The bill of a month of such minutes, without free tier. Nothing else of the template costs while idle: its
    functions, APIs, topic, state machine and streams are paid by use."""
    invocations = MINUTES * minute.invocations
    seconds = invocations * INVOCATION_S * SWEEPER_GB
    sent = minute["sqs.requests"]
    gigabytes = invocations * LOG_BYTES / 1e9

    def line(what: str, quantity: float, unit: str, price: float, basis: str) -> CostLine:
        return CostLine(label=what, quantity=quantity, unit=unit, dollars=quantity * price / 1e6, basis=basis)

    return [
        line("DynamoDB writes", MINUTES * minute.write_units, "write units", PRICES[WRITE], "measured"),
        line("DynamoDB reads", MINUTES * minute[READ], "read units", PRICES[READ], "measured"),
        line("Lambda requests", invocations, "invocations", PRICES["lambda."], "measured"),
        line("Lambda compute", seconds, "GB-seconds", GB_SECOND, f"{1000 * INVOCATION_S:.0f} ms each, assumed"),
        line("SQS messages", 2 * MINUTES * sent, "requests", PRICES["sqs.requests"], "measured; each is deleted too"),
        line(
            "SQS polls, sweeper's queue", MINUTES * POLLS, "requests", PRICES["sqs.requests"], "5 long polls at a time"
        ),
        line("SQS polls, fan-out queue", MINUTES * POLLS, "requests", FIFO, "5 long polls at a time"),
        line("Logs", gigabytes, "GB", LOG_GB, f"{LOG_BYTES} bytes an invocation, assumed"),
        line("X-Ray traces", invocations, "traces", TRACE, "at most: one a second is sampled"),
        alarms(),
    ]


def alarms() -> CostLine:
    """The template's alarms, none of them free."""
    count = len(resources("AWS::CloudWatch::Alarm"))
    basis = f"those of the template; an account's first {FREE_ALARMS} are free"
    return CostLine(label="Alarms", quantity=count, unit="alarms", dollars=count * ALARM, basis=basis)
