/**
 * Write Millrace modules in TypeScript or JavaScript: a function of one message, exported as the default.
 *
 * ```ts
 * import { emit, processor, reject } from "millrace";
 *
 * export default processor((message) => {
 *   const name = message.text();
 *   if (name === null) return reject("no-value", "there is nobody to greet");
 *   return emit(message.output({ value: `hello, ${name}` }));
 * });
 * ```
 *
 * The host passes messages in batches, in columns, which messages and outputs hide. An output starts as a copy of its message and states
 * only the differences: unchanged parts are not copied.
 *
 * Tests of a handler need neither WASM nor a host: `testing.js` passes messages to it and shows its outcomes.
 *
 * An error that nobody catches is logged with its stack and becomes a trap: the host finds the failing message, tries it again, and finally
 * makes it a dead letter. Handlers answer at once: they cannot be `async`.
 *
 * @packageDocumentation
 */

/** What a source exports as its default. */
export interface Handler<Kind extends string = string> {
  readonly kind: Kind;
}

/**
 * A message processor from a function of one message.
 *
 * It may throw {@link Unavailable} if something outside is down. A {@link StateFull} that it does not catch retries its message with the
 * class `state-full`.
 */
export function processor(process: (message: Message) => Outcome): Handler<"processor">;

/**
 * A message processor from a function of a batch, for work that is cheaper once per batch. It returns one outcome for each message, in
 * order.
 *
 * ```ts
 * export default processBatch((batch) => {
 *   const counts = state.addEach(batch);
 *   return batch.map((message, index) => emit(message.output({ value: String(counts[index]) })));
 * });
 * ```
 */
export function processBatch(process: (batch: Batch) => Outcome[]): Handler<"processor">;

/** A topic's partitioner, from a function that returns the partition of a message: a whole number less than `partitions`. */
export function partitioner(choose: (message: Message, partitions: number) => number): Handler<"partitioner">;

/**
 * A processor's error handler, from a function of one failed message.
 *
 * ```ts
 * export default errorHandler((failure) =>
 *   failure.class === "busy" ? decision.retryAfter(1000 * failure.attempt) : decision.policy(),
 * );
 * ```
 */
export function errorHandler(decide: (failure: Failure) => Decision): Handler<"error-handler">;

/** Messages of one partition, in order. */
export interface Batch extends Iterable<Message> {
  /** The topic that the messages come from. */
  readonly topic: string;
  /** The partition that the messages come from. */
  readonly partition: number;
  /** The number of messages. */
  readonly length: number;
  /** The message at this index, from 0. Throws a `RangeError` if there is none. */
  message(index: number): Message;
  /** The results of a function of each message, in order. */
  map<T>(each: (message: Message, index: number) => T): T[];
  [Symbol.iterator](): Iterator<Message>;
}

/**
 * A message. It never changes: its bytes are copied each time they are asked for, so ask once, and do with them what you like; outputs keep
 * what the message had.
 */
export interface Message {
  /** Its index in the batch, from 0. */
  readonly index: number;
  /** The key, or `null` if there is none. */
  readonly key: Uint8Array | null;
  /** The value, or `null` if it has none: a tombstone, as in Kafka. */
  readonly value: Uint8Array | null;
  /** The key as text, or `null`. Bytes that are not UTF-8 become U+FFFD. */
  keyText(): string | null;
  /** The value as text, or `null`. Bytes that are not UTF-8 become U+FFFD. Faster than decoding `value`. */
  text(): string | null;
  /**
   * The value as text if all of it is ASCII; otherwise `null`. Then characters are bytes, and the built-in functions of text, many times
   * quicker in QuickJS than a loop, do what a loop over the bytes would do.
   */
  asciiText(): string | null;
  /** The value, read as JSON; `null` if there is no value. Throws a `SyntaxError` if it is not JSON. */
  json<T = any>(): T;
  /** The last header with this name, as text; `null` if there is none, or it is null. */
  header(name: string): string | null;
  /** The same as bytes. */
  headerBytes(name: string): Uint8Array | null;
  /** Names and values of all headers as text, in order. */
  headers(): [name: string, value: string | null][];
  /** The timestamp, in milliseconds since the Unix epoch. */
  readonly timestamp: number;
  /** Its offset in the partition. Not yet known when a partitioner is called. */
  readonly offset: number;
  /** The number of this attempt, from 1, including attempts of earlier revisions. */
  readonly attempt: number;
  /** The topic that it comes from. */
  readonly topic: string;
  /** The partition that it comes from. */
  readonly partition: number;
  /**
   * An output that is this message, with these changes. They are taken as they are now: buffers and objects can be used again.
   * Throws a `RangeError` if a time is none; a value, key or header that is neither text, bytes nor null is a `TypeError` when the batch is
   * answered, which is a trap.
   */
  output(changes?: Changes): Output;
}

/** What an output changes of its message. Parts that are not given stay as they are, and are not copied. */
export interface Changes {
  /** Text (stored as UTF-8), bytes, or `null` to remove the value. */
  value?: string | Uint8Array | null;
  /** Text (stored as UTF-8), bytes, or `null` to remove the key. */
  key?: string | Uint8Array | null;
  /** Headers to add to those of the message; no name that begins with `millrace-`. Pairs, if a name comes several times. */
  headers?: Record<string, string | Uint8Array | null> | [name: string, value: string | Uint8Array | null][];
  /** Removes the headers of the message first. */
  clearHeaders?: boolean;
  /** Sends it to this topic instead of the processor's default output; the processor needs a grant for it. */
  topic?: string;
  /** Sends it to this partition instead of letting the topic's partitioner choose. */
  partition?: number;
  /** The timestamp, in milliseconds since the Unix epoch. */
  timestamp?: number | Date;
  /**
   * Delays it until this time, in milliseconds since the Unix epoch; a time in the past means at once. The host stores it, and it appears
   * in its topic at that time, never before, with that timestamp unless another one is given.
   */
  deliverAt?: number | Date;
}

declare const made: unique symbol;

/** The outcome of a message; made by {@link ack}, {@link emit}, {@link retry}, {@link retryAfter} and {@link reject}. */
export interface Outcome {
  readonly [made]: "outcome";
}

/** An output of a message, made by {@link Message.output}; alone, it is an outcome as well. */
export interface Output extends Outcome {
  /** The index of its message. */
  readonly source: number;
}

/** Done, without outputs. */
export function ack(): Outcome;

/** Done, with these outputs, in order. Without outputs it is the same as {@link ack}. */
export function emit(...outputs: (Output | Output[])[]): Outcome;

/**
 * Try again later, with the delay of the processor's policy.
 * @param failureClass a short word by which failures are grouped
 * @param reason an explanation for people
 */
export function retry(failureClass: string, reason: string): Outcome;

/** Try again after this many milliseconds. Throws a `RangeError` if they are less than 0. */
export function retryAfter(ms: number, failureClass: string, reason: string): Outcome;

/** Give the message up: it becomes a dead letter. */
export function reject(failureClass: string, reason: string): Outcome;

/** Throw this if something that the whole processor needs is down: the host pauses, probes, and spends no attempts. */
export class Unavailable extends Error {
  constructor(reason: string);
}

/** A failed message. */
export interface Failure {
  readonly message: Message;
  /** The processor's revision that failed. */
  readonly revision: number;
  /** The number of attempts so far, under all revisions, including this one. */
  readonly attempt: number;
  /** When the first attempt failed, in milliseconds since the Unix epoch. */
  readonly firstFailedAt: number;
  /** How this attempt failed. */
  readonly cause: "retry" | "reject" | "trap" | "timeout" | "memory" | "bad-answer";
  /** The short word by which failures are grouped. */
  readonly class: string;
  /** The explanation for people. */
  readonly reason: string;
}

/** What the host does with a failed message; made by {@link decision}. */
export interface Decision {
  readonly tag: "retry-after" | "dead-letter" | "drop" | "policy";
}

/** The decisions of an error handler. */
export const decision: {
  /** Try again after this many milliseconds. Throws a `RangeError` if they are less than 0. */
  retryAfter(ms: number): Decision;
  /** Give it up: it becomes a dead letter. */
  deadLetter(): Decision;
  /** Drop it; the host counts it and logs the reason. */
  drop(reason: string): Decision;
  /** Do what the processor's retry policy says. */
  policy(): Decision;
};

/**
 * Lines of the processor's log. The host cuts long lines, and drops and counts lines beyond its rate limit. Objects are written as JSON.
 * In a component, `console.log` and its companions write here as well.
 */
export const log: {
  error(...parts: unknown[]): void;
  warn(...parts: unknown[]): void;
  info(...parts: unknown[]): void;
  debug(...parts: unknown[]): void;
};

/** Settings of the processor, as operators gave them. A change reaches the processor with its next call. */
export const config: {
  /** The value of a key; `null` if it has none. */
  get(key: string): string | null;
  /** All keys and their values. */
  all(): Record<string, string>;
};

/** Secrets that the host keeps: the processor reads those that were granted to it by name. A new value reaches it with its next call. */
export const secrets: {
  /** The bytes of a secret. Throws if it is not granted, and {@link Unavailable} if the host has no value for it now. */
  get(name: string): Uint8Array;
  /** The same as text. */
  text(name: string): string;
};

/** Labels of a metric: values of at most 100 bytes. */
export type Labels = Record<string, string | number>;

/**
 * The component's own metrics, on the host's `/metrics` as `guest_<name>` with the label `processor`. Names of metrics and labels have 1 to
 * 60 of the characters a-z, 0-9 and `_` and begin with a letter; a wrong one is a trap. A name is of one kind only: the first use decides.
 */
export const metrics: {
  /** Adds to a counter; 1 by default. Throws a `RangeError` if the number is not whole, or less than 0. */
  add(name: string, delta?: number, labels?: Labels): void;
  /** Sets a gauge. */
  set(name: string, value: number, labels?: Labels): void;
  /** Records a value in a histogram. */
  observe(name: string, value: number, labels?: Labels): void;
};

/** How long a write lasts. */
export interface Life {
  /** Time to live in milliseconds; `null` is forever. A number of `add` keeps its expiry if this is not given. */
  ttlMs?: number | null;
}

/**
 * Keys and values of the processor in the partition that its batch comes from. Writes are committed together with the batch's outputs, and
 * only if their message succeeds: each write names its message. Keys are text (stored as UTF-8) or bytes; others are a `TypeError`, and a key
 * or a value beyond its bound is a trap.
 *
 * The cost is in the number of calls to the host, not of keys: `addEach`, `getMany` and {@link Writes} add, read and write for a whole batch
 * at once, or for 10,000 keys at once if there are more. If there is no room, writes throw {@link StateFull}; what earlier ones of several such
 * calls wrote stays, each for its message: retry or reject the messages, and their writes are discarded.
 */
export const state: {
  /** The value of a key; `null` if it has none. */
  get(key: Key): Uint8Array | null;
  /** The value of a key as text; `null` if it has none. */
  text(key: Key): string | null;
  /** The value of a key, read as JSON; `null` if it has none. Throws a `SyntaxError` if it is not JSON. */
  json<T = any>(key: Key): T | null;
  /** The number of a key, as `add` stores it; exact up to 2^53; `null` if it has none. Throws a `TypeError` if the value is not a number. */
  number(key: Key): number | null;
  /** The values of these keys, in the same order, in one call to the host. */
  getMany(keys: Iterable<Key>): (Uint8Array | null)[];
  /** Sets a key on behalf of this message. */
  set(message: Message, key: Key, value: string | Uint8Array, life?: Life): void;
  /** Removes a key on behalf of this message. */
  delete(message: Message, key: Key): void;
  /** Adds to the number of a key on behalf of this message, 1 by default; returns the sum. An absent key counts as 0. */
  add(message: Message, key: Key, delta?: number | bigint, life?: Life): number;
  /** Each message of the batch adds to a number, in one call to the host; returns the sum after each message. */
  addEach(batch: Batch, how?: EachAdd): number[];
  /** Keys that begin with `prefix` and come after `after`, in order, with their values: at most `max` (1000 by default), or fewer if they
   * have many bytes. An empty answer is the end. */
  scan(prefix: Key, range?: { after?: Key | null; max?: number }): { key: Uint8Array; value: Uint8Array }[];
};

/** A key of state. `null`, the key of a message without one, is the empty key. */
export type Key = string | Uint8Array | null;

/** What each message adds. */
export interface EachAdd {
  /** The key; by default the message's own, or the empty key if it has none. */
  key?: (message: Message) => Key;
  /** How much; by default 1. */
  delta?: (message: Message) => number | bigint;
  /** Time to live in milliseconds, counted from this message; `null` is forever. By default a number keeps its expiry. */
  ttlMs?: number | ((message: Message) => number | null);
}

/** There is no room for more state; nothing was written. Its message says which bound was reached. */
export class StateFull extends Error {}

/** Keys to set and to delete, each for its message, in as few calls to the host as possible. */
export class Writes {
  constructor();
  /** Sets a key on behalf of this message. */
  set(message: Message, key: Key, value: string | Uint8Array, life?: Life): void;
  /** Removes a key on behalf of this message. */
  delete(message: Message, key: Key): void;
  /** Writes everything, in the order in which it was added. Throws {@link StateFull}; writes of earlier calls to the host are kept. */
  write(): void;
}

/**
 * A component that answers the HTTP requests of a route, from a function of one request.
 *
 * ```ts
 * export default http((request) =>
 *   request.method === "GET" ? response.json(200, { path: request.path }) : response.text(405, "only GET", { allow: "GET" }),
 * );
 * ```
 */
export function http(answer: (request: Request) => Response): Handler<"http">;

/** A request. Its body is read before the function is called; one of more than 1 MiB is answered with 413. */
export class Request {
  private constructor();
  /** Such as `GET`. */
  readonly method: string;
  /** Path and query, as they were sent. */
  readonly target: string;
  /** The path, which begins with that of the route. */
  readonly path: string;
  /** The query, without its question mark; empty if there is none. */
  readonly query: string;
  /** The bytes of the body. */
  readonly body: Uint8Array;
  /** The value of the first header with this name; `null` if there is none. */
  header(name: string): string | null;
  /** All headers, in order; names in lower case. */
  headers(): [name: string, value: string][];
  /** The body as text; what is not UTF-8 becomes U+FFFD. */
  text(): string;
  /** The body, read as JSON. Throws a `SyntaxError` if it is none. */
  json(): any;
}

/** An answer. */
export class Response {
  private constructor();
  readonly status: number;
  /** Names in lower case. */
  readonly headers: Record<string, string>;
  readonly body: Uint8Array;
  text(): string;
  json(): any;
}

/** Makes an answer. */
export const response: {
  /** With these headers and this body, text or bytes. */
  (status: number, rest?: { headers?: Record<string, string>; body?: string | Uint8Array }): Response;
  /** Plain text. */
  text(status: number, text: string, headers?: Record<string, string>): Response;
  /** A value as JSON. */
  json(status: number, value: unknown, headers?: Record<string, string>): Response;
};

/** A message to send. */
export interface Outgoing {
  key?: string | Uint8Array | null;
  value?: string | Uint8Array | null;
  headers?: Record<string, string | Uint8Array | null> | [name: string, value: string | Uint8Array | null][];
  /** Instead of leaving it to the topic's partitioner. */
  partition?: number;
  /** In milliseconds since the Unix epoch; now by default. */
  timestamp?: number | Date;
  /** The time of delivery, in milliseconds since the Unix epoch; at once by default. */
  deliverAt?: number | Date;
}

/** Sent messages. */
export interface SentPlaces {
  /** Where they are, in order; the offset is `null` for a message that is delivered later. */
  places: { partition: number; offset: number | null }[];
  /** Whether an earlier call with the same key sent them, and this one did nothing. */
  repeated: boolean;
}

/**
 * Messages that the component of a route sends while it answers a request. Each call is one commit: when it returns, all of its messages
 * are stored, or none is. Errors are {@link SendError}.
 */
export const producer: {
  /** Sends messages to a topic. */
  send(topic: string, messages: Outgoing[]): SentPlaces;
  /** Like `send`, once: a repeat with the same key, by any request to this route, returns the first places. */
  sendOnce(topic: string, key: string, messages: Outgoing[]): SentPlaces;
  /** Waits until a processor has settled messages of a topic; `false` if it has not within this many milliseconds. */
  settled(processor: string, topic: string, sent: SentPlaces, ms: number): boolean;
};

/** Why messages were not sent; nothing was stored. */
export class SendError extends Error {
  constructor(kind: "not-granted" | "refused" | "key-reused" | "unavailable", reason: string);
  /** `unavailable`: a later call may succeed; `key-reused`: the key was used before, for other messages. */
  readonly kind: "not-granted" | "refused" | "key-reused" | "unavailable";
}

/** The state of processors, for the component of a route: what is committed, to read only. Errors are {@link ViewError}. */
export const views: {
  /** The state of a processor; of one that reads several topics, for one of them. */
  of(processor: string, rest?: { topic?: string }): View;
};

export interface View {
  /** The number of partitions. */
  partitions(): number;
  /** The value of a key in the partition that messages with this key go to; `null` if it has none. */
  get(key: string | Uint8Array): Uint8Array | null;
  text(key: string | Uint8Array): string | null;
  json(key: string | Uint8Array): any;
  /** The number of a key, as `state.add` stores it. */
  number(key: string | Uint8Array): number | null;
  /** The values of keys, in order; without a partition, each in the partition that messages with this key go to. */
  getMany(keys: (string | Uint8Array)[], rest?: { partition?: number }): (Uint8Array | null)[];
  /** Entries of a partition whose keys begin with `prefix` and come after `after`, and whether there may be more. */
  scan(
    partition: number,
    prefix?: string | Uint8Array,
    rest?: { after?: string | Uint8Array; max?: number },
  ): { entries: { key: Uint8Array; value: Uint8Array }[]; hasMore: boolean };
}

/** Why state cannot be read. */
export class ViewError extends Error {
  constructor(kind: "not-granted" | "refused" | "unavailable", reason: string);
  readonly kind: "not-granted" | "refused" | "unavailable";
}

/** UTF-8, made of built-in functions of the engine. QuickJS has no text codecs of its own; `TextEncoder` and `TextDecoder` use this one. */
export const utf8: {
  /** Text as bytes; half a surrogate pair becomes U+FFFD. */
  encode(text: string): Uint8Array;
  /** Bytes as text; what is not UTF-8 becomes U+FFFD. */
  decode(bytes: Uint8Array): string;
};

/** One character from U+0000 to U+00FF per byte: for bytes that are to be searched and cut like text, without loss. */
export const latin1: {
  /** Text as bytes. Throws a `RangeError` if it has other characters. */
  encode(text: string): Uint8Array;
  /** Bytes as text. */
  decode(bytes: Uint8Array): string;
};
