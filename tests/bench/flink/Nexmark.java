// One of the queries in queries.sql as a Flink job of this process, into a sink that drops what it gets.
//
//     java Nexmark QUERIES NAME memory|files DIRECTORY
//
// The directory has person.csv, auction.csv and bid.csv. From memory, the streams that the query reads are parsed into
// rows of Flink's own before the clock starts, and are handed over without a copy. The query runs over the first event of
// each stream, which is what a plan and a cluster cost, then over all; after a first time, which warms the code, both in
// turns, of which the middle ones count. Its last line is "ok", the seconds and the processor's seconds of all less those
// of the first, and the most MiB of memory, without the rows.

import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedReader;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.sql.Timestamp;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.table.api.DataTypes;
import org.apache.flink.table.api.Schema;
import org.apache.flink.table.api.Table;
import org.apache.flink.table.api.TableDescriptor;
import org.apache.flink.table.api.bridge.java.StreamTableEnvironment;
import org.apache.flink.table.catalog.Column;
import org.apache.flink.table.data.GenericRowData;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.data.StringData;
import org.apache.flink.table.data.TimestampData;
import org.apache.flink.table.runtime.typeutils.InternalTypeInfo;
import org.apache.flink.table.types.DataType;
import org.apache.flink.table.types.logical.RowType;
import org.apache.flink.table.types.utils.DataTypeUtils;

public final class Nexmark {
    private static final int ROUNDS = 3;
    private static final Map<String, String> STREAMS = new LinkedHashMap<>();
    private static final Map<String, RowData[]> ROWS = new HashMap<>();

    static {
        STREAMS.put("person", "id i, name t, email_address t, credit_card t, city t, state t, date_time d, extra t");
        STREAMS.put("auction", "id i, item_name t, description t, initial_bid i, reserve i, date_time d, expires d, seller i,"
                + " category i, extra t");
        STREAMS.put("bid", "auction i, bidder i, price i, channel t, url t, date_time d, extra t");
    }

    public static void main(String[] arguments) throws Exception {
        String query = query(Path.of(arguments[0]), arguments[1]);
        boolean fromMemory = arguments[2].equals("memory");
        Path directory = Path.of(arguments[3]);
        if (fromMemory) {
            for (String stream : STREAMS.keySet()) {
                if (query.matches("(?s).*\\b" + stream + "\\b.*")) {
                    ROWS.put(stream, parse(stream, directory));
                }
            }
            System.gc();
        }
        Runtime runtime = Runtime.getRuntime();
        double rows = fromMemory ? (runtime.totalMemory() - runtime.freeMemory()) / 1048576.0 : 0;
        Path first = firstEvents(directory);
        measure(query, first, fromMemory, 1);
        measure(query, directory, fromMemory, Integer.MAX_VALUE);
        List<double[]> small = new ArrayList<>();
        List<double[]> all = new ArrayList<>();
        for (int round = 0; round < ROUNDS; round++) {
            small.add(measure(query, first, fromMemory, 1));
            all.add(measure(query, directory, fromMemory, Integer.MAX_VALUE));
        }
        double seconds = middle(all, 0) - middle(small, 0);
        double processor = middle(all, 1) - middle(small, 1);
        System.out.println("ok " + seconds + " " + processor + " " + (peak() - rows));
        System.exit(0);
    }

    /** The seconds, and the processor's seconds, of a run. */
    private static double[] measure(String query, Path directory, boolean fromMemory, int limit) throws Exception {
        OperatingSystemMXBean system = (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        long begin = System.nanoTime();
        long processorBegin = system.getProcessCpuTime();
        run(query, directory, fromMemory, limit);
        return new double[] {
            (System.nanoTime() - begin) / 1e9, (system.getProcessCpuTime() - processorBegin) / 1e9
        };
    }

    private static double middle(List<double[]> figures, int at) {
        return figures.stream().mapToDouble(figure -> figure[at]).sorted().toArray()[figures.size() / 2];
    }

    /** A directory with the first event of each stream. */
    private static Path firstEvents(Path directory) throws Exception {
        Path first = Files.createDirectories(directory.resolve("first"));
        for (String stream : STREAMS.keySet()) {
            try (BufferedReader reader = Files.newBufferedReader(directory.resolve(stream + ".csv"))) {
                Files.writeString(first.resolve(stream + ".csv"), reader.readLine() + "\n");
            }
        }
        return first;
    }

    private static void run(String query, Path directory, boolean fromMemory, int limit) throws Exception {
        Configuration configuration = new Configuration();
        configuration.setString("parallelism.default", "1");
        configuration.setString("pipeline.object-reuse", "true");
        configuration.setString("taskmanager.memory.network.fraction", "0.1");
        StreamExecutionEnvironment environment = StreamExecutionEnvironment.createLocalEnvironment(1, configuration);
        StreamTableEnvironment tables = StreamTableEnvironment.create(environment);
        // What the benchmark's own configuration sets.
        tables.getConfig().set("table.exec.mini-batch.enabled", "true");
        tables.getConfig().set("table.exec.mini-batch.allow-latency", "2 s");
        tables.getConfig().set("table.exec.mini-batch.size", "50000");
        tables.getConfig().set("table.optimizer.distinct-agg.split.enabled", "true");
        for (String stream : STREAMS.keySet()) {
            if (!fromMemory) {
                tables.createTemporaryTable(stream, TableDescriptor.forConnector("filesystem")
                        .schema(schema(stream)).format("csv")
                        .option("path", directory.resolve(stream + ".csv").toUri().toString()).build());
            } else if (ROWS.containsKey(stream)) {
                tables.createTemporaryView(stream, fromMemory(environment, stream, limit), schema(stream));
            }
        }
        Table result = tables.sqlQuery(query);
        Schema.Builder columns = Schema.newBuilder();
        for (Column column : result.getResolvedSchema().getColumns()) {
            columns.column(column.getName(), DataTypeUtils.removeTimeAttribute(column.getDataType()));
        }
        tables.createTemporaryTable("sink", TableDescriptor.forConnector("blackhole").schema(columns.build()).build());
        result.insertInto("sink").execute().await();
    }

    private static DataStream<RowData> fromMemory(StreamExecutionEnvironment environment, String stream, int limit) {
        List<DataTypes.Field> fields = new ArrayList<>();
        columns(stream).forEach((name, type) -> fields.add(DataTypes.FIELD(name, type)));
        RowType type = (RowType) DataTypes.ROW(fields).getLogicalType();
        return environment.fromSequence(0, Math.min(limit, ROWS.get(stream).length) - 1)
                .map(number -> ROWS.get(stream)[number.intValue()])
                .returns(InternalTypeInfo.of(type));
    }

    private static Schema schema(String stream) {
        Schema.Builder schema = Schema.newBuilder();
        columns(stream).forEach(schema::column);
        return schema.watermark("date_time", "date_time - INTERVAL '4' SECOND").build();
    }

    private static Map<String, DataType> columns(String stream) {
        Map<String, DataType> columns = new LinkedHashMap<>();
        for (String column : STREAMS.get(stream).split(", ")) {
            String[] words = column.split(" ");
            columns.put(words[0], switch (words[1]) {
                case "i" -> DataTypes.BIGINT();
                case "t" -> DataTypes.STRING();
                default -> DataTypes.TIMESTAMP(3);
            });
        }
        return columns;
    }

    private static RowData[] parse(String stream, Path directory) throws Exception {
        String[] columns = STREAMS.get(stream).split(", ");
        List<RowData> rows = new ArrayList<>();
        try (BufferedReader reader = Files.newBufferedReader(directory.resolve(stream + ".csv"))) {
            for (String line = reader.readLine(); line != null; line = reader.readLine()) {
                String[] texts = line.split(",", -1);
                GenericRowData row = new GenericRowData(columns.length);
                for (int at = 0; at < columns.length; at++) {
                    row.setField(at, switch (columns[at].charAt(columns[at].length() - 1)) {
                        case 'i' -> (Object) Long.parseLong(texts[at]);
                        case 't' -> bytes(texts[at]);
                        default -> TimestampData.fromTimestamp(Timestamp.valueOf(texts[at]));
                    });
                }
                rows.add(row);
            }
        }
        return rows.toArray(new RowData[0]);
    }

    /** A text as Flink keeps it: as bytes, without the string. */
    private static StringData bytes(String text) {
        return StringData.fromBytes(text.getBytes(java.nio.charset.StandardCharsets.UTF_8));
    }

    private static String query(Path file, String name) throws Exception {
        StringBuilder query = new StringBuilder();
        boolean isWanted = false;
        for (String line : Files.readAllLines(file)) {
            if (line.startsWith("-- ")) {
                isWanted = line.equals("-- " + name);
            } else if (isWanted) {
                query.append(line).append('\n');
            }
        }
        if (query.isEmpty()) {
            throw new IllegalArgumentException("there is no " + name);
        }
        return query.toString();
    }

    private static double peak() throws Exception {
        for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
            if (line.startsWith("VmHWM:")) {
                return Double.parseDouble(line.replaceAll("[^0-9]", "")) / 1024;
            }
        }
        throw new IllegalStateException("no VmHWM");
    }
}
