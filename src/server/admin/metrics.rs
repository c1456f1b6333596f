//! `/metrics`: counters of this process, and gauges of the system views, as Prometheus text.
//!
//! Owns the recorder and the names of the server's own metrics. Each number of a system view is a gauge named
//! after the view and the column, or a counter if it only grows, so that the two cannot differ:
//! `millstream.queries.lag_rows` of query `q` is `queries_lag_rows{name="q"}`, its `steps` are
//! `queries_steps_total{name="q"}`. Leaves out who counts. A crash resets the counters, as scrapers expect.

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
const VIEWS: &[(&str, &[&str])] = &[
    ("topics", &["name"]),
    ("partitions", &["topic", "partition"]),
    ("queries", &["name"]),
    ("consumer_groups", &["group_name"]),
    ("consumer_group_offsets", &["group_name", "topic", "partition"]),
    ("shards", &["shard"]),
    ("memory", &["share"]),
];

/// Columns of the views that only grow, with the names of their counters.
const COUNTERS: &[(&str, &str, &str)] = &[
    ("partitions", "offset_end", "events_appended_total"),
    ("shards", "rewritten_bytes", "shards_rewritten_bytes_total"),
    ("shards", "rewritten_segments", "shards_rewritten_segments_total"),
    ("shards", "removed_bytes", "shards_removed_bytes_total"),
    ("shards", "removed_segments", "shards_removed_segments_total"),
    ("queries", "steps", "queries_steps_total"),
    ("queries", "input_rows", "queries_input_rows_total"),
    ("queries", "output_rows", "queries_output_rows_total"),
    ("queries", "late_rows", "queries_late_rows_total"),
    ("queries", "skipped_rows", "queries_skipped_rows_total"),
];

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
        append_log(&engine, &mut page);
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

/// The write-ahead log of the node.
fn append_log(engine: &Engine, page: &mut String) {
    let stats = engine.log_stats();
    let metrics = [
        ("log_appends_total", "counter", "Appends to the write-ahead log that were answered", stats.appends),
        ("log_syncs_total", "counter", "Syncs of the write-ahead log", stats.syncs),
        ("log_written_bytes_total", "counter", "Bytes written to the write-ahead log", stats.bytes_written.value()),
        ("log_size_bytes", "gauge", "Bytes of the files of the write-ahead log", stats.bytes.value()),
        ("log_disk_full", "gauge", "1 while no file can be allocated for the log", u64::from(stats.is_disk_full)),
    ];
    for (name, kind, help, value) in metrics {
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    }
}

/// One gauge or counter per 64-bit column, one sample per row.
fn append_gauges(view: &str, names: &[&str], batch: &RecordBatch, page: &mut String) {
    let labels: Vec<String> = (0..batch.num_rows().min(VIEW_ROWS_MAX)).map(|row| labels(names, batch, row)).collect();
    for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let Some(values) = array.as_primitive_opt::<Int64Type>() else { continue };
        let counter = COUNTERS.iter().find(|(of, column, _)| of == &view && column == field.name());
        let (metric, kind) = match counter {
            Some((_, _, metric)) => ((*metric).to_owned(), "counter"),
            None => (format!("{view}_{}", field.name()), "gauge"),
        };
        // Writing to a string does not fail.
        let _ = writeln!(page, "# HELP {metric} Column {} of millstream.{view}\n# TYPE {metric} {kind}", field.name());
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
        assert_eq!(
            page,
            "# HELP partitions_events Column events of millstream.partitions\n# TYPE partitions_events gauge\n\
             partitions_events{topic=\"a\\\"b\",partition=\"0\"} 7\n\n"
        );
    }
}
