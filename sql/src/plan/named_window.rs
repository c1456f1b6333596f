//! Windows by the name of another: `OVER w`, `OVER (w ORDER BY x)`, `WINDOW w2 AS (w ORDER BY x)`.
//!
//! Owns what they take over of it. Source: PostgreSQL 15, SELECT, "WINDOW Clause". Pure.

use crate::dialect::ast::Position;
use crate::error::SqlError;
use millstream_catalog::model::SqlState;
use sqlparser::ast::{
    Expr, Function, Ident, NamedWindowExpr, OrderBy, Query, Select, VisitMut, VisitorMut, WindowSpec, WindowType,
};
use std::ops::ControlFlow;

/// The windows of a SELECT, each spelled out.
type Known = Vec<(String, WindowSpec)>;

/// Spells out the windows of `select`, and of the order of its rows.
///
/// # Errors
/// 42704 for a window that is not there, 42P20 for what cannot be taken over or is there twice.
pub(super) fn spell_out(select: &mut Select, order_by: Option<&mut OrderBy>) -> Result<(), SqlError> {
    let mut known = Known::new();
    for window in &mut select.named_window {
        let name = window.0.value.clone();
        if known.iter().any(|(other, _)| *other == name) {
            return Err(wrong(format!("window \"{name}\" is already defined")).at(Position::of(window.0.span)));
        }
        let spec = match &mut window.1 {
            NamedWindowExpr::NamedWindow(base) => find(&known, base)?.clone(),
            NamedWindowExpr::WindowSpec(spec) => {
                complete(spec, &known, "")?;
                spec.clone()
            }
        };
        known.push((name, spec));
    }
    let mut calls = Calls { known: &known, depth: 0 };
    let mut done = select.distinct.visit(&mut calls);
    done = if done.is_continue() { select.projection.visit(&mut calls) } else { done };
    for condition in [&mut select.qualify, &mut select.having, &mut select.selection] {
        done = if done.is_continue() { condition.visit(&mut calls) } else { done };
    }
    if let (Some(order_by), true) = (order_by, done.is_continue()) {
        done = order_by.visit(&mut calls);
    }
    match done {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(*error),
    }
}

fn wrong(fact: String) -> SqlError {
    SqlError::new(SqlState::WindowingError, fact)
}

fn find<'a>(known: &'a Known, name: &Ident) -> Result<&'a WindowSpec, SqlError> {
    known.iter().find(|(other, _)| *other == name.value).map(|(_, spec)| spec).ok_or_else(|| {
        let fact = format!("window \"{}\" does not exist", name.value);
        SqlError::new(SqlState::UndefinedObject, fact).at(Position::of(name.span))
    })
}

/// `spec` with what it takes over of the window that it names; `hint` is for one that adds nothing to that.
fn complete(spec: &mut WindowSpec, known: &Known, hint: &str) -> Result<(), SqlError> {
    let Some(name) = spec.window_name.take() else { return Ok(()) };
    let base = find(known, &name)?;
    let refuse = |what: &str| {
        let fact = format!("cannot override {what} of window \"{}\"", name.value);
        Err(wrong(fact).at(Position::of(name.span)))
    };
    if !spec.partition_by.is_empty() {
        return refuse("PARTITION BY clause");
    }
    if !spec.order_by.is_empty() && !base.order_by.is_empty() {
        return refuse("ORDER BY clause");
    }
    if base.window_frame.is_some() {
        let fact = format!("cannot copy window \"{}\" because it has a frame clause", name.value);
        let error = wrong(fact).at(Position::of(name.span));
        let is_bare = spec.order_by.is_empty() && spec.window_frame.is_none() && !hint.is_empty();
        return Err(if is_bare { error.hint(hint) } else { error });
    }
    spec.partition_by.clone_from(&base.partition_by);
    if spec.order_by.is_empty() {
        spec.order_by.clone_from(&base.order_by);
    }
    Ok(())
}

/// The calls of one SELECT: those of its sub-queries see windows of their own.
struct Calls<'a> {
    known: &'a Known,
    depth: usize,
}

impl VisitorMut for Calls<'_> {
    type Break = Box<SqlError>;

    fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<Self::Break> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<Self::Break> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        let Expr::Function(Function { over: Some(window), .. }) = expr else { return ControlFlow::Continue(()) };
        let done = match window {
            _ if self.depth > 0 => Ok(()),
            WindowType::WindowSpec(spec) => complete(spec, self.known, "omit the parentheses in this OVER clause"),
            WindowType::NamedWindow(name) => {
                find(self.known, name).cloned().map(|spec| *window = WindowType::WindowSpec(spec))
            }
        };
        match done {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(Box::new(error)),
        }
    }
}
