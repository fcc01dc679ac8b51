"""Collects outcomes in the answer's columns. A column that no output changes stays empty, which means "as in the input"."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Iterable

from ._batch import NONE, Batch
from ._outcomes import ACK, EMIT, KEEP, Outcome, Output

NO_TIME = 0xFFFFFFFFFFFFFFFF


class Detail:
    """Why a message is retried or rejected."""

    __slots__ = ("after_ms", "class_", "message", "reason")

    def __init__(self, message: int, after_ms: int | None, class_: str, reason: str) -> None:
        self.message = message
        self.after_ms = after_ms
        self.class_ = class_
        self.reason = reason


class Answer:
    """The answer's columns (wit/types.wit)."""

    __slots__ = (
        "data",
        "details",
        "header_ends",
        "headers",
        "keys",
        "outcomes",
        "partitions",
        "sources",
        "times",
        "topic_names",
        "topics",
        "values",
    )


def answer_of(batch: Batch, outcomes: Iterable[Outcome]) -> Answer:
    """The answer to a batch, from one outcome per message."""
    kinds = bytearray()
    details: list[Detail] = []
    outputs: list[Output] = []
    index = 0
    for outcome in outcomes:
        if outcome.__class__ is Output:
            if outcome.source != index or outcome.batch is not batch:
                raise _foreign()
            kinds.append(EMIT)
            outputs.append(outcome)
        elif isinstance(outcome, Outcome):
            kinds.append(outcome.kind)
            if outcome.kind == EMIT:
                for output in outcome.outputs:
                    if not isinstance(output, Output) or output.source != index or output.batch is not batch:
                        raise _foreign()
                outputs.extend(outcome.outputs)
            elif outcome.kind != ACK:
                details.append(Detail(index, outcome.after_ms, str(outcome.class_), str(outcome.reason)))
        else:
            raise TypeError(f"the handler returned {describe(outcome)}: return ack(), emit(…), retry(…) or reject(…)")
        index += 1
    if index != batch.length:
        raise TypeError(f"the handler returned {index} outcomes for {batch.length} messages: return one for each")
    answer = Answer()
    answer.outcomes = bytes(kinds)
    answer.details = details
    _fill(answer, batch, outputs)
    return answer


def describe(value: Any) -> str:
    """A value that a handler returned by mistake, in words."""
    if hasattr(value, "__await__"):
        return "a coroutine (handlers answer at once; they cannot be async)"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _foreign() -> TypeError:
    return TypeError("an output belongs to the message that it was made from: make outputs with message.output(…)")


def _fill(answer: Answer, batch: Batch, outputs: list[Output]) -> None:
    data = _NewBytes(batch)
    answer.sources = [output.source for output in outputs]
    answer.keys = _changed(data, outputs, batch.keys, [output.key for output in outputs])
    answer.values = _changed(data, outputs, batch.values, [output.value for output in outputs])
    answer.headers, answer.header_ends = _headers(data, outputs)
    answer.topic_names, answer.topics = _topics([output.topic for output in outputs])
    answer.partitions = _partitions([output.partition for output in outputs])
    answer.times = _times(outputs)
    answer.data = b"".join(data.parts)


class _NewBytes:
    """Bytes that are not in the batch. Their spans continue behind those of the batch."""

    __slots__ = ("end", "parts")

    def __init__(self, batch: Batch) -> None:
        self.parts: list[bytes] = []
        self.end = len(batch.data)

    def add(self, column: list[int], given: str | bytes | None) -> None:
        """Appends a span to the column."""
        if given is None:
            column += (0, NONE)
            return
        if given.__class__ is str:
            given = given.encode("utf-8", "surrogateescape")
        elif not isinstance(given, (bytes, bytearray, memoryview)):
            raise TypeError(f"{describe(given)} is neither text, bytes nor None: use json.dumps(…) for JSON, str(…) for numbers")
        length = len(given)
        column += (self.end, length)
        self.parts.append(given)
        self.end += length


def _changed(data: _NewBytes, outputs: list[Output], kept: list[int], given: list[Any]) -> list[int]:
    """The column of keys or values."""
    if given.count(KEEP) == len(given):
        return []
    column: list[int] = []
    add = data.add
    for value, output in zip(given, outputs):
        if value is KEEP:
            at = 2 * output.source
            column += kept[at : at + 2]
        else:
            add(column, value)
    return column


def _headers(data: _NewBytes, outputs: list[Output]) -> tuple[list[int], list[int]]:
    if not any(output.headers or output.clear_headers for output in outputs):
        return [], []
    headers: list[int] = []
    ends: list[int] = []
    add = data.add
    names: dict[str, tuple[int, int]] = {}
    columns = outputs[0].batch.columns
    kept, kept_ends = columns.headers, columns.header_ends
    for output in outputs:
        if not output.clear_headers:
            source = output.source
            headers += kept[4 * kept_ends[source - 1] if source else 0 : 4 * kept_ends[source]]
        if output.headers:
            given = output.headers
            for name, value in given.items() if hasattr(given, "items") else given:
                # The same few names come again and again.
                known = names.get(name)
                if known is None:
                    add(headers, name)
                    names[name] = (headers[-2], headers[-1])
                else:
                    headers += known
                add(headers, value)
        ends.append(len(headers) // 4)
    return headers, ends


def _topics(given: list[str | None]) -> tuple[list[str], list[int]]:
    if given.count(None) == len(given):
        return [], []
    numbers: dict[str | None, int] = {None: NONE}
    topics = [numbers.setdefault(name, len(numbers) - 1) for name in given]
    return [name for name in numbers if name is not None], topics


def _partitions(given: list[int | None]) -> list[int]:
    if given.count(None) == len(given):
        return []
    return [NONE if partition is None else partition for partition in given]


def _times(outputs: list[Output]) -> list[int]:
    if not any(output.timestamp is not None or output.deliver_at is not None for output in outputs):
        return []
    times: list[int] = []
    for output in outputs:
        times += (_time(output.timestamp), _time(output.deliver_at))
    return times


def _time(given: int | float | datetime | None) -> int:
    if given is None:
        return NO_TIME
    if isinstance(given, datetime):
        if given.tzinfo is None:
            raise ValueError(f"{given} has no time zone: use datetime(…, tzinfo=timezone.utc)")
        given = given.timestamp() * 1000
    if not given >= 0:
        raise ValueError(f"{given} is no time: give milliseconds since 1970, or a datetime")
    return round(given)
