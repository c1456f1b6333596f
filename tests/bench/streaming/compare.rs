//! Whether a continuous query's result is that of the same SELECT run once: the same rows, in any order.

use crate::kit::report::thousands;
use futures::StreamExt as _;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::pin::pin;
use tokio_postgres::Client;

/// Rows of each side that a difference shows.
const ROWS_SHOWN: usize = 3;

/// Rows without their order: how many, and the sum of what each hashes to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rows {
    count: usize,
    sum: u128,
}

/// What is found.
#[derive(Debug)]
pub(crate) enum Comparison {
    /// So many rows on both sides.
    Equal(usize),
    /// What differs.
    Different(String),
}

/// Compares the relation `name` with `select`, by the columns of `select`.
pub(crate) async fn compare(client: &Client, name: &str, select: &str) -> Result<Comparison, tokio_postgres::Error> {
    let statement = client.prepare(select).await?;
    let columns: Vec<String> = statement.columns().iter().map(|column| format!("\"{}\"", column.name())).collect();
    let stored = format!("SELECT {} FROM {name}", columns.join(", "));
    let (found, expected) = (rows(client, &stored).await?, rows(client, select).await?);
    if found == expected {
        return Ok(Comparison::Equal(found.count));
    }
    let mut differing: HashMap<Vec<u8>, i64> = HashMap::new();
    each_row(client, &stored, |row| *differing.entry(row.to_vec()).or_default() += 1).await?;
    each_row(client, select, |row| *differing.entry(row.to_vec()).or_default() -= 1).await?;
    let shown = |sign: i64| {
        let rows = differing.iter().filter(|(_, times)| times.signum() == sign);
        let texts = rows.map(|(row, _)| String::from_utf8_lossy(row).into_owned());
        texts.take(ROWS_SHOWN).collect::<Vec<_>>().join("; ")
    };
    let (found, expected) = (thousands(found.count as f64), thousands(expected.count as f64));
    Ok(Comparison::Different(format!(
        "{found} rows, run once {expected}; too much: {}; missing: {}",
        shown(1),
        shown(-1)
    )))
}

async fn rows(client: &Client, select: &str) -> Result<Rows, tokio_postgres::Error> {
    let mut rows = Rows::default();
    each_row(client, select, |row| {
        rows.count += 1;
        rows.sum = rows.sum.wrapping_add(hash(row));
    })
    .await?;
    Ok(rows)
}

fn hash(row: &[u8]) -> u128 {
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        (seed, row).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

/// Calls `visit` with each row, as COPY's text.
async fn each_row(client: &Client, select: &str, mut visit: impl FnMut(&[u8])) -> Result<(), tokio_postgres::Error> {
    let mut parts = pin!(client.copy_out(&format!("COPY ({select}) TO STDOUT")).await?);
    let mut begun = Vec::new();
    while let Some(part) = parts.next().await.transpose()? {
        let mut lines = part.split(|byte| *byte == b'\n');
        let Some(last) = lines.next_back() else { continue };
        for line in lines {
            begun.extend_from_slice(line);
            visit(&begun);
            begun.clear();
        }
        begun.extend_from_slice(last);
    }
    Ok(())
}
