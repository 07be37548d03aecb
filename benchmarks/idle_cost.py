"""Monthly costs of an idle deployment, computed from one measured idle minute and AWS's prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cost_model import PRICES, READ, WRITE, Bill
from tests.support.template import resources

MINUTES = 730 * 60
"""The minutes of a month of 730 hours, as AWS counts it."""
POLLS = 5 * 3
"""Requests per minute and queue: Lambda keeps five long polls of 20 s open.
https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-scaling.html"""
INVOCATION_S = 0.05
SWEEPER_GB = 0.25
LOG_BYTES = 900
"""The size of START, END, REPORT and one line of the function."""

GB_SECOND = 16.6667
FIFO = 0.50
LOG_GB = 500_000
TRACE = 5.00
"""Dollars per million."""
ALARM = 0.10
"""Dollars per month at standard resolution: https://aws.amazon.com/cloudwatch/pricing/"""
FREE_ALARMS = 10


@dataclass(frozen=True, kw_only=True)
class CostLine:
    """One line of the monthly bill. `basis` is the source of its quantity."""

    label: str
    quantity: float
    unit: str
    dollars: float
    basis: str


def month(minute: Bill) -> Sequence[CostLine]:
    """Return the bill of a month of such minutes, without the free tier.

    Functions, APIs, topic, state machine and streams of the template are paid by use, so they cost nothing while idle.
    """
    invocations = MINUTES * minute.invocations
    seconds = invocations * INVOCATION_S * SWEEPER_GB
    sent = minute["sqs.requests"]
    gigabytes = invocations * LOG_BYTES / 1e9

    def line(label: str, quantity: float, unit: str, price: float, basis: str) -> CostLine:
        return CostLine(label=label, quantity=quantity, unit=unit, dollars=quantity * price / 1e6, basis=basis)

    return [
        line("DynamoDB writes", MINUTES * minute.write_units, "write units", PRICES[WRITE], "measured"),
        line("DynamoDB reads", MINUTES * minute[READ], "read units", PRICES[READ], "measured"),
        line("Lambda requests", invocations, "invocations", PRICES["lambda."], "measured"),
        line("Lambda compute", seconds, "GB-seconds", GB_SECOND, f"{1000 * INVOCATION_S:.0f} ms each, assumed"),
        line(
            "SQS messages",
            2 * MINUTES * sent,
            "requests",
            PRICES["sqs.requests"],
            "measured; each message is also deleted",
        ),
        line(
            "SQS polls, sweeper's queue", MINUTES * POLLS, "requests", PRICES["sqs.requests"], "5 concurrent long polls"
        ),
        line("SQS polls, fan-out queue", MINUTES * POLLS, "requests", FIFO, "5 concurrent long polls"),
        line("Logs", gigabytes, "GB", LOG_GB, f"{LOG_BYTES} bytes per invocation, assumed"),
        line("X-Ray traces", invocations, "traces", TRACE, "upper bound: one per second is sampled"),
        alarms(),
    ]


def alarms() -> CostLine:
    """Return the costs of the template's alarms, without the free ones."""
    count = len(resources("AWS::CloudWatch::Alarm"))
    basis = f"alarms of the template; the first {FREE_ALARMS} of an account are free"
    return CostLine(label="Alarms", quantity=count, unit="alarms", dollars=count * ALARM, basis=basis)
