package millrace;

import java.util.Iterator;
import java.util.NoSuchElementException;
import org.teavm.interop.Address;

/** Messages of one partition, in order. It lives until the call ends. */
public final class Batch implements Iterable<Message> {
    // Where lists stand in the batch, in bytes (wit/types.wit).
    static final int TOPIC = 0;
    static final int PARTITION = 8;
    static final int DATA = 12;
    static final int OFFSETS = 20;
    static final int TIMESTAMPS = 28;
    static final int ATTEMPTS = 36;
    static final int KEYS = 44;
    static final int VALUES = 52;
    static final int HEADER_ENDS = 60;
    static final int HEADERS = 68;

    final Address columns;
    final Answer answer;
    private final int size;

    Batch(Address columns) {
        this.columns = columns;
        size = columns.add(OFFSETS + 4).getInt();
        answer = new Answer(this);
    }

    /** The number of messages. */
    public int size() {
        return size;
    }

    /** The message at this index, from 0. Throws an IndexOutOfBoundsException if there is none. */
    public Message message(int index) {
        if (index < 0 || index >= size) {
            throw new IndexOutOfBoundsException("a batch of " + size + " has no message " + index);
        }
        return new Message(this, index);
    }

    /** The topic that the messages come from. */
    public String topic() {
        return Memory.text(columns.add(TOPIC));
    }

    /** The partition that the messages come from. */
    public int partition() {
        return columns.add(PARTITION).getInt();
    }

    /** All messages, in order. */
    @Override
    public Iterator<Message> iterator() {
        return new Iterator<Message>() {
            private int next;

            @Override
            public boolean hasNext() {
                return next < size;
            }

            @Override
            public Message next() {
                if (next == size) {
                    throw new NoSuchElementException();
                }
                return new Message(Batch.this, next++);
            }
        };
    }

    /** The elements of a list. */
    Address column(int list) {
        return columns.add(list).getAddress();
    }

    int dataBytes() {
        return columns.add(DATA + 4).getInt();
    }

    /** A number of a column of 32 bits. */
    int number(int list, int index) {
        return column(list).add(4 * index).getInt();
    }

    byte[] span(int list, int index) {
        return Memory.span(column(DATA), column(list), index);
    }

    /** The number of headers before those of this message. */
    int headersBefore(int index) {
        return index == 0 ? 0 : number(HEADER_ENDS, index - 1);
    }

    int headersUpTo(int index) {
        return number(HEADER_ENDS, index);
    }
}
