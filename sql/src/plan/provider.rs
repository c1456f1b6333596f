//! What the engine's SQL planner may see: the relations and functions of one resolved statement, and nothing else.
//!
//! Owns turning marked names into scans. Leaves out the search of names (`from`). A name that was not marked has no
//! meaning here, so no path, URL or external table can be reached. Pure.

use super::PlanContext;
use super::from::{RELATION, SYSTEM};
use super::operator::Operators;
use crate::exec::table::{RelationTable, SystemTable};
use crate::function::Registry;
use crate::function::errors::{external, fail};
use crate::types::type_named;
use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{Result, TableReference};
use datafusion::datasource::cte_worktable::CteWorkTable;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::planner::{
    ContextProvider, ExprPlanner, PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning,
    TypePlanner,
};
use datafusion::logical_expr::{AggregateUDF, HigherOrderUDF, LogicalPlanBuilder, ScalarUDF, TableSource, WindowUDF};
use millstream_catalog::model::SqlState;
use sqlparser::ast::{ObjectName, ObjectNamePart, TableFactor};
use std::sync::Arc;

/// One statement's view for the engine's planner.
pub(super) struct Provider<'c> {
    context: &'c PlanContext,
    registry: &'static Registry,
    functions: Vec<Arc<ScalarUDF>>,
    options: ConfigOptions,
    expr_planners: Vec<Arc<dyn ExprPlanner>>,
    relation_planners: Vec<Arc<dyn RelationPlanner>>,
}

impl<'c> Provider<'c> {
    /// The view of a statement that made `functions` for itself.
    pub(super) fn new(context: &'c PlanContext, registry: &'static Registry, functions: Vec<Arc<ScalarUDF>>) -> Self {
        let expr_planners: Vec<Arc<dyn ExprPlanner>> = vec![
            Arc::new(Operators),
            Arc::new(datafusion::functions_nested::planner::NestedFunctionPlanner),
            Arc::new(datafusion::functions::core::planner::CoreFunctionPlanner::default()),
            Arc::new(datafusion::functions::unicode::planner::UnicodeFunctionPlanner),
            Arc::new(datafusion::functions_aggregate::planner::AggregateFunctionPlanner),
            Arc::new(datafusion::functions_window::planner::WindowFunctionPlanner),
        ];
        let relation_planners: Vec<Arc<dyn RelationPlanner>> = vec![Arc::new(Relations)];
        let mut options = ConfigOptions::default();
        options.sql_parser.enable_ident_normalization = false;
        Self { context, registry, functions, options, expr_planners, relation_planners }
    }
}

impl ContextProvider for Provider<'_> {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        let not_found = || fail(SqlState::UndefinedTable, format!("relation \"{}\" does not exist", name.table()));
        let source = Arc::clone(&self.context.source);
        match name.schema() {
            Some(RELATION) => {
                let relation = self.context.catalog.relation(name.table()).ok_or_else(not_found)?;
                Ok(RelationTable::new(Arc::clone(relation), source).into_source())
            }
            Some(SYSTEM) => {
                let views = self.context.source.system_views();
                let (view, schema) = views.into_iter().find(|(view, _)| view == name.table()).ok_or_else(not_found)?;
                Ok(SystemTable::new(view, schema, source).into_source())
            }
            _ => Err(not_found()),
        }
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> Result<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.expr_planners
    }

    fn get_relation_planners(&self) -> &[Arc<dyn RelationPlanner>] {
        &self.relation_planners
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::new(Types))
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        match name.strip_prefix("$f").map(str::parse::<usize>) {
            Some(Ok(at)) => self.functions.get(at).cloned(),
            _ => self.registry.scalar(name),
        }
    }

    fn get_higher_order_meta(&self, _: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.registry.aggregate(name)
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.registry.window(name)
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.options
    }

    fn udf_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udaf_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udwf_names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Our types for the few casts resolution leaves in the syntax.
#[derive(Debug)]
struct Types;

impl TypePlanner for Types {
    fn plan_type_field(&self, data_type: &sqlparser::ast::DataType) -> Result<Option<FieldRef>> {
        let sql_type = type_named(data_type).map_err(external)?;
        Ok(Some(Arc::new(sql_type.field("", true))))
    }
}

/// Scans of marked names, under their aliases.
#[derive(Debug)]
struct Relations;

fn parts(name: &ObjectName) -> Option<(&str, &str)> {
    match name.0.as_slice() {
        [ObjectNamePart::Identifier(mark), ObjectNamePart::Identifier(bare)] => Some((&mark.value, &bare.value)),
        _ => None,
    }
}

impl RelationPlanner for Relations {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        let TableFactor::Table { name, alias, .. } = &relation else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let Some((mark, bare)) = parts(name) else { return Ok(RelationPlanning::Original(Box::new(relation))) };
        let shown = alias.as_ref().map_or(bare, |alias| alias.name.value.as_str());
        let alias = TableReference::bare(shown);
        let source = context.context_provider().get_table_source(TableReference::partial(mark, bare))?;
        let plan = LogicalPlanBuilder::scan(alias, source, None)?.build()?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, None))))
    }
}
