"""How much work a regular expression can be: an upper bound from its text alone, for an engine without backtracking."""

from __future__ import annotations

import re

MAX_PATTERN_CHARS = 1_024

_PARTS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]|\{(\d+)(?:,(\d*))?\}|.", re.DOTALL | re.ASCII)


def regex_cost(pattern: str) -> int:
    """How many single characters the pattern spells out once every counted repetition is written in full.

    An engine that reads its text once does at most so many steps for each character of it. `a{3}` weighs 3 and
    `(ab{2}){5}` 15; a class or an escape weighs 1.
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
