//! GROUPING SETS, ROLLUP, CUBE.
//!
//! Leaves out the operator (`stream::expand`). Pure.

use super::built::Built;
use super::{Planner, nullable};
use crate::error::SqlError;
use crate::stream::{Expand, GroupingSet};
use arrow::array::{ArrayRef, UInt64Array, new_null_array};
use arrow::datatypes::Schema;
use datafusion::common::DFSchemaRef;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{self, Expr};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use std::sync::Arc;

/// Columns to group by; with each, the expression it is in every set; and the keys of the sets of nothing, whose group is
/// there without rows too.
type Keys<'e> = (Vec<Arc<dyn PhysicalExpr>>, Vec<Option<&'e Expr>>, Vec<ArrayRef>);

impl Planner<'_> {
    /// Gives each row of `input` once per set; `schema` is that of the aggregate above.
    pub(super) fn expand<'e>(
        &mut self,
        input: &mut Built,
        set: &'e logical_expr::GroupingSet,
        schema: &DFSchemaRef,
    ) -> Result<Keys<'e>, SqlError> {
        let all = set.distinct_expr();
        let has = masks(set, &all);
        let sets: Vec<GroupingSet> = has.iter().enumerate().map(|(at, one)| numbered(&has[..at], one)).collect();
        let lasting = lasting(&sets, schema)?;
        let physical = all.iter().map(|expression| self.physical(expression, &input.schema));
        let physical = physical.collect::<Result<Vec<_>, _>>()?;
        let first = input.fields.len();
        input.fields.extend(schema.fields().iter().take(all.len() + 1).map(nullable));
        input.base = input.fields.clone();
        let operator = Expand::new(physical, sets, Arc::new(Schema::new(input.fields.clone())));
        input.edge = self.add(Box::new(operator), vec![input.edge.clone()]);
        let keys = (first..input.fields.len())
            .map(|at| Arc::new(Column::new(input.fields[at].name(), at)) as Arc<dyn PhysicalExpr>);
        let shared = all.iter().enumerate();
        let shared = shared.map(|(at, expression)| Some(*expression).filter(|_| has.iter().all(|has| has[at])));
        Ok((keys.collect(), shared.chain([None]).collect(), lasting))
    }
}

/// NULL in the grouping columns, and the numbers of the sets of nothing.
fn lasting(sets: &[GroupingSet], schema: &DFSchemaRef) -> Result<Vec<ArrayRef>, SqlError> {
    let of_nothing = sets.iter().filter(|set| !set.has.contains(&true)).map(|set| set.id);
    let ids = UInt64Array::from_iter_values(of_nothing);
    let Some(first) = sets.first().filter(|_| !ids.is_empty()) else { return Ok(Vec::new()) };
    let (columns, number) = schema.fields().split_at(first.has.len());
    let mut keys: Vec<ArrayRef> = columns.iter().map(|field| new_null_array(field.data_type(), ids.len())).collect();
    for number in number.iter().take(1) {
        keys.push(arrow::compute::cast(&ids, number.data_type()).map_err(DataFusionError::from)?);
    }
    Ok(keys)
}

/// Per set, which of `all` are in it.
fn masks(set: &logical_expr::GroupingSet, all: &[&Expr]) -> Vec<Vec<bool>> {
    let mask = |has: &dyn Fn(&Expr) -> bool| all.iter().map(|expression| has(expression)).collect::<Vec<bool>>();
    match set {
        logical_expr::GroupingSet::GroupingSets(sets) => {
            sets.iter().map(|set| mask(&|expression| set.contains(expression))).collect()
        }
        logical_expr::GroupingSet::Rollup(of) => {
            (0..=of.len()).map(|count| mask(&|expression| of[..count].contains(expression))).collect()
        }
        logical_expr::GroupingSet::Cube(of) => {
            let has = |bits: u64, expression: &Expr| {
                of.iter().enumerate().any(|(at, one)| bits >> at & 1 == 1 && one == expression)
            };
            (0..1_u64 << of.len()).map(|bits| mask(&|expression| has(bits, expression))).collect()
        }
    }
}

/// The number of a set as `grouping()` reads it: a bit per expression that is not in it, the first one highest; above
/// those, how many equal sets there are before.
fn numbered(before: &[Vec<bool>], has: &[bool]) -> GroupingSet {
    let id = has.iter().fold(0_u64, |id, has| id << 1 | u64::from(!has));
    let ordinal = before.iter().filter(|other| other.as_slice() == has).count() as u64;
    GroupingSet { has: has.to_vec(), id: id | ordinal << has.len().min(63) }
}
