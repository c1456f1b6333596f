//! The events that are written: texts of one size without a pattern, the same for everyone.

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use std::sync::Arc;

/// Letters of an event: no format needs to escape them, and six bits of each eight are chance.
const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
/// Bytes of one CopyData message.
const PART_BYTES: usize = 64 << 10;
/// Rows of one Arrow batch.
const BATCH_ROWS: usize = 8192;

/// Events of one size.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    text: String,
    size: usize,
}

impl Events {
    /// `count` events of `size` bytes; the same ones in each run.
    pub(crate) fn new(count: usize, size: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut text = String::with_capacity(count * size);
        while text.len() < count * size {
            // xorshift64*
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let mut bits = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
            for _ in 0..10 {
                text.push(char::from(LETTERS[(bits & 63) as usize]));
                bits >>= 6;
            }
        }
        text.truncate(count * size);
        Self { text, size }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.text.len() / self.size
    }

    /// Bytes of one.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Bytes of all, in millions.
    pub(crate) fn megabytes(&self) -> f64 {
        self.text.len() as f64 / 1e6
    }

    /// Refuses to have read anything but all of them.
    pub(crate) fn check(&self, count: usize, bytes: usize) -> anyhow::Result<()> {
        anyhow::ensure!(count == self.count() && bytes == self.text.len(), "{count} events of {bytes} bytes came");
        Ok(())
    }

    /// One of them; after the last comes the first again.
    pub(crate) fn get(&self, number: usize) -> &str {
        let start = number % self.count() * self.size;
        &self.text[start..start + self.size]
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.count()).map(|number| self.get(number))
    }

    /// All of them as COPY's csv (and, the letters being what they are, as its text).
    pub(crate) fn csv(&self) -> Vec<Bytes> {
        let mut text = String::with_capacity(self.text.len() + self.count());
        for event in self.iter() {
            text.push_str(event);
            text.push('\n');
        }
        parts(text.into_bytes())
    }

    /// All of them as COPY's binary.
    pub(crate) fn binary(&self) -> Vec<Bytes> {
        let mut bytes = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
        for event in self.iter() {
            bytes.extend(1_i16.to_be_bytes());
            bytes.extend((event.len() as i32).to_be_bytes());
            bytes.extend(event.as_bytes());
        }
        bytes.extend((-1_i16).to_be_bytes());
        parts(bytes)
    }

    /// All of them as an Arrow IPC stream.
    pub(crate) fn arrow(&self) -> anyhow::Result<Vec<Bytes>> {
        let column = |rows: Vec<&str>| -> ArrayRef { Arc::new(StringArray::from(rows)) };
        let schema = RecordBatch::try_from_iter([("payload", column(Vec::new()))])?.schema();
        let mut stream = StreamWriter::try_new(Vec::new(), &schema)?;
        for start in (0..self.count()).step_by(BATCH_ROWS) {
            let rows = (start..self.count().min(start + BATCH_ROWS)).map(|number| self.get(number)).collect();
            stream.write(&RecordBatch::try_new(Arc::clone(&schema), vec![column(rows)])?)?;
        }
        Ok(parts(stream.into_inner()?))
    }
}

/// Bytes in pieces of one message each.
pub(crate) fn parts(bytes: Vec<u8>) -> Vec<Bytes> {
    let bytes = Bytes::from(bytes);
    let starts = (0..bytes.len()).step_by(PART_BYTES);
    starts.map(|start| bytes.slice(start..(start + PART_BYTES).min(bytes.len()))).collect()
}
