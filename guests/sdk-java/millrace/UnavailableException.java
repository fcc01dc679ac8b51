package millrace;

/** Throw this if something that the whole processor needs is down: the host tries the batch again later, without spending attempts. */
public final class UnavailableException extends RuntimeException {
    /** With the reason, for people. */
    public UnavailableException(String reason) {
        super(reason);
    }
}
