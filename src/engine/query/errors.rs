//! The stream `millstream.query_errors`: the events that continuous queries with `on_error = 'skip'` left out.
//!
//! Its rows are committed with the step that left the events out, so it has each of them once. Leaves out which events
//! those are (sql). It is made with the first such query, and stays.

use crate::engine::ddl::establish;
use crate::engine::input::{Positions, Reader};
use crate::engine::inputs::Inputs;
use crate::engine::{Engine, Result};
use arrow::array::{
    ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{FieldRef, TimestampMicrosecondType};
use millstream_catalog::model::{Name, RowCount, ShardId, SqlState, Timestamp, TopicId};
use millstream_catalog::query::OnError;
use millstream_catalog::schema::StructField;
use millstream_catalog::{Column, Command, Query, Relation, RelationKind, Schema, Snapshot, SqlType, TopicOptions};
use millstream_sql::SqlError;
use millstream_sql::stream::SkippedEvent;
use millstream_sql::types::ColumnEncoder;
use std::sync::Arc;

/// Its name in the catalog, one of [`millstream_catalog::schema::OWN_NAMES`]: in schema `millstream`, to users.
pub(crate) const QUERY_ERRORS: &str = "millstream.query_errors";

/// Whether `query` writes `topic`: its sink, or what it leaves out.
pub(crate) fn writes(catalog: &Snapshot, query: &Query, topic: TopicId) -> bool {
    let leaves_out = query.options.on_error == OnError::Skip;
    query.sink == topic || (leaves_out && catalog.relation(QUERY_ERRORS).is_some_and(|own| own.id == topic))
}

/// The stream, if it is there.
pub(super) fn relation(engine: &Engine) -> Option<Arc<Relation>> {
    engine.catalog().relation(QUERY_ERRORS).cloned()
}

/// Makes the stream for a query of `shard`, unless it is there.
///
/// # Errors
/// 0A000 when it is in another shard: its rows could not be committed with the query's steps.
pub(crate) async fn ensure(engine: Arc<Engine>, shard: ShardId) -> Result<()> {
    if relation(&engine).is_none() {
        let relation = Box::new(definition(shard, engine.clock().now())?);
        match establish(Arc::clone(&engine), Command::CreateRelation { relation, query: None }).await {
            // Another session was first.
            Err(error) if error.sqlstate == SqlState::DuplicateTable => {}
            made => made?,
        }
    }
    match relation(&engine).is_some_and(|relation| relation.shard == shard) {
        true => Ok(()),
        false => {
            let what = "on_error = 'skip' of a query in another shard than millstream.query_errors";
            Err(SqlError::unsupported(what, "run the server with --shards 1"))
        }
    }
}

fn definition(shard: ShardId, created_at: Timestamp) -> Result<Relation> {
    let columns = [
        ("query_name", SqlType::Text, "text"),
        ("topic", SqlType::Text, "text"),
        ("partition", SqlType::Integer, "integer"),
        ("event_offset", SqlType::BigInt, "bigint"),
        ("sqlstate", SqlType::Text, "text"),
        ("message", SqlType::Text, "text"),
        ("event", SqlType::Json, "json"),
    ];
    let texts: Vec<String> = columns.iter().map(|(name, _, word)| format!("{name} {word}")).collect();
    let column = |(name, sql_type, _): (&str, SqlType, &str)| {
        let (is_nullable, is_key, is_hidden, is_headers) = (true, false, false, false);
        let name = Name::new(name)?;
        Ok(Column { name, sql_type, is_nullable, is_key, default: None, is_hidden, is_headers })
    };
    Ok(Relation {
        id: TopicId::default(),
        name: Name::new(QUERY_ERRORS)?,
        kind: RelationKind::Stream,
        schema: Schema { columns: columns.into_iter().map(column).collect::<Result<Vec<_>>>()? },
        timestamp: None,
        watermark_delay: None,
        options: TopicOptions::default(),
        shard,
        query: None,
        created_at,
        sql: format!("CREATE STREAM {QUERY_ERRORS} ({})", texts.join(", ")),
        fills: Default::default(),
        row_ids: None,
        is_materialized: false,
    })
}

/// The stored rows of `relation` that keep `skipped`, events of `inputs` that `query` left out.
///
/// # Errors
/// When an event cannot be read.
pub(super) fn rows(
    relation: &Relation,
    query: &Query,
    inputs: &Inputs,
    skipped: &[SkippedEvent],
) -> Result<RecordBatch> {
    let mut topics = Vec::with_capacity(skipped.len());
    let (mut events, mut rowtime) = (Vec::with_capacity(skipped.len()), Vec::with_capacity(skipped.len()));
    for skipped in skipped {
        let reader = inputs.readers().get(skipped.event.source);
        let reader = reader.ok_or_else(|| SqlError::internal("a skipped event without its source"))?;
        let kept = read(reader, skipped)?;
        topics.push(reader.relation.name.to_string());
        rowtime.push(kept.as_ref().map_or(0, |(_, rowtime)| *rowtime));
        events.push(kept.map(|(event, _)| event));
    }
    let of = |text: &dyn Fn(&SkippedEvent) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(skipped.iter().map(text)))
    };
    let columns: Vec<ArrayRef> = vec![
        of(&|_| query.name.to_string()),
        Arc::new(StringArray::from(topics)),
        Arc::new(Int32Array::from_iter_values(skipped.iter().map(|skipped| skipped.event.partition.value() as i32))),
        Arc::new(Int64Array::from_iter_values(skipped.iter().map(|skipped| skipped.event.offset.value() as i64))),
        of(&|skipped| skipped.error.sqlstate.code().to_owned()),
        of(&|skipped| skipped.error.message.clone()),
        Arc::new(StringArray::from(events)),
        Arc::new(TimestampMicrosecondArray::from(rowtime).with_timezone("UTC")),
    ];
    let batch = RecordBatch::try_new(relation.stored_schema(), columns);
    batch.map_err(|error| SqlError::internal(format!("skipped events cannot be stored: {error}")))
}

/// A skipped event as JSON, and its event time; `None` when it was removed from the log.
fn read(reader: &Reader, skipped: &SkippedEvent) -> Result<Option<(String, i64)>> {
    let event = skipped.event;
    let columns = reader.relation.schema.columns.iter();
    let shown: Vec<usize> = columns.enumerate().filter(|(_, column)| !column.is_hidden).map(|(at, _)| at).collect();
    let rowtime = reader.relation.schema.columns.len();
    let whole = Reader { projection: shown.iter().copied().chain([rowtime]).collect(), ..reader.clone() };
    let from = Positions::from([(event.partition, event.offset)]);
    let to = Positions::from([(event.partition, event.offset.plus(RowCount::new(1)))]);
    let input = whole.between(&from, &to)?;
    let Some(batch) = input.batches.into_iter().map(|input| input.batch).find(|batch| batch.num_rows() == 1) else {
        return Ok(None);
    };
    let rowtime = batch.column(shown.len()).as_primitive::<TimestampMicrosecondType>().value(0);
    let fields: Vec<FieldRef> = batch.schema().fields().iter().take(shown.len()).cloned().collect();
    let arrays = batch.columns().iter().take(shown.len()).cloned().collect();
    let row = StructArray::try_new(fields.into(), arrays, None)
        .map_err(|error| SqlError::internal(format!("a skipped event cannot be shown: {error}")))?;
    let schema = &reader.relation.schema.columns;
    let field = |at: &usize| StructField { name: schema[*at].name.to_string(), sql_type: schema[*at].sql_type.clone() };
    let mut text = Vec::new();
    ColumnEncoder::new(&row, &SqlType::Struct(shown.iter().map(field).collect())).text(0, &mut text);
    Ok(Some((String::from_utf8_lossy(&text).into_owned(), rowtime)))
}
