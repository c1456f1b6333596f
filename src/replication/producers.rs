//! Idempotent producers: which rows each has written, so that what it sends again is written once.
//!
//! Owns the rules as pure functions over [`Producers`]; equal entries give equal tables on every replica, the
//! clock being in the entry. Numbers count by producer and topic, as Kafka's sequences count by producer and partition.
//! Leaves out rows (`machine` stores them). Persisted with the shard's manifest, so neither a restart nor compaction
//! forgets a producer; [`PRODUCER_EXPIRY`] does.

use super::error::Refused;
use super::types::{Append, ProducerClaim};
use millstream_catalog::model::limit::{PRODUCER_EXPIRY, PRODUCERS_MAX};
use millstream_catalog::model::{ProducerId, Sequence, Timestamp, TopicId};
use std::collections::BTreeMap;

/// What is known of one producer in one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Produced {
    /// The number of its next row.
    pub(crate) next: Sequence,
    /// When it last wrote.
    pub(crate) at: Timestamp,
}

/// The producers of a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Producers {
    by_topic: BTreeMap<TopicId, BTreeMap<ProducerId, Produced>>,
    count: usize,
}

/// Whether rows are new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Novelty {
    /// None was written before.
    New,
    /// All were.
    Repeated,
    /// They wait for their transaction's commit, or go with its end.
    Staged,
}

/// What the state machine says to one write.
pub(crate) type Verdict = Result<Novelty, Refused>;

impl Producers {
    /// The number a producer's next row in `topic` has; `None` for one that is not known.
    pub(crate) fn next(&self, topic: TopicId, producer: &ProducerId) -> Option<Sequence> {
        self.by_topic.get(&topic)?.get(producer).map(|produced| produced.next)
    }

    /// All of them, by topic and name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (TopicId, &ProducerId, Produced)> {
        let of = |(topic, producers): (&TopicId, _)| (*topic, producers);
        self.by_topic.iter().map(of).flat_map(|(topic, producers): (_, &BTreeMap<ProducerId, Produced>)| {
            producers.iter().map(move |(producer, produced)| (topic, producer, *produced))
        })
    }

    /// How many there are, counted for each topic.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Knows a producer from now on.
    pub(crate) fn insert(&mut self, topic: TopicId, producer: ProducerId, produced: Produced) {
        if self.by_topic.entry(topic).or_default().insert(producer, produced).is_none() {
            self.count += 1;
        }
    }

    /// Forgets those of a topic.
    pub(crate) fn drop_topic(&mut self, topic: TopicId) {
        self.count -= self.by_topic.remove(&topic).map_or(0, |producers| producers.len());
    }

    /// Whether the rows that `claims` speak of may be written, or were: all of them, or none.
    ///
    /// # Errors
    /// [`Refused::SequenceGap`] for rows that do not follow the producer's last; [`Refused::ProducersFull`].
    pub(crate) fn check(&mut self, claims: &[ProducerClaim], now: Timestamp) -> Verdict {
        let mut ahead: BTreeMap<(TopicId, &ProducerId), Sequence> = BTreeMap::new();
        let mut repeated = 0;
        let mut unknown = 0;
        for claim in claims {
            let place = (claim.topic, &claim.producer);
            let next = ahead.get(&place).copied().or_else(|| self.next(claim.topic, &claim.producer));
            unknown += usize::from(next.is_none());
            let end = claim.sequence.plus(claim.rows);
            match next {
                None if claim.sequence <= Sequence::FIRST_LAST => {}
                Some(next) if claim.sequence == next => {}
                Some(next) if end <= next => {
                    repeated += 1;
                    continue;
                }
                next => return Err(gap(claim, next)),
            }
            ahead.insert(place, end);
        }
        match (repeated, claims) {
            (0, _) => self.make_room(unknown, now).map(|()| Novelty::New),
            (repeated, claims) if repeated == claims.len() => Ok(Novelty::Repeated),
            // A transaction of other statements than were committed.
            (_, [claim, ..]) => Err(gap(claim, self.next(claim.topic, &claim.producer))),
            (_, []) => Ok(Novelty::New),
        }
    }

    /// Remembers rows that [`Producers::check`] found new.
    pub(crate) fn record<'a>(&mut self, claims: impl IntoIterator<Item = &'a ProducerClaim>, now: Timestamp) {
        for claim in claims {
            let produced = Produced { next: claim.sequence.plus(claim.rows), at: now };
            self.insert(claim.topic, claim.producer.clone(), produced);
        }
    }

    /// Forgets who has expired when there is no room for `more`.
    fn make_room(&mut self, more: usize, now: Timestamp) -> Result<(), Refused> {
        if self.count + more <= PRODUCERS_MAX {
            return Ok(());
        }
        let oldest = now.minus(PRODUCER_EXPIRY);
        self.by_topic.retain(|_, producers| {
            producers.retain(|_, produced| produced.at >= oldest);
            !producers.is_empty()
        });
        self.count = self.by_topic.values().map(BTreeMap::len).sum();
        if self.count + more <= PRODUCERS_MAX { Ok(()) } else { Err(Refused::ProducersFull) }
    }
}

fn gap(claim: &ProducerClaim, next: Option<Sequence>) -> Refused {
    let ProducerClaim { producer, topic, sequence, .. } = claim.clone();
    Refused::SequenceGap { producer, topic, sequence, next }
}

impl Append {
    /// Bytes the claims and commits cost in memory and in the log, roughly.
    pub(crate) fn overhead_bytes(&self) -> usize {
        let claims = self.claims.iter().map(|claim| 96 + claim.producer.as_str().len());
        let commits = self.commits.iter().map(|commit| 96 + commit.group.as_str().len());
        claims.sum::<usize>() + commits.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_catalog::model::{RowCount, Span};

    const NOW: Timestamp = Timestamp::from_micros(1_000);

    fn claim(topic: u64, sequence: u64, rows: u64) -> ProducerClaim {
        ProducerClaim {
            producer: ProducerId::new("p").unwrap(),
            topic: TopicId::new(topic),
            sequence: Sequence::new(sequence),
            rows: RowCount::new(rows),
        }
    }

    fn write(producers: &mut Producers, claims: &[ProducerClaim]) -> Result<Novelty, Refused> {
        let novelty = producers.check(claims, NOW)?;
        if novelty == Novelty::New {
            producers.record(claims, NOW);
        }
        Ok(novelty)
    }

    #[test]
    fn rows_are_new_once_and_leave_no_gap() {
        let mut producers = Producers::default();
        write(&mut producers, &[claim(1, 2, 1)]).expect_err("counts from 0 or 1");
        assert_eq!(write(&mut producers, &[claim(1, 0, 3)]), Ok(Novelty::New));
        assert_eq!(write(&mut producers, &[claim(1, 0, 3)]), Ok(Novelty::Repeated));
        assert_eq!(write(&mut producers, &[claim(1, 1, 2)]), Ok(Novelty::Repeated));
        write(&mut producers, &[claim(1, 4, 1)]).expect_err("a gap");
        write(&mut producers, &[claim(1, 2, 2)]).expect_err("half new");
        assert_eq!(write(&mut producers, &[claim(1, 3, 1)]), Ok(Novelty::New));
        assert_eq!(write(&mut producers, &[claim(2, 1, 1)]), Ok(Novelty::New));
        assert_eq!(producers.len(), 2);
        producers.drop_topic(TopicId::new(1));
        assert_eq!(producers.len(), 1);
        assert_eq!(producers.next(TopicId::new(1), &claim(1, 0, 0).producer), None);
    }

    #[test]
    fn a_transaction_is_new_as_a_whole_or_not_at_all() {
        let mut producers = Producers::default();
        let all = [claim(1, 0, 2), claim(2, 0, 1), claim(1, 2, 2)];
        assert_eq!(write(&mut producers, &all), Ok(Novelty::New));
        assert_eq!(write(&mut producers, &all), Ok(Novelty::Repeated));
        write(&mut producers, &[claim(1, 2, 2), claim(1, 4, 1)]).expect_err("half of it");
        write(&mut producers, &[claim(1, 4, 1), claim(1, 6, 1)]).expect_err("a gap inside");
        assert_eq!(producers.next(TopicId::new(1), &all[0].producer), Some(Sequence::new(4)));
    }

    #[test]
    fn only_those_that_expired_make_room() {
        let mut producers = Producers::default();
        for number in 0..PRODUCERS_MAX {
            let producer = ProducerId::new(number.to_string()).unwrap();
            producers.insert(TopicId::new(1), producer, Produced { next: Sequence::new(1), at: NOW });
        }
        assert_eq!(producers.check(&[claim(1, 0, 1)], NOW), Err(Refused::ProducersFull));
        let later = NOW.plus(PRODUCER_EXPIRY);
        assert_eq!(producers.check(&[claim(1, 0, 1)], later), Err(Refused::ProducersFull));
        let later = later.plus(Span::from_micros(1));
        assert_eq!(producers.check(&[claim(1, 0, 1)], later), Ok(Novelty::New));
        assert_eq!(producers.len(), 0);
    }
}
