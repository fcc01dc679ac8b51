// The text codecs against those of node.

import assert from "node:assert/strict";
import test from "node:test";

import { latin1, utf8 } from "../millrace.js";

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
const TEXTS = ["", "a", "plain text of some length, longer than a name", "Zwei é", "日本語", "🦀🦀", "\ufeffmark", "half \ud83d pair", "\udc00", "a\0b", "é".repeat(5000)];

test("text is encoded as node encodes it", () => {
  for (const text of TEXTS) assert.deepEqual(utf8.encode(text), encoder.encode(text), JSON.stringify(text));
});

test("bytes are decoded as node decodes them", () => {
  for (const text of TEXTS) assert.equal(utf8.decode(encoder.encode(text)), decoder.decode(encoder.encode(text)));
});

test("bytes that are no UTF-8 become the same replacements as in node", () => {
  const pieces = [[0x61], [0xc3, 0xa9], [0xc3], [0xe2, 0x82, 0xac], [0xe2, 0x82], [0xf0, 0x9f, 0xa6, 0x80], [0xf0, 0x9f, 0xa6], [0xed, 0xa0, 0x80], [0xc0, 0x80], [0xf4, 0x90, 0x80, 0x80], [0xff], [0x80], [0xf5], [0xe0, 0x9f]];
  // A fixed sequence, so that a failure can be repeated.
  let seed = 4711;
  const next = (below) => (seed = (seed * 1103515245 + 12345) % 2147483648) % below;
  for (let round = 0; round < 3000; round++) {
    const bytes = Uint8Array.from(Array.from({ length: next(6) }, () => pieces[next(pieces.length)]).flat());
    assert.equal(utf8.decode(bytes), decoder.decode(bytes), `bytes ${bytes}`);
  }
});

test("latin1 keeps every byte", () => {
  const all = Uint8Array.from({ length: 256 }, (_, byte) => byte);
  assert.deepEqual(latin1.encode(latin1.decode(all)), all);
  assert.throws(() => latin1.encode("€"), RangeError);
});
