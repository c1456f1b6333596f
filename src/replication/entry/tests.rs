//! Entries survive the log, and damaged ones are errors.

use super::encoding::*;
use super::*;
use crate::replication::raft::Membership;
use crate::replication::types::{GroupPosition, TakePartition, Taking};
use crate::storage::CompactionPlan;
use arrow::array::{BooleanArray, Int64Array, ListArray, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use millstream_catalog::Compression;
use millstream_catalog::model::{GroupEpoch, Offset, ProducerId, Sequence, ShardId};
use openraft::EntryPayload;
use std::collections::BTreeMap;

fn rows() -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new("n", DataType::Int64, true),
        Field::new("s", DataType::Utf8, false),
        Field::new("b", DataType::Boolean, true),
        Field::new("l", DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true))), true),
    ]);
    let list = ListArray::from_iter_primitive::<Int64Type, _, _>([None, Some(vec![Some(1), None]), Some(vec![])]);
    let columns: Vec<arrow::array::ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![Some(1), None, Some(-3)])),
        Arc::new(StringArray::from(vec!["a", "", "long enough to need a few bytes"])),
        Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])),
        Arc::new(list),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).expect("fits")
}

fn append(parts: Vec<Part>) -> Write {
    Write::Append(AppendWrite { parts, ..AppendWrite::default() })
}

fn writes() -> Writes {
    let rows = rows();
    let batch = |rows: RecordBatch| WriteBatch {
        topic: TopicId::new(1),
        partition: PartitionId::new(2),
        rows: RowCount::of(rows.num_rows()),
        data: WriteRows::Decoded(rows),
    };
    let position = (TopicId::new(1), PartitionId::new(0), Offset::new(9));
    let claim = ProducerClaim {
        producer: ProducerId::new("p").expect("a name"),
        topic: TopicId::new(1),
        sequence: Sequence::new(3),
        rows: RowCount::new(2),
    };
    let guard = Guard { position: Offset::new(8), key: Arc::new([0, 2]) };
    let step = StepWrite {
        query: QueryId::new(4),
        step: StepNumber::new(5),
        positions: vec![position],
        idle: vec![(TopicId::new(1), PartitionId::new(1))],
        now: Timestamp::from_micros(-7),
        input_rows: RowCount::new(10),
        late_rows: RowCount::new(2),
        skipped_rows: RowCount::ZERO,
        outputs: vec![Part { batch: 1, rows: RowCount::new(2) }],
    };
    let skipping = StepWrite { step: StepNumber::new(6), skipped_rows: RowCount::new(3), ..step.clone() };
    let checkpoint = Checkpoint {
        query: QueryId::new(4),
        step: StepNumber::new(5),
        positions: BTreeMap::from([((position.0, position.1), position.2)]),
        fingerprint: "f".to_owned(),
        state: Bytes::from_static(b"\0state"),
        files: Vec::new(),
    };
    let group = GroupName::new("g").expect("a name");
    let (topic, partition, offset) = position;
    let epoch = Some(GroupEpoch::new(7));
    let position = GroupPosition { offset, rows: 5 };
    let commit = GroupCommit { group: group.clone(), topic, partition, epoch, position };
    let unfenced = GroupCommit { epoch: None, ..commit.clone() };
    let take = |taking| TakePartition { topic, partition, taking };
    let takes = vec![take(Taking::Read), take(Taking::Begin(offset)), take(Taking::Set(offset))];
    let with_files = Checkpoint { files: vec![3, 9], ..checkpoint.clone() };
    Writes {
        // A slice, as the second: only its own rows may be in the log.
        batches: vec![batch(rows.clone()), batch(rows.slice(1, 2))],
        writes: vec![
            append(vec![Part { batch: 0, rows: RowCount::new(1) }, Part { batch: 0, rows: RowCount::new(2) }]),
            Write::Step(step),
            Write::Step(skipping),
            Write::Checkpoint(checkpoint),
            Write::Checkpoint(with_files),
            append(Vec::new()),
            Write::Append(AppendWrite {
                parts: vec![Part { batch: 1, rows: RowCount::ZERO }, Part { batch: 0, rows: RowCount::ZERO }],
                guards: vec![Some(guard), None],
                claims: vec![claim],
                commits: Vec::new(),
                now: Timestamp::from_micros(5),
                staged: Some(StageId::new(3)),
            }),
            Write::Append(AppendWrite { commits: vec![commit.clone(), unfenced], ..AppendWrite::default() }),
            Write::Prepare(
                Decider { shard: ShardId::new(3), transaction: TransactionId::new(1) },
                AppendWrite { commits: vec![commit], ..AppendWrite::default() },
            ),
            Write::Take(GroupTake { group, now: Timestamp::from_micros(-5), partitions: takes }),
            Write::Stage(None, Vec::new()),
            Write::Stage(Some(StageId::new(9)), Vec::new()),
            Write::Abort(StageId::new(9)),
            Write::Prepare(
                Decider { shard: ShardId::new(3), transaction: TransactionId::new(1 << 40) },
                AppendWrite { staged: Some(StageId::new(4)), ..AppendWrite::default() },
            ),
            Write::Commit(StageId::new(4)),
            Write::Decide(TransactionId::new(1 << 40)),
            Write::Forget(TransactionId::new(1 << 40)),
            Write::GiveUp(StageId::new(9)),
        ],
    }
}

#[test]
fn writes_survive_the_log() {
    let writes = writes();
    let data = EntryData::new(Operations::Writes(self::writes())).expect("encodes");
    let read = decode_payload(data.bytes.clone()).expect("a payload");
    let EntryPayload::Normal(read) = read else { panic!("not normal") };
    assert_eq!(read, data);
    let operations = read.operations().expect("decodes");
    let Operations::Writes(decoded) = &*operations else { panic!("not writes") };
    assert_eq!(decoded.writes, writes.writes);
    assert_eq!(decoded.batches.len(), 2);
    for (decoded, expected) in decoded.batches.iter().zip(&writes.batches) {
        assert_eq!((decoded.topic, decoded.partition), (expected.topic, expected.partition));
        assert_eq!(decoded.rows, expected.rows);
        let schema = rows().schema();
        let (decoded, expected) = (decoded.data.batch(&schema), expected.data.batch(&schema));
        assert_eq!(decoded.expect("decodes"), expected.expect("as it is"));
    }
}

#[test]
fn changes_survive_the_log() {
    let topic =
        TopicStorage { topic: TopicId::new(3), partitions: 8, schema: rows().schema(), compression: Compression::Zstd };
    let position = (TopicId::new(1), PartitionId::new(0), Offset::new(9));
    let rewrite = Rewrite {
        topic: TopicId::new(1),
        partition: PartitionId::new(2),
        offsets: Offset::new(3)..Offset::new(9),
        number: 4,
        compression: Compression::Lz4,
        compaction: Some(CompactionPlan { key: vec![0, 2], tombstones_upto: Offset::new(5), now: Timestamp::MIN }),
    };
    let changes = [
        Change::CreateTopic(topic.clone()),
        Change::AlterTopic(topic),
        Change::DropTopic(TopicId::new(3)),
        Change::CreateQuery(QueryId::new(4), vec![position]),
        Change::DropQuery(QueryId::new(4)),
        Change::Catalog(Box::new(Command::DropRelation { id: TopicId::new(3), cascade: true, keeps_written: true })),
        Change::Seal,
        Change::MoveStarts(vec![position]),
        Change::EndQuery(QueryId::new(4)),
        Change::Rewrite(vec![rewrite.clone(), Rewrite { compaction: None, ..rewrite }]),
        Change::Truncate(vec![TopicId::new(3), TopicId::new(4)]),
    ];
    for change in changes {
        let decoded = decode(encode_change(&change)).expect("decodes");
        let Operations::Change(decoded) = decoded else { panic!("not a change") };
        assert_eq!(format!("{decoded:?}"), format!("{change:?}"));
    }
}

#[test]
fn damaged_bytes_are_errors_and_never_panics() {
    let bytes = EntryData::new(Operations::Writes(writes())).expect("encodes").bytes;
    for cut in 0..bytes.len() {
        assert!(decode(bytes.slice(..cut)).is_err(), "cut at {cut}");
    }
    // A flipped byte may change a value. (The WAL's checksum finds it first; Arrow itself would panic on some.)
    for position in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[position] ^= 0x41;
        let _ = decode(Bytes::from(damaged));
    }
    assert!(matches!(decode_payload(Bytes::from_static(&[2, 0])), Err(DecodeError::Version(2))));
    assert!(matches!(decode_payload(Bytes::from_static(&[1, 9])), Err(DecodeError::Kind(9))));
    assert!(matches!(decode_payload(Bytes::from_static(&[1, 0])), Ok(EntryPayload::Blank)));
}

#[test]
fn a_membership_survives_the_log() {
    let nodes = BTreeMap::from([(7, openraft::BasicNode::new("host:1"))]);
    let membership = Membership::new(vec![[7].into()], nodes).expect("one voter");
    let payload = EntryPayload::Membership(membership);
    assert_eq!(decode_payload(encode_payload(&payload).expect("encodes")), Ok(payload));
}

/// The bytes of version 1, which must open for ever.
#[test]
fn version_1_is_frozen() {
    let drop = Operations::Change(Change::DropTopic(TopicId::new(0x0102)));
    assert_eq!(encode(&drop).expect("encodes"), [1, 3, 2, 2, 1, 0, 0, 0, 0, 0, 0].as_slice());
    let append = Writes {
        batches: vec![WriteBatch {
            topic: TopicId::new(1),
            partition: PartitionId::new(2),
            rows: RowCount::new(3),
            data: WriteRows::Encoded(Bytes::from_static(b"ipc")),
        }],
        writes: vec![append(vec![Part { batch: 0, rows: RowCount::new(3) }])],
    };
    let expected: &[u8] = &[
        1, 2, // version, writes
        1, 0, 0, 0, // batches
        1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, // topic, partition
        3, 0, 0, 0, 0, 0, 0, 0, // rows
        3, 0, 0, 0, 0, 0, 0, 0, b'i', b'p', b'c', //
        1, 0, 0, 0, // writes
        1, 1, 0, 0, 0, // append, parts
        0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, // batch, rows
    ];
    assert_eq!(encode(&Operations::Writes(append)).expect("encodes"), expected);
}
