"""What outputs change, and what they keep."""

import unittest
from datetime import datetime, timezone
from types import SimpleNamespace

import millrace
from millrace import Message, Unavailable, ack, batch_processor, emit, processor, reject, retry, retry_after
from millrace._batch import NONE
from millrace.testing import Acked, Emitted, Rejected, Retried, Sample, Sent, Tester


def run(process, samples, **beginning):
    return Tester(processor(process), **beginning).run(samples)


class Outputs(unittest.TestCase):
    def test_an_unchanged_output_is_its_message(self):
        samples = [Sample("k", "v", {"from": "shop"}), Sample()]
        outputs = run(lambda message: emit(message.output()), samples).outputs
        self.assertEqual(outputs, [Sent("k", "v", [("from", "shop")]), Sent(None, None)])

    def test_an_unchanged_output_copies_nothing(self):
        columns = SimpleNamespace(
            topic="in", partition=0, data=b"kvalue", offsets=[0], timestamps=[0], attempts=[1], keys=[0, 1], values=[1, 5], header_ends=[0], headers=[]
        )
        answer = processor(lambda message: emit(message.output())).__millrace__[1](columns)
        self.assertEqual((answer.data, answer.keys, answer.values, answer.headers, answer.sources), (b"", [], [], [], [0]))

    def test_text_bytes_and_unchanged_parts_can_be_mixed(self):
        changes = [{"value": "ä"}, {"value": b"\xff"}, {"key": b"\xfe", "value": "plain"}, {}, {"value": None}, {"value": ""}, {"key": None}]
        samples = [Sample(f"k{at}", f"v{at}") for at in range(len(changes))]
        outputs = run(lambda message: emit(message.output(**changes[message.index])), samples).outputs
        expected = [("k0", "ä"), ("k1", b"\xff"), (b"\xfe", "plain"), ("k3", "v3"), ("k4", None), ("k5", ""), (None, "v6")]
        self.assertEqual([(sent.key, sent.value) for sent in outputs], expected)

    def test_headers_are_added_and_can_be_cleared_first(self):
        def headers(**changes):
            sample = Sample("k", "v", {"a": "1", "b": b"\xff"})
            return run(lambda message: emit(message.output(**changes)), [sample]).output.headers

        kept = [("a", "1"), ("b", b"\xff")]
        self.assertEqual(headers(headers={"c": "3"}), [*kept, ("c", "3")])
        self.assertEqual(headers(headers=[("a", "ü"), ("a", None)]), [*kept, ("a", "ü"), ("a", None)])
        self.assertEqual(headers(clear_headers=True), [])
        self.assertEqual(headers(clear_headers=True, headers={"x": b"1"}), [("x", "1")])

    def test_headers_of_one_output_leave_those_of_others_alone(self):
        samples = [Sample(headers={name: name}) for name in "abc"]
        outputs = run(lambda message: emit(message.output(headers={"new": "x"} if message.index == 1 else None)), samples).outputs
        self.assertEqual([sent.headers for sent in outputs], [[("a", "a")], [("b", "b"), ("new", "x")], [("c", "c")]])

    def test_topics_partitions_and_times_are_of_the_outputs_that_set_them(self):
        second = datetime(1970, 1, 1, 0, 0, 1, tzinfo=timezone.utc)
        changes = [{"topic": "late", "deliver_at": 2000}, {}, {"topic": "far", "partition": 7}, {"topic": "late", "timestamp": second}]
        outputs = run(lambda message: emit(message.output(**changes[message.index])), [Sample("k", "v")] * 4).outputs
        expected = [
            Sent("k", "v", topic="late", deliver_at=2000),
            Sent("k", "v"),
            Sent("k", "v", topic="far", partition=7),
            Sent("k", "v", topic="late", timestamp=1000),
        ]
        self.assertEqual(outputs, expected)

    def test_each_outcome_is_told_as_it_is(self):
        outcomes = [ack(), retry("later", "wait"), retry_after(1500, "later", "wait"), reject("bad", "no"), emit()]
        said = run(lambda message: outcomes[message.index], [Sample(value="v")] * 5).all
        self.assertEqual(said, [Acked(), Retried("later", "wait"), Retried("later", "wait", 1500), Rejected("bad", "no"), Acked()])

    def test_a_message_may_have_several_outputs(self):
        said = run(lambda message: emit(message.output("1"), message.output("2")), [Sample("a"), Sample("b")]).all
        self.assertEqual(said, [Emitted([Sent(key, "1"), Sent(key, "2")]) for key in "ab"])

    def test_messages_show_what_they_are(self):
        def process(message: Message):
            self.assertEqual((message.key_text(), message.json(), message.text()), ("ключ", {"amount": 12}, '{"amount": 12}'))
            self.assertEqual((message.header("h"), message.header_text("h"), message.header("none"), message.header("n")), (b"2", "2", None, None))
            self.assertEqual(message.headers, [("h", b"1"), ("h", b"2"), ("n", None)])
            self.assertEqual((message.timestamp, message.attempt, message.offset, message.topic, message.partition), (5, 3, 9, "orders", 2))
            return ack()

        sample = Sample("ключ", {"amount": 12}, [("h", "1"), ("h", "2"), ("n", None)], timestamp=5, attempt=3, offset=9)
        self.assertEqual(run(process, [sample], topic="orders", partition=2).all, [Acked()])

    def test_mistakes_of_a_handler_are_told(self):
        samples = [Sample(value="v"), Sample(value="w")]
        kept = []

        async def later(message):
            return ack()

        def other(message):
            kept.append(message.output())
            return emit(kept[0])

        for process, text in [(lambda message: None, "returned None"), (lambda message: message.output(12), "type int is neither"), (other, "belongs to the message")]:
            with self.assertRaisesRegex(TypeError, text):
                run(process, samples)
        with self.assertWarns(RuntimeWarning), self.assertRaisesRegex(TypeError, "coroutine"):
            run(later, samples)
        with self.assertRaisesRegex(TypeError, "1 outcomes for 2 messages"):
            Tester(batch_processor(lambda batch: [ack()])).run(samples)

    def test_a_plain_function_is_no_handler(self):
        with self.assertRaisesRegex(TypeError, "decorator"):
            Tester(lambda message: ack())


class Component(unittest.TestCase):
    """The class that a decorator adds for componentize-py."""

    def test_an_error_is_logged_before_it_becomes_a_trap_and_an_outage_is_not(self):
        lines = []
        log = SimpleNamespace(Level=SimpleNamespace(ERROR="error"), log=lambda level, text: lines.append((level, text)))

        def process(message):
            raise (Unavailable if message.text() == "down" else RuntimeError)("told to trap")

        processor(process)
        columns = lambda value: SimpleNamespace(
            topic="in", partition=0, data=value, offsets=[0], timestamps=[0], attempts=[1], keys=[0, NONE], values=[0, len(value)], header_ends=[0], headers=[]
        )
        before = dict(millrace._host.interfaces)
        millrace._host.interfaces["log"] = log
        try:
            with self.assertRaisesRegex(RuntimeError, "told to trap"):
                globals()["MessageProcessor"]().process(columns(b"x"))
            self.assertRegex(lines[0][1], r"(?s)^Traceback .*in process\nRuntimeError: told to trap$")
            # The bindings with the error's type exist in a component only.
            with self.assertRaises(ModuleNotFoundError):
                globals()["MessageProcessor"]().process(columns(b"down"))
            self.assertEqual(len(lines), 1)
        finally:
            millrace._host.interfaces.clear()
            millrace._host.interfaces.update(before)


if __name__ == "__main__":
    unittest.main()
