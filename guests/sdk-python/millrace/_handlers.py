"""The decorators: each leaves its function as it is, remembers its kind, and adds to its module the class that componentize-py looks for."""

from __future__ import annotations

from typing import Any, Callable, Iterable, TypeVar

from . import _host
from ._answer import Answer, answer_of
from ._batch import Batch, Message
from ._failures import Failure
from ._outcomes import Outcome, Unavailable, describe, retry
from .decision import Decision
from .state import StateFull

_F = TypeVar("_F", bound=Callable[..., Any])

#: The bindings; they exist in a component only.
_results = _host.binding("componentize_py_types")
_types = _host.binding("wit_world.imports.types")
_decisions = _host.binding("wit_world.exports.error_handler")

#: The attribute of a decorated function with its kind and what the host calls.
MARK = "__millrace__"


def processor(process: Callable[[Message], Outcome]) -> Callable[[Message], Outcome]:
    """Exports a function of one message as the module's message processor."""

    def outcomes(batch: Batch) -> Iterable[Outcome]:
        all: list[Outcome] = []
        for index in range(batch.length):
            try:
                all.append(process(Message(batch, index)))
            except StateFull as full:
                all.append(retry("state-full", str(full)))
        return all

    return _export(process, "processor", lambda columns: _answer(columns, outcomes))


def batch_processor(process: Callable[[Batch], Iterable[Outcome]]) -> Callable[[Batch], Iterable[Outcome]]:
    """Exports a function of a batch as the module's message processor, for work that is cheaper once per batch.

    It returns one outcome for each message, in order; it may be a generator.
    """

    def outcomes(batch: Batch) -> Iterable[Outcome]:
        try:
            return list(process(batch))
        except StateFull as full:
            return [retry("state-full", str(full))] * batch.length

    return _export(process, "processor", lambda columns: _answer(columns, outcomes))


def partitioner(choose: Callable[[Message, int], int]) -> Callable[[Message, int], int]:
    """Exports a function as a topic's partitioner. It is called with a message and the number of partitions, and returns the
    partition of the message, less than that number."""

    def assign(partitions: int, columns: Any) -> list[int]:
        _host.begin_call()
        chosen = [choose(message, partitions) for message in Batch(columns)]
        for partition in chosen:
            if not (isinstance(partition, int) and 0 <= partition < partitions):
                raise ValueError(f"the partitioner returned {partition}: return a whole number from 0 to {partitions - 1}")
        return chosen

    return _export(choose, "partitioner", assign)


def error_handler(decide: Callable[[Failure], Decision]) -> Callable[[Failure], Decision]:
    """Exports a function as a processor's error handler. It is called with a `Failure` and returns a decision of `millrace.decision`."""

    def handle(failures: list[Any], columns: Any) -> list[Decision]:
        _host.begin_call()
        batch = Batch(columns)
        decided = [decide(Failure(batch[facts.message], facts)) for facts in failures]
        for decision in decided:
            if not isinstance(decision, Decision):
                raise TypeError(f"the error handler returned {describe(decision)}: return one of millrace.decision")
        return decided

    return _export(decide, "error-handler", handle)


def _answer(columns: Any, outcomes: Callable[[Batch], Iterable[Outcome]]) -> Answer:
    _host.begin_call()
    batch = Batch(columns)
    return answer_of(batch, outcomes(batch))


def _export(function: _F, kind: str, call: Callable[..., Any]) -> _F:
    return export(function, kind, call, *_EXPORTS[kind](call))


def export(function: _F, kind: str, call: Callable[..., Any], name: str, component_class: type) -> _F:
    """Marks a function, and adds the class that componentize-py looks for to its module."""
    setattr(function, MARK, (kind, call))
    function.__globals__[name] = component_class
    return function


def _export_processor(call: Callable[..., Any]) -> tuple[str, type]:
    class MessageProcessor:
        def process(self, batch: Any) -> Any:
            try:
                return call(batch)
            except Unavailable as error:
                raise _results.Err(_types.BatchError_Unavailable(str(error))) from None

    return "MessageProcessor", MessageProcessor


def _export_partitioner(call: Callable[..., Any]) -> tuple[str, type]:
    class Partitioner:
        def assign(self, partitions: int, messages: Any) -> Any:
            return call(partitions, messages)

    return "Partitioner", Partitioner


def _export_error_handler(call: Callable[..., Any]) -> tuple[str, type]:
    class ErrorHandler:
        def handle(self, failures: Any, messages: Any) -> Any:
            return [_as_bound(decision) for decision in call(failures, messages)]

    return "ErrorHandler", ErrorHandler


def _as_bound(decision: Decision) -> Any:
    """A decision as the bindings have it."""
    match decision.name:
        case "retry-after":
            return _decisions.Decision_RetryAfter(decision.value)
        case "dead-letter":
            return _decisions.Decision_DeadLetter()
        case "drop":
            return _decisions.Decision_Drop(decision.value)
        case _:
            return _decisions.Decision_Policy()


_EXPORTS = {
    "processor": _export_processor,
    "partitioner": _export_partitioner,
    "error-handler": _export_error_handler,
}
