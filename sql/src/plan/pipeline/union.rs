//! UNION ALL.
//!
//! Leaves out UNION, which is planned as a GROUP BY above, and the operator (`stream::union`). Pure.

use super::built::{Built, Key, Mode};
use super::{Need, Planner, is_changelog, nullable};
use crate::error::SqlError;
use crate::stream::{Union, UnionColumn};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::logical_expr;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Planner<'_> {
    pub(super) fn union(&mut self, union: &logical_expr::Union, need: Need) -> Result<Built, SqlError> {
        let is_keyed = need.key || union.inputs.iter().any(|input| is_changelog(input));
        let mut inputs = Vec::new();
        for input in &union.inputs {
            inputs.push(self.build(input, Need { key: is_keyed, forms: false })?.settle(self)?);
        }
        let visible = union.schema.fields().len();
        let mut fields: Vec<FieldRef> = union.schema.fields().iter().map(nullable).collect();
        let mut columns: Vec<Vec<UnionColumn>> =
            inputs.iter().map(|_| (0..visible).map(UnionColumn::Input).collect()).collect();
        let mut key = Vec::new();
        let mut hidden = |name: String, field: FieldRef| {
            fields.push(field);
            key.push(Key { at: fields.len() - 1, shown: None, name, is_hidden: true });
        };
        if is_keyed {
            columns.iter_mut().for_each(|columns| columns.push(UnionColumn::Number));
            hidden("rowinput".to_owned(), Arc::new(Field::new("rowinput", DataType::Int32, true)));
            for (number, input) in inputs.iter().enumerate() {
                for one in &input.key {
                    hidden(one.name.clone(), nullable(&input.fields[one.at]));
                    for (other, columns) in columns.iter_mut().enumerate() {
                        columns.push(if other == number { UnionColumn::Input(one.at) } else { UnionColumn::Null });
                    }
                }
            }
        }
        let schema = Arc::new(Schema::new(fields.clone()));
        let edges = inputs.iter().map(|input| input.edge.clone()).collect();
        let edge = self.add(Box::new(Union::new(columns, schema)), edges);
        let times = inputs.iter().map(|input| input.times.clone()).reduce(|all, one| &all & &one);
        let windows = inputs.first().map(|first| first.windows.clone()).unwrap_or_default();
        let windows = windows.into_iter().filter(|window| {
            let same = |input: &Built| {
                input
                    .windows
                    .iter()
                    .any(|other| other.at == window.at && other.length == window.length && other.grace == window.grace)
            };
            inputs.iter().all(same)
        });
        Ok(Built {
            edge,
            base: fields.clone(),
            stages: Vec::new(),
            fields,
            schema: Arc::clone(&union.schema),
            mode: if inputs.iter().any(|input| input.mode != Mode::Append) { Mode::Both } else { Mode::Append },
            key,
            windows: windows.collect(),
            window: None,
            times: times.unwrap_or_else(BTreeSet::new),
            delay: inputs.iter().map(|input| input.delay).max().unwrap_or_default(),
            is_declared: inputs.iter().all(|input| input.is_declared),
        })
    }
}
