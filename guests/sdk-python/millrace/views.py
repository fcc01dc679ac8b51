"""The state of processors, for the component of a route: what is committed, to read only."""

from __future__ import annotations

from typing import Any, Iterable, NamedTuple

from . import _host
from .state import Entry, Key, key_bytes, number_of, part, spans_of


class Entries(NamedTuple):
    """Entries in ascending order of keys, and whether there may be more after the last one."""

    entries: list[Entry]
    has_more: bool


class ViewError(Exception):
    """Why state cannot be read. One of the classes below."""


class NotGranted(ViewError):
    """The route is not granted this processor's state."""


class Refused(ViewError):
    """There is no such processor, topic or partition, or the call exceeds a bound."""


class Unavailable(ViewError):
    """A later call may succeed."""


class View:
    """The state of a processor; of one that reads several topics, for one of them."""

    def __init__(self, processor: str, topic: str | None = None) -> None:
        self.processor = processor
        self.topic = topic

    def partitions(self) -> int:
        """The number of partitions."""
        return self._ask("partitions")

    def get(self, key: Key) -> bytes | None:
        """The value of a key in the partition that messages with this key go to; None if it has none."""
        return self.get_many([key])[0]

    def text(self, key: Key) -> str | None:
        """The value of a key as text."""
        value = self.get(key)
        return None if value is None else value.decode("utf-8", "replace")

    def number(self, key: Key) -> int | None:
        """The number of a key, as `state.add` stores it. Raises ValueError if the value is not a number."""
        value = self.get(key)
        return None if value is None else number_of(value)

    def get_many(self, keys: Iterable[Key], partition: int | None = None) -> list[bytes | None]:
        """The values of keys, in order; without a partition, each in the partition that messages with this key go to."""
        names = [key_bytes(key) for key in keys]
        found = self._ask("get", partition, b"".join(names), spans_of(names))
        return [part(found.data, found.values, at) for at in range(len(names))]

    def scan(self, partition: int, prefix: Key = b"", after: Key | None = None, max: int = 1000) -> Entries:
        """Entries of a partition whose keys begin with `prefix` and come after `after`."""
        found = self._ask("scan", partition, key_bytes(prefix), None if after is None else key_bytes(after), max)
        data, keys, values = found.data, found.keys, found.values
        entries = [Entry(part(data, keys, at) or b"", part(data, values, at) or b"") for at in range(len(keys) // 2)]
        return Entries(entries, found.has_more)

    def _ask(self, verb: str, *arguments: Any) -> Any:
        host = _host.of("views")
        try:
            return getattr(host, verb)(host.View(self.processor, self.topic), *arguments)
        except Exception as error:
            # The bindings wrap the error of the host.
            case = getattr(error, "value", None)
            known = _ERRORS.get(type(case).__name__)
            if known is None:
                raise
            raise known(case.value) from None


_ERRORS = {"ViewError_NotGranted": NotGranted, "ViewError_Refused": Refused, "ViewError_Unavailable": Unavailable}
