//! A session: settings, transaction, cursors and prepared statements of one client, and running statements.
//!
//! One client owns one session and runs one statement at a time. Leaves out the protocol (server) and what
//! each statement does (the files beside). A crash or a lost connection forgets it; its uncommitted writes
//! with it.

use crate::engine::change::settled;
use crate::engine::compute;
use crate::engine::cursor::Cursors;
use crate::engine::listen::Listening;
use crate::engine::pin::Pin;
use crate::engine::registry::{Handed, SessionEntry, SessionId};
use crate::engine::settings::{Ending, SetScope, Settings, check_count, quote_name};
use crate::engine::system_view::SessionView;
use crate::engine::transaction::{Pending, Transaction};
use crate::engine::{Engine, Held, Notice, Outcome, Param, Prepared, Result, ResultColumn, TransactionStatus, Via};
use crate::replication::{Append, Cuts, GroupCommit, Staging};
use millstream_catalog::model::limit::PREPARED_MAX;
use millstream_catalog::model::{ShardId, Span, SqlState};
use millstream_catalog::{Relation, SqlType};
use millstream_sql::SqlError;
use millstream_sql::dialect::{
    self, Chain, Discard, Parsed, QualifiedName, Statement, TransactionAccess, TransactionModes,
};
use millstream_sql::plan::PlanSettings;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What a client says of itself when it connects.
#[derive(Debug, Clone, Default)]
pub struct SessionOptions {
    /// The user; not empty.
    pub user: String,
    /// The database; any name is accepted, there is one.
    pub database: String,
    /// The client's address, for `millstream.sessions`.
    pub client: String,
    /// Settings given at start-up. A time zone other than UTC is passed over: the client is told that it is UTC.
    pub settings: Vec<(String, String)>,
}

/// One client's session.
#[derive(Debug)]
pub struct Session {
    pub(crate) engine: Arc<Engine>,
    pub(crate) entry: Arc<SessionEntry>,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) settings: Settings,
    pub(crate) transaction: Transaction,
    pub(crate) cursors: Cursors,
    pub(crate) listening: Listening,
    statements: HashMap<String, Arc<Prepared>>,
    notices: Vec<Notice>,
    reported: Vec<(String, String)>,
    /// Transaction blocks that ended.
    blocks_ended: u64,
    /// How far back the statement at hand reads.
    pin: Option<Pin>,
    /// What the statement at hand reads; of one shard, what there is when it asks.
    pub(crate) cuts: Option<Cuts>,
    /// While a transaction commits: cursors it declared that outlive it, if it comes to that.
    undecided: Option<Vec<String>>,
    /// Counts the savepoints that were set.
    pub(crate) savepoints: u64,
    /// The first of those that were rolled back to, until the connection asks.
    rolled_back: Option<u64>,
    /// Columns of a portal that the next statement to prepare names.
    known: Option<(String, Arc<[ResultColumn]>)>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.engine.registry.close(self.entry.id);
    }
}

impl Session {
    pub(crate) fn open(engine: &Arc<Engine>, options: SessionOptions) -> Result<Self> {
        let mut settings = Settings::default();
        for (name, value) in &options.settings {
            let result = settings.set(name, value, SetScope::Session);
            if !name.eq_ignore_ascii_case("timezone") {
                result?;
            }
        }
        settings.force("session_authorization", &options.user);
        settings.begin();
        let application_name = settings.show("application_name")?;
        let entry = engine.registry.open(&options.user, &application_name, &options.client, engine.clock().now())?;
        Ok(Self {
            engine: Arc::clone(engine),
            entry,
            user: options.user,
            database: options.database,
            settings,
            transaction: Transaction::default(),
            cursors: Cursors::default(),
            listening: Listening::default(),
            statements: HashMap::new(),
            notices: Vec::new(),
            reported: Vec::new(),
            blocks_ended: 0,
            pin: None,
            cuts: None,
            undecided: None,
            savepoints: 0,
            rolled_back: None,
            known: None,
        })
    }

    /// What a cancel request must show.
    pub fn id(&self) -> SessionId {
        self.entry.id
    }

    /// The settings a client is told at start-up.
    pub fn reported_settings(&self) -> Vec<(String, String)> {
        self.settings.reported()
    }

    /// Marks the beginning of a statement. The token is cancelled when the client asks for it; whoever runs
    /// the statement then drops its future or stream and reports 57014.
    pub fn begin_statement(&mut self, text: &str) -> CancellationToken {
        // A commit that was cancelled in time.
        self.decide(false);
        self.entry.begin(text)
    }

    /// Whether the statement was handed to the log.
    pub fn handed(&self) -> Handed {
        self.entry.handed().clone()
    }

    /// Marks the end of a statement: its last row is delivered.
    pub fn end_statement(&mut self) {
        self.entry.end();
        self.pin = None;
    }

    /// `statement_timeout`; `None` is no limit. The server applies it to everything but waiting for copy data.
    pub fn statement_timeout(&self) -> Option<Span> {
        self.settings.statement_timeout()
    }

    /// `session_timeout`, after which a silent client counts as gone; `None` is never.
    pub fn session_timeout(&self) -> Option<Span> {
        self.settings.session_timeout()
    }

    /// `fetch_timeout`: a row-limited Execute of a push query may come short after it, but never empty.
    pub fn fetch_timeout(&self) -> Option<Span> {
        self.settings.fetch_timeout()
    }

    /// Takes a text apart into statements.
    ///
    /// # Errors
    /// 42601 and the other codes of a text that cannot be parsed, with the position.
    pub async fn parse(&self, sql: &str) -> Result<Vec<Parsed>> {
        dialect::parse(sql)
    }

    /// The transaction, as ReadyForQuery reports it.
    pub fn transaction_status(&self) -> TransactionStatus {
        self.transaction.status()
    }

    /// Whether the block failed and can only be rolled back.
    pub fn is_lost(&self) -> bool {
        self.transaction.is_failed() && !self.transaction.has_savepoints()
    }

    /// Counts the transaction blocks that ended: portals end with theirs, also where another follows at once.
    pub fn blocks_ended(&self) -> u64 {
        self.blocks_ended
    }

    /// Notices since the last call, oldest first.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Settings the client must be told of since the last call.
    pub fn take_reported(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.reported)
    }

    /// The columns of a cursor: a portal and a cursor of one name are one thing.
    pub fn cursor_columns(&self, name: &str) -> Option<Arc<[ResultColumn]>> {
        self.cursors.columns(name)
    }

    /// As [`Session::cursor_columns`], or of the portal that the connection made known.
    pub(crate) fn columns_of_cursor(&self, name: &str) -> Option<Arc<[ResultColumn]>> {
        let known = || self.known.as_ref().filter(|(known, _)| known == name).map(|(_, columns)| Arc::clone(columns));
        self.cursor_columns(name).or_else(known)
    }

    /// The next statement to prepare may name a portal with these columns as a cursor.
    pub fn know_portal(&mut self, name: &str, columns: &Arc<[ResultColumn]>) {
        self.known = Some((name.to_owned(), Arc::clone(columns)));
    }

    /// Counts the savepoints that were set so far.
    pub fn savepoints(&self) -> u64 {
        self.savepoints
    }

    /// Close of a cursor, also in a transaction that failed.
    ///
    /// # Errors
    /// As `CLOSE`.
    pub async fn close_cursor(&mut self, name: &str) -> Result<()> {
        self.cursors.close(name).await
    }

    /// The first savepoint that was rolled back to since this was asked: what was made since it was set is gone.
    pub fn take_rolled_back(&mut self) -> Option<u64> {
        self.rolled_back.take()
    }

    /// Keeps a prepared statement under `name`; the empty name is replaced each time.
    ///
    /// # Errors
    /// 42P05 when the name is taken, 53400 over the limit.
    pub fn store_statement(&mut self, name: &str, prepared: Arc<Prepared>) -> Result<()> {
        if !name.is_empty() {
            if self.statements.contains_key(name) {
                return Err(SqlError::new(
                    SqlState::DuplicatePreparedStatement,
                    format!("prepared statement \"{name}\" already exists"),
                ));
            }
            if self.statements.len() >= PREPARED_MAX {
                return Err(SqlError::new(SqlState::ConfigurationLimitExceeded, "too many prepared statements")
                    .detail(format!("a session may have {PREPARED_MAX}")));
            }
        }
        self.statements.insert(name.to_owned(), prepared);
        Ok(())
    }

    /// The prepared statement `name`.
    ///
    /// # Errors
    /// 26000 when there is none.
    pub fn statement(&self, name: &str) -> Result<Arc<Prepared>> {
        self.statements.get(name).cloned().ok_or_else(|| {
            SqlError::new(SqlState::InvalidSqlStatementName, format!("prepared statement \"{name}\" does not exist"))
        })
    }

    /// Forgets the prepared statement `name`; no error when there is none, as Close has it.
    pub fn close_statement(&mut self, name: &str) {
        self.statements.remove(name);
    }

    /// Begins a text of several statements: without a BEGIN in it, they commit together at its end.
    pub fn begin_implicit(&mut self) {
        self.transaction.begin_implicit();
    }

    /// Whether [`Session::end_implicit`] has something to end.
    pub fn is_implicit(&self) -> bool {
        self.transaction.is_implicit()
    }

    /// Begins several statements before one Sync: without a BEGIN among them, they commit together at it.
    pub fn begin_pipeline(&mut self) {
        self.transaction.begin_pipeline();
    }

    /// Ends such a text or pipeline: commits what it wrote, or forgets it after an error.
    ///
    /// # Errors
    /// When the commit fails.
    pub async fn end_implicit(&mut self, is_ok: bool) -> Result<()> {
        if !self.is_implicit() {
            return Ok(());
        }
        self.conclude(is_ok).await
    }

    /// Ends the transaction, and commits what it wrote if it `is_ok`; only with that, what it changed of the session stays.
    async fn conclude(&mut self, is_ok: bool) -> Result<()> {
        let pending = self.transaction.end();
        let listens = self.listening.end_transaction();
        self.undecided = Some(self.cursors.end_transaction(is_ok));
        let committed = match pending {
            Some(pending) if is_ok => self.commit_as(pending, self.settings.ending()).await,
            _ => Ok(()),
        };
        self.decide(is_ok && committed.is_ok());
        committed?;
        if is_ok {
            self.listening.apply(listens);
        }
        Ok(())
    }

    /// What a transaction changed of the session stays, or goes.
    fn decide(&mut self, is_committed: bool) {
        let Some(declared) = self.undecided.take() else { return };
        let changed = self.settings.end_transaction(is_committed);
        changed.into_iter().for_each(|setting| self.report(Some(setting)));
        if !is_committed {
            self.cursors.take_back(&declared);
        }
    }

    /// Prepares a statement; `param_types` are the client's own declarations, `None` where it leaves them open.
    ///
    /// # Errors
    /// Whatever planning finds.
    pub async fn prepare(&mut self, parsed: Parsed, param_types: &[Option<SqlType>]) -> Result<Arc<Prepared>> {
        self.check_not_failed(&parsed.statement)?;
        // A plan fixes the rows it sees.
        self.take_cuts().await;
        let result = self.plan(parsed, param_types).await;
        self.known = None;
        if result.is_err() {
            self.transaction.fail();
        }
        result
    }

    /// Runs a prepared statement.
    ///
    /// # Errors
    /// Of the statement; in a transaction block the block has then failed.
    ///
    /// # Cancellation
    /// Dropping the future stops the statement. A write that was under way may or may not happen.
    pub async fn execute(&mut self, prepared: &Arc<Prepared>, params: Vec<Param>, via: Via) -> Result<Outcome> {
        // Before any cut is taken.
        self.pin = Some(self.engine.pin());
        self.take_cuts().await;
        let parsed = prepared.parsed()?;
        let result = match self.check_not_failed(&parsed.statement) {
            Ok(()) => self.dispatch(prepared, &parsed.statement, params, via).await,
            Err(error) => Err(error),
        };
        // Subscriptions do not end, and have read what they read as of now.
        if !matches!(&result, Ok(Outcome::Rows(rows)) if !rows.is_push) {
            self.pin = None;
        }
        let result = result.map_err(|error| dialect::locate(error, &parsed));
        if result.is_err() {
            self.transaction.fail();
        }
        result
    }

    /// For whoever delivers rows: an error or a cancellation after the statement returned fails the block too.
    pub fn fail_transaction(&mut self) {
        self.transaction.fail();
    }

    async fn dispatch(
        &mut self,
        prepared: &Arc<Prepared>,
        statement: &Statement,
        params: Vec<Param>,
        via: Via,
    ) -> Result<Outcome> {
        prepared.check_param_count(params.len())?;
        match statement {
            Statement::Insert(insert) => self.insert(insert, prepared, params).await,
            // Boxed: an INSERT need not carry what they need.
            _ => Box::pin(self.dispatch_other(prepared, statement, params, via)).await,
        }
    }

    async fn dispatch_other(
        &mut self,
        prepared: &Arc<Prepared>,
        statement: &Statement,
        params: Vec<Param>,
        via: Via,
    ) -> Result<Outcome> {
        match statement {
            Statement::Select(select) => {
                if select.emit.is_some() {
                    prepared.fold();
                    return self.push_query(select, (prepared, &params), via).await;
                }
                let arguments = prepared.arguments(&params)?;
                self.pull_query(select, prepared, arguments).await.map(Outcome::Rows)
            }
            Statement::Change(change) => {
                let arguments = prepared.arguments(&params)?;
                Box::pin(self.change(change, prepared, arguments)).await
            }
            Statement::Copy(copy) => self.copy(copy).await,
            Statement::CreateRelation(create) => self.create_relation(create).await,
            Statement::CreateAs(create) => self.create_as(create).await,
            Statement::InsertQuery(insert) => Box::pin(self.insert_query(insert)).await,
            Statement::CreateView(create) => self.create_view(create).await,
            Statement::Drop(drop) => self.drop_relations(drop).await,
            Statement::Truncate(names) => self.truncate(names).await,
            Statement::Alter(alter) => self.alter(alter).await,
            Statement::Query(control) => self.control_query(control).await,
            Statement::Flush => self.flush().await,
            Statement::Refresh(name) => self.refresh(name).await,
            Statement::Explain(explain) => self.explain(explain, prepared.arguments(&params)?).await,
            Statement::ExplainQuery(name) => self.explain_query(name).await,
            Statement::CommitOffsets(commit) => self.commit_offsets(commit, prepared.arguments(&params)?).await,
            Statement::AlterGroup(alter) => self.alter_group(alter).await,
            Statement::DropGroups(drop) => self.drop_groups(drop).await,
            Statement::DescribeGroup(group) => self.describe_group(group),
            Statement::Show(show) => self.show(show),
            Statement::Describe(describe) => self.describe(describe),
            Statement::Declare(declare) => {
                let arguments = prepared.arguments(&params)?;
                prepared.fold();
                self.declare(declare, arguments).await
            }
            Statement::Fetch(fetch) => self.fetch(fetch).await.map(Outcome::Rows),
            Statement::Move(fetch) => self.move_cursor(fetch).await,
            Statement::Prepare(prepare) => self.prepare_named(prepare).await,
            Statement::Execute(execute) => Box::pin(self.execute_named(execute, via)).await,
            other => self.control(other).await,
        }
    }

    /// Statements that change only the session.
    async fn control(&mut self, statement: &Statement) -> Result<Outcome> {
        let tag = match statement {
            Statement::Set(set) => self.set(set)?,
            Statement::Reset(name) => self.reset(name.as_deref())?,
            Statement::Discard(what) => self.discard(*what).await?,
            Statement::Begin(modes) => self.begin(*modes),
            Statement::Commit(chain) => return self.commit_block(*chain).await,
            Statement::Rollback(chain) => self.rollback_block(*chain)?,
            Statement::Savepoint(name) => {
                self.check_in_block("SAVEPOINT")?;
                self.transaction.save(name.as_str(), self.savepoints + 1)?;
                self.savepoints += 1;
                self.settings.save(name.as_str());
                self.listening.save(&name.name);
                "SAVEPOINT"
            }
            Statement::Release(name) => {
                self.check_in_block("RELEASE SAVEPOINT")?;
                self.transaction.release(name.as_str())?;
                self.settings.release(name.as_str());
                self.listening.release(&name.name);
                "RELEASE"
            }
            Statement::RollbackTo(name) => {
                self.check_in_block("ROLLBACK TO SAVEPOINT")?;
                let number = self.transaction.rollback_to(name.as_str())?;
                self.listening.roll_back_to(&name.name);
                self.cursors.roll_back_to(number);
                self.rolled_back = Some(self.rolled_back.map_or(number, |first| first.min(number)));
                let changed = self.settings.roll_back_to(name.as_str());
                changed.into_iter().for_each(|setting| self.report(Some(setting)));
                "ROLLBACK"
            }
            Statement::SetTransaction(modes) => {
                if let Some(access) = modes.access {
                    self.transaction.set_read_only(access == TransactionAccess::ReadOnly);
                }
                "SET"
            }
            Statement::SetSessionCharacteristics(modes) => {
                if modes.access == Some(TransactionAccess::ReadOnly) {
                    return Err(SqlError::unsupported("a read-only session", "use BEGIN READ ONLY"));
                }
                "SET"
            }
            Statement::Close(name) => {
                match name {
                    Some(name) => self.cursors.close(name.as_str()).await?,
                    None => self.cursors.close_all().await?,
                }
                if name.is_some() { "CLOSE CURSOR" } else { "CLOSE CURSOR ALL" }
            }
            Statement::Deallocate(name) => {
                match name {
                    Some(name) => {
                        self.statement(name.as_str())?;
                        self.close_statement(name.as_str());
                    }
                    None => self.statements.clear(),
                }
                if name.is_some() { "DEALLOCATE" } else { "DEALLOCATE ALL" }
            }
            Statement::Listen(channel) => self.listen(channel).await?,
            Statement::Unlisten(channel) => self.unlisten(channel.as_ref())?,
            _ => return Err(SqlError::internal("no executor for the statement")),
        };
        Ok(Outcome::Command { tag: tag.to_owned() })
    }

    fn set(&mut self, set: &dialect::Set) -> Result<&'static str> {
        let scope = match set.scope {
            dialect::SetScope::Local => SetScope::Local,
            dialect::SetScope::Session => self.set_scope(),
        };
        let is_lost = scope == SetScope::Local && !self.transaction.is_open();
        let kept = is_lost.then(|| self.settings.clone());
        let report = match &set.value {
            dialect::SetValue::Default => self.settings.reset(&set.name, scope),
            dialect::SetValue::Values(values) if set.name == "search_path" => {
                let names: Vec<String> = values.iter().map(|name| quote_name(name)).collect();
                self.settings.set(&set.name, &names.join(", "), scope)
            }
            dialect::SetValue::Values(values) => check_count(&set.name, values.len())
                .and_then(|()| self.settings.set(&set.name, &values.join(", "), scope)),
        };
        let report = report.map_err(|error| error.at(set.position))?;
        match kept {
            Some(kept) => {
                self.settings = kept;
                let message = "SET LOCAL can only be used in transaction blocks";
                self.notify("WARNING", SqlState::NoActiveSqlTransaction, message);
            }
            None => self.report(report),
        }
        Ok("SET")
    }

    /// Of a statement that changes settings for good.
    fn set_scope(&self) -> SetScope {
        if self.transaction.is_open() { SetScope::InTransaction } else { SetScope::Session }
    }

    fn reset(&mut self, name: Option<&str>) -> Result<&'static str> {
        match name {
            Some(name) => {
                let report = self.settings.reset(name, self.set_scope())?;
                self.report(report);
            }
            None => {
                let told = self.settings.reset_all(self.set_scope());
                told.into_iter().for_each(|setting| self.report(Some(setting)));
            }
        }
        Ok("RESET")
    }

    fn report(&mut self, changed: Option<(String, String)>) {
        if let Some((name, value)) = changed {
            if name == "application_name" {
                self.entry.rename(&value);
            }
            self.reported.push((name, value));
        }
    }

    async fn discard(&mut self, what: Discard) -> Result<&'static str> {
        Ok(match what {
            Discard::All => {
                if self.transaction.is_open() && !self.transaction.is_pipeline() {
                    return Err(SqlError::new(
                        SqlState::ActiveSqlTransaction,
                        "DISCARD ALL cannot run inside a transaction block",
                    ));
                }
                self.cursors.close_all().await?;
                self.statements.clear();
                self.reset(None)?;
                self.unlisten(None)?;
                "DISCARD ALL"
            }
            // Plans are not cached beyond prepared statements; sequences and temporary tables do not exist.
            Discard::Plans => "DISCARD PLANS",
            Discard::Sequences => "DISCARD SEQUENCES",
            Discard::Temp => "DISCARD TEMP",
        })
    }

    fn begin(&mut self, modes: TransactionModes) -> &'static str {
        if !self.transaction.begin(modes.access == Some(TransactionAccess::ReadOnly)) {
            self.notify("WARNING", SqlState::ActiveSqlTransaction, "there is already a transaction in progress");
        }
        "BEGIN"
    }

    async fn commit_block(&mut self, chain: Chain) -> Result<Outcome> {
        self.check_chain("COMMIT AND CHAIN", chain)?;
        if !self.transaction.is_explicit() {
            self.notify("WARNING", SqlState::NoActiveSqlTransaction, "there is no transaction in progress");
        }
        let (is_failed, is_read_only) = (self.transaction.is_failed(), self.transaction.is_read_only());
        self.blocks_ended += 1;
        self.conclude(!is_failed).await?;
        if chain == Chain::Yes {
            self.transaction.begin(is_read_only);
        }
        let tag = if is_failed { "ROLLBACK" } else { "COMMIT" };
        Ok(Outcome::Command { tag: tag.to_owned() })
    }

    fn rollback_block(&mut self, chain: Chain) -> Result<&'static str> {
        self.check_chain("ROLLBACK AND CHAIN", chain)?;
        let is_read_only = self.transaction.is_read_only();
        if !self.transaction.is_explicit() {
            self.notify("WARNING", SqlState::NoActiveSqlTransaction, "there is no transaction in progress");
        }
        self.blocks_ended += 1;
        self.transaction = Transaction::default();
        drop(self.listening.end_transaction());
        drop(self.cursors.end_transaction(false));
        let changed = self.settings.end_transaction(false);
        changed.into_iter().for_each(|setting| self.report(Some(setting)));
        if chain == Chain::Yes {
            self.transaction.begin(is_read_only);
        }
        Ok("ROLLBACK")
    }

    fn check_chain(&self, word: &str, chain: Chain) -> Result<()> {
        if chain == Chain::Yes { self.check_in_block(word) } else { Ok(()) }
    }

    /// From now on the session reads what is committed now.
    pub(crate) async fn take_cuts(&mut self) {
        self.cuts = self.engine.replication().cuts().await;
    }

    /// Appends what a transaction wrote.
    pub(crate) async fn commit(&mut self, pending: Pending) -> Result<()> {
        self.commit_as(pending, self.settings.ending()).await
    }

    /// Appends what the statements before this one wrote; this one can be cancelled still.
    pub(crate) async fn commit_before(&mut self) -> Result<()> {
        let Some(pending) = self.transaction.take_writes() else { return Ok(()) };
        let committed = self.commit(pending).await;
        self.entry.handed().set(false);
        committed
    }

    /// As [`Session::commit`], with what the session said of it before the transaction's settings ended.
    async fn commit_as(&mut self, mut pending: Pending, ending: Ending) -> Result<()> {
        // Given back with the rest when anything fails: what was fetched is read again.
        let fetched = std::mem::take(&mut pending.fetched);
        let commits = fetched.commits()?;
        let mut appends = self.appends(&pending, &commits, ending)?;
        if pending.locks.is_none() {
            for (_, append) in &appends {
                self.pass_barriers(append).await;
            }
        }
        let has_written = appends.iter().any(|(_, append)| append.brings_rows());
        // Dropped with its rows when that fails, which gives up what is not committed.
        match (appends.pop(), appends.is_empty()) {
            (Some((shard, append)), true) => {
                self.append_to(shard, append).await.map(drop).inspect_err(|_| fetched.doubt())?;
            }
            (None, _) => {}
            (Some(last), false) => {
                appends.push(last);
                self.append_across(appends).await.inspect_err(|_| fetched.doubt())?;
            }
        }
        fetched.committed(&commits);
        self.decide(true);
        for staging in pending.shares.into_values().filter_map(|share| share.staging) {
            staging.committed();
        }
        if has_written && ending.flushes { self.flush_written().await } else { Ok(()) }
    }

    /// What a transaction appends, by shard: rows, and how far groups have come with it.
    fn appends(
        &self,
        pending: &Pending,
        commits: &BTreeMap<ShardId, Vec<GroupCommit>>,
        ending: Ending,
    ) -> Result<Vec<(ShardId, Append)>> {
        let (now, catalog) = (self.engine.clock().now(), self.engine.catalog());
        let mut appends = Vec::new();
        for (shard, share) in &pending.shares {
            let append = Append {
                parts: settled(&catalog, &share.writes)?,
                claims: share.claims.clone(),
                commits: Vec::new(),
                now,
                staged: share.staging.as_ref().and_then(Staging::id),
                durability: self.durability_of(&share.writes, ending.durability),
            };
            if !append.parts.is_empty() || !append.claims.is_empty() || append.staged.is_some() {
                appends.push((*shard, append));
            }
        }
        for (shard, commits) in commits.iter().filter(|(_, commits)| !commits.is_empty()) {
            match appends.iter_mut().find(|(of, _)| of == shard) {
                Some((_, append)) => append.commits.clone_from(commits),
                None => appends.push((*shard, Append { commits: commits.clone(), now, ..Append::default() })),
            }
        }
        Ok(appends)
    }

    /// Waits until the continuous queries have taken in what was just written; that can be cancelled.
    pub(crate) async fn flush_written(&self) -> Result<()> {
        self.entry.handed().set(false);
        crate::engine::query::flush(&self.engine).await
    }

    fn check_not_failed(&self, statement: &Statement) -> Result<()> {
        let ends = matches!(statement, Statement::Commit(_) | Statement::Rollback(_) | Statement::RollbackTo(_));
        if ends { Ok(()) } else { self.check_not_aborted() }
    }

    /// Whether statements run that do not end the transaction.
    ///
    /// # Errors
    /// 25P02 when one before them failed.
    pub fn check_not_aborted(&self) -> Result<()> {
        if self.transaction.is_failed() {
            return Err(SqlError::new(
                SqlState::InFailedSqlTransaction,
                "current transaction is aborted, commands ignored until end of transaction block",
            ));
        }
        Ok(())
    }

    fn check_in_block(&self, word: &str) -> Result<()> {
        if self.transaction.is_explicit() {
            return Ok(());
        }
        Err(SqlError::new(SqlState::NoActiveSqlTransaction, format!("{word} can only be used in transaction blocks")))
    }

    pub(crate) fn notify(&mut self, severity: &'static str, sqlstate: SqlState, message: impl Into<String>) {
        self.notices.push(Notice { severity, sqlstate, message: message.into(), hint: None });
    }

    pub(crate) fn notify_hint(&mut self, message: impl Into<String>, hint: impl Into<String>) {
        self.notices.push(Notice {
            severity: "NOTICE",
            sqlstate: SqlState::SuccessfulCompletion,
            message: message.into(),
            hint: Some(hint.into()),
        });
    }

    pub(crate) fn view(&self) -> SessionView {
        SessionView { settings: self.settings.clone() }
    }

    /// Whether a name means something in schema `public`: by its schema, or by the search path.
    pub(crate) fn reaches_public(&self, name: &QualifiedName) -> bool {
        match &name.schema {
            Some(schema) => schema.as_str() == "public",
            None => self.settings.search_path().iter().any(|schema| schema == "public"),
        }
    }

    /// The stream or table that a name in a statement means.
    ///
    /// # Errors
    /// 42P01 when there is none.
    pub(crate) fn relation(&self, name: &QualifiedName) -> Result<Arc<Relation>> {
        let found = self.engine.catalog().relation(name.as_str()).filter(|_| self.reaches_public(name)).cloned();
        let message = || format!("relation \"{name}\" does not exist");
        found.ok_or_else(|| SqlError::new(SqlState::UndefinedTable, message()).at(name.position))
    }

    /// As [`Engine::room`].
    pub(crate) fn room(&self) -> Held {
        self.engine.room()
    }

    pub(crate) fn plan_settings(&self) -> PlanSettings {
        PlanSettings {
            user: self.user.clone(),
            database: self.database.clone(),
            backend_pid: self.entry.id.pid,
            search_path: self.settings.search_path(),
            target_partitions: self.engine.config.query_threads,
            memory: self.engine.query_memory.clone(),
            interrupts: compute::interrupts(),
            ..PlanSettings::default()
        }
    }
}
