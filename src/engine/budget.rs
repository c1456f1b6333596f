//! The memory of a node, divided by fixed rules.
//!
//! Owns the rules, and who uses how much, for the view `millstream.memory`. Leaves out the bounds themselves: each stands
//! where memory is taken (`held`, `sql::exec::memory`, the appender of `replication`, the maps of `storage`). No state.
//!
//! The program itself takes [`PROGRAM_BYTES`]; of the rest each share gets its sixteenths. A worked example, of `1GB`
//! (1,024 MiB): 128 MiB for the program leaves 896 MiB, of which queries get 4/16, 224 MiB.

use crate::engine::Engine;
use crate::env;
use millstream_catalog::model::ByteSize;
use millstream_catalog::model::limit::{
    SEAL_BYTES_MIN, SESSION_BYTES, SESSIONS_MAX, SUBSCRIPTION_BYTES_MAX, SUBSCRIPTION_BYTES_MIN,
};

/// The program, its threads, and buffers that do not grow with load: the log's, the allocator's.
const PROGRAM_BYTES: ByteSize = ByteSize::new(128 << 20);
/// Parts of what the program leaves.
const PARTS: u64 = 16;
/// Subscriptions that may all hold rows their clients do not read.
const SUBSCRIPTIONS: u64 = 256;

/// What memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Sorts, aggregates and joins of pull queries.
    Queries,
    /// Rows that statements and transactions have not committed, and messages on their way in.
    Rows,
    /// Rows that wait for the log, and the entries they are in.
    Writes,
    /// Committed rows that are not in segments.
    Tails,
    /// Current rows of tables, and the operators of continuous queries.
    State,
    /// Pages of mapped files.
    Maps,
    /// Connections, their sessions and their subscriptions.
    Connections,
}

impl Share {
    /// Each, as `millstream.memory` names them, with its parts.
    const ALL: [(Self, &'static str, u64); 7] = [
        (Self::Queries, "queries", 4),
        (Self::Rows, "rows", 2),
        (Self::Writes, "writes", 1),
        (Self::Tails, "tails", 3),
        (Self::State, "state", 2),
        (Self::Maps, "maps", 2),
        (Self::Connections, "connections", 2),
    ];
}

/// A node's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget(ByteSize);

impl Budget {
    /// The rules for a process of so many bytes.
    pub fn of(memory: ByteSize) -> Self {
        Self(memory)
    }

    /// Bytes of a share.
    pub(crate) fn share(self, share: Share) -> ByteSize {
        let divided = self.0.value().saturating_sub(PROGRAM_BYTES.value());
        let parts = Share::ALL.iter().find(|(each, ..)| *each == share).map_or(0, |(_, _, parts)| *parts);
        ByteSize::new(divided / PARTS * parts)
    }

    /// Bytes of pages of mapped files.
    pub fn map_bytes(self) -> ByteSize {
        self.share(Share::Maps)
    }

    /// Bytes one query may hold: half of the queries' share, so that no one takes it all.
    pub(crate) fn query_bytes(self) -> ByteSize {
        ByteSize::new(self.share(Share::Queries).value() / 2)
    }

    /// Bytes after which a shard is sealed, at most `asked`: two generations of rows of every shard fit the tails' share,
    /// one that is being written to segments and one that grows.
    pub(crate) fn seal_bytes(self, asked: ByteSize, shards: u32) -> ByteSize {
        let of_shard = self.share(Share::Tails).value() / (2 * u64::from(shards.max(1)));
        asked.min(ByteSize::new(of_shard).max(SEAL_BYTES_MIN))
    }

    /// Sessions at once: each takes its buffers, before any statement.
    pub(crate) fn sessions_max(self) -> usize {
        let fitting = self.share(Share::Connections).value() / SESSION_BYTES.value();
        SESSIONS_MAX.min(usize::try_from(fitting).unwrap_or(SESSIONS_MAX))
    }

    /// Bytes of rows a subscription takes at once.
    pub(crate) fn subscription_bytes(self) -> ByteSize {
        let fitting = ByteSize::new(self.share(Share::Connections).value() / SUBSCRIPTIONS);
        fitting.max(SUBSCRIPTION_BYTES_MIN).min(SUBSCRIPTION_BYTES_MAX)
    }
}

/// One row of `millstream.memory`: a share, its bytes, and those in use, where they are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShareUse {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it may take; `None` of the rows that show what the process has.
    pub(crate) bytes_max: Option<ByteSize>,
    /// What it takes.
    pub(crate) bytes: ByteSize,
}

/// What each share takes now; then the process as the system counts it.
pub(crate) fn uses(engine: &Engine) -> Vec<ShareUse> {
    let budget = engine.budget();
    let shards = || engine.replication().shards().iter().map(|shard| shard.status());
    let sum = |bytes: &mut dyn Iterator<Item = ByteSize>| bytes.fold(ByteSize::ZERO, ByteSize::plus);
    let used = |share| match share {
        Share::Queries => engine.query_memory.used(),
        Share::Rows => engine.holding.used(),
        Share::Writes => engine.replication().writes_bytes(),
        Share::Tails => sum(&mut shards().map(|status| status.unsealed_bytes)),
        Share::State => engine.state_room.used(),
        Share::Maps => crate::storage::maps_bytes(),
        Share::Connections => ByteSize::new(SESSION_BYTES.value().saturating_mul(engine.session_count() as u64)),
    };
    let shares = Share::ALL.iter();
    let share = |(share, name, _): &(Share, &'static str, u64)| ShareUse {
        name,
        bytes_max: Some(budget.share(*share)),
        bytes: used(*share),
    };
    let mut uses: Vec<ShareUse> = shares.map(share).collect();
    if let Some((own, files)) = env::resident_bytes() {
        let (own, files) = (ByteSize::new(own), ByteSize::new(files));
        uses.push(ShareUse { name: "process", bytes_max: Some(budget.0), bytes: own.plus(files) });
        uses.push(ShareUse { name: "process, its own", bytes_max: None, bytes: own });
        uses.push(ShareUse { name: "process, mapped files", bytes_max: None, bytes: files });
    }
    uses
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_catalog::model::limit::MEMORY_BYTES_MIN;

    const MIB: u64 = 1 << 20;

    #[test]
    fn shares_and_the_program_are_all_of_the_memory() {
        for memory in [MEMORY_BYTES_MIN.value(), 1 << 30, 12 << 30] {
            let budget = Budget::of(ByteSize::new(memory));
            let shares = Share::ALL.iter().map(|(share, ..)| budget.share(*share).value());
            assert_eq!(shares.sum::<u64>() + PROGRAM_BYTES.value(), memory);
        }
        assert_eq!(Budget::of(ByteSize::new(1 << 30)).share(Share::Queries).value(), 224 * MIB);
    }

    #[test]
    fn what_is_derived_of_shares_stays_within_its_limits() {
        let (least, large) = (Budget::of(MEMORY_BYTES_MIN), Budget::of(ByteSize::new(64 << 30)));
        let asked = ByteSize::new(64 * MIB);
        assert_eq!(least.seal_bytes(asked, 1).value(), 36 * MIB);
        assert_eq!(least.seal_bytes(asked, 4).value(), 9 * MIB);
        assert_eq!(least.seal_bytes(asked, 1_000), SEAL_BYTES_MIN);
        assert_eq!(large.seal_bytes(asked, 4), asked);
        assert_eq!(least.sessions_max(), 1_536);
        assert_eq!(large.sessions_max(), SESSIONS_MAX);
        assert_eq!(least.subscription_bytes().value(), 192 << 10);
        assert_eq!(large.subscription_bytes(), SUBSCRIPTION_BYTES_MAX);
        assert_eq!(least.query_bytes().value(), 48 * MIB);
    }
}
