//! Definitions: columns, keys, event time and options of `CREATE`, and the options of queries.
//!
//! An option whose effect is still to come is refused. Leaves out evaluation of defaults (engine) and the
//! SELECT of `CREATE … AS` (`plan`). Pure.

use crate::bind::types::sql_type;
use crate::dialect::ast::{ColumnDef, ColumnKey, CreateAs, CreateRelation, Ident, ObjectKind, OptionValue, WithOption};
use crate::dialect::{Position, Select, WithOptions, parse_interval, render};
use crate::error::SqlError;
use millstream_catalog::model::limit::{COLUMNS_MAX, PARTITIONS_MAX};
use millstream_catalog::model::{ShardId, Span, SqlState, Timestamp, TopicId};
use millstream_catalog::query::OffsetReset;
use millstream_catalog::schema::{ROWOFFSET, ROWPARTITION, ROWTIME, ROWTOMBSTONE};
use millstream_catalog::{Column, Compression, QueryOptions, Relation, RelationKind, Schema, SqlType, TopicOptions};

/// Names that readers give a meaning of their own.
const RESERVED: [&str; 7] = [ROWTIME, ROWPARTITION, ROWOFFSET, ROWTOMBSTONE, "rowop", "windowstart", "windowend"];

/// The relation a `CREATE` defines; its id and shard are the engine's to set.
///
/// # Errors
/// 42701, 42939, 42611, 42804 and others for columns; 22023 and 0A000 for options, with their place.
pub fn bind_relation(create: &CreateRelation, now: Timestamp, nodes: u32) -> Result<Relation, SqlError> {
    let kind = create.kind.relation_kind();
    let mut columns = Vec::new();
    if create.columns.is_empty() {
        return Err(SqlError::unsupported(
            format!("CREATE {} without columns", create.kind.keyword()),
            "name the columns: (key bytea KEY, value bytea)",
        )
        .at(create.name.position));
    }
    if create.columns.len() > COLUMNS_MAX {
        let message = format!("relations can have at most {COLUMNS_MAX} columns");
        return Err(SqlError::new(SqlState::TooManyColumns, message).at(create.name.position));
    }
    for def in &create.columns {
        let column = bind_column(def, create.kind)?;
        if columns.iter().any(|other: &Column| other.name == column.name) {
            let message = format!("column \"{}\" specified more than once", column.name);
            return Err(SqlError::new(SqlState::DuplicateColumn, message).at(def.name.position));
        }
        columns.push(column);
    }
    if let Some(names) = &create.primary_key {
        bind_primary_key(create, names, &mut columns)?;
    }
    let mut options = Options { kind, nodes, topic: TopicOptions::default(), query: None, timestamp: None };
    options.bind(&create.options)?;
    let (timestamp, watermark_delay) = event_time(create, &options, &columns)?;
    Ok(Relation {
        id: TopicId::default(),
        name: create.name.name.clone(),
        kind,
        schema: Schema { columns },
        timestamp,
        watermark_delay,
        options: options.topic,
        shard: ShardId::default(),
        query: None,
        created_at: now,
        sql: render::create_relation(create).to_owned(),
    })
}

fn bind_column(def: &ColumnDef, kind: ObjectKind) -> Result<Column, SqlError> {
    if RESERVED.contains(&def.name.as_str()) {
        let message = format!("column name \"{}\" is reserved", def.name);
        return Err(SqlError::new(SqlState::ReservedName, message)
            .hint("every relation has rowtime, rowpartition and rowoffset")
            .at(def.name.position));
    }
    let is_table = kind.relation_kind() == RelationKind::Table;
    match def.key {
        ColumnKey::PrimaryKey if !is_table => {
            return Err(SqlError::unsupported("a primary key on a stream", "write KEY, which partitions its events")
                .at(def.constraint_position));
        }
        ColumnKey::Key if is_table => {
            return Err(SqlError::unsupported("KEY on a table", "write PRIMARY KEY").at(def.constraint_position));
        }
        _ => {}
    }
    Ok(Column {
        name: def.name.name.clone(),
        sql_type: sql_type(&def.data_type, def.type_position)?,
        is_nullable: !def.is_not_null && def.key != ColumnKey::PrimaryKey,
        is_key: def.key != ColumnKey::No,
        default: def.default.as_ref().map(|default| default.sql.clone()),
        is_hidden: false,
    })
}

fn bind_primary_key(create: &CreateRelation, names: &[Ident], columns: &mut [Column]) -> Result<(), SqlError> {
    let Some(first) = names.first() else { return Ok(()) };
    if create.kind.relation_kind() == RelationKind::Stream {
        return Err(
            SqlError::unsupported("a primary key on a stream", "write KEY behind the columns").at(first.position)
        );
    }
    if columns.iter().any(|column| column.is_key) {
        let message = format!("multiple primary keys for table \"{}\" are not allowed", create.name);
        return Err(SqlError::new(SqlState::InvalidTableDefinition, message).at(first.position));
    }
    for name in names {
        let column = columns.iter_mut().find(|column| column.name == name.name).ok_or_else(|| {
            let message = format!("column \"{name}\" named in key does not exist");
            SqlError::new(SqlState::UndefinedColumn, message).at(name.position)
        })?;
        if column.is_key {
            let message = format!("column \"{name}\" appears twice in primary key constraint");
            return Err(SqlError::new(SqlState::DuplicateColumn, message).at(name.position));
        }
        column.is_key = true;
        column.is_nullable = false;
    }
    Ok(())
}

/// The event-time column and the delay of its watermark.
fn event_time(
    create: &CreateRelation,
    options: &Options,
    columns: &[Column],
) -> Result<(Option<usize>, Option<Span>), SqlError> {
    let named = options.timestamp.as_ref().map(|(name, position)| (name.as_str(), *position));
    let marked = create.watermark.as_ref().map(|mark| (mark.column.as_str(), mark.column.position));
    if let (Some((named, position)), Some((marked, _))) = (named, marked)
        && named != marked
    {
        let message = format!("timestamp is \"{named}\", but WATERMARK is for \"{marked}\"");
        return Err(SqlError::new(SqlState::InvalidObjectDefinition, message).at(position));
    }
    let Some((name, position)) = named.or(marked) else { return Ok((None, None)) };
    let (at, column) =
        columns.iter().enumerate().find(|(_, column)| column.name.as_str() == name).ok_or_else(|| {
            SqlError::new(SqlState::UndefinedColumn, format!("column \"{name}\" does not exist")).at(position)
        })?;
    match column.sql_type {
        SqlType::Timestamp | SqlType::TimestampTz | SqlType::BigInt => {}
        ref other => {
            return Err(SqlError::new(
                SqlState::DatatypeMismatch,
                format!("column \"{name}\" cannot give the event time, it is of type {other}"),
            )
            .hint("use a timestamp, a timestamptz, or a bigint of milliseconds since 1970")
            .at(position));
        }
    }
    Ok((Some(at), create.watermark.as_ref().map(|mark| mark.delay)))
}

/// The options of `CREATE … AS`: its topic's and its query's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundCreateAs {
    /// Of the topic.
    pub topic: TopicOptions,
    /// Of the query.
    pub query: QueryOptions,
}

/// Checks the options of `CREATE … AS`.
///
/// # Errors
/// 22023 and 0A000, with their place.
pub fn bind_create_as(create: &CreateAs, nodes: u32) -> Result<BoundCreateAs, SqlError> {
    let mut options = Options {
        kind: create.kind.relation_kind(),
        nodes,
        topic: TopicOptions::default(),
        query: Some(QueryOptions::default()),
        timestamp: None,
    };
    options.bind(&create.options)?;
    if let Some((_, position)) = options.timestamp {
        return Err(SqlError::unsupported(
            "timestamp of a query's result",
            "the rowtime of its rows is that of what it reads",
        )
        .at(position));
    }
    options.bind(&create.select.options)?;
    Ok(BoundCreateAs { topic: options.topic, query: options.query.unwrap_or_default() })
}

/// The options of a push query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PushOptions {
    /// Where it begins, if the query says so.
    pub auto_offset_reset: Option<OffsetReset>,
}

/// Checks the options behind `EMIT CHANGES`.
///
/// # Errors
/// 22023 and 0A000, with their place.
pub fn bind_push_options(select: &Select) -> Result<PushOptions, SqlError> {
    let mut options = PushOptions::default();
    for option in &select.options.0 {
        match option.name.as_str() {
            "auto_offset_reset" => options.auto_offset_reset = Some(offset_reset(option)?),
            "emit" => check_emit(option)?,
            "group" | "auto_commit" => {
                return Err(SqlError::unsupported(
                    "a consumer group",
                    "leave the group out: an anonymous subscription gets every event",
                )
                .at(option.position));
            }
            "grace" | "idle_timeout" | "state_retention" | "mode" => return Err(later(option)),
            _ => return Err(unknown(option)),
        }
    }
    Ok(options)
}

/// Options as they are bound one by one.
struct Options {
    kind: RelationKind,
    nodes: u32,
    topic: TopicOptions,
    /// With `CREATE … AS` only.
    query: Option<QueryOptions>,
    timestamp: Option<(String, Position)>,
}

impl Options {
    fn bind(&mut self, options: &WithOptions) -> Result<(), SqlError> {
        options.0.iter().try_for_each(|option| self.bind_one(option))
    }

    fn bind_one(&mut self, option: &WithOption) -> Result<(), SqlError> {
        let text = option.value.as_str();
        match option.name.as_str() {
            "partitions" => {
                let count = whole(option)?;
                self.topic.partitions = u32::try_from(count)
                    .ok()
                    .filter(|count| (1..=PARTITIONS_MAX).contains(count))
                    .ok_or_else(|| invalid(option).detail(format!("a topic has 1 to {PARTITIONS_MAX} partitions")))?;
            }
            "replication_factor" => {
                let count = whole(option)?;
                if count < 1 || count > i64::from(self.nodes) {
                    return Err(invalid(option).detail(format!("the cluster has {} node", self.nodes)));
                }
            }
            "timestamp" => self.timestamp = Some((text.to_owned(), option.value_position)),
            "retention" if text.eq_ignore_ascii_case("forever") => {}
            "retention" => {
                duration(option)?;
                return Err(later(option).hint("leave it out: events are kept for ever"));
            }
            "retention_bytes" => {
                size(option)?;
                return Err(later(option).hint("leave it out: events are kept for ever"));
            }
            "cleanup_policy" => self.cleanup_policy(option)?,
            "compression" => {
                self.topic.compression = match text.to_ascii_lowercase().as_str() {
                    "none" => Compression::None,
                    "lz4" => Compression::Lz4,
                    "zstd" => Compression::Zstd,
                    _ => return Err(invalid(option).hint("accepted: none, lz4, zstd")),
                }
            }
            "durability" => match text.to_ascii_lowercase().as_str() {
                "sync" => {}
                "async" => {
                    return Err(later(option).hint("leave it out: events are synced before they are acknowledged"));
                }
                _ => return Err(invalid(option).hint("accepted: sync")),
            },
            _ => return self.query_option(option),
        }
        Ok(())
    }

    fn cleanup_policy(&self, option: &WithOption) -> Result<(), SqlError> {
        let default = match self.kind {
            RelationKind::Stream => "delete",
            RelationKind::Table => "compact",
        };
        match option.value.as_str().to_ascii_lowercase().replace(' ', "").as_str() {
            policy if policy == default => Ok(()),
            "delete" | "compact" | "compact,delete" | "delete,compact" => {
                Err(later(option).hint(format!("leave it out: it is {default} here")))
            }
            _ => Err(invalid(option).hint("accepted: delete, compact, or compact,delete")),
        }
    }

    fn query_option(&mut self, option: &WithOption) -> Result<(), SqlError> {
        let Some(query) = &mut self.query else { return Err(unknown(option)) };
        match option.name.as_str() {
            "auto_offset_reset" => query.auto_offset_reset = offset_reset(option)?,
            "idle_timeout" => query.idle_timeout = duration(option)?,
            "emit" => check_emit(option)?,
            "on_error" => match option.value.as_str().to_ascii_lowercase().as_str() {
                "stop" => {}
                "skip" => return Err(later(option).hint("leave it out: the query stops at an event it cannot take")),
                _ => return Err(invalid(option).hint("accepted: stop")),
            },
            "grace" | "state_retention" => {
                return Err(later(option).hint("write GRACE PERIOD in the WINDOW clause"));
            }
            "group" | "auto_commit" => {
                return Err(SqlError::unsupported(
                    "a consumer group of a continuous query",
                    "leave it out: the query keeps its own positions",
                )
                .at(option.position));
            }
            _ => return Err(unknown(option)),
        }
        Ok(())
    }
}

fn unknown(option: &WithOption) -> SqlError {
    SqlError::new(SqlState::InvalidParameterValue, format!("unrecognized parameter \"{}\"", option.name))
        .at(option.position)
}

fn invalid(option: &WithOption) -> SqlError {
    let message = format!("invalid value for parameter \"{}\": \"{}\"", option.name, option.value.as_str());
    SqlError::new(SqlState::InvalidParameterValue, message).at(option.value_position)
}

fn later(option: &WithOption) -> SqlError {
    SqlError::unsupported(
        format!("parameter \"{}\" with value \"{}\"", option.name, option.value.as_str()),
        "leave the parameter out",
    )
    .at(option.position)
}

fn whole(option: &WithOption) -> Result<i64, SqlError> {
    option.value.as_str().parse().map_err(|_| invalid(option).hint("a whole number is expected"))
}

fn duration(option: &WithOption) -> Result<Span, SqlError> {
    let hint = "a duration is expected, like '10 seconds'";
    let span = match &option.value {
        OptionValue::Text(text) => parse_interval(text).map_err(|_| invalid(option).hint(hint))?,
        OptionValue::Number(_) | OptionValue::Word(_) => return Err(invalid(option).hint(hint)),
    };
    if span <= Span::ZERO { Err(invalid(option).detail("a duration is positive")) } else { Ok(span) }
}

fn size(option: &WithOption) -> Result<u64, SqlError> {
    let text = option.value.as_str().trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match text[split..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(invalid(option).hint("sizes take KiB, MiB and GiB")),
    };
    let count: u64 = text[..split].parse().map_err(|_| invalid(option))?;
    count.checked_mul(unit).ok_or_else(|| invalid(option))
}

fn offset_reset(option: &WithOption) -> Result<OffsetReset, SqlError> {
    match option.value.as_str().to_ascii_lowercase().as_str() {
        "earliest" => Ok(OffsetReset::Earliest),
        "latest" => Ok(OffsetReset::Latest),
        "none" => Err(later(option).hint("write earliest or latest: only consumer groups have committed offsets")),
        _ => Err(invalid(option).hint("accepted: earliest, latest")),
    }
}

fn check_emit(option: &WithOption) -> Result<(), SqlError> {
    match option.value.as_str().to_ascii_lowercase().as_str() {
        "changes" => Ok(()),
        "every_change" => Err(later(option).hint("leave it out: changes within a step are merged into the last")),
        _ => Err(invalid(option).hint("accepted: changes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::{Statement, parse};

    fn bind(text: &str) -> Result<Relation, SqlError> {
        match parse(text)?.remove(0).statement {
            Statement::CreateRelation(create) => bind_relation(&create, Timestamp::default(), 1),
            Statement::CreateAs(create) => {
                bind_create_as(&create, 1)?;
                bind("CREATE STREAM s (a integer)")
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn columns_keys_and_event_time_are_bound() {
        let relation = bind(
            "CREATE TABLE t (a varchar(3), b bigint NOT NULL, c integer[] DEFAULT '{1}', PRIMARY KEY (b, a)) \
             WITH (timestamp = 'b', partitions = 3, compression = 'zstd')",
        )
        .unwrap();
        assert_eq!(relation.schema.key(), vec![0, 1]);
        assert_eq!(relation.timestamp, Some(1));
        assert_eq!(relation.options, TopicOptions { partitions: 3, compression: Compression::Zstd });
        assert!(!relation.schema.columns[0].is_nullable);
        let relation = bind("CREATE STREAM s (at timestamp, WATERMARK FOR at AS at - INTERVAL '5 seconds')").unwrap();
        assert_eq!((relation.timestamp, relation.watermark_delay), (Some(0), Some(Span::from_secs(5))));
    }

    #[test]
    fn what_has_no_effect_is_refused() {
        for (text, code) in [
            ("CREATE STREAM s (a integer, a text)", "42701"),
            ("CREATE STREAM s (rowtime timestamptz)", "42939"),
            ("CREATE STREAM s (a nonsense)", "42704"),
            ("CREATE STREAM s (a varchar(0))", "22023"),
            ("CREATE STREAM s (a integer PRIMARY KEY)", "0A000"),
            ("CREATE TABLE s (a integer KEY)", "0A000"),
            ("CREATE TABLE s (a integer PRIMARY KEY, b integer, PRIMARY KEY (b))", "42P16"),
            ("CREATE TABLE s (a integer, PRIMARY KEY (b))", "42703"),
            ("CREATE STREAM s (a text) WITH (timestamp = 'a')", "42804"),
            ("CREATE STREAM s (a text) WITH (timestamp = 'b')", "42703"),
            ("CREATE STREAM s (a text) WITH (partitions = 0)", "22023"),
            ("CREATE STREAM s (a text) WITH (partitions = 10001)", "22023"),
            ("CREATE STREAM s (a text) WITH (replication_factor = 2)", "22023"),
            ("CREATE STREAM s (a text) WITH (retention = '7 days')", "0A000"),
            ("CREATE STREAM s (a text) WITH (retention = 'soon')", "22023"),
            ("CREATE STREAM s (a text) WITH (retention_bytes = '1 GiB')", "0A000"),
            ("CREATE STREAM s (a text) WITH (retention_bytes = '1 GB')", "22023"),
            ("CREATE STREAM s (a text) WITH (cleanup_policy = 'compact')", "0A000"),
            ("CREATE STREAM s (a text) WITH (durability = 'async')", "0A000"),
            ("CREATE STREAM s (a text) WITH (compression = 'gzip')", "22023"),
            ("CREATE STREAM s (a text) WITH (nonsense = 1)", "22023"),
            ("CREATE STREAM s (a text) WITH (emit = 'changes')", "22023"),
            ("CREATE STREAM s WITH (emit = 'every_change') AS SELECT * FROM x", "0A000"),
            ("CREATE STREAM s WITH (on_error = 'skip') AS SELECT * FROM x", "0A000"),
            ("CREATE STREAM s WITH (idle_timeout = '-1 second') AS SELECT * FROM x", "22023"),
        ] {
            assert_eq!(bind(text).unwrap_err().sqlstate.code(), code, "{text}");
        }
        for text in [
            "CREATE STREAM s (a text) WITH (partitions = 10000, retention = 'forever', durability = 'sync')",
            "CREATE TABLE s (a text) WITH (cleanup_policy = 'compact', replication_factor = 1)",
            "CREATE STREAM s WITH (idle_timeout = '1 second', auto_offset_reset = 'latest') AS SELECT * FROM x",
        ] {
            bind(text).unwrap();
        }
    }
}
