//! Statements and their rows: every file of `tests/slt`, each against a node of its own, over the wire.
//!
//! `statement error` lines match `SQLSTATE: message`.

use crate::common::{self, Server};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};
use std::path::PathBuf;
use tokio_postgres::{Client, SimpleQueryMessage};

struct Session(Client);

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Words(String);

#[async_trait::async_trait]
impl AsyncDB for Session {
    type Error = Words;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Words> {
        let answer = tokio::time::timeout(common::DEADLINE, self.0.simple_query(sql)).await;
        let answer = answer.map_err(|_| Words("no answer".to_owned()))?;
        let messages = answer.map_err(|error| Words(common::words(&error)))?;
        let mut rows = Vec::new();
        let mut width = None;
        let mut count = 0;
        for message in messages {
            match message {
                SimpleQueryMessage::RowDescription(columns) => width = Some(columns.len()),
                SimpleQueryMessage::Row(row) => rows.push(
                    (0..row.len())
                        .map(|i| match row.get(i) {
                            None => "NULL".to_owned(),
                            Some("") => "(empty)".to_owned(),
                            Some(value) => value.to_owned(),
                        })
                        .collect(),
                ),
                SimpleQueryMessage::CommandComplete(n) => count = n,
                _ => {}
            }
        }
        Ok(match width {
            Some(width) => DBOutput::Rows { types: vec![DefaultColumnType::Text; width], rows },
            None => DBOutput::StatementComplete(count),
        })
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &'static str {
        "millstream"
    }
}

fn files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slt"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "slt"))
        .collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_give_the_rows_and_errors_written_down() {
    let files = files();
    assert!(!files.is_empty());
    let mut failures = Vec::new();
    for file in files {
        let server = Server::start().await;
        let address = server.node.pg_address();
        let mut runner = Runner::new(move || async move { Ok(Session(common::connect(address).await)) });
        for record in sqllogictest::parse_file(&file).unwrap() {
            if let Err(error) = runner.run_async(record).await {
                failures.push(error.display(false).to_string());
            }
        }
        runner.shutdown_async().await;
        server.node.stop().await;
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
