//! SELECTs as text, with the columns, rows and errors they give, over rows in memory.
//!
//! Each file of cases is a list of blocks: `> statement` on one or more lines, then either the columns and rows, or
//! `! SQLSTATE message`, with `@ position` and `? hint` where they matter.

mod continuous;
mod interrupts;
mod replace;
mod source;
mod units;

use super::{PlanContext, plan_select};
use crate::dialect::{self, Select, Statement};
use crate::error::SqlError;
use crate::exec::execute;
use crate::plan::ResultColumn;
use crate::types::ColumnEncoder;
use arrow::array::RecordBatch;
use datafusion::common::ScalarValue;
use futures::StreamExt;
use millstream_catalog::SqlType;

/// The query `sql`, parsed.
///
/// # Errors
/// Those of the dialect.
pub(super) fn parse(sql: &str) -> Result<Select, SqlError> {
    match dialect::parse(sql)?.into_iter().next().map(|parsed| parsed.statement) {
        Some(Statement::Select(select)) => Ok(*select),
        other => panic!("not a query: {other:?}"),
    }
}

/// The query `sql`, which is known to parse.
pub(super) fn parsed(sql: &str) -> Select {
    parse(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

/// Plans and runs `sql`.
pub(super) async fn run(
    context: &PlanContext,
    sql: &str,
    params: Vec<ScalarValue>,
    types: &[Option<SqlType>],
) -> Result<(Vec<ResultColumn>, Vec<RecordBatch>), SqlError> {
    let planned = plan_select(context, &parse(sql)?, types)?;
    let mut stream = execute(context, &planned, params).await?;
    let mut batches = Vec::new();
    while let Some(batch) = stream.next().await {
        batches.push(batch?);
    }
    Ok((planned.columns, batches))
}

fn shown(columns: &[ResultColumn], batches: &[RecordBatch]) -> String {
    let head: Vec<String> = columns.iter().map(|column| format!("{} {}", column.name, column.sql_type)).collect();
    let mut out = head.join(" | ") + "\n";
    for batch in batches {
        let mut encoders = Vec::new();
        for (array, column) in batch.columns().iter().zip(columns) {
            assert_eq!(array.data_type(), &column.sql_type.arrow(), "column {}", column.name);
            encoders.push(ColumnEncoder::new(array.as_ref(), &column.sql_type));
        }
        for row in 0..batch.num_rows() {
            let cells: Vec<String> = encoders
                .iter()
                .map(|encoder| {
                    let mut text = Vec::new();
                    match encoder.text(row, &mut text) {
                        true => String::from_utf8(text).unwrap(),
                        false => "∅".to_owned(),
                    }
                })
                .collect();
            out += &(cells.join(" | ") + "\n");
        }
    }
    out
}

fn error_shown(error: &SqlError) -> String {
    let mut out = format!("! {} {}", error.sqlstate.code(), error.message);
    if let Some(position) = error.position {
        out += &format!(" @ {position}");
    }
    for banned in ["DataFusion", "Arrow", "Utf8", "Int64", "Int32", "Float64", "Expr"] {
        let all = format!("{} {:?} {:?}", error.message, error.detail, error.hint);
        assert!(!all.contains(banned), "{banned} leaks: {all}");
    }
    out + "\n"
}

async fn check_file(name: &str, text: &str) {
    let context = source::context();
    let mut wrong = Vec::new();
    let mut actual_file = String::new();
    for block in text.split("\n\n").map(str::trim).filter(|block| !block.is_empty()) {
        let (statement, expected): (Vec<&str>, Vec<&str>) = block.lines().partition(|line| line.starts_with("> "));
        let sql: Vec<&str> = statement.iter().filter_map(|line| line.strip_prefix("> ")).collect();
        let sql = sql.join("\n");
        let actual = match run(&context, &sql.replace('\n', " "), Vec::new(), &[]).await {
            Ok((columns, batches)) => shown(&columns, &batches),
            Err(error) => error_shown(&error),
        };
        let expected = expected.join("\n") + "\n";
        if actual != expected {
            wrong.push(format!("{sql}\nexpected:\n{expected}actual:\n{actual}"));
        }
        actual_file += &format!("{}\n{actual}\n", statement.join("\n"));
    }
    if !wrong.is_empty() {
        if let Some(path) = option_env!("CASES_OUT") {
            println!("write {path}");
        }
        println!("=====\n{actual_file}=====");
        panic!("{} cases of {name} differ:\n\n{}", wrong.len(), wrong.join("\n"));
    }
}

#[tokio::test]
async fn queries_give_postgresql_names_types_and_rows() {
    check_file("select", include_str!("select.txt")).await;
}

#[tokio::test]
async fn queries_of_many_kinds_work() {
    check_file("more", include_str!("more.txt")).await;
}

#[tokio::test]
async fn operators_and_casts_follow_postgresql() {
    check_file("operators", include_str!("operators.txt")).await;
}

#[tokio::test]
async fn mistakes_give_sqlstate_words_and_place() {
    check_file("errors", include_str!("errors.txt")).await;
}
