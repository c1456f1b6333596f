//! `UPDATE`, `DELETE` and `ON CONFLICT`, and the queries they stand for.
//!
//! Leaves out names and types (`bind`). Built by `dialect`; a crash does nothing to it.

use super::{Ident, QualifiedName};
use sqlparser::ast::helpers::attached_token::AttachedToken;
use sqlparser::ast::{
    Expr, GroupByExpr, ObjectName, Query, Select, SelectFlavor, SelectItem, SetExpr, TableAlias, TableFactor,
    TableWithJoins, Values, WildcardAdditionalOptions,
};

/// `UPDATE` or `DELETE`.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Which of them.
    pub kind: ChangeKind,
    /// The rows of which table.
    pub target: Target,
    /// `FROM` of UPDATE, `USING` of DELETE.
    pub from: Vec<TableWithJoins>,
    /// `WHERE`
    pub selection: Option<Expr>,
    /// `RETURNING`; empty without.
    pub returning: Vec<SelectItem>,
}

/// What happens to the rows.
#[derive(Debug, Clone, PartialEq)]
pub enum ChangeKind {
    /// `SET …`
    Update(Vec<Assignment>),
    /// `DELETE`; the event time, where `WITH (rowtime = …)` gives it.
    Delete(Option<Box<Expr>>),
}

impl ChangeKind {
    /// The first word of the statement.
    pub fn keyword(&self) -> &'static str {
        match self {
            Self::Update(_) => "UPDATE",
            Self::Delete(_) => "DELETE",
        }
    }
}

/// The table a statement changes, and the name its rows have there.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The table.
    pub name: QualifiedName,
    /// `AS alias`
    pub alias: Option<Ident>,
}

impl Target {
    /// What columns are qualified with.
    pub fn shown(&self) -> &str {
        self.alias.as_ref().map_or(self.name.as_str(), Ident::as_str)
    }
}

/// `column = value`.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// The column.
    pub column: Ident,
    /// The value; `None` is `DEFAULT`.
    pub value: Option<Expr>,
}

/// `ON CONFLICT …`.
#[derive(Debug, Clone, PartialEq)]
pub struct OnConflict {
    /// What may be equal.
    pub target: ConflictTarget,
    /// What happens then.
    pub action: ConflictAction,
    /// Where it stands.
    pub position: super::Position,
}

/// Which rows are in conflict.
#[derive(Debug, Clone, PartialEq)]
pub enum ConflictTarget {
    /// Not given.
    Any,
    /// `(columns)`
    Columns(Vec<Ident>),
    /// `ON CONSTRAINT name`
    Constraint(Ident),
}

/// What becomes of a row whose key is there already.
#[derive(Debug, Clone, PartialEq)]
pub enum ConflictAction {
    /// `DO NOTHING`
    Nothing,
    /// `DO UPDATE SET … [WHERE …]`
    Update(Vec<Assignment>, Option<Box<Expr>>),
}

/// The table as an item of FROM.
pub fn from_items(target: &Target) -> Vec<TableWithJoins> {
    let query = select_from(Vec::new(), target, Vec::new(), None);
    match *query.body {
        SetExpr::Select(select) => select.from,
        _ => Vec::new(),
    }
}

/// `SELECT items FROM target, from WHERE selection`.
pub fn select_from(
    items: Vec<SelectItem>,
    target: &Target,
    from: Vec<TableWithJoins>,
    selection: Option<Expr>,
) -> Query {
    let quoted = |ident: &Ident| sqlparser::ast::Ident::with_quote('"', ident.as_str());
    let schema = target.name.schema.as_ref().map(|schema| sqlparser::ast::Ident::with_quote('"', schema.as_str()));
    let name = sqlparser::ast::Ident::with_quote('"', target.name.as_str());
    let mut select = select_all(ObjectName::from(schema.into_iter().chain([name]).collect::<Vec<_>>()));
    if let (Some(alias), Some(TableFactor::Table { alias: place, .. })) =
        (&target.alias, select.from.first_mut().map(|table| &mut table.relation))
    {
        *place = Some(TableAlias { explicit: true, name: quoted(alias), columns: Vec::new(), at: None });
    }
    select.from.extend(from);
    select.projection = items;
    select.selection = selection;
    Query { body: Box::new(SetExpr::Select(Box::new(select))), ..empty_query() }
}

/// A query that says nothing, to stand in for one that is taken out for a moment.
pub(crate) fn empty_query() -> Query {
    Query {
        with: None,
        body: Box::new(SetExpr::Values(Values { explicit_row: false, value_keyword: false, rows: Vec::new() })),
        order_by: None,
        limit_clause: None,
        fetch: None,
        locks: Vec::new(),
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators: Vec::new(),
    }
}

/// `SELECT * FROM name`.
pub(crate) fn select_all(name: ObjectName) -> Select {
    let relation = TableFactor::Table {
        name,
        alias: None,
        args: None,
        with_hints: Vec::new(),
        version: None,
        with_ordinality: false,
        partitions: Vec::new(),
        json_path: None,
        sample: None,
        index_hints: Vec::new(),
    };
    Select {
        select_token: AttachedToken::empty(),
        optimizer_hints: Vec::new(),
        distinct: None,
        select_modifiers: None,
        top: None,
        top_before_distinct: false,
        projection: vec![SelectItem::Wildcard(WildcardAdditionalOptions::default())],
        exclude: None,
        into: None,
        from: vec![TableWithJoins { relation, joins: Vec::new() }],
        lateral_views: Vec::new(),
        prewhere: None,
        selection: None,
        connect_by: Vec::new(),
        group_by: GroupByExpr::Expressions(Vec::new(), Vec::new()),
        cluster_by: Vec::new(),
        distribute_by: Vec::new(),
        sort_by: Vec::new(),
        having: None,
        named_window: Vec::new(),
        qualify: None,
        window_before_qualify: false,
        value_table_mode: None,
        flavor: SelectFlavor::Standard,
    }
}
