//! Entry runs: which Raft entry each run of rows came with, packed.
//!
//! Owns the packed form, which is the same in memory and in a segment's footer. Leaves out where the
//! rows are: [`StoredBatch`](super::batch::StoredBatch) pairs them. Called by the tail, the segments and
//! everything that cuts partitions at an entry. A crash does nothing to it: runs are rebuilt from the log
//! or read from the footer.
//!
//! Layout: runs one after another, each three numbers:
//!
//! | number | meaning |
//! |---|---|
//! | delta | index of the run's first entry, less the first index of the run before (of the first run: the index itself) |
//! | rows | rows of each entry of the run, at least 1 |
//! | more | further entries of the run, each with the next index and as many rows |
//!
//! A number is one or more characters of `A-Z a-z 0-9 - _` (values 0 to 63 in this order), five bits each,
//! least significant first; bit 5 says that another character follows. So the bytes are text, as a footer's
//! metadata must be. 65,536 single-row entries in a row are one run of six characters or so.

use arrow::buffer::{BooleanBuffer, Buffer};
use millstream_catalog::model::{EntryIndex, Offset, RowCount};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const MORE: u64 = 32;
const INVALID: u8 = 0xff;

const fn values() -> [u8; 256] {
    let mut table = [INVALID; 256];
    let mut i = 0;
    while i < ALPHABET.len() {
        table[ALPHABET[i] as usize] = i as u8;
        i += 1;
    }
    table
}

static VALUES: [u8; 256] = values();

/// Entries and how many rows each brought, ascending. Clones and slices share the packed bytes.
///
/// Rows 10..13 of entry 7 and row 13 of entry 9 are the runs `(7, 3), (9, 1)`.
#[derive(Debug, Clone)]
pub struct EntryRuns {
    packed: Buffer,
    /// Rows of `packed` before the first of this slice.
    skip: u64,
    rows: u64,
}

/// `entries` entries with consecutive indexes from `first`, each with `each` rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    first: u64,
    each: u64,
    entries: u64,
}

impl EntryRuns {
    /// All `rows` came with `index`.
    pub fn of(index: EntryIndex, rows: RowCount) -> Self {
        let mut builder = EntryRunsBuilder::default();
        builder.push(index, rows);
        builder.finish()
    }

    /// The runs of `parts`, whose entries must ascend.
    pub fn concat<'a>(parts: impl IntoIterator<Item = &'a EntryRuns>) -> Self {
        let mut builder = EntryRunsBuilder::default();
        for part in parts {
            builder.extend(part);
        }
        builder.finish()
    }

    /// Offsets in the same form: each a run of one row. Offsets that follow each other are one run.
    pub(crate) fn of_offsets(offsets: impl IntoIterator<Item = Offset>) -> Self {
        let mut builder = EntryRunsBuilder::default();
        for offset in offsets {
            builder.push(EntryIndex::new(offset.value()), RowCount::new(1));
        }
        builder.finish()
    }

    /// The runs of the rows that are `kept`, as many bits as rows.
    pub(crate) fn filter(&self, kept: &BooleanBuffer) -> Self {
        let mut builder = EntryRunsBuilder::default();
        let mut row = 0;
        for (index, rows) in self {
            let rows = rows.as_usize();
            builder.push(index, RowCount::of(kept.slice(row, rows).count_set_bits()));
            row += rows;
        }
        builder.finish()
    }

    /// Runs packed by [`EntryRuns::packed`], which have `rows` rows.
    pub(crate) fn from_packed(packed: Buffer, rows: RowCount) -> Self {
        Self { packed, skip: 0, rows: rows.value() }
    }

    /// The packed bytes, all of them ASCII.
    pub(crate) fn packed(&self) -> Vec<u8> {
        if self.skip == 0 && self.rows == Decoder::new(&self.packed).map(|run| run.each * run.entries).sum::<u64>() {
            return self.packed.to_vec();
        }
        Self::concat([self]).packed.to_vec()
    }

    /// Rows in all.
    pub fn rows(&self) -> RowCount {
        RowCount::new(self.rows)
    }

    /// The runs of `rows` rows from row `start`; what is past the end is left out.
    pub fn slice(&self, start: RowCount, rows: RowCount) -> Self {
        let start = start.value().min(self.rows);
        Self { packed: self.packed.clone(), skip: self.skip + start, rows: rows.value().min(self.rows - start) }
    }

    /// Entries and their rows, ascending; no row count is zero.
    pub fn iter(&self) -> EntryRunsIter<'_> {
        EntryRunsIter { decoder: Decoder::new(&self.packed), run: None, skip: self.skip, rows: self.rows }
    }

    /// The entry of the first row.
    pub fn first(&self) -> Option<EntryIndex> {
        self.iter().next().map(|(index, _)| index)
    }

    /// The entry of the last row.
    pub fn last(&self) -> Option<EntryIndex> {
        let end = self.skip + self.rows;
        let mut before = 0;
        for run in Decoder::new(&self.packed) {
            let rows = run.each.saturating_mul(run.entries);
            if self.rows > 0 && before + rows >= end {
                return Some(EntryIndex::new(run.first + (end - before - 1) / run.each));
            }
            before += rows;
        }
        None
    }

    /// Leading rows that came with entries up to and including `cut`.
    ///
    /// Of `(7, 3), (9, 1)`: none up to 6, three up to 7 and 8, four up to 9.
    pub fn rows_upto(&self, cut: EntryIndex) -> RowCount {
        let mut upto: u64 = 0;
        for run in Decoder::new(&self.packed) {
            if run.first > cut.value() {
                break;
            }
            let entries = (cut.value() - run.first + 1).min(run.entries);
            upto = upto.saturating_add(entries.saturating_mul(run.each));
        }
        RowCount::new(upto.saturating_sub(self.skip).min(self.rows))
    }
}

impl PartialEq for EntryRuns {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows && self.iter().eq(other.iter())
    }
}

impl<'a> IntoIterator for &'a EntryRuns {
    type Item = (EntryIndex, RowCount);
    type IntoIter = EntryRunsIter<'a>;
    fn into_iter(self) -> EntryRunsIter<'a> {
        self.iter()
    }
}

/// Iterator over the entries of [`EntryRuns`].
#[derive(Debug)]
pub struct EntryRunsIter<'a> {
    decoder: Decoder<'a>,
    run: Option<Run>,
    skip: u64,
    rows: u64,
}

impl Iterator for EntryRunsIter<'_> {
    type Item = (EntryIndex, RowCount);

    fn next(&mut self) -> Option<Self::Item> {
        while self.rows > 0 {
            let mut run = match self.run.take() {
                Some(run) => run,
                None => self.decoder.next()?,
            };
            let skipped = (self.skip / run.each).min(run.entries);
            run.first += skipped;
            run.entries -= skipped;
            self.skip -= skipped * run.each;
            if run.entries == 0 {
                continue;
            }
            let rows = (run.each - self.skip).min(self.rows);
            self.skip = 0;
            self.rows -= rows;
            let index = EntryIndex::new(run.first);
            run.first += 1;
            run.entries -= 1;
            self.run = (run.entries > 0).then_some(run);
            return Some((index, RowCount::new(rows)));
        }
        None
    }
}

/// Packs entries as they come.
#[derive(Debug, Default)]
struct EntryRunsBuilder {
    packed: Vec<u8>,
    rows: u64,
    /// First index of the last run written.
    base: u64,
    run: Option<Run>,
    /// The newest entry; more rows of it may follow.
    newest: Option<(u64, u64)>,
}

impl EntryRunsBuilder {
    fn extend(&mut self, runs: &EntryRuns) {
        for (index, rows) in runs.iter() {
            self.push(index, rows);
        }
    }

    fn push(&mut self, index: EntryIndex, rows: RowCount) {
        let (index, rows) = (index.value(), rows.value());
        if rows == 0 {
            return;
        }
        self.rows += rows;
        match &mut self.newest {
            Some((newest, more)) if *newest == index => *more += rows,
            _ => {
                self.settle();
                self.newest = Some((index, rows));
            }
        }
    }

    /// Moves the newest entry into a run.
    fn settle(&mut self) {
        let Some((index, rows)) = self.newest.take() else { return };
        match &mut self.run {
            Some(run) if run.each == rows && run.first + run.entries == index => run.entries += 1,
            _ => {
                self.write_run();
                self.run = Some(Run { first: index, each: rows, entries: 1 });
            }
        }
    }

    fn write_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        write_number(&mut self.packed, run.first.saturating_sub(self.base));
        write_number(&mut self.packed, run.each);
        write_number(&mut self.packed, run.entries - 1);
        self.base = run.first;
    }

    fn finish(mut self) -> EntryRuns {
        self.settle();
        self.write_run();
        EntryRuns { packed: Buffer::from_vec(self.packed), skip: 0, rows: self.rows }
    }
}

fn write_number(to: &mut Vec<u8>, mut number: u64) {
    while number >= MORE {
        to.push(ALPHABET[((number % MORE) + MORE) as usize]);
        number /= MORE;
    }
    to.push(ALPHABET[number as usize]);
}

/// Reads runs; stops at the end and at bytes that are no run.
#[derive(Debug)]
struct Decoder<'a> {
    rest: &'a [u8],
    base: u64,
}

impl<'a> Decoder<'a> {
    fn new(packed: &'a Buffer) -> Self {
        Self { rest: packed.as_slice(), base: 0 }
    }

    fn number(&mut self) -> Option<u64> {
        let mut number: u64 = 0;
        for (i, byte) in self.rest.iter().enumerate() {
            let value = VALUES[*byte as usize];
            let shift = u32::try_from(i * 5).ok().filter(|shift| *shift < 64)?;
            if value == INVALID {
                return None;
            }
            number |= (u64::from(value) % MORE) << shift;
            if u64::from(value) < MORE {
                self.rest = &self.rest[i + 1..];
                return Some(number);
            }
        }
        None
    }
}

impl Iterator for Decoder<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let first = self.base.checked_add(self.number()?)?;
        let each = self.number()?;
        let entries = self.number()?.checked_add(1)?;
        first.checked_add(entries)?;
        each.checked_mul(entries)?;
        self.base = first;
        (each > 0).then_some(Run { first, each, entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn runs(pairs: &[(u64, u64)]) -> EntryRuns {
        let parts: Vec<EntryRuns> =
            pairs.iter().map(|(index, rows)| EntryRuns::of(EntryIndex::new(*index), RowCount::new(*rows))).collect();
        EntryRuns::concat(&parts)
    }

    fn pairs(runs: &EntryRuns) -> Vec<(u64, u64)> {
        runs.iter().map(|(index, rows)| (index.value(), rows.value())).collect()
    }

    #[test]
    fn consecutive_single_row_entries_take_few_bytes() {
        let all: Vec<(u64, u64)> = (1_000_000..1_065_536).map(|index| (index, 1)).collect();
        let packed = runs(&all);
        assert!(packed.packed().len() < 12, "{}", packed.packed().len());
        assert_eq!(pairs(&packed), all);
    }

    #[test]
    fn rows_of_one_entry_appended_twice_are_one_run() {
        assert_eq!(pairs(&runs(&[(3, 2), (3, 5), (4, 5)])), [(3, 7), (4, 5)]);
    }

    #[test]
    fn the_largest_numbers_survive() {
        let large = [(u64::MAX - 2, 1), (u64::MAX - 1, 1)];
        assert_eq!(pairs(&runs(&large)), large);
    }

    #[test]
    fn bytes_that_are_no_runs_end_the_iteration() {
        for bytes in [&b"\xff"[..], b"B", b"BB", b"________________BB", b"BAA"] {
            let broken = EntryRuns::from_packed(Buffer::from(bytes), RowCount::new(5));
            assert_eq!(pairs(&broken), [(0, 0); 0], "{bytes:?}");
            assert_eq!(broken.last(), None);
        }
    }

    proptest! {
        #[test]
        fn packed_runs_equal_the_plain_list(
            steps in prop::collection::vec((1u64..4, prop_oneof![3 => Just(1u64), 1 => 1u64..50]), 0..200),
            start in 0u64..500, length in 0u64..500, cut in 0u64..700,
        ) {
            let mut index = 0;
            let list: Vec<(u64, u64)> = steps.iter().map(|(step, rows)| { index += step; (index, *rows) }).collect();
            let rows: Vec<u64> = list.iter().flat_map(|(index, rows)| std::iter::repeat_n(*index, *rows as usize)).collect();
            let whole = runs(&list);
            prop_assert_eq!(&pairs(&whole), &list);
            let end = rows.len().min((start + length) as usize);
            let kept = &rows[(start as usize).min(end)..end];
            let part = whole.slice(RowCount::new(start), RowCount::new(length));
            let flat: Vec<u64> = part.iter().flat_map(|(i, n)| std::iter::repeat_n(i.value(), n.as_usize())).collect();
            prop_assert_eq!(&flat[..], kept);
            prop_assert_eq!(part.rows().as_usize(), kept.len());
            prop_assert_eq!(part.first().map(EntryIndex::value), kept.first().copied());
            prop_assert_eq!(part.last().map(EntryIndex::value), kept.last().copied());
            let upto = kept.iter().filter(|index| **index <= cut).count();
            prop_assert_eq!(part.rows_upto(EntryIndex::new(cut)).as_usize(), upto);
            let again = EntryRuns::from_packed(Buffer::from_vec(part.packed()), part.rows());
            prop_assert_eq!(again, part);
        }
    }
}
