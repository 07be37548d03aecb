"""A bucket of dead letters in memory, and the context of the function that fills it."""

from __future__ import annotations

from dataclasses import dataclass, field

from vigil_core.domain.dead_letters import DeadLetter, parse_dead_letter

FUNCTION_ARN = "arn:aws:lambda:us-east-1:123456789012:function:vigil-matcher"


@dataclass
class FakeDeadLetters:
    """The stored dead letters by key. `error` is raised instead if it is set."""

    stored: dict[str, bytes] = field(default_factory=dict)
    error: Exception | None = None

    def put(self, key: str, body: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.stored[key] = body

    def parsed(self) -> list[DeadLetter]:
        return [parse_dead_letter(body) for body in self.stored.values()]


@dataclass(frozen=True)
class InvokedFunction:
    """The context of an invocation of the function."""

    invoked_function_arn: str = FUNCTION_ARN


FUNCTION = InvokedFunction()
