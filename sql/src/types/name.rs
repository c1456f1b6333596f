//! Type names: PostgreSQL's and ksqlDB's words for the types of DIALECT, section 2.
//!
//! A length or precision that would have no effect is refused. Called for columns, casts and the parameters
//! of `PREPARE`. Pure: a crash does nothing to it.

use crate::dialect::ast::Position;
use crate::error::SqlError;
use millstream_catalog::SqlType;
use millstream_catalog::model::limit::{TYPE_FIELDS_MAX, TYPE_NESTING_MAX};
use millstream_catalog::model::{Name, SqlState};
use millstream_catalog::schema::StructField;
use sqlparser::ast::{
    ArrayElemTypeDef, CharLengthUnits, CharacterLength, DataType, ExactNumberInfo, ObjectName, ObjectNamePart,
    TimezoneInfo,
};
use std::collections::HashSet;

/// Characters of `varchar(n)` and `char(n)`, as in PostgreSQL.
const LENGTH_MAX: u64 = 10_485_760;
/// Digits of `numeric`.
const PRECISION_MAX: u64 = 38;

/// The SQL type that `data_type`, at `position`, names.
///
/// # Errors
/// `42704` for a name that is no type, `22023` for a length or precision out of range, `0A000` with a hint for
/// types of PostgreSQL and ksqlDB that are not supported.
pub fn sql_type(data_type: &DataType, position: Position) -> Result<SqlType, SqlError> {
    type_named(data_type).map_err(|error| error.at(position))
}

/// As [`sql_type`], at a position that is not known.
pub(crate) fn type_named(data_type: &DataType) -> Result<SqlType, SqlError> {
    let found = part_named(data_type)?;
    check_type(&found)?;
    Ok(found)
}

/// Checks the parts of a type: depth, number and names of fields, keys of maps.
///
/// # Errors
/// `54001` and `54011` beyond the limits, `42701` for a field that is there twice, `0A000` for keys without equality.
pub(crate) fn check_type(sql_type: &SqlType) -> Result<(), SqlError> {
    let mut fields = 0;
    check_part(sql_type, 1, &mut fields)
}

fn check_part(sql_type: &SqlType, depth: usize, count: &mut usize) -> Result<(), SqlError> {
    if depth > TYPE_NESTING_MAX + 1 {
        let fact = format!("a type nests deeper than {TYPE_NESTING_MAX} levels");
        return Err(SqlError::new(SqlState::StatementTooComplex, fact).hint("use jsonb"));
    }
    match sql_type {
        SqlType::Array(item) => check_part(item, depth + 1, count),
        SqlType::Map(key, value) => {
            if !key.has_equality() || matches!(**key, SqlType::Array(_) | SqlType::Struct(_) | SqlType::Jsonb) {
                return Err(SqlError::unsupported(format!("MAP with keys of type {key}"), "use keys of type text"));
            }
            check_part(value, depth + 1, count)
        }
        SqlType::Struct(fields) => {
            *count += fields.len();
            if *count > TYPE_FIELDS_MAX {
                let fact = format!("a type can have at most {TYPE_FIELDS_MAX} fields");
                return Err(SqlError::new(SqlState::TooManyColumns, fact));
            }
            let mut names = HashSet::new();
            for field in fields {
                if !names.insert(&field.name) {
                    let fact = format!("field \"{}\" specified more than once", field.name);
                    return Err(SqlError::new(SqlState::DuplicateColumn, fact));
                }
                check_part(&field.sql_type, depth + 1, count)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn structure(fields: &[sqlparser::ast::StructField]) -> Result<SqlType, SqlError> {
    let field = |field: &sqlparser::ast::StructField| {
        let Some(ident) = field.field_name.as_ref().filter(|_| field.options.is_none()) else {
            return Err(
                SqlError::syntax("a field of STRUCT has a name and a type").hint("write STRUCT<a integer, b text>")
            );
        };
        let name = Name::new(ident.value.clone()).map_err(SqlError::from)?;
        Ok(StructField { name: name.as_str().to_owned(), sql_type: part_named(&field.field_type)? })
    };
    if fields.is_empty() {
        return Err(SqlError::syntax("a STRUCT has fields").hint("write STRUCT<a integer, b text>"));
    }
    Ok(SqlType::Struct(fields.iter().map(field).collect::<Result<_, _>>()?))
}

fn part_named(data_type: &DataType) -> Result<SqlType, SqlError> {
    Ok(match data_type {
        DataType::Boolean | DataType::Bool => SqlType::Boolean,
        DataType::SmallInt(None) | DataType::Int2(None) => SqlType::SmallInt,
        DataType::Int(None) | DataType::Integer(None) | DataType::Int4(None) => SqlType::Integer,
        DataType::BigInt(None) | DataType::Int8(None) => SqlType::BigInt,
        DataType::Real | DataType::Float4 => SqlType::Real,
        DataType::Double(ExactNumberInfo::None) | DataType::DoublePrecision | DataType::Float8 => SqlType::Double,
        DataType::Float(info) => float(info)?,
        DataType::Numeric(info) | DataType::Decimal(info) | DataType::Dec(info) => numeric(info)?,
        DataType::Text | DataType::String(None) => SqlType::Text,
        DataType::Varchar(length) | DataType::CharVarying(length) | DataType::CharacterVarying(length) => {
            character("varchar", length.as_ref())?.map_or(SqlType::Text, SqlType::Varchar)
        }
        DataType::Char(length) | DataType::Character(length) => {
            SqlType::Char(character("char", length.as_ref())?.unwrap_or(1))
        }
        DataType::Bytea | DataType::Bytes(None) => SqlType::Bytea,
        DataType::Date => SqlType::Date,
        DataType::Time(precision, zone) => {
            micros(*precision)?;
            match zone {
                TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => SqlType::Time,
                TimezoneInfo::WithTimeZone | TimezoneInfo::Tz => {
                    return Err(SqlError::unsupported("type time with time zone", "use time, or timestamptz"));
                }
            }
        }
        DataType::Timestamp(precision, zone) => {
            micros(*precision)?;
            match zone {
                TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => SqlType::Timestamp,
                TimezoneInfo::WithTimeZone | TimezoneInfo::Tz => SqlType::TimestampTz,
            }
        }
        DataType::Interval { fields: None, precision: None } => SqlType::Interval,
        DataType::Interval { .. } => {
            return Err(SqlError::unsupported("interval with fields or a precision", "use interval"));
        }
        DataType::Uuid => SqlType::Uuid,
        DataType::JSON => SqlType::Json,
        DataType::JSONB => SqlType::Jsonb,
        DataType::Array(item) => array(item)?,
        DataType::Struct(fields, _) => structure(fields)?,
        DataType::Map(key, value) => SqlType::Map(Box::new(part_named(key)?), Box::new(part_named(value)?)),
        DataType::Custom(name, modifiers) => custom(name, modifiers)?,
        other => return Err(unknown(&other.to_string().to_lowercase())),
    })
}

fn unknown(name: &str) -> SqlError {
    let error = SqlError::new(SqlState::UndefinedObject, format!("type \"{name}\" does not exist"));
    match name {
        "tinyint" => error.hint("use smallint"),
        "datetime" => error.hint("use timestamp or timestamptz"),
        "blob" | "binary" | "varbinary" => error.hint("use bytea"),
        "hugeint" | "int128" => error.hint("use numeric"),
        "clob" | "tinytext" | "mediumtext" | "longtext" => error.hint("use text"),
        _ => error,
    }
}

/// Names that are no keywords of sqlparser's.
fn custom(name: &ObjectName, modifiers: &[String]) -> Result<SqlType, SqlError> {
    let position = name.0.last().and_then(ObjectNamePart::as_ident).map(|ident| Position::of(ident.span));
    let located = |error: SqlError| match position {
        Some(position) => error.at(position),
        None => error,
    };
    let parts: Vec<&str> =
        name.0.iter().filter_map(ObjectNamePart::as_ident).map(|ident| ident.value.as_str()).collect();
    let word = match parts.as_slice() {
        [word] | ["pg_catalog", word] => *word,
        _ => return Err(located(unknown(&parts.join(".")))),
    };
    let found = match word {
        "bool" => SqlType::Boolean,
        "int2" => SqlType::SmallInt,
        "int4" => SqlType::Integer,
        "int8" => SqlType::BigInt,
        "float4" => SqlType::Real,
        "float8" => SqlType::Double,
        "numeric" => SqlType::Numeric { precision: 38, scale: 10 },
        "text" | "varchar" | "name" => SqlType::Text,
        "bytea" => SqlType::Bytea,
        "date" => SqlType::Date,
        "time" => SqlType::Time,
        "timestamp" => SqlType::Timestamp,
        "timestamptz" => SqlType::TimestampTz,
        "interval" => SqlType::Interval,
        "uuid" => SqlType::Uuid,
        "json" => SqlType::Json,
        "jsonb" => SqlType::Jsonb,
        "serial" | "bigserial" | "smallserial" | "serial4" | "serial8" | "serial2" => {
            let hint = "rowpartition and rowoffset number every event";
            return Err(SqlError::unsupported(format!("type {word}"), hint));
        }
        "bpchar" => return Err(SqlError::unsupported("type bpchar", "use text or char(n)")),
        "regclass" | "regtype" | "oid" | "regproc" | "regnamespace" => {
            return Err(SqlError::unsupported(format!("type {word}"), "query the views of schema millstream by name"));
        }
        "struct" | "map" => {
            let hint = "write STRUCT<a integer, b text>, or MAP<text, integer>";
            return Err(SqlError::syntax(format!("type {} names its parts", word.to_uppercase())).hint(hint));
        }
        "headers" => {
            let hint = "elsewhere write STRUCT<key text, value bytea>[]";
            return Err(SqlError::unsupported("HEADERS but as a column's type", hint));
        }
        _ => return Err(located(unknown(word))),
    };
    if modifiers.is_empty() {
        return Ok(found);
    }
    Err(SqlError::syntax(format!("type modifier is not allowed for type \"{word}\"")))
}

fn invalid(message: String) -> SqlError {
    SqlError::new(SqlState::InvalidParameterValue, message)
}

/// `float(p)`: real up to 24 bits, double up to 53.
fn float(info: &ExactNumberInfo) -> Result<SqlType, SqlError> {
    match info {
        ExactNumberInfo::None => Ok(SqlType::Double),
        ExactNumberInfo::Precision(1..=24) => Ok(SqlType::Real),
        ExactNumberInfo::Precision(25..=53) => Ok(SqlType::Double),
        _ => Err(invalid("precision for type float must be between 1 and 53 bits".to_owned())),
    }
}

fn numeric(info: &ExactNumberInfo) -> Result<SqlType, SqlError> {
    let (precision, scale) = match info {
        ExactNumberInfo::None => (PRECISION_MAX, 10),
        ExactNumberInfo::Precision(precision) => (*precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (*precision, *scale),
    };
    let valid = u8::try_from(precision).ok().filter(|digits| (1..=PRECISION_MAX).contains(&u64::from(*digits)));
    let Some(digits) = valid else {
        return Err(invalid(format!("NUMERIC precision {precision} must be between 1 and {PRECISION_MAX}")));
    };
    match i8::try_from(scale) {
        Ok(scale) if scale >= 0 && u64::from(scale.unsigned_abs()) <= precision => {
            Ok(SqlType::Numeric { precision: digits, scale })
        }
        _ => Err(invalid(format!("NUMERIC scale {scale} must be between 0 and precision {precision}"))),
    }
}

fn character(what: &str, length: Option<&CharacterLength>) -> Result<Option<u32>, SqlError> {
    match length {
        None => Ok(None),
        Some(CharacterLength::IntegerLength { length, unit: None | Some(CharLengthUnits::Characters) }) => {
            match u32::try_from(*length) {
                Ok(count) if (1..=LENGTH_MAX).contains(length) => Ok(Some(count)),
                Ok(0) => Err(invalid(format!("length for type {what} must be at least 1"))),
                _ => Err(invalid(format!("length for type {what} cannot exceed {LENGTH_MAX}"))),
            }
        }
        Some(_) => Err(SqlError::unsupported(format!("type {what} with a length in other units"), "count characters")),
    }
}

/// Times have microseconds; another precision would round, which nothing here does.
fn micros(precision: Option<u64>) -> Result<(), SqlError> {
    match precision {
        None | Some(6) => Ok(()),
        Some(_) => Err(SqlError::unsupported("another precision of times than 6", "leave the precision out")),
    }
}

fn array(item: &ArrayElemTypeDef) -> Result<SqlType, SqlError> {
    let item = match item {
        ArrayElemTypeDef::AngleBracket(item) | ArrayElemTypeDef::SquareBracket(item, None) => item,
        ArrayElemTypeDef::SquareBracket(_, Some(_)) => {
            return Err(SqlError::unsupported("an array of fixed length", "write T[]"));
        }
        ArrayElemTypeDef::None | ArrayElemTypeDef::Parenthesis(_) => {
            return Err(SqlError::syntax("an array type names its items").hint("write T[] or ARRAY<T>"));
        }
    };
    match part_named(item)? {
        SqlType::Array(_) => Err(SqlError::unsupported("an array of arrays", "use jsonb")),
        item => Ok(SqlType::Array(Box::new(item))),
    }
}
