"""The grammar of patterns, and an upper bound for the cost of a match in an engine without backtracking. Pure.

The engine is Rust's `regex`: https://docs.rs/regex/latest/regex/#syntax. An estimate is only as good as its reading of
the pattern: blanks in `a{ 100 }` or the flag `x` change the meaning of the text. The module therefore reads a strict
subset of the grammar, refuses everything else, and writes the pattern again in one canonical form. The engine receives
only that form, so the engine and the estimate always read the same pattern.
"""

from __future__ import annotations

import re

MAX_PATTERN_CHARS = 1_024

_ESCAPE = re.compile(
    r"\\(?:[pPxuU]\{[^{}\s]*\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[pP][A-Za-z]|b\{[a-z-]+\}|[^pPxuU])",
    re.DOTALL,
)
_GROUP = re.compile(r"\((?:\?(?:P?<[A-Za-z_][A-Za-z0-9_.\[\]]*>|[imsUuR]*(?:-[imsUuR]+)?[:)]))?")
_REPETITION = re.compile(r"\{\s*(?P<min>[0-9]{0,6})\s*(?P<comma>,\s*(?P<max>[0-9]{0,6})\s*)?\}")
_POSIX_CLASS = re.compile(r"\[:\^?[a-z]+:\]")
_CLASS_OPERATOR = re.compile(r"&&|--|~~")


class UnsupportedPattern(Exception):
    """Raised if a pattern is not in the supported grammar; the message is the reason."""


def regex_cost(pattern: str) -> int:
    """Count the single characters of a pattern with every counted repetition written in full.

    An engine without backtracking takes at most this number of steps per byte of its text. `a{3}` costs 3 and
    `(ab{2}){5}` costs 20; a class, an escape, a group or an alternative costs 1.

    Raises:
        UnsupportedPattern: The pattern is not in the supported grammar.
    """
    return parse_pattern(pattern)[1]


def parse_pattern(pattern: str) -> tuple[str, int]:
    """Return the canonical form of a pattern, and its cost.

    Raises:
        UnsupportedPattern: The pattern is not in the supported grammar.
    """
    parts: list[str] = []
    group_costs, last_cost, position = [0], 0, 0
    while position < len(pattern):
        char = pattern[position]
        if char == "{":
            repetition, times, position = _parse_repetition(pattern, position)
            parts.append(repetition)
            group_costs[-1] += last_cost * (times - 1)
            last_cost *= times
            continue
        if char == "(":
            opening, position = _parse_group(pattern, position)
            parts.append(opening)
            if not opening.endswith(")"):
                group_costs.append(1)
            continue
        if char == ")":
            if len(group_costs) == 1:
                raise UnsupportedPattern("unopened group")
            last_cost = group_costs.pop()
        elif char not in "*+?":
            last_cost = 1
        atom, position = _parse_atom(pattern, position)
        parts.append(atom)
        group_costs[-1] += 0 if char in "*+?" else last_cost
    if len(group_costs) > 1:
        raise UnsupportedPattern("unclosed group")
    return "".join(parts), max(group_costs[0], 1)


def _parse_repetition(pattern: str, position: int) -> tuple[str, int, int]:
    """Return a counted repetition without blanks, the number of copies that it makes, and the position after it."""
    match = _REPETITION.match(pattern, position)
    if match is None or not (match["min"] or match["max"]):
        raise UnsupportedPattern("a brace outside a class must be a repetition like {2,5}, or escaped")
    low, high = int(match["min"] or 0), int(match["max"] or 0)
    if match["comma"] is None:
        return f"{{{low}}}", max(low, 1), match.end()
    return f"{{{low},{match['max'] and high}}}", max(low, high, 1), match.end()


def _parse_group(pattern: str, position: int) -> tuple[str, int]:
    match = _GROUP.match(pattern, position)
    if match is None or (match[0] == "(" and pattern.startswith("(?", position)):
        raise UnsupportedPattern(
            "a group is (...), (?:...), (?<name>...) or has flags except x; look-around is refused"
        )
    return match[0], match.end()


def _parse_atom(pattern: str, position: int) -> tuple[str, int]:
    """Return the canonical form of a character, an escape or a class, and the position after it."""
    match pattern[position]:
        case "\\":
            return _parse_escape(pattern, position)
        case "[":
            return _parse_class(pattern, position)
        case "}" | "]" as bracket:
            return f"\\{bracket}", position + 1
        case char:
            return char, position + 1


def _parse_escape(pattern: str, position: int) -> tuple[str, int]:
    match = _ESCAPE.match(pattern, position)
    if match is None:
        raise UnsupportedPattern("incomplete escape sequence")
    return match[0], match.end()


def _parse_class(pattern: str, position: int) -> tuple[str, int]:
    """Return a class with each literal bracket and brace escaped, and the position after it."""
    parts: list[str] = []
    depth, starts = 0, False
    while position < len(pattern):
        char = pattern[position]
        posix_class, operator = _POSIX_CLASS.match(pattern, position), _CLASS_OPERATOR.match(pattern, position)
        if depth and posix_class is not None:
            parts.append(posix_class[0])
            position = posix_class.end()
        elif char == "[":
            depth += 1
            opening = "[^" if pattern.startswith("[^", position) else "["
            parts.append(opening)
            position += len(opening)
            starts = True
            continue
        elif char == "]" and not starts:
            depth -= 1
            parts.append(char)
            position += 1
        elif operator is not None:
            parts.append(operator[0])
            position = operator.end()
        elif char == "\\":
            escape, position = _parse_escape(pattern, position)
            parts.append(escape)
        else:
            parts.append(f"\\{char}" if char in "]{}()&~#" or (char == "-" and starts) else char)
            position += 1
        starts = False
        if not depth:
            return "".join(parts), position
    raise UnsupportedPattern("unclosed character class")
