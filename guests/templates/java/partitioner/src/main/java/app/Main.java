package app;

import millrace.Message;
import millrace.Millrace;

/** Messages whose keys begin with the same region share a partition. */
public final class Main {
    private Main() {
    }

    public static void main(String[] arguments) {
        Millrace.partitioner(Main::choose);
    }

    private static int choose(Message message, int partitions) {
        byte[] key = message.key();
        // FNV-1a
        int hash = 0x811c9dc5;
        for (int at = 0; key != null && at < key.length && key[at] != '-'; at++) {
            hash = (hash ^ (key[at] & 0xff)) * 0x01000193;
        }
        return (int) ((hash & 0xffffffffL) % partitions);
    }
}
