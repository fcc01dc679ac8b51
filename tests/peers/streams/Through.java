import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;

/**
 * The functions of the components "uppercase" and "counter", written for Kafka Streams. Says "running" when it runs, and then obeys
 * the lines "pause" and "resume" until there are no more.
 */
public final class Through {
    private Through() {}

    public static void main(String[] arguments) throws Exception {
        if (arguments.length < 7) {
            throw new IllegalArgumentException("ADDRESS APPLICATION STATE-DIRECTORY upper|count GUARANTEE INPUT OUTPUT [NAME=VALUE ...]");
        }
        Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, arguments[1]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, arguments[2]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, arguments[4]);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 2);
        // Each change of a count is an output, as in the component.
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 0);
        settings.put("auto.offset.reset", "earliest");
        for (int at = 7; at < arguments.length; at++) {
            String[] setting = arguments[at].split("=", 2);
            settings.put(setting[0], setting[1]);
        }

        StreamsBuilder builder = new StreamsBuilder();
        KStream<byte[], byte[]> input = builder.stream(arguments[5], Consumed.with(Serdes.ByteArray(), Serdes.ByteArray()));
        KStream<byte[], byte[]> output = switch (arguments[3]) {
            case "upper" -> input.mapValues(Through::upper);
            case "count" -> input
                .groupByKey(Grouped.with(Serdes.ByteArray(), Serdes.ByteArray()))
                .count(Materialized.with(Serdes.ByteArray(), Serdes.Long()))
                .toStream()
                .mapValues(count -> count.toString().getBytes(StandardCharsets.US_ASCII));
            default -> throw new IllegalArgumentException("the function is upper or count");
        };
        output.to(arguments[6], Produced.with(Serdes.ByteArray(), Serdes.ByteArray()));

        CountDownLatch running = new CountDownLatch(1);
        try (KafkaStreams streams = new KafkaStreams(builder.build(), settings)) {
            streams.setStateListener((now, before) -> {
                if (now == KafkaStreams.State.RUNNING) {
                    running.countDown();
                } else if (now == KafkaStreams.State.ERROR) {
                    Runtime.getRuntime().halt(1);
                }
            });
            streams.start();
            running.await();
            say("running");
            BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
            for (String line; (line = lines.readLine()) != null; ) {
                switch (line) {
                    case "pause" -> {
                        streams.pause();
                        say("paused");
                    }
                    case "resume" -> {
                        streams.resume();
                        say("resumed");
                    }
                    default -> throw new IllegalArgumentException("pause or resume, not " + line);
                }
            }
        }
    }

    private static byte[] upper(byte[] value) {
        byte[] raised = new byte[value.length];
        for (int at = 0; at < value.length; at++) {
            byte one = value[at];
            raised[at] = one >= 'a' && one <= 'z' ? (byte) (one - ('a' - 'A')) : one;
        }
        return raised;
    }

    private static void say(String word) {
        System.out.println(word);
        System.out.flush();
    }
}
