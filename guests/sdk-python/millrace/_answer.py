"""Collects outcomes in the answer's columns. A column that no output changes stays empty, which means "as in the input"."""

from __future__ import annotations

from datetime import datetime
from itertools import accumulate
from typing import Any, Iterable

from ._batch import NONE, Batch
from ._outcomes import ACK, EMIT, KEEP, Outcome, Output, Rest

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
    """Fills the columns of outputs. Most of it is done by functions of C, since this is what costs the time of a batch."""
    sources = answer.sources = [output.source for output in outputs]
    parts: list[bytes] = []
    # The spans of new bytes continue behind those of the batch.
    end = len(batch.data)
    answer.keys, end = _changed(parts, end, [output.key for output in outputs], sources, batch.keys)
    answer.values, end = _changed(parts, end, [output.value for output in outputs], sources, batch.values)
    rests = [output.rest for output in outputs]
    if rests.count(None) == len(rests):
        rests = []
    given = [output.headers for output in outputs]
    if given.count(None) == len(given) and not any(rest.clear_headers for rest in rests if rest):
        answer.headers, answer.header_ends = [], []
    else:
        answer.headers, answer.header_ends = _headers(parts, end, given, sources, rests, batch.columns)
    answer.topic_names, answer.topics = _topics([rest and rest.topic for rest in rests])
    answer.partitions = _partitions([rest and rest.partition for rest in rests])
    answer.times = _times(rests)
    answer.data = b"".join(parts)


def encoded(given: Any) -> bytes:
    """Text or bytes as bytes."""
    if given.__class__ is str:
        return given.encode("utf-8", "replace")
    if isinstance(given, (bytes, bytearray, memoryview)):
        return given
    raise TypeError(f"{describe(given)} is neither text, bytes nor None: use json.dumps(…) for JSON, str(…) for numbers")


def _changed(parts: list[bytes], end: int, given: list[Any], sources: list[int], kept: list[int]) -> tuple[list[int], int]:
    """The column of keys or values, and where the new bytes end then."""
    if given.count(KEEP) == len(given):
        return [], end
    if KEEP in given or None in given:
        return _partly_changed(parts, end, given, sources, kept)
    news = [value if value.__class__ is bytes else encoded(value) for value in given]
    parts += news
    lengths = list(map(len, news))
    ends = list(accumulate(lengths, initial=end))
    column = [0] * (2 * len(news))
    column[1::2] = lengths
    end = ends.pop()
    column[0::2] = ends
    return column, end


def _partly_changed(parts: list[bytes], end: int, given: list[Any], sources: list[int], kept: list[int]) -> tuple[list[int], int]:
    column: list[int] = []
    for value, source in zip(given, sources):
        if value is KEEP:
            column += kept[2 * source : 2 * source + 2]
        elif value is None:
            column += (0, NONE)
        else:
            value = encoded(value)
            parts.append(value)
            column += (end, len(value))
            end += len(value)
    return column, end


def _headers(
    parts: list[bytes], end: int, given: list[Any], sources: list[int], rests: list[Rest | None], columns: Any
) -> tuple[list[int], list[int]]:
    headers: list[int] = []
    ends: list[int] = []
    names: dict[str, tuple[int, int]] = {}
    kept = columns.headers
    begins = [0, *columns.header_ends]
    place = parts.append
    for at, source in enumerate(sources):
        rest = rests[at] if rests else None
        if rest is None or not rest.clear_headers:
            begin, stop = begins[source], begins[source + 1]
            if begin != stop:
                headers += kept[4 * begin : 4 * stop]
        own = given[at]
        if own:
            for name, value in own.items() if own.__class__ is dict or hasattr(own, "items") else own:
                span = names.get(name)
                if span is None:
                    # The same few names come again and again: each is placed once.
                    text = encoded(name)
                    place(text)
                    span = names[name] = (end, len(text))
                    end += len(text)
                headers += span
                if value is None:
                    headers += (0, NONE)
                else:
                    value = encoded(value)
                    place(value)
                    length = len(value)
                    headers += (end, length)
                    end += length
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


def _times(rests: list[Rest | None]) -> list[int]:
    if not any(rest.timestamp is not None or rest.deliver_at is not None for rest in rests if rest):
        return []
    times: list[int] = []
    for rest in rests:
        times += (_time(rest.timestamp), _time(rest.deliver_at)) if rest else (NO_TIME, NO_TIME)
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
