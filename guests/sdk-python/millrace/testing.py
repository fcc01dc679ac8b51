"""Tests of handlers in plain Python: messages go in, and the outcome of each comes out.

    import unittest
    from millrace.testing import Emitted, Rejected, Sample, Sent, Tester
    import app

    class Greeting(unittest.TestCase):
        def test_whoever_has_a_name_is_greeted(self):
            run = Tester(app.process).run([Sample("1", "Ada"), Sample("2", None)])
            self.assertEqual(run.all[0], Emitted([Sent("1", "hello, Ada")]))
            self.assertEqual(run.all[1], Rejected("no-value", "there is nobody to greet"))

A `Tester` keeps state from one batch to the next, as a host does for one partition, and discards writes of messages that are retried or
rejected: it calls the handler again without those messages, which reveals handlers that only work if no other message fails. What the
handler logs and counts in such repeated calls counts again, as on a host. An exception in the handler is an exception in the test.

A `RouteTester` asks a function that answers HTTP, and keeps what it sends.
"""

from __future__ import annotations

import json as _json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

from . import _host, producer, views
from ._answer import NO_TIME, Answer
from ._batch import NONE
from ._failures import Cause
from ._handlers import MARK
from ._http import Request, Response
from ._outcomes import ACK, EMIT, RETRY, Unavailable
from .decision import Decision

#: The timestamp of messages that have no other: 2026-01-01T00:00:00Z.
TIMESTAMP = 1_767_225_600_000
_FOREVER = NO_TIME
_Bytes = str | bytes | None


@dataclass
class Sample:
    """A message that goes in. Key and value are text, bytes or None; other values are stored as JSON."""

    key: _Bytes = None
    value: Any = None
    headers: Mapping[str, _Bytes] | Sequence[tuple[str, _Bytes]] = ()
    timestamp: int = TIMESTAMP
    attempt: int = 1
    offset: int | None = None


@dataclass
class Sent:
    """An output, including everything that it keeps of its message. Bytes that are text are shown as text.

    topic None is the processor's default output, partition None leaves the choice to the topic's partitioner, timestamp None is that of
    the message, deliver_at None is at once.
    """

    key: _Bytes
    value: _Bytes
    headers: list[tuple[str, _Bytes]] = field(default_factory=list)
    topic: str | None = None
    partition: int | None = None
    timestamp: int | None = None
    deliver_at: int | None = None

    def json(self) -> Any:
        """The value, read as JSON."""
        return None if self.value is None else _json.loads(self.value)

    def header(self, name: str) -> _Bytes:
        """The value of the last header with this name; None if there is none."""
        return next((value for found, value in reversed(self.headers) if found == name), None)


@dataclass
class Acked:
    """Done, without outputs."""


@dataclass
class Emitted:
    """Done, with these outputs."""

    outputs: list[Sent]


@dataclass
class Retried:
    """To be tried again later."""

    class_: str
    reason: str
    after_ms: int | None = None


@dataclass
class Rejected:
    """Given up: it becomes a dead letter."""

    class_: str
    reason: str


Said = Acked | Emitted | Retried | Rejected


@dataclass
class Failed:
    """A failed message that an error handler is asked about."""

    sample: Sample = field(default_factory=Sample)
    cause: Cause = Cause.RETRY
    class_: str | None = None
    reason: str = ""
    attempt: int = 1
    revision: int = 1
    first_failed_at: int = TIMESTAMP


@dataclass
class Run:
    """The result of a batch.

    all      the outcome of each message, in order: `Acked`, `Emitted`, `Retried` or `Rejected`
    changes  keys of state that changed, with their values now: numbers as `int`, None if removed. Times to live are in `lives`
    lives    times to live of changed keys that have one, in milliseconds
    lines    what was logged, as pairs of level and text
    metrics  metrics, as tuples of kind ("add", "set", "observe"), name, value and labels
    """

    all: list[Said]
    changes: dict[_Bytes, Any]
    lives: dict[_Bytes, int]
    lines: list[tuple[str, str]]
    metrics: list[tuple[str, str, float, dict[str, str]]]

    @property
    def outputs(self) -> list[Sent]:
        """All outputs, in order."""
        return [sent for said in self.all if isinstance(said, Emitted) for sent in said.outputs]

    @property
    def output(self) -> Sent:
        """The only output. Raises AssertionError if there are none, or several."""
        outputs = self.outputs
        if len(outputs) != 1:
            raise AssertionError(f"one output was expected, and there are {outputs}")
        return outputs[0]


class Tester:
    """Calls a handler with batches and keeps its state between them.

    handler     a decorated function
    topic, partition  where the messages come from
    partitions  how many partitions the topic of a partitioner has
    config      the processor's settings
    secrets     the secrets that are granted; an `Unavailable` as value says that the host has none now
    state       entries to begin with: text, bytes, or an `int` as `state.add` stores it
    """

    def __init__(
        self,
        handler: Callable[..., Any],
        *,
        topic: str = "samples",
        partition: int = 0,
        partitions: int = 4,
        config: Mapping[str, str] | None = None,
        secrets: Mapping[str, str | bytes | Unavailable] | None = None,
        state: Mapping[str | bytes, str | bytes | int] | None = None,
    ) -> None:
        marked = getattr(handler, MARK, None)
        if marked is None:
            raise TypeError("a Tester takes a function with a decorator of millrace, such as @processor")
        self._kind, self._call = marked
        self._topic = topic
        self._partition = partition
        self._partitions = partitions
        self._config = dict(config or {})
        self._secrets = dict(secrets or {})
        self._entries = {_bytes(key): _Entry.of(value) for key, value in (state or {}).items()}
        self._offset = 0
        self._lines: list[tuple[str, str]] = []
        self._metrics: list[tuple[str, str, float, dict[str, str]]] = []

    def run(self, messages: Iterable[Sample]) -> Run:
        """Processes a batch. Raises `Unavailable` if the handler does; state is then unchanged."""
        self._expect("processor", "run")
        samples = list(messages)
        for sample in samples:
            if sample.offset is None:
                sample.offset = self._offset
            self._offset = sample.offset + 1
        before = dict(self._entries)
        self._lines, self._metrics = [], []
        try:
            said = list(self._settle(samples))
        except BaseException:
            self._entries = before
            raise
        changed = [key for key in sorted({**before, **self._entries}) if before.get(key) != self._entries.get(key)]
        now = {_shown(key): self._entries.get(key) for key in changed}
        return Run(
            said,
            {key: entry and entry.shown() for key, entry in now.items()},
            {key: entry.ttl_ms for key, entry in now.items() if entry and entry.ttl_ms is not None},
            self._lines,
            self._metrics,
        )

    def assign(self, messages: Iterable[Sample]) -> list[int]:
        """The partition of each message, from a partitioner."""
        self._expect("partitioner", "assign")
        columns = self._columns(list(messages))
        return self._in_host(_Store(self._entries), lambda: self._call(self._partitions, columns))

    def decide(self, failures: Iterable[Failed]) -> list[Decision]:
        """The decision about each failure, from an error handler."""
        self._expect("error-handler", "decide")
        failures = list(failures)
        facts = [_Facts(message, failed) for message, failed in enumerate(failures)]
        columns = self._columns([failed.sample for failed in failures])
        return self._in_host(_Store(self._entries), lambda: self._call(facts, columns))

    def state(self, key: str | bytes) -> Any:
        """The value of a key in state now: an `int` if `state.add` wrote it, text, or bytes that are no text; None if there is none."""
        entry = self._entries.get(_bytes(key))
        return None if entry is None else entry.shown()

    @property
    def all_state(self) -> dict[_Bytes, Any]:
        """The whole state now."""
        return {_shown(key): entry.shown() for key, entry in sorted(self._entries.items())}

    def _expect(self, kind: str, verb: str) -> None:
        if self._kind != kind:
            raise TypeError(f"{verb}() is for a {kind}; the handler is a {self._kind}")

    def _settle(self, samples: list[Sample]) -> Iterator[Said]:
        """Calls the handler with all messages, and if a message that wrote to state failed, again with the parts whose writes are kept."""
        store = _Store(self._entries)
        columns = self._columns(samples)
        said = _said(columns, self._in_host(store, lambda: self._call(columns)))
        failed = [at for at, outcome in enumerate(said) if isinstance(outcome, (Retried, Rejected))]
        if not any(store.by_all or at in store.writers for at in failed):
            self._entries = store.entries
            yield from said
            return
        if len(samples) == 1:
            # Alone, and all its writes are discarded.
            yield from said
            return
        begin = 0
        for at in failed:
            for part in (samples[begin:at], samples[at : at + 1]):
                if part:
                    yield from self._settle(part)
            begin = at + 1
        if samples[begin:]:
            yield from self._settle(samples[begin:])

    def _in_host(self, store: _Store, call: Callable[[], Any]) -> Any:
        before = dict(_host.interfaces)
        _host.interfaces.clear()
        _host.interfaces.update(
            log=_Log(self._lines), state=store, config=_Config(self._config), secrets=_Secrets(self._secrets), metrics=_Metrics(self._metrics)
        )
        try:
            return call()
        finally:
            _host.interfaces.clear()
            _host.interfaces.update(before)

    def _columns(self, samples: list[Sample]) -> _Columns:
        return _Columns(self._topic, self._partition, samples)


class RouteTester:
    """Asks a function that answers HTTP, as a host asks a route.

    handler  a function with the decorator `http`
    config, secrets  as for a `Tester`
    views    the state of processors that it may read, by processor
    failure  an error of `millrace.producer` that every call which sends raises
    sent     what was sent so far, with its topics, in order
    lines    what was logged, as pairs of level and text
    """

    def __init__(
        self,
        handler: Callable[[Request], Response],
        *,
        config: Mapping[str, str] | None = None,
        secrets: Mapping[str, str | bytes | Unavailable] | None = None,
        views: Mapping[str, Mapping[str | bytes, str | bytes | int]] | None = None,
        failure: producer.SendError | None = None,
    ) -> None:
        kind, self._call = getattr(handler, MARK, (None, None))
        if kind != "http":
            raise TypeError("a RouteTester takes a function with the decorator @http")
        self._config = dict(config or {})
        self._secrets = dict(secrets or {})
        self._views = {
            processor: {_bytes(key): _Entry.of(value) for key, value in state.items()} for processor, state in (views or {}).items()
        }
        self.sent: list[Sent] = []
        self.lines: list[tuple[str, str]] = []
        self._producer = _Producer(self.sent, failure)

    def ask(self, method: str, target: str, body: str | bytes = b"", headers: Mapping[str, str] | None = None) -> Response:
        """The answer to a request."""
        request = Request(method, target, [(name.lower(), value) for name, value in (headers or {}).items()], _bytes(body))
        before = dict(_host.interfaces)
        _host.interfaces.clear()
        _host.interfaces.update(
            log=_Log(self.lines),
            config=_Config(self._config),
            secrets=_Secrets(self._secrets),
            metrics=_Metrics([]),
            producer=self._producer,
            views=_Views(self._views),
        )
        try:
            return self._call(request)
        finally:
            _host.interfaces.clear()
            _host.interfaces.update(before)


class _Producer:
    """A host that keeps what is sent."""

    @dataclass
    class Outgoing:
        data: bytes
        keys: list[int]
        values: list[int]
        header_ends: list[int]
        headers: list[int]
        partitions: list[int]
        times: list[int]

    @dataclass
    class Sent:
        partitions: list[int]
        offsets: list[int]
        repeated: bool

    def __init__(self, sent: list[Sent], failure: producer.SendError | None) -> None:
        self._sent = sent
        self._failure = failure
        self._next: dict[tuple[str, int], int] = {}
        self._keys: dict[tuple[str, str], tuple[Any, Any]] = {}

    def send(self, topic: str, messages: Outgoing, key: str | None) -> Any:
        if self._failure is not None:
            raise self._failure
        known = None if key is None else self._keys.get((topic, key))
        if known is not None:
            before, sent = known
            if before != messages:
                raise producer.KeyReused("the key was used before, for other messages")
            return self.Sent(sent.partitions, sent.offsets, True)
        sent = self.Sent([], [], False)
        for at, partition in enumerate(messages.partitions):
            chosen = 0 if partition == NONE else partition
            timestamp, deliver_at = messages.times[2 * at], messages.times[2 * at + 1]
            offset = NO_TIME
            if not deliver_at:
                offset = self._next.get((topic, chosen), 0)
                self._next[topic, chosen] = offset + 1
            sent.partitions.append(chosen)
            sent.offsets.append(offset)
            data = messages.data
            first = messages.header_ends[at - 1] if at else 0
            pairs = [
                (_shown(_span(data, messages.headers, 2 * header)), _shown(_span(data, messages.headers, 2 * header + 1)))
                for header in range(first, messages.header_ends[at])
            ]
            self._sent.append(
                Sent(
                    _shown(_span(data, messages.keys, at)),
                    _shown(_span(data, messages.values, at)),
                    pairs,
                    topic,
                    None if partition == NONE else partition,
                    timestamp or None,
                    deliver_at or None,
                )
            )
        if key is not None:
            self._keys[topic, key] = (messages, sent)
        return sent

    def settled(self, processor: str, topic: str, places: Sent, ms: int) -> bool:
        return True


class _Views:
    """The state of processors; each has one partition."""

    @dataclass
    class View:
        processor: str
        topic: str | None

    @dataclass
    class Page:
        data: bytes
        keys: list[int]
        values: list[int]
        has_more: bool

    def __init__(self, views: dict[str, dict[bytes, _Entry]]) -> None:
        self._views = views

    def _store(self, of: View) -> _Store:
        entries = self._views.get(of.processor)
        if entries is None:
            raise views.NotGranted(f"the state of processor {of.processor} is not granted to this route")
        return _Store(entries)

    def partitions(self, of: View) -> int:
        self._store(of)
        return 1

    def get(self, of: View, partition: int | None, data: bytes, keys: list[int]) -> Any:
        return self._store(of).get(data, keys)

    def scan(self, of: View, partition: int, prefix: bytes, after: bytes | None, max: int) -> Page:
        store = self._store(of)
        if partition != 0:
            raise views.Refused(f"there is no partition {partition}; a test has only partition 0")
        found = store.scan(prefix, after, max)
        more = len(store.scan(prefix, after, max + 1).keys) > len(found.keys)
        return self.Page(found.data, found.keys, found.values, more)


class _Columns:
    """The columns that a host would pass."""

    def __init__(self, topic: str, partition: int, samples: list[Sample]) -> None:
        self.topic = topic
        self.partition = partition
        self.data = b""
        self.offsets = [at if sample.offset is None else sample.offset for at, sample in enumerate(samples)]
        self.timestamps = [sample.timestamp for sample in samples]
        self.attempts = [sample.attempt for sample in samples]
        self.keys = [number for sample in samples for number in self._place(sample.key)]
        self.values = [number for sample in samples for number in self._place(sample.value)]
        self.header_ends: list[int] = []
        self.headers: list[int] = []
        for sample in samples:
            headers = sample.headers.items() if isinstance(sample.headers, Mapping) else sample.headers
            for name, value in headers:
                self.headers += (*self._place(name), *self._place(value))
            self.header_ends.append(len(self.headers) // 4)

    def _place(self, value: Any) -> tuple[int, int]:
        if value is None:
            return 0, NONE
        placed = _bytes(value if isinstance(value, (str, bytes)) else _json.dumps(value))
        start = len(self.data)
        self.data += placed
        return start, len(placed)


class _Facts:
    """A failure as a host passes it."""

    def __init__(self, message: int, failed: Failed) -> None:
        self.message = message
        self.revision = failed.revision
        self.attempt = failed.attempt
        self.first_failed_at = failed.first_failed_at
        self.cause = failed.cause
        self.class_ = failed.cause.value if failed.class_ is None else failed.class_
        self.reason = failed.reason


@dataclass(frozen=True)
class _Entry:
    """A value in state."""

    value: bytes
    ttl_ms: int | None = None
    is_number: bool = False

    @staticmethod
    def of(value: str | bytes | int) -> _Entry:
        if isinstance(value, int):
            return _Entry(value.to_bytes(8, "little", signed=True), None, True)
        return _Entry(_bytes(value))

    def number(self) -> int:
        if len(self.value) != 8:
            raise AssertionError(f"state.add on {self.value!r}, which is no number: that is a trap")
        return int.from_bytes(self.value, "little", signed=True)

    def shown(self) -> Any:
        return self.number() if self.is_number else _shown(self.value)


class _Store:
    """State as a host has it for one call: a copy, and who wrote to it."""

    @dataclass
    class Writes:
        """How long writes last, and which messages they belong to."""

        ttl_ms: list[int]
        messages: list[int]

    @dataclass
    class Found:
        """Byte strings with their spans."""

        data: bytes
        keys: list[int]
        values: list[int]

    def __init__(self, entries: dict[bytes, _Entry]) -> None:
        self.entries = dict(entries)
        self.writers: set[int] = set()
        self.by_all = False

    def _note(self, how: Writes) -> None:
        self.writers.update(how.messages)
        self.by_all = self.by_all or not how.messages

    def get(self, data: bytes, keys: list[int]) -> Found:
        found = [self.entries.get(_span(data, keys, at)) for at in range(len(keys) // 2)]
        return self._found([], [entry and entry.value for entry in found])

    def set(self, data: bytes, keys: list[int], values: list[int], how: Writes) -> None:
        self._note(how)
        for at in range(len(keys) // 2):
            key, value = _span(data, keys, at), _span(data, values, at)
            if value is None:
                self.entries.pop(key, None)
            else:
                self.entries[key] = _Entry(value, _life(how.ttl_ms, at))

    def add(self, data: bytes, keys: list[int], deltas: list[int], how: Writes) -> list[int]:
        self._note(how)
        sums = []
        for at in range(len(keys) // 2):
            key = _span(data, keys, at)
            before = self.entries.get(key)
            exact = (0 if before is None else before.number()) + (deltas[at] if deltas else 1)
            total = max(-(1 << 63), min((1 << 63) - 1, exact))
            ttl_ms = _life(how.ttl_ms, at) if how.ttl_ms else before and before.ttl_ms
            self.entries[key] = _Entry(total.to_bytes(8, "little", signed=True), ttl_ms, True)
            sums.append(total)
        return sums

    def scan(self, prefix: bytes, after: bytes | None, max: int) -> Found:
        keys = [key for key in sorted(self.entries) if key.startswith(prefix) and (after is None or key > after)][:max]
        return self._found(keys, [self.entries[key].value for key in keys])

    def _found(self, keys: list[bytes], values: list[bytes | None]) -> Found:
        found = self.Found(b"", [], [])
        for parts, spans in ((keys, found.keys), (values, found.values)):
            for part in parts:
                spans += (0, NONE) if part is None else (len(found.data), len(part))
                found.data += part or b""
        return found


class _Log:
    class Level(Enum):
        ERROR = "error"
        WARN = "warn"
        INFO = "info"
        DEBUG = "debug"

    def __init__(self, lines: list[tuple[str, str]]) -> None:
        self._lines = lines

    def log(self, level: Level, text: str) -> None:
        self._lines.append((level.value, text))


class _Config:
    def __init__(self, config: dict[str, str]) -> None:
        self._config = config

    def get(self, key: str) -> str | None:
        return self._config.get(key)

    def all(self) -> list[tuple[str, str]]:
        return sorted(self._config.items())


class SecretError_Unavailable:
    """As the bindings call it."""

    def __init__(self, value: str) -> None:
        self.value = value


class SecretError_NotGranted(SecretError_Unavailable):
    """As the bindings call it."""


class _Err(Exception):
    """The bindings' wrapper of an error of the host."""

    def __init__(self, value: object) -> None:
        super().__init__(value)
        self.value = value


class _Secrets:
    def __init__(self, secrets: dict[str, str | bytes | Unavailable]) -> None:
        self._secrets = secrets

    def get(self, name: str) -> bytes:
        value = self._secrets.get(name)
        if value is None:
            raise _Err(SecretError_NotGranted(name))
        if isinstance(value, Unavailable):
            raise _Err(SecretError_Unavailable(str(value)))
        return _bytes(value)


class _Metrics:
    def __init__(self, metrics: list[tuple[str, str, float, dict[str, str]]]) -> None:
        self._metrics = metrics

    def add(self, name: str, labels: list[tuple[str, str]], delta: int) -> None:
        self._metrics.append(("add", name, delta, dict(labels)))

    def set(self, name: str, labels: list[tuple[str, str]], value: float) -> None:
        self._metrics.append(("set", name, value, dict(labels)))

    def observe(self, name: str, labels: list[tuple[str, str]], value: float) -> None:
        self._metrics.append(("observe", name, value, dict(labels)))


def _said(columns: _Columns, answer: Answer) -> list[Said]:
    """The outcome of each message, read from the columns as a host does."""
    details = {detail.message: detail for detail in answer.details}
    outputs: list[list[Sent]] = [[] for _ in answer.outcomes]
    for at, source in enumerate(answer.sources):
        outputs[source].append(_sent(columns, answer, source, at))
    said: list[Said] = []
    for message, outcome in enumerate(answer.outcomes):
        if outcome == ACK:
            said.append(Acked())
        elif outcome == EMIT:
            said.append(Emitted(outputs[message]))
        else:
            detail = details[message]
            if outcome == RETRY:
                said.append(Retried(detail.class_, detail.reason, detail.after_ms))
            else:
                said.append(Rejected(detail.class_, detail.reason))
    return said


def _sent(columns: _Columns, answer: Answer, source: int, at: int) -> Sent:
    data = columns.data + answer.data
    key = _span(data, answer.keys, at) if answer.keys else _span(data, columns.keys, source)
    value = _span(data, answer.values, at) if answer.values else _span(data, columns.values, source)
    own = (answer.header_ends, answer.headers, at) if answer.header_ends else (columns.header_ends, columns.headers, source)
    ends, headers, index = own
    pairs = [
        (_shown(_span(data, headers, 2 * header)), _shown(_span(data, headers, 2 * header + 1)))
        for header in range(ends[index - 1] if index else 0, ends[index])
    ]
    sent = Sent(_shown(key), _shown(value), pairs)
    if answer.topics and answer.topics[at] != NONE:
        sent.topic = answer.topic_names[answer.topics[at]]
    if answer.partitions and answer.partitions[at] != NONE:
        sent.partition = answer.partitions[at]
    if answer.times and answer.times[2 * at] != NO_TIME:
        sent.timestamp = answer.times[2 * at]
    if answer.times and answer.times[2 * at + 1] != NO_TIME:
        sent.deliver_at = answer.times[2 * at + 1]
    return sent


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _shown(value: bytes | None) -> Any:
    """Text where the bytes are text, and the bytes otherwise."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _span(data: bytes, spans: Sequence[int], at: int) -> Any:
    start, length = spans[2 * at], spans[2 * at + 1]
    if length == NONE:
        return None
    assert length == 0 or start + length <= len(data), f"the span {start}+{length} is beyond the {len(data)} bytes of its data"
    return data[start : start + length]


def _life(ttl_ms: list[int], at: int) -> int | None:
    return None if not ttl_ms or ttl_ms[at] == _FOREVER else ttl_ms[at]
