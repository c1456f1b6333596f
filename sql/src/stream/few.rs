//! Rows in the order of their bytes, which are few more often than not: one for each partition of `row_number() = 1`.
//!
//! A few lie in a vector, which for one row is 32 bytes where a node of a tree has room for eleven; more of them in a tree. Leaves out what the rows are
//! (`ranked`). Lives in memory.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// More rows are a tree.
const FEW: usize = 16;

/// Rows by their bytes.
#[derive(Debug)]
pub(super) enum Few<T> {
    /// Ascending.
    Few(Vec<(Arc<[u8]>, T)>),
    Many(BTreeMap<Arc<[u8]>, T>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl<T> Few<T> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows, ascending.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&Arc<[u8]>, &T)> {
        let (few, many) = match self {
            Self::Few(few) => (few.as_slice(), None),
            Self::Many(many) => (&[][..], Some(many.iter())),
        };
        few.iter().map(|(row, value)| (row, value)).chain(many.into_iter().flatten())
    }

    pub(super) fn first(&self) -> Option<(&Arc<[u8]>, &T)> {
        match self {
            Self::Few(few) => few.first().map(|(row, value)| (row, value)),
            Self::Many(many) => many.first_key_value(),
        }
    }

    pub(super) fn last(&self) -> Option<(&Arc<[u8]>, &T)> {
        match self {
            Self::Few(few) => few.last().map(|(row, value)| (row, value)),
            Self::Many(many) => many.last_key_value(),
        }
    }

    /// The first row that is not less than `row`.
    pub(super) fn from(&self, row: &[u8]) -> Option<(&Arc<[u8]>, &T)> {
        match self {
            Self::Few(few) => few.get(place(few, row).unwrap_or_else(|at| at)).map(|(row, value)| (row, value)),
            Self::Many(many) => many.range::<[u8], _>((Bound::Included(row), Bound::Unbounded)).next(),
        }
    }

    pub(super) fn contains(&self, row: &[u8]) -> bool {
        match self {
            Self::Few(few) => place(few, row).is_ok(),
            Self::Many(many) => many.contains_key(row),
        }
    }

    /// Puts a row in, or another value in its place.
    pub(super) fn insert(&mut self, row: Arc<[u8]>, value: T) {
        let few = match self {
            Self::Few(few) => few,
            Self::Many(many) => return drop(many.insert(row, value)),
        };
        match place(few, &row) {
            Ok(at) => few[at].1 = value,
            Err(_) if few.len() == FEW => {
                let mut many: BTreeMap<_, _> = std::mem::take(few).into_iter().collect();
                many.insert(row, value);
                *self = Self::Many(many);
            }
            Err(at) => {
                if few.is_empty() {
                    few.reserve_exact(1);
                }
                few.insert(at, (row, value));
            }
        }
    }

    pub(super) fn remove(&mut self, row: &[u8]) -> Option<T> {
        match self {
            Self::Few(few) => place(few, row).ok().map(|at| few.remove(at).1),
            Self::Many(many) => many.remove(row),
        }
    }

    pub(super) fn pop_first(&mut self) -> Option<(Arc<[u8]>, T)> {
        match self {
            Self::Few(few) if few.is_empty() => None,
            Self::Few(few) => Some(few.remove(0)),
            Self::Many(many) => many.pop_first(),
        }
    }

    pub(super) fn pop_last(&mut self) -> Option<(Arc<[u8]>, T)> {
        match self {
            Self::Few(few) => few.pop(),
            Self::Many(many) => many.pop_last(),
        }
    }
}

fn place<T>(few: &[(Arc<[u8]>, T)], row: &[u8]) -> Result<usize, usize> {
    few.binary_search_by(|(other, _)| other.as_ref().cmp(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::tests::Random;

    #[test]
    fn few_and_many_are_as_a_tree() {
        for seed in 0..40 {
            let mut random = Random::new(seed);
            let (mut few, mut tree) = (Few::default(), BTreeMap::new());
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
