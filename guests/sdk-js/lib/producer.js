// Messages that the component of a route sends while it answers a request. Each call is one commit.

import { NONE } from "./batch.js";
import { Blob } from "./columns.js";
import { hostOf, payloadOf, toWide } from "./host.js";

/** The offset of a message that is delivered later. */
const LATER = 0xffffffffffffffffn;
/** No offset is as large; toolchains round or sign numbers beyond it. */
const OFFSETS_END = 2 ** 63;

/** Why messages were not sent; nothing was stored. */
export class SendError extends Error {
  constructor(kind, reason) {
    super(reason);
    this.name = "SendError";
    this.kind = kind;
  }
}

export const producer = {
  send: (topic, messages) => send(topic, messages, undefined),

  sendOnce: (topic, key, messages) => send(topic, messages, key),

  settled(processor, topic, sent, ms) {
    const places = {
      partitions: Uint32Array.from(sent.places, ({ partition }) => partition),
      offsets: BigUint64Array.from(sent.places, ({ offset }) => (offset === null ? LATER : BigInt(offset))),
      repeated: sent.repeated,
    };
    return orError(() => hostOf("producer").settled(processor, topic, places, toWide(Math.round(ms))));
  },
};

function send(topic, messages, key) {
  const { partitions, offsets, repeated } = orError(() => hostOf("producer").send(topic, columnsOf(messages), key));
  const offsetOf = (offset) => (offset < 0 || offset >= OFFSETS_END ? null : Number(offset));
  const place = (partition, at) => ({ partition, offset: offsetOf(offsets[at]) });
  return { places: Array.from(partitions, place), repeated };
}

function orError(call) {
  try {
    return call();
  } catch (error) {
    const payload = payloadOf(error);
    if (payload !== undefined) throw new SendError(payload.tag, payload.val);
    throw error;
  }
}

function columnsOf(messages) {
  const blob = new Blob();
  const [keys, values, headerEnds, headers, partitions, times] = [[], [], [], [], [], []];
  for (const message of messages) {
    keys.push(...blob.put(message.key));
    values.push(...blob.put(message.value));
    for (const [name, value] of headersOf(message.headers)) headers.push(...blob.put(name), ...blob.put(value));
    headerEnds.push(headers.length / 4);
    partitions.push(message.partition ?? NONE);
    times.push(timeOf(message.timestamp), timeOf(message.deliverAt));
  }
  return {
    data: blob.bytes(),
    keys: Uint32Array.from(keys),
    values: Uint32Array.from(values),
    headerEnds: Uint32Array.from(headerEnds),
    headers: Uint32Array.from(headers),
    partitions: Uint32Array.from(partitions),
    times: BigUint64Array.from(times),
  };
}

function headersOf(headers = {}) {
  return Array.isArray(headers) ? headers : Object.entries(headers);
}

function timeOf(time) {
  return time === undefined || time === null ? 0n : BigInt(Number(time));
}
