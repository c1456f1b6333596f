//! The rows of one partition in order: those with the first numbers, and those that take their place when one goes.
//!
//! Of rows that stay only the first ones are kept. A row costs the logarithm of their number, and with `rank()` and
//! `dense_rank()` peers come and go together. Leaves out partitions and what is told (`top_n`).

use super::call::Rows;
use super::few::Few;
use std::sync::Arc;

/// Memory of a row beside its bytes, about.
pub(super) const ENTRY_BYTES: usize = 72;

/// How the rows of a partition are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ranking {
    /// One after the other.
    RowNumber,
    /// One more than there are rows before it and its peers.
    Rank,
    /// Peers count once.
    DenseRank,
}

/// A row: bytes that begin with those of its order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) bytes: &'a [u8],
    /// How many bytes are those of the order: what peers have in common.
    pub(super) order: usize,
    pub(super) rowtime: i64,
}

impl<'a> Place<'a> {
    fn peers(&self) -> &'a [u8] {
        &self.bytes[..self.order]
    }
}

/// A row, its event time and its number.
pub(super) type Numbered = (Arc<[u8]>, i64, usize);

#[derive(Debug, Clone, Copy)]
struct Kept {
    order: usize,
    rowtime: i64,
}

type Ordered = Few<Kept>;

/// Which rows of a partition are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbering {
    pub(super) ranking: Ranking,
    /// The greatest number that is wanted.
    pub(super) count: usize,
    pub(super) rows: Rows,
}

/// The rows of a partition.
#[derive(Debug, Default)]
pub(super) struct Ranked {
    first: Ordered,
    /// Those after them, once there are any.
    rest: Option<Box<Ordered>>,
    /// Of the first, the peers of the last. Not counted for row numbers.
    last: u32,
    /// How many rows of the first have no peers before them. Not counted for row numbers.
    groups: u32,
    /// One more than where a step notes the first rows as they were; zero while it has not.
    pub(super) touched: u32,
}

impl Ranked {
    /// Without rows.
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.rest().next().is_none()
    }

    /// The wanted rows from number `skip` + 1 on.
    pub(super) fn told(&self, numbering: &Numbering, skip: usize) -> Vec<Numbered> {
        let (mut number, mut peers): (usize, &[u8]) = (0, &[]);
        let mut told = Vec::with_capacity(self.first.len().saturating_sub(skip));
        for (at, (place, kept)) in self.first.iter().enumerate() {
            let own = &place[..kept.order];
            number = match numbering.ranking {
                Ranking::RowNumber => at + 1,
                _ if number > 0 && own == peers => number,
                Ranking::Rank => at + 1,
                Ranking::DenseRank => number + 1,
            };
            peers = own;
            if number > skip {
                told.push((Arc::clone(place), kept.rowtime, number));
            }
        }
        told
    }

    /// All rows that are kept, with their event times.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&[u8], i64)> {
        self.first.iter().chain(self.rest()).map(|(place, kept)| (place.as_ref(), kept.rowtime))
    }

    fn rest(&self) -> impl Iterator<Item = (&Arc<[u8]>, &Kept)> {
        self.rest.iter().flat_map(|rest| rest.iter())
    }

    /// Memory of the rows, about.
    pub(super) fn bytes(&self) -> usize {
        self.rows().map(|(place, _)| place.len() + ENTRY_BYTES).sum()
    }

    /// Whether every wanted number is given.
    fn is_full(&self, numbering: &Numbering) -> bool {
        match numbering.ranking {
            Ranking::RowNumber | Ranking::Rank => self.first.len() >= numbering.count,
            Ranking::DenseRank => self.groups as usize >= numbering.count,
        }
    }

    /// The order of the last wanted row.
    fn last_peers(&self) -> Option<&[u8]> {
        self.first.last().map(|(place, kept)| &place[..kept.order])
    }

    /// Whether a row with `peers` as what it has in common with its peers may be wanted.
    pub(super) fn may_be_first(&self, numbering: &Numbering, peers: &[u8]) -> bool {
        numbering.count > 0 && (!self.is_full(numbering) || self.last_peers().is_some_and(|last| peers <= last))
    }

    /// Whether a row at `place` is, or would be, wanted.
    pub(super) fn is_first(&self, numbering: &Numbering, place: Place<'_>) -> bool {
        if numbering.count == 0 || !self.is_full(numbering) {
            return numbering.count > 0;
        }
        match numbering.ranking {
            Ranking::RowNumber => self.first.last().is_some_and(|(last, _)| place.bytes <= last.as_ref()),
            Ranking::Rank | Ranking::DenseRank => self.last_peers().is_some_and(|last| place.peers() <= last),
        }
    }

    /// One more row; gives the bytes of rows that were pushed out for good.
    pub(super) fn insert(&mut self, numbering: &Numbering, place: Place<'_>) -> usize {
        let kept = Kept { order: place.order, rowtime: place.rowtime };
        if !self.is_first(numbering, place) {
            return self.put_by(numbering, place.bytes.into(), kept);
        }
        if numbering.ranking == Ranking::RowNumber {
            self.first.insert(place.bytes.into(), kept);
            return match self.first.len() > numbering.count {
                true => self.first.pop_last().map_or(0, |(place, kept)| self.put_by(numbering, place, kept)),
                false => 0,
            };
        }
        self.add(place.bytes.into(), kept);
        let mut dropped = 0;
        while self.is_over(numbering) {
            for _ in 0..self.last {
                dropped += self.first.pop_last().map_or(0, |(place, kept)| self.put_by(numbering, place, kept));
            }
            self.groups -= 1;
            self.count_last();
        }
        dropped
    }

    /// Whether the last peers have a number that is not wanted.
    fn is_over(&self, numbering: &Numbering) -> bool {
        match numbering.ranking {
            Ranking::RowNumber => false,
            Ranking::Rank => self.first.len() - self.last as usize >= numbering.count,
            Ranking::DenseRank => self.groups as usize > numbering.count,
        }
    }

    /// Adds a row to the first, with its peers counted.
    fn add(&mut self, place: Arc<[u8]>, kept: Kept) {
        let peers = &place[..kept.order];
        let is_behind = self.last_peers().is_none_or(|last| peers > last);
        let is_last = self.last_peers() == Some(peers);
        self.groups += u32::from(!self.has_peers(peers));
        match (is_behind, is_last) {
            (true, _) => self.last = 1,
            (_, true) => self.last += u32::from(!self.first.contains(&place)),
            _ => {}
        }
        self.first.insert(place, kept);
    }

    fn has_peers(&self, peers: &[u8]) -> bool {
        self.first.from(peers).is_some_and(|(place, kept)| &place[..kept.order] == peers)
    }

    fn count_last(&mut self) {
        let last = self.last_peers();
        let is_peer = |(place, kept): &(&Arc<[u8]>, &Kept)| Some(&place[..kept.order]) == last;
        self.last = self.first.iter().rev().take_while(is_peer).count() as u32;
    }

    fn put_by(&mut self, numbering: &Numbering, place: Arc<[u8]>, kept: Kept) -> usize {
        match numbering.rows {
            Rows::Stay | Rows::Merge => place.len() + ENTRY_BYTES,
            Rows::Go => {
                self.rest.get_or_insert_default().insert(place, kept);
                0
            }
        }
    }

    /// One row less; whether it was there.
    pub(super) fn remove(&mut self, numbering: &Numbering, place: Place<'_>) -> bool {
        if self.first.remove(place.bytes).is_none() {
            return self.rest.as_mut().is_some_and(|rest| rest.remove(place.bytes).is_some());
        }
        if numbering.ranking != Ranking::RowNumber {
            self.groups -= u32::from(!self.has_peers(place.peers()));
            self.count_last();
        }
        while !self.is_full(numbering) {
            let Some((next, kept)) = self.rest.as_mut().and_then(|rest| rest.pop_first()) else { break };
            match numbering.ranking {
                Ranking::RowNumber => self.first.insert(next, kept),
                Ranking::Rank | Ranking::DenseRank => self.take_peers(next, kept),
            }
        }
        true
    }

    /// Moves a row of the rest, and its peers, to the first.
    fn take_peers(&mut self, next: Arc<[u8]>, kept: Kept) {
        let peers: Box<[u8]> = next[..kept.order].into();
        self.add(next, kept);
        let is_peer = |place: &Arc<[u8]>, kept: &Kept| place[..kept.order] == *peers;
        while let Some(rest) = &mut self.rest
            && rest.first().is_some_and(|(place, kept)| is_peer(place, kept))
            && let Some((place, kept)) = rest.pop_first()
        {
            self.add(place, kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::tests::Random;

    /// The numbers of `rows` in order, from their definitions.
    fn numbers(rows: &[(u8, u8)], ranking: Ranking) -> Vec<usize> {
        let number = |(at, row): (usize, &(u8, u8))| match ranking {
            Ranking::RowNumber => at + 1,
            Ranking::Rank => rows.iter().filter(|other| other.0 < row.0).count() + 1,
            Ranking::DenseRank => {
                let mut before: Vec<u8> = rows.iter().map(|other| other.0).filter(|other| *other < row.0).collect();
                before.dedup();
                before.len() + 1
            }
        };
        rows.iter().enumerate().map(number).collect()
    }

    #[test]
    fn the_first_numbers_are_those_of_their_definitions() {
        for seed in 0..60 {
            let mut random = Random::new(seed);
            let ranking = [Ranking::RowNumber, Ranking::Rank, Ranking::DenseRank][seed as usize % 3];
            let (count, skip) = (random.below(6) as usize, random.below(2) as usize);
            let rows = if random.below(2) == 0 { Rows::Stay } else { Rows::Go };
            let numbering = Numbering { ranking, count, rows };
            let mut ranked = Ranked::default();
            let mut all: Vec<(u8, u8)> = Vec::new();
            for _ in 0..150 {
                let row = (random.below(6) as u8, random.below(40) as u8);
                let is_there = all.contains(&row);
                let place = Place { bytes: &[row.0, row.1], order: 1, rowtime: 7 };
                match (is_there, rows) {
                    (true, Rows::Go) => {
                        assert!(ranked.remove(&numbering, place));
                        all.retain(|other| *other != row);
                    }
                    (true, _) => continue,
                    (false, _) => {
                        ranked.insert(&numbering, place);
                        all.push(row);
                        all.sort_unstable();
                    }
                }
                let wanted = all.iter().zip(numbers(&all, ranking));
                let wanted = wanted.filter(|(_, number)| (skip + 1..=count).contains(number));
                let wanted: Vec<(Vec<u8>, usize)> = wanted.map(|(row, number)| (vec![row.0, row.1], number)).collect();
                let told = ranked.told(&numbering, skip).into_iter().map(|(place, _, number)| (place.to_vec(), number));
                assert_eq!(told.collect::<Vec<_>>(), wanted, "{ranking:?} to {count} of {all:?}");
                let is_empty = if rows == Rows::Go { all.is_empty() } else { ranked.told(&numbering, 0).is_empty() };
                assert_eq!(ranked.is_empty(), is_empty);
            }
        }
    }
}
