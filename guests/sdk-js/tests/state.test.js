// State, settings, secrets and metrics as handlers use them.

import assert from "node:assert/strict";
import test from "node:test";

import { ack, config, emit, metrics, processBatch, processor, reject, secrets, state, Unavailable, utf8, Writes } from "../millrace.js";
import { setHost } from "../lib/host.js";
import { Tester } from "../testing.js";

const tester = (process, beginning) => new Tester(processor(process), beginning);

test("state is read, written and kept from batch to batch", () => {
  const it = tester(
    (one) => {
      const key = one.keyText();
      state.set(one, `text-${key}`, one.text());
      state.set(one, utf8.encode(`ends-${key}`), "soon", { ttlMs: 60_000 });
      state.delete(one, "old");
      return emit(one.output({ value: String(state.add(one, key, 5)) }));
    },
    { state: { old: "value", a: 2 } },
  );
  const run = it.run([{ key: "a", value: "é" }]);
  assert.equal(run.output().value, "7");
  assert.deepEqual(run.changes, { a: 7, "ends-a": { value: "soon", ttlMs: 60_000 }, old: null, "text-a": "é" });
  assert.equal(it.run([{ key: "a", value: "x" }]).output().value, "12");
});

test("reads give null for what is not there", () => {
  tester(
    (one) => {
      assert.deepEqual([state.get("no"), state.text("no"), state.json("no"), state.number("no")], [null, null, null, null]);
      assert.deepEqual([state.text("t"), state.json("j"), state.number("n")], ["é", { a: 1 }, -3]);
      assert.deepEqual(state.getMany(["t", "no", "j"]).map((value) => value && utf8.decode(value)), ["é", null, '{"a":1}']);
      return ack();
    },
    { state: { t: "é", j: '{"a":1}', n: -3 } },
  ).run([{}]);
});

test("a failed message leaves no trace in state", () => {
  const it = tester((one) => {
    state.add(one, "all");
    return one.text() === "bad" ? reject("bad", "told") : emit(one.output());
  });
  const run = it.run([{ value: "a" }, { value: "bad" }, { value: "b" }]);
  assert.deepEqual(run.all.map((said) => said.outcome), ["emit", "reject", "emit"]);
  assert.equal(it.number("all"), 2);
});

test("each message of a batch adds in one call", () => {
  const it = new Tester(processBatch((batch) => {
    const counts = state.addEach(batch);
    const sizes = state.addEach(batch, { key: (one) => `size-${one.keyText()}`, delta: (one) => one.value.length, ttlMs: (one) => (one.index === 0 ? 1000 : null) });
    return batch.map((one, at) => emit(one.output({ value: `${counts[at]} ${sizes[at]}` })));
  }));
  const run = it.run([{ key: "a", value: "xx" }, { key: "b", value: "x" }, { key: "a", value: "xxx" }, { value: "" }]);
  assert.deepEqual(run.outputs().map(({ value }) => value), ["1 2", "1 1", "2 5", "1 0"]);
  assert.deepEqual(it.allState(), { "": 1, a: 2, b: 1, "size-a": 5, "size-b": 1, "size-null": 0 });
});

test("many writes go in one call, and ranges are scanned in order", () => {
  const it = new Tester(processBatch((batch) => {
    const writes = new Writes();
    for (const one of batch) writes.set(one, `k${one.index}`, "v", one.index === 1 ? { ttlMs: 5 } : undefined);
    writes.delete(batch.message(0), "k9");
    writes.write();
    const keys = [];
    for (let after = null; ; ) {
      const entries = state.scan("k", { after, max: 2 });
      if (entries.length === 0) break;
      keys.push(...entries.map(({ key }) => utf8.decode(key)));
      after = entries.at(-1).key;
    }
    assert.deepEqual(keys, ["k0", "k1", "k2"]);
    return batch.map(() => ack());
  }), { state: { k9: "x", l: "x" } });
  assert.deepEqual(it.run([{}, {}, {}]).changes, { k0: "v", k1: { value: "v", ttlMs: 5 }, k2: "v", k9: null });
});

test("buffers that a handler uses again leave earlier writes and keys alone", () => {
  const it = new Tester(processBatch((batch) => {
    const [buffer, writes] = [new Uint8Array(1), new Writes()];
    const letter = (index) => { buffer[0] = 0x61 + index; return buffer; };
    for (const one of batch) writes.set(one, letter(one.index), buffer);
    writes.write();
    assert.deepEqual(state.addEach(batch, { key: (one) => letter(one.index + 2) }), [1, 1]);
    assert.deepEqual(state.getMany((function* () { for (const at of [0, 1]) yield letter(at); })()).map(utf8.decode), ["a", "b"]);
    return batch.map(() => ack());
  }));
  assert.deepEqual(it.run([{}, {}]).changes, { a: "a", b: "b", c: 1, d: 1 });
});

test("a full state retries the message unless the handler catches it", () => {
  const full = () => { throw { payload: { tag: "full", val: "128 MiB" } }; };
  const columns = { topic: "in", partition: 0, data: new Uint8Array(0), offsets: [0], timestamps: [0], attempts: [1], keys: [0, 0], values: [0, 0], headerEnds: [0], headers: [] };
  const before = setHost({ state: { add: full, set: full } });
  try {
    const answer = processor((one) => { state.add(one, "n"); return ack(); }).call(columns);
    assert.deepEqual([...answer.outcomes], [2]);
    assert.deepEqual(answer.details, [{ message: 0, afterMs: undefined, class: "state-full", reason: "128 MiB" }]);
  } finally {
    setHost(before);
  }
});

test("settings change between calls, and are asked for once in each", () => {
  const it = tester((one) => emit(one.output({ value: `${config.get("a")} ${config.get("none")} ${Object.keys(config.all())}` })), { config: { a: "1" } });
  assert.equal(it.run([{}]).output().value, "1 null a");
  it.config.a = "2";
  assert.equal(it.run([{}]).output().value, "2 null a");
});

test("secrets are given, refused or unavailable", () => {
  const it = tester((one) => emit(one.output({ value: secrets.text(one.text()) })), { secrets: { key: "s3cret", away: new Unavailable("vault is sealed") } });
  assert.equal(it.run([{ value: "key" }]).output().value, "s3cret");
  assert.throws(() => it.run([{ value: "away" }]), (error) => error instanceof Unavailable && /vault is sealed/.test(error.message));
  assert.throws(() => it.run([{ value: "other" }]), /no grant for the secret other/);
  const spoilt = tester((one) => { secrets.get("key")[0] = 0x21; return emit(one.output({ value: secrets.text("key") })); }, { secrets: { key: "s3cret" } });
  assert.equal(spoilt.run([{}]).output().value, "s3cret");
});

test("metrics have kinds and labels", () => {
  const it = tester(() => {
    metrics.add("seen");
    metrics.set("level", 1.5, { tank: 2 });
    metrics.observe("ms", 7);
    return ack();
  });
  assert.deepEqual(it.run([{}]).metrics, [
    { kind: "add", name: "seen", labels: {}, value: 1 },
    { kind: "set", name: "level", labels: { tank: "2" }, value: 1.5 },
    { kind: "observe", name: "ms", labels: {}, value: 7 },
  ]);
  assert.throws(() => tester(() => metrics.add("seen", -1)).run([{}]), RangeError);
});

test("an import that is missing says what to do", () => {
  assert.throws(() => config.get("a"), /add "config" to `imports` in millrace.toml/);
});
