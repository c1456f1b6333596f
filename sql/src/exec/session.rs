//! The engine's settings, and its rule sets: analysis, simplification, evaluation of constants.
//!
//! Owns what of the engine is switched on. No catalogs, file formats, object stores or spill files. Called by `plan`
//! and `exec`. Pure but for the accounting of memory.

use crate::error::SqlError;
use crate::plan::PlanSettings;
use arrow::array::RecordBatch;
use arrow::array::RecordBatchOptions;
use arrow::datatypes::Schema;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::optimizer::decorrelate_lateral_join::DecorrelateLateralJoin;
use datafusion::optimizer::decorrelate_predicate_subquery::DecorrelatePredicateSubquery;
use datafusion::optimizer::eliminate_cross_join::EliminateCrossJoin;
use datafusion::optimizer::eliminate_duplicated_expr::EliminateDuplicatedExpr;
use datafusion::optimizer::eliminate_filter::EliminateFilter;
use datafusion::optimizer::eliminate_join::EliminateJoin;
use datafusion::optimizer::eliminate_outer_join::EliminateOuterJoin;
use datafusion::optimizer::extract_equijoin_predicate::ExtractEquijoinPredicate;
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::optimize_unions::OptimizeUnions;
use datafusion::optimizer::propagate_empty_relation::PropagateEmptyRelation;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::replace_distinct_aggregate::ReplaceDistinctWithAggregate;
use datafusion::optimizer::rewrite_set_comparison::RewriteSetComparison;
use datafusion::optimizer::scalar_subquery_to_join::ScalarSubqueryToJoin;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::optimizer::{Analyzer, Optimizer, OptimizerContext, OptimizerRule};
use datafusion::physical_expr::create_physical_expr;
use datafusion::prelude::SessionConfig;
use std::sync::Arc;

/// Rows of a batch between operators; scans give larger ones, which pass as they are.
const BATCH_ROWS: usize = 8_192;

/// The session of one query: its settings and its memory.
pub(super) fn session(settings: &PlanSettings) -> Result<SessionState, SqlError> {
    let mut config = SessionConfig::new()
        .with_target_partitions(settings.target_partitions.max(1))
        .with_batch_size(BATCH_ROWS)
        .with_information_schema(false)
        .with_create_default_catalog_and_schema(false)
        .with_extension(Arc::clone(&settings.interrupts));
    let options = config.options_mut();
    options.sql_parser.map_string_types_to_utf8view = false;
    options.optimizer.skip_failed_rules = false;
    // Scans share their work among threads themselves, and give one to what is small.
    options.optimizer.enable_round_robin_repartition = false;
    // A join compares zeros of both signs as equal; what it would have its other side filtered by does not.
    options.optimizer.enable_join_dynamic_filter_pushdown = false;
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(settings.memory.query())
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
        .build_arc()?;
    // The optimizer looks up `first_value` for DISTINCT ON.
    let aggregates = crate::function::registry().aggregates();
    Ok(SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_aggregate_functions(aggregates)
        .build())
}

/// The session's rules, less one that would change the plan's rows: it moves a condition that is drawn anew for each
/// row below the step that makes the rows of an array or series. And less one that makes a sum beside DISTINCT a sum of
/// sums: that has another type than the sum itself.
pub(super) fn optimizer(state: &SessionState, plan: &LogicalPlan) -> Result<Optimizer, SqlError> {
    let (mut has_unnest, mut has_volatile, mut has_sum) = (false, false, false);
    plan.apply_with_subqueries(|node| {
        has_unnest |= matches!(node, LogicalPlan::Unnest(_));
        has_sum |= matches!(node, LogicalPlan::Aggregate(aggregate) if has_sum_and_distinct(&aggregate.aggr_expr));
        has_volatile |= matches!(node, LogicalPlan::Filter(filter) if filter.predicate.is_volatile());
        Ok(TreeNodeRecursion::Continue)
    })?;
    let mut rules = state.optimizer().rules.clone();
    if has_unnest && has_volatile {
        rules.retain(|rule| rule.name() != "push_down_filter");
    }
    if has_sum {
        rules.retain(|rule| rule.name() != "single_distinct_aggregation_to_group_by");
    }
    Ok(Optimizer::with_rules(rules))
}

fn has_sum_and_distinct(calls: &[Expr]) -> bool {
    let any = |is_wanted: fn(&AggregateFunction) -> bool| {
        let mut calls = calls.iter().map(|call| call.clone().unalias_nested().data);
        calls.any(|call| matches!(&call, Expr::AggregateFunction(call) if is_wanted(call)))
    };
    any(|call| call.params.distinct) && any(|call| !call.params.distinct && call.func.name() == "sum")
}

/// Resolves what is left open and coerces types.
pub(crate) fn analyze(plan: LogicalPlan) -> Result<LogicalPlan, SqlError> {
    let plan = plan.transform_up_with_subqueries(crate::plan::equality::step)?.data;
    Ok(Analyzer::new().execute_and_check(plan, &ConfigOptions::default(), |_, _| {})?)
}

/// Makes sub-queries joins, moves conditions to where they filter first, and leaves out columns nobody reads. Nothing
/// that depends on how many rows there are now, and nothing that would change what identifies a row of the result.
pub(crate) fn optimize_continuous(plan: LogicalPlan) -> Result<LogicalPlan, SqlError> {
    let rules: Vec<Arc<dyn OptimizerRule + Send + Sync>> = vec![
        Arc::new(RewriteSetComparison::new()),
        Arc::new(OptimizeUnions::new()),
        Arc::new(SimplifyExpressions::new()),
        Arc::new(ReplaceDistinctWithAggregate::new()),
        Arc::new(EliminateJoin::new()),
        Arc::new(DecorrelatePredicateSubquery::new()),
        Arc::new(ScalarSubqueryToJoin::new()),
        Arc::new(DecorrelateLateralJoin::new()),
        Arc::new(ExtractEquijoinPredicate::new()),
        Arc::new(EliminateDuplicatedExpr::new()),
        Arc::new(EliminateFilter::new()),
        Arc::new(EliminateCrossJoin::new()),
        Arc::new(PropagateEmptyRelation::new()),
        Arc::new(EliminateOuterJoin::new()),
        Arc::new(PushDownFilter::new()),
        Arc::new(OptimizeProjections::new()),
    ];
    let mut options = ConfigOptions::default();
    options.optimizer.enable_physical_uncorrelated_scalar_subquery = false;
    let context = OptimizerContext::new_with_config_options(Arc::new(options))
        .with_skip_failing_rules(false)
        .without_query_execution_start_time();
    Ok(Optimizer::with_rules(rules).optimize(plan, &context, |_, _| {})?)
}

/// The value of an expression without columns.
pub(crate) fn evaluate(expr: &Expr) -> Result<ScalarValue, SqlError> {
    let physical =
        create_physical_expr(expr, &DFSchema::empty(), &ExecutionProps::new(), &PhysicalPlanningContext::default())?;
    let one_row = RecordBatchOptions::new().with_row_count(Some(1));
    let batch = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &one_row)
        .map_err(|_| SqlError::internal("a row without columns"))?;
    let array = physical.evaluate(&batch)?.into_array(1)?;
    Ok(ScalarValue::try_from_array(&array, 0)?)
}
