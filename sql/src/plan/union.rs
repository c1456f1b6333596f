//! UNION, INTERSECT and EXCEPT: the parts' columns brought to one type each, as PostgreSQL does; but what INTERSECT and
//! EXCEPT give has the type of the first part.
//!
//! Literals of unknown type take the type of the other parts; numbers meet at the wider type; `varchar(3)` and `text` are
//! text; anything else that differs is 42804. Source: PostgreSQL 15, section 10.5. Pure.

use super::operator::{convert, type_of};
use super::parameter::map_expressions;
use super::settle::common_type;
use crate::error::SqlError;
use crate::function::errors::external;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, JoinType, NullEquality, Result};
use datafusion::logical_expr::{Distinct, Expr, Join, LogicalPlan, LogicalPlanBuilder, Union};
use millstream_catalog::SqlType;
use std::sync::Arc;

/// Gives the parts of every UNION, INTERSECT and EXCEPT in `plan` the same types.
pub(super) fn unite(plan: LogicalPlan) -> Result<LogicalPlan, SqlError> {
    let plain = plan.transform_up_with_subqueries(|plan| match plan {
        LogicalPlan::Union(union) => parts(union),
        LogicalPlan::Join(join) if join.null_equality == NullEquality::NullEqualsNull => keys(join),
        other => Ok(Transformed::no(other)),
    })?;
    match plain.transformed {
        // What stands above has schemas of before.
        true => Ok(map_expressions(plain.data, |expr| Ok(Transformed::yes(expr)))?),
        false => Ok(plain.data),
    }
}

/// The type of output column `at`; `None` for a literal that takes any.
fn column_type(plan: &LogicalPlan, at: usize) -> Result<Option<SqlType>> {
    match plan {
        LogicalPlan::Projection(projection) => {
            if let Some(expr) = projection.expr.get(at) {
                return type_of(expr, projection.input.schema().as_ref());
            }
        }
        LogicalPlan::SubqueryAlias(alias) => return column_type(&alias.input, at),
        LogicalPlan::Distinct(Distinct::All(input)) => return column_type(input, at),
        _ => {}
    }
    let field = plan.schema().field(at);
    Ok(if field.data_type().is_null() { None } else { SqlType::of(field) })
}

fn parts(union: Union) -> Result<Transformed<LogicalPlan>> {
    let width = union.schema.fields().len();
    let mut wanted = Vec::with_capacity(width);
    for at in 0..width {
        let types = union.inputs.iter().map(|input| column_type(input, at)).collect::<Result<Vec<_>>>()?;
        let known: Vec<SqlType> = types.iter().flatten().cloned().collect();
        let common = common_type(&known, "UNION").map_err(external)?;
        wanted.push(types.iter().any(|one| one.as_ref() != Some(&common)).then_some(common));
    }
    if wanted.iter().all(Option::is_none) {
        return Ok(Transformed::no(LogicalPlan::Union(union)));
    }
    let inputs = union.inputs.iter().map(|input| with_types(input, &wanted)).collect::<Result<Vec<_>>>()?;
    Ok(Transformed::yes(LogicalPlan::Union(Union::try_new_with_loose_types(inputs)?)))
}

/// The two parts of INTERSECT and EXCEPT, which are joins that no statement can write: NULL is NULL there.
fn keys(mut join: Join) -> Result<Transformed<LogicalPlan>> {
    let clause = match join.join_type {
        JoinType::LeftSemi => "INTERSECT",
        JoinType::LeftAnti => "EXCEPT",
        _ => return Ok(Transformed::no(LogicalPlan::Join(join))),
    };
    let mut is_changed = false;
    for (at, (left, right)) in join.on.iter_mut().enumerate() {
        let types = [column_type(&join.left, at)?, column_type(&join.right, at)?];
        let known: Vec<SqlType> = types.iter().flatten().cloned().collect();
        let common = common_type(&known, clause).map_err(external)?;
        for (key, from) in [left, right].into_iter().zip(types) {
            if from.as_ref() != Some(&common) {
                *key = convert(key.clone(), Some(&from.unwrap_or(SqlType::Text)), &common)?;
                is_changed = true;
            }
        }
    }
    let join = LogicalPlan::Join(join);
    Ok(if is_changed { Transformed::yes(join) } else { Transformed::no(join) })
}

fn with_types(input: &Arc<LogicalPlan>, wanted: &[Option<SqlType>]) -> Result<Arc<LogicalPlan>> {
    let mut exprs: Vec<Expr> = Vec::new();
    for (at, ((qualifier, field), wanted)) in input.schema().iter().zip(wanted).enumerate() {
        let column = Expr::Column(Column::from((qualifier, field)));
        let Some(wanted) = wanted else {
            exprs.push(column);
            continue;
        };
        let from = column_type(input, at)?.unwrap_or(SqlType::Text);
        let is_same_text = *wanted == SqlType::Text && from != SqlType::Text;
        let expr = match is_same_text {
            // A conversion to text would leave `varchar(3)` as it is.
            true => crate::function::cast::cast_function(SqlType::Text).call(vec![column]),
            false => convert(column, Some(&from), wanted)?,
        };
        exprs.push(expr.alias_qualified(qualifier.cloned(), field.name()));
    }
    LogicalPlanBuilder::from(input.as_ref().clone()).project(exprs)?.build().map(Arc::new)
}
