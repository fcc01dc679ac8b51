// Produces, fetches and reads dead letters with a client whose types are generated from the document.
import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { paths } from "./schema.js";

const client = createClient<paths>({ baseUrl: process.env.MILLRACE_HOST });

const produced = await client.POST("/v1/topics/{topic}/messages", {
  params: { path: { topic: "orders" } },
  body: {
    messages: [
      { key: "ts", value: JSON.stringify({ amount: 500 }), headers: { from: "typescript" } },
      { key: "ts", value: "no json" },
    ],
  },
});
assert.ok(produced.data, JSON.stringify(produced.error));
assert.equal(produced.data.count, 2);
const { partition, offset } = produced.data.placed[0]!;
assert.equal(typeof offset, "number");

const fetched = await client.GET("/v1/topics/{topic}/partitions/{partition}/messages", {
  params: { path: { topic: "orders", partition }, query: { from: String(offset), max: 1 } },
});
assert.ok(fetched.data, JSON.stringify(fetched.error));
// The other form is a message a line.
assert.ok("messages" in fetched.data);
const message = fetched.data.messages[0]!;
assert.equal(message.key, "ts");
assert.equal(message.offset, offset);

const letters = async () => {
  const found = await client.GET("/v1/processors/{name}/dead-letters", {
    params: { path: { name: "sift" }, query: { key: "ts" } },
  });
  assert.ok(found.data, JSON.stringify(found.error));
  return found.data.dead_letters;
};
const until = Date.now() + 60_000;
let dead = await letters();
while (dead.length === 0) {
  assert.ok(Date.now() < until, "no dead letter within a minute");
  await new Promise((resolve) => setTimeout(resolve, 50));
  dead = await letters();
}
assert.equal(dead[0]!.message.value, "no json");
assert.equal(dead[0]!.origin_topic, "orders");

const unknown = await client.GET("/v1/topics/{topic}", { params: { path: { topic: "none" } } });
assert.equal(unknown.response.status, 404);
assert.equal(unknown.error!.error.code, "unknown-topic");
