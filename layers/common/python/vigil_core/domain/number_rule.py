"""The rule for every number that enters Vigil: at most 4,300 digits, exponent from -9,999 to 9,999. Pure.

Python converts integers of at most 4,300 digits from and to text, and computes with every accepted decimal without an
overflow. An accepted number that Vigil writes as JSON is accepted again.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

MAX_DIGITS = 4_300
"""The limit for the significant digits: https://docs.python.org/3/library/stdtypes.html#int-max-str-digits"""
MAX_EXPONENT = 9_999
"""The limit for the exponent, both as written and of the number in scientific notation."""
DIGITS_RULE = "must have at most 4,300 digits"
EXPONENT_RULE = "must have an exponent from -9,999 to 9,999"
NUMBER_RULE = "must have at most 4,300 digits and an exponent from -9,999 to 9,999"

_INTEGER_LIMIT: int = 10**MAX_DIGITS
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?", re.ASCII)


class NumberRefused(ValueError):
    """A number that breaks the rule. `detail` is `DIGITS_RULE` or `EXPONENT_RULE`."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


def parse_number(text: str) -> int | Decimal:
    """Parse a number in JSON's notation: an int if it has neither a fraction nor an exponent.

    Raises:
        NumberRefused: The number breaks the rule.
        ValueError: The text is not a number in JSON's notation.
    """
    if not _JSON_NUMBER.fullmatch(text):
        raise ValueError("is not a number in the notation of JSON")
    return parse_decimal(text) if set(text) & set(".eE") else parse_integer(text)


def parse_integer(text: str) -> int:
    """Parse an integer in JSON's notation.

    Raises:
        NumberRefused: The integer breaks the rule.
    """
    if len(text) > MAX_DIGITS and len(text.lstrip("-")) > MAX_DIGITS:
        raise NumberRefused(DIGITS_RULE)
    return int(text)


def parse_decimal(text: str) -> Decimal:
    """Parse a number in JSON's notation that has a fraction or an exponent.

    Raises:
        NumberRefused: The number breaks the rule.
    """
    # The text is checked first: the constructor raises an ArithmeticError for an exponent beyond its own limit.
    mantissa, _, exponent = text.lower().partition("e")
    digits = mantissa.lstrip("-0.")
    if len(exponent.lstrip("+-0")) > len(str(MAX_EXPONENT)):
        raise NumberRefused(EXPONENT_RULE)
    if len(digits) - ("." in digits) > MAX_DIGITS:
        raise NumberRefused(DIGITS_RULE)
    number = Decimal(text)
    if abs(number.adjusted()) > MAX_EXPONENT:
        raise NumberRefused(EXPONENT_RULE)
    return number


def obeys_number_rule(number: int | float | Decimal) -> bool:
    """Return whether a number obeys the rule. NaN and the infinities do not."""
    if isinstance(number, int):
        return abs(number) < _INTEGER_LIMIT
    if isinstance(number, float):
        return math.isfinite(number)
    if not number.is_finite():
        return False
    return abs(number.adjusted()) <= MAX_EXPONENT and len(number.as_tuple().digits) <= MAX_DIGITS
