//! A catalog and its rows in memory.

use crate::error::SqlError;
use crate::plan::{PlanContext, PlanSettings};
use crate::ports::{BatchIter, RelationSource, ScanColumn, ScanCount, ScanRequest, ScanSummary};
use crate::types::ColumnBuilder;
use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, RecordBatchOptions, StringArray};
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef};
use millstream_catalog::command::Command;
use millstream_catalog::model::{Name, Offset, RowCount, ShardId, Timestamp, TopicId};
use millstream_catalog::relation::{Relation, RelationKind, TopicOptions};
use millstream_catalog::{Column, Schema, Snapshot, SqlType, State, apply};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Rows by partition; each partition is one batch of the stored schema.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) rows: BTreeMap<String, Vec<RecordBatch>>,
    pub(super) requests: Mutex<Vec<ScanRequest>>,
}

impl RelationSource for Memory {
    fn scan(&self, relation: &Arc<Relation>, request: ScanRequest) -> Result<Vec<BatchIter>, SqlError> {
        self.requests.lock().unwrap().push(request.clone());
        let mut iterators: Vec<BatchIter> = Vec::new();
        for (partition, batch) in self.rows.get(relation.name.as_str()).into_iter().flatten().enumerate() {
            let id = u32::try_from(partition).unwrap();
            if request.partitions.as_ref().is_some_and(|wanted| !wanted.iter().any(|wanted| wanted.value() == id)) {
                request.metrics.add(ScanCount::SegmentsSkipped, 1);
                continue;
            }
            request.metrics.add(ScanCount::SegmentsRead, 1);
            let wanted = request.offsets.clone().unwrap_or(Offset::ZERO..Offset::new(u64::MAX));
            let end = usize::try_from(wanted.end.value()).unwrap().min(batch.num_rows());
            let start = usize::try_from(wanted.start.value()).unwrap().min(end);
            let batch = batch.slice(start, end - start);
            let rows = batch.num_rows();
            let offsets = i64::try_from(start).unwrap()..i64::try_from(end).unwrap();
            let columns: Vec<ArrayRef> = request
                .projection
                .iter()
                .map(|column| match column {
                    ScanColumn::Stored(at) => Arc::clone(batch.column(*at)),
                    ScanColumn::RowPartition => {
                        Arc::new(Int32Array::from(vec![i32::try_from(id).unwrap(); rows])) as ArrayRef
                    }
                    ScanColumn::RowOffset => Arc::new(Int64Array::from_iter_values(offsets.clone())),
                })
                .collect();
            let fields: Vec<Field> = columns
                .iter()
                .enumerate()
                .map(|(at, column)| Field::new(format!("c{at}"), column.data_type().clone(), true))
                .collect();
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            let batch =
                RecordBatch::try_new_with_options(Arc::new(ArrowSchema::new(fields)), columns, &options).unwrap();
            iterators.push(Box::new(std::iter::once(Ok(batch))));
        }
        Ok(iterators)
    }

    fn summary(&self, relation: &Arc<Relation>, request: &ScanRequest) -> Option<ScanSummary> {
        if request.offsets.is_some() || request.partitions.is_some() {
            return None;
        }
        let rows = self.rows.get(relation.name.as_str())?;
        let rows = RowCount::of(rows.iter().map(RecordBatch::num_rows).sum());
        Some(ScanSummary { rows, ..ScanSummary::default() })
    }

    fn system_views(&self) -> Vec<(String, SchemaRef)> {
        let schema = ArrowSchema::new(vec![
            Field::new("name", DataType::Utf8, false),
            Field::new("partitions", DataType::Int32, false),
        ]);
        vec![("topics".to_owned(), Arc::new(schema))]
    }

    fn system_view(&self, _: &str) -> Result<RecordBatch, SqlError> {
        let (_, schema) = self.system_views().remove(0);
        let columns: Vec<ArrayRef> =
            vec![Arc::new(StringArray::from(vec!["flights"])), Arc::new(Int32Array::from(vec![2]))];
        Ok(RecordBatch::try_new(schema, columns).unwrap())
    }
}

fn relation(name: &str, kind: RelationKind, columns: &[(&str, SqlType, bool)]) -> Relation {
    let columns = columns
        .iter()
        .map(|(name, sql_type, is_key)| Column {
            name: Name::new(*name).unwrap(),
            sql_type: sql_type.clone(),
            is_nullable: !is_key,
            is_key: *is_key,
            default: None,
            is_hidden: false,
            is_headers: false,
        })
        .collect();
    Relation {
        id: TopicId::new(0),
        name: Name::new(name).unwrap(),
        kind,
        schema: Schema { columns },
        timestamp: None,
        watermark_delay: None,
        options: TopicOptions { partitions: 2, ..TopicOptions::default() },
        shard: ShardId::new(1),
        query: None,
        created_at: Timestamp::from_micros(0),
        sql: String::new(),
        fills: Default::default(),
        row_ids: None,
        is_materialized: false,
    }
}

/// Text cells to a batch of the stored schema; `-` is NULL, the last cell is rowtime.
fn batch(relation: &Relation, rows: &[&str]) -> RecordBatch {
    let schema = relation.stored_schema();
    let mut builders: Vec<ColumnBuilder> =
        schema.fields().iter().map(|field| ColumnBuilder::new(&SqlType::of(field).unwrap(), rows.len())).collect();
    for row in rows {
        let mut cells: Vec<&str> = row.split('|').map(str::trim).collect();
        if relation.has_tombstones() {
            cells.push("f");
        }
        for (builder, cell) in builders.iter_mut().zip(cells) {
            match cell {
                "-" => builder.append_null(),
                cell => builder.append_text(cell.as_bytes()).unwrap(),
            }
        }
    }
    RecordBatch::try_new(schema, builders.iter_mut().map(ColumnBuilder::finish).collect()).unwrap()
}

fn relations() -> [Relation; 2] {
    let flights = relation(
        "flights",
        RelationKind::Stream,
        &[
            ("id", SqlType::BigInt, true),
            ("origin", SqlType::Text, false),
            ("dest", SqlType::Varchar(3), false),
            ("delay", SqlType::Integer, false),
            ("small", SqlType::SmallInt, false),
            ("fare", SqlType::Numeric { precision: 10, scale: 2 }, false),
            ("weight", SqlType::Double, false),
            ("ok", SqlType::Boolean, false),
            ("at", SqlType::TimestampTz, false),
            ("day", SqlType::Date, false),
            ("code", SqlType::Uuid, false),
            ("tags", SqlType::Array(Box::new(SqlType::Text)), false),
        ],
    );
    let airports =
        relation("airports", RelationKind::Table, &[("iata", SqlType::Text, true), ("name", SqlType::Text, false)]);
    [flights, airports]
}

/// The rows of every relation.
pub(super) fn rows() -> BTreeMap<String, Vec<RecordBatch>> {
    let [flights, airports] = relations();
    let mut rows = BTreeMap::new();
    const U: &str = "00000000-0000-0000-0000-00000000000";
    let of = |row: &str| row.replace('$', U);
    let first = [
        of("1|SFO|JFK|10|1|100.50|1.5|t|2024-01-01 00:00:10Z|2024-01-01|$1|{a,b}|2024-01-01 00:00:10Z"),
        of("2|SFO|LAX|-5|2|50.25|2.5|f|2024-01-01 00:00:50Z|2024-01-01|$2|{}|2024-01-01 00:00:50Z"),
        of("3|JFK|SFO|30|3|-|-|t|2024-01-01 00:01:10Z|2024-01-02|$3|-|2024-01-01 00:01:10Z"),
    ];
    let second = [
        of("4|JFK|-|-|4|10.00|0.5|-|-|-|-|-|2024-01-01 00:02:00Z"),
        of("5|SFO|JFK|20|5|99.99|4|t|2024-01-01 00:02:30Z|2024-01-02|$5|{c}|2024-01-01 00:02:30Z"),
    ];
    let texts =
        |rows: &[String]| -> RecordBatch { batch(&flights, &rows.iter().map(String::as_str).collect::<Vec<_>>()) };
    rows.insert("flights".to_owned(), vec![texts(&first), texts(&second)]);
    let names = ["SFO|San Francisco|2024-01-01Z", "JFK|New York|2024-01-01Z"];
    rows.insert("airports".to_owned(), vec![batch(&airports, &names)]);
    rows
}

/// A statement's world.
pub(super) fn context() -> PlanContext {
    let mut state = State::default();
    for relation in relations() {
        apply(&mut state, Command::CreateRelation { relation: Box::new(relation), query: None }).unwrap();
    }
    PlanContext {
        catalog: Snapshot::new(state),
        source: Arc::new(Memory { rows: rows(), requests: Mutex::default() }),
        now: Timestamp::from_micros(1_704_067_200_000_000),
        settings: Arc::new(PlanSettings::default()),
    }
}
