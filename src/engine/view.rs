//! Views in a session: making them, and refusing what only relations can do.
//!
//! A view is a text in the catalog; the planner puts it in the place of its name. Leaves out dropping (`ddl`) and
//! expansion (sql). A crash leaves the whole of a definition, or nothing.

use crate::engine::session::Session;
use crate::engine::{Outcome, Result};
use millstream_catalog::model::{SqlState, TopicId};
use millstream_catalog::{Command, QueryState, Relation, RelationKind, View};
use millstream_sql::dialect::{CreateView, ObjectKind, QualifiedName, Replace, render};
use millstream_sql::plan::plan_view;
use millstream_sql::{SqlError, bind};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Session {
    /// `CREATE VIEW`
    pub(crate) async fn create_view(&mut self, create: &CreateView) -> Result<Outcome> {
        self.check_definition("CREATE VIEW").await?;
        let tag = Outcome::Command { tag: "CREATE VIEW".to_owned() };
        bind::ddl::check_topic_name(&create.name)?;
        bind::ddl::check_makes_nothing(&create.select)?;
        match create.replace {
            Replace::Yes => self.check_public(&create.name)?,
            Replace::No if self.exists(&create.name, create.if_not_exists)? => return Ok(tag),
            Replace::No => {}
        }
        let context = self.plan_context();
        let wanted = create.clone();
        let planned = self.engine.compute.run(async move { plan_view(&context, &wanted) }).await?;
        let view = View {
            id: TopicId::default(),
            name: create.name.name.clone(),
            sql: render::select(&create.select).to_owned(),
            columns: planned.columns,
            sources: planned.sources,
            search_path: self.settings.search_path(),
            forms: BTreeMap::new(),
            created_at: self.engine.clock().now(),
            statement: create.sql.clone(),
        };
        let command = Command::CreateView { view: Box::new(view), replace: create.replace == Replace::Yes };
        let engine = Arc::clone(&self.engine);
        match self.to_the_end(async move { engine.propose(command).await.map(drop) }).await {
            Ok(()) => {}
            Err(error) if error.sqlstate == SqlState::DuplicateTable && create.if_not_exists => {}
            Err(error) => return Err(error.at(create.name.position)),
        }
        Ok(tag)
    }

    /// `REFRESH MATERIALIZED VIEW`: it has taken in all that was committed before.
    pub(crate) async fn refresh(&mut self, name: &QualifiedName) -> Result<Outcome> {
        let catalog = self.engine.catalog();
        let relation = match catalog.relation(name.as_str()).filter(|_| self.reaches_public(name)) {
            Some(relation) if relation.is_materialized => relation,
            None if self.view_named(name).is_none() => {
                let message = format!("relation \"{name}\" does not exist");
                return Err(SqlError::new(SqlState::UndefinedTable, message).at(name.position));
            }
            _ => {
                let message = format!("\"{name}\" is not a materialized view");
                return Err(SqlError::new(SqlState::WrongObjectType, message).at(name.position));
            }
        };
        self.flush().await?;
        let catalog = self.engine.catalog();
        if let Some(query) = relation.query.and_then(|id| catalog.query_by_id(id))
            && query.state != QueryState::Running
        {
            let message = format!("the query of materialized view \"{name}\" does not run");
            let error = SqlError::new(SqlState::ObjectNotInPrerequisiteState, message).at(name.position);
            return Err(error.detail(format!("it is in state {}", query.state.word())).hint("see millstream.queries"));
        }
        Ok(Outcome::Command { tag: "REFRESH MATERIALIZED VIEW".to_owned() })
    }

    /// The view that a name in a statement means.
    pub(crate) fn view_named(&self, name: &QualifiedName) -> Option<Arc<View>> {
        self.engine.catalog().view(name.as_str()).filter(|_| self.reaches_public(name)).cloned()
    }

    /// Refuses to write a view; `what` is what the statement would do.
    ///
    /// # Errors
    /// 0A000 when the name is a view's.
    pub(crate) fn check_no_view(&self, name: &QualifiedName, what: &str) -> Result<()> {
        if self.view_named(name).is_none() {
            return Ok(());
        }
        Err(SqlError::new(SqlState::FeatureNotSupported, format!("cannot {what} view \"{name}\""))
            .detail("a view stores nothing")
            .hint("write to what the view reads")
            .at(name.position))
    }

    /// What `DESCRIBE [EXTENDED]` says of a view: its columns, and its properties.
    pub(crate) fn view_rows(&self, view: &View, extended: bool) -> Vec<[Option<String>; 5]> {
        let column = |name: String, sql_type: String| [Some(name), Some(sql_type), Some("YES".to_owned()), None, None];
        let columns = view.columns.iter().map(|it| column(it.name.to_string(), it.sql_type.to_string()));
        let mut rows: Vec<_> = columns.collect();
        if !extended {
            return rows;
        }
        let catalog = self.engine.catalog();
        let mut properties = vec![("kind", "view".to_owned()), ("statement", view.statement.clone())];
        for source in &view.sources {
            let relation = catalog.relation_by_id(*source).map(|relation| kind_and_name(relation));
            let inner = || catalog.view_by_id(*source).map(|view| format!("view \"{}\"", view.name));
            properties.extend(relation.or_else(inner).map(|source| ("reads", source)));
        }
        properties.extend(self.readers_of(view.id));
        let property = |(name, value): (&str, String)| [Some(format!("({name})")), Some(value), None, None, None];
        rows.extend(properties.into_iter().map(property));
        rows
    }

    /// The views and queries that read what has the id.
    pub(crate) fn readers_of(&self, id: TopicId) -> Vec<(&'static str, String)> {
        let catalog = self.engine.catalog();
        let views = catalog.views().filter(|view| view.sources.contains(&id));
        let views = views.map(|view| ("read by view", view.name.to_string()));
        let queries = catalog.queries().filter(|query| query.reads(id));
        let queries = queries.map(|query| ("read by query", format!("{} ({})", query.name, query.state.word())));
        views.chain(queries).collect()
    }
}

fn kind_and_name(relation: &Relation) -> String {
    let kind = match relation.kind {
        RelationKind::Stream => "stream",
        RelationKind::Table => "table",
    };
    format!("{kind} \"{}\"", relation.name)
}

/// Refuses to DROP or ALTER a view by the word of something else.
pub(crate) fn check_view_kind(kind: ObjectKind, verb: &str, name: &QualifiedName) -> Result<()> {
    if kind == ObjectKind::View {
        return Ok(());
    }
    let wanted = kind.keyword().to_lowercase();
    let hint = if verb == "DROP" { "use DROP VIEW" } else { "use CREATE OR REPLACE VIEW" };
    let error = SqlError::new(SqlState::WrongObjectType, format!("\"{name}\" is not a {wanted}"));
    Err(error.detail("it is a view").hint(hint).at(name.position))
}
