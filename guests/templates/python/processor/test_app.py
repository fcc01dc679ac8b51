"""Tests of the handler in plain Python: python3 -m unittest"""

import unittest

import app
from millrace.testing import Rejected, Sample, Sent, Tester


class Greeting(unittest.TestCase):
    def test_whoever_has_a_name_is_greeted_and_counted(self) -> None:
        tester = Tester(app.process)
        run = tester.run([Sample("1", "Ada"), Sample("2", "Ada")])
        expected = [Sent(key, "hello, Ada", [("times", times)]) for key, times in [("1", "1"), ("2", "2")]]
        self.assertEqual(run.outputs, expected)
        self.assertEqual(tester.state("Ada"), 2)

    def test_the_word_of_greeting_is_a_setting(self) -> None:
        run = Tester(app.process, config={"greeting": "moin"}).run([Sample(value="Ada")])
        self.assertEqual(run.output.value, "moin, Ada")

    def test_nobody_cannot_be_greeted(self) -> None:
        run = Tester(app.process).run([Sample("1", None)])
        self.assertEqual(run.all, [Rejected("no-value", "there is nobody to greet")])


if __name__ == "__main__":
    unittest.main()
