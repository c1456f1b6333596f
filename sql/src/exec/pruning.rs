//! What the predicates of a scan say of parts of a log of which only statistics are known.
//!
//! Owns turning predicates into tests of smallest and largest values, and finding the keys a predicate leaves. Leaves
//! out where statistics come from (the source) and bounds on offsets, partitions and event times (`bounds`). Called
//! while a scan is planned. Pure.
//!
//! A test is derived from the very expression that later filters the rows, so both know one order of values. What
//! cannot be tested keeps every part.

use crate::exec::bounds::Bounds;
use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::Session;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::utils::Guarantee;
use datafusion::physical_expr_common::physical_expr::fmt_sql;
use datafusion::physical_optimizer::pruning::{PruningPredicate, PruningPredicateBuilder};
use millstream_catalog::Relation;
use millstream_catalog::model::limit::LOOKUP_KEYS_MAX;
use millstream_catalog::schema::ROWPARTITION;
use std::sync::Arc;

/// Tests of parts of a relation's log.
#[derive(Debug)]
pub struct Pruning {
    tests: Vec<PruningPredicate>,
    keys: Vec<KeySet>,
    shown: Vec<String>,
}

/// The only values that a wanted row may have in a key column.
#[derive(Debug, Clone)]
pub struct KeySet {
    /// Position in the stored schema.
    pub column: usize,
    /// The values, of the column's type, none of them null, at least one.
    pub values: ArrayRef,
}

impl Pruning {
    /// The tests of `filters`, all of which must hold, over the columns of `schema`; `None` when nothing can be tested.
    pub(crate) fn of(filters: &[Expr], relation: &Relation, schema: &SchemaRef, session: &dyn Session) -> Option<Self> {
        let columns = DFSchema::try_from(schema.as_ref().clone()).ok()?;
        let mut pruning = Self { tests: Vec::new(), keys: Vec::new(), shown: Vec::new() };
        let is_of_partitions = |filter: &Expr| filter.column_refs().iter().all(|column| column.name == ROWPARTITION);
        for filter in filters.iter().filter(|filter| Bounds::of([*filter]).is_empty() && !is_of_partitions(filter)) {
            let Ok(expr) = session.create_physical_expr(filter.clone(), &columns) else { continue };
            let shown = fmt_sql(expr.as_ref()).to_string();
            let Ok(test) = PruningPredicateBuilder::new().with_file_schema(Arc::clone(schema)).try_build(expr) else {
                continue;
            };
            let keys = keys(&test, relation, schema);
            let is_tested = test.predicate_expr().to_string() != "true";
            if is_tested || !keys.is_empty() {
                pruning.shown.push(shown);
            }
            pruning.keys.extend(keys);
            if is_tested {
                pruning.tests.push(test);
            }
        }
        (!pruning.shown.is_empty()).then_some(pruning)
    }

    /// For each part whether it may have a wanted row.
    pub fn keep(&self, parts: &dyn PruningStatistics) -> Vec<bool> {
        let mut keep = vec![true; parts.num_containers()];
        for test in &self.tests {
            // A test that cannot be evaluated rules nothing out.
            let Ok(kept) = test.prune(parts) else { continue };
            for (keep, kept) in keep.iter_mut().zip(kept) {
                *keep &= kept;
            }
        }
        keep
    }

    /// The values key columns must have.
    pub fn keys(&self) -> &[KeySet] {
        &self.keys
    }

    /// The tested predicates.
    pub fn shown(&self) -> String {
        let shown = self.shown.iter().map(|shown| match shown.contains(" OR ") && self.shown.len() > 1 {
            true => format!("({shown})"),
            false => shown.clone(),
        });
        shown.collect::<Vec<_>>().join(" AND ")
    }

    /// The whole keys that are left: one array per key column, as long as there are keys; `None` when some key column may
    /// have any value.
    pub fn whole_keys(&self, relation: &Relation) -> Option<Vec<ArrayRef>> {
        let columns = relation.schema.key();
        let sets: Option<Vec<Vec<ScalarValue>>> = columns.iter().map(|column| self.values_of(*column)).collect();
        let mut rows: Vec<Vec<ScalarValue>> = vec![Vec::new()];
        for set in sets.filter(|sets| !sets.is_empty())? {
            if rows.len().saturating_mul(set.len()) > LOOKUP_KEYS_MAX {
                return None;
            }
            let longer =
                |row: &Vec<ScalarValue>, value: &ScalarValue| [row.as_slice(), std::slice::from_ref(value)].concat();
            rows = rows.iter().flat_map(|row| set.iter().map(move |value| longer(row, value))).collect();
        }
        let column = |at: usize| ScalarValue::iter_to_array(rows.iter().filter_map(|row| row.get(at).cloned())).ok();
        (0..columns.len()).map(column).collect()
    }

    /// The fewest values that some predicate leaves a column.
    fn values_of(&self, column: usize) -> Option<Vec<ScalarValue>> {
        let sets = self.keys.iter().filter(|set| set.column == column);
        let values = &sets.min_by_key(|set| set.values.len())?.values;
        (0..values.len()).map(|at| ScalarValue::try_from_array(values, at).ok()).collect()
    }
}

fn keys(test: &PruningPredicate, relation: &Relation, schema: &SchemaRef) -> Vec<KeySet> {
    let key = relation.schema.key();
    let set = |guarantee: &datafusion::physical_expr::utils::LiteralGuarantee| {
        let (column, field) = schema.column_with_name(guarantee.column.name())?;
        let is_typed = |value: &ScalarValue| value.data_type() == *field.data_type() && !value.is_null();
        let is_key = key.contains(&column) && guarantee.guarantee == Guarantee::In;
        if !is_key || guarantee.literals.is_empty() || !guarantee.literals.iter().all(is_typed) {
            return None;
        }
        let mut values: Vec<ScalarValue> = guarantee.literals.iter().cloned().collect();
        values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        Some(KeySet { column, values: ScalarValue::iter_to_array(values).ok()? })
    };
    test.literal_guarantees().iter().filter_map(set).collect()
}
