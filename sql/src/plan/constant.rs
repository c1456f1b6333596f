//! Values of constant expressions, for DEFAULT and INSERT.
//!
//! Owns evaluation without columns, and assignment to the target's type. Leaves out plain literals, which `bind` reads
//! itself. Pure.

use super::select::{Run, draft};
use super::{PlanContext, parameter};
use crate::dialect::ast::{Select, WithOptions};
use crate::error::{Near, SqlError};
use crate::exec::session::{analyze, evaluate};
use crate::types::assign_array;
use arrow::array::Array;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, LogicalPlan};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use sqlparser::ast;

/// The value of `expr`, which names no column, assigned to `target`.
///
/// `params` are the values of `$1 …`, typed.
///
/// # Errors
/// 42703 for a name, 42804 where there is no assignment cast, 0A000 for sub-queries, else what evaluation finds.
pub fn eval_constant(
    context: &PlanContext,
    expr: &ast::Expr,
    target: &SqlType,
    params: &[ScalarValue],
) -> Result<ScalarValue, SqlError> {
    let select = Select {
        partition_by: None,
        query: Box::new(query_of(expr)),
        window: None,
        emit: None,
        options: WithOptions::default(),
        limit: None,
        sql: String::new(),
    };
    let types: Vec<Option<SqlType>> = params.iter().map(|value| SqlType::of_arrow(&value.data_type())).collect();
    let drafted = draft(context, &select, &types, Run::Once)?;
    let (plan, _) = parameter::settle(drafted.plan, &types, drafted.parameters)?;
    let plan = analyze(parameter::with_values(plan, params.to_vec())?)?;
    let value = constant_of(&plan)?;
    // A bare string takes the target's input rules, like any literal of unknown type.
    if let (ast::Expr::Value(_), ScalarValue::Utf8(Some(text))) = (expr, &value.0) {
        let value = crate::types::scalar_text(target, text.as_bytes());
        return value.map_err(|error| error.near(Near::Literal(text.clone())));
    }
    if value.0.is_null() {
        return crate::types::scalar_null(target);
    }
    let from = value.1;
    let array = value.0.to_array()?;
    let assigned = assign_array(&array, &from, target).map_err(|refused| SqlError::from(refused.error))?;
    if assigned.len() != 1 {
        return Err(SqlError::internal("one value was assigned to several"));
    }
    Ok(crate::types::scalar_first(&assigned)?)
}

/// `SELECT expr`.
fn query_of(expr: &ast::Expr) -> ast::Query {
    let mut select = super::refuse::select_all(ast::ObjectName(Vec::new()));
    select.from = Vec::new();
    select.projection = vec![ast::SelectItem::UnnamedExpr(expr.clone())];
    ast::Query { body: Box::new(ast::SetExpr::Select(Box::new(select))), ..super::refuse::empty_query() }
}

fn constant_of(plan: &LogicalPlan) -> Result<(ScalarValue, SqlType), SqlError> {
    let LogicalPlan::Projection(projection) = plan else {
        return Err(SqlError::unsupported("a sub-query or aggregate in a constant", "write a plain expression"));
    };
    let (LogicalPlan::EmptyRelation(_), [expr]) = (projection.input.as_ref(), projection.expr.as_slice()) else {
        return Err(SqlError::unsupported("a sub-query or aggregate in a constant", "write a plain expression"));
    };
    if has_subquery(expr) {
        return Err(SqlError::unsupported("a sub-query in a constant", "write a plain expression"));
    }
    let field = projection.schema.field(0);
    let sql_type = SqlType::of(field)
        .ok_or_else(|| SqlError::new(SqlState::DatatypeMismatch, "the expression has a type that cannot be stored"))?;
    Ok((evaluate(expr)?, sql_type))
}

fn has_subquery(expr: &Expr) -> bool {
    use datafusion::common::tree_node::TreeNode;
    let is_subquery = |expr: &Expr| {
        Ok(matches!(expr, Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_)))
    };
    expr.exists(is_subquery).unwrap_or(true)
}
