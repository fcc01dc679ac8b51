// Messages and outputs over the columns of a call (wit/types.wit). A message is two numbers; its bytes are copied when they are asked for:
// the host keeps the batch as it was, so a change of the batch's own bytes would be seen here and nowhere else.

import { beginCall } from "./host.js";
import { binaryToText, isAsciiIn, textToBinary, toBinary, wordsOf } from "./text.js";

/** The length that means "none". */
export const NONE = 0xffffffff;

/** Whether a length means "none". QuickJS gets numbers from 2^31 as negative ones. */
export function isNone(length) {
  return (length | 0) === -1;
}

/** Batches up to this size are turned into text as a whole, once; of larger ones only what is asked for. */
const WHOLE_TEXT_BYTES_MAX = 1 << 20;
/** Spans up to this length are not worth that. */
const SHORT = 32;

const TOO_LARGE = Symbol("too large");

export class Batch {
  constructor(columns) {
    beginCall(columns.timestamps[0]);
    this.topic = columns.topic;
    this.partition = columns.partition;
    this.length = columns.timestamps.length;
    this.data = columns.data;
    this.columns = columns;
    this.keys = columns.keys;
    this.values = columns.values;
    this.binary = undefined;
    this.words = undefined;
    this.ascii = false;
  }

  message(index) {
    if (!(index >= 0 && index < this.length)) {
      throw new RangeError(`a batch of ${this.length} has no message ${index}`);
    }
    return new Message(this, index);
  }

  *[Symbol.iterator]() {
    for (let index = 0; index < this.length; index++) yield new Message(this, index);
  }

  map(each) {
    const results = new Array(this.length);
    for (let index = 0; index < this.length; index++) results[index] = each(new Message(this, index), index);
    return results;
  }

  /** A copy of the bytes of a span; null for none. */
  bytes(start, length) {
    return isNone(length) ? null : this.data.slice(start, start + length);
  }

  /** The text of a span; null for none. */
  textOf(start, length) {
    if (isNone(length)) return null;
    const binary = this.binaryOf(start, length);
    return this.isAscii(start, length) ? binary : binaryToText(binary);
  }

  isAscii(start, length) {
    return this.ascii || isAsciiIn(this.data, this.words, start, start + length);
  }

  binaryOf(start, length) {
    const end = start + length;
    if (length <= SHORT) return String.fromCharCode.apply(null, this.data.subarray(start, end));
    this.binary ??= this.readBinary();
    return this.binary === TOO_LARGE ? toBinary(this.data.subarray(start, end)) : this.binary.slice(start, end);
  }

  readBinary() {
    const { data } = this;
    this.words = wordsOf(data);
    if (data.length > WHOLE_TEXT_BYTES_MAX) return TOO_LARGE;
    this.ascii = isAsciiIn(data, this.words, 0, data.length);
    return toBinary(data);
  }

  /** Whether these bytes stand at `start`. */
  has(start, binary) {
    const { data } = this;
    for (let at = 0; at < binary.length; at++) {
      if (data[start + at] !== binary.charCodeAt(at)) return false;
    }
    return true;
  }

  /** Where the headers of a message begin in the column. */
  headersFrom(index) {
    return index === 0 ? 0 : this.columns.headerEnds[index - 1];
  }
}

export class Message {
  constructor(batch, index) {
    this.batch = batch;
    this.index = index;
  }

  get key() {
    const { batch, index } = this;
    return batch.bytes(batch.keys[2 * index], batch.keys[2 * index + 1]);
  }

  get value() {
    const { batch, index } = this;
    return batch.bytes(batch.values[2 * index], batch.values[2 * index + 1]);
  }

  keyText() {
    const { batch, index } = this;
    return batch.textOf(batch.keys[2 * index], batch.keys[2 * index + 1]);
  }

  text() {
    const { batch, index } = this;
    return batch.textOf(batch.values[2 * index], batch.values[2 * index + 1]);
  }

  asciiText() {
    const { batch, index } = this;
    const start = batch.values[2 * index];
    const length = batch.values[2 * index + 1];
    if (isNone(length)) return null;
    const binary = batch.binaryOf(start, length);
    return batch.isAscii(start, length) ? binary : null;
  }

  json() {
    const text = this.text();
    return text === null ? null : JSON.parse(text);
  }

  header(name) {
    const at = this.findHeader(name);
    if (at < 0) return null;
    const { headers } = this.batch.columns;
    return this.batch.textOf(headers[at + 2], headers[at + 3]);
  }

  headerBytes(name) {
    const at = this.findHeader(name);
    if (at < 0) return null;
    const { headers } = this.batch.columns;
    return this.batch.bytes(headers[at + 2], headers[at + 3]);
  }

  headers() {
    const { batch, index } = this;
    const { headers, headerEnds } = batch.columns;
    const found = [];
    for (let at = 4 * batch.headersFrom(index); at < 4 * headerEnds[index]; at += 4) {
      found.push([batch.textOf(headers[at], headers[at + 1]), batch.textOf(headers[at + 2], headers[at + 3])]);
    }
    return found;
  }

  /** Where the last header with this name stands in the column; -1 if there is none. */
  findHeader(name) {
    const { batch, index } = this;
    const { headers, headerEnds } = batch.columns;
    const binary = textToBinary(name);
    const from = 4 * batch.headersFrom(index);
    for (let at = 4 * headerEnds[index] - 4; at >= from; at -= 4) {
      if (headers[at + 1] === binary.length && batch.has(headers[at], binary)) return at;
    }
    return -1;
  }

  get timestamp() {
    return Number(this.batch.columns.timestamps[this.index]);
  }

  get offset() {
    return Number(this.batch.columns.offsets[this.index]);
  }

  get attempt() {
    return this.batch.columns.attempts[this.index];
  }

  get topic() {
    return this.batch.topic;
  }

  get partition() {
    return this.batch.partition;
  }

  output(changes) {
    return new Output(this.batch, this.index, changes);
  }
}

/** An output of a message: what it changes of it, as given now; handlers use buffers and objects again. Made by `message.output(…)`. */
export class Output {
  constructor(batch, source, changes) {
    this.batch = batch;
    this.source = source;
    this.key = undefined;
    this.value = undefined;
    // Names and values in turn.
    this.headers = undefined;
    // What few outputs change: undefined is none of it.
    this.rest = undefined;
    if (changes !== undefined) this.change(changes);
  }

  change(changes) {
    const { key, value, headers, clearHeaders, topic, partition, timestamp, deliverAt } = changes;
    this.key = owned(key);
    this.value = owned(value);
    if (headers !== undefined) this.headers = flat(headers);
    if (clearHeaders === true || topic !== undefined || partition !== undefined || timestamp !== undefined || deliverAt !== undefined) {
      this.rest = { clearHeaders: clearHeaders === true, topic, partition, timestamp: timeOf(timestamp), deliverAt: timeOf(deliverAt) };
    }
  }
}

function owned(given) {
  return given instanceof Uint8Array ? given.slice() : given;
}

function flat(headers) {
  const all = [];
  if (Array.isArray(headers)) {
    for (const [name, value] of headers) all.push(String(name), owned(value));
  } else {
    for (const name in headers) all.push(name, owned(headers[name]));
  }
  return all;
}

function timeOf(ms) {
  if (ms === undefined) return undefined;
  if (!(ms >= 0)) throw new RangeError(`${ms} is no time: give milliseconds since 1970, or a Date`);
  return Math.round(Number(ms));
}
