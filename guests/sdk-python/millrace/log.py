"""Lines of the processor's log. The host cuts long lines, and drops and counts lines beyond its rate limit."""

from __future__ import annotations

from . import _host


def error(text: object) -> None:
    """Writes a line of level error."""
    _write("ERROR", text)


def warn(text: object) -> None:
    """Writes a line of level warn."""
    _write("WARN", text)


def info(text: object) -> None:
    """Writes a line of level info."""
    _write("INFO", text)


def debug(text: object) -> None:
    """Writes a line of level debug."""
    _write("DEBUG", text)


def _write(level: str, text: object) -> None:
    host = _host.of("log")
    host.log(getattr(host.Level, level), str(text))
