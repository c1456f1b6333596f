//! How the operations of an entry are encoded.
//!
//! | field | bytes | |
//! |---|---|---|
//! | version | u8 | 1 |
//! | kind | u8 | 0 blank, 1 membership (JSON follows), 2 writes, 3 change |
//!
//! Writes: `count u32` batches of `topic u64, partition u32, rows u64, ipc bytes`, then `count u32` writes:
//!
//! | kind u8 | fields |
//! |---|---|
//! | 1 append | parts |
//! | 2 step | `query u64, step u64, now i64, input u64, late u64`, positions, idle, parts |
//! | 28 step that left events out | as 2, with `skipped u64` after `late` |
//! | 3 checkpoint | `query u64, step u64`, positions, `fingerprint bytes, state bytes` |
//! | 29 checkpoint with files | as 3, then `count u32` of `file u64` |
//! | 20 conditional append | `now i64`, claims, parts, guards, `stage u64` |
//! | 21 stage | `stage u64`, parts |
//! | 22 abort | `stage u64` |
//! | 23 prepare | `shard u32, transaction u64`, then as 20 |
//! | 24 commit of what was prepared | `stage u64` |
//! | 25 decide | `transaction u64` |
//! | 26 forget a decision | `transaction u64` |
//! | 27 abort of what is not prepared | `stage u64` |
//! | 37 append with commits of groups | as 20, then commits |
//! | 38 prepare with commits of groups | as 23, then commits |
//! | 39 take | `now i64, group bytes`, takes |
//!
//! Parts are `count u32` of `batch u32, rows u64`: the next rows of that batch which no earlier part took. So
//! many small statements share one batch per partition. Positions are `count u32` of `topic u64, partition
//! u32, offset u64`; idle is the same without offsets; claims are `count u32` of `producer bytes, topic u64, sequence
//! u64, rows u64`; guards are `count u32`, 0 or that of the parts, and for each part `count u32` of key columns and, unless
//! it is 0, `column u32` each and `position u64`; commits are `count u32` of `group bytes, topic u64, partition u32, offset
//! u64, rows u32, epoch u64`, the epoch being 0 for none; takes are `count u32` of `topic u64, partition u32, mode u8, offset
//! u64` (mode 0 reads, 1 begins, 2 sets); a stage is 0 for none, or a new one; `bytes` are `length u64` and the bytes.
//!
//! Change: `kind u8` (1 create topic, 2 drop topic, 3 create query, 4 drop query, 5 catalog command, 6 seal, 30 move
//! log starts, 31 truncate, 32 alter topic, 35 replace segments, 36 end query, 40 drop groups), then its fields.
//! A batch has the columns that the topic had when it was made: those of its schema, or only the first of them.

use super::super::codec::{DecodeError, Decoder, Encoder, decode_compression, encode_compression};
use super::super::groups::decode_group;
use super::super::ipc::encode_batch;
use super::super::raft::{Membership, Payload};
use super::super::types::{
    Checkpoint, Decider, GroupCommit, GroupPosition, GroupTake, Guard, PartitionPosition, ProducerClaim, TakePartition,
    Taking,
};
use super::super::upkeep::{decode_rewrites, encode_rewrites};
use super::{AppendWrite, Change, EntryData, Operations, Part, StepWrite, Write, WriteBatch, WriteRows, Writes};
use crate::storage::TopicStorage;
use arrow::ipc::root_as_message;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions};
use bytes::Bytes;
use millstream_catalog::model::{
    Durability, GroupEpoch, Offset, PartitionId, ProducerId, QueryId, RowCount, Sequence, ShardId, StageId, StepNumber,
    Timestamp, TopicId, TransactionId,
};
use millstream_catalog::persist::{decode_command, encode_command};
use openraft::EntryPayload;
use std::collections::BTreeMap;
use std::sync::Arc;

const VERSION: u8 = 1;
const BLANK: u8 = 0;
const MEMBERSHIP: u8 = 1;
const WRITES: u8 = 2;
const CHANGE: u8 = 3;
/// The payload of an entry that does nothing; what follows it is not looked at.
pub(in crate::replication) const BLANK_PAYLOAD: [u8; 2] = [VERSION, BLANK];
const REWRITE: u8 = 35;

/// The payload of an entry as the WAL keeps it; shares the bytes of normal entries.
pub(crate) fn encode_payload(payload: &Payload) -> Result<Bytes, String> {
    match payload {
        EntryPayload::Blank => Ok(Bytes::from_static(&BLANK_PAYLOAD)),
        EntryPayload::Normal(data) => Ok(data.bytes.clone()),
        EntryPayload::Membership(membership) => {
            let mut bytes = vec![VERSION, MEMBERSHIP];
            serde_json::to_writer(&mut bytes, membership).map_err(|e| e.to_string())?;
            Ok(Bytes::from(bytes))
        }
    }
}

/// The payload in bytes from the WAL; normal entries are decoded when they are applied.
pub(crate) fn decode_payload(bytes: Bytes) -> Result<Payload, DecodeError> {
    let mut decoder = Decoder::new(bytes.clone());
    decoder.version(VERSION)?;
    match decoder.u8()? {
        BLANK => Ok(EntryPayload::Blank),
        MEMBERSHIP => Ok(EntryPayload::Membership(decode_membership(&bytes.slice(2..))?)),
        WRITES | CHANGE => {
            Ok(EntryPayload::Normal(EntryData { bytes, operations: None, durability: Durability::Sync }))
        }
        kind => Err(DecodeError::Kind(kind)),
    }
}

pub(crate) fn decode_membership(json: &[u8]) -> Result<Membership, DecodeError> {
    serde_json::from_slice(json).map_err(|e| DecodeError::Damaged(e.to_string()))
}

pub(super) fn encode(operations: &Operations) -> Result<Bytes, String> {
    match operations {
        Operations::Writes(writes) => encode_writes(writes),
        Operations::Change(change) => Ok(encode_change(change)),
    }
}

/// The kind of a step that left events out.
const STEP_SKIPPING: u8 = 28;
const CHECKPOINT_FILES: u8 = 29;
/// Kinds of appends with commits of groups.
const APPEND_COMMITTING: u8 = 37;
const PREPARE_COMMITTING: u8 = 38;

/// Whether the payload of an entry replaces segments.
pub(super) fn is_rewrite(bytes: &[u8]) -> bool {
    bytes.get(1..3) == Some(&[CHANGE, REWRITE])
}

pub(super) fn decode(bytes: Bytes) -> Result<Operations, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    decoder.version(VERSION)?;
    let operations = match decoder.u8()? {
        WRITES => Operations::Writes(decode_writes(&mut decoder)?),
        CHANGE => Operations::Change(decode_change(&mut decoder)?),
        kind => return Err(DecodeError::Kind(kind)),
    };
    decoder.finish()?;
    Ok(operations)
}

fn encode_writes(writes: &Writes) -> Result<Bytes, String> {
    let mut messages = Vec::with_capacity(writes.batches.len());
    for batch in &writes.batches {
        messages.push(match &batch.data {
            WriteRows::Decoded(rows) => encode_batch(rows)?,
            WriteRows::Encoded(bytes) => (bytes.to_vec(), Vec::new()),
        });
    }
    let rows: usize = messages.iter().map(|(head, body)| head.len() + body.len() + 28).sum();
    let mut encoder = Encoder::with_capacity(rows + 64 * writes.writes.len() + 16);
    encoder.u8(VERSION);
    encoder.u8(WRITES);
    encoder.count(writes.batches.len());
    for (batch, (head, body)) in writes.batches.iter().zip(&messages) {
        encoder.partition(batch.topic, batch.partition);
        encoder.u64(batch.rows.value());
        encoder.bytes_of_two(head, body);
    }
    encoder.count(writes.writes.len());
    for write in &writes.writes {
        encode_write(&mut encoder, write);
    }
    Ok(encoder.finish())
}

fn encode_write(encoder: &mut Encoder, write: &Write) {
    match write {
        Write::Append(append) if append.is_unconditional() => {
            encoder.u8(1);
            encode_parts(encoder, &append.parts);
        }
        Write::Append(append) => {
            encoder.u8(if append.commits.is_empty() { 20 } else { APPEND_COMMITTING });
            encode_append(encoder, append);
        }
        Write::Stage(stage, parts) => {
            encoder.u8(21);
            encoder.u64(stage.map_or(0, |stage| stage.value()));
            encode_parts(encoder, parts);
        }
        Write::Abort(stage) => encode_id(encoder, 22, stage.value()),
        Write::Prepare(decider, append) => {
            encoder.u8(if append.commits.is_empty() { 23 } else { PREPARE_COMMITTING });
            encoder.u32(decider.shard.value());
            encoder.u64(decider.transaction.value());
            encode_append(encoder, append);
        }
        Write::Commit(stage) => encode_id(encoder, 24, stage.value()),
        Write::Decide(transaction) => encode_id(encoder, 25, transaction.value()),
        Write::Forget(transaction) => encode_id(encoder, 26, transaction.value()),
        Write::GiveUp(stage) => encode_id(encoder, 27, stage.value()),
        Write::Step(step) => {
            let has_skipped = step.skipped_rows > RowCount::ZERO;
            encoder.u8(if has_skipped { STEP_SKIPPING } else { 2 });
            encoder.u64(step.query.value());
            encoder.u64(step.step.value());
            encoder.i64(step.now.micros());
            encoder.u64(step.input_rows.value());
            encoder.u64(step.late_rows.value());
            if has_skipped {
                encoder.u64(step.skipped_rows.value());
            }
            encode_positions(encoder, &step.positions);
            encode_idle(encoder, &step.idle);
            encode_parts(encoder, &step.outputs);
        }
        Write::Checkpoint(checkpoint) => {
            encoder.u8(if checkpoint.files.is_empty() { 3 } else { CHECKPOINT_FILES });
            encode_checkpoint(encoder, checkpoint);
            if !checkpoint.files.is_empty() {
                encode_files(encoder, &checkpoint.files);
            }
        }
        Write::Take(take) => {
            encoder.u8(39);
            encode_take(encoder, take);
        }
    }
}

fn encode_id(encoder: &mut Encoder, kind: u8, id: u64) {
    encoder.u8(kind);
    encoder.u64(id);
}

fn encode_append(encoder: &mut Encoder, append: &AppendWrite) {
    encoder.i64(append.now.micros());
    encode_claims(encoder, &append.claims);
    encode_parts(encoder, &append.parts);
    encoder.count(append.guards.len());
    append.guards.iter().for_each(|guard| encode_guard(encoder, guard.as_ref()));
    encoder.u64(append.staged.map_or(0, |stage| stage.value()));
    if !append.commits.is_empty() {
        encode_commits(encoder, &append.commits);
    }
}

fn decode_append(decoder: &mut Decoder, commits: Commits) -> Result<AppendWrite, DecodeError> {
    Ok(AppendWrite {
        now: Timestamp::from_micros(decoder.i64()?),
        claims: decode_claims(decoder)?,
        parts: decode_parts(decoder)?,
        guards: decode_guards(decoder)?,
        staged: decode_stage(decoder)?,
        commits: if commits == Commits::Follow { decode_commits(decoder)? } else { Vec::new() },
    })
}

/// Whether commits of groups stand behind an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Commits {
    None,
    Follow,
}

fn encode_commits(encoder: &mut Encoder, commits: &[GroupCommit]) {
    encoder.count(commits.len());
    for commit in commits {
        encoder.bytes(commit.group.as_str().as_bytes());
        encoder.position(commit.topic, commit.partition, commit.position.offset);
        encoder.u32(commit.position.rows);
        encoder.u64(commit.epoch.map_or(0, |epoch| epoch.value()));
    }
}

fn decode_commits(decoder: &mut Decoder) -> Result<Vec<GroupCommit>, DecodeError> {
    let count = decoder.count(40)?;
    let commit = |decoder: &mut Decoder| {
        let group = decode_group(decoder)?;
        let (topic, partition, offset) = decoder.position()?;
        let position = GroupPosition { offset, rows: decoder.u32()? };
        let epoch = Some(decoder.u64()?).filter(|epoch| *epoch > 0).map(GroupEpoch::new);
        Ok(GroupCommit { group, topic, partition, epoch, position })
    };
    (0..count).map(|_| commit(decoder)).collect()
}

fn encode_take(encoder: &mut Encoder, take: &GroupTake) {
    encoder.i64(take.now.micros());
    encoder.bytes(take.group.as_str().as_bytes());
    encoder.count(take.partitions.len());
    for part in &take.partitions {
        encoder.partition(part.topic, part.partition);
        let (mode, offset) = match part.taking {
            Taking::Read => (0, Offset::ZERO),
            Taking::Begin(offset) => (1, offset),
            Taking::Set(offset) => (2, offset),
        };
        encoder.u8(mode);
        encoder.u64(offset.value());
    }
}

fn decode_take(decoder: &mut Decoder) -> Result<GroupTake, DecodeError> {
    let (now, group) = (Timestamp::from_micros(decoder.i64()?), decode_group(decoder)?);
    let count = decoder.count(21)?;
    let part = |decoder: &mut Decoder| {
        let (topic, partition) = decoder.partition()?;
        let (mode, offset) = (decoder.u8()?, Offset::new(decoder.u64()?));
        let taking = match mode {
            0 => Taking::Read,
            1 => Taking::Begin(offset),
            2 => Taking::Set(offset),
            mode => return Err(DecodeError::Kind(mode)),
        };
        Ok(TakePartition { topic, partition, taking })
    };
    Ok(GroupTake { group, now, partitions: (0..count).map(|_| part(decoder)).collect::<Result<_, _>>()? })
}

fn decode_decider(decoder: &mut Decoder) -> Result<Decider, DecodeError> {
    Ok(Decider { shard: ShardId::new(decoder.u32()?), transaction: TransactionId::new(decoder.u64()?) })
}

fn decode_writes(decoder: &mut Decoder) -> Result<Writes, DecodeError> {
    let count = decoder.count(28)?;
    let mut batches = Vec::with_capacity(count);
    for _ in 0..count {
        let (topic, partition) = decoder.partition()?;
        let rows = RowCount::new(decoder.u64()?);
        batches.push(WriteBatch { topic, partition, rows, data: WriteRows::Encoded(decoder.bytes()?) });
    }
    let count = decoder.count(5)?;
    let mut writes = Vec::with_capacity(count);
    for _ in 0..count {
        writes.push(decode_write(decoder)?);
    }
    Ok(Writes { batches, writes })
}

fn decode_write(decoder: &mut Decoder) -> Result<Write, DecodeError> {
    let kind = decoder.u8()?;
    match kind {
        1 => Ok(Write::Append(AppendWrite { parts: decode_parts(decoder)?, ..AppendWrite::default() })),
        20 => Ok(Write::Append(decode_append(decoder, Commits::None)?)),
        APPEND_COMMITTING => Ok(Write::Append(decode_append(decoder, Commits::Follow)?)),
        21 => Ok(Write::Stage(decode_stage(decoder)?, decode_parts(decoder)?)),
        22 => Ok(Write::Abort(StageId::new(decoder.u64()?))),
        23 => Ok(Write::Prepare(decode_decider(decoder)?, decode_append(decoder, Commits::None)?)),
        PREPARE_COMMITTING => Ok(Write::Prepare(decode_decider(decoder)?, decode_append(decoder, Commits::Follow)?)),
        39 => Ok(Write::Take(decode_take(decoder)?)),
        24 => Ok(Write::Commit(StageId::new(decoder.u64()?))),
        25 => Ok(Write::Decide(TransactionId::new(decoder.u64()?))),
        26 => Ok(Write::Forget(TransactionId::new(decoder.u64()?))),
        27 => Ok(Write::GiveUp(StageId::new(decoder.u64()?))),
        2 | STEP_SKIPPING => Ok(Write::Step(StepWrite {
            query: QueryId::new(decoder.u64()?),
            step: StepNumber::new(decoder.u64()?),
            now: Timestamp::from_micros(decoder.i64()?),
            input_rows: RowCount::new(decoder.u64()?),
            late_rows: RowCount::new(decoder.u64()?),
            skipped_rows: RowCount::new(if kind == STEP_SKIPPING { decoder.u64()? } else { 0 }),
            positions: decode_positions(decoder)?,
            idle: decode_idle(decoder)?,
            outputs: decode_parts(decoder)?,
        })),
        3 => Ok(Write::Checkpoint(decode_checkpoint(decoder)?)),
        CHECKPOINT_FILES => {
            let checkpoint = decode_checkpoint(decoder)?;
            Ok(Write::Checkpoint(Checkpoint { files: decode_files(decoder)?, ..checkpoint }))
        }
        kind => Err(DecodeError::Kind(kind)),
    }
}

fn encode_parts(encoder: &mut Encoder, parts: &[Part]) {
    encoder.count(parts.len());
    for part in parts {
        encoder.count(part.batch);
        encoder.u64(part.rows.value());
    }
}

fn encode_guard(encoder: &mut Encoder, guard: Option<&Guard>) {
    let Some(guard) = guard else { return encoder.count(0) };
    encoder.count(guard.key.len());
    guard.key.iter().for_each(|column| encoder.count(*column));
    encoder.u64(guard.position.value());
}

fn decode_guards(decoder: &mut Decoder) -> Result<Vec<Option<Guard>>, DecodeError> {
    let count = decoder.count(4)?;
    (0..count).map(|_| decode_guard(decoder)).collect()
}

fn decode_guard(decoder: &mut Decoder) -> Result<Option<Guard>, DecodeError> {
    let count = decoder.count(4)?;
    if count == 0 {
        return Ok(None);
    }
    let key = (0..count).map(|_| Ok(decoder.u32()? as usize)).collect::<Result<_, _>>()?;
    Ok(Some(Guard { key, position: Offset::new(decoder.u64()?) }))
}

fn decode_parts(decoder: &mut Decoder) -> Result<Vec<Part>, DecodeError> {
    let count = decoder.count(12)?;
    let part = |decoder: &mut Decoder| Ok(Part { batch: decoder.u32()? as usize, rows: RowCount::new(decoder.u64()?) });
    (0..count).map(|_| part(decoder)).collect()
}

fn decode_stage(decoder: &mut Decoder) -> Result<Option<StageId>, DecodeError> {
    Ok(Some(decoder.u64()?).filter(|stage| *stage > 0).map(StageId::new))
}

fn encode_claims(encoder: &mut Encoder, claims: &[ProducerClaim]) {
    encoder.count(claims.len());
    for claim in claims {
        encoder.bytes(claim.producer.as_str().as_bytes());
        encoder.u64(claim.topic.value());
        encoder.u64(claim.sequence.value());
        encoder.u64(claim.rows.value());
    }
}

fn decode_claims(decoder: &mut Decoder) -> Result<Vec<ProducerClaim>, DecodeError> {
    let count = decoder.count(32)?;
    let claim = |decoder: &mut Decoder| {
        Ok(ProducerClaim {
            producer: decode_producer(decoder)?,
            topic: TopicId::new(decoder.u64()?),
            sequence: Sequence::new(decoder.u64()?),
            rows: RowCount::new(decoder.u64()?),
        })
    };
    (0..count).map(|_| claim(decoder)).collect()
}

pub(crate) fn decode_producer(decoder: &mut Decoder) -> Result<ProducerId, DecodeError> {
    ProducerId::new(decoder.text()?).map_err(|e| DecodeError::Damaged(e.to_string()))
}

pub(crate) fn encode_positions(encoder: &mut Encoder, positions: &[PartitionPosition]) {
    encoder.count(positions.len());
    for (topic, partition, offset) in positions {
        encoder.position(*topic, *partition, *offset);
    }
}

pub(crate) fn decode_positions(decoder: &mut Decoder) -> Result<Vec<PartitionPosition>, DecodeError> {
    let count = decoder.count(20)?;
    (0..count).map(|_| decoder.position()).collect()
}

pub(crate) fn encode_position_map(encoder: &mut Encoder, positions: &BTreeMap<(TopicId, PartitionId), Offset>) {
    encoder.count(positions.len());
    for ((topic, partition), offset) in positions {
        encoder.position(*topic, *partition, *offset);
    }
}

pub(crate) fn decode_position_map(
    decoder: &mut Decoder,
) -> Result<BTreeMap<(TopicId, PartitionId), Offset>, DecodeError> {
    Ok(decode_positions(decoder)?.into_iter().map(|(topic, partition, offset)| ((topic, partition), offset)).collect())
}

pub(crate) fn encode_idle(encoder: &mut Encoder, idle: &[(TopicId, PartitionId)]) {
    encoder.count(idle.len());
    for (topic, partition) in idle {
        encoder.partition(*topic, *partition);
    }
}

pub(crate) fn decode_idle(decoder: &mut Decoder) -> Result<Vec<(TopicId, PartitionId)>, DecodeError> {
    let count = decoder.count(12)?;
    (0..count).map(|_| decoder.partition()).collect()
}

pub(crate) fn encode_checkpoint(encoder: &mut Encoder, checkpoint: &Checkpoint) {
    encoder.u64(checkpoint.query.value());
    encoder.u64(checkpoint.step.value());
    encode_position_map(encoder, &checkpoint.positions);
    encoder.bytes(checkpoint.fingerprint.as_bytes());
    encoder.bytes(&checkpoint.state);
}

/// The files that a checkpoint names.
pub(crate) fn encode_files(encoder: &mut Encoder, files: &[u64]) {
    encoder.count(files.len());
    files.iter().for_each(|file| encoder.u64(*file));
}

/// The reverse of [`encode_files`].
pub(crate) fn decode_files(decoder: &mut Decoder) -> Result<Vec<u64>, DecodeError> {
    let count = decoder.count(8)?;
    (0..count).map(|_| decoder.u64()).collect()
}

pub(crate) fn decode_checkpoint(decoder: &mut Decoder) -> Result<Checkpoint, DecodeError> {
    Ok(Checkpoint {
        query: QueryId::new(decoder.u64()?),
        step: StepNumber::new(decoder.u64()?),
        positions: decode_position_map(decoder)?,
        fingerprint: decoder.text()?,
        state: decoder.bytes()?,
        files: Vec::new(),
    })
}

pub(super) fn encode_change(change: &Change) -> Bytes {
    let mut encoder = Encoder::default();
    encoder.u8(VERSION);
    encoder.u8(CHANGE);
    match change {
        Change::CreateTopic(topic) => {
            encoder.u8(1);
            encode_topic(&mut encoder, topic);
        }
        Change::DropTopic(topic) => {
            encoder.u8(2);
            encoder.u64(topic.value());
        }
        Change::CreateQuery(query, positions) => {
            encoder.u8(3);
            encoder.u64(query.value());
            encode_positions(&mut encoder, positions);
        }
        Change::DropQuery(query) => {
            encoder.u8(4);
            encoder.u64(query.value());
        }
        Change::Catalog(command) => {
            encoder.u8(5);
            encoder.bytes(&encode_command(command));
        }
        Change::Seal => encoder.u8(6),
        Change::AlterTopic(topic) => {
            encoder.u8(32);
            encode_topic(&mut encoder, topic);
        }
        Change::Rewrite(rewrites) => {
            encoder.u8(REWRITE);
            encode_rewrites(&mut encoder, rewrites);
        }
        Change::EndQuery(query) => {
            encoder.u8(36);
            encoder.u64(query.value());
        }
        Change::MoveStarts(positions) => {
            encoder.u8(30);
            encode_positions(&mut encoder, positions);
        }
        Change::Truncate(topics) => {
            encoder.u8(31);
            encoder.count(topics.len());
            topics.iter().for_each(|topic| encoder.u64(topic.value()));
        }
        Change::DropGroups(groups, unless_since) => {
            encoder.u8(40);
            encoder.u8(u8::from(unless_since.is_some()));
            encoder.i64(unless_since.map_or(0, Timestamp::micros));
            encoder.count(groups.len());
            groups.iter().for_each(|group| encoder.bytes(group.as_str().as_bytes()));
        }
    }
    encoder.finish()
}

fn decode_change(decoder: &mut Decoder) -> Result<Change, DecodeError> {
    Ok(match decoder.u8()? {
        1 => Change::CreateTopic(decode_topic(decoder)?),
        2 => Change::DropTopic(TopicId::new(decoder.u64()?)),
        3 => Change::CreateQuery(QueryId::new(decoder.u64()?), decode_positions(decoder)?),
        4 => Change::DropQuery(QueryId::new(decoder.u64()?)),
        5 => {
            let bytes = decoder.bytes()?;
            let command = decode_command(&bytes).map_err(|e| DecodeError::Damaged(e.to_string()))?;
            Change::Catalog(Box::new(command))
        }
        6 => Change::Seal,
        32 => Change::AlterTopic(decode_topic(decoder)?),
        REWRITE => Change::Rewrite(decode_rewrites(decoder)?),
        36 => Change::EndQuery(QueryId::new(decoder.u64()?)),
        30 => Change::MoveStarts(decode_positions(decoder)?),
        31 => {
            let count = decoder.count(8)?;
            Change::Truncate((0..count).map(|_| decoder.u64().map(TopicId::new)).collect::<Result<_, _>>()?)
        }
        40 => {
            let (is_given, since) = (decoder.u8()? != 0, Timestamp::from_micros(decoder.i64()?));
            let count = decoder.count(9)?;
            let groups = (0..count).map(|_| decode_group(decoder)).collect::<Result<_, _>>()?;
            Change::DropGroups(groups, is_given.then_some(since))
        }
        kind => return Err(DecodeError::Kind(kind)),
    })
}

/// `topic u64, partitions u32, compression u8 (0 none, 1 LZ4, 2 ZSTD), schema bytes (an IPC message)`.
fn encode_topic(encoder: &mut Encoder, topic: &TopicStorage) {
    encoder.u64(topic.topic.value());
    encoder.u32(topic.partitions);
    encoder.u8(encode_compression(topic.compression));
    let schema = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(
        &topic.schema,
        &mut DictionaryTracker::new(true),
        &IpcWriteOptions::default(),
    );
    encoder.bytes(&schema.ipc_message);
}

fn decode_topic(decoder: &mut Decoder) -> Result<TopicStorage, DecodeError> {
    let topic = TopicId::new(decoder.u64()?);
    let partitions = decoder.u32()?;
    let compression = decode_compression(decoder.u8()?)?;
    let bytes = decoder.bytes()?;
    let message = root_as_message(&bytes).map_err(|e| DecodeError::Damaged(e.to_string()))?;
    let schema = message.header_as_schema().ok_or(DecodeError::Kind(message.header_type().0))?;
    let schema = arrow::ipc::convert::fb_to_schema(schema);
    Ok(TopicStorage { topic, partitions, schema: Arc::new(schema), compression })
}
