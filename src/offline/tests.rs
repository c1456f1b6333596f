//! Check and repair against a node's directory on the disk in memory: one flipped bit anywhere, files cut and removed.
//! What a node then reads is compared with a model that shares nothing with the files.

use super::backup::backup;
use super::check::{check, check_and_repair};
use super::dump::{RowFormat, dump};
use super::log::pieces;
use super::{Finding, Severity, read_file};
use crate::replication::{PartitionWrite, Replication, ReplicationConfig};
use crate::storage::footer::parse_end;
use crate::storage::frame::HEADER_BYTES;
use crate::storage::wal::WalOptions;
use crate::storage::wal::file::{DATA_START, FileName};
use crate::storage::{Disk, FaultDisk, ScanRequest, StorageError, TopicStorage};
use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use millstream_catalog::Compression;
use millstream_catalog::model::{ByteSize, NodeId, Offset, PartitionId, ShardId, TopicId};
use millstream_catalog::schema::KEY_METADATA;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DIR: &str = "/data";

fn schema() -> SchemaRef {
    let rowtime = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("v", DataType::Int64, true),
        Field::new("text", DataType::Utf8, true),
        Field::new("rowtime", rowtime, false),
    ]))
}

fn rows(values: &[i64]) -> RecordBatch {
    let texts: StringArray = values.iter().map(|v| Some(format!("the number {v}"))).collect();
    let times = TimestampMicrosecondArray::from(values.to_vec()).with_timezone("UTC");
    let columns = vec![Arc::new(Int64Array::from(values.to_vec())) as _, Arc::new(texts) as _, Arc::new(times) as _];
    RecordBatch::try_new(schema(), columns).unwrap()
}

async fn start(disk: &FaultDisk) -> Result<Replication, String> {
    let (data_dir, node, seal_bytes) = (PathBuf::from(DIR), NodeId::new(1), ByteSize::new(2 << 10));
    let config = ReplicationConfig { data_dir, node, shards: 2, seal_bytes, writes_bytes: ByteSize::new(64 << 20) };
    let wal_options = WalOptions { file_bytes: ByteSize::new(32 << 10), ..WalOptions::default() };
    Replication::start_on(config, Arc::new(disk.clone()), wal_options).await.map_err(|error| error.to_string())
}

/// Values by shard, topic and partition; the place in the list is the offset.
type Model = BTreeMap<(u32, u64, u32), Vec<i64>>;

/// A stopped node of two shards, with rows in segments and in the log.
async fn filled() -> (FaultDisk, Model) {
    let disk = FaultDisk::new();
    let node = start(&disk).await.unwrap();
    let mut model = Model::new();
    for (shard, topic, compression) in [(1, 7, Compression::None), (2, 8, Compression::Lz4)] {
        let shard = node.shard(ShardId::new(shard)).unwrap();
        let topic = TopicStorage { topic: TopicId::new(topic), partitions: 2, schema: schema(), compression };
        shard.create_topic(topic).await.unwrap();
    }
    for round in 0..12 {
        for (shard, topic) in [(1, 7), (2, 8)] {
            let mut parts = Vec::new();
            for partition in 0..2 {
                let stored = model.entry((shard, topic, partition)).or_default();
                let values: Vec<i64> = (0..10).map(|i| round * 100 + i).collect();
                stored.extend(&values);
                let (topic, partition) = (TopicId::new(topic), PartitionId::new(partition));
                parts.push(PartitionWrite { topic, partition, batch: rows(&values), guard: None });
            }
            node.shard(ShardId::new(shard)).unwrap().append(parts).await.unwrap();
        }
    }
    node.shutdown().await;
    drop(node);
    (disk, model)
}

/// Everything a node reads must be in the model at its offset; gives the offsets that are refused.
fn compare(node: &Replication, model: &Model) -> Vec<(u64, u32, u64, u64)> {
    let mut refused = Vec::new();
    for ((shard, topic, partition), values) in model {
        let Some(shard) = node.shard(ShardId::new(*shard)) else { continue };
        let view = shard.partitions().get(TopicId::new(*topic), PartitionId::new(*partition)).unwrap().view();
        assert_eq!(view.offset_end(), Offset::new(values.len() as u64));
        let mut next = 0;
        for batch in view.scan(ScanRequest::all()) {
            match batch {
                Ok(batch) => {
                    assert_eq!(batch.offset_start.value(), next);
                    next += batch.rows().value();
                    let range = batch.offset_start.value() as usize..next as usize;
                    assert_eq!(batch.batch.column(0).as_primitive::<Int64Type>().values(), &values[range]);
                }
                Err(StorageError::DamagedRows { offsets, .. }) => {
                    assert_eq!(offsets.start.value(), next);
                    next = offsets.end.value();
                    refused.push((*topic, *partition, offsets.start.value(), next));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(next, values.len() as u64, "rows are missing");
    }
    refused
}

fn files(disk: &FaultDisk, dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in disk.list(dir).unwrap() {
        let path = dir.join(&entry.name);
        if entry.is_dir { found.extend(files(disk, &path)) } else { found.push(path) }
    }
    found
}

fn name(path: &Path) -> String {
    path.strip_prefix(DIR).unwrap().to_string_lossy().into_owned()
}

/// The bytes of a file that say something.
fn used(disk: &FaultDisk, path: &Path) -> Vec<u64> {
    let bytes = read_file(disk, path).unwrap();
    let FileName::Log(sequence) = FileName::parse(&path.file_name().unwrap().to_string_lossy()) else {
        return (0..bytes.len() as u64).collect();
    };
    let mut used: Vec<u64> = (0..64).collect();
    for (range, piece) in pieces(&bytes, sequence).unwrap() {
        used.extend(range.start..range.start + HEADER_BYTES + u64::from(piece.header().unwrap().length));
    }
    used
}

/// Whether nothing is lost with a file: one that is prepared for later, or the lock.
fn holds_nothing(disk: &FaultDisk, path: &Path) -> bool {
    let is_log = name(path).starts_with("wal/");
    name(path) == "lock" || (is_log && (name(path).ends_with(".spare") || used(disk, path).len() == 64))
}

fn damages(disk: &FaultDisk) -> Vec<Finding> {
    check(Arc::new(disk.clone()), Path::new(DIR)).unwrap().findings
}

fn snapshot(disk: &FaultDisk) -> BTreeMap<PathBuf, bytes::Bytes> {
    files(disk, Path::new(DIR)).into_iter().map(|path| (path.clone(), read_file(disk, &path).unwrap())).collect()
}

/// Flips that a kind of file is given.
const FLIPS: u64 = 24;

#[tokio::test]
async fn one_flipped_bit_anywhere_is_found_named_and_never_read_and_put_back() {
    let (disk, model) = filled().await;
    assert_eq!(damages(&disk), []);
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for path in files(&disk, Path::new(DIR)) {
        let used = used(&disk, &path);
        let file = name(&path);
        let kind = ["wal/", "segments/", "manifest", "node"].into_iter().find(|kind| file.contains(kind)).unwrap_or("");
        let flips = if kind == "segments/" { FLIPS / 6 } else { FLIPS };
        for flip in 0..flips.min(used.len() as u64) {
            let position = used[(flip * 7_919 * 31 % used.len() as u64) as usize];
            let what = format!("{file}, byte {position}, bit {}", flip % 8);
            let bad = disk.crash(0);
            bad.flip_bit(&path, position, (flip % 8) as u8).unwrap();
            *kinds.entry(kind).or_default() += 1;
            let before = snapshot(&bad);
            let found = damages(&bad);
            assert_eq!(snapshot(&bad), before, "{what}: a check writes nothing");
            let named = |finding: &&Finding| {
                finding.file == file && finding.bytes.is_none_or(|(start, end)| (start..end).contains(&position))
            };
            let finding = found.iter().find(named).unwrap_or_else(|| panic!("{what}: {found:?}"));
            // As it is: refused in words, or only rows that the check named cannot be read.
            match start(&bad.crash(0)).await {
                Ok(node) => {
                    for (_, partition, start, end) in compare(&node, &model) {
                        let named = (finding.partition, finding.offsets) == (Some(partition), Some((start, end)));
                        assert!(named, "{what}: {finding}");
                    }
                    node.shutdown().await;
                }
                Err(error) => assert!(error.contains("damaged") || error.contains("missing"), "{what}: {error}"),
            }
            // One bit costs nothing.
            let (_, left) = check_and_repair(Arc::new(bad.clone()), Path::new(DIR)).unwrap();
            assert!(left.is_clean(), "{what}: {left}");
            let node = start(&bad.crash(0)).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(compare(&node, &model), [], "{what}");
            node.shutdown().await;
        }
    }
    assert!(["wal/", "segments/", "manifest", "node"].iter().all(|kind| kinds[kind] >= 8), "{kinds:?}");
}

/// Overwrites bytes with others.
fn scribble(disk: &FaultDisk, path: &Path, range: std::ops::Range<u64>) {
    for position in range {
        disk.flip_bit(path, position, (position % 5) as u8).unwrap();
        disk.flip_bit(path, position, 7).unwrap();
    }
}

#[tokio::test]
async fn a_repair_gives_up_the_broken_rows_and_no_others() {
    let (disk, model) = filled().await;
    let segments: Vec<PathBuf> =
        files(&disk, Path::new(DIR)).into_iter().filter(|path| name(path).contains("segments/t7-p0")).collect();
    for attempt in 0..3 {
        let bad = disk.crash(0);
        let broken = &segments[1];
        let length = read_file(&bad, broken).unwrap().len() as u64;
        match attempt {
            0 => scribble(&bad, broken, 600..700),
            1 => scribble(&bad, broken, length - 200..length - 100),
            _ => bad.remove(broken).unwrap(),
        }
        let (found, left) = check_and_repair(Arc::new(bad.clone()), Path::new(DIR)).unwrap();
        let damage: Vec<&Finding> = found.findings.iter().filter(|f| f.severity == Severity::Damage).collect();
        let [damage] = damage[..] else { panic!("{found}") };
        assert_eq!((damage.file.as_str(), damage.partition), (name(broken).as_str(), Some(0)));
        let (first, end) = damage.offsets.unwrap();
        assert!(left.is_clean() && left.to_string().contains("lost before"), "{left}");
        assert_eq!(
            bad.exists(&Path::new(DIR).join("shards/1/damaged").join(broken.file_name().unwrap())).unwrap(),
            attempt < 2
        );
        let node = start(&bad.crash(0)).await.unwrap();
        assert_eq!(compare(&node, &model), [(7, 0, first, end)]);
        // Writes and seals go on, and the loss stays known.
        let shard = node.shard(ShardId::new(1)).unwrap();
        for _ in 0..3 {
            let (topic, partition) = (TopicId::new(7), PartitionId::new(0));
            let values: Vec<i64> = (0..60).collect();
            shard.append(vec![PartitionWrite { topic, partition, batch: rows(&values), guard: None }]).await.unwrap();
        }
        node.shutdown().await;
        assert!(check(Arc::new(bad.clone()), Path::new(DIR)).unwrap().is_clean());
    }
}

#[tokio::test]
async fn a_repair_that_is_killed_is_run_again() {
    let (disk, model) = filled().await;
    let broken = files(&disk, Path::new(DIR)).into_iter().find(|path| name(path).contains("segments/t7-p1")).unwrap();
    scribble(&disk, &broken, 600..700);
    let mut is_through = false;
    for steps in 0.. {
        let dying = disk.crash(0);
        dying.fail_after(steps);
        is_through = check_and_repair(Arc::new(dying.clone()), Path::new(DIR)).is_ok();
        for seed in 0..4 {
            let after = dying.crash(seed);
            let (_, left) = check_and_repair(Arc::new(after.clone()), Path::new(DIR)).unwrap();
            assert!(left.is_clean(), "step {steps}, seed {seed}: {left}");
            let node = start(&after).await.unwrap();
            assert_eq!(compare(&node, &model).len(), 1, "step {steps}, seed {seed}");
            node.shutdown().await;
        }
        if is_through {
            break;
        }
    }
    assert!(is_through);
}

#[tokio::test]
async fn removed_and_cut_files_are_missed() {
    let (disk, model) = filled().await;
    for path in files(&disk, Path::new(DIR)) {
        let file = name(&path);
        if holds_nothing(&disk, &path) {
            continue;
        }
        for is_cut in [false, true] {
            let bad = disk.crash(0);
            match is_cut {
                true => bad.open(&path).unwrap().set_len(used(&disk, &path).len() as u64 / 2).unwrap(),
                false => bad.remove(&path).unwrap(),
            }
            let found = damages(&bad);
            let is_named = |finding: &Finding| finding.severity == Severity::Damage && finding.file == file;
            assert!(found.iter().any(is_named), "{file}, {is_cut}: {found:?}");
            match start(&bad).await {
                Ok(node) => {
                    compare(&node, &model);
                    node.shutdown().await;
                }
                Err(error) => assert!(error.contains(path.file_name().unwrap().to_str().unwrap()), "{file}: {error}"),
            }
        }
    }
}

#[tokio::test]
async fn the_first_log_file_is_named_when_all_of_a_shard_was_in_it() {
    let disk = FaultDisk::new();
    let node = start(&disk).await.unwrap();
    let shard = node.shard(ShardId::new(1)).unwrap();
    let (topic, partition) = (TopicId::new(7), PartitionId::new(0));
    let storage = TopicStorage { topic, partitions: 1, schema: schema(), compression: Compression::None };
    shard.create_topic(storage).await.unwrap();
    for _ in 0..20 {
        let batch = rows(&(0..100).collect::<Vec<_>>());
        shard.append(vec![PartitionWrite { topic, partition, batch, guard: None }]).await.unwrap();
    }
    node.shutdown().await;
    let first = files(&disk, Path::new(DIR)).into_iter().find(|path| name(path).ends_with(".wal")).unwrap();
    disk.remove(&first).unwrap();
    let found = damages(&disk);
    let is_named = |finding: &Finding| finding.file == name(&first) && finding.what.contains("all entries are missing");
    assert!(found.iter().any(is_named), "{found:?}");
}

#[tokio::test]
async fn a_directory_in_use_is_not_checked_and_another_is_none() {
    let (disk, _) = filled().await;
    let node = start(&disk).await.unwrap();
    let error = check(Arc::new(disk.clone()), Path::new(DIR)).unwrap_err().to_string();
    assert!(error.contains("a server runs on"), "{error}");
    let mut text = Vec::new();
    dump(&disk, Path::new(DIR), Some(RowFormat::Csv), &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("rowoffset,v,text,rowtime") && text.contains("\n9,9,the number 9,"), "{text}");
    node.shutdown().await;
    let error = check(Arc::new(disk), Path::new("/elsewhere")).unwrap_err().to_string();
    assert!(error.contains("not a data directory"), "{error}");
}

#[tokio::test]
async fn a_dump_of_damaged_files_says_where_it_stops() {
    let (disk, _) = filled().await;
    let text = |disk: &FaultDisk, path: &Path| {
        let mut text = Vec::new();
        dump(disk, path, Some(RowFormat::Json), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    };
    let all = files(&disk, Path::new(DIR));
    let segment = all.iter().find(|path| name(path).contains("segments/t7-p0")).unwrap();
    let whole = text(&disk, segment);
    assert!(whole.contains("\"rowoffset\":0,\"v\":0,\"text\":\"the number 0\""), "{whole}");
    let length = read_file(&disk, segment).unwrap().len() as u64;
    scribble(&disk, segment, length - 200..length - 100);
    let salvaged = text(&disk, segment);
    assert!(salvaged.contains("DAMAGED") && salvaged.contains("\"text\":\"the number 0\""), "{salvaged}");
    let log = all.iter().find(|path| !holds_nothing(&disk, path) && name(path).starts_with("wal/")).unwrap();
    assert!(text(&disk, log).contains("no more frames"));
    disk.flip_bit(log, DATA_START + 20, 2).unwrap();
    assert!(text(&disk, log).contains("DAMAGED: bit 162 of its header"), "{}", text(&disk, log));
}

#[tokio::test]
async fn a_dump_of_a_segment_with_bloom_filters_has_its_rows() {
    let disk = FaultDisk::new();
    let node = start(&disk).await.unwrap();
    let shard = node.shard(ShardId::new(1)).unwrap();
    let key = std::collections::HashMap::from([(KEY_METADATA.to_owned(), "0,1".to_owned())]);
    let keyed = Arc::new(schema().as_ref().clone().with_metadata(key));
    let (topic, partition) = (TopicId::new(7), PartitionId::new(0));
    let storage = TopicStorage { topic, partitions: 1, schema: Arc::clone(&keyed), compression: Compression::Lz4 };
    shard.create_topic(storage).await.unwrap();
    let values: Vec<i64> = (0..300).collect();
    let batch = rows(&values).with_schema(keyed).unwrap();
    shard.append(vec![PartitionWrite { topic, partition, batch, guard: None }]).await.unwrap();
    node.shutdown().await;
    let all = files(&disk, Path::new(DIR));
    let segment = all.iter().find(|path| name(path).contains("segments/t7-p0")).expect("sealed");
    let map = Buffer::from(read_file(&disk, segment).unwrap());
    assert_eq!(parse_end("segment", &map).unwrap().footer.blooms.len(), 2);
    for (format, row) in [
        (RowFormat::Csv, "\n{},{},the number {},"),
        (RowFormat::Json, "\n{\"rowoffset\":{},\"v\":{},\"text\":\"the number {}\""),
    ] {
        let mut text = Vec::new();
        dump(&disk, segment, Some(format), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(!text.contains("DAMAGED") && text.contains("offsets 0 up to 300"), "{text}");
        assert!(text.contains("column \"v\" Int64: 0 nulls, 0 to 299"), "{text}");
        for value in &values {
            let row = row.replace("{}", &value.to_string());
            assert_eq!(text.matches(&row).count(), 1, "{row}: {text}");
        }
    }
}

#[tokio::test]
async fn a_backup_into_the_data_directory_is_refused_and_writes_nothing() {
    let (disk, _) = filled().await;
    let (before, steps) = (snapshot(&disk), disk.steps());
    for to in ["/data", "/data/backup", "/data/copies/monday", "/./data/copy", "/elsewhere/../data/copy"] {
        let error = backup(Arc::new(disk.clone()), Path::new(DIR), Path::new(to), None).unwrap_err();
        assert_eq!(error.to_string(), format!("{to} is inside of the data directory"));
        assert_eq!((disk.steps(), snapshot(&disk) == before), (steps, true), "{to}");
    }
    // One whose name only begins alike is another.
    let copied = backup(Arc::new(disk.clone()), Path::new(DIR), Path::new("/data-copy"), None).unwrap();
    assert!(copied.report.is_clean(), "{}", copied.report);
}

#[path = "staged_tests.rs"]
mod staged;
