package millrace;

import java.nio.charset.StandardCharsets;
import org.teavm.backend.wasm.WasmHeap;
import org.teavm.interop.Address;
import org.teavm.interop.Export;
import org.teavm.interop.Unmanaged;
import org.teavm.runtime.Allocator;

/**
 * Memory of one call, behind the Java heap: what the host writes and what it reads lies here, because the collector moves objects. It grows
 * until the call ends, and the next call begins where this one began. The heap cannot grow over it: it stays as large as it is at the start.
 */
final class Memory {
    /** The length that means "none". */
    static final int NONE = -1;

    private static final int PAGE = 1 << 16;

    private static int start;
    private static int next;
    private static int end;

    private Memory() {
    }

    /** Where the host puts what it passes. */
    @Unmanaged
    @Export(name = "cabi_realloc")
    public static int reallocate(int old, int oldSize, int alignment, int size) {
        if (end == 0) {
            start = next = end = WasmHeap.memoryLimit.toInt();
            WasmHeap.maxHeapSize = WasmHeap.heapSize;
        }
        int at = (next + alignment - 1) & -alignment;
        int to = at + size;
        if (to > end) {
            int pages = (to - end + PAGE - 1) / PAGE;
            WasmHeap.growMemory(pages);
            end += pages * PAGE;
        }
        next = to;
        if (oldSize > 0) {
            Allocator.moveMemoryBlock(Address.fromInt(old), Address.fromInt(at), oldSize);
        }
        return at;
    }

    /** The call is over: the host has read its answer. */
    @Unmanaged
    static void reset() {
        next = start;
    }

    /** Memory until the end of the call. */
    static Address allocate(int bytes, int alignment) {
        return Address.fromInt(reallocate(0, 0, alignment, bytes));
    }

    /** Zeros. */
    static Address zeros(int bytes) {
        Address at = allocate(bytes, 8);
        for (int offset = 0; offset < bytes; offset += 4) {
            at.add(offset).putInt(0);
        }
        return at;
    }

    static Address copy(byte[] bytes) {
        Address at = allocate(bytes.length, 1);
        write(bytes, at);
        return at;
    }

    static Address copy(int[] numbers, int count) {
        Address at = allocate(4 * count, 4);
        if (count > 0) {
            Allocator.moveMemoryBlock(Address.ofData(numbers), at, 4 * count);
        }
        return at;
    }

    static Address copy(long[] numbers, int count) {
        // The host wants them at a multiple of 8, which arrays of the heap need not be at.
        Address at = allocate(8 * count, 8);
        if (count > 0) {
            Allocator.moveMemoryBlock(Address.ofData(numbers), at, 8 * count);
        }
        return at;
    }

    static void write(byte[] bytes, Address to) {
        if (bytes.length > 0) {
            Allocator.moveMemoryBlock(Address.ofData(bytes), to, bytes.length);
        }
    }

    static byte[] read(Address from, int length) {
        byte[] bytes = new byte[length];
        if (length > 0) {
            Allocator.moveMemoryBlock(from, Address.ofData(bytes), length);
        }
        return bytes;
    }

    /** The bytes of a list that stands in this field; its elements are bytes. */
    static byte[] bytes(Address field) {
        return read(field.getAddress(), field.add(4).getInt());
    }

    static String text(Address field) {
        return new String(bytes(field), StandardCharsets.UTF_8);
    }

    /** The bytes of the span at this index of a column; null for none. */
    static byte[] span(Address data, Address spans, int index) {
        Address span = spans.add(8 * index);
        int length = span.add(4).getInt();
        return length == NONE ? null : read(data.add(span.getInt()), length);
    }

    static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    /** Writes a list to a field. */
    static void list(Address field, Address elements, int length) {
        field.putAddress(elements);
        field.add(4).putInt(length);
    }

    /** Writes a text to a field. */
    static void text(Address field, String text) {
        byte[] bytes = utf8(text);
        list(field, copy(bytes), bytes.length);
    }
}
