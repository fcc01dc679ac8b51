// Tests of the partitioner in plain node: `npm test`.

import assert from "node:assert/strict";
import test from "node:test";

import { Tester } from "millrace/testing";
import handler from "./handler.ts";

test("a region has one partition", () => {
  const keys = ["eu-1", "us-1", "eu-2", "us-2", "eu-3"];
  const [eu, us, ...more] = new Tester(handler, { partitions: 16 }).assign(keys.map((key) => ({ key })));
  assert.deepEqual(more, [eu, us, eu]);
  assert.notEqual(eu, us);
});

test("messages without a key have a partition, too", () => {
  const [partition] = new Tester(handler, { partitions: 3 }).assign([{ value: "no key" }]);
  assert.ok(partition < 3);
});
