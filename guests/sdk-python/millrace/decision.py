"""What the host does with a failed message: the decisions of an error handler."""

from __future__ import annotations

from dataclasses import dataclass

from ._outcomes import whole_ms


@dataclass(frozen=True)
class Decision:
    """A decision; made by `retry_after`, `dead_letter`, `drop` and `policy`."""

    name: str
    value: int | str | None = None


def retry_after(after_ms: int) -> Decision:
    """Try again after this many milliseconds. Raises ValueError if they are less than 0."""
    return Decision("retry-after", whole_ms(after_ms))


def dead_letter() -> Decision:
    """Give the message up: it becomes a dead letter."""
    return Decision("dead-letter")


def drop(reason: str) -> Decision:
    """Drop the message; the host counts it and logs the reason."""
    return Decision("drop", str(reason))


def policy() -> Decision:
    """Do what the processor's retry policy says."""
    return Decision("policy")
