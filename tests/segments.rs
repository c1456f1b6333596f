//! Segments as other programs see them: pyarrow and polars open each file as it is and find the rows that were written.

use crate::clients::{is_there, run};
use crate::common::{DEADLINE, connect};
use crate::damage::{files, rows, sealing};
use millstream::node::Node;
use std::process::Command;

/// What is in a file follows from its numbers `g`; the name of its directory says what it must be like.
const SCRIPT: &str = r#"
import datetime, decimal, glob, os, sys
import pyarrow as pa
try:
    import polars
except ImportError:
    polars = None

utc = datetime.timezone.utc

def expected(g):
    none = g % 7 == 3
    return {
        "g": g,
        "t": None if none else f"text {g}",
        "d": None if none else decimal.Decimal(g * 1000 + 125) / 1000,
        "ts": None if none else datetime.datetime(2024, 1, 1, tzinfo=utc) + datetime.timedelta(microseconds=g * 1001),
        "day": None if none else datetime.date(2024, 1, 1) + datetime.timedelta(days=g % 300),
        "l": None if none else [g, None, -g] if g % 3 else [],
        "s": None if none else {"a": g, "b": None if g % 5 == 0 else f"b{g}"},
        "m": None if none else [("one", g), ("none", None)],
        "x": None if none else bytes([g % 256, 0]),
        "f": None if none else g / 4,
    }

seen = {}
for path in sorted(glob.glob(os.path.join(sys.argv[1], "shards", "*", "segments", "*.arrow"))):
    with pa.memory_map(path) as source:
        table = pa.ipc.open_file(source).read_all()
    table.validate(full=True)
    if not {"g", "k"} & set(table.schema.names):
        continue
    if "k" in table.schema.names:
        ks, vs = table["k"].to_pylist(), table["v"].to_pylist()
        seen.setdefault("compacted", []).extend(zip(ks, vs))
        assert table["rowtombstone"].type == pa.bool_(), table.schema
    else:
        rows = table.to_pylist()
        later = "later" in table.schema.names
        for row in rows:
            want = expected(row["g"])
            if later:
                # Rows that were in memory when the column came have its default.
                want["later"] = row["g"] * 2 if row["g"] >= 1000 else None
            got = {name: row[name] for name in row if name != "rowtime"}
            assert got == want, (path, got, want)
            assert row["rowtime"].tzinfo is not None
        seen.setdefault(os.path.basename(path).split("-")[0], []).extend((row["g"], later) for row in rows)
    if polars:
        frame = polars.read_ipc(path)
        assert frame.height == table.num_rows, path
        for name in ("g", "t", "d", "ts", "day", "x", "f", "k", "v"):
            if name in table.schema.names:
                assert frame[name].to_list() == table[name].to_pylist(), (path, name)
        if "l" in table.schema.names:
            assert frame["l"].to_list() == table["l"].to_pylist(), path
            assert frame["s"].to_list() == table["s"].to_pylist(), path

streams = [rows for topic, rows in seen.items() if topic != "compacted"]
assert len(streams) == 3, seen.keys()
for rows in streams:
    assert sorted(g for g, _ in rows) == list(range(2000)), len(rows)
    assert {later for _, later in rows} == {False, True}
# Of each key the last row, and perhaps some of the rows before.
compacted = seen["compacted"]
last = {}
for k, v in compacted:
    last[k] = max(v, last.get(k, v))
assert last == {k: 59 for k in range(100)}, last
print("all well", "with polars" if polars else "without polars")
"#;

/// Rows `from` to `to`, whose values the script above knows.
fn insert(stream: &str, numbers: std::ops::Range<i64>, later: bool) -> String {
    let row = |g: i64| {
        let more = if later { format!(", {}", g * 2) } else { String::new() };
        if g % 7 == 3 {
            return format!("({g}, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL{more})");
        }
        let list = if g % 3 == 0 { "{}".to_owned() } else { format!("{{{g},NULL,{}}}", -g) };
        let b = if g % 5 == 0 { "null".to_owned() } else { format!("\"b{g}\"") };
        format!(
            "({g}, 'text {g}', {g}.125, timestamptz '2024-01-01 00:00:00+00' + {} * interval '1 microsecond', \
             date '2024-01-01' + {}, '{list}', '{{\"a\": {g}, \"b\": {b}}}', '{{\"one\": {g}, \"none\": null}}', \
             '\\x{:02x}00', {}{more})",
            g * 1001,
            g % 300,
            g % 256,
            g as f64 / 4.0
        )
    };
    format!("INSERT INTO {stream} VALUES {}", numbers.map(row).collect::<Vec<_>>().join(", "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pyarrow_and_polars_open_segments_as_they_are() {
    let python = std::env::var("TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if !is_there(&python, &["-c", "import pyarrow"]) {
        println!("skipped: {python} cannot import pyarrow");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = sealing(dir.path());
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    let run_sql = async |sql: &str| rows(&client, sql).await.unwrap_or_else(|error| panic!("{:.300}: {error}", sql));
    for compression in ["none", "lz4", "zstd"] {
        let columns = "(g integer KEY, t text, d numeric(12, 3), ts timestamptz, day date, l integer[], \
                       s STRUCT<a integer, b text>, m MAP<text, bigint>, x bytea, f double precision)";
        run_sql(&format!("CREATE STREAM {compression}_s {columns} WITH (compression = '{compression}')")).await;
        for part in 0..5 {
            run_sql(&insert(&format!("{compression}_s"), part * 200..part * 200 + 200, false)).await;
        }
        run_sql(&format!("ALTER STREAM {compression}_s ADD COLUMN later bigint")).await;
        for part in 5..10 {
            run_sql(&insert(&format!("{compression}_s"), part * 200..part * 200 + 200, true)).await;
        }
    }
    run_sql("CREATE TABLE compacted (k integer PRIMARY KEY, v integer)").await;
    for v in 0..60 {
        run_sql(&format!("INSERT INTO compacted SELECT k, {v} FROM generate_series(0, 99) AS t(k)")).await;
    }
    // Everything above is sealed once enough came behind it, and the table compacted.
    run_sql("CREATE STREAM behind (v text)").await;
    let begun = std::time::Instant::now();
    loop {
        run_sql("INSERT INTO behind SELECT repeat('x', 1000) FROM generate_series(1, 100) AS t(i)").await;
        let unsealed = "SELECT count(*) FROM millstream.topics AS t WHERE name <> 'behind' AND (segments = 0 OR \
                        (SELECT coalesce(sum(s.bytes), 0) FROM millstream.segments AS s WHERE s.topic = t.name) < t.bytes)";
        let sealed = run_sql(unsealed).await == ["0"];
        if sealed && run_sql("SELECT events < 6000 FROM millstream.topics WHERE name = 'compacted'").await == ["t"] {
            break;
        }
        assert!(begun.elapsed() < 3 * DEADLINE, "not sealed and compacted");
    }
    run_sql("DROP STREAM behind").await;
    drop(client);
    node.stop().await;
    // A file that a manifest no longer lists goes at the next start.
    let node = Node::start(&config).await.unwrap();
    node.stop().await;
    assert!(!files(&config.data_dir.join("shards")).is_empty());
    let (code, out, error) = run(Command::new(&python).args(["-c", SCRIPT]).arg(&config.data_dir)).await;
    assert!(code == Some(0) && out.starts_with("all well"), "{out}{error}");
}
