//! Expressions: references to columns, and syntax to the functions that mean it.
//!
//! Owns qualifying identifiers, typed literals, casts, and the forms that become calls (BETWEEN, simple CASE, EXTRACT,
//! AT TIME ZONE). Leaves out operators and types (`operator`). Called by `resolve` for every expression. Pure.

use super::from::binary;
use super::refuse;
use super::resolve::{Resolver, has_aggregate};
use super::scope::{Scope, quoted};
use super::settle;
use super::syntax;
use crate::dialect::ast::Position;
use crate::error::SqlError;
use crate::function::cast::{cast_function, constant_function};
use crate::function::session::{
    clock_type, is_clock_function, is_session_function, is_setting_function, session_value, setting_value,
};
use crate::types::type_named;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::ScalarUDF;
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use millstream_catalog::model::limit::PARAMETERS_MAX;
use sqlparser::ast::{
    AccessExpr, BinaryOperator, CaseWhen, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
    FunctionArguments, GroupByExpr, Ident, ObjectName, ObjectNamePart, Query, SelectItem, SetExpr, Spanned,
    UnaryOperator, Value, ValueWithSpan, VisitMut, VisitorMut, WindowFrame, WindowType,
};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Resolves `expr` in `scope`, in place.
pub(super) fn resolve_expr(resolver: &mut Resolver<'_>, scope: &Scope<'_>, expr: &mut Expr) -> Result<(), SqlError> {
    resolve_with(resolver, scope, expr, false)
}

/// Resolves `expr`, which is a condition: rows are kept by it, so EXISTS becomes a join.
pub(super) fn resolve_condition(
    resolver: &mut Resolver<'_>,
    scope: &Scope<'_>,
    expr: &mut Expr,
) -> Result<(), SqlError> {
    resolve_with(resolver, scope, expr, true)
}

fn resolve_with(
    resolver: &mut Resolver<'_>,
    scope: &Scope<'_>,
    expr: &mut Expr,
    is_condition: bool,
) -> Result<(), SqlError> {
    let mut visitor = Rewriter { resolver, scope, is_condition, taken: Vec::new() };
    match expr.visit(&mut visitor) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(*error),
    }
}

/// A call of `name`.
pub(super) fn call(name: &str, args: Vec<Expr>) -> Expr {
    Expr::Function(Function {
        name: ObjectName(vec![ObjectNamePart::Identifier(quoted(name))]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: args.into_iter().map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg))).collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// 42P01 for a qualifier that nothing in FROM has.
pub(super) fn missing_from(ident: Option<&Ident>) -> SqlError {
    let (name, position) =
        ident.map_or(("", Position::UNKNOWN), |ident| (ident.value.as_str(), Position::of(ident.span)));
    SqlError::new(SqlState::UndefinedTable, format!("missing FROM-clause entry for table \"{name}\"")).at(position)
}

/// What is taken out of a node while its children are visited.
enum Taken {
    Query(Box<Query>),
    Frame(Option<WindowFrame>),
}

struct Rewriter<'v, 'c, 's> {
    resolver: &'v mut Resolver<'c>,
    scope: &'v Scope<'s>,
    is_condition: bool,
    taken: Vec<Taken>,
}

impl VisitorMut for Rewriter<'_, '_, '_> {
    type Break = Box<SqlError>;

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        flow(self.enter(expr))
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        flow(self.leave(expr))
    }
}

fn flow(result: Result<(), SqlError>) -> ControlFlow<Box<SqlError>> {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(Box::new(error)),
    }
}

/// The sub-query of an expression.
fn sub_query(expr: &mut Expr) -> Option<&mut Box<Query>> {
    match expr {
        Expr::Subquery(query) | Expr::Exists { subquery: query, .. } | Expr::InSubquery { subquery: query, .. } => {
            Some(query)
        }
        _ => None,
    }
}

fn window_frame(expr: &mut Expr) -> Option<&mut Option<WindowFrame>> {
    match expr {
        Expr::Function(Function { over: Some(WindowType::WindowSpec(spec)), .. }) => Some(&mut spec.window_frame),
        _ => None,
    }
}

impl Rewriter<'_, '_, '_> {
    /// Sub-queries have names of their own and are resolved apart; frames hold plain numbers.
    fn enter(&mut self, expr: &mut Expr) -> Result<(), SqlError> {
        if let Expr::InSubquery { expr: row, .. } = expr
            && matches!(row.as_ref(), Expr::Tuple(_))
        {
            let hint = "use EXISTS (SELECT … WHERE …), with a condition for each column";
            return Err(SqlError::unsupported("a row in IN with a sub-query", hint).at(position_of(row)));
        }
        if let Some(query) = sub_query(expr) {
            let mut query = std::mem::replace(query, Box::new(refuse::empty_query()));
            let output = self.resolver.query(&mut query, Some(self.scope))?;
            if output.len() != 1 && !matches!(expr, Expr::Exists { .. }) {
                return Err(SqlError::syntax("subquery must return only one column"));
            }
            self.taken.push(Taken::Query(query));
            return Ok(());
        }
        if let Some(frame) = window_frame(expr) {
            let frame = frame.take();
            self.taken.push(Taken::Frame(frame));
        }
        match expr {
            Expr::UnaryOp { op: UnaryOperator::Minus, expr: inner } => {
                if let Some(text) = super::names::number(inner).filter(|text| text.bytes().all(|b| b.is_ascii_digit()))
                {
                    *expr = refuse::literal(Value::Number(format!("-{text}"), false));
                }
            }
            // A float constant may be larger than any numeric: it is read as a float at once.
            Expr::Cast { expr: inner, data_type, .. } => {
                if let Some(text) = super::names::number(inner).map(str::to_owned)
                    && matches!(type_named(data_type)?, SqlType::Real | SqlType::Double)
                {
                    let span = inner.span();
                    **inner = Expr::Value(Value::SingleQuotedString(text).with_span(span));
                }
            }
            Expr::AnyOp { .. } => super::any::rewrite(expr),
            Expr::Function(call) => super::guard::guard(call),
            Expr::CompoundFieldAccess { root, access_chain } => {
                qualify_root(self.scope, root, access_chain);
                super::access::literal_steps(access_chain)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn leave(&mut self, expr: &mut Expr) -> Result<(), SqlError> {
        if let Some(query) = sub_query(expr) {
            if let Some(Taken::Query(taken)) = self.taken.pop() {
                *query = taken;
            }
            if !self.is_condition {
                count_existing(expr);
            }
            return Ok(());
        }
        if let Some(frame) = window_frame(expr)
            && let Some(Taken::Frame(taken)) = self.taken.pop()
        {
            *frame = taken;
        }
        syntax::check(expr)?;
        self.rewrite(expr)
    }

    fn rewrite(&mut self, expr: &mut Expr) -> Result<(), SqlError> {
        let replaced = match expr {
            Expr::Identifier(ident) => Some(self.column(ident)?),
            Expr::CompoundIdentifier(idents) => Some(self.qualified(idents)?),
            Expr::Value(value) => self.value(value)?,
            Expr::Cast { expr: inner, data_type, .. } => {
                let target = type_named(data_type)?;
                Some(self.cast(take(inner), target)?)
            }
            Expr::TypedString(typed) => {
                let target = type_named(&typed.data_type)?;
                Some(self.cast(Expr::Value(typed.value.clone()), target)?)
            }
            Expr::Interval(interval) => {
                let text = syntax::interval_text(interval)?;
                Some(self.cast(refuse::literal(Value::SingleQuotedString(text)), SqlType::Interval)?)
            }
            Expr::Between { expr: inner, negated, low, high } if is_simple(inner) => {
                Some(between(take(inner), *negated, take(low), take(high)))
            }
            Expr::Between { .. } => {
                mark(expr);
                return Ok(());
            }
            Expr::IsDistinctFrom(left, right) => Some(binary(take(left), syntax::is_distinct_from(), take(right))),
            Expr::IsNotDistinctFrom(left, right) => {
                Some(binary(take(left), syntax::is_not_distinct_from(), take(right)))
            }
            Expr::Case { operand, conditions, .. } => {
                if operand.as_deref().is_some_and(is_simple)
                    && let Some(operand) = operand.take()
                {
                    search(*operand, conditions);
                }
                mark(expr);
                return Ok(());
            }
            Expr::InList { .. } | Expr::Like { .. } | Expr::ILike { .. } | Expr::Ceil { .. } | Expr::Floor { .. } => {
                mark(expr);
                return Ok(());
            }
            Expr::AnyOp { left, right, .. } | Expr::AllOp { left, right, .. } => {
                super::any::mark(left, right);
                return Ok(());
            }
            Expr::UnaryOp { op: UnaryOperator::Not, .. } => {
                mark(expr);
                return Ok(());
            }
            Expr::UnaryOp { op, expr: inner } => syntax::unary(*op, inner)?,
            Expr::AtTimeZone { timestamp, time_zone } => Some(call("timezone", vec![take(time_zone), take(timestamp)])),
            Expr::Extract { field, expr: inner, .. } => {
                let field = refuse::literal(Value::SingleQuotedString(field.to_string().to_lowercase()));
                Some(call("extract", vec![field, take(inner)]))
            }
            Expr::Collate { expr: inner, .. } => Some(take(inner)),
            Expr::Function(_) => return self.function(expr),
            Expr::Array(array) if !array.elem.is_empty() => {
                mark(expr);
                return Ok(());
            }
            Expr::Struct { .. } | Expr::Map(_) => super::access::constructor(expr),
            _ => None,
        };
        if let Some(replaced) = replaced {
            *expr = replaced;
        }
        Ok(())
    }

    /// A call: of a session function its value, of one whose arguments must agree with its mark.
    fn function(&mut self, expr: &mut Expr) -> Result<(), SqlError> {
        let made = super::ksqldb::replace(expr)?;
        self.plain_function(expr)?;
        match made {
            None => Ok(()),
            Some(made) => {
                *expr = made.of(expr.clone());
                self.plain_function(expr)
            }
        }
    }

    /// The same of one that is none of ksqlDB's.
    fn plain_function(&mut self, expr: &mut Expr) -> Result<(), SqlError> {
        let Expr::Function(function) = expr else { return Ok(()) };
        syntax::function(self.resolver.registry, function)?;
        let name = function.name.0.last().and_then(ObjectNamePart::as_ident).map_or("", |ident| ident.value.as_str());
        let has_args = matches!(&function.args, FunctionArguments::List(list) if !list.args.is_empty());
        if let ("mod", Some((left, right))) = (name, two_arguments(function)) {
            *expr = Expr::Nested(Box::new(binary(left, BinaryOperator::Modulo, right)));
        } else if is_session_function(name) && !has_args {
            let name = name.to_owned();
            *expr = self.session(&name)?;
        } else if is_setting_function(name) {
            if self.resolver.keeps_clock {
                let what = format!("{name}() in a continuous query");
                return Err(SqlError::unsupported(what, "write the value into the statement"));
            }
            let (value, sql_type) = setting_value(name, &literals(function), self.resolver.context)?;
            *expr = self.constant(value, &sql_type);
        } else if name == "generate_series" {
            return Err(SqlError::unsupported("generate_series outside FROM", "use FROM generate_series(…) AS n"));
        } else if !name.starts_with('$') {
            mark(expr);
        }
        Ok(())
    }

    fn session(&mut self, name: &str) -> Result<Expr, SqlError> {
        if self.resolver.keeps_clock && is_clock_function(name) {
            let now = call("now", Vec::new());
            return match clock_type(name) {
                SqlType::TimestampTz => Ok(now),
                other => self.cast(now, other),
            };
        }
        let (value, sql_type) = session_value(name, self.resolver.context)?;
        Ok(self.constant(value, &sql_type))
    }

    fn column(&mut self, ident: &Ident) -> Result<Expr, SqlError> {
        let position = Position::of(ident.span);
        match self.scope.find(&ident.value).map_err(|error| error.at(position))? {
            Some(found) => Ok(found),
            None if ident.quote_style.is_none() && is_reserved(&ident.value) => self.session(&ident.value),
            None if self.scope.relation(None, &ident.value).is_some() => {
                Err(SqlError::unsupported("a whole row as a value", "name its columns").at(position))
            }
            None if ident.value == "rowop" => {
                let hint = "leave it out: a row that went away comes as its key with nulls";
                Err(SqlError::unsupported("the pseudo-column rowop", hint).at(position))
            }
            None => {
                let fact = format!("column \"{}\" does not exist", ident.value);
                Err(SqlError::new(SqlState::UndefinedColumn, fact).at(position))
            }
        }
    }

    fn qualified(&self, idents: &[Ident]) -> Result<Expr, SqlError> {
        let (schema, alias, column) = match idents {
            [alias, column] => (None, alias, column),
            [schema, alias, column] => (Some(schema.value.as_str()), alias, column),
            [_, schema, alias, column] => (Some(schema.value.as_str()), alias, column),
            _ => return Err(SqlError::syntax("improper qualified name")),
        };
        let Some(relation) = self.scope.relation(schema, &alias.value) else {
            let error = missing_from(Some(alias));
            let is_column = schema.is_none() && self.scope.find(&alias.value).is_ok_and(|found| found.is_some());
            let hint = || format!("write ({alias}).{column} for a field of column {alias}");
            return Err(if is_column { error.hint(hint()) } else { error });
        };
        relation.column(&column.value).map_err(|error| error.at(Position::of(column.span)))
    }

    /// A number takes PostgreSQL's type: integer, else bigint, else numeric.
    fn value(&mut self, value: &ValueWithSpan) -> Result<Option<Expr>, SqlError> {
        let position = Position::of(value.span);
        match &value.value {
            Value::Number(text, _) => syntax::number(text).map_err(|error| error.at(position)),
            Value::Placeholder(text) => {
                let number = text.strip_prefix('$').and_then(|text| text.parse::<usize>().ok());
                match number {
                    Some(number) if (1..=PARAMETERS_MAX).contains(&number) => {
                        self.resolver.parameters = self.resolver.parameters.max(number);
                        Ok(None)
                    }
                    _ => {
                        let fact = format!("there is no parameter {text}");
                        Err(SqlError::new(SqlState::UndefinedParameter, fact).at(position))
                    }
                }
            }
            Value::HexStringLiteral(_) | Value::SingleQuotedByteStringLiteral(_) => {
                Err(SqlError::unsupported("a bit string", "use a bytea literal: '\\x…'::bytea").at(position))
            }
            _ => Ok(None),
        }
    }

    /// `inner::target`; a literal is converted at once, so that its error has its place.
    fn cast(&mut self, inner: Expr, target: SqlType) -> Result<Expr, SqlError> {
        if let Expr::Value(ValueWithSpan { value, span }) = &inner
            && let Some(text) = string_of(value)
        {
            let at = Position::of(*span);
            let value = syntax::literal(text, &target, self.resolver.context).map_err(|error| error.at(at))?;
            return Ok(self.constant(value, &target));
        }
        if let (Expr::Array(array), SqlType::Array(_)) = (&inner, &target)
            && array.elem.is_empty()
        {
            let value = crate::types::scalar_text(&target, b"{}")?;
            return Ok(self.constant(value, &target));
        }
        let name = self.define(cast_function(target));
        Ok(settle::marked(call(&name, vec![inner])))
    }

    fn constant(&mut self, value: ScalarValue, target: &SqlType) -> Expr {
        let name = self.define(constant_function(value, target));
        call(&name, Vec::new())
    }

    fn define(&mut self, function: ScalarUDF) -> String {
        self.resolver.functions.push(Arc::new(function));
        format!("$f{}", self.resolver.functions.len() - 1)
    }
}

fn mark(expr: &mut Expr) {
    let inner = std::mem::replace(expr, refuse::null());
    *expr = settle::marked(inner);
}

fn take(expr: &mut Box<Expr>) -> Expr {
    std::mem::replace(expr, refuse::null())
}

fn string_of(value: &Value) -> Option<&str> {
    match value {
        Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => Some(text),
        Value::DollarQuotedString(text) => Some(&text.value),
        _ => None,
    }
}

/// Outside of conditions `EXISTS (SELECT … FROM …)` is `(SELECT count(*) FROM …) > 0`.
fn count_existing(expr: &mut Expr) {
    let Expr::Exists { subquery, negated } = expr else { return };
    let SetExpr::Select(select) = subquery.body.as_mut() else { return };
    let has_groups = !matches!(&select.group_by, GroupByExpr::Expressions(keys, _) if keys.is_empty());
    if has_groups || select.having.is_some() || subquery.limit_clause.is_some() || subquery.with.is_some() {
        return;
    }
    // An aggregate has its one row whatever FROM has.
    if has_aggregate(crate::function::registry(), &select.projection) {
        *expr = refuse::literal(Value::Boolean(!*negated));
        return;
    }
    let mut count = call("count", Vec::new());
    if let Expr::Function(Function { args: FunctionArguments::List(list), .. }) = &mut count {
        list.args.push(FunctionArg::Unnamed(FunctionArgExpr::Wildcard));
    }
    select.distinct = None;
    select.projection = vec![SelectItem::ExprWithAlias { expr: count, alias: quoted("count") }];
    subquery.order_by = None;
    let op = if *negated { BinaryOperator::Eq } else { BinaryOperator::Gt };
    let query = std::mem::replace(subquery, Box::new(refuse::empty_query()));
    let zero = refuse::literal(Value::Number("0".to_owned(), false));
    *expr = Expr::Nested(Box::new(binary(Expr::Subquery(query), op, zero)));
}

/// Whether an operand may be written twice: it costs nothing and gives the same value each time.
pub(super) fn is_simple(expr: &Expr) -> bool {
    match expr {
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Value(_) => true,
        Expr::Nested(inner) => is_simple(inner),
        _ => false,
    }
}

fn between(expr: Expr, negated: bool, low: Expr, high: Expr) -> Expr {
    let (above, below, both) = match negated {
        false => (BinaryOperator::GtEq, BinaryOperator::LtEq, BinaryOperator::And),
        true => (BinaryOperator::Lt, BinaryOperator::Gt, BinaryOperator::Or),
    };
    let condition = binary(binary(expr.clone(), above, low), both, binary(expr, below, high));
    Expr::Nested(Box::new(condition))
}

/// `CASE operand WHEN value` as `CASE WHEN operand = value`.
fn search(operand: Expr, conditions: &mut [CaseWhen]) {
    for when in conditions {
        let value = std::mem::replace(&mut when.condition, refuse::null());
        when.condition = binary(operand.clone(), BinaryOperator::Eq, value);
    }
}

/// `t.a[1]` is an access to `a` of `t`, not to a field of `t`.
fn qualify_root(scope: &Scope<'_>, root: &mut Box<Expr>, chain: &mut Vec<AccessExpr>) {
    let Expr::Identifier(alias) = root.as_ref() else { return };
    if scope.relation(None, &alias.value).is_none() {
        return;
    }
    if let Some(AccessExpr::Dot(Expr::Identifier(column))) = chain.first() {
        **root = Expr::CompoundIdentifier(vec![alias.clone(), column.clone()]);
        chain.remove(0);
    }
}

fn two_arguments(function: &Function) -> Option<(Expr, Expr)> {
    let FunctionArguments::List(list) = &function.args else { return None };
    match list.args.as_slice() {
        [FunctionArg::Unnamed(FunctionArgExpr::Expr(left)), FunctionArg::Unnamed(FunctionArgExpr::Expr(right))] => {
            Some((left.clone(), right.clone()))
        }
        _ => None,
    }
}

/// The arguments of a call that are literals, as text; `None` for the others.
fn literals(function: &Function) -> Vec<Option<String>> {
    let FunctionArguments::List(list) = &function.args else { return Vec::new() };
    let literal = |arg: &FunctionArg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value))) => match &value.value {
            Value::SingleQuotedString(text) => Some(text.clone()),
            Value::Boolean(value) => Some(value.to_string()),
            _ => None,
        },
        _ => None,
    };
    list.args.iter().map(literal).collect()
}

/// Session functions that are written without parentheses.
fn is_reserved(name: &str) -> bool {
    const RESERVED: [&str; 11] = [
        "current_schema",
        "current_catalog",
        "current_role",
        "current_user",
        "session_user",
        "user",
        "current_date",
        "current_time",
        "current_timestamp",
        "localtime",
        "localtimestamp",
    ];
    RESERVED.contains(&name)
}

/// Where an expression begins.
pub(super) fn position_of(expr: &Expr) -> Position {
    Position::of(expr.span())
}
