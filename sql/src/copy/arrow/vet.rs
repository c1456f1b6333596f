//! What the metadata of an Arrow IPC stream says, checked before Arrow reads it.
//!
//! Arrow's reader validates values, but takes metadata at its word: it panics on types it does not know and on buffers
//! outside of their message, and reserves what a compressed buffer says to become. So each field of a schema, and each
//! node and buffer of a batch, is looked at here first. Owns that, and no memory; leaves out values.

use super::frames::too_large;
use crate::error::SqlError;
use arrow::datatypes::{DataType, Schema};
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::{
    self, CompressionType, DateUnit, Endianness, Field, FieldNode, IntervalUnit, Message, MetadataVersion, Precision,
    TimeUnit, Type,
};
use millstream_catalog::model::SqlState;
use millstream_catalog::model::limit::{COLUMNS_MAX, STATEMENT_ROWS_BYTES_MAX};

/// Rows that a batch may have whatever its bytes: columns of type null have none.
const ROWS_WITHOUT_BYTES_MAX: usize = 1 << 20;

/// 22P04 for a stream that is not what it should be.
#[cold]
pub(super) fn malformed(what: impl std::fmt::Display) -> SqlError {
    SqlError::new(SqlState::BadCopyFileFormat, format!("the arrow stream {what}"))
}

/// The schema that a message has.
///
/// # Errors
/// 22P04 for a damaged one, 42804 for a type that no column has, 0A000 for big-endian streams.
pub(super) fn schema(message: &Message<'_>) -> Result<Schema, SqlError> {
    if !matches!(message.version(), MetadataVersion::V4 | MetadataVersion::V5) {
        return Err(malformed("has an unknown version of the format"));
    }
    let schema = message.header_as_schema().ok_or_else(|| malformed("has a damaged schema"))?;
    if schema.endianness() != Endianness::Little {
        return Err(SqlError::unsupported("an arrow stream in big-endian", "write it in little-endian"));
    }
    let fields = schema.fields().ok_or_else(|| malformed("has a schema without columns"))?;
    if fields.len() > COLUMNS_MAX {
        return Err(malformed(format!("has {} columns", fields.len())));
    }
    for field in fields.iter() {
        let name = field.name().unwrap_or_default();
        match vet_field(&field) {
            Some(Ok(())) => {}
            Some(Err(found)) => {
                let message = format!("column \"{name}\" of the arrow stream is of type {found}, which no column has");
                return Err(SqlError::new(SqlState::DatatypeMismatch, message).hint("cast it before it is written"));
            }
            None => return Err(malformed(format!("has a damaged type in column \"{name}\""))),
        }
    }
    Ok(fb_to_schema(schema))
}

/// `None` for a type that makes no sense; an error names one that is not taken.
fn vet_field(field: &Field<'_>) -> Option<Result<(), &'static str>> {
    let found = field.type_type();
    if let Some(dictionary) = field.dictionary() {
        let index = dictionary.indexType()?;
        matches!(index.bitWidth(), 8 | 16 | 32 | 64).then_some(())?;
        let is_nested = matches!(found, Type::List | Type::LargeList | Type::FixedSizeList | Type::Struct_ | Type::Map);
        if is_nested || found == Type::Null {
            return Some(Err("dictionary of lists"));
        }
    }
    let is_known = match found {
        Type::Null
        | Type::Bool
        | Type::Binary
        | Type::LargeBinary
        | Type::BinaryView
        | Type::Utf8
        | Type::LargeUtf8
        | Type::Utf8View => true,
        Type::Int => matches!(field.type_as_int()?.bitWidth(), 8 | 16 | 32 | 64),
        Type::FloatingPoint => {
            matches!(
                field.type_as_floating_point()?.precision(),
                Precision::HALF | Precision::SINGLE | Precision::DOUBLE
            )
        }
        Type::FixedSizeBinary => field.type_as_fixed_size_binary()?.byteWidth() > 0,
        Type::Date => matches!(field.type_as_date()?.unit(), DateUnit::DAY | DateUnit::MILLISECOND),
        Type::Time => {
            let time = field.type_as_time()?;
            match time.bitWidth() {
                32 => matches!(time.unit(), TimeUnit::SECOND | TimeUnit::MILLISECOND),
                64 => matches!(time.unit(), TimeUnit::MICROSECOND | TimeUnit::NANOSECOND),
                _ => false,
            }
        }
        Type::Timestamp => is_unit(field.type_as_timestamp()?.unit()),
        Type::Duration => is_unit(field.type_as_duration()?.unit()),
        Type::Interval => matches!(
            field.type_as_interval()?.unit(),
            IntervalUnit::YEAR_MONTH | IntervalUnit::DAY_TIME | IntervalUnit::MONTH_DAY_NANO
        ),
        Type::Decimal => {
            let decimal = field.type_as_decimal()?;
            let digits = match decimal.bitWidth() {
                32 => 9,
                64 => 18,
                128 => 38,
                256 => 76,
                _ => return None,
            };
            (1..=digits).contains(&decimal.precision()) && (-digits..=decimal.precision()).contains(&decimal.scale())
        }
        Type::List | Type::LargeList => return only_child(field),
        Type::FixedSizeList => {
            (field.type_as_fixed_size_list()?.listSize() > 0).then_some(())?;
            return only_child(field);
        }
        Type::Struct_ => return children(field),
        Type::Map => {
            let entries = field.children().filter(|children| children.len() == 1)?.get(0);
            (entries.type_type() == Type::Struct_ && entries.children()?.len() == 2).then_some(())?;
            return children(&entries);
        }
        other => return other.variant_name().map(Err),
    };
    is_known.then_some(Ok(()))
}

fn is_unit(unit: TimeUnit) -> bool {
    unit.variant_name().is_some()
}

fn only_child(field: &Field<'_>) -> Option<Result<(), &'static str>> {
    let children = field.children().filter(|children| children.len() == 1)?;
    vet_field(&children.get(0))
}

fn children(field: &Field<'_>) -> Option<Result<(), &'static str>> {
    let mut children = field.children()?.iter();
    children.try_fold(Ok(()), |before, child| Some(before.and(vet_field(&child)?)))
}

/// Checks what a batch says of its columns against its body; gives the bytes they take uncompressed.
///
/// # Errors
/// 22P04 for what does not fit, 54000 for what becomes too large.
pub(super) fn batch(batch: ipc::RecordBatch<'_>, schema: &Schema, body: &[u8]) -> Result<u64, SqlError> {
    let damaged = || malformed("has a damaged record batch");
    let rows = usize::try_from(batch.length()).map_err(|_| damaged())?;
    let (Some(nodes), Some(buffers)) = (batch.nodes(), batch.buffers()) else { return Err(damaged()) };
    let mut walk = Walk {
        nodes: nodes.iter(),
        buffers: buffers.iter(),
        view_buffers: batch.variadicBufferCounts().map(|counts| counts.iter().collect()).unwrap_or_default(),
        views: 0,
        body,
        compression: batch.compression().map(|compression| compression.codec()),
        bytes: 0,
    };
    for field in schema.fields() {
        walk.column(field.data_type(), Length::Rows(rows)).ok_or_else(damaged)?;
    }
    if walk.buffers.len() > 0 || walk.nodes.len() > 0 || walk.views < walk.view_buffers.len() {
        return Err(damaged());
    }
    if walk.bytes > STATEMENT_ROWS_BYTES_MAX.value() {
        return Err(too_large(walk.bytes));
    }
    // One bit is the least that a value takes.
    if rows as u64 > (walk.bytes * 8).max(ROWS_WITHOUT_BYTES_MAX as u64) {
        return Err(malformed(format!("has a record batch of {rows} rows in {} bytes", walk.bytes)));
    }
    Ok(walk.bytes)
}

/// What is known of the number of values of a node before it is read.
#[derive(Debug, Clone, Copy)]
enum Length {
    /// Of a column.
    Rows(usize),
    /// Of the elements of lists of one length.
    Elements(usize),
    /// Of the elements of other lists.
    Unknown,
}

/// The nodes and buffers of a batch, in the order of its columns.
struct Walk<'a, N, B> {
    nodes: N,
    buffers: B,
    /// Of each column of views, its buffers of values.
    view_buffers: Vec<i64>,
    views: usize,
    body: &'a [u8],
    compression: Option<CompressionType>,
    /// Uncompressed bytes so far.
    bytes: u64,
}

impl<'a, N, B> Walk<'_, N, B>
where
    N: ExactSizeIterator<Item = &'a FieldNode>,
    B: ExactSizeIterator<Item = &'a ipc::Buffer>,
{
    fn column(&mut self, data_type: &DataType, known: Length) -> Option<()> {
        let node = self.nodes.next()?;
        let (length, nulls) = (usize::try_from(node.length()).ok()?, usize::try_from(node.null_count()).ok()?);
        let is_other = matches!(known, Length::Rows(known) | Length::Elements(known) if known != length);
        if nulls > length || is_other {
            return None;
        }
        if matches!(data_type, DataType::Null) {
            // Rows are counted apart; elements have no buffer that bounds them.
            if !matches!(known, Length::Rows(_)) {
                self.bytes = self.bytes.checked_add(length as u64)?;
            }
            return (nulls == length).then_some(());
        }
        let validity = self.buffer()?;
        if nulls > 0 && validity < length.div_ceil(8) {
            return None;
        }
        match data_type {
            DataType::Utf8 | DataType::Binary => {
                self.numbers(4)?;
                self.buffer()?;
            }
            DataType::LargeUtf8 | DataType::LargeBinary => {
                self.numbers(8)?;
                self.buffer()?;
            }
            DataType::Utf8View | DataType::BinaryView => {
                self.numbers(16)?;
                let count = usize::try_from(*self.view_buffers.get(self.views)?).ok()?;
                self.views += 1;
                if count > self.buffers.len() {
                    return None;
                }
                (0..count).try_for_each(|_| self.buffer().map(|_| ()))?;
            }
            DataType::List(item) => {
                self.numbers(4)?;
                self.column(item.data_type(), Length::Unknown)?;
            }
            DataType::Map(entries, _) => {
                self.numbers(4)?;
                self.column(entries.data_type(), Length::Unknown)?;
            }
            DataType::Struct(fields) => {
                fields.iter().try_for_each(|field| self.column(field.data_type(), Length::Elements(length)))?;
            }
            DataType::LargeList(item) => {
                self.numbers(8)?;
                self.column(item.data_type(), Length::Unknown)?;
            }
            DataType::FixedSizeList(item, size) => {
                let items = length.checked_mul(usize::try_from(*size).ok()?)?;
                self.column(item.data_type(), Length::Elements(items))?;
            }
            DataType::Dictionary(keys, _) => self.numbers(keys.primitive_width()?)?,
            _ => {
                self.buffer()?;
            }
        }
        Some(())
    }

    /// A buffer that Arrow looks at as a whole, as numbers of this width.
    fn numbers(&mut self, width: usize) -> Option<()> {
        self.buffer()?.is_multiple_of(width).then_some(())
    }

    /// The next buffer, which lies in the body; gives its bytes uncompressed.
    fn buffer(&mut self) -> Option<usize> {
        let buffer = self.buffers.next()?;
        let (start, length) = (usize::try_from(buffer.offset()).ok()?, usize::try_from(buffer.length()).ok()?);
        let stored = self.body.get(start..start.checked_add(length)?)?;
        let bytes = match self.compression.filter(|_| length > 0) {
            None => length,
            Some(codec) => uncompressed(codec, stored)?,
        };
        self.bytes = self.bytes.checked_add(bytes as u64)?;
        Some(bytes)
    }
}

/// The bytes of a compressed buffer when it is not: they stand before it.
fn uncompressed(codec: CompressionType, stored: &[u8]) -> Option<usize> {
    let (prefix, data) = stored.split_first_chunk::<8>()?;
    let bytes = match i64::from_le_bytes(*prefix) {
        -1 => return Some(data.len()),
        bytes => usize::try_from(bytes).ok()?,
    };
    // Arrow reads a frame of LZ4 to its end, however long that is, and compares then.
    let is_bounded = codec != CompressionType::LZ4_FRAME || bytes == 0 || {
        let (most, block) = lz4_bytes_max(data)?;
        most <= bytes.saturating_mul(2).saturating_add(block)
    };
    is_bounded.then_some(bytes)
}

/// The most that a frame of LZ4 becomes, and the most of one block. Source: LZ4 Frame Format 1.6.4.
pub(super) fn lz4_bytes_max(frame: &[u8]) -> Option<(usize, usize)> {
    const MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
    let (magic, rest) = frame.split_first_chunk::<4>()?;
    let (&[flags, sizes], mut rest) = rest.split_first_chunk::<2>()?;
    if *magic != MAGIC {
        return None;
    }
    let block = match sizes >> 4 & 7 {
        4 => 64 << 10,
        5 => 256 << 10,
        6 => 1 << 20,
        7 => 4 << 20,
        _ => return None,
    };
    // Content size, dictionary, and the checksum of the header.
    rest = rest.get(if flags & 8 != 0 { 8 } else { 0 } + if flags & 1 != 0 { 4 } else { 0 } + 1..)?;
    let checksum = if flags & 16 != 0 { 4 } else { 0 };
    let mut blocks = 0_usize;
    while let Some((length, data)) = rest.split_first_chunk::<4>() {
        let length = (u32::from_le_bytes(*length) & 0x7FFF_FFFF) as usize;
        if length == 0 {
            break;
        }
        blocks += 1;
        rest = data.get(length + checksum..)?;
    }
    Some((blocks.saturating_mul(block), block))
}
