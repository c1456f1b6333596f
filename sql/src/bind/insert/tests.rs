//! Tests of INSERT: column lists, literals, parameters, defaults, expressions, assignment from a SELECT.

use super::*;
use crate::dialect::ast::Position;
use crate::plan::ResultColumn;
use crate::types::ColumnEncoder;
use arrow::array::{Array, Int64Array, RecordBatch, StringArray};
use datafusion::common::ScalarValue;
use millstream_catalog::model::{Name, ShardId, Timestamp, TopicId};
use millstream_catalog::{Column, RelationKind, Schema, TopicOptions};
use sqlparser::ast::Expr;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use std::sync::Arc;

/// a integer not null, b varchar(3), c timestamptz default now(), d numeric(5,2) default 1.5, e boolean
fn relation() -> Relation {
    let column = |name: &str, sql_type, default: Option<&str>| Column {
        name: Name::new(name).unwrap(),
        sql_type,
        is_nullable: name != "a",
        is_key: false,
        default: default.map(str::to_owned),
        is_hidden: false,
        is_headers: false,
    };
    let columns = vec![
        column("a", SqlType::Integer, None),
        column("b", SqlType::Varchar(3), None),
        column("c", SqlType::TimestampTz, Some("now()")),
        column("d", SqlType::Numeric { precision: 5, scale: 2 }, Some("1.5")),
        column("e", SqlType::Boolean, None),
    ];
    Relation {
        id: TopicId::new(1),
        name: Name::new("s").unwrap(),
        kind: RelationKind::Stream,
        schema: Schema { columns },
        timestamp: None,
        watermark_delay: None,
        options: TopicOptions::default(),
        shard: ShardId::new(1),
        query: None,
        created_at: Timestamp::from_micros(0),
        sql: String::new(),
        fills: Default::default(),
        row_ids: None,
        is_materialized: false,
    }
}

fn idents(names: &str) -> Vec<Ident> {
    let ident = |(i, name): (usize, &str)| Ident { name: Name::new(name).unwrap(), position: Position::new(i + 1) };
    names.split(',').enumerate().map(ident).collect()
}

/// The rows of `(…), (…)`.
fn values(text: &str) -> Vec<Vec<Expr>> {
    let mut parser = Parser::new(&PostgreSqlDialect {}).try_with_sql(text).unwrap();
    let mut rows = Vec::new();
    loop {
        parser.expect_token(&sqlparser::tokenizer::Token::LParen).unwrap();
        rows.push(parser.parse_comma_separated(Parser::parse_expr).unwrap());
        parser.expect_token(&sqlparser::tokenizer::Token::RParen).unwrap();
        if !parser.consume_token(&sqlparser::tokenizer::Token::Comma) {
            return rows;
        }
    }
}

/// Stands for DataFusion: knows `now()`, `1 + 1`, `'x' || 'y'` and `$1 + 1`.
fn evaluate(expr: &Expr, params: &[ScalarValue]) -> Result<ScalarValue, SqlError> {
    match expr.to_string().as_str() {
        "now()" => Ok(ScalarValue::TimestampMicrosecond(Some(1_000_000), Some("UTC".into()))),
        "1 + 1" => Ok(ScalarValue::Int64(Some(2))),
        "'x' || 'y'" => Ok(ScalarValue::Utf8(Some("xy".into()))),
        "$1 + 1" => match &params[0] {
            ScalarValue::Int32(Some(value)) => Ok(ScalarValue::Int64(Some(i64::from(*value) + 1))),
            other => Err(SqlError::internal(format!("{other}"))),
        },
        other => Err(SqlError::internal(format!("{other} is not known here"))),
    }
}

fn plan(columns: &str, rows: &str, declared: &[Option<SqlType>]) -> Result<InsertPlan, SqlError> {
    let columns = idents(columns);
    InsertPlan::plan(&relation(), Some(&columns), &values(rows), declared, &mut |expr, _| evaluate(expr, &[]))
}

fn run(plan: &InsertPlan, params: &[Param]) -> Result<Vec<String>, SqlError> {
    let rows = plan.rows(params, &mut |expr, _, params| evaluate(expr, params))?;
    Ok(show(&rows))
}

fn show(rows: &InsertRows) -> Vec<String> {
    let relation = relation();
    let mut lines = Vec::new();
    for row in 0..rows.batch.num_rows() {
        let mut line = Vec::new();
        for (column, array) in relation.schema.columns.iter().zip(rows.batch.columns()) {
            if !ColumnEncoder::new(array.as_ref(), &column.sql_type).text(row, &mut line) {
                line.extend_from_slice("∅".as_bytes());
            }
            line.push(b'|');
        }
        lines.push(String::from_utf8(line).unwrap());
    }
    lines
}

fn text(value: &str) -> Param {
    Param { is_binary: false, value: Some(Bytes::copy_from_slice(value.as_bytes())) }
}

#[test]
fn literals_defaults_and_expressions() {
    let plan = plan("b,a,e,d", "('x', 1, true, 2), (NULL, -7, 'no', default), ('ab ', 1 + 1, NULL, 1.005)", &[]);
    let plan = plan.unwrap();
    assert!(plan.needs_eval());
    assert_eq!(
        run(&plan, &[]).unwrap(),
        [
            "1|x|1970-01-01 00:00:01+00|2.00|t|",
            "-7|∅|1970-01-01 00:00:01+00|1.50|f|",
            "2|ab |1970-01-01 00:00:01+00|1.01|∅|",
        ]
    );
    let defaults = InsertPlan::defaults(&relation(), &[], &mut |expr, _| evaluate(expr, &[])).unwrap();
    assert_eq!(run(&defaults, &[]).unwrap_err().sqlstate, SqlState::NotNullViolation);
}

#[test]
fn parameters_take_the_types_of_their_columns() {
    let plan = plan("a,b,c,rowtime", "($1, $2, $3, $4), ($1 + 1, 'k', $3, NULL)", &[]).unwrap();
    assert_eq!(plan.params(), [SqlType::Integer, SqlType::Varchar(3), SqlType::TimestampTz, SqlType::TimestampTz]);
    let params = [
        Param { is_binary: true, value: Some(Bytes::from_static(&[0, 0, 0, 5])) },
        text("abc"),
        Param { is_binary: false, value: None },
        text("2001-01-01 00:47:00"),
    ];
    let rows = plan.rows(&params, &mut |expr, _, params| evaluate(expr, params)).unwrap();
    assert_eq!(show(&rows), ["5|abc|∅|1.50|∅|", "6|k|∅|1.50|∅|"]);
    assert_eq!(rows.rowtime.unwrap().null_count(), 1);
    assert_eq!(run(&plan, &params[..3]).unwrap_err().sqlstate, SqlState::ProtocolViolation);
}

#[test]
fn only_parameters_need_no_evaluation() {
    let plan = plan("a,b,c", "($1, $2, $3)", &[]).unwrap();
    assert!(!plan.needs_eval());
    let rows = plan.rows(&[text("1"), text("x"), text("2001-01-01")], &mut |_, _, _| Err(SqlError::internal("called")));
    assert_eq!(show(&rows.unwrap()), ["1|x|2001-01-01 00:00:00+00|1.50|∅|"]);
}

#[test]
fn stable_expressions_are_evaluated_once_for_a_statement() {
    let plan = plan("a", "(1), (2), (3)", &[]).unwrap();
    let mut calls = 0;
    plan.rows(&[], &mut |expr, _, params| {
        calls += 1;
        evaluate(expr, params)
    })
    .unwrap();
    assert_eq!(calls, 1);
}

#[test]
fn declared_parameter_types_are_assigned() {
    let bigint = Param { is_binary: true, value: Some(Bytes::copy_from_slice(&7i64.to_be_bytes())) };
    let plan1 = plan("a,c", "($1, NULL)", &[Some(SqlType::BigInt)]).unwrap();
    assert_eq!(run(&plan1, &[bigint]).unwrap(), ["7|∅|∅|1.50|∅|"]);
    let wide = Param { is_binary: true, value: Some(Bytes::copy_from_slice(&i64::MAX.to_be_bytes())) };
    let error = run(&plan1, &[wide]).unwrap_err();
    assert_eq!((error.sqlstate, error.message.as_str()), (SqlState::NumericValueOutOfRange, "integer out of range"));
    let error = plan("a,c", "($1, NULL)", &[Some(SqlType::Text)]).unwrap_err();
    assert_eq!(error.sqlstate, SqlState::DatatypeMismatch);
    assert_eq!(plan("a,c", "($2, NULL)", &[]).unwrap_err().sqlstate, SqlState::IndeterminateDatatype);
    assert_eq!(plan("a,c", "($0, NULL)", &[]).unwrap_err().sqlstate, SqlState::UndefinedParameter);
    assert_eq!(plan("a,c", "($99999999999, NULL)", &[]).unwrap_err().sqlstate, SqlState::UndefinedParameter);
}

#[test]
fn refusals_are_postgresql_s() {
    for (columns, rows, code, message) in [
        ("a,x", "(1, 2)", "42703", "column \"x\" of relation \"s\" does not exist"),
        ("a,a", "(1, 2)", "42701", "column \"a\" specified more than once"),
        ("a", "(1, 2)", "42601", "INSERT has more expressions than target columns"),
        ("a,b", "(1)", "42601", "INSERT has more target columns than expressions"),
        ("a,b", "(1, 'x'), (1)", "42601", "INSERT has more target columns than expressions"),
        ("a", "('x')", "22P02", "invalid input syntax for type integer: \"x\""),
        ("a", "(2147483648)", "22003", "integer out of range"),
        ("a", "(1e400)", "22003", "integer out of range"),
        ("a", "(true)", "42804", "column \"a\" is of type integer but expression is of type boolean"),
        ("e", "(1)", "42804", "column \"e\" is of type boolean but expression is of type integer"),
        ("c", "(1.5)", "42804", "column \"c\" is of type timestamp with time zone but expression is of type numeric"),
        ("a", "('x' || 'y')", "42804", "column \"a\" is of type integer but expression is of type text"),
        ("b", "('abcd')", "22001", "value too long for type character varying(3)"),
        ("d", "(1000)", "22003", "numeric field overflow"),
        ("a", "(nope)", "42703", "column \"nope\" does not exist"),
        ("rowtime", "(default)", "0A000", "DEFAULT for rowtime is not supported"),
    ] {
        let error = plan(columns, rows, &[]).unwrap_err();
        assert_eq!((error.sqlstate.code(), error.message.as_str()), (code, message), "{columns} {rows}");
        assert!(error.position.is_some(), "{columns} {rows}");
    }
}

#[test]
fn not_null_names_row_and_column() {
    let plan = plan("a,c", "(1, NULL), ($1, NULL)", &[]).unwrap();
    let error = run(&plan, &[Param { is_binary: false, value: None }]).unwrap_err();
    assert_eq!(error.message, "null value in column \"a\" of relation \"s\" violates not-null constraint");
    assert_eq!(error.detail.as_deref(), Some("row 2, column \"a\""));
    let error = run(&plan, &[text("x")]).unwrap_err();
    assert_eq!(error.detail.as_deref(), Some("row 2, column \"a\""));
}

#[test]
fn rows_that_are_too_large_are_named() {
    let mut wide = relation();
    wide.schema.columns[1].sql_type = SqlType::Text;
    wide.schema.columns[4].sql_type = SqlType::Text;
    let columns = idents("a,b,e,c");
    let plan =
        InsertPlan::plan(&wide, Some(&columns), &values("(1, 'x', 'y', NULL), (2, $1, $2, NULL)"), &[], &mut |e, _| {
            evaluate(e, &[])
        });
    let half = text(&"x".repeat(17 << 20));
    let error = plan.unwrap().rows(&[half.clone(), half], &mut |_, _, _| Ok(ScalarValue::Null)).unwrap_err();
    assert_eq!(error.sqlstate, SqlState::ProgramLimitExceeded);
    assert!(error.detail.unwrap().starts_with("row 2 has "));
}

#[test]
fn event_time_of_a_column_is_not_written_twice() {
    let mut timed = relation();
    timed.timestamp = Some(2);
    let error = resolve(&timed, Some(&idents("a,rowtime"))).unwrap_err();
    assert_eq!((error.sqlstate, error.position), (SqlState::FeatureNotSupported, Some(2)));
}

fn result(name: &str, sql_type: SqlType) -> ResultColumn {
    ResultColumn { name: name.into(), sql_type, source: None }
}

fn batch() -> RecordBatch {
    let a: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(2)]));
    let b: ArrayRef = Arc::new(StringArray::from(vec!["true", "f"]));
    RecordBatch::try_from_iter_with_nullable([("a", a, true), ("b", b, true)]).unwrap()
}

#[test]
fn selects_are_assigned() {
    let columns = [result("a", SqlType::BigInt), result("b", SqlType::Text)];
    let names = idents("a,e");
    let mut eval = |expr: &Expr, _: &SqlType| evaluate(expr, &[]);
    let mut plan = InsertSelect::plan(&relation(), Some(&names), &columns, &[false, true], &mut eval).unwrap();
    let rows = plan.rows(&batch()).unwrap();
    assert_eq!(show(&rows), ["1|∅|1970-01-01 00:00:01+00|1.50|t|", "2|∅|1970-01-01 00:00:01+00|1.50|f|"]);

    let mut typed = InsertSelect::plan(&relation(), Some(&names), &columns, &[], &mut eval).unwrap();
    let error = typed.rows(&batch()).unwrap_err();
    assert_eq!(error.message, "column \"e\" is of type boolean but expression is of type text");
    assert!(error.hint.is_some());
    let error = assign(&batch(), &columns, &relation(), Some(&names)).unwrap_err();
    assert_eq!(error.sqlstate, SqlState::FeatureNotSupported);
    let error = InsertSelect::plan(&relation(), Some(&idents("a")), &columns, &[], &mut eval).unwrap_err();
    assert_eq!(error.message, "INSERT has more expressions than target columns");
}

#[test]
fn selects_count_rows_over_batches() {
    let columns = [result("a", SqlType::BigInt), result("b", SqlType::Text)];
    let mut eval = |expr: &Expr, _: &SqlType| evaluate(expr, &[]);
    let names = idents("d,b");
    let mut plan = InsertSelect::plan(&relation(), Some(&names), &columns, &[], &mut eval).unwrap();
    let error = plan.rows(&batch()).unwrap_err();
    assert_eq!(error.detail.as_deref(), Some("row 1, column \"b\""));
    let error = plan.rows(&batch()).unwrap_err();
    assert_eq!(error.detail.as_deref(), Some("row 3, column \"b\""));
}

#[test]
fn literal_columns_are_found() {
    let select = |text: &str| {
        let parsed = crate::dialect::parse(text).unwrap().remove(0);
        let crate::dialect::Statement::Select(select) = parsed.statement else { panic!("{text}") };
        literal_columns(&select)
    };
    assert_eq!(select("SELECT 'x', a, ('y') AS z, 1, NULL FROM t"), [true, false, true, false, true]);
    assert!(select("SELECT *, 'x' FROM t").is_empty());
    assert!(select("VALUES ('x')").is_empty());
}
