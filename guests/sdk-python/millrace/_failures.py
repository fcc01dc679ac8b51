"""The input of an error handler."""

from __future__ import annotations

from enum import Enum
from typing import Any

from ._batch import Message


class Cause(Enum):
    """How an attempt failed."""

    RETRY = "retry"
    """The processor asked for a retry."""
    REJECT = "reject"
    """The processor rejected the message."""
    TRAP = "trap"
    """The processor trapped."""
    TIMEOUT = "timeout"
    """The processor did not answer in time."""
    MEMORY = "memory"
    """The processor ran out of memory."""
    BAD_ANSWER = "bad-answer"
    """The processor's answer was malformed."""


class Failure:
    """A failed message.

    message          the message
    revision         the processor's revision that failed
    attempt          the number of attempts so far, under all revisions, including this one
    first_failed_at  when the first attempt failed, in milliseconds since the Unix epoch
    cause            how this attempt failed
    class_           the short word by which failures are grouped
    reason           the explanation for people
    """

    __slots__ = ("attempt", "cause", "class_", "first_failed_at", "message", "reason", "revision")

    message: Message
    revision: int
    attempt: int
    first_failed_at: int
    cause: Cause
    class_: str
    reason: str

    def __init__(self, message: Message, facts: Any) -> None:
        self.message = message
        self.revision = facts.revision
        self.attempt = facts.attempt
        self.first_failed_at = facts.first_failed_at
        # The bindings have an enum of their own, with the same names.
        self.cause = facts.cause if isinstance(facts.cause, Cause) else Cause[facts.cause.name]
        self.class_ = facts.class_
        self.reason = facts.reason
