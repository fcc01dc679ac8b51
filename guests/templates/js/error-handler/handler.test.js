// Tests of the error handler in plain node: `npm test`.

import assert from "node:assert/strict";
import test from "node:test";

import { Tester } from "millrace/testing";
import handler from "./handler.js";

const decide = (failure, sample = {}) => new Tester(handler).decide([{ ...sample, failure }])[0];

test("a busy service is waited for, twice as long each time, and at most a minute", () => {
  const decided = [1, 2, 3, 20].map((attempt) => decide({ class: "busy", attempt }));
  assert.deepEqual(decided, [1000, 2000, 4000, 60_000].map((afterMs) => ({ decision: "retry-after", afterMs })));
});

test("test messages are dropped", () => {
  assert.deepEqual(decide({ cause: "trap" }, { headers: { test: "1" } }), { decision: "drop", reason: "a test message" });
});

test("rejected messages are given up, and the policy decides about all others", () => {
  assert.deepEqual(decide({ cause: "reject" }), { decision: "dead-letter" });
  assert.deepEqual(decide({ cause: "timeout" }), { decision: "policy" });
});
