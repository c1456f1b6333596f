//! SELECT in a session: planning, pull queries, cursors over them, and EXPLAIN.
//!
//! Leaves out push queries (`push`) and the source of rows (`pull`). Planning and execution happen on the
//! query threads. Reads only.

use crate::engine::cursor::Life;
use crate::engine::group::Delivery;
use crate::engine::prepare::{Arguments, Moment, Plan, Planned};
use crate::engine::pull::LogSource;
use crate::engine::session::Session;
use crate::engine::{Idle, Outcome, Param, Prepared, Result, ResultColumn, Rows, RowsTag, Via};
use datafusion::common::ScalarValue;
use futures::StreamExt;
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use millstream_sql::dialect::{self, CommitOffsets, Declare, Explain, Fetch, Parsed, Prepare, Select, Statement};
use millstream_sql::plan::{PlanContext, PlannedSelect, eval_constant, plan_select};
use millstream_sql::{SqlError, exec, types};
use parking_lot::Mutex;
use std::sync::Arc;

impl Session {
    /// What a statement that begins now is planned with.
    pub(crate) fn plan_context(&self) -> PlanContext {
        PlanContext {
            catalog: self.engine.catalog(),
            source: Arc::new(self.log_source()),
            now: self.engine.clock().now(),
            settings: Arc::new(self.plan_settings()),
        }
    }

    /// What a statement that begins now reads.
    pub(crate) fn log_source(&self) -> LogSource {
        LogSource::new(&self.engine, Some(self.view()), self.cuts.as_ref())
    }

    /// Plans as much of a statement as Describe needs.
    pub(crate) async fn plan(&mut self, parsed: Parsed, declared: &[Option<SqlType>]) -> Result<Arc<Prepared>> {
        let moment = Moment::now(&self.engine, &self.settings);
        match self.plan_statement(&parsed.statement, declared).await {
            Ok(planned) => Ok(Arc::new(Prepared::new(parsed, planned, moment))),
            Err(error) => Err(dialect::locate(error, &parsed)),
        }
    }

    async fn plan_statement(&mut self, statement: &Statement, declared: &[Option<SqlType>]) -> Result<Planned> {
        Ok(match statement {
            Statement::Select(select) if select.emit.is_none() => {
                let planned = self.plan_pull(select, declared).await?;
                let columns: Arc<[ResultColumn]> = planned.columns.clone().into();
                (planned.params.clone(), Some(columns), Plan::Select(Mutex::new(Some(planned))))
            }
            Statement::Select(select) => {
                let (params, columns) = self.describe_push(select, declared).await?;
                (params, Some(columns.into()), Plan::Late)
            }
            Statement::Declare(declare) => (self.select_params(&declare.select, declared).await?, None, Plan::Late),
            Statement::Explain(explain) => {
                let params = match &explain.statement.statement {
                    Statement::Select(select) => self.select_params(select, declared).await?,
                    Statement::Change(change) => Box::pin(self.plan_change(change, declared)).await?.0,
                    _ => Vec::new(),
                };
                (params, self.columns_of(statement)?, Plan::Late)
            }
            Statement::CommitOffsets(CommitOffsets::Position(commit)) => (commit.params(declared), None, Plan::Late),
            Statement::Insert(insert) => self.plan_insert(insert, declared).await?,
            Statement::Change(change) => Box::pin(self.plan_change(change, declared)).await?,
            other => (Vec::new(), self.columns_of(other)?, Plan::Late),
        })
    }

    /// The types of a query's parameters.
    async fn select_params(&self, select: &Select, declared: &[Option<SqlType>]) -> Result<Vec<SqlType>> {
        match select.emit {
            Some(_) => Ok(self.describe_push(select, declared).await?.0),
            None => Ok(self.plan_pull(select, declared).await?.params),
        }
    }

    pub(crate) async fn plan_pull(&self, select: &Select, declared: &[Option<SqlType>]) -> Result<PlannedSelect> {
        let context = self.plan_context();
        let (select, declared) = (select.clone(), declared.to_vec());
        self.engine.compute.run(async move { plan_select(&context, &select, &declared) }).await
    }

    /// A pull query.
    pub(crate) async fn pull_query(&self, select: &Select, prepared: &Prepared, arguments: Arguments) -> Result<Rows> {
        let ready = match &prepared.plan {
            Plan::Select(plan) => plan.lock().take(),
            _ => None,
        };
        // A plan fixes the rows it sees: only a plan that nothing else happened since is used.
        let planned = match ready.filter(|_| prepared.moment.is_present(&self.engine, &self.settings)) {
            Some(planned) => planned,
            None => {
                let declared: Vec<Option<SqlType>> = arguments.types.into_iter().map(Some).collect();
                self.plan_pull(select, &declared).await?
            }
        };
        prepared.check_columns(Some(&planned.columns))?;
        self.run_planned(planned, arguments.values).await
    }

    async fn run_planned(&self, planned: PlannedSelect, params: Vec<ScalarValue>) -> Result<Rows> {
        let context = self.plan_context();
        let columns: Arc<[ResultColumn]> = planned.columns.clone().into();
        let stop = context.settings.interrupts.stop_on_drop();
        let stream = self.engine.compute.run(async move { exec::execute(&context, &planned, params).await }).await?;
        let stream = self.engine.compute.drive(stream, stop);
        Ok(Rows {
            columns,
            tag: RowsTag::Counted("SELECT"),
            is_push: false,
            stream,
            idle: Idle::default(),
            receipts: None,
        })
    }

    /// Plans and runs a pull query with these parameters and no others.
    pub(crate) async fn run_select(&self, select: &Select, arguments: Arguments) -> Result<Rows> {
        let given = arguments.types.len();
        let declared: Vec<Option<SqlType>> = arguments.types.into_iter().map(Some).collect();
        let planned = self.plan_pull(select, &declared).await?;
        if planned.params.len() > given {
            let fact = format!("there is no parameter ${}", given + 1);
            return Err(SqlError::new(SqlState::UndefinedParameter, fact));
        }
        self.run_planned(planned, arguments.values).await
    }

    /// `DECLARE c CURSOR FOR …`
    pub(crate) async fn declare(&mut self, declare: &Declare, arguments: Arguments) -> Result<Outcome> {
        if !declare.hold && !self.transaction.is_open() {
            return Err(SqlError::new(
                SqlState::NoActiveSqlTransaction,
                "DECLARE CURSOR can only be used in transaction blocks",
            )
            .hint("write BEGIN before, or WITH HOLD"));
        }
        let rows = match declare.select.emit {
            Some(_) => self.subscribe(&declare.select, arguments, Delivery::Asked).await?,
            None => self.run_select(&declare.select, arguments).await?,
        };
        let life = match (declare.hold, self.transaction.is_open()) {
            (false, _) => Life::Transaction,
            (true, true) => Life::HoldOnCommit,
            (true, false) => Life::Session,
        };
        self.cursors.declare(declare.name.as_str(), rows, life, self.savepoints)?;
        Ok(Outcome::Command { tag: "DECLARE CURSOR".to_owned() })
    }

    /// Makes a cursor of rows that a portal has, until the transaction ends; `savepoints` were set before the portal.
    ///
    /// # Errors
    /// 42P03 when the name is taken, 53400 over the limit.
    pub fn declare_rows(&mut self, name: &str, rows: Rows, savepoints: u64) -> Result<()> {
        self.cursors.declare(name, rows, Life::Transaction, savepoints)
    }

    /// `FETCH`
    pub(crate) async fn fetch(&mut self, fetch: &Fetch) -> Result<Rows> {
        let timeout = fetch.timeout.or_else(|| self.fetch_timeout());
        let receipts = self.cursors.receipts(fetch.cursor.as_str())?;
        // What was fetched before the transaction was taken before it.
        if receipts.is_some() {
            self.cursors.ask(fetch.cursor.as_str()).await?;
            self.fetch_more(receipts.as_ref()).await?;
        }
        self.cursors.fetch(fetch.cursor.as_str(), fetch.count, timeout, receipts, "FETCH")
    }

    /// `MOVE`: fetches and forgets.
    pub(crate) async fn move_cursor(&mut self, fetch: &Fetch) -> Result<Outcome> {
        let mut rows = self.fetch(fetch).await?;
        let mut moved = 0;
        while let Some(batch) = rows.stream.next().await {
            let passed = batch?.num_rows();
            if rows.receipts.as_ref().is_none_or(|receipts| receipts.hand_over(passed)) {
                moved += passed;
            }
        }
        Ok(Outcome::Command { tag: format!("MOVE {moved}") })
    }

    /// `PREPARE name AS …`
    pub(crate) async fn prepare_named(&mut self, prepare: &Prepare) -> Result<Outcome> {
        let mut declared = Vec::new();
        for (data_type, position) in &prepare.types {
            declared.push(Some(types::sql_type(data_type, *position)?));
        }
        let prepared = self.plan(prepare.statement.clone(), &declared).await?;
        self.store_statement(prepare.name.as_str(), prepared)?;
        Ok(Outcome::Command { tag: "PREPARE".to_owned() })
    }

    /// `EXECUTE name (…)`
    pub(crate) async fn execute_named(&mut self, execute: &dialect::Execute, via: Via) -> Result<Outcome> {
        let prepared = self.statement(execute.name.as_str())?;
        if execute.arguments.len() != prepared.params.len() {
            return Err(SqlError::new(
                SqlState::SyntaxError,
                format!("wrong number of parameters for prepared statement \"{}\"", execute.name),
            )
            .detail(format!(
                "expected {} parameters but got {}",
                prepared.params.len(),
                execute.arguments.len()
            )));
        }
        let context = self.plan_context();
        let mut params = Vec::new();
        for (argument, sql_type) in execute.arguments.iter().zip(&prepared.params) {
            let value = eval_constant(&context, argument, sql_type, &[])?;
            params.push(text_param(&value, sql_type)?);
        }
        self.execute(&prepared, params, via).await
    }

    /// `EXPLAIN [ANALYZE]`
    pub(crate) async fn explain(&mut self, explain: &Explain, arguments: Arguments) -> Result<Outcome> {
        let lines = match &explain.statement.statement {
            Statement::Select(select) if select.emit.is_none() => self.explain_pull(select, explain, arguments).await?,
            Statement::Select(select) => self.explain_continuous(select, None, explain, arguments).await?,
            Statement::CreateAs(create) => {
                self.explain_continuous(&create.select, Some(&create.name.name), explain, arguments).await?
            }
            Statement::Insert(_) if explain.analyze => {
                return Err(SqlError::unsupported("EXPLAIN ANALYZE of INSERT", "leave ANALYZE out"));
            }
            Statement::Change(change) if explain.analyze => Box::pin(self.explain_change(change, arguments)).await?,
            Statement::Insert(insert) => match &insert.source {
                dialect::InsertSource::Select(select) => {
                    let mut lines = vec![format!("Insert on {}", insert.name)];
                    let inner = self.explain_pull(select, explain, arguments).await?;
                    lines.extend(inner.into_iter().map(|line| format!("  {line}")));
                    lines
                }
                _ => vec![format!("Insert on {}", insert.name), "  Values".to_owned()],
            },
            Statement::Change(change) => {
                let (word, select) = self.changed_select(change)?;
                let mut lines = vec![format!("{word} on {}", change.target.name)];
                let inner = self.explain_pull(&select, explain, arguments).await?;
                lines.extend(inner.into_iter().map(|line| format!("  {line}")));
                lines
            }
            _ => return Err(SqlError::unsupported("EXPLAIN of this statement", "explain a SELECT")),
        };
        Ok(Outcome::Rows(text_rows("QUERY PLAN", lines, "EXPLAIN")?))
    }

    async fn explain_pull(&self, select: &Select, explain: &Explain, arguments: Arguments) -> Result<Vec<String>> {
        let declared: Vec<Option<SqlType>> = arguments.types.into_iter().map(Some).collect();
        let planned = self.plan_pull(select, &declared).await?;
        let context = self.plan_context();
        let mode = if explain.analyze { exec::ExplainMode::Analyze } else { exec::ExplainMode::Plan };
        let is_verbose = explain.verbose;
        let _stop = context.settings.interrupts.stop_on_drop();
        self.engine
            .compute
            .run(async move {
                let mut lines = exec::explain(&context, &planned, arguments.values, mode).await?;
                if is_verbose {
                    lines.push("Logical plan:".to_owned());
                    lines.extend(planned.plan.display_indent().to_string().lines().map(|line| format!("  {line}")));
                }
                Ok(lines)
            })
            .await
    }
}

/// Rows of one text column.
pub(crate) fn text_rows(name: &str, lines: Vec<String>, tag: &'static str) -> Result<Rows> {
    let columns = vec![ResultColumn { name: name.to_owned(), sql_type: SqlType::Text, source: None }];
    let array = Arc::new(arrow::array::StringArray::from(lines));
    crate::engine::describe::fixed_rows(columns, vec![array], RowsTag::Plain(tag))
}

/// A constant as a parameter in text.
fn text_param(value: &ScalarValue, sql_type: &SqlType) -> Result<Param> {
    let array = value.to_array().map_err(|error| SqlError::internal(format!("constant cannot be read: {error}")))?;
    let mut bytes = Vec::new();
    let is_value = types::ColumnEncoder::new(array.as_ref(), sql_type).text(0, &mut bytes);
    Ok(Param { is_binary: false, value: is_value.then(|| bytes.into()) })
}
