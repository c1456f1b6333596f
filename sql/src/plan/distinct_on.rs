//! DISTINCT ON as what it is: the first row of each group, in the order that is asked for.
//!
//! Pure.

use crate::error::SqlError;
use datafusion::common::tree_node::Transformed;
use datafusion::functions_window::row_number::row_number_udwf;
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::{
    Distinct, DistinctOn, Expr, ExprFunctionExt, LogicalPlan, LogicalPlanBuilder, WindowFunctionDefinition, lit,
};

/// Makes each DISTINCT ON of `plan` a filter on `row_number()`.
pub(super) fn first_rows(plan: LogicalPlan) -> Result<LogicalPlan, SqlError> {
    let plan = plan.transform_up_with_subqueries(|plan| match plan {
        LogicalPlan::Distinct(Distinct::On(on)) => first_row(on).map(Transformed::yes),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(plan.data)
}

fn first_row(on: DistinctOn) -> datafusion::common::Result<LogicalPlan> {
    let DistinctOn { on_expr, select_expr, sort_expr, input, .. } = on;
    let call = WindowFunction::new(WindowFunctionDefinition::WindowUDF(row_number_udwf()), Vec::new());
    let number =
        Expr::WindowFunction(Box::new(call)).partition_by(on_expr).order_by(sort_expr.unwrap_or_default()).build()?;
    let windowed = LogicalPlanBuilder::from(input).window(vec![number])?.build()?;
    let (qualifier, field) = windowed.schema().qualified_field(windowed.schema().fields().len() - 1);
    let number = Expr::Column(datafusion::common::Column::from((qualifier, field)));
    LogicalPlanBuilder::from(windowed).filter(number.eq(lit(1_u64)))?.project(select_expr)?.build()
}
