"""State, settings, secrets and metrics as handlers use them; partitioners and error handlers."""

import unittest
from types import SimpleNamespace

from millrace import (
    Cause, StateFull, Unavailable, ack, batch_processor, config, decision, emit, error_handler, metrics, partitioner, processor, reject, secrets, state,
)
from millrace import _host
from millrace.testing import Acked, Emitted, Failed, Rejected, Sample, Tester


class State(unittest.TestCase):
    def test_state_is_read_written_and_kept_from_batch_to_batch(self):
        @processor
        def process(message):
            key = message.key_text()
            state.set(message, f"text-{key}", message.text())
            state.set(message, f"ends-{key}".encode(), b"soon", ttl_ms=60_000)
            state.delete(message, "old")
            return emit(message.output(str(state.add(message, key, 5))))

        tester = Tester(process, state={"old": "value", "a": 2})
        run = tester.run([Sample("a", "é")])
        self.assertEqual(run.output.value, "7")
        self.assertEqual(run.changes, {"a": 7, "ends-a": "soon", "old": None, "text-a": "é"})
        self.assertEqual(run.lives, {"ends-a": 60_000})
        self.assertEqual(tester.run([Sample("a", "x")]).output.value, "12")

    def test_reads_give_none_for_what_is_not_there(self):
        @processor
        def process(message):
            self.assertEqual([state.get("no"), state.text("no"), state.json("no"), state.number("no")], [None] * 4)
            self.assertEqual([state.text("t"), state.json("j"), state.number("n")], ["é", {"a": 1}, -3])
            self.assertEqual(state.get_many(["t", "no", b"j"]), ["é".encode(), None, b'{"a":1}'])
            return ack()

        self.assertEqual(Tester(process, state={"t": "é", "j": '{"a":1}', "n": -3}).run([Sample()]).all, [Acked()])

    def test_a_failed_message_leaves_no_trace_in_state(self):
        @processor
        def process(message):
            state.add(message, "all")
            return reject("bad", "told") if message.value == b"bad" else ack()

        tester = Tester(process)
        self.assertEqual(tester.run([Sample(value=value) for value in ["a", "bad", "b"]]).all, [Acked(), Rejected("bad", "told"), Acked()])
        self.assertEqual(tester.state("all"), 2)

    def test_each_message_of_a_batch_adds_in_one_call(self):
        @batch_processor
        def process(batch):
            counts = state.add_each(batch)
            sizes = state.add_each(batch, lambda one: b"size-" + (one.key or b""), lambda one: len(one.value), lambda one: 1000 if one.index == 0 else None)
            for message, count, size in zip(batch, counts, sizes):
                yield emit(message.output(f"{count} {size}"))

        tester = Tester(process)
        run = tester.run([Sample("a", "xx"), Sample("b", "x"), Sample("a", "xxx"), Sample(None, "")])
        self.assertEqual([sent.value for sent in run.outputs], ["1 2", "1 1", "2 5", "1 0"])
        self.assertEqual(tester.all_state, {"": 1, "a": 2, "b": 1, "size-": 0, "size-a": 5, "size-b": 1})

    def test_many_writes_go_in_one_call_and_ranges_are_scanned_in_order(self):
        @batch_processor
        def process(batch):
            writes = state.Writes()
            for message in batch:
                writes.set(message, f"k{message.index}", "v", 5 if message.index == 1 else None)
            writes.delete(batch[0], "k9")
            writes.write()
            keys, entries = [], state.scan("k", max=2)
            while entries:
                keys += [entry.key for entry in entries]
                entries = state.scan("k", entries[-1].key, 2)
            self.assertEqual(keys, [b"k0", b"k1", b"k2"])
            return [ack()] * len(batch)

        run = Tester(process, state={"k9": "x", "l": "x"}).run([Sample(), Sample(), Sample()])
        self.assertEqual((run.changes, run.lives), ({"k0": "v", "k1": "v", "k2": "v", "k9": None}, {"k1": 5}))

    def test_a_full_state_retries_the_message_unless_the_handler_catches_it(self):
        class StateError_Full:
            value = "128 MiB"

        class Err(Exception):
            value = StateError_Full()

        def full(*arguments):
            raise Err

        columns = SimpleNamespace(
            topic="in", partition=0, data=b"", offsets=[0], timestamps=[0], attempts=[1], keys=[0, 0], values=[0, 0], header_ends=[0], headers=[]
        )

        @processor
        def process(message):
            state.add(message, "n")
            return ack()

        @processor
        def catches(message):
            try:
                state.set(message, "k", "v")
            except StateFull as error:
                return reject("full", str(error))

        before = dict(_host.interfaces)
        _host.interfaces["state"] = SimpleNamespace(add=full, set=full, Writes=lambda ttl_ms, messages: None)
        try:
            answer, caught = process.__millrace__[1](columns), catches.__millrace__[1](columns)
        finally:
            _host.interfaces.clear()
            _host.interfaces.update(before)
        self.assertEqual([(answer.outcomes[0], one.class_, one.reason) for one in answer.details], [(2, "state-full", "128 MiB")])
        self.assertEqual([(caught.outcomes[0], one.class_, one.reason) for one in caught.details], [(3, "full", "128 MiB")])


class Others(unittest.TestCase):
    def test_settings_are_given_with_defaults(self):
        @processor
        def process(message):
            return emit(message.output(f"{config.get('a')} {config.get('none')} {config.get('none', 'x')} {config.all()}"))

        self.assertEqual(Tester(process, config={"a": "1"}).run([Sample()]).output.value, "1 None x {'a': '1'}")

    def test_secrets_are_given_refused_or_unavailable(self):
        @processor
        def process(message):
            return emit(message.output(secrets.text(message.text())))

        tester = Tester(process, secrets={"key": "s3cret", "away": Unavailable("vault is sealed")})
        self.assertEqual(tester.run([Sample(value="key")]).output.value, "s3cret")
        with self.assertRaisesRegex(Unavailable, "vault is sealed"):
            tester.run([Sample(value="away")])
        with self.assertRaisesRegex(secrets.NotGranted, "no grant for the secret other"):
            tester.run([Sample(value="other")])

    def test_metrics_have_kinds_and_labels(self):
        @processor
        def process(message):
            metrics.add("seen")
            metrics.set("level", 1.5, {"tank": 2})
            metrics.observe("ms", 7)
            return ack()

        expected = [("add", "seen", 1, {}), ("set", "level", 1.5, {"tank": "2"}), ("observe", "ms", 7.0, {})]
        self.assertEqual(Tester(process).run([Sample()]).metrics, expected)

    def test_an_import_that_is_missing_says_what_to_do(self):
        with self.assertRaisesRegex(RuntimeError, 'add "config" to imports in millrace.toml'):
            config.get("a")

    def test_a_partitioner_chooses_below_the_number_of_partitions(self):
        samples = [Sample("a"), Sample("bb")]
        self.assertEqual(Tester(partitioner(lambda message, count: len(message.key)), partitions=3).assign(samples), [1, 2])
        with self.assertRaisesRegex(ValueError, "returned 3: return a whole number from 0 to 2"):
            Tester(partitioner(lambda message, count: count), partitions=3).assign(samples)

    def test_an_error_handler_sees_the_failure_and_decides(self):
        seen = []

        @error_handler
        def decide(failure):
            seen.append((failure.cause, failure.class_, failure.attempt, failure.reason, failure.revision, failure.message.value))
            return [decision.retry_after(1), decision.policy()][failure.message.index]

        failures = [Failed(Sample(value="a"), class_="busy", reason="503", attempt=2, revision=4), Failed(cause=Cause.TRAP)]
        self.assertEqual(Tester(decide).decide(failures), [decision.retry_after(1), decision.policy()])
        self.assertEqual(seen, [(Cause.RETRY, "busy", 2, "503", 4, b"a"), (Cause.TRAP, "trap", 1, "", 1, None)])
        with self.assertRaisesRegex(TypeError, "returned a value of type str"):
            Tester(error_handler(lambda failure: "retry")).decide(failures)


if __name__ == "__main__":
    unittest.main()
