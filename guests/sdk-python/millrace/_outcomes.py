"""What becomes of a message."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Iterable, Mapping, NamedTuple, Sequence

if TYPE_CHECKING:
    from ._batch import Batch

ACK, EMIT, RETRY, REJECT = range(4)


class _Keep:
    """Says that an output keeps a part of its message."""

    def __repr__(self) -> str:
        return "KEEP"


#: The default of the parts of an output: as in the message.
KEEP = _Keep()


#: What keys, values and values of headers are made of.
Content = str | bytes | bytearray | memoryview
Headers = Mapping[str, "Content | None"] | Iterable[tuple[str, "Content | None"]]


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
        headers: tuple[tuple[str | bytes, str | bytes | None], ...] | None,
        rest: Rest | None,
    ) -> None:
        self.batch = batch
        self.source = source
        self.value = value
        self.key = key
        # As `own_pairs` returns them.
        self.headers = headers
        # What few outputs change: None is none of it.
        self.rest = rest


def own(given: Any) -> str | bytes | None:
    """Text or bytes that nobody changes any more; None as it is."""
    if given.__class__ is bytes or given.__class__ is str or given is None:
        return given
    if isinstance(given, str):
        return str(given)
    if isinstance(given, (bytes, bytearray, memoryview)):
        return bytes(given)
    raise TypeError(f"{describe(given)} is neither text, bytes nor None: use json.dumps(…) for JSON, str(…) for numbers")


def own_pairs(headers: Headers) -> tuple[tuple[str | bytes, str | bytes | None], ...]:
    """Names and values of headers that nobody changes any more."""
    pairs = headers.items() if hasattr(headers, "items") else headers
    return tuple([(own(name) or "", own(value)) for name, value in pairs])


def describe(value: Any) -> str:
    """A value that a handler gave by mistake, in words."""
    if hasattr(value, "__await__"):
        return "a coroutine (handlers answer at once; they cannot be async)"
    return "None" if value is None else f"a value of type {type(value).__name__}"


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
    """Try again after this many milliseconds. Raises ValueError if they are less than 0."""
    return Outcome(RETRY, (), whole_ms(after_ms), class_, reason)


def reject(class_: str, reason: str) -> Outcome:
    """Give the message up: it becomes a dead letter."""
    return Outcome(REJECT, (), None, class_, reason)


def whole_ms(ms: float) -> int:
    """A delay as the host takes it."""
    if not ms >= 0:
        raise ValueError(f"{ms} is no delay: give milliseconds, 0 or more")
    return min(round(ms), (1 << 64) - 1)
