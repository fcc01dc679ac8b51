// Byte strings as spans of one blob, as the host's functions take and give them.

import { NONE, isNone } from "./batch.js";
import { toBytes } from "./text.js";

/** Spans of byte strings that are joined to one blob. */
export class Blob {
  constructor() {
    this.parts = [];
    this.length = 0;
  }

  add(bytes) {
    const start = this.length;
    this.parts.push(bytes);
    this.length += bytes.length;
    return start;
  }

  /** Adds text or bytes, or nothing for `null`; returns the span. */
  put(value) {
    if (value === null || value === undefined) return [0, NONE];
    const bytes = toBytes(value);
    if (!(bytes instanceof Uint8Array)) throw new TypeError(`text or bytes are expected, not a value of type ${typeof value}: use JSON.stringify(…) for JSON`);
    return [this.add(bytes), bytes.length];
  }

  bytes() {
    if (this.parts.length === 1) return this.parts[0];
    const bytes = new Uint8Array(this.length);
    let end = 0;
    for (const part of this.parts) {
      bytes.set(part, end);
      end += part.length;
    }
    return bytes;
  }
}

/** One byte string of a column; `null` if there is none. */
export function part(data, spans, at) {
  const length = spans[2 * at + 1];
  return isNone(length) ? null : data.subarray(spans[2 * at], spans[2 * at] + length);
}
