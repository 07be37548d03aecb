"""The page of what was measured is made of the results that are kept."""

from __future__ import annotations

import json

from benchmarks import report
from benchmarks.__main__ import PAGE, RESULTS


def test_the_page_says_what_the_results_say() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == report.markdown(results), "run: python -m benchmarks --render"
