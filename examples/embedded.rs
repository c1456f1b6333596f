//! The engine inside a program: no socket, no second process.
//!
//! `cargo run --release --example embedded`

use futures::StreamExt;
use millstream::config::{Config, SEAL_BYTES};
use millstream::engine::types::ColumnEncoder;
use millstream::engine::{Engine, EngineConfig, Outcome, Session, SessionOptions, SqlError, Via};
use millstream::env;
use millstream::storage::RealDisk;
use std::sync::Arc;

/// Runs a statement and prints its rows.
async fn run(session: &mut Session, sql: &str) -> Result<(), SqlError> {
    println!("{sql}");
    for parsed in session.parse(sql).await? {
        let prepared = session.prepare(parsed, &[]).await?;
        match session.execute(&prepared, vec![], Via::Simple).await? {
            Outcome::Rows(mut rows) => {
                while let Some(batch) = rows.stream.next().await {
                    let batch = batch?;
                    let encoders: Vec<ColumnEncoder> = rows
                        .columns
                        .iter()
                        .zip(batch.columns())
                        .map(|(column, array)| ColumnEncoder::new(array.as_ref(), &column.sql_type))
                        .collect();
                    for row in 0..batch.num_rows() {
                        let mut line = Vec::new();
                        for encoder in &encoders {
                            line.extend_from_slice(b"  ");
                            encoder.text(row, &mut line);
                        }
                        println!("{}", String::from_utf8_lossy(&line));
                    }
                }
            }
            Outcome::Command { tag } => println!("  {tag}"),
            Outcome::CopyIn(_) | Outcome::CopyOut(_) | Outcome::Empty => {}
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let config = EngineConfig {
        data_dir: dir.path().join("data"),
        shards: 1,
        seal_bytes: SEAL_BYTES,
        query_threads: 2,
        memory: Config::default().memory,
        offsets_retention: Config::default().offsets_retention,
    };
    let engine = Engine::open(config, Arc::new(RealDisk), env::system_clock()).await?;
    let mut session = engine.session(SessionOptions { user: "embedded".to_owned(), ..SessionOptions::default() })?;
    run(&mut session, "CREATE STREAM clicks (page text KEY, at timestamp) WITH (timestamp = 'at')").await?;
    run(
        &mut session,
        "CREATE TABLE per_minute AS SELECT page, count(*) AS clicks FROM clicks \
         WINDOW TUMBLING (SIZE 1 MINUTE) GROUP BY page EMIT CHANGES",
    )
    .await?;
    run(
        &mut session,
        "INSERT INTO clicks VALUES ('/', '2026-01-01 00:00:05'), ('/buy', '2026-01-01 00:00:20'), \
         ('/', '2026-01-01 00:00:40'), ('/', '2026-01-01 00:01:10')",
    )
    .await?;
    run(&mut session, "FLUSH").await?;
    run(&mut session, "SELECT page, windowstart, clicks FROM per_minute ORDER BY windowstart, page").await?;
    drop(session);
    engine.shutdown().await;
    Ok(())
}
