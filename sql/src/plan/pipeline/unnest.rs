//! Set-returning functions.
//!
//! Leaves out the operator (`stream::unnest`). Pure.

use super::built::{Built, Key, Mode};
use super::{Need, Planner, nullable};
use crate::error::SqlError;
use crate::stream::{Unnest, UnnestColumn};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::logical_expr;
use std::sync::Arc;

/// The key column that tells the elements of a row from each other.
const ORDINAL: &str = "rowordinal";

impl Planner<'_> {
    pub(super) fn unnest(&mut self, unnest: &logical_expr::Unnest, need: Need) -> Result<Built, SqlError> {
        let is_deep = unnest.list_type_columns.iter().any(|(_, list)| list.depth != 1);
        if is_deep || !unnest.struct_type_columns.is_empty() || unnest.list_type_columns.is_empty() {
            return Err(SqlError::unsupported(
                "this form of unnest in a continuous query",
                "unnest one array at a time",
            ));
        }
        let input = self.build(&unnest.input, Need { key: need.key, forms: false })?.settle(self)?;
        let is_list = |at: usize| unnest.list_type_columns.iter().any(|(list, _)| *list == at);
        let mut fields: Vec<FieldRef> = unnest.schema.fields().iter().map(nullable).collect();
        let mut columns: Vec<UnnestColumn> = Vec::with_capacity(fields.len());
        for at in &unnest.dependency_indices {
            columns.push(if is_list(*at) { UnnestColumn::Element(*at) } else { UnnestColumn::Of(*at) });
        }
        let mut hidden = |column: UnnestColumn, field: FieldRef| match columns.iter().position(|one| *one == column) {
            Some(at) => at,
            None => {
                columns.push(column);
                fields.push(field);
                fields.len() - 1
            }
        };
        let mut key = Vec::new();
        let visible = unnest.schema.fields().len();
        for one in &input.key {
            let at = hidden(UnnestColumn::Of(one.at), nullable(&input.fields[one.at]));
            let name = one.name.clone();
            key.push(Key { at, shown: (at < visible).then_some(at), name, is_hidden: true });
        }
        if need.key {
            let at = hidden(UnnestColumn::Ordinal, Arc::new(Field::new(ORDINAL, DataType::Int32, true)));
            key.push(Key { at, shown: None, name: ORDINAL.to_owned(), is_hidden: true });
        }
        let places = |from: usize| columns.iter().position(|column| *column == UnnestColumn::Of(from));
        let times = input.times.iter().filter_map(|at| places(*at)).collect();
        let windows = input
            .windows
            .iter()
            .filter_map(|window| Some(super::built::WindowColumn { at: places(window.at)?, ..*window }));
        let windows = windows.collect();
        let schema = Arc::new(Schema::new(fields.clone()));
        let operator = Unnest::new(columns, schema, unnest.options.preserve_nulls());
        let edge = self.add(Box::new(operator), vec![input.edge.clone()]);
        let mode = if input.mode == Mode::Append { Mode::Append } else { Mode::Both };
        let schema = Arc::clone(&unnest.schema);
        Ok(Built { edge, base: fields.clone(), fields, schema, mode, key, windows, times, ..input })
    }
}
