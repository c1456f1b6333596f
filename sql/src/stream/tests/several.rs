//! Continuous equals bounded over several relations: two streams and two tables whose rows change, their events in one
//! random order, in random steps with restarts. What is kept must be the rows of the bounded run over the same log.

use super::Random;
use super::bounded::{bounded, rows, select};
use crate::error::SqlError;
use crate::plan::{PlanContext, PlanSettings, plan_continuous};
use crate::ports::{BatchIter, RelationSource, ScanColumn, ScanRequest, ScanSummary};
use crate::stream::{InputBatch, Pipeline, StepInput};
use crate::types::ColumnBuilder;
use arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Field, Schema as ArrowSchema, SchemaRef};
use millstream_catalog::command::Command;
use millstream_catalog::model::{Name, Offset, PartitionId, ShardId, Timestamp, TopicId};
use millstream_catalog::{
    Column, QueryOptions, Relation, RelationKind, Schema, Snapshot, SqlType, State, TopicOptions, apply,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Queries over streams `s` and `r` and tables `t` and `u`.
const QUERIES: &[&str] = &[
    // Sub-queries, CTEs, unions, DISTINCT.
    "SELECT k, c FROM (SELECT k, count(*) AS c FROM s GROUP BY k) q WHERE c > 3",
    "WITH q AS (SELECT k, sum(v) AS v FROM s GROUP BY k) SELECT max(v) AS m, min(v) AS l, count(*) AS c FROM q",
    "SELECT c, count(*) AS n FROM (SELECT k, count(*) AS c FROM s GROUP BY k) q GROUP BY c",
    "SELECT avg(m) AS a, sum(m) AS s, count(m) AS c FROM (SELECT k, max(v) AS m FROM s GROUP BY k) q",
    "SELECT DISTINCT k, x FROM s",
    "SELECT DISTINCT k FROM t",
    "SELECT id, k FROM s UNION ALL SELECT id, k FROM r",
    "SELECT id, k FROM s UNION ALL SELECT id, v FROM t",
    "SELECT k FROM s UNION SELECT k FROM t",
    "SELECT k, count(*) AS c, sum(v) AS v FROM (SELECT k, v FROM s UNION ALL SELECT k, w FROM r) q GROUP BY k",
    // Over tables.
    "SELECT id, v * 2 AS w FROM t WHERE v > 5",
    "SELECT k, count(*) AS c, sum(v) AS s, avg(v) AS a, min(v) AS l, max(x) AS m FROM t GROUP BY k",
    "SELECT count(*) AS c, sum(v) AS s, max(v) AS m FROM t",
    "SELECT k, count(DISTINCT v) AS d, sum(DISTINCT v) AS s FROM t GROUP BY k",
    "SELECT k, array_agg(v ORDER BY v, id) AS a, string_agg(x, ',' ORDER BY id) AS s FROM t GROUP BY k",
    "SELECT k, count(*) FILTER (WHERE v > 4) AS c, sum(v) FILTER (WHERE x = 'x1') AS s FROM t GROUP BY k",
    "SELECT k, percentile_cont(0.5) WITHIN GROUP (ORDER BY v) AS p, bool_or(v > 5) AS b FROM t GROUP BY k",
    "SELECT k, sum(v) AS s FROM t GROUP BY k HAVING sum(v) > 10",
    "SELECT v, x, count(*) AS c FROM t WHERE id < 20 GROUP BY v, x",
    // Streams with streams.
    "SELECT s.id, r.id AS rid, s.v + r.w AS z FROM s JOIN r ON s.k = r.k AND s.x = r.y",
    "SELECT s.id, r.id AS rid FROM s LEFT JOIN r ON s.id = r.id",
    "SELECT s.id, r.id AS rid FROM s RIGHT JOIN r ON s.id = r.id AND s.v > r.w",
    "SELECT s.id, r.id AS rid, s.k FROM s FULL JOIN r ON s.id = r.id",
    "SELECT a.id, b.id AS other FROM s a JOIN s b ON a.k = b.k AND a.id < b.id WHERE a.v = b.v",
    "SELECT s.id, r.id AS rid FROM s JOIN r ON s.v < r.w AND s.id = 3",
    // Tables with tables.
    "SELECT t.id, t.v, u.name FROM t JOIN u ON t.k = u.k",
    "SELECT t.id, u.name FROM t LEFT JOIN u ON t.k = u.k",
    "SELECT t.id, u.name, u.k FROM t RIGHT JOIN u ON t.k = u.k",
    "SELECT t.id, u.name FROM t FULL JOIN u ON t.k = u.k AND t.v > u.n",
    "SELECT u.name, count(*) AS c, sum(t.v) AS s FROM t JOIN u ON t.k = u.k GROUP BY u.name",
    "SELECT u.name, count(t.id) AS c FROM u LEFT JOIN t ON t.k = u.k GROUP BY u.name",
    "SELECT a.id, b.id AS other FROM t a JOIN t b ON a.k = b.k AND a.id < b.id",
    "SELECT t.id, u.k FROM t, u WHERE t.v > u.n",
    "SELECT t.id, u.name, q.c FROM t JOIN u ON t.k = u.k JOIN (SELECT k, count(*) AS c FROM s GROUP BY k) q ON q.k = t.k",
    "SELECT id FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.k = t.k)",
    "SELECT id FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.k = t.k AND u.n > t.v)",
    "SELECT id, v FROM t WHERE k IN (SELECT k FROM u WHERE n > 3)",
    "SELECT id FROM s WHERE k IN (SELECT k FROM u)",
    "SELECT id FROM s WHERE EXISTS (SELECT 1 FROM r WHERE r.id = s.id)",
    "SELECT id FROM s WHERE NOT EXISTS (SELECT 1 FROM r WHERE r.id = s.id)",
    "SELECT id FROM t WHERE v > 7 OR EXISTS (SELECT 1 FROM u WHERE u.k = t.k)",
    "SELECT id, v FROM t WHERE v = (SELECT max(v) FROM t)",
    "SELECT id, v - (SELECT min(n) FROM u) AS d FROM t",
    "SELECT id, (SELECT count(*) FROM r WHERE r.k = t.k) AS c FROM t",
    "SELECT k FROM t INTERSECT SELECT k FROM u",
    "SELECT k FROM s EXCEPT SELECT k FROM u",
    "SELECT s.id, q.m FROM s JOIN (SELECT k, max(w) AS m FROM r GROUP BY k) q ON s.k = q.k",
    "SELECT q.k, q.c, p.c AS d FROM (SELECT k, count(*) AS c FROM s GROUP BY k) q
       FULL JOIN (SELECT k, count(*) AS c FROM r GROUP BY k) p ON q.k = p.k",
    // Windows.
    "SELECT k, windowstart, count(*) AS c FROM s WINDOW TUMBLING (SIZE 1 MINUTE) GROUP BY k",
    "SELECT date_bin('1 minute', rowtime, '1970-01-01') AS w, count(*) AS c FROM s GROUP BY 1",
    "SELECT w, max(c) AS m FROM (SELECT date_bin('1 minute', rowtime, '1970-01-01') AS w, k, count(*) AS c FROM s GROUP BY 1, 2) q
       GROUP BY w",
];

/// The same, whose last rows wait for time: without those of the far event at the end of each stream.
const TIMED: &[&str] = &[
    "SELECT s.id, r.id AS rid, s.v FROM s JOIN r WITHIN 15 SECONDS GRACE PERIOD 1 MINUTE ON s.k = r.k",
    "SELECT s.id, r.id AS rid, s.v FROM s JOIN r WITHIN (5 SECONDS, 20 SECONDS) GRACE PERIOD 1 MINUTE ON s.k = r.k AND s.v <> r.w",
    "SELECT s.id, r.id AS rid FROM s LEFT JOIN r WITHIN 3 SECONDS GRACE PERIOD 1 MINUTE ON s.k = r.k",
    "SELECT s.id, r.id AS rid FROM s RIGHT JOIN r WITHIN 3 SECONDS GRACE PERIOD 1 MINUTE ON s.k = r.k",
    "SELECT s.id, r.id AS rid, s.v, r.w FROM s FULL JOIN r WITHIN 2 SECONDS GRACE PERIOD 1 MINUTE ON s.k = r.k AND s.v > r.w",
    "SELECT a.id, r.id AS rid, b.id AS bid FROM s a JOIN r WITHIN 9 SECONDS GRACE PERIOD 1 MINUTE ON a.k = r.k
       JOIN s b WITHIN 4 SECONDS GRACE PERIOD 2 MINUTES ON b.k = r.k",
    "SELECT q.k, count(*) AS c FROM (SELECT s.k, r.id FROM s JOIN r WITHIN 9 SECONDS GRACE PERIOD 1 MINUTE ON s.k = r.k) q
       GROUP BY q.k",
    "SELECT id, k, v FROM s EMIT FINAL",
    "SELECT k, windowstart, count(*) AS c, sum(v) AS v FROM s WINDOW TUMBLING (SIZE 20 SECONDS, GRACE PERIOD 1 MINUTE)
       GROUP BY k EMIT FINAL",
    "SELECT k, windowstart, count(*) AS c FROM s WINDOW TUMBLING (SIZE 20 SECONDS, GRACE PERIOD 1 MINUTE)
       GROUP BY k HAVING count(*) > 1 EMIT FINAL",
];

/// Events of all relations, in the order of commit.
#[derive(Debug)]
struct Log {
    relations: Vec<Arc<Relation>>,
    /// The stored rows of each.
    stored: Vec<RecordBatch>,
    /// The relation of each event.
    order: Vec<usize>,
}

fn relation(id: u64, name: &str, kind: RelationKind, columns: &[(&str, SqlType, bool)]) -> Relation {
    let column = |(name, sql_type, is_key): &(&str, SqlType, bool)| Column {
        name: Name::new(*name).unwrap(),
        sql_type: sql_type.clone(),
        is_nullable: !is_key,
        is_key: *is_key,
        default: None,
        is_hidden: false,
        is_headers: false,
    };
    Relation {
        id: TopicId::new(id),
        name: Name::new(name).unwrap(),
        kind,
        schema: Schema { columns: columns.iter().map(column).collect() },
        timestamp: None,
        watermark_delay: None,
        options: TopicOptions::default(),
        shard: ShardId::new(1),
        query: None,
        created_at: Timestamp::from_micros(0),
        sql: String::new(),
        fills: Default::default(),
        row_ids: None,
    }
}

fn relations() -> [Relation; 4] {
    use SqlType::{Integer, Text};
    let (stream, table) = (RelationKind::Stream, RelationKind::Table);
    [
        relation(
            0,
            "s",
            stream,
            &[("id", Integer, false), ("k", Integer, false), ("v", Integer, false), ("x", Text, false)],
        ),
        relation(
            1,
            "r",
            stream,
            &[("id", Integer, false), ("k", Integer, false), ("w", Integer, false), ("y", Text, false)],
        ),
        relation(
            2,
            "t",
            table,
            &[("id", Integer, true), ("k", Integer, false), ("v", Integer, false), ("x", Text, false)],
        ),
        relation(3, "u", table, &[("k", Integer, true), ("name", Text, false), ("n", Integer, false)]),
    ]
}

/// The cells of one event, `None` for NULL; times move on by some seconds.
fn cells(random: &mut Random, relation: usize, number: u64) -> Vec<Option<String>> {
    let mut small = |bound: u64| Some(random.below(bound).to_string()).filter(|_| random.below(12) > 0);
    let time = |random: &mut Random| {
        let second = number / 3 + random.below(20);
        Some(format!("2024-01-01 00:{:02}:{:02}Z", (second / 60) % 60, second % 60))
    };
    let mut cells = match relation {
        0 | 1 => vec![small(25), small(6), small(10), small(3).map(|x| format!("x{x}"))],
        2 => vec![small(30).or(Some("7".to_owned())), small(6), small(10), small(3).map(|x| format!("x{x}"))],
        _ => vec![small(6).or(Some("2".to_owned())), small(4).map(|x| format!("n{x}")), small(10)],
    };
    cells.push(time(random));
    if relation >= 2 {
        cells.push(Some(if random.below(5) == 0 { "t" } else { "f" }.to_owned()));
    }
    cells
}

impl Log {
    fn new(random: &mut Random, events: usize) -> Self {
        let relations = relations();
        let schemas: Vec<SchemaRef> = relations.iter().map(Relation::stored_schema).collect();
        let types: Vec<Vec<SqlType>> = schemas
            .iter()
            .map(|schema| schema.fields().iter().map(|field| SqlType::of(field).unwrap()).collect())
            .collect();
        let mut builders: Vec<Vec<ColumnBuilder>> = types
            .iter()
            .map(|types| types.iter().map(|sql_type| ColumnBuilder::new(sql_type, events)).collect())
            .collect();
        let mut order = Vec::new();
        for number in 0..events as u64 {
            let relation = random.below(4) as usize;
            order.push(relation);
            for (builder, cell) in builders[relation].iter_mut().zip(cells(random, relation, number)) {
                match cell {
                    None => builder.append_null(),
                    Some(cell) => builder.append_text(cell.as_bytes()).unwrap(),
                }
            }
        }
        for relation in [0, 1] {
            let far = ["5000", "5000", "5000", "far", "2024-01-03 00:00:00Z"];
            for (builder, cell) in builders[relation].iter_mut().zip(far) {
                builder.append_text(cell.as_bytes()).unwrap();
            }
            order.push(relation);
        }
        let batch = |(builders, schema): (&mut Vec<ColumnBuilder>, &SchemaRef)| {
            RecordBatch::try_new(Arc::clone(schema), builders.iter_mut().map(ColumnBuilder::finish).collect()).unwrap()
        };
        let stored = builders.iter_mut().zip(&schemas).map(batch).collect();
        Self { relations: relations.map(Arc::new).to_vec(), stored, order }
    }

    /// The rows of a relation as they are at the end: all events, or the current rows. Their positions too.
    fn current(&self, at: usize) -> (RecordBatch, Vec<u32>) {
        let stored = &self.stored[at];
        let mut last: BTreeMap<String, u32> = BTreeMap::new();
        if !self.relations[at].has_tombstones() {
            return (stored.clone(), (0..stored.num_rows() as u32).collect());
        }
        let keys = stored.column(0).as_primitive::<arrow::datatypes::Int32Type>();
        let gone = stored.columns().last().unwrap().as_boolean();
        for row in 0..stored.num_rows() {
            let key = keys.value(row).to_string();
            match gone.value(row) {
                true => drop(last.remove(&key)),
                false => drop(last.insert(key, row as u32)),
            }
        }
        let rows: Vec<u32> = last.into_values().collect();
        (take_record_batch(stored, &UInt32Array::from(rows.clone())).unwrap(), rows)
    }
}

impl RelationSource for Log {
    fn scan(&self, relation: &Arc<Relation>, request: ScanRequest) -> Result<Vec<BatchIter>, SqlError> {
        let at = self.relations.iter().position(|other| other.name == relation.name).unwrap();
        let (batch, places) = self.current(at);
        let rows = batch.num_rows();
        let column = |column: &ScanColumn| -> ArrayRef {
            match column {
                ScanColumn::Stored(at) => Arc::clone(batch.column(*at)),
                ScanColumn::RowPartition => Arc::new(Int32Array::from(vec![0; rows])),
                ScanColumn::RowOffset => Arc::new(Int64Array::from_iter_values(places.iter().map(|at| i64::from(*at)))),
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

fn context(log: &Arc<Log>) -> PlanContext {
    let mut state = State::default();
    for relation in relations() {
        apply(&mut state, Command::CreateRelation { relation: Box::new(relation), query: None }).unwrap();
    }
    PlanContext {
        catalog: Snapshot::new(state),
        source: Arc::clone(log) as _,
        now: Timestamp::from_micros(0),
        settings: Arc::new(PlanSettings { target_partitions: 1, ..PlanSettings::default() }),
    }
}

/// What a query writes, as a reader of its sink sees it.
#[derive(Default)]
struct Kept {
    stream: Vec<Vec<String>>,
    table: BTreeMap<Vec<String>, Vec<String>>,
}

impl Kept {
    fn take(&mut self, pipeline: &Pipeline, stored: &RecordBatch, sql: &str) {
        assert_eq!(stored.schema(), pipeline.output().stored_schema(), "{sql}");
        let columns = &pipeline.output().columns;
        let types: Vec<SqlType> = columns.iter().map(|column| column.sql_type.clone()).collect();
        let all = rows(&stored.project(&(0..types.len()).collect::<Vec<_>>()).unwrap(), &types);
        let tombstones = stored.column_by_name("rowtombstone").map(|column| column.as_boolean().clone());
        for (row, cells) in all.into_iter().enumerate() {
            let keys = columns.iter().zip(&cells).filter(|(column, _)| column.is_key);
            let key: Vec<String> = keys.map(|(_, cell)| cell.clone()).collect();
            let shown = cells[..pipeline.output().selected].to_vec();
            match tombstones.as_ref().map(|tombstones| tombstones.value(row)) {
                None => self.stream.push(shown),
                Some(true) => assert!(self.table.remove(&key).is_some(), "{sql}: nothing to remove at {key:?}"),
                Some(false) => drop(self.table.insert(key, shown)),
            }
        }
    }
}

/// Runs `sql` over the log in random steps, restarting at random; the rows of its sink.
fn continuous(context: &PlanContext, sql: &str, log: &Log, random: &mut Random) -> Result<Vec<Vec<String>>, SqlError> {
    let (rows, late) = continuous_with_late(context, sql, log, random)?;
    assert_eq!(late, 0, "{sql}");
    Ok(rows)
}

/// The rows of its sink, and how many events were late.
fn continuous_with_late(
    context: &PlanContext,
    sql: &str,
    log: &Log,
    random: &mut Random,
) -> Result<(Vec<Vec<String>>, u64), SqlError> {
    let mut late = 0;
    let plan = plan_continuous(context, &select(sql), &QueryOptions::default())?;
    let mut pipeline = Pipeline::plan(&plan)?;
    let sources: Vec<usize> = plan
        .sources
        .iter()
        .map(|source| log.relations.iter().position(|relation| relation.name == source.name).unwrap())
        .collect();
    let (mut kept, mut start, mut next) = (Kept::default(), 0, vec![0; log.relations.len()]);
    while start < log.order.len() {
        let count = (random.below(40) as usize).min(log.order.len() - start);
        let mut batches = Vec::new();
        for relation in &log.order[start..start + count] {
            let row = next[*relation];
            next[*relation] += 1;
            let Some(source) = sources.iter().position(|source| source == relation) else { continue };
            batches.push(InputBatch {
                source,
                partition: PartitionId::new(0),
                offset_start: Offset::new(row as u64),
                offsets: None,
                batch: log.stored[*relation].slice(row, 1).project(pipeline.projection(source)).unwrap(),
            });
        }
        let output = pipeline.step(StepInput { batches, idle: &[], now: Timestamp::from_micros(7) })?;
        late += output.late_rows.value();
        if let Some(stored) = &output.batch {
            kept.take(&pipeline, stored, sql);
        }
        if random.below(3) == 0 {
            let saved = pipeline.save().unwrap();
            pipeline = Pipeline::plan(&plan)?;
            pipeline.restore(&saved).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        }
        start += count;
    }
    kept.stream.extend(kept.table.into_values());
    Ok((kept.stream, late))
}

#[tokio::test]
async fn every_query_over_several_relations_gives_the_rows_of_the_bounded_run() {
    compare(QUERIES).await;
}

#[tokio::test]
async fn every_query_that_waits_for_time_gives_the_rows_of_the_bounded_run() {
    compare(TIMED).await;
}

async fn compare(queries: &[&str]) {
    let is_near = |row: &Vec<String>| queries != TIMED || row.iter().all(|cell| cell != "5000");
    let mut differing = Vec::new();
    for seed in 1..=3 {
        let mut random = Random::new(seed);
        let log = Arc::new(Log::new(&mut random, 300));
        let context = context(&log);
        for sql in queries {
            let expected = bounded(&context, sql.trim_end_matches("EMIT FINAL")).await;
            let found = continuous(&context, sql, &log, &mut random);
            let (Ok(mut found), Ok(mut expected)) = (found.clone(), expected.clone()) else {
                let (found, expected) = (found.err(), expected.err());
                differing.push(format!("{sql}\n continuously {found:?}\n bounded {expected:?}"));
                continue;
            };
            expected.retain(is_near);
            found.retain(is_near);
            expected.sort();
            found.sort();
            if found != expected {
                let first = found.iter().zip(&expected).find(|(found, expected)| found != expected);
                differing.push(format!(
                    "{sql}\n seed {seed}: {} rows, expected {}; {first:?}",
                    found.len(),
                    expected.len()
                ));
            }
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// A join within a time over events up to a minute out of order, against pairs found one by one.
#[test]
fn rows_too_late_for_any_match_are_dropped_by_a_join_within_a_time() {
    use arrow::datatypes::{Int32Type, TimestampMicrosecondType};
    let sql =
        "SELECT s.id, r.id AS rid FROM s JOIN r WITHIN (10 SECONDS, 4 SECONDS) GRACE PERIOD 5 SECONDS ON s.k = r.k";
    let mut late_at_all = 0;
    for seed in 1..=20 {
        let mut random = Random::new(seed);
        let log = Arc::new(Log::new(&mut random, 200));
        let context = context(&log);
        let (mut greatest, mut next, mut kept) = ([i64::MIN; 2], [0; 4], [Vec::new(), Vec::new()]);
        let (mut late, mut expected) = (0, Vec::new());
        for relation in &log.order {
            let row = next[*relation];
            next[*relation] += 1;
            if *relation > 1 {
                continue;
            }
            let stored = &log.stored[*relation];
            let time = stored.column(4).as_primitive::<TimestampMicrosecondType>().value(row) / 1_000_000;
            let cell = |at: usize| {
                let cells = stored.column(at).as_primitive::<Int32Type>();
                if arrow::array::Array::is_valid(cells, row) { cells.value(row).to_string() } else { "∅".to_owned() }
            };
            greatest[*relation] = greatest[*relation].max(time);
            let now = greatest[0].min(greatest[1]);
            let reach = if *relation == 0 { 4 } else { 10 };
            if now != i64::MIN && now > time + reach + 5 {
                late += 1;
                continue;
            }
            for (id, k, at) in &kept[1 - *relation] {
                let (left, right) = if *relation == 0 { (time, *at) } else { (*at, time) };
                if *k == cell(1) && *k != "∅" && right >= left - 10 && right <= left + 4 {
                    let (left, right) =
                        if *relation == 0 { (cell(0), String::clone(id)) } else { (id.clone(), cell(0)) };
                    expected.push(vec![left, right]);
                }
            }
            kept[*relation].push((cell(0), cell(1), time));
        }
        late_at_all += late;
        let (mut found, late_rows) = continuous_with_late(&context, sql, &log, &mut random).unwrap();
        found.sort();
        expected.sort();
        assert_eq!((found, late_rows), (expected, late), "seed {seed}");
    }
    assert!(late_at_all > 20);
}
