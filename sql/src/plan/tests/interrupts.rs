//! Queries that work for long on little: they look up in the middle, where they stop.

use super::{run, source};
use crate::exec::{Interrupts, StopOnDrop};
use crate::plan::{PlanContext, PlanSettings};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Of each side: millions of pairs, in a single batch of some thousand.
const SIDES: &str = "generate_series(1, 3000) AS a(x), generate_series(1, 3000) AS b(y)";

/// How often a query looked up before it ended or, at the latest then, was stopped.
async fn looked_up(sql: &str, most: usize) -> (usize, Result<(), String>) {
    let (count, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None::<StopOnDrop>)));
    let (counted, stopping) = (Arc::clone(&count), Arc::clone(&stop));
    let interrupts = Arc::new(Interrupts::new(move || {
        if counted.fetch_add(1, Ordering::Relaxed) + 1 == most {
            drop(stopping.lock().unwrap().take());
        }
    }));
    *stop.lock().unwrap() = Some(interrupts.stop_on_drop());
    let settings = PlanSettings { interrupts, target_partitions: 1, ..PlanSettings::default() };
    let context = PlanContext { settings: Arc::new(settings), ..source::context() };
    let ended = run(&context, sql, Vec::new(), &[]).await;
    (count.load(Ordering::Relaxed), ended.map(drop).map_err(|error| error.sqlstate.code().to_owned()))
}

#[tokio::test]
async fn a_query_stops_in_the_middle_of_its_work() {
    let on_one_key = "(SELECT x % 1 AS k, x FROM generate_series(1, 3000) AS g(x))";
    for sql in [
        format!("SELECT count(*) FROM {SIDES} WHERE x + 1 < y"),
        format!("SELECT count(*) FROM {SIDES} WHERE x + y < 0"),
        format!("SELECT count(*) FROM {SIDES}"),
        format!("SELECT x, y FROM {SIDES} ORDER BY x + y LIMIT 1"),
        "SELECT count(*) FROM generate_series(1, 3000) AS a(x) LEFT JOIN generate_series(1, 3000) AS b(y) ON x + y < 0"
            .to_owned(),
        "SELECT count(*) FROM generate_series(1, 3000) AS a(x) WHERE NOT EXISTS \
         (SELECT 1 FROM generate_series(1, 3000) AS b(y) WHERE x + y < 0)"
            .to_owned(),
        format!("SELECT count(*) FROM {on_one_key} AS a JOIN {on_one_key} AS b ON a.k = b.k AND a.x + b.x < 0"),
        format!("SELECT count(*) FROM {on_one_key} AS a JOIN {on_one_key} AS b ON a.k = b.k"),
        format!(
            "SELECT count(*) FROM {on_one_key} AS a WHERE EXISTS (SELECT 1 FROM {on_one_key} AS b WHERE a.k = b.k)"
        ),
        format!("SELECT count(*) FROM {on_one_key} AS a WHERE a.k NOT IN (SELECT k FROM {on_one_key} AS b)"),
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 3000) SELECT count(*) FROM t"
            .to_owned(),
    ] {
        assert_eq!(looked_up(&sql, 50).await, (50, Err("57014".to_owned())), "{sql}");
    }
}

#[tokio::test]
async fn a_query_that_is_not_stopped_is_not_changed() {
    let (count, ended) = looked_up(&format!("SELECT count(*) FROM {SIDES} WHERE x + 1 < y"), usize::MAX).await;
    assert!(ended == Ok(()) && count >= 3000, "{count} {ended:?}");
}
