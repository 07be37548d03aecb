"""Business events as metrics in the log."""

from __future__ import annotations

import json

import pytest
from aws_lambda_powertools import Metrics

from tests.support.template import template
from vigil_core.runtime.metrics import MEASURED, count_events


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Metrics:
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "vigil")
    made = Metrics(namespace="Vigil")
    made.clear_metrics()
    return made


def test_what_counts_is_one_line_of_the_log(metrics: Metrics, capsys: pytest.CaptureFixture[str]) -> None:
    count_events(metrics, {"vigil.job.completed": 3, "vigil.workflow.stalled": 1, "vigil.job.created": 7})
    said = json.loads(capsys.readouterr().out)
    assert (said["JobsCompleted"], said["WorkflowsStalled"], said["service"]) == ([3.0], [1.0], "vigil")
    assert "vigil.job.created" not in str(said)
    (told,) = said["_aws"]["CloudWatchMetrics"]
    assert (told["Namespace"], told["Dimensions"]) == ("Vigil", [["service"]])


def test_nothing_of_note_is_no_line(metrics: Metrics, capsys: pytest.CaptureFixture[str]) -> None:
    count_events(metrics, {"vigil.job.created": 7})
    assert capsys.readouterr().out == ""


def test_alarms_look_at_metrics_that_there_are() -> None:
    alarms = {
        name: each["Properties"]
        for name, each in template()["Resources"].items()
        if each["Type"] == "AWS::CloudWatch::Alarm"
    }
    own = [each for each in alarms.values() if each["Namespace"] == "Vigil"]
    assert own
    assert {each["MetricName"] for each in own} <= set(MEASURED.values())
    assert all({"Name": "service", "Value": "vigil"} in each["Dimensions"] for each in own)
    assert all("AlarmActions" in each for each in alarms.values())
