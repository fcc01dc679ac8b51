// Everything that the SDK for JavaScript has for routes, in one answer: tests/languages/templates --probe.

import { SendError, ViewError, http, producer, response, utf8, views } from "millrace";

export default http((request) => {
  if (request.method === "POST") {
    return response.text(200, `POST ${request.path} ${request.query} ${request.header("X-Name")} ${request.body.length}`);
  }
  const view = views.of("counts");
  const page = view.scan(0, "a", { max: 1 });
  const last = view.scan(0, "a", { after: "ada", max: 10 });
  const messages = [{ value: "v", headers: { h: "w" }, partition: 1, timestamp: 5, deliverAt: 9999999999999 }, { key: "k", value: null }];
  const sent = producer.send("t", messages);
  const parts = [
    `number ${view.number("ada")}`,
    `bob ${view.text("bob") ?? "none"}`,
    `partitions ${view.partitions()}`,
    `first ${utf8.decode(page.entries[0].key)}`,
    `more ${page.hasMore}`,
    `last ${last.entries.length} ${last.hasMore}`,
    `placed ${sent.places.map(({ partition, offset }) => `${partition}:${offset ?? "later"}`).join(" ")}`,
    `settled ${producer.settled("counts", "t", sent, 5)}`,
    `other view ${kindOf(ViewError, () => views.of("others").get("ada"))}`,
    `other topic ${kindOf(SendError, () => producer.send("others", messages))}`,
  ];
  return response.text(200, parts.join(", "), { "X-Probe": "yes" });
});

function kindOf(Kind, call) {
  try {
    return call();
  } catch (error) {
    if (error instanceof Kind) return error.kind;
    throw error;
  }
}
