package app;

import millrace.Decision;
import millrace.Failure;
import millrace.Millrace;

/** Waits longer after each failure of a busy service, gives rejected messages up at once, and drops those of tests. */
public final class Main {
    private static final long DELAY_FIRST_MS = 100;
    private static final long DELAY_MAX_MS = 60_000;

    private Main() {
    }

    public static void main(String[] arguments) {
        Millrace.errorHandler(Main::decide);
    }

    private static Decision decide(Failure failure) {
        switch (failure.group()) {
            case "busy":
                return Decision.retryAfter(delayMs(failure.attempt()));
            case "test-order":
                return Decision.drop("made by a test");
            default:
                return failure.cause() == Failure.Cause.REJECT ? Decision.deadLetter() : Decision.policy();
        }
    }

    /** The delay after an attempt: it doubles with each one, up to a maximum. */
    private static long delayMs(int attempt) {
        long ms = DELAY_FIRST_MS;
        for (; attempt > 1 && ms < DELAY_MAX_MS; attempt--) {
            ms *= 2;
        }
        return Math.min(ms, DELAY_MAX_MS);
    }
}
