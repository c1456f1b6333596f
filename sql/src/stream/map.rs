//! Projection and filter of rows that come, and of rows that go as they came.
//!
//! Owns the order of stages. Leaves out rows of which only new forms come (`keyed`). Stateless: a crash loses nothing.

use super::delta::{Delta, Origin, arrow_error};
use super::expression::{evaluate, evaluate_predicate};
use super::operator::{Operator, Origins, in_origins, only};
use crate::error::SqlError;
use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use datafusion::physical_expr::PhysicalExpr;
use std::sync::Arc;

/// One projection or filter.
#[derive(Debug, Clone)]
pub(crate) enum Stage {
    /// Keeps the rows for which the predicate is true.
    Filter(Arc<dyn PhysicalExpr>),
    /// Replaces the columns.
    Project {
        /// One expression per column.
        expressions: Vec<Arc<dyn PhysicalExpr>>,
        /// The columns made.
        schema: SchemaRef,
    },
}

impl Stage {
    /// The rows and columns this stage makes of `delta`, each with its weight.
    pub(crate) fn apply(&self, delta: Delta) -> Result<Delta, SqlError> {
        match self {
            Self::Filter(predicate) => {
                let mask = evaluate_predicate(predicate.as_ref(), &delta)?;
                if mask.true_count() == delta.len() { Ok(delta) } else { delta.filter(&mask) }
            }
            Self::Project { expressions, schema } => {
                let mut columns = Vec::with_capacity(expressions.len());
                for expression in expressions {
                    columns.push(evaluate(expression.as_ref(), &delta)?);
                }
                let options = RecordBatchOptions::new().with_row_count(Some(delta.len()));
                let batch = RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options);
                Ok(Delta { batch: batch.map_err(arrow_error)?, ..delta })
            }
        }
    }

    /// For the fingerprint.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Filter(predicate) => format!("filter {predicate}"),
            Self::Project { expressions, schema } => {
                let columns = expressions.iter().zip(schema.fields());
                let columns: Vec<String> =
                    columns.map(|(expression, field)| format!("{expression}: {}", field.data_type())).collect();
                format!("project {}", columns.join(", "))
            }
        }
    }
}

/// Stages over rows that are never taken back, or are taken back as they were.
#[derive(Debug)]
pub(crate) struct Map {
    stages: Vec<Stage>,
}

impl Map {
    /// The stages, first to last.
    pub(crate) fn new(stages: Vec<Stage>) -> Self {
        Self { stages }
    }
}

impl Operator for Map {
    fn step(&mut self, inputs: Vec<Delta>, _: &Arc<Origin>) -> Result<Delta, SqlError> {
        let mut input = only(inputs)?;
        for stage in &self.stages {
            input = stage.apply(input)?;
        }
        Ok(input)
    }
    fn origins(&self, input: &[Origins]) -> Option<Vec<Origins>> {
        let mut columns = input.to_vec();
        for stage in &self.stages {
            if let Stage::Project { expressions, schema } = stage {
                let made = expressions.iter().map(|expression| in_origins(&expression.to_string(), &columns));
                columns = schema.fields().iter().map(|field| field.name().clone()).zip(made).collect();
            }
        }
        Some(columns)
    }

    fn fingerprint(&self) -> String {
        let stages: Vec<String> = self.stages.iter().map(Stage::text).collect();
        format!("map({})", stages.join("; "))
    }
}
