// HTTP requests and their answers as a whole, and the handler that answers them. Nothing here knows WASI (lib/wasi.js), so tests call it
// in plain node.

import { describe } from "./answer.js";
import { beginCall } from "./host.js";
import { Handler, orSaid } from "./handlers.js";
import { toBytes, utf8 } from "./text.js";

/** Exports a function of one request. */
export function http(answer) {
  return new Handler("http", (request) =>
    orSaid(() => {
      beginCall();
      // What was wrong with the request is its answer.
      if (request instanceof Response) return request;
      const answered = answer(request);
      if (answered instanceof Response) return answered;
      throw new TypeError(`the handler returned ${describe(answered)}: return response(…), response.text(…) or response.json(…)`);
    }),
  );
}

export class Request {
  /** `headers` are pairs; names in lower case. */
  constructor(method, target, headers, body) {
    this.method = method;
    this.target = target;
    this.pairs = headers;
    this.body = body;
  }

  get path() {
    return this.target.split("?", 1)[0];
  }

  get query() {
    const at = this.target.indexOf("?");
    return at < 0 ? "" : this.target.slice(at + 1);
  }

  header(name) {
    const wanted = name.toLowerCase();
    const found = this.pairs.find(([known]) => known === wanted);
    return found === undefined ? null : utf8.decode(found[1]);
  }

  headers() {
    return this.pairs.map(([name, value]) => [name, utf8.decode(value)]);
  }

  text() {
    return utf8.decode(this.body);
  }

  json() {
    return JSON.parse(this.text());
  }
}

export class Response {
  constructor(status, headers, body) {
    if (!(Number.isInteger(status) && status >= 200 && status <= 599)) {
      throw new RangeError(`${status} is not the status of an answer: use one from 200 to 599`);
    }
    this.status = status;
    this.headers = headers;
    this.body = body;
  }

  text() {
    return utf8.decode(this.body);
  }

  json() {
    return JSON.parse(this.text());
  }
}

export function response(status, { headers = {}, body = "" } = {}) {
  const lower = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), String(value)]);
  return new Response(status, Object.fromEntries(lower), toBytes(body));
}

response.text = (status, text, headers = {}) =>
  response(status, { headers: { "content-type": "text/plain; charset=utf-8", ...headers }, body: text });

response.json = (status, value, headers = {}) =>
  response(status, { headers: { "content-type": "application/json", ...headers }, body: JSON.stringify(value) });
