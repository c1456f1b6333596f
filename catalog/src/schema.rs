//! Columns and SQL types, and the one mapping from SQL types to Arrow types.
//!
//! Stored batches have the relation's columns in order, then the hidden columns named here. Leaves out
//! literals and casts, which are SQL's. A crash does nothing to it.

use crate::model::Name;
use arrow_schema::{DataType, Field, IntervalUnit, Schema as ArrowSchema, SchemaRef, TimeUnit};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// What the names of the server's own relations begin with; users see them in schema `millstream`.
pub const OWN_NAMES: &str = "millstream.";
/// The stored event time: `Timestamp(µs, UTC)`, never null, the first column after the relation's own.
pub const ROWTIME: &str = "rowtime";
/// True on a tombstone: `Boolean`, never null, after `rowtime`, stored for tables only.
pub const ROWTOMBSTONE: &str = "rowtombstone";
/// Hidden in tables without a key: in an event that changes a row, the offset of the row's first event.
pub const ROWFIRST: &str = "rowfirst";
/// Hidden in tables without a key: true in an event by which a row goes.
pub const ROWGONE: &str = "rowgone";
/// The pseudo-column of the partition, `Int32`, computed by readers.
pub const ROWPARTITION: &str = "rowpartition";
/// The pseudo-column of the offset, `Int64`, computed by readers.
pub const ROWOFFSET: &str = "rowoffset";
/// Key of the field metadata that names the SQL type where Arrow's is wider (`uuid`, `json`, `varchar(n)` …).
pub const TYPE_METADATA: &str = "millstream.type";
/// Key of the schema metadata of a topic that names its key columns, by position: `0,2`.
pub const KEY_METADATA: &str = "millstream.key";
/// Metadata of a stored schema: the position of the first of the columns by which rows of a table without a key change.
pub const ROW_IDS_METADATA: &str = "millstream.row_ids";

/// The key columns of a topic's schema; none in topics that were made before they were noted there.
pub fn key_of(stored: &ArrowSchema) -> Vec<usize> {
    let listed = stored.metadata().get(KEY_METADATA).map_or("", String::as_str);
    listed.split(',').filter_map(|position| position.parse().ok()).collect()
}

/// Key of the metadata of a stored field that says what rows written before the column was added have in it.
pub const FILL_METADATA: &str = "millstream.fill";

/// A SQL type of a column.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SqlType {
    /// `boolean`
    Boolean,
    /// `smallint`
    SmallInt,
    /// `integer`
    Integer,
    /// `bigint`
    BigInt,
    /// `real`
    Real,
    /// `double precision`
    Double,
    /// `numeric(precision, scale)`; plain `numeric` is (38, 10)
    Numeric {
        /// Digits in all, 1 to 38.
        precision: u8,
        /// Digits after the point, 0 to `precision`.
        scale: i8,
    },
    /// `text`
    Text,
    /// `varchar(n)`; n counts characters
    Varchar(u32),
    /// `char(n)`, blank-padded; n counts characters
    Char(u32),
    /// `bytea`
    Bytea,
    /// `date`
    Date,
    /// `time`
    Time,
    /// `timestamp`
    Timestamp,
    /// `timestamptz`
    TimestampTz,
    /// `interval`
    Interval,
    /// `uuid`
    Uuid,
    /// `json`
    Json,
    /// `jsonb`
    Jsonb,
    /// `T[]`
    Array(Box<SqlType>),
    /// `STRUCT<a T, …>`; every field may be NULL
    Struct(Vec<StructField>),
    /// `MAP<K, V>`; keys are never NULL, and none is there twice
    Map(Box<SqlType>, Box<SqlType>),
}

/// A field of a STRUCT.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StructField {
    /// Its name, unique in the STRUCT.
    pub name: String,
    /// Its type.
    pub sql_type: SqlType,
}

impl SqlType {
    /// The Arrow type of stored values.
    pub fn arrow(&self) -> DataType {
        match self {
            Self::Boolean => DataType::Boolean,
            Self::SmallInt => DataType::Int16,
            Self::Integer => DataType::Int32,
            Self::BigInt => DataType::Int64,
            Self::Real => DataType::Float32,
            Self::Double => DataType::Float64,
            Self::Numeric { precision, scale } => DataType::Decimal128(*precision, *scale),
            Self::Text | Self::Varchar(_) | Self::Char(_) | Self::Json | Self::Jsonb => DataType::Utf8,
            Self::Bytea => DataType::Binary,
            Self::Date => DataType::Date32,
            Self::Time => DataType::Time64(TimeUnit::Microsecond),
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
            Self::Uuid => DataType::FixedSizeBinary(16),
            Self::Array(item) => DataType::List(Arc::new(item.field("item", true))),
            Self::Struct(fields) => {
                DataType::Struct(fields.iter().map(|field| field.sql_type.field(&field.name, true)).collect())
            }
            Self::Map(key, value) => {
                let entry = vec![key.field("keys", false), value.field("values", true)];
                DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entry.into()), false)), false)
            }
        }
    }

    /// A field of this type, with [`TYPE_METADATA`] where the Arrow type alone would lose the SQL type.
    pub fn field(&self, name: &str, nullable: bool) -> Field {
        let field = Field::new(name, self.arrow(), nullable);
        match self {
            Self::Varchar(_) | Self::Char(_) | Self::Json | Self::Jsonb | Self::Uuid => {
                field.with_metadata(HashMap::from([(TYPE_METADATA.to_owned(), self.to_string())]))
            }
            _ => field,
        }
    }

    /// The SQL type of an Arrow field: its metadata if present, else the type whose Arrow type it is.
    ///
    /// `None` for Arrow types no SQL type stands for (dictionaries, unions).
    pub fn of(field: &Field) -> Option<Self> {
        if let Some(text) = field.metadata().get(TYPE_METADATA)
            && let Some(found) = Self::of_metadata(text)
        {
            return Some(found);
        }
        Self::of_arrow(field.data_type())
    }

    /// The SQL type shown for an Arrow type without metadata.
    pub fn of_arrow(data_type: &DataType) -> Option<Self> {
        Some(match data_type {
            DataType::Null | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Self::Text,
            DataType::Boolean => Self::Boolean,
            DataType::Int8 | DataType::Int16 | DataType::UInt8 => Self::SmallInt,
            DataType::Int32 | DataType::UInt16 => Self::Integer,
            DataType::Int64 | DataType::UInt32 => Self::BigInt,
            DataType::UInt64 => Self::Numeric { precision: 20, scale: 0 },
            DataType::Float16 | DataType::Float32 => Self::Real,
            DataType::Float64 => Self::Double,
            DataType::Decimal32(p, s) | DataType::Decimal64(p, s) | DataType::Decimal128(p, s) => {
                Self::Numeric { precision: *p, scale: *s }
            }
            DataType::Decimal256(_, s) => Self::Numeric { precision: 38, scale: *s },
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                Self::Bytea
            }
            DataType::Date32 | DataType::Date64 => Self::Date,
            DataType::Time32(_) | DataType::Time64(_) => Self::Time,
            DataType::Timestamp(_, None) => Self::Timestamp,
            DataType::Timestamp(_, Some(_)) => Self::TimestampTz,
            DataType::Interval(_) | DataType::Duration(_) => Self::Interval,
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                Self::Array(Box::new(Self::of(item)?))
            }
            DataType::Struct(fields) => {
                let field =
                    |field: &Arc<Field>| Some(StructField { name: field.name().clone(), sql_type: Self::of(field)? });
                Self::Struct(fields.iter().map(field).collect::<Option<_>>()?)
            }
            DataType::Map(entries, _) => match entries.data_type() {
                DataType::Struct(pair) => match pair.as_ref() {
                    [key, value] => Self::Map(Box::new(Self::of(key)?), Box::new(Self::of(value)?)),
                    _ => return None,
                },
                _ => return None,
            },
            _ => return None,
        })
    }

    /// True if values of this type are, or have inside of them, values of type `other`.
    pub fn has(&self, other: &Self) -> bool {
        match self {
            Self::Array(item) => item.has(other),
            Self::Struct(fields) => fields.iter().any(|field| field.sql_type.has(other)),
            Self::Map(key, value) => key.has(other) || value.has(other),
            plain => plain == other,
        }
    }

    /// True where values can be compared: not those of `json` and MAP, or with one inside.
    pub fn has_equality(&self) -> bool {
        match self {
            Self::Json | Self::Map(..) => false,
            Self::Array(item) => item.has_equality(),
            Self::Struct(fields) => fields.iter().all(|field| field.sql_type.has_equality()),
            _ => true,
        }
    }

    /// True for STRUCT, MAP and arrays of them: clients see JSON.
    pub fn is_document(&self) -> bool {
        match self {
            Self::Struct(_) | Self::Map(..) => true,
            Self::Array(item) => item.is_document(),
            _ => false,
        }
    }

    /// The type of a column declared `HEADERS`: `STRUCT<key text, value bytea>[]`.
    pub fn headers() -> Self {
        let field = |name: &str, sql_type| StructField { name: name.to_owned(), sql_type };
        Self::Array(Box::new(Self::Struct(vec![field("key", Self::Text), field("value", Self::Bytea)])))
    }

    fn of_metadata(text: &str) -> Option<Self> {
        let length = |prefix: &str| -> Option<u32> { text.strip_prefix(prefix)?.strip_suffix(')')?.parse().ok() };
        match text {
            "uuid" => Some(Self::Uuid),
            "json" => Some(Self::Json),
            "jsonb" => Some(Self::Jsonb),
            _ => length("character varying(").map(Self::Varchar).or_else(|| length("character(").map(Self::Char)),
        }
    }
}

impl fmt::Display for SqlType {
    /// PostgreSQL's `format_type` spelling.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean => f.write_str("boolean"),
            Self::SmallInt => f.write_str("smallint"),
            Self::Integer => f.write_str("integer"),
            Self::BigInt => f.write_str("bigint"),
            Self::Real => f.write_str("real"),
            Self::Double => f.write_str("double precision"),
            Self::Numeric { precision, scale } => write!(f, "numeric({precision},{scale})"),
            Self::Text => f.write_str("text"),
            Self::Varchar(n) => write!(f, "character varying({n})"),
            Self::Char(n) => write!(f, "character({n})"),
            Self::Bytea => f.write_str("bytea"),
            Self::Date => f.write_str("date"),
            Self::Time => f.write_str("time without time zone"),
            Self::Timestamp => f.write_str("timestamp without time zone"),
            Self::TimestampTz => f.write_str("timestamp with time zone"),
            Self::Interval => f.write_str("interval"),
            Self::Uuid => f.write_str("uuid"),
            Self::Json => f.write_str("json"),
            Self::Jsonb => f.write_str("jsonb"),
            Self::Array(item) => write!(f, "{item}[]"),
            Self::Struct(fields) => {
                for (at, StructField { name, sql_type }) in fields.iter().enumerate() {
                    let start = if at == 0 { "STRUCT<" } else { ", " };
                    let is_plain = name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
                        && !name.starts_with(|first: char| first.is_ascii_digit());
                    match is_plain {
                        true => write!(f, "{start}{name} {sql_type}")?,
                        false => write!(f, "{start}\"{}\" {sql_type}", name.replace('"', "\"\""))?,
                    }
                }
                f.write_str(">")
            }
            Self::Map(key, value) => write!(f, "MAP<{key}, {value}>"),
        }
    }
}

/// One column of a relation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name, unique in the relation.
    pub name: Name,
    /// Its type.
    pub sql_type: SqlType,
    /// False for `NOT NULL` and for primary-key columns of declared tables.
    pub is_nullable: bool,
    /// Part of the partitioning key (`KEY`), or of the primary key of a table.
    pub is_key: bool,
    /// SQL text of the default, canonical; `None` means NULL.
    pub default: Option<String>,
    /// A key column that a derived table has although its SELECT does not list it; not in `SELECT *`.
    pub is_hidden: bool,
    /// The column of the event's headers; at most one of a relation, of type [`SqlType::headers`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_headers: bool,
}

/// The ordered columns of a relation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// The columns, in declaration order.
    pub columns: Vec<Column>,
}

impl Schema {
    /// The position and column of `name`.
    pub fn find(&self, name: &str) -> Option<(usize, &Column)> {
        self.columns.iter().enumerate().find(|(_, column)| column.name.as_str() == name)
    }

    /// A nullable hidden column of that name, or with a number where the name is taken.
    pub(crate) fn hidden(&self, name: &str, sql_type: SqlType) -> Option<Column> {
        let numbered = (1..).map(|number| format!("{name}_{number}"));
        let mut names = std::iter::once(name.to_owned()).chain(numbered);
        let name = names.find(|name| self.find(name).is_none()).and_then(|name| Name::new(name).ok())?;
        let (is_key, is_headers) = (false, false);
        Some(Column { name, sql_type, is_nullable: true, is_key, default: None, is_hidden: true, is_headers })
    }

    /// Positions of the key columns, in declaration order.
    pub fn key(&self) -> Vec<usize> {
        (0..self.columns.len()).filter(|i| self.columns[*i].is_key).collect()
    }

    /// The schema of stored batches: the columns, then `rowtime`, then `rowtombstone` if `has_tombstones`.
    ///
    /// Non-key columns of a relation with tombstones are nullable here whatever they were declared:
    /// a tombstone has only its key.
    pub fn stored(&self, has_tombstones: bool) -> SchemaRef {
        let mut fields: Vec<Field> = self
            .columns
            .iter()
            .map(|column| {
                let is_nullable = column.is_nullable || (has_tombstones && !column.is_key);
                column.sql_type.field(column.name.as_str(), is_nullable)
            })
            .collect();
        fields.push(SqlType::TimestampTz.field(ROWTIME, false));
        if has_tombstones {
            fields.push(Field::new(ROWTOMBSTONE, DataType::Boolean, false));
        }
        Arc::new(ArrowSchema::new(fields))
    }
}
