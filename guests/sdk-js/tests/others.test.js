// Partitioners, error handlers, and what a component exports.

import assert from "node:assert/strict";
import test from "node:test";

import { bind } from "../lib/component.js";
import { ack, decision, errorHandler, partitioner, processor, Unavailable } from "../millrace.js";
import { Tester } from "../testing.js";

test("a partitioner chooses below the number of partitions", () => {
  const by = (choose) => new Tester(partitioner(choose), { partitions: 3 }).assign([{ key: "a" }, { key: "bb" }]);
  assert.deepEqual(by((one) => one.key.length), [1, 2]);
  assert.throws(() => by(() => 3), /returned 3: return a whole number from 0 to 2/);
  assert.throws(() => by(() => 0.5), RangeError);
});

test("an error handler sees the failure and decides", () => {
  const seen = [];
  const decided = new Tester(errorHandler((failure) => {
    seen.push([failure.cause, failure.class, failure.attempt, failure.reason, failure.revision, failure.message.text()]);
    return [decision.retryAfter(1), decision.deadLetter(), decision.drop("why"), decision.policy()][failure.message.index];
  })).decide([{ value: "a", failure: { class: "busy", reason: "503", attempt: 2, revision: 4 } }, { value: "b", failure: { cause: "trap" } }, {}, {}]);
  assert.deepEqual(decided, [{ decision: "retry-after", afterMs: 1 }, { decision: "dead-letter" }, { decision: "drop", reason: "why" }, { decision: "policy" }]);
  assert.deepEqual(seen.slice(0, 2), [["retry", "busy", 2, "503", 4, "a"], ["trap", "trap", 1, "", 1, "b"]]);
  assert.throws(() => new Tester(errorHandler(() => "retry")).decide([{}]), /returned a value of type string/);
});

test("a delay is a number of 64 bits as the engine has them", () => {
  const handler = errorHandler(() => decision.retryAfter(1500));
  const facts = [{ message: 0, revision: 1, attempt: 1, firstFailedAt: 0, cause: "retry", class: "", reason: "" }];
  const columns = { topic: "in", partition: 0, data: new Uint8Array(0), offsets: [0], attempts: [1], keys: [0, 0], values: [0, 0], headerEnds: [0], headers: [] };
  assert.deepEqual(handler.call(facts, { ...columns, timestamps: [0] }), [{ tag: "retry-after", val: 1500 }]);
  assert.deepEqual(handler.call(facts, { ...columns, timestamps: BigUint64Array.of(0n) }), [{ tag: "retry-after", val: 1500n }]);
});

test("a component exports the kind that millrace.toml names, and an outage is the error of its answer", () => {
  const columns = { topic: "in", partition: 0, data: new Uint8Array(0), offsets: [0], timestamps: [0], attempts: [1], keys: [0, 0], values: [0, 0], headerEnds: [0], headers: [] };
  const exported = bind(processor(() => { throw new Unavailable("closed"); }), "processor", {});
  assert.throws(() => exported.process(columns), (error) => error.tag === "unavailable" && error.val === "closed" && !(error instanceof Error));
  assert.throws(() => bind(processor(() => ack()), "partitioner", {}), /kind = "partitioner", and the source exports a processor/);
  assert.throws(() => bind(undefined, "processor", {}), /export default processor/);
});
