package millrace;

import org.teavm.interop.Address;
import org.teavm.interop.Import;

/** Lines of the processor's log. The host cuts long lines, and drops and counts lines beyond its rate limit. */
public final class Log {
    private Log() {
    }

    /** Writes a line of level error. */
    public static void error(String line) {
        write(0, line);
    }

    /** Writes a line of level warn. */
    public static void warn(String line) {
        write(1, line);
    }

    /** Writes a line of level info. */
    public static void info(String line) {
        write(2, line);
    }

    /** Writes a line of level debug. */
    public static void debug(String line) {
        write(3, line);
    }

    private static void write(int level, String line) {
        byte[] bytes = Memory.utf8(line);
        log(level, Memory.copy(bytes), bytes.length);
    }

    @Import(module = "millrace:broker/log@0.1.1", name = "log")
    private static native void log(int level, Address line, int length);
}
