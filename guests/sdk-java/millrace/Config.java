package millrace;

import java.util.LinkedHashMap;
import java.util.Map;
import org.teavm.interop.Address;
import org.teavm.interop.Import;

/** Settings of the processor, as operators gave them. A change reaches the processor with its next call. */
public final class Config {
    private static final String MODULE = "millrace:broker/config@0.1.1";

    private Config() {
    }

    /** The value of a key; null if it has none. */
    public static String get(String key) {
        byte[] name = Memory.utf8(key);
        Address result = Memory.zeros(12);
        get(Memory.copy(name), name.length, result);
        return result.getByte() == 0 ? null : Memory.text(result.add(4));
    }

    /** The value of a key; the default if it has none. */
    public static String get(String key, String otherwise) {
        String value = get(key);
        return value == null ? otherwise : value;
    }

    /** All keys and their values, in ascending order of keys. */
    public static Map<String, String> all() {
        Address result = Memory.zeros(8);
        all(result);
        Map<String, String> all = new LinkedHashMap<>();
        Address pairs = result.getAddress();
        for (int index = 0; index < result.add(4).getInt(); index++) {
            all.put(Memory.text(pairs.add(16 * index)), Memory.text(pairs.add(16 * index + 8)));
        }
        return all;
    }

    @Import(module = MODULE, name = "config.get")
    private static native void get(Address key, int length, Address result);

    @Import(module = MODULE, name = "config.all")
    private static native void all(Address result);
}
