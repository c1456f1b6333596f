//! The end of a pipeline: the columns and key of what the query writes.
//!
//! Leaves out the stored form of rows (`stream::sink`). Pure.

use super::Planner;
use super::built::{Built, Key, Mode};
use crate::error::SqlError;
use crate::plan::ResultColumn;
use crate::stream::{Output, Sink, SinkColumn};
use arrow::datatypes::{DataType, FieldRef};
use millstream_catalog::model::Name;
use millstream_catalog::schema::ROWTIME;
use millstream_catalog::{Column, RelationKind, SqlType};

/// The key column of a table that has one row.
const ONE_ROW_KEY: &str = "rowid";

impl Planner<'_> {
    /// What the rows of `root` are stored as.
    pub(super) fn sink(&self, root: &Built) -> Result<(Output, Sink), SqlError> {
        let selected = self.query.columns.len();
        if root.visible() != selected {
            return Err(SqlError::internal("a continuous plan has other columns than its result"));
        }
        let mut columns = self.query.columns.iter().map(selected_column).collect::<Result<Vec<_>, _>>()?;
        let mut sink: Vec<SinkColumn> = (0..selected).map(SinkColumn::Delta).collect();
        if root.mode == Mode::Append {
            for at in self.key_of_stream() {
                columns[at].is_key = true;
            }
            let output = Output { selected, columns, kind: RelationKind::Stream };
            let schema = output.stored_schema();
            return Ok((output, Sink::new(sink, schema, false, None)));
        }
        if !self.query.partition_by.is_empty() {
            let hint = "leave it out: a table has the key of its rows";
            return Err(SqlError::unsupported("PARTITION BY of rows that change", hint));
        }
        let mut missing: Vec<&Key> = Vec::new();
        for key in &root.key {
            match key.shown {
                Some(shown) => {
                    columns[shown].is_key = true;
                    sink[shown] = SinkColumn::Delta(key.at);
                }
                None => missing.push(key),
            }
        }
        // Window bounds are shown, so they come before what is hidden.
        missing.sort_by_key(|key| key.is_hidden);
        for key in missing {
            columns.push(key_column(key, &root.fields[key.at], &columns)?);
            sink.push(SinkColumn::Delta(key.at));
        }
        if root.key.is_empty() {
            columns.push(Column {
                name: free_name(ONE_ROW_KEY, &columns)?,
                sql_type: SqlType::SmallInt,
                is_nullable: false,
                is_key: true,
                default: None,
                is_hidden: true,
                is_headers: false,
            });
            sink.push(SinkColumn::OneRow);
        }
        let output = Output { columns, kind: RelationKind::Table, selected };
        let schema = output.stored_schema();
        let merged = (root.mode == Mode::Both).then(|| root.key.iter().map(|key| key.at).collect());
        let is_keyed = output.has_tombstones();
        Ok((output, Sink::new(sink, schema, is_keyed, merged)))
    }
}

impl Planner<'_> {
    /// The columns that are the key of a stream: those of PARTITION BY, or the key of the only stream it is made of, if all of
    /// it is selected.
    fn key_of_stream(&self) -> Vec<usize> {
        if !self.query.partition_by.is_empty() {
            return self.query.partition_by.clone();
        }
        let [source] = self.query.sources.as_slice() else { return Vec::new() };
        let shown = |at: &usize| self.query.columns.iter().position(|column| column.source == Some((source.id, *at)));
        source.schema.key().iter().map(shown).collect::<Option<Vec<usize>>>().unwrap_or_default()
    }
}

fn selected_column(column: &ResultColumn) -> Result<Column, SqlError> {
    Ok(Column {
        name: Name::new(column.name.as_str())?,
        sql_type: column.sql_type.clone(),
        is_nullable: true,
        is_key: false,
        default: None,
        is_hidden: false,
        is_headers: false,
    })
}

fn key_column(key: &Key, field: &FieldRef, columns: &[Column]) -> Result<Column, SqlError> {
    let sql_type = SqlType::of(field).ok_or_else(|| {
        SqlError::unsupported(format!("grouping by type {}", type_words(field.data_type())), "cast it to text")
    })?;
    Ok(Column {
        name: match key.is_hidden {
            true => free_name(&key.name, columns)?,
            false => Name::new(key.name.as_str())?,
        },
        sql_type,
        is_nullable: true,
        is_key: true,
        default: None,
        is_hidden: key.is_hidden,
        is_headers: false,
    })
}

fn type_words(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Struct(_) => "STRUCT",
        DataType::Map(_, _) => "MAP",
        _ => "of this expression",
    }
}

/// `name`, with a number where `columns` or the pseudo-columns have it already.
fn free_name(name: &str, columns: &[Column]) -> Result<Name, SqlError> {
    let is_taken = |name: &str| name == ROWTIME || columns.iter().any(|column| column.name.as_str() == name);
    let base: String = name.chars().take(50).collect();
    let numbered = (1..).map(|number| format!("{base}_{number}"));
    let free = std::iter::once(name.to_owned()).chain(numbered).find(|name| !is_taken(name));
    Ok(Name::new(free.unwrap_or_default())?)
}
