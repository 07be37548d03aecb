"""Costs in AWS's own units, and their prices in dollars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

REQUESTS: Final = "dynamodb.requests"
READ: Final = "dynamodb.read_units"
WRITE: Final = "dynamodb.table_write_units"
INDEX_WRITE: Final = "dynamodb.index_write_units"
HTTP: Final = "http.requests"
INVOCATION: Final = "lambda."
"""A prefix; the function's name follows."""
SQS: Final = "sqs.requests"
TRANSITIONS: Final = "states.transitions"

PRICE_LIST = "us-east-1, on demand, list prices without free tier, 2025"
PRICES: Final[Mapping[str, float]] = {
    READ: 0.125,
    WRITE: 0.625,
    INDEX_WRITE: 0.625,
    INVOCATION: 0.20,
    HTTP: 1.00,
    "sns.requests": 0.50,
    SQS: 0.40,
    "apigatewaymanagementapi.requests": 1.00,
    TRANSITIONS: 25.00,
}
"""Dollars per million. A name that ends in a dot is a prefix."""


@dataclass(frozen=True)
class Bill:
    """Quantities by name. A missing quantity is 0."""

    quantities: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.quantities.get(name, 0)

    def __add__(self, other: Bill) -> Bill:
        return self._merged(other, 1)

    def __sub__(self, other: Bill) -> Bill:
        return self._merged(other, -1)

    def __truediv__(self, divisor: float) -> Bill:
        return Bill({name: amount / divisor for name, amount in self.quantities.items()})

    def _merged(self, other: Bill, sign: int) -> Bill:
        names = sorted({*self.quantities, *other.quantities})
        merged = {name: self[name] + sign * other[name] for name in names}
        return Bill({name: amount for name, amount in merged.items() if amount})

    @property
    def write_units(self) -> float:
        """The write units of the table and its indexes."""
        return self[WRITE] + self[INDEX_WRITE]

    @property
    def invocations(self) -> float:
        """The invocations of all functions."""
        return sum(amount for name, amount in self.quantities.items() if name.startswith(INVOCATION))

    def dollars(self, *prefixes: str) -> float:
        """Return the dollars for a million times this bill: all quantities with a price, or those with a prefix."""
        return sum(
            amount * _price(name)
            for name, amount in self.quantities.items()
            if not prefixes or name.startswith(prefixes)
        )


def _price(name: str) -> float:
    service = f"{name.partition('.')[0]}."
    return PRICES.get(name, PRICES.get(service, 0))
