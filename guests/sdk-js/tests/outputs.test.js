// What outputs change, and what they keep.

import assert from "node:assert/strict";
import test from "node:test";

import { ack, emit, processBatch, processor, reject, retry, retryAfter, Unavailable } from "../millrace.js";
import { Tester } from "../testing.js";

const bytes = (...all) => Uint8Array.from(all);
const run = (process, messages, beginning) => new Tester(processor(process), beginning).run(messages);

test("an unchanged output is its message, and copies nothing", () => {
  const messages = [{ key: "k", value: "v", headers: { from: "shop" } }, { key: null, value: null }];
  const handler = processor((message) => emit(message.output()));
  assert.deepEqual(new Tester(handler).run(messages).outputs(), [
    { key: "k", value: "v", headers: { from: "shop" } },
    { key: null, value: null },
  ]);
});

test("what is not changed is not copied", () => {
  const columns = { topic: "in", partition: 0, data: bytes(1, 2, 3, 4, 5), offsets: [0], timestamps: [0], attempts: [1], keys: [0, 1], values: [1, 4], headerEnds: [0], headers: [] };
  const answer = processor((message) => emit(message.output({ headers: { a: "b" } }))).call(columns);
  assert.deepEqual([...answer.data], [0x61, 0x62]);
  assert.deepEqual([answer.values, answer.keys], [[], []]);
});

test("a message never changes: its bytes are copies", () => {
  const columns = { topic: "in", partition: 0, data: bytes(1, 2, 0x68, 3), offsets: [0], timestamps: [0], attempts: [1], keys: [0, 1], values: [1, 1], headerEnds: [1], headers: [2, 1, 3, 1] };
  const answer = processor((one) => {
    const { key, value } = one;
    for (const part of [key, value, one.headerBytes("h")]) part[0] = 9;
    assert.deepEqual([one.key, one.value, one.headerBytes("h")], [bytes(1), bytes(2), bytes(3)]);
    return emit(one.output(), one.output({ key: value, value: key.subarray(0) }));
  }).call(columns);
  assert.deepEqual([...columns.data], [1, 2, 0x68, 3]);
  assert.deepEqual([[...answer.keys], [...answer.values], [...answer.data]], [[0, 1, 4, 1], [1, 1, 5, 1], [9, 9]]);
});

test("buffers and objects that a handler uses again leave earlier outputs alone", () => {
  const [buffer, headers, changes, when] = [new Uint8Array(1), { h: null }, {}, new Date(0)];
  const outputs = run((one) => {
    buffer[0] = 0x61 + one.index;
    headers.h = buffer;
    when.setTime(1000 * (one.index + 1));
    Object.assign(changes, { key: buffer, value: buffer, headers: one.index === 0 ? headers : [["h", buffer]], timestamp: when });
    return emit(one.output(changes));
  }, [{}, {}]).outputs();
  assert.deepEqual(outputs, [
    { key: "a", value: "a", headers: { h: "a" }, timestamp: 1000 },
    { key: "b", value: "b", headers: { h: "b" }, timestamp: 2000 },
  ]);
});

test("what is absent is absent, also as QuickJS passes it: with lengths below 0", () => {
  const columns = { topic: "in", partition: 0, data: bytes(97), offsets: [0], timestamps: [0], attempts: [1], keys: [0, -1], values: [0, -1], headerEnds: [1], headers: [0, 1, 0, -1] };
  const answer = processor((one) => {
    assert.deepEqual([one.key, one.keyText(), one.value, one.text(), one.asciiText(), one.json(), one.header("a"), one.headers()], [null, null, null, null, null, null, null, [["a", null]]]);
    return emit(one.output({ headers: { b: null } }), one.output({ value: "new" }));
  }).call(columns);
  assert.deepEqual([...answer.values], [0, 0xffffffff, 1, 3]);
  assert.deepEqual([...answer.headers], [0, 1, 0, 0xffffffff, 4, 1, 0, 0xffffffff, 0, 1, 0, 0xffffffff]);
});

test("text, bytes and parts of the input can be mixed", () => {
  const changes = [{ value: "ä" }, { value: bytes(0xff, 1) }, { value: "plain", key: bytes(0xfe) }, {}, { value: null }, { value: "€" }, { value: "" }, { value: bytes() }];
  const messages = changes.map((_, at) => ({ key: `k${at}`, value: `v${at}` }));
  assert.deepEqual(run((message) => emit(message.output(changes[message.index])), messages).outputs(), [
    { key: "k0", value: "ä" },
    { key: "k1", value: bytes(0xff, 1) },
    { key: bytes(0xfe), value: "plain" },
    { key: "k3", value: "v3" },
    { key: "k4", value: null },
    { key: "k5", value: "€" },
    { key: "k6", value: "" },
    { key: "k7", value: "" },
  ]);
});

test("headers are added, and can be cleared first", () => {
  const message = { key: "k", value: "v", headers: { a: "1", b: bytes(0xff) } };
  const headers = (changes) => run((one) => emit(one.output(changes)), [message]).output().headers;
  assert.deepEqual(headers({ headers: { c: "3" } }), { a: "1", b: bytes(0xff), c: "3" });
  assert.deepEqual(headers({ headers: { a: "ü" } }), [["a", "1"], ["b", bytes(0xff)], ["a", "ü"]]);
  assert.deepEqual(headers({ clearHeaders: true, headers: [["x", null]] }), { x: null });
  assert.equal(headers({ clearHeaders: true }), undefined);
});

test("headers of one output leave those of others alone", () => {
  const messages = [{ headers: { a: "1" } }, { headers: { b: "2" } }, { headers: { c: "3" } }];
  const outputs = run((one) => emit(one.output(one.index === 1 ? { headers: { new: "x" } } : {})), messages).outputs();
  assert.deepEqual(outputs.map((sent) => sent.headers), [{ a: "1" }, { b: "2", new: "x" }, { c: "3" }]);
});

test("topics, partitions and times are of the outputs that set them", () => {
  const changes = [{ topic: "late", deliverAt: 2_000 }, {}, { topic: "far", partition: 7 }, { topic: "late", timestamp: new Date(1_000) }];
  const outputs = run((one) => emit(one.output(changes[one.index])), changes.map(() => ({ key: "k", value: "v" }))).outputs();
  const kept = { key: "k", value: "v" };
  assert.deepEqual(outputs, [{ ...kept, topic: "late", deliverAt: 2_000 }, kept, { ...kept, topic: "far", partition: 7 }, { ...kept, topic: "late", timestamp: 1_000 }]);
});

test("each outcome is told as it is", () => {
  const outcomes = [ack(), retry("later", "wait"), retryAfter(1500, "later", "wait"), reject("bad", "no"), emit()];
  assert.deepEqual(run((one) => outcomes[one.index], outcomes.map(() => ({ value: "v" }))).all, [
    { outcome: "ack" },
    { outcome: "retry", class: "later", reason: "wait" },
    { outcome: "retry", class: "later", reason: "wait", afterMs: 1500 },
    { outcome: "reject", class: "bad", reason: "no" },
    { outcome: "ack" },
  ]);
});

test("a message may have several outputs", () => {
  const outputs = run((one) => emit(one.output({ value: "1" }), [one.output({ value: "2" })]), [{ key: "a" }, { key: "b" }]).outputs();
  assert.deepEqual(outputs.map(({ key, value }) => `${key}${value}`), ["a1", "a2", "b1", "b2"]);
});

test("messages show what they are", () => {
  const message = { key: "ключ", value: { amount: 12 }, headers: [["h", "1"], ["h", "2"], ["n", null]], timestamp: 5, attempt: 3, offset: 9 };
  run(
    (one) => {
      assert.deepEqual([one.keyText(), one.json(), one.text(), one.header("h"), one.header("none"), one.header("n")], ["ключ", { amount: 12 }, '{"amount":12}', "2", null, null]);
      assert.deepEqual(one.headers(), [["h", "1"], ["h", "2"], ["n", null]]);
      assert.deepEqual([...one.headerBytes("h")], [0x32]);
      assert.deepEqual([one.timestamp, one.attempt, one.offset, one.topic, one.partition, one.index], [5, 3, 9, "orders", 2, 0]);
      return ack();
    },
    [message],
    { topic: "orders", partition: 2 },
  );
});

test("only text of ASCII is ASCII text", () => {
  const long = "a".repeat(100);
  const values = ["abc", long, `${long}é`, bytes(0xff, 0x61), "é", "", null];
  const seen = [];
  run((one) => { seen.push(one.asciiText()); return ack(); }, values.map((value) => ({ value })));
  assert.deepEqual(seen, ["abc", long, null, null, null, "", null]);
});

test("mistakes of a handler are told", () => {
  const messages = [{ value: "v" }, { value: "w" }];
  let kept;
  assert.throws(() => run(() => undefined, messages), /returned undefined: return ack\(\)/);
  assert.throws(() => run(async () => ack(), messages), /promise/);
  assert.throws(() => run((one) => emit(one.output({ value: 12 })), messages), /type number is neither text, bytes nor null/);
  assert.throws(() => run((one) => emit((kept ??= one.output())), messages), /belongs to the message/);
  assert.throws(() => new Tester(processBatch(() => [ack()])).run(messages), /1 outcomes for 2 messages/);
});

test("an error is logged and goes on; an outage is not logged", () => {
  const tester = new Tester(processor((one) => { throw one.text() === "down" ? new Unavailable("the shop is closed") : new Error("told to trap"); }));
  assert.throws(() => tester.run([{ value: "x" }]), /told to trap/);
  assert.match(tester.lines[0].text, /^Error: told to trap\n/);
  assert.throws(() => tester.run([{ value: "down" }]), Unavailable);
  assert.deepEqual(tester.lines, []);
});
