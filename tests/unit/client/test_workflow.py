"""The builder of workflows, and definitions in files."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.scalars import json_values
from vigil import strict_yaml as yamltext
from vigil.client import VigilError
from vigil.workflow import Workflow, all_of, race
from vigil_core.domain import exact_json
from vigil_core.domain.exact_json import json_problems, loads

PIPELINE = """\
name: data_pipeline
description: Daily data processing pipeline
failure_policy: continue_on_failure
jobs:
- name: extract
  queue: etl_queue
  payload: {source: production_db}
  depends_on: []
- name: transform
  queue: etl_queue
  payload: {rules: business_logic.json}
  depends_on: [extract]
- {name: load, queue: etl_queue, payload: {destination: data_warehouse}, depends_on: [transform]}
"""


def edges(workflow: Workflow) -> dict[str, list[str]]:
    return {job["name"]: job["depends_on"] for job in workflow.to_dict()["jobs"]}


def test_builder_chains_jobs() -> None:
    workflow = Workflow("etl_pipeline", failure_policy="fail_fast", timeout=7200, correlation_id="daily-001")
    extract = workflow.job("extract", payload={"source": "database_table"}, queue="etl")
    extract.then("transform", "spark", {"operations": []}, retry={"max_attempts": 3}).then("load")
    assert workflow.to_dict() == {
        "version": "1",
        "name": "etl_pipeline",
        "failure_policy": "fail_fast",
        "timeout": 7200,
        "correlation_id": "daily-001",
        "jobs": [
            {"name": "extract", "payload": {"source": "database_table"}, "queue": "etl", "depends_on": []},
            {
                "name": "transform",
                "job_type": "spark",
                "payload": {"operations": []},
                "retry": {"max_attempts": 3},
                "depends_on": ["extract"],
            },
            {"name": "load", "depends_on": ["transform"]},
        ],
    }
    workflow.validate()


def test_builder_fans_out_and_joins_parallel_jobs() -> None:
    workflow = Workflow("fan")
    split = workflow.job("split")
    chunks = split.parallel([{"name": f"chunk_{n}", "job_type": "chunk", "payload": {"id": n}} for n in range(3)])
    chunks.then("aggregate")
    workflow.parallel(["us-east", "eu-west"]).then("summary")
    workflow.job("report", depends_on=[chunks, "summary", split])
    assert edges(workflow) == {
        "split": [],
        **{f"chunk_{n}": ["split"] for n in range(3)},
        "aggregate": ["chunk_0", "chunk_1", "chunk_2"],
        "us-east": [],
        "eu-west": [],
        "summary": ["us-east", "eu-west"],
        "report": ["chunk_0", "chunk_1", "chunk_2", "summary", "split"],
    }
    assert workflow.to_dict()["jobs"][1] == {
        "name": "chunk_0", "job_type": "chunk", "payload": {"id": 0}, "depends_on": ["split"]
    }  # fmt: skip
    workflow.validate()


def test_builder_adds_race_and_all_of_joins_with_timeouts_and_fallbacks() -> None:
    workflow = Workflow("compose")
    mirrors = workflow.parallel(["near", "far"]).with_timeout(30)
    won = race(mirrors, name="fastest")
    config = workflow.job("config").with_fallback({"env": "default"})
    all_of([won, config], name="ready").then("run")
    jobs = {job.pop("name"): job for job in workflow.to_dict()["jobs"]}
    assert jobs == {
        "near": {"depends_on": [], "timeout": 30},
        "far": {"depends_on": [], "timeout": 30},
        "fastest": {
            "executor": "join",
            "trigger_rule": "one_success",
            "cancel_losers": True,
            "depends_on": ["near", "far"],
        },
        "config": {"depends_on": [], "fallback": {"env": "default"}},
        "ready": {"executor": "join", "trigger_rule": "all_success", "depends_on": ["fastest", "config"]},
        "run": {"depends_on": ["ready"]},
    }
    workflow.validate()
    with pytest.raises(ValueError, match="at least one part"):
        race(["near", "far"], name="nobody's")


def test_builder_returns_a_copy_of_the_definition() -> None:
    workflow = Workflow("one")
    workflow.job("a", payload={"n": 1})
    workflow.to_dict()["jobs"][0]["payload"]["n"] = 2
    assert workflow.to_dict()["jobs"][0]["payload"] == {"n": 1}


def test_builder_reports_all_api_problems_together() -> None:
    workflow = Workflow("test")
    workflow.job("a", depends_on="c")
    workflow.job("b", depends_on="a")
    workflow.job("c", depends_on="b")
    with pytest.raises(VigilError, match="a -> b -> c -> a") as caught:
        workflow.validate()
    assert caught.value.code == "CIRCULAR_DEPENDENCY"
    workflow.job("d", depends_on="nobody")
    with pytest.raises(VigilError) as caught:
        workflow.validate()
    assert caught.value.code == "VALIDATION_FAILED"
    assert [(each["pointer"], each["code"]) for each in caught.value.errors] == [
        ("/jobs/0/depends_on/0", "CIRCULAR_DEPENDENCY"),
        ("/jobs/3/depends_on/0", "MISSING_DEPENDENCY"),
    ]


@pytest.mark.parametrize("write", [lambda it: json.dumps(it.to_dict()), Workflow.to_yaml], ids=["json", "yaml"])
def test_written_definition_file_is_read_back_unchanged(tmp_path: Path, write: Callable[[Workflow], str]) -> None:
    workflow = Workflow.from_text(PIPELINE)
    workflow.validate()
    assert workflow.name == "data_pipeline"
    assert edges(workflow) == {"extract": [], "transform": ["extract"], "load": ["transform"]}
    (tmp_path / "file").write_text(write(workflow))
    assert Workflow.from_file(tmp_path / "file").to_dict() == workflow.to_dict()


def alias_bomb(first: str, doubled: str) -> str:
    """Return a short document whose last value has 2 to the power of 60 parts."""
    values = [first, *(doubled.format(f"a{number}") for number in range(60))]
    return "".join(f"a{number}: &a{number} {value}\n" for number, value in enumerate(values))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n- b\n", "not a workflow definition"),
        ('{"name": "x", "jobs": [}', "not JSON"),
        ('{"name": "x", "limit": NaN, "jobs": []}', "NaN is not a number"),
        ('{"name": "x", "jobs": [{"name": "a", "name": "b"}]}', "'name' occurs a second time"),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)), "aliases expand"),
        (
            "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60)),
            "aliases",
        ),
        ("name: [\n", "not YAML.*line 2"),
        ("name: x\nname: y\n", "'name' occurs a second time.*line 2"),
        ("1: x\n", "the key 1 is not text"),
        ("name: !!python/object/apply:os.system ['true']\n", "not YAML"),
        ("name: !!timestamp 2026-01-31\n", "not YAML"),
        ("name: &a [*a]", "not YAML"),
        ("a: b\n---\nc: d\n", "not YAML"),
        ("name: \x07", "not YAML"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "{a: " * 5000, "nested too deeply"),
    ],
)
def test_invalid_definition_text_raises(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Workflow.from_text(text)


@pytest.mark.parametrize(
    ("definition", "pointers"),
    [
        ({"jobs": {}}, ["/jobs"]),
        ({"jobs": None}, ["/jobs"]),
        ({"jobs": [1, {"name": 2, "depends_on": "a", "condition": [], "trigger_rule": "some"}]}, [
            *("/jobs/0", "/jobs/1/name", "/jobs/1/depends_on", "/jobs/1/condition", "/jobs/1/trigger_rule"),
        ]),
        ({}, ["/jobs"]),
    ],
)  # fmt: skip
def test_malformed_definition_reports_pointers(definition: dict[str, Any], pointers: list[str]) -> None:
    with pytest.raises(VigilError) as caught:
        Workflow.from_dict({"name": "x", **definition}).validate()
    assert [each["pointer"] for each in caught.value.errors] == pointers


def test_yaml_scalars_follow_json_and_others_are_text() -> None:
    text = (
        "{date: 2026-01-31, country: no, on: on, octal: 010, time: 1:30, hex: 0x1F, v: 1.10, big: 1e3, n: ~, inf: .inf}"
    )
    assert yamltext.loads(text) == {
        "date": "2026-01-31", "country": "no", "on": "on", "octal": "010", "time": "1:30", "hex": "0x1F",
        "v": Decimal("1.10"), "big": 1000.0, "n": None, "inf": ".inf",
    }  # fmt: skip
    merged = "base: &base {a: 1, b: 2}\njob: {<<: *base, b: 3}\n"
    assert yamltext.loads(merged)["job"] == {"a": 1, "b": 3}


def test_numbers_of_a_definition_keep_their_digits() -> None:
    for text in ('{"name": "x", "version": 1.10, "jobs": []}', "name: x\nversion: 1.10\njobs: []\n"):
        workflow = Workflow.from_text(text)
        assert str(workflow.to_dict()["version"]) == "1.10"
        assert "version: 1.10" in workflow.to_yaml()


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]))
    | st.sampled_from(["no", "1e3", "0x1F", "1:30", "2026-01-31", "~", "", "-1", "<<", "=", "1_000", "010", ".5", "y"])
)


@given(
    st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text("ab<=-#: \n'", min_size=1), inner))
)
def test_yaml_text_parses_to_the_same_value(value: Any) -> None:
    assert yamltext.loads(yamltext.dumps(value)) == value


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("1.0e99999999999999999999999", "an exponent from -9,999"),
        ("-1.5e-10000", "an exponent from -9,999"),
        ("9" * 4301, "at most 4,300 digits"),
        ('"\\ud800"', "half of a surrogate pair"),
    ],
    ids=lambda value: value[:12],
)
@pytest.mark.parametrize(
    "definition", ['{"name": "x", "jobs": [{"payload": [0, %s]}]}', "jobs:\n- payload:\n  - 0\n  - %s\n"]
)
def test_definition_with_a_refused_value_names_it(definition: str, value: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule) as refused:
        Workflow.from_text(definition % value)
    assert str(refused.value).startswith("/jobs/0/payload/1 must")


@given(json_values())
def test_yaml_and_json_definitions_read_the_same_values(value: object) -> None:
    if not any(json_problems(value)):
        document = {"jobs": [value], "name": "x"}
        texts = exact_json.dumps(document), yamltext.dumps(loads(exact_json.dumps(document)))
        read = [Workflow.from_text(text).to_dict() for text in texts]
        assert read[0] == read[1] == loads(texts[0])
