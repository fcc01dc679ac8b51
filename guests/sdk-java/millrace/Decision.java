package millrace;

/** What the host does with a failed message. */
public final class Decision {
    static final int RETRY_AFTER = 0;
    static final int DEAD_LETTER = 1;
    static final int DROP = 2;
    static final int POLICY = 3;

    final int kind;
    final long delayMs;
    final String reason;

    private Decision(int kind, long delayMs, String reason) {
        this.kind = kind;
        this.delayMs = delayMs;
        this.reason = reason;
    }

    /** Tries it again after this many milliseconds. Throws an IllegalArgumentException if they are less than 0. */
    public static Decision retryAfter(long delayMs) {
        return new Decision(RETRY_AFTER, checked(delayMs), null);
    }

    /** Gives it up: it becomes a dead letter. */
    public static Decision deadLetter() {
        return new Decision(DEAD_LETTER, 0, null);
    }

    /** Drops it; the host counts it and logs the reason. */
    public static Decision drop(String reason) {
        return new Decision(DROP, 0, reason);
    }

    /** Does what the processor's retry policy says. */
    public static Decision policy() {
        return new Decision(POLICY, 0, null);
    }

    static long checked(long delayMs) {
        if (delayMs < 0) {
            throw new IllegalArgumentException(delayMs + " is no delay: give milliseconds, 0 or more");
        }
        return delayMs;
    }
}
