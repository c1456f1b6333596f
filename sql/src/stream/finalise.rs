//! EMIT FINAL: each row once, when it cannot change any more.
//!
//! Rows of windows wait until their window closes; rows that never change, until time has passed their event time, so that
//! they come in its order. Leaves out windows themselves (`aggregate`). State: the rows that wait.

use super::aggregate::WindowBounds;
use super::call::Rows;
use super::delta::{Delta, NEVER, Origin, Weights};
use super::operator::{Operator, only};
use super::part::Part;
use super::rows::RowCodec;
use super::save::{StateReader, StateWriter};
use super::store::{Came, Entry, Kept, Store};
use crate::error::SqlError;
use arrow::array::{Int64Array, TimestampMicrosecondArray, UInt32Array};
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::{ByteSize, Span};
use std::sync::Arc;

/// Rows that wait.
pub(crate) struct Finalise {
    codec: RowCodec,
    /// Where rows change: which column tells when they do not any more.
    window: Option<WindowBounds>,
    /// How far the time of the rows may be behind the query's.
    delay: Span,
    store: Store,
}

impl Finalise {
    /// Of rows of `schema`, that go if `rows` says so.
    pub(crate) fn new(
        schema: SchemaRef,
        rows: Rows,
        window: Option<WindowBounds>,
        delay: Span,
    ) -> Result<Self, SqlError> {
        let store = if rows == Rows::Go { Store::of_going() } else { Store::of_staying() };
        Ok(Self { codec: RowCodec::new(schema)?, window, delay, store })
    }

    fn keep(&mut self, input: &Delta) -> Result<(), SqlError> {
        let rows = self.codec.encode(&input.batch)?;
        let closes = self.window.and_then(|window| window.closes(input.batch.columns()));
        for row in 0..input.len() {
            if input.weights.is_gone(row) {
                self.store.remove(rows.get(row));
                continue;
            }
            let rowtime = input.rowtime.value(row);
            let expires = match &closes {
                Some(closes) => closes[row],
                None => rowtime.saturating_add(self.delay.micros()).saturating_add(1),
            };
            self.store.insert(Kept {
                row: rows.get(row).into(),
                key: None,
                rowtime,
                expires,
                matches: 0,
                came: Came::default(),
            });
        }
        Ok(())
    }

    fn told(&self, rows: &[Entry], origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        let last_row = origin.clock.len().saturating_sub(1) as u32;
        let clock = rows.iter().map(|entry| entry.expires.saturating_sub(1));
        Ok(Delta {
            batch: self.codec.decode(rows.iter().map(|entry| entry.row.as_ref()))?,
            rowtime: TimestampMicrosecondArray::from_iter_values(rows.iter().map(|entry| entry.rowtime))
                .with_timezone("UTC"),
            weights: Weights::Ones,
            rows: Some(UInt32Array::from(vec![last_row; rows.len()])),
            clock: Some(Int64Array::from_iter_values(clock)),
            origin: Arc::clone(origin),
        })
    }
}

impl Operator for Finalise {
    fn step(&mut self, inputs: Vec<Delta>, origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        self.keep(&only(inputs)?)?;
        let told = if origin.end == NEVER { Vec::new() } else { self.store.expire(origin.end) };
        self.told(&told, origin)
    }

    fn save(&self, state: &mut StateWriter, part: Part) -> Result<(), SqlError> {
        self.store.save("rows", &self.codec, state, |entry| part.has(&entry.row))
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        self.store.restore("rows", &self.codec, state, |batch| Ok(vec![None; batch.num_rows()]))
    }

    fn fresh(&self) -> Result<Option<Box<dyn Operator>>, SqlError> {
        let codec = RowCodec::new(Arc::clone(self.codec.schema()))?;
        Ok(Some(Box::new(Self { codec, window: self.window, delay: self.delay, store: self.store.fresh() })))
    }

    fn hashes(&self, _: usize, delta: &Delta) -> Result<Vec<u64>, SqlError> {
        Ok(self.codec.encode(&delta.batch)?.hashes(delta.len()))
    }

    fn due(&self) -> i64 {
        self.store.due()
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn state_bytes(&self) -> ByteSize {
        ByteSize::of(self.store.bytes())
    }

    fn fingerprint(&self) -> String {
        let window = self.window.map(|window| (window.key, window.close(0)));
        format!("finalise({}; {window:?} {})", self.codec.text(), self.delay.micros())
    }
}
