//! Every limit of the product, each with its reason. Reaching one is an error with words, never growth.

use super::size::{ByteSize, RowCount};
use super::time::Span;

/// Bytes in an identifier; PostgreSQL's `NAMEDATALEN - 1`, so that every client's buffers hold it.
pub const NAME_BYTES_MAX: usize = 63;
/// Columns of a relation; PostgreSQL's own bound, which drivers rely on.
pub const COLUMNS_MAX: usize = 1_600;
/// Partitions of one topic: each costs a reader slot in every subscription of the topic.
pub const PARTITIONS_MAX: u32 = 10_000;
/// Topics of a node; the catalog is held in memory and sent whole to planners.
pub const TOPICS_MAX: usize = 100_000;
/// Continuous queries of a node; each has a task and state.
pub const QUERIES_MAX: usize = 10_000;
/// Shards of a node; each has a Raft core with its own timers.
pub const SHARDS_MAX: u32 = 1_023;
/// The fewest bytes of rows a shard may keep before they become segments: fewer make files without end.
pub const SEAL_BYTES_MIN: ByteSize = ByteSize::new(64 << 10);
/// The most: they are all in memory, and read again from the log at a start.
pub const SEAL_BYTES_MAX: ByteSize = ByteSize::new(4 << 30);
/// Bytes of one event, encoded; an entry must fit in memory on every replica several times over.
pub const EVENT_BYTES_MAX: ByteSize = ByteSize::new(32 << 20);
/// Bytes of one SQL statement: text is parsed whole, in several times its size of memory.
pub const STATEMENT_BYTES_MAX: usize = 16 << 20;
/// Bytes of one frontend message outside COPY; a larger length is a broken or hostile client.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Nesting of expressions and sub-queries; the planner recurses, and a stack overflow kills the process.
pub const NESTING_MAX: usize = 200;
/// Nesting of queries in queries: their trees are the largest, and copying one recurses with the most stack.
pub const QUERIES_NESTED_MAX: usize = 12;
/// Views that one statement's views expand to: each doubles what reads it twice.
pub const VIEWS_EXPANDED_MAX: usize = 200;
/// `UNION`, `EXCEPT` and `INTERSECT` in one another or in a row, for the same reason.
pub const SET_OPERATIONS_MAX: usize = 50;
/// Parameters of a prepared statement; the wire format counts them in 16 bits.
pub const PARAMETERS_MAX: usize = 65_535;
/// Bytes of all rows of one statement (COPY included): they are committed as one Raft entry.
pub const STATEMENT_ROWS_BYTES_MAX: ByteSize = ByteSize::new(512 << 20);
/// Bytes of the metadata of one message of an Arrow stream: it is parsed whole, and says what is read next.
pub const ARROW_METADATA_BYTES_MAX: usize = 16 << 20;
/// Bytes of rows that a statement or transaction keeps in memory before it writes them to the log as part of itself.
pub const STAGE_BYTES_TARGET: ByteSize = ByteSize::new(32 << 20);
/// The least memory a node is given: beside the program itself, each share must hold what one statement needs.
pub const MEMORY_BYTES_MIN: ByteSize = ByteSize::new(512 << 20);
/// Bytes of rows a statement holds before it gives some up for want of memory: fewer would make entries without end.
pub const STAGE_BYTES_MIN: ByteSize = ByteSize::new(256 << 10);
/// Savepoints of one transaction.
pub const SAVEPOINTS_MAX: usize = 10_000;
/// Bytes after which an entry takes no further waiting statement; bounds latency under load.
pub const ENTRY_BYTES_TARGET: ByteSize = ByteSize::new(4 << 20);
/// Statements waiting for one shard before writers are held back.
pub const APPEND_QUEUE_STATEMENTS_MAX: usize = 65_536;
/// Rows that may come to a partition between the reading of rows and the commit of their change; they are looked through
/// for the same keys, while nothing else of the shard is applied.
pub const GUARD_ROWS_MAX: RowCount = RowCount::new(1_000_000);
/// Rows a statement or transaction locks one by one; one that changes more locks the whole table.
pub const ROW_LOCKS_MAX: usize = 10_000;
/// Times a statement is computed anew because rows it changes were written meanwhile, before it fails (40001).
pub const CHANGE_ATTEMPTS_MAX: usize = 100;
/// Rows of one stored batch; large enough to amortise per-batch cost, small enough for a cache.
pub const BATCH_ROWS_MAX: usize = 65_536;
/// Sessions at once; each holds buffers and a task.
pub const SESSIONS_MAX: usize = 10_000;
/// Seconds a client may take to finish its start-up handshake.
pub const STARTUP_SECONDS_MAX: u64 = 30;
/// Prepared statements of one session.
pub const PREPARED_MAX: usize = 10_000;
/// Open cursors and portals of one session.
pub const PORTALS_MAX: usize = 1_000;
/// Bytes of one query's input taken into one step: bounds the memory and the latency of a step.
pub const STEP_BYTES_TARGET: ByteSize = ByteSize::new(4 << 20);
/// The same, where a step costs much beside its events.
pub const STEP_BYTES_LARGE: ByteSize = ByteSize::new(16 << 20);
/// Rows of one step's input, for the same reason.
pub const STEP_ROWS_TARGET: usize = 262_144;
/// Bytes a subscription takes at once while it is behind, at least and at most: there may be thousands of them.
pub const SUBSCRIPTION_BYTES_MIN: ByteSize = ByteSize::new(64 << 10);
/// The most; more makes it no faster.
pub const SUBSCRIPTION_BYTES_MAX: ByteSize = ByteSize::new(4 << 20);
/// Bytes an idle connection takes, with its session: 27 kB were measured.
pub const SESSION_BYTES: ByteSize = ByteSize::new(32 << 10);
/// Words, literals and signs of one text: each takes some hundred bytes while it is parsed.
pub const STATEMENT_TOKENS_MAX: usize = 2_000_000;
/// Levels of an expression, counting each term of a chain such as `a + b + c`: the tree is walked and freed
/// recursively, and a stack overflow kills the process.
pub const EXPRESSION_DEPTH_MAX: usize = 1_000;
/// Elements of a list literal or `IN` list; each becomes an expression node.
pub const LIST_ITEMS_MAX: usize = 100_000;
/// Keys that one condition may look up in a table; more are found by a scan.
pub const LOOKUP_KEYS_MAX: usize = 10_000;
/// Bytes of former rows that a partition of a table keeps for statements that run: beyond, a statement that wants them
/// folds the table anew for itself.
pub const TABLE_UNDO_BYTES_MAX: ByteSize = ByteSize::new(32 << 20);
/// Nesting of a JSON value: what clients and functions do with it recurses.
pub const JSON_NESTING_MAX: usize = 1_000;
/// STRUCT, MAP and ARRAY in one another in a type: each level is a level of every array and of every walk over it.
pub const TYPE_NESTING_MAX: usize = 16;
/// Fields of all STRUCTs of a type: each is an Arrow column of its own.
pub const TYPE_FIELDS_MAX: usize = COLUMNS_MAX;
/// Rows that one step of a continuous join may make: they are in memory at once.
pub const JOIN_ROWS_MAX: usize = 20_000_000;
/// Topics that one session listens to: it follows each partition of them.
pub const LISTEN_TOPICS_MAX: usize = 1_000;
/// `LISTEN`, `UNLISTEN` and savepoints behind them in one transaction: they are kept until it commits.
pub const LISTEN_STEPS_MAX: usize = 10_000;
/// Steps of one query without a checkpoint: each is kept in memory and replayed after a restart.
pub const STEPS_SINCE_CHECKPOINT_MAX: usize = 65_536;
/// Entries of the catalog's shard after which its state is written and its log purged.
pub const CATALOG_ENTRIES_MAX: u64 = 512;
/// Bytes of a producer's name: all of them are in memory, and in each manifest.
pub const PRODUCER_NAME_BYTES_MAX: usize = 255;
/// Bytes of a consumer group's name; Kafka's bound for names of topics, which its tools use for groups too.
pub const GROUP_NAME_BYTES_MAX: usize = 249;
/// Producers of a shard, one counted for each topic it writes to: they are in memory, and in each manifest.
pub const PRODUCERS_MAX: usize = 100_000;
/// How long a producer that writes nothing is remembered.
pub const PRODUCER_EXPIRY: Span = Span::from_micros(7 * 86_400_000_000);
/// Committed offsets of a shard, one for each group and partition: they are in memory, and in each manifest.
pub const GROUP_OFFSETS_MAX: usize = 1_000_000;
/// Bytes of the write-ahead log above which quiet shards are sealed too, so that it gives files back.
pub const WAL_BYTES_TARGET: ByteSize = ByteSize::new(512 << 20);
/// Bytes of a segment that merging aims at: large enough that 50 GB are some hundred files, small enough that retention
/// has something to take away and a merge takes a second or two.
pub const SEGMENT_BYTES_TARGET: ByteSize = ByteSize::new(256 << 20);
/// Rows not yet compacted that are compacted at once: of each key some 25 bytes are held, at most 210 MB with the room
/// that a growing hash table leaves.
pub const COMPACTION_ROWS_MAX: RowCount = RowCount::new(4 << 20);
/// Bytes of segments that one entry of the log replaces, unless it replaces one run: after a crash before the next seal
/// they are written again.
pub const REWRITE_BYTES_TARGET: ByteSize = ByteSize::new(256 << 20);
/// Segments kept open, and mapped, at once: Linux gives a process 65,530 maps, and each keeps some kilobytes of what its
/// footer says. More are opened anew when they are read.
pub const SEGMENTS_OPEN_MAX: usize = 16_384;
/// Removed segments that are kept open because somebody still reads them; files of more wait for the next seal.
pub const SEGMENTS_PINNED_MAX: usize = 16_384;
/// Parts of a shard's open transactions, each in a mapped file: with the segments fewer maps than Linux gives a process.
pub const STAGED_PARTS_MAX: usize = 16_384;
/// Runs of segments that one entry of the log replaces, and log starts that one moves.
pub const REWRITES_MAX: usize = 1_024;
/// How long after a write with `durability = 'async'` the log is synced, at most: what a power cut may cost. Five syncs a
/// second take a thousandth of a disk's time.
pub const ASYNC_SYNC_DELAY: Span = Span::from_micros(200_000);
/// Bytes of such writes after which the log is synced at once: a sync takes the longer the more it finds, and others wait
/// behind it.
pub const ASYNC_UNSYNCED_BYTES_TARGET: ByteSize = ByteSize::new(8 << 20);
/// The most bytes of such an append that its caller writes itself: copying them takes some 10 µs.
pub const ASYNC_INLINE_BYTES_MAX: ByteSize = ByteSize::new(64 << 10);
