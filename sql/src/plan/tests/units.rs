//! Parameters, constants, pushdown, metadata counts, memory, EXPLAIN.

use super::source::{self, Memory};
use super::{parsed, run};
use crate::exec::QueryMemory;
use crate::exec::{ExplainMode, explain};
use crate::plan::{PlanContext, PlanSettings, eval_constant, plan_select};
use crate::ports::ScanRequest;
use datafusion::common::ScalarValue;
use millstream_catalog::SqlType;
use millstream_catalog::model::{ByteSize, Offset, PartitionId, TopicId};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use std::sync::Arc;

fn params(sql: &str, declared: &[Option<SqlType>]) -> String {
    let planned =
        plan_select(&source::context(), &parsed(sql), declared).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    planned.params.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[test]
fn parameters_take_the_type_of_their_place() {
    for (sql, types) in [
        ("SELECT $1", "text"),
        ("SELECT $1::integer", "integer"),
        ("SELECT id FROM flights WHERE id = $1", "bigint"),
        ("SELECT id FROM flights WHERE delay > $2 AND origin = $1", "text, integer"),
        ("SELECT id FROM flights WHERE at BETWEEN $1 AND $2", "timestamp with time zone, timestamp with time zone"),
        ("SELECT id FROM flights WHERE fare < $1", "numeric(10,2)"),
        ("SELECT id FROM flights WHERE id IN ($1, $2)", "bigint, bigint"),
        ("SELECT id FROM flights WHERE origin LIKE $1 LIMIT $2 OFFSET $3", "text, bigint, bigint"),
        ("SELECT id FROM flights WHERE at > now() - $1::interval", "interval"),
        ("SELECT CASE WHEN ok THEN $1 ELSE delay END FROM flights", "integer"),
        ("SELECT id FROM flights WHERE delay = $1 AND id = $1", "integer"),
        ("SELECT $2::text", "text, text"),
    ] {
        assert_eq!(params(sql, &[]), types, "{sql}");
    }
    assert_eq!(params("SELECT $1", &[Some(SqlType::Date)]), "date");
}

#[tokio::test]
async fn values_of_parameters_reach_the_plan() {
    let context = source::context();
    let values = vec![ScalarValue::Int32(Some(15)), ScalarValue::Int64(Some(1))];
    let (_, batches) =
        run(&context, "SELECT id FROM flights WHERE delay > $1 ORDER BY id LIMIT $2", values, &[]).await.unwrap();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1);
    let error = run(&context, "SELECT $1::int", Vec::new(), &[]).await.unwrap_err();
    assert_eq!(error.sqlstate.code(), "08P01");
}

fn constant(sql: &str, target: &SqlType) -> Result<ScalarValue, String> {
    let expr = Parser::new(&PostgreSqlDialect {}).try_with_sql(sql).unwrap().parse_expr().unwrap();
    eval_constant(&source::context(), &expr, target, &[])
        .map_err(|error| format!("{} {}", error.sqlstate.code(), error.message))
}

#[test]
fn constants_are_assigned_to_their_column() {
    assert_eq!(constant("1 + 2", &SqlType::BigInt), Ok(ScalarValue::Int64(Some(3))));
    assert_eq!(constant("1.5 + 1", &SqlType::Integer), Ok(ScalarValue::Int32(Some(3))));
    assert_eq!(constant("'7'", &SqlType::SmallInt), Ok(ScalarValue::Int16(Some(7))));
    assert_eq!(constant("null", &SqlType::Text), Ok(ScalarValue::Utf8(None)));
    assert_eq!(constant("upper('a') || 1", &SqlType::Text), Ok(ScalarValue::Utf8(Some("A1".to_owned()))));
    assert_eq!(
        constant("now() + interval '1 second'", &SqlType::TimestampTz),
        Ok(ScalarValue::TimestampMicrosecond(Some(1_704_067_201_000_000), Some("UTC".into())))
    );
    assert_eq!(constant("100000", &SqlType::SmallInt), Err("22003 smallint out of range".to_owned()));
    assert_eq!(constant("1 / 0", &SqlType::Integer), Err("22012 division by zero".to_owned()));
    assert_eq!(constant("x + 1", &SqlType::Integer), Err("42703 column \"x\" does not exist".to_owned()));
    assert_eq!(constant("upper('x')", &SqlType::Integer).unwrap_err()[..5].to_owned(), "42804");
    assert_eq!(constant("(SELECT 1)", &SqlType::Integer).unwrap_err()[..5].to_owned(), "0A000");
    assert_eq!(constant("count(*)", &SqlType::Integer).unwrap_err()[..5].to_owned(), "0A000");
}

/// The context, and what its scans were asked for.
fn watched() -> (PlanContext, Arc<Memory>) {
    let context = source::context();
    let fresh = Memory { rows: source::rows(), requests: Default::default() };
    let memory = Arc::new(fresh);
    (PlanContext { source: Arc::clone(&memory) as _, ..context }, memory)
}

async fn requests(sql: &str) -> Vec<ScanRequest> {
    let (context, memory) = watched();
    run(&context, sql, Vec::new(), &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let mut requests = memory.requests.lock().unwrap();
    std::mem::take(&mut *requests)
}

#[tokio::test]
async fn bounds_on_offset_partition_and_time_reach_the_scan() {
    let request =
        requests("SELECT id FROM flights WHERE rowoffset >= 1 AND rowoffset < 10 + 10 AND delay > 3").await.remove(0);
    assert_eq!(request.offsets, Some(Offset::new(1)..Offset::new(20)));
    let request =
        requests("SELECT id FROM flights WHERE rowpartition = 1 AND rowoffset BETWEEN 2 AND 3").await.remove(0);
    assert_eq!(
        (request.offsets, request.partitions),
        (Some(Offset::new(2)..Offset::new(4)), Some(vec![PartitionId::new(1)]))
    );
    let request =
        requests("SELECT id FROM flights WHERE rowtime > '2024-01-01' AND rowtime <= '2024-01-02'").await.remove(0);
    let micros = |time: Option<millstream_catalog::model::Timestamp>| time.map(|time| time.micros());
    let day = 86_400_000_000;
    let start = 1_704_067_200_000_000;
    assert_eq!((micros(request.rowtime.0), micros(request.rowtime.1)), (Some(start + 1), Some(start + day)));
    let request =
        requests("SELECT id FROM flights WINDOW TUMBLING (SIZE 60 SECONDS) WHERE windowstart = '2024-01-01 00:01:00Z'")
            .await
            .remove(0);
    assert_eq!(micros(request.rowtime.0), Some(start + 60_000_000));
}

#[tokio::test]
async fn only_needed_columns_and_rows_are_asked_for() {
    let request = requests("SELECT delay FROM flights WHERE id = 3").await.remove(0);
    assert_eq!(request.projection.len(), 2);
    let request = requests("SELECT delay FROM flights LIMIT 2").await.remove(0);
    assert_eq!(request.limit, Some(2));
    let request = requests("SELECT delay FROM flights WHERE id > 1 LIMIT 2").await.remove(0);
    assert_eq!(request.limit, None);
}

#[tokio::test]
async fn rows_of_a_table_are_opened_once_though_several_threads_read_them() {
    let mut rows = source::rows();
    let airports = rows.get_mut("airports").unwrap();
    airports.push(airports[0].clone());
    let memory = Arc::new(Memory { rows, requests: Default::default() });
    let settings = Arc::new(PlanSettings { target_partitions: 2, ..PlanSettings::default() });
    let context = PlanContext { source: Arc::clone(&memory) as _, settings, ..source::context() };
    let planned = plan_select(&context, &parsed("SELECT name FROM airports"), &[]).unwrap();
    let text = explain(&context, &planned, Vec::new(), ExplainMode::Plan).await.unwrap().join("\n");
    assert!(text.contains("InOrder: parallel=2") && text.contains("parts=2"), "{text}");
    memory.requests.lock().unwrap().clear();
    run(&context, "SELECT name FROM airports", Vec::new(), &[]).await.unwrap();
    assert_eq!(memory.requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn count_comes_from_metadata() {
    let context = source::context();
    let planned = plan_select(&context, &parsed("SELECT count(*) FROM flights"), &[]).unwrap();
    let lines = explain(&context, &planned, Vec::new(), ExplainMode::Plan).await.unwrap();
    assert!(!lines.join("\n").contains("Scan"), "{lines:?}");
}

#[tokio::test]
async fn explain_names_the_relation_and_what_was_pushed_down() {
    let context = source::context();
    let planned =
        plan_select(&context, &parsed("SELECT delay FROM flights WHERE rowoffset < 5 AND rowpartition IN (1)"), &[])
            .unwrap();
    let text = explain(&context, &planned, Vec::new(), ExplainMode::Plan).await.unwrap().join("\n");
    assert!(text.contains("Scan: flights, columns=[delay], offsets=0..5, partitions=[1], parallel=1"), "{text}");
    let text = explain(&context, &planned, Vec::new(), ExplainMode::Analyze).await.unwrap().join("\n");
    assert!(text.contains("  Read: 1 segments, 0 batches, 0 rows, 0 bytes; skipped: 1 segments"), "{text}");
    assert!(text.contains("parallel=1  (actual time=") && text.contains(" rows=2)"), "{text}");
}

#[tokio::test]
async fn memory_is_bounded() {
    let sql = "SELECT a.n, count(*) FROM generate_series(1, 100000) AS a(n) GROUP BY a.n ORDER BY 1";
    for (node, query, which) in [(200_000, 100_000, "one query"), (100_000, 1 << 30, "all queries together")] {
        let memory = QueryMemory::new(ByteSize::new(node), ByteSize::new(query));
        let settings = PlanSettings { memory: memory.clone(), ..PlanSettings::default() };
        let context = PlanContext { settings: Arc::new(settings), ..source::context() };
        let error = run(&context, sql, Vec::new(), &[]).await.unwrap_err();
        assert_eq!(error.sqlstate.code(), "53200", "{error:?}");
        assert_eq!(error.detail.unwrap(), format!("{which} may hold 100000 bytes"));
        assert!(error.hint.unwrap().contains("--memory"));
        assert_eq!(memory.used(), ByteSize::ZERO);
    }
}

#[test]
fn result_columns_know_their_origin() {
    let planned = plan_select(
        &source::context(),
        &parsed("SELECT f.delay, f.delay + 1, rowtime FROM flights f WHERE id > 0 ORDER BY 1"),
        &[],
    )
    .unwrap();
    let sources: Vec<_> = planned.columns.iter().map(|column| column.source).collect();
    assert_eq!(sources, vec![Some((TopicId::new(1), 3)), None, None]);
}
