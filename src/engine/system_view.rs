//! The views of schema `millstream`: what the node has and does, as tables.
//!
//! Each view is a list of columns and a function that fills them, side by side. Leaves out planning (sql)
//! and metrics (server). Reads only.

use crate::engine::budget::{self, ShareUse};
use crate::engine::group::GroupStatus;
use crate::engine::settings::Settings;
use crate::engine::{Engine, Result};
use crate::storage::{PartitionView, Segment};
use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Schema, SchemaRef};
use millstream_catalog::model::{GroupName, PartitionId, RowCount, SqlState, Timestamp};
use millstream_catalog::{Compression, QueryState, Relation, RelationKind, SqlType};
use millstream_sql::SqlError;
use std::sync::Arc;

/// What of a session its views show.
#[derive(Debug, Clone)]
pub(crate) struct SessionView {
    /// Its settings.
    pub(crate) settings: Settings,
}

/// A value of a view.
#[derive(Debug, Clone)]
enum Cell {
    Text(Option<String>),
    Integer(i64),
    Long(Option<i64>),
    Time(Option<Timestamp>),
}

use Cell::{Integer, Long, Text, Time};

/// Kinds of columns: t text, i integer, b bigint, z timestamptz.
struct View {
    name: &'static str,
    columns: &'static [(&'static str, char)],
    rows: fn(&Arc<Engine>, Option<&SessionView>) -> Vec<Vec<Cell>>,
}

const VIEWS: &[View] = &[
    View {
        name: "topics",
        columns: &[
            ("name", 't'),
            ("kind", 't'),
            ("partitions", 'i'),
            ("shard", 'i'),
            ("compression", 't'),
            ("durability", 't'),
            ("cleanup_policy", 't'),
            ("retention", 't'),
            ("retention_bytes", 'b'),
            ("delete_retention", 't'),
            ("events", 'b'),
            ("bytes", 'b'),
            ("segments", 'b'),
            ("created_at", 'z'),
        ],
        rows: |engine, _| each_relation(engine, topic_row),
    },
    View {
        name: "partitions",
        columns: &[
            ("topic", 't'),
            ("partition", 'i'),
            ("shard", 'i'),
            ("offset_start", 'b'),
            ("offset_end", 'b'),
            ("events", 'b'),
            ("bytes", 'b'),
            ("segments", 'b'),
        ],
        rows: |engine, _| each_partition(engine, partition_rows),
    },
    View {
        name: "segments",
        columns: &[
            ("topic", 't'),
            ("partition", 'i'),
            ("offset_start", 'b'),
            ("offset_end", 'b'),
            ("events", 'b'),
            ("bytes", 'b'),
            ("rowtime_min", 'z'),
            ("rowtime_max", 'z'),
            ("damage", 't'),
        ],
        rows: |engine, _| each_partition(engine, segment_rows),
    },
    View {
        name: "streams",
        columns: &[
            ("name", 't'),
            ("topic", 't'),
            ("partitions", 'i'),
            ("rows", 'b'),
            ("timestamp_column", 't'),
            ("query", 't'),
            ("sql", 't'),
            ("created_at", 'z'),
        ],
        rows: |engine, _| each_relation(engine, stream_row),
    },
    View {
        name: "tables",
        columns: &[
            ("name", 't'),
            ("topic", 't'),
            ("partitions", 'i'),
            ("primary_key", 't'),
            ("query", 't'),
            ("sql", 't'),
            ("created_at", 'z'),
        ],
        rows: |engine, _| each_relation(engine, table_row),
    },
    View {
        name: "views",
        columns: &[("name", 't'), ("kind", 't'), ("query", 't'), ("sql", 't'), ("created_at", 'z')],
        rows: |engine, _| view_rows(engine),
    },
    View {
        name: "queries",
        columns: &[
            ("name", 't'),
            ("state", 't'),
            ("sql", 't'),
            ("sources", 't'),
            ("sink", 't'),
            ("steps", 'b'),
            ("input_rows", 'b'),
            ("output_rows", 'b'),
            ("late_rows", 'b'),
            ("skipped_rows", 'b'),
            ("lag_rows", 'b'),
            ("watermark", 'z'),
            ("state_bytes", 'b'),
            ("error", 't'),
            ("created_at", 'z'),
        ],
        rows: |engine, _| query_rows(engine),
    },
    View {
        name: "consumer_groups",
        columns: &[
            ("group_name", 't'),
            ("state", 't'),
            ("members", 'b'),
            ("partitions", 'b'),
            ("generation", 'b'),
            ("lag", 'b'),
            ("used_at", 'z'),
        ],
        rows: |engine, _| group_rows(engine),
    },
    View {
        name: "consumer_group_members",
        columns: &[
            ("group_name", 't'),
            ("member", 't'),
            ("instance_id", 't'),
            ("pid", 'i'),
            ("user_name", 't'),
            ("application_name", 't'),
            ("client", 't'),
            ("state", 't'),
            ("partitions", 'i'),
            ("joined_at", 'z'),
        ],
        rows: |engine, _| member_rows(engine),
    },
    View {
        name: "consumer_group_offsets",
        columns: &[
            ("group_name", 't'),
            ("topic", 't'),
            ("partition", 'i'),
            ("committed_offset", 'b'),
            ("end_offset", 'b'),
            ("lag", 'b'),
            ("member", 't'),
        ],
        rows: |engine, _| offset_rows(engine),
    },
    View {
        name: "sessions",
        columns: &[
            ("pid", 'i'),
            ("user_name", 't'),
            ("application_name", 't'),
            ("client", 't'),
            ("started_at", 'z'),
            ("statement", 't'),
        ],
        rows: |engine, _| session_rows(engine),
    },
    View {
        name: "settings",
        columns: &[("name", 't'), ("setting", 't'), ("description", 't')],
        rows: |_, session| setting_rows(session),
    },
    View {
        name: "memory",
        columns: &[("share", 't'), ("bytes_max", 'b'), ("bytes", 'b')],
        rows: |engine, _| memory_rows(engine),
    },
    View {
        name: "nodes",
        columns: &[("node", 'i'), ("state", 't'), ("shards", 'i')],
        rows: |engine, _| {
            let shards = engine.replication().shards().len() as i64;
            vec![vec![Integer(1), Text(Some("running".to_owned())), Integer(shards)]]
        },
    },
    View {
        name: "shards",
        columns: &[
            ("shard", 'i'),
            ("leader", 'i'),
            ("term", 'b'),
            ("applied", 'b'),
            ("sealed", 'b'),
            ("purged", 'b'),
            ("waiting_bytes", 'b'),
            ("rewritten_bytes", 'b'),
            ("rewritten_segments", 'b'),
            ("removed_bytes", 'b'),
            ("removed_segments", 'b'),
            ("damage", 't'),
        ],
        rows: |engine, _| shard_rows(engine),
    },
];

fn sql_type(kind: char) -> SqlType {
    match kind {
        'i' => SqlType::Integer,
        'b' => SqlType::BigInt,
        'z' => SqlType::TimestampTz,
        _ => SqlType::Text,
    }
}

fn schema(view: &View) -> SchemaRef {
    Arc::new(Schema::new(
        view.columns.iter().map(|(name, kind)| sql_type(*kind).field(name, true)).collect::<Vec<Field>>(),
    ))
}

/// Name and schema of every view.
pub(crate) fn schemas() -> Vec<(String, SchemaRef)> {
    VIEWS.iter().map(|view| (view.name.to_owned(), schema(view))).collect()
}

/// The rows of one view.
///
/// # Errors
/// 42P01 when there is no such view.
pub(crate) fn rows(engine: &Arc<Engine>, session: Option<&SessionView>, name: &str) -> Result<RecordBatch> {
    let view = VIEWS.iter().find(|view| view.name == name).ok_or_else(|| {
        SqlError::new(SqlState::UndefinedTable, format!("relation \"millstream.{name}\" does not exist"))
    })?;
    let rows = (view.rows)(engine, session);
    let columns = view.columns.iter().enumerate().map(|(i, (_, kind))| column(*kind, rows.iter().map(|row| &row[i])));
    RecordBatch::try_new(schema(view), columns.collect())
        .map_err(|error| SqlError::internal(format!("view {name} cannot be formed: {error}")))
}

fn column<'a>(kind: char, cells: impl Iterator<Item = &'a Cell>) -> ArrayRef {
    let long = |cell: &Cell| match cell {
        Integer(value) => Some(*value),
        Long(value) => *value,
        Time(time) => time.map(Timestamp::micros),
        Text(_) => None,
    };
    match kind {
        'i' => {
            Arc::new(cells.map(|cell| long(cell).and_then(|value| i32::try_from(value).ok())).collect::<Int32Array>())
        }
        'b' => Arc::new(cells.map(long).collect::<Int64Array>()),
        'z' => Arc::new(cells.map(long).collect::<TimestampMicrosecondArray>().with_timezone("UTC")),
        _ => Arc::new(
            cells.map(|cell| if let Text(text) = cell { text.as_deref() } else { None }).collect::<StringArray>(),
        ),
    }
}

fn each_relation(engine: &Arc<Engine>, row: fn(&Engine, &Relation) -> Option<Vec<Cell>>) -> Vec<Vec<Cell>> {
    engine.catalog().relations().filter_map(|relation| row(engine, relation)).collect()
}

fn each_partition(
    engine: &Arc<Engine>,
    rows: fn(&Relation, PartitionId, &PartitionView) -> Vec<Vec<Cell>>,
) -> Vec<Vec<Cell>> {
    let catalog = engine.catalog();
    let views = catalog.relations().flat_map(|relation| {
        views(engine, relation).into_iter().map(move |(id, view)| (Arc::clone(relation), id, view))
    });
    views.flat_map(|(relation, id, view)| rows(&relation, id, &view)).collect()
}

fn views(engine: &Engine, relation: &Relation) -> Vec<(PartitionId, Arc<PartitionView>)> {
    let Ok(shard) = engine.shard_of(relation) else { return Vec::new() };
    let partitions = shard.partitions();
    relation.partitions().filter_map(|id| Some((id, partitions.get(relation.id, id)?.view()))).collect()
}

fn text(value: impl ToString) -> Cell {
    Text(Some(value.to_string()))
}

fn long(value: u64) -> Cell {
    Long(i64::try_from(value).ok())
}

/// `None` while a segment that must be looked into cannot be opened.
fn events<'v>(views: impl IntoIterator<Item = &'v PartitionView>) -> Cell {
    let rows: Option<u64> = views.into_iter().map(|view| Some(view.rows().ok()?.value())).sum();
    rows.map_or(Long(None), long)
}

fn query_name(engine: &Engine, relation: &Relation) -> Cell {
    let catalog = engine.catalog();
    Text(relation.query.and_then(|id| catalog.query_by_id(id)).map(|query| query.name.to_string()))
}

fn topic_row(engine: &Engine, relation: &Relation) -> Option<Vec<Cell>> {
    let views = views(engine, relation);
    let sum = |of: fn(&PartitionView) -> u64| long(views.iter().map(|(_, view)| of(view)).sum());
    let kind = match relation.kind {
        RelationKind::Stream => "stream",
        RelationKind::Table => "table",
    };
    let compression = match relation.options.compression {
        Compression::None => "none",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    };
    Some(vec![
        text(&relation.name),
        text(kind),
        Integer(i64::from(relation.options.partitions)),
        Integer(i64::from(relation.shard.value())),
        text(compression),
        text(relation.options.durability.word()),
        text(relation.cleanup_policy().word()),
        text(relation.options.cleanup.retention.map_or_else(|| "forever".to_owned(), |span| span.to_string())),
        Long(relation.options.cleanup.retention_bytes.and_then(|bytes| i64::try_from(bytes.value()).ok())),
        text(relation.options.cleanup.delete_retention()),
        events(views.iter().map(|(_, view)| &**view)),
        sum(|view| view.bytes().value()),
        sum(|view| view.segments().len() as u64),
        Time(Some(relation.created_at)),
    ])
}

fn partition_rows(relation: &Relation, id: PartitionId, view: &PartitionView) -> Vec<Vec<Cell>> {
    vec![vec![
        text(&relation.name),
        Integer(i64::from(id.value())),
        Integer(i64::from(relation.shard.value())),
        long(view.offset_start().value()),
        long(view.offset_end().value()),
        events([view]),
        long(view.bytes().value()),
        long(view.segments().len() as u64),
    ]]
}

fn segment_rows(relation: &Relation, id: PartitionId, view: &PartitionView) -> Vec<Vec<Cell>> {
    let row = |segment: &Arc<Segment>| {
        vec![
            text(&relation.name),
            Integer(i64::from(id.value())),
            long(segment.offset_start().value()),
            long(segment.offset_end().value()),
            long(segment.rows().value()),
            long(segment.bytes().value()),
            Time(segment.rowtime().map(|range| range.first)),
            Time(segment.rowtime().map(|range| range.last)),
            Text(segment.damage().map(str::to_owned)),
        ]
    };
    view.segments().iter().map(row).collect()
}

fn stream_row(engine: &Engine, relation: &Relation) -> Option<Vec<Cell>> {
    let timestamp = relation.timestamp.and_then(|i| relation.schema.columns.get(i)).map(|c| c.name.to_string());
    (relation.kind == RelationKind::Stream).then(|| {
        vec![
            text(&relation.name),
            text(&relation.name),
            Integer(i64::from(relation.options.partitions)),
            events(views(engine, relation).iter().map(|(_, view)| &**view)),
            Text(timestamp),
            query_name(engine, relation),
            text(&relation.sql),
            Time(Some(relation.created_at)),
        ]
    })
}

fn table_row(engine: &Engine, relation: &Relation) -> Option<Vec<Cell>> {
    let key: Vec<&str> =
        relation.schema.columns.iter().filter(|column| column.is_key).map(|column| column.name.as_str()).collect();
    (relation.kind == RelationKind::Table).then(|| {
        vec![
            text(&relation.name),
            text(&relation.name),
            Integer(i64::from(relation.options.partitions)),
            Text((!key.is_empty()).then(|| key.join(", "))),
            query_name(engine, relation),
            text(&relation.sql),
            Time(Some(relation.created_at)),
        ]
    })
}

fn view_rows(engine: &Arc<Engine>) -> Vec<Vec<Cell>> {
    let catalog = engine.catalog();
    let views = catalog.views().map(|view| {
        let (kind, query) = (text("view"), Text(None));
        vec![text(&view.name), kind, query, text(&view.statement), Time(Some(view.created_at))]
    });
    let materialized = catalog.relations().filter(|relation| relation.is_materialized).map(|relation| {
        let (kind, query) = (text("materialized view"), query_name(engine, relation));
        vec![text(&relation.name), kind, query, text(&relation.sql), Time(Some(relation.created_at))]
    });
    views.chain(materialized).collect()
}

fn query_rows(engine: &Engine) -> Vec<Vec<Cell>> {
    let catalog = engine.catalog();
    let name = |id| catalog.relation_by_id(id).map(|relation| relation.name.to_string());
    let row = |query: &Arc<millstream_catalog::Query>| {
        let shard = engine.shard_of_query(query).ok();
        let progress = shard.and_then(|shard| shard.progress(query.id)).unwrap_or_default();
        let status = engine.queries.status(query.id);
        let sources = query.sources.iter().filter_map(|id| catalog.relation_by_id(*id));
        let lag: u64 = sources
            .flat_map(|source| views(engine, source).into_iter().map(|(id, view)| (source.id, id, view)))
            .map(|(topic, id, view)| {
                let position = progress.positions.get(&(topic, id)).copied().unwrap_or(view.offset_start());
                view.offset_end().since(position).value()
            })
            .sum();
        let error = match &query.state {
            QueryState::Error { sqlstate, message } => Some(format!("{sqlstate}: {message}")),
            QueryState::Running => status.failure.clone(),
            QueryState::Paused | QueryState::Terminated => None,
        };
        vec![
            text(&query.name),
            text(query.state.word()),
            text(&query.sql),
            Text(Some(query.sources.iter().filter_map(|id| name(*id)).collect::<Vec<_>>().join(", "))),
            Text(name(query.sink)),
            long(progress.step.value()),
            long(progress.input_rows.value()),
            long(progress.output_rows.value()),
            long(progress.late_rows.value()),
            long(progress.skipped_rows.value()),
            long(lag),
            Time(status.watermark),
            long(status.state_bytes.value()),
            Text(error),
            Time(Some(query.created_at)),
        ]
    };
    catalog.queries().map(row).collect()
}

fn group_rows(engine: &Engine) -> Vec<Vec<Cell>> {
    let row = |(name, status): (GroupName, GroupStatus)| {
        let rows = engine.offset_rows(&status);
        let lag = rows.iter().fold(RowCount::ZERO, |sum, row| sum.plus(row.lag()));
        vec![
            text(&name),
            text(status.state()),
            Integer(status.members.present() as i64),
            Integer(rows.len() as i64),
            long(status.members.generation),
            long(lag.value()),
            Time(status.used_at),
        ]
    };
    engine.group_statuses().into_iter().map(row).collect()
}

fn member_rows(engine: &Engine) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for (name, status) in engine.group_statuses() {
        for member in &status.members.members {
            let info = &member.info;
            rows.push(vec![
                text(&name),
                text(member.name()),
                Text(info.instance.clone()),
                Integer(i64::from(info.pid)),
                text(&info.user),
                text(&info.application_name),
                text(&info.client),
                text(if member.is_present { "present" } else { "absent" }),
                Integer(member.partitions.len() as i64),
                Time(Some(info.joined_at)),
            ]);
        }
    }
    rows
}

fn offset_rows(engine: &Engine) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for (name, status) in engine.group_statuses() {
        for row in engine.offset_rows(&status) {
            rows.push(vec![
                text(&name),
                text(&row.topic.name),
                Integer(i64::from(row.partition.value())),
                long(row.committed.value()),
                long(row.end.value()),
                long(row.lag().value()),
                Text(row.member.clone()),
            ]);
        }
    }
    rows
}

fn session_rows(engine: &Engine) -> Vec<Vec<Cell>> {
    let rows = engine.registry.rows().into_iter();
    rows.map(|row| {
        vec![
            Integer(i64::from(row.pid)),
            text(row.user),
            text(row.application_name),
            text(row.client),
            Time(Some(row.started_at)),
            Text(row.statement),
        ]
    })
    .collect()
}

fn setting_rows(session: Option<&SessionView>) -> Vec<Vec<Cell>> {
    let settings = session.map(|session| session.settings.clone()).unwrap_or_default();
    settings.all().into_iter().map(|row| vec![text(row.name), text(row.value), text(row.description)]).collect()
}

fn memory_rows(engine: &Arc<Engine>) -> Vec<Vec<Cell>> {
    let row = |share: ShareUse| {
        let most = share.bytes_max.map_or(Long(None), |bytes| long(bytes.value()));
        vec![text(share.name), most, long(share.bytes.value())]
    };
    budget::uses(engine).into_iter().map(row).collect()
}

fn shard_rows(engine: &Engine) -> Vec<Vec<Cell>> {
    let row = |shard: &Arc<crate::replication::Shard>| {
        let status = shard.status();
        let partitions = shard.partitions();
        let (removed_segments, removed_bytes) = partitions.removed();
        vec![
            Integer(i64::from(status.shard.value())),
            Long(status.is_leader.then_some(1)),
            long(status.term.value()),
            status.applied.map_or(Long(None), |index| long(index.value())),
            status.sealed.map_or(Long(None), |index| long(index.value())),
            status.purged.map_or(Long(None), |index| long(index.value())),
            long(status.waiting_bytes.value()),
            long(status.bytes_rewritten.value()),
            long(partitions.replaced()),
            long(removed_bytes.value()),
            long(removed_segments),
            Text(shard.damage().map(ToString::to_string)),
        ]
    };
    let damaged = engine.replication().damaged().iter().map(|(id, damage)| {
        let mut row = vec![Integer(i64::from(id.value()))];
        row.extend((0..10).map(|_| Long(None)));
        row.push(text(damage));
        row
    });
    engine.replication().shards().iter().map(row).chain(damaged).collect()
}
