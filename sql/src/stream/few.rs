//! Rows in the order of their bytes, which are few more often than not: one for each partition of `row_number() = 1`.
//!
//! A few lie in a vector, which takes a tenth of a tree's memory; more of them in a tree. Leaves out what the rows are
//! (`ranked`). Lives in memory.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// More rows are a tree.
const FEW: usize = 16;

/// Rows by their bytes.
#[derive(Debug)]
pub(super) struct Few<T> {
    /// Ascending; empty while there is a tree.
    few: Vec<(Arc<[u8]>, T)>,
    many: BTreeMap<Arc<[u8]>, T>,
}

impl<T> Few<T> {
    /// No rows.
    pub(super) fn new() -> Self {
        Self { few: Vec::new(), many: BTreeMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.few.len() + self.many.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows, ascending.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&Arc<[u8]>, &T)> {
        self.few.iter().map(|(row, value)| (row, value)).chain(&self.many)
    }

    pub(super) fn first(&self) -> Option<(&Arc<[u8]>, &T)> {
        self.few.first().map(|(row, value)| (row, value)).or_else(|| self.many.first_key_value())
    }

    pub(super) fn last(&self) -> Option<(&Arc<[u8]>, &T)> {
        self.few.last().map(|(row, value)| (row, value)).or_else(|| self.many.last_key_value())
    }

    /// The first row that is not less than `row`.
    pub(super) fn from(&self, row: &[u8]) -> Option<(&Arc<[u8]>, &T)> {
        let at = self.place(row).unwrap_or_else(|at| at);
        let few = self.few.get(at).map(|(row, value)| (row, value));
        few.or_else(|| self.many.range::<[u8], _>((Bound::Included(row), Bound::Unbounded)).next())
    }

    pub(super) fn contains(&self, row: &[u8]) -> bool {
        self.place(row).is_ok() || self.many.contains_key(row)
    }

    /// Puts a row in, or another value in its place.
    pub(super) fn insert(&mut self, row: Arc<[u8]>, value: T) {
        if !self.many.is_empty() {
            self.many.insert(row, value);
            return;
        }
        match self.place(&row) {
            Ok(at) => self.few[at].1 = value,
            Err(_) if self.few.len() == FEW => {
                self.many = std::mem::take(&mut self.few).into_iter().collect();
                self.many.insert(row, value);
            }
            Err(at) => {
                if self.few.is_empty() {
                    self.few.reserve_exact(1);
                }
                self.few.insert(at, (row, value));
            }
        }
    }

    pub(super) fn remove(&mut self, row: &[u8]) -> Option<T> {
        match self.place(row) {
            Ok(at) => Some(self.few.remove(at).1),
            Err(_) => self.many.remove(row),
        }
    }

    pub(super) fn pop_first(&mut self) -> Option<(Arc<[u8]>, T)> {
        match self.few.is_empty() {
            true => self.many.pop_first(),
            false => Some(self.few.remove(0)),
        }
    }

    pub(super) fn pop_last(&mut self) -> Option<(Arc<[u8]>, T)> {
        self.few.pop().or_else(|| self.many.pop_last())
    }

    fn place(&self, row: &[u8]) -> Result<usize, usize> {
        self.few.binary_search_by(|(other, _)| other.as_ref().cmp(row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::tests::Random;

    #[test]
    fn few_and_many_are_as_a_tree() {
        for seed in 0..40 {
            let mut random = Random::new(seed);
            let (mut few, mut tree) = (Few::new(), BTreeMap::new());
            let keys = if seed % 2 == 0 { 12 } else { 60 };
            for number in 0..400 {
                let row: Arc<[u8]> = Arc::from([random.below(keys) as u8]);
                match random.below(8) {
                    0..=4 => {
                        few.insert(Arc::clone(&row), number);
                        tree.insert(row, number);
                    }
                    5 => assert_eq!(few.remove(&row), tree.remove(&row)),
                    6 => assert_eq!(few.pop_first(), tree.pop_first()),
                    _ => assert_eq!(few.pop_last(), tree.pop_last()),
                }
                let probe = [random.below(keys) as u8];
                let range = tree.range::<[u8], _>((Bound::Included(&probe[..]), Bound::Unbounded)).next();
                assert_eq!(few.from(&probe), range);
                assert_eq!(few.contains(&probe), tree.contains_key(&probe[..]));
                assert_eq!((few.first(), few.last()), (tree.first_key_value(), tree.last_key_value()));
                assert!(few.iter().eq(&tree) && few.iter().rev().eq(tree.iter().rev()));
                assert_eq!((few.len(), few.is_empty()), (tree.len(), tree.is_empty()));
            }
        }
    }
}
