//! Definitions: what is bound, and what is refused with which code and where.

use super::ddl::{GroupReset, PushOptions, bind_create_as, bind_push_options, bind_relation};
use crate::dialect::{CopyDirection, Parsed, Select, Statement, parse};
use crate::error::SqlError;
use millstream_catalog::model::{ByteSize, GroupName, Span, Timestamp, limit};
use millstream_catalog::query::OffsetReset;
use millstream_catalog::{
    Cleanup, CleanupPolicy, Compression, QueryOptions, Relation, RelationKind, SqlType, TopicOptions,
};

fn bind(text: &str) -> Result<Relation, SqlError> {
    match parse(text)?.remove(0).statement {
        Statement::CreateRelation(create) => bind_relation(&create, Timestamp::from_micros(7), 1),
        Statement::CreateAs(create) => {
            bind_create_as(&create, 1)?;
            bind("CREATE STREAM s (a integer)")
        }
        Statement::Select(select) => {
            bind_push_options(&select)?;
            bind("CREATE STREAM s (a integer)")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn types_have_the_names_of_postgresql_and_ksqldb() {
    let array = |item: SqlType| SqlType::Array(Box::new(item));
    let numeric = |precision, scale| SqlType::Numeric { precision, scale };
    for (text, wanted) in [
        ("boolean", SqlType::Boolean),
        ("BOOL", SqlType::Boolean),
        ("smallint", SqlType::SmallInt),
        ("int2", SqlType::SmallInt),
        ("int", SqlType::Integer),
        ("INTEGER", SqlType::Integer),
        ("int4", SqlType::Integer),
        ("bigint", SqlType::BigInt),
        ("int8", SqlType::BigInt),
        ("real", SqlType::Real),
        ("float4", SqlType::Real),
        ("float(24)", SqlType::Real),
        ("float", SqlType::Double),
        ("float(25)", SqlType::Double),
        ("float8", SqlType::Double),
        ("double precision", SqlType::Double),
        ("DOUBLE", SqlType::Double),
        ("numeric", numeric(38, 10)),
        ("decimal(5)", numeric(5, 0)),
        ("DECIMAL(38, 38)", numeric(38, 38)),
        ("dec(3,1)", numeric(3, 1)),
        ("text", SqlType::Text),
        ("STRING", SqlType::Text),
        ("varchar", SqlType::Text),
        ("varchar(3)", SqlType::Varchar(3)),
        ("character varying(3)", SqlType::Varchar(3)),
        ("char", SqlType::Char(1)),
        ("character(7)", SqlType::Char(7)),
        ("bytea", SqlType::Bytea),
        ("BYTES", SqlType::Bytea),
        ("date", SqlType::Date),
        ("time", SqlType::Time),
        ("time(6) without time zone", SqlType::Time),
        ("timestamp", SqlType::Timestamp),
        ("timestamp without time zone", SqlType::Timestamp),
        ("timestamptz", SqlType::TimestampTz),
        ("timestamp(6) with time zone", SqlType::TimestampTz),
        ("interval", SqlType::Interval),
        ("uuid", SqlType::Uuid),
        ("json", SqlType::Json),
        ("jsonb", SqlType::Jsonb),
        ("int[]", array(SqlType::Integer)),
        ("ARRAY<DECIMAL(4, 2)>", array(numeric(4, 2))),
        ("timestamptz[]", array(SqlType::TimestampTz)),
        ("pg_catalog.int4", SqlType::Integer),
    ] {
        let relation = bind(&format!("CREATE STREAM s (a {text})")).unwrap();
        assert_eq!(relation.schema.columns[0].sql_type, wanted, "{text}");
    }
}

#[test]
fn columns_keys_and_event_time_are_bound() {
    let text = "CREATE TABLE t (a varchar(3), b bigint NOT NULL, c integer[] DEFAULT '{1}', PRIMARY KEY (b, a)) \
                WITH (timestamp = 'B', partitions = '3', compression = zstd)";
    let relation = bind(text).unwrap();
    assert_eq!((relation.kind, relation.name.as_str()), (RelationKind::Table, "t"));
    assert_eq!(relation.schema.key(), vec![0, 1]);
    assert_eq!(relation.timestamp, Some(1));
    assert_eq!(
        relation.options,
        TopicOptions { partitions: 3, compression: Compression::Zstd, ..TopicOptions::default() }
    );
    assert_eq!(relation.created_at, Timestamp::from_micros(7));
    assert!(!relation.schema.columns[0].is_nullable && relation.schema.columns[2].is_nullable);
    assert_eq!(relation.schema.columns[2].default.as_deref(), Some("'{1}'"));
    let Statement::CreateRelation(again) = parse(&relation.sql).unwrap().remove(0).statement else { panic!() };
    assert_eq!(bind_relation(&again, Timestamp::from_micros(7), 1).unwrap(), relation);
}

#[test]
fn the_watermark_names_the_event_time() {
    let relation = bind("CREATE STREAM s (at timestamp, WATERMARK FOR at AS at - INTERVAL '5 seconds')").unwrap();
    assert_eq!((relation.timestamp, relation.watermark_delay), (Some(0), Some(Span::from_secs(5))));
    let relation = bind("CREATE STREAM s (a int KEY, WATERMARK FOR rowtime AS rowtime)").unwrap();
    assert_eq!((relation.timestamp, relation.watermark_delay), (None, Some(Span::ZERO)));
    assert_eq!(relation.schema.key(), vec![0]);
    assert!(relation.schema.columns[0].is_nullable);
}

#[test]
fn options_of_queries_are_bound() {
    let text = "CREATE STREAM s WITH (idle_timeout = '1 minute', auto_offset_reset = 'latest', emit = 'changes', \
                on_error = 'stop', partitions = 2) AS SELECT * FROM x EMIT CHANGES";
    let Statement::CreateAs(create) = parse(text).unwrap().remove(0).statement else { panic!() };
    let bound = bind_create_as(&create, 1).unwrap();
    let idle_timeout = Span::from_secs(60);
    let query = QueryOptions { auto_offset_reset: OffsetReset::Latest, idle_timeout, ..QueryOptions::default() };
    assert_eq!((bound.query, bound.topic.partitions), (query, 2));
    let text = "SELECT * FROM x EMIT CHANGES WITH (auto_offset_reset = earliest)";
    let Statement::Select(select) = parse(text).unwrap().remove(0).statement else { panic!() };
    assert_eq!(bind_push_options(&select).unwrap().auto_offset_reset, Some(GroupReset::Earliest));
}

fn push(options: &str) -> Result<PushOptions, SqlError> {
    let text = format!("SELECT * FROM x EMIT CHANGES WITH ({options})");
    let Statement::Select(select) = parse(&text).unwrap().remove(0).statement else { panic!() };
    bind_push_options(&select)
}

#[test]
fn options_of_groups_are_bound() {
    let group = |name: &str| Some(GroupName::new(name).unwrap());
    let alone = PushOptions { auto_offset_reset: None, group: None, auto_commit: true, auto_commit_interval: None };
    let interval = Some(Span::from_micros(1_500_000));
    assert_eq!(PushOptions::default(), alone);
    for (options, wanted) in [
        ("grace = '1 s'", alone.clone()),
        ("group = 'Billing-1'", PushOptions { group: group("Billing-1"), ..alone.clone() }),
        ("group = Billing, mode = 'partition'", PushOptions { group: group("billing"), ..alone.clone() }),
        ("auto_commit = off, group = 'g'", PushOptions { group: group("g"), auto_commit: false, ..alone.clone() }),
        ("group = g, auto_commit = 'FALSE'", PushOptions { group: group("g"), auto_commit: false, ..alone.clone() }),
        ("group = g, auto_commit = on", PushOptions { group: group("g"), ..alone.clone() }),
        (
            "group = g, auto_commit_interval = '1.5 s'",
            PushOptions { group: group("g"), auto_commit_interval: interval, ..alone.clone() },
        ),
        ("group = g, auto_commit = true, mode = PARTITION", PushOptions { group: group("g"), ..alone.clone() }),
        (
            "'auto.offset.reset' = None, group = g",
            PushOptions { group: group("g"), auto_offset_reset: Some(GroupReset::None), ..alone.clone() },
        ),
        ("auto_offset_reset = latest", PushOptions { auto_offset_reset: Some(GroupReset::Latest), ..alone }),
    ] {
        assert_eq!(push(options).unwrap(), wanted, "{options}");
    }
    let name = "x".repeat(limit::GROUP_NAME_BYTES_MAX);
    assert_eq!(push(&format!("group = '{name}'")).unwrap().group, group(&name));
    let error = push(&format!("group = '{name}x'")).unwrap_err();
    assert_eq!((error.sqlstate.code(), error.position), ("22023", Some(44)));
}

#[test]
fn groups_are_bound_wherever_a_subscription_stands() {
    for text in [
        "COPY (SELECT * FROM x EMIT CHANGES WITH (group = 'g', auto_commit = false)) TO STDOUT WITH (FORMAT csv)",
        "DECLARE c NO SCROLL CURSOR WITH HOLD FOR SELECT * FROM x EMIT CHANGES WITH (group = 'g', auto_commit = false)",
        "PREPARE p AS SELECT * FROM x EMIT CHANGES WITH (group = 'g', auto_commit = false) LIMIT 5",
        "EXPLAIN SELECT * FROM x EMIT CHANGES WITH (group = 'g', auto_commit = false)",
        "SELECT * FROM x EMIT FINAL WITH (group = 'g', auto_commit = false)",
    ] {
        let select = match parse(text).unwrap().remove(0).statement {
            Statement::Select(select) => select,
            Statement::Declare(declare) => Box::new(declare.select),
            Statement::Copy(copy) => match copy.direction {
                CopyDirection::SelectToStdout(select) => select,
                other => panic!("{other:?}"),
            },
            Statement::Prepare(prepare) => select_of(prepare.statement),
            Statement::Explain(explain) => select_of(*explain.statement),
            other => panic!("{other:?}"),
        };
        let bound = bind_push_options(&select).unwrap();
        assert_eq!((bound.group.unwrap().as_str(), bound.auto_commit), ("g", false), "{text}");
    }
}

fn select_of(parsed: Parsed) -> Box<Select> {
    match parsed.statement {
        Statement::Select(select) => select,
        other => panic!("{other:?}"),
    }
}

const REFUSED: &[(&str, &str, usize)] = &[
    ("CREATE STREAM s (a integer, a text)", "42701", 29),
    ("CREATE STREAM s (rowtime timestamptz)", "42939", 18),
    ("CREATE STREAM s (\"windowend\" int)", "42939", 18),
    ("CREATE STREAM s (a nonsense)", "42704", 20),
    ("CREATE STREAM s (a a.b.c)", "42704", 20),
    ("CREATE STREAM s (a varchar(0))", "22023", 20),
    ("CREATE STREAM s (a varchar(10485761))", "22023", 20),
    ("CREATE STREAM s (a numeric(39))", "22023", 20),
    ("CREATE STREAM s (a numeric(5, 6))", "22023", 20),
    ("CREATE STREAM s (a numeric(5, -1))", "22023", 20),
    ("CREATE STREAM s (a float(54))", "22023", 20),
    ("CREATE STREAM s (a timestamp(3))", "0A000", 20),
    ("CREATE STREAM s (a timetz)", "0A000", 20),
    ("CREATE STREAM s (a interval day to second)", "0A000", 20),
    ("CREATE STREAM s (a serial)", "0A000", 20),
    ("CREATE STREAM s (a tinyint)", "42704", 20),
    ("CREATE STREAM s (a int[][])", "0A000", 20),
    ("CREATE STREAM s (a int[3])", "0A000", 20),
    ("CREATE STREAM s (a ARRAY<ARRAY<INT>>)", "0A000", 20),
    ("CREATE STREAM s (a int DEFAULT b)", "0A000", 32),
    ("CREATE STREAM s (a int DEFAULT (SELECT 1))", "0A000", 24),
    ("CREATE STREAM s (a int DEFAULT $1)", "42P02", 32),
    ("CREATE STREAM s (a integer PRIMARY KEY)", "0A000", 28),
    ("CREATE STREAM s (a integer, PRIMARY KEY (a))", "0A000", 42),
    ("CREATE TABLE s (a integer KEY)", "0A000", 27),
    ("CREATE TABLE s (a json PRIMARY KEY)", "42883", 24),
    ("CREATE TABLE s (a integer PRIMARY KEY, b integer, PRIMARY KEY (b))", "42P16", 64),
    ("CREATE TABLE s (a integer PRIMARY KEY, b integer PRIMARY KEY)", "42P16", 50),
    ("CREATE TABLE s (a integer, PRIMARY KEY (b))", "42703", 41),
    ("CREATE TABLE s (a integer, PRIMARY KEY (a, a))", "42701", 44),
    ("CREATE STREAM s (a text) WITH (timestamp = 'a')", "42804", 44),
    ("CREATE STREAM s (a text) WITH (timestamp = 'b')", "42703", 44),
    ("CREATE STREAM s (a date, WATERMARK FOR a AS a)", "42804", 40),
    ("CREATE STREAM s (a timestamp, b timestamp, WATERMARK FOR a AS a) WITH (timestamp = 'b')", "42P17", 84),
    ("CREATE STREAM s (a text) WITH (partitions = 0)", "22023", 45),
    ("CREATE STREAM s (a text) WITH (partitions = 10001)", "22023", 45),
    ("CREATE STREAM s (a text) WITH (partitions = 'x')", "22023", 45),
    ("CREATE STREAM s (a text) WITH (replication_factor = 2)", "22023", 53),
    ("CREATE STREAM s (a text) WITH (retention = '0 s')", "22023", 44),
    ("CREATE TABLE s (a text) WITH (retention = '7 days')", "22023", 31),
    ("CREATE TABLE s (a text) WITH (retention_bytes = 1000)", "22023", 31),
    ("CREATE STREAM s (a text) WITH (delete_retention = '1 hour')", "22023", 32),
    ("CREATE TABLE s WITH (retention = '1 day') AS SELECT * FROM x", "22023", 22),
    ("CREATE STREAM s WITH (cleanup_policy = 'compact') AS SELECT * FROM x", "22023", 23),
    ("CREATE STREAM s (a text) WITH (retention = 'soon')", "22023", 44),
    ("CREATE STREAM s (a text) WITH (retention_bytes = '1 GB')", "22023", 50),
    ("CREATE STREAM s (a text) WITH (cleanup_policy = 'compact')", "22023", 32),
    ("CREATE STREAM s (a text) WITH (cleanup_policy = 'x')", "22023", 49),
    ("CREATE STREAM s (a text) WITH (durability = 'fast')", "22023", 45),
    ("CREATE STREAM s (a text) WITH (compression = 'gzip')", "22023", 46),
    ("CREATE STREAM s (a text) WITH (nonsense = 1)", "22023", 32),
    ("CREATE STREAM s (a text) WITH (kafka_topic = 's')", "22023", 32),
    ("CREATE STREAM s (a text) WITH (emit = 'changes')", "22023", 32),
    ("CREATE STREAM s WITH (emit = 'sometimes') AS SELECT * FROM x", "22023", 30),
    ("CREATE STREAM s WITH (on_error = 'retry') AS SELECT * FROM x", "22023", 34),
    ("CREATE STREAM s WITH (grace = 'soon') AS SELECT * FROM x", "22023", 31),
    ("CREATE STREAM s WITH (grace = '-1 s') AS SELECT * FROM x", "22023", 31),
    ("CREATE STREAM s WITH (timestamp = 'a') AS SELECT * FROM x", "0A000", 23),
    ("CREATE STREAM s WITH (idle_timeout = '-1 second') AS SELECT * FROM x", "22023", 38),
    ("CREATE STREAM s WITH (auto_offset_reset = 'none') AS SELECT * FROM x", "22023", 43),
    ("CREATE STREAM s WITH (group = 'g') AS SELECT * FROM x", "22023", 23),
    ("CREATE STREAM s WITH (auto_commit = false) AS SELECT * FROM x", "22023", 23),
    ("SELECT * FROM x EMIT CHANGES WITH (group = '')", "22023", 44),
    ("SELECT * FROM x EMIT CHANGES WITH (group = 7)", "22023", 44),
    ("SELECT * FROM x EMIT CHANGES WITH (group = E'a\\nb')", "22023", 44),
    ("SELECT * FROM x EMIT CHANGES WITH (auto_commit = true)", "22023", 36),
    ("SELECT * FROM x EMIT CHANGES WITH (mode = 'partition')", "22023", 36),
    ("SELECT * FROM x EMIT CHANGES WITH (auto_commit_interval = '1s')", "22023", 36),
    ("SELECT * FROM x EMIT CHANGES WITH (auto_commit_interval = '1s', group = g, auto_commit = off)", "22023", 36),
    ("SELECT * FROM x EMIT CHANGES WITH (group = g, auto_commit_interval = '0s')", "22023", 70),
    ("SELECT * FROM x EMIT CHANGES WITH (group = g, auto_commit_interval = 5000)", "22023", 70),
    ("SELECT * FROM x EMIT CHANGES WITH (group = g, 'auto.commit.interval.ms' = 5000)", "22023", 47),
    ("SELECT * FROM x EMIT CHANGES WITH (group = 'g', mode = 'queue')", "0A000", 56),
    ("SELECT * FROM x EMIT CHANGES WITH (group = 'g', mode = 'share')", "22023", 56),
    ("SELECT * FROM x EMIT CHANGES WITH (group = 'g', auto_commit = 1)", "22023", 63),
    ("SELECT * FROM x EMIT CHANGES WITH (group = 'g', auto_commit = perhaps)", "22023", 63),
    ("SELECT * FROM x EMIT CHANGES WITH (auto_offset_reset = 'none')", "22023", 56),
    ("SELECT * FROM x EMIT CHANGES WITH (auto_offset_reset = 'foo', group = 'g')", "22023", 56),
    ("SELECT * FROM x EMIT CHANGES WITH (auto_offset_reset = 'foo')", "22023", 56),
    ("SELECT * FROM x EMIT CHANGES WITH (foo = 'foo')", "22023", 36),
];

#[test]
fn what_is_wrong_or_without_effect_is_refused() {
    let mut failed = Vec::new();
    for (text, code, position) in REFUSED {
        match bind(text) {
            Ok(_) => failed.push(format!("accepted: {text}")),
            Err(error) => {
                if error.sqlstate.code() != *code || error.position.unwrap_or(0) != *position {
                    failed.push(format!("{text}\n  wanted {code} at {position}: {error:?}"));
                }
                if *code == "0A000" && error.hint.is_none() {
                    failed.push(format!("{text}\n  no hint"));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn cleanup_is_bound() {
    let text = "CREATE TABLE t (a text PRIMARY KEY) WITH (retention = '7 days', retention_bytes = '1 GiB', \
                cleanup_policy = 'delete, compact', delete_retention = '1 hour')";
    let relation = bind(text).unwrap();
    let expected = Cleanup {
        policy: Some(CleanupPolicy::CompactDelete),
        retention: Some(Span::from_secs(7 * 86_400)),
        retention_bytes: Some(ByteSize::new(1 << 30)),
        delete_retention: Some(Span::from_secs(3_600)),
    };
    assert_eq!(relation.options.cleanup, expected);
    let policy = |text| bind(text).unwrap().cleanup_policy();
    assert_eq!(policy("CREATE TABLE t (a text PRIMARY KEY)"), CleanupPolicy::Compact);
    assert_eq!(policy("CREATE STREAM s (a text) WITH (retention_bytes = 1)"), CleanupPolicy::Delete);
    assert_eq!(policy("CREATE STREAM s (a text KEY) WITH (cleanup_policy = 'compact')"), CleanupPolicy::Compact);
}

#[test]
fn options_that_say_the_default_are_taken() {
    for text in [
        "CREATE STREAM s (a text) WITH (partitions = 10000, retention = 'forever', durability = 'sync')",
        "CREATE STREAM s (a text) WITH (cleanup_policy = 'delete', compression = 'none')",
        "CREATE TABLE s (a text) WITH (cleanup_policy = 'compact', replication_factor = 1)",
    ] {
        bind(text).unwrap();
    }
}

#[test]
fn columns_are_bounded() {
    let columns = |n: usize| (0..n).map(|i| format!("c{i} int")).collect::<Vec<_>>().join(", ");
    assert!(bind(&format!("CREATE STREAM s ({})", columns(limit::COLUMNS_MAX))).is_ok());
    let error = bind(&format!("CREATE STREAM s ({})", columns(limit::COLUMNS_MAX + 1))).unwrap_err();
    assert_eq!(error.sqlstate.code(), "54011");
    let name = "x".repeat(limit::NAME_BYTES_MAX + 1);
    assert_eq!(bind(&format!("CREATE STREAM {name} (a int)")).unwrap_err().sqlstate.code(), "42622");
}
