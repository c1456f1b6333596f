//! Consumer groups: `COMMIT OFFSETS`, `ALTER`, `DROP` and `DESCRIBE CONSUMER GROUP`; and `LISTEN`, `UNLISTEN`.
//!
//! Leaves out what they do (engine), and the options of a subscription (`bind::options`). A crash does nothing to it.

use super::ast::{
    AlterGroup, CommitOffsets, CommitPosition, DropGroups, Given, GroupRef, Ident, Position, QualifiedName, ResetTo,
    Statement,
};
use super::cursor::Cursor;
use super::keywords::is_reserved;
use crate::error::SqlError;
use crate::types;
use millstream_catalog::model::{GroupName, Name, Offset, PartitionId, SqlState, Timestamp};
use sqlparser::tokenizer::Token;

/// `COMMIT OFFSETS FOR CURSOR name`, or of a position; the two words are read.
pub(super) fn commit(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    let commit = if cursor.is_token(&Token::LParen) {
        CommitOffsets::Position(position(cursor)?)
    } else {
        cursor.expect(&["for", "cursor"])?;
        CommitOffsets::Cursor(cursor.ident()?)
    };
    Ok(Statement::CommitOffsets(commit))
}

/// The items of `COMMIT OFFSETS (…)` read so far.
#[derive(Default)]
struct Items {
    group: Option<Given<GroupRef>>,
    topic: Option<Given<QualifiedName>>,
    partition: Option<Given<PartitionId>>,
    offset: Option<(Given<Offset>, Position)>,
}

/// `(GROUP g, TOPIC t, PARTITION n, OFFSET n)`, in any order.
fn position(cursor: &mut Cursor<'_>) -> Result<CommitPosition, SqlError> {
    let mut items = Items::default();
    cursor.expect_token(&Token::LParen)?;
    cursor.list(|cursor| item(cursor, &mut items))?;
    let end = cursor.position();
    cursor.expect_token(&Token::RParen)?;
    let missing = |name: &str| {
        SqlError::syntax(format!("parameter \"{name}\" is missing"))
            .hint("write COMMIT OFFSETS (GROUP 'g', TOPIC 't', PARTITION 0, OFFSET 42)")
            .at(end)
    };
    let group = items.group.ok_or_else(|| missing("group"))?;
    let topic = items.topic.ok_or_else(|| missing("topic"))?;
    let partition = items.partition.ok_or_else(|| missing("partition"))?;
    let (offset, position) = items.offset.ok_or_else(|| missing("offset"))?;
    Ok(CommitPosition { group, topic, partition, offset, position })
}

fn item(cursor: &mut Cursor<'_>, items: &mut Items) -> Result<(), SqlError> {
    let place = cursor.position();
    let Some(word @ ("group" | "topic" | "partition" | "offset")) = cursor.word() else {
        return Err(cursor.unexpected());
    };
    cursor.at += 1;
    let position = cursor.position();
    let is_twice = match word {
        "group" => items.group.replace(given(cursor, group_ref)?).is_some(),
        "topic" => items.topic.replace(given(cursor, topic)?).is_some(),
        "partition" => items.partition.replace(given(cursor, partition)?).is_some(),
        _ => items.offset.replace((given(cursor, offset)?, position)).is_some(),
    };
    if is_twice {
        return Err(SqlError::syntax(format!("parameter \"{word}\" specified more than once")).at(place));
    }
    Ok(())
}

/// A value, or a parameter for it.
fn given<T>(
    cursor: &mut Cursor<'_>,
    value: impl FnOnce(&mut Cursor<'_>) -> Result<T, SqlError>,
) -> Result<Given<T>, SqlError> {
    let position = cursor.position();
    match cursor.param()? {
        Some(index) => Ok(Given::Param(index, position)),
        None => value(cursor).map(Given::Value),
    }
}

/// `ALTER CONSUMER GROUP g RESET OFFSETS [FOR TOPIC t [PARTITION n]] TO EARLIEST | LATEST | TIMESTAMP '…' | OFFSET n`.
pub(super) fn alter(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["alter", "consumer", "group"])?;
    let group = group_ref(cursor)?;
    cursor.expect(&["reset", "offsets"])?;
    let (mut topic, mut only) = (None, None);
    if cursor.eat(&["for"]) {
        cursor.expect(&["topic"])?;
        topic = Some(cursor.target()?);
        if cursor.eat(&["partition"]) {
            only = Some(partition(cursor)?);
        }
    }
    cursor.expect(&["to"])?;
    let to = match cursor.word() {
        Some("earliest") => ResetTo::Earliest,
        Some("latest") => ResetTo::Latest,
        Some("timestamp") => {
            cursor.at += 1;
            return Ok(altered(group, topic, only, ResetTo::Timestamp(timestamp(cursor)?)));
        }
        Some("offset") => {
            cursor.at += 1;
            return Ok(altered(group, topic, only, ResetTo::Offset(offset(cursor)?)));
        }
        _ => return Err(cursor.unexpected()),
    };
    cursor.at += 1;
    Ok(altered(group, topic, only, to))
}

fn altered(group: GroupRef, topic: Option<QualifiedName>, partition: Option<PartitionId>, to: ResetTo) -> Statement {
    Statement::AlterGroup(AlterGroup { group, topic, partition, to })
}

/// `DROP CONSUMER GROUP [IF EXISTS] g, …`.
pub(super) fn drop(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["drop", "consumer", "group"])?;
    let if_exists = cursor.eat(&["if", "exists"]);
    Ok(Statement::DropGroups(DropGroups { if_exists, groups: cursor.list(group_ref)? }))
}

/// `DESCRIBE CONSUMER GROUP g`; the first word is read.
pub(super) fn describe(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["consumer", "group"])?;
    group_ref(cursor).map(Statement::DescribeGroup)
}

/// `LISTEN topic`.
pub(super) fn listen(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["listen"])?;
    channel(cursor).map(Statement::Listen)
}

/// `UNLISTEN topic | *`.
pub(super) fn unlisten(cursor: &mut Cursor<'_>) -> Result<Statement, SqlError> {
    cursor.expect(&["unlisten"])?;
    if cursor.eat_token(&Token::Mul) {
        return Ok(Statement::Unlisten(None));
    }
    channel(cursor).map(|channel| Statement::Unlisten(Some(channel)))
}

/// A topic whose notifications have its name.
fn channel(cursor: &mut Cursor<'_>) -> Result<Ident, SqlError> {
    let QualifiedName { name, position, .. } = cursor.target()?;
    Ok(Ident { name, position })
}

/// A group's name: an identifier or a literal.
fn group_ref(cursor: &mut Cursor<'_>) -> Result<GroupRef, SqlError> {
    let text = match cursor.peek() {
        Some(Token::SingleQuotedString(text)) => text,
        Some(Token::Word(word)) if word.quote_style.is_some() || !is_reserved(&word.value) => &word.value,
        _ => return Err(unexpected_value(cursor)),
    };
    let position = cursor.position();
    let name = GroupName::new(text.as_str())
        .map_err(|error| SqlError::new(SqlState::InvalidParameterValue, error.to_string()).at(position))?;
    cursor.at += 1;
    Ok(GroupRef { name, position })
}

/// A topic's name: an identifier or a literal, without a schema.
fn topic(cursor: &mut Cursor<'_>) -> Result<QualifiedName, SqlError> {
    let position = cursor.position();
    let Some(Token::SingleQuotedString(text)) = cursor.peek() else {
        let Ident { name, position } = cursor.ident().map_err(|_| unexpected_value(cursor))?;
        return Ok(QualifiedName { schema: None, name, position });
    };
    let name = Name::new(text.as_str()).map_err(|error| SqlError::from(error).at(position))?;
    cursor.at += 1;
    Ok(QualifiedName { schema: None, name, position })
}

fn partition(cursor: &mut Cursor<'_>) -> Result<PartitionId, SqlError> {
    let last = u64::try_from(i32::MAX).unwrap_or(u64::MAX);
    let number = whole(cursor, "partition", ("integer", last))?;
    Ok(PartitionId::new(u32::try_from(number).unwrap_or(u32::MAX)))
}

fn offset(cursor: &mut Cursor<'_>) -> Result<Offset, SqlError> {
    let last = u64::try_from(i64::MAX).unwrap_or(u64::MAX);
    whole(cursor, "offset", ("bigint", last)).map(Offset::new)
}

/// A whole number from 0 to the last of a type.
fn whole(cursor: &mut Cursor<'_>, what: &str, (type_name, last): (&str, u64)) -> Result<u64, SqlError> {
    let position = cursor.position();
    let text = cursor.number().map_err(|_| unexpected_value(cursor))?;
    let is_whole = text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_whole {
        let message = format!("invalid {what}: \"{text}\"");
        return Err(SqlError::new(SqlState::InvalidParameterValue, message)
            .hint("it is a whole number from 0")
            .at(position));
    }
    text.parse::<u64>().ok().filter(|number| *number <= last).ok_or_else(|| {
        let message = format!("value \"{text}\" is out of range for type {type_name}");
        SqlError::new(SqlState::NumericValueOutOfRange, message).at(position)
    })
}

/// A literal read as `timestamptz`.
fn timestamp(cursor: &mut Cursor<'_>) -> Result<Timestamp, SqlError> {
    let position = cursor.position();
    let text = cursor.string().map_err(|_| unexpected_value(cursor))?;
    let micros = types::parse_timestamptz(text.as_bytes()).map_err(|error| SqlError::from(error).at(position))?;
    Ok(Timestamp::from_micros(micros))
}

/// The error for a token where a value must stand.
fn unexpected_value(cursor: &Cursor<'_>) -> SqlError {
    match cursor.peek() {
        Some(Token::Placeholder(_)) => cursor.unsupported("a parameter in this statement", "write the value"),
        _ => cursor.unexpected(),
    }
}
