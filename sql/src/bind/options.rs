//! The options of `WITH (…)`: every one is checked; one without effect yet is refused, never ignored.
//!
//! Leaves out where they come from (`dialect`) and what they do (engine, storage). Pure: a crash does
//! nothing to it.

use crate::dialect::ast::{OptionValue, Position, Select, WithOption, WithOptions};
use crate::dialect::duration;
use crate::dialect::options::GROUP_HINT;
use crate::error::SqlError;
use millstream_catalog::model::{ByteSize, Durability, GroupName, Span, SqlState, limit};
use millstream_catalog::query::{EmitForms, OffsetReset, OnError};
use millstream_catalog::{Cleanup, CleanupPolicy, Compression, QueryOptions, RelationKind, TopicOptions};

/// The options of `CREATE … (columns) WITH (…)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RelationOptions {
    /// Those of the topic.
    pub(super) topic: TopicOptions,
    /// `timestamp`: the column, and where it was named.
    pub(super) timestamp: Option<(String, Position)>,
}

/// The options of `CREATE … WITH (…) AS SELECT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateAsOptions {
    /// Those of the topic it writes.
    pub topic: TopicOptions,
    /// Those of the query.
    pub query: QueryOptions,
}

/// The options of a push query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushOptions {
    /// Where it begins, if the query says so; of a group, where there is no committed offset.
    pub auto_offset_reset: Option<GroupReset>,
    /// The consumer group it joins.
    pub group: Option<GroupName>,
    /// Whether the group's offsets are committed as rows are delivered.
    pub auto_commit: bool,
    /// How often they are, at most, if the query says so.
    pub auto_commit_interval: Option<Span>,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self { auto_offset_reset: None, group: None, auto_commit: true, auto_commit_interval: None }
    }
}

/// Where a push query begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupReset {
    /// At the oldest stored event.
    Earliest,
    /// After the newest.
    Latest,
    /// Nowhere: without a committed offset it fails. Only groups have one.
    None,
}

/// The options of a definition.
pub(super) fn relation_options(
    options: &WithOptions,
    has_key: bool,
    kind: RelationKind,
    nodes: u32,
) -> Result<RelationOptions, SqlError> {
    let mut bound = RelationOptions { topic: TopicOptions::default(), timestamp: None };
    for option in &options.0 {
        if option.name == "timestamp" {
            bound.timestamp = Some((text(option)?.to_owned(), option.value_position));
        } else if !topic_option(option, nodes, &mut bound.topic)? {
            return Err(unrecognized(option));
        }
    }
    check_cleanup(options, &bound.topic.cleanup, (kind, has_key))?;
    Ok(bound)
}

/// The options of a definition by query.
pub(super) fn create_as_options(
    options: &WithOptions,
    kind: Option<RelationKind>,
    nodes: u32,
) -> Result<CreateAsOptions, SqlError> {
    let mut bound = CreateAsOptions { topic: TopicOptions::default(), query: QueryOptions::default() };
    for option in &options.0 {
        let known = topic_option(option, nodes, &mut bound.topic)? || query_option(option, &mut bound.query)?;
        if !known {
            return Err(unrecognized(option));
        }
    }
    if let Some(kind) = kind {
        check_cleanup(options, &bound.topic.cleanup, (kind, false))?;
    }
    Ok(bound)
}

/// Checks the options of a materialized view, which is known to be a stream or table once it is planned.
///
/// # Errors
/// `22023` for those without effect.
pub fn check_materialized(options: &WithOptions, topic: &TopicOptions, kind: RelationKind) -> Result<(), SqlError> {
    check_cleanup(options, &topic.cleanup, (kind, false))
}

/// The first option that a topic does not have already; those of queries are passed over.
///
/// # Errors
/// `22023` for wrong values.
pub fn changed_topic_option<'o>(
    options: &'o WithOptions,
    topic: &TopicOptions,
    nodes: u32,
) -> Result<Option<&'o WithOption>, SqlError> {
    for option in &options.0 {
        let mut wanted = topic.clone();
        if topic_option(option, nodes, &mut wanted)? && wanted != *topic {
            return Ok(Some(option));
        }
    }
    Ok(None)
}

/// The options of a push query, after `EMIT`.
///
/// # Errors
/// `22023` for unknown names and values, and for those of groups without a group; `0A000` for queues.
pub fn bind_push_options(select: &Select) -> Result<PushOptions, SqlError> {
    let mut bound = PushOptions::default();
    for option in &select.options.0 {
        match option.name.as_str() {
            "grace" => drop(grace_of(option)?),
            "group" => {
                let name = GroupName::new(text(option)?);
                bound.group = Some(name.map_err(|error| wrong(option).hint(error.to_string()))?);
            }
            "mode" => check_mode(option)?,
            "auto_commit" => bound.auto_commit = switch(option)?,
            "auto_commit_interval" => bound.auto_commit_interval = Some(commit_interval(option)?),
            "auto_offset_reset" => bound.auto_offset_reset = Some(group_reset(option)?),
            _ => return Err(unrecognized(option)),
        }
    }
    if bound.group.is_none() {
        refuse_without_group(&select.options)?;
    }
    let interval = select.options.0.iter().find(|option| option.name == "auto_commit_interval");
    if let Some(option) = interval.filter(|_| !bound.auto_commit) {
        let message = "option \"auto_commit_interval\" has no effect with auto_commit = false";
        return Err(SqlError::new(SqlState::InvalidParameterValue, message)
            .hint("leave one of them out")
            .at(option.position));
    }
    Ok(bound)
}

/// `mode`: how the members of a group share its events.
fn check_mode(option: &WithOption) -> Result<(), SqlError> {
    match lower(option)?.as_str() {
        "partition" => Ok(()),
        "queue" => Err(unsupported_value(
            option,
            "use a group of mode 'partition', and create the topic WITH (partitions = n) for as many members",
        )),
        _ => Err(wrong(option).hint("the mode is partition")),
    }
}

/// `auto_commit_interval`
fn commit_interval(option: &WithOption) -> Result<Span, SqlError> {
    let span = match &option.value {
        OptionValue::Number(_) => None,
        OptionValue::Text(_) | OptionValue::Word(_) => duration::parse_interval(text(option)?).ok(),
    };
    let hint = "write a duration such as '5s', or leave it out: then each FETCH commits what was before it";
    span.filter(|span| *span > Span::ZERO).ok_or_else(|| wrong(option).hint(hint))
}

fn group_reset(option: &WithOption) -> Result<GroupReset, SqlError> {
    match lower(option)?.as_str() {
        "earliest" => Ok(GroupReset::Earliest),
        "latest" => Ok(GroupReset::Latest),
        "none" => Ok(GroupReset::None),
        _ => Err(wrong(option).hint("values are earliest and latest, and with a group none")),
    }
}

/// Refuses what only groups have: without one it would have no effect.
fn refuse_without_group(options: &WithOptions) -> Result<(), SqlError> {
    for option in &options.0 {
        match option.name.as_str() {
            "auto_commit" | "auto_commit_interval" | "mode" => {
                let message = format!("option \"{}\" has no effect without a group", option.name);
                return Err(SqlError::new(SqlState::InvalidParameterValue, message)
                    .hint("add group = 'name', or leave it out: only groups commit offsets and share events")
                    .at(option.position));
            }
            "auto_offset_reset" if group_reset(option)? == GroupReset::None => {
                return Err(wrong(option).hint("use 'earliest' or 'latest', or add group = 'name'"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// An option of topics; false if it is none.
pub(super) fn topic_option(option: &WithOption, nodes: u32, topic: &mut TopicOptions) -> Result<bool, SqlError> {
    match option.name.as_str() {
        "partitions" => {
            topic.partitions = whole(option, limit::PARTITIONS_MAX)?;
        }
        "replication_factor" => {
            let factor = whole(option, u32::MAX)?;
            if factor > nodes {
                return Err(wrong(option)
                    .detail(format!("{factor} replicas were asked for; the number of nodes is {nodes}"))
                    .hint("leave replication_factor out"));
            }
        }
        "retention" => {
            topic.cleanup.retention = match text(option)?.eq_ignore_ascii_case("forever") {
                true => None,
                false => {
                    let span = duration::parse_interval(text(option)?).ok().filter(|span| *span > Span::ZERO);
                    Some(span.ok_or_else(|| wrong(option).hint("write 'forever' or a duration such as '7 days'"))?)
                }
            };
        }
        "retention_bytes" => topic.cleanup.retention_bytes = Some(size(option)?),
        "delete_retention" => topic.cleanup.delete_retention = Some(duration_of(option)?),
        "cleanup_policy" => topic.cleanup.policy = Some(cleanup_policy(option)?),
        "compression" => {
            topic.compression = match lower(option)?.as_str() {
                "none" => Compression::None,
                "lz4" => Compression::Lz4,
                "zstd" => Compression::Zstd,
                _ => return Err(wrong(option).hint("compressions are none, lz4 and zstd")),
            };
        }
        "durability" => {
            let durability = Durability::parse(&lower(option)?);
            topic.durability = durability.ok_or_else(|| wrong(option).hint("durabilities are sync and async"))?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn cleanup_policy(option: &WithOption) -> Result<CleanupPolicy, SqlError> {
    let value: String = lower(option)?.chars().filter(|c| !c.is_whitespace()).collect();
    match value.as_str() {
        "delete" => Ok(CleanupPolicy::Delete),
        "compact" => Ok(CleanupPolicy::Compact),
        "compact,delete" | "delete,compact" => Ok(CleanupPolicy::CompactDelete),
        _ => Err(wrong(option).hint("policies are delete, compact, and compact,delete")),
    }
}

/// Refuses options that would have no effect beside the others: compaction without a key, a retention that no policy
/// carries out.
///
/// # Errors
/// `22023` at the option.
pub(super) fn check_cleanup(
    options: &WithOptions,
    cleanup: &Cleanup,
    (kind, has_key): (RelationKind, bool),
) -> Result<(), SqlError> {
    let policy = cleanup.policy.unwrap_or(CleanupPolicy::of(kind));
    let at = |name: &str, error: SqlError| match options.0.iter().find(|option| option.name == name) {
        Some(option) => error.at(option.position),
        None => error,
    };
    let refuse = |name: &str, hint: &str| {
        let message = format!("option \"{name}\" has no effect with cleanup policy {}", policy.word());
        Err(at(name, SqlError::new(SqlState::InvalidParameterValue, message).hint(hint)))
    };
    // A table without a key has a hidden row id, and every row is the last one of its own.
    if policy.compacts() && kind == RelationKind::Stream && !has_key {
        let error = SqlError::new(SqlState::InvalidParameterValue, "compaction of a stream needs a key")
            .hint("it keeps the last event of each key: mark columns KEY");
        return Err(at("cleanup_policy", error));
    }
    if !policy.deletes() && cleanup.retention.is_some() {
        return refuse("retention", "say cleanup_policy = 'compact,delete'");
    }
    if !policy.deletes() && cleanup.retention_bytes.is_some() {
        return refuse("retention_bytes", "say cleanup_policy = 'compact,delete'");
    }
    if !policy.compacts() && cleanup.delete_retention.is_some() {
        return refuse("delete_retention", "it is for tombstones that compaction meets; use retention");
    }
    Ok(())
}

/// An option of continuous queries; false if it is none.
fn query_option(option: &WithOption, query: &mut QueryOptions) -> Result<bool, SqlError> {
    match option.name.as_str() {
        "auto_offset_reset" => query.auto_offset_reset = offset_reset(option)?,
        "emit" => match lower(option)?.as_str() {
            "changes" => query.emit = EmitForms::Changes,
            "every_change" => query.emit = EmitForms::EveryChange,
            _ => return Err(wrong(option).hint("values are changes and every_change")),
        },
        "on_error" => match lower(option)?.as_str() {
            "stop" => query.on_error = OnError::Stop,
            "skip" => query.on_error = OnError::Skip,
            _ => return Err(wrong(option).hint("values are stop and skip")),
        },
        "idle_timeout" => query.idle_timeout = duration_of(option)?,
        // It is part of the query's own text.
        "grace" => drop(grace_of(option)?),
        "state_retention" => {
            query.state_retention = Some(duration_of(option)?);
        }
        "timestamp" => return Err(refused(option, "leave it out: event time is that of the inputs")),
        _ => return Ok(false),
    }
    Ok(true)
}

/// How long after their end windows take late events.
fn grace_of(option: &WithOption) -> Result<Span, SqlError> {
    let span = duration::parse_interval(text(option)?).map_err(|_| wrong(option).hint("write '10 seconds'"))?;
    if span >= Span::ZERO { Ok(span) } else { Err(wrong(option).hint("the duration must not be negative")) }
}

/// `grace` among the options of a query.
///
/// # Errors
/// `22023` for what is no duration.
pub fn grace_option(options: &WithOptions) -> Result<Option<Span>, SqlError> {
    options.0.iter().find(|option| option.name == "grace").map(grace_of).transpose()
}

fn offset_reset(option: &WithOption) -> Result<OffsetReset, SqlError> {
    match lower(option)?.as_str() {
        "earliest" => Ok(OffsetReset::Earliest),
        "latest" => Ok(OffsetReset::Latest),
        _ => Err(wrong(option).hint("values are earliest and latest")),
    }
}

/// `22023` for a name that is no option here.
pub(super) fn unrecognized(option: &WithOption) -> SqlError {
    let error = SqlError::new(SqlState::InvalidParameterValue, format!("unrecognized parameter \"{}\"", option.name))
        .at(option.position);
    match option.name.as_str() {
        "kafka_topic" => error.hint("leave it out: the topic has the name of the stream or table"),
        "value_format" | "key_format" | "format" | "timestamp_format" | "wrap_single_value" => {
            error.hint("leave it out: columns are stored by their types")
        }
        "replicas" => error.hint("use replication_factor"),
        "retention_ms" => error.hint("use retention"),
        "delete_retention_ms" => error.hint("use delete_retention"),
        "auto_offset_reset" | "emit" | "on_error" | "idle_timeout" | "grace" | "state_retention" => {
            error.hint("it is an option of CREATE … AS SELECT")
        }
        "group" | "auto_commit" | "auto_commit_interval" | "mode" => error.hint(GROUP_HINT),
        "auto_commit_interval_ms" => error.hint("use auto_commit_interval = '5s'"),
        "timestamp" | "partitions" | "compression" | "retention" | "retention_bytes" | "cleanup_policy"
        | "durability" => error.hint("it is an option of CREATE STREAM and CREATE TABLE"),
        _ => error,
    }
}

/// `0A000` for an option that has no effect yet.
pub(super) fn refused(option: &WithOption, hint: &str) -> SqlError {
    SqlError::unsupported(format!("option \"{}\"", option.name), hint).at(option.position)
}

/// `0A000` for a value that has no effect yet.
fn unsupported_value(option: &WithOption, hint: &str) -> SqlError {
    SqlError::unsupported(format!("\"{}\" for option \"{}\"", option.value.as_str(), option.name), hint)
        .at(option.value_position)
}

/// `22023` for a value that is none of the option's.
fn wrong(option: &WithOption) -> SqlError {
    let message = format!("invalid value for parameter \"{}\": \"{}\"", option.name, option.value.as_str());
    SqlError::new(SqlState::InvalidParameterValue, message).at(option.value_position)
}

fn text(option: &WithOption) -> Result<&str, SqlError> {
    match &option.value {
        OptionValue::Word(word) if word == "null" => {
            Err(wrong(option).hint("leave the option out, or put the value in quotes"))
        }
        OptionValue::Text(text) | OptionValue::Word(text) => Ok(text),
        OptionValue::Number(_) => Err(wrong(option).hint("put the value in quotes")),
    }
}

fn lower(option: &WithOption) -> Result<String, SqlError> {
    text(option).map(str::to_ascii_lowercase)
}

/// `true`, `false`, `on` or `off`.
fn switch(option: &WithOption) -> Result<bool, SqlError> {
    match &option.value {
        OptionValue::Number(_) => None,
        OptionValue::Text(text) | OptionValue::Word(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "on" => Some(true),
            "false" | "off" => Some(false),
            _ => None,
        },
    }
    .ok_or_else(|| wrong(option).hint("values are true and false"))
}

/// A whole number from 1 to `most`.
fn whole(option: &WithOption, most: u32) -> Result<u32, SqlError> {
    let number = option.value.as_str().parse::<u32>().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| wrong(option).hint(format!("the value is a whole number from 1 to {most}")))
}

/// A positive duration.
fn duration_of(option: &WithOption) -> Result<Span, SqlError> {
    let hint = "write a duration such as '10 seconds'";
    let span = duration::parse_interval(text(option)?).map_err(|_| wrong(option).hint(hint))?;
    if span > Span::ZERO { Ok(span) } else { Err(wrong(option).hint("the duration must be positive")) }
}

/// A number of bytes, alone or with `KiB`, `MiB`, `GiB`.
fn size(option: &WithOption) -> Result<ByteSize, SqlError> {
    let text = option.value.as_str().trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: Option<u64> = match unit.trim() {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let bytes = factor.and_then(|factor| number.parse::<u64>().ok()?.checked_mul(factor)).filter(|bytes| *bytes > 0);
    bytes.map(ByteSize::new).ok_or_else(|| wrong(option).hint("write a size such as '512 MiB'"))
}
