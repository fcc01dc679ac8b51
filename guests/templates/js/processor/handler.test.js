// Tests of the handler in plain node: `npm test`.

import assert from "node:assert/strict";
import test from "node:test";

import { Tester } from "millrace/testing";
import handler from "./handler.js";

test("whoever has a name is greeted, and counted", () => {
  const tester = new Tester(handler);
  const run = tester.run([{ key: "1", value: "Ada" }, { key: "2", value: "Ada" }]);
  assert.deepEqual(run.outputs(), [
    { key: "1", value: "hello, Ada", headers: { times: "1" } },
    { key: "2", value: "hello, Ada", headers: { times: "2" } },
  ]);
  assert.equal(tester.number("Ada"), 2);
});

test("the word of greeting is a setting", () => {
  const run = new Tester(handler, { config: { greeting: "moin" } }).run([{ value: "Ada" }]);
  assert.equal(run.output().value, "moin, Ada");
});

test("nobody cannot be greeted", () => {
  const run = new Tester(handler).run([{ key: "1", value: null }]);
  assert.deepEqual(run.said(0), { outcome: "reject", class: "no-value", reason: "there is nobody to greet" });
});
