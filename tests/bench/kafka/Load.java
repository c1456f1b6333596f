import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicIntegerArray;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.LockSupport;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * The load of `cargo bench --bench ingest` and `--bench consume` on Kafka, by Kafka's own client: one command a line, one
 * answer a line. Everything but what is named here is the client's default; acks=all.
 */
public final class Load {
    private static final byte[] LETTERS =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_".getBytes(StandardCharsets.US_ASCII);
    private static final int EVENTS = 16_384;

    private final String address;
    private final List<KafkaProducer<byte[], byte[]>> writers = new ArrayList<>();
    private final ExecutorService threads = Executors.newCachedThreadPool();
    private final Map<Integer, byte[][]> events = new HashMap<>();
    private KafkaProducer<byte[], byte[]> bulk;

    private Load(String address) {
        this.address = address;
    }

    public static void main(String[] arguments) throws Exception {
        Load load = new Load(arguments[0]);
        BufferedReader commands = new BufferedReader(new InputStreamReader(System.in));
        for (String line = commands.readLine(); line != null; line = commands.readLine()) {
            String answer;
            try {
                answer = "ok " + load.carryOut(line.split(" "));
            } catch (Exception error) {
                answer = "error: " + String.valueOf(error).replace('\n', ' ');
            }
            System.out.println(answer);
            System.out.flush();
        }
        System.exit(0);
    }

    private String carryOut(String[] words) throws Exception {
        return switch (words[0]) {
            case "ready" -> "";
            case "create" -> create(words[1], words[2], number(words[3]));
            case "write" -> write(words[1], number(words[2]), number(words[3]), number(words[4]));
            case "bulk" -> bulk(words[1], number(words[2]), number(words[3]));
            case "replay" -> replay(words[1], number(words[2]));
            case "latency" -> latency(words[1], number(words[2]), number(words[3]), number(words[4]));
            case "fill" -> fill(words[1], number(words[2]), number(words[3]), number(words[4]));
            case "consume" -> consume(words[1], number(words[2]), number(words[3]), words[4], number(words[5]));
            case "group-latency" -> groupLatency(
                words[1], number(words[2]), number(words[3]), number(words[4]), number(words[5]), number(words[6]));
            default -> throw new IllegalArgumentException("no such command");
        };
    }

    private static int number(String text) {
        return Integer.parseInt(text);
    }

    /** create TOPIC FLUSH PARTITIONS: FLUSH is flush.messages, or "default". */
    private String create(String topic, String flush, int partitions) throws Exception {
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", address))) {
            NewTopic made = new NewTopic(topic, partitions, (short) 1);
            if (!flush.equals("default")) {
                made.configs(Map.of("flush.messages", flush));
            }
            admin.createTopics(List.of(made)).all().get();
        }
        return "";
    }

    private KafkaProducer<byte[], byte[]> producer(Map<String, Object> more) {
        Map<String, Object> config = new HashMap<>(more);
        config.put("bootstrap.servers", address);
        config.put("acks", "all");
        return new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer());
    }

    private byte[][] events(int bytes) {
        return events.computeIfAbsent(bytes, Load::make);
    }

    private static byte[][] make(int bytes) {
        Random random = new Random(1);
        byte[][] events = new byte[EVENTS][bytes];
        for (byte[] event : events) {
            for (int at = 0; at < bytes; at++) {
                event[at] = LETTERS[random.nextInt(LETTERS.length)];
            }
        }
        return events;
    }

    /**
     * write TOPIC CLIENTS BYTES MILLIS: each client has a producer of its own and sends the next event after the
     * acknowledgement of the last; linger.ms=0, as nothing else will come. Answers: events per second, median in ms.
     */
    private String write(String topic, int clients, int bytes, int millis) throws Exception {
        while (writers.size() < clients) {
            writers.add(producer(Map.of("linger.ms", 0)));
        }
        byte[][] events = events(bytes);
        writers.get(0).partitionsFor(topic);
        long begin = System.nanoTime();
        long end = begin + millis * 1_000_000L;
        List<Future<List<Long>>> running = new ArrayList<>();
        for (KafkaProducer<byte[], byte[]> writer : writers.subList(0, clients)) {
            running.add(threads.submit(() -> {
                List<Long> times = new ArrayList<>();
                for (long now = System.nanoTime(); now < end;) {
                    writer.send(new ProducerRecord<>(topic, events[times.size() % EVENTS])).get();
                    long after = System.nanoTime();
                    times.add(after - now);
                    now = after;
                }
                return times;
            }));
        }
        List<Long> times = new ArrayList<>();
        for (Future<List<Long>> client : running) {
            times.addAll(client.get());
        }
        double seconds = (System.nanoTime() - begin) / 1e9;
        return times.size() / seconds + " " + quantile(times.stream().mapToLong(Long::longValue).toArray(), 0.5);
    }

    /** The value below which this part of the times lies, in milliseconds. */
    private static double quantile(long[] times, double part) {
        Arrays.sort(times);
        return times.length == 0 ? Double.NaN : times[Math.min(times.length - 1, (int) (times.length * part))] / 1e6;
    }

    /** bulk TOPIC COUNT BYTES: sends without waiting; all settings as they are made. Answers: seconds. */
    private String bulk(String topic, int count, int bytes) throws Exception {
        if (bulk == null) {
            bulk = producer(Map.of());
        }
        byte[][] events = events(bytes);
        AtomicReference<Exception> failed = new AtomicReference<>();
        bulk.partitionsFor(topic);
        long begin = System.nanoTime();
        for (int at = 0; at < count; at++) {
            bulk.send(new ProducerRecord<>(topic, events[at % EVENTS]), (done, error) -> {
                if (error != null) {
                    failed.set(error);
                }
            });
        }
        bulk.flush();
        double seconds = (System.nanoTime() - begin) / 1e9;
        if (failed.get() != null) {
            throw failed.get();
        }
        return String.valueOf(seconds);
    }

    private KafkaConsumer<byte[], byte[]> consumer(String topic) {
        Map<String, Object> config = Map.of("bootstrap.servers", address);
        KafkaConsumer<byte[], byte[]> consumer =
            new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        TopicPartition partition = new TopicPartition(topic, 0);
        consumer.assign(List.of(partition));
        return consumer;
    }

    /** replay TOPIC COUNT: reads so many from the beginning, by a new consumer. Answers: seconds, bytes. */
    private String replay(String topic, int count) {
        long begin = System.nanoTime();
        long seen = 0;
        long bytes = 0;
        try (KafkaConsumer<byte[], byte[]> consumer = consumer(topic)) {
            consumer.seekToBeginning(consumer.assignment());
            while (seen < count) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(10))) {
                    seen++;
                    bytes += record.value().length;
                }
            }
        }
        return (System.nanoTime() - begin) / 1e9 + " " + bytes;
    }

    /**
     * latency TOPIC RATE MILLIS BYTES: RATE events a second, those of a millisecond at once; linger.ms=0. Answers: p50
     * and p99 in ms from when an event was due until a consumer has it, the first fifth left out; and how many did not
     * come.
     */
    private String latency(String topic, int rate, int millis, int bytes) throws Exception {
        int count = (int) ((long) rate * millis / 1000);
        byte[][] events = events(bytes);
        long[] due = new long[count];
        long[] times = new long[count];
        try (KafkaConsumer<byte[], byte[]> consumer = consumer(topic);
             KafkaProducer<byte[], byte[]> producer = producer(Map.of("linger.ms", 0))) {
            consumer.seekToEnd(consumer.assignment());
            consumer.position(new TopicPartition(topic, 0));
            producer.partitionsFor(topic);
            long begin = System.nanoTime();
            for (int at = 0; at < count; at++) {
                due[at] = begin + at * 1000L / rate * 1_000_000L;
            }
            Future<?> sending = threads.submit(() -> {
                for (int at = 0; at < count; at++) {
                    while (System.nanoTime() < due[at]) {
                        LockSupport.parkNanos(due[at] - System.nanoTime());
                    }
                    byte[] event = events[at % EVENTS].clone();
                    byte[] digits = String.format("%020d", at).getBytes(StandardCharsets.US_ASCII);
                    System.arraycopy(digits, 0, event, 0, digits.length);
                    producer.send(new ProducerRecord<>(topic, event));
                }
            });
            int missing = count;
            while (missing > 0) {
                ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofSeconds(10));
                if (records.isEmpty()) {
                    break;
                }
                long now = System.nanoTime();
                for (ConsumerRecord<byte[], byte[]> record : records) {
                    int at = Integer.parseInt(new String(record.value(), 0, 20, StandardCharsets.US_ASCII));
                    times[at] = now - due[at];
                    missing--;
                }
            }
            sending.get();
            long[] counted = Arrays.copyOfRange(times, count / 5, count);
            return quantile(counted, 0.5) + " " + quantile(counted, 0.99) + " " + missing;
        }
    }

    /** fill TOPIC COUNT BYTES PARTITIONS: the same number to each partition. */
    private String fill(String topic, int count, int bytes, int partitions) throws Exception {
        if (bulk == null) {
            bulk = producer(Map.of());
        }
        byte[][] events = events(bytes);
        for (int at = 0; at < count; at++) {
            bulk.send(new ProducerRecord<>(topic, at / 64 % partitions, null, events[at % EVENTS]));
        }
        bulk.flush();
        return "";
    }

    /** Takes what one poll of a member gave. */
    private interface Taker {
        void take(ConsumerRecords<byte[], byte[]> records);
    }

    /**
     * Members of a group, each with a thread of its own; offsets are committed as the client does by itself, or, when
     * "commitRows" is not 0, after each poll of so many.
     */
    private final class Members {
        private final AtomicBoolean isOver = new AtomicBoolean();
        private final AtomicIntegerArray assigned;
        private final List<Future<?>> running = new ArrayList<>();

        Members(int members, String group, String topic, int commitRows, Taker taker) {
            assigned = new AtomicIntegerArray(members);
            Map<String, Object> config = new HashMap<>();
            config.put("bootstrap.servers", address);
            config.put("group.id", group);
            config.put("auto.offset.reset", "earliest");
            if (commitRows > 0) {
                config.put("enable.auto.commit", false);
                config.put("max.poll.records", commitRows);
            }
            for (int at = 0; at < members; at++) {
                int member = at;
                running.add(threads.submit(() -> {
                    try (KafkaConsumer<byte[], byte[]> consumer =
                             new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
                        consumer.subscribe(List.of(topic));
                        while (!isOver.get()) {
                            ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofMillis(100));
                            assigned.set(member, consumer.assignment().size());
                            if (!records.isEmpty()) {
                                taker.take(records);
                                if (commitRows > 0) {
                                    consumer.commitSync();
                                }
                            }
                        }
                    }
                }));
            }
        }

        boolean hasAll(int partitions) {
            int sum = 0;
            for (int at = 0; at < assigned.length(); at++) {
                sum += assigned.get(at);
            }
            return sum == partitions;
        }

        void end() throws Exception {
            isOver.set(true);
            for (Future<?> member : running) {
                member.get();
            }
        }
    }

    /**
     * consume TOPIC COUNT MEMBERS GROUP COMMIT_ROWS: a new group reads so many from the beginning, and commits after so
     * many rows, or at 0 as the client does by itself. Answers: seconds from the first that any member has until the last;
     * bytes.
     */
    private String consume(String topic, int count, int members, String group, int commitRows) throws Exception {
        AtomicLong seen = new AtomicLong();
        AtomicLong bytes = new AtomicLong();
        AtomicLong begin = new AtomicLong();
        AtomicLong end = new AtomicLong();
        Members reading = new Members(members, group, topic, commitRows, records -> {
            begin.compareAndSet(0, System.nanoTime());
            long some = 0;
            for (ConsumerRecord<byte[], byte[]> record : records) {
                some += record.value().length;
            }
            bytes.addAndGet(some);
            if (seen.addAndGet(records.count()) >= count) {
                end.compareAndSet(0, System.nanoTime());
            }
        });
        long deadline = System.nanoTime() + 300_000_000_000L;
        while (end.get() == 0 && System.nanoTime() < deadline) {
            Thread.sleep(10);
        }
        reading.end();
        if (end.get() == 0) {
            throw new IllegalStateException(seen.get() + " events came");
        }
        return (end.get() - begin.get()) / 1e9 + " " + bytes.get();
    }

    /**
     * group-latency TOPIC RATE MILLIS BYTES MEMBERS PARTITIONS: RATE events a second, to each partition in turn;
     * linger.ms=0. Answers: p50, p99 and the most in ms from when an event was due until a member has it, the first fifth
     * left out; and how many did not come.
     */
    private String groupLatency(String topic, int rate, int millis, int bytes, int members, int partitions)
            throws Exception {
        int count = (int) ((long) rate * millis / 1000);
        byte[][] events = events(bytes);
        long[] due = new long[count];
        long[] times = new long[count];
        AtomicInteger missing = new AtomicInteger(count);
        Members reading = new Members(members, topic, topic, 0, records -> {
            long now = System.nanoTime();
            for (ConsumerRecord<byte[], byte[]> record : records) {
                int at = Integer.parseInt(new String(record.value(), 0, 20, StandardCharsets.US_ASCII));
                times[at] = now - due[at];
            }
            missing.addAndGet(-records.count());
        });
        long deadline = System.nanoTime() + 30_000_000_000L;
        while (!reading.hasAll(partitions) && System.nanoTime() < deadline) {
            Thread.sleep(10);
        }
        try (KafkaProducer<byte[], byte[]> producer = producer(Map.of("linger.ms", 0))) {
            producer.partitionsFor(topic);
            long begin = System.nanoTime() + 1_000_000;
            for (int at = 0; at < count; at++) {
                due[at] = begin + at * 1000L / rate * 1_000_000L;
            }
            for (int at = 0; at < count; at++) {
                while (System.nanoTime() < due[at]) {
                    LockSupport.parkNanos(due[at] - System.nanoTime());
                }
                byte[] event = events[at % EVENTS].clone();
                byte[] digits = String.format("%020d", at).getBytes(StandardCharsets.US_ASCII);
                System.arraycopy(digits, 0, event, 0, digits.length);
                producer.send(new ProducerRecord<>(topic, at % partitions, null, event));
            }
            producer.flush();
            deadline = System.nanoTime() + 20_000_000_000L;
            while (missing.get() > 0 && System.nanoTime() < deadline) {
                Thread.sleep(10);
            }
        }
        reading.end();
        long[] counted = Arrays.copyOfRange(times, count / 5, count);
        return quantile(counted, 0.5) + " " + quantile(counted, 0.99) + " " + quantile(counted, 1) + " " + missing.get();
    }
}
