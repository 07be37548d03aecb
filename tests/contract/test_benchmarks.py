"""The benchmarks page matches the stored results."""

from __future__ import annotations

import json

from benchmarks import report
from benchmarks.__main__ import PAGE, RESULTS


def test_benchmark_page_is_rendered_from_the_stored_results() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == report.markdown(results), "run: python -m benchmarks --render"
