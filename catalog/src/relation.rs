//! Definitions of streams and tables, each backed by exactly one topic.
//!
//! Leaves out where the events are (storage) and who writes them (engine). A crash does nothing to it.

use crate::model::{ByteSize, Durability, Name, PartitionId, QueryId, ShardId, Span, Timestamp, TopicId};
use crate::schema::{FILL_METADATA, KEY_METADATA, ROW_IDS_METADATA, ROWFIRST, ROWGONE, Schema, SqlType};
use arrow_schema::{FieldRef, Schema as ArrowSchema, SchemaRef};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// How a topic is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RelationKind {
    /// Independent events, append-only.
    Stream,
    /// A changelog: the latest row per primary key; without a key, every row.
    Table,
}

/// Compression of a topic's sealed segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Buffers as they are: mapped and read without a copy.
    #[default]
    None,
    /// LZ4 frames per buffer.
    Lz4,
    /// Zstandard per buffer.
    Zstd,
}

/// What happens to a topic's old events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CleanupPolicy {
    /// They go by `retention` and `retention_bytes`.
    Delete,
    /// The last event of each key stays.
    Compact,
    /// Both.
    CompactDelete,
}

impl CleanupPolicy {
    /// The policy of a stream or table that does not say one.
    pub fn of(kind: RelationKind) -> Self {
        match kind {
            RelationKind::Stream => Self::Delete,
            RelationKind::Table => Self::Compact,
        }
    }

    /// Whether old events go by age or size.
    pub fn deletes(self) -> bool {
        self != Self::Compact
    }

    /// Whether the last event of each key stays.
    pub fn compacts(self) -> bool {
        self != Self::Delete
    }

    /// As `WITH` has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Compact => "compact",
            Self::CompactDelete => "compact,delete",
        }
    }
}

/// How long a topic's events are kept. Bytes of an older catalog have none of it: then all are defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cleanup {
    /// The policy; by default `compact` for tables and `delete` for streams.
    pub policy: Option<CleanupPolicy>,
    /// How long an event is kept after its event time; for ever by default.
    pub retention: Option<Span>,
    /// Bytes of each partition that are kept; no bound by default.
    pub retention_bytes: Option<ByteSize>,
    /// How long a tombstone stays after it was compacted; a day by default, as Kafka's.
    pub delete_retention: Option<Span>,
}

impl Cleanup {
    /// Tombstones stay so long if nothing else is said; Kafka's `delete.retention.ms`.
    pub const DELETE_RETENTION: Span = Span::from_secs(24 * 60 * 60);

    /// How long a tombstone stays after it was compacted.
    pub fn delete_retention(&self) -> Span {
        self.delete_retention.unwrap_or(Self::DELETE_RETENTION)
    }
}

/// The `WITH` options of a topic that have an effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicOptions {
    /// Number of partitions, at least 1.
    pub partitions: u32,
    /// Compression of segments.
    pub compression: Compression,
    /// What happens to old events.
    #[serde(default)]
    pub cleanup: Cleanup,
    /// When writes to it are acknowledged; definitions of older programs do not say.
    #[serde(default, skip_serializing_if = "is_sync")]
    pub durability: Durability,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_sync(durability: &Durability) -> bool {
    *durability == Durability::Sync
}

impl Default for TopicOptions {
    fn default() -> Self {
        let (cleanup, durability) = (Cleanup::default(), Durability::default());
        Self { partitions: 1, compression: Compression::None, cleanup, durability }
    }
}

/// A stream or table and its topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    /// The id of the topic; never reused.
    pub id: TopicId,
    /// The name in schema `public`.
    pub name: Name,
    /// Stream or table.
    pub kind: RelationKind,
    /// The columns.
    pub schema: Schema,
    /// Position of the column that gives the event time; else `rowtime` of the INSERT, else arrival.
    pub timestamp: Option<usize>,
    /// The delay of `WATERMARK FOR`, when declared.
    pub watermark_delay: Option<Span>,
    /// Topic options.
    pub options: TopicOptions,
    /// The shard that replicates the partitions; all partitions of a topic share one.
    pub shard: ShardId,
    /// The continuous query that writes it, if it was made by `CREATE … AS SELECT`.
    pub query: Option<QueryId>,
    /// When it was created.
    pub created_at: Timestamp,
    /// The statement that made it, canonical.
    pub sql: String,
    /// Of columns added later, by position: what rows written before have in them, encoded by storage; else NULL.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fills: BTreeMap<usize, String>,
    /// Of a table without a key, the position of the two hidden columns by which its rows change: `bigint`, in an event that
    /// changes a row the offset of the row's first event, which is the row's id; then `boolean`, true where the row goes.
    /// `None` for tables made before there were such columns, until a row changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_ids: Option<usize>,
    /// Made by `CREATE MATERIALIZED VIEW`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_materialized: bool,
}

impl Relation {
    /// True for tables with a key: their stored batches carry `rowtombstone`.
    pub fn has_tombstones(&self) -> bool {
        self.kind == RelationKind::Table && self.schema.columns.iter().any(|column| column.is_key)
    }

    /// True for tables in which each event is a row of its own, until another event names it.
    pub fn lacks_key(&self) -> bool {
        self.kind == RelationKind::Table && !self.has_tombstones()
    }

    /// The stored columns by which events are of one row: the key, or the row's id.
    pub fn identity(&self) -> Vec<usize> {
        match self.row_ids {
            Some(at) => vec![at],
            None => self.schema.key(),
        }
    }

    /// Gives a table without a key the columns by which its rows change.
    pub fn add_row_ids(&mut self) {
        if self.row_ids.is_none() && self.lacks_key() {
            self.row_ids = Some(self.schema.columns.len());
            for (name, sql_type) in [(ROWFIRST, SqlType::BigInt), (ROWGONE, SqlType::Boolean)] {
                let column = self.schema.hidden(name, sql_type);
                self.schema.columns.extend(column);
            }
        }
    }

    /// The Arrow schema of stored batches.
    pub fn stored_schema(&self) -> SchemaRef {
        self.schema.stored(self.has_tombstones())
    }

    /// The same, with what storage must know: what rows written before columns were added have in them, and which columns
    /// are the key, of which it keeps filters.
    pub fn topic_schema(&self) -> SchemaRef {
        let stored = self.stored_schema();
        let key: Vec<String> = self.schema.key().iter().map(ToString::to_string).collect();
        if self.fills.is_empty() && key.is_empty() && self.row_ids.is_none() {
            return stored;
        }
        let field = |(at, field): (usize, &FieldRef)| match self.fills.get(&at) {
            None => Arc::clone(field),
            Some(fill) => {
                let mut metadata = field.metadata().clone();
                metadata.insert(FILL_METADATA.to_owned(), fill.clone());
                Arc::new(field.as_ref().clone().with_metadata(metadata))
            }
        };
        let fields: Vec<FieldRef> = stored.fields().iter().enumerate().map(field).collect();
        let key = (!key.is_empty()).then(|| (KEY_METADATA.to_owned(), key.join(",")));
        let row_ids = self.row_ids.map(|at| (ROW_IDS_METADATA.to_owned(), at.to_string()));
        Arc::new(ArrowSchema::new_with_metadata(fields, key.into_iter().chain(row_ids).collect::<HashMap<_, _>>()))
    }

    /// What happens to old events: the policy said, or the default of its kind.
    pub fn cleanup_policy(&self) -> CleanupPolicy {
        self.options.cleanup.policy.unwrap_or(CleanupPolicy::of(self.kind))
    }

    /// Every partition of the topic.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (0..self.options.partitions).map(PartitionId::new)
    }
}
