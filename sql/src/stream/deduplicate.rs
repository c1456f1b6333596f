//! The first row of each partition, in its new forms: `row_number() OVER (…) = 1` of rows that stay, `DISTINCT ON`.
//!
//! What is told of a partition is its row now, not the one that it takes the place of; so no row is kept, but where the
//! first one is in the order. Leaves out other numbers and rows that go (`top_n`). The pipeline calls it. State: partitions, and
//! that place; a crash costs the steps since it was saved.

use super::delta::{Delta, Origin, arrow_error, downcast, sql_error};
use super::expression::evaluate;
use super::heap::hashes;
use super::operator::{Merging, Operator, only};
use super::ordered::order_fields;
use super::part::Part;
use super::rows::types_text;
use super::save::{StateReader, StateWriter};
use super::slots::{KeyBytes, KeyCodec};
use super::top_n::Number;
use crate::error::SqlError;
use crate::types::canonical;
use arrow::array::{ArrayRef, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::HashMap;
use datafusion::common::hash_map::EntryRef;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use millstream_catalog::model::ByteSize;
use std::sync::Arc;

/// Memory of a partition beside its bytes and those of its order, about.
const ENTRY_BYTES: usize = 88;

/// What is deduplicated.
#[derive(Clone)]
pub(crate) struct Deduplication {
    /// PARTITION BY.
    pub(crate) partition: Vec<Arc<dyn PhysicalExpr>>,
    /// ORDER BY.
    pub(crate) order: Vec<PhysicalSortExpr>,
    /// What becomes of the number, which is 1.
    pub(crate) number: Number,
    /// The columns of the input.
    pub(crate) input: SchemaRef,
    /// Those before the number.
    pub(crate) visible: usize,
    /// What comes out.
    pub(crate) schema: SchemaRef,
}

/// Gives the first row of each partition whenever it is another one.
///
/// In: rows that stay. Out: new forms by partition, of which each has one in a step.
pub(crate) struct Deduplicate {
    spec: Deduplication,
    keys: KeyCodec,
    orders: KeyCodec,
    first: HashMap<Box<[u8]>, First>,
    /// Steps since this was made.
    steps: u64,
    bytes: usize,
}

/// The first row of a partition.
struct First {
    order: Box<[u8]>,
    /// Its hash: what is before among rows of the same order.
    tie: u64,
    /// The last step that found another one, and which of those it is.
    step: u64,
    at: u32,
}

/// Rows by what counts of them.
struct Places {
    keys: KeyBytes,
    orders: KeyBytes,
    ties: Vec<u64>,
}

impl Deduplicate {
    /// No rows yet.
    pub(crate) fn new(spec: Deduplication) -> Result<Self, SqlError> {
        let type_of = |one: &Arc<dyn PhysicalExpr>| one.data_type(&spec.input).map_err(sql_error);
        let types = spec.partition.iter().map(type_of).collect::<Result<Vec<DataType>, _>>()?;
        Ok(Self {
            keys: KeyCodec::new(&types)?,
            orders: KeyCodec::sorted(order_fields(&spec.order, &spec.input)?)?,
            spec,
            first: HashMap::new(),
            steps: 0,
            bytes: 0,
        })
    }

    fn partitions(&self, delta: &Delta) -> Result<KeyBytes, SqlError> {
        let columns = self.spec.partition.iter().map(|key| Ok(canonical(evaluate(key.as_ref(), delta)?)));
        self.keys.encode(&columns.collect::<Result<Vec<ArrayRef>, SqlError>>()?)
    }

    fn places(&self, delta: &Delta) -> Result<Places, SqlError> {
        let columns = self.spec.order.iter().map(|one| evaluate(one.expr.as_ref(), delta));
        let columns = columns.collect::<Result<Vec<ArrayRef>, SqlError>>()?;
        let (keys, orders) = (self.partitions(delta)?, self.orders.encode(&columns)?);
        Ok(Places { keys, orders, ties: hashes(&delta.batch)? })
    }

    /// Takes rows; gives those that are the first of their partitions now and were not before, ascending.
    fn take(&mut self, places: &Places) -> Vec<u32> {
        self.steps += 1;
        let mut found: Vec<u32> = Vec::with_capacity(places.ties.len());
        for (row, tie) in places.ties.iter().enumerate() {
            let (key, order) = (places.keys.get(row), places.orders.get(row));
            let next = found.len() as u32;
            match self.first.entry_ref(key) {
                EntryRef::Vacant(vacant) => {
                    self.bytes += key.len() + order.len() + ENTRY_BYTES;
                    let first = First { order: order.into(), tie: *tie, step: self.steps, at: next };
                    vacant.insert_with_key(key.into(), first);
                    found.push(row as u32);
                }
                EntryRef::Occupied(mut occupied) => {
                    let first = occupied.get_mut();
                    if (order, *tie) >= (&first.order, first.tie) {
                        continue;
                    }
                    self.bytes = self.bytes + order.len() - first.order.len();
                    match first.order.len() == order.len() {
                        true => first.order.copy_from_slice(order),
                        false => first.order = order.into(),
                    }
                    first.tie = *tie;
                    if first.step == self.steps {
                        found[first.at as usize] = row as u32;
                    } else {
                        (first.step, first.at) = (self.steps, next);
                        found.push(row as u32);
                    }
                }
            }
        }
        found.sort_unstable();
        found
    }
}

impl Operator for Deduplicate {
    fn step(&mut self, inputs: Vec<Delta>, _: &Arc<Origin>) -> Result<Delta, SqlError> {
        let input = only(inputs)?;
        let found = self.take(&self.places(&input)?);
        let rows = if found.len() == input.len() { input } else { input.take(&UInt32Array::from(found))? };
        let ones = std::iter::repeat_n(1, rows.len());
        let batch = self.spec.number.insert(&rows.batch, self.spec.visible, ones, &self.spec.schema)?;
        Ok(Delta { batch, ..rows })
    }

    fn check(&self, inputs: &[Delta]) -> Result<(), SqlError> {
        inputs.iter().try_for_each(|input| self.places(input).map(drop))
    }

    fn save(&self, state: &mut StateWriter, part: Part) -> Result<(), SqlError> {
        let mut first: Vec<(&Box<[u8]>, &First)> = self.first.iter().filter(|(key, _)| part.has(key)).collect();
        first.sort_unstable_by_key(|(key, _)| *key);
        let keys = self.keys.decode(first.iter().map(|(key, _)| key.as_ref()))?;
        let orders = self.orders.decode(first.iter().map(|(_, first)| first.order.as_ref()))?;
        let ties: ArrayRef = Arc::new(UInt64Array::from_iter_values(first.iter().map(|(_, first)| first.tie)));
        let keys = keys.into_iter().enumerate().map(|(at, column)| (format!("key{at}"), column, true));
        let orders = orders.into_iter().enumerate().map(|(at, column)| (format!("order{at}"), column, true));
        let columns = keys.chain(orders).chain([("tie".to_owned(), ties, false)]);
        state.put("first", &RecordBatch::try_from_iter_with_nullable(columns).map_err(arrow_error)?)
    }

    fn restore(&mut self, state: &mut StateReader) -> Result<(), SqlError> {
        let batch = state.take("first")?;
        let damaged = || SqlError::internal("saved state of a deduplication has other columns");
        let (ties, columns) = batch.columns().split_last().ok_or_else(damaged)?;
        let (keys, orders) = columns.split_at_checked(self.spec.partition.len()).ok_or_else(damaged)?;
        let ties = downcast::<UInt64Array>(ties)?.values().to_vec();
        let places = Places { keys: self.keys.encode(keys)?, orders: self.orders.encode(orders)?, ties };
        self.take(&places);
        Ok(())
    }

    fn fresh(&self) -> Result<Option<Box<dyn Operator>>, SqlError> {
        Ok(Some(Box::new(Self::new(self.spec.clone())?)))
    }

    fn hashes(&self, _: usize, delta: &Delta) -> Result<Vec<u64>, SqlError> {
        Ok(self.partitions(delta)?.hashes(delta.len()))
    }

    fn merging(&self) -> Merging {
        Merging::Forms
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn state_bytes(&self) -> ByteSize {
        ByteSize::of(self.bytes)
    }

    fn fingerprint(&self) -> String {
        let partition: Vec<String> = self.spec.partition.iter().map(ToString::to_string).collect();
        let order: Vec<String> = self.spec.order.iter().map(ToString::to_string).collect();
        let number = format!("{:?} at {}", self.spec.number, self.spec.visible);
        format!(
            "deduplicate(by {} order {}; {number}; {})",
            partition.join(", "),
            order.join(", "),
            types_text(&self.spec.input)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::tests::Random;
    use arrow::array::{AsArray, Int64Array};
    use arrow::compute::SortOptions;
    use arrow::datatypes::{Field, Int64Type, Schema};
    use datafusion::physical_expr::expressions::col;
    use std::collections::BTreeMap;

    fn deduplicate() -> Deduplicate {
        let field = |name: &str| Field::new(name, DataType::Int64, true);
        let input = Arc::new(Schema::new(vec![field("k"), field("o"), field("v")]));
        let schema = Arc::new(Schema::new(vec![field("k"), field("o"), field("v"), field("n")]));
        let options = SortOptions { descending: true, nulls_first: false };
        Deduplicate::new(Deduplication {
            partition: vec![col("k", &input).unwrap()],
            order: vec![PhysicalSortExpr { expr: col("o", &input).unwrap(), options }],
            number: Number::Told,
            input,
            visible: 3,
            schema,
        })
        .unwrap()
    }

    type Row = (Option<i64>, Option<i64>, i64);

    fn delta(rows: &[Row]) -> Delta {
        let key: ArrayRef = Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.0)));
        let order: ArrayRef = Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.1)));
        let value: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2)));
        let columns = [("k", key, true), ("o", order, true), ("v", value, true)];
        Delta::of_batch(RecordBatch::try_from_iter_with_nullable(columns).unwrap())
    }

    /// What is told of the rows, in steps of some rows each; in the middle the state is saved and restored.
    fn run(rows: &[Row], random: &mut Random) -> BTreeMap<Option<i64>, Row> {
        let (mut operator, origin) = (deduplicate(), Arc::new(Origin::default()));
        let (mut told, mut rest) = (BTreeMap::new(), rows);
        while !rest.is_empty() {
            let (step, others) = rest.split_at(rest.len().min(1 + random.below(7) as usize));
            rest = others;
            let before = told.clone();
            let out = operator.step(vec![delta(step)], &origin).unwrap();
            let column = |at: usize| out.batch.column(at).as_primitive::<Int64Type>().iter();
            for (((key, order), value), number) in column(0).zip(column(1)).zip(column(2)).zip(column(3)) {
                assert_eq!(number, Some(1));
                let row = (key, order, value.unwrap());
                assert_ne!(before.get(&key), Some(&row), "a row is told again");
                assert!(told.insert(key, row) == before.get(&key).copied(), "two rows of a partition in a step");
            }
            if random.below(4) == 0 {
                let mut saved = StateWriter::default();
                operator.save(&mut saved, Part::WHOLE).unwrap();
                let (mut restored, bytes) = (deduplicate(), operator.bytes);
                restored.restore(&mut StateReader::open(&saved.finish().unwrap().0, None).unwrap()).unwrap();
                assert_eq!(restored.bytes, bytes);
                operator = restored;
            }
        }
        told
    }

    #[test]
    fn the_first_row_of_each_partition_is_told_whatever_order_rows_come_in() {
        for seed in 0..80 {
            let mut random = Random::new(seed);
            let mut rows: Vec<Row> = (0..60)
                .map(|value| {
                    let key = random.below(5).checked_sub(1).map(|key| key as i64);
                    (key, random.below(6).checked_sub(1).map(|order| order as i64), value % 50)
                })
                .collect();
            let told = run(&rows, &mut random);
            for (key, (_, order, _)) in &told {
                // The greatest, NULL last.
                let greatest = rows.iter().filter(|row| row.0 == *key).map(|row| row.1).max().unwrap();
                assert_eq!(*order, greatest);
            }
            assert_eq!(told.len(), rows.iter().map(|row| row.0).collect::<std::collections::BTreeSet<_>>().len());
            for at in (1..rows.len()).rev() {
                rows.swap(at, random.below(at as u64 + 1) as usize);
            }
            assert_eq!(run(&rows, &mut random), told, "ties depend on how rows come");
        }
    }
}
