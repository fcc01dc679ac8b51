package millrace;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** A message. It never changes: its bytes are copied each time they are asked for, so ask once. It lives until the call ends. */
public final class Message {
    private final Batch batch;
    private final int index;

    Message(Batch batch, int index) {
        this.batch = batch;
        this.index = index;
    }

    /** Its index in the batch, from 0. */
    public int index() {
        return index;
    }

    /** The key; null if it has none. */
    public byte[] key() {
        return batch.span(Batch.KEYS, index);
    }

    /** The value; null if it has none, which is not the same as an empty one. */
    public byte[] value() {
        return batch.span(Batch.VALUES, index);
    }

    /** The key as text; null if it has none. Bytes that are not UTF-8 become U+FFFD. */
    public String keyText() {
        return text(key());
    }

    /** The value as text; null if it has none. Bytes that are not UTF-8 become U+FFFD. */
    public String text() {
        return text(value());
    }

    /** The value of the last header with this name; null if there is none. */
    public byte[] header(String name) {
        byte[] wanted = Memory.utf8(name);
        for (int header = batch.headersUpTo(index) - 1; header >= batch.headersBefore(index); header--) {
            if (Arrays.equals(batch.span(Batch.HEADERS, 2 * header), wanted)) {
                return batch.span(Batch.HEADERS, 2 * header + 1);
            }
        }
        return null;
    }

    /** The same as text. */
    public String headerText(String name) {
        return text(header(name));
    }

    /** All headers, in order. */
    public List<Header> headers() {
        List<Header> headers = new ArrayList<>();
        for (int header = batch.headersBefore(index); header < batch.headersUpTo(index); header++) {
            headers.add(new Header(text(batch.span(Batch.HEADERS, 2 * header)), batch.span(Batch.HEADERS, 2 * header + 1)));
        }
        return headers;
    }

    /** A name and a value, which is null if there is none. */
    public static final class Header {
        /** The name. */
        public final String name;
        /** The value. */
        public final byte[] value;

        Header(String name, byte[] value) {
            this.name = name;
            this.value = value;
        }
    }

    /** Its offset in the partition. */
    public long offset() {
        return batch.column(Batch.OFFSETS).add(8 * index).getLong();
    }

    /** The timestamp, in milliseconds since the Unix epoch. */
    public long timestamp() {
        return batch.column(Batch.TIMESTAMPS).add(8 * index).getLong();
    }

    /** The number of this attempt, from 1, including attempts of earlier revisions. */
    public int attempt() {
        return batch.number(Batch.ATTEMPTS, index);
    }

    /** The topic that it comes from. */
    public String topic() {
        return batch.topic();
    }

    /** The partition that it comes from. */
    public int partition() {
        return batch.partition();
    }

    /** Begins an output: a copy of the message. Change it, and send it with {@link Outcome#emit}. */
    public Output output() {
        return new Output(batch, index);
    }

    private static String text(byte[] bytes) {
        return bytes == null ? null : new String(bytes, StandardCharsets.UTF_8);
    }
}
