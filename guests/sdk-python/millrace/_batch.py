"""Messages over the columns of a call (wit/types.wit)."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Iterator

from ._outcomes import KEEP, Content, Headers, Output, Rest, _Keep, own, own_pairs

#: The length that means "none".
NONE = 0xFFFFFFFF


class Batch:
    """Messages of one partition, in order. `len(batch)`, `batch[0]`, and `for message in batch` work as in a list; an index that is less than
    0, or that no message has, raises IndexError."""

    __slots__ = ("columns", "data", "keys", "length", "partition", "topic", "values")

    #: The topic that the messages come from.
    topic: str
    #: The partition that the messages come from.
    partition: int

    def __init__(self, columns: Any) -> None:
        self.columns = columns
        self.topic = columns.topic
        self.partition = columns.partition
        self.data = columns.data
        self.keys = columns.keys
        self.values = columns.values
        self.length = len(columns.timestamps)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Message:
        if not 0 <= index < self.length:
            raise IndexError(f"a batch of {self.length} has no message {index}")
        return Message(self, index)

    def __iter__(self) -> Iterator[Message]:
        for index in range(self.length):
            yield Message(self, index)

    def span(self, start: int, length: int) -> bytes | None:
        """The bytes of a span; None for none."""
        return None if length == NONE else self.data[start : start + length]

    def headers_of(self, index: int) -> range:
        """Where the headers of a message stand in the column."""
        ends = self.columns.header_ends
        return range(4 * ends[index - 1] if index else 0, 4 * ends[index], 4)


class Message:
    """A message of a batch."""

    __slots__ = ("_batch", "_value", "index")

    #: Its index in the batch, from 0.
    index: int

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self._value = KEEP
        self.index = index

    @property
    def key(self) -> bytes | None:
        """The key, if there is one."""
        batch, at = self._batch, 2 * self.index
        start, length = batch.keys[at], batch.keys[at + 1]
        return None if length == NONE else batch.data[start : start + length]

    @property
    def value(self) -> bytes | None:
        """The value, if it has one. A message without a value is a tombstone, as in Kafka."""
        value = self._value
        if value is KEEP:
            batch, at = self._batch, 2 * self.index
            values = batch.values
            start, length = values[at], values[at + 1]
            value = self._value = None if length == NONE else batch.data[start : start + length]
        return value

    def text(self, errors: str = "replace") -> str:
        """The value as text. Bytes that are not UTF-8 become U+FFFD; with `errors="strict"` they raise UnicodeDecodeError.

        A message without a value has the text "".
        """
        value = self.value
        return "" if value is None else value.decode("utf-8", errors)

    def key_text(self, errors: str = "replace") -> str:
        """The key as text; that of a message without a key is ""."""
        key = self.key
        return "" if key is None else key.decode("utf-8", errors)

    def json(self) -> Any:
        """The value, read as JSON; None if there is no value. Raises ValueError if it is not JSON."""
        value = self.value
        return None if value is None else json.loads(value)

    def header(self, name: str) -> bytes | None:
        """The value of the last header with this name, if there is one and it is not null."""
        batch, wanted = self._batch, name.encode()
        headers = batch.columns.headers
        for at in reversed(batch.headers_of(self.index)):
            if batch.span(headers[at], headers[at + 1]) == wanted:
                return batch.span(headers[at + 2], headers[at + 3])
        return None

    def header_text(self, name: str) -> str | None:
        """The same as text."""
        value = self.header(name)
        return None if value is None else value.decode("utf-8", "replace")

    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        """Names and values of all headers, in order."""
        batch = self._batch
        headers, span = batch.columns.headers, batch.span
        return [
            ((span(headers[at], headers[at + 1]) or b"").decode("utf-8", "replace"), span(headers[at + 2], headers[at + 3]))
            for at in batch.headers_of(self.index)
        ]

    @property
    def timestamp(self) -> int:
        """The timestamp, in milliseconds since the Unix epoch."""
        return self._batch.columns.timestamps[self.index]

    @property
    def offset(self) -> int:
        """Its offset in the partition. Not yet known when a partitioner is called."""
        return self._batch.columns.offsets[self.index]

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1, including attempts of earlier revisions."""
        return self._batch.columns.attempts[self.index]

    @property
    def topic(self) -> str:
        """The topic that it comes from."""
        return self._batch.topic

    @property
    def partition(self) -> int:
        """The partition that it comes from."""
        return self._batch.partition

    def output(
        self,
        value: Content | None | _Keep = KEEP,
        key: Content | None | _Keep = KEEP,
        topic: str | None = None,
        partition: int | None = None,
        headers: Headers | None = None,
        clear_headers: bool = False,
        timestamp: int | datetime | None = None,
        deliver_at: int | datetime | None = None,
    ) -> Output:
        """An output that is this message, with these changes. Parts that are not given stay as they are, and are not copied. Those that are
        given are taken as they are now: buffers and dicts can be used again.

        value, key     text (stored as UTF-8), bytes, bytearray, memoryview, or None to remove it
        topic          sends it to this topic instead of the processor's default output; the processor needs a grant for it
        partition      sends it to this partition instead of letting the topic's partitioner choose
        headers        are added to those of the message; no name that begins with `millrace-`
        clear_headers  removes those of the message first
        timestamp      in milliseconds since the Unix epoch, or a datetime with its time zone
        deliver_at     the same: the host keeps the output until this time, never delivers it earlier, and gives it that timestamp
                       unless another one is given

        Raises TypeError if a value, key or header is neither text, bytes nor None. A time that is none is a ValueError when the batch is
        answered, which is a trap.
        """
        if value.__class__ is not bytes and value.__class__ is not str and value is not KEEP:
            value = own(value)
        if key is not KEEP:
            key = own(key)
        pairs = headers
        if pairs is not None:
            pairs = tuple(headers.items()) if headers.__class__ is dict else own_pairs(headers)
            for _, one in pairs:
                if one.__class__ is not str and one.__class__ is not bytes:
                    pairs = own_pairs(pairs)
                    break
        if topic is None and partition is None and timestamp is None and deliver_at is None and not clear_headers:
            return Output(self._batch, self.index, value, key, pairs, None)
        rest = Rest(topic, partition, clear_headers, timestamp, deliver_at)
        return Output(self._batch, self.index, value, key, pairs, rest)

    def __repr__(self) -> str:
        return f"<message {self.index} of {self.topic}/{self.partition}: key {self.key!r}, value {self.value!r}>"
