//! PostgreSQL's numbers for types: OIDs, lengths, type modifiers.
//!
//! Leaves out the type catalog (`pg_type`) that clients query. The wire (row descriptions, parameter
//! descriptions) and the planner's system functions call it. Source: PostgreSQL 15 `pg_type.dat`.

use millstream_catalog::SqlType;

/// (type, OID, OID of its array, typlen), with the shortest modifier of each parametrised type.
const TYPES: &[(SqlType, u32, u32, i16)] = &[
    (SqlType::Boolean, 16, 1000, 1),
    (SqlType::Bytea, 17, 1001, -1),
    (SqlType::BigInt, 20, 1016, 8),
    (SqlType::SmallInt, 21, 1005, 2),
    (SqlType::Integer, 23, 1007, 4),
    (SqlType::Text, 25, 1009, -1),
    (SqlType::Json, JSON, 199, -1),
    (SqlType::Real, 700, 1021, 4),
    (SqlType::Double, 701, 1022, 8),
    (SqlType::Date, 1082, 1182, 4),
    (SqlType::Time, 1083, 1183, 8),
    (SqlType::Timestamp, 1114, 1115, 8),
    (SqlType::TimestampTz, 1184, 1185, 8),
    (SqlType::Interval, 1186, 1187, 16),
    (SqlType::Numeric { precision: 38, scale: 10 }, NUMERIC, 1231, -1),
    (SqlType::Uuid, 2950, 2951, 16),
    (SqlType::Jsonb, 3802, 3807, -1),
];

const BPCHAR: u32 = 1042;
const BPCHAR_ARRAY: u32 = 1014;
const VARCHAR: u32 = 1043;
const VARCHAR_ARRAY: u32 = 1015;
const NUMERIC: u32 = 1700;
const JSON: u32 = 114;
/// Bytes PostgreSQL adds to the modifier of length types (`VARHDRSZ`).
const HEADER: i32 = 4;

fn find(sql_type: &SqlType) -> Option<&'static (SqlType, u32, u32, i16)> {
    TYPES.iter().find(|entry| entry.0 == *sql_type || is_numeric(&entry.0) && is_numeric(sql_type))
}

fn is_numeric(sql_type: &SqlType) -> bool {
    matches!(sql_type, SqlType::Numeric { .. })
}

/// The OID of `sql_type`; arrays of any depth have the OID of their innermost type's array, STRUCT and MAP that of `json`.
///
/// `oid(integer)` is 23, `oid(integer[])` is 1007.
pub fn oid(sql_type: &SqlType) -> u32 {
    match sql_type {
        document if document.is_document() => JSON,
        SqlType::Varchar(_) => VARCHAR,
        SqlType::Char(_) => BPCHAR,
        SqlType::Array(item) => oid_array(item),
        other => find(other).map_or(0, |entry| entry.1),
    }
}

fn oid_array(item: &SqlType) -> u32 {
    match item {
        SqlType::Varchar(_) => VARCHAR_ARRAY,
        SqlType::Char(_) => BPCHAR_ARRAY,
        SqlType::Array(inner) => oid_array(inner),
        other => find(other).map_or(0, |entry| entry.2),
    }
}

/// The fixed length of a value in bytes, or -1.
pub fn typlen(sql_type: &SqlType) -> i16 {
    find(sql_type).map_or(-1, |entry| entry.3)
}

/// The type modifier (`atttypmod`), or -1.
///
/// `varchar(10)` is 14; `numeric(10,2)` is 655366.
pub fn typmod(sql_type: &SqlType) -> i32 {
    match sql_type {
        SqlType::Varchar(n) | SqlType::Char(n) => i32::try_from(*n).unwrap_or(i32::MAX - HEADER).saturating_add(HEADER),
        SqlType::Numeric { precision, scale } => ((i32::from(*precision) << 16) | (i32::from(*scale) & 0x7FF)) + HEADER,
        SqlType::Array(item) => typmod(item),
        _ => -1,
    }
}

/// The type of an OID as a client names it for a parameter: without a modifier, so text for `varchar`
/// and `bpchar`, and numeric(38, 10) for `numeric`. `name` and `unknown` are text. `None` for 0 and others.
pub fn from_oid(oid: u32) -> Option<SqlType> {
    const NAME: u32 = 19;
    const NAME_ARRAY: u32 = 1003;
    const UNKNOWN: u32 = 705;
    match oid {
        0 => None,
        VARCHAR | BPCHAR | NAME | UNKNOWN => Some(SqlType::Text),
        VARCHAR_ARRAY | BPCHAR_ARRAY | NAME_ARRAY => Some(SqlType::Array(Box::new(SqlType::Text))),
        _ => TYPES.iter().find_map(|(sql_type, item, array, _)| {
            (*item == oid)
                .then(|| sql_type.clone())
                .or_else(|| (*array == oid).then(|| SqlType::Array(Box::new(sql_type.clone()))))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oids_round_trip() {
        for (sql_type, item, array, _) in TYPES {
            assert_eq!(oid(sql_type), *item);
            assert_eq!(from_oid(*item).as_ref(), Some(sql_type));
            let list = SqlType::Array(Box::new(sql_type.clone()));
            assert_eq!(oid(&list), *array);
            assert_eq!(from_oid(*array), Some(list));
        }
        assert_eq!(from_oid(0), None);
        assert_eq!(from_oid(1043), Some(SqlType::Text));
    }

    #[test]
    fn modifiers_are_postgresql_s() {
        assert_eq!(typmod(&SqlType::Varchar(10)), 14);
        assert_eq!(typmod(&SqlType::Numeric { precision: 10, scale: 2 }), 655_366);
        assert_eq!(typmod(&SqlType::Text), -1);
        assert_eq!(typlen(&SqlType::Uuid), 16);
        assert_eq!(typlen(&SqlType::Numeric { precision: 5, scale: 0 }), -1);
    }
}
