//! Events of one and of 64 MiB, by every way a row comes in: the one is stored, the other refused, and nothing stays.

use crate::common::{connect, words};
use crate::crash::Process;
use arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use arrow::ipc::writer::StreamWriter;
use bytes::{BufMut, Bytes, BytesMut};
use futures::SinkExt;
use std::sync::Arc;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Error};

const MEBIBYTE: usize = 1 << 20;

/// How a row is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Literal,
    TextParameter,
    BinaryParameter,
    Select,
    Text,
    Csv,
    Binary,
    Json,
    Arrow,
}

const WAYS: [Way; 9] = [
    Way::Literal,
    Way::TextParameter,
    Way::BinaryParameter,
    Way::Select,
    Way::Text,
    Way::Csv,
    Way::Binary,
    Way::Json,
    Way::Arrow,
];

/// A text, sent as text or as binary.
#[derive(Debug)]
struct Value<'a>(&'a str, bool);

impl ToSql for Value<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        if self.1 { Format::Text } else { Format::Binary }
    }

    to_sql_checked!();
}

/// Sends row `n` with `text` by COPY, in pieces as programs send them.
async fn copy(client: &Client, format: &str, data: Bytes) -> Result<u64, Error> {
    let sink = client.copy_in(&format!("COPY s FROM STDIN (FORMAT {format})")).await?;
    let mut sink = std::pin::pin!(sink);
    for at in (0..data.len()).step_by(MEBIBYTE) {
        sink.send(data.slice(at..data.len().min(at + MEBIBYTE))).await?;
    }
    sink.as_mut().finish().await
}

fn binary(n: i32, text: &str) -> Bytes {
    let mut data = BytesMut::from(&b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0"[..]);
    data.put_i16(2);
    data.put_i32(4);
    data.put_i32(n);
    data.put_i32(i32::try_from(text.len()).unwrap());
    data.put(text.as_bytes());
    data.put_i16(-1);
    data.freeze()
}

fn arrow(n: i32, text: &str) -> Bytes {
    let columns: [(&str, ArrayRef); 2] =
        [("n", Arc::new(Int32Array::from(vec![n]))), ("v", Arc::new(StringArray::from(vec![text])))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    Bytes::from(writer.into_inner().unwrap())
}

async fn put(client: &Client, way: Way, n: i32, text: &str) -> Result<u64, Error> {
    let insert = "INSERT INTO s VALUES ($1, $2)";
    match way {
        Way::Literal => client.simple_query(&format!("INSERT INTO s VALUES ({n}, '{text}')")).await.map(|_| 1),
        Way::TextParameter => client.execute(insert, &[&n, &Value(text, true)]).await,
        Way::BinaryParameter => client.execute(insert, &[&n, &Value(text, false)]).await,
        Way::Select => {
            let sql = format!("INSERT INTO s SELECT {n}, repeat('x', {})", text.len());
            client.simple_query(&sql).await.map(|_| 1)
        }
        Way::Text => copy(client, "text", format!("{n}\t{text}\n").into()).await,
        Way::Csv => copy(client, "csv", format!("{n},{text}\n").into()).await,
        Way::Json => copy(client, "json", format!("{{\"n\": {n}, \"v\": \"{text}\"}}\n").into()).await,
        Way::Binary => copy(client, "binary", binary(n, text)).await,
        Way::Arrow => copy(client, "arrow", arrow(n, text)).await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_a_mebibyte_is_stored_and_one_of_64_refused_by_every_way() {
    let dir = tempfile::tempdir().unwrap();
    let server = Process::start(dir.path());
    let client = connect(server.address).await;
    client.batch_execute("CREATE STREAM s (n integer, v text)").await.unwrap();
    let event = "x".repeat(MEBIBYTE);
    for (n, way) in (0..).zip(WAYS) {
        let put = put(&client, way, n, &event).await;
        assert_eq!(put.unwrap_or_else(|error| panic!("{way:?}: {}", words(&error))), 1);
        let read: String = client.query_one("SELECT v FROM s WHERE n = $1", &[&n]).await.unwrap().get(0);
        assert!(read == event, "{way:?}");
    }
    let stored = i64::try_from(WAYS.len()).unwrap();
    // The message itself must be within what a message may be, so the literal and the parameters are a little less.
    let (large, event) = ("x".repeat(64 * MEBIBYTE), "x".repeat(64 * MEBIBYTE - 100));
    let mut resident = Vec::new();
    for round in 0..3 {
        for way in WAYS {
            for text in [&event, &large].into_iter().skip(usize::from(round > 0)) {
                let refused = put(&client, way, -1, text).await;
                let error = refused.expect_err("64 MiB");
                let Some(said) = error.as_db_error() else { panic!("{way:?}: {error}") };
                assert_eq!(said.code().code(), "54000", "{way:?}: {}", words(&error));
                assert!(said.hint().is_some() || said.detail().is_some(), "{way:?}: {said:?}");
                // The session goes on.
                let count: i64 = client.query_one("SELECT count(*) FROM s", &[]).await.unwrap().get(0);
                assert_eq!(count, stored, "{way:?}");
            }
        }
        resident.push(server.resident_bytes());
    }
    // What the first round needed may be kept for the next one; each further round needs no more.
    let grown = resident[2].saturating_sub(resident[1]);
    assert!(grown < 96 << 20, "{resident:?}");
}
