//! `/metrics`: counters of this process, and gauges of the system views, as Prometheus text.
//!
//! Owns the recorder and the names of the server's own metrics. Each number of a system view is a gauge named
//! after the view and the column, so that the two cannot differ: `millstream.queries.lag_rows` of query `q` is
//! `queries_lag_rows{name="q"}`. Leaves out who counts. A crash resets the counters, as scrapers expect.

use crate::engine::Engine;
use crate::env;
use crate::server::admin::AdminState;
use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use axum::extract::State;
use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Upper bounds of the buckets of durations: from a cached INSERT to a long query.
const SECONDS: &[f64] = &[0.000_25, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// Rows of a view that become gauges; a scrape must stay small even on a node of many topics.
const VIEW_ROWS_MAX: usize = 10_000;
/// The views whose numbers are gauges, with the columns that name a row.
const VIEWS: &[(&str, &[&str])] =
    &[("topics", &["name"]), ("partitions", &["topic", "partition"]), ("queries", &["name"]), ("shards", &["shard"])];

/// The process's recorder, installed by the first call.
pub(super) fn recorder() -> &'static PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER.get_or_init(|| {
        let builder = PrometheusBuilder::new();
        // The only error is an empty list of buckets.
        let builder = builder
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
            .unwrap_or_else(|_| PrometheusBuilder::new());
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is installed in this process; /metrics stays empty");
        }
        describe_gauge!("sessions_open", "Sessions of clients");
        describe_counter!("sessions_total", "Sessions opened since the start");
        describe_counter!("statements_executed_total", "Statements that succeeded");
        describe_counter!("statements_failed_total", "Errors sent to clients, by SQLSTATE");
        describe_counter!("rows_sent_total", "Rows sent to clients");
        describe_histogram!(
            "statement_duration_seconds",
            "From a statement's start to its last row, or the first part of its rows"
        );
        handle
    })
}

/// What the PostgreSQL server counts. Handles are looked up once.
pub(in crate::server) struct Meters {
    sessions_open: Gauge,
    sessions_total: Counter,
    statements_executed_total: Counter,
    statement_duration_seconds: Histogram,
    rows_sent_total: Counter,
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

impl Meters {
    /// The server's metrics, at zero if they are new.
    pub(in crate::server) fn new() -> Self {
        recorder();
        Self {
            sessions_open: gauge!("sessions_open"),
            sessions_total: counter!("sessions_total"),
            statements_executed_total: counter!("statements_executed_total"),
            statement_duration_seconds: histogram!("statement_duration_seconds"),
            rows_sent_total: counter!("rows_sent_total"),
        }
    }

    /// Counts a session until the guard is dropped.
    pub(in crate::server) fn session(&self) -> SessionGuard {
        self.sessions_open.increment(1.0);
        self.sessions_total.increment(1);
        SessionGuard(self.sessions_open.clone())
    }

    /// Starts timing a statement.
    pub(in crate::server) fn statement(&self) -> StatementTimer {
        StatementTimer {
            started: env::instant(),
            executed: self.statements_executed_total.clone(),
            duration: self.statement_duration_seconds.clone(),
        }
    }

    /// Counts an error a client was told of.
    pub(in crate::server) fn failed(&self, sqlstate: &'static str) {
        counter!("statements_failed_total", "sqlstate" => sqlstate).increment(1);
    }

    /// Counts rows.
    pub(in crate::server) fn rows_sent(&self, rows: u64) {
        self.rows_sent_total.increment(rows);
    }
}

/// An open session.
pub(in crate::server) struct SessionGuard(Gauge);

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// A running statement.
pub(in crate::server) struct StatementTimer {
    started: Instant,
    executed: Counter,
    duration: Histogram,
}

impl StatementTimer {
    /// The statement ended well.
    pub(in crate::server) fn succeeded(self) {
        self.executed.increment(1);
        self.duration.record(env::elapsed(self.started).as_secs_f64());
    }
}

/// The page.
pub(super) async fn scrape(State(state): State<AdminState>) -> ([(&'static str, &'static str); 1], String) {
    let mut page = recorder().render();
    if let Some(engine) = state.engine() {
        append_views(&engine, &mut page);
    }
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], page)
}

fn append_views(engine: &Arc<Engine>, page: &mut String) {
    for (view, names) in VIEWS {
        match engine.system_view(view) {
            Ok(batch) => append_gauges(view, names, &batch, page),
            Err(error) => tracing::warn!(view, %error, "a system view could not be read"),
        }
    }
}

/// One gauge per 64-bit column, one sample per row.
fn append_gauges(view: &str, names: &[&str], batch: &RecordBatch, page: &mut String) {
    let labels: Vec<String> = (0..batch.num_rows().min(VIEW_ROWS_MAX)).map(|row| labels(names, batch, row)).collect();
    for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let Some(values) = array.as_primitive_opt::<Int64Type>() else { continue };
        let metric = format!("{view}_{}", field.name());
        // Writing to a string does not fail.
        let _ = writeln!(page, "# TYPE {metric} gauge");
        for (row, labels) in labels.iter().enumerate().filter(|(row, _)| values.is_valid(*row)) {
            let _ = writeln!(page, "{metric}{{{labels}}} {}", values.value(row));
        }
        page.push('\n');
    }
}

fn labels(names: &[&str], batch: &RecordBatch, row: usize) -> String {
    let label = |name: &&str| {
        let array = batch.column_by_name(name)?;
        let value = match array.data_type() {
            DataType::Utf8 => array.as_string::<i32>().value(row).to_owned(),
            DataType::Int32 => array.as_primitive::<Int32Type>().value(row).to_string(),
            _ => return None,
        };
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        Some(format!("{name}=\"{value}\""))
    };
    names.iter().filter_map(label).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int32Array, Int64Array, StringArray};

    #[test]
    fn numbers_of_a_view_are_gauges_labelled_by_its_names() {
        let batch = RecordBatch::try_from_iter([
            ("topic", Arc::new(StringArray::from(vec!["a\"b", "c"])) as _),
            ("partition", Arc::new(Int32Array::from(vec![0, 1])) as _),
            ("events", Arc::new(Int64Array::from(vec![Some(7), None])) as _),
        ])
        .unwrap();
        let mut page = String::new();
        append_gauges("partitions", &["topic", "partition"], &batch, &mut page);
        assert_eq!(page, "# TYPE partitions_events gauge\npartitions_events{topic=\"a\\\"b\",partition=\"0\"} 7\n\n");
    }
}
