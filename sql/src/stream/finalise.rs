//! EMIT FINAL: each row once, when it cannot change any more.
//!
//! Rows of windows wait until their window closes; rows that never change, until time has passed their event time, so that
//! they come in its order. Leaves out windows themselves (`aggregate`). State: the rows that wait.

use super::bounds::WindowBounds;
use super::call::Rows;
use super::delta::{Delta, NEVER, Origin, Weights};
use super::heap::Wanted;
use super::operator::{Operator, only};
use super::part::Part;
use super::rows::RowCodec;
use super::save::{StateReader, StateWriter};
use super::store::{Entry, Going, Kept, Store};
use crate::error::SqlError;
use arrow::array::{Int64Array, TimestampMicrosecondArray, UInt32Array};
use arrow::datatypes::SchemaRef;
use millstream_catalog::model::{ByteSize, Span};
use std::sync::Arc;

/// Rows whose parts are computed together.
const ROWS_AT_ONCE: usize = 16_384;

/// Rows that wait.
pub(crate) struct Finalise {
    /// Tells the parts of rows.
    codec: RowCodec,
    rows: Rows,
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
        let store = Store::new(Arc::clone(&schema), &[], Going::of(rows == Rows::Go, window.is_some()))?;
        Ok(Self { codec: RowCodec::new(schema)?, rows, window, delay, store })
    }

    fn keep(&mut self, input: &Delta) -> Result<(), SqlError> {
        let closes = self.window.and_then(|window| window.closes(input.batch.columns()));
        let hashes = self.store.hashes(&input.batch)?;
        let ids = self.store.take_in(&input.batch, &input.come())?;
        let (mut ids, mut wanted) = (ids.into_iter(), Wanted::new(&input.batch));
        for row in 0..input.len() {
            let hash = hashes.get(row).copied();
            if input.weights.is_gone(row) {
                let goes = closes.as_ref().map(|closes| closes[row]);
                self.store.remove(hash.unwrap_or_default(), goes, &mut wanted, row)?;
                continue;
            }
            let Some(id) = ids.next() else { break };
            let rowtime = input.rowtime.value(row);
            let expires = match &closes {
                Some(closes) => closes[row],
                None => rowtime.saturating_add(self.delay.micros()).saturating_add(1),
            };
            self.store.keep(id, hash, Kept { key: None, rowtime, expires, matches: 0, came: None });
        }
        Ok(())
    }

    fn told(&self, rows: &[(u32, Entry)], origin: &Arc<Origin>) -> Result<Delta, SqlError> {
        let last_row = origin.clock.len().saturating_sub(1) as u32;
        let clock = rows.iter().map(|(_, entry)| entry.expires.saturating_sub(1));
        Ok(Delta {
            batch: self.store.batch(&rows.iter().map(|(id, _)| *id).collect::<Vec<u32>>())?,
            rowtime: TimestampMicrosecondArray::from_iter_values(rows.iter().map(|(_, entry)| entry.rowtime))
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
        let told = if origin.end == NEVER { Vec::new() } else { self.store.expire(origin.end)? };
        let told = self.told(&told, origin)?;
        self.store.end_step()?;
        Ok(told)
    }

    fn save(&self, state: &mut StateWriter, part: Part) -> Result<(), SqlError> {
        let mut rows: Vec<(u32, &Entry)> = self.store.rows().collect();
        if part != Part::WHOLE {
            let mut wanted = Vec::with_capacity(rows.len());
            for some in rows.chunks(ROWS_AT_ONCE) {
                let batch = self.store.batch(&some.iter().map(|(id, _)| *id).collect::<Vec<u32>>())?;
                let hashes = self.codec.encode(&batch)?.hashes(some.len());
                wanted.extend(some.iter().zip(hashes).filter(|(_, hash)| part.takes(*hash)).map(|(row, _)| *row));
            }
            rows = wanted;
        }
        self.store.save("rows", &rows, state)
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        self.store.restore("rows", state, |_, _| Ok(None))
    }

    fn fresh(&self) -> Result<Option<Box<dyn Operator>>, SqlError> {
        Ok(Some(Box::new(Self::new(Arc::clone(self.store.schema()), self.rows, self.window, self.delay)?)))
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
        let window = self.window.map_or_else(String::new, |window| window.text());
        format!("finalise({}; {window} {})", self.codec.text(), self.delay.micros())
    }
}
