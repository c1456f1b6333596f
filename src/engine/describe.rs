//! SHOW, DESCRIBE and EXPLAIN QUERY: what users see of definitions and settings.
//!
//! Leaves out the system views they draw on (`system_view`). Reads only.

use crate::engine::group::group_columns;
use crate::engine::session::Session;
use crate::engine::{Idle, Outcome, Result, ResultColumn, Rows, RowsTag, read_error, system_view};
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray};
use arrow::datatypes::{Field, Schema};
use millstream_catalog::model::{Name, SqlState};
use millstream_catalog::{Relation, RelationKind, SqlType};
use millstream_sql::dialect::{Describe, Ident, Select, Show, Statement};
use millstream_sql::plan::{ContinuousPlan, outline};
use millstream_sql::ports::refuse_later;
use millstream_sql::stream::Pipeline;
use millstream_sql::{SqlError, function};
use std::sync::Arc;

/// Rows that are all there.
pub(crate) fn fixed_rows(columns: Vec<ResultColumn>, arrays: Vec<ArrayRef>, tag: RowsTag) -> Result<Rows> {
    let count = arrays.first().map_or(0, |array| array.len());
    let fields: Vec<Field> =
        columns.iter().zip(&arrays).map(|(c, array)| Field::new(&c.name, array.data_type().clone(), true)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(count));
    let batch = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)
        .map_err(|error| SqlError::internal(format!("rows cannot be formed: {error}")))?;
    let stream = Box::pin(futures::stream::iter([Ok(batch.into())]));
    Ok(Rows { columns: columns.into(), tag, is_push: false, stream, idle: Idle::default(), receipts: None })
}

fn column(name: &str, sql_type: SqlType) -> ResultColumn {
    ResultColumn { name: name.to_owned(), sql_type, source: None }
}

fn text(values: impl IntoIterator<Item = Option<String>>) -> ArrayRef {
    Arc::new(values.into_iter().collect::<StringArray>())
}

/// Names of the views behind `SHOW …`, with the columns shown.
const SHOWN: [(&str, &[&str]); 7] = [
    ("streams", &["name", "topic", "partitions", "rows", "query"]),
    ("tables", &["name", "topic", "partitions", "primary_key", "query"]),
    ("topics", &["name", "kind", "partitions", "shard", "events", "bytes"]),
    ("queries", &["name", "state", "input_rows", "output_rows", "late_rows", "lag_rows", "watermark", "error"]),
    ("nodes", &["node", "state"]),
    ("views", &["name", "kind", "query", "sql"]),
    ("consumer_groups", &["group_name", "state", "members", "partitions", "lag"]),
];

impl Session {
    /// The columns of statements that give rows without being planned.
    pub(crate) fn columns_of(&self, statement: &Statement) -> Result<Option<Arc<[ResultColumn]>>> {
        let columns = match statement {
            Statement::Show(show) => self.show_columns(show)?,
            Statement::Describe(describe) => describe_columns(describe.extended),
            Statement::DescribeGroup(_) => group_columns(),
            Statement::Explain(_) => vec![column("QUERY PLAN", SqlType::Text)],
            Statement::ExplainQuery(_) => vec![column("QUERY PLAN", SqlType::Text)],
            Statement::Fetch(fetch) => match self.columns_of_cursor(fetch.cursor.as_str()) {
                Some(columns) => return Ok(Some(columns)),
                None => {
                    let message = format!("cursor \"{}\" does not exist", fetch.cursor);
                    return Err(SqlError::new(SqlState::InvalidCursorName, message).at(fetch.cursor.position));
                }
            },
            Statement::Execute(execute) => return Ok(self.statement(execute.name.as_str())?.columns.clone()),
            _ => return Ok(None),
        };
        Ok(Some(columns.into()))
    }

    fn show_columns(&self, show: &Show) -> Result<Vec<ResultColumn>> {
        Ok(match show {
            Show::All => {
                ["name", "setting", "description"].into_iter().map(|name| column(name, SqlType::Text)).collect()
            }
            Show::Setting(name) => {
                self.settings.show(name)?;
                vec![column(name, SqlType::Text)]
            }
            Show::Functions => vec![column("name", SqlType::Text), column("kind", SqlType::Text)],
            other => shown(other)?.2,
        })
    }

    /// `SHOW …`
    pub(crate) fn show(&self, show: &Show) -> Result<Outcome> {
        let columns = self.show_columns(show)?;
        let arrays = match show {
            Show::Setting(name) => vec![text([Some(self.settings.show(name)?)])],
            Show::All => {
                let rows = self.settings.all();
                vec![
                    text(rows.iter().map(|row| Some(row.name.to_owned()))),
                    text(rows.iter().map(|row| Some(row.value.clone()))),
                    text(rows.iter().map(|row| Some(row.description.to_owned()))),
                ]
            }
            Show::Functions => {
                let functions = function::registry().names();
                vec![
                    text(functions.iter().map(|(name, _)| Some(name.clone()))),
                    text(functions.iter().map(|(_, kind)| Some((*kind).to_owned()))),
                ]
            }
            other => {
                let (view, names, _) = shown(other)?;
                let rows = system_view::rows(&self.engine, Some(&self.view()), view)?;
                let mut arrays = Vec::new();
                for name in names {
                    arrays.push(Arc::clone(
                        rows.column_by_name(name).ok_or_else(|| SqlError::internal(format!("no column {name}")))?,
                    ));
                }
                arrays
            }
        };
        fixed_rows(columns, arrays, RowsTag::Plain("SHOW")).map(Outcome::Rows)
    }

    /// `DESCRIBE [EXTENDED] name`
    pub(crate) fn describe(&self, describe: &Describe) -> Result<Outcome> {
        let path = match &describe.name.schema {
            Some(schema) => vec![schema.to_string()],
            None => self.settings.search_path(),
        };
        let catalog = self.engine.catalog();
        for schema in path {
            match (schema.as_str(), catalog.relation(describe.name.as_str())) {
                ("public", Some(relation)) => return self.describe_relation(describe, relation),
                ("public", None) => {
                    if let Some(view) = catalog.view(describe.name.as_str()) {
                        return described(describe, &self.view_rows(view, describe.extended));
                    }
                }
                ("millstream", _) => {
                    if let Some(outcome) = describe_view(describe)? {
                        return Ok(outcome);
                    }
                }
                _ => {}
            }
        }
        let schema = describe.name.schema.as_ref().map(|schema| format!("{schema}.")).unwrap_or_default();
        let message = format!("relation \"{schema}{}\" does not exist", describe.name);
        Err(SqlError::new(SqlState::UndefinedTable, message).at(describe.name.position))
    }

    fn describe_relation(&self, describe: &Describe, relation: &Relation) -> Result<Outcome> {
        let mut rows: Vec<[Option<String>; 5]> = relation
            .schema
            .columns
            .iter()
            .filter(|c| c.is_key || !c.is_hidden)
            .map(|c| {
                let key = match (c.is_key, relation.kind) {
                    (false, _) if c.is_headers => Some("HEADERS".to_owned()),
                    (false, _) => None,
                    (true, RelationKind::Stream) => Some("KEY".to_owned()),
                    (true, RelationKind::Table) => Some("PRIMARY KEY".to_owned()),
                };
                let nullable = if c.is_nullable { "YES" } else { "NO" };
                [
                    Some(c.name.to_string()),
                    Some(c.sql_type.to_string()),
                    Some(nullable.to_owned()),
                    key,
                    c.default.clone(),
                ]
            })
            .collect();
        if describe.extended {
            rows.extend(
                self.properties(relation)?
                    .into_iter()
                    .map(|(name, value)| [Some(format!("({})", name.to_lowercase())), Some(value), None, None, None]),
            );
        }
        described(describe, &rows)
    }

    /// What `DESCRIBE EXTENDED` adds to the columns.
    fn properties(&self, relation: &Relation) -> Result<Vec<(&'static str, String)>> {
        let catalog = self.engine.catalog();
        let shard = self.engine.shard_of(relation)?;
        let mut events = 0;
        for id in relation.partitions() {
            if let Some(partition) = shard.partitions().get(relation.id, id) {
                let rows = partition.view().rows().map_err(|error| read_error(&relation.name, error))?;
                events += rows.value();
            }
        }
        let kind = match relation.kind {
            _ if relation.is_materialized => "materialized view",
            RelationKind::Stream => "stream",
            RelationKind::Table => "table",
        };
        let mut properties = vec![
            ("kind", kind.to_owned()),
            ("partitions", relation.options.partitions.to_string()),
            ("shard", relation.shard.to_string()),
            ("events", events.to_string()),
            ("statement", relation.sql.clone()),
            ("cleanup_policy", relation.cleanup_policy().word().to_owned()),
        ];
        let (policy, cleanup) = (relation.cleanup_policy(), &relation.options.cleanup);
        if policy.deletes() {
            let retention = cleanup.retention.map_or_else(|| "forever".to_owned(), |span| span.to_string());
            properties.push(("retention", retention));
            properties.extend(cleanup.retention_bytes.map(|bytes| ("retention_bytes", bytes.to_string())));
        }
        if policy.compacts() {
            properties.push(("delete_retention", cleanup.delete_retention().to_string()));
        }
        if let Some(column) = relation.timestamp.and_then(|i| relation.schema.columns.get(i)) {
            properties.push(("timestamp", column.name.to_string()));
        }
        if let Some(query) = relation.query.and_then(|id| catalog.query_by_id(id)) {
            properties.push(("written by query", format!("{} ({})", query.name, query.state.word())));
            // What a terminated query read may be gone.
            if let Ok((select, plan, pipeline)) = crate::engine::query::plan(&self.engine, query) {
                properties.extend(outline(&select, &plan, &pipeline, Some(&relation.name)));
            }
        }
        properties.extend(self.readers_of(relation.id));
        Ok(properties)
    }

    /// `EXPLAIN QUERY name`
    pub(crate) async fn explain_query(&self, name: &Ident) -> Result<Outcome> {
        let catalog = self.engine.catalog();
        let query = catalog.query(name.as_str()).ok_or_else(|| {
            SqlError::new(SqlState::UndefinedObject, format!("query \"{name}\" does not exist")).at(name.position)
        })?;
        let (select, plan, pipeline) = crate::engine::query::plan(&self.engine, query)?;
        let sink = catalog.relation_by_id(query.sink).map(|relation| &relation.name);
        let mut lines = vec![format!("Query \"{}\" ({})", query.name, query.state.word())];
        lines.extend(pipeline_lines(&select, &plan, &pipeline, sink).into_iter().map(|line| format!("  {line}")));
        if let Some(progress) = self.engine.shard_of_query(query)?.progress(query.id) {
            let status = self.engine.queries.status(query.id);
            lines.extend(status.operators.iter().map(|(one, rate)| {
                format!("  {one}, {} rows in, {} out, {rate:.0} rows/s", one.rows_in, one.rows_out)
            }));
            lines.push(format!(
                "  Progress: step {}, {} rows in, {} out, {} late, {} skipped, {} bytes of state",
                progress.step,
                progress.input_rows,
                progress.output_rows,
                progress.late_rows,
                progress.skipped_rows,
                status.state_bytes
            ));
        }
        crate::engine::select::text_rows("QUERY PLAN", lines, "EXPLAIN").map(Outcome::Rows)
    }
}

/// What a pipeline does, one part per line.
pub(crate) fn pipeline_lines(
    select: &Select,
    plan: &ContinuousPlan,
    pipeline: &Pipeline,
    sink: Option<&Name>,
) -> Vec<String> {
    let state = if pipeline.is_stateful() { "with state" } else { "without state" };
    let mut lines = vec![format!("Continuous query, {state}")];
    let parts = outline(select, plan, pipeline, sink).into_iter();
    lines.extend(parts.map(|(part, words)| format!("  {part}: {words}")));
    lines
}

fn described(describe: &Describe, rows: &[[Option<String>; 5]]) -> Result<Outcome> {
    let arrays = (0..5).map(|i| text(rows.iter().map(|row| row[i].clone()))).collect();
    fixed_rows(describe_columns(describe.extended), arrays, RowsTag::Plain("DESCRIBE")).map(Outcome::Rows)
}

/// The columns of a view of schema `millstream`; `None` when there is none of the name.
fn describe_view(describe: &Describe) -> Result<Option<Outcome>> {
    let name = describe.name.as_str();
    let Some((_, found)) = system_view::schemas().into_iter().find(|(view, _)| view == name) else {
        let later = if describe.name.schema.is_some() { refuse_later(name) } else { Ok(()) };
        return later.map(|()| None).map_err(|error| error.at(describe.name.position));
    };
    let fields = found.fields();
    let nullable = |f: &Arc<Field>| Some(if f.is_nullable() { "YES" } else { "NO" }.to_owned());
    let arrays = vec![
        text(fields.iter().map(|f| Some(f.name().clone()))),
        text(fields.iter().map(|f| SqlType::of(f).map(|sql_type| sql_type.to_string()))),
        text(fields.iter().map(nullable)),
        text(fields.iter().map(|_| None)),
        text(fields.iter().map(|_| None)),
    ];
    fixed_rows(describe_columns(describe.extended), arrays, RowsTag::Plain("DESCRIBE")).map(Outcome::Rows).map(Some)
}

type Shown = (&'static str, &'static [&'static str], Vec<ResultColumn>);

fn shown(show: &Show) -> Result<Shown> {
    let at = match show {
        Show::Streams => 0,
        Show::Tables => 1,
        Show::Topics => 2,
        Show::Queries => 3,
        Show::Nodes => 4,
        Show::Views => 5,
        Show::Groups => 6,
        Show::Functions | Show::All | Show::Setting(_) => {
            return Err(SqlError::internal("this SHOW has no view"));
        }
    };
    let (view, names) = SHOWN[at];
    let schemas = system_view::schemas();
    let (_, schema) =
        schemas.iter().find(|(name, _)| name == view).ok_or_else(|| SqlError::internal(format!("no view {view}")))?;
    let mut columns = Vec::new();
    for name in names {
        let field = schema.field_with_name(name).map_err(|_| SqlError::internal(format!("no column {name}")))?;
        columns.push(column(name, SqlType::of(field).unwrap_or(SqlType::Text)));
    }
    Ok((view, names, columns))
}

fn describe_columns(extended: bool) -> Vec<ResultColumn> {
    let first = if extended { "column_or_property" } else { "column" };
    [first, "type", "nullable", "key", "default"].into_iter().map(|name| column(name, SqlType::Text)).collect()
}
