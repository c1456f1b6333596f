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
    let mut done = std::mem::take(&mut *read.rewritten.lock());
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
pub(crate) fn install(store: &mut ShardStore, read: &ReadSide, done: Vec<(Rewrite, Rewritten)>) {
    for (rewrite, rewritten) in done {
        let is_needed = rewrite.compaction.is_some() && is_read_again(&read.queries.read(), &rewrite);
        if is_needed {
            store.discard_rewrite(rewritten);
            continue;
        }
        if let Some(bytes) = store.install_rewrite(&rewrite, rewritten) {
            read.bytes_rewritten.fetch_add(bytes.value(), Ordering::Relaxed);
        }
    }
}

/// Whether a query would read rows of the range again after a restart: it must find them as they were.
fn is_read_again(queries: &Queries, rewrite: &Rewrite) -> bool {
    let first = progress::first_read_again(queries, rewrite.topic, rewrite.partition);
    first.is_some_and(|first| first < rewrite.offsets.end)
}

/// What the leader's task has written, for the entry that is about to be applied.
pub(crate) fn stash(read: &Arc<ReadSide>, done: Vec<(Rewrite, Rewritten)>) {
    read.rewritten.lock().extend(done);
}
