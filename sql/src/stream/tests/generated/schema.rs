//! Random relations and events: columns of several types, few values of each so that rows meet, NULLs, keys of one or
//! two columns, several partitions, deletions, and times out of order.

use super::ast::Type;
use super::{Case, Step};
use crate::stream::tests::Random;
use crate::stream::tests::S;
use crate::stream::tests::log::{self, LogEvent, YEAR_2024};
use millstream_catalog::model::Span;
use millstream_catalog::{Relation, RelationKind, SqlType};

/// The identifier of the events that are far away in time.
pub(super) const FAR: &str = "5000";

/// Their time.
pub(super) const FAR_TIME: i64 = (YEAR_2024 + 9 * 86_400) * S;

#[derive(Debug, Clone)]
pub(super) struct Declared {
    pub(super) name: String,
    pub(super) is_table: bool,
    pub(super) partitions: u32,
    /// How far the event time is behind, in seconds.
    pub(super) delay: Option<i64>,
    pub(super) columns: Vec<DeclaredColumn>,
}

#[derive(Debug, Clone)]
pub(super) struct DeclaredColumn {
    pub(super) name: String,
    pub(super) of: Type,
    pub(super) is_key: bool,
}

/// The types a column may have.
const TYPES: [Type; 12] = [
    Type::Int,
    Type::Big,
    Type::Num,
    Type::Double,
    Type::Text,
    Type::Bool,
    Type::Time,
    Type::Date,
    Type::Bytes,
    Type::Uuid,
    Type::Interval,
    Type::Json,
];

/// Some types are more likely, so that columns of different relations can be joined.
pub(super) fn type_of(random: &mut Random) -> Type {
    match random.below(10) {
        0..=3 => Type::Int,
        4..=5 => Type::Text,
        _ => TYPES[random.below(12) as usize],
    }
}

/// The type's name in SQL.
pub(super) fn name_of(of: Type) -> &'static str {
    match of {
        Type::Int => "integer",
        Type::Big => "bigint",
        Type::Num => "numeric(10, 2)",
        Type::Double => "double precision",
        Type::Text | Type::Other => "text",
        Type::Bool => "boolean",
        Type::Time => "timestamptz",
        Type::Date => "date",
        Type::Bytes => "bytea",
        Type::Uuid => "uuid",
        Type::Interval => "interval",
        Type::Json => "jsonb",
    }
}

fn sql_type(of: Type) -> SqlType {
    match of {
        Type::Int => SqlType::Integer,
        Type::Big => SqlType::BigInt,
        Type::Num => SqlType::Numeric { precision: 10, scale: 2 },
        Type::Double => SqlType::Double,
        Type::Text | Type::Other => SqlType::Text,
        Type::Bool => SqlType::Boolean,
        Type::Time => SqlType::TimestampTz,
        Type::Date => SqlType::Date,
        Type::Bytes => SqlType::Bytea,
        Type::Uuid => SqlType::Uuid,
        Type::Interval => SqlType::Interval,
        Type::Json => SqlType::Jsonb,
    }
}

/// A value as text.
pub(super) fn value(random: &mut Random, of: Type) -> String {
    let choices: &[&str] = match of {
        Type::Int => &["0", "1", "2", "3", "4", "5", "-1"],
        Type::Big => &["0", "1", "2", "3", "-7", "3000000000"],
        Type::Num => &["0.00", "1.00", "1.50", "2.25", "-3.10", "99999.99"],
        Type::Double => &["0", "1", "1.5", "-2.25", "0.125", "1e10", "NaN", "-0"],
        Type::Text | Type::Other => &["a", "b", "ab", "B", "", "é"],
        Type::Bool => &["t", "f"],
        Type::Time => &[
            "2024-01-01 00:00:05Z",
            "2024-01-01 00:00:10Z",
            "2024-01-01 00:01:00Z",
            "1969-12-31 23:59:59.5Z",
            "2023-02-28 12:00:00Z",
        ],
        Type::Date => &["2024-01-01", "2024-02-29", "1969-12-31", "1970-01-01"],
        Type::Bytes => &["\\x", "\\x00", "\\x0001", "\\xff"],
        Type::Uuid => &[
            "00000000-0000-0000-0000-000000000000",
            "00000000-0000-0000-0000-000000000001",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ],
        Type::Interval => &["00:00:01", "1 day", "24:00:00", "1 mon", "-1 day", "30 days"],
        Type::Json => &["1", "1.0", "null", "\"a\"", "{\"a\": 1}", "[1, 2]", "{\"a\": [1.50]}"],
    };
    choices[random.below(choices.len() as u64) as usize].to_owned()
}

fn declared(random: &mut Random, name: &str, is_table: bool, partitions: u32) -> Declared {
    let mut columns = vec![DeclaredColumn { name: "id".to_owned(), of: Type::Int, is_key: is_table }];
    for at in 0..2 + random.below(3) {
        let of = if at == 0 { Type::Int } else { type_of(random) };
        columns.push(DeclaredColumn { name: ["k", "v", "w", "x"][at as usize].to_owned(), of, is_key: false });
    }
    if is_table && random.below(4) == 0 {
        columns[1].is_key = true;
    }
    Declared { name: name.to_owned(), is_table, partitions, delay: None, columns }
}

/// Streams `s` and `r`, tables `t` and `u`.
pub(super) fn schema(random: &mut Random) -> Vec<Declared> {
    let partitions = |random: &mut Random| if random.below(3) == 0 { 1 + random.below(3) as u32 } else { 1 };
    let names = [("s", false), ("r", false), ("t", true), ("u", true)];
    names
        .map(|(name, is_table)| {
            let partitions = partitions(random);
            declared(random, name, is_table, partitions)
        })
        .to_vec()
}

impl Declared {
    pub(super) fn relation(&self, id: u64) -> Relation {
        let kind = if self.is_table { RelationKind::Table } else { RelationKind::Stream };
        let columns = self.columns.iter();
        let columns: Vec<(&str, SqlType, bool)> =
            columns.map(|column| (column.name.as_str(), sql_type(column.of), column.is_key)).collect();
        let mut relation = log::relation(id, &self.name, kind, &columns);
        relation.options.partitions = self.partitions;
        relation.watermark_delay = self.delay.map(Span::from_secs);
        relation
    }

    /// As a statement would declare it.
    pub(super) fn text(&self) -> String {
        let column = |column: &DeclaredColumn| format!("{} {}", column.name, name_of(column.of));
        let mut columns: Vec<String> = self.columns.iter().map(column).collect();
        let keys: Vec<&str> =
            self.columns.iter().filter(|column| column.is_key).map(|column| column.name.as_str()).collect();
        if self.is_table {
            columns.push(format!("PRIMARY KEY ({})", keys.join(", ")));
        }
        let kind = if self.is_table { "TABLE" } else { "STREAM" };
        let delay = self.delay.map_or(String::new(), |delay| format!(", watermark {delay} s behind"));
        format!("CREATE {kind} {} ({}) WITH (partitions = {}{delay})", self.name, columns.join(", "), self.partitions)
    }
}

/// How events lie in time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// The first, in seconds.
    pub(super) start: i64,
    /// How far out of order they are.
    pub(super) spread: u64,
}

impl Times {
    pub(super) fn new(random: &mut Random) -> Self {
        Self { start: if random.below(4) == 0 { -20 } else { YEAR_2024 }, spread: 1 + random.below(30) }
    }
}

/// `count` random events, of the tables first if the query must not see them change.
pub(super) fn events(random: &mut Random, schema: &[Declared], count: u64, is_table_first: bool) -> Vec<Step> {
    let times = Times::new(random);
    let mut steps: Vec<Step> = (0..count).map(|number| step(random, schema, times, number)).collect();
    if is_table_first {
        steps.sort_by_key(|step| !schema[step.event.relation].is_table);
    }
    steps
}

fn step(random: &mut Random, schema: &[Declared], times: Times, number: u64) -> Step {
    let relation = random.below(schema.len() as u64) as usize;
    let declared = &schema[relation];
    let cell = |column: &DeclaredColumn| match (column.name.as_str(), column.is_key) {
        ("id", false) => Some(number.to_string()),
        ("id", true) => Some(random.below(7).to_string()),
        (_, false) if random.below(7) == 0 => None,
        _ => Some(value(random, column.of)),
    };
    let mut cells: Vec<Option<String>> = declared.columns.iter().map(cell).collect();
    let is_gone = declared.is_table && random.below(4) == 0;
    if is_gone {
        for (cell, column) in cells.iter_mut().zip(&declared.columns) {
            *cell = cell.take().filter(|_| column.is_key);
        }
    }
    let keys = declared.columns.iter().zip(&cells).filter(|(column, _)| column.is_key);
    let partition = match declared.is_table {
        true => keys.flat_map(|(_, cell)| cell.iter()).flat_map(|cell| cell.bytes()).map(u32::from).sum(),
        false => random.below(u64::from(declared.partitions)) as u32,
    };
    let second = times.start + (number / 2 + random.below(times.spread)) as i64;
    let micros = if random.below(5) == 0 { random.below(1_000_000) as i64 } else { 0 };
    let rowtime = second * S + micros;
    let event = LogEvent { relation, partition: partition % declared.partitions, cells, rowtime, is_gone };
    let ends_step = random.below(12) == 0;
    Step { event, ends_step, restarts: ends_step && random.below(2) == 0 }
}

/// An event of every partition of every stream that is far away in time.
pub(super) fn far(schema: &[Declared]) -> Vec<Step> {
    let of = |(relation, declared): (usize, &Declared)| -> Vec<Step> {
        let cells: Vec<Option<String>> =
            declared.columns.iter().map(|column| (column.name == "id").then(|| FAR.to_owned())).collect();
        let event =
            |partition| LogEvent { relation, partition, cells: cells.clone(), rowtime: FAR_TIME, is_gone: false };
        (0..declared.partitions).map(|at| Step { event: event(at), ends_step: false, restarts: false }).collect()
    };
    schema.iter().enumerate().filter(|(_, declared)| !declared.is_table).flat_map(of).collect()
}

impl Case {
    /// What a person needs to see of it.
    pub(super) fn text(&self) -> String {
        let mut lines: Vec<String> = self.schema.iter().map(|declared| format!("{};", declared.text())).collect();
        for Step { event, ends_step, restarts } in &self.steps {
            let cells: Vec<&str> = event.cells.iter().map(|cell| cell.as_deref().unwrap_or("∅")).collect();
            let after = match (ends_step, restarts) {
                (_, true) => " | restart",
                (true, false) => " |",
                _ => "",
            };
            let gone = if event.is_gone { " gone" } else { "" };
            let name = &self.schema[event.relation].name;
            let (seconds, partition) = (event.rowtime as f64 / S as f64, event.partition);
            lines.push(format!("{name}/{partition} ({}) at {seconds}{gone}{after}", cells.join(", ")));
        }
        lines.push(self.sql());
        lines.join("\n")
    }
}
