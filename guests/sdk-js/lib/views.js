// The state of processors, for the component of a route: what is committed, to read only.

import { Blob, part } from "./columns.js";
import { hostOf, payloadOf } from "./host.js";
import { numberOf } from "./state.js";
import { utf8 } from "./text.js";

/** Why state cannot be read. */
export class ViewError extends Error {
  constructor(kind, reason) {
    super(reason);
    this.name = "ViewError";
    this.kind = kind;
  }
}

export const views = {
  of: (processor, { topic } = {}) => new View(processor, topic),
};

class View {
  constructor(processor, topic) {
    this.place = { processor, topic };
  }

  partitions() {
    return orError(() => hostOf("views").partitions(this.place));
  }

  get(key) {
    return this.getMany([key])[0];
  }

  text(key) {
    const value = this.get(key);
    return value === null ? null : utf8.decode(value);
  }

  json(key) {
    const text = this.text(key);
    return text === null ? null : JSON.parse(text);
  }

  number(key) {
    const value = this.get(key);
    return value === null ? null : numberOf(value);
  }

  getMany(keys, { partition } = {}) {
    const blob = new Blob();
    const spans = keys.flatMap((key) => blob.put(key));
    const { data, values } = orError(() => hostOf("views").get(this.place, partition, blob.bytes(), Uint32Array.from(spans)));
    return keys.map((_, at) => part(data, values, at));
  }

  scan(partition, prefix = "", { after, max = 1000 } = {}) {
    const bytes = (value) => (value === undefined || value === null ? undefined : bytesOf(value));
    const found = orError(() => hostOf("views").scan(this.place, partition, bytesOf(prefix), bytes(after), max));
    const { data, keys, values, hasMore } = found;
    const entries = Array.from({ length: keys.length / 2 }, (_, at) => ({ key: part(data, keys, at), value: part(data, values, at) }));
    return { entries, hasMore };
  }
}

function bytesOf(value) {
  const blob = new Blob();
  blob.put(value);
  return blob.bytes();
}

function orError(call) {
  try {
    return call();
  } catch (error) {
    const payload = payloadOf(error);
    if (payload !== undefined) throw new ViewError(payload.tag, payload.val);
    throw error;
  }
}
