// State: keys and values of the processor in the partition that its batch comes from. A call to the host costs more than a key, so all
// of this passes many keys at once.

import { NONE } from "./batch.js";
import { Blob, part } from "./columns.js";
import { hostOf, payloadOf } from "./host.js";
import { toBytes, utf8 } from "./text.js";

/** Keys that one call to the host accepts. */
const CALL_KEYS_MAX = 10_000;
/** Bytes that Writes passes to one call: half of the maximum, so that there is room for a last large value. */
const CALL_BYTES = 4 << 20;
const FOREVER = 0xffffffffffffffffn;
const NOTHING = [];

/** There is no room for more state; nothing was written. */
export class StateFull extends Error {
  constructor(reason) {
    super(reason);
    this.name = "StateFull";
  }
}

function keyBytes(key) {
  if (typeof key === "string") return utf8.encode(key);
  // Callers use buffers again before the host is called.
  if (key instanceof Uint8Array) return key.slice();
  if (key === null) return new Uint8Array(0);
  throw new TypeError(`a key of state is text or bytes, not a value of type ${typeof key}`);
}

function valueBytes(value) {
  if (typeof value === "string" || value instanceof Uint8Array) return toBytes(value);
  throw new TypeError(`a value of state is text or bytes, not of type ${typeof value}: use JSON.stringify(…) for JSON, state.add(…) for numbers`);
}

/** Calls the host; its error is a StateFull. */
function orFull(call) {
  try {
    return call();
  } catch (error) {
    const payload = payloadOf(error);
    if (payload?.tag === "full") throw new StateFull(payload.val);
    throw error;
  }
}

function ttlColumn(ttlMs) {
  return BigUint64Array.of(ttlMs === null ? FOREVER : BigInt(Math.round(ttlMs)));
}

function howOf(message, ttlMs) {
  return { ttlMs: ttlMs === undefined ? NOTHING : ttlColumn(ttlMs), messages: Uint32Array.of(message.index) };
}

function getMany(keys) {
  const found = [];
  for (let from = 0; from < keys.length; from += CALL_KEYS_MAX) {
    const some = keys.slice(from, from + CALL_KEYS_MAX);
    const blob = new Blob();
    const spans = new Uint32Array(some.length * 2);
    some.forEach((bytes, at) => {
      spans[2 * at] = blob.add(bytes);
      spans[2 * at + 1] = bytes.length;
    });
    const { data, values } = hostOf("state").get(blob.bytes(), spans);
    for (let at = 0; at < some.length; at++) found.push(part(data, values, at));
  }
  return found;
}

/** The number that state.add stores. */
export function numberOf(bytes) {
  if (bytes.length !== 8) throw new TypeError(`a number in state has 8 bytes, this value has ${bytes.length}: read it with state.get`);
  return Number(new DataView(bytes.buffer, bytes.byteOffset, 8).getBigInt64(0, true));
}

export const state = {
  get: (key) => getMany([keyBytes(key)])[0],

  text(key) {
    const bytes = state.get(key);
    return bytes === null ? null : utf8.decode(bytes);
  },

  json(key) {
    const text = state.text(key);
    return text === null ? null : JSON.parse(text);
  },

  number(key) {
    const bytes = state.get(key);
    return bytes === null ? null : numberOf(bytes);
  },

  getMany: (keys) => getMany(Array.from(keys, keyBytes)),

  set(message, key, value, { ttlMs } = {}) {
    const [name, bytes] = [keyBytes(key), valueBytes(value)];
    const blob = new Blob();
    const keys = Uint32Array.of(blob.add(name), name.length);
    const values = Uint32Array.of(blob.add(bytes), bytes.length);
    orFull(() => hostOf("state").set(blob.bytes(), keys, values, howOf(message, ttlMs)));
  },

  delete(message, key) {
    const name = keyBytes(key);
    orFull(() => hostOf("state").set(name, Uint32Array.of(0, name.length), Uint32Array.of(0, NONE), howOf(message)));
  },

  add(message, key, delta = 1, { ttlMs } = {}) {
    const name = keyBytes(key);
    const deltas = delta === 1 ? NOTHING : BigInt64Array.of(BigInt(delta));
    const sums = orFull(() => hostOf("state").add(name, Uint32Array.of(0, name.length), deltas, howOf(message, ttlMs)));
    return Number(sums[0]);
  },

  /** The batch's own data and keys are passed as they are, unless the handler chooses keys. */
  addEach(batch, { key, delta, ttlMs } = {}) {
    const [data, keys] = key === undefined ? [batch.data, ownKeys(batch)] : chosenKeys(batch, key);
    const sums = [];
    for (let from = 0; from < batch.length; from += CALL_KEYS_MAX) {
      const to = Math.min(batch.length, from + CALL_KEYS_MAX);
      const column = (Column, choose) => Column.from({ length: to - from }, (_, at) => choose(batch.message(from + at)));
      const how = {
        ttlMs: ttlMs === undefined ? NOTHING : column(BigUint64Array, (message) => lifeOf(ttlMs, message)),
        messages: counted(from, to),
      };
      const deltas = delta === undefined ? NOTHING : column(BigInt64Array, (message) => BigInt(delta(message)));
      const added = orFull(() => hostOf("state").add(data, keys.subarray(2 * from, 2 * to), deltas, how));
      for (let at = 0; at < added.length; at++) sums[from + at] = Number(added[at]);
    }
    return sums;
  },

  scan(prefix, { after, max = 1000 } = {}) {
    const from = after === undefined || after === null ? undefined : keyBytes(after);
    const { data, keys, values } = hostOf("state").scan(keyBytes(prefix), from, max);
    const entries = [];
    for (let at = 0; at < keys.length / 2; at++) entries.push({ key: part(data, keys, at), value: part(data, values, at) });
    return entries;
  },
};

/** The numbers from `from` up to `to`. */
function counted(from, to) {
  const numbers = new Uint32Array(to - from);
  for (let at = 0; at < numbers.length; at++) numbers[at] = from + at;
  return numbers;
}

function lifeOf(ttlMs, message) {
  const ms = typeof ttlMs === "function" ? ttlMs(message) : ttlMs;
  return ms === null || ms === undefined ? FOREVER : BigInt(Math.round(ms));
}

/** The batch's keys; that of a message without one is empty. */
function ownKeys(batch) {
  const keys = new Uint32Array(batch.keys);
  for (let at = 0; at < keys.length; at += 2) {
    if (keys[at + 1] === NONE) keys[at] = keys[at + 1] = 0;
  }
  return keys;
}

function chosenKeys(batch, choose) {
  const blob = new Blob();
  const keys = new Uint32Array(batch.length * 2);
  for (let at = 0; at < batch.length; at++) {
    const bytes = keyBytes(choose(batch.message(at)));
    keys[2 * at] = blob.add(bytes);
    keys[2 * at + 1] = bytes.length;
  }
  return [blob.bytes(), keys];
}

/** Keys to set and to delete, each for its message, in as few calls to the host as possible. */
export class Writes {
  constructor() {
    this.calls = [];
  }

  set(message, key, value, { ttlMs } = {}) {
    this.add(message, keyBytes(key), valueBytes(value).slice(), ttlMs);
  }

  delete(message, key) {
    this.add(message, keyBytes(key), null, null);
  }

  add(message, key, value, ttlMs) {
    let call = this.calls.at(-1);
    if (call === undefined || call.messages.length >= CALL_KEYS_MAX || call.blob.length >= CALL_BYTES) {
      call = { blob: new Blob(), keys: [], values: [], messages: [], ttlMs: [], ends: false };
      this.calls.push(call);
    }
    call.keys.push(call.blob.add(key), key.length);
    if (value === null) call.values.push(0, NONE);
    else call.values.push(call.blob.add(value), value.length);
    call.messages.push(message.index);
    call.ends ||= typeof ttlMs === "number";
    call.ttlMs.push(typeof ttlMs === "number" ? BigInt(Math.round(ttlMs)) : FOREVER);
  }

  write() {
    for (const { blob, keys, values, messages, ttlMs, ends } of this.calls.splice(0)) {
      const how = { ttlMs: ends ? BigUint64Array.from(ttlMs) : NOTHING, messages: Uint32Array.from(messages) };
      orFull(() => hostOf("state").set(blob.bytes(), Uint32Array.from(keys), Uint32Array.from(values), how));
    }
  }
}
