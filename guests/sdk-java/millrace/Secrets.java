package millrace;

import java.nio.charset.StandardCharsets;
import org.teavm.interop.Address;
import org.teavm.interop.Import;

/** Secrets that the host keeps: the processor reads those that were granted to it by name. A new value reaches it with its next call. */
public final class Secrets {
    private Secrets() {
    }

    /**
     * The bytes of a secret. Throws an IllegalStateException if it is not granted, and an {@link UnavailableException} if the host has no value
     * for it now: an outage, which costs no attempt.
     */
    public static byte[] get(String name) {
        byte[] wanted = Memory.utf8(name);
        Address result = Memory.zeros(16);
        get(Memory.copy(wanted), wanted.length, result);
        if (result.getByte() == 0) {
            return Memory.bytes(result.add(4));
        }
        String why = Memory.text(result.add(8));
        if (result.add(4).getByte() == 0) {
            throw new IllegalStateException("the processor has no grant for the secret " + name + ": grant it when you deploy");
        }
        throw new UnavailableException("the secret " + name + " is unavailable: " + why);
    }

    /** The same as text. */
    public static String text(String name) {
        return new String(get(name), StandardCharsets.UTF_8);
    }

    @Import(module = "millrace:broker/secrets@0.1.1", name = "secrets.get")
    private static native void get(Address name, int length, Address result);
}
