"""What the host offers, by interface: the generated bindings in a component, those of `millrace.testing` in a test.

Everything else asks here, so handlers run in plain Python as well.
"""

from __future__ import annotations

import importlib
from typing import Any

#: The interfaces in use, by name.
interfaces: dict[str, Any] = {}
#: The number of the current call: what was read from the host before may have changed since.
call = 0


class Missing(RuntimeError):
    """The component has no such import."""


def of(name: str) -> Any:
    """The functions of one interface."""
    found = interfaces.get(name)
    if found is None:
        raise Missing(
            f'the component has no import {name}: add "{name}" to imports in millrace.toml'
            " (in a test, call the handler through millrace.testing.Tester)"
        )
    return found


def begin_call() -> None:
    """Says that a call begins."""
    global call
    call += 1


def binding(name: str) -> Any:
    """A module that componentize-py generated; None in plain Python. Only while a component is built can modules be found, so ask at the
    top of a module."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


for _name in ("log", "state", "config", "secrets", "metrics", "producer", "views"):
    if (_found := binding(f"wit_world.imports.{_name}")) is not None:
        interfaces[_name] = _found
