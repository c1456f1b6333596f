//! Messages cut out of an Arrow IPC stream that comes in chunks.
//!
//! | field | bytes | |
//! |---|---|---|
//! | marker | 4 | -1; streams before Arrow 0.15 have none |
//! | length | i32 | of the metadata with its padding; 0 ends the stream |
//! | metadata | `length` | a flatbuffer `Message`, which knows the length of the body |
//! | body | | of record batches and dictionaries |
//!
//! Owns the bounds of metadata and body, which are copied once, into aligned memory that grows as they come. Leaves out
//! what messages say. Source: Arrow columnar format, "Encapsulated message format".

use super::vet::malformed;
use crate::error::SqlError;
use arrow::buffer::{Buffer, MutableBuffer};
use arrow::ipc::root_as_message;
use millstream_catalog::model::SqlState;
use millstream_catalog::model::limit::{ARROW_METADATA_BYTES_MAX, STATEMENT_ROWS_BYTES_MAX};

const MARKER: [u8; 4] = [0xFF; 4];
/// How the Arrow file format begins.
const FILE_MAGIC: [u8; 4] = *b"ARRO";
/// Memory that is taken for a body before any of it came.
const BODY_BYTES_AHEAD: usize = 8 << 20;

/// One message, complete.
#[derive(Debug)]
pub(super) struct Frame {
    /// A flatbuffer that was verified to be a `Message`.
    pub(super) metadata: Buffer,
    pub(super) body: Buffer,
}

/// Cuts messages.
#[derive(Debug)]
pub(super) struct Frames {
    part: Part,
    /// Bytes that the part still lacks.
    missing: usize,
    /// Those that came.
    buffer: MutableBuffer,
    is_first: bool,
}

#[derive(Debug)]
enum Part {
    Marker,
    /// Behind a marker.
    Length,
    Metadata,
    Body(Buffer),
    /// Of the stream.
    End,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self { part: Part::Marker, missing: 4, buffer: MutableBuffer::new(0), is_first: true }
    }

    /// True where the stream may end: between messages.
    pub(super) fn is_between(&self) -> bool {
        match self.part {
            Part::Marker => self.buffer.is_empty(),
            Part::End => true,
            Part::Length | Part::Metadata | Part::Body(_) => false,
        }
    }

    /// Bytes of the message that is not complete.
    pub(super) fn held_bytes(&self) -> usize {
        let metadata = if let Part::Body(metadata) = &self.part { metadata.len() } else { 0 };
        metadata + self.buffer.capacity()
    }

    /// The next message, once `data` has all of it; what was taken of `data` is cut off.
    ///
    /// # Errors
    /// 22P04 for what is no message, 54000 for one over the limits.
    pub(super) fn next(&mut self, data: &mut &[u8]) -> Result<Option<Frame>, SqlError> {
        loop {
            if matches!(self.part, Part::End) {
                return match data.is_empty() {
                    true => Ok(None),
                    false => Err(malformed("has data after its end")),
                };
            }
            let (head, rest) = data.split_at(data.len().min(self.missing));
            if self.buffer.is_empty() && self.missing > 0 {
                self.buffer.reserve(self.missing.min(BODY_BYTES_AHEAD));
            }
            self.buffer.extend_from_slice(head);
            self.missing -= head.len();
            *data = rest;
            if self.missing > 0 {
                return Ok(None);
            }
            if let Some(frame) = self.complete()? {
                return Ok(Some(frame));
            }
        }
    }

    /// The part has come.
    fn complete(&mut self) -> Result<Option<Frame>, SqlError> {
        let bytes = Buffer::from(std::mem::replace(&mut self.buffer, MutableBuffer::new(0)));
        (self.part, self.missing) = match std::mem::replace(&mut self.part, Part::End) {
            Part::Marker if bytes.as_slice() == MARKER => (Part::Length, 4),
            Part::Marker | Part::Length => match self.length(&bytes)? {
                0 => (Part::End, 0),
                length => (Part::Metadata, length),
            },
            Part::Metadata => {
                let length = body_length(&bytes)?;
                (Part::Body(bytes), length)
            }
            Part::Body(metadata) => {
                (self.part, self.missing) = (Part::Marker, 4);
                return Ok(Some(Frame { metadata, body: bytes }));
            }
            Part::End => (Part::End, 0),
        };
        self.is_first = false;
        Ok(None)
    }

    fn length(&self, bytes: &Buffer) -> Result<usize, SqlError> {
        let word = bytes.as_slice().try_into().map_or(-1, i32::from_le_bytes);
        match usize::try_from(word) {
            Ok(length) if length <= ARROW_METADATA_BYTES_MAX => Ok(length),
            _ if self.is_first && bytes.as_slice() == FILE_MAGIC => Err(malformed("begins like an Arrow file")
                .hint("send the streaming format (pyarrow.ipc.new_stream, polars write_ipc_stream)")),
            _ if self.is_first => Err(malformed("does not begin with a message")),
            _ => Err(malformed(format!("has a message whose metadata has {word} bytes"))),
        }
    }
}

/// The length of the body of the message whose metadata this is.
fn body_length(metadata: &Buffer) -> Result<usize, SqlError> {
    let message =
        root_as_message(metadata).map_err(|error| malformed("has a damaged message").detail(error.to_string()))?;
    let length = usize::try_from(message.bodyLength()).map_err(|_| malformed("has a message of negative length"))?;
    if length > STATEMENT_ROWS_BYTES_MAX.as_usize() {
        return Err(too_large(length as u64));
    }
    Ok(length)
}

/// 54000 for a message of more bytes than a batch may have.
pub(super) fn too_large(bytes: u64) -> SqlError {
    SqlError::new(SqlState::ProgramLimitExceeded, "a message of the arrow stream is too large")
        .detail(format!("it has {bytes} bytes, at most {STATEMENT_ROWS_BYTES_MAX} are taken"))
        .hint("write smaller record batches")
}
