//! `millstream dump`: what stands in files, for people; of damaged ones what can be read, and where that ends.
//!
//! Owns the words. Leaves out judgement (`check`). Reads only, and takes no lock: files of a running server are fine,
//! and what it replaces or removes meanwhile is said to be gone.

use super::log::{Piece, pieces};
use super::shards::manifest_name;
use crate::replication::inspect::{EntryContent, IDENTITY, read_entry, read_manifest, read_place, read_vote};
use crate::storage::Disk;
use crate::storage::fit::Wanted;
use crate::storage::footer::{SegmentFooter, parse_end};
use crate::storage::frame::{FrameHeader, FrameKind};
use crate::storage::manifest::{MANIFEST, Manifest};
use crate::storage::open_segment::OpenSegment;
use crate::storage::seal::SEGMENTS;
use crate::storage::segment::{SegmentEnd, SegmentExpected};
use crate::storage::wal::file::{DATA_START, FileName, check_header};
use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::reader::StreamReader;
use bytes::Bytes;
use millstream_catalog::model::{EntryIndex, Offset, RowCount};
use millstream_catalog::schema::ROWOFFSET;
use millstream_catalog::{Compression, SqlType};
use millstream_sql::copy::CopyEncoder;
use millstream_sql::dialect::ast::{CopyFormat, CopyHeader, CopyOptions};
use millstream_sql::plan::ResultColumn;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFormat {
    /// Comma-separated values with a header per segment.
    Csv,
    /// One object per line.
    Json,
}

/// What an Arrow file begins with; zeros follow up to the first message.
const MAGIC: &[u8] = b"ARROW1";

/// Prints the file or data directory at `path`.
///
/// # Errors
/// When it cannot be read, or `out` not be written.
pub fn dump(disk: &dyn Disk, path: &Path, rows: Option<RowFormat>, out: &mut dyn Write) -> io::Result<()> {
    let mut dump = Dump { disk, rows, out };
    match disk.list(path) {
        Ok(_) => dump.directory(path),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let bytes = super::read_file(disk, path)?;
            dump.file(&name, &bytes)
        }
        Err(error) => Err(error),
    }
}

struct Dump<'a> {
    disk: &'a dyn Disk,
    rows: Option<RowFormat>,
    out: &'a mut dyn Write,
}

impl Dump<'_> {
    fn directory(&mut self, dir: &Path) -> io::Result<()> {
        let names = |path: &Path| -> io::Result<Vec<String>> {
            let listed = super::list(self.disk, path).map_err(io::Error::other)?;
            Ok(listed.into_iter().map(|entry| entry.name).collect())
        };
        let mut files = vec![IDENTITY.to_owned()];
        let mut shards: Vec<u32> = names(&dir.join("shards"))?.iter().filter_map(|name| name.parse().ok()).collect();
        shards.sort_unstable();
        for shard in shards {
            if names(&dir.join("shards").join(shard.to_string()))?.iter().any(|name| name == MANIFEST) {
                files.push(manifest_name(shard));
            }
            let segments = format!("shards/{shard}/{SEGMENTS}");
            files.extend(names(&dir.join(&segments))?.into_iter().map(|name| format!("{segments}/{name}")));
        }
        let is_log = |name: &String| matches!(FileName::parse(name), FileName::Log(_));
        files.extend(names(&dir.join("wal"))?.into_iter().filter(is_log).map(|name| format!("wal/{name}")));
        for file in files {
            match super::read_file(self.disk, &dir.join(&file)) {
                Ok(bytes) => self.file(&file, &bytes)?,
                Err(error) => writeln!(self.out, "{file}: {error}")?,
            }
        }
        Ok(())
    }

    fn file(&mut self, file: &str, bytes: &Bytes) -> io::Result<()> {
        writeln!(self.out, "{file}: {} bytes", bytes.len())?;
        let name = file.rsplit('/').next().unwrap_or(file);
        match FileName::parse(name) {
            FileName::Log(sequence) => self.log(bytes, sequence),
            _ if name == MANIFEST => self.manifest(bytes),
            _ if name == IDENTITY => {
                String::from_utf8_lossy(bytes).lines().try_for_each(|line| writeln!(self.out, "  {line}"))
            }
            _ if bytes.starts_with(MAGIC) => self.segment(name, bytes),
            _ => writeln!(self.out, "  not a log file, manifest or segment"),
        }
    }

    fn log(&mut self, bytes: &Bytes, sequence: u64) -> io::Result<()> {
        match check_header(bytes, sequence, bytes.len() as u64) {
            Ok(true) => writeln!(self.out, "  {:>10}  file header, sequence {sequence}", 0)?,
            Ok(false) => writeln!(self.out, "  {:>10}  the file's header is damaged", 0)?,
            Err(error) => writeln!(self.out, "  {:>10}  {error}", 0)?,
        }
        let found = match pieces(bytes, sequence) {
            Ok(found) => found,
            Err(error) => return writeln!(self.out, "  {error}"),
        };
        let mut end = DATA_START;
        for (range, piece) in found {
            let frame = bytes.slice(range.start as usize..range.end as usize);
            let what = match &piece {
                Piece::Frame(header) => describe(header, &frame),
                Piece::Payload(header) => format!("{}; DAMAGED: its checksum does not match", describe_head(header)),
                Piece::Header(header, bit) => format!("{}; DAMAGED: bit {bit} of its header", describe_head(header)),
                Piece::Unknown => format!("DAMAGED: {} bytes without a frame", range.end - range.start),
            };
            writeln!(self.out, "  {:>10}  {what}", range.start)?;
            end = range.end;
        }
        writeln!(self.out, "  {end:>10}  no more frames")
    }

    fn manifest(&mut self, bytes: &Bytes) -> io::Result<()> {
        let manifest = match Manifest::decode(bytes) {
            Ok(manifest) => manifest,
            Err(error) => return writeln!(self.out, "  DAMAGED: {error}"),
        };
        match read_manifest(manifest.applied.clone(), manifest.extra.clone()) {
            Ok(content) => writeln!(
                self.out,
                "  shard {}, covers entries up to {} of term {}, {} queries",
                manifest.index.shard,
                content.applied,
                content.term,
                content.queries.len()
            )?,
            Err(error) => writeln!(self.out, "  DAMAGED: {error}")?,
        }
        for topic in &manifest.index.topics {
            for (partition, listed) in topic.partitions.iter().enumerate() {
                let (start, next) = (listed.offset_start, listed.offset_next);
                writeln!(self.out, "  topic {}, partition {partition}: offsets {start} up to {next}", topic.topic)?;
                for segment in &listed.segments {
                    let end = segment.end();
                    let lost = segment.lost.as_ref().map(|why| format!(", LOST: {why}")).unwrap_or_default();
                    writeln!(self.out, "    {} up to {end}  {}{lost}", segment.offset_start, segment.file)?;
                }
            }
        }
        manifest.index.removed.iter().try_for_each(|file| writeln!(self.out, "  to be removed: {file}"))
    }

    fn segment(&mut self, name: &str, bytes: &Bytes) -> io::Result<()> {
        let map = Buffer::from(bytes.clone());
        let parsed = match parse_end(name, &map) {
            Ok(parsed) => parsed,
            Err(error) => {
                writeln!(self.out, "  DAMAGED: {error}; blocks in their order, unverified:")?;
                return self.stream(bytes);
            }
        };
        self.footer(&parsed.footer, &parsed.schema)?;
        let footer = parsed.footer;
        let end_start = footer.parts_end().unwrap_or(0) as usize;
        let end = bytes.get(end_start..).unwrap_or_default();
        let schema: SchemaRef = Arc::new(parsed.schema);
        let expected = SegmentExpected {
            topic: footer.topic,
            partition: footer.partition,
            offset_start: footer.offset_start,
            offset_end: footer.offset_end,
            rows: footer.rows,
            bytes: bytes.len() as u64,
            end: SegmentEnd { bytes: end.len() as u64, crc: crc32c::crc32c(end) },
            compression: Compression::Lz4,
            schema: schema.clone(),
            rowtime: None,
            entries: None,
        };
        let segment = match OpenSegment::of_map(map, name.to_owned(), &expected) {
            Ok(segment) => segment,
            Err(error) => {
                writeln!(self.out, "  DAMAGED: {error}; blocks in their order, unverified:")?;
                return self.stream(bytes);
            }
        };
        for block in 0..segment.blocks() {
            let (range, offsets) = (segment.block_bytes(block), segment.block_offsets(block));
            let read = Wanted::new(&schema, None).and_then(|wanted| segment.read(block, &wanted));
            let state = read.as_ref().err().map(|error| format!(", DAMAGED: {error}")).unwrap_or_default();
            writeln!(
                self.out,
                "  {:>10}  block of offsets {} up to {}{state}",
                range.start, offsets.start, offsets.end
            )?;
            if let Ok(stored) = read {
                self.rows(stored.row_offsets(), &stored.batch)?;
            }
        }
        Ok(())
    }

    fn footer(&mut self, footer: &SegmentFooter, schema: &Schema) -> io::Result<()> {
        let end = footer.offset_end.unwrap_or(footer.offset_start.plus(footer.rows));
        writeln!(
            self.out,
            "  version {}, topic {}, partition {}, offsets {} up to {end}, entries {} to {}",
            footer.version, footer.topic, footer.partition, footer.offset_start, footer.entry_first, footer.entry_last
        )?;
        for (field, column) in schema.fields().iter().zip(&footer.columns) {
            let bounds = match (&column.min, &column.max) {
                (Some(min), Some(max)) => format!(", {min} to {max}"),
                _ => String::new(),
            };
            writeln!(self.out, "  column \"{}\" {}: {} nulls{bounds}", field.name(), field.data_type(), column.nulls)?;
        }
        Ok(())
    }

    /// The record batches of an Arrow file one after the other, without its footer.
    fn stream(&mut self, bytes: &Bytes) -> io::Result<()> {
        let padding = bytes.iter().skip(MAGIC.len()).take_while(|byte| **byte == 0).count();
        let stream = bytes.slice((MAGIC.len() + padding).min(bytes.len())..);
        let reader = match StreamReader::try_new(io::Cursor::new(stream), None) {
            Ok(reader) => reader,
            Err(error) => return writeln!(self.out, "  no schema: {error}"),
        };
        let mut offset = Offset::ZERO;
        for batch in reader {
            match batch {
                Ok(batch) => {
                    let rows = RowCount::of(batch.num_rows());
                    writeln!(self.out, "  block of {} rows, from row {offset} of the segment", rows.value())?;
                    let end = offset.plus(rows);
                    self.rows(Int64Array::from_iter_values(offset.value() as i64..end.value() as i64), &batch)?;
                    offset = end;
                }
                Err(error) => return writeln!(self.out, "  row {offset}: nothing more can be read: {error}"),
            }
        }
        writeln!(self.out, "  {offset} rows in all")
    }

    fn rows(&mut self, offsets: Int64Array, batch: &RecordBatch) -> io::Result<()> {
        let Some(format) = self.rows else { return Ok(()) };
        match encode(format, offsets, batch) {
            Ok(text) => self.out.write_all(&text),
            Err(error) => writeln!(self.out, "  these rows have no text: {error}"),
        }
    }
}

fn encode(format: RowFormat, offsets: Int64Array, batch: &RecordBatch) -> Result<Vec<u8>, String> {
    let mut options = CopyOptions::of(match format {
        RowFormat::Csv => CopyFormat::Csv,
        RowFormat::Json => CopyFormat::Json,
    });
    if format == RowFormat::Csv {
        options.header = CopyHeader::Yes;
    }
    let offsets: ArrayRef = Arc::new(offsets);
    let mut fields = vec![Arc::new(Field::new(ROWOFFSET, DataType::Int64, false))];
    fields.extend(batch.schema_ref().fields().iter().cloned());
    let mut columns = vec![offsets];
    columns.extend(batch.columns().iter().cloned());
    let column = |field: &Arc<Field>| {
        let sql_type = SqlType::of(field).ok_or_else(|| format!("column \"{}\" has an unknown type", field.name()))?;
        Ok::<_, String>(ResultColumn { name: field.name().clone(), sql_type, source: None })
    };
    let described = fields.iter().map(column).collect::<Result<Vec<_>, _>>()?;
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|error| error.to_string())?;
    let mut encoder = CopyEncoder::new(&options, &described).map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    encoder.header(&mut text);
    encoder.begin(&batch).map_err(|error| error.to_string())?;
    while encoder.next(&mut text) {}
    encoder.finish(&mut text);
    Ok(text)
}

fn describe_head(header: &FrameHeader) -> String {
    // As Raft counts, one less than the log.
    let index = header.index.value().saturating_sub(1);
    let FrameHeader { shard, term, length, .. } = header;
    match header.kind {
        FrameKind::Entry => format!("entry      shard {shard}, index {index}, term {term}, {length} bytes"),
        FrameKind::Vote => format!("vote       shard {shard}"),
        FrameKind::Committed => format!("committed  shard {shard}"),
        FrameKind::Truncate => format!("truncate   shard {shard}, after index {index}"),
        FrameKind::Purge => format!("purge      shard {shard}, up to index {index}"),
        FrameKind::End => "end of the file, the log goes on in the next".to_owned(),
        FrameKind::Close => "closed in order".to_owned(),
    }
}

fn describe(header: &FrameHeader, frame: &Bytes) -> String {
    let payload = header.payload(frame).map(Bytes::copy_from_slice).unwrap_or_default();
    let place = |place: Result<(_, EntryIndex), String>| match place {
        Ok((_, index)) => format!("index {index}"),
        Err(error) => format!("DAMAGED: it {error}"),
    };
    let content = match header.kind {
        FrameKind::Entry => match read_entry(payload) {
            Ok(EntryContent::Writes { batches, writes, .. }) => {
                let batch =
                    |(topic, partition, rows): (_, _, RowCount)| format!("{topic}/{partition}: {} rows", rows.value());
                let batches: Vec<String> = batches.into_iter().map(batch).collect();
                format!("{writes} writes to topic/partition {}", batches.join(", "))
            }
            Ok(EntryContent::Catalog(command)) => shorten(&format!("catalog {command:?}")),
            Ok(EntryContent::QueryEnds(query)) => format!("query {query} ends"),
            Ok(EntryContent::Other(text)) => shorten(&text),
            Err(error) => format!("DAMAGED: it {error}"),
        },
        FrameKind::Vote => match read_vote(payload) {
            Ok((term, node, committed)) => format!("term {term}, node {node}{}", if committed { ", won" } else { "" }),
            Err(error) => format!("DAMAGED: it {error}"),
        },
        FrameKind::Committed => place(read_place(payload)),
        FrameKind::Truncate | FrameKind::Purge | FrameKind::End | FrameKind::Close => return describe_head(header),
    };
    format!("{}: {content}", describe_head(header))
}

/// Characters of a definition that are shown.
const TEXT_MAX: usize = 160;

fn shorten(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
