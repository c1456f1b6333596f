//! `LISTEN` on the wire: when notifications come, and when they must not.

use crate::protocol::{Raw, bind, execute, frame, parse, query, start, sync};

const FLUSH: u8 = b'H';

/// The channel of the next message, which must be a notification, of nobody.
async fn channel(raw: &mut Raw) -> String {
    let (tag, body) = raw.frame().await.expect("the server closed");
    assert_eq!(char::from(tag), 'A', "{}", String::from_utf8_lossy(&body));
    let (pid, texts) = body.split_at(4);
    assert_eq!(pid, [0; 4]);
    let channel = texts.strip_suffix(b"\0\0").expect("a channel and an empty payload");
    String::from_utf8(channel.to_vec()).unwrap()
}

/// Types of the answer to a simple query.
async fn said(raw: &mut Raw, sql: &str) -> String {
    raw.send(&[&query(sql)]).await;
    raw.tags().await
}

#[tokio::test]
async fn who_listens_is_told_while_it_is_idle() {
    let (_server, address, mut writer) = start().await;
    writer.run("CREATE STREAM \"Orders\" (v int); CREATE STREAM other (v int)").await;
    let mut listener = Raw::connect(address).await;
    let done = listener.run("LISTEN \"Orders\"").await;
    assert_eq!(done[0], ('C', "LISTEN ".to_owned()));
    for _ in 0..3 {
        assert_eq!(said(&mut writer, "INSERT INTO other VALUES (1)").await, "CZI");
        assert_eq!(said(&mut writer, "INSERT INTO \"Orders\" VALUES (1)").await, "CZI");
        assert_eq!(channel(&mut listener).await, "Orders");
    }
    assert_eq!(said(&mut listener, "SELECT 1").await, "TDCZI");
    // Its own events count, and come before it is ready again.
    assert_eq!(said(&mut listener, "INSERT INTO \"Orders\" VALUES (1)").await, "CAZI");
    let done = listener.run("UNLISTEN \"Orders\"").await;
    assert_eq!(done[0], ('C', "UNLISTEN ".to_owned()));
    assert_eq!(said(&mut listener, "INSERT INTO \"Orders\" VALUES (1)").await, "CZI");
    listener.run("LISTEN other").await;
    listener.run("DISCARD ALL").await;
    assert_eq!(said(&mut listener, "INSERT INTO other VALUES (1)").await, "CZI");
}

#[tokio::test]
async fn no_notification_comes_within_a_block() {
    let (_server, address, mut writer) = start().await;
    writer.run("CREATE STREAM s (v int)").await;
    let mut listener = Raw::connect(address).await;
    listener.run("LISTEN s").await;
    for (end, is_failing) in [("COMMIT", false), ("ROLLBACK", false), ("ROLLBACK", true)] {
        assert_eq!(said(&mut listener, "BEGIN").await, "CZT");
        assert_eq!(said(&mut writer, "INSERT INTO s VALUES (1)").await, "CZI");
        assert_eq!(said(&mut writer, "INSERT INTO s VALUES (2)").await, "CZI");
        if is_failing {
            assert_eq!(said(&mut listener, "SELECT nonsense").await, "EZE");
            assert_eq!(said(&mut listener, "SELECT 1").await, "EZE");
        } else {
            assert_eq!(said(&mut listener, "SELECT 1").await, "TDCZT");
        }
        // ROLLBACK repeats the settings before.
        assert_eq!(said(&mut listener, end).await.trim_start_matches('S'), "CAZI");
        assert_eq!(said(&mut listener, "SELECT 1").await, "TDCZI");
    }
    // A block listens from its COMMIT on.
    let mut late = Raw::connect(address).await;
    late.run("BEGIN; LISTEN s").await;
    assert_eq!(said(&mut writer, "INSERT INTO s VALUES (3)").await, "CZI");
    assert_eq!(said(&mut late, "COMMIT").await, "CZI");
    assert_eq!(said(&mut writer, "INSERT INTO s VALUES (4)").await, "CZI");
    assert_eq!(channel(&mut late).await, "s");
}

#[tokio::test]
async fn events_while_a_statement_runs_are_one_notification_at_its_end() {
    let (_server, address, mut writer) = start().await;
    writer.run("CREATE STREAM s (v int)").await;
    let mut listener = Raw::connect(address).await;
    listener.run("LISTEN s").await;
    listener.send(&[&query("SELECT v FROM s EMIT CHANGES LIMIT 2")]).await;
    assert_eq!(listener.message().await.0, 'T');
    assert_eq!(said(&mut writer, "INSERT INTO s VALUES (1)").await, "CZI");
    assert_eq!(listener.message().await.0, 'D');
    assert_eq!(said(&mut writer, "INSERT INTO s VALUES (2)").await, "CZI");
    assert_eq!(listener.tags().await, "DCAZI");
    assert_eq!(said(&mut listener, "SELECT 1").await, "TDCZI");
}

#[tokio::test]
async fn no_notification_comes_between_the_messages_of_the_extended_protocol() {
    let (_server, address, mut writer) = start().await;
    writer.run("CREATE STREAM s (v int)").await;
    let mut listener = Raw::connect(address).await;
    listener.send(&[&parse("", "LISTEN s"), &bind("", ""), &execute("", 0), &sync()]).await;
    assert_eq!(listener.tags().await, "12CZI");
    listener.send(&[&parse("", "SELECT 1"), &frame(FLUSH, b"")]).await;
    assert_eq!(listener.message().await.0, '1');
    assert_eq!(said(&mut writer, "INSERT INTO s VALUES (1)").await, "CZI");
    listener.send(&[&bind("", ""), &frame(FLUSH, b"")]).await;
    assert_eq!(listener.message().await.0, '2');
    assert_eq!(said(&mut writer, "INSERT INTO s VALUES (2)").await, "CZI");
    listener.send(&[&execute("", 0), &sync()]).await;
    assert_eq!(listener.tags().await, "DCAZI");
    // Nor behind an error, before its Sync.
    listener.send(&[&parse("", "SELECT nonsense"), &frame(FLUSH, b"")]).await;
    assert_eq!(listener.message().await.0, 'E');
    assert_eq!(said(&mut writer, "INSERT INTO s VALUES (3)").await, "CZI");
    listener.send(&[&execute("", 0), &sync()]).await;
    assert_eq!(listener.tags().await, "AZI");
    // Statements that are answered together: each ReadyForQuery is a place for it.
    let insert = query("INSERT INTO s VALUES (4)");
    listener.send(&[&insert, &insert, &query("SELECT 1")]).await;
    let mut tags = String::new();
    for _ in 0..3 {
        tags += &listener.tags().await;
    }
    assert_eq!(tags.replace('A', ""), "CZICZITDCZI");
    assert!(tags.contains("AZI"), "{tags}");
    // What is left of a COPY that failed does not keep the next notification.
    listener.send(&[&query("COPY s FROM STDIN"), &frame(b'd', b"x\n"), &frame(b'c', b"")]).await;
    assert_eq!(listener.tags().await, "GEZI");
    assert_eq!(said(&mut writer, "INSERT INTO s VALUES (5)").await, "CZI");
    assert_eq!(channel(&mut listener).await, "s");
}

#[tokio::test]
async fn a_dropped_topic_is_told_once_and_an_undefined_one_is_refused() {
    let (_server, address, mut writer) = start().await;
    writer.run("CREATE STREAM s (v int)").await;
    let mut listener = Raw::connect(address).await;
    listener.run("LISTEN s").await;
    writer.run("DROP STREAM s").await;
    assert_eq!(channel(&mut listener).await, "s");
    assert_eq!(said(&mut listener, "SELECT 1").await, "TDCZI");
    let refused = listener.run("LISTEN s").await;
    assert!(refused[0].0 == 'E' && refused[0].1.contains(" C42P01 ") && refused[0].1.contains(" P8 "), "{refused:?}");
}
