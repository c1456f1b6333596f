//! SELECT for one bounded run: resolved, planned, typed, analysed.
//!
//! Owns the order of the stages and the result's columns. Leaves out optimisation, which runs with the parameters'
//! values (`exec`). Pure.

use super::provider::Provider;
use super::resolve::{OutputColumn, Resolver};
use super::session::with_sessions;
use super::union::unite;
use super::view::Expansion;
use super::window::window_spec;
use super::{PlanContext, PlannedSelect, ResultColumn, WindowSpec, parameter, scanned_relation};
use crate::bind::ddl::check_makes_nothing;
use crate::dialect::ast::Select;
use crate::error::SqlError;
use crate::exec::session::analyze;
use crate::function::registry;
use datafusion::common::Column;
use datafusion::logical_expr::{Cast, Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use millstream_catalog::model::{Span, TopicId};
use millstream_catalog::{Relation, SqlType, View};
use sqlparser::ast::{Query, Statement};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A statement after the engine's planner, before analysis.
pub(super) struct Drafted {
    pub(super) plan: LogicalPlan,
    pub(super) output: Vec<OutputColumn>,
    pub(super) sources: Vec<Arc<Relation>>,
    /// The views it reads, each once.
    pub(super) views: Vec<Arc<View>>,
    /// What its own text names.
    pub(super) direct: BTreeSet<TopicId>,
    /// How much its views expand to.
    pub(super) expansion: Expansion,
    pub(super) window: Option<WindowSpec>,
    /// That of a view's clause.
    pub(super) grace: Option<Span>,
    pub(super) parameters: usize,
}

/// Whether the statement runs once or for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    Once,
    Continuously,
}

/// Plans `select` for one run over what is stored now.
///
/// `param_types` are the types the client declares, by position; others are inferred.
///
/// # Errors
/// PostgreSQL's SQLSTATEs for unknown names and types, with a position where there is one.
pub fn plan_select(
    context: &PlanContext,
    select: &Select,
    param_types: &[Option<SqlType>],
) -> Result<PlannedSelect, SqlError> {
    planned(context, select, param_types).map(|planned| planned.select)
}

/// A SELECT, with what its text names.
pub(super) struct Planned {
    pub(super) select: PlannedSelect,
    pub(super) direct: BTreeSet<TopicId>,
    pub(super) expansion: Expansion,
}

/// As [`plan_select`].
pub(super) fn planned(
    context: &PlanContext,
    select: &Select,
    param_types: &[Option<SqlType>],
) -> Result<Planned, SqlError> {
    let drafted = draft(context, select, param_types, Run::Once)?;
    let (plan, params) = parameter::settle(drafted.plan, param_types, drafted.parameters)?;
    let plan = analyze(unite(plan)?)?;
    let columns = result_columns(&plan, &drafted.output)?;
    let plan = in_result_types(plan, &columns)?;
    let select = PlannedSelect { plan, params, columns };
    Ok(Planned { select, direct: drafted.direct, expansion: drafted.expansion })
}

/// Resolves and plans `select`.
pub(super) fn draft(
    context: &PlanContext,
    select: &Select,
    param_types: &[Option<SqlType>],
    run: Run,
) -> Result<Drafted, SqlError> {
    let registry = registry();
    if run == Run::Once {
        check_makes_nothing(select)?;
    }
    let window = select.window.as_ref().map(window_spec).transpose()?;
    let mut resolver = Resolver::new(context, registry, window);
    resolver.keeps_clock = run == Run::Continuously;
    resolver.declared = param_types;
    let mut query: Query = select.query.as_ref().clone();
    let output = resolver.statement(&mut query)?;
    let Resolver { functions, sources, parameters, sessions, views, direct, expansion, clause, .. } = resolver;
    let grace = clause.filter(|_| window.is_none()).and_then(|clause| clause.grace);
    let provider = Provider::new(context, registry, functions);
    let options = ParserOptions::new()
        .with_parse_float_as_decimal(true)
        .with_enable_ident_normalization(false)
        .with_map_string_types_to_utf8view(false);
    let planner = SqlToRel::new_with_options(&provider, options);
    let mut scope = PlannerContext::new().with_prepare_param_data_types(parameter::fields(param_types));
    let plan = planner.sql_statement_to_plan_with_context(Statement::Query(Box::new(query)), &mut scope)?;
    let plan = with_sessions(plan, &sessions)?;
    Ok(Drafted { plan, output, sources, views, direct, expansion, window, grace, parameters })
}

/// The columns of `plan` under the names clients see.
pub(super) fn result_columns(plan: &LogicalPlan, output: &[OutputColumn]) -> Result<Vec<ResultColumn>, SqlError> {
    let fields = plan.schema().fields();
    if fields.len() != output.len() {
        return Err(SqlError::internal("the plan has other columns than the statement"));
    }
    let columns = fields.iter().zip(output).enumerate().map(|(at, (field, column))| {
        let sql_type = SqlType::of(field).ok_or_else(|| {
            SqlError::unsupported(format!("a result of this type in column \"{}\"", column.name), "cast it to text")
        })?;
        Ok(ResultColumn { name: column.name.clone(), sql_type, source: origin(plan, at) })
    });
    columns.collect()
}

/// The stored column that output column `at` shows unchanged.
fn origin(plan: &LogicalPlan, at: usize) -> Option<(TopicId, usize)> {
    match plan {
        LogicalPlan::Projection(projection) => {
            let mut expr = projection.expr.get(at)?;
            while let Expr::Alias(alias) = expr {
                expr = &alias.expr;
            }
            let Expr::Column(column) = expr else { return None };
            origin(&projection.input, index_of(&projection.input, column)?)
        }
        LogicalPlan::SubqueryAlias(alias) => origin(&alias.input, at),
        LogicalPlan::Filter(filter) => origin(&filter.input, at),
        LogicalPlan::Sort(sort) => origin(&sort.input, at),
        LogicalPlan::Limit(limit) => origin(&limit.input, at),
        LogicalPlan::TableScan(scan) => {
            let relation = scanned_relation(scan)?;
            (at < relation.schema.columns.len()).then_some((relation.id, at))
        }
        _ => None,
    }
}

fn index_of(plan: &LogicalPlan, column: &Column) -> Option<usize> {
    plan.schema().maybe_index_of_column(column)
}

/// Casts where the engine's type is not the one the result announces.
pub(super) fn in_result_types(plan: LogicalPlan, columns: &[ResultColumn]) -> Result<LogicalPlan, SqlError> {
    let is_exact =
        |(field, column): (&arrow::datatypes::FieldRef, &ResultColumn)| *field.data_type() == column.sql_type.arrow();
    if plan.schema().fields().iter().zip(columns).all(is_exact) {
        return Ok(plan);
    }
    let exprs: Vec<Expr> = plan
        .schema()
        .iter()
        .zip(columns)
        .map(|((qualifier, field), column)| {
            let expr = Expr::Column(Column::from((qualifier, field)));
            let wanted = column.sql_type.field(field.name(), true);
            match field.data_type() == wanted.data_type() {
                true => expr,
                false => Expr::Cast(Cast::new_from_field(Box::new(expr), Arc::new(wanted)))
                    .alias_qualified(qualifier.cloned(), field.name()),
            }
        })
        .collect();
    Ok(LogicalPlanBuilder::from(plan).project(exprs)?.build()?)
}
