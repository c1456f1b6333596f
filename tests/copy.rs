//! COPY in every format and both directions, as psql, psycopg, pyarrow and polars use it.

use crate::clients::{is_there, psql, run};
use crate::common::{Server, connect};
use crate::damage::{rows, sealing};
use futures::{SinkExt, StreamExt};
use millstream::node::Node;
use std::process::Command;

const BINARY: &str = r#"
import os, datetime, decimal, uuid, psycopg
from psycopg.types.json import Jsonb

with psycopg.connect(os.environ["SERVER"], autocommit=True) as c, c.cursor() as cursor:
    c.execute("CREATE STREAM b (a integer NOT NULL, b text, c timestamptz, d numeric(10, 2), e uuid, f jsonb, g integer[], h bytea,"
              " i date, j interval, k double precision, l boolean)")
    utc = datetime.timezone.utc
    rows = [(n, f"x{n}", datetime.datetime(2024, 2, 29, 1, 2, 3, n, tzinfo=utc), decimal.Decimal(n) / 4, uuid.UUID(int=n),
             Jsonb({"k": [n, None]}), [n, None, 3], bytes([n % 256]) * 5, datetime.date(1999, 1, 1) + datetime.timedelta(n),
             datetime.timedelta(days=1, microseconds=n), n / 7, n % 2 == 0) for n in range(5000)]
    rows.append((5000,) + 11 * (None,))
    types = ["int4", "text", "timestamptz", "numeric", "uuid", "jsonb", "int4[]", "bytea", "date", "interval", "float8", "bool"]
    with cursor.copy("COPY b FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row(row)
    assert cursor.rowcount == 5001, cursor.rowcount
    # What goes out comes in again, in blocks as they come.
    with psycopg.connect(os.environ["SERVER"], autocommit=True) as other, other.cursor() as target:
        other.execute("CREATE STREAM again (a integer NOT NULL, b text, c timestamptz, d numeric(10, 2), e uuid, f jsonb, g integer[],"
                      " h bytea, i date, j interval, k double precision, l boolean)")
        with cursor.copy("COPY b TO STDOUT (FORMAT binary)") as source, target.copy("COPY again FROM STDIN BINARY") as sink:
            for block in source:
                sink.write(block)
    for table in ("b", "again"):
        got = c.execute(f"SELECT * FROM {table} ORDER BY a").fetchall()
        assert len(got) == 5001 and got[5000] == rows[5000], got[5000]
        assert all(g[:5] == w[:5] and g[6:] == w[6:] and g[5] == w[5].obj for g, w in zip(got, rows[:5000])), table
    try:
        with cursor.copy("COPY b FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            copy.write_row((1, "two"))
        raise SystemExit("no error")
    except psycopg.errors.BadCopyFileFormat as error:
        assert error.diag.message_primary == "row field count is 2, expected 12", error
        assert error.diag.context == "COPY b, line 1", error.diag.context
    try:
        with cursor.copy("COPY b (a, k) FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "int4"])
            copy.write_row((1, 2))
        raise SystemExit("no error")
    except psycopg.errors.InvalidBinaryRepresentation as error:
        assert error.diag.context == "COPY b, line 1, column k", error.diag.context
print("all well")
"#;

const ARROW: &str = r#"
import os, datetime, decimal, io, uuid, psycopg
import pyarrow as pa, pyarrow.compute as pc

def stream(table, **options):
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=100_000)
    return sink.getvalue()

def load(cursor, table, statement, **options):
    data = stream(table, **options)
    with cursor.copy(statement) as copy:
        for at in range(0, len(data), 100_003):
            copy.write(data[at:at + 100_003])
    return cursor.rowcount

def fetch(cursor, query):
    with cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT arrow)") as copy:
        data = b"".join(bytes(block) for block in copy)
    return pa.ipc.open_stream(data).read_all()

n = 250_000
utc = datetime.timezone.utc
some = lambda values: [None if i % 11 == 5 else v for i, v in enumerate(values)]
table = pa.table({
    "id": pa.array(range(n), pa.int64()),
    "small": pa.array(some(i % 100 for i in range(n)), pa.int8()),
    "name": pa.array(some(f"näme {i}" for i in range(n))),
    "tag": pa.array(some(f"t{i % 7}" for i in range(n))).dictionary_encode(),
    "at": pa.array(some(i * 1_000_000_007 for i in range(n)), pa.timestamp("ns", "Europe/Berlin")),
    "price": pa.array(some(decimal.Decimal(i) / 4 for i in range(n)), pa.decimal128(20, 2)),
    "ratio": pa.array(some(i / 7 for i in range(n)), pa.float32()),
    "day": pa.array(some(datetime.date(2000, 1, 1) for i in range(n))),
    "ok": pa.array(some(i % 3 == 0 for i in range(n))),
    "raw": pa.array(some(bytes([i % 256]) for i in range(n)), pa.large_binary()),
    "list": pa.array(some([i, None] for i in range(n)), pa.list_(pa.int32())),
    "view": pa.array(some("v" * (i % 30) for i in range(n)), pa.string_view()),
})
ddl = ("(id bigint NOT NULL, small integer, name text, tag varchar(9), at timestamptz, price numeric(10, 3), ratio double precision,"
       " day date, ok boolean, raw bytea, list bigint[], view text, extra text DEFAULT 'none')")
with psycopg.connect(os.environ["SERVER"], autocommit=True) as c, c.cursor() as cursor:
    for number, options in enumerate(({}, {"compression": "lz4"}, {"compression": "zstd"}, {"use_legacy_format": True})):
        name = f"a{number}"
        c.execute(f"CREATE STREAM {name} {ddl}")
        # In another order of the columns.
        shuffled = table.select(list(reversed(table.column_names)))
        assert load(cursor, shuffled, f"COPY {name} FROM STDIN (FORMAT arrow)", **options) == n
        got = fetch(cursor, f"SELECT * FROM {name} ORDER BY rowoffset").combine_chunks()
        assert got.num_rows == n and got.column("extra").to_pylist()[:2] == ["none", "none"]
        for column in table.column_names:
            want, have = table.column(column).combine_chunks(), got.column(column).combine_chunks()
            if column == "at":
                want = pc.cast(want, pa.timestamp("us", "UTC"), safe=False)
            elif column == "tag":
                want = want.dictionary_decode()
            want = want.cast(have.type)
            assert have.equals(want), (name, column, have.slice(0, 8), want.slice(0, 8))
    # Out of one, into another, by the list of columns.
    c.execute("CREATE STREAM again (k bigint, v text) WITH (partitions = 3)")
    part = fetch(cursor, "SELECT id, name FROM a0 WHERE id < 1000")
    assert load(cursor, part, "COPY again (k, v) FROM STDIN (FORMAT arrow)") == 1000
    assert c.execute("SELECT count(*), sum(k) FROM again").fetchone() == (1000, 499500)
    # Event times, keys, tables.
    c.execute("CREATE TABLE keyed (id bigint PRIMARY KEY, name text) WITH (partitions = 4)")
    times = pa.array([datetime.datetime(2001, 1, 1)] * n, pa.timestamp("s"))
    assert load(cursor, table.select(["id", "name"]).append_column("rowtime", times), "COPY keyed FROM STDIN (FORMAT arrow)") == n
    assert c.execute("SELECT count(*), min(rowtime)::text, count(DISTINCT rowpartition) FROM keyed").fetchone() == (n, "2001-01-01 00:00:00+00", 4)
    c.execute("INSERT INTO keyed VALUES (17, 'new')")
    assert c.execute("SELECT count(*) FROM keyed WHERE id = 17").fetchone() == (1,)

    def refused(table, state, words, statement="COPY a0 FROM STDIN (FORMAT arrow)"):
        before = c.execute("SELECT count(*) FROM a0").fetchone()
        try:
            load(cursor, table, statement)
        except psycopg.Error as error:
            assert error.sqlstate == state and words in f"{error.diag.message_primary} {error.diag.context}", (error, error.diag.context)
            assert c.execute("SELECT count(*) FROM a0").fetchone() == before
            return
        raise SystemExit(f"taken: {words}")

    ids = table.select(["id"])
    refused(table.drop_columns(["id"]), "23502", '"id"')
    refused(ids.append_column("nosuch", table["id"]), "42703", '"nosuch"')
    refused(ids.append_column("price", table["name"]), "42804", '"price"')
    refused(ids.append_column("list", pa.array([{"a": 1}] * n)), "42804", '"list"')
    refused(ids.append_column("price", pa.array([decimal.Decimal("1e8")] * n)), "22003", "COPY a0, row 1, column price")
    long = ["ok"] * (n - 1) + ["much too long"]
    refused(ids.append_column("tag", pa.array(long)), "22001", f"COPY a0, row {n}, column tag")
    refused(pa.table({"id": pa.array([1, None])}), "23502", "row 2, column id")
    try:
        with cursor.copy("COPY a0 FROM STDIN (FORMAT arrow)") as copy:
            copy.write(stream(ids)[:100_000])
        raise SystemExit("a part was taken")
    except psycopg.errors.BadCopyFileFormat:
        pass
try:
    import polars
except ImportError:
    polars = None
if polars:
    with psycopg.connect(os.environ["SERVER"], autocommit=True) as c, c.cursor() as cursor:
        c.execute("CREATE STREAM frame (n bigint, s text, f double precision, d date, t timestamp)")
        frame = polars.DataFrame({"n": [1, 2, None], "s": ["a", None, "a longer text than fits in a view"], "f": [1.5, None, 3.0],
                                  "d": [datetime.date(2020, 1, 1)] * 3, "t": [datetime.datetime(2020, 1, 1, 1, 2, 3, 4)] * 3})
        for compat in (polars.CompatLevel.oldest(), polars.CompatLevel.newest()):
            data = io.BytesIO()
            frame.write_ipc_stream(data, compat_level=compat)
            with cursor.copy("COPY frame FROM STDIN (FORMAT arrow)") as copy:
                copy.write(data.getvalue())
        with cursor.copy("COPY frame TO STDOUT (FORMAT arrow)") as copy:
            got = polars.read_ipc_stream(io.BytesIO(b"".join(bytes(block) for block in copy)))
        assert got.equals(polars.concat([frame, frame])), got
print("all well")
"#;

async fn python(script: &str, module: &str) {
    let python = std::env::var("TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if !is_there(&python, &["-c", &format!("import psycopg, {module}")]) {
        println!("skipped: {python} cannot import psycopg and {module}");
        return;
    }
    let server = Server::start().await;
    let address = server.node.pg_address();
    let place = format!("host={} port={} user=tester dbname=millstream", address.ip(), address.port());
    let (code, out, error) = run(Command::new(&python).args(["-c", script]).env("SERVER", &place)).await;
    assert_eq!((code, out.as_str()), (Some(0), "all well\n"), "{error}");
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psycopg_copies_in_binary_both_ways() {
    python(BINARY, "uuid").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pyarrow_and_polars_copy_both_ways() {
    python(ARROW, "pyarrow").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_copies_files_in_every_format_both_ways() {
    if !is_there("psql", &["--version"]) {
        println!("skipped: psql is not installed");
        return;
    }
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    let columns = "(a integer, b text, c timestamptz, d numeric(9, 3), e bytea, f text[], g jsonb)";
    let rows = "(1, E'tab\\t, quote\" \\\\ line\\nend', '2024-02-29 01:02:03.000004+00', 1.5, '\\x00ff', '{a,NULL,\"b,c\"}', '{\"k\":[1]}'), \
                (NULL, '', NULL, NULL, NULL, '{}', '0'), (3, E'\\\\.', NULL, -0.001, '', NULL, '[]')";
    let setup = format!("CREATE STREAM origin {columns}; INSERT INTO origin VALUES {rows}");
    let (code, _, error) = run(psql(&server).args(["-c", &setup])).await;
    assert_eq!(code, Some(0), "{error}");
    let formats = [
        "",
        "with (format text, delimiter '|', null 'nil')",
        "delimiter ';' null as '-'",
        "with (format csv, header)",
        "csv header quote '''' escape '\\' delimiter ';'",
        "with (format csv, header match)",
        "with (format json)",
        "binary",
        "with (format binary)",
        "with (format arrow)",
    ];
    for (number, format) in formats.into_iter().enumerate() {
        let file = dir.path().join(number.to_string());
        let file = file.display();
        let out_format = format.replace("header match", "header");
        let script = [
            format!("CREATE STREAM c{number} {columns}"),
            format!("\\copy origin to '{file}' {out_format}"),
            format!("\\copy c{number} from '{file}' {format}"),
            format!("SELECT count(*) FROM (SELECT * FROM origin EXCEPT SELECT * FROM c{number}) AS d"),
            format!("SELECT count(*) FROM c{number}"),
        ];
        let mut command = psql(&server);
        command.arg("-qAt").args(script.iter().flat_map(|line| ["-c", line]));
        let (code, out, error) = run(&mut command).await;
        assert_eq!((code, out.as_str()), (Some(0), "0\n3\n"), "{format}: {error}");
    }
    server.node.stop().await;
}

/// Values of STRUCT, MAP and json columns, NULL at every place they can be.
const NESTED: [&str; 5] = [
    r#"(1, '{"x": 1, "y": "one", "z": [1, null]}', '{"k": 5, "l": null}', '[{"k": "a", "n": 1}, null]', 'null')"#,
    "(2, NULL, NULL, NULL, NULL)",
    r#"(3, '{"x": null, "y": null, "z": null}', '{}', '[]', '{"a": null, "b": [null, {}]}')"#,
    r#"(4, '{"y": "ü \" , \\ \t \n x"}', '{"": 0, "a, b": -1}', '[{"n": 2}]', '"text"')"#,
    r#"(5, '{"x": 2147483647, "z": []}', '{"NULL": 1, "\\N": 2}', '[{"k": "{}", "n": null}]', '1.50')"#,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn structs_and_maps_survive_formats_segments_and_restarts() {
    const COLUMNS: &str = "id integer, a STRUCT<x integer, y text, z integer[]>, m MAP<text, integer>,
        l STRUCT<k text, n integer>[], j jsonb";
    let dir = tempfile::tempdir().unwrap();
    let config = sealing(dir.path());
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    client.batch_execute(&format!("CREATE TABLE s ({COLUMNS})")).await.unwrap();
    client.batch_execute(&format!("INSERT INTO s VALUES {}", NESTED.join(", "))).await.unwrap();
    let fill = "INSERT INTO s (id, a, m) SELECT i, STRUCT(x := i, y := repeat('y', 40), z := ARRAY[i]), MAP('k' := i)
        FROM generate_series(100, 2600) AS i";
    client.batch_execute(fill).await.unwrap();
    let select = |table: &str| format!("SELECT id, a, m, l, j FROM {table} ORDER BY id");
    let before = rows(&client, &select("s")).await.unwrap();
    assert_eq!(before.len(), 2506);
    assert_eq!(before[0], r#"1|{"x":1,"y":"one","z":[1,null]}|{"k":5,"l":null}|[{"k":"a","n":1},null]|null"#);
    assert_eq!(before[1], "2|null|null|null|null");
    for format in ["text", "csv", "binary", "json"] {
        let table = format!("s_{format}");
        client.batch_execute(&format!("CREATE TABLE {table} ({COLUMNS})")).await.unwrap();
        let out = client.copy_out(&format!("COPY s TO STDOUT (FORMAT {format})")).await.unwrap();
        let blocks: Vec<bytes::Bytes> = out.map(Result::unwrap).collect().await;
        let copied = client.copy_in(&format!("COPY {table} FROM STDIN (FORMAT {format})")).await.unwrap();
        let mut copied = std::pin::pin!(copied);
        for block in blocks {
            copied.feed(block).await.unwrap();
        }
        assert_eq!(copied.finish().await.unwrap(), 2506, "{format}");
        let again = rows(&client, &select(&table)).await.unwrap();
        // Of a line of JSON, null is NULL, as in PostgreSQL's jsonb_populate_record; what it holds is kept.
        let differs: Vec<usize> = (0..again.len()).filter(|row| again[*row] != before[*row]).collect();
        assert_eq!(differs, Vec::<usize>::new(), "{format}");
        let nulls =
            rows(&client, &format!("SELECT id FROM {table} WHERE j IS NULL AND id < 10 ORDER BY id")).await.unwrap();
        assert_eq!(nulls, if format == "json" { vec!["1", "2"] } else { vec!["2"] }, "{format}");
    }
    client.batch_execute("UPDATE s SET m = MAP('changed' := 1), a = NULL WHERE (a).x = 1").await.unwrap();
    client.batch_execute("DELETE FROM s WHERE m['k'] > 100 AND m['k'] < 2600").await.unwrap();
    let before = rows(&client, &select("s")).await.unwrap();
    assert_eq!((before.len(), before[0].as_str()), (7, r#"1|null|{"changed":1}|[{"k":"a","n":1},null]|null"#));
    drop(client);
    node.stop().await;
    let node = Node::start(&config).await.unwrap();
    let client = connect(node.pg_address()).await;
    assert_eq!(rows(&client, &select("s")).await.unwrap(), before);
    assert_eq!(rows(&client, "SELECT count(*) FROM s_binary WHERE (a).z[1] = m['k']").await.unwrap(), ["2501"]);
    node.stop().await;
}
