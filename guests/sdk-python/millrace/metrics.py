"""The component's own metrics, on the host's `/metrics` as `guest_<name>` with the label `processor`.

Names of metrics and labels have 1 to 60 of the characters a-z, 0-9 and `_` and begin with a letter; a wrong one is a trap. A name is
of one kind only: the first use decides.
"""

from __future__ import annotations

from typing import Mapping

from . import _host

_Labels = Mapping[str, object]


def add(name: str, delta: int = 1, labels: _Labels | None = None) -> None:
    """Adds to a counter. Raises ValueError if the number is less than 0."""
    if delta < 0:
        raise ValueError(f"a counter cannot grow by {delta}: give a whole number, 0 or more")
    _host.of("metrics").add(name, _pairs(labels), delta)


def set(name: str, value: float, labels: _Labels | None = None) -> None:
    """Sets a gauge."""
    _host.of("metrics").set(name, _pairs(labels), float(value))


def observe(name: str, value: float, labels: _Labels | None = None) -> None:
    """Records a value in a histogram."""
    _host.of("metrics").observe(name, _pairs(labels), float(value))


def _pairs(labels: _Labels | None) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in labels.items()] if labels else []
