package millrace;

import org.teavm.interop.Address;

/** Numbers in a list that grows. */
final class Ints {
    int[] numbers = new int[8];
    int count;

    void add(int number) {
        reserve(1);
        numbers[count++] = number;
    }

    void addAll(Ints other) {
        reserve(other.count);
        System.arraycopy(other.numbers, 0, numbers, count, other.count);
        count += other.count;
    }

    /** Adds numbers of a column. */
    void addAll(Address from, int more) {
        reserve(more);
        for (int index = 0; index < more; index++) {
            numbers[count++] = from.add(4 * index).getInt();
        }
    }

    /** Writes the list to a field of the answer. */
    void put(Address field) {
        Memory.list(field, Memory.copy(numbers, count), count);
    }

    private void reserve(int more) {
        if (count + more > numbers.length) {
            int[] larger = new int[Math.max(2 * numbers.length, count + more)];
            System.arraycopy(numbers, 0, larger, 0, count);
            numbers = larger;
        }
    }
}
