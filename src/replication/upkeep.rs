//! Replacing segments through the log: the bytes of the request, and what each replica does when it is applied.
//!
//! The leader writes the new files first, then proposes the entry; applying it is then a change of views. A replica that
//! has no files for it, a follower or a node that starts again, writes them when the entry comes. Owns that order.
//! Leaves out deciding what is replaced (`storage::upkeep`, asked by the engine) and the files (`storage::rewrite`).
//! Where the files cannot be written, because the disk is full or a block is damaged, the old segments stay: they have
//! the same rows, and more.
//!
//! | field | |
//! |---|---|
//! | count u32 | replacements, each of the fields below |
//! | topic u64, partition u32, offset_start u64, offset_end u64 | the segments |
//! | number u64 | of the replacement in its partition, from 1 |
//! | compression u8 | as of topics |
//! | compaction u8 | 0 none; 1: `count u32` of `column u32`, `tombstones_upto u64, now i64` |

use super::codec::{DecodeError, Decoder, Encoder, decode_compression, encode_compression};
use super::progress::{self, Queries};
use super::read_side::ReadSide;
use crate::env;
use crate::storage::{CompactionPlan, Rewrite, RewriteJob, Rewritten, ShardStore, StorageError};
use millstream_catalog::model::{Offset, Timestamp};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) fn encode_rewrites(encoder: &mut Encoder, rewrites: &[Rewrite]) {
    encoder.count(rewrites.len());
    for rewrite in rewrites {
        encoder.position(rewrite.topic, rewrite.partition, rewrite.offsets.start);
        encoder.u64(rewrite.offsets.end.value());
        encoder.u64(rewrite.number);
        encoder.u8(encode_compression(rewrite.compression));
        match &rewrite.compaction {
            None => encoder.u8(0),
            Some(plan) => {
                encoder.u8(1);
                encoder.count(plan.key.len());
                plan.key.iter().for_each(|column| encoder.u32(*column));
                encoder.u64(plan.tombstones_upto.value());
                encoder.i64(plan.now.micros());
            }
        }
    }
}

pub(crate) fn decode_rewrites(decoder: &mut Decoder) -> Result<Vec<Rewrite>, DecodeError> {
    let count = decoder.count(38)?;
    (0..count).map(|_| decode_rewrite(decoder)).collect()
}

fn decode_rewrite(decoder: &mut Decoder) -> Result<Rewrite, DecodeError> {
    let (topic, partition, start) = decoder.position()?;
    let offsets = start..Offset::new(decoder.u64()?);
    let number = decoder.u64()?;
    let compression = decode_compression(decoder.u8()?)?;
    let compaction = match decoder.u8()? {
        0 => None,
        1 => {
            let count = decoder.count(4)?;
            let key = (0..count).map(|_| decoder.u32()).collect::<Result<_, _>>()?;
            let tombstones_upto = Offset::new(decoder.u64()?);
            Some(CompactionPlan { key, tombstones_upto, now: Timestamp::from_micros(decoder.i64()?) })
        }
        kind => return Err(DecodeError::Kind(kind)),
    };
    Ok(Rewrite { topic, partition, offsets, number, compression, compaction })
}

/// Runs jobs one after another; what cannot be written is left out. Blocks.
///
/// # Errors
/// [`StorageError::SyncFailed`]: the node must stop.
pub(crate) fn run_jobs(
    jobs: Vec<(Rewrite, RewriteJob)>,
    stop: &AtomicBool,
) -> Result<Vec<(Rewrite, Rewritten)>, StorageError> {
    let mut done = Vec::with_capacity(jobs.len());
    for (rewrite, job) in jobs {
        match job.run(stop) {
            Ok(rewritten) => done.push((rewrite, rewritten)),
            Err(StorageError::SyncFailed) => return Err(StorageError::SyncFailed),
            Err(StorageError::Closed) => break,
            Err(error) => {
                let (topic, partition) = (rewrite.topic.value(), rewrite.partition.value());
                tracing::warn!(topic, partition, %error, "segments stay as they are");
            }
        }
    }
    Ok(done)
}

/// The new files of `rewrites` on this replica: those the leader's task wrote, or else written now.
///
/// # Errors
/// [`StorageError::SyncFailed`]: the node must stop.
pub(crate) async fn rewritten(
    store: &ShardStore,
    read: &ReadSide,
    rewrites: &[Rewrite],
) -> Result<Vec<(Rewrite, Rewritten)>, StorageError> {
    let mut done: Vec<_> = read.rewritten.lock().extract_if(.., |(made, _)| rewrites.contains(made)).collect();
    let missing = rewrites.iter().filter(|rewrite| !done.iter().any(|(made, _)| made == *rewrite));
    let missing: Vec<_> = missing.filter_map(|rewrite| Some((rewrite.clone(), store.rewrite_job(rewrite)?))).collect();
    if !missing.is_empty() {
        let jobs = env::spawn_blocking(move || run_jobs(missing, &AtomicBool::new(false)));
        // A job that panicked made nothing that is used.
        done.extend(jobs.await.unwrap_or_else(|_| Ok(Vec::new()))?);
    }
    Ok(done)
}

/// Takes new files into use, where nothing changed since they were decided on.
pub(crate) fn install(store: &mut ShardStore, read: &ReadSide, rewrites: &[Rewrite], done: Vec<(Rewrite, Rewritten)>) {
    for (rewrite, rewritten) in done {
        let is_needed = rewrite.compaction.is_some() && is_held(&read.queries.read(), &rewrite);
        if is_needed {
            store.discard_rewrite(rewritten);
            continue;
        }
        if let Some(bytes) = store.install_rewrite(&rewrite, rewritten) {
            read.bytes_rewritten.fetch_add(bytes.value(), Ordering::Relaxed);
        }
    }
    rewrites.iter().for_each(|rewrite| store.forget_tombstones(rewrite));
}

/// Whether a query needs rows of the range as they were.
fn is_held(queries: &Queries, rewrite: &Rewrite) -> bool {
    let hold = progress::hold(queries, rewrite.topic, rewrite.partition);
    hold.is_some_and(|first| first < rewrite.offsets.end)
}

/// What the leader's task has written, for the entry that is about to be applied.
pub(crate) fn stash(read: &Arc<ReadSide>, done: Vec<(Rewrite, Rewritten)>) {
    read.rewritten.lock().extend(done);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{FaultDisk, TopicStorage};
    use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray};
    use bytes::Bytes;
    use millstream_catalog::Compression;
    use millstream_catalog::model::{EntryIndex, PartitionId, ShardId, TopicId};
    use std::path::Path;

    #[tokio::test]
    async fn an_entry_takes_the_files_it_names_and_leaves_the_others() {
        let (mut store, _) =
            ShardStore::open(Arc::new(FaultDisk::new()), Path::new("/data/shards/1"), ShardId::new(1)).expect("opens");
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1, 2]).with_timezone("UTC"));
        let rows = RecordBatch::try_from_iter([("rowtime", times)]).expect("fits");
        let topic = TopicId::new(1);
        let storage = TopicStorage { topic, partitions: 2, schema: rows.schema(), compression: Compression::None };
        store.create_topic(storage);
        for partition in [0, 1].map(PartitionId::new) {
            store.append(EntryIndex::new(1), topic, partition, rows.clone()).expect("appended");
        }
        store.publish(EntryIndex::new(1));
        let sealed = store.seal(Bytes::new(), Bytes::new()).run().expect("sealed");
        store.install(sealed);
        let rewrites: Vec<Rewrite> = [0, 1]
            .map(|partition| Rewrite {
                topic,
                partition: PartitionId::new(partition),
                offsets: Offset::new(0)..Offset::new(2),
                number: 1,
                compression: Compression::None,
                compaction: None,
            })
            .into();
        let jobs = rewrites.iter().filter_map(|rewrite| Some((rewrite.clone(), store.rewrite_job(rewrite)?))).collect();
        let read = ReadSide::new();
        stash(&read, run_jobs(jobs, &AtomicBool::new(false)).expect("written"));
        for (left, rewrite) in [1, 0].into_iter().zip(&rewrites) {
            let done = rewritten(&store, &read, std::slice::from_ref(rewrite)).await.expect("there");
            assert!(matches!(&done[..], [(made, _)] if made == rewrite));
            assert_eq!(read.rewritten.lock().len(), left);
        }
    }
}
