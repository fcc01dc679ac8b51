"""The examples of ../README.md in plain Python: PYTHONPATH=../../sdk-python python3 -m unittest"""

import unittest

import app
from millrace.testing import Emitted, Rejected, Retried, Sample, Sent, Tester


class Conformance(unittest.TestCase):
    def test_each_message_becomes_what_its_value_says(self) -> None:
        tester = Tester(app.process, config={"suffix": "!"})
        run = tester.run(
            [
                Sample("a", "one", {"x": "1"}),
                Sample("b", "Zwei é"),
                Sample("a", "reject this"),
                Sample("c", "retry this"),
                Sample("a", None),
                Sample(None, "no key"),
                Sample("a", "", {"count": "9"}),
                Sample("f", b"a\xffz"),
            ]
        )
        expected = [
            Emitted([Sent("a", "ONE!", [("x", "1"), ("count", "1")])]),
            Emitted([Sent("b", "ZWEI é!", [("count", "1")])]),
            Rejected("bad", "told to reject"),
            Retried("later", "told to wait"),
            Emitted([Sent("a", None, [("count", "2")])]),
            Emitted([Sent(None, "NO KEY!", [("count", "1")])]),
            Emitted([Sent("a", "!", [("count", "9"), ("count", "3")])]),
            Emitted([Sent("f", b"A\xffZ!", [("count", "1")])]),
        ]
        self.assertEqual(run.all, expected)
        self.assertEqual(tester.all_state, {"": 1, "a": 3, "b": 1, "f": 1})
        self.assertIn(("warn", "rejected the message at offset 2"), run.lines)
        self.assertEqual(run.metrics[0], ("add", "handled", 8, {"language": "python"}))

    def test_told_to_trap_it_raises_and_logs_why(self) -> None:
        tester = Tester(app.process)
        with self.assertRaisesRegex(RuntimeError, "told to trap"):
            tester.run([Sample("d", "trap now")])
        self.assertEqual(tester.all_state, {})

    def test_without_a_suffix_nothing_is_appended(self) -> None:
        run = Tester(app.process).run([Sample("a", "one")])
        self.assertEqual(run.output.value, "ONE")


if __name__ == "__main__":
    unittest.main()
