"""Answers to requests, what they send and what they read."""

import unittest

from millrace import Outgoing, Request, Response, View, http, producer, views
from millrace.testing import RouteTester, Sent


@http
def sends(request: Request) -> Response:
    message = Outgoing(request.body, key=request.header("X-Id"), headers={"path": request.path}, deliver_at=7 if request.query else None)
    try:
        sent = producer.send_once("names", request.header("key") or "-", [message])
    except producer.KeyReused as error:
        return Response.text(409, str(error))
    return Response.json(202, [*sent.places[0], sent.repeated])


@http
def reads(request: Request) -> Response:
    view = View("counts")
    page = view.scan(0, "a", max=1)
    return Response.json(200, [view.number("ada"), view.get("bob"), view.partitions(), page.entries[0].key.decode(), page.has_more])


class Routes(unittest.TestCase):
    def test_what_is_sent_with_a_key_is_sent_once(self) -> None:
        tester = RouteTester(sends)
        ask = lambda target, body, key: tester.ask("POST", target, body, {"x-id": "1", "key": key})
        self.assertEqual(ask("/a", "Ada", "k").body, b"[0, 0, false]")
        self.assertEqual(ask("/a", "Ada", "k").body, b"[0, 0, true]")
        self.assertEqual(ask("/a", "Bob", "k").status, 409)
        self.assertEqual(ask("/b?later", "Bob", "l").body, b"[0, null, false]")
        expected = [Sent("1", "Ada", [("path", "/a")], "names"), Sent("1", "Bob", [("path", "/b")], "names", deliver_at=7)]
        self.assertEqual(tester.sent, expected)

    def test_state_is_that_of_the_granted_processors(self) -> None:
        tester = RouteTester(reads, views={"counts": {"ada": 3, "adam": "x"}})
        self.assertEqual(tester.ask("GET", "/").body, b'[3, null, 1, "ada", true]')
        with self.assertRaises(views.NotGranted):
            RouteTester(reads).ask("GET", "/")

    def test_an_answer_that_cannot_be_given_is_an_error(self) -> None:
        for wrong in (lambda: Response(99), lambda: Response(200, body="text")):
            self.assertRaises((TypeError, ValueError), wrong)
        with self.assertRaises(TypeError):
            RouteTester(http(lambda request: "text")).ask("GET", "/")
