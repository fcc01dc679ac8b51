"""Settings of the processor, as operators gave them. A change reaches the processor with its next call; during a call they stay as
they are, so each is asked for once per call."""

from __future__ import annotations

from typing import overload

from . import _host

_known: dict[str, str | None] = {}
_known_in = -1


@overload
def get(key: str) -> str | None: ...
@overload
def get(key: str, default: str) -> str: ...
def get(key: str, default: str | None = None) -> str | None:
    """The value of a key; the default if it has none."""
    global _known_in
    if _known_in != _host.call:
        _known.clear()
        _known_in = _host.call
    if key not in _known:
        _known[key] = _host.of("config").get(key)
    value = _known[key]
    return default if value is None else value


def all() -> dict[str, str]:
    """All keys and their values."""
    return dict(_host.of("config").all())
