//! Scans: which columns of a relation are read, and how its rows come.
//!
//! Leaves out reading (`stream::source`, engine). Pure.

use super::built::{Built, Key, Mode};
use super::{Need, Planner, nullable};
use crate::error::SqlError;
use crate::exec::bounds::is_exact;
use crate::exec::table::scan_schema;
use crate::plan::scanned_relation;
use crate::stream::{Edge, Normalize, SourceColumn, SourceReader};
use arrow::datatypes::{FieldRef, Schema};
use datafusion::logical_expr::{Expr, TableScan};
use millstream_catalog::model::Span;
use millstream_catalog::{Relation, RelationKind};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The key columns of a table made of one without a key: its rows' ids and partitions; and of a stream's events.
const ROW_KEY: [&str; 2] = ["rowid", "rowid_partition"];

/// Whether events are new forms of rows, and rows go.
pub(super) fn is_changelog(relation: &Relation) -> bool {
    relation.has_tombstones() || relation.row_ids.is_some()
}

/// The columns of a scan that identify a row.
fn identity(relation: &Relation) -> Vec<usize> {
    let columns = relation.schema.columns.len();
    match (relation.row_ids, relation.has_tombstones()) {
        (Some(at), _) => vec![at, columns + 1],
        (None, true) => relation.schema.key(),
        (None, false) => vec![columns + 2, columns + 1],
    }
}

impl Planner<'_> {
    pub(super) fn scan(&mut self, scan: &TableScan, need: Need) -> Result<Built, SqlError> {
        let relation = scanned_relation(scan)
            .ok_or_else(|| SqlError::unsupported("a system view in a continuous query", "read a stream or table"))?;
        let source = self.query.sources.iter().position(|source| source.id == relation.id);
        let source = source.ok_or_else(|| SqlError::internal("a scan of what the statement does not name"))?;
        let whole = scan_schema(&relation);
        let mut columns: Vec<usize> = match &scan.projection {
            Some(projection) => projection.clone(),
            None => (0..whole.fields().len()).collect(),
        };
        let visible = columns.len();
        let mut key = Vec::new();
        if need.key || is_changelog(&relation) {
            for (number, index) in identity(&relation).into_iter().enumerate() {
                let at = columns.iter().position(|column| *column == index).unwrap_or_else(|| {
                    columns.push(index);
                    columns.len() - 1
                });
                let name = match relation.has_tombstones() {
                    true => whole.field(index).name().clone(),
                    false => ROW_KEY[number].to_owned(),
                };
                key.push(Key { at, shown: (at < visible).then_some(at), name, is_hidden: true });
            }
        }
        // Others stand above the scan too.
        let filters: Vec<&Expr> =
            scan.filters.iter().filter(|filter| !relation.has_tombstones() && is_exact(filter)).collect();
        let filtered = filters.iter().flat_map(|filter| filter.column_refs());
        let filtered: Vec<usize> = filtered.filter_map(|column| whole.index_of(&column.name).ok()).collect();
        for index in filtered {
            if !columns.contains(&index) {
                columns.push(index);
            }
        }
        self.wanted[source].extend(columns.iter().copied());
        let fields: Vec<FieldRef> = columns.iter().map(|index| nullable(&whole.fields()[*index])).collect();
        let built = Built {
            edge: Edge::Source { source, columns: columns.clone(), schema: Arc::new(Schema::new(fields.clone())) },
            base: fields.clone(),
            stages: Vec::new(),
            fields,
            schema: Arc::clone(&scan.projected_schema),
            mode: if is_changelog(&relation) { Mode::Forms } else { Mode::Append },
            key,
            windows: Vec::new(),
            window: None,
            times: times(&relation, &columns),
            delay: Span::ZERO,
            is_declared: relation.watermark_delay.is_some(),
        };
        let built = self.whole_rows(built, need)?;
        self.scan_filters(built, scan, &filters)
    }

    /// With rows that go as they were, unless new forms will do.
    fn whole_rows(&mut self, built: Built, need: Need) -> Result<Built, SqlError> {
        if built.mode != Mode::Forms || need.forms {
            return Ok(built);
        }
        if let Edge::Source { source, .. } = &built.edge {
            self.kept.insert(*source);
        }
        let key = built.key.iter().map(|key| key.at).collect();
        let normalize = Normalize::new(built.arrow(), key)?;
        let edge = self.add(Box::new(normalize), vec![built.edge]);
        Ok(Built { edge, mode: Mode::Both, ..built })
    }

    /// Filters that were pushed into the scan.
    fn scan_filters(&self, built: Built, scan: &TableScan, filters: &[&Expr]) -> Result<Built, SqlError> {
        if filters.is_empty() {
            return Ok(built);
        }
        let schema = Arc::clone(&built.schema);
        let qualified = built.fields.iter().map(|field| (Some(scan.table_name.clone()), Arc::clone(field)));
        let all = datafusion::common::DFSchema::new_with_metadata(qualified.collect(), Default::default())?;
        let mut built = built.named(&Arc::new(all));
        for filter in filters {
            self.check_filter(filter)?;
            built = built.filter(self, filter)?;
        }
        Ok(built.named(&schema))
    }
}

/// Which of `columns` have the event time. Rows of tables are changed long after theirs, so that time closes nothing of them.
pub(super) fn times(relation: &Relation, columns: &[usize]) -> BTreeSet<usize> {
    let is_time = |index: usize| {
        let rowtime = relation.schema.columns.len();
        let is_stored = relation.timestamp == Some(index)
            && relation
                .schema
                .columns
                .get(index)
                .is_some_and(|column| matches!(column.sql_type.arrow(), arrow::datatypes::DataType::Timestamp(..)));
        relation.kind == RelationKind::Stream && (index == rowtime || is_stored)
    };
    (0..columns.len()).filter(|at| is_time(columns[*at])).collect()
}

/// Reads the columns at `wanted` of a scan.
pub(super) fn reader(
    relation: &Relation,
    wanted: &BTreeSet<usize>,
    keeps_rows: bool,
) -> Result<SourceReader, SqlError> {
    let stored = relation.stored_schema();
    let columns = relation.schema.columns.len();
    // The scan has the columns and rowtime as stored, then rowpartition and rowoffset.
    let mut projection: BTreeSet<usize> = wanted.iter().copied().filter(|index| *index <= columns).collect();
    projection.insert(columns);
    let rowtombstone = match relation.row_ids {
        Some(at) => Some(at + 1),
        None => relation.has_tombstones().then_some(columns + 1),
    };
    projection.extend(rowtombstone);
    projection.extend(relation.row_ids);
    let projection: Vec<usize> = projection.into_iter().collect();
    let position = |index: usize| {
        let found = projection.iter().position(|stored| *stored == index);
        found.ok_or_else(|| SqlError::internal("a column is not read"))
    };
    let source_column = |index: usize| match index {
        index if Some(index) == relation.row_ids => Ok(SourceColumn::RowId(position(index)?)),
        index if index <= columns => Ok(SourceColumn::Input(position(index)?)),
        index if index == columns + 1 => Ok(SourceColumn::RowPartition),
        index if index == columns + 2 => Ok(SourceColumn::RowOffset),
        _ => Err(SqlError::internal("a scan has a column that is not stored")),
    };
    let whole = scan_schema(relation);
    let fields: Vec<FieldRef> = wanted.iter().map(|index| nullable(&whole.fields()[*index])).collect();
    Ok(SourceReader {
        name: relation.name.clone(),
        input: Arc::new(stored.project(&projection).map_err(|_| SqlError::internal("no such stored column"))?),
        rowtime: position(columns)?,
        rowtombstone: rowtombstone.map(position).transpose()?,
        keeps_rows,
        columns: wanted.iter().map(|index| source_column(*index)).collect::<Result<Vec<_>, _>>()?,
        schema: Arc::new(Schema::new(fields)),
        projection,
    })
}
