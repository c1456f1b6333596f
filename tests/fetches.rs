//! Rows of members of consumer groups by the messages of the protocol: what a client was sent, and no more, is committed,
//! in whatever parts and pauses it takes its rows.

use crate::common::{DEADLINE, Server};
use crate::protocol::{Raw, bind, errors, execute, frame, parse, start, sync};
use std::future::pending;
use std::time::Duration;
use tokio::time::timeout;

const CURSOR: &str = "DECLARE c CURSOR WITH HOLD FOR SELECT n FROM t
                      EMIT CHANGES WITH (group = 'g', auto_offset_reset = 'earliest')";

const NONE: [&str; 0] = [];

/// The rows among messages.
fn rows(messages: &[(char, String)]) -> Vec<i64> {
    let value = |body: &str| body.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
    // Count and length come first; the digits are at the end.
    let last = |body: &String| {
        let digits = body.chars().rev().take_while(char::is_ascii_digit).count();
        value(&body[body.len() - digits..])
    };
    messages.iter().filter(|(tag, _)| *tag == 'D').map(|(_, body)| last(body)).collect()
}

async fn fetch(raw: &mut Raw, count: u32) -> Vec<i64> {
    rows(&raw.run(&format!("FETCH {count} FROM c WITH (timeout = '2s')")).await)
}

/// A stream of 100 events, and a cursor of a member of a group.
async fn begun() -> (Server, Raw) {
    let (server, _, mut raw) = start().await;
    raw.run("CREATE STREAM t (n bigint KEY); INSERT INTO t SELECT n FROM generate_series(0, 99) AS g(n)").await;
    assert!(errors(&raw.run(CURSOR).await).is_empty());
    (server, raw)
}

#[tokio::test]
async fn rows_of_a_fetch_that_were_not_sent_come_with_the_next() {
    let (_server, mut raw) = begun().await;
    // Before the next FETCH the portal is closed by its Sync, then by hand, then by nobody.
    for (round, between) in [sync(), [frame(b'C', b"Pp\0"), sync()].concat(), Vec::new()].into_iter().enumerate() {
        raw.send(&[&parse("f", "FETCH 20 FROM c"), &bind("p", "f"), &execute("p", 3), &between]).await;
        if between.is_empty() {
            raw.send(&[&parse("", "FETCH 4 FROM c"), &bind("", ""), &execute("", 0), &execute("p", 3), &sync()]).await;
        }
        let messages = raw.messages().await;
        let mut found = rows(&messages);
        if !between.is_empty() {
            found.extend(fetch(&mut raw, 4).await);
        }
        let first = i64::try_from(round * 7).unwrap();
        assert_eq!(found, (first..first + 7).collect::<Vec<_>>(), "{messages:?}");
        raw.send(&[&frame(b'C', b"Sf\0"), &sync()]).await;
        raw.messages().await;
    }
    assert_eq!(fetch(&mut raw, 100).await, (21..100).collect::<Vec<_>>());
    raw.run("CLOSE c").await;
    assert_eq!(raw.value("SELECT sum(lag) FROM millstream.consumer_group_offsets").await, "0");
}

#[tokio::test]
async fn a_fetch_that_has_ended_can_be_executed_again() {
    let (_server, mut raw) = begun().await;
    raw.run("BEGIN").await;
    raw.send(&[&parse("", "FETCH 5 FROM c"), &bind("p", "")]).await;
    raw.send(&[&execute("p", 10), &execute("p", 10), &execute("p", 3), &sync()]).await;
    let messages = raw.messages().await;
    assert_eq!(rows(&messages), [0, 1, 2, 3, 4]);
    assert_eq!(messages.iter().filter(|(tag, _)| *tag == 'C').count(), 3, "{messages:?}");
    assert!(errors(&raw.run("COMMIT").await).is_empty());
}

#[tokio::test]
async fn when_a_sync_comes_says_nothing_about_what_was_taken() {
    let (server, mut raw) = begun().await;
    let mut other = Raw::connect(server.node.pg_address()).await;
    let lag = "SELECT sum(lag) FROM millstream.consumer_group_offsets";
    for (round, is_late) in [true, false, true].into_iter().enumerate() {
        raw.send(&[&parse("", "FETCH 10 FROM c"), &bind("", ""), &execute("", 0)]).await;
        if is_late {
            raw.send(&[&frame(b'H', b"")]).await;
            while raw.message().await.0 != 'C' {}
        }
        raw.send(&[&sync()]).await;
        raw.messages().await;
        // Those before were taken with this one's question.
        assert_eq!(other.value(lag).await, (100 - round * 10).to_string());
    }
    drop(raw);
    let gone = async {
        while other.value("SELECT count(*) FROM millstream.consumer_group_members").await != "0" {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, gone).await.unwrap();
    other.run(CURSOR).await;
    assert_eq!(fetch(&mut other, 2).await, [20, 21]);
}

/// Of a portal whose rows became void while it was suspended, others come in their place: a short FETCH means the end.
#[tokio::test]
async fn a_fetch_is_full_though_its_rows_became_void_in_the_middle_of_it() {
    let (_server, mut raw) = begun().await;
    raw.run("BEGIN").await;
    raw.send(&[&parse("f", "FETCH 10 FROM c"), &bind("p", "f"), &execute("p", 3), &sync()]).await;
    let mut found = rows(&raw.messages().await);
    assert_eq!(found, [0, 1, 2]);
    assert!(errors(&raw.run("SAVEPOINT s").await).is_empty());
    assert!(errors(&raw.run("ROLLBACK TO s").await).is_empty());
    raw.send(&[&execute("p", 0), &sync()]).await;
    found.extend(rows(&raw.messages().await));
    assert_eq!(found, (0..10).collect::<Vec<_>>());
    assert!(errors(&raw.run("COMMIT").await).is_empty());
    assert_eq!(fetch(&mut raw, 2).await, [10, 11]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetch_all_gives_all_that_is_there() {
    let server = Server::start().await;
    let address = server.node.pg_address();
    let mut raw = Raw::connect(address).await;
    raw.run("CREATE STREAM t (n bigint KEY) WITH (partitions = 3)").await;
    raw.run("INSERT INTO t SELECT n FROM generate_series(0, 49999) AS g(n)").await;
    for options in ["auto_offset_reset = 'earliest'", "auto_offset_reset = 'earliest', group = 'a'"] {
        raw.run(&format!("DECLARE c CURSOR WITH HOLD FOR SELECT n FROM t EMIT CHANGES WITH ({options})")).await;
        let mut found = rows(&raw.run("FETCH ALL FROM c").await);
        found.sort_unstable();
        assert_eq!(found, (0..50_000).collect::<Vec<_>>(), "{options}");
        assert!(rows(&raw.run("FETCH ALL FROM c").await).is_empty());
        raw.run("CLOSE c").await;
    }
}

#[tokio::test]
async fn a_cursor_that_a_suspended_portal_waits_for_is_in_use() {
    let (_server, mut raw) = begun().await;
    assert_eq!(fetch(&mut raw, 99).await.len(), 99);
    raw.run("BEGIN; SET fetch_timeout = '100ms'").await;
    raw.send(&[&parse("", "FETCH 10 FROM c WITH (timeout = '1h')"), &bind("p", ""), &execute("p", 10), &sync()]).await;
    assert_eq!(rows(&raw.messages().await), [99]);
    raw.run("SAVEPOINT s").await;
    assert_eq!(errors(&raw.run("FETCH 1 FROM c").await), ["55006"]);
    raw.run("ROLLBACK TO s").await;
    assert_eq!(errors(&raw.run("CLOSE c; COMMIT; DISCARD ALL").await), ["25001"]);
    assert_eq!(errors(&raw.run("DISCARD ALL").await), NONE);
}

/// What a member has to keep until its client asks again, it goes on reading: nobody else may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_cannot_be_given_up_yet_is_read_on() {
    let server = Server::start().await;
    let address = server.node.pg_address();
    let mut writer = Raw::connect(address).await;
    writer.run("CREATE STREAM t (k bigint KEY, n bigint) WITH (partitions = 2)").await;
    writer.run("INSERT INTO t SELECT k, 0 FROM generate_series(1, 20) AS g(k)").await;
    let keys = [
        writer.value("SELECT min(k) FROM t WHERE rowpartition = 0").await,
        writer.value("SELECT min(k) FROM t WHERE rowpartition = 1").await,
    ];
    let both = format!("INSERT INTO t VALUES ({}, 1), ({}, 2)", keys[0], keys[1]);
    let cursor = CURSOR.replace("earliest", "latest");
    let mut first = Raw::connect(address).await;
    assert!(errors(&first.run(&cursor).await).is_empty());
    for is_in_block in [false, true] {
        if is_in_block {
            first.run("BEGIN").await;
        }
        writer.run(&both).await;
        first.send(&[&crate::protocol::query("FETCH 4 FROM c")]).await;
        // It has one of each.
        let mut messages = Vec::new();
        while rows(&messages).len() < 2 {
            messages.push(first.message().await);
        }
        let mut second = Raw::connect(address).await;
        assert!(errors(&second.run(&cursor).await).is_empty());
        second.send(&[&crate::protocol::query("FETCH 1 FROM c WITH (timeout = '1s')")]).await;
        let members = "SELECT count(*) FROM millstream.consumer_group_members WHERE state = 'present'";
        while writer.value(members).await != "2" {}
        writer.run(&both).await;
        messages.extend(first.messages().await);
        let mut found = rows(&messages);
        found.sort_unstable();
        assert_eq!(found, [1, 1, 2, 2], "in a block: {is_in_block}");
        assert_eq!(rows(&second.messages().await), [0_i64; 0]);
        if is_in_block {
            first.run("COMMIT").await;
        }
        second.run("CLOSE c").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn added_partitions_are_read_while_members_are_behind() {
    let (_server, mut raw) = begun().await;
    raw.run("INSERT INTO t SELECT n FROM generate_series(100, 300000) AS g(n)").await;
    assert_eq!(fetch(&mut raw, 10).await.len(), 10);
    assert!(errors(&raw.run("ALTER STREAM t SET (partitions = 4)").await).is_empty());
    raw.run("INSERT INTO t SELECT n FROM generate_series(1000001, 1000100) AS g(n)").await;
    let (mut before, mut is_found) = (0, false);
    while !is_found {
        let found = fetch(&mut raw, 20_000).await;
        is_found = found.iter().any(|n| *n > 1_000_000);
        before += found.len();
        assert!(before < 250_000, "the backlog comes first");
    }
}

/// One whose kernel answers that it has no room is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_slowly_is_not_taken_for_gone() {
    let (_server, _, mut raw) = start().await;
    raw.run("SET session_timeout = '1s'").await;
    raw.send(&[&crate::protocol::query("COPY (SELECT repeat('x', 10000) FROM generate_series(1, 4000)) TO STDOUT")])
        .await;
    assert!(timeout(Duration::from_secs(4), pending::<()>()).await.is_err());
    let messages = raw.messages().await;
    assert_eq!(messages.iter().filter(|(tag, _)| *tag == 'd').count(), 4_000);
    assert!(errors(&messages).is_empty());
}

#[tokio::test]
async fn a_portal_is_a_cursor_to_statements_that_name_it() {
    let (_server, mut raw) = begun().await;
    let member = "SELECT n FROM t EMIT CHANGES WITH (group = 'p', auto_offset_reset = 'earliest')";
    raw.run("BEGIN").await;
    raw.send(&[&parse("", member), &bind("p", ""), &execute("p", 5), &sync()]).await;
    assert_eq!(rows(&raw.messages().await), [0, 1, 2, 3, 4]);
    let moved = raw.run("MOVE FORWARD 3 FROM p").await;
    assert!(moved.iter().any(|(tag, body)| *tag == 'C' && body.starts_with("MOVE 3")), "{moved:?}");
    raw.send(&[&execute("p", 2), &frame(b'D', b"Pp\0"), &sync()]).await;
    let messages = raw.messages().await;
    assert_eq!((rows(&messages), errors(&messages)), (vec![8, 9], vec![]));
    assert!(messages.iter().any(|(tag, _)| *tag == 's'), "{messages:?}");
    assert_eq!(rows(&raw.run("FETCH 2 FROM p").await), [10, 11]);
    // Drivers take no rows for the end, and fewer too: the portal is suspended.
    raw.run("SET fetch_timeout = '50ms'").await;
    raw.send(&[&execute("p", 200), &sync()]).await;
    let messages = raw.messages().await;
    assert_eq!(rows(&messages), (12..100).collect::<Vec<_>>());
    assert!(messages.iter().any(|(tag, _)| *tag == 's'), "{messages:?}");
    raw.run("CLOSE p").await;
    assert!(errors(&raw.run("COMMIT").await).is_empty());
    assert_eq!(raw.value("SELECT sum(lag) FROM millstream.consumer_group_offsets WHERE group_name = 'p'").await, "0");
    raw.send(&[&execute("p", 1), &sync()]).await;
    assert_eq!(errors(&raw.messages().await), ["34000"]);
}

#[tokio::test]
async fn a_portal_that_became_a_cursor_keeps_its_formats_and_ends_with_its_block() {
    let (_server, _, mut raw) = start().await;
    raw.run("BEGIN").await;
    let bind_binary = frame(b'B', b"p\0\0\0\0\0\0\0\x01\0\x01");
    raw.send(&[&parse("", "SELECT n FROM generate_series(1, 9) AS g(n)"), &bind_binary, &sync()]).await;
    assert_eq!(errors(&raw.messages().await), NONE);
    // Before it was executed.
    raw.run("MOVE 4 FROM p").await;
    raw.send(&[&execute("p", 2), &execute("p", 0), &sync()]).await;
    let messages = raw.messages().await;
    let sizes: Vec<usize> = messages.iter().filter(|(tag, _)| *tag == 'D').map(|(_, body)| body.len()).collect();
    // Of a count, a length, and four bytes.
    assert_eq!(sizes, [10; 5], "{messages:?}");
    raw.run("COMMIT").await;
    assert_eq!(errors(&raw.run("BEGIN; FETCH 1 FROM p").await), ["34000"]);
    raw.run("ROLLBACK").await;
    // It ends with its block, also where another follows at once.
    raw.send(&[&parse("", "SELECT 1"), &bind("p", ""), &sync()]).await;
    assert_eq!(errors(&raw.messages().await), NONE);
    assert_eq!(errors(&raw.run("COMMIT; BEGIN; FETCH 1 FROM p").await), ["34000"]);
    raw.run("ROLLBACK").await;
    // Elsewhere it ends before another statement can name it.
    raw.send(&[&parse("", "SELECT 1"), &bind("p", ""), &sync()]).await;
    assert_eq!(errors(&raw.messages().await), NONE);
    assert_eq!(errors(&raw.run("MOVE 1 FROM p").await), ["34000"]);
}

#[tokio::test]
async fn portals_that_ended_or_never_ran_are_cursors_too() {
    let (_server, mut raw) = begun().await;
    let ended = |messages: &[(char, String)], tag: &str| {
        assert!(messages.iter().any(|(kind, body)| *kind == 'C' && body.starts_with(tag)), "{tag}: {messages:?}");
    };
    for sql in ["SELECT 1", "SELECT n FROM t EMIT CHANGES WITH (auto_offset_reset = 'earliest') LIMIT 1"] {
        raw.run("BEGIN").await;
        raw.send(&[&parse("", sql), &bind("p", ""), &execute("p", 0), &sync()]).await;
        assert_eq!(errors(&raw.messages().await), NONE);
        ended(&raw.run("FETCH 1 FROM p").await, "FETCH 0");
        ended(&raw.run("MOVE 1 FROM p").await, "MOVE 0");
        raw.send(&[&execute("p", 0), &execute("p", 1), &sync()]).await;
        let messages = raw.messages().await;
        assert_eq!(messages.iter().filter(|(kind, _)| *kind == 'C').count(), 2, "{messages:?}");
        ended(&raw.run("COMMIT").await, "COMMIT");
    }
    // What nobody executed is not, because it is closed.
    raw.run("BEGIN").await;
    raw.send(&[&parse("", "INSERT INTO t VALUES (7) RETURNING n"), &bind("p", ""), &sync()]).await;
    assert_eq!(errors(&raw.messages().await), NONE);
    ended(&raw.run("CLOSE p").await, "CLOSE CURSOR");
    raw.run("COMMIT").await;
    assert_eq!(raw.value("SELECT count(*) FROM t").await, "100");
    // A FETCH of another cursor stays one.
    raw.run("BEGIN").await;
    raw.send(&[&parse("", "FETCH 10 FROM c"), &bind("q", ""), &sync()]).await;
    assert_eq!(errors(&raw.messages().await), NONE);
    assert_eq!(errors(&raw.run("FETCH 5 FROM q").await), ["34000"]);
    raw.run("ROLLBACK").await;
}

#[tokio::test]
async fn portals_go_back_to_savepoints_or_end_with_them() {
    let (_server, mut raw) = begun().await;
    let member = "SELECT n FROM t EMIT CHANGES WITH (group = 'p', auto_offset_reset = 'earliest')";
    raw.run("CREATE STREAM done (n bigint)").await;
    raw.send(&[&parse("m", member), &sync()]).await;
    raw.messages().await;
    raw.run("BEGIN; SAVEPOINT s").await;
    raw.send(&[&bind("p", "m"), &execute("p", 5), &sync()]).await;
    assert_eq!(rows(&raw.messages().await), [0, 1, 2, 3, 4]);
    raw.run("ROLLBACK TO s").await;
    raw.send(&[&execute("p", 5), &sync()]).await;
    assert_eq!(errors(&raw.messages().await), ["34000"]);
    // Bound before it, it goes back, and on within the transaction.
    for end in ["ROLLBACK", "COMMIT"] {
        raw.run("ROLLBACK; BEGIN").await;
        raw.send(&[&bind("p", "m"), &sync()]).await;
        raw.messages().await;
        raw.run("SAVEPOINT s").await;
        // By its messages, or by its name.
        match end {
            "COMMIT" => assert_eq!(errors(&raw.run("MOVE 1 FROM p").await), NONE),
            _ => {
                raw.send(&[&execute("p", 1), &sync()]).await;
                assert_eq!(rows(&raw.messages().await), [0]);
            }
        }
        raw.run("ROLLBACK TO s").await;
        for n in 0..2 {
            raw.send(&[&execute("p", 1), &sync()]).await;
            assert_eq!(rows(&raw.messages().await), [n]);
        }
        raw.run(end).await;
    }
    raw.run("BEGIN").await;
    raw.send(&[&bind("p", "m"), &execute("p", 2), &sync()]).await;
    assert_eq!(rows(&raw.messages().await), [2, 3]);
    raw.run("SAVEPOINT s").await;
    for _ in 0..2 {
        raw.send(&[&execute("p", 3), &sync()]).await;
        assert_eq!(rows(&raw.messages().await), [4, 5, 6]);
        // Nothing is handed over in a block that failed.
        raw.run("SELECT 1 / 0").await;
        raw.send(&[&execute("p", 3), &sync()]).await;
        let messages = raw.messages().await;
        assert_eq!((rows(&messages), errors(&messages)), (vec![], vec!["25P02".to_owned()]));
        raw.run("ROLLBACK TO s").await;
    }
    raw.send(&[&execute("p", 3), &sync()]).await;
    assert_eq!(rows(&raw.messages().await), [4, 5, 6]);
    raw.run("INSERT INTO done VALUES (6); COMMIT").await;
    let committed = "SELECT committed_offset FROM millstream.consumer_group_offsets WHERE group_name = 'p'";
    assert_eq!(raw.value(committed).await, "7");
}

/// A portal of FETCH, that has been executed before a savepoint is rolled back to, is part of the transaction after it.
#[tokio::test]
async fn a_fetch_goes_on_within_the_transaction_after_a_rollback_to_a_savepoint() {
    let (_server, mut raw) = begun().await;
    let committed = "SELECT committed_offset FROM millstream.consumer_group_offsets WHERE group_name = 'g'";
    raw.run("CREATE STREAM done (n bigint)").await;
    for end in ["ROLLBACK", "INSERT INTO done VALUES (1); COMMIT"] {
        raw.run("BEGIN").await;
        raw.send(&[&parse("f", "FETCH 10 FROM c"), &bind("q", "f"), &sync()]).await;
        assert_eq!(errors(&raw.messages().await), NONE);
        raw.run("SAVEPOINT s").await;
        for _ in 0..2 {
            raw.send(&[&execute("q", 2), &sync()]).await;
            assert_eq!(rows(&raw.messages().await), [0, 1]);
            raw.run("ROLLBACK TO s").await;
        }
        // Of ten rows four were given before.
        for (count, found) in [(2, 0..2), (3, 2..5), (0, 5..6)] {
            raw.send(&[&execute("q", count), &sync()]).await;
            assert_eq!(rows(&raw.messages().await), found.collect::<Vec<_>>());
        }
        assert_eq!(errors(&raw.run(end).await), NONE);
        raw.send(&[&frame(b'C', b"Sf\0"), &sync()]).await;
        raw.messages().await;
    }
    assert_eq!(raw.value(committed).await, "6");
    assert_eq!(fetch(&mut raw, 2).await, [6, 7]);
}

#[tokio::test]
async fn a_fetch_in_parts_is_full_though_its_rows_became_void_between_them() {
    let (_server, mut raw) = begun().await;
    raw.run("BEGIN").await;
    raw.send(&[&parse("", "FETCH 10 FROM c"), &bind("q", ""), &execute("q", 3), &sync()]).await;
    assert_eq!(rows(&raw.messages().await), [0, 1, 2]);
    raw.run("SAVEPOINT s; ROLLBACK TO s").await;
    for (count, found) in [(2, 3..5), (0, 5..10)] {
        raw.send(&[&execute("q", count), &sync()]).await;
        assert_eq!(rows(&raw.messages().await), found.collect::<Vec<_>>());
    }
    assert_eq!(errors(&raw.run("COMMIT").await), NONE);
}

#[tokio::test]
async fn a_subscription_is_executed_again_and_its_errors_stand_where_they_are() {
    let (_server, _, mut raw) = start().await;
    raw.run("CREATE STREAM t (n bigint); INSERT INTO t SELECT n FROM generate_series(0, 9) AS g(n)").await;
    let member = "/* ä */ SELECT n FROM t EMIT CHANGES WITH (group = 'p', auto_offset_reset = 'earliest') LIMIT 2";
    raw.send(&[&parse("m", member), &sync()]).await;
    raw.messages().await;
    for found in [[0, 1], [2, 3]] {
        raw.send(&[&bind("", "m"), &execute("", 0), &sync()]).await;
        assert_eq!(rows(&raw.messages().await), found);
    }
    raw.run("DROP STREAM t").await;
    raw.send(&[&bind("", "m"), &execute("", 0), &sync()]).await;
    let messages = raw.messages().await;
    assert_eq!(errors(&messages), ["42P01"]);
    assert!(messages.iter().any(|(tag, body)| *tag == 'E' && body.contains("P23")), "{messages:?}");
}

/// What a driver's cursor does that is read in parts by one statement each.
#[tokio::test]
async fn a_portal_that_another_replaced_keeps_no_partition_from_it() {
    let (_server, _, mut raw) = start().await;
    raw.run("CREATE STREAM t (n bigint); INSERT INTO t SELECT n FROM generate_series(0, 9) AS g(n)").await;
    let member = "SELECT n FROM t EMIT CHANGES WITH (group = 'p', auto_offset_reset = 'earliest')";
    raw.send(&[&parse("m", member), &sync()]).await;
    raw.messages().await;
    raw.run("BEGIN").await;
    raw.send(&[&bind("", "m"), &execute("", 5), &sync()]).await;
    assert_eq!(rows(&raw.messages().await), [0, 1, 2, 3, 4]);
    // The transaction has rows of a member that is gone, and the partition with them.
    raw.send(&[&bind("", "m"), &execute("", 5), &sync()]).await;
    assert_eq!(errors(&raw.messages().await), ["55006"]);
    raw.run("ROLLBACK").await;
    // Without rows it is nobody's: who comes next gets all there is.
    raw.run("BEGIN; SET LOCAL fetch_timeout = '5s'").await;
    raw.send(&[&bind("", "m"), &sync()]).await;
    raw.messages().await;
    for _ in 0..2 {
        let declare = format!("DECLARE c CURSOR FOR {member}");
        assert_eq!(errors(&raw.run(&declare).await), NONE);
        raw.run("SAVEPOINT s; FETCH 3 FROM c").await;
        assert_eq!(rows(&raw.run("ROLLBACK TO s; FETCH 2 FROM c").await), [0, 1]);
        assert_eq!(errors(&raw.run("ROLLBACK TO s; CLOSE c").await), NONE);
    }
    raw.send(&[&bind("", "m"), &execute("", 10), &sync()]).await;
    assert_eq!(rows(&raw.messages().await), (0..10).collect::<Vec<_>>());
    raw.run("COMMIT").await;
    assert_eq!(raw.value("SELECT sum(lag) FROM millstream.consumer_group_offsets").await, "0");
}

#[tokio::test]
async fn cursors_are_closed_in_a_block_that_failed_and_portals_with_close_all() {
    let (_server, mut raw) = begun().await;
    raw.run("BEGIN").await;
    raw.send(&[&parse("", "SELECT n FROM t"), &bind("p", ""), &execute("p", 1), &sync()]).await;
    raw.messages().await;
    assert_eq!(errors(&raw.run("FETCH 1 FROM p; SELECT 1 / 0").await), ["22012"]);
    raw.send(&[&frame(b'C', b"Pp\0"), &parse("", "ROLLBACK"), &bind("", ""), &execute("", 0), &sync()]).await;
    assert_eq!(errors(&raw.messages().await), NONE);
    raw.run("BEGIN").await;
    raw.send(&[&parse("", "SELECT n FROM t"), &bind("p", ""), &execute("p", 1), &sync()]).await;
    raw.messages().await;
    assert_eq!(errors(&raw.run("CLOSE ALL").await), NONE);
    raw.send(&[&execute("p", 1), &sync()]).await;
    assert_eq!(errors(&raw.messages().await), ["34000"]);
}

#[tokio::test]
async fn prepared_statements_name_portals_each_time_they_are_executed() {
    let (_server, mut raw) = begun().await;
    raw.send(&[&parse("s", "SELECT n FROM generate_series(1, 9) AS g(n)"), &sync()]).await;
    raw.messages().await;
    for round in 0..2 {
        raw.run("BEGIN").await;
        raw.send(&[&bind("p", "s"), &execute("p", 2), &sync()]).await;
        assert_eq!(rows(&raw.messages().await), [1, 2]);
        if round == 0 {
            raw.send(&[&parse("f", "FETCH 2 FROM p"), &parse("c", "CLOSE p"), &sync()]).await;
            assert_eq!(errors(&raw.messages().await), NONE);
        }
        raw.send(&[&bind("q", "f"), &execute("q", 0), &execute("p", 1), &sync()]).await;
        assert_eq!(rows(&raw.messages().await), [3, 4, 5]);
        assert_eq!(errors(&raw.run("DECLARE p CURSOR FOR SELECT 1").await), ["42P03"]);
        raw.run("ROLLBACK; BEGIN").await;
        raw.send(&[&bind("p", "s"), &execute("p", 2), &bind("q", "c"), &execute("q", 0), &execute("p", 1), &sync()])
            .await;
        assert_eq!(errors(&raw.messages().await), ["34000"]);
        raw.run("ROLLBACK; BEGIN").await;
        raw.send(&[&bind("p", "s"), &sync()]).await;
        raw.messages().await;
        assert_eq!(errors(&raw.run("DECLARE p CURSOR FOR SELECT 1").await), ["42P03"]);
        raw.run("ROLLBACK").await;
    }
}

#[tokio::test]
async fn a_prepared_fetch_has_the_columns_that_its_cursor_has_now() {
    let (_server, mut raw) = begun().await;
    raw.send(&[&parse("f", "FETCH 1 FROM c"), &bind("", "f"), &execute("", 0), &sync()]).await;
    assert_eq!(rows(&raw.messages().await), [0]);
    raw.run("CLOSE c").await;
    raw.run(&CURSOR.replace("SELECT n FROM", "SELECT 'x' AS word, n AS number FROM")).await;
    // Who asks is told. Who does not is refused what he would take for something else, and loses nothing.
    for (is_described, expected) in [(true, [1].as_slice()), (false, &[]), (true, &[2])] {
        let describe = if is_described { frame(b'D', b"P\0") } else { Vec::new() };
        raw.send(&[&bind("", "f"), &describe, &execute("", 0), &sync()]).await;
        let messages = raw.messages().await;
        assert_eq!(rows(&messages), expected);
        let told = messages.iter().find(|(tag, _)| *tag == 'T');
        assert_eq!(told.is_some_and(|(_, body)| body.contains("word") && body.contains("number")), is_described);
        match is_described {
            true => assert!(errors(&messages).is_empty(), "{messages:?}"),
            false => {
                assert_eq!(errors(&messages), ["0A000"]);
                // By which asyncpg and pgjdbc know that they can prepare it again.
                assert!(messages.iter().any(|(tag, body)| *tag == 'E' && body.contains("RRevalidateCachedQuery")));
            }
        }
    }
}

/// Bind of a statement into the portal without a name, with a format for each column.
fn bind_with_formats(statement: &str, formats: &[u8]) -> Vec<u8> {
    let count = u8::try_from(formats.len()).unwrap();
    let formats: Vec<u8> = formats.iter().flat_map(|format| [0, *format]).collect();
    frame(b'B', &[b"\0", statement.as_bytes(), b"\0\0\0\0\0\0", &[count], &formats].concat())
}

#[tokio::test]
async fn what_drivers_prepare_again_was_not_done() {
    let (_server, mut raw) = begun().await;
    raw.run("CREATE TABLE keyed (k bigint PRIMARY KEY)").await;
    raw.run("CLOSE c").await;
    raw.run(&format!("{CURSOR} LIMIT 0").replace("SELECT n FROM", "SELECT n, n AS m FROM")).await;
    let stale = [
        ("a", "INSERT INTO t VALUES (100) RETURNING *"),
        ("b", "INSERT INTO t SELECT 100 RETURNING *"),
        ("c", "INSERT INTO keyed VALUES (1) ON CONFLICT DO NOTHING RETURNING *"),
        ("s", "SELECT * FROM t EMIT CHANGES WITH (auto_offset_reset = 'earliest') LIMIT 1"),
    ];
    for (name, sql) in stale.into_iter().chain([("f", "FETCH 1 FROM c"), ("d", "DESCRIBE EXTENDED millstream.topics")])
    {
        raw.send(&[&parse(name, sql), &sync()]).await;
        assert!(errors(&raw.messages().await).is_empty());
    }
    for sql in ["ALTER STREAM t ADD COLUMN more int", "ALTER TABLE keyed ADD COLUMN more int", "CLOSE c"] {
        assert!(errors(&raw.run(sql).await).is_empty());
    }
    raw.run(&CURSOR.replace("SELECT n FROM", "SELECT n, n AS m, n AS o FROM")).await;
    for (name, _) in stale {
        raw.send(&[&bind("", name), &execute("", 0), &sync()]).await;
        let messages = raw.messages().await;
        assert_eq!(errors(&messages), ["0A000"], "{name}");
        assert!(messages.iter().any(|(_, body)| body.contains("RRevalidateCachedQuery")));
    }
    assert_eq!(raw.value("SELECT count(*) FROM t").await, "100");
    assert_eq!(raw.value("SELECT count(*) FROM keyed").await, "0");
    // As many formats as there were columns, and as there are; others are nobody's.
    for (formats, expected) in [([0; 2].as_slice(), ["0A000"].as_slice()), (&[0; 3], &[]), (&[0; 4], &["08P01"])] {
        raw.send(&[&bind_with_formats("f", formats), &frame(b'D', b"P\0"), &execute("", 0), &sync()]).await;
        assert_eq!(errors(&raw.messages().await), expected);
    }
    raw.send(&[&bind("", "d"), &execute("", 0), &sync()]).await;
    assert!(errors(&raw.messages().await).is_empty());
}

#[tokio::test]
async fn offsets_are_committed_by_hand_within_a_pipeline() {
    let (_server, mut raw) = begun().await;
    raw.run("CLOSE c").await;
    raw.run(&CURSOR.replace("'earliest'", "'earliest', auto_commit = false")).await;
    assert_eq!(fetch(&mut raw, 5).await, [0, 1, 2, 3, 4]);
    let commit = [parse("", "COMMIT OFFSETS FOR CURSOR c"), bind("", ""), execute("", 0)].concat();
    let select = [parse("", "SELECT 1"), bind("", ""), execute("", 0)].concat();
    raw.send(&[&commit, &select, &sync()]).await;
    assert!(errors(&raw.messages().await).is_empty());
    assert_eq!(raw.value("SELECT committed_offset FROM millstream.consumer_group_offsets").await, "5");
}
