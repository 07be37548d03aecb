"""CloudWatch metrics of business events, written to the log in the embedded metric format.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

from __future__ import annotations

from collections.abc import Mapping

from aws_lambda_powertools import Metrics
from aws_lambda_powertools.metrics import MetricUnit

METRIC_BY_EVENT_TYPE = {
    "vigil.job.completed": "JobsCompleted",
    "vigil.job.failed": "JobsFailed",
    "vigil.job.cancelled": "JobsCancelled",
    "vigil.job.skipped": "JobsSkipped",
    "vigil.job.lease_expired": "LeasesExpired",
    "vigil.wait.met": "WaitsMet",
    "vigil.wait.expired": "WaitsExpired",
    "vigil.workflow.completed": "WorkflowsCompleted",
    "vigil.workflow.failed": "WorkflowsFailed",
    "vigil.workflow.cancelled": "WorkflowsCancelled",
    "vigil.workflow.paused": "WorkflowsPaused",
    "vigil.workflow.stalled": "WorkflowsStalled",
    "vigil.schedule.refused": "ScheduleFiresRefused",
}
"""The metric name of each counted event type. CloudWatch bills each name per month."""


def count_dead_letters(metrics: Metrics, count: int) -> None:
    """Add the number of stream records that became dead letters. An alarm watches this metric."""
    if count:
        metrics.add_metric(name="DeadLetters", unit=MetricUnit.Count, value=count)
        metrics.flush_metrics()


def count_events(metrics: Metrics, by_type: Mapping[str, int]) -> None:
    """Add the numbers of events to the metrics. A redelivered record is counted again."""
    for event_type, name in METRIC_BY_EVENT_TYPE.items():
        if count := by_type.get(event_type):
            metrics.add_metric(name=name, unit=MetricUnit.Count, value=count)
    if metrics.metric_set:
        metrics.flush_metrics()
