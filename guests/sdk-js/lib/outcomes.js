// What becomes of a message, and what an error handler decides.

export const ACK = 0;
export const EMIT = 1;
export const RETRY = 2;
export const REJECT = 3;

/** The outcome of a message. Made by `ack`, `emit`, `retry`, `retryAfter` and `reject`. */
export class Outcome {
  constructor(kind, outputs, after, word, reason) {
    this.kind = kind;
    this.outputs = outputs;
    this.after = after;
    this.class = word;
    this.reason = reason;
  }
}

const ACKED = new Outcome(ACK, undefined, undefined, "", "");

export function ack() {
  return ACKED;
}

export function emit(...outputs) {
  // One output is its own outcome: most messages have one.
  if (outputs.length === 1 && !Array.isArray(outputs[0])) return outputs[0];
  const all = outputs.flat();
  return all.length === 0 ? ACKED : new Outcome(EMIT, all, undefined, "", "");
}

export function retry(word, reason) {
  return new Outcome(RETRY, undefined, undefined, String(word), String(reason));
}

export function retryAfter(ms, word, reason) {
  return new Outcome(RETRY, undefined, wholeMs(ms), String(word), String(reason));
}

export function reject(word, reason) {
  return new Outcome(REJECT, undefined, undefined, String(word), String(reason));
}

/** Something that the whole processor needs is down. */
export class Unavailable extends Error {
  constructor(reason) {
    super(reason);
    this.name = "Unavailable";
  }
}

export const decision = {
  retryAfter: (ms) => ({ tag: "retry-after", val: wholeMs(ms) }),
  deadLetter: () => ({ tag: "dead-letter" }),
  drop: (reason) => ({ tag: "drop", val: String(reason) }),
  policy: () => ({ tag: "policy" }),
};

function wholeMs(ms) {
  if (!(ms >= 0)) throw new RangeError(`${ms} is no delay: give milliseconds, 0 or more`);
  return Math.min(Math.round(ms), Number.MAX_SAFE_INTEGER);
}
