package millrace;

import java.util.ArrayList;
import java.util.List;
import org.teavm.interop.Address;
import org.teavm.interop.Import;

/**
 * Keys and values of the processor, in the partition that its batch comes from. Writes are committed together with the batch's outputs, and
 * only if their message succeeds: each write names its message. If there is no room, writes throw a {@link StateFullException}.
 *
 * The cost is in the number of calls to the host, not of keys: {@link #getMany} and {@link #addEach} read and add for a whole batch at once,
 * or for 10,000 keys at once if there are more. If a later one of several such calls finds no room, what earlier ones wrote stays, each for its
 * message: retry or reject the messages, and their writes are discarded.
 */
// TeaVM allows a name of an import once, whatever its module is: `millrace build` removes what stands before the dot.
public final class State {
    private static final String MODULE = "millrace:broker/state@0.1.1";
    /** Keys that one call to the host accepts. */
    private static final int CALL_KEYS_MAX = 10_000;

    private State() {
    }

    /** A key and its value. */
    public static final class Entry {
        /** The key. */
        public final byte[] key;
        /** The value. */
        public final byte[] value;

        Entry(byte[] key, byte[] value) {
            this.key = key;
            this.value = value;
        }
    }

    /** The value of a key; null if it has none. */
    public static byte[] get(byte[] key) {
        return getMany(List.of(key)).get(0);
    }

    /** The values of these keys, in the same order; null for a key that has none. */
    public static List<byte[]> getMany(List<byte[]> keys) {
        List<byte[]> values = new ArrayList<>(keys.size());
        for (int start = 0; start < keys.size(); start += CALL_KEYS_MAX) {
            List<byte[]> some = keys.subList(start, Math.min(keys.size(), start + CALL_KEYS_MAX));
            int bytes = 0;
            for (byte[] key : some) {
                bytes = Math.addExact(bytes, key.length);
            }
            Address data = Memory.allocate(bytes, 1);
            Ints spans = new Ints();
            int end = 0;
            for (byte[] key : some) {
                Memory.write(key, data.add(end));
                spans.add(end);
                spans.add(key.length);
                end += key.length;
            }
            Address result = Memory.zeros(16);
            get(data, bytes, Memory.copy(spans.numbers, spans.count), spans.count, result);
            for (int index = 0; index < some.size(); index++) {
                values.add(Memory.span(result.getAddress(), result.add(8).getAddress(), index));
            }
        }
        return values;
    }

    /** Sets a key on behalf of this message. Throws a {@link StateFullException}. */
    public static void set(Message message, byte[] key, byte[] value) {
        write(message, key, value, 0, Memory.allocate(0, 8));
    }

    /** Sets a key, on behalf of this message, to a value that expires after this many milliseconds. Throws a {@link StateFullException}. */
    public static void setFor(Message message, byte[] key, byte[] value, long ttlMs) {
        write(message, key, value, 1, Memory.copy(new long[] {ttlMs}, 1));
    }

    /** Removes a key on behalf of this message. */
    public static void delete(Message message, byte[] key) {
        write(message, key, null, 0, Memory.allocate(0, 8));
    }

    private static void write(Message message, byte[] key, byte[] value, int ttls, Address ttl) {
        int length = value == null ? 0 : value.length;
        Address data = Memory.allocate(Math.addExact(key.length, length), 1);
        Memory.write(key, data);
        if (value != null) {
            Memory.write(value, data.add(key.length));
        }
        Address keys = Memory.copy(new int[] {0, key.length}, 2);
        Address values = Memory.copy(new int[] {key.length, value == null ? Memory.NONE : length}, 2);
        Address result = Memory.zeros(16);
        set(data, key.length + length, keys, 2, values, 2, ttl, ttls, of(message), 1, result);
        check(result);
    }

    /** Adds to the number of a key on behalf of this message, and returns the sum. An absent key counts as 0; a value that does not have eight
     * bytes is a trap. Throws a {@link StateFullException}. */
    public static long add(Message message, byte[] key, long delta) {
        Address result = Memory.zeros(16);
        Address keys = Memory.copy(new int[] {0, key.length}, 2);
        add(Memory.copy(key), key.length, keys, 2, Memory.copy(new long[] {delta}, 1), 1, Memory.allocate(0, 8), 0, of(message), 1, result);
        check(result);
        return result.add(4).getAddress().getLong();
    }

    /** Each message of the batch adds 1 to the number of its own key, or of the empty key if it has none. Returns the sum after each message.
     * Throws a {@link StateFullException}. */
    public static long[] addEach(Batch batch) {
        int size = batch.size();
        long[] sums = new long[size];
        Address data = batch.column(Batch.DATA);
        for (int start = 0; start < size; start += CALL_KEYS_MAX) {
            int count = Math.min(size - start, CALL_KEYS_MAX);
            int[] spans = new int[2 * count];
            int[] messages = new int[count];
            for (int index = 0; index < count; index++) {
                Address span = batch.column(Batch.KEYS).add(8 * (start + index));
                if (span.add(4).getInt() != Memory.NONE) {
                    spans[2 * index] = span.getInt();
                    spans[2 * index + 1] = span.add(4).getInt();
                }
                messages[index] = start + index;
            }
            Address result = Memory.zeros(16);
            Address none = Memory.allocate(0, 8);
            Address keys = Memory.copy(spans, spans.length);
            add(data, batch.dataBytes(), keys, spans.length, none, 0, none, 0, Memory.copy(messages, count), count, result);
            check(result);
            Address found = result.add(4).getAddress();
            for (int index = 0; index < count; index++) {
                sums[start + index] = found.add(8 * index).getLong();
            }
        }
        return sums;
    }

    /** The entries whose keys begin with the prefix and come after `after` (null: from the first), in ascending order of keys: at most `max`, or
     * fewer if they have many bytes. None is the end. */
    public static List<Entry> scan(byte[] prefix, byte[] after, int max) {
        Address result = Memory.zeros(24);
        byte[] from = after == null ? new byte[0] : after;
        scan(Memory.copy(prefix), prefix.length, after == null ? 0 : 1, Memory.copy(from), from.length, max, result);
        Address data = result.getAddress();
        List<Entry> entries = new ArrayList<>();
        for (int index = 0; index < result.add(12).getInt() / 2; index++) {
            entries.add(new Entry(Memory.span(data, result.add(8).getAddress(), index), Memory.span(data, result.add(16).getAddress(), index)));
        }
        return entries;
    }

    private static Address of(Message message) {
        return Memory.copy(new int[] {message.index()}, 1);
    }

    private static void check(Address result) {
        if (result.getByte() != 0) {
            throw new StateFullException(Memory.text(result.add(8)));
        }
    }

    @Import(module = MODULE, name = "state.get")
    private static native void get(Address data, int bytes, Address keys, int numbers, Address result);

    @Import(module = MODULE, name = "state.set")
    private static native void set(Address data, int bytes, Address keys, int keyNumbers, Address values, int valueNumbers, Address ttl, int ttls,
            Address messages, int count, Address result);

    @Import(module = MODULE, name = "state.add")
    private static native void add(Address data, int bytes, Address keys, int keyNumbers, Address deltas, int deltaCount, Address ttl, int ttls,
            Address messages, int count, Address result);

    @Import(module = MODULE, name = "state.scan")
    private static native void scan(Address prefix, int bytes, int hasAfter, Address after, int afterBytes, int max, Address result);
}
