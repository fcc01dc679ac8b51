package millrace;

import java.util.Map;
import org.teavm.interop.Address;
import org.teavm.interop.Import;

/**
 * The component's own metrics, on the host's `/metrics` as `guest_NAME` with the label `processor`. Names of metrics and labels have 1 to 60
 * of the characters a-z, 0-9 and `_` and begin with a letter; a wrong one is a trap. A name is of one kind only: the first use decides.
 */
public final class Metrics {
    private static final String MODULE = "millrace:broker/metrics@0.1.1";

    private Metrics() {
    }

    /** Adds to a counter. Throws an IllegalArgumentException if the number is less than 0. */
    public static void add(String name, long delta, Map<String, String> labels) {
        if (delta < 0) {
            throw new IllegalArgumentException("a counter cannot grow by " + delta + ": give 0 or more");
        }
        byte[] text = Memory.utf8(name);
        add(Memory.copy(text), text.length, list(labels), labels.size(), delta);
    }

    /** Sets a gauge. */
    public static void set(String name, double value, Map<String, String> labels) {
        byte[] text = Memory.utf8(name);
        set(Memory.copy(text), text.length, list(labels), labels.size(), value);
    }

    /** Records a value in a histogram. */
    public static void observe(String name, double value, Map<String, String> labels) {
        byte[] text = Memory.utf8(name);
        observe(Memory.copy(text), text.length, list(labels), labels.size(), value);
    }

    private static Address list(Map<String, String> labels) {
        Address list = Memory.zeros(16 * labels.size());
        Address at = list;
        for (Map.Entry<String, String> label : labels.entrySet()) {
            Memory.text(at, label.getKey());
            Memory.text(at.add(8), label.getValue());
            at = at.add(16);
        }
        return list;
    }

    @Import(module = MODULE, name = "metrics.add")
    private static native void add(Address name, int length, Address labels, int count, long delta);

    @Import(module = MODULE, name = "metrics.set")
    private static native void set(Address name, int length, Address labels, int count, double value);

    @Import(module = MODULE, name = "metrics.observe")
    private static native void observe(Address name, int length, Address labels, int count, double value);
}
