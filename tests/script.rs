//! Golden scripts: several sessions, and the rows each receives, in order.
//!
//! A line names a session and what happens:
//! `a: SQL` runs a statement to its end; `a* SQL` begins one that does not end and waits for its columns;
//! `a= x|y` is the next row (`∅` is NULL); `a! 42P01` is the error of the statement; `a~` cancels it and
//! expects 57014; `#` begins a comment. A statement's rows must all be expected before its session's next line.

use crate::common::{DEADLINE, Server, connect, words};
use futures::StreamExt;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryStream};

struct Session {
    client: Client,
    rows: VecDeque<String>,
    stream: Option<Pin<Box<SimpleQueryStream>>>,
    error: Option<String>,
}

fn row_text(row: &tokio_postgres::SimpleQueryRow) -> String {
    (0..row.len()).map(|i| row.get(i).unwrap_or("∅").to_owned()).collect::<Vec<_>>().join("|")
}

impl Session {
    fn settle(&mut self, line: &str) {
        assert!(self.rows.is_empty(), "before `{line}`: rows nobody expected: {:?}", self.rows);
        assert!(self.error.is_none(), "before `{line}`: an error nobody expected: {:?}", self.error);
    }

    async fn run(&mut self, sql: &str) {
        match self.client.simple_query(sql).await {
            Ok(messages) => {
                for message in messages {
                    if let SimpleQueryMessage::Row(row) = message {
                        self.rows.push_back(row_text(&row));
                    }
                }
            }
            Err(error) => self.error = Some(words(&error)),
        }
    }

    async fn begin(&mut self, sql: &str) {
        let mut stream = Box::pin(self.client.simple_query_raw(sql).await.unwrap());
        match stream.next().await {
            Some(Ok(SimpleQueryMessage::RowDescription(_))) => self.stream = Some(stream),
            Some(Err(error)) => self.error = Some(words(&error)),
            other => panic!("no columns for {sql}: {other:?}"),
        }
    }

    async fn next(&mut self) -> Result<String, String> {
        if let Some(row) = self.rows.pop_front() {
            return Ok(row);
        }
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let Some(stream) = &mut self.stream else { return Err("no more rows".to_owned()) };
        loop {
            match stream.next().await {
                Some(Ok(SimpleQueryMessage::Row(row))) => return Ok(row_text(&row)),
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    self.stream = None;
                    return Err(words(&error));
                }
                None => {
                    self.stream = None;
                    return Err("the rows have ended".to_owned());
                }
            }
        }
    }
}

async fn play(name: &str, text: &str) {
    let server = Server::start().await;
    let mut sessions: HashMap<String, Session> = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = line.find([':', '*', '=', '!', '~']).unwrap_or_else(|| panic!("{name}:{}: what is this?", number + 1));
        let (who, rest) = line.split_at(at);
        let (what, rest) = rest.split_at(1);
        let rest = rest.trim();
        if !sessions.contains_key(who) {
            let client = connect(server.node.pg_address()).await;
            let session = Session { client, rows: VecDeque::new(), stream: None, error: None };
            sessions.insert(who.to_owned(), session);
        }
        let session = sessions.get_mut(who).unwrap();
        let place = format!("{name}:{}: {line}", number + 1);
        let act = async {
            match what {
                ":" | "*" => {
                    session.settle(&place);
                    if what == ":" { session.run(rest).await } else { session.begin(rest).await }
                }
                "=" => match session.next().await {
                    Ok(row) => assert_eq!(row, rest, "{place}"),
                    Err(error) => panic!("{place}: {error}"),
                },
                "!" => match session.next().await {
                    Ok(row) => panic!("{place}: came {row}"),
                    Err(error) => assert!(error.starts_with(rest), "{place}: came {error}"),
                },
                _ => {
                    session.client.cancel_token().cancel_query(NoTls).await.unwrap();
                    let error = session.next().await.expect_err("cancelled");
                    assert!(error.starts_with("57014"), "{place}: came {error}");
                }
            }
        };
        tokio::time::timeout(DEADLINE, act).await.unwrap_or_else(|_| panic!("{place}: nothing came"));
    }
    for session in sessions.values_mut() {
        session.settle("the end");
    }
    drop(sessions);
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_receive_the_rows_written_down() {
    let mut files: Vec<_> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        play(&file.file_name().unwrap().to_string_lossy(), &text).await;
    }
}
