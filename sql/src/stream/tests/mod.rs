//! Tests of whole pipelines: the harness. Plans are built by hand, so that nothing of the dialect is needed.

mod aggregates;
mod bounded;
mod changes;
mod generated;
mod late;
mod log;
mod model;
mod parts;
mod several;
mod shared;
mod skip;
mod typed;
mod windows;

use crate::dialect::ast::{Position, WindowKind};
use crate::exec::session::optimize_continuous;
use crate::exec::table::RelationTable;
use crate::plan::{ContinuousPlan, Emission, ResultColumn, WindowSpec};
use crate::stream::{InputBatch, Pipeline, StateStore, StepInput, StepOutput};
use crate::{SqlError, function};
use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::config::ConfigOptions;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, col};
use datafusion::optimizer::Analyzer;
use datafusion::prelude::SessionContext;
use millstream_catalog::model::{Name, Offset, PartitionId, ShardId, Span, Timestamp, TopicId};
use millstream_catalog::{Column, Relation, RelationKind, Schema, SqlType, TopicOptions};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// One second, in microseconds.
pub(super) const S: i64 = 1_000_000;

/// An event of the stream `s (k text, v double precision, n bigint)`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) partition: u32,
    /// Seconds.
    pub(super) at: i64,
    pub(super) k: Option<String>,
    pub(super) v: Option<f64>,
    pub(super) n: Option<i64>,
    /// For tables: the row went away.
    pub(super) is_gone: bool,
}

pub(super) fn event(partition: u32, at: i64, k: &str, v: f64) -> Event {
    Event { partition, at, k: Some(k.to_owned()), v: Some(v), n: Some(v as i64), is_gone: false }
}

/// A continuous query over `s`, its parts as SQL expressions.
#[derive(Debug, Clone)]
pub(super) struct Query {
    pub(super) filter: Option<&'static str>,
    /// Alias and expression.
    pub(super) group: Vec<(&'static str, &'static str)>,
    pub(super) calls: Vec<(String, String)>,
    pub(super) is_aggregate: bool,
    pub(super) having: Option<&'static str>,
    /// Name and expression.
    pub(super) select: Vec<(String, String)>,
    /// Size and grace, in seconds.
    pub(super) window: Option<(i64, Option<i64>)>,
    pub(super) partitions: u32,
    pub(super) delay: Option<i64>,
    pub(super) kind: RelationKind,
}

impl Query {
    pub(super) fn select(select: &[(&str, &str)]) -> Self {
        Self {
            filter: None,
            group: Vec::new(),
            calls: Vec::new(),
            is_aggregate: false,
            having: None,
            select: select.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect(),
            window: None,
            partitions: 1,
            delay: None,
            kind: RelationKind::Stream,
        }
    }

    pub(super) fn group_by(mut self, group: &[(&'static str, &'static str)], calls: &[(&str, &str)]) -> Self {
        self.group = group.to_vec();
        self.calls = calls.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        self.is_aggregate = true;
        self
    }

    pub(super) fn window(mut self, size: i64, grace: Option<i64>) -> Self {
        self.window = Some((size, grace));
        self.group.push(("windowstart", "windowstart"));
        self.group.push(("windowend", "windowend"));
        self
    }

    pub(super) fn relation(&self) -> Relation {
        let is_table = self.kind == RelationKind::Table;
        let column = |name: &str, sql_type: SqlType, is_key: bool| Column {
            name: Name::new(name).unwrap(),
            sql_type,
            is_nullable: true,
            is_key,
            default: None,
            is_hidden: false,
            is_headers: false,
        };
        Relation {
            id: TopicId::new(1),
            name: Name::new("s").unwrap(),
            kind: self.kind,
            schema: Schema {
                columns: vec![
                    column("k", SqlType::Text, is_table),
                    column("v", SqlType::Double, false),
                    column("n", SqlType::BigInt, false),
                ],
            },
            timestamp: None,
            watermark_delay: self.delay.map(Span::from_secs),
            options: TopicOptions { partitions: self.partitions, ..TopicOptions::default() },
            shard: ShardId::new(1),
            query: None,
            created_at: Timestamp::from_micros(0),
            sql: String::new(),
            fills: Default::default(),
            row_ids: None,
            is_materialized: false,
        }
    }

    pub(super) fn plan(&self) -> ContinuousPlan {
        let relation = Arc::new(self.relation());
        let source = RelationTable::new(Arc::clone(&relation), Arc::new(log::Log::new(Vec::new(), &[]))).into_source();
        let mut plan = LogicalPlanBuilder::scan("s", source, None).unwrap();
        if let Some((size, _)) = self.window {
            plan = with_window(plan, Span::from_secs(size));
        }
        if let Some(filter) = self.filter {
            let filter = expression(filter, &plan);
            plan = plan.filter(filter).unwrap();
        }
        if self.is_aggregate {
            let group: Vec<Expr> = self.group.iter().map(|(_, text)| expression(text, &plan)).collect();
            let calls: Vec<Expr> =
                self.calls.iter().map(|(name, text)| expression(text, &plan).alias(name.as_str())).collect();
            plan = plan.aggregate(group, calls).unwrap();
        }
        if let Some(having) = self.having {
            let having = expression(having, &plan);
            plan = plan.filter(having).unwrap();
        }
        let select: Vec<Expr> =
            self.select.iter().map(|(name, text)| expression(text, &plan).alias(name.as_str())).collect();
        let plan = plan.project(select).unwrap().build().unwrap();
        let plan = Analyzer::new().execute_and_check(plan, &ConfigOptions::new(), |_, _| {}).unwrap();
        let plan = optimize_continuous(plan).unwrap();
        let columns = self.columns(&plan);
        let window = self.window.map(|(size, grace)| WindowSpec {
            kind: WindowKind::Tumbling { size: Span::from_secs(size) },
            grace: grace.map(Span::from_secs),
            position: Position::UNKNOWN,
        });
        ContinuousPlan {
            partition_by: Vec::new(),
            plan,
            window,
            grace: None,
            sources: vec![relation],
            views: Vec::new(),
            columns,
            emission: Emission::Changes,
            state_retention: None,
        }
    }

    fn columns(&self, plan: &LogicalPlan) -> Vec<ResultColumn> {
        let fields = plan.schema().fields().iter().zip(&self.select);
        let column = fields.map(|(field, (name, _))| ResultColumn {
            name: name.clone(),
            sql_type: SqlType::of(field).unwrap(),
            source: None,
        });
        column.collect()
    }

    pub(super) fn pipeline(&self) -> Result<Pipeline, SqlError> {
        Pipeline::plan(&self.plan())
    }
}

fn with_window(plan: LogicalPlanBuilder, size: Span) -> LogicalPlanBuilder {
    use function::window::{WindowEdge, window_edge};
    let mut columns: Vec<Expr> = plan.schema().columns().into_iter().map(Expr::Column).collect();
    columns.push(window_edge(WindowEdge::Start, size, col("rowtime")).alias("windowstart"));
    columns.push(window_edge(WindowEdge::End, size, col("rowtime")).alias("windowend"));
    plan.project(columns).unwrap()
}

fn expression(text: &str, plan: &LogicalPlanBuilder) -> Expr {
    SessionContext::new().parse_sql_expr(text, plan.schema()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Files of state, in memory.
#[derive(Debug, Default)]
pub(super) struct Files(Mutex<BTreeMap<u64, (Vec<u8>, u32)>>, AtomicU64);

impl Files {
    /// How many are held.
    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Cuts every file.
    pub(super) fn spoil(&self) {
        self.0.lock().unwrap().values_mut().for_each(|(bytes, _)| bytes.truncate(bytes.len() / 2));
    }

    /// How many were written.
    pub(super) fn written(&self) -> u64 {
        self.1.load(Ordering::Relaxed)
    }
}

impl StateStore for Files {
    fn write(&self, bytes: &[u8]) -> Result<u64, SqlError> {
        let number = self.1.fetch_add(1, Ordering::Relaxed);
        self.0.lock().unwrap().insert(number, (bytes.to_vec(), 1));
        Ok(number)
    }

    fn read(&self, file: u64) -> Result<Vec<u8>, SqlError> {
        Ok(self.0.lock().unwrap()[&file].0.clone())
    }

    fn hold(&self, file: u64) {
        self.0.lock().unwrap().get_mut(&file).unwrap().1 += 1;
    }

    fn release(&self, file: u64) {
        let mut files = self.0.lock().unwrap();
        let held = &mut files.get_mut(&file).unwrap().1;
        *held -= 1;
        if *held == 0 {
            files.remove(&file);
        }
    }
}

/// A pipeline under test, and the next offset of each partition.
pub(super) struct Run {
    pub(super) pipeline: Pipeline,
    query: Query,
    offsets: Vec<u64>,
    steps: i64,
}

impl Run {
    pub(super) fn new(query: &Query) -> Self {
        let pipeline = query.pipeline().unwrap();
        Self { pipeline, query: query.clone(), offsets: vec![0; query.partitions as usize], steps: 0 }
    }

    /// One step over `events`.
    pub(super) fn step(&mut self, events: &[Event], idle: &[u32]) -> Result<StepOutput, SqlError> {
        let schema = self.query.relation().stored_schema();
        let projection = self.pipeline.projection(0).to_vec();
        let mut batches = Vec::new();
        for run in events.chunk_by(|a, b| a.partition == b.partition) {
            let partition = run[0].partition;
            let offset = &mut self.offsets[partition as usize];
            let batch = stored(run, self.query.kind == RelationKind::Table);
            assert_eq!(batch.schema(), schema);
            batches.push(InputBatch {
                source: 0,
                partition: PartitionId::new(partition),
                offset_start: Offset::new(*offset),
                offsets: None,
                batch: batch.project(&projection).unwrap(),
            });
            *offset += run.len() as u64;
        }
        self.steps += 1;
        let idle: Vec<(usize, PartitionId)> = idle.iter().map(|partition| (0, PartitionId::new(*partition))).collect();
        let now = Timestamp::from_micros(1_000_000 * S + self.steps);
        self.pipeline.step(&StepInput { batches, idle: &idle, now })
    }

    /// Saves, and goes on with a new pipeline that has the saved state.
    pub(super) fn restart(&mut self) {
        let saved = self.pipeline.save().unwrap();
        let mut pipeline = self.query.pipeline().unwrap();
        assert_eq!(pipeline.fingerprint(), self.pipeline.fingerprint());
        pipeline.restore(&saved.bytes).unwrap();
        assert_eq!(pipeline.save().unwrap(), saved, "restored state saves as it was");
        self.pipeline = pipeline;
    }

    /// One step; its output as lines: the columns, then seconds of event time, then `gone` for a tombstone.
    pub(super) fn lines(&mut self, events: &[Event]) -> Vec<String> {
        self.step(events, &[]).unwrap().batch.map_or(Vec::new(), |batch| lines(&batch))
    }
}

/// Stored rows of events.
fn stored(events: &[Event], is_table: bool) -> RecordBatch {
    let rowtime = TimestampMicrosecondArray::from_iter_values(events.iter().map(|event| event.at * S));
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(events.iter().map(|event| event.k.clone()).collect::<StringArray>()),
        Arc::new(events.iter().map(|event| event.v).collect::<Float64Array>()),
        Arc::new(events.iter().map(|event| event.n).collect::<Int64Array>()),
        Arc::new(rowtime.with_timezone("UTC")),
    ];
    let mut query = Query::select(&[]);
    if is_table {
        query.kind = RelationKind::Table;
        columns.push(Arc::new(events.iter().map(|event| Some(event.is_gone)).collect::<BooleanArray>()));
    }
    RecordBatch::try_new(query.relation().stored_schema(), columns).unwrap()
}

/// Rows as text: times as seconds, NULL as `null`.
pub(super) fn lines(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::new().with_null("null");
    let mut lines = vec![String::new(); batch.num_rows()];
    for (column, field) in batch.columns().iter().zip(batch.schema().fields()) {
        let times = column.as_any().downcast_ref::<TimestampMicrosecondArray>();
        let doubles = column.as_any().downcast_ref::<Float64Array>();
        let formatter = ArrayFormatter::try_new(column.as_ref(), &options).unwrap();
        for (row, line) in lines.iter_mut().enumerate() {
            let text = match (times, doubles) {
                (Some(times), _) if times.is_valid(row) => (times.value(row) / S).to_string(),
                (_, Some(doubles)) if doubles.is_valid(row) => format!("{:?}", doubles.value(row)),
                _ if field.name() == "rowtombstone" => match formatter.value(row).to_string().as_str() {
                    "true" => "gone".to_owned(),
                    _ => String::new(),
                },
                _ => formatter.value(row).to_string(),
            };
            line.push_str(&text);
            line.push(' ');
        }
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// Numbers that look random and are the same for one seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
    /// A double with many digits.
    pub(super) fn double(&mut self) -> f64 {
        (self.below(1 << 50) as f64 - (1_u64 << 49) as f64) / 977.0
    }
}
