"""What becomes of a message."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Iterable, Mapping, NamedTuple, Sequence

if TYPE_CHECKING:
    from ._batch import Batch

ACK, EMIT, RETRY, REJECT = range(4)


class _Keep:
    """Says that an output keeps a part of its message."""

    def __repr__(self) -> str:
        return "KEEP"


#: The default of the parts of an output: as in the message.
KEEP = _Keep()


Headers = Mapping[str, "str | bytes | None"] | Iterable[tuple[str, "str | bytes | None"]]


class Outcome:
    """The outcome of a message; made by `ack`, `emit`, `retry`, `retry_after` and `reject`."""

    __slots__ = ("after_ms", "class_", "kind", "outputs", "reason")

    def __init__(
        self, kind: int, outputs: Sequence[Output] = (), after_ms: int | None = None, class_: str = "", reason: str = ""
    ) -> None:
        self.kind = kind
        self.outputs = outputs
        self.after_ms = after_ms
        self.class_ = class_
        self.reason = reason


class Output(Outcome):
    """An output of a message, made by `Message.output`. Alone, it is its own outcome: most messages have one output."""

    __slots__ = ("batch", "headers", "key", "rest", "source", "value")

    def __init__(
        self,
        batch: Batch,
        source: int,
        value: str | bytes | None | _Keep,
        key: str | bytes | None | _Keep,
        headers: Headers | None,
        rest: Rest | None,
    ) -> None:
        self.batch = batch
        self.source = source
        self.value = value
        self.key = key
        self.headers = headers
        # What few outputs change: None is none of it.
        self.rest = rest


class Rest(NamedTuple):
    """What few outputs change."""

    topic: str | None
    partition: int | None
    clear_headers: bool
    timestamp: int | datetime | None
    deliver_at: int | datetime | None


class Unavailable(Exception):
    """Raise this if something that the whole processor needs is down: the host pauses, probes, and spends no attempts."""


_ACKED = Outcome(ACK)


def ack() -> Outcome:
    """Done, without outputs."""
    return _ACKED


def emit(*outputs: Output) -> Outcome:
    """Done, with these outputs, in order. Without outputs it is the same as `ack`."""
    if len(outputs) == 1:
        return outputs[0]
    return Outcome(EMIT, outputs) if outputs else _ACKED


def retry(class_: str, reason: str) -> Outcome:
    """Try again later, with the delay of the processor's policy.

    `class_` is a short word by which failures are grouped, `reason` an explanation for people.
    """
    return Outcome(RETRY, (), None, class_, reason)


def retry_after(after_ms: int, class_: str, reason: str) -> Outcome:
    """Try again after this many milliseconds."""
    return Outcome(RETRY, (), whole_ms(after_ms), class_, reason)


def reject(class_: str, reason: str) -> Outcome:
    """Give the message up: it becomes a dead letter."""
    return Outcome(REJECT, (), None, class_, reason)


def whole_ms(ms: float) -> int:
    """A delay as the host takes it."""
    if not ms >= 0:
        raise ValueError(f"{ms} is no delay: give milliseconds, 0 or more")
    return min(round(ms), (1 << 64) - 1)
