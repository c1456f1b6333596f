//! `f(x) FILTER (WHERE c)`: of rows that do not pass, `x` is not computed, so that it cannot fail for them.
//!
//! As PostgreSQL has it; the engine computes arguments of all rows first. Such an argument becomes
//! `CASE WHEN c THEN x END`. Leaves out columns and constants, which cannot fail, sub-queries, and conditions that are drawn
//! anew whenever they are looked at: what passed FILTER would not pass CASE. Pure.

use super::names::function_name;
use crate::function::registry;
use datafusion::logical_expr::Volatility;
use sqlparser::ast::{
    CaseWhen, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause, FunctionArguments, Ident, Visit,
    Visitor, helpers::attached_token::AttachedToken,
};
use std::ops::ControlFlow;

/// Guards what `call` computes of each row.
pub(super) fn guard(call: &mut Function) {
    let is_clear = |filter: &Expr| {
        let found = look(filter);
        !found.has_query && !found.is_volatile
    };
    let Some(filter) = call.filter.clone().filter(|filter| is_clear(filter)) else { return };
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
    is_volatile: bool,
}

impl Visitor for Found {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) => self.has_column = true,
            Expr::Value(_) | Expr::Nested(_) => {}
            Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => self.has_query = true,
            Expr::Function(call) => {
                self.is_computed = true;
                let function = function_name(call).and_then(|name| registry().scalar(&name));
                self.is_volatile |=
                    function.is_some_and(|function| function.signature().volatility == Volatility::Volatile);
            }
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
