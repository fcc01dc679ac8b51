package millrace;

import java.util.List;

/** What becomes of a message. */
public final class Outcome {
    static final int ACK = 0;
    static final int EMIT = 1;
    static final int RETRY = 2;
    static final int REJECT = 3;

    /** The delay of a retry that leaves it to the policy. */
    static final long NO_DELAY = -1;

    private static final Outcome ACKED = new Outcome(ACK, new Output[0], NO_DELAY, null, null);

    final int kind;
    final Output[] outputs;
    final long delayMs;
    final String group;
    final String reason;

    private Outcome(int kind, Output[] outputs, long delayMs, String group, String reason) {
        this.kind = kind;
        this.outputs = outputs;
        this.delayMs = delayMs;
        this.group = group;
        this.reason = reason;
    }

    /** Done, without outputs. */
    public static Outcome ack() {
        return ACKED;
    }

    /** Done; sends these outputs, in order. Without outputs it is the same as {@link #ack}. */
    public static Outcome emit(Output... outputs) {
        return outputs.length == 0 ? ACKED : new Outcome(EMIT, outputs.clone(), NO_DELAY, null, null);
    }

    /** The same with a list. */
    public static Outcome emit(List<Output> outputs) {
        return emit(outputs.toArray(new Output[0]));
    }

    /**
     * Tries the message again later, after the delay of the processor's policy.
     *
     * @param group the class: a short word by which failures are grouped
     * @param reason an explanation for people
     */
    public static Outcome retry(String group, String reason) {
        return new Outcome(RETRY, ACKED.outputs, NO_DELAY, group, reason);
    }

    /** Tries the message again after this many milliseconds. Throws an IllegalArgumentException if they are less than 0. */
    public static Outcome retryAfter(long delayMs, String group, String reason) {
        return new Outcome(RETRY, ACKED.outputs, Decision.checked(delayMs), group, reason);
    }

    /** Gives the message up: it becomes a dead letter. */
    public static Outcome reject(String group, String reason) {
        return new Outcome(REJECT, ACKED.outputs, NO_DELAY, group, reason);
    }
}
