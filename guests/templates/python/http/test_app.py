"""Tests of the handler in plain Python: python3 -m unittest"""

import unittest

import app
from millrace import producer
from millrace.testing import RouteTester, Sent


class Names(unittest.TestCase):
    def test_a_name_is_sent_once_for_each_key(self) -> None:
        tester = RouteTester(app.answer, config={"topic": "guests"})
        first = tester.ask("POST", "/hello/names", "Ada", {"Idempotency-Key": "7"})
        again = tester.ask("POST", "/hello/names", "Ada", {"Idempotency-Key": "7"})
        self.assertEqual((first.status, again), (202, first))
        self.assertEqual(tester.sent, [Sent("Ada", "Ada", topic="guests")])

    def test_a_name_that_cannot_be_sent_now_is_to_be_sent_again(self) -> None:
        tester = RouteTester(app.answer, failure=producer.Unavailable("stopping"))
        self.assertEqual(tester.ask("POST", "/names", "Ada").status, 503)

    def test_the_greeting_is_a_setting(self) -> None:
        tester = RouteTester(app.answer, config={"greeting": "moin"})
        self.assertEqual(tester.ask("GET", "/greeting").body, b'{"greeting": "moin"}')


if __name__ == "__main__":
    unittest.main()
