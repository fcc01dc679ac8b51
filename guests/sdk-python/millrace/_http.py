"""HTTP requests and their answers as a whole, and the decorator of the function that answers them."""

from __future__ import annotations

import json as _json
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, Sequence

from . import _host
from ._handlers import export

#: Bytes of a request's body; a larger one is answered with 413.
_BODY_BYTES_MAX = 1 << 20
#: Bytes that are read at a time.
_READ_BYTES = 64 << 10
#: Bytes that are written at a time, which WASI sets.
_WRITE_BYTES = 4 << 10

#: The bindings; they exist in a component only.
_results = _host.binding("componentize_py_types")
_types = _host.binding("wit_world.imports.types")


@dataclass(frozen=True)
class Request:
    """A request.

    method   such as "GET"
    target   path and query, as they were sent
    headers  names in lower case and values, in order
    body     its bytes
    """

    method: str
    target: str
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""

    @property
    def path(self) -> str:
        """The path, which begins with that of the route."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """The query, without its question mark; empty if there is none."""
        return self.target.partition("?")[2]

    def header(self, name: str) -> str | None:
        """The value of the first header with this name; None if there is none."""
        return next((value for known, value in self.headers if known == name.lower()), None)

    def text(self) -> str:
        """The body as text; what is not UTF-8 becomes U+FFFD."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body, read as JSON. Raises ValueError if it is none."""
        return _json.loads(self.body)


@dataclass(frozen=True)
class Response:
    """An answer. `Response.text` and `Response.json` make the usual ones."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def __post_init__(self) -> None:
        if not (isinstance(self.status, int) and 200 <= self.status <= 599):
            raise ValueError(f"{self.status} is not the status of an answer: use one from 200 to 599")
        if not isinstance(self.body, bytes):
            raise TypeError("the body of an answer is bytes: use Response.text or Response.json for others")

    @staticmethod
    def text(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
        """Plain text."""
        return Response(status, {"content-type": "text/plain; charset=utf-8", **(headers or {})}, text.encode())

    @staticmethod
    def json(status: int, value: Any, headers: Mapping[str, str] | None = None) -> Response:
        """A value as JSON."""
        return Response(status, {"content-type": "application/json", **(headers or {})}, _json.dumps(value).encode())


def http(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """Exports a function that answers the HTTP requests of a route."""

    def call(request: Request) -> Response:
        _host.begin_call()
        answered = answer(request)
        if not isinstance(answered, Response):
            raise TypeError(f"the handler returned a {type(answered).__name__}: return a Response")
        return answered

    class IncomingHandler:
        def handle(self, request: Any, response_out: Any) -> None:
            asked = _read(request)
            _give(asked if isinstance(asked, Response) else call(asked), response_out)

    return export(answer, "http", call, "IncomingHandler", IncomingHandler)


def _read(incoming: Any) -> Request | Response:
    """The whole request, or the answer that says what is wrong with it."""
    with incoming.headers() as fields:
        headers = [(name.lower(), value.decode("utf-8", "replace")) for name, value in fields.entries()]
    body = _read_body(incoming)
    if isinstance(body, Response):
        return body
    return Request(_method(incoming.method()), incoming.path_with_query() or "", headers, body)


def _method(method: Any) -> str:
    name = type(method).__name__.removeprefix("Method_")
    return method.value if name == "Other" else name.upper()


def _read_body(incoming: Any) -> bytes | Response:
    body = b""
    with incoming.consume() as consumed, consumed.stream() as stream:
        while True:
            try:
                body += stream.blocking_read(_READ_BYTES)
            except Exception as error:
                # The bindings wrap the error of the host.
                if type(getattr(error, "value", None)).__name__ == "StreamError_Closed":
                    return body
                return Response.text(400, "the body cannot be read")
            if len(body) > _BODY_BYTES_MAX:
                return Response.text(413, "the body is too large")


def _give(response: Response, out: Any) -> None:
    fields = _types.Fields.from_list([(name.lower(), value.encode()) for name, value in response.headers.items()])
    outgoing = _types.OutgoingResponse(fields)
    outgoing.set_status_code(response.status)
    body = outgoing.body()
    _types.ResponseOutparam.set(out, _results.Ok(outgoing))
    with body.write() as stream:
        try:
            for start in range(0, len(response.body), _WRITE_BYTES):
                stream.blocking_write_and_flush(response.body[start : start + _WRITE_BYTES])
        except _results.Err:
            # Whoever asked is gone.
            pass
    try:
        _types.OutgoingBody.finish(body, None)
    except _results.Err:
        pass
