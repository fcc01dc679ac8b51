// Makes a handler the export of a component. Called by the entry that build.mjs writes.

import { setHost } from "./host.js";
import { give, readRequest } from "./wasi.js";
import { Unavailable } from "./outcomes.js";

/** The exported interface of a handler of this kind, with the imported interfaces that it may use. */
export function bind(handler, kind, interfaces) {
  if (typeof handler?.call !== "function" || handler.kind === undefined) {
    throw new TypeError(`the source has no handler: write \`export default ${MAKERS[kind]}(…)\``);
  }
  if (handler.kind !== kind) {
    throw new TypeError(`millrace.toml says kind = "${kind}", and the source exports a ${handler.kind}: write \`export default ${MAKERS[kind]}(…)\``);
  }
  setHost(interfaces);
  return EXPORTS[kind](handler.call);
}

const MAKERS = { processor: "processor", partitioner: "partitioner", "error-handler": "errorHandler", http: "http" };

const EXPORTS = {
  processor: (call) => ({
    process(batch) {
      try {
        return call(batch);
      } catch (error) {
        // Thrown values that are no errors are the error of the answer; errors are traps.
        if (error instanceof Unavailable) throw { tag: "unavailable", val: error.message };
        throw error;
      }
    },
  }),
  partitioner: (call) => ({ assign: call }),
  "error-handler": (call) => ({ handle: call }),
  http: (call) => ({ handle: (request, out) => give(call(readRequest(request)), out) }),
};
