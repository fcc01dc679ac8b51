// Takes names by HTTP and sends them to a topic; says which greeting they will get.
//
// - GET …/greeting: the greeting of the settings, as JSON
// - POST …/names with a name as the body: sends it, and says where it is

import { SendError, config, http, log, producer, response } from "millrace";

/** Characters of a name. */
const NAME_CHARS_MAX = 100;

export default http((request) => {
  // The path begins with that of the route, wherever that is.
  const last = request.path.split("/").at(-1);
  if (last === "greeting") return request.method === "GET" ? greeting() : failure(405, "a greeting is read with GET", { allow: "GET" });
  if (last === "names") return request.method === "POST" ? take(request) : failure(405, "a name is sent with POST", { allow: "POST" });
  return failure(404, "there are only greeting and names");
});

function greeting() {
  return response.json(200, { greeting: config.get("greeting") ?? "hello" });
}

function take(request) {
  const name = request.text().trim();
  if (name === "" || name.length > NAME_CHARS_MAX) return failure(400, "send a name as the body, as text");
  const topic = config.get("topic") ?? "names";
  const messages = [{ key: name, value: name }];
  // A caller that repeats a request with the same key sends one message.
  const key = request.header("idempotency-key");
  try {
    const sent = key === null ? producer.send(topic, messages) : producer.sendOnce(topic, key, messages);
    const { partition, offset } = sent.places[0];
    return response.json(202, { topic, partition, offset });
  } catch (error) {
    if (error instanceof SendError) return notSent(error);
    throw error;
  }
}

/** An answer that makes the caller do what helps: try again, or stop. */
function notSent(error) {
  log.error(`a name was not sent: ${error.message}`);
  switch (error.kind) {
    case "unavailable":
      return failure(503, "try again later");
    case "key-reused":
      return failure(409, "the key was used for another name");
    case "refused":
      return failure(422, "the topic does not take this name");
    default:
      return failure(500, "the route is not set up");
  }
}

function failure(status, why, headers) {
  return response.json(status, { error: why }, headers);
}
