"""Write Millrace modules in Python: a function of one message, exported by a decorator.

    from millrace import Message, Outcome, emit, processor, reject

    @processor
    def process(message: Message) -> Outcome:
        if message.value is None:
            return reject("no-value", "there is nobody to greet")
        return emit(message.output(value="hello, " + message.text()))

The host passes messages in batches, in columns, which `Message` and `Output` hide. An output starts as a copy of its message and
states only the differences: unchanged parts are not copied.

Tests of a handler need neither WASM nor a host: `millrace.testing` passes messages to it and shows its outcomes.

An exception that nobody catches is logged with its traceback and becomes a trap: the host finds the failing message, tries it again,
and finally makes it a dead letter.
"""

from . import config, decision, log, metrics, secrets, state
from ._batch import Batch, Message
from ._failures import Cause, Failure
from ._handlers import batch_processor, error_handler, partitioner, processor
from ._outcomes import Outcome, Output, Unavailable, ack, emit, reject, retry, retry_after
from .decision import Decision
from .state import StateFull

__all__ = [
    "Batch",
    "Cause",
    "Decision",
    "Failure",
    "Message",
    "Outcome",
    "Output",
    "StateFull",
    "Unavailable",
    "ack",
    "batch_processor",
    "config",
    "decision",
    "emit",
    "error_handler",
    "log",
    "metrics",
    "partitioner",
    "processor",
    "reject",
    "retry",
    "retry_after",
    "secrets",
    "state",
]
