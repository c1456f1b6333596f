//! Clauses that parse and would otherwise be ignored: each is refused by name.
//!
//! Leaves out what the dialect already refuses while parsing. Called by `resolve` for every query and SELECT. Pure.

pub(super) use crate::dialect::ast::{empty_query, select_all};
use crate::error::SqlError;
use sqlparser::ast::CastKind;
use sqlparser::ast::{
    DataType, Expr, LimitClause, OrderBy, OrderByExpr, OrderByKind, Query, Select, SelectFlavor, SetOperator,
    SetQuantifier, Value, WildcardAdditionalOptions, With,
};

/// Refuses clauses of a query that have no effect here.
pub(super) fn query(query: &mut Query) -> Result<(), SqlError> {
    if !query.locks.is_empty() {
        return Err(SqlError::unsupported("FOR UPDATE or FOR SHARE", "reads never block and take no locks"));
    }
    if query.for_clause.is_some() || query.settings.is_some() || query.format_clause.is_some() {
        return Err(SqlError::unsupported(
            "FOR, SETTINGS or FORMAT after a query",
            "use COPY … TO STDOUT for other formats",
        ));
    }
    if !query.pipe_operators.is_empty() {
        return Err(SqlError::unsupported("|>", "use clauses of SELECT"));
    }
    if let Some(fetch) = query.fetch.take() {
        if fetch.with_ties || fetch.percent {
            return Err(SqlError::unsupported("FETCH FIRST … WITH TIES or PERCENT", "use rank() OVER (…)"));
        }
        let wanted = fetch.quantity.unwrap_or_else(|| literal(Value::Number("1".to_owned(), false)));
        match &mut query.limit_clause {
            None => {
                query.limit_clause =
                    Some(LimitClause::LimitOffset { limit: Some(wanted), offset: None, limit_by: Vec::new() })
            }
            Some(LimitClause::LimitOffset { limit: limit @ None, .. }) => *limit = Some(wanted),
            Some(_) => return Err(SqlError::syntax("multiple LIMIT clauses not allowed")),
        }
    }
    Ok(())
}

/// Refuses clauses of a SELECT that have no effect here.
pub(super) fn select(select: &Select) -> Result<(), SqlError> {
    let refused: [(&str, &str, bool); 9] = [
        ("SELECT … INTO", "use CREATE TABLE … AS SELECT", select.into.is_some()),
        ("TOP", "use LIMIT", select.top.is_some()),
        ("EXCLUDE", "name the columns", select.exclude.is_some()),
        ("LATERAL VIEW", "use CROSS JOIN LATERAL", !select.lateral_views.is_empty()),
        ("PREWHERE", "use WHERE", select.prewhere.is_some()),
        ("CONNECT BY", "use WITH RECURSIVE", !select.connect_by.is_empty()),
        ("CLUSTER BY, DISTRIBUTE BY or SORT BY", "use ORDER BY", has_hive_order(select)),
        ("SELECT AS STRUCT or AS VALUE", "name the columns", select.value_table_mode.is_some()),
        ("FROM before SELECT", "write SELECT first", select.flavor != SelectFlavor::Standard),
    ];
    match refused.into_iter().find(|(_, _, is_there)| *is_there) {
        Some((what, hint, _)) => Err(SqlError::unsupported(what, hint)),
        None => Ok(()),
    }
}

fn has_hive_order(select: &Select) -> bool {
    !select.cluster_by.is_empty() || !select.distribute_by.is_empty() || !select.sort_by.is_empty()
}

/// Refuses options after `*`.
pub(super) fn wildcard(options: &WildcardAdditionalOptions) -> Result<(), SqlError> {
    let has_options = options.opt_ilike.is_some()
        || options.opt_exclude.is_some()
        || options.opt_except.is_some()
        || options.opt_replace.is_some()
        || options.opt_rename.is_some()
        || options.opt_alias.is_some();
    match has_options {
        true => Err(SqlError::unsupported("an option after *", "name the columns")),
        false => Ok(()),
    }
}

/// Refuses set operations by name, and those that count duplicates, which the engine does not.
pub(super) fn set_quantifier(op: SetOperator, quantifier: SetQuantifier) -> Result<(), SqlError> {
    match quantifier {
        SetQuantifier::All if op != SetOperator::Union => {
            let hint = "number equal rows with row_number() OVER (PARTITION BY every column), and leave ALL out";
            Err(SqlError::unsupported(format!("{op} ALL"), hint))
        }
        SetQuantifier::All | SetQuantifier::Distinct | SetQuantifier::None => Ok(()),
        SetQuantifier::ByName | SetQuantifier::AllByName | SetQuantifier::DistinctByName => {
            Err(SqlError::unsupported("BY NAME", "list the columns in the same order"))
        }
    }
}

/// Refuses clauses around the parts of a recursive query.
pub(super) fn recursive(
    with: &Option<With>,
    order_by: &Option<OrderBy>,
    limit: &Option<LimitClause>,
) -> Result<(), SqlError> {
    match with.is_some() || order_by.is_some() || limit.is_some() {
        true => Err(SqlError::unsupported("WITH, ORDER BY or LIMIT in a recursive query", "put it around the query")),
        false => Ok(()),
    }
}

/// The keys of ORDER BY.
pub(super) fn order_keys(order_by: &mut OrderBy) -> Result<&mut [OrderByExpr], SqlError> {
    if order_by.interpolate.is_some() {
        return Err(SqlError::unsupported("INTERPOLATE", "use a window function"));
    }
    match &mut order_by.kind {
        OrderByKind::All(_) => Err(SqlError::unsupported("ORDER BY ALL", "name the columns")),
        OrderByKind::Expressions(keys) => match keys.iter().any(|key| key.with_fill.is_some()) {
            true => Err(SqlError::unsupported("WITH FILL", "join with generate_series")),
            false => Ok(keys),
        },
    }
}

/// NULL.
pub(super) fn null() -> Expr {
    literal(Value::Null)
}

/// A literal.
pub(super) fn literal(value: Value) -> Expr {
    Expr::Value(value.with_empty_span())
}

/// `CAST(expr AS bigint)`.
pub(super) fn as_bigint(expr: Expr) -> Expr {
    cast(expr, DataType::BigInt(None))
}

/// `CAST(expr AS data_type)`, for types the planner maps itself.
pub(super) fn cast(expr: Expr, data_type: DataType) -> Expr {
    Expr::Cast { kind: CastKind::Cast, expr: Box::new(expr), data_type, array: false, format: None }
}
