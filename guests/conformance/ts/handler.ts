// The conformance processor in TypeScript: what it does is in ../README.md.

import { type Message, type Outcome, config, emit, latin1, log, metrics, processBatch, reject, retry, state, utf8 } from "millrace";

export default processBatch((batch) => {
  const suffix = config.get("suffix") ?? "";
  const counts = state.addEach(batch);
  const outcomes = batch.map((message, index) => process(message, counts[index], suffix));
  metrics.add("handled", batch.length, { language: "ts" });
  return outcomes;
});

function process(message: Message, count: number, suffix: string): Outcome {
  const headers = { count: String(count) };
  // Characters are bytes, in ASCII and in latin1, and functions of text are quicker than loops.
  const ascii = message.asciiText();
  const text = ascii ?? bytesAsText(message.value);
  if (text === null) return emit(message.output({ headers }));
  if (text.startsWith("retry")) return retry("later", "told to wait");
  if (text.startsWith("reject")) {
    log.warn(`rejected the message at offset ${message.offset}`);
    return reject("bad", "told to reject");
  }
  if (text.startsWith("trap")) throw new Error("told to trap");
  const value = ascii === null ? upperBytes(text, suffix) : ascii.toUpperCase() + suffix;
  return emit(message.output({ value, headers }));
}

function bytesAsText(value: Uint8Array | null): string | null {
  return value === null ? null : latin1.decode(value);
}

/** The characters a to z in upper case, all others as they are, and the suffix: as bytes. */
function upperBytes(text: string, suffix: string): Uint8Array {
  const upper = text.replace(/[a-z]+/g, (letters) => letters.toUpperCase());
  return latin1.encode(upper + latin1.decode(utf8.encode(suffix)));
}
