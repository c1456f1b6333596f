//! Windows in FROM as ordinary columns: `TUMBLE(…)`, `HOP(…)`, `SESSION(…)`, and the clause `WINDOW …`.
//!
//! A source with windows is a sub-query over it that computes their edges; a row in several windows comes once for each.
//! The edges of sessions are known only where rows are grouped (`session`). Leaves out when windows close. Pure.

use super::WindowSpec;
use super::from::{is_relation, resolve_factor};
use super::refuse;
use super::resolve::Resolver;
use super::rewrite::{call, resolve_expr};
use super::scope::{Scope, ScopeColumn, ScopeRelation, quoted, reference};
use super::syntax;
use crate::dialect::ast::{Position, WindowClause, WindowKind};
use crate::dialect::duration::parse_interval;
use crate::error::SqlError;
use crate::function::window::{EDGES, LATER, SESSION, STARTS};
use millstream_catalog::RelationKind;
use millstream_catalog::model::{Span, SqlState};
use millstream_catalog::schema::ROWTIME;
use sqlparser::ast::{
    Expr, Ident, ObjectName, ObjectNamePart, Query, SelectItem, SetExpr, Spanned, TableAlias, TableFactor,
    TableWithJoins, Value,
};

/// The first moment in the window, where a clause says so.
pub(super) const WINDOWSTART: &str = "windowstart";
/// The first moment after the window, where a clause says so; of a session the last event's.
pub(super) const WINDOWEND: &str = "windowend";
/// Windows one row may be in.
const WINDOWS_MAX: i64 = 10_000;

/// The window a clause describes.
///
/// # Errors
/// 22023 for a length that is not positive, 54000 for too many windows.
pub(super) fn window_spec(clause: &WindowClause) -> Result<WindowSpec, SqlError> {
    shape_of(clause.kind).check().map_err(|error| error.at(clause.position))?;
    Ok(WindowSpec { kind: clause.kind, grace: clause.grace, position: clause.position })
}

/// True for the two names of a clause.
pub(super) fn is_window_column(name: &str) -> bool {
    name == WINDOWSTART || name == WINDOWEND
}

/// How windows lie; lengths in microseconds.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Tumbling {
        size: i64,
        offset: i64,
    },
    Hopping {
        size: i64,
        slide: i64,
        offset: i64,
    },
    /// A session ends `tail` after its last event.
    Session {
        gap: i64,
        tail: i64,
    },
}

fn shape_of(kind: WindowKind) -> Shape {
    match kind {
        WindowKind::Tumbling { size } => Shape::Tumbling { size: size.micros(), offset: 0 },
        WindowKind::Hopping { size, advance } => {
            Shape::Hopping { size: size.micros(), slide: advance.micros(), offset: 0 }
        }
        WindowKind::Session { gap } => Shape::Session { gap: gap.micros(), tail: 0 },
    }
}

impl Shape {
    fn check(self) -> Result<(), SqlError> {
        let positive = |length: i64, what: &str| match length > 0 {
            true => Ok(()),
            false => {
                let fact = format!("the {what} of a window must be positive");
                Err(SqlError::new(SqlState::InvalidParameterValue, fact))
            }
        };
        match self {
            Self::Tumbling { size, .. } => positive(size, "size"),
            Self::Session { gap, .. } => positive(gap, "gap"),
            Self::Hopping { size, slide, .. } => {
                positive(size, "size")?;
                positive(slide, "slide")?;
                let windows = (size - 1) / slide + 1;
                if windows <= WINDOWS_MAX {
                    return Ok(());
                }
                let fact = format!("each row would be in {windows} windows; at most {WINDOWS_MAX} are possible");
                Err(SqlError::new(SqlState::ProgramLimitExceeded, fact).hint("slide by more, or make windows smaller"))
            }
        }
    }
}

/// The columns a window adds.
struct Edges {
    names: [&'static str; 2],
    is_hidden: bool,
}

/// Which table function, and where it stands.
pub(super) struct WindowCall {
    /// `tumble`, `hop` or `session`.
    pub(super) function: String,
    pub(super) position: Position,
    pub(super) args: Vec<Expr>,
    pub(super) alias: Option<TableAlias>,
}

/// True for the names of table functions that give windows.
pub(super) fn is_window_function(name: &str) -> bool {
    matches!(name, "tumble" | "hop" | "session")
}

/// `TUMBLE(rel, ts, size [, offset])`, `HOP(rel, ts, slide, size [, offset])`, `SESSION(rel, ts, gap)`.
pub(super) fn table_function(
    resolver: &mut Resolver<'_>,
    call: WindowCall,
    scope: &Scope<'_>,
) -> Result<(ScopeRelation, TableFactor), SqlError> {
    let WindowCall { function, position, mut args, alias } = call;
    let (usage, lengths) = match function.as_str() {
        "tumble" => ("TUMBLE(relation, ts, INTERVAL '1 minute' [, offset])", 1..=2),
        "hop" => ("HOP(relation, ts, slide, size [, offset])", 2..=3),
        _ => ("SESSION(relation, ts, gap)", 1..=1),
    };
    if args.len() < 2 || !lengths.contains(&(args.len() - 2)) {
        let fact = format!("{function} in FROM has other arguments");
        return Err(SqlError::new(SqlState::UndefinedFunction, fact).hint(format!("write {usage}")).at(position));
    }
    let lengths = args.split_off(2).iter().map(|arg| length(arg, position)).collect::<Result<Vec<_>, _>>()?;
    let shape = match (function.as_str(), lengths.as_slice()) {
        ("tumble", [size, offset @ ..]) => {
            Shape::Tumbling { size: *size, offset: offset.first().copied().unwrap_or(0) }
        }
        ("hop", [slide, size, offset @ ..]) => {
            Shape::Hopping { size: *size, slide: *slide, offset: offset.first().copied().unwrap_or(0) }
        }
        (_, [gap, ..]) => Shape::Session { gap: *gap, tail: *gap },
        _ => return Err(SqlError::internal("a window without lengths")),
    };
    shape.check().map_err(|error| error.at(position))?;
    let (Some(mut time), Some(relation)) = (args.pop(), args.pop()) else {
        return Err(SqlError::internal("a window without a relation"));
    };
    let mut factor = source(relation, usage, position)?;
    let mut inside = Scope::inside(scope.outer);
    resolve_factor(resolver, &mut factor, &mut inside)?;
    resolve_expr(resolver, &inside, &mut time)?;
    let mut relation = inside.relations.pop().ok_or_else(|| SqlError::internal("a source without names"))?;
    let edges = Edges { names: ["window_start", "window_end"], is_hidden: false };
    let (name, renames) = match alias {
        Some(alias) => (alias.name.value, alias.columns),
        None if relation.alias.contains('#') => (function, Vec::new()),
        None => (relation.alias.clone(), Vec::new()),
    };
    let given = TableAlias { explicit: true, name: quoted(&name), columns: Vec::new(), at: None };
    let factor = with_windows(resolver, factor, &mut relation, (time, position), shape, edges);
    let TableFactor::Derived { lateral, subquery, sample, .. } = factor else {
        return Err(SqlError::internal("windows are no sub-query"));
    };
    relation.plan_alias.clone_from(&name);
    relation.alias.clone_from(&name);
    relation.schema = None;
    super::from::rename_visible(&name, &mut relation.columns, renames)?;
    Ok((relation, TableFactor::Derived { lateral, subquery, alias: Some(given), sample }))
}

/// The first argument as something in FROM.
fn source(relation: Expr, usage: &str, position: Position) -> Result<TableFactor, SqlError> {
    let table = |idents: Vec<Ident>| {
        let name = ObjectName(idents.into_iter().map(ObjectNamePart::Identifier).collect());
        refuse::select_all(name).from.pop().map(|tree| tree.relation)
    };
    let factor = match relation {
        Expr::Identifier(ident) => table(vec![ident]),
        Expr::CompoundIdentifier(idents) => table(idents),
        Expr::Subquery(subquery) => Some(TableFactor::Derived { lateral: false, subquery, alias: None, sample: None }),
        _ => None,
    };
    factor.ok_or_else(|| {
        let fact = "the first argument of a window must be a relation or a sub-query";
        SqlError::new(SqlState::SyntaxError, fact).hint(format!("write {usage}")).at(position)
    })
}

/// A constant interval, in microseconds.
fn length(expr: &Expr, position: Position) -> Result<i64, SqlError> {
    let text = |value: &Value| match value {
        Value::SingleQuotedString(text) => Some(text.clone()),
        _ => None,
    };
    let found = match expr {
        Expr::Interval(interval) => Some(syntax::interval_text(interval)?),
        Expr::Value(value) => text(&value.value),
        Expr::Cast { expr, .. } => match expr.as_ref() {
            Expr::Value(value) => text(&value.value),
            _ => None,
        },
        Expr::TypedString(typed) => text(&typed.value.value),
        _ => None,
    };
    let place = Position::of(expr.span());
    let place = if place.get() == 0 { position } else { place };
    let found = found.ok_or_else(|| {
        SqlError::unsupported("a length of windows that is no constant", "write INTERVAL '1 minute'").at(place)
    })?;
    parse_interval(&found).map(Span::micros).map_err(|error| error.at(place))
}

/// Gives the stream of FROM, or what stands there alone, the windows of the statement's clause.
pub(super) fn apply_clause(
    resolver: &mut Resolver<'_>,
    from: &mut [TableWithJoins],
    scope: &mut Scope<'_>,
    window: WindowSpec,
) -> Result<(), SqlError> {
    let refused = |what: &str| {
        let hint = "put one stream or table into FROM, or use TUMBLE, HOP or SESSION there";
        Err(SqlError::unsupported(format!("WINDOW {what}"), hint).at(window.position))
    };
    let is_stream = |factor: &TableFactor| match factor {
        TableFactor::Table { name, .. } if is_relation(name) => {
            let bare = name.0.last().and_then(ObjectNamePart::as_ident);
            let relation = bare.and_then(|bare| resolver.context.catalog.relation(&bare.value));
            relation.is_some_and(|relation| relation.kind == RelationKind::Stream)
        }
        _ => false,
    };
    let all: usize = from.iter().map(|tree| tree.joins.len() + 1).sum();
    let mut factors = from.iter_mut().flat_map(|tree| {
        std::iter::once(&mut tree.relation).chain(tree.joins.iter_mut().map(|join| &mut join.relation))
    });
    let mut wanted = match all {
        0 => return refused("without FROM"),
        1 => factors.collect::<Vec<_>>(),
        _ => factors.by_ref().filter(|factor| is_stream(factor)).collect(),
    };
    let (Some(factor), true) = (wanted.pop(), wanted.is_empty()) else { return refused("over this join") };
    let alias = match &*factor {
        TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => {
            alias.name.value.clone()
        }
        _ => return refused("over this source"),
    };
    let relation = scope.relations.iter_mut().find(|relation| relation.plan_alias == alias && relation.alias == alias);
    let Some(relation) = relation else { return refused("over this source") };
    let Ok(time) = relation.column(ROWTIME) else { return refused("over a source without rowtime") };
    let edges = Edges { names: [WINDOWSTART, WINDOWEND], is_hidden: true };
    let source = std::mem::replace(
        factor,
        TableFactor::Derived { lateral: false, subquery: Box::new(refuse::empty_query()), alias: None, sample: None },
    );
    *factor = with_windows(resolver, source, relation, (time, window.position), shape_of(window.kind), edges);
    Ok(())
}

/// `factor`, whose names are those of `relation`, as a sub-query that has the edges of its windows too; a column that
/// has one of their names gives way.
fn with_windows(
    resolver: &mut Resolver<'_>,
    factor: TableFactor,
    relation: &mut ScopeRelation,
    (time, position): (Expr, Position),
    shape: Shape,
    edges: Edges,
) -> TableFactor {
    relation.columns.retain(|column| !edges.names.contains(&column.name.as_str()));
    let alias = relation.plan_alias.clone();
    let items = |columns: &[ScopeColumn]| -> Vec<SelectItem> {
        columns.iter().map(|column| item(reference(&alias, &column.internal), &column.internal)).collect()
    };
    let mut select = items(&relation.columns);
    let internal = edges.names.map(|name| match relation.columns.iter().any(|column| column.internal == name) {
        true => resolver.fresh_name(name),
        false => name.to_owned(),
    });
    let arguments = |lengths: &[i64], time: &Expr| {
        let lengths = lengths.iter().map(|length| refuse::literal(Value::Number(length.to_string(), false)));
        lengths.chain([time.clone()]).collect::<Vec<Expr>>()
    };
    let names = edges.names.iter().zip(&internal);
    let added = names.map(|(name, internal)| ScopeColumn {
        name: (*name).to_owned(),
        internal: internal.clone(),
        is_hidden: edges.is_hidden,
    });
    let added: Vec<ScopeColumn> = added.collect();
    let factor = match shape {
        Shape::Tumbling { size, offset } => {
            let both = EDGES.iter().zip(&internal);
            select.extend(both.map(|(edge, name)| item(call(edge, arguments(&[size, offset], &time)), name)));
            derived(select, factor, None, &alias)
        }
        Shape::Hopping { size, slide, offset } => {
            let starts = call("unnest", vec![call(STARTS, arguments(&[size, slide, offset], &time))]);
            select.push(item(starts, &internal[0]));
            let expanded = derived(select, factor, None, &alias);
            let mut select = items(&relation.columns);
            let start = reference(&alias, &internal[0]);
            select.push(item(start.clone(), &internal[0]));
            select.push(item(call(LATER, arguments(&[size], &start)), &internal[1]));
            derived(select, expanded, None, &alias)
        }
        Shape::Session { gap, tail } => {
            let number = resolver.sessions.len() as i64;
            resolver.sessions.push(position);
            let both = SESSION.iter().zip(&internal);
            select.extend(both.map(|(edge, name)| item(call(edge, arguments(&[number, gap, tail], &time)), name)));
            derived(select, factor, Some(Expr::IsNotNull(Box::new(time))), &alias)
        }
    };
    relation.columns.extend(added);
    factor
}

fn item(expr: Expr, name: &str) -> SelectItem {
    SelectItem::ExprWithAlias { expr, alias: quoted(name) }
}

/// `(SELECT items FROM factor WHERE selection) AS alias`.
fn derived(items: Vec<SelectItem>, factor: TableFactor, selection: Option<Expr>, alias: &str) -> TableFactor {
    let mut select = refuse::select_all(ObjectName(Vec::new()));
    select.projection = items;
    select.from = vec![TableWithJoins { relation: factor, joins: Vec::new() }];
    select.selection = selection;
    let query = Query { body: Box::new(SetExpr::Select(Box::new(select))), ..refuse::empty_query() };
    let alias = TableAlias { explicit: true, name: quoted(alias), columns: Vec::new(), at: None };
    TableFactor::Derived { lateral: false, subquery: Box::new(query), alias: Some(alias), sample: None }
}
