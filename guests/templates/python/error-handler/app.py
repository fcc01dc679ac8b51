"""Is patient with a busy service, gives up what can never work, and leaves the rest to the processor's policy."""

from millrace import Cause, Decision, Failure, config, decision, error_handler, log


@error_handler
def decide(failure: Failure) -> Decision:
    if failure.class_ == "busy":
        wait_ms = int(config.get("wait_ms", "1000"))
        return decision.retry_after(min(wait_ms * 2 ** (failure.attempt - 1), 60_000))
    if failure.message.header("test") is not None:
        log.info(f"dropped the test message at offset {failure.message.offset}")
        return decision.drop("a test message")
    if failure.cause is Cause.REJECT:
        return decision.dead_letter()
    return decision.policy()
