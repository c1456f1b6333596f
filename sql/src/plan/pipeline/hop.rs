//! Hopping windows: rows that come once for each window they are in.
//!
//! Leaves out the operator (`stream::hop`). Pure.

use super::built::{Built, Key, Mode, WindowColumn, WindowColumnKind};
use super::{Need, Planner, is_changelog, nullable, unalias};
use crate::error::SqlError;
use crate::function::window::starts_call;
use crate::stream::Hop;
use arrow::datatypes::FieldRef;
use datafusion::logical_expr::{Expr, LogicalPlan, Unnest};
use millstream_catalog::model::Span;
use std::sync::Arc;

/// The position of the list of window starts that `unnest` takes apart, and its expression.
pub(super) fn starts(unnest: &Unnest) -> Option<(usize, &Expr)> {
    let [(at, _)] = unnest.list_type_columns.as_slice() else { return None };
    let LogicalPlan::Projection(projection) = unnest.input.as_ref() else { return None };
    let expression = unalias(projection.expr.get(*at)?);
    let is_plain = unnest.struct_type_columns.is_empty()
        && unnest.schema.fields().len() == projection.expr.len()
        && unnest.dependency_indices.iter().copied().eq(0..projection.expr.len());
    (is_plain && starts_call(expression).is_some()).then_some((*at, expression))
}

/// Whether `unnest` is of hopping windows.
pub(super) fn is_hop(unnest: &Unnest) -> bool {
    starts(unnest).is_some()
}

impl Planner<'_> {
    pub(super) fn hop(&mut self, unnest: &Unnest, need: Need) -> Result<Built, SqlError> {
        let found = starts(unnest).and_then(|(at, expression)| Some((at, starts_call(expression)?)));
        let (LogicalPlan::Projection(projection), Some((at, (hopping, time)))) = (unnest.input.as_ref(), found) else {
            return Err(SqlError::internal("hopping windows of another form"));
        };
        let is_keyed = need.key || is_changelog(&projection.input);
        let input = self.build(&projection.input, Need { key: is_keyed, forms: false })?;
        let is_timed = input.is_time(time);
        let input = input.project(self, &projection.expr, &projection.schema)?.settle(self)?;
        let mut fields: Vec<FieldRef> = unnest.schema.fields().iter().map(nullable).collect();
        fields.extend(input.fields.iter().skip(fields.len()).cloned());
        let schema = Arc::new(arrow::datatypes::Schema::new(fields.clone()));
        let edge = self.add(Box::new(Hop::new(at, schema)), vec![input.edge]);
        let mut windows: Vec<WindowColumn> = input.windows.into_iter().filter(|window| window.at != at).collect();
        let size = Span::from_micros(hopping.size);
        if is_timed {
            let grace = self.query.grace_of(size, input.is_declared);
            windows.push(WindowColumn { at, length: size, grace, kind: WindowColumnKind::Shared });
        }
        let mut key = input.key;
        if is_keyed {
            key.push(Key { at, shown: Some(at), name: "window_start".to_owned(), is_hidden: true });
        }
        Ok(Built {
            edge,
            base: fields.clone(),
            stages: Vec::new(),
            fields,
            schema: Arc::clone(&unnest.schema),
            mode: if input.mode == Mode::Append { Mode::Append } else { Mode::Both },
            key,
            windows,
            window: None,
            times: input.times,
            delay: input.delay,
            is_declared: input.is_declared,
        })
    }
}
