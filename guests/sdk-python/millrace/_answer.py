"""Collects outcomes in the answer's columns. A column that no output changes stays empty, which means "as in the input"."""

from __future__ import annotations

from datetime import datetime
from itertools import accumulate, chain
from typing import Any, Iterable, Sequence

from ._batch import NONE, Batch
from ._outcomes import ACK, EMIT, KEEP, Outcome, Output, Rest, describe

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
    all = outcomes if outcomes.__class__ is list else list(outcomes)
    answer = Answer()
    if len(all) == batch.length and _kinds(all) == {Output}:
        # Each message has one output, as in most batches.
        answer.outcomes = bytes([EMIT]) * len(all)
        answer.details = []
        outputs = all
        expected = list(range(len(all)))
    else:
        answer.outcomes, answer.details, outputs, expected = _sorted(batch, all)
    if [output.source for output in outputs] != expected or [output.batch for output in outputs].count(batch) != len(outputs):
        raise TypeError("an output belongs to the message that it was made from: make outputs with message.output(…)")
    _fill(answer, batch, outputs, expected)
    return answer


def _kinds(values: Iterable[Any]) -> set[type]:
    return set(map(type, values))


def _sorted(batch: Batch, outcomes: list[Outcome]) -> tuple[bytes, list[Detail], list[Output], list[int]]:
    """The outcomes' kinds, details and outputs, and the message that each output is of."""
    kinds = bytearray()
    details: list[Detail] = []
    outputs: list[Output] = []
    expected: list[int] = []
    for index, outcome in enumerate(outcomes):
        if outcome.__class__ is Output:
            kinds.append(EMIT)
            outputs.append(outcome)
            expected.append(index)
        elif isinstance(outcome, Outcome):
            kinds.append(outcome.kind)
            if outcome.kind == EMIT:
                for output in outcome.outputs:
                    if output.__class__ is not Output:
                        raise TypeError(f"{describe(output)} is no output: make outputs with message.output(…)")
                    outputs.append(output)
                    expected.append(index)
            elif outcome.kind != ACK:
                details.append(Detail(index, outcome.after_ms, str(outcome.class_), str(outcome.reason)))
        else:
            raise TypeError(f"the handler returned {describe(outcome)}: return ack(), emit(…), retry(…) or reject(…)")
    if len(outcomes) != batch.length:
        raise TypeError(f"the handler returned {len(outcomes)} outcomes for {batch.length} messages: return one for each")
    return bytes(kinds), details, outputs, expected


# The columns are filled by functions of C wherever outputs are alike: loops in Python are what costs the time of a batch.


def _fill(answer: Answer, batch: Batch, outputs: list[Output], sources: list[int]) -> None:
    """Fills the columns of outputs."""
    parts: list[bytes] = []
    headers = [output.headers for output in outputs]
    rests: Sequence[Rest | None] = [output.rest for output in outputs]
    answer.sources = sources
    # The spans of new bytes continue behind those of the batch.
    end = len(batch.data)
    answer.keys, end = _changed(parts, end, [output.key for output in outputs], sources, batch.keys)
    answer.values, end = _changed(parts, end, [output.value for output in outputs], sources, batch.values)
    if rests.count(None) == len(rests):
        rests = ()
    if headers.count(None) == len(headers) and not any(rest.clear_headers for rest in rests if rest):
        answer.headers, answer.header_ends = [], []
    else:
        answer.headers, answer.header_ends = _headers(parts, end, headers, sources, rests, batch.columns)
    answer.topic_names, answer.topics = _topics([rest and rest.topic for rest in rests])
    answer.partitions = _partitions([rest and rest.partition for rest in rests])
    answer.times = _times(rests)
    answer.data = b"".join(parts)


def _changed(parts: list[bytes], end: int, given: Any, sources: list[int], kept: list[int]) -> tuple[list[int], int]:
    """The column of keys or values, and where the new bytes end then."""
    kinds = _kinds(given)
    if kinds == {KEEP.__class__} or not kinds:
        return [], end
    if kinds == {bytes} or kinds == {str}:
        column = [0] * (2 * len(given))
        column[0::2], column[1::2], end = _place_all(parts, end, given, kinds)
        return column, end
    column = []
    for value, source in zip(given, sources):
        if value is KEEP:
            column += kept[2 * source : 2 * source + 2]
        else:
            span, end = _place(parts, end, value)
            column += span
    return column, end


def _place(parts: list[bytes], end: int, value: str | bytes | None) -> tuple[tuple[int, int], int]:
    """The span of a byte string, which is added to the new bytes; and where these end then."""
    if value is None:
        return (0, NONE), end
    encoded = value.encode("utf-8", "replace") if value.__class__ is str else value
    parts.append(encoded)
    length = len(encoded)
    return (end, length), end + length


def _place_all(parts: list[bytes], end: int, values: Any, kinds: set[type]) -> tuple[list[int], list[int], int]:
    """The same for many values that are all bytes, or all text: their starts and lengths."""
    if kinds == {str}:
        text = "".join(values)
        encoded = text.encode("utf-8", "replace")
        if len(encoded) == len(text):
            parts.append(encoded)
        else:
            values = [value.encode("utf-8", "replace") for value in values]
            parts += values
    else:
        parts += values
    lengths = list(map(len, values))
    starts = list(accumulate(lengths, initial=end))
    return starts, lengths, starts.pop()


def _headers(parts: list[bytes], end: int, given: Any, sources: list[int], rests: Any, columns: Any) -> tuple[list[int], list[int]]:
    if not rests and None not in given:
        found = _same_headers(parts, end, given, sources, columns)
        if found is not None:
            return found
    headers: list[int] = []
    ends: list[int] = []
    known: dict[Any, tuple[int, int]] = {}
    kept = columns.headers
    begins = [0, *columns.header_ends]
    for at, source in enumerate(sources):
        rest = rests[at] if rests else None
        if rest is None or not rest.clear_headers:
            begin, stop = begins[source], begins[source + 1]
            if begin != stop:
                headers += kept[4 * begin : 4 * stop]
        for name, value in given[at] or ():
            # The same few names come again and again: each is placed once.
            if name not in known:
                known[name], end = _place(parts, end, name)
            headers += known[name]
            span, end = _place(parts, end, value)
            headers += span
        ends.append(len(headers) // 4)
    return headers, ends


def _same_headers(parts: list[bytes], end: int, given: Any, sources: list[int], columns: Any) -> tuple[list[int], list[int]] | None:
    """The columns if all messages have equally many headers, and all outputs add those of the same names; otherwise None."""
    messages = len(columns.header_ends)
    before, uneven = divmod(columns.header_ends[-1], messages)
    if uneven or (before and columns.header_ends != list(range(before, before * messages + 1, before))):
        return None
    adds = len(given[0])
    if set(map(len, given)) != {adds}:
        return None
    # Names and values of all outputs in turn.
    flat = list(chain.from_iterable(chain.from_iterable(given)))
    count = len(sources)
    for at in range(adds):
        names, kinds = flat[2 * at :: 2 * adds], _kinds(flat[2 * at + 1 :: 2 * adds])
        if names.count(names[0]) != count or (kinds != {str} and kinds != {bytes}):
            return None
    per = before + adds
    headers = [0] * (4 * per * count)
    all_kept = sources == list(range(messages))
    for at in range(4 * before):
        column = columns.headers[at :: 4 * before]
        headers[at :: 4 * per] = column if all_kept else [column[source] for source in sources]
    for at in range(adds):
        values = flat[2 * at + 1 :: 2 * adds]
        (start, length), end = _place(parts, end, flat[2 * at])
        starts, lengths, end = _place_all(parts, end, values, _kinds(values))
        to = 4 * (before + at)
        headers[to :: 4 * per] = [start] * count
        headers[to + 1 :: 4 * per] = [length] * count
        headers[to + 2 :: 4 * per] = starts
        headers[to + 3 :: 4 * per] = lengths
    return headers, list(range(per, per * count + 1, per)) if per else [0] * count


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


def _times(rests: Sequence[Rest | None]) -> list[int]:
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
