//! Continuous equals bounded, from SQL text: each query runs once over the whole log and continuously in random steps
//! with restarts; the table, or the stream, must have the rows of the bounded run.

use super::Random;
use crate::dialect::{Select, Statement};
use crate::error::SqlError;
use crate::exec::execute;
use crate::plan::{PlanContext, PlanSettings, plan_continuous, plan_select};
use crate::ports::{BatchIter, RelationSource, ScanColumn, ScanRequest, ScanSummary};
use crate::stream::{InputBatch, Pipeline, StepInput};
use crate::types::{ColumnBuilder, ColumnEncoder};
use arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef};
use futures::StreamExt;
use millstream_catalog::command::Command;
use millstream_catalog::model::{Name, Offset, PartitionId, ShardId, Timestamp, TopicId};
use millstream_catalog::{
    Column, QueryOptions, Relation, RelationKind, Schema, Snapshot, SqlType, State, TopicOptions, apply,
};
use std::collections::BTreeMap;
use std::sync::Arc;

const QUERIES: &[&str] = &[
    "SELECT * FROM e",
    "SELECT k, v * 2 AS w, rowtime, rowoffset, rowpartition FROM e WHERE i % 3 = 1 OR b",
    "SELECT upper(k) AS u, coalesce(n, 0) + s AS sum, d / 3 AS third, x || '!' AS bang FROM e WHERE k IS NOT NULL",
    "SELECT CASE WHEN i > 3 THEN 'big' WHEN i IS NULL THEN NULL ELSE 'small' END AS size, t - rowtime AS lag FROM e",
    "SELECT k, count(*) AS c FROM e GROUP BY k",
    "SELECT k, count(*) AS c, sum(i) AS s, avg(i) AS a, min(i) AS l, max(i) AS m FROM e WINDOW TUMBLING (SIZE 1 MINUTE) GROUP BY k",
    "SELECT k, windowstart, windowend, sum(n) AS n, sum(s) AS s, sum(d) AS d, sum(v) AS v
       FROM e WINDOW TUMBLING (SIZE 30 SECONDS) GROUP BY k, windowstart, windowend",
    "SELECT avg(n) AS n, avg(s) AS s, avg(d) AS d, avg(v) AS v, x FROM e GROUP BY x",
    "SELECT min(k) AS a, max(k) AS c, min(d) AS d, max(t) AS t, min(rowtime) AS r, max(x) AS x, b FROM e GROUP BY b",
    "SELECT count(DISTINCT k) AS k, count(DISTINCT v) AS v, sum(DISTINCT i) AS i, avg(DISTINCT d) AS d FROM e",
    "SELECT b, sum(DISTINCT n) AS n, count(DISTINCT x) FILTER (WHERE i > 2) AS x FROM e GROUP BY b",
    "SELECT k, count(*) FILTER (WHERE b) AS t, sum(v) FILTER (WHERE NOT b) AS f FROM e GROUP BY k",
    "SELECT k, array_agg(i ORDER BY i, v) AS a, string_agg(x, ',' ORDER BY x DESC, v) AS s FROM e GROUP BY k",
    "SELECT k, array_agg(v) AS a FROM e GROUP BY k",
    "SELECT k, first_value(v ORDER BY t, v) AS f, last_value(x ORDER BY t DESC, v) AS l FROM e GROUP BY k",
    "SELECT k, stddev(v) AS a, var_pop(v) AS b, corr(v, n) AS c, regr_slope(v, n) AS d, covar_samp(v, n) AS e
       FROM e GROUP BY k",
    "SELECT k, median(v) AS m, percentile_cont(0.25) WITHIN GROUP (ORDER BY v) AS p FROM e GROUP BY k",
    "SELECT k, bool_and(b) AS a, bool_or(b) AS o, bit_and(i) AS i, bit_xor(i) AS x FROM e GROUP BY k",
    "SELECT k, sum(i) AS s FROM e GROUP BY k HAVING sum(i) % 2 = 0",
    "SELECT k, sum(i) AS s, count(*) AS c FROM e WINDOW TUMBLING (SIZE 20 SECONDS) WHERE i <> 5 GROUP BY k
       HAVING count(*) > 2 AND avg(i) < 4",
    "SELECT sum(i) * 100 / count(*) AS r, 'all' AS what FROM e HAVING count(*) > 10",
    "SELECT count(*) AS c, max(v) AS m FROM e",
    "SELECT lower(x) AS l, i % 2 AS odd, count(*) AS c FROM e GROUP BY lower(x), i % 2",
    "SELECT i % 2 + 1 AS up, count(*) AS c FROM e GROUP BY i % 2",
    "SELECT d, t, b, s, count(*) AS c FROM e GROUP BY d, t, b, s",
    "SELECT date_trunc('minute', rowtime) AS m, count(*) AS c FROM e GROUP BY date_trunc('minute', rowtime)",
    "SELECT k AS a, k AS b, count(*) AS c FROM e GROUP BY k",
    "SELECT max(rowoffset) AS o, k FROM e GROUP BY k",
    "SELECT k, windowstart, windowend, count(*) AS c, avg(i) AS a, sum(d) AS d, median(v) AS m, count(DISTINCT x) AS x,
       min(k) AS l, bool_or(b) AS b, string_agg(x, ',' ORDER BY x, v) AS s, first_value(v ORDER BY t, v) AS f
       FROM e WINDOW SESSION (2 SECONDS) GROUP BY k",
    "SELECT b, window_end, array_agg(v ORDER BY v) AS a, median(n) AS n, sum(DISTINCT i) FILTER (WHERE i > 2) AS i
       FROM SESSION(e, rowtime, INTERVAL '1 second') GROUP BY b, window_start, window_end",
    "SELECT k, windowend, count(*) FILTER (WHERE b) AS c, max(v) AS m, stddev(i) AS s FROM e
       WINDOW HOPPING (SIZE 1 MINUTE, ADVANCE BY 15 SECONDS) GROUP BY k",
    "SELECT window_start, window_end, t, count(*) AS c FROM HOP(e, t, INTERVAL '5 seconds', INTERVAL '12 seconds') GROUP BY 1, 2, 3",
    "SELECT window_start, window_end, count(*) AS c FROM TUMBLE(e, t, INTERVAL '5 seconds') GROUP BY 1, 2",
    "SELECT window_start, window_end, k, sum(i) AS i FROM SESSION(e, t, INTERVAL '2 seconds') GROUP BY 1, 2, 3",
    "SELECT u, w.window_start FROM TUMBLE((SELECT k AS u, t AT TIME ZONE 'UTC' AS at FROM e), at, INTERVAL '10 seconds') w",
    "SELECT k, latest_by_offset(v) AS l, earliest_by_offset(x) AS e, count_distinct(i) AS c FROM e GROUP BY k",
    "SELECT k, topk(i, 3) AS t, topkdistinct(i, 3) AS d FROM e GROUP BY k",
    "SELECT k, collect_list(i) AS a FROM e GROUP BY k",
    "SELECT k, histogram(i) AS h FROM e GROUP BY k",
    "SELECT b, array_length(collect_set(i), 1) AS n FROM e GROUP BY b",
];

/// The log: one partition, so that both runs see one order.
#[derive(Debug)]
pub(super) struct Log {
    batch: RecordBatch,
}

impl Log {
    pub(super) fn empty() -> Self {
        Self { batch: RecordBatch::new_empty(relation().stored_schema()) }
    }
}

impl RelationSource for Log {
    fn scan(&self, _: &Arc<Relation>, request: ScanRequest) -> Result<Vec<BatchIter>, SqlError> {
        let rows = self.batch.num_rows();
        let column = |column: &ScanColumn| -> ArrayRef {
            match column {
                ScanColumn::Stored(at) => Arc::clone(self.batch.column(*at)),
                ScanColumn::RowPartition => Arc::new(Int32Array::from(vec![0; rows])),
                ScanColumn::RowOffset => Arc::new(Int64Array::from_iter_values(0..rows as i64)),
            }
        };
        let columns: Vec<ArrayRef> = request.projection.iter().map(column).collect();
        let field = |(at, column): (usize, &ArrayRef)| Field::new(format!("c{at}"), column.data_type().clone(), true);
        let schema = ArrowSchema::new(columns.iter().enumerate().map(field).collect::<Vec<_>>());
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::new(schema), columns, &options).unwrap();
        Ok(vec![Box::new(std::iter::once(Ok(batch)))])
    }
    fn summary(&self, _: &Arc<Relation>, _: &ScanRequest) -> Option<ScanSummary> {
        None
    }
    fn system_views(&self) -> Vec<(String, SchemaRef)> {
        Vec::new()
    }
    fn system_view(&self, name: &str) -> Result<RecordBatch, SqlError> {
        Err(SqlError::internal(format!("no view {name}")))
    }
}

pub(super) fn relation() -> Relation {
    let column = |(name, sql_type): (&str, SqlType)| Column {
        name: Name::new(name).unwrap(),
        sql_type,
        is_nullable: true,
        is_key: false,
        default: None,
        is_hidden: false,
        is_headers: false,
    };
    let columns = [
        ("k", SqlType::Text),
        ("v", SqlType::Double),
        ("n", SqlType::BigInt),
        ("i", SqlType::Integer),
        ("s", SqlType::SmallInt),
        ("d", SqlType::Numeric { precision: 10, scale: 2 }),
        ("b", SqlType::Boolean),
        ("t", SqlType::TimestampTz),
        ("x", SqlType::Varchar(5)),
    ];
    Relation {
        id: TopicId::new(0),
        name: Name::new("e").unwrap(),
        kind: RelationKind::Stream,
        schema: Schema { columns: columns.map(column).to_vec() },
        timestamp: None,
        watermark_delay: None,
        options: TopicOptions::default(),
        shard: ShardId::new(1),
        query: None,
        created_at: Timestamp::from_micros(0),
        sql: String::new(),
        fills: Default::default(),
        row_ids: None,
        is_materialized: false,
    }
}

pub(super) fn log(random: &mut Random, rows: usize) -> RecordBatch {
    let schema = relation().stored_schema();
    let types: Vec<SqlType> = schema.fields().iter().map(|field| SqlType::of(field).unwrap()).collect();
    let mut builders: Vec<ColumnBuilder> = types.iter().map(|sql_type| ColumnBuilder::new(sql_type, rows)).collect();
    for row in 0..rows as u64 {
        let cells = [
            format!("k{}", random.below(4)),
            random.double().to_string(),
            random.below(1_000_000).to_string(),
            random.below(8).to_string(),
            random.below(100).to_string(),
            format!("{}.{}", random.below(900), random.below(90) + 10),
            ["t", "f"][random.below(2) as usize].to_owned(),
            format!("2024-01-01 00:00:{:02}Z", random.below(60)),
            format!("x{}", random.below(5)),
            format!("2024-01-01 00:{:02}:{:02}Z", (row / 30) % 60, random.below(60)),
        ];
        for (at, (builder, cell)) in builders.iter_mut().zip(&cells).enumerate() {
            if at + 1 < cells.len() && random.below(9) == 0 {
                builder.append_null();
            } else {
                builder.append_text(cell.as_bytes()).unwrap();
            }
        }
    }
    RecordBatch::try_new(schema, builders.iter_mut().map(ColumnBuilder::finish).collect()).unwrap()
}

pub(super) fn context(batch: &RecordBatch) -> PlanContext {
    let mut state = State::default();
    apply(&mut state, Command::CreateRelation { relation: Box::new(relation()), query: None }).unwrap();
    PlanContext {
        catalog: Snapshot::new(state),
        source: Arc::new(Log { batch: batch.clone() }),
        now: Timestamp::from_micros(0),
        settings: Arc::new(PlanSettings { target_partitions: 1, ..PlanSettings::default() }),
    }
}

pub(super) fn select(sql: &str) -> Select {
    match crate::dialect::parse(sql).unwrap().remove(0).statement {
        Statement::Select(select) => *select,
        other => panic!("{sql}: {other:?}"),
    }
}

/// Rows as PostgreSQL shows them.
pub(super) fn rows(batch: &RecordBatch, types: &[SqlType]) -> Vec<Vec<String>> {
    let encoders = batch.columns().iter().zip(types);
    let encoders: Vec<_> = encoders.map(|(array, sql_type)| ColumnEncoder::new(array.as_ref(), sql_type)).collect();
    let cell = |encoder: &ColumnEncoder, row: usize| {
        let mut text = Vec::new();
        match encoder.text(row, &mut text) {
            true => String::from_utf8(text).unwrap(),
            false => "∅".to_owned(),
        }
    };
    (0..batch.num_rows()).map(|row| encoders.iter().map(|encoder| cell(encoder, row)).collect()).collect()
}

pub(super) async fn bounded(context: &PlanContext, sql: &str) -> Result<Vec<Vec<String>>, SqlError> {
    let planned = plan_select(context, &select(sql), &[])?;
    let types: Vec<SqlType> = planned.columns.iter().map(|column| column.sql_type.clone()).collect();
    let mut stream = execute(context, &planned, Vec::new()).await?;
    let mut found = Vec::new();
    while let Some(batch) = stream.next().await {
        found.extend(rows(&batch?, &types));
    }
    Ok(found)
}

/// Runs `sql` over the log in random steps, restarting at random; the rows of its sink.
fn continuous(
    context: &PlanContext,
    sql: &str,
    batch: &RecordBatch,
    random: &mut Random,
) -> Result<Vec<Vec<String>>, SqlError> {
    let plan = plan_continuous(context, &select(sql), &QueryOptions::default())?;
    Pipeline::plan(&plan)?;
    let make = || Pipeline::plan(&plan).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let mut pipeline = make();
    let (mut table, mut stream, mut start) = (BTreeMap::new(), Vec::new(), 0);
    while start < batch.num_rows() {
        let count = (random.below(60) as usize).min(batch.num_rows() - start);
        let input = InputBatch {
            source: 0,
            partition: PartitionId::new(0),
            offset_start: Offset::new(start as u64),
            offsets: None,
            batch: batch.slice(start, count).project(pipeline.projection(0)).unwrap(),
        };
        let input = StepInput { batches: vec![input], idle: &[], now: Timestamp::from_micros(7) };
        let output = pipeline.step(&input)?;
        assert_eq!(output.late_rows.value(), 0);
        if let Some(stored) = &output.batch {
            assert_eq!(stored.schema(), pipeline.output().stored_schema(), "{sql}");
            let columns = &pipeline.output().columns;
            let types: Vec<SqlType> = columns.iter().map(|column| column.sql_type.clone()).collect();
            let stored_rows = rows(&stored.project(&(0..types.len()).collect::<Vec<_>>()).unwrap(), &types);
            let tombstones = stored.column_by_name("rowtombstone").map(|column| column.as_boolean().clone());
            for (row, cells) in stored_rows.into_iter().enumerate() {
                let keys = columns.iter().zip(&cells).filter(|(column, _)| column.is_key);
                let key: Vec<String> = keys.map(|(_, cell)| cell.clone()).collect();
                match tombstones.as_ref().map(|tombstones| tombstones.value(row)) {
                    None => stream.push(cells[..pipeline.output().selected].to_vec()),
                    Some(true) => assert!(table.remove(&key).is_some(), "{sql}: nothing to remove"),
                    Some(false) => drop(table.insert(key, cells[..pipeline.output().selected].to_vec())),
                }
            }
        }
        if random.below(3) == 0 {
            let saved = pipeline.save().unwrap();
            pipeline = make();
            pipeline.restore(&saved).unwrap();
        }
        start += count;
    }
    stream.extend(table.into_values());
    Ok(stream)
}

#[tokio::test]
async fn every_query_gives_the_rows_of_the_bounded_run() {
    let mut random = Random::new(11);
    let batch = log(&mut random, 400);
    let context = context(&batch);
    let mut differing = Vec::new();
    for sql in QUERIES {
        let expected = bounded(&context, sql).await;
        let found = continuous(&context, sql, &batch, &mut random);
        let (Ok(mut found), Ok(mut expected)) = (found.clone(), expected.clone()) else {
            let (found, expected) = (found.err(), expected.err());
            differing.push(format!("{sql}\n continuously {found:?}\n bounded {expected:?}"));
            continue;
        };
        expected.sort();
        found.sort();
        if found != expected {
            let first = found.iter().zip(&expected).find(|(found, expected)| found != expected);
            differing.push(format!("{sql}\n {} rows, expected {}; {first:?}", found.len(), expected.len()));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn the_key_of_a_table_is_found_through_the_planner() {
    let batch = log(&mut Random::new(1), 1);
    let context = context(&batch);
    let sql = "SELECT count(*) AS c, k FROM e WINDOW TUMBLING (SIZE 1 MINUTE) GROUP BY k, i % 2";
    let pipeline = Pipeline::plan(&plan_continuous(&context, &select(sql), &QueryOptions::default()).unwrap()).unwrap();
    let shown = pipeline.output().columns.iter();
    let shown: Vec<String> =
        shown.map(|column| format!("{} {} {}", column.name, column.is_key, column.is_hidden)).collect();
    assert_eq!(
        shown,
        vec!["c false false", "k true false", "windowstart true false", "windowend true false", "key2 true true"]
    );
    assert!(matches!(batch.schema().field(0).data_type(), DataType::Utf8));
}
