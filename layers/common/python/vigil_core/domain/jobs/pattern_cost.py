"""An upper bound for the cost of a regular expression in an engine without backtracking. Pure."""

from __future__ import annotations

import re

MAX_PATTERN_CHARS = 1_024

_PARTS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]|\{(\d+)(?:,(\d*))?\}|.", re.DOTALL | re.ASCII)


def regex_cost(pattern: str) -> int:
    """Count the single characters of a pattern with every counted repetition written in full.

    An engine without backtracking takes at most this number of steps per character of its text. `a{3}` costs 3 and
    `(ab{2}){5}` costs 15; a class or an escape costs 1.
    """
    group_costs, last_cost = [0], 0
    for part in _PARTS.finditer(pattern):
        match part[0]:
            case "(":
                group_costs.append(0)
                continue
            case ")" if len(group_costs) > 1:
                last_cost = group_costs.pop()
            case "*" | "+" | "?" | "|":
                continue
            case _ if part[1]:
                times = max(int(part[1]), int(part[2] or 0), 1)
                group_costs[-1] += last_cost * (times - 1)
                last_cost *= times
                continue
            case _:
                last_cost = 1
        group_costs[-1] += last_cost
    return sum(group_costs)
