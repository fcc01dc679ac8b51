package millrace;

import java.util.ArrayList;
import java.util.List;
import org.teavm.interop.Address;
import org.teavm.runtime.Allocator;

/**
 * The answer to a batch, in columns (wit/types.wit). A column that no output changes stays empty, which means "as in the input". New bytes
 * leave the Java heap at once: a batch may be larger than the heap.
 */
final class Answer {
    private static final int BYTES = 104;
    private static final int DETAIL_BYTES = 40;

    private final Batch batch;
    private Address data;
    private int dataBytes;
    private int dataRoom;
    private final List<String> topicNames = new ArrayList<>();
    private final Ints sources = new Ints();
    private final Ints topics = new Ints();
    private final Ints partitions = new Ints();
    private final Ints keys = new Ints();
    private final Ints values = new Ints();
    private final Ints headerEnds = new Ints();
    private final Ints headers = new Ints();
    private long[] times;

    Answer(Batch batch) {
        this.batch = batch;
    }

    /** Where these bytes begin, which are copied behind those of the batch. */
    int place(byte[] bytes) {
        if (bytes == null) {
            return 0;
        }
        if (dataBytes + bytes.length > dataRoom) {
            // Most handlers return about as many bytes as they get.
            dataRoom = Math.max(Math.max(2 * dataRoom, batch.dataBytes() + 16 * batch.size()), dataBytes + bytes.length);
            Address larger = Memory.allocate(dataRoom, 1);
            if (dataBytes > 0) {
                Allocator.moveMemoryBlock(data, larger, dataBytes);
            }
            data = larger;
        }
        Memory.write(bytes, data.add(dataBytes));
        int start = batch.dataBytes() + dataBytes;
        dataBytes += bytes.length;
        return start;
    }

    int topic(String name) {
        int known = topicNames.indexOf(name);
        if (known < 0) {
            known = topicNames.size();
            topicNames.add(name);
        }
        return known;
    }

    /** Writes the answer; returns where it is. */
    Address of(List<Outcome> outcomes) {
        int messages = batch.size();
        if (outcomes.size() != messages) {
            throw new IllegalStateException(outcomes.size() + " outcomes for " + messages + " messages: return one for each");
        }
        byte[] kinds = new byte[messages];
        int details = 0;
        for (int message = 0; message < messages; message++) {
            Outcome outcome = outcomes.get(message);
            if (outcome == null) {
                throw new IllegalStateException("the outcome of message " + message + " is null: return one of Outcome");
            }
            kinds[message] = (byte) outcome.kind;
            for (Output output : outcome.outputs) {
                emit(output, message);
            }
            if (outcome.kind == Outcome.RETRY || outcome.kind == Outcome.REJECT) {
                details++;
            }
        }
        Address answer = Memory.zeros(BYTES);
        Memory.list(answer.add(4), Memory.copy(kinds), messages);
        Memory.list(answer.add(12), detailsOf(outcomes, details), details);
        Memory.list(answer.add(20), data == null ? Address.fromInt(0) : data, dataBytes);
        sources.put(answer.add(28));
        Address names = Memory.allocate(8 * topicNames.size(), 4);
        for (int index = 0; index < topicNames.size(); index++) {
            Memory.text(names.add(8 * index), topicNames.get(index));
        }
        Memory.list(answer.add(36), names, topicNames.size());
        topics.put(answer.add(44));
        partitions.put(answer.add(52));
        keys.put(answer.add(60));
        values.put(answer.add(68));
        headerEnds.put(answer.add(76));
        headers.put(answer.add(84));
        int timesCount = times == null ? 0 : 2 * sources.count;
        Memory.list(answer.add(92), Memory.copy(times, timesCount), timesCount);
        return answer;
    }

    private static Address detailsOf(List<Outcome> outcomes, int count) {
        Address details = Memory.zeros(DETAIL_BYTES * count);
        Address detail = details;
        for (int message = 0; message < outcomes.size(); message++) {
            Outcome outcome = outcomes.get(message);
            if (outcome.kind != Outcome.RETRY && outcome.kind != Outcome.REJECT) {
                continue;
            }
            detail.putInt(message);
            if (outcome.delayMs != Outcome.NO_DELAY) {
                detail.add(8).putByte((byte) 1);
                detail.add(16).putLong(outcome.delayMs);
            }
            Memory.text(detail.add(24), outcome.group);
            Memory.text(detail.add(32), outcome.reason);
            detail = detail.add(DETAIL_BYTES);
        }
        return details;
    }

    /** An outage instead of an answer. */
    static Address unavailable(String reason) {
        Address answer = Memory.zeros(BYTES);
        answer.putByte((byte) 1);
        Memory.text(answer.add(8), reason);
        return answer;
    }

    private void emit(Output output, int message) {
        if (output.batch != batch || output.source != message) {
            throw new IllegalStateException("an output belongs to the message that it was made from");
        }
        span(keys, Batch.KEYS, output.hasKey, output.keyStart, output.keyLength, message);
        span(values, Batch.VALUES, output.hasValue, output.valueStart, output.valueLength, message);
        number(topics, output.topic);
        number(partitions, output.partition);
        addHeaders(output);
        if (times != null || output.timestamp != Output.NO_TIME || output.deliverAt != Output.NO_TIME) {
            addTimes(output);
        }
        sources.add(message);
    }

    private void span(Ints column, int input, boolean isGiven, int start, int length, int message) {
        if (isGiven) {
            if (column.count == 0) {
                for (int index = 0; index < sources.count; index++) {
                    column.addAll(batch.column(input).add(8 * sources.numbers[index]), 2);
                }
            }
            column.add(start);
            column.add(length);
        } else if (column.count > 0) {
            column.addAll(batch.column(input).add(8 * message), 2);
        }
    }

    private void number(Ints column, int given) {
        if (given == Memory.NONE && column.count == 0) {
            return;
        }
        while (column.count < sources.count) {
            column.add(Memory.NONE);
        }
        column.add(given);
    }

    private void addHeaders(Output output) {
        if (output.headers == null && headerEnds.count == 0) {
            return;
        }
        while (headerEnds.count < sources.count) {
            keepHeaders(sources.numbers[headerEnds.count]);
        }
        if (output.headers == null) {
            keepHeaders(output.source);
        } else {
            headers.addAll(output.headers);
            headerEnds.add(headers.count / 4);
        }
    }

    private void keepHeaders(int message) {
        int before = batch.headersBefore(message);
        headers.addAll(batch.column(Batch.HEADERS).add(16 * before), 4 * (batch.headersUpTo(message) - before));
        headerEnds.add(headers.count / 4);
    }

    private void addTimes(Output output) {
        int at = 2 * sources.count;
        if (times == null || times.length < at + 2) {
            long[] larger = new long[Math.max(2 * at, 16)];
            for (int index = 0; index < at; index++) {
                larger[index] = times == null ? Output.NO_TIME : times[index];
            }
            times = larger;
        }
        times[at] = output.timestamp;
        times[at + 1] = output.deliverAt;
    }
}
