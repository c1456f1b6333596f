//! Drivers and programs people use: tokio-postgres with every type in text and binary, psql, psycopg.
//!
//! psql and psycopg are used when they are installed; a test says on stdout when it was skipped.
//! `TEST_PYTHON` names a Python that can import psycopg, else `python3` is tried.

use crate::common::{DEADLINE, Server};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

/// A value as its binary bytes, whatever its type.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bytes(Vec<u8>);

impl<'a> FromSql<'a> for Bytes {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

impl ToSql for Bytes {
    fn to_sql(&self, _: &Type, out: &mut bytes::BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// Name, column type as declared, what the driver must call it, and values as text.
const TYPES: &[(&str, Type, &[&str])] = &[
    ("boolean", Type::BOOL, &["t", "f"]),
    ("smallint", Type::INT2, &["-32768", "32767"]),
    ("integer", Type::INT4, &["-2147483648", "0"]),
    ("bigint", Type::INT8, &["-9223372036854775808", "9223372036854775807"]),
    ("real", Type::FLOAT4, &["1.5", "-Infinity", "NaN", "1e-45"]),
    ("double precision", Type::FLOAT8, &["0.1", "1.7976931348623157e+308", "NaN"]),
    ("numeric(20, 4)", Type::NUMERIC, &["0.0001", "-9999999999999999.9999", "10000.0000", "0.0000"]),
    ("text", Type::TEXT, &["", "a\tb\\", "Ünïcödé 🦀"]),
    ("varchar(9)", Type::VARCHAR, &["nine char"]),
    ("bytea", Type::BYTEA, &["\\x", "\\x00ff10"]),
    ("date", Type::DATE, &["1970-01-01", "0001-01-01", "9999-12-31", "2000-02-29"]),
    ("time", Type::TIME, &["00:00:00", "23:59:59.999999"]),
    ("timestamp", Type::TIMESTAMP, &["1999-12-31 23:59:59.999999", "2024-02-29 00:00:00"]),
    ("timestamptz", Type::TIMESTAMPTZ, &["1999-12-31 23:59:59.999999+00"]),
    ("interval", Type::INTERVAL, &["1 year 2 mons -3 days +04:05:06.7", "-00:00:01", "00:00:00"]),
    ("uuid", Type::UUID, &["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
    ("json", Type::JSON, &["{\"b\": 1,  \"a\": [null]}"]),
    ("jsonb", Type::JSONB, &["{\"a\": [null], \"b\": 1}"]),
    ("integer[]", Type::INT4_ARRAY, &["{}", "{1,NULL,-3}"]),
    ("text[]", Type::TEXT_ARRAY, &["{a,\"b,c\",NULL,\"NULL\",\"\"}"]),
    ("timestamptz[]", Type::TIMESTAMPTZ_ARRAY, &["{\"2024-02-29 00:00:00+00\"}"]),
    ("numeric(9, 2)[]", Type::NUMERIC_ARRAY, &["{1.50,NULL}"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_makes_the_round_trip_in_text_and_binary() {
    let server = Server::start().await;
    let client = server.client().await;
    for (number, (name, driver_type, texts)) in TYPES.iter().enumerate() {
        client.batch_execute(&format!("CREATE STREAM s{number} (n integer, v {name})")).await.unwrap();
        let put = client.prepare(&format!("INSERT INTO s{number} VALUES ($1, $2)")).await.unwrap();
        assert_eq!(put.params(), [Type::INT4, driver_type.clone()], "{name}");
        let read = client.prepare(&format!("SELECT v FROM s{number} WHERE n = $1")).await.unwrap();
        assert_eq!(read.columns()[0].type_(), driver_type, "{name}");
        for (row, text) in texts.iter().enumerate() {
            let (first, second) = (2 * row as i32, 2 * row as i32 + 1);
            let literal = text.replace('\'', "''");
            client.batch_execute(&format!("INSERT INTO s{number} VALUES ({first}, '{literal}')")).await.unwrap();
            // Out in binary, in again in binary, out in text and in binary.
            let binary: Bytes = client
                .query_one(&read, &[&first])
                .await
                .unwrap_or_else(|error| panic!("{name} {text}: {error:?}"))
                .get(0);
            client.execute(&put, &[&second, &binary]).await.unwrap();
            let again: Bytes = client.query_one(&read, &[&second]).await.unwrap().get(0);
            assert_eq!(binary, again, "{name} {text}");
            let shown = client.simple_query(&format!("SELECT v FROM s{number} WHERE n IN ({first}, {second})")).await;
            let shown: Vec<String> = shown
                .unwrap()
                .iter()
                .filter_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                    _ => None,
                })
                .collect();
            assert_eq!(shown, [*text, *text], "{name}");
        }
        client.execute(&put, &[&-1, &None::<Bytes>]).await.unwrap();
        assert_eq!(client.query_one(&read, &[&-1]).await.unwrap().get::<_, Option<Bytes>>(0), None, "{name}");
    }
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_rust_are_values_of_sql() {
    let server = Server::start().await;
    let client = server.client().await;
    client
        .batch_execute("CREATE STREAM s (a boolean, b smallint, c integer, d bigint, e real, f double precision, g text, h bytea, i timestamptz, j integer[], k text[])")
        .await
        .unwrap();
    let time: SystemTime = UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456);
    let (numbers, words) = (vec![Some(1_i32), None], vec!["x".to_owned(), String::new()]);
    let params: [&(dyn ToSql + Sync); 11] =
        [&true, &-2_i16, &3_i32, &-4_i64, &0.5_f32, &0.25_f64, &"text", &&b"\0\xff"[..], &time, &numbers, &words];
    let put = "INSERT INTO s VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    assert_eq!(client.execute(put, &params).await.unwrap(), 1);
    let filter = "SELECT * FROM s WHERE a = $1 AND b = $2 AND c = $3 AND d = $4 AND e = $5 AND f = $6 AND g = $7 AND h = $8 AND i = $9";
    let row = client.query_one(filter, &params[..9]).await.unwrap();
    assert!(row.get::<_, bool>("a"));
    assert_eq!((row.get::<_, i16>(1), row.get::<_, i32>(2), row.get::<_, i64>(3)), (-2, 3, -4));
    assert_eq!((row.get::<_, f32>(4), row.get::<_, f64>(5)), (0.5, 0.25));
    assert_eq!((row.get::<_, &str>(6), row.get::<_, &[u8]>(7)), ("text", &b"\0\xff"[..]));
    assert_eq!(row.get::<_, SystemTime>(8), time);
    assert_eq!((row.get::<_, Vec<Option<i32>>>(9), row.get::<_, Vec<String>>(10)), (numbers, words));
    let names: Vec<&str> = row.columns().iter().map(|column| column.name()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"]);
    let unnamed =
        client.query_one("SELECT 1, count(*), upper('x'), $1::integer + 1 AS n, c FROM s GROUP BY c", &[&1]).await;
    let unnamed = unnamed.unwrap();
    let names: Vec<&str> = unnamed.columns().iter().map(|column| column.name()).collect();
    assert_eq!(names, ["?column?", "count", "upper", "n", "c"]);
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_reach_subscriptions_cursors_and_inserted_selects() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.batch_execute("CREATE STREAM s (v integer, w text)").await.unwrap();
    let put = client.prepare("INSERT INTO s SELECT $1, $2 WHERE $3::integer < 9").await.unwrap();
    assert_eq!(put.params(), [Type::INT4, Type::TEXT, Type::INT4]);
    for (v, limit, rows) in [(1_i32, 0_i32, 1), (2, 9, 0), (3, 8, 1)] {
        assert_eq!(client.execute(&put, &[&v, &"x", &limit]).await.unwrap(), rows);
    }
    let from_two = "SELECT v + $1, w FROM s WHERE v >= $2 EMIT CHANGES WITH (auto_offset_reset = 'earliest') LIMIT 1";
    let subscription = client.prepare(from_two).await.unwrap();
    assert_eq!(subscription.params(), [Type::INT4, Type::INT4]);
    let rows = client.query(&subscription, &[&100_i32, &2_i32]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [103]);
    let words = vec!["x", "y"];
    let found = client.query("SELECT v FROM s WHERE w = ANY($1) ORDER BY v", &[&words]).await.unwrap();
    assert_eq!(found.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [1, 3]);
    let values = client.query("SELECT * FROM (VALUES ($1, $2), (NULL, 'z')) AS t(a, b)", &[&"p", &"q"]).await.unwrap();
    assert_eq!(values[0].get::<_, &str>("b"), "q");
    for explained in ["SELECT v FROM s WHERE v = $1", "SELECT v FROM s WHERE v = $1 EMIT CHANGES"] {
        let lines = client.query(&format!("EXPLAIN {explained}"), &[&3_i32]).await.unwrap();
        assert!(!lines.is_empty());
    }
    let transaction = client.transaction().await.unwrap();
    for (name, emit) in [("a", ""), ("b", " EMIT CHANGES WITH (auto_offset_reset = 'earliest')")] {
        let declare = format!("DECLARE {name} CURSOR FOR SELECT v FROM s WHERE v < $1{emit}");
        transaction.execute(&declare, &[&2_i32]).await.unwrap();
        let rows = transaction.query(&format!("FETCH 1 FROM {name}"), &[]).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [1]);
    }
    transaction.rollback().await.unwrap();
    let commit = "COMMIT OFFSETS (GROUP $1, TOPIC $2, PARTITION $3, OFFSET $4)";
    let prepared = client.prepare(commit).await.unwrap();
    assert_eq!(prepared.params(), [Type::TEXT, Type::TEXT, Type::INT4, Type::INT8]);
    client.execute(&prepared, &[&"A group", &"s", &0_i32, &1_i64]).await.unwrap();
    let committed = "SELECT group_name || committed_offset::text FROM millstream.consumer_group_offsets";
    assert_eq!(client.query_one(committed, &[]).await.unwrap().get::<_, &str>(0), "A group1");
    let no_name: Option<&str> = None;
    let refused: [(Option<&str>, &str, i32, i64, &str); 6] = [
        (no_name, "s", 0, 1, "22004"),
        (Some(""), "s", 0, 1, "22023"),
        (Some("g"), "nothing", 0, 1, "42P01"),
        (Some("g"), "s", -1, 1, "22023"),
        (Some("g"), "s", 0, -1, "22023"),
        (Some("g"), "s", 0, 9, "SE002"),
    ];
    for (group, topic, partition, offset, code) in refused {
        let error = client.execute(&prepared, &[&group, &topic, &partition, &offset]).await.unwrap_err();
        assert_eq!(error.code().map(|code| code.code()), Some(code), "{group:?} {topic} {partition} {offset}");
    }
    let declared = client.prepare_typed(commit, &[Type::TEXT, Type::TEXT, Type::FLOAT8]).await.unwrap();
    let error = client.execute(&declared, &[&"g", &"s", &0.5_f64, &1_i64]).await.unwrap_err();
    assert_eq!(error.code().map(|code| code.code()), Some("22023"));
    let none = client.simple_query(commit).await.unwrap_err();
    assert_eq!(none.code().map(|code| code.code()), Some("42P02"));
    let none = client.simple_query("SELECT v FROM s WHERE v = $1").await.unwrap_err();
    assert_eq!(none.code().map(|code| code.code()), Some("42P02"));
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_defined_at_once_all_run_and_take_inserts_at_once() {
    let server = Server::start().await;
    server.client().await.batch_execute("CREATE STREAM s (v integer)").await.unwrap();
    let define = |number: i32| {
        let address = server.node.pg_address();
        async move {
            let client = crate::common::connect(address).await;
            let text = format!("CREATE TABLE t{number} AS SELECT count(*) AS n FROM s EMIT CHANGES");
            client.batch_execute(&text).await.unwrap();
            client.batch_execute("INSERT INTO s VALUES (1)").await.unwrap();
            client.batch_execute(&format!("CREATE STREAM u{number} (v integer)")).await.unwrap();
            client.batch_execute(&format!("INSERT INTO u{number} VALUES (1)")).await.unwrap();
        }
    };
    futures::future::join_all((0..24).map(define)).await;
    let client = server.client().await;
    client.batch_execute("FLUSH").await.unwrap();
    let states = client.query("SELECT name, state, lag_rows FROM millstream.queries", &[]).await.unwrap();
    assert_eq!(states.len(), 24);
    for row in states {
        assert_eq!((row.get::<_, &str>(1), row.get::<_, i64>(2)), ("running", 0), "{}", row.get::<_, &str>(0));
    }
    for number in 0..24 {
        let count = client.query_one(&format!("SELECT n FROM t{number}"), &[]).await.unwrap();
        assert_eq!(count.get::<_, i64>(0), 24);
    }
    server.node.stop().await;
}

pub(crate) fn is_there(program: &str, args: &[&str]) -> bool {
    let found = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// Runs a program to its end: exit status, stdout, stderr.
pub(crate) async fn run(command: &mut Command) -> (Option<i32>, String, String) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir(env!("CARGO_MANIFEST_DIR"));
    let child = command.spawn().unwrap();
    let id = child.id();
    let (tx, rx) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(tx.send(child.wait_with_output())));
    let Ok(output) = tokio::time::timeout(3 * DEADLINE, rx).await else {
        drop(Command::new("kill").arg(id.to_string()).status());
        panic!("{command:?} did not end");
    };
    let output = output.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

pub(crate) fn psql(server: &Server) -> Command {
    let address = server.node.pg_address();
    let mut command = Command::new("psql");
    command.args(["-X", "-h", &address.ip().to_string(), "-p", &address.port().to_string()]);
    command.args(["-U", "tester", "-d", "millstream", "-v", "ON_ERROR_STOP=1"]).env("PGCONNECT_TIMEOUT", "20");
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_runs_the_example_and_subscribes() {
    if !is_there("psql", &["--version"]) {
        println!("skipped: psql is not installed");
        return;
    }
    let server = Server::start().await;
    let (code, out, error) = run(psql(&server).args(["-f", "examples/flights/flights.sql"])).await;
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("COPY 20000"), "{out}");
    let tables: Vec<&str> =
        out.split("windowstart").skip(1).map(|part| part.split("(10 rows)").next().unwrap()).collect();
    assert_eq!(tables.len(), 2, "{out}");
    assert_eq!(tables[0], tables[1], "the continuous table and the same rows over the stored events");
    assert!(out.contains("delays_by_airport | running |      20000"), "{out}");

    let first = "SET auto_offset_reset = 'earliest'";
    let push = "SELECT origin, delay_minutes FROM flights WHERE delay_minutes > 0 EMIT CHANGES LIMIT 3";
    let (code, out, error) = run(psql(&server).args(["-At", "-v", "FETCH_COUNT=1", "-c", first, "-c", push])).await;
    assert_eq!((code, out.lines().count()), (Some(0), 4), "{out} {error}");

    let copy = "COPY (SELECT origin, delay_minutes FROM flights WHERE delay_minutes > 0 EMIT CHANGES LIMIT 3) TO STDOUT WITH (FORMAT csv, HEADER)";
    let (code, out, error) = run(psql(&server).args(["-At", "-c", first, "-c", copy])).await;
    assert_eq!((code, out.lines().count()), (Some(0), 5), "{out} {error}");
    assert!(out.contains("origin,delay_minutes"), "{out}");

    let (code, out, error) = run(psql(&server).args(["-c", "SELECT nosuch FROM flights"])).await;
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert_eq!(
        error,
        "ERROR:  column \"nosuch\" does not exist\nLINE 1: SELECT nosuch FROM flights\n               ^\n"
    );
    server.node.stop().await;
}

const PSYCOPG: &str = r#"
import os, datetime, decimal, uuid, psycopg
from psycopg.types.json import Jsonb

with psycopg.connect(os.environ["SERVER"], autocommit=True) as c:
    c.execute("CREATE STREAM p (a integer, b text, c timestamptz, d numeric(10, 2), e uuid, f jsonb, g integer[], h bytea)")
    row = (1, "x", datetime.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=datetime.timezone.utc), decimal.Decimal("1.50"),
           uuid.UUID(int=7), Jsonb({"k": [1, None]}), [1, None, 3], b"\x00\xff")
    put = "INSERT INTO p VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
    c.execute(put, row)
    c.execute(put.replace("%s", "%b"), row)
    for binary in (False, True):
        with c.cursor(binary=binary) as cursor:
            got = cursor.execute("SELECT * FROM p").fetchall()
            assert len(got) == 2 and got[0] == got[1], got
            assert got[0][:5] == row[:5] and got[0][5] == {"k": [1, None]} and list(got[0][6:]) == list(row[6:]), got
    with c.cursor() as cursor:
        cursor.executemany("INSERT INTO p (a) VALUES (%s)", [(n,) for n in range(100, 200)])
        assert cursor.rowcount == 100, cursor.rowcount
        cursor.execute("SELECT count(*) FROM p WHERE a >= %s", (100,))
        assert cursor.fetchone() == (100,)
        with cursor.copy("COPY p (a, b) FROM STDIN") as copy:
            for n in range(1000):
                copy.write_row((1000 + n, f"r\t{n}"))
        with cursor.copy("COPY (SELECT a, b FROM p WHERE a >= 1000 ORDER BY a LIMIT 3) TO STDOUT") as copy:
            assert list(copy.rows()) == [("1000", "r\t0"), ("1001", "r\t1"), ("1002", "r\t2")]
        with cursor.copy("COPY p TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4", "text", "timestamptz", "numeric", "uuid", "jsonb", "int4[]", "bytea"])
            got = list(copy.rows())
            assert len(got) == 1102 and got[0][:5] == row[:5] and got[0][6:] == row[6:], got[0]
    with c.transaction():
        c.execute("INSERT INTO p (a) VALUES (-1)")
        try:
            with c.transaction():
                c.execute("INSERT INTO p (a) VALUES (-2)")
                raise KeyError
        except KeyError:
            pass
    assert c.execute("SELECT a FROM p WHERE a < 0").fetchall() == [(-1,)]
    try:
        c.execute("SELECT nosuch FROM p")
        raise SystemExit("no error")
    except psycopg.errors.UndefinedColumn as error:
        assert error.diag.message_primary == 'column "nosuch" does not exist', error
    with c.transaction():
        with c.cursor(name="many") as cursor:
            cursor.itersize = 50
            cursor.execute("SELECT a FROM p WHERE a >= 1000 ORDER BY a")
            assert [a for (a,) in cursor] == list(range(1000, 2000))
    with c.pipeline():
        answers = [c.execute("SELECT %s::integer", (n,)) for n in range(20)]
    assert [a.fetchone()[0] for a in answers] == list(range(20))
print("all well")
"#;

/// UPDATE, DELETE and ON CONFLICT, in nested transactions and pipelines.
const PSYCOPG_CHANGES: &str = r#"
import os, psycopg
from psycopg import errors
conn = psycopg.connect(os.environ["SERVER"], autocommit=True)
conn.execute("CREATE TABLE acc (k integer PRIMARY KEY, n bigint NOT NULL, t text)")
with conn.cursor() as cur:
    cur.executemany("INSERT INTO acc VALUES (%s, %s, %s)", [(1, 10, "a"), (2, 20, "b"), (3, 30, None)])
    cur.execute("UPDATE acc SET n = n + %s WHERE k = %s RETURNING k, n", (5, 1))
    assert (cur.rowcount, cur.fetchall()) == (1, [(1, 15)])
    # One row several times in a pipeline: each starts from the one before.
    cur.executemany("UPDATE acc SET n = n + 1 WHERE k = %s", [(1,), (1,), (2,)])
    assert cur.rowcount == 3, cur.rowcount
    assert conn.execute("SELECT n FROM acc ORDER BY k").fetchall() == [(17,), (21,), (30,)]
    cur.execute("INSERT INTO acc VALUES (%s, %s) ON CONFLICT (k) DO UPDATE SET n = acc.n + excluded.n RETURNING n", (3, 7))
    assert cur.fetchone() == (37,)
with conn.transaction():
    conn.execute("DELETE FROM acc WHERE k = %s", (3,))
    try:
        with conn.transaction():
            conn.execute("UPDATE acc SET n = 0")
            raise ValueError
    except ValueError:
        pass
    try:
        with conn.transaction():
            conn.execute("UPDATE acc SET k = 2 WHERE k = 1")
    except errors.UniqueViolation as error:
        assert error.diag.message_detail == "Key (k)=(2) already exists."
    with conn.transaction():
        assert conn.execute("UPDATE acc SET t = 'new' WHERE k = 2").rowcount == 1
assert conn.execute("SELECT * FROM acc ORDER BY k").fetchall() == [(1, 17, "a"), (2, 21, "new")]
try:
    with conn.transaction():
        conn.execute("DELETE FROM acc")
        conn.execute("UPDATE acc SET n = NULL")
        conn.execute("UPDATE nothing SET n = NULL")
except errors.UndefinedTable:
    pass
else:
    raise AssertionError("accepted")
assert conn.execute("SELECT count(*) FROM acc").fetchone() == (2,)
with conn.pipeline():
    a = conn.execute("UPDATE acc SET n = n * 2 WHERE k = 1 RETURNING n")
    b = conn.execute("UPDATE acc SET n = n + 1 WHERE k = 1 RETURNING n")
    assert (a.fetchone(), b.fetchone()) == ((34,), (35,))
assert conn.execute("DELETE FROM acc USING (VALUES (1)) AS gone (k) WHERE acc.k = gone.k").rowcount == 1
print("done")
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psycopg_works_with_cursors_copy_and_binary_values() {
    let python = std::env::var("TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if !is_there(&python, &["-c", "import psycopg"]) {
        println!("skipped: {python} cannot import psycopg");
        return;
    }
    let server = Server::start().await;
    let address = server.node.pg_address();
    let place = format!("host={} port={} user=tester dbname=millstream", address.ip(), address.port());
    let (code, out, error) = run(Command::new(&python).args(["-c", PSYCOPG]).env("SERVER", &place)).await;
    assert_eq!((code, out.as_str()), (Some(0), "all well\n"), "{error}");
    let (code, out, error) = run(Command::new(&python).args(["-c", PSYCOPG_CHANGES]).env("SERVER", &place)).await;
    assert_eq!((code, out.as_str()), (Some(0), "done\n"), "{error}");
    let (code, out, error) = run(Command::new(&python).arg("examples/tail.py").env("SERVER", &place)).await;
    assert_eq!((code, out.lines().count()), (Some(0), 5), "{out}{error}");
    server.node.stop().await;
}

/// An example as `cargo test` built it beside the binary.
fn example(name: &str) -> Option<Command> {
    let path = std::path::Path::new(env!("CARGO_BIN_EXE_millstream")).with_file_name("examples").join(name);
    if path.exists() {
        return Some(Command::new(path));
    }
    println!("skipped: example {name} is not built; cargo test --workspace builds it");
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn examples_in_rust_do_what_they_say() {
    if let Some(mut embedded) = example("embedded") {
        let (code, out, error) = run(&mut embedded).await;
        assert_eq!(code, Some(0), "{error}");
        assert!(out.contains("2026-01-01 00:00:00+00") && out.contains("2026-01-01 00:01:00+00"), "{out}");
    }
    if let Some(mut tail) = example("tail") {
        let server = Server::start().await;
        let address = server.node.pg_address();
        let place = format!("host={} port={} user=tester dbname=millstream", address.ip(), address.port());
        let (code, out, error) = run(tail.env("SERVER", &place)).await;
        assert_eq!((code, out.lines().count()), (Some(0), 5), "{out}{error}");
        assert!(out.contains("offset 5: s2 at 21 °C"), "{out}");
        server.node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shell_copies_rows_to_its_output_and_to_files_and_nothing_else() {
    let server = Server::start().await;
    let port = server.node.pg_address().port().to_string();
    let dir = tempfile::tempdir().unwrap();
    let shell = |statement: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
        command.args(["sql", "-p", &port, "-c", statement]);
        command
    };
    let rows = "(SELECT n FROM generate_series(1, 2) AS n)";
    let (code, out, error) = run(&mut shell(&format!("COPY {rows} TO STDOUT"))).await;
    assert_eq!((code, out.as_str(), error.as_str()), (Some(0), "1\n2\n", ""));
    let file = dir.path().join("rows");
    let (code, out, error) = run(&mut shell(&format!("\\copy {rows} to '{}' (format binary)", file.display()))).await;
    assert_eq!((code, out.as_str(), error.as_str()), (Some(0), "", ""));
    let bytes = std::fs::read(&file).unwrap();
    assert!(bytes.starts_with(b"PGCOPY\n\xff") && bytes.ends_with(b"\0\0\0\x02\xff\xff"), "{bytes:?}");
    server.node.stop().await;
}
