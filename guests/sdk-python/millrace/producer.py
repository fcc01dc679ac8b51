"""Messages that the component of a route sends while it answers a request. Each call is one commit: when it returns, all of its messages
are stored, or none is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from . import _host
from ._batch import NONE

#: The offset of a message that is delivered later.
_LATER = 0xFFFFFFFFFFFFFFFF

_Bytes = str | bytes | None


@dataclass
class Outgoing:
    """A message to send. Key, value and headers are text, bytes or None.

    partition   instead of leaving it to the topic's partitioner
    timestamp   in milliseconds since the Unix epoch, instead of now
    deliver_at  the time of delivery, in milliseconds since the Unix epoch
    """

    value: _Bytes = None
    key: _Bytes = None
    headers: Mapping[str, _Bytes] | Sequence[tuple[str, _Bytes]] = field(default_factory=dict)
    partition: int | None = None
    timestamp: int | None = None
    deliver_at: int | None = None


class Place(NamedTuple):
    """Where a message is; the offset is None if it is delivered later."""

    partition: int
    offset: int | None


class Sent(NamedTuple):
    """Sent messages.

    places    where they are, in order
    repeated  whether an earlier call with the same key sent them, and this one did nothing
    """

    places: list[Place]
    repeated: bool


class SendError(Exception):
    """Why messages were not sent; nothing was stored. One of the classes below."""


class NotGranted(SendError):
    """The route is not granted this topic."""


class Refused(SendError):
    """The topic does not take these messages; to repeat the call does not help."""


class KeyReused(SendError):
    """The key was used before, for other messages."""


class Unavailable(SendError):
    """The host cannot store messages now; a later call may succeed."""


def send(topic: str, messages: Iterable[Outgoing]) -> Sent:
    """Sends messages to a topic. Raises `SendError`."""
    return _send(topic, messages, None)


def send_once(topic: str, key: str, messages: Iterable[Outgoing]) -> Sent:
    """Like `send`, once: a repeat with the same key, by any request to this route, returns the first places. A provider's message id makes
    a repeated webhook one message."""
    return _send(topic, messages, key)


def settled(processor: str, topic: str, sent: Sent, ms: int) -> bool:
    """Waits until a processor has settled messages of a topic; False if it has not within this many milliseconds, which are also part of
    the request's own time. Raises `SendError`."""
    host = _host.of("producer")
    offsets = [_LATER if place.offset is None else place.offset for place in sent.places]
    places = host.Sent([place.partition for place in sent.places], offsets, sent.repeated)
    try:
        return host.settled(processor, topic, places, ms)
    except Exception as error:
        raise _error(error) from None


def _send(topic: str, messages: Iterable[Outgoing], key: str | None) -> Sent:
    host = _host.of("producer")
    try:
        sent = host.send(topic, _columns(host, messages), key)
    except Exception as error:
        raise _error(error) from None
    pairs = zip(sent.partitions, sent.offsets)
    places = [Place(partition, None if offset == _LATER else offset) for partition, offset in pairs]
    return Sent(places, sent.repeated)


def _columns(host: Any, messages: Iterable[Outgoing]) -> Any:
    parts: list[bytes] = []
    length = 0

    def put(value: _Bytes) -> tuple[int, int]:
        nonlocal length
        if value is None:
            return 0, NONE
        stored = value.encode() if isinstance(value, str) else value
        if not isinstance(stored, bytes):
            raise TypeError(f"text or bytes are expected, not a {type(value).__name__}: use json.dumps(…) for JSON")
        start = length
        parts.append(stored)
        length += len(stored)
        return start, len(stored)

    keys: list[int] = []
    values: list[int] = []
    header_ends: list[int] = []
    headers: list[int] = []
    partitions: list[int] = []
    times: list[int] = []
    for message in messages:
        keys += put(message.key)
        values += put(message.value)
        pairs = message.headers.items() if isinstance(message.headers, Mapping) else message.headers
        for name, value in pairs:
            headers += (*put(name), *put(value))
        header_ends.append(len(headers) // 4)
        partitions.append(NONE if message.partition is None else message.partition)
        times += (message.timestamp or 0, message.deliver_at or 0)
    return host.Outgoing(b"".join(parts), keys, values, header_ends, headers, partitions, times)


_ERRORS = {
    "SendError_NotGranted": NotGranted,
    "SendError_Refused": Refused,
    "SendError_KeyReused": KeyReused,
    "SendError_Unavailable": Unavailable,
}


def _error(error: Exception) -> Exception:
    """The host's error as ours; the bindings wrap it."""
    case = getattr(error, "value", None)
    known = _ERRORS.get(type(case).__name__)
    return error if known is None else known(case.value)
