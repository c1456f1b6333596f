//! `ALTER`: columns to add and options to set, against the definition there is.
//!
//! Leaves out values of defaults (planner) and what is done (engine). Pure: a crash does nothing to it.

use super::ddl;
use super::options::{check_cleanup, refused, topic_option, unrecognized};
use crate::dialect::ast::{ColumnDef, ColumnKey, Position, WithOptions};
use crate::error::SqlError;
use millstream_catalog::model::{SqlState, limit};
use millstream_catalog::{Column, Relation, TopicOptions};

/// The column that `ADD COLUMN` adds to `relation`, which has `more` besides.
///
/// # Errors
/// 42701 for a name that is taken, 0A000 for a key, 23502 for NOT NULL without a default, and those of its type.
pub fn bind_added(def: &ColumnDef, relation: &Relation, more: &[Column]) -> Result<Column, SqlError> {
    ddl::check_column_name(def.name.as_str(), def.name.position)?;
    let mut there = relation.schema.columns.iter().chain(more);
    if there.any(|column| column.name == def.name.name) {
        let message = format!("column \"{}\" of relation \"{}\" already exists", def.name, relation.name);
        return Err(SqlError::new(SqlState::DuplicateColumn, message).at(def.name.position));
    }
    if relation.schema.columns.len() + more.len() >= limit::COLUMNS_MAX {
        let message = format!("a relation can have at most {} columns", limit::COLUMNS_MAX);
        return Err(SqlError::new(SqlState::TooManyColumns, message).at(def.name.position));
    }
    if def.key != ColumnKey::No {
        let hint = "create another stream or table with that key and copy the rows with INSERT INTO … SELECT";
        return Err(SqlError::unsupported("a key column added later", hint).at(def.constraint_position));
    }
    if def.is_not_null && def.default.is_none() {
        let message = format!("column \"{}\" of relation \"{}\" contains null values", def.name, relation.name);
        return Err(SqlError::new(SqlState::NotNullViolation, message)
            .hint("give it a DEFAULT, which rows written before have too")
            .at(def.name.position));
    }
    ddl::column(def)
}

/// The options of `relation` after `SET (…)`.
///
/// # Errors
/// `22023` for unknown options and values and for fewer partitions, `0A000` for what a living topic cannot change.
pub fn bind_set(options: &WithOptions, relation: &Relation, nodes: u32) -> Result<TopicOptions, SqlError> {
    let mut topic = relation.options.clone();
    for option in &options.0 {
        if option.name == "timestamp" {
            return Err(refused(option, "create another stream: the event time of stored events does not change"));
        }
        if !topic_option(option, nodes, &mut topic)? {
            return Err(unrecognized(option));
        }
        let (from, to) = (relation.options.partitions, topic.partitions);
        if option.name == "partitions" && to < from {
            let message = format!("relation \"{}\" has {from} partitions and cannot have fewer", relation.name);
            return Err(SqlError::new(SqlState::InvalidParameterValue, message)
                .detail("the events of a partition keep their place")
                .hint("create another stream or table and copy the rows with INSERT INTO … SELECT")
                .at(option.value_position));
        }
        if option.name == "partitions" && to > from && relation.has_tombstones() {
            let hint = "create a table with more partitions and copy the rows with INSERT INTO … SELECT";
            return Err(SqlError::unsupported("more partitions for a table with a primary key", hint)
                .detail("a new version of a row would go to another partition than the old one")
                .at(option.position));
        }
    }
    check_cleanup(options, &topic.cleanup, (relation.kind, !relation.schema.key().is_empty()))?;
    Ok(topic)
}

/// The options of `relation` after `RESET (…)`.
///
/// # Errors
/// `22023` for unknown options, `0A000` for partitions.
pub fn bind_reset(names: &[(String, Position)], relation: &Relation) -> Result<TopicOptions, SqlError> {
    let mut topic = relation.options.clone();
    let default = TopicOptions::default();
    for (name, position) in names {
        match name.as_str() {
            "compression" => topic.compression = default.compression,
            "durability" => topic.durability = default.durability,
            "cleanup_policy" => topic.cleanup.policy = None,
            "retention" => topic.cleanup.retention = None,
            "retention_bytes" => topic.cleanup.retention_bytes = None,
            "delete_retention" => topic.cleanup.delete_retention = None,
            "partitions" => {
                return Err(SqlError::unsupported("RESET of partitions", "use SET (partitions = n)").at(*position));
            }
            name => {
                let message = format!("unrecognized parameter \"{name}\"");
                return Err(SqlError::new(SqlState::InvalidParameterValue, message).at(*position));
            }
        }
    }
    let none = WithOptions::default();
    check_cleanup(&none, &topic.cleanup, (relation.kind, !relation.schema.key().is_empty()))?;
    Ok(topic)
}
