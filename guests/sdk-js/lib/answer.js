// Collects the outcomes of a batch in the answer's columns. A column that no output changes stays empty, which means "as in the input".
//
// Text is not encoded piece by piece: all pieces are joined and encoded at once; other new bytes ("chunks") stand behind them.

import { NONE, Output } from "./batch.js";
import { toWide } from "./host.js";
import { ACK, EMIT, Outcome, REJECT, RETRY } from "./outcomes.js";
import { asciiBytes, fromBinary, textToBinary } from "./text.js";

const NO_TIME = 0xffffffffffffffffn;
const NOTHING = [];
/** Added to the start of a span in the chunks: no batch and no answer is that long. */
const CHUNK = 0x80000000;

/** The answer to a batch, from one outcome per message. */
export function answerOf(batch, outcomes) {
  if (!Array.isArray(outcomes) || outcomes.length !== batch.length) {
    const given = Array.isArray(outcomes) ? `${outcomes.length} outcomes` : describe(outcomes);
    throw new TypeError(`the handler returned ${given} for ${batch.length} messages: return an array with one outcome per message`);
  }
  const kinds = new Uint8Array(batch.length);
  const details = [];
  const outputs = [];
  for (let index = 0; index < outcomes.length; index++) {
    const outcome = outcomes[index];
    if (outcome instanceof Output) {
      kinds[index] = EMIT;
      if (outcome.batch !== batch || outcome.source !== index) own(batch, index, outcome);
      outputs.push(outcome);
    } else if (outcome instanceof Outcome) {
      kinds[index] = outcome.kind;
      if (outcome.kind === EMIT) {
        for (const output of outcome.outputs) {
          own(batch, index, output);
          outputs.push(output);
        }
      } else if (outcome.kind !== ACK) {
        details.push(detailOf(index, outcome));
      }
    } else {
      throw new TypeError(`the handler returned ${describe(outcome)}: return ack(), emit(…), retry(…) or reject(…)`);
    }
  }
  return new Columns(batch, outputs).answer(kinds, details);
}

function own(batch, index, output) {
  if (!(output instanceof Output)) {
    throw new TypeError(`${describe(output)} is no output: make outputs with message.output(…)`);
  }
  if (output.batch !== batch || output.source !== index) {
    throw new TypeError("an output belongs to the message that it was made from");
  }
}

function detailOf(message, outcome) {
  const { after, class: word, reason } = outcome;
  return { message, afterMs: after === undefined ? undefined : toWide(after), class: word, reason };
}

/** A value that a handler returned by mistake, in words. */
export function describe(value) {
  if (value instanceof Promise) return "a promise (handlers answer at once; they cannot be async)";
  if (Array.isArray(value)) return "an array";
  return value === null || value === undefined ? `${value}` : `a value of type ${typeof value}`;
}

class Columns {
  constructor(batch, outputs) {
    this.batch = batch;
    this.outputs = outputs;
    this.topicNames = [];
    this.has = partsOf(outputs);
    // A getter of a typed array is a call; this is needed for each output.
    this.base = batch.data.length;
    this.start(false);
  }

  /** Begins the new bytes. `encodes` is whether text has to be encoded piece by piece to know its length. */
  start(encodes) {
    this.encodes = encodes;
    this.pieces = [];
    this.textLength = 0;
    this.chunks = [];
    this.chunksLength = 0;
  }

  answer(outcomes, details) {
    let spans = this.spans();
    let text = asciiBytes(this.pieces.join(""));
    if (text === undefined) {
      // The lengths are those of the bytes, not of the text.
      this.start(true);
      spans = this.spans();
      text = fromBinary(this.pieces.join(""));
    }
    return {
      outcomes,
      details,
      data: this.newBytes(text),
      sources: this.sources(),
      topicNames: this.topicNames,
      topics: this.topics(),
      partitions: this.partitions(),
      keys: spans.keys,
      values: spans.values,
      headerEnds: spans.headerEnds,
      headers: spans.headers,
      times: this.times(),
    };
  }

  sources() {
    const { outputs } = this;
    const sources = new Uint32Array(outputs.length);
    for (let at = 0; at < outputs.length; at++) sources[at] = outputs[at].source;
    return sources;
  }

  topics() {
    if (!this.has.topic) return NOTHING;
    const numbers = new Map();
    return Uint32Array.from(this.outputs, ({ rest }) => {
      const name = rest?.topic;
      if (name === undefined) return NONE;
      if (!numbers.has(name)) numbers.set(name, this.topicNames.push(String(name)) - 1);
      return numbers.get(name);
    });
  }

  partitions() {
    if (!this.has.partition) return NOTHING;
    return Uint32Array.from(this.outputs, ({ rest }) => rest?.partition ?? NONE);
  }

  times() {
    if (!this.has.times) return NOTHING;
    const times = new BigUint64Array(this.outputs.length * 2).fill(NO_TIME);
    this.outputs.forEach(({ rest }, at) => {
      if (rest?.timestamp !== undefined) times[2 * at] = BigInt(rest.timestamp);
      if (rest?.deliverAt !== undefined) times[2 * at + 1] = BigInt(rest.deliverAt);
    });
    return times;
  }

  spans() {
    const { batch } = this;
    const keys = this.has.key ? this.changed("key", batch.keys) : NOTHING;
    const values = this.has.value ? this.changed("value", batch.values) : NOTHING;
    const { headerEnds, headers } = this.has.headers ? this.headers() : NO_HEADERS;
    if (this.chunksLength > 0) {
      this.settleChunks(keys);
      this.settleChunks(values);
      this.settleChunks(headers);
    }
    return { keys, values, headerEnds, headers };
  }

  /** Chunks stand behind the text, whose length is known only when all outputs have been read. */
  settleChunks(column) {
    const by = this.textLength - CHUNK;
    for (let at = 0; at < column.length; at += 2) {
      if (column[at] >= CHUNK) column[at] += by;
    }
  }

  /** The column of keys or values. */
  changed(name, kept) {
    const { outputs } = this;
    const column = new Uint32Array(outputs.length * 2);
    for (let at = 0; at < outputs.length; at++) {
      const { [name]: given, source } = outputs[at];
      if (given === undefined) {
        column[2 * at] = kept[2 * source];
        column[2 * at + 1] = kept[2 * source + 1];
      } else {
        this.place(given, column, 2 * at);
      }
    }
    return column;
  }

  headers() {
    const { batch, outputs } = this;
    const { headers: kept, headerEnds: keptEnds } = batch.columns;
    const headerEnds = new Uint32Array(outputs.length);
    let headers = new Uint32Array(kept.length + 4 * outputs.length);
    // The same few names come again and again: each is placed once.
    const names = new Map();
    let end = 0;
    const reserve = (count) => {
      if (end + count <= headers.length) return;
      const larger = new Uint32Array(2 * headers.length + count);
      larger.set(headers);
      headers = larger;
    };
    const add = (name, value) => {
      reserve(4);
      const first = names.get(name);
      if (first === undefined) {
        names.set(name, end);
        this.place(name, headers, end);
      } else {
        headers[end] = headers[first];
        headers[end + 1] = headers[first + 1];
      }
      this.place(value, headers, end + 2);
      end += 4;
    };
    for (let at = 0; at < outputs.length; at++) {
      const { headers: given, rest, source } = outputs[at];
      if (rest === undefined || !rest.clearHeaders) {
        let from = source === 0 ? 0 : 4 * keptEnds[source - 1];
        const to = 4 * keptEnds[source];
        if (from < to) reserve(to - from);
        while (from < to) headers[end++] = kept[from++];
      }
      if (given !== undefined) {
        for (let one = 0; one < given.length; one += 2) add(given[one], given[one + 1]);
      }
      headerEnds[at] = end / 4;
    }
    return { headerEnds, headers: headers.subarray(0, end) };
  }

  /** Puts the span of these bytes into a column, and the bytes into the answer. */
  place(given, column, at) {
    if (typeof given === "string") {
      const piece = this.encodes ? textToBinary(given) : given;
      const { length } = piece;
      column[at] = this.base + this.textLength;
      column[at + 1] = length;
      this.pieces.push(piece);
      this.textLength += length;
    } else if (given === null) {
      column[at] = 0;
      column[at + 1] = NONE;
    } else if (given instanceof Uint8Array) {
      const { length } = given;
      column[at] = CHUNK + this.base + this.chunksLength;
      column[at + 1] = length;
      this.chunks.push(given);
      this.chunksLength += length;
    } else {
      throw new TypeError(`${describe(given)} is neither text, bytes nor null: use JSON.stringify(…) for JSON, String(…) for numbers`);
    }
  }

  newBytes(text) {
    const { chunks, chunksLength } = this;
    if (chunks.length === 0) return text;
    const data = new Uint8Array(text.length + chunksLength);
    let end = text.length;
    data.set(text);
    for (const chunk of chunks) {
      data.set(chunk, end);
      end += chunk.length;
    }
    return data;
  }
}

const NO_HEADERS = { headerEnds: NOTHING, headers: NOTHING };

/** Which parts of their messages the outputs change. */
function partsOf(outputs) {
  const has = { key: false, value: false, headers: false, topic: false, partition: false, times: false };
  for (let at = 0; at < outputs.length; at++) {
    const { key, value, headers, rest } = outputs[at];
    if (key !== undefined) has.key = true;
    if (value !== undefined) has.value = true;
    if (headers !== undefined) has.headers = true;
    if (rest === undefined) continue;
    if (rest.clearHeaders) has.headers = true;
    if (rest.topic !== undefined) has.topic = true;
    if (rest.partition !== undefined) has.partition = true;
    if (rest.timestamp !== undefined || rest.deliverAt !== undefined) has.times = true;
  }
  return has;
}
