package millrace;

/** An output of a message: the message, with some parts changed. What it is given is copied at once. Made by {@link Message#output}. */
public final class Output {
    static final long NO_TIME = -1;

    final Batch batch;
    final int source;
    boolean hasKey;
    boolean hasValue;
    int keyStart;
    int keyLength;
    int valueStart;
    int valueLength;
    /** Four numbers for each header; null: those of the message. */
    Ints headers;
    int topic = Memory.NONE;
    int partition = Memory.NONE;
    long timestamp = NO_TIME;
    long deliverAt = NO_TIME;

    Output(Batch batch, int source) {
        this.batch = batch;
        this.source = source;
    }

    /** Replaces the key; null removes it. */
    public Output key(byte[] key) {
        hasKey = true;
        keyStart = batch.answer.place(key);
        keyLength = length(key);
        return this;
    }

    /** Replaces the key by text. */
    public Output key(String key) {
        return key(utf8(key));
    }

    /** Replaces the value; null removes it. */
    public Output value(byte[] value) {
        hasValue = true;
        valueStart = batch.answer.place(value);
        valueLength = length(value);
        return this;
    }

    /** Replaces the value by text. */
    public Output value(String value) {
        return value(utf8(value));
    }

    /** Removes the key. */
    public Output withoutKey() {
        return key((byte[]) null);
    }

    /** Removes the value. */
    public Output withoutValue() {
        return value((byte[]) null);
    }

    /** Adds a header to those that the output has, which are at first the message's. Names that begin with `millrace-` are refused. */
    public Output header(String name, byte[] value) {
        if (headers == null) {
            headers = new Ints();
            int before = batch.headersBefore(source);
            headers.addAll(batch.column(Batch.HEADERS).add(16 * before), 4 * (batch.headersUpTo(source) - before));
        }
        byte[] named = utf8(name);
        headers.add(batch.answer.place(named));
        headers.add(named.length);
        headers.add(batch.answer.place(value));
        headers.add(length(value));
        return this;
    }

    /** Adds a header with text. */
    public Output header(String name, String value) {
        return header(name, utf8(value));
    }

    /** Removes all headers that the output has so far. */
    public Output withoutHeaders() {
        headers = new Ints();
        return this;
    }

    /** Sends the output to this topic instead of the processor's default output. The processor needs a grant for it. */
    public Output topic(String name) {
        topic = batch.answer.topic(name);
        return this;
    }

    /** Sends the output to this partition instead of letting the topic's partitioner choose. */
    public Output partition(int partition) {
        this.partition = partition;
        return this;
    }

    /** Replaces the timestamp, in milliseconds since the Unix epoch. */
    public Output timestamp(long ms) {
        timestamp = ms;
        return this;
    }

    /** Delays it until this time, in milliseconds since the Unix epoch; a time in the past means at once. */
    public Output deliverAt(long ms) {
        deliverAt = ms;
        return this;
    }

    private static byte[] utf8(String text) {
        return text == null ? null : Memory.utf8(text);
    }

    private static int length(byte[] bytes) {
        return bytes == null ? Memory.NONE : bytes.length;
    }
}
