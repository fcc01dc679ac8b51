package millrace;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import org.teavm.backend.wasm.runtime.WasmSupport;
import org.teavm.interop.Address;
import org.teavm.interop.Export;
import org.teavm.interop.Unmanaged;
import org.teavm.runtime.Allocator;
import org.teavm.runtime.Mutator;

/** What the host calls: the canonical ABI of the contract's exports. The lists of a call's arguments are in memory that {@link Memory} handed out. */
final class Abi {
    private static final String PROCESS = "millrace:broker/message-processor@0.1.1#process";
    private static final String ASSIGN = "millrace:broker/partitioner@0.1.1#assign";
    private static final String HANDLE = "millrace:broker/error-handler@0.1.1#handle";

    static Millrace.BatchProcessor processor;
    static Millrace.Partitioner partitioner;
    static Millrace.ErrorHandler errorHandler;

    private Abi() {
    }

    /** Runs class initialisers and `main` when the component is instantiated. */
    @Export(name = "_initialize")
    public static void initialize() {
        // TeaVM 0.10.2 writes the number of static roots in eight bytes and reads four, so the collector would never mark the last root.
        Address roots = Mutator.getStaticGCRoots();
        Allocator.moveMemoryBlock(roots.add(8), roots.add(4), roots.getInt() * 4);
        // Its own `_start` asks for the command line, and makes an array of a wrong size where there is none.
        WasmSupport.runWithArgs(new String[0]);
    }

    @Export(name = PROCESS)
    public static int process(int arguments) {
        try {
            Batch batch = new Batch(Address.fromInt(arguments));
            return answered(batch).toInt();
        } catch (Throwable error) {
            throw said(error);
        }
    }

    private static Address answered(Batch batch) {
        if (processor == null) {
            throw new IllegalStateException("the module has no processor: call Millrace.processor in main");
        }
        try {
            return batch.answer.of(processor.process(batch));
        } catch (UnavailableException outage) {
            return Answer.unavailable(outage.getMessage());
        } catch (StateFullException full) {
            return batch.answer.of(Collections.nCopies(batch.size(), full(full)));
        }
    }

    /** The outcomes of a function of one message. */
    static List<Outcome> each(Batch batch, Millrace.Processor process) {
        List<Outcome> outcomes = new ArrayList<>(batch.size());
        for (int index = 0; index < batch.size(); index++) {
            try {
                outcomes.add(process.process(batch.message(index)));
            } catch (StateFullException full) {
                outcomes.add(full(full));
            }
        }
        return outcomes;
    }

    private static Outcome full(StateFullException full) {
        return Outcome.retry("state-full", full.getMessage());
    }

    @Unmanaged
    @Export(name = "cabi_post_" + PROCESS)
    public static void processed(int answer) {
        Memory.reset();
    }

    @Export(name = ASSIGN)
    public static int assign(int arguments) {
        try {
            if (partitioner == null) {
                throw new IllegalStateException("the module has no partitioner: call Millrace.partitioner in main");
            }
            Address at = Address.fromInt(arguments);
            int partitions = at.getInt();
            Batch batch = new Batch(at.add(4));
            int[] chosen = new int[batch.size()];
            for (int index = 0; index < chosen.length; index++) {
                chosen[index] = partitioner.choose(batch.message(index), partitions);
            }
            Address result = Memory.zeros(8);
            Memory.list(result, Memory.copy(chosen, chosen.length), chosen.length);
            return result.toInt();
        } catch (Throwable error) {
            throw said(error);
        }
    }

    @Unmanaged
    @Export(name = "cabi_post_" + ASSIGN)
    public static void assigned(int result) {
        Memory.reset();
    }

    @Export(name = HANDLE)
    public static int handle(int arguments) {
        try {
            if (errorHandler == null) {
                throw new IllegalStateException("the module has no error handler: call Millrace.errorHandler in main");
            }
            Address at = Address.fromInt(arguments);
            Address failures = at.getAddress();
            int count = at.add(4).getInt();
            Batch batch = new Batch(at.add(8));
            Address decisions = Memory.zeros(16 * count);
            for (int index = 0; index < count; index++) {
                Decision decision = errorHandler.decide(new Failure(batch, failures.add(Failure.BYTES * index)));
                if (decision == null) {
                    throw new IllegalStateException("the decision about failure " + index + " is null: return one of Decision");
                }
                Address field = decisions.add(16 * index);
                field.putByte((byte) decision.kind);
                if (decision.kind == Decision.DROP) {
                    Memory.text(field.add(8), decision.reason);
                } else {
                    field.add(8).putLong(decision.delayMs);
                }
            }
            Address result = Memory.zeros(8);
            Memory.list(result, decisions, count);
            return result.toInt();
        } catch (Throwable error) {
            throw said(error);
        }
    }

    @Unmanaged
    @Export(name = "cabi_post_" + HANDLE)
    public static void handled(int result) {
        Memory.reset();
    }

    /** An exception that nobody caught is logged: a trap tells the host nothing but "unreachable". */
    private static RuntimeException said(Throwable error) {
        Log.error(error.toString());
        return error instanceof RuntimeException ? (RuntimeException) error : new IllegalStateException(error);
    }
}
