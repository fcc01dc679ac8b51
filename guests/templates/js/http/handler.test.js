// Tests of the handler in plain node: `npm test`.

import assert from "node:assert/strict";
import test from "node:test";

import { SendError } from "millrace";
import { RouteTester } from "millrace/testing";
import handler from "./handler.js";

test("a name is sent once for each key", () => {
  const tester = new RouteTester(handler, { config: { topic: "guests" } });
  const headers = { "Idempotency-Key": "7" };
  const first = tester.ask("POST", "/hello/names", { headers, body: "Ada" });
  const again = tester.ask("POST", "/hello/names", { headers, body: "Ada" });
  assert.equal(first.status, 202);
  assert.deepEqual(again, first);
  assert.deepEqual(tester.sent, [{ topic: "guests", key: "Ada", value: "Ada" }]);
});

test("a name that cannot be sent now is to be sent again", () => {
  const tester = new RouteTester(handler, { failure: new SendError("unavailable", "stopping") });
  assert.equal(tester.ask("POST", "/names", { body: "Ada" }).status, 503);
});

test("the greeting is a setting", () => {
  const tester = new RouteTester(handler, { config: { greeting: "moin" } });
  assert.deepEqual(tester.ask("GET", "/greeting").json(), { greeting: "moin" });
});
