"""What outputs change, and what they keep."""

import unittest
from array import array
from datetime import datetime, timezone
from types import SimpleNamespace

from millrace import Message, ack, batch_processor, emit, processor, reject, retry, retry_after
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

    def test_headers_that_are_alike_are_added_at_once(self):
        def sent(samples, headers):
            return [sent.headers for sent in run(lambda message: emit(message.output(headers=headers(message.index))), samples).outputs]

        one = [Sample(headers={"a": name}) for name in "xyz"]
        self.assertEqual(sent(one, lambda at: {"n": str(at), "m": "é" * at}), [[("a", name), ("n", str(at)), ("m", "é" * at)] for at, name in enumerate("xyz")])
        self.assertEqual(sent([Sample()] * 2, lambda at: {"n": bytes([0x61 + at])}), [[("n", "a")], [("n", "b")]])
        self.assertEqual(sent(one, lambda at: {}), [[("a", name)] for name in "xyz"])
        # Not alike: names, numbers of headers, kinds of values.
        self.assertEqual(sent(one, lambda at: {"n": "1"} if at else {"o": "1"})[0], [("a", "x"), ("o", "1")])
        self.assertEqual(sent([Sample(), *one], lambda at: {"n": "1"}), [[("n", "1")], *([("a", name), ("n", "1")] for name in "xyz")])
        self.assertEqual(sent(one, lambda at: {"n": None if at == 1 else "1"})[1], [("a", "y"), ("n", None)])

    def test_headers_are_those_of_the_outputs_own_message_if_others_have_none(self):
        samples = [Sample(value=str(at), headers={"a": str(at)}) for at in range(4)]
        chosen = {0: ack(), 2: reject("bad", "no")}
        said = run(lambda message: chosen.get(message.index) or emit(message.output(headers={"n": "1"}), message.output(headers={"n": "2"})), samples).all
        expected = [[Sent(None, str(at), [("a", str(at)), ("n", n)]) for n in "12"] for at in range(4)]
        self.assertEqual(said, [Acked(), Emitted(expected[1]), Rejected("bad", "no"), Emitted(expected[3])])

    def test_buffers_and_dicts_that_a_handler_uses_again_leave_earlier_outputs_alone(self):
        buffer, headers = bytearray(1), {}

        def process(message):
            buffer[0] = 0x61 + message.index
            headers["h"] = memoryview(buffer)
            output = message.output(memoryview(buffer), key=buffer, headers=headers)
            pairs = message.output(str(message.index), headers=[("h", buffer)])
            buffer[0] = headers["h"] = 0
            return emit(output, pairs)

        outputs = run(process, [Sample(), Sample()]).outputs
        expected = [[Sent(letter, letter, [("h", letter)]), Sent(None, str(at), [("h", letter)])] for at, letter in enumerate("ab")]
        self.assertEqual(outputs, expected[0] + expected[1])

    def test_a_typed_view_counts_as_its_bytes(self):
        numbers = array("H", [0x6261, 0x6463])
        columns = memoryview(b"a-b-c-")[::2]
        sent = run(lambda message: emit(message.output(memoryview(numbers), key=columns, headers={"h": memoryview(numbers)})), [Sample("k", "v")] * 2).outputs
        self.assertEqual(sent, [Sent("abc", numbers.tobytes().decode(), [("h", numbers.tobytes().decode())])] * 2)

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
    """The class that a decorator adds to the handler's module for componentize-py."""

    def test_it_answers_with_columns_and_lets_exceptions_become_traps(self):
        def columns(value):
            return SimpleNamespace(
                topic="in", partition=0, data=value, offsets=[0], timestamps=[0], attempts=[1], keys=[0, NONE], values=[0, len(value)], header_ends=[0], headers=[]
            )

        @processor
        def process(message):
            if message.value == b"trap":
                raise RuntimeError("told to trap")
            return emit(message.output(message.value.upper()))

        exported = globals()["MessageProcessor"]()
        answer = exported.process(columns(b"abc"))
        self.assertEqual((answer.outcomes, answer.data, answer.values), (b"\x01", b"ABC", [3, 3]))
        with self.assertRaisesRegex(RuntimeError, "told to trap"):
            exported.process(columns(b"trap"))


if __name__ == "__main__":
    unittest.main()
