// The conformance processor in JavaScript: what it does is in ../README.md.

import { config, emit, log, metrics, processBatch, reject, retry, state, utf8 } from "millrace";

export default processBatch((batch) => {
  const suffix = config.get("suffix") ?? "";
  const counts = state.addEach(batch);
  const outcomes = batch.map((message, index) => process(message, counts[index], suffix));
  metrics.add("handled", batch.length, { language: "js" });
  return outcomes;
});

function process(message, count, suffix) {
  const headers = { count: String(count) };
  const { value } = message;
  if (value === null) return emit(message.output({ headers }));
  if (begins(value, "retry")) return retry("later", "told to wait");
  if (begins(value, "reject")) {
    log.warn(`rejected the message at offset ${message.offset}`);
    return reject("bad", "told to reject");
  }
  if (begins(value, "trap")) throw new Error("told to trap");
  const text = message.asciiText();
  const upper = text === null ? upperBytes(value, suffix) : text.toUpperCase() + suffix;
  return emit(message.output({ value: upper, headers }));
}

function begins(value, word) {
  for (let at = 0; at < word.length; at++) {
    if (value[at] !== word.charCodeAt(at)) return false;
  }
  return true;
}

/** The bytes a to z in upper case, all others as they are, and the suffix. */
function upperBytes(value, suffix) {
  const end = utf8.encode(suffix);
  const upper = new Uint8Array(value.length + end.length);
  for (let at = 0; at < value.length; at++) {
    const byte = value[at];
    upper[at] = byte >= 0x61 && byte <= 0x7a ? byte - 0x20 : byte;
  }
  upper.set(end, value.length);
  return upper;
}
