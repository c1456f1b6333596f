//! The place of a row: its partition, and bytes that sort as ORDER BY does, from which the row comes back.
//!
//! Ties are settled by the row itself, so that the order never depends on how rows came. Leaves out who keeps the bytes
//! (`over`, `top_n`, and of the order alone `deduplicate`). Holds nothing.

use super::bounds::WindowBounds;
use super::delta::{Delta, NEVER, arrow_error, sql_error};
use super::expression::evaluate;
use super::slots::{KeyBytes, KeyCodec};
use crate::error::SqlError;
use crate::types::canonical;
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::row::SortField;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use std::collections::BTreeMap;
use std::sync::Arc;

/// PARTITION BY and ORDER BY over rows of a schema.
pub(super) struct RowOrder {
    partition: Vec<Arc<dyn PhysicalExpr>>,
    order: Vec<PhysicalSortExpr>,
    schema: SchemaRef,
    partitions: KeyCodec,
    /// The window among PARTITION BY whose rows change no more once it is closed.
    window: Option<WindowBounds>,
    /// The order, then the row.
    rows: KeyCodec,
    /// The order alone, which is what the bytes of a place begin with, where peers are told.
    peers: Option<KeyCodec>,
}

impl RowOrder {
    /// Of rows of `schema`.
    pub(super) fn new(
        partition: Vec<Arc<dyn PhysicalExpr>>,
        order: Vec<PhysicalSortExpr>,
        window: Option<WindowBounds>,
        schema: SchemaRef,
    ) -> Result<Self, SqlError> {
        let type_of = |expression: &Arc<dyn PhysicalExpr>| expression.data_type(&schema).map_err(sql_error);
        let types = partition.iter().map(type_of).collect::<Result<Vec<DataType>, _>>()?;
        let mut fields = order_fields(&order, &schema)?;
        fields.extend(schema.fields().iter().map(|field| SortField::new(field.data_type().clone())));
        Ok(Self {
            partitions: KeyCodec::new(&types)?,
            rows: KeyCodec::sorted(fields)?,
            peers: None,
            window,
            partition,
            order,
            schema,
        })
    }

    /// The same, which also tells what peers have in common.
    pub(super) fn with_peers(self) -> Result<Self, SqlError> {
        let peers = KeyCodec::sorted(order_fields(&self.order, &self.schema)?)?;
        Ok(Self { peers: Some(peers), ..self })
    }

    /// The same once more.
    pub(super) fn again(&self) -> Result<Self, SqlError> {
        let order = Self::new(self.partition.clone(), self.order.clone(), self.window, Arc::clone(&self.schema))?;
        if self.peers.is_some() { order.with_peers() } else { Ok(order) }
    }

    fn partition_columns(&self, delta: &Delta) -> Result<Vec<ArrayRef>, SqlError> {
        self.partition.iter().map(|key| Ok(canonical(evaluate(key.as_ref(), delta)?))).collect()
    }

    /// The partition of each row.
    pub(super) fn partitions(&self, delta: &Delta) -> Result<KeyBytes, SqlError> {
        self.partitions.encode(&self.partition_columns(delta)?)
    }

    /// The partition and the place in it of each row.
    pub(super) fn place(&self, delta: &Delta) -> Result<Placed, SqlError> {
        Ok(self.place_some(delta, |_, _| (0..delta.len() as u32).collect())?.1)
    }

    /// The rows that are wanted by their partitions and what they have in common with their peers, as far as that is told,
    /// and where they belong. The places of the others are not computed.
    pub(super) fn place_some(
        &self,
        delta: &Delta,
        wanted: impl FnOnce(&KeyBytes, Option<&KeyBytes>) -> Vec<u32>,
    ) -> Result<(Delta, Placed), SqlError> {
        let partition = self.partition_columns(delta)?;
        let closes = self.window.and_then(|window| window.closes(&partition));
        let order = self.order.iter().map(|one| evaluate(one.expr.as_ref(), delta));
        let mut columns = order.collect::<Result<Vec<ArrayRef>, SqlError>>()?;
        let peers = self.peers.as_ref().map(|peers| peers.encode(&columns)).transpose()?;
        let partitions = self.partitions.encode(&partition)?;
        let picked = wanted(&partitions, peers.as_ref());
        let (delta, picked) = match picked.len() == delta.len() {
            true => (delta.clone(), None),
            false => {
                let rows = UInt32Array::from(picked.clone());
                let taken = columns.iter().map(|column| compute::take(column, &rows, None));
                columns = taken.collect::<Result<_, _>>().map_err(arrow_error)?;
                (delta.take(&rows)?, Some(picked))
            }
        };
        columns.extend(delta.batch.columns().iter().cloned());
        let rows = self.rows.encode(&columns)?;
        Ok((delta, Placed { partitions, rows, peers, closes, picked }))
    }

    /// The rows at `places`.
    pub(super) fn rows<'a>(&self, places: impl Iterator<Item = &'a [u8]>) -> Result<RecordBatch, SqlError> {
        let places: Vec<&[u8]> = places.collect();
        let options = RecordBatchOptions::new().with_row_count(Some(places.len()));
        let columns = self.rows.decode(places.into_iter())?.into_iter().skip(self.order.len()).collect();
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options).map_err(arrow_error)
    }

    /// For the fingerprint.
    pub(super) fn text(&self) -> String {
        let partition: Vec<String> = self.partition.iter().map(ToString::to_string).collect();
        let order: Vec<String> = self.order.iter().map(ToString::to_string).collect();
        let types: Vec<String> = self.schema.fields().iter().map(|field| field.data_type().to_string()).collect();
        let window = self.window.map_or_else(String::new, |window| window.text());
        format!("by {} {window} order {} of {}", partition.join(", "), order.join(", "), types.join(", "))
    }
}

/// What ORDER BY is encoded as.
pub(super) fn order_fields(order: &[PhysicalSortExpr], schema: &SchemaRef) -> Result<Vec<SortField>, SqlError> {
    let field = |one: &PhysicalSortExpr| {
        let data_type = one.expr.data_type(schema).map_err(sql_error)?;
        Ok(SortField::new_with_options(data_type, one.options))
    };
    order.iter().map(field).collect()
}

/// Where rows belong.
pub(super) struct Placed {
    partitions: KeyBytes,
    /// Places within them.
    rows: KeyBytes,
    /// What places of peers have in common, where that was asked for.
    peers: Option<KeyBytes>,
    /// When the partition's window goes.
    closes: Option<Vec<i64>>,
    /// Which rows have places, of those that the rest is of; `None` for all.
    picked: Option<Vec<u32>>,
}

impl Placed {
    /// Where a row with a place was before some were picked.
    fn whole(&self, row: usize) -> usize {
        self.picked.as_ref().map_or(row, |picked| picked[row] as usize)
    }

    /// The partition of a row.
    pub(super) fn partition(&self, row: usize) -> &[u8] {
        self.partitions.get(self.whole(row))
    }

    /// The place of a row.
    pub(super) fn row(&self, row: usize) -> &[u8] {
        self.rows.get(row)
    }

    /// How many bytes of its place a row has in common with its peers, where that was asked for.
    pub(super) fn peers_len(&self, row: usize) -> usize {
        self.peers.as_ref().map_or(0, |peers| peers.get(self.whole(row)).len())
    }
}

/// Partitions by the time at which their windows go.
#[derive(Default)]
pub(super) struct Closing(BTreeMap<i64, Vec<Arc<[u8]>>>);

impl Closing {
    /// Notes a new partition, that of `row`.
    pub(super) fn note(&mut self, placed: &Placed, row: usize) {
        if let Some(closes) = &placed.closes {
            self.0.entry(closes[placed.whole(row)]).or_default().push(placed.partition(row).into());
        }
    }

    /// The first time at which partitions go; `i64::MAX` for never.
    pub(super) fn due(&self) -> i64 {
        self.0.first_key_value().map_or(i64::MAX, |(closes, _)| *closes)
    }

    /// The partitions that go as time has reached `end`. One that went before may be among them.
    pub(super) fn until(&mut self, end: i64) -> Vec<Arc<[u8]>> {
        let mut gone = Vec::new();
        while let Some(first) = self.0.first_entry() {
            if end == NEVER || *first.key() > end {
                break;
            }
            gone.extend(first.remove());
        }
        gone
    }
}

/// `batch` with `columns` after its first `at`.
pub(super) fn insert_columns(
    batch: &RecordBatch,
    at: usize,
    columns: Vec<ArrayRef>,
    schema: &SchemaRef,
) -> Result<RecordBatch, SqlError> {
    let (first, last) = batch.columns().split_at(at.min(batch.num_columns()));
    let all = first.iter().cloned().chain(columns).chain(last.iter().cloned()).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), all, &options).map_err(arrow_error)
}
