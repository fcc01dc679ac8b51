package millrace;

import java.util.List;

/**
 * What a module's `main` calls: it makes a function the module's processor, partitioner or error handler.
 *
 * <pre>
 * public final class Main {
 *     public static void main(String[] arguments) {
 *         Millrace.processor(Main::greet);
 *     }
 *
 *     static Outcome greet(Message message) {
 *         if (message.value() == null) {
 *             return Outcome.reject("no-value", "there is nobody to greet");
 *         }
 *         return Outcome.emit(message.output().value("hello, " + message.text()));
 *     }
 * }
 * </pre>
 *
 * The host passes messages in batches, in columns, which this package hides. An exception that nobody catches is a trap: it is logged, the host
 * finds the failing message, tries it again, and finally makes it a dead letter. `main` runs once, when the component is instantiated; nothing
 * of the host may be called in it.
 */
public final class Millrace {
    private Millrace() {
    }

    /** A function of a message. */
    public interface Processor {
        /** Decides what becomes of a message. */
        Outcome process(Message message);
    }

    /** A function of a batch. */
    public interface BatchProcessor {
        /** Returns one outcome for each message, in order. */
        List<Outcome> process(Batch batch);
    }

    /** A function that chooses partitions. */
    public interface Partitioner {
        /** Returns the partition of a message: at least 0, and less than the number of partitions. */
        int choose(Message message, int partitions);
    }

    /** A function that decides about failures. */
    public interface ErrorHandler {
        /** Decides what the host does with a failed message. */
        Decision decide(Failure failure);
    }

    /**
     * Makes this function the module's message processor. If it throws a {@link StateFullException}, its message is retried with the class
     * `state-full`; if it throws an {@link UnavailableException}, the whole batch waits.
     */
    public static void processor(Processor process) {
        Abi.processor = batch -> Abi.each(batch, process);
    }

    /** Makes this function the module's message processor, for work that is cheaper once per batch. The same exceptions then concern all its messages. */
    public static void batchProcessor(BatchProcessor process) {
        Abi.processor = process;
    }

    /** Makes this function the module's partitioner. */
    public static void partitioner(Partitioner choose) {
        Abi.partitioner = choose;
    }

    /** Makes this function the module's error handler. */
    public static void errorHandler(ErrorHandler decide) {
        Abi.errorHandler = decide;
    }
}
