//! From the logical plan of a continuous query to its pipeline.
//!
//! Owns the walk over the plan, which columns are read of each source, and how rows come along each edge. Leaves out name
//! resolution and typing (`plan`), and the operators (`stream`). Called when a query is created or started. Pure: a crash
//! does nothing to it.

mod aggregate;
mod built;
mod expand;
mod hop;
mod join;
mod over;
mod panes;
mod scan;
mod session;
mod sink;
mod union;
mod unnest;
mod window;
mod within;

use crate::error::{Near, SqlError};
use crate::plan::{ContinuousPlan, Emission};
use crate::stream::{
    Edge, EventTime, Finalise, Node, Operator, Parts, Pipeline, SourceReader, SourceTime, StepNow, Steps, WindowBounds,
    sql_error,
};
use arrow::datatypes::FieldRef;
use built::{Built, Mode, WindowColumn};
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, ExprSchemable, JoinType, LogicalPlan, ScalarUDF};
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use millstream_catalog::model::Span;
use millstream_catalog::{Relation, RelationKind};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

impl Pipeline {
    /// The pipeline of `query`.
    ///
    /// # Errors
    /// 0A000 with a hint for what cannot run continuously yet.
    pub fn plan(query: &ContinuousPlan) -> Result<Self, SqlError> {
        let planner = Planner {
            query,
            now: Arc::new(AtomicI64::new(0)),
            wanted: vec![BTreeSet::new(); query.sources.len()],
            kept: BTreeSet::new(),
            nodes: Vec::new(),
            made: Vec::new(),
            is_timed: false,
            is_unbounded: false,
        };
        planner.plan()
    }
}

/// Makes one pipeline.
struct Planner<'a> {
    query: &'a ContinuousPlan,
    now: Arc<AtomicI64>,
    /// Positions that are read of each source's scan.
    wanted: Vec<BTreeSet<usize>>,
    /// Sources whose current rows are kept.
    kept: BTreeSet<usize>,
    /// The operators; until the end their edges name positions of scans.
    nodes: Vec<Node>,
    /// Parts of the plan with state that were built: one that is there twice has one state.
    made: Vec<(LogicalPlan, Need, Built)>,
    /// Whether an operator asks for the time at each row.
    is_timed: bool,
    /// Whether rows of streams are kept for ever.
    is_unbounded: bool,
}

/// What who reads a part of the plan wants of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Need {
    /// Columns that identify a row.
    key: bool,
    /// New forms of keyed rows will do.
    forms: bool,
}

impl Need {
    /// Rows as they come and go.
    const ROWS: Self = Self { key: false, forms: false };
}

/// Batches are checked against their schema; what a plan claims never to be NULL may be so in a tombstone.
fn nullable(field: &FieldRef) -> FieldRef {
    match field.is_nullable() {
        true => Arc::clone(field),
        false => Arc::new(field.as_ref().clone().with_nullable(true)),
    }
}

impl Planner<'_> {
    fn plan(mut self) -> Result<Pipeline, SqlError> {
        let is_final = self.query.emission == Emission::Final;
        let need = Need { key: is_changelog(&self.query.plan), forms: !is_final };
        let mut root = self.build(&self.query.plan, need)?;
        if is_final {
            root = self.finalise(root)?;
        }
        let root = match root.mode {
            Mode::Forms => root.settle_forms(&mut self)?,
            Mode::Append | Mode::Both => root.settle(&mut self)?,
        };
        let (output, sink) = self.sink(&root)?;
        let mut edge = root.edge;
        self.resolve(&mut edge);
        let mut nodes = std::mem::take(&mut self.nodes);
        nodes.iter_mut().flat_map(|node| &mut node.inputs).for_each(|edge| self.resolve(edge));
        Pipeline::new(Parts {
            sources: self.readers()?,
            time: self.time(),
            nodes,
            root: edge,
            sink,
            output,
            now: Arc::clone(&self.now),
            steps: if self.query.emission == Emission::EveryChange { Steps::Each } else { Steps::Whole },
            is_unbounded: self.is_unbounded,
            waits_for_time: is_final || self.is_timed,
        })
    }

    /// Rows that come when they cannot change any more.
    fn finalise(&mut self, root: Built) -> Result<Built, SqlError> {
        let root = root.settle(self)?;
        let is_key = |at: usize| root.key.iter().any(|key| key.at == at);
        let last = root.windows.iter().filter(|window| is_key(window.at));
        let last = last.max_by_key(|window| (window.grace, std::cmp::Reverse(window.length)));
        let window = match (last, root.mode) {
            (Some(window), Mode::Both) => {
                let WindowColumn { at: key, length, grace, .. } = *window;
                Some(WindowBounds { key, length, grace, delay: root.delay, is_shared: false })
            }
            (None, Mode::Both) => {
                let what = "EMIT FINAL of rows that may always change";
                return Err(SqlError::unsupported(what, "group by a window, or use EMIT CHANGES"));
            }
            _ => None,
        };
        let operator = Finalise::new(root.arrow(), root.rows(), window, root.delay)?;
        let edge = self.add(Box::new(operator), vec![root.edge]);
        Ok(Built { edge, ..root })
    }

    fn build(&mut self, plan: &LogicalPlan, need: Need) -> Result<Built, SqlError> {
        if !matches!(plan, LogicalPlan::Aggregate(_) | LogicalPlan::Join(_) | LogicalPlan::Window(_)) {
            return self.build_level(plan, need);
        }
        // Groups have their key, whether it is asked for or not.
        let need = match plan {
            LogicalPlan::Aggregate(_) => Need { key: true, ..need },
            _ => need,
        };
        if let Some((_, _, built)) = self.made.iter().find(|(made, wanted, _)| *wanted == need && made == plan) {
            return Ok(built.clone());
        }
        let built = self.build_level(plan, need)?;
        self.made.push((plan.clone(), need, built.clone()));
        Ok(built)
    }

    fn build_level(&mut self, plan: &LogicalPlan, need: Need) -> Result<Built, SqlError> {
        match plan {
            LogicalPlan::Projection(projection) => {
                let ranked = match projection.input.as_ref() {
                    LogicalPlan::Filter(filter) => self.ranked(filter, Some(&projection.expr), need)?,
                    _ => None,
                };
                let input = match ranked {
                    Some(ranked) => ranked,
                    None => self.build(&projection.input, need)?,
                };
                input.project(self, &projection.expr, &projection.schema)
            }
            LogicalPlan::Filter(filter) => {
                if let Some(ranked) = self.ranked(filter, None, need)? {
                    return Ok(ranked);
                }
                self.check_filter(&filter.predicate)?;
                self.build(&filter.input, need)?.filter(self, &filter.predicate)
            }
            LogicalPlan::SubqueryAlias(alias) => Ok(self.build(&alias.input, need)?.named(&alias.schema)),
            LogicalPlan::TableScan(scan) => self.scan(scan, need),
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate, need),
            LogicalPlan::Join(join) => self.join(join, need),
            LogicalPlan::Union(union) => self.union(union, need),
            LogicalPlan::Window(window) if session::is_session(window) => self.session_edges(window),
            LogicalPlan::Unnest(unnest) if hop::is_hop(unnest) => self.hop(unnest, need),
            LogicalPlan::Window(window) => self.window(window),
            LogicalPlan::Limit(limit) => self.limit(limit),
            LogicalPlan::Unnest(unnest) => self.unnest(unnest, need),
            other => Err(unsupported_level(other)),
        }
    }

    /// Adds an operator over `inputs`.
    fn add(&mut self, operator: Box<dyn Operator>, inputs: Vec<Edge>) -> Edge {
        self.nodes.push(Node { operator, inputs });
        Edge::Node(self.nodes.len() - 1)
    }

    /// Positions of scans as positions of what is read.
    fn resolve(&self, edge: &mut Edge) {
        if let Edge::Source { source, columns, .. } = edge
            && let Some(wanted) = self.wanted.get(*source)
        {
            columns.iter_mut().for_each(|column| *column = wanted.range(..*column).count());
        }
    }

    fn readers(&self) -> Result<Vec<SourceReader>, SqlError> {
        let sources = self.query.sources.iter().zip(&self.wanted).enumerate();
        sources
            .map(|(number, (relation, wanted))| scan::reader(relation, wanted, self.kept.contains(&number)))
            .collect()
    }

    /// Streams move time; tables do where there is nothing else.
    fn time(&self) -> EventTime {
        let has_stream = self.query.sources.iter().any(|source| source.kind == RelationKind::Stream);
        let source = |relation: &Arc<Relation>| {
            let counts = relation.kind == RelationKind::Stream || !has_stream;
            let delay = relation.watermark_delay.unwrap_or(Span::ZERO);
            (SourceTime::new(delay, counts), relation.options.partitions)
        };
        EventTime::new(self.query.sources.iter().map(source).collect(), self.is_timed)
    }

    fn check_filter(&self, predicate: &Expr) -> Result<(), SqlError> {
        match has_now(predicate) {
            false => Ok(()),
            true => Err(SqlError::unsupported(
                "a filter on now() in a continuous query",
                "compare now() with rowtime in the query that reads the result",
            )
            .near(Near::Word("now".to_owned()))),
        }
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

/// Whether rows of `plan` change or go.
fn is_changelog(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::TableScan(scan) => {
            crate::plan::scanned_relation(scan).is_some_and(|relation| scan::is_changelog(&relation))
        }
        LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) | LogicalPlan::Window(_) | LogicalPlan::Limit(_) => true,
        LogicalPlan::Join(join) => {
            let (left, right) = (is_changelog(&join.left), is_changelog(&join.right));
            match (join.join_type, left, right) {
                (JoinType::Inner, ..) if join::is_lookup(join) => false,
                (JoinType::Left | JoinType::Right, ..) if join::is_lookup(join) || join::is_within(join) => false,
                (JoinType::Full, false, false) if join::is_within(join) => false,
                (JoinType::Inner | JoinType::LeftSemi | JoinType::RightSemi, left, right) => left || right,
                _ => true,
            }
        }
        other => other.inputs().into_iter().any(is_changelog),
    }
}

fn unsupported_level(plan: &LogicalPlan) -> SqlError {
    let (what, hint) = match plan {
        LogicalPlan::Sort(_) => ("ORDER BY without LIMIT", "order when reading the result"),
        LogicalPlan::Values(_) => ("VALUES", "read a stream or table"),
        LogicalPlan::RecursiveQuery(_) => ("WITH RECURSIVE", "run the query without EMIT CHANGES"),
        LogicalPlan::EmptyRelation(empty) if empty.produce_one_row => {
            ("a SELECT without FROM", "read a stream or table")
        }
        LogicalPlan::EmptyRelation(_) => ("a condition that is never true", "leave the query out"),
        _ => ("this form of query", "run the query without EMIT CHANGES"),
    };
    SqlError::unsupported(format!("{what} in a continuous query"), hint)
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
