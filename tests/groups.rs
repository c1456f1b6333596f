//! Offsets and members of consumer groups as clients see them: where groups begin, go on, end, and what they survive.

use crate::churn::{ask, scalar, until_it_is};
use crate::common::{DEADLINE, Server, connect, words};
use crate::crash::Process;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};

const NONE: [i64; 0] = [];

/// First columns of the rows.
fn firsts(messages: &[SimpleQueryMessage]) -> Vec<i64> {
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap().parse().unwrap()),
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

async fn run(client: &Client, sql: &str) {
    ask(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {}", words(&error)));
}

async fn code(client: &Client, sql: &str) -> String {
    let error = ask(client, sql).await.expect_err(sql);
    error.code().unwrap_or_else(|| panic!("{sql}: {error:?}")).code().to_owned()
}

fn declare(group: &str, topic: &str, reset: &str) -> String {
    format!(
        "DECLARE c CURSOR WITH HOLD FOR SELECT n FROM {topic}
         EMIT CHANGES WITH (group = '{group}', auto_offset_reset = '{reset}')"
    )
}

/// What is there to be read now.
async fn try_ready(client: &Client) -> Result<Vec<i64>, Error> {
    let mut all = firsts(&ask(client, "FETCH 10000 FROM c WITH (timeout = '300ms')").await?);
    all.sort_unstable();
    Ok(all)
}

async fn ready(client: &Client) -> Vec<i64> {
    try_ready(client).await.unwrap_or_else(|error| panic!("{}", words(&error)))
}

/// Reads until so many rows came.
async fn read(client: &Client, count: usize) -> Vec<i64> {
    let (begun, mut all) = (Instant::now(), Vec::new());
    while all.len() < count {
        assert!(begun.elapsed() < DEADLINE, "{} of {count} rows: {all:?}", all.len());
        let fetch = format!("FETCH {} FROM c WITH (timeout = '100ms')", count - all.len());
        all.append(&mut firsts(&ask(client, &fetch).await.unwrap()));
    }
    all.sort_unstable();
    all
}

fn lag(group: &str) -> String {
    format!("SELECT sum(lag) FROM millstream.consumer_group_offsets WHERE group_name = '{group}'")
}

fn members(group: &str) -> String {
    format!("SELECT count(*) FROM millstream.consumer_group_members WHERE group_name = '{group}' AND state = 'present'")
}

/// The first columns of what a statement gives, in its order.
async fn ask_rows(client: &Client, sql: &str) -> Vec<i64> {
    firsts(&ask(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {}", words(&error))))
}

async fn fill(client: &Client, topic: &str, numbers: std::ops::Range<i64>) {
    let (first, last) = (numbers.start, numbers.end - 1);
    run(client, &format!("INSERT INTO {topic} SELECT n, n FROM generate_series({first}, {last}) AS n")).await;
}

async fn topic(client: &Client, name: &str, partitions: u32) {
    run(client, &format!("CREATE STREAM {name} (k bigint KEY, n bigint) WITH (partitions = {partitions})")).await;
}

fn all(numbers: std::ops::Range<i64>) -> Vec<i64> {
    numbers.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_groups_begin_where_they_are_told_and_later_go_on() {
    let server = Server::start().await;
    let (client, other) = (server.client().await, server.client().await);
    topic(&client, "t", 3).await;
    fill(&client, "t", 0..100).await;
    assert_eq!(code(&client, &declare("n", "t", "none")).await, "SE003");
    run(&client, &declare("l", "t", "latest")).await;
    assert_eq!(ready(&client).await, NONE);
    run(&other, &declare("e", "t", "earliest")).await;
    assert_eq!(read(&other, 100).await, all(0..100));
    fill(&client, "t", 100..110).await;
    assert_eq!((read(&client, 10).await, read(&other, 10).await), (all(100..110), all(100..110)));
    run(&client, "CLOSE c").await;
    run(&other, "CLOSE c").await;
    fill(&client, "t", 110..120).await;
    // What a group is told does not matter where it goes on.
    for (group, reset) in [("l", "latest"), ("e", "none"), ("l", "earliest")] {
        run(&client, &declare(group, "t", reset)).await;
        let expected = if reset == "earliest" { Vec::new() } else { all(110..120) };
        assert_eq!(ready(&client).await, expected, "{group} {reset}");
        run(&client, "CLOSE c").await;
    }
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_go_on_as_they_say_where_their_events_were_removed() {
    let server = Server::start().await;
    let client = server.client().await;
    topic(&client, "t", 2).await;
    fill(&client, "t", 0..100).await;
    for group in ["e", "l", "n"] {
        run(&client, &declare(group, "t", "earliest")).await;
        assert_eq!(read(&client, 10).await.len(), 10);
        run(&client, "CLOSE c").await;
    }
    run(&client, "TRUNCATE t").await;
    assert_eq!(scalar(&client, &lag("e")).await.as_deref(), Some("0"), "nothing is left to be read");
    fill(&client, "t", 100..120).await;
    run(&client, &declare("l", "t", "latest")).await;
    assert_eq!(ready(&client).await, NONE);
    fill(&client, "t", 120..130).await;
    assert_eq!(read(&client, 10).await, all(120..130));
    run(&client, "CLOSE c").await;
    run(&client, &declare("e", "t", "earliest")).await;
    assert_eq!(read(&client, 30).await, all(100..130));
    run(&client, "CLOSE c").await;
    until_it_is(&client, &lag("e"), "0").await;
    run(&client, &declare("n", "t", "none")).await;
    assert_eq!(code(&client, "FETCH 1 FROM c").await, "SE003");
    // A subscription that has failed is not one that waits, and holds nothing that others could read.
    assert!(try_ready(&client).await.is_err(), "a cursor that failed goes on as if nothing had happened");
    until_it_is(&client, &members("n"), "0").await;
    let other = server.client().await;
    run(&other, &declare("n", "t", "earliest")).await;
    assert_eq!(read(&other, 30).await, all(100..130));
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_overtakes_members_that_are_slow_and_those_that_are_away() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start_with(dir.path(), &["--seal-bytes", "65536"]);
    let client = connect(process.address).await;
    run(&client, "CREATE STREAM t (n bigint, v text) WITH (retention_bytes = '256 KiB')").await;
    let write = |from: i64| {
        format!("INSERT INTO t SELECT i, repeat(md5(i::text), 3) FROM generate_series({from}, {}) AS g(i)", from + 999)
    };
    run(&client, &write(0)).await;
    let mut members = Vec::new();
    for (group, reset) in [("slow", "earliest"), ("away", "earliest"), ("within", "earliest"), ("never", "none")] {
        let member = connect(process.address).await;
        run(&client, &format!("COMMIT OFFSETS (GROUP '{group}', TOPIC 't', PARTITION 0, OFFSET 0)")).await;
        run(&member, &declare(group, "t", reset)).await;
        if group == "within" {
            run(&member, "BEGIN").await;
        }
        assert_eq!(read(&member, 10).await, all(0..10));
        members.push(member);
    }
    run(&members[1], "CLOSE c").await;
    let (mut written, begun) = (1_000, Instant::now());
    let start = "SELECT offset_start FROM millstream.partitions WHERE topic = 't'";
    while scalar(&client, start).await.unwrap().parse::<i64>().unwrap() < 3_000 {
        assert!(begun.elapsed() < DEADLINE * 3, "retention removes nothing");
        run(&client, &write(written)).await;
        written += 1_000;
    }
    run(&members[1], &declare("away", "t", "earliest")).await;
    for member in &members[..3] {
        // In order, each once, to the end, without those that are gone, but for what was on its way.
        let (mut rows, begun) = (Vec::new(), Instant::now());
        while rows.last() != Some(&(written - 1)) {
            assert!(begun.elapsed() < DEADLINE, "the last row is {:?} of {written}", rows.last());
            rows.append(&mut ask_rows(member, "FETCH 1000 FROM c WITH (timeout = '100ms')").await);
        }
        let first = *rows.iter().find(|n| **n >= 1_000).unwrap();
        assert!(first >= 3_000, "{first} was removed");
        assert!(rows.is_sorted_by(|a, b| a < b));
        let rest: Vec<i64> = rows.iter().copied().filter(|n| *n >= first).collect();
        assert_eq!(rest, all(first..written));
    }
    run(&members[2], "COMMIT").await;
    assert_eq!(scalar(&client, &lag("within")).await.as_deref(), Some("0"));
    // What it has of before may come; then it says what happened.
    let failure = loop {
        match ask(&members[3], "FETCH 1000 FROM c WITH (timeout = '100ms')").await {
            Ok(_) => assert!(begun.elapsed() < DEADLINE * 4, "it goes on as if nothing had happened"),
            Err(error) => break error,
        }
    };
    assert_eq!(failure.code().map(tokio_postgres::error::SqlState::code), Some("SE003"));
    until_it_is(&client, &self::members("never"), "0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn living_groups_read_new_partitions_from_their_beginning() {
    let server = Server::start().await;
    let (first, second, client) = (server.client().await, server.client().await, server.client().await);
    topic(&client, "t", 2).await;
    fill(&client, "t", 0..10).await;
    for member in [&first, &second] {
        run(member, &declare("g", "t", "latest")).await;
        assert_eq!(ready(member).await, NONE);
    }
    let behind = server.client().await;
    run(&behind, &declare("behind", "t", "earliest")).await;
    assert_eq!(read(&behind, 1).await.len(), 1);
    run(&client, "ALTER STREAM t SET (partitions = 7)").await;
    fill(&client, "t", 10..500).await;
    // They count before anybody reads them, and are a member's when it asks, though it has rows to give.
    let known = |group: &str| {
        format!(
            "SELECT count(*) || ' ' || count(member) || ' ' || sum(lag) FROM millstream.consumer_group_offsets
             WHERE group_name = '{group}'"
        )
    };
    assert_eq!(scalar(&client, &known("g")).await.as_deref(), Some("7 2 490"));
    assert_eq!(read(&behind, 1).await.len(), 1);
    assert_eq!(scalar(&client, &known("behind")).await.as_deref(), Some("7 7 499"));
    let begun = Instant::now();
    let (mut ones, mut twos) = (Vec::new(), Vec::new());
    while ones.len() + twos.len() < 490 {
        assert!(begun.elapsed() < DEADLINE, "{} and {} rows", ones.len(), twos.len());
        ones.append(&mut ready(&first).await);
        twos.append(&mut ready(&second).await);
    }
    assert!(!ones.is_empty() && !twos.is_empty());
    ones.append(&mut twos);
    ones.sort_unstable();
    assert_eq!(ones, all(10..500));
    let shares = "SELECT max(n) - min(n) FROM (SELECT count(*) AS n FROM millstream.consumer_group_offsets
        WHERE group_name = 'g' GROUP BY member) AS s";
    until_it_is(&client, shares, "1").await;
    // Of a group without members too, whoever joins it first.
    run(&first, "CLOSE c").await;
    run(&second, "CLOSE c").await;
    run(&client, "ALTER STREAM t SET (partitions = 9)").await;
    fill(&client, "t", 500..900).await;
    assert_eq!(scalar(&client, &known("g")).await.as_deref(), Some("9 0 400"));
    run(&first, &declare("g", "t", "latest")).await;
    assert_eq!(read(&first, 400).await, all(500..900));
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_topic_ends_the_subscriptions_of_its_groups() {
    let server = Server::start().await;
    let client = server.client().await;
    topic(&client, "t", 3).await;
    fill(&client, "t", 0..10).await;
    let idle = server.client().await;
    run(&idle, &declare("g", "t", "earliest")).await;
    run(&idle, "FETCH 1 FROM c").await;
    let select = "SELECT n FROM t EMIT CHANGES WITH (group = 'g', auto_offset_reset = 'earliest')";
    let (waiting, plain, copying) = (server.client().await, server.client().await, server.client().await);
    run(&waiting, &declare("g", "t", "earliest")).await;
    let copy = format!("COPY ({select}) TO STDOUT");
    let copy = tokio::time::timeout(DEADLINE, copying.copy_out(&copy)).await.expect("COPY begins").unwrap();
    let copied = futures::TryStreamExt::try_collect::<Vec<_>>(copy);
    let dropping = async {
        until_it_is(&client, &members("g"), "4").await;
        run(&client, "DROP STREAM t").await;
    };
    let copied = async { tokio::time::timeout(2 * DEADLINE, copied).await.expect("the end of COPY") };
    let (waited, plain, copied, ()) =
        tokio::join!(ask(&waiting, "FETCH 1000 FROM c"), ask(&plain, select), copied, dropping);
    let codes = [waited.unwrap_err(), plain.unwrap_err(), copied.unwrap_err()];
    for error in codes {
        assert_eq!(error.code().unwrap().code(), "42P01", "{}", words(&error));
    }
    assert_eq!(code(&idle, "FETCH 1000 FROM c").await, "42P01");
    assert!(try_ready(&idle).await.is_err(), "a cursor that failed goes on as if nothing had happened");
    until_it_is(&client, &members("g"), "0").await;
    // One of the same name is another, new to the group.
    topic(&client, "t", 2).await;
    fill(&client, "t", 0..20).await;
    run(&client, &declare("g", "t", "earliest")).await;
    assert_eq!(read(&client, 20).await, all(0..20));
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_reset_and_dropped_while_nobody_reads() {
    let server = Server::start().await;
    let (client, member) = (server.client().await, server.client().await);
    run(&client, "CREATE STREAM t (n bigint, at timestamptz) WITH (timestamp = 'at')").await;
    let series =
        "SELECT n, timestamptz '2026-01-01 00:00:00Z' + n * interval '1 minute' FROM generate_series(0, 99) AS n";
    run(&client, &format!("INSERT INTO t {series}")).await;
    assert_eq!(code(&client, "ALTER CONSUMER GROUP g RESET OFFSETS TO EARLIEST").await, "42704");
    assert_eq!(code(&client, "DROP CONSUMER GROUP g").await, "42704");
    run(&client, "DROP CONSUMER GROUP IF EXISTS g").await;
    run(&member, &declare("g", "t", "earliest")).await;
    assert_eq!(read(&member, 100).await, all(0..100));
    assert_eq!(code(&client, "ALTER CONSUMER GROUP g RESET OFFSETS TO EARLIEST").await, "55006");
    assert_eq!(code(&client, "DROP CONSUMER GROUP g").await, "55006");
    run(&member, "CLOSE c").await;
    for (to, expected) in [
        ("EARLIEST", 0..100),
        ("LATEST", 100..100),
        ("OFFSET 97", 97..100),
        ("OFFSET 9700", 100..100),
        ("TIMESTAMP '2026-01-01 00:30:00Z'", 30..100),
        ("TIMESTAMP '2026-01-01 00:30:01Z'", 31..100),
        ("TIMESTAMP '2027-01-01'", 100..100),
    ] {
        run(&client, &format!("ALTER CONSUMER GROUP g RESET OFFSETS FOR TOPIC t TO {to}")).await;
        run(&member, &declare("g", "t", "none")).await;
        assert_eq!(ready(&member).await, all(expected), "{to}");
        run(&member, "CLOSE c").await;
    }
    run(&client, "BEGIN").await;
    assert_eq!(code(&client, "ALTER CONSUMER GROUP g RESET OFFSETS TO EARLIEST").await, "25001");
    run(&client, "ROLLBACK; DROP CONSUMER GROUP g").await;
    assert_eq!(code(&client, "DESCRIBE CONSUMER GROUP g").await, "42704");
    assert_eq!(code(&member, &declare("g", "t", "none")).await, "SE003");
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_comes_back_to_its_partitions_and_nobody_else_moves() {
    let server = Server::start().await;
    let client = server.client().await;
    topic(&client, "t", 6).await;
    let join = async |instance: &str| {
        let member = server.client().await;
        run(&member, &format!("SET group_instance_id = '{instance}'; SET session_timeout = '20s'")).await;
        run(&member, &declare("g", "t", "earliest")).await;
        member
    };
    let (a, b, c) = (join("a").await, join("b").await, join("c").await);
    for _ in 0..2 {
        for member in [&a, &b, &c] {
            assert_eq!(ready(member).await, NONE);
        }
    }
    let assigned = "SELECT string_agg(partition || member, ',' ORDER BY partition)
        FROM millstream.consumer_group_offsets WHERE group_name = 'g'";
    let generation = "SELECT generation || state FROM millstream.consumer_groups WHERE group_name = 'g'";
    let before = (scalar(&client, assigned).await, scalar(&client, generation).await);
    assert_eq!(before.0.as_ref().unwrap().matches('b').count(), 2, "{before:?}");
    drop(b);
    until_it_is(&client, &members("g"), "2").await;
    fill(&client, "t", 0..60).await;
    let (mut ones, mut threes) = (ready(&a).await, ready(&c).await);
    assert!(ones.len() + threes.len() < 60, "what is kept for b was read by others");
    let b = join("b").await;
    let mut twos = read(&b, 60 - ones.len() - threes.len()).await;
    twos.append(&mut ones);
    twos.append(&mut threes);
    twos.sort_unstable();
    assert_eq!(twos, all(0..60));
    assert_eq!((scalar(&client, assigned).await, scalar(&client, generation).await), before);
    // The one that is there is replaced, and told.
    let again = join("b").await;
    assert_eq!(code(&b, "FETCH 1 FROM c").await, "SE004");
    assert!(try_ready(&b).await.is_err(), "a cursor that failed goes on as if nothing had happened");
    ready(&again).await;
    assert_eq!((scalar(&client, assigned).await, scalar(&client, generation).await), before);
    // A group goes with those that only may come back.
    for member in [a, again, c] {
        run(&member, "CLOSE c").await;
    }
    run(&client, "DROP CONSUMER GROUP g").await;
    let groups = "SELECT count(*) FROM millstream.consumer_groups";
    assert_eq!(scalar(&client, groups).await.as_deref(), Some("0"), "a dropped group");
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn committed_offsets_survive_kills() {
    let dir = tempfile::tempdir().unwrap();
    let mut committed = 0;
    for round in 0..6 {
        let process = Process::start_with(dir.path(), &["--seal-bytes", "65536"]);
        let client = connect(process.address).await;
        if round == 0 {
            topic(&client, "t", 1).await;
            fill(&client, "t", 0..1_000).await;
        }
        let reset = if round == 0 { "earliest" } else { "none" };
        run(&client, &declare("g", "t", reset)).await;
        assert_eq!(read(&client, 10).await, all(committed..committed + 10));
        match round % 3 {
            // The client asks for more: the ten are taken.
            0 => {
                assert_eq!(read(&client, 5).await, all(committed + 10..committed + 15));
                committed += 10;
            }
            1 => {
                run(&client, "COMMIT OFFSETS FOR CURSOR c").await;
                committed += 10;
            }
            _ => {
                run(&client, &format!("COMMIT OFFSETS (GROUP 'g', TOPIC 't', PARTITION 0, OFFSET {})", committed + 3))
                    .await;
                committed += 3;
            }
        }
        process.kill();
    }
    let process = Process::start(dir.path());
    let client = connect(process.address).await;
    assert_eq!(scalar(&client, &lag("g")).await, Some((1_000 - committed).to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_removed_comes_back_within_a_transaction() {
    let server = Server::start().await;
    let (client, member, other) = (server.client().await, server.client().await, server.client().await);
    topic(&client, "t", 2).await;
    fill(&client, "t", 0..100).await;
    run(&member, "SET max_poll_interval = '300ms'").await;
    run(&member, &declare("g", "t", "earliest")).await;
    run(&other, &declare("g", "t", "earliest")).await;
    // Removed between transactions, or in one, which is rolled back: the next is a member's.
    for is_within in [false, true] {
        run(&member, "BEGIN").await;
        assert_eq!(read(&member, 5).await.len(), 5);
        if !is_within {
            run(&member, "COMMIT").await;
        }
        until_it_is(&client, &members("g"), "1").await;
        if is_within {
            assert_eq!(code(&member, "FETCH 1 FROM c").await, "SE004");
            run(&member, "ROLLBACK").await;
        }
        run(&member, "BEGIN").await;
        assert_eq!(read(&member, 5).await.len(), 5);
        run(&member, "COMMIT").await;
    }
    run(&member, "CLOSE c").await;
    // Five before the first removal, and five after each.
    assert_eq!(read(&other, 85).await.len(), 85);
    run(&other, "CLOSE c").await;
    assert_eq!(scalar(&client, &lag("g")).await.as_deref(), Some("0"));
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_commits_by_hand_hears_that_others_have_its_partitions() {
    let server = Server::start().await;
    let (client, slow, other) = (server.client().await, server.client().await, server.client().await);
    topic(&client, "t", 1).await;
    fill(&client, "t", 0..100).await;
    let by_hand = declare("g", "t", "earliest").replace("WITH (group", "WITH (auto_commit = false, group");
    run(&slow, "SET max_poll_interval = '300ms'").await;
    run(&slow, &by_hand).await;
    assert_eq!(read(&slow, 10).await, all(0..10));
    until_it_is(&client, &members("g"), "0").await;
    for is_taken in [false, true] {
        if is_taken {
            run(&other, &by_hand).await;
            assert_eq!(read(&other, 50).await, all(0..50));
        }
        assert_eq!(code(&slow, "COMMIT OFFSETS FOR CURSOR c").await, "SE004");
        assert_eq!(scalar(&client, &lag("g")).await.as_deref(), Some("100"));
    }
    run(&other, "COMMIT OFFSETS FOR CURSOR c").await;
    run(&other, "CLOSE c").await;
    // It goes on as a member that comes anew.
    assert_eq!(read(&slow, 10).await, all(50..60));
    run(&slow, "COMMIT OFFSETS FOR CURSOR c").await;
    assert_eq!(scalar(&client, &lag("g")).await.as_deref(), Some("40"));
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_removed_with_its_last_rows_does_not_come_back() {
    let server = Server::start().await;
    let (client, slow, other) = (server.client().await, server.client().await, server.client().await);
    topic(&client, "t", 1).await;
    fill(&client, "t", 0..10).await;
    run(&slow, "SET max_poll_interval = '300ms'").await;
    run(&slow, &format!("{} LIMIT 2", declare("g", "t", "earliest"))).await;
    assert_eq!(read(&slow, 2).await, all(0..2));
    until_it_is(&client, &members("g"), "0").await;
    assert_eq!(ready(&slow).await, NONE);
    assert_eq!(scalar(&client, &members("g")).await.as_deref(), Some("0"));
    run(&other, &declare("g", "t", "earliest")).await;
    let rest = ready(&other).await;
    assert!(rest == all(0..10) || rest == all(2..10), "{rest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_of_groups_without_members_expire() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start_with(dir.path(), &["--offsets-retention", "2s"]);
    let (client, member) = (connect(process.address).await, connect(process.address).await);
    topic(&client, "t", 2).await;
    fill(&client, "t", 0..10).await;
    run(&client, "COMMIT OFFSETS (GROUP 'dead', TOPIC 't', PARTITION 0, OFFSET 1)").await;
    run(&member, &declare("idle", "t", "earliest")).await;
    assert_eq!(ready(&member).await.len(), 10);
    let count = "SELECT count(*) FROM millstream.consumer_groups WHERE group_name = ";
    assert_eq!(scalar(&client, &format!("{count}'dead'")).await.as_deref(), Some("1"));
    until_it_is(&client, &format!("{count}'dead'"), "0").await;
    assert_eq!(scalar(&client, &format!("{count}'idle'")).await.as_deref(), Some("1"), "it has a member");
    assert_eq!(ready(&member).await, NONE);
    run(&member, "CLOSE c").await;
    assert_eq!(scalar(&client, &lag("idle")).await.as_deref(), Some("0"));
    until_it_is(&client, &format!("{count}'idle'"), "0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_filter_leaves_out_is_committed() {
    let server = Server::start().await;
    let (client, member) = (server.client().await, server.client().await);
    topic(&client, "t", 3).await;
    let cursor = "DECLARE c CURSOR WITH HOLD FOR SELECT n FROM t WHERE n % 100 = 0
        EMIT CHANGES WITH (group = 'g', auto_offset_reset = 'earliest')";
    run(&member, cursor).await;
    fill(&client, "t", 0..1_000).await;
    assert_eq!(read(&member, 10).await, all(0..10).iter().map(|n| n * 100).collect::<Vec<_>>());
    let begun = Instant::now();
    while scalar(&client, &lag("g")).await.as_deref() != Some("0") {
        assert!(begun.elapsed() < DEADLINE, "{:?}", scalar(&client, &lag("g")).await);
        assert_eq!(ready(&member).await, NONE);
    }
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_reads_at_once_what_others_gave_up_and_what_was_rolled_back() {
    let server = Server::start().await;
    let client = server.client().await;
    topic(&client, "t", 2).await;
    fill(&client, "t", 0..10).await;
    let (a, b) = (server.client().await, server.client().await);
    run(&a, &declare("g", "t", "earliest")).await;
    let first = read(&a, 1).await;
    run(&b, &declare("g", "t", "earliest")).await;
    let mut mine = ready(&b).await;
    run(&a, "CLOSE c").await;
    mine.append(&mut read(&b, 9 - mine.len()).await);
    mine.extend(first);
    mine.sort_unstable();
    assert_eq!(mine, all(0..10), "what is left by one that closed");
    // After a FETCH that ended by its time.
    for (begin, end) in [("BEGIN", "ROLLBACK"), ("BEGIN; SAVEPOINT s", "ROLLBACK TO s")] {
        run(&a, &declare("r", "t", "earliest")).await;
        run(&a, begin).await;
        assert_eq!(ready(&a).await, all(0..10));
        run(&a, end).await;
        assert_eq!(read(&a, 10).await, all(0..10), "after {end}");
        run(&a, "ROLLBACK; CLOSE c").await;
        run(&a, "DROP CONSUMER GROUP r").await;
    }
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_asks_for_nothing_is_removed_however_its_last_fetch_ended() {
    let server = Server::start().await;
    let client = server.client().await;
    topic(&client, "t", 2).await;
    fill(&client, "t", 0..10).await;
    for (number, fetch) in
        ["FETCH 3 FROM c", "FETCH 100 FROM c WITH (timeout = '200ms')", "FETCH ALL FROM c"].iter().enumerate()
    {
        let (member, group) = (server.client().await, format!("g{number}"));
        run(&member, "SET max_poll_interval = '500ms'").await;
        run(&member, &declare(&group, "t", "earliest")).await;
        run(&member, fetch).await;
        let before = scalar(&client, &members(&group)).await;
        until_it_is(&client, &members(&group), "0").await;
        assert_eq!(before.as_deref(), Some("1"), "{fetch}");
        // Whoever comes then reads everything, and so does the member when it asks again.
        let other = server.client().await;
        run(&other, &declare(&group, "t", "earliest")).await;
        assert_eq!(read(&other, 10).await, all(0..10), "{fetch}");
        run(&other, "CLOSE c").await;
        assert_eq!(ready(&member).await, NONE, "{fetch}");
        assert_eq!(scalar(&client, &members(&group)).await.as_deref(), Some("1"), "{fetch}");
    }
    server.node.stop().await;
}

/// A transaction may take some of the rows that one event gave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_one_event_are_taken_once_by_transactions() {
    let server = Server::start().await;
    let client = server.client().await;
    run(&client, "CREATE STREAM t (id bigint, v bigint[])").await;
    run(&client, "INSERT INTO t VALUES (1, ARRAY[10, 11, 12]), (2, ARRAY[20, 21, 22])").await;
    let cursor = "DECLARE c CURSOR WITH HOLD FOR SELECT unnest(v) AS n FROM t
        EMIT CHANGES WITH (group = 'g', auto_offset_reset = 'earliest')";
    let mut taken = Vec::new();
    for _ in 0..4 {
        let member = server.client().await;
        if let Err(error) = ask(&member, cursor).await {
            // It may also be refused.
            assert_eq!(error.code().unwrap().code(), "0A000");
            return;
        }
        run(&member, "BEGIN").await;
        let rows = firsts(&ask(&member, "FETCH 2 FROM c WITH (timeout = '200ms')").await.unwrap());
        if ask(&member, "COMMIT").await.is_ok() {
            taken.extend(rows);
        }
        drop(member);
        until_it_is(&client, &members("g"), "0").await;
    }
    assert_eq!(taken, [10, 11, 12, 20, 21, 22]);
    server.node.stop().await;
}

/// Portals with a row limit: what was handed over is taken when the next rows are asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_portals_are_taken_when_the_next_are_asked_for() {
    let server = Server::start().await;
    let client = server.client().await;
    topic(&client, "t", 1).await;
    fill(&client, "t", 0..100).await;
    let select = "SELECT n FROM t EMIT CHANGES WITH (group = 'g', auto_offset_reset = 'earliest')";
    for (first, is_committed) in [(0, false), (0, true), (20, false), (20, true)] {
        let mut member = server.client().await;
        let statement = member.prepare(select).await.unwrap();
        let transaction = member.transaction().await.unwrap();
        let portal = transaction.bind(&statement, &[]).await.unwrap();
        for part in 0..2 {
            let rows = tokio::time::timeout(DEADLINE, transaction.query_portal(&portal, 10)).await.unwrap().unwrap();
            let from = first + part * 10;
            assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i64>>(), all(from..from + 10));
        }
        match is_committed {
            true => transaction.commit().await.unwrap(),
            false => transaction.rollback().await.unwrap(),
        }
        let left = 100 - first - if is_committed { 20 } else { 0 };
        assert_eq!(scalar(&client, &lag("g")).await, Some(left.to_string()));
    }
    server.node.stop().await;
}

/// A transaction holds its partitions: others that join meanwhile get none of its rows before it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_an_open_transaction_move_when_it_ends() {
    let server = Server::start().await;
    let client = server.client().await;
    topic(&client, "t", 4).await;
    fill(&client, "t", 0..100).await;
    for (group, end) in [("c", "COMMIT"), ("r", "ROLLBACK"), ("f", "SELECT 1 / 0")] {
        let (a, b) = (server.client().await, server.client().await);
        run(&a, &declare(group, "t", "earliest")).await;
        run(&a, "BEGIN").await;
        assert_eq!(ready(&a).await, all(0..100));
        run(&b, &declare(group, "t", "earliest")).await;
        assert_eq!(ready(&b).await, NONE, "they are another's, whose transaction goes on");
        drop(ask(&a, end).await);
        run(&a, "ROLLBACK").await;
        let mut rest = ready(&b).await;
        match end {
            "COMMIT" => assert_eq!(rest, NONE, "they were committed"),
            _ => {
                assert!(!rest.is_empty() && rest.len() < 100, "{} of 100 after {end}", rest.len());
                rest.append(&mut read(&a, 100 - rest.len()).await);
                rest.sort_unstable();
                assert_eq!(rest, all(0..100));
            }
        }
    }
    server.node.stop().await;
}

/// A cancelled FETCH has handed over nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_cancelled_fetch_come_again() {
    let server = Server::start().await;
    let client = server.client().await;
    topic(&client, "t", 2).await;
    fill(&client, "t", 0..100).await;
    run(&client, &declare("g", "t", "earliest")).await;
    assert_eq!(read(&client, 10).await.len(), 10);
    let token = client.cancel_token();
    let mut fetch = std::pin::pin!(ask(&client, "FETCH 1000 FROM c"));
    let error = loop {
        match tokio::time::timeout(Duration::from_millis(50), &mut fetch).await {
            Ok(fetched) => break fetched.unwrap_err(),
            Err(_) => token.cancel_query(NoTls).await.unwrap(),
        }
    };
    assert_eq!(error.code().unwrap().code(), "57014");
    assert_eq!(read(&client, 90).await.len(), 90);
    run(&client, "CLOSE c").await;
    assert_eq!(scalar(&client, &lag("g")).await.as_deref(), Some("0"));
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_are_committed_as_seldom_as_the_member_says() {
    let server = Server::start().await;
    let client = server.client().await;
    topic(&client, "t", 2).await;
    fill(&client, "t", 0..100).await;
    let declare = declare("g", "t", "earliest").replace("WITH (group", "WITH (auto_commit_interval = '1 hour', group");
    let a = server.client().await;
    run(&a, &declare).await;
    let mut taken = read(&a, 10).await;
    // The first time there is something to commit, it is; then an hour passes.
    for _ in 0..3 {
        taken.append(&mut read(&a, 10).await);
    }
    assert_eq!(scalar(&client, &lag("g")).await, Some("90".to_owned()));
    // Who leaves commits what it took, and not what it was just handed.
    drop(a);
    until_it_is(&client, &lag("g"), "70").await;
    taken.truncate(30);
    let (a, b) = (server.client().await, server.client().await);
    run(&a, &declare).await;
    taken.append(&mut read(&a, 70).await);
    taken.sort_unstable();
    assert_eq!(taken, all(0..100));
    fill(&client, "t", 100..140).await;
    taken.append(&mut read(&a, 40).await);
    assert_eq!(ready(&a).await, NONE);
    // It has taken all there is, and is at work on nothing: a partition that another is to have is committed at once.
    run(&b, &declare).await;
    assert_eq!(ready(&b).await, NONE);
    fill(&client, "t", 140..240).await;
    let mut more = read(&b, 1).await;
    more.append(&mut ready(&b).await);
    more.append(&mut ready(&a).await);
    more.sort_unstable();
    assert_eq!(more, all(140..240));
    run(&a, "CLOSE c").await;
    run(&b, "CLOSE c").await;
    assert_eq!(scalar(&client, &lag("g")).await, Some("0".to_owned()));
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_are_committed_in_time_though_the_client_asks_for_nothing() {
    let server = Server::start().await;
    let client = server.client().await;
    topic(&client, "t", 1).await;
    fill(&client, "t", 0..40).await;
    let declare = declare("g", "t", "earliest").replace("WITH (group", "WITH (auto_commit_interval = '200ms', group");
    run(&client, &declare).await;
    let (mut taken, other) = (Vec::new(), server.client().await);
    for _ in 0..3 {
        taken.append(&mut read(&client, 10).await);
    }
    // The last ten are not taken before it asks for more.
    until_it_is(&other, &lag("g"), "20").await;
    assert_eq!(taken, all(0..30));
    server.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_commits_seldom_gives_up_what_its_client_has_taken() {
    let server = Server::start().await;
    let client = server.client().await;
    let rounds = [("BEGIN", "COMMIT"), ("BEGIN", "ROLLBACK"), ("SELECT 1", "FETCH 1 FROM c WITH (timeout = '50ms')")];
    for (name, (begin, end)) in ["x", "y", "z"].into_iter().zip(rounds) {
        topic(&client, name, 2).await;
        fill(&client, name, 0..100).await;
        let declare = declare(name, name, "earliest");
        let declare = declare.replace("WITH (group", "WITH (auto_commit_interval = '1 hour', group");
        let (a, b) = (server.client().await, server.client().await);
        run(&a, &declare).await;
        for _ in 0..2 {
            assert_eq!(firsts(&ask(&a, "FETCH 2 FROM c").await.unwrap()).len(), 2);
        }
        run(&a, begin).await;
        // Rows of both partitions.
        assert_eq!(firsts(&ask(&a, "FETCH 70 FROM c").await.unwrap()).len(), 70);
        run(&b, &declare).await;
        assert_eq!(ready(&b).await, NONE, "{end}");
        run(&a, end).await;
        // Whatever else the first does, or does not.
        fill(&client, name, 100..200).await;
        assert_eq!(read(&b, 1).await.len(), 1);
    }
    server.node.stop().await;
}
