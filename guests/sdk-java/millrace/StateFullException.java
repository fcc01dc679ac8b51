package millrace;

/** There is no room for more state, and the call wrote nothing. Its message says which bound was reached. */
public final class StateFullException extends RuntimeException {
    StateFullException(String reason) {
        super(reason);
    }
}
