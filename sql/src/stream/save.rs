//! The saved form of a pipeline's state.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | magic `MSPS` |
//! | 2 | version, 1 |
//! | 2 | number of sections |
//! | then per section: 2 | length of the name |
//! | | the name, UTF-8 |
//! | 8 | length of the content |
//! | | the content: an Arrow IPC stream of one batch |
//!
//! Integers are little-endian. Checksums belong to whoever stores the bytes. An operator with much state has a section
//! `file`, of one number: that of a file of the same layout with its sections. Leaves out what the sections hold: each
//! operator knows its own. A crash before the bytes are stored costs replay only.

use super::delta::{arrow_error, downcast};
use super::part::{StateFile, StateStore};
use crate::error::SqlError;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, UInt64Array};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use millstream_catalog::model::{RowCount, SqlState};
use std::collections::BTreeMap;
use std::sync::Arc;

const MAGIC: &[u8; 4] = b"MSPS";
const VERSION: u16 = 1;

/// Bytes of an operator's state that are worth a file.
const FILE_BYTES_MIN: usize = if cfg!(test) { 4 << 10 } else { 64 << 10 };
/// The section that names it.
const FILE: &str = "file";
/// The section with the number of rows that came too late.
const LATE: &str = "late";

/// Collects named batches.
#[derive(Debug, Default)]
pub(crate) struct StateWriter {
    sections: Vec<(String, Vec<u8>)>,
    store: Option<Arc<dyn StateStore>>,
    files: Vec<Arc<StateFile>>,
}

impl StateWriter {
    /// Puts much state into files of `store`, if there is one.
    pub(crate) fn to(store: Option<&Arc<dyn StateStore>>) -> Self {
        Self { store: store.cloned(), ..Self::default() }
    }

    /// Names a file with state, which is to be kept with the rest.
    pub(crate) fn keep(&mut self, file: &Arc<StateFile>) {
        self.files.push(Arc::clone(file));
    }

    /// Adds what `save` writes, under `prefix`, or in a file.
    ///
    /// # Errors
    /// Those of `save`, and as [`StateStore::write`].
    pub(crate) fn put_within(
        &mut self,
        prefix: &str,
        save: impl FnOnce(&mut Self) -> Result<(), SqlError>,
    ) -> Result<(), SqlError> {
        let mut own = Self::to(self.store.as_ref());
        save(&mut own)?;
        self.files.append(&mut own.files);
        let bytes: usize = own.sections.iter().map(|(_, content)| content.len()).sum();
        match &self.store {
            Some(store) if bytes >= FILE_BYTES_MIN => {
                let file = Arc::new(StateFile::write(store, &own.finish()?.0)?);
                let number: ArrayRef = Arc::new(UInt64Array::from(vec![file.number()]));
                self.keep(&file);
                self.put(
                    &format!("{prefix}{FILE}"),
                    &RecordBatch::try_from_iter([("file", number)]).map_err(arrow_error)?,
                )
            }
            _ => {
                self.sections
                    .extend(own.sections.into_iter().map(|(name, content)| (format!("{prefix}{name}"), content)));
                Ok(())
            }
        }
    }

    /// Adds a batch under `name`.
    pub(crate) fn put(&mut self, name: &str, batch: &RecordBatch) -> Result<(), SqlError> {
        let mut bytes = Vec::new();
        let mut writer = StreamWriter::try_new(&mut bytes, &batch.schema()).map_err(arrow_error)?;
        writer.write(batch).map_err(arrow_error)?;
        writer.finish().map_err(arrow_error)?;
        drop(writer);
        self.sections.push((name.to_owned(), bytes));
        Ok(())
    }

    /// Adds how many rows came too late.
    pub(crate) fn put_late(&mut self, rows: RowCount) -> Result<(), SqlError> {
        let rows: ArrayRef = Arc::new(Int64Array::from(vec![rows.value() as i64]));
        self.put(LATE, &RecordBatch::try_from_iter([(LATE, rows)]).map_err(arrow_error)?)
    }

    /// The bytes of all of it, and the files they name.
    pub(crate) fn finish(self) -> Result<(Vec<u8>, Vec<Arc<StateFile>>), SqlError> {
        let too_large = || SqlError::internal("too many sections of state");
        let mut bytes = Vec::with_capacity(self.sections.iter().map(|(_, content)| content.len() + 64).sum());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&u16::try_from(self.sections.len()).map_err(|_| too_large())?.to_le_bytes());
        for (name, content) in &self.sections {
            bytes.extend_from_slice(&u16::try_from(name.len()).map_err(|_| too_large())?.to_le_bytes());
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
            bytes.extend_from_slice(content);
        }
        Ok((bytes, self.files))
    }
}

/// Hands out the batches of saved state, each once.
#[derive(Debug)]
pub(crate) struct StateReader {
    sections: BTreeMap<String, Vec<u8>>,
    prefix: String,
    store: Option<Arc<dyn StateStore>>,
}

impl StateReader {
    /// Reads what [`StateWriter::finish`] wrote, with files of `store`.
    ///
    /// # Errors
    /// `SE006` for other versions, `XX001` for bytes that are not saved state.
    pub(crate) fn open(bytes: &[u8], store: Option<&Arc<dyn StateStore>>) -> Result<Self, SqlError> {
        let mut rest = Bytes(bytes);
        if rest.take(4)? != MAGIC {
            return Err(damaged());
        }
        let version = rest.u16()?;
        if version != VERSION {
            return Err(SqlError::new(SqlState::CheckpointIncompatible, "saved state has another version")
                .detail(format!("it has version {version}, this build reads {VERSION}")));
        }
        let mut sections = BTreeMap::new();
        for _ in 0..rest.u16()? {
            let name_bytes = usize::from(rest.u16()?);
            let name = std::str::from_utf8(rest.take(name_bytes)?).map_err(|_| damaged())?.to_owned();
            let length = usize::try_from(rest.u64()?).map_err(|_| damaged())?;
            sections.insert(name, rest.take(length)?.to_vec());
        }
        if !rest.0.is_empty() {
            return Err(damaged());
        }
        Ok(Self { sections, prefix: String::new(), store: store.cloned() })
    }

    /// Where its files are.
    ///
    /// # Errors
    /// `XX000` when it was to have none.
    pub(crate) fn store(&self) -> Result<&Arc<dyn StateStore>, SqlError> {
        self.store.as_ref().ok_or_else(|| SqlError::internal("saved state names files, and there are none"))
    }

    /// Whether there is a batch under `name` that was not taken.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.sections.contains_key(&format!("{}{name}", self.prefix))
    }

    /// Gives `restore` what [`StateWriter::put_within`] put under `prefix`.
    ///
    /// # Errors
    /// Those of `restore`, and as [`StateStore::read`].
    pub(crate) fn take_within(
        &mut self,
        prefix: &str,
        restore: impl FnOnce(&mut Self) -> Result<(), SqlError>,
    ) -> Result<(), SqlError> {
        self.scope(prefix);
        if !self.has(FILE) {
            return restore(self);
        }
        let number: UInt64Array = downcast(self.take(FILE)?.column(0))?;
        let number = number.values().first().copied().ok_or_else(damaged)?;
        let store = Arc::clone(self.store()?);
        let mut own = Self::open(&StateFile::of(&store, number).read()?, Some(&store))?;
        restore(&mut own)?;
        own.finish()
    }

    /// Puts `prefix` before the names that follow.
    fn scope(&mut self, prefix: impl Into<String>) {
        self.prefix = prefix.into();
    }

    /// The numbers before the points in names of sections, each once, ascending.
    pub(crate) fn numbers(&self) -> Vec<usize> {
        let number = |name: &String| name.split_once('.')?.0.parse().ok();
        let numbers: std::collections::BTreeSet<usize> = self.sections.keys().filter_map(number).collect();
        numbers.into_iter().collect()
    }

    /// The batch put under `name`.
    pub(crate) fn take(&mut self, name: &str) -> Result<RecordBatch, SqlError> {
        let name = format!("{}{name}", self.prefix);
        let content = self.sections.remove(&name).ok_or_else(|| {
            SqlError::new(SqlState::CheckpointIncompatible, format!("saved state has no section \"{name}\""))
        })?;
        let mut reader = StreamReader::try_new(content.as_slice(), None).map_err(arrow_error)?;
        reader.next().ok_or_else(damaged)?.map_err(arrow_error)
    }

    /// What [`StateWriter::put_late`] put.
    pub(crate) fn take_late(&mut self) -> Result<RowCount, SqlError> {
        let rows: Int64Array = downcast(self.take(LATE)?.column(0))?;
        Ok(RowCount::new(rows.values().first().map_or(0, |rows| *rows as u64)))
    }

    /// Fails when something saved was not taken: the state belongs to another pipeline.
    pub(crate) fn finish(self) -> Result<(), SqlError> {
        match self.sections.keys().next() {
            None => Ok(()),
            Some(name) => Err(SqlError::new(
                SqlState::CheckpointIncompatible,
                format!("saved state has a section \"{name}\" this query does not know"),
            )),
        }
    }
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], SqlError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or_else(damaged)?;
        self.0 = tail;
        Ok(head)
    }
    fn u16(&mut self) -> Result<u16, SqlError> {
        Ok(u16::from_le_bytes(self.take(2)?.try_into().map_err(|_| damaged())?))
    }
    fn u64(&mut self) -> Result<u64, SqlError> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| damaged())?))
    }
}

fn damaged() -> SqlError {
    SqlError::new(SqlState::DataCorrupted, "saved state of a query is damaged")
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int32Array};
    use std::sync::Arc;

    fn saved() -> Vec<u8> {
        let column: ArrayRef = Arc::new(Int32Array::from(vec![1, 2, 3]));
        let batch = RecordBatch::try_from_iter([("a", column)]).unwrap();
        let mut writer = StateWriter::default();
        writer.put_within("0.", |writer| writer.put("x", &batch)).unwrap();
        writer.finish().unwrap().0
    }

    #[test]
    fn sections_come_back_by_name() {
        let mut reader = StateReader::open(&saved(), None).unwrap();
        reader.scope("0.");
        assert_eq!(reader.take("x").unwrap().num_rows(), 3);
        reader.finish().unwrap();
    }

    #[test]
    fn leftovers_missing_sections_and_other_versions_are_refused() {
        assert_eq!(StateReader::open(&saved(), None).unwrap().finish().unwrap_err().sqlstate.code(), "SE006");
        assert_eq!(StateReader::open(&saved(), None).unwrap().take("x").unwrap_err().sqlstate.code(), "SE006");
        let mut other = saved();
        other[4] = 9;
        assert_eq!(StateReader::open(&other, None).unwrap_err().sqlstate.code(), "SE006");
    }

    #[test]
    fn damaged_bytes_are_an_error_at_every_length() {
        let bytes = saved();
        for length in 0..bytes.len() {
            assert_eq!(StateReader::open(&bytes[..length], None).unwrap_err().sqlstate.code(), "XX001");
        }
    }
}
