//! Names of unnamed result columns, as PostgreSQL chooses them.
//!
//! Source: PostgreSQL 15, `FigureColname` in `parse_target.c`. Pure; called by `resolve`.

use sqlparser::ast::{
    AccessExpr, DataType, Expr, Function, ObjectName, Query, SelectItem, SetExpr, TrimWhereField, Value,
};

/// The name of a column that shows `expr` without `AS`.
pub(super) fn column_name(expr: &Expr) -> String {
    match figure(expr) {
        Some((name, _)) => name,
        None => "?column?".to_owned(),
    }
}

/// How good a name is: a cast keeps the name of its argument when that is strong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Strength {
    Weak,
    Strong,
}

fn strong(name: impl Into<String>) -> Option<(String, Strength)> {
    Some((name.into(), Strength::Strong))
}

fn figure(expr: &Expr) -> Option<(String, Strength)> {
    match expr {
        Expr::Identifier(ident) => strong(&ident.value),
        Expr::CompoundIdentifier(idents) => strong(&idents.last()?.value),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => figure(inner),
        Expr::CompoundFieldAccess { root, access_chain } => {
            let name = access_chain.iter().rev().find_map(|step| match step {
                AccessExpr::Dot(Expr::Identifier(name)) => Some(&name.value),
                _ => None,
            });
            name.map_or_else(|| figure(root), strong)
        }
        Expr::Struct { .. } => strong("struct"),
        Expr::Map(_) => strong("map"),
        Expr::Function(function) => strong(function_name(function)?),
        Expr::Cast { expr, data_type, .. } => cast(figure(expr), data_type),
        Expr::TypedString(typed) => cast(None, &typed.data_type),
        Expr::Interval(_) => Some(("interval".to_owned(), Strength::Weak)),
        Expr::Case { else_result, .. } => match else_result.as_deref().and_then(figure) {
            Some((name, Strength::Strong)) => strong(name),
            _ => Some(("case".to_owned(), Strength::Weak)),
        },
        Expr::Exists { negated: false, .. } => strong("exists"),
        Expr::Subquery(query) => strong(sole_column(query)?),
        Expr::Array(_) => strong("array"),
        Expr::Tuple(_) => strong("row"),
        Expr::Extract { .. } => strong("extract"),
        Expr::Substring { shorthand: true, .. } => strong("substr"),
        Expr::Substring { .. } => strong("substring"),
        Expr::Position { .. } => strong("position"),
        Expr::Overlay { .. } => strong("overlay"),
        Expr::Ceil { .. } => strong("ceil"),
        Expr::Floor { .. } => strong("floor"),
        Expr::AtTimeZone { .. } => strong("timezone"),
        Expr::Trim { trim_where, .. } => strong(match trim_where {
            Some(TrimWhereField::Leading) => "ltrim",
            Some(TrimWhereField::Trailing) => "rtrim",
            Some(TrimWhereField::Both) | None => "btrim",
        }),
        _ => None,
    }
}

fn cast(inner: Option<(String, Strength)>, data_type: &DataType) -> Option<(String, Strength)> {
    match inner {
        Some((name, Strength::Strong)) => strong(name),
        _ => Some((type_name(data_type), Strength::Weak)),
    }
}

/// The last part of the name of a called function.
pub(super) fn function_name(function: &Function) -> Option<String> {
    last_part(&function.name)
}

fn last_part(name: &ObjectName) -> Option<String> {
    name.0.last()?.as_ident().map(|ident| ident.value.to_lowercase())
}

/// The name of the only column of a scalar sub-query.
fn sole_column(query: &Query) -> Option<String> {
    match query.body.as_ref() {
        SetExpr::Select(select) => match select.projection.first()? {
            SelectItem::UnnamedExpr(expr) => figure(expr).map(|(name, _)| name),
            SelectItem::ExprWithAlias { alias, .. } => Some(alias.value.clone()),
            _ => None,
        },
        SetExpr::Query(inner) => sole_column(inner),
        SetExpr::Values(_) => Some("column1".to_owned()),
        _ => None,
    }
}

/// The catalog's name of a type: `integer` is `int4`.
fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::SmallInt(_) | DataType::Int2(_) => "int2".to_owned(),
        DataType::Int(_) | DataType::Integer(_) | DataType::Int4(_) => "int4".to_owned(),
        DataType::BigInt(_) | DataType::Int8(_) => "int8".to_owned(),
        DataType::Real | DataType::Float4 => "float4".to_owned(),
        DataType::Double(_) | DataType::DoublePrecision | DataType::Float8 | DataType::Float(_) => "float8".to_owned(),
        DataType::Numeric(_) | DataType::Decimal(_) | DataType::Dec(_) => "numeric".to_owned(),
        DataType::Bool | DataType::Boolean => "bool".to_owned(),
        DataType::Varchar(_) | DataType::CharVarying(_) | DataType::CharacterVarying(_) => "varchar".to_owned(),
        DataType::Char(_) | DataType::Character(_) => "bpchar".to_owned(),
        DataType::Text | DataType::String(_) => "text".to_owned(),
        DataType::Bytea | DataType::Bytes(_) => "bytea".to_owned(),
        DataType::Date => "date".to_owned(),
        DataType::Time(_, zone) => zoned("time", zone),
        DataType::Timestamp(_, zone) => zoned("timestamp", zone),
        DataType::Interval { .. } => "interval".to_owned(),
        DataType::Uuid => "uuid".to_owned(),
        DataType::JSON => "json".to_owned(),
        DataType::JSONB => "jsonb".to_owned(),
        DataType::Struct(..) => "struct".to_owned(),
        DataType::Map(..) => "map".to_owned(),
        DataType::Custom(name, _) => last_part(name).unwrap_or_else(|| "text".to_owned()),
        DataType::Array(element) => match element {
            sqlparser::ast::ArrayElemTypeDef::AngleBracket(item)
            | sqlparser::ast::ArrayElemTypeDef::SquareBracket(item, _)
            | sqlparser::ast::ArrayElemTypeDef::Parenthesis(item) => type_name(item),
            sqlparser::ast::ArrayElemTypeDef::None => "anyarray".to_owned(),
        },
        other => other.to_string().to_lowercase(),
    }
}

fn zoned(name: &str, zone: &sqlparser::ast::TimezoneInfo) -> String {
    use sqlparser::ast::TimezoneInfo;
    match zone {
        TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => name.to_owned(),
        TimezoneInfo::WithTimeZone | TimezoneInfo::Tz => format!("{name}tz"),
    }
}

/// True for a literal number, and its text: a position in GROUP BY or ORDER BY.
pub(super) fn number(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::Number(text, _) => Some(text),
            _ => None,
        },
        _ => None,
    }
}
