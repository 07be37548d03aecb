"""Business events as metrics in the log."""

from __future__ import annotations

import json

import pytest
from aws_lambda_powertools import Metrics

from tests.support.template import template
from vigil_core.runtime.metrics import METRIC_BY_EVENT_TYPE, count_events


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Metrics:
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "vigil")
    made = Metrics(namespace="Vigil")
    made.clear_metrics()
    return made


def test_counted_events_are_logged_as_one_metrics_line(metrics: Metrics, capsys: pytest.CaptureFixture[str]) -> None:
    count_events(metrics, {"vigil.job.completed": 3, "vigil.workflow.stalled": 1, "vigil.job.created": 7})
    said = json.loads(capsys.readouterr().out)
    assert (said["JobsCompleted"], said["WorkflowsStalled"], said["service"]) == ([3.0], [1.0], "vigil")
    assert "vigil.job.created" not in str(said)
    (told,) = said["_aws"]["CloudWatchMetrics"]
    assert (told["Namespace"], told["Dimensions"]) == ("Vigil", [["service"]])


def test_uncounted_events_log_no_metrics_line(metrics: Metrics, capsys: pytest.CaptureFixture[str]) -> None:
    count_events(metrics, {"vigil.job.created": 7})
    assert capsys.readouterr().out == ""


def test_cloudwatch_alarms_use_existing_metrics() -> None:
    alarms = {
        name: each["Properties"]
        for name, each in template()["Resources"].items()
        if each["Type"] == "AWS::CloudWatch::Alarm"
    }
    own = [each for each in alarms.values() if each["Namespace"] == "Vigil"]
    assert own
    assert {each["MetricName"] for each in own} <= {*METRIC_BY_EVENT_TYPE.values(), "DeadLetters"}
    assert all({"Name": "service", "Value": "vigil"} in each["Dimensions"] for each in own)
    assert all("AlarmActions" in each for each in alarms.values())
