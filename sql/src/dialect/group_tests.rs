//! Statements of consumer groups and of notifications: what they become, and what is refused with which code and where.

use super::ast::*;
use super::parse;
use crate::error::SqlError;
use millstream_catalog::SqlType;
use millstream_catalog::model::{GroupName, Name, Offset, PartitionId, Timestamp, limit};

fn one(text: &str) -> Statement {
    match parse(text) {
        Ok(mut parsed) if parsed.len() == 1 => parsed.remove(0).statement,
        Ok(parsed) => panic!("{} statements in {text}", parsed.len()),
        Err(error) => panic!("{text}: {error:?}"),
    }
}

fn refused(text: &str) -> SqlError {
    match parse(text) {
        Ok(parsed) => panic!("accepted: {text}: {:?}", parsed.first().map(|p| &p.statement)),
        Err(error) => error,
    }
}

fn group(name: &str) -> GroupRef {
    GroupRef { name: GroupName::new(name).unwrap(), position: Position::UNKNOWN }
}

fn ident(name: &str) -> Ident {
    Ident { name: Name::new(name).unwrap(), position: Position::UNKNOWN }
}

fn topic(name: &str) -> QualifiedName {
    QualifiedName { schema: None, name: Name::new(name).unwrap(), position: Position::UNKNOWN }
}

fn position(group_name: &str, topic_name: &str, partition: u32, offset: u64) -> Statement {
    Statement::CommitOffsets(CommitOffsets::Position(CommitPosition {
        group: Given::Value(group(group_name)),
        topic: Given::Value(topic(topic_name)),
        partition: Given::Value(PartitionId::new(partition)),
        offset: Given::Value(Offset::new(offset)),
        position: Position::UNKNOWN,
    }))
}

#[test]
fn offsets_are_committed_of_cursors_and_of_positions() {
    let bigint_last = i64::MAX as u64;
    for (text, wanted) in [
        ("COMMIT OFFSETS FOR CURSOR C", Statement::CommitOffsets(CommitOffsets::Cursor(ident("c")))),
        ("commit offsets for cursor \"C\"", Statement::CommitOffsets(CommitOffsets::Cursor(ident("C")))),
        ("COMMIT OFFSETS FOR CURSOR offsets", Statement::CommitOffsets(CommitOffsets::Cursor(ident("offsets")))),
        ("COMMIT OFFSETS (GROUP 'g', TOPIC 't', PARTITION 0, OFFSET 42)", position("g", "t", 0, 42)),
        ("COMMIT OFFSETS (OFFSET +7, PARTITION 3, TOPIC T, GROUP Billing)", position("billing", "t", 3, 7)),
        ("COMMIT OFFSETS(TOPIC \"T\",GROUP \"B-1\",OFFSET 0,PARTITION 1)", position("B-1", "T", 1, 0)),
        (
            "COMMIT OFFSETS (GROUP 'Billing-1', TOPIC 'a.b', PARTITION 2147483647, OFFSET 9223372036854775807)",
            position("Billing-1", "a.b", 2_147_483_647, bigint_last),
        ),
    ] {
        assert_eq!(one(text), wanted, "{text}");
    }
}

#[test]
fn commit_of_a_transaction_is_undisturbed() {
    for (text, chain) in [
        ("COMMIT", Chain::No),
        ("COMMIT WORK", Chain::No),
        ("COMMIT TRANSACTION", Chain::No),
        ("COMMIT AND CHAIN", Chain::Yes),
        ("COMMIT WORK AND NO CHAIN", Chain::No),
    ] {
        assert_eq!(one(text), Statement::Commit(chain), "{text}");
    }
    assert_eq!(parse("COMMIT; COMMIT OFFSETS FOR CURSOR c; COMMIT").unwrap().len(), 3);
}

#[test]
fn groups_are_altered_dropped_and_shown() {
    let alter = |topic, partition, to| Statement::AlterGroup(AlterGroup { group: group("g"), topic, partition, to });
    let to_time = ResetTo::Timestamp(Timestamp::from_micros(1_577_836_800_000_000));
    let one_partition = Some(PartitionId::new(3));
    for (text, wanted) in [
        ("ALTER CONSUMER GROUP g RESET OFFSETS TO EARLIEST", alter(None, None, ResetTo::Earliest)),
        ("alter consumer group G reset offsets to latest", alter(None, None, ResetTo::Latest)),
        (
            "ALTER CONSUMER GROUP 'g' RESET OFFSETS FOR TOPIC t TO OFFSET 12",
            alter(Some(topic("t")), None, ResetTo::Offset(Offset::new(12))),
        ),
        (
            "ALTER CONSUMER GROUP g RESET OFFSETS FOR TOPIC t PARTITION 3 TO TIMESTAMP '2020-01-01 01:00+01'",
            alter(Some(topic("t")), one_partition, to_time),
        ),
        ("ALTER CONSUMER GROUP g RESET OFFSETS TO TIMESTAMP '2020-01-01'", alter(None, None, to_time)),
        ("DESCRIBE CONSUMER GROUP Orders", Statement::DescribeGroup(group("orders"))),
        ("DESC CONSUMER GROUP 'Orders 1'", Statement::DescribeGroup(group("Orders 1"))),
        ("SHOW CONSUMER GROUPS", Statement::Show(Show::Groups)),
        ("DROP CONSUMER GROUP g", Statement::DropGroups(DropGroups { if_exists: false, groups: vec![group("g")] })),
        (
            "DROP CONSUMER GROUP IF EXISTS a, 'B', \"C\"",
            Statement::DropGroups(DropGroups { if_exists: true, groups: vec![group("a"), group("B"), group("C")] }),
        ),
    ] {
        assert_eq!(one(text), wanted, "{text}");
    }
    let Statement::AlterGroup(alter) = one("ALTER CONSUMER GROUP g RESET OFFSETS FOR TOPIC public.t TO LATEST") else {
        panic!()
    };
    assert_eq!(alter.topic.unwrap().schema.unwrap().as_str(), "public");
}

#[test]
fn a_relation_and_a_setting_may_be_called_consumer() {
    let Statement::Describe(describe) = one("DESCRIBE consumer") else { panic!() };
    assert_eq!(describe.name.as_str(), "consumer");
    assert_eq!(one("SHOW consumer"), Statement::Show(Show::Setting("consumer".to_owned())));
}

#[test]
fn topics_are_listened_to() {
    for (text, wanted) in [
        ("LISTEN Orders", Statement::Listen(ident("orders"))),
        ("listen \"Orders\"", Statement::Listen(ident("Orders"))),
        ("LISTEN public.orders", Statement::Listen(ident("orders"))),
        ("UNLISTEN orders", Statement::Unlisten(Some(ident("orders")))),
        ("UNLISTEN *", Statement::Unlisten(None)),
    ] {
        assert_eq!(one(text), wanted, "{text}");
    }
}

#[test]
fn places_are_kept() {
    let Statement::CommitOffsets(CommitOffsets::Position(commit)) =
        one("COMMIT OFFSETS (GROUP 'g', TOPIC t, PARTITION 0, OFFSET 42)")
    else {
        panic!()
    };
    let (Given::Value(group), Given::Value(topic)) = (commit.group, commit.topic) else { panic!() };
    assert_eq!((group.position.get(), topic.position.get(), commit.position.get()), (23, 34, 57));
    let Statement::CommitOffsets(CommitOffsets::Position(commit)) =
        one("COMMIT OFFSETS (GROUP $2, TOPIC t, PARTITION $4, OFFSET $1)")
    else {
        panic!()
    };
    assert!(matches!(commit.group, Given::Param(1, place) if place.get() == 23));
    let declared = [Some(SqlType::SmallInt)];
    assert_eq!(commit.params(&declared), [SqlType::SmallInt, SqlType::Text, SqlType::Text, SqlType::Integer]);
    let Statement::DropGroups(drop) = one("DROP CONSUMER GROUP IF EXISTS a, 'B'") else { panic!() };
    assert_eq!(drop.groups.iter().map(|group| group.position.get()).collect::<Vec<_>>(), [31, 34]);
    let Statement::Listen(channel) = one("LISTEN public.t") else { panic!() };
    assert_eq!(channel.position.get(), 8);
}

/// Text, SQLSTATE, position.
const REFUSED: &[(&str, &str, usize)] = &[
    ("COMMIT OFFSET FOR CURSOR c", "42601", 8),
    ("COMMIT OFFSETS", "42601", 15),
    ("COMMIT OFFSETS FOR c", "42601", 20),
    ("COMMIT OFFSETS FOR CURSOR", "42601", 26),
    ("COMMIT OFFSETS FOR CURSOR 'c'", "42601", 27),
    ("COMMIT OFFSETS FOR CURSOR c d", "42601", 29),
    ("COMMIT OFFSETS c", "42601", 16),
    ("COMMIT OFFSETS ()", "42601", 17),
    ("COMMIT OFFSETS (GROUP 'g', TOPIC 't', PARTITION 0)", "42601", 50),
    ("COMMIT OFFSETS (GROUP 'g', TOPIC 't', OFFSET 0)", "42601", 47),
    ("COMMIT OFFSETS (GROUP 'g', PARTITION 0, OFFSET 0)", "42601", 49),
    ("COMMIT OFFSETS (TOPIC 't', PARTITION 0, OFFSET 0)", "42601", 49),
    ("COMMIT OFFSETS (GROUP 'g', TOPIC 't', PARTITION 0, OFFSET 0, OFFSET 1)", "42601", 62),
    ("COMMIT OFFSETS (GROUP 'g', GROUP 'h', TOPIC 't', PARTITION 0, OFFSET 0)", "42601", 28),
    ("COMMIT OFFSETS (GROUP 'g', TOPIC 't', PARTITION 0, OFFSET 0", "42601", 60),
    ("COMMIT OFFSETS (GROUP 'g' TOPIC 't')", "42601", 27),
    ("COMMIT OFFSETS (GRUOP 'g')", "42601", 17),
    ("COMMIT OFFSETS (GROUP = 'g')", "42601", 23),
    ("COMMIT OFFSETS (GROUP '')", "22023", 23),
    ("COMMIT OFFSETS (GROUP select)", "42601", 23),
    ("COMMIT OFFSETS (GROUP 1)", "42601", 23),
    ("COMMIT OFFSETS (GROUP $1)", "42601", 25),
    ("COMMIT OFFSETS (TOPIC '')", "42601", 23),
    ("COMMIT OFFSETS (TOPIC public.t)", "42601", 29),
    ("COMMIT OFFSETS (TOPIC $1)", "42601", 25),
    ("COMMIT OFFSETS (PARTITION -1)", "22023", 27),
    ("COMMIT OFFSETS (PARTITION 2147483648)", "22003", 27),
    ("COMMIT OFFSETS (PARTITION '0')", "42601", 27),
    ("COMMIT OFFSETS (OFFSET -1)", "22023", 24),
    ("COMMIT OFFSETS (OFFSET 1.5)", "22023", 24),
    ("COMMIT OFFSETS (OFFSET 1e3)", "22023", 24),
    ("COMMIT OFFSETS (OFFSET 9223372036854775808)", "22003", 24),
    ("COMMIT OFFSETS (OFFSET 99999999999999999999999)", "22003", 24),
    ("COMMIT OFFSETS (OFFSET)", "42601", 23),
    ("COMMIT OFFSETS (OFFSET $1)", "42601", 26),
    ("ALTER CONSUMER g RESET OFFSETS TO LATEST", "42601", 16),
    ("ALTER CONSUMER GROUP", "42601", 21),
    ("ALTER CONSUMER GROUP g", "42601", 23),
    ("ALTER CONSUMER GROUP g SET OFFSETS TO LATEST", "42601", 24),
    ("ALTER CONSUMER GROUP g RESET OFFSET TO LATEST", "42601", 30),
    ("ALTER CONSUMER GROUP g RESET OFFSETS LATEST", "42601", 38),
    ("ALTER CONSUMER GROUP g RESET OFFSETS TO", "42601", 40),
    ("ALTER CONSUMER GROUP g RESET OFFSETS TO BEGINNING", "42601", 41),
    ("ALTER CONSUMER GROUP g RESET OFFSETS TO LATEST x", "42601", 48),
    ("ALTER CONSUMER GROUP g RESET OFFSETS FOR t TO LATEST", "42601", 42),
    ("ALTER CONSUMER GROUP g RESET OFFSETS FOR TOPIC TO LATEST", "42601", 48),
    ("ALTER CONSUMER GROUP g RESET OFFSETS PARTITION 1 TO LATEST", "42601", 38),
    ("ALTER CONSUMER GROUP g RESET OFFSETS FOR TOPIC t PARTITION TO LATEST", "42601", 60),
    ("ALTER CONSUMER GROUP g RESET OFFSETS FOR TOPIC t PARTITION -1 TO LATEST", "22023", 60),
    ("ALTER CONSUMER GROUP g RESET OFFSETS FOR TOPIC millstream.topics TO LATEST", "42501", 48),
    ("ALTER CONSUMER GROUP g RESET OFFSETS TO OFFSET", "42601", 47),
    ("ALTER CONSUMER GROUP g RESET OFFSETS TO OFFSET -3", "22023", 48),
    ("ALTER CONSUMER GROUP g RESET OFFSETS TO OFFSET '3'", "42601", 48),
    ("ALTER CONSUMER GROUP g RESET OFFSETS TO TIMESTAMP", "42601", 50),
    ("ALTER CONSUMER GROUP g RESET OFFSETS TO TIMESTAMP 5", "42601", 51),
    ("ALTER CONSUMER GROUP g RESET OFFSETS TO TIMESTAMP $1", "0A000", 51),
    ("ALTER CONSUMER GROUP g RESET OFFSETS TO TIMESTAMP 'soon'", "22007", 51),
    ("ALTER CONSUMER GROUP g RESET OFFSETS TO TIMESTAMP '2020-13-01'", "22008", 51),
    ("ALTER CONSUMER GROUP '' RESET OFFSETS TO LATEST", "22023", 22),
    ("DROP CONSUMER g", "42601", 15),
    ("DROP CONSUMER GROUP", "42601", 20),
    ("DROP CONSUMER GROUP a b", "42601", 23),
    ("DROP CONSUMER GROUP a,", "42601", 23),
    ("DROP CONSUMER GROUP IF a", "42601", 24),
    ("DROP CONSUMER GROUP group", "42601", 21),
    ("DROP CONSUMER GROUP a CASCADE", "42601", 23),
    ("DROP CONSUMER GROUP a, ''", "22023", 24),
    ("DESCRIBE CONSUMER GROUP", "42601", 24),
    ("DESCRIBE CONSUMER GROUPS", "42601", 19),
    ("DESCRIBE CONSUMER GRUOP g", "42601", 19),
    ("DESCRIBE CONSUMER GROUP g h", "42601", 27),
    ("SHOW CONSUMER GROUP", "42601", 15),
    ("SHOW CONSUMER GROUPS g", "42601", 22),
    ("LISTEN", "42601", 7),
    ("LISTEN *", "42601", 8),
    ("LISTEN 't'", "42601", 8),
    ("LISTEN t, u", "42601", 9),
    ("LISTEN select", "42601", 8),
    ("LISTEN millstream.topics", "42501", 8),
    ("LISTEN pg_catalog.pg_class", "42501", 8),
    ("LISTEN other.t", "3F000", 8),
    ("UNLISTEN", "42601", 9),
    ("UNLISTEN ALL", "42601", 10),
    ("UNLISTEN * t", "42601", 12),
    ("NOTIFY t, 'x'", "0A000", 1),
];

#[test]
fn every_refusal_has_its_code_and_place() {
    let mut failed = Vec::new();
    for (text, code, position) in REFUSED {
        let error = refused(text);
        if error.sqlstate.code() != *code || error.position != Some(*position) {
            failed.push(format!("{text}\n  wanted {code} at {position}: {error:?}"));
        }
        if *code == "0A000" && error.hint.is_none() {
            failed.push(format!("{text}\n  no hint"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn names_of_groups_are_bounded() {
    let name = "g".repeat(limit::GROUP_NAME_BYTES_MAX);
    assert_eq!(one(&format!("DROP CONSUMER GROUP '{name}'")), one(&format!("DROP CONSUMER GROUP {name}")));
    let error = refused(&format!("DROP CONSUMER GROUP '{name}g'"));
    assert_eq!((error.sqlstate.code(), error.position), ("22023", Some(21)));
}
