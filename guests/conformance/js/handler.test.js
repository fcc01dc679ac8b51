// The examples of ../README.md in plain node: npm install && npm test

import assert from "node:assert/strict";
import test from "node:test";

import { Tester } from "millrace/testing";
import handler from "./handler.js";

test("each message becomes what its value says", () => {
  const tester = new Tester(handler, { config: { suffix: "!" } });
  const run = tester.run([
    { key: "a", value: "one", headers: { x: "1" } },
    { key: "b", value: "Zwei é" },
    { key: "a", value: "reject this" },
    { key: "c", value: "retry this" },
    { key: "a", value: null },
    { value: "no key" },
    { key: "a", value: "", headers: { count: "9" } },
    { key: "f", value: Uint8Array.of(0x61, 0xff, 0x7a) },
  ]);
  assert.deepEqual(run.all, [
    { outcome: "emit", outputs: [{ key: "a", value: "ONE!", headers: { x: "1", count: "1" } }] },
    { outcome: "emit", outputs: [{ key: "b", value: "ZWEI é!", headers: { count: "1" } }] },
    { outcome: "reject", class: "bad", reason: "told to reject" },
    { outcome: "retry", class: "later", reason: "told to wait" },
    { outcome: "emit", outputs: [{ key: "a", value: null, headers: { count: "2" } }] },
    { outcome: "emit", outputs: [{ key: null, value: "NO KEY!", headers: { count: "1" } }] },
    { outcome: "emit", outputs: [{ key: "a", value: "!", headers: [["count", "9"], ["count", "3"]] }] },
    { outcome: "emit", outputs: [{ key: "f", value: Uint8Array.of(0x41, 0xff, 0x5a, 0x21), headers: { count: "1" } }] },
  ]);
  assert.deepEqual(tester.allState(), { "": 1, a: 3, b: 1, f: 1 });
  assert.ok(run.lines.some(({ level, text }) => level === "warn" && text === "rejected the message at offset 2"));
  assert.deepEqual(run.metrics[0], { kind: "add", name: "handled", labels: { language: "js" }, value: 8 });
});

test("told to trap, it throws and logs why", () => {
  const tester = new Tester(handler);
  assert.throws(() => tester.run([{ key: "d", value: "trap now" }]), /told to trap/);
  assert.deepEqual(tester.allState(), {});
});

test("without a suffix nothing is appended", () => {
  assert.equal(new Tester(handler).run([{ value: "one" }]).output().value, "ONE");
});
