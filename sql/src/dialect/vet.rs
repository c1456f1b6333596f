//! Refuses what sqlparser accepts in a query and PostgreSQL or we do not have, so that no clause is ignored.
//!
//! Takes every clause of its queries apart by name: a clause that a new version of sqlparser adds does not
//! compile until it is decided here. Leaves out names and types. Called for every query; a crash does
//! nothing to it.

use super::ast::Position;
use super::keywords::{is_fully_reserved, is_reserved};
use crate::error::SqlError;
use millstream_catalog::model::{SqlState, limit};
use sqlparser::ast::{
    Expr, GroupByExpr, Ident, Join, JoinOperator, LimitClause, ObjectName, ObjectNamePart, OrderBy, OrderByKind, Query,
    Select, SelectFlavor, SelectItem, SetExpr, SetOperator, SetQuantifier, TableAlias, TableFactor, TableWithJoins,
    Value, VisitMut, VisitorMut, WildcardAdditionalOptions,
};
use std::ops::ControlFlow;

/// Checks `query` and everything in it; `FETCH FIRST n ROWS ONLY` becomes `LIMIT n`.
///
/// `place` says where a word of the query first stands.
pub(super) fn query(query: &mut Query, place: &dyn Fn(&str) -> Position) -> Result<(), SqlError> {
    let mut vet = Vet { place };
    match query.visit(&mut vet) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(*error),
    }
}

/// The same for an expression outside of a query.
pub(super) fn expr(expr: &mut Expr, place: &dyn Fn(&str) -> Position) -> Result<(), SqlError> {
    let mut vet = Vet { place };
    match expr.visit(&mut vet) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(*error),
    }
}

struct Vet<'a> {
    place: &'a dyn Fn(&str) -> Position,
}

type Checked = Result<(), SqlError>;

fn flow(checked: Checked) -> ControlFlow<Box<SqlError>> {
    match checked {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(Box::new(error)),
    }
}

impl VisitorMut for Vet<'_> {
    type Break = Box<SqlError>;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Self::Break> {
        flow(self.query(query))
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Self::Break> {
        flow(self.select(select))
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Self::Break> {
        flow(self.factor(factor))
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        flow(self.expr(expr))
    }
}

impl Vet<'_> {
    fn refuse(&self, is_there: bool, what: &str, word: &str, hint: &str) -> Checked {
        if !is_there {
            return Ok(());
        }
        Err(SqlError::unsupported(what, hint).at((self.place)(word)))
    }

    fn query(&self, query: &mut Query) -> Checked {
        let Query {
            with,
            body,
            order_by,
            limit_clause,
            fetch,
            locks,
            for_clause,
            settings,
            format_clause,
            pipe_operators,
        } = query;
        self.refuse(!locks.is_empty(), "FOR UPDATE and FOR SHARE", "for", "leave it out: events are not changed")?;
        self.refuse(for_clause.is_some(), "FOR XML and FOR JSON", "for", "use json functions")?;
        self.refuse(settings.is_some(), "SETTINGS", "settings", "use SET")?;
        self.refuse(format_clause.is_some(), "FORMAT", "format", "use COPY … TO STDOUT WITH (FORMAT …)")?;
        self.refuse(!pipe_operators.is_empty(), "|>", "select", "use sub-queries")?;
        if let Some(with) = with {
            let tables = with.cte_tables.len();
            if tables > limit::NESTING_MAX {
                return Err(too_many("common table expressions", tables, limit::NESTING_MAX));
            }
            for cte in &with.cte_tables {
                self.refuse(cte.from.is_some(), "FROM after a common table expression", "from", "leave it out")?;
                self.alias(Some(&cte.alias))?;
            }
        }
        self.body(body)?;
        if let Some(OrderBy { kind, interpolate }) = order_by {
            self.refuse(interpolate.is_some(), "INTERPOLATE", "interpolate", "leave it out")?;
            match kind {
                OrderByKind::All(_) => self.refuse(true, "ORDER BY ALL", "order", "name the columns")?,
                OrderByKind::Expressions(items) => {
                    let fills = items.iter().any(|item| item.with_fill.is_some());
                    self.refuse(fills, "WITH FILL", "fill", "leave it out")?;
                }
            }
        }
        match limit_clause {
            Some(LimitClause::OffsetCommaLimit { .. }) => {
                return Err(SqlError::syntax("LIMIT #,# syntax is not supported")
                    .hint("use separate LIMIT and OFFSET clauses")
                    .at((self.place)("limit")));
            }
            Some(LimitClause::LimitOffset { limit_by, .. }) => {
                self.refuse(!limit_by.is_empty(), "LIMIT BY", "limit", "use row_number() OVER (…)")?;
            }
            None => {}
        }
        self.fetch(limit_clause, fetch)
    }

    /// Makes `FETCH FIRST n ROWS ONLY` a `LIMIT`.
    fn fetch(&self, limit: &mut Option<LimitClause>, fetch: &mut Option<sqlparser::ast::Fetch>) -> Checked {
        let Some(sqlparser::ast::Fetch { with_ties, percent, quantity }) = fetch.take() else { return Ok(()) };
        self.refuse(with_ties, "FETCH … WITH TIES", "fetch", "use rank() OVER (…) in a sub-query")?;
        self.refuse(percent, "FETCH … PERCENT", "fetch", "use ntile(100) OVER (…) in a sub-query")?;
        let rows = quantity.unwrap_or_else(|| Expr::value(Value::Number("1".to_owned(), false)));
        match limit {
            None => {
                *limit = Some(LimitClause::LimitOffset { limit: Some(rows), offset: None, limit_by: Vec::new() });
                Ok(())
            }
            Some(LimitClause::LimitOffset { limit: limit @ None, .. }) => {
                *limit = Some(rows);
                Ok(())
            }
            Some(_) => Err(SqlError::syntax("multiple LIMIT clauses not allowed").at((self.place)("fetch"))),
        }
    }

    /// Checks the operators and leaves; iterative, because chains of set operations are long.
    fn body(&self, body: &SetExpr) -> Checked {
        let mut todo = vec![body];
        while let Some(body) = todo.pop() {
            match body {
                SetExpr::Select(_) | SetExpr::Query(_) => {}
                SetExpr::SetOperation { left, op, set_quantifier, right } => {
                    self.refuse(*op == SetOperator::Minus, "MINUS", "minus", "use EXCEPT")?;
                    let by_name = matches!(
                        set_quantifier,
                        SetQuantifier::ByName | SetQuantifier::AllByName | SetQuantifier::DistinctByName
                    );
                    self.refuse(by_name, "BY NAME", "by", "list the columns in the same order")?;
                    todo.extend([&**left, &**right]);
                }
                SetExpr::Values(values) => {
                    let odd = values.value_keyword || values.explicit_row;
                    self.refuse(odd, "VALUE and ROW here", "value", "use VALUES (…), (…)")?;
                }
                SetExpr::Table(_) => self.refuse(true, "TABLE in a sub-query", "table", "use SELECT * FROM")?,
                SetExpr::Insert(_) => self.data_modifying("INSERT", "insert")?,
                SetExpr::Update(_) => self.data_modifying("UPDATE", "update")?,
                SetExpr::Delete(_) => self.data_modifying("DELETE", "delete")?,
                SetExpr::Merge(_) => self.data_modifying("MERGE", "merge")?,
            }
        }
        Ok(())
    }

    fn data_modifying(&self, what: &str, word: &str) -> Checked {
        self.refuse(true, &format!("{what} in a query"), word, "use INSERT INTO … SELECT as a statement of its own")
    }

    fn select(&self, select: &Select) -> Checked {
        let Select {
            select_token: _,
            optimizer_hints: _, // comments, which the lexer takes away
            distinct: _,
            select_modifiers,
            top,
            top_before_distinct: _, // of `top`
            projection,
            exclude,
            into,
            from,
            lateral_views,
            prewhere,
            selection: _,
            connect_by,
            group_by,
            cluster_by,
            distribute_by,
            sort_by,
            having: _,
            named_window: _,
            qualify: _,
            window_before_qualify: _, // of `qualify`
            value_table_mode,
            flavor,
        } = select;
        self.refuse(into.is_some(), "SELECT INTO", "into", "use CREATE TABLE … AS SELECT")?;
        self.refuse(top.is_some(), "TOP", "top", "use LIMIT")?;
        self.refuse(exclude.is_some(), "EXCLUDE", "exclude", "list the columns")?;
        self.refuse(!lateral_views.is_empty(), "LATERAL VIEW", "lateral", "use unnest(…)")?;
        self.refuse(prewhere.is_some(), "PREWHERE", "prewhere", "use WHERE")?;
        self.refuse(!connect_by.is_empty(), "CONNECT BY", "connect", "use WITH RECURSIVE")?;
        self.refuse(!cluster_by.is_empty(), "CLUSTER BY", "cluster", "use ORDER BY")?;
        self.refuse(!distribute_by.is_empty(), "DISTRIBUTE BY", "distribute", "use ORDER BY")?;
        self.refuse(!sort_by.is_empty(), "SORT BY", "sort", "use ORDER BY")?;
        self.refuse(value_table_mode.is_some(), "SELECT AS", "select", "list the columns")?;
        let modifiers = select_modifiers.as_ref().is_some_and(|modifiers| !modifiers.to_string().trim().is_empty());
        self.refuse(modifiers, "a modifier after SELECT", "select", "leave it out")?;
        self.refuse(!matches!(flavor, SelectFlavor::Standard), "FROM before SELECT", "from", "write SELECT first")?;
        match group_by {
            GroupByExpr::All(_) => self.refuse(true, "GROUP BY ALL", "group", "name the columns")?,
            GroupByExpr::Expressions(_, modifiers) => {
                let hint = "use GROUP BY ROLLUP (…), CUBE (…) or GROUPING SETS (…)";
                self.refuse(!modifiers.is_empty(), "WITH after GROUP BY", "group", hint)?;
            }
        }
        self.projection(projection)?;
        self.from(from)
    }

    fn projection(&self, items: &[SelectItem]) -> Checked {
        items.iter().try_for_each(|item| match item {
            SelectItem::UnnamedExpr(_) => Ok(()),
            SelectItem::ExprWithAlias { expr: _, alias } => self.name(alias, false),
            SelectItem::ExprWithAliases { .. } => {
                self.refuse(true, "several names for one expression", "as", "select each part with its own name")
            }
            SelectItem::QualifiedWildcard(_, options) | SelectItem::Wildcard(options) => {
                let WildcardAdditionalOptions {
                    wildcard_token: _,
                    opt_ilike,
                    opt_exclude,
                    opt_except,
                    opt_replace,
                    opt_rename,
                    opt_alias,
                } = options;
                self.refuse(opt_ilike.is_some(), "* ILIKE", "ilike", "list the columns")?;
                self.refuse(opt_exclude.is_some(), "* EXCLUDE", "exclude", "list the columns")?;
                self.refuse(opt_except.is_some(), "* EXCEPT", "except", "list the columns")?;
                self.refuse(opt_replace.is_some(), "* REPLACE", "replace", "list the columns")?;
                self.refuse(opt_rename.is_some(), "* RENAME", "rename", "list the columns")?;
                self.refuse(opt_alias.is_some(), "a name for *", "as", "list the columns")
            }
        })
    }

    fn from(&self, from: &[TableWithJoins]) -> Checked {
        let relations = from.iter().map(|table| 1 + table.joins.len()).sum();
        if relations > limit::NESTING_MAX {
            return Err(too_many("relations in FROM", relations, limit::NESTING_MAX));
        }
        from.iter().flat_map(|table| &table.joins).try_for_each(|join| self.join(join))
    }

    fn join(&self, join: &Join) -> Checked {
        self.refuse(join.global, "GLOBAL", "global", "leave it out")?;
        match &join.join_operator {
            JoinOperator::Join(_)
            | JoinOperator::Inner(_)
            | JoinOperator::Left(_)
            | JoinOperator::LeftOuter(_)
            | JoinOperator::Right(_)
            | JoinOperator::RightOuter(_)
            | JoinOperator::FullOuter(_)
            | JoinOperator::CrossJoin(_)
            | JoinOperator::LeftSemi(_)
            | JoinOperator::RightSemi(_)
            | JoinOperator::LeftAnti(_)
            | JoinOperator::RightAnti(_) => Ok(()),
            JoinOperator::Semi(_) | JoinOperator::Anti(_) => self.refuse(
                true,
                "SEMI or ANTI without a side",
                "join",
                "use LEFT SEMI, LEFT ANTI, EXISTS or NOT EXISTS",
            ),
            JoinOperator::CrossApply | JoinOperator::OuterApply => {
                self.refuse(true, "APPLY", "apply", "use JOIN LATERAL")
            }
            JoinOperator::AsOf { .. } => self.refuse(true, "ASOF JOIN", "asof", "join on a range of rowtime"),
            JoinOperator::StraightJoin(_) => self.refuse(true, "STRAIGHT_JOIN", "straight_join", "use JOIN"),
            JoinOperator::ArrayJoin | JoinOperator::LeftArrayJoin | JoinOperator::InnerArrayJoin => {
                self.refuse(true, "ARRAY JOIN", "array", "use unnest(…)")
            }
        }
    }

    fn factor(&self, factor: &TableFactor) -> Checked {
        let hint = "read a stream, a table, a sub-query or a table function";
        match factor {
            TableFactor::Table {
                name,
                alias,
                args,
                with_hints,
                version: _,
                with_ordinality: _,
                partitions,
                json_path,
                sample,
                index_hints,
            } => {
                self.relation(name, args.is_some())?;
                self.alias(alias.as_ref())?;
                let settings = args.as_ref().is_some_and(|args| args.settings.is_some());
                self.refuse(settings, "SETTINGS", "settings", "leave it out")?;
                let has_hints =
                    with_hints.iter().any(|hint| !super::within::is_clause(hint)) || !index_hints.is_empty();
                self.refuse(has_hints, "a table hint", "with", "leave it out")?;
                let hint = "filter on rowpartition";
                self.refuse(!partitions.is_empty(), "PARTITION in FROM", "partition", hint)?;
                self.refuse(json_path.is_some(), "a json path in FROM", "from", "use json functions")?;
                self.refuse(sample.is_some(), "TABLESAMPLE", "tablesample", "filter on random()")
            }
            TableFactor::Derived { lateral: _, subquery: _, alias, sample } => {
                self.refuse(sample.is_some(), "TABLESAMPLE", "tablesample", "filter on random()")?;
                self.alias(alias.as_ref())
            }
            TableFactor::Function { lateral: _, name: _, args: _, with_ordinality: _, alias }
            | TableFactor::NestedJoin { table_with_joins: _, alias } => self.alias(alias.as_ref()),
            TableFactor::UNNEST { alias, array_exprs: _, with_offset, with_offset_alias, with_ordinality: _ } => {
                let offset = *with_offset || with_offset_alias.is_some();
                self.refuse(offset, "WITH OFFSET", "offset", "use WITH ORDINALITY")?;
                self.alias(alias.as_ref())
            }
            TableFactor::TableFunction { .. } => self.refuse(true, "TABLE(…)", "table", "write the function itself"),
            TableFactor::JsonTable { .. } => self.refuse(true, "JSON_TABLE", "json_table", hint),
            TableFactor::OpenJsonTable { .. } => self.refuse(true, "OPENJSON", "openjson", hint),
            TableFactor::Pivot { .. } => self.refuse(true, "PIVOT", "pivot", "use aggregates with FILTER"),
            TableFactor::Unpivot { .. } => self.refuse(true, "UNPIVOT", "unpivot", "use unnest(…)"),
            TableFactor::MatchRecognize { .. } => self.refuse(true, "MATCH_RECOGNIZE", "match_recognize", hint),
            TableFactor::XmlTable { .. } => self.refuse(true, "XMLTABLE", "xmltable", hint),
            TableFactor::SemanticView { .. } => self.refuse(true, "SEMANTIC_VIEW", "semantic_view", hint),
        }
    }

    fn alias(&self, alias: Option<&TableAlias>) -> Checked {
        let Some(TableAlias { explicit: _, name: alias, columns, at }) = alias else { return Ok(()) };
        self.refuse(at.is_some(), "AT after a name", "at", "use WITH ORDINALITY")?;
        let typed = columns.iter().any(|column| column.data_type.is_some());
        self.refuse(typed, "a column definition list", "as", "name the columns only")?;
        self.name(alias, is_reserved(&alias.value))
    }

    /// A string in the place of a relation is a file in other systems.
    fn relation(&self, name: &ObjectName, is_function: bool) -> Checked {
        for part in &name.0 {
            let ObjectNamePart::Identifier(ident) = part else {
                return self.refuse(true, "a computed name", "from", "write the name");
            };
            if ident.quote_style == Some('\'') {
                let message = "permission denied: statements do not read files";
                return Err(SqlError::new(SqlState::InsufficientPrivilege, message)
                    .hint("load the file with COPY … FROM STDIN")
                    .at((self.place)(&format!("'{}'", ident.value))));
            }
            self.name(ident, if is_function { is_fully_reserved(&ident.value) } else { is_reserved(&ident.value) })?;
        }
        Ok(())
    }

    /// sqlparser takes strings, and some reserved words, for names.
    fn name(&self, ident: &Ident, is_reserved: bool) -> Checked {
        match ident.quote_style {
            Some('\'') => Err(SqlError::syntax(format!("syntax error at or near \"'{}'\"", ident.value))
                .hint("put names in double quotes")
                .at((self.place)(&format!("'{}'", ident.value)))),
            None if is_reserved => {
                Err(SqlError::syntax(format!("syntax error at or near \"{}\"", ident.value))
                    .at(Position::of(ident.span)))
            }
            _ => Ok(()),
        }
    }

    fn expr(&self, expr: &Expr) -> Checked {
        match expr {
            Expr::Identifier(ident) if ident.quote_style.is_none() && ident.value == "default" => {
                Err(SqlError::syntax("DEFAULT is not allowed in this context").at(Position::of(ident.span)))
            }
            Expr::Identifier(ident) => self.name(ident, is_fully_reserved(&ident.value)),
            Expr::CompoundIdentifier(parts) => parts.iter().try_for_each(|part| self.name(part, false)),
            Expr::Prior(_) => self.refuse(true, "PRIOR", "prior", "use WITH RECURSIVE"),
            Expr::MatchAgainst { .. } => self.refuse(true, "MATCH … AGAINST", "match", "use LIKE or ~"),
            Expr::Lambda(_) => self.refuse(true, "a lambda", "select", "use unnest(…)"),
            Expr::OuterJoin(_) => self.refuse(true, "(+)", "where", "use LEFT JOIN"),
            _ => Ok(()),
        }
    }
}

fn too_many(what: &str, count: usize, most: usize) -> SqlError {
    SqlError::new(SqlState::StatementTooComplex, format!("too many {what}"))
        .detail(format!("{count}; the limit is {most}"))
        .hint("split the statement")
}
