// The SDK's public face; its documentation is in millrace.d.ts, which editors and tsc read.

export { processor, processBatch, partitioner, errorHandler } from "./lib/handlers.js";
export {
  ack,
  emit,
  retry,
  retryAfter,
  reject,
  Unavailable,
  decision,
} from "./lib/outcomes.js";
export { http, Request, Response, response } from "./lib/http.js";
export { producer, SendError } from "./lib/producer.js";
export { views, ViewError } from "./lib/views.js";
export { log } from "./lib/log.js";
export { config } from "./lib/config.js";
export { secrets } from "./lib/secrets.js";
export { metrics } from "./lib/metrics.js";
export { state, StateFull, Writes } from "./lib/state.js";
export { utf8, latin1 } from "./lib/text.js";
