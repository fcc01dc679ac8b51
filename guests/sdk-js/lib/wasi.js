// Requests and answers as `wasi:http` of WASI 0.2 has them: resources, which are read and written part by part.
//
// A stream must be dropped before its body, which the engine would not do by itself: so each is dropped where it is no longer needed.

import { hostOf, payloadOf, toWide } from "./host.js";
import { Request, response } from "./http.js";
import { utf8 } from "./text.js";

/** Bytes of a request's body; a larger one is answered with 413. */
const BODY_BYTES_MAX = 1 << 20;
/** Bytes that are read at a time. */
const READ_BYTES = 64 << 10;
/** Bytes that are written at a time, which WASI sets. */
const WRITE_BYTES = 4 << 10;

/** The whole request, or the answer that says what is wrong with it. */
export function readRequest(incoming) {
  const body = readBody(incoming);
  if (!(body instanceof Uint8Array)) return body;
  const headers = incoming.headers().entries();
  return new Request(
    methodOf(incoming.method()),
    incoming.pathWithQuery() ?? "",
    headers.map(([name, value]) => [name.toLowerCase(), Uint8Array.from(value)]),
    body,
  );
}

function methodOf({ tag, val }) {
  return tag === "other" ? val : tag.toUpperCase();
}

function readBody(incoming) {
  const body = incoming.consume();
  const stream = body.stream();
  try {
    return readAll(stream);
  } finally {
    drop(stream);
    drop(body);
  }
}

/** What is left of a stream; an answer if it cannot be read. */
function readAll(stream) {
  const parts = [];
  let length = 0;
  try {
    for (;;) {
      const part = stream.blockingRead(toWide(READ_BYTES));
      parts.push(part);
      length += part.length;
      if (length > BODY_BYTES_MAX) return response.text(413, "the body is too large");
    }
  } catch (error) {
    if (payloadOf(error)?.tag !== "closed") return response.text(400, "the body cannot be read");
  }
  const body = new Uint8Array(length);
  let end = 0;
  for (const part of parts) {
    body.set(part, end);
    end += part.length;
  }
  return body;
}

/** Gives the answer. */
export function give(answer, out) {
  const { Fields, OutgoingBody, OutgoingResponse, ResponseOutparam } = hostOf("http");
  const fields = new Fields();
  for (const [name, value] of Object.entries(answer.headers)) fields.append(name, utf8.encode(value));
  const outgoing = new OutgoingResponse(fields);
  outgoing.setStatusCode(answer.status);
  const body = outgoing.body();
  ResponseOutparam.set(out, { tag: "ok", val: outgoing });
  const stream = body.write();
  try {
    for (let at = 0; at < answer.body.length; at += WRITE_BYTES) {
      stream.blockingWriteAndFlush(answer.body.subarray(at, at + WRITE_BYTES));
    }
  } catch {
    // Whoever asked is gone.
  }
  drop(stream);
  OutgoingBody.finish(body, undefined);
}

function drop(resource) {
  resource[Symbol.dispose]();
}
