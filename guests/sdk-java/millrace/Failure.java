package millrace;

import org.teavm.interop.Address;

/** A failed message. It lives until the call ends. */
public final class Failure {
    static final int BYTES = 48;

    /** How an attempt failed. */
    public enum Cause {
        /** The processor asked for a retry. */
        RETRY,
        /** The processor rejected the message. */
        REJECT,
        /** The processor trapped. */
        TRAP,
        /** The processor did not answer in time. */
        TIMEOUT,
        /** The processor ran out of memory. */
        MEMORY,
        /** The processor's answer was malformed. */
        BAD_ANSWER
    }

    private final Batch batch;
    private final Address facts;

    Failure(Batch batch, Address facts) {
        this.batch = batch;
        this.facts = facts;
    }

    /** The message. */
    public Message message() {
        return batch.message(facts.getInt());
    }

    /** The processor's revision that failed. */
    public int revision() {
        return facts.add(4).getInt();
    }

    /** The number of attempts so far, under all revisions, including this one. */
    public int attempt() {
        return facts.add(8).getInt();
    }

    /** When the first attempt failed, in milliseconds since the Unix epoch. */
    public long firstFailedAt() {
        return facts.add(16).getLong();
    }

    /** How this attempt failed. */
    public Cause cause() {
        return Cause.values()[facts.add(24).getByte()];
    }

    /** The class: the short word by which failures are grouped. */
    public String group() {
        return Memory.text(facts.add(28));
    }

    /** The explanation for people. */
    public String reason() {
        return Memory.text(facts.add(36));
    }
}
