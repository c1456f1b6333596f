//! `f(x) FILTER (WHERE c)`: of rows that do not pass, `x` is not computed, so that it cannot fail for them.
//!
//! As PostgreSQL has it; the engine computes arguments of all rows first. Such an argument becomes
//! `CASE WHEN c THEN x END`. Leaves out columns and constants, which cannot fail, and sub-queries. Pure.

use sqlparser::ast::{
    CaseWhen, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause, FunctionArguments, Ident, Visit,
    Visitor, helpers::attached_token::AttachedToken,
};
use std::ops::ControlFlow;

/// Guards what `call` computes of each row.
pub(super) fn guard(call: &mut Function) {
    let Some(filter) = call.filter.clone().filter(|filter| !look(filter.as_ref()).has_query) else { return };
    let guarded = |expr: &mut Expr| {
        let found = look(expr);
        if found.has_column && found.is_computed && !found.has_query {
            let result = std::mem::replace(expr, Expr::Identifier(Ident::new("")));
            *expr = Expr::Case {
                case_token: AttachedToken::empty(),
                end_token: AttachedToken::empty(),
                operand: None,
                conditions: vec![CaseWhen { condition: (*filter).clone(), result }],
                else_result: None,
            };
        }
    };
    if let FunctionArguments::List(list) = &mut call.args {
        for argument in &mut list.args {
            if let FunctionArg::Unnamed(FunctionArgExpr::Expr(argument)) = argument {
                guarded(argument);
            }
        }
        for clause in &mut list.clauses {
            if let FunctionArgumentClause::OrderBy(orders) = clause {
                orders.iter_mut().for_each(|order| guarded(&mut order.expr));
            }
        }
    }
    call.within_group.iter_mut().for_each(|order| guarded(&mut order.expr));
}

/// What is in an expression.
#[derive(Default)]
struct Found {
    has_column: bool,
    /// Anything but a column or a constant.
    is_computed: bool,
    has_query: bool,
}

impl Visitor for Found {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) => self.has_column = true,
            Expr::Value(_) | Expr::Nested(_) => {}
            Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => self.has_query = true,
            _ => self.is_computed = true,
        }
        ControlFlow::Continue(())
    }
}

fn look(expr: &Expr) -> Found {
    let mut found = Found::default();
    let _ = expr.visit(&mut found);
    found
}
