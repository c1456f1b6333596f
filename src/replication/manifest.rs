//! What a shard's manifest keeps for replication, besides the segments that storage lists itself.
//!
//! Owns two encodings: `applied`, where the state stands in the log, and `extra`, the state that is not in
//! partitions. Leaves out the file, its checksum and its atomic replacement (`storage`).
//!
//! Applied: `version u8, term u64, index u64, membership bytes (JSON), membership log id: u8 0 or 1, term u64,
//! index u64`. Extra: `version u8, catalog u8 0 or 1 and bytes, count u32` queries of `query u64, step u64,
//! input u64, output u64, late u64`, positions, `checkpoint u8 0 or 1` and its fields, `count u32` step records of
//! `step u64, now i64`, positions, idle. Lists as in `entry`. From version 2 of extra on open transactions follow as `bytes` (`stages`), then `count u32` producers, of
//! `topic u64, producer bytes, next u64, at i64`. From version 3 on a query has `skipped u64` after `late`, from
//! version 4 on a checkpoint is followed by `count u32` files of `file u64`, from version 5 on groups follow (`groups`).

use super::codec::{DecodeError, Decoder, Encoder};
use super::entry::{
    decode_checkpoint, decode_files, decode_idle, decode_membership, decode_position_map, decode_positions,
    decode_producer, encode_checkpoint, encode_files, encode_idle, encode_position_map, encode_positions,
};
use super::groups::Groups;
use super::producers::{Produced, Producers};
use super::progress::Queries;
use super::raft::{LogId, SnapshotMeta, StoredMembership, log_id, term_of};
use super::types::{Checkpoint, QueryProgress, StepRecord};
use bytes::Bytes;
use millstream_catalog::State;
use millstream_catalog::model::{EntryIndex, QueryId, RowCount, Sequence, StepNumber, Term, Timestamp, TopicId};
use millstream_catalog::persist::{decode_state, encode_state};

const VERSION: u8 = 1;
const EXTRA_VERSION: u8 = 5;

/// Where the state stands: the last applied entry, and the membership as of it.
pub(crate) fn encode_applied(applied: &LogId, membership: &StoredMembership) -> Result<Bytes, String> {
    let json = serde_json::to_vec(membership.membership()).map_err(|e| e.to_string())?;
    let mut encoder = Encoder::with_capacity(64 + json.len());
    encoder.u8(VERSION);
    encode_id(&mut encoder, applied);
    encoder.bytes(&json);
    match membership.log_id() {
        None => encoder.u8(0),
        Some(id) => {
            encoder.u8(1);
            encode_id(&mut encoder, id);
        }
    }
    Ok(encoder.finish())
}

/// The reverse of [`encode_applied`], as openraft's description of a snapshot.
pub(crate) fn decode_applied(bytes: Bytes) -> Result<SnapshotMeta, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    decoder.version(VERSION)?;
    let applied = decode_id(&mut decoder)?;
    let membership = decode_membership(&decoder.bytes()?)?;
    let membership_id = match decoder.u8()? {
        0 => None,
        1 => Some(decode_id(&mut decoder)?),
        kind => return Err(DecodeError::Kind(kind)),
    };
    decoder.finish()?;
    let last_membership = StoredMembership::new(membership_id, membership);
    Ok(SnapshotMeta { last_log_id: Some(applied), last_membership })
}

fn encode_id(encoder: &mut Encoder, id: &LogId) {
    encoder.u64(term_of(id).value());
    encoder.u64(id.index());
}

fn decode_id(decoder: &mut Decoder) -> Result<LogId, DecodeError> {
    Ok(log_id(Term::new(decoder.u64()?), EntryIndex::new(decoder.u64()?)))
}

/// The state outside partitions, as a manifest has it.
#[derive(Debug, PartialEq)]
pub(crate) struct Extra {
    pub(crate) catalog: Option<State>,
    pub(crate) queries: Queries,
    pub(crate) producers: Producers,
    /// As `stages` encodes them.
    pub(crate) stages: Bytes,
    pub(crate) groups: Groups,
}

/// The state outside partitions.
pub(crate) fn encode_extra(
    catalog: Option<&State>,
    queries: &Queries,
    producers: &Producers,
    stages: &[u8],
    groups: &Groups,
) -> Bytes {
    let mut encoder = Encoder::default();
    encoder.u8(EXTRA_VERSION);
    match catalog {
        None => encoder.u8(0),
        Some(state) => {
            encoder.u8(1);
            encoder.bytes(&encode_state(state));
        }
    }
    encoder.count(queries.len());
    for (query, progress) in queries {
        encode_progress(&mut encoder, *query, progress);
    }
    encoder.bytes(stages);
    encoder.count(producers.len());
    for (topic, producer, produced) in producers.iter() {
        encoder.u64(topic.value());
        encoder.bytes(producer.as_str().as_bytes());
        encoder.u64(produced.next.value());
        encoder.i64(produced.at.micros());
    }
    groups.encode(&mut encoder);
    encoder.finish()
}

/// The reverse of [`encode_extra`].
pub(crate) fn decode_extra(bytes: Bytes) -> Result<Extra, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    let version = decoder.version(EXTRA_VERSION)?;
    let catalog = match decoder.u8()? {
        0 => None,
        1 => Some(decode_state(&decoder.bytes()?).map_err(|e| DecodeError::Damaged(e.to_string()))?),
        kind => return Err(DecodeError::Kind(kind)),
    };
    let count = decoder.count(41)?;
    let mut queries = Queries::new();
    for _ in 0..count {
        let (query, progress) = decode_progress(&mut decoder, version)?;
        queries.insert(query, progress);
    }
    let mut producers = Producers::default();
    let stages = if version < 2 { Bytes::new() } else { decoder.bytes()? };
    let count = if version < 2 { 0 } else { decoder.count(32)? };
    for _ in 0..count {
        let (topic, producer) = (TopicId::new(decoder.u64()?), decode_producer(&mut decoder)?);
        let next = Sequence::new(decoder.u64()?);
        producers.insert(topic, producer, Produced { next, at: Timestamp::from_micros(decoder.i64()?) });
    }
    let groups = if version < 5 { Groups::default() } else { Groups::decode(&mut decoder)? };
    decoder.finish()?;
    Ok(Extra { catalog, queries, producers, stages, groups })
}

fn encode_progress(encoder: &mut Encoder, query: QueryId, progress: &QueryProgress) {
    encoder.u64(query.value());
    encoder.u64(progress.step.value());
    encoder.u64(progress.input_rows.value());
    encoder.u64(progress.output_rows.value());
    encoder.u64(progress.late_rows.value());
    encoder.u64(progress.skipped_rows.value());
    encode_position_map(encoder, &progress.positions);
    match &progress.checkpoint {
        None => encoder.u8(0),
        Some(checkpoint) => {
            encoder.u8(1);
            encode_checkpoint(encoder, checkpoint);
            encode_files(encoder, &checkpoint.files);
        }
    }
    encoder.count(progress.since_checkpoint.len());
    for record in &progress.since_checkpoint {
        encoder.u64(record.step.value());
        encoder.i64(record.now.micros());
        encode_positions(encoder, &record.positions);
        encode_idle(encoder, &record.idle);
    }
}

fn decode_progress(decoder: &mut Decoder, version: u8) -> Result<(QueryId, QueryProgress), DecodeError> {
    let query = QueryId::new(decoder.u64()?);
    let mut progress = QueryProgress {
        step: StepNumber::new(decoder.u64()?),
        input_rows: RowCount::new(decoder.u64()?),
        output_rows: RowCount::new(decoder.u64()?),
        late_rows: RowCount::new(decoder.u64()?),
        skipped_rows: RowCount::new(if version < 3 { 0 } else { decoder.u64()? }),
        positions: decode_position_map(decoder)?,
        ..QueryProgress::default()
    };
    progress.checkpoint = match decoder.u8()? {
        0 => None,
        1 => {
            let checkpoint = decode_checkpoint(decoder)?;
            let files = if version < 4 { Vec::new() } else { decode_files(decoder)? };
            Some(Checkpoint { files, ..checkpoint })
        }
        kind => return Err(DecodeError::Kind(kind)),
    };
    let count = decoder.count(24)?;
    progress.since_checkpoint.reserve(count);
    for _ in 0..count {
        progress.since_checkpoint.push(StepRecord {
            step: StepNumber::new(decoder.u64()?),
            now: Timestamp::from_micros(decoder.i64()?),
            positions: decode_positions(decoder)?,
            idle: decode_idle(decoder)?,
        });
    }
    Ok((query, progress))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::raft::Membership;
    use crate::replication::types::{GroupTake, TakePartition, Taking};
    use millstream_catalog::model::{GroupName, Offset, PartitionId, ProducerId};
    use openraft::BasicNode;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn the_place_in_the_log_survives_encoding() {
        let applied = log_id(Term::new(3), EntryIndex::new(77));
        for membership_id in [None, Some(log_id(Term::new(0), EntryIndex::new(0)))] {
            let nodes = BTreeMap::from([(1, BasicNode::new("a:1"))]);
            let membership = Membership::new(vec![BTreeSet::from([1])], nodes).expect("one voter");
            let stored = StoredMembership::new(membership_id, membership);
            let meta = decode_applied(encode_applied(&applied, &stored).expect("encodes")).expect("decodes");
            assert_eq!(meta.last_log_id, Some(applied));
            assert_eq!(meta.last_membership, stored);
        }
        decode_applied(Bytes::from_static(&[1, 2, 3])).expect_err("short");
    }

    #[test]
    fn the_state_outside_partitions_survives_encoding() {
        let position = (TopicId::new(4), PartitionId::new(2), Offset::new(9));
        let positions = BTreeMap::from([((position.0, position.1), position.2)]);
        let progress = QueryProgress {
            step: StepNumber::new(8),
            positions: positions.clone(),
            input_rows: RowCount::new(1),
            output_rows: RowCount::new(2),
            late_rows: RowCount::new(3),
            skipped_rows: RowCount::new(4),
            checkpoint: Some(Checkpoint {
                query: QueryId::new(5),
                step: StepNumber::new(7),
                positions,
                fingerprint: "abc".to_owned(),
                state: Bytes::from_static(b"\0\x01"),
                files: vec![3, 1 << 40],
            }),
            since_checkpoint: vec![StepRecord {
                step: StepNumber::new(8),
                positions: vec![position],
                idle: vec![(TopicId::new(4), PartitionId::new(3))],
                now: Timestamp::from_micros(-5),
            }],
        };
        let queries = Queries::from([(QueryId::new(5), progress), (QueryId::new(6), QueryProgress::default())]);
        let state = State { version: 12, ..State::default() };
        let mut producers = Producers::default();
        let produced = Produced { next: Sequence::new(7), at: Timestamp::from_micros(3) };
        producers.insert(TopicId::new(4), ProducerId::new("p").expect("a name"), produced);
        let mut groups = Groups::default();
        let begin = TakePartition { topic: position.0, partition: position.1, taking: Taking::Begin(position.2) };
        let (group, now) = (GroupName::new("g").expect("a name"), Timestamp::from_micros(4));
        groups.take(&GroupTake { group, now, partitions: vec![begin] }).expect("taken");
        let bytes = encode_extra(Some(&state), &queries, &producers, b"s", &groups);
        assert_eq!(
            decode_extra(bytes.clone()),
            Ok(Extra { catalog: Some(state), queries, producers, stages: Bytes::from_static(b"s"), groups })
        );
        for cut in 0..bytes.len() {
            decode_extra(bytes.slice(..cut)).expect_err("cut short");
        }
        let (queries, producers, groups) = (Queries::new(), Producers::default(), Groups::default());
        let none = Extra { catalog: None, queries, producers, stages: Bytes::new(), groups };
        let bytes = encode_extra(None, &none.queries, &none.producers, b"", &none.groups);
        assert_eq!(
            decode_extra(bytes.clone()),
            Ok(Extra {
                catalog: None,
                queries: Queries::new(),
                producers: Producers::default(),
                stages: Bytes::new(),
                groups: Groups::default()
            })
        );
        // Version 4 had no groups, version 2 did not count skipped events, version 1 had no producers.
        let fourth = [&[4_u8][..], &bytes[1..bytes.len() - 12]].concat();
        assert_eq!(decode_extra(Bytes::from(fourth)), Ok(none));
        let first = [&[1_u8][..], &bytes[1..bytes.len() - 24]].concat();
        assert_eq!(decode_extra(Bytes::from(first)).map(|extra| extra.producers.len()), Ok(0));
    }
}
