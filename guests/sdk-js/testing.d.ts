/**
 * Tests of handlers in plain node: messages go in, and the outcome of each comes out, as plain objects for `assert.deepEqual`.
 *
 * ```js
 * import assert from "node:assert/strict";
 * import test from "node:test";
 * import handler from "./handler.js";
 * import { Tester } from "millrace/testing";
 *
 * test("whoever has a name is greeted", () => {
 *   const run = new Tester(handler).run([{ key: "1", value: "Ada" }, { key: "2" }]);
 *   assert.deepEqual(run.outputs(), [{ key: "1", value: "hello, Ada" }]);
 *   assert.deepEqual(run.said(1), { outcome: "reject", class: "no-value", reason: "there is nobody to greet" });
 * });
 * ```
 *
 * A `Tester` keeps state from one batch to the next, as a host does for one partition, and discards writes of messages that are retried or
 * rejected: it calls the handler again without those messages, which reveals handlers that only work if no other message fails. What the
 * handler logs and counts in such repeated calls counts again, as on a host. An error in the handler is an error in the test
 * (`assert.throws`).
 *
 * @packageDocumentation
 */

import type { Handler, Response, SendError, Unavailable } from "./millrace.js";

/** Text or bytes. Results have text wherever the bytes are text. */
export type Bytes = string | Uint8Array;

/** A message that goes in. */
export interface Sample {
  key?: Bytes | null;
  /** Text, bytes, `null`, or anything else as JSON. */
  value?: unknown;
  headers?: Record<string, Bytes | null> | [name: string, value: Bytes | null][];
  /** In milliseconds since the Unix epoch; 2026-01-01 by default. */
  timestamp?: number | Date;
  attempt?: number;
  offset?: number;
}

/** An output, including everything that it keeps of its message. What it leaves to the host is absent. */
export interface Sent {
  key: Bytes | null;
  value: Bytes | null;
  /** All headers; pairs if a name comes several times. Absent if there are none. */
  headers?: Record<string, Bytes | null> | [name: string, value: Bytes | null][];
  topic?: string;
  partition?: number;
  timestamp?: number;
  deliverAt?: number;
}

/** The outcome of a message. */
export type Said =
  | { outcome: "ack" }
  | { outcome: "emit"; outputs: Sent[] }
  | { outcome: "retry"; class: string; reason: string; afterMs?: number }
  | { outcome: "reject"; class: string; reason: string };

/** A message that an error handler is asked about. */
export interface FailedSample extends Sample {
  failure?: {
    cause?: "retry" | "reject" | "trap" | "timeout" | "memory" | "bad-answer";
    class?: string;
    reason?: string;
    attempt?: number;
    revision?: number;
    firstFailedAt?: number;
  };
}

/** The decision about a failure. */
export type Decided = { decision: "retry-after"; afterMs: number } | { decision: "dead-letter" } | { decision: "drop"; reason: string } | { decision: "policy" };

/** What a Tester begins with. */
export interface Beginning {
  topic?: string;
  partition?: number;
  /** How many partitions the topic of a partitioner has; 4 by default. */
  partitions?: number;
  config?: Record<string, string>;
  /** Secrets that are granted; an `Unavailable` says that the host has no value now. */
  secrets?: Record<string, Bytes | Unavailable>;
  /** Entries of state: text, bytes, or a number as `state.add` stores it. */
  state?: Record<string, Bytes | number | bigint>;
}

/** Calls a handler with batches and keeps its state between them. */
export class Tester {
  constructor(handler: Handler, beginning?: Beginning);
  /** Settings of the processor; change them between two batches. */
  config: Record<string, string>;
  /** Processes a batch. Throws what the handler throws; state is then unchanged. */
  run(messages: Sample[]): Run;
  /** The partition of each message, from a partitioner. */
  assign(messages: Sample[]): number[];
  /** The decision about each failure, from an error handler. */
  decide(failures: FailedSample[]): Decided[];
  /** The value of a key in state now: a number if `state.add` wrote it; `null` if there is none. */
  state(key: Bytes): Bytes | number | null;
  /** The number of a key in state now. */
  number(key: Bytes): number | null;
  /** The whole state now. */
  allState(): Record<string, Bytes | number>;
}

/** The result of a batch. */
export class Run {
  private constructor();
  /** The outcome of each message, in order. */
  readonly all: Said[];
  /** Keys of state that changed, with their values now; `null` if removed, `{ value, ttlMs }` if the key expires. */
  readonly changes: Record<string, Bytes | number | null | { value: Bytes | number; ttlMs: number }>;
  /** What was logged. */
  readonly lines: { level: "error" | "warn" | "info" | "debug"; text: string }[];
  /** Metrics, in order. */
  readonly metrics: { kind: "add" | "set" | "observe"; name: string; labels: Record<string, string>; value: number }[];
  /** The outcome of one message, from 0. */
  said(index: number): Said;
  /** All outputs, in order. */
  outputs(): Sent[];
  /** The only output. Throws if there are none, or several. */
  output(): Sent;
}

/** What a RouteTester begins with. */
export interface RouteBeginning {
  config?: Record<string, string>;
  /** Secrets that are granted; an `Unavailable` says that the host has no value now. */
  secrets?: Record<string, Bytes | Unavailable>;
  /** The state of processors that the route may read, by processor: text, bytes, or a number as `state.add` stores it. */
  views?: Record<string, Record<string, Bytes | number | bigint>>;
  /** An error that every call which sends throws. */
  failure?: SendError;
}

/** Asks a handler of `http(…)` as a host asks a route, and keeps what it sends. */
export class RouteTester {
  constructor(handler: Handler<"http">, beginning?: RouteBeginning);
  /** What was sent so far, in order. */
  sent: (Sent & { topic: string })[];
  /** What was logged. */
  lines: { level: "error" | "warn" | "info" | "debug"; text: string }[];
  /** The answer to a request. */
  ask(method: string, target: string, rest?: { headers?: Record<string, string>; body?: Bytes }): Response;
}
