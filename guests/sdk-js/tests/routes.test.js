// Answers to requests, what they send and what they read.

import assert from "node:assert/strict";
import test from "node:test";

import { ViewError, http, processor, producer, response, views } from "../millrace.js";
import { restored } from "../lib/wasi-names.mjs";
import { RouteTester } from "../testing.js";

const sends = http((request) => {
  const message = { key: request.header("X-Id"), value: request.body, headers: { path: request.path } };
  if (request.query !== "") message.deliverAt = 7;
  try {
    const { places, repeated } = producer.sendOnce("names", request.header("key"), [message]);
    return response.json(202, { ...places[0], repeated });
  } catch (error) {
    return response.text(409, error.kind);
  }
});

test("what is sent with a key is sent once", () => {
  const tester = new RouteTester(sends);
  const ask = (target, body, key) => tester.ask("POST", target, { headers: { "x-id": "1", key }, body });
  assert.deepEqual(ask("/a", "Ada", "k").json(), { partition: 0, offset: 0, repeated: false });
  assert.deepEqual(ask("/a", "Ada", "k").json(), { partition: 0, offset: 0, repeated: true });
  assert.equal(ask("/a", "Bob", "k").text(), "key-reused");
  assert.deepEqual(ask("/b?later", "Bob", "l").json(), { partition: 0, offset: null, repeated: false });
  assert.deepEqual(tester.sent, [
    { topic: "names", key: "1", value: "Ada", headers: { path: "/a" } },
    { topic: "names", key: "1", value: "Bob", headers: { path: "/b" }, deliverAt: 7 },
  ]);
});

test("state is that of the granted processors", () => {
  const reads = http(() => {
    const view = views.of("counts");
    const { entries, hasMore } = view.scan(0, "a", { max: 1 });
    return response.json(200, [view.number("ada"), view.get("bob"), view.partitions(), entries.length, hasMore]);
  });
  const tester = new RouteTester(reads, { views: { counts: { ada: 3, adam: "x" } } });
  assert.deepEqual(tester.ask("GET", "/").json(), [3, null, 1, 1, true]);
  assert.throws(() => new RouteTester(reads).ask("GET", "/"), ViewError);
});

test("what is no answer is an error", () => {
  assert.throws(() => response(99), RangeError);
  assert.throws(() => new RouteTester(http(() => "text")).ask("GET", "/"), /response/);
  assert.throws(() => new RouteTester(processor(() => undefined)), TypeError);
});

test("only the names of imports get the real names of WASI", () => {
  const section = (id, text) => Buffer.concat([Buffer.from([id, text.length]), Buffer.from(text)]);
  const head = Buffer.from("\0asm\r\0\x01\0", "latin1");
  const given = Buffer.concat([head, section(0, "host:io/a"), section(10, "host:io/b host:clocks/c host:web/d")]);
  const wanted = Buffer.concat([head, section(0, "host:io/a"), section(10, "wasi:io/b wasi:clocks/c host:web/d")]);
  assert.deepEqual(restored(given), wanted);
});
