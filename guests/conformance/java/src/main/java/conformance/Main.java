package conformance;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import millrace.Batch;
import millrace.Config;
import millrace.Log;
import millrace.Message;
import millrace.Metrics;
import millrace.Millrace;
import millrace.Outcome;
import millrace.Output;
import millrace.State;

/** The processor of the conformance scenario (../../../../../../README.md), in Java. */
public final class Main {
    private Main() {
    }

    public static void main(String[] arguments) {
        Millrace.batchProcessor(Main::process);
    }

    private static List<Outcome> process(Batch batch) {
        byte[] suffix = Config.get("suffix", "").getBytes(StandardCharsets.UTF_8);
        long[] counts = State.addEach(batch);
        List<Outcome> outcomes = new ArrayList<>(batch.size());
        for (Message message : batch) {
            outcomes.add(decide(message, suffix, counts[message.index()]));
        }
        Metrics.add("handled", batch.size(), Map.of("language", "java"));
        return outcomes;
    }

    private static Outcome decide(Message message, byte[] suffix, long count) {
        byte[] value = message.value();
        if (begins(value, "retry")) {
            return Outcome.retry("later", "told to wait");
        }
        if (begins(value, "reject")) {
            Log.warn("rejected the message at offset " + message.offset());
            return Outcome.reject("bad", "told to reject");
        }
        if (begins(value, "trap")) {
            throw new IllegalStateException("told to trap");
        }
        Output output = message.output().header("count", Long.toString(count));
        if (value != null) {
            output.value(upper(value, suffix));
        }
        return Outcome.emit(output);
    }

    private static boolean begins(byte[] value, String word) {
        if (value == null || value.length < word.length()) {
            return false;
        }
        for (int at = 0; at < word.length(); at++) {
            if (value[at] != word.charAt(at)) {
                return false;
            }
        }
        return true;
    }

    private static byte[] upper(byte[] value, byte[] suffix) {
        byte[] upper = new byte[value.length + suffix.length];
        for (int at = 0; at < value.length; at++) {
            byte letter = value[at];
            upper[at] = letter >= 'a' && letter <= 'z' ? (byte) (letter - 'a' + 'A') : letter;
        }
        System.arraycopy(suffix, 0, upper, value.length, suffix.length);
        return upper;
    }
}
