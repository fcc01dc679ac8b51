"""Secrets that the host keeps: the processor reads those that were granted to it by name. A new value reaches it with its next call;
during a call they stay as they are, so each is asked for once per call."""

from __future__ import annotations

from . import _host
from ._outcomes import Unavailable

_known: dict[str, bytes] = {}
_known_in = -1


class NotGranted(Exception):
    """The processor has no grant for this secret."""


def get(name: str) -> bytes:
    """The bytes of a secret.

    Raises `NotGranted`, and `Unavailable` if the host has no value for it now: an outage, which costs the message no attempt.
    """
    global _known_in
    if _known_in != _host.call:
        _known.clear()
        _known_in = _host.call
    if name not in _known:
        _known[name] = _ask(name)
    return _known[name]


def text(name: str) -> str:
    """A secret as text. Raises the same, and UnicodeDecodeError if it is not UTF-8."""
    return get(name).decode()


def _ask(name: str) -> bytes:
    try:
        return _host.of("secrets").get(name)
    except Exception as error:
        # The bindings wrap the error of the host.
        case = getattr(error, "value", None)
        kind = type(case).__name__
        if kind == "SecretError_Unavailable":
            raise Unavailable(f"the secret {name} is unavailable: {case.value}") from None
        if kind == "SecretError_NotGranted":
            raise NotGranted(f"the processor has no grant for the secret {name}: grant it when you deploy") from None
        raise
