//! Parameters: one type for each `$n`, wherever it stands.
//!
//! The first place that gives a type decides, as in PostgreSQL; elsewhere the parameter is cast. One that no place types is
//! text. Pure.

use super::operator::convert;
use crate::error::SqlError;
use crate::function::cast::cast_target;
use crate::function::errors::fail;
use arrow::datatypes::FieldRef;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::expr::{FieldMetadata, Placeholder};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The fields of declared parameter types.
pub(super) fn fields(types: &[Option<SqlType>]) -> Vec<Option<FieldRef>> {
    let field = |sql_type: &SqlType| Arc::new(sql_type.field("", true)) as FieldRef;
    types.iter().map(|sql_type| sql_type.as_ref().map(field)).collect()
}

fn number(id: &str) -> usize {
    id.trim_start_matches('$').parse().unwrap_or(0)
}

/// Types every parameter of `plan`; gives the types of `$1` to `$count`.
pub(super) fn settle(
    plan: LogicalPlan,
    declared: &[Option<SqlType>],
    count: usize,
) -> Result<(LogicalPlan, Vec<SqlType>), SqlError> {
    let mut types: BTreeMap<usize, SqlType> = BTreeMap::new();
    for (at, sql_type) in declared.iter().enumerate() {
        if let Some(sql_type) = sql_type {
            types.insert(at + 1, sql_type.clone());
        }
    }
    if count == 0 {
        return Ok((plan, types_of(&types, declared.len())));
    }
    let plan = from_casts(plan)?;
    plan.apply_with_subqueries(|plan| {
        plan.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::Placeholder(Placeholder { id, field: Some(field) }) = expr
                    && let Some(sql_type) = SqlType::of(field)
                {
                    types.entry(number(id)).or_insert(sql_type);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    let plan = map_expressions(plan, |expr| match expr {
        Expr::Placeholder(Placeholder { id, field }) => {
            let chosen = types.get(&number(&id)).cloned().unwrap_or(SqlType::Text);
            let typed = Expr::Placeholder(Placeholder::new_with_field(id, Some(Arc::new(chosen.field("", true)))));
            match field.as_deref().and_then(SqlType::of) {
                Some(wanted) if wanted != chosen => Ok(Transformed::yes(convert(typed, Some(&chosen), &wanted)?)),
                _ => Ok(Transformed::yes(typed)),
            }
        }
        other => Ok(Transformed::no(other)),
    })?;
    Ok((plan, types_of(&types, count.max(declared.len()))))
}

fn types_of(types: &BTreeMap<usize, SqlType>, count: usize) -> Vec<SqlType> {
    (1..=count).map(|number| types.get(&number).cloned().unwrap_or(SqlType::Text)).collect()
}

/// `$1::integer` makes `$1` an integer.
fn from_casts(plan: LogicalPlan) -> Result<LogicalPlan, SqlError> {
    let typed = |id: &String, sql_type: &SqlType| {
        Expr::Placeholder(Placeholder::new_with_field(id.clone(), Some(Arc::new(sql_type.field("", true)))))
    };
    let plan = map_expressions(plan, |expr| match &expr {
        Expr::ScalarFunction(call) => match (cast_target(&call.func), call.args.as_slice()) {
            (Some(target), [Expr::Placeholder(Placeholder { id, field: None })]) => {
                Ok(Transformed::yes(call.func.call(vec![typed(id, target)])))
            }
            _ => Ok(Transformed::no(expr)),
        },
        Expr::Cast(cast) => match (cast.expr.as_ref(), SqlType::of(&cast.field)) {
            (Expr::Placeholder(Placeholder { id, field: None }), Some(target)) => {
                Ok(Transformed::yes(typed(id, &target)))
            }
            _ => Ok(Transformed::no(expr)),
        },
        _ => Ok(Transformed::no(expr)),
    })?;
    Ok(plan)
}

/// `plan` with `values` in place of `$1 …`.
pub(crate) fn with_values(plan: LogicalPlan, values: Vec<ScalarValue>) -> Result<LogicalPlan, SqlError> {
    if values.is_empty() {
        return Ok(plan);
    }
    let value_of = |id: &str| {
        let at = id.trim_start_matches('$').parse::<usize>().ok()?.checked_sub(1)?;
        values.get(at).cloned()
    };
    let plan = map_expressions(plan, |expr| match &expr {
        Expr::Placeholder(Placeholder { id, field }) => {
            let no_value = || fail(SqlState::UndefinedParameter, format!("there is no parameter {id}"));
            let value = value_of(id).ok_or_else(no_value)?;
            let value = match field {
                Some(field) if *field.data_type() != value.data_type() => value.cast_to(field.data_type())?,
                _ => value,
            };
            let metadata = field.as_ref().filter(|field| !field.metadata().is_empty());
            let metadata = metadata.map(|field| FieldMetadata::from(field.metadata().clone()));
            Ok(Transformed::yes(Expr::Literal(value, metadata)))
        }
        _ => Ok(Transformed::no(expr)),
    });
    plan.map_err(|error: DataFusionError| SqlError::from(error))
}

/// Rewrites every expression of `plan`, sub-queries included, bottom up; output names stay.
pub(crate) fn map_expressions(
    plan: LogicalPlan,
    mut rewrite: impl FnMut(Expr) -> Result<Transformed<Expr>>,
) -> Result<LogicalPlan> {
    let mapped = plan.transform_up_with_subqueries(|plan| {
        let names = NamePreserver::new(&plan);
        let mapped = plan.map_expressions(|expr| {
            let name = names.save(&expr);
            Ok(expr.transform_up(&mut rewrite)?.update_data(|expr| name.restore(expr)))
        })?;
        match mapped.transformed {
            true => mapped.map_data(LogicalPlan::recompute_schema),
            false => Ok(mapped),
        }
    })?;
    Ok(mapped.data)
}
