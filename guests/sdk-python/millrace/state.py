"""State: keys and values of the processor in the partition that its batch comes from.

Writes are committed together with the batch's outputs, and only if their message succeeds: each write names its message. Keys are text
(stored as UTF-8) or bytes; others are a TypeError, and a key or a value beyond its bound is a trap.

The cost is in the number of calls to the host, not of keys: `add_each`, `get_many` and `Writes` add, read and write for a whole batch at
once, or for 10,000 keys at once if there are more. If there is no room, writes raise `StateFull`; a handler that does not catch it retries
its message, or a handler of batches all of them, with the class `state-full`. What earlier ones of several such calls wrote stays, each for
its message; writes of a message that is retried or rejected are discarded.
"""

from __future__ import annotations

import json as _json
from typing import Any, Callable, Iterable, NamedTuple

from . import _host
from ._batch import NONE, Batch, Message

#: Keys that one call to the host accepts.
_CALL_KEYS_MAX = 10_000
#: Bytes that `Writes` passes to one call: half of the maximum, so that there is room for a last large value.
_CALL_BYTES = 4 << 20
_FOREVER = 0xFFFFFFFFFFFFFFFF

Key = str | bytes
Value = str | bytes


class StateFull(Exception):
    """There is no room for more state; nothing was written. Its text says which bound was reached."""


class Entry(NamedTuple):
    """A key and its value."""

    key: bytes
    value: bytes


def get(key: Key) -> bytes | None:
    """The value of a key; None if it has none."""
    name = key_bytes(key)
    found = _host.of("state").get(name, [0, len(name)])
    return part(found.data, found.values, 0)


def text(key: Key) -> str | None:
    """The value of a key as text; None if it has none."""
    value = get(key)
    return None if value is None else value.decode("utf-8", "replace")


def json(key: Key) -> Any:
    """The value of a key, read as JSON; None if it has none. Raises ValueError if it is not JSON."""
    value = get(key)
    return None if value is None else _json.loads(value)


def number(key: Key) -> int | None:
    """The number of a key, as `add` stores it; None if it has none. Raises ValueError if the value is not a number."""
    value = get(key)
    return None if value is None else number_of(value)


def get_many(keys: Iterable[Key]) -> list[bytes | None]:
    """The values of these keys, in the same order, in one call to the host."""
    names = [key_bytes(key) for key in keys]
    values: list[bytes | None] = []
    for start in range(0, len(names), _CALL_KEYS_MAX):
        some = names[start : start + _CALL_KEYS_MAX]
        found = _host.of("state").get(b"".join(some), spans_of(some))
        values += [part(found.data, found.values, at) for at in range(len(some))]
    return values


def set(message: Message, key: Key, value: Value, ttl_ms: int | None = None) -> None:
    """Sets a key on behalf of this message; with `ttl_ms`, it expires after this many milliseconds."""
    name, stored = key_bytes(key), _value(value)
    _write(name + stored, [0, len(name)], [len(name), len(stored)], _how(message, ttl_ms))


def delete(message: Message, key: Key) -> None:
    """Removes a key on behalf of this message."""
    name = key_bytes(key)
    _write(name, [0, len(name)], [0, NONE], _how(message, None))


def add(message: Message, key: Key, delta: int = 1, ttl_ms: int | None = None) -> int:
    """Adds to the number of a key on behalf of this message; returns the sum. An absent key counts as 0.

    With `ttl_ms` the number expires after this many milliseconds; without it, it keeps its expiry.
    """
    name = key_bytes(key)
    deltas = [] if delta == 1 else [delta]
    return _add(name, [0, len(name)], deltas, _how(message, ttl_ms))[0]


def add_each(
    batch: Batch,
    key: Callable[[Message], Key] | None = None,
    delta: Callable[[Message], int] | None = None,
    ttl_ms: Callable[[Message], int | None] | None = None,
) -> list[int]:
    """Each message of the batch adds to a number, in one call to the host; returns the sum after each message.

    key     the key of a message; by default its own, or the empty key if it has none
    delta   how much it adds; by default 1
    ttl_ms  after how many milliseconds the number expires, counted from this message; None is never. By default a number keeps its expiry.
    """
    if key is None:
        data, keys = batch.data, _own_keys(batch)
    else:
        names = [key_bytes(key(message)) for message in batch]
        data, keys = b"".join(names), spans_of(names)
    deltas = [] if delta is None else [delta(message) for message in batch]
    lives = [] if ttl_ms is None else [_life(ttl_ms(message)) for message in batch]
    sums: list[int] = []
    for start in range(0, len(batch), _CALL_KEYS_MAX):
        end = min(start + _CALL_KEYS_MAX, len(batch))
        how = _how_of(lives[start:end], list(range(start, end)))
        sums += _add(data, keys[2 * start : 2 * end], deltas[start:end], how)
    return sums


def scan(prefix: Key, after: Key | None = None, max: int = 1000) -> list[Entry]:
    """Keys that begin with `prefix` and come after `after`, in order, with their values: at most `max`, or fewer if they have many
    bytes. An empty answer is the end."""
    found = _host.of("state").scan(key_bytes(prefix), None if after is None else key_bytes(after), max)
    data, keys, values = found.data, found.keys, found.values
    return [Entry(part(data, keys, at) or b"", part(data, values, at) or b"") for at in range(len(keys) // 2)]


class Writes:
    """Keys to set and to delete, each for its message, in as few calls to the host as possible.

    writes = state.Writes()
    for message in batch:
        writes.set(message, message.key, message.value)
    writes.write()
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    def set(self, message: Message, key: Key, value: Value, ttl_ms: int | None = None) -> None:
        """Sets a key on behalf of this message; with `ttl_ms`, it expires after this many milliseconds."""
        self._add(message, key_bytes(key), _value(value), ttl_ms)

    def delete(self, message: Message, key: Key) -> None:
        """Removes a key on behalf of this message."""
        self._add(message, key_bytes(key), None, None)

    def _add(self, message: Message, key: bytes, value: bytes | None, ttl_ms: int | None) -> None:
        if not self._calls or len(self._calls[-1].messages) >= _CALL_KEYS_MAX or self._calls[-1].length >= _CALL_BYTES:
            self._calls.append(_Call())
        call = self._calls[-1]
        call.keys += call.place(key)
        call.values += (0, NONE) if value is None else call.place(value)
        call.messages.append(message.index)
        call.ttl_ms.append(_life(ttl_ms))

    def write(self) -> None:
        """Writes everything, in the order in which it was added. Raises `StateFull`; writes of earlier calls to the host are kept."""
        calls, self._calls = self._calls, []
        for call in calls:
            lives = call.ttl_ms if any(life != _FOREVER for life in call.ttl_ms) else []
            _write(b"".join(call.parts), call.keys, call.values, _how_of(lives, call.messages))


class _Call:
    """The arguments of one call to the host."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.length = 0
        self.keys: list[int] = []
        self.values: list[int] = []
        self.messages: list[int] = []
        self.ttl_ms: list[int] = []

    def place(self, part: bytes) -> tuple[int, int]:
        start = self.length
        self.parts.append(part)
        self.length += len(part)
        return start, len(part)


def key_bytes(key: Key | None) -> bytes:
    if isinstance(key, str):
        return key.encode()
    if isinstance(key, bytes):
        return key
    if key is None:
        # The key of a message without one.
        return b""
    raise TypeError(f"a key of state is text or bytes, not of type {type(key).__name__}")


def _value(value: Value) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError(
        f"a value of state is text or bytes, not of type {type(value).__name__}: use json.dumps(…) for JSON, state.add(…) for numbers"
    )


def spans_of(parts: list[bytes]) -> list[int]:
    spans: list[int] = []
    start = 0
    for part in parts:
        spans += (start, len(part))
        start += len(part)
    return spans


def _own_keys(batch: Batch) -> list[int]:
    """The batch's keys; that of a message without one is empty."""
    if batch.keys[1::2].count(NONE) == 0:
        return batch.keys
    keys = list(batch.keys)
    for at in range(1, len(keys), 2):
        if keys[at] == NONE:
            keys[at - 1] = keys[at] = 0
    return keys


def part(data: bytes, spans: list[int], at: int) -> bytes | None:
    start, length = spans[2 * at], spans[2 * at + 1]
    return None if length == NONE else data[start : start + length]


def number_of(value: bytes) -> int:
    if len(value) != 8:
        raise ValueError(f"a number in state has 8 bytes, this value has {len(value)}: read it with state.get")
    return int.from_bytes(value, "little", signed=True)


def _life(ttl_ms: int | None) -> int:
    return _FOREVER if ttl_ms is None else round(ttl_ms)


def _how(message: Message, ttl_ms: int | None) -> Any:
    return _how_of([] if ttl_ms is None else [round(ttl_ms)], [message.index])


def _how_of(ttl_ms: list[int], messages: list[int]) -> Any:
    return _host.of("state").Writes(ttl_ms, messages)


def _write(data: bytes, keys: list[int], values: list[int], how: Any) -> None:
    try:
        _host.of("state").set(data, keys, values, how)
    except Exception as error:
        raise _full(error) from None


def _add(data: bytes, keys: list[int], deltas: list[int], how: Any) -> list[int]:
    try:
        return _host.of("state").add(data, keys, deltas, how)
    except Exception as error:
        raise _full(error) from None


def _full(error: Exception) -> Exception:
    """The host's error as ours; the bindings wrap it."""
    case = getattr(error, "value", None)
    return StateFull(case.value) if type(case).__name__ == "StateError_Full" else error
