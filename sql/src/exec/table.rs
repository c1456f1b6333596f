//! Relations and system views as the engine's tables.
//!
//! Owns their schemas as queries see them and the pushdown of bounds. Leaves out reading (`scan`). Built by `plan`
//! for each name in FROM; holds no rows.

use crate::error::SqlError;
use crate::exec::bounds::{Bounds, is_exact};
use crate::exec::pruning::Pruning;
use crate::exec::scan::{ScanExec, ScanTarget};
use crate::ports::{RelationSource, ScanColumn};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableScan, TableSource, TableType};
use datafusion::physical_plan::ExecutionPlan;
use millstream_catalog::Relation;
use millstream_catalog::schema::{ROWOFFSET, ROWPARTITION};
use std::sync::Arc;

/// A stream or table of the catalog.
#[derive(Debug)]
pub struct RelationTable {
    relation: Arc<Relation>,
    source: Arc<dyn RelationSource>,
    schema: SchemaRef,
}

impl RelationTable {
    /// The table of `relation`, read through `source`.
    ///
    /// Its columns are those of the stored schema without `rowtombstone`, then `rowpartition` and `rowoffset`.
    pub fn new(relation: Arc<Relation>, source: Arc<dyn RelationSource>) -> Self {
        let schema = scan_schema(&relation);
        Self { relation, source, schema }
    }

    /// The relation.
    pub fn relation(&self) -> &Arc<Relation> {
        &self.relation
    }

    /// As the planner wants it.
    pub fn into_source(self) -> Arc<dyn TableSource> {
        provider_as_source(Arc::new(self))
    }
}

/// The relation a scan of a plan reads; `None` for system views and table functions.
pub fn scanned_relation(scan: &TableScan) -> Option<Arc<Relation>> {
    let provider = source_as_provider(&scan.source).ok()?;
    provider.downcast_ref::<RelationTable>().map(|table| Arc::clone(table.relation()))
}

/// The columns of a scan of `relation`: stored columns and `rowtime`, then `rowpartition integer`, `rowoffset bigint`.
pub fn scan_schema(relation: &Relation) -> SchemaRef {
    let stored = relation.stored_schema();
    let mut fields: Vec<_> = stored.fields().iter().take(relation.schema.columns.len() + 1).cloned().collect();
    fields.push(Arc::new(Field::new(ROWPARTITION, DataType::Int32, false)));
    fields.push(Arc::new(Field::new(ROWOFFSET, DataType::Int64, false)));
    Arc::new(Schema::new(fields))
}

/// The column of a scan request at position `at` of [`scan_schema`].
fn scan_column(relation: &Relation, at: usize) -> ScanColumn {
    let stored = relation.schema.columns.len() + 1;
    match at.checked_sub(stored) {
        None => ScanColumn::Stored(at),
        Some(0) => ScanColumn::RowPartition,
        Some(_) => ScanColumn::RowOffset,
    }
}

#[async_trait]
impl TableProvider for RelationTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let positions: Vec<usize> = match projection {
            Some(projection) => projection.clone(),
            None => (0..self.schema.fields().len()).collect(),
        };
        let pruning = Pruning::of(filters, &self.relation, &self.schema, state);
        // An older version of a row must not come back because the newer one is skipped.
        let (pruning, lookup) = match self.relation.has_tombstones() {
            true => (None, pruning.and_then(|pruning| pruning.whole_keys(&self.relation))),
            false => (pruning.map(Arc::new), None),
        };
        let target = ScanTarget {
            relation: Arc::clone(&self.relation),
            source: Arc::clone(&self.source),
            columns: positions.iter().map(|at| scan_column(&self.relation, *at)).collect(),
            schema: Arc::new(self.schema.project(&positions)?),
            bounds: Bounds::of(filters),
            pruning,
            lookup,
            limit,
            parallelism: state.config().target_partitions(),
        };
        Ok(Arc::new(ScanExec::open(target)?))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |filter: &&Expr| match !self.relation.has_tombstones() && is_exact(filter) {
            true => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Inexact,
        };
        Ok(filters.iter().map(support).collect())
    }
}

/// A view of schema `millstream`, computed when it is scanned.
#[derive(Debug)]
pub struct SystemTable {
    name: String,
    schema: SchemaRef,
    source: Arc<dyn RelationSource>,
}

impl SystemTable {
    /// The view `name` of `source`.
    pub fn new(name: String, schema: SchemaRef, source: Arc<dyn RelationSource>) -> Self {
        Self { name, schema, source }
    }

    /// As the planner wants it.
    pub fn into_source(self) -> Arc<dyn TableSource> {
        provider_as_source(Arc::new(self))
    }
}

#[async_trait]
impl TableProvider for SystemTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let rows = self.source.system_view(&self.name).map_err(crate::function::errors::external)?;
        if rows.schema() != self.schema {
            let fact = format!("system view \"{}\" has another shape than announced", self.name);
            return Err(crate::function::errors::external(SqlError::internal(fact)));
        }
        Ok(MemorySourceConfig::try_new_exec(&[vec![rows]], Arc::clone(&self.schema), projection.cloned())?)
    }
}
