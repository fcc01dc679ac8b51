// Is patient with a busy service, gives up what can never work, and leaves the rest to the processor's policy.

import { config, decision, errorHandler, log } from "millrace";

export default errorHandler((failure) => {
  if (failure.class === "busy") {
    const wait = Number(config.get("wait_ms") ?? 1000);
    return decision.retryAfter(Math.min(wait * 2 ** (failure.attempt - 1), 60_000));
  }
  if (failure.message.header("test") !== null) {
    log.info(`dropped the test message at offset ${failure.message.offset}`);
    return decision.drop("a test message");
  }
  return failure.cause === "reject" ? decision.deadLetter() : decision.policy();
});
