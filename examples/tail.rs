//! A producer and a subscriber in one program, over the wire with tokio-postgres.
//!
//! Start a server with `cargo run --release -- start`, then `cargo run --release --example tail`.

use futures::StreamExt;
use std::pin::pin;
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};

/// The server, unless SERVER names another.
const SERVER: &str = "host=127.0.0.1 port=7432 user=millstream dbname=millstream";

async fn connect() -> Result<Client, Error> {
    let server = std::env::var("SERVER").unwrap_or_else(|_| SERVER.to_owned());
    let (client, connection) = tokio_postgres::connect(&server, NoTls).await?;
    #[expect(clippy::disallowed_methods, reason = "an example has no seam")]
    tokio::spawn(connection);
    Ok(client)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let producer = connect().await?;
    producer.batch_execute("CREATE STREAM IF NOT EXISTS readings (sensor text KEY, celsius double precision)").await?;

    // A push query: rows come as they are committed, until LIMIT.
    let subscriber = connect().await?;
    let rows = subscriber
        .simple_query_raw("SELECT sensor, celsius, rowoffset FROM readings WHERE celsius > 20 EMIT CHANGES LIMIT 5")
        .await?;
    let mut rows = pin!(rows);
    // The columns come first: from here on the subscription is open.
    rows.next().await.transpose()?;

    let insert = producer.prepare("INSERT INTO readings (sensor, celsius) VALUES ($1, $2)").await?;
    for i in 0..10 {
        let celsius = 16.0 + f64::from(i);
        producer.execute(&insert, &[&format!("s{}", i % 3), &celsius]).await?;
    }

    while let Some(message) = rows.next().await {
        if let SimpleQueryMessage::Row(row) = message? {
            let value = |i| row.get(i).unwrap_or("NULL");
            println!("offset {}: {} at {} °C", value(2), value(0), value(1));
        }
    }
    Ok(())
}
