//! The wire protocol, byte by byte: what no driver would send, and what drivers rely on.
//!
//! The client here shares no code with the server. Every wait has the common deadline.

use crate::common::{DEADLINE, Server};
use proptest::prelude::*;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const STARTUP: &[u8] = b"\0\0\0\x15\0\x03\0\0user\0tester\0\0";

/// A client that knows frames and nothing else.
pub(crate) struct Raw {
    socket: TcpStream,
    pub(crate) key: Vec<u8>,
}

/// A message of the server: its type, and its body with zeros shown as spaces.
pub(crate) type Message = (char, String);

pub(crate) fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', format!("{sql}\0").as_bytes())
}

pub(crate) fn parse(name: &str, sql: &str) -> Vec<u8> {
    frame(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

/// Binds without parameters, results in text.
pub(crate) fn bind(portal: &str, statement: &str) -> Vec<u8> {
    frame(b'B', format!("{portal}\0{statement}\0\0\0\0\0\0\0").as_bytes())
}

fn describe_portal(name: &str) -> Vec<u8> {
    frame(b'D', format!("P{name}\0").as_bytes())
}

pub(crate) fn execute(portal: &str, rows_max: u8) -> Vec<u8> {
    frame(b'E', &[portal.as_bytes(), &[0, 0, 0, 0, rows_max]].concat())
}

pub(crate) fn sync() -> Vec<u8> {
    frame(b'S', b"")
}

impl Raw {
    async fn open(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.unwrap()
    }

    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut raw = Self { socket: Self::open(address).await, key: Vec::new() };
        raw.send(&[STARTUP]).await;
        loop {
            let (tag, body) = raw.frame().await.expect("the server closed");
            match tag {
                b'K' => raw.key = body,
                b'Z' => return raw,
                _ => {}
            }
        }
    }

    pub(crate) async fn send(&mut self, parts: &[&[u8]]) {
        timeout(DEADLINE, self.socket.write_all(&parts.concat())).await.expect("the server does not read").unwrap();
    }

    /// The next frame; `None` when the server has closed.
    pub(crate) async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let reading = async {
            let mut header = [0; 5];
            self.socket.read_exact(&mut header).await.ok()?;
            let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
            let mut body = vec![0; length - 4];
            self.socket.read_exact(&mut body).await.ok()?;
            Some((header[0], body))
        };
        timeout(DEADLINE, reading).await.expect("the server is silent")
    }

    pub(crate) async fn message(&mut self) -> Message {
        let (tag, body) = self.frame().await.expect("the server closed");
        (char::from(tag), String::from_utf8_lossy(&body).replace('\0', " "))
    }

    /// Types of the messages up to ReadyForQuery, its status last: `CZI` after a simple command.
    pub(crate) async fn tags(&mut self) -> String {
        self.messages().await.iter().map(|(tag, _)| *tag).collect()
    }

    /// Messages up to ReadyForQuery, and its status as a message of its own type.
    pub(crate) async fn messages(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let (tag, body) = self.message().await;
            messages.push((tag, body.clone()));
            if tag == 'Z' {
                messages.push((body.chars().next().unwrap(), body));
                return messages;
            }
        }
    }

    /// Compares the types of messages.
    #[track_caller]
    fn expect(tags: String, expected: &str) {
        assert_eq!(tags, expected);
    }

    pub(crate) async fn run(&mut self, sql: &str) -> Vec<Message> {
        self.send(&[&query(sql)]).await;
        self.messages().await
    }

    /// The one value a query gives.
    pub(crate) async fn value(&mut self, sql: &str) -> String {
        let messages = self.run(sql).await;
        let (_, row) = messages.iter().find(|(tag, _)| *tag == 'D').unwrap_or_else(|| panic!("{sql}: {messages:?}"));
        row[6..].trim_start_matches(|c: char| c.is_control() || c == ' ').to_owned()
    }

    /// Reads to the end of the connection; the code of the last error.
    async fn closed_with(&mut self) -> Option<String> {
        let mut last = None;
        while let Some((tag, body)) = self.frame().await {
            if tag == b'E' {
                last = Some(code(&String::from_utf8_lossy(&body).replace('\0', " ")));
            }
        }
        last
    }

    async fn cancel(&self, address: SocketAddr) {
        let mut socket = Self::open(address).await;
        socket.write_all(&[&b"\0\0\0\x10\x04\xd2\x16\x2e"[..], &self.key].concat()).await.unwrap();
        let mut rest = Vec::new();
        timeout(DEADLINE, socket.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert!(rest.is_empty());
    }
}

/// The SQLSTATE in an error's fields.
fn code(body: &str) -> String {
    body.split(' ').find_map(|field| field.strip_prefix('C')).unwrap_or_default().to_owned()
}

/// The codes of the errors among messages; the status of a failed transaction is none.
pub(crate) fn errors(messages: &[Message]) -> Vec<String> {
    messages.iter().filter(|(tag, body)| *tag == 'E' && body != "E").map(|(_, body)| code(body)).collect()
}

async fn eventually(raw: &mut Raw, sql: &str, expected: &str) {
    let waiting = async {
        while raw.value(sql).await != expected {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("{sql} never gave {expected}"));
}

pub(crate) async fn start() -> (Server, SocketAddr, Raw) {
    let server = Server::start().await;
    let address = server.node.pg_address();
    let raw = Raw::connect(address).await;
    (server, address, raw)
}

#[tokio::test]
async fn the_handshake_tells_drivers_what_they_need() {
    let (_server, address, _) = start().await;
    let mut raw = Raw { socket: Raw::open(address).await, key: Vec::new() };
    raw.send(&[STARTUP]).await;
    let messages = raw.messages().await;
    assert_eq!(messages[0].0, 'R');
    for setting in [
        "server_version 15.0",
        "server_encoding UTF8",
        "client_encoding UTF8",
        "DateStyle ISO, MDY",
        "TimeZone UTC",
        "integer_datetimes on",
        "standard_conforming_strings on",
        "application_name ",
        "is_superuser on",
        "session_authorization tester",
        "IntervalStyle postgres",
        "in_hot_standby off",
    ] {
        assert!(messages.iter().any(|(tag, body)| *tag == 'S' && body.starts_with(setting)), "{setting}: {messages:?}");
    }
    assert_eq!(messages.last().unwrap().0, 'I');
}

#[tokio::test]
async fn encryption_is_declined_and_clear_text_behind_the_request_is_refused() {
    let (_server, address, mut other) = start().await;
    let request = b"\0\0\0\x08\x04\xd2\x16\x2f";
    let mut raw = Raw { socket: Raw::open(address).await, key: Vec::new() };
    raw.send(&[request]).await;
    assert_eq!(raw.socket.read_u8().await.unwrap(), b'N');
    raw.send(&[STARTUP]).await;
    assert!(raw.tags().await.ends_with("KZI"));

    let mut raw = Raw { socket: Raw::open(address).await, key: Vec::new() };
    raw.send(&[request, STARTUP, &query("SELECT 1")]).await;
    assert_eq!(raw.closed_with().await.as_deref(), Some("08P01"));
    assert_eq!(other.value("SELECT 42").await, "42");
}

#[tokio::test]
async fn what_is_not_the_protocol_is_refused_and_others_are_unharmed() {
    let (_server, address, mut other) = start().await;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\0\0\0\x03", b"\xff\xff\xff\xff\xff\xff\xff\xff"] {
        let mut raw = Raw { socket: Raw::open(address).await, key: Vec::new() };
        raw.send(&[bytes]).await;
        assert_eq!(raw.closed_with().await.as_deref(), Some("08P01"), "{bytes:?}");
    }
    for bytes in [&b"!\0\0\0\x04"[..], b"Q\0\0\0\x03", b"S\xff\xff\xff\xff", b"p\0\0\0\x05x"] {
        let mut raw = Raw::connect(address).await;
        raw.send(&[bytes]).await;
        assert_eq!(raw.closed_with().await.as_deref(), Some("08P01"), "{bytes:?}");
    }
    let mut half = Raw::open(address).await;
    half.write_all(&STARTUP[..9]).await.unwrap();
    drop(half);
    assert_eq!(other.value("SELECT 42").await, "42");
}

#[tokio::test]
async fn a_message_that_lies_about_itself_fails_alone() {
    let (_server, _, mut raw) = start().await;
    raw.send(&[&frame(b'Q', b"SELECT 1")]).await;
    assert_eq!(errors(&raw.messages().await), ["08P01"]);
    raw.send(&[&frame(b'Q', b"SELECT '\xff'\0")]).await;
    assert_eq!(errors(&raw.messages().await), ["22021"]);
    raw.send(&[&frame(b'B', b"\0\0\0\0\xff\xff"), &sync()]).await;
    assert_eq!(errors(&raw.messages().await), ["08P01"]);
    raw.send(&[&frame(b'F', b"\0\0\0\x01\0\0\0\0\0\0")]).await;
    assert_eq!(errors(&raw.messages().await), ["0A000"]);
    assert_eq!(raw.value("SELECT 42").await, "42");
}

#[tokio::test]
async fn a_statement_of_100_megabytes_is_refused_once_and_the_session_goes_on() {
    let (_server, _, mut raw) = start().await;
    let chunk = vec![b'x'; 1 << 20];
    for tag in [b'Q', b'P'] {
        raw.send(&[&[tag], &(100_u32 << 20).to_be_bytes()]).await;
        let mut left = (100 << 20) - 4;
        while left > 0 {
            let here = left.min(chunk.len());
            raw.send(&[&chunk[..here]]).await;
            left -= here;
        }
        if tag == b'P' {
            raw.send(&[&sync()]).await;
        }
        assert_eq!(errors(&raw.messages().await), ["54000"]);
    }
    assert_eq!(raw.value("SELECT 42").await, "42");
}

#[tokio::test]
async fn empty_texts_have_their_own_answer() {
    let (_server, _, mut raw) = start().await;
    raw.send(&[&query(" ; "), &parse("", ""), &bind("", ""), &describe_portal(""), &execute("", 0), &sync()]).await;
    Raw::expect(raw.tags().await, "IZI");
    Raw::expect(raw.tags().await, "12nIZI");
}

#[tokio::test]
async fn after_an_error_everything_up_to_sync_is_skipped_and_what_follows_runs() {
    let (_server, _, mut raw) = start().await;
    let good = [parse("", "SELECT 1"), bind("", ""), execute("", 0)].concat();
    raw.send(&[&good, &parse("", "SELECT nonsense"), &good, &query("SELECT 2"), &sync(), &good, &sync()]).await;
    Raw::expect(raw.tags().await, "12DCEZI");
    Raw::expect(raw.tags().await, "12DCZI");
    raw.send(&[&bind("", "missing"), &sync(), &execute("missing", 0), &sync()]).await;
    assert_eq!(errors(&raw.messages().await), ["26000"]);
    assert_eq!(errors(&raw.messages().await), ["34000"]);
    raw.send(&[&parse("", "SELECT 1; SELECT 2"), &sync()]).await;
    assert_eq!(errors(&raw.messages().await), ["42601"]);
}

#[tokio::test]
async fn errors_of_types_have_their_place_in_the_text() {
    let (_server, _, mut raw) = start().await;
    raw.run("CREATE STREAM s (n INT, t TEXT)").await;
    let texts = [
        ("SELECT 1; SELECT n + t FROM s", " P20 "),
        ("SELECT n FROM s WHERE n = 'ä' OR t = 'x'", " P27 "),
        ("INSERT INTO s VALUES (1, 'a') RETURNING nope", " P41 "),
        ("CREATE TABLE c AS SELECT n, sum(t) FROM s GROUP BY n EMIT CHANGES", " P29 "),
    ];
    for (sql, place) in texts {
        let messages = raw.run(sql).await;
        let (_, error) = messages.iter().find(|(tag, _)| *tag == 'E').unwrap_or_else(|| panic!("{sql}: {messages:?}"));
        assert!(error.contains(place), "{sql}: {error}");
    }
    raw.send(&[&parse("", "SELECT upper(n) FROM s"), &sync()]).await;
    assert!(raw.messages().await[0].1.contains(" P8 "));
}

#[tokio::test]
async fn names_of_statements_and_portals_are_taken_until_closed() {
    let (_server, _, mut raw) = start().await;
    let close = |what: u8| frame(b'C', &[&[what][..], b"n\0"].concat());
    raw.send(&[&parse("n", "SELECT 1"), &sync(), &parse("n", "SELECT 2"), &sync()]).await;
    Raw::expect(raw.tags().await, "1ZI");
    assert_eq!(errors(&raw.messages().await), ["42P05"]);
    raw.send(&[
        &close(b'S'),
        &parse("n", "SELECT 2"),
        &bind("n", "n"),
        &close(b'P'),
        &bind("n", "n"),
        &bind("n", "n"),
        &sync(),
    ])
    .await;
    let messages = raw.messages().await;
    assert_eq!(messages.iter().map(|(tag, _)| *tag).collect::<String>(), "31232EZI");
    assert_eq!(errors(&messages), ["42P03"]);
    // Outside of a transaction, Sync has closed the portal.
    raw.send(&[&execute("n", 0), &sync()]).await;
    assert_eq!(errors(&raw.messages().await), ["34000"]);
}

#[tokio::test]
async fn columns_come_in_the_format_asked_for_each() {
    let (_server, _, mut raw) = start().await;
    let bind = frame(b'B', b"\0\0\0\0\0\0\0\x02\0\x01\0\0");
    raw.send(&[&parse("", "SELECT 7::int4 AS a, 8::int4 AS b"), &bind, &execute("", 0), &sync()]).await;
    let row = loop {
        let (tag, body) = raw.frame().await.unwrap();
        if tag == b'D' {
            break body;
        }
    };
    assert_eq!(row, b"\0\x02\0\0\0\x04\0\0\0\x07\0\0\0\x018");
}

#[tokio::test]
async fn a_row_limit_is_filled_exactly_and_the_portal_goes_on_within_its_transaction() {
    let (_server, address, mut raw) = start().await;
    let mut writer = Raw::connect(address).await;
    writer.run("CREATE STREAM s (n INT)").await;
    raw.run("BEGIN").await;
    raw.send(&[&parse("", "SELECT n FROM s EMIT CHANGES"), &bind("p", ""), &describe_portal("p"), &sync()]).await;
    Raw::expect(raw.tags().await, "12TZT");
    raw.send(&[&execute("p", 3), &sync()]).await;
    // The subscription begins when the portal first runs; from then on each row is seen.
    eventually(&mut writer, "SELECT count(*) FROM millstream.sessions WHERE statement LIKE '%EMIT%CHANGES'", "1").await;
    writer.run("INSERT INTO s VALUES (1), (2)").await;
    writer.run("INSERT INTO s VALUES (3), (4), (5)").await;
    Raw::expect(raw.tags().await.replace('N', ""), "DDDsZT");
    raw.send(&[&execute("p", 2), &sync()]).await;
    Raw::expect(raw.tags().await, "DDsZT");
    assert_eq!(errors(&raw.run("COMMIT").await), Vec::<String>::new());
    raw.send(&[&sync(), &execute("p", 2), &sync()]).await;
    Raw::expect(raw.tags().await, "ZI");
    assert_eq!(errors(&raw.messages().await), ["34000"]);
}

#[tokio::test]
async fn a_cursor_is_a_portal_too() {
    let (_server, _, mut raw) = start().await;
    raw.run("BEGIN").await;
    raw.run("DECLARE c CURSOR FOR SELECT * FROM (VALUES (1), (2), (3)) AS v(n) ORDER BY n").await;
    raw.send(&[&describe_portal("c"), &execute("c", 2), &execute("c", 2), &sync()]).await;
    Raw::expect(raw.tags().await, "TDDsDCZT");
    raw.send(&[&frame(b'C', b"Pc\0"), &describe_portal("c"), &sync()]).await;
    let messages = raw.messages().await;
    assert_eq!(errors(&messages), ["34000"]);
    assert_eq!(messages.last().unwrap().0, 'E');
}

#[tokio::test]
async fn statements_of_one_text_commit_together() {
    let (_server, _, mut raw) = start().await;
    raw.run("CREATE STREAM s (n INT)").await;
    let messages = raw.run("INSERT INTO s VALUES (1); INSERT INTO s VALUES (2); SELECT 1/0").await;
    assert_eq!(errors(&messages), ["22012"]);
    assert_eq!(raw.value("SELECT count(*) FROM s").await, "0");
    raw.send(&[&query("INSERT INTO s VALUES (1); INSERT INTO s VALUES (2)")]).await;
    Raw::expect(raw.tags().await, "CCZI");
    assert_eq!(raw.value("SELECT count(*) FROM s").await, "2");
}

#[tokio::test]
async fn statements_before_one_sync_commit_together() {
    let (_server, address, mut raw) = start().await;
    let mut other = Raw::connect(address).await;
    raw.run("CREATE STREAM s (n INT)").await;
    let run = |sql: &str| [parse("", sql), bind("", ""), execute("", 0)].concat();
    let (one, two) = (run("INSERT INTO s VALUES (1)"), run("INSERT INTO s VALUES (2)"));
    raw.send(&[&one, &two, &run("SELECT 1/0"), &two, &sync()]).await;
    Raw::expect(raw.tags().await, "12C12C12EZI");
    assert_eq!(other.value("SELECT count(*) FROM s").await, "0");
    // Nothing is there before Sync.
    raw.send(&[&one, &two, &frame(b'H', b"")]).await;
    for expected in "12C12C".chars() {
        assert_eq!(char::from(raw.frame().await.unwrap().0), expected);
    }
    assert_eq!(other.value("SELECT count(*) FROM s").await, "0");
    raw.send(&[&sync()]).await;
    Raw::expect(raw.tags().await, "ZI");
    assert_eq!(other.value("SELECT count(*) FROM s").await, "2");
    // A simple query ends a pipeline as Sync does, and BEGIN takes it along into its block.
    raw.send(&[&one, &query("INSERT INTO s VALUES (3)")]).await;
    Raw::expect(raw.tags().await, "12CCZI");
    assert_eq!(other.value("SELECT count(*) FROM s").await, "4");
    raw.send(&[&one, &run("BEGIN"), &two, &sync()]).await;
    Raw::expect(raw.tags().await, "12C12C12CZT");
    raw.run("ROLLBACK").await;
    assert_eq!(other.value("SELECT count(*) FROM s").await, "4");
    // A setting is part of it.
    raw.send(&[&run("SET extra_float_digits = 3"), &run("SELECT 1/0"), &sync()]).await;
    assert_eq!(errors(&raw.messages().await), ["22012"]);
    assert_eq!(raw.value("SHOW extra_float_digits").await, "1");
}

#[tokio::test]
async fn offsets_are_given_within_a_pipeline() {
    let (_server, _, mut raw) = start().await;
    raw.run("CREATE STREAM s (n INT)").await;
    let place = parse("place", "INSERT INTO s VALUES (1) RETURNING rowoffset");
    let again = [bind("", "place"), execute("", 0)].concat();
    let one = [parse("", "INSERT INTO s VALUES (0)"), bind("", ""), execute("", 0)].concat();
    raw.send(&[&place, &one, &again, &one, &again, &sync()]).await;
    let rows = raw.messages().await.into_iter().filter(|(tag, _)| *tag == 'D').map(|(_, body)| body);
    let offsets: Vec<String> = rows.map(|row| row.chars().last().unwrap().to_string()).collect();
    assert_eq!(offsets, ["1", "3"]);
    // Of changed rows, whether something stands behind them or not.
    raw.run("CREATE TABLE t (k INT PRIMARY KEY, v INT); INSERT INTO t VALUES (1, 1), (2, 2)").await;
    let run = |sql: &str| [parse("", sql), bind("", ""), execute("", 0)].concat();
    let changes = [
        run("UPDATE t SET v = 2 WHERE k = 1 RETURNING rowpartition, rowoffset"),
        run("INSERT INTO t VALUES (2, 0) ON CONFLICT (k) DO UPDATE SET v = 3 RETURNING rowpartition, rowoffset"),
        run("UPDATE t SET v = 4 WHERE k = 2 RETURNING rowpartition, rowoffset"),
    ];
    raw.send(&[&changes.concat(), &sync()]).await;
    let rows = raw.messages().await.into_iter().filter(|(tag, _)| *tag == 'D').map(|(_, body)| body);
    let offsets: Vec<String> = rows.map(|row| row.chars().last().unwrap().to_string()).collect();
    assert_eq!(offsets, ["2", "3", "4"]);
}

#[tokio::test]
async fn portals_end_with_their_transaction() {
    let (_server, _, mut raw) = start().await;
    raw.run("BEGIN").await;
    raw.send(&[&parse("", "SELECT 1"), &bind("p", ""), &sync()]).await;
    Raw::expect(raw.tags().await, "12ZT");
    raw.run("COMMIT").await;
    raw.send(&[&execute("p", 0), &sync()]).await;
    assert_eq!(errors(&raw.messages().await), ["34000"]);
}

#[tokio::test]
async fn copy_takes_data_that_is_cut_anywhere_and_passes_over_sync() {
    let (_server, _, mut raw) = start().await;
    raw.run("CREATE STREAM s (n INT, t TEXT)").await;
    raw.send(&[&parse("", "COPY s FROM STDIN"), &bind("", ""), &execute("", 0), &sync()]).await;
    for part in [&b"1\ta\n2"[..], b"\tb\n3\t", b"c\n"] {
        raw.send(&[&frame(b'd', part)]).await;
    }
    raw.send(&[&frame(b'c', b""), &sync()]).await;
    Raw::expect(raw.tags().await, "12GCZI");
    assert_eq!(raw.value("SELECT count(*) FROM s").await, "3");
}

#[tokio::test]
async fn a_copy_that_fails_is_reported_while_the_client_still_sends() {
    let (_server, _, mut raw) = start().await;
    raw.run("CREATE STREAM s (n INT)").await;
    raw.send(&[&query("COPY s FROM STDIN"), &frame(b'd', b"1\nx\n")]).await;
    assert_eq!(raw.message().await.0, 'G');
    let (tag, error) = raw.message().await;
    assert!(tag == 'E' && error.contains(" WCOPY s, line 2, column n: \"x\" "), "{error}");
    assert_eq!(raw.message().await.0, 'Z');
    raw.send(&[&frame(b'd', &[b'2'; 100_000]), &frame(b'c', b""), &query("SELECT 1")]).await;
    Raw::expect(raw.tags().await, "TDCZI");

    raw.send(&[&parse("", "COPY s FROM STDIN"), &bind("", ""), &execute("", 0), &frame(b'd', b"x\n")]).await;
    for expected in ['1', '2', 'G', 'E'] {
        assert_eq!(raw.message().await.0, expected);
    }
    raw.send(&[&frame(b'd', b"1\n"), &frame(b'c', b""), &sync()]).await;
    Raw::expect(raw.tags().await, "ZI");

    raw.send(&[&query("COPY s FROM STDIN"), &frame(b'd', b"1\n"), &frame(b'f', b"no more\0")]).await;
    assert_eq!(errors(&raw.messages().await), ["57014"]);
    assert_eq!(raw.value("SELECT count(*) FROM s").await, "0");
}

#[tokio::test]
async fn a_client_that_disconnects_within_a_copy_leaves_nothing() {
    let (_server, address, mut other) = start().await;
    other.run("CREATE STREAM s (n INT)").await;
    let mut raw = Raw::connect(address).await;
    raw.send(&[&query("COPY s FROM STDIN"), &frame(b'd', b"1\n2\n")]).await;
    assert_eq!(raw.message().await.0, 'G');
    drop(raw);
    eventually(&mut other, "SELECT count(*) FROM millstream.sessions", "1").await;
    assert_eq!(other.value("SELECT count(*) FROM s").await, "0");
}

#[tokio::test]
async fn copy_out_sends_one_row_in_each_message() {
    let (_server, _, mut raw) = start().await;
    let copy = "COPY (SELECT * FROM (VALUES (1), (2)) AS v(n) ORDER BY n) TO STDOUT WITH (FORMAT csv, HEADER)";
    let messages = raw.run(copy).await;
    let data: Vec<&str> = messages.iter().filter(|(tag, _)| *tag == 'd').map(|(_, body)| body.as_str()).collect();
    assert_eq!(data, ["n\n", "1\n", "2\n"]);
    assert!(messages.contains(&('C', "COPY 2 ".to_owned())), "{messages:?}");
}

/// Copy data of a statement that was sent: the format of the response, and the next `n` messages of data.
async fn copied(raw: &mut Raw, n: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (mut response, mut data) = (Vec::new(), Vec::new());
    while data.len() < n {
        match raw.frame().await.unwrap() {
            (b'H', body) => response = body,
            (b'd', body) => data.push(body),
            (b'N', _) => {}
            other => panic!("{other:?}"),
        }
    }
    (response, data)
}

#[tokio::test]
async fn copy_out_in_binary_is_that_of_postgresql_for_pulls_and_subscriptions() {
    let (_server, address, mut raw) = start().await;
    let signature = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
    raw.run("CREATE STREAM s (n INT, t TEXT)").await;
    raw.run("INSERT INTO s VALUES (1, 'a'), (NULL, '')").await;
    let rows: [&[u8]; 3] = [
        b"\0\x02\0\0\0\x04\0\0\0\x01\0\0\0\x01a",
        b"\0\x02\xff\xff\xff\xff\0\0\0\0",
        b"\0\x02\0\0\0\x04\0\0\0\x07\xff\xff\xff\xff",
    ];
    raw.send(&[&query("COPY s TO STDOUT (FORMAT binary)")]).await;
    let (response, data) = copied(&mut raw, 3).await;
    assert_eq!(response, b"\x01\0\x02\0\x01\0\x01");
    assert_eq!(data, [[signature, rows[0]].concat(), rows[1].to_vec(), b"\xff\xff".to_vec()]);
    Raw::expect(raw.tags().await, "cCZI");
    raw.send(&[&query("COPY (SELECT n FROM s WHERE n > 5) TO STDOUT BINARY")]).await;
    assert_eq!(copied(&mut raw, 1).await.1, [[&signature[..], b"\xff\xff"].concat()]);
    Raw::expect(raw.tags().await, "cCZI");

    raw.send(&[&query("COPY (SELECT * FROM s EMIT CHANGES) TO STDOUT (FORMAT binary)")]).await;
    assert_eq!(raw.message().await.0, 'H');
    let mut other = Raw::connect(address).await;
    for (row, values) in [(rows[0], "(1, 'a')"), (rows[2], "(7, NULL)")] {
        other.run(&format!("INSERT INTO s VALUES {values}")).await;
        let (_, data) = copied(&mut raw, 1).await;
        assert!(data[0].ends_with(row), "{data:?}");
    }
    raw.cancel(address).await;
    assert_eq!(errors(&raw.messages().await), ["57014"]);
}

#[tokio::test]
async fn copy_out_in_arrow_is_a_stream_whose_batches_arrive_at_once() {
    let (_server, address, mut raw) = start().await;
    raw.run("CREATE STREAM s (n INT, \"T\" TEXT, d NUMERIC(5, 2))").await;
    raw.send(&[&query("COPY (SELECT n + 1 AS m, * FROM s EMIT CHANGES LIMIT 3) TO STDOUT (FORMAT arrow)")]).await;
    // The schema is there before a row is.
    let (response, mut data) = copied(&mut raw, 1).await;
    assert_eq!(response, b"\x01\0\x04\0\x01\0\x01\0\x01\0\x01");
    let mut other = Raw::connect(address).await;
    let mut stream = arrow::ipc::reader::StreamDecoder::new();
    assert!(stream.decode(&mut data.remove(0).into()).unwrap().is_none());
    for (values, rows) in [("(1, 'a', 1.5)", 1), ("(2, NULL, NULL), (3, '', 2)", 2)] {
        other.run(&format!("INSERT INTO s VALUES {values}")).await;
        let (_, mut data) = copied(&mut raw, 1).await;
        let batch = stream.decode(&mut data.remove(0).into()).unwrap().unwrap();
        let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!((batch.num_rows(), names.join(" ").as_str()), (rows, "m n T d"));
    }
    assert_eq!(copied(&mut raw, 1).await.1, [b"\xff\xff\xff\xff\0\0\0\0"]);
    Raw::expect(raw.tags().await, "cCZI");
    let messages = raw.run("COPY s TO STDOUT (FORMAT arrow)").await;
    assert!(messages.contains(&('C', "COPY 3 ".to_owned())), "{messages:?}");
}

#[tokio::test]
async fn a_running_statement_is_cancelled_wherever_it_waits() {
    let (_server, address, mut raw) = start().await;
    raw.run("CREATE STREAM s (n INT)").await;
    let large = "SELECT repeat('x', 1000) FROM generate_series(1, 1000000)";
    for (bytes, answer) in [
        (query("SELECT n FROM s EMIT CHANGES"), 'T'),
        (query("COPY (SELECT n FROM s EMIT CHANGES) TO STDOUT"), 'H'),
        (query("COPY s FROM STDIN"), 'G'),
        // Nothing is read: the write is blocked.
        (query(large), 'T'),
        ([parse("", "SELECT n FROM s EMIT CHANGES"), bind("", ""), execute("", 5), sync()].concat(), '2'),
    ] {
        raw.send(&[&bytes]).await;
        while raw.message().await.0 != answer {}
        raw.cancel(address).await;
        assert_eq!(errors(&raw.messages().await), ["57014"], "{answer}");
    }
    // One that comes late has no effect.
    raw.cancel(address).await;
    assert_eq!(raw.value("SELECT 42").await, "42");
}

#[tokio::test]
async fn a_wrong_key_cancels_nothing() {
    let (_server, address, mut raw) = start().await;
    raw.run("CREATE STREAM s (n INT)").await;
    let mut key = raw.key.clone();
    key[7] ^= 1;
    let wrong = Raw { socket: Raw::open(address).await, key };
    raw.send(&[&query("COPY s FROM STDIN")]).await;
    assert_eq!(raw.message().await.0, 'G');
    wrong.cancel(address).await;
    raw.send(&[&frame(b'd', b"1\n"), &frame(b'c', b"")]).await;
    Raw::expect(raw.tags().await, "CZI");
}

#[tokio::test]
async fn a_subscription_ends_with_its_client() {
    let (_server, address, mut other) = start().await;
    other.run("CREATE STREAM s (n INT)").await;
    let mut closed = Raw::connect(address).await;
    closed.send(&[&query("SELECT n FROM s EMIT CHANGES")]).await;
    while closed.message().await.0 != 'T' {}
    drop(closed);
    let mut terminated = Raw::connect(address).await;
    terminated.send(&[&query("SELECT n FROM s EMIT CHANGES"), &frame(b'X', b"")]).await;
    eventually(&mut other, "SELECT count(*) FROM millstream.sessions", "1").await;
    drop(terminated);
}

#[tokio::test]
async fn a_stopping_server_tells_its_clients() {
    let (server, address, mut idle) = start().await;
    idle.run("CREATE STREAM s (n INT)").await;
    let mut subscribed = Raw::connect(address).await;
    subscribed.send(&[&query("SELECT n FROM s EMIT CHANGES")]).await;
    while subscribed.message().await.0 != 'T' {}
    let ((), idle, subscribed) = tokio::join!(server.node.stop(), idle.closed_with(), subscribed.closed_with());
    assert_eq!(idle.as_deref(), Some("57P01"));
    assert_eq!(subscribed.as_deref(), Some("57P01"));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_statement_timeout_ends_a_subscription() {
    let (_server, _, mut raw) = start().await;
    raw.run("CREATE STREAM s (n INT)").await;
    raw.run("SET statement_timeout = '500ms'").await;
    assert_eq!(errors(&raw.run("SELECT n FROM s EMIT CHANGES").await), ["57014"]);
    // A slow machine may need more than one.
    while !errors(&raw.run("RESET statement_timeout").await).is_empty() {}
    assert_eq!(raw.value("SELECT 42").await, "42");
}

#[tokio::test]
async fn a_fetch_timeout_may_come_short_but_never_empty() {
    let (_server, address, mut raw) = start().await;
    let mut writer = Raw::connect(address).await;
    writer.run("CREATE STREAM s (n INT)").await;
    raw.run("SET fetch_timeout = '20ms'").await;
    raw.send(&[&parse("", "SELECT n FROM s EMIT CHANGES"), &bind("", ""), &execute("", 5), &sync()]).await;
    eventually(&mut writer, "SELECT count(*) FROM millstream.sessions WHERE statement LIKE '%EMIT%CHANGES'", "1").await;
    writer.run("INSERT INTO s VALUES (1), (2)").await;
    Raw::expect(raw.tags().await.replace('N', ""), "12DDsZI");
}

#[test]
fn no_bytes_of_a_client_harm_the_server() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (server, address, mut other) = runtime.block_on(start());
    let junk = || proptest::collection::vec(any::<u8>(), 0..60);
    let message =
        (proptest::sample::select(b"QPBDECSHdcfF".to_vec()), junk()).prop_map(|(tag, body)| frame(tag, &body));
    let bytes = proptest::collection::vec(prop_oneof![4 => message, 1 => junk()], 0..8);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 100, ..ProptestConfig::default() });
    let result = runner.run(&bytes, |parts| {
        runtime.block_on(async {
            let mut raw = Raw::connect(address).await;
            // The server may have closed before all of it was sent.
            let _ = raw.socket.write_all(&parts.concat()).await;
            let _ = raw.socket.shutdown().await;
            let mut rest = Vec::new();
            let _ = timeout(DEADLINE, raw.socket.read_to_end(&mut rest)).await.expect("the server hangs");
        });
        Ok(())
    });
    result.unwrap();
    assert_eq!(runtime.block_on(other.value("SELECT 42")), "42");
    runtime.block_on(server.node.stop());
}
