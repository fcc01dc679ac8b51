// Tests of handlers in plain node: messages go in, and the outcome of each comes out. Its documentation is in testing.d.ts.

import { NONE } from "./lib/batch.js";
import { setHost } from "./lib/host.js";
import { Request } from "./lib/http.js";
import { Unavailable } from "./lib/outcomes.js";
import { toBytes } from "./lib/text.js";

const NO_TIME = 0xffffffffffffffffn;
const FOREVER = NO_TIME;
const TIMESTAMP = 1_767_225_600_000;
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export class Tester {
  constructor(handler, { topic = "samples", partition = 0, partitions = 4, config = {}, secrets = {}, state = {} } = {}) {
    if (typeof handler?.call !== "function") throw new TypeError("a Tester takes what the source exports: processor(…), partitioner(…) or errorHandler(…)");
    this.handler = handler;
    this.topic = topic;
    this.partition = partition;
    this.partitions = partitions;
    this.config = config;
    this.secrets = secrets;
    this.entries = new Map(Object.entries(state).map(([key, value]) => [keyOf(toBytes(key)), entryOf(value)]));
    this.offset = 0;
    this.lines = [];
    this.metrics = [];
  }

  run(messages) {
    this.expect("processor", "run");
    const sample = messages.map((message, at) => ({ offset: this.offset + at, ...message }));
    this.offset += sample.length;
    const before = new Map(this.entries);
    this.lines = [];
    this.metrics = [];
    try {
      const said = this.settle(sample);
      return new Run(said, changesOf(before, this.entries), this.lines, this.metrics);
    } catch (error) {
      this.entries = before;
      throw error;
    }
  }

  assign(messages) {
    this.expect("partitioner", "assign");
    const answer = this.inHost(new Store(this.entries), () => this.handler.call(this.partitions, columnsOf(this, messages)));
    return Array.from(answer);
  }

  decide(failures) {
    this.expect("error-handler", "decide");
    const facts = failures.map(({ failure = {} }, message) => {
      const cause = failure.cause ?? "retry";
      const { revision = 1, attempt = 1, firstFailedAt = TIMESTAMP, class: word = cause, reason = "" } = failure;
      return { message, revision, attempt, firstFailedAt, cause, class: word, reason };
    });
    const decided = this.inHost(new Store(this.entries), () => this.handler.call(facts, columnsOf(this, failures)));
    return decided.map(({ tag, val }) => {
      if (tag === "retry-after") return { decision: tag, afterMs: Number(val) };
      return tag === "drop" ? { decision: tag, reason: val } : { decision: tag };
    });
  }

  state(key) {
    const entry = this.entries.get(keyOf(toBytes(key)));
    return entry === undefined ? null : shownEntry(entry);
  }

  number(key) {
    const entry = this.entries.get(keyOf(toBytes(key)));
    return entry === undefined ? null : numberOf(entry.value);
  }

  allState() {
    return Object.fromEntries([...this.entries].sort().map(([key, entry]) => [shown(bytesOf(key)), shownEntry(entry)]));
  }

  expect(kind, verb) {
    if (this.handler.kind !== kind) throw new TypeError(`${verb}() is for a ${kind}; the handler is a ${this.handler.kind}`);
  }

  /** Calls the handler with all messages, and if a message that wrote to state failed, again with the parts whose writes are kept. */
  settle(sample) {
    const store = new Store(this.entries);
    const columns = columnsOf(this, sample);
    const answer = this.inHost(store, () => this.handler.call(columns));
    const said = saidOf(columns, answer);
    const failed = said.flatMap(({ outcome }, at) => (outcome === "retry" || outcome === "reject" ? [at] : []));
    if (!failed.some((at) => store.byAll || store.writers.has(at))) {
      this.entries = store.entries;
      return said;
    }
    // Alone, and all its writes are discarded.
    if (sample.length === 1) return said;
    const parts = [];
    let begin = 0;
    for (const at of failed) {
      parts.push(sample.slice(begin, at), sample.slice(at, at + 1));
      begin = at + 1;
    }
    parts.push(sample.slice(begin));
    return parts.filter((part) => part.length > 0).flatMap((part) => this.settle(part));
  }

  inHost(store, call) {
    const before = setHost({
      ...hostFor(this),
      state: store,
      metrics: {
        add: (name, labels, value) => this.metrics.push({ kind: "add", name, labels: Object.fromEntries(labels), value: Number(value) }),
        set: (name, labels, value) => this.metrics.push({ kind: "set", name, labels: Object.fromEntries(labels), value }),
        observe: (name, labels, value) => this.metrics.push({ kind: "observe", name, labels: Object.fromEntries(labels), value }),
      },
    });
    try {
      return call();
    } finally {
      setHost(before);
    }
  }
}

/** What every handler has of the host. */
function hostFor(tester) {
  return {
    log: { log: (level, text) => tester.lines.push({ level, text }) },
    config: { get: (key) => tester.config[key], all: () => Object.entries(tester.config).sort() },
    secrets: { get: (name) => secretOf(tester.secrets, name) },
  };
}

function secretOf(secrets, name) {
  const value = secrets[name];
  if (value instanceof Unavailable) throw { tag: "unavailable", val: value.message };
  if (value === undefined) throw { tag: "not-granted", val: name };
  return toBytes(value);
}

export class RouteTester {
  constructor(handler, { config = {}, secrets = {}, views = {}, failure } = {}) {
    if (handler?.kind !== "http") throw new TypeError("a RouteTester takes what the source exports: http(…)");
    this.handler = handler;
    this.config = config;
    this.secrets = secrets;
    this.failure = failure;
    const entriesOf = (state) => Object.entries(state).map(([key, value]) => [keyOf(toBytes(key)), entryOf(value)]);
    this.views = new Map(Object.entries(views).map(([processor, state]) => [processor, new Store(entriesOf(state))]));
    this.lines = [];
    this.sent = [];
    this.next = new Map();
    this.keys = new Map();
  }

  ask(method, target, { headers = {}, body = "" } = {}) {
    const pairs = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), toBytes(value)]);
    const before = setHost({
      ...hostFor(this),
      metrics: { add() {}, set() {}, observe() {} },
      producer: { send: (topic, messages, key) => this.take(topic, messages, key), settled: () => true },
      views: {
        partitions: (place) => this.view(place) && 1,
        get: (place, _, data, keys) => this.view(place).get(data, keys),
        scan: (place, partition, prefix, after, max) => {
          const store = this.view(place);
          if (partition !== 0) throw { tag: "refused", val: `there is no partition ${partition}; a test has only partition 0` };
          const found = store.scan(prefix, after, max);
          return { ...found, hasMore: store.scan(prefix, after, max + 1).keys.length > found.keys.length };
        },
      },
    });
    try {
      return this.handler.call(new Request(method, target, pairs, toBytes(body)));
    } finally {
      setHost(before);
    }
  }

  view({ processor }) {
    const store = this.views.get(processor);
    if (store === undefined) throw { tag: "not-granted", val: `the state of processor ${processor} is not granted to this route` };
    return store;
  }

  take(topic, columns, key) {
    if (this.failure !== undefined) throw this.failure;
    const messages = columns.partitions.length === 0 ? [] : Array.from(columns.partitions, (partition, at) => outgoingOf(topic, columns, partition, at));
    const name = key === undefined ? undefined : JSON.stringify([topic, key]);
    const known = this.keys.get(name);
    if (known !== undefined) {
      if (known.messages !== JSON.stringify(messages)) throw { tag: "key-reused", val: "the key was used before, for other messages" };
      return { ...known.sent, repeated: true };
    }
    const sent = { partitions: [], offsets: [], repeated: false };
    for (const { partition = 0, deliverAt } of messages) {
      const place = `${topic}/${partition}`;
      const offset = this.next.get(place) ?? 0;
      sent.partitions.push(partition);
      sent.offsets.push(deliverAt === undefined ? BigInt(offset) : NO_TIME);
      if (deliverAt === undefined) this.next.set(place, offset + 1);
    }
    if (name !== undefined) this.keys.set(name, { messages: JSON.stringify(messages), sent });
    this.sent.push(...messages);
    return sent;
  }
}

/** A sent message, without what it leaves to the host. */
function outgoingOf(topic, columns, partition, at) {
  const { data, keys, values, headerEnds, headers, times } = columns;
  const sent = { topic, key: shown(spanOf(data, keys, at)), value: shown(spanOf(data, values, at)) };
  const pairs = [];
  for (let header = at === 0 ? 0 : headerEnds[at - 1]; header < headerEnds[at]; header++) {
    pairs.push([shown(spanOf(data, headers, 2 * header)), shown(spanOf(data, headers, 2 * header + 1))]);
  }
  if (pairs.length > 0) sent.headers = new Set(pairs.map(([name]) => name)).size === pairs.length ? Object.fromEntries(pairs) : pairs;
  if (partition !== NONE) sent.partition = partition;
  if (times[2 * at] !== 0n) sent.timestamp = Number(times[2 * at]);
  if (times[2 * at + 1] !== 0n) sent.deliverAt = Number(times[2 * at + 1]);
  return sent;
}

export class Run {
  constructor(said, changes, lines, metrics) {
    this.all = said;
    this.changes = changes;
    this.lines = lines;
    this.metrics = metrics;
  }

  said(index) {
    const said = this.all[index];
    if (said === undefined) throw new RangeError(`a batch of ${this.all.length} has no message ${index}`);
    return said;
  }

  outputs() {
    return this.all.flatMap(({ outputs }) => outputs ?? []);
  }

  output() {
    const outputs = this.outputs();
    if (outputs.length !== 1) throw new Error(`one output was expected, and there are ${outputs.length}: ${JSON.stringify(outputs)}`);
    return outputs[0];
  }
}

/** State as a host has it for one call: a copy, and who wrote to it. */
class Store {
  constructor(entries) {
    this.entries = new Map(entries);
    this.writers = new Set();
    this.byAll = false;
  }

  note(how) {
    for (const message of how.messages) this.writers.add(message);
    this.byAll ||= how.messages.length === 0;
  }

  get(data, keys) {
    const found = eachSpan(data, keys, (key) => this.entries.get(keyOf(key))?.value ?? null);
    return joined({ values: found });
  }

  set(data, keys, values, how) {
    this.note(how);
    const given = eachSpan(data, values, (value) => value && value.slice());
    eachSpan(data, keys, (key, at) => {
      if (given[at] === null) this.entries.delete(keyOf(key));
      else this.entries.set(keyOf(key), { value: given[at], ttlMs: lifeOf(how.ttlMs[at]), isNumber: false });
    });
  }

  add(data, keys, deltas, how) {
    this.note(how);
    return eachSpan(data, keys, (key, at) => {
      const before = this.entries.get(keyOf(key));
      const exact = (before === undefined ? 0n : bigOf(before.value)) + BigInt(deltas[at] ?? 1);
      const sum = exact > I64_MAX ? I64_MAX : exact < -I64_MAX - 1n ? -I64_MAX - 1n : exact;
      const ttlMs = how.ttlMs.length > 0 ? lifeOf(how.ttlMs[at]) : (before?.ttlMs ?? null);
      this.entries.set(keyOf(key), { value: new Uint8Array(BigInt64Array.of(sum).buffer), ttlMs, isNumber: true });
      return Number(sum);
    });
  }

  scan(prefix, after, max) {
    const from = after === undefined ? undefined : keyOf(after);
    const keys = [...this.entries.keys()].filter((key) => key.startsWith(keyOf(prefix)) && (from === undefined || key > from)).sort();
    const some = keys.slice(0, max);
    return joined({ keys: some.map(bytesOf), values: some.map((key) => this.entries.get(key).value) });
  }
}

const I64_MAX = 0x7fffffffffffffffn;

/** Keys are kept as strings with one character per byte: they compare as bytes do. */
function keyOf(bytes) {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1");
}

function bytesOf(key) {
  return Uint8Array.from(Buffer.from(key, "latin1"));
}

/** An entry that a test begins with: a number, as state.add stores it, text or bytes. */
function entryOf(value) {
  const isNumber = typeof value === "number" || typeof value === "bigint";
  return { value: isNumber ? new Uint8Array(BigInt64Array.of(BigInt(value)).buffer) : toBytes(value), ttlMs: null, isNumber };
}

function shownEntry({ value, isNumber }) {
  return isNumber ? numberOf(value) : shown(value);
}

function bigOf(bytes) {
  if (bytes.length !== 8) throw new Error("state.add on a value that is no number: that is a trap");
  return new DataView(bytes.buffer, bytes.byteOffset, 8).getBigInt64(0, true);
}

function numberOf(bytes) {
  return Number(bigOf(bytes));
}

function lifeOf(ttlMs) {
  return ttlMs === undefined || BigInt(ttlMs) === FOREVER ? null : Number(ttlMs);
}

/** Text where the bytes are text, and the bytes otherwise. */
function shown(bytes) {
  if (bytes === null) return null;
  try {
    return decoder.decode(bytes);
  } catch {
    return Uint8Array.from(bytes);
  }
}

function spanOf(data, spans, at) {
  const length = spans[2 * at + 1];
  if (length === NONE) return null;
  const start = spans[2 * at];
  if (length > 0 && start + length > data.length) throw new RangeError(`the span ${start}+${length} is beyond the ${data.length} bytes of its data`);
  return data.subarray(start, start + length);
}

function eachSpan(data, spans, each) {
  return Array.from({ length: spans.length / 2 }, (_, at) => each(spanOf(data, spans, at), at));
}

/** Columns of byte strings, with their spans of one blob. */
function joined(columns) {
  const parts = [];
  let length = 0;
  const spans = {};
  for (const [name, values] of Object.entries(columns)) {
    spans[name] = values.flatMap((bytes) => {
      if (bytes === null) return [0, NONE];
      parts.push(bytes);
      length += bytes.length;
      return [length - bytes.length, bytes.length];
    });
  }
  return { data: Uint8Array.from(Buffer.concat(parts)), ...spans };
}

/** The columns that a host would pass. */
function columnsOf({ topic, partition }, messages) {
  const headers = messages.map((message) => (Array.isArray(message.headers) ? message.headers : Object.entries(message.headers ?? {})));
  const bytes = (value) => (value === null || value === undefined ? null : toBytes(typeof value === "object" && !(value instanceof Uint8Array) ? JSON.stringify(value) : value));
  const all = headers.flat();
  const { data, keys, values, names, worth } = joined({
    keys: messages.map(({ key }) => bytes(key)),
    values: messages.map(({ value }) => bytes(value)),
    names: all.map(([name]) => toBytes(name)),
    worth: all.map(([, value]) => bytes(value)),
  });
  let end = 0;
  return {
    topic,
    partition,
    data,
    offsets: messages.map(({ offset }, at) => offset ?? at),
    timestamps: messages.map(({ timestamp }) => Number(timestamp ?? TIMESTAMP)),
    attempts: messages.map(({ attempt }) => attempt ?? 1),
    keys,
    values,
    headerEnds: headers.map((own) => (end += own.length)),
    headers: all.flatMap((_, at) => [names[2 * at], names[2 * at + 1], worth[2 * at], worth[2 * at + 1]]),
  };
}

/** The outcome of each message, read from the columns as a host does. */
function saidOf(columns, answer) {
  const all = Buffer.concat([columns.data, answer.data]);
  const details = new Map(answer.details.map((detail) => [detail.message, detail]));
  const outputs = Array.from(answer.outcomes, () => []);
  answer.sources.forEach((source, at) => outputs[source].push(sentOf(columns, answer, all, source, at)));
  return Array.from(answer.outcomes, (outcome, message) => {
    const { afterMs, class: word, reason } = details.get(message) ?? {};
    switch (outcome) {
      case 0:
        return { outcome: "ack" };
      case 1:
        return { outcome: "emit", outputs: outputs[message] };
      case 2:
        return { outcome: "retry", class: word, reason, ...(afterMs === undefined ? {} : { afterMs: Number(afterMs) }) };
      default:
        return { outcome: "reject", class: word, reason };
    }
  });
}

/** An output as a message, without what it leaves to the host. */
function sentOf(columns, answer, all, source, at) {
  const pick = (name) => (answer[name].length > 0 ? spanOf(all, answer[name], at) : spanOf(columns.data, columns[name], source));
  const [ends, headers, index] = answer.headerEnds.length > 0 ? [answer.headerEnds, answer.headers, at] : [columns.headerEnds, columns.headers, source];
  const pairs = [];
  for (let header = index === 0 ? 0 : ends[index - 1]; header < ends[index]; header++) {
    pairs.push([shown(spanOf(all, headers, 2 * header)), shown(spanOf(all, headers, 2 * header + 1))]);
  }
  const sent = { key: shown(pick("keys")), value: shown(pick("values")) };
  if (pairs.length > 0) sent.headers = new Set(pairs.map(([name]) => name)).size === pairs.length ? Object.fromEntries(pairs) : pairs;
  if (answer.topics.length > 0 && answer.topics[at] !== NONE) sent.topic = answer.topicNames[answer.topics[at]];
  if (answer.partitions.length > 0 && answer.partitions[at] !== NONE) sent.partition = answer.partitions[at];
  if (answer.times.length > 0 && answer.times[2 * at] !== NO_TIME) sent.timestamp = Number(answer.times[2 * at]);
  if (answer.times.length > 0 && answer.times[2 * at + 1] !== NO_TIME) sent.deliverAt = Number(answer.times[2 * at + 1]);
  return sent;
}

function changesOf(before, after) {
  const changes = {};
  for (const key of [...new Set([...before.keys(), ...after.keys()])].sort()) {
    const [old, now] = [before.get(key), after.get(key)];
    if (old === now) continue;
    const name = shown(bytesOf(key));
    if (now === undefined) changes[name] = null;
    else if (old === undefined || now.ttlMs !== old.ttlMs || keyOf(old.value) !== keyOf(now.value)) changes[name] = changed(now);
  }
  return changes;
}

function changed(entry) {
  const value = shownEntry(entry);
  return entry.ttlMs === null ? value : { value, ttlMs: entry.ttlMs };
}
