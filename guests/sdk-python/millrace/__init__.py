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

An exception that nobody catches is a trap, and its traceback is in the processor's log and in the dead letter: the host finds the failing
message, tries it again, and finally makes it a dead letter.
"""

from . import config, decision, log, metrics, producer, secrets, state, views
from ._batch import Batch, Message
from ._failures import Cause, Failure
from ._handlers import batch_processor, error_handler, partitioner, processor
from ._http import Request, Response, http
from ._outcomes import Outcome, Output, Unavailable, ack, emit, reject, retry, retry_after
from .decision import Decision
from .producer import Outgoing
from .state import StateFull
from .views import View

__all__ = [
    "Batch",
    "Cause",
    "Decision",
    "Failure",
    "Message",
    "Outcome",
    "Outgoing",
    "Output",
    "Request",
    "Response",
    "StateFull",
    "Unavailable",
    "View",
    "ack",
    "batch_processor",
    "config",
    "decision",
    "emit",
    "error_handler",
    "http",
    "log",
    "metrics",
    "partitioner",
    "processor",
    "producer",
    "reject",
    "retry",
    "retry_after",
    "secrets",
    "state",
    "views",
]
