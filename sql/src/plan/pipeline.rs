//! From the logical plan of a continuous query to its pipeline.
//!
//! Owns which columns are read, which expressions run where, and the columns and key of the sink. Leaves out name
//! resolution and typing (`plan`), and the operators (`stream`). Called when a query is created or started. Pure: a crash
//! does nothing to it.

use crate::error::SqlError;
use crate::plan::{ContinuousPlan, ResultColumn};
use crate::stream::{
    Aggregate, Call, EventTime, KeyedMap, Map, Operator, Output, Parts, Pipeline, Sink, SinkColumn, SourceColumn,
    SourceReader, Stage, StepNow, WindowBounds, sql_error,
};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, DFSchemaRef};
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{self, Expr, ExprSchemable, LogicalPlan, ScalarUDF};
use datafusion::physical_expr::aggregate::LoweredAggregateBuilder;
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use millstream_catalog::model::{Name, Span};
use millstream_catalog::schema::ROWTIME;
use millstream_catalog::{Column, Relation, RelationKind, SqlType};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

/// The key column of a table that has one row.
const ONE_ROW_KEY: &str = "rowid";

/// The key columns of a table made of one without a key: its rows' ids and partitions.
const ROW_KEY: [&str; 2] = ["rowid", "rowid_partition"];

impl Pipeline {
    /// The pipeline of `query`.
    ///
    /// # Errors
    /// 0A000 with a hint for what cannot run continuously yet.
    pub fn plan(query: &ContinuousPlan) -> Result<Self, SqlError> {
        let levels = Levels::of(&query.plan)?;
        let [relation] = query.sources.as_slice() else {
            return Err(SqlError::unsupported("a continuous query over more than one source", "read one stream"));
        };
        Planner { query, relation, levels, now: Arc::new(AtomicI64::new(0)) }.plan()
    }
}

/// The levels of a plan, in the shape [`ContinuousPlan`] documents.
struct Levels<'a> {
    select: &'a logical_expr::Projection,
    having: Option<&'a Expr>,
    aggregate: Option<&'a logical_expr::Aggregate>,
    filter: Option<&'a Expr>,
    window: Option<&'a logical_expr::Projection>,
    scan: &'a logical_expr::TableScan,
}

impl<'a> Levels<'a> {
    fn of(plan: &'a LogicalPlan) -> Result<Self, SqlError> {
        let LogicalPlan::Projection(select) = plan else { return Err(unsupported_level(plan)) };
        let (filter, below) = take_filter(&select.input);
        let (having, aggregate, filter, below) = match below {
            LogicalPlan::Aggregate(aggregate) => {
                let (inner, below) = take_filter(&aggregate.input);
                (filter, Some(aggregate), inner, below)
            }
            below => (None, None, filter, below),
        };
        let (window, below) = match below {
            LogicalPlan::Projection(window) => (Some(window), window.input.as_ref()),
            below => (None, below),
        };
        match below {
            LogicalPlan::TableScan(scan) => Ok(Self { select, having, aggregate, filter, window, scan }),
            other => Err(unsupported_level(other)),
        }
    }
}

fn take_filter(plan: &LogicalPlan) -> (Option<&Expr>, &LogicalPlan) {
    match plan {
        LogicalPlan::Filter(filter) => (Some(&filter.predicate), filter.input.as_ref()),
        plan => (None, plan),
    }
}

fn unsupported_level(plan: &LogicalPlan) -> SqlError {
    let what = match plan {
        LogicalPlan::Join(_) => "a join",
        LogicalPlan::Union(_) => "UNION",
        LogicalPlan::Sort(_) => "ORDER BY",
        LogicalPlan::Limit(_) => "LIMIT",
        LogicalPlan::Distinct(_) => "DISTINCT",
        LogicalPlan::Window(_) => "a window function",
        LogicalPlan::Unnest(_) => "a set-returning function",
        LogicalPlan::Aggregate(_) | LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) => "a sub-query",
        _ => "this form of query",
    };
    SqlError::unsupported(format!("{what} in a continuous query"), "run the query without EMIT CHANGES")
}

struct Planner<'a> {
    query: &'a ContinuousPlan,
    relation: &'a Arc<Relation>,
    levels: Levels<'a>,
    now: Arc<AtomicI64>,
}

/// The columns the operators above the scan see: a part of a logical schema, in its order.
struct Pruned {
    schema: DFSchema,
    /// Position in the pruned schema, by position in the whole.
    positions: BTreeMap<usize, usize>,
}

impl Pruned {
    fn new(whole: &DFSchema, wanted: &BTreeSet<usize>) -> Result<Self, SqlError> {
        let fields = wanted.iter().map(|index| {
            let (qualifier, field) = whole.qualified_field(*index);
            (qualifier.cloned(), nullable(field))
        });
        let schema = DFSchema::new_with_metadata(fields.collect(), HashMap::new()).map_err(sql_error)?;
        let positions = wanted.iter().enumerate().map(|(position, index)| (*index, position)).collect();
        Ok(Self { schema, positions })
    }

    fn arrow(&self) -> SchemaRef {
        Arc::clone(self.schema.inner())
    }
}

/// Batches are checked against their schema; what a plan claims never to be NULL may be so in a tombstone.
fn nullable(field: &FieldRef) -> FieldRef {
    Arc::new(field.as_ref().clone().with_nullable(true))
}

/// The last operators, and what comes out of them.
struct Tail {
    operators: Vec<Box<dyn Operator>>,
    output: Output,
    sink: Vec<SinkColumn>,
}

/// A key column that the sink must have.
struct Key {
    /// Position among the operator's input columns.
    input: usize,
    /// Its name where the select list does not give one.
    name: String,
    field: FieldRef,
    /// Left out of `SELECT *` where the select list does not have it.
    is_hidden: bool,
}

impl Planner<'_> {
    fn plan(&self) -> Result<Pipeline, SqlError> {
        self.check()?;
        let scan = &self.levels.scan.projected_schema;
        let base = self.levels.window.map_or(scan, |window| &window.schema);
        let wanted = self.wanted_of_base(base)?;
        let pruned = Pruned::new(base, &wanted)?;
        let wanted_of_scan = match self.levels.window {
            None => wanted,
            Some(window) => {
                let mut columns = BTreeSet::new();
                for index in &wanted {
                    self.add_columns(&window.expr[*index], scan, &mut columns)?;
                }
                columns
            }
        };
        let scanned = Pruned::new(scan, &wanted_of_scan)?;
        let source = self.source(&scanned, &wanted_of_scan)?;
        let mut stages = Vec::new();
        if let Some(window) = self.levels.window {
            let expressions = pruned.positions.keys().map(|index| self.physical(&window.expr[*index], &scanned.schema));
            stages.push(Stage::Project {
                expressions: expressions.collect::<Result<Vec<_>, _>>()?,
                schema: pruned.arrow(),
            });
        }
        if let Some(filter) = self.levels.filter {
            stages.push(Stage::Filter(self.physical(filter, &pruned.schema)?));
        }
        let tail = match self.levels.aggregate {
            Some(aggregate) => self.aggregate_tail(aggregate, stages, &pruned)?,
            None if self.is_changelog() => self.table_tail(stages, &pruned)?,
            None => self.stream_tail(stages, &pruned)?,
        };
        let delay = self.relation.watermark_delay.unwrap_or(Span::ZERO);
        let has_tombstones = tail.output.has_tombstones();
        Ok(Pipeline::new(Parts {
            source,
            time: EventTime::new(self.relation.options.partitions, delay, self.query.window.is_some()),
            operators: tail.operators,
            sink: Sink::new(tail.sink, tail.output.stored_schema(), has_tombstones),
            output: tail.output,
            now: Arc::clone(&self.now),
        }))
    }

    /// Whether events are new forms of rows, and rows go.
    fn is_changelog(&self) -> bool {
        self.relation.has_tombstones() || self.relation.row_ids.is_some()
    }

    /// The columns of a scan that identify a row.
    fn identity(&self) -> Vec<usize> {
        match self.relation.row_ids {
            Some(at) => vec![at, self.relation.schema.columns.len() + 1],
            None => self.relation.schema.key(),
        }
    }

    fn check(&self) -> Result<(), SqlError> {
        if self.relation.has_tombstones() && self.levels.aggregate.is_some() {
            let what = format!("a continuous aggregate over the table \"{}\"", self.relation.name);
            return Err(SqlError::unsupported(what, "aggregate the stream the table is made from"));
        }
        if self.query.window.is_some() && self.levels.aggregate.is_none() {
            return Err(SqlError::unsupported("WINDOW without GROUP BY", "group by the columns to be shown"));
        }
        if self.query.window.is_some() != self.levels.window.is_some() {
            return Err(SqlError::internal("the plan and its window do not agree"));
        }
        let mut filters: Vec<&Expr> = self.levels.filter.into_iter().chain(self.levels.having).collect();
        if let Some(aggregate) = self.levels.aggregate {
            filters.extend(aggregate.aggr_expr.iter().filter_map(|call| match unalias(call) {
                Expr::AggregateFunction(call) => call.params.filter.as_deref(),
                _ => None,
            }));
        }
        if filters.into_iter().any(has_now) {
            return Err(SqlError::unsupported(
                "a filter on now() in a continuous query",
                "compare now() with rowtime in the query that reads the result",
            ));
        }
        Ok(())
    }

    /// Positions in `base` that the levels above read.
    fn wanted_of_base(&self, base: &DFSchemaRef) -> Result<BTreeSet<usize>, SqlError> {
        let mut wanted = BTreeSet::new();
        let above = match self.levels.aggregate {
            None => self.levels.select.expr.iter().collect::<Vec<_>>(),
            Some(aggregate) => aggregate.group_expr.iter().chain(&aggregate.aggr_expr).collect(),
        };
        for expression in above.into_iter().chain(self.levels.filter) {
            self.add_columns(expression, base, &mut wanted)?;
        }
        if self.is_changelog() && self.levels.aggregate.is_none() {
            wanted.extend(self.identity());
        }
        Ok(wanted)
    }

    fn add_columns(&self, expression: &Expr, schema: &DFSchema, to: &mut BTreeSet<usize>) -> Result<(), SqlError> {
        for column in expression.column_refs() {
            to.insert(schema.index_of_column(column).map_err(sql_error)?);
        }
        Ok(())
    }

    fn source(&self, scanned: &Pruned, wanted: &BTreeSet<usize>) -> Result<SourceReader, SqlError> {
        let stored = self.relation.stored_schema();
        let columns = self.relation.schema.columns.len();
        // The scan has the columns and rowtime as stored, then rowpartition and rowoffset.
        let mut projection: BTreeSet<usize> = wanted.iter().copied().filter(|index| *index <= columns).collect();
        projection.insert(columns);
        let rowtombstone = match self.relation.row_ids {
            Some(at) => Some(at + 1),
            None => self.relation.has_tombstones().then_some(columns + 1),
        };
        projection.extend(rowtombstone);
        projection.extend(self.relation.row_ids);
        let projection: Vec<usize> = projection.into_iter().collect();
        let position = |index: usize| {
            let found = projection.iter().position(|stored| *stored == index);
            found.ok_or_else(|| SqlError::internal("a column is not read"))
        };
        let source_column = |index: usize| match index {
            index if Some(index) == self.relation.row_ids => Ok(SourceColumn::RowId(position(index)?)),
            index if index <= columns => Ok(SourceColumn::Input(position(index)?)),
            index if index == columns + 1 => Ok(SourceColumn::RowPartition),
            index if index == columns + 2 => Ok(SourceColumn::RowOffset),
            _ => Err(SqlError::internal("a scan has a column that is not stored")),
        };
        let source_columns = wanted.iter().map(|index| source_column(*index)).collect::<Result<Vec<_>, _>>()?;
        Ok(SourceReader {
            input: Arc::new(stored.project(&projection).map_err(|_| SqlError::internal("no such stored column"))?),
            rowtime: position(columns)?,
            rowtombstone: rowtombstone.map(position).transpose()?,
            settled: match (self.relation.row_ids, self.levels.aggregate) {
                (Some(at), Some(_)) => Some((position(at)?, self.relation.name.clone())),
                _ => None,
            },
            projection,
            columns: source_columns,
            schema: scanned.arrow(),
        })
    }

    /// Rows that are never taken back.
    fn stream_tail(&self, mut stages: Vec<Stage>, base: &Pruned) -> Result<Tail, SqlError> {
        stages.push(self.select_stage(&base.schema)?);
        let columns = self.query.columns.iter().map(selected_column).collect::<Result<Vec<_>, _>>()?;
        Ok(Tail {
            operators: vec![Box::new(Map::new(stages))],
            sink: (0..columns.len()).map(SinkColumn::Delta).collect(),
            output: Output { selected: columns.len(), columns, kind: self.relation.kind },
        })
    }

    /// Rows of a table, by its primary key.
    fn table_tail(&self, mut stages: Vec<Stage>, base: &Pruned) -> Result<Tail, SqlError> {
        let mut keys = Vec::new();
        for (number, index) in self.identity().into_iter().enumerate() {
            let input = base.positions.get(&index).copied();
            let input = input.ok_or_else(|| SqlError::internal("a key column is not read"))?;
            let field = Arc::clone(base.schema.field(input));
            let name = match self.relation.row_ids {
                Some(_) => ROW_KEY[number].to_owned(),
                None => field.name().clone(),
            };
            keys.push(Key { input, name, field, is_hidden: true });
        }
        stages.push(self.select_stage(&base.schema)?);
        let inputs = keys.iter().map(|key| key.input).collect();
        let keyed = KeyedMap::new(base.schema.as_arrow(), inputs, None, stages)?;
        let (output, sink) = self.keyed_output(&base.schema, keys)?;
        Ok(Tail { operators: vec![Box::new(keyed)], output, sink })
    }

    fn aggregate_tail(
        &self,
        aggregate: &logical_expr::Aggregate,
        stages: Vec<Stage>,
        base: &Pruned,
    ) -> Result<Tail, SqlError> {
        let mut keys = Vec::new();
        for expression in &aggregate.group_expr {
            if let Expr::GroupingSet(_) = expression {
                return Err(SqlError::unsupported("GROUPING SETS in a continuous query", "write one query per set"));
            }
            keys.push(self.physical(expression, &base.schema)?);
        }
        let calls = aggregate.aggr_expr.iter().map(|call| self.call(call, base)).collect::<Result<Vec<_>, _>>()?;
        let fields = aggregate.schema.iter().map(|(qualifier, field)| (qualifier.cloned(), nullable(field)));
        let schema = DFSchema::new_with_metadata(fields.collect(), HashMap::new()).map_err(sql_error)?;
        let edges = self.window_keys(aggregate)?;
        let window = edges.map(|(_, end)| end).zip(self.query.grace());
        let mut operators: Vec<Box<dyn Operator>> = Vec::new();
        if !stages.is_empty() {
            operators.push(Box::new(Map::new(stages)));
        }
        let bounds = window.map(|(end, grace)| WindowBounds { end, grace });
        let count = keys.len();
        operators.push(Box::new(Aggregate::new(keys, bounds, calls, Arc::clone(schema.inner()))?));
        let mut stages = Vec::new();
        if let Some(having) = self.levels.having {
            stages.push(Stage::Filter(self.physical(having, &schema)?));
        }
        stages.push(self.select_stage(&schema)?);
        operators.push(Box::new(KeyedMap::new(schema.as_arrow(), (0..count).collect(), window, stages)?));
        let keys = (0..count).map(|input| {
            let is_edge = edges.is_some_and(|(start, end)| input == start || input == end);
            let name = match unalias(&aggregate.group_expr[input]) {
                Expr::Column(column) => column.name.clone(),
                _ => format!("key{}", input + 1),
            };
            Key { input, name, field: Arc::clone(schema.field(input)), is_hidden: !is_edge }
        });
        let (output, sink) = self.keyed_output(&schema, keys.collect())?;
        Ok(Tail { operators, output, sink })
    }

    /// Positions of the window's start and end among the grouping expressions.
    fn window_keys(&self, aggregate: &logical_expr::Aggregate) -> Result<Option<(usize, usize)>, SqlError> {
        let Some(window) = self.levels.window else { return Ok(None) };
        let columns = window.expr.len();
        let edge = |from_last: usize| {
            aggregate.group_expr.iter().position(|expression| match unalias(expression) {
                Expr::Column(column) => window.schema.maybe_index_of_column(column) == Some(columns - from_last),
                _ => false,
            })
        };
        match (edge(2), edge(1)) {
            (Some(start), Some(end)) => Ok(Some((start, end))),
            _ => Err(SqlError::internal("a windowed aggregate is not grouped by its window")),
        }
    }

    /// The aggregate `call`, DISTINCT taken off: it is done before the function sees the rows.
    fn call(&self, call: &Expr, base: &Pruned) -> Result<Call, SqlError> {
        let mut call = self.with_step_now(unalias(call), &base.schema)?;
        let Expr::AggregateFunction(function) = &mut call else {
            return Err(SqlError::internal("an aggregate is not a function"));
        };
        let is_distinct = std::mem::replace(&mut function.params.distinct, false);
        let (props, context) = (ExecutionProps::new(), PhysicalPlanningContext::default());
        let lowered = LoweredAggregateBuilder::new(&call, &base.schema, base.schema.as_arrow(), &props, &context);
        let lowered = lowered.build().map_err(sql_error)?;
        Call::new(lowered.aggregate, lowered.filter, is_distinct, base.schema.as_arrow())
    }

    fn select_stage(&self, input: &DFSchema) -> Result<Stage, SqlError> {
        let select = self.levels.select;
        let expressions = select.expr.iter().map(|expression| self.physical(expression, input));
        let fields: Vec<Field> = select.schema.fields().iter().map(|field| nullable(field).as_ref().clone()).collect();
        Ok(Stage::Project {
            expressions: expressions.collect::<Result<Vec<_>, _>>()?,
            schema: Arc::new(Schema::new(fields)),
        })
    }

    /// The sink of a keyed map: the select list, then the keys it does not have.
    fn keyed_output(&self, input: &DFSchema, keys: Vec<Key>) -> Result<(Output, Vec<SinkColumn>), SqlError> {
        let selected = self.query.columns.len();
        let mut columns = self.query.columns.iter().map(selected_column).collect::<Result<Vec<_>, _>>()?;
        let mut sink: Vec<SinkColumn> = (0..selected).map(SinkColumn::Delta).collect();
        let shown_at = |key: &Key| {
            self.levels.select.expr.iter().position(|expression| match unalias(expression) {
                Expr::Column(column) => input.maybe_index_of_column(column) == Some(key.input),
                _ => false,
            })
        };
        let mut missing = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            match shown_at(key) {
                Some(shown) => {
                    columns[shown].is_key = true;
                    sink[shown] = SinkColumn::Delta(selected + index);
                }
                None => missing.push((index, key)),
            }
        }
        // Window bounds are shown, so they come before what is hidden.
        missing.sort_by_key(|(_, key)| key.is_hidden);
        for (index, key) in missing {
            columns.push(key_column(key, &columns)?);
            sink.push(SinkColumn::Delta(selected + index));
        }
        if keys.is_empty() {
            columns.push(Column {
                name: free_name(ONE_ROW_KEY, &columns)?,
                sql_type: SqlType::SmallInt,
                is_nullable: false,
                is_key: true,
                default: None,
                is_hidden: true,
                is_headers: false,
            });
            sink.push(SinkColumn::OneRow);
        }
        Ok((Output { columns, kind: RelationKind::Table, selected }, sink))
    }

    fn physical(&self, expression: &Expr, input: &DFSchema) -> Result<Arc<dyn PhysicalExpr>, SqlError> {
        let expression = self.with_step_now(expression, input)?;
        create_physical_expr(&expression, input, &ExecutionProps::new(), &PhysicalPlanningContext::default())
            .map_err(sql_error)
    }

    /// `expression` with `now()` reading the time of the step.
    fn with_step_now(&self, expression: &Expr, input: &DFSchema) -> Result<Expr, SqlError> {
        let rewrite = |part: Expr| -> DataFusionResult<Transformed<Expr>> {
            if !is_now(&part) {
                return Ok(Transformed::no(part));
            }
            let function = StepNow::new(Arc::clone(&self.now), part.get_type(input)?);
            Ok(Transformed::yes(ScalarUDF::new_from_impl(function).call(Vec::new())))
        };
        Ok(expression.clone().transform(rewrite).map_err(sql_error)?.data)
    }
}

fn is_now(expression: &Expr) -> bool {
    matches!(expression, Expr::ScalarFunction(call) if call.func.name() == "now" && call.args.is_empty())
}

fn has_now(expression: &Expr) -> bool {
    expression.exists(|part| Ok(is_now(part))).unwrap_or(false)
}

fn unalias(expression: &Expr) -> &Expr {
    match expression {
        Expr::Alias(alias) => unalias(&alias.expr),
        expression => expression,
    }
}

fn selected_column(column: &ResultColumn) -> Result<Column, SqlError> {
    Ok(Column {
        name: Name::new(column.name.as_str())?,
        sql_type: column.sql_type.clone(),
        is_nullable: true,
        is_key: false,
        default: None,
        is_hidden: false,
        is_headers: false,
    })
}

fn key_column(key: &Key, columns: &[Column]) -> Result<Column, SqlError> {
    let sql_type = SqlType::of(&key.field).ok_or_else(|| {
        SqlError::unsupported(format!("grouping by type {}", type_words(key.field.data_type())), "cast it to text")
    })?;
    Ok(Column {
        name: match key.is_hidden {
            true => free_name(&key.name, columns)?,
            false => Name::new(key.name.as_str())?,
        },
        sql_type,
        is_nullable: true,
        is_key: true,
        default: None,
        is_hidden: key.is_hidden,
        is_headers: false,
    })
}

fn type_words(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Struct(_) => "STRUCT",
        DataType::Map(_, _) => "MAP",
        _ => "of this expression",
    }
}

/// `name`, with a number where `columns` or the pseudo-columns have it already.
fn free_name(name: &str, columns: &[Column]) -> Result<Name, SqlError> {
    let is_taken = |name: &str| name == ROWTIME || columns.iter().any(|column| column.name.as_str() == name);
    let base: String = name.chars().take(50).collect();
    let numbered = (1..).map(|number| format!("{base}_{number}"));
    let free = std::iter::once(name.to_owned()).chain(numbered).find(|name| !is_taken(name));
    Ok(Name::new(free.unwrap_or_default())?)
}
