//! Type names in expressions.
//!
//! Leaves out type names of definitions (`bind`). Pure.

use crate::error::SqlError;
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use sqlparser::ast::{
    ArrayElemTypeDef, CharacterLength, DataType, ExactNumberInfo, ObjectName, ObjectNamePart, TimezoneInfo,
};

/// The SQL type that `data_type` names.
///
/// # Errors
/// 42704 for an unknown name, 22023 for a length or precision out of range.
pub(crate) fn sql_type(data_type: &DataType) -> Result<SqlType, SqlError> {
    Ok(match data_type {
        DataType::SmallInt(_) | DataType::Int2(_) => SqlType::SmallInt,
        DataType::Int(_) | DataType::Integer(_) | DataType::Int4(_) => SqlType::Integer,
        DataType::BigInt(_) | DataType::Int8(_) => SqlType::BigInt,
        DataType::Real | DataType::Float4 => SqlType::Real,
        DataType::Double(_) | DataType::DoublePrecision | DataType::Float8 => SqlType::Double,
        DataType::Float(ExactNumberInfo::Precision(digits)) if *digits <= 24 => SqlType::Real,
        DataType::Float(_) => SqlType::Double,
        DataType::Numeric(info) | DataType::Decimal(info) | DataType::Dec(info) => numeric(info)?,
        DataType::Bool | DataType::Boolean => SqlType::Boolean,
        DataType::Text | DataType::String(_) => SqlType::Text,
        DataType::Varchar(length) | DataType::CharVarying(length) | DataType::CharacterVarying(length) => {
            character(length)?.map_or(SqlType::Text, SqlType::Varchar)
        }
        DataType::Char(length) | DataType::Character(length) => SqlType::Char(character(length)?.unwrap_or(1)),
        DataType::Bytea | DataType::Bytes(_) => SqlType::Bytea,
        DataType::Date => SqlType::Date,
        DataType::Time(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => SqlType::Time,
        DataType::Timestamp(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => SqlType::Timestamp,
        DataType::Timestamp(_, _) => SqlType::TimestampTz,
        DataType::TimestampNtz(_) => SqlType::Timestamp,
        DataType::Interval { .. } => SqlType::Interval,
        DataType::Uuid => SqlType::Uuid,
        DataType::JSON => SqlType::Json,
        DataType::JSONB => SqlType::Jsonb,
        DataType::Array(
            ArrayElemTypeDef::AngleBracket(item)
            | ArrayElemTypeDef::SquareBracket(item, _)
            | ArrayElemTypeDef::Parenthesis(item),
        ) => SqlType::Array(Box::new(sql_type(item)?)),
        DataType::Custom(name, _) => custom(name)?,
        other => return Err(unknown(&other.to_string().to_lowercase())),
    })
}

fn unknown(name: &str) -> SqlError {
    SqlError::new(SqlState::UndefinedObject, format!("type \"{name}\" does not exist"))
}

fn custom(name: &ObjectName) -> Result<SqlType, SqlError> {
    let parts: Vec<&str> = name.0.iter().filter_map(|part| part.as_ident().map(|ident| ident.value.as_str())).collect();
    let word = match parts.as_slice() {
        [word] | ["pg_catalog", word] => *word,
        _ => return Err(unknown(&name.to_string())),
    };
    Ok(match word {
        "bool" => SqlType::Boolean,
        "int2" => SqlType::SmallInt,
        "int4" => SqlType::Integer,
        "int8" => SqlType::BigInt,
        "float4" => SqlType::Real,
        "float8" => SqlType::Double,
        "numeric" => SqlType::Numeric { precision: 38, scale: 10 },
        "text" | "varchar" | "name" | "string" => SqlType::Text,
        "bpchar" => SqlType::Char(1),
        "bytea" => SqlType::Bytea,
        "timestamptz" => SqlType::TimestampTz,
        "uuid" => SqlType::Uuid,
        "json" => SqlType::Json,
        "jsonb" => SqlType::Jsonb,
        "regclass" | "regtype" | "oid" | "regproc" | "regnamespace" => {
            return Err(SqlError::unsupported(format!("type {word}"), "query the views of schema millstream by name"));
        }
        _ => {
            if let Some(object) = name.0.last().and_then(ObjectNamePart::as_ident) {
                return Err(unknown(&object.value).at(crate::dialect::ast::Position::of(object.span)));
            }
            return Err(unknown(word));
        }
    })
}

fn out_of_range(what: &str, range: &str) -> SqlError {
    SqlError::new(SqlState::InvalidParameterValue, format!("{what} must be {range}"))
}

fn numeric(info: &ExactNumberInfo) -> Result<SqlType, SqlError> {
    let (precision, scale) = match info {
        ExactNumberInfo::None => (38, 10),
        ExactNumberInfo::Precision(precision) => (*precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (*precision, *scale),
    };
    let precision = u8::try_from(precision).ok().filter(|precision| (1..=38).contains(precision));
    let precision = precision.ok_or_else(|| out_of_range("numeric precision", "between 1 and 38"))?;
    let scale = i8::try_from(scale).ok().filter(|scale| (0..=i8::try_from(precision).unwrap_or(38)).contains(scale));
    let scale = scale.ok_or_else(|| out_of_range("numeric scale", "between 0 and the precision"))?;
    Ok(SqlType::Numeric { precision, scale })
}

fn character(length: &Option<CharacterLength>) -> Result<Option<u32>, SqlError> {
    match length {
        None | Some(CharacterLength::Max) => Ok(None),
        Some(CharacterLength::IntegerLength { length, .. }) => {
            let length = u32::try_from(*length).ok().filter(|length| (1..=10_485_760).contains(length));
            length.map(Some).ok_or_else(|| out_of_range("length of a character type", "between 1 and 10485760"))
        }
    }
}
