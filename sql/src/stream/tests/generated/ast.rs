//! A query as a tree that can be made smaller, and its text.
//!
//! Leaves out which trees are worth making (`grammar`). Every node can be dropped or replaced by a part of it; whether
//! what is left is still a valid query is for the planner to say.

use std::fmt::{self, Display, Formatter, Write};

/// The type of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Type {
    Int,
    Big,
    Num,
    Double,
    Text,
    Bool,
    Time,
    Date,
    Bytes,
    Uuid,
    Interval,
    Json,
    /// What nothing more is done with, such as an array.
    Other,
}

/// `§` in `head` stands for the next of `args`, `¶` for the query.
#[derive(Debug, Clone)]
pub(super) struct Expr {
    pub(super) of: Type,
    pub(super) head: String,
    pub(super) args: Vec<Expr>,
    pub(super) query: Option<Box<Query>>,
}

impl Expr {
    pub(super) fn new(of: Type, head: impl Into<String>, args: Vec<Expr>) -> Self {
        Self { of, head: head.into(), args, query: None }
    }

    pub(super) fn with_query(of: Type, head: impl Into<String>, args: Vec<Expr>, query: Query) -> Self {
        Self { of, head: head.into(), args, query: Some(Box::new(query)) }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Query {
    pub(super) ctes: Vec<(String, Query)>,
    pub(super) body: Body,
    /// Each with its direction.
    pub(super) order: Vec<Expr>,
    pub(super) limit: Option<u64>,
    pub(super) offset: Option<u64>,
}

#[derive(Debug, Clone)]
pub(super) enum Body {
    Select(Box<Select>),
    Set(&'static str, Box<Query>, Box<Query>),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Select {
    pub(super) distinct: bool,
    pub(super) distinct_on: Vec<Expr>,
    /// Each with its name.
    pub(super) items: Vec<(Expr, String)>,
    pub(super) from: Vec<Source>,
    /// `TUMBLING (…)` and the like.
    pub(super) window: Option<String>,
    /// Joined by AND.
    pub(super) filter: Vec<Expr>,
    pub(super) group: Vec<Expr>,
    /// Positions in `group`, or `ROLLUP`, `CUBE` over all of it.
    pub(super) sets: Sets,
    pub(super) having: Vec<Expr>,
    pub(super) qualify: Vec<Expr>,
}

#[derive(Debug, Clone, Default)]
pub(super) enum Sets {
    #[default]
    None,
    All(&'static str),
    Each(Vec<Vec<usize>>),
}

#[derive(Debug, Clone)]
pub(super) struct Source {
    /// `LEFT JOIN` and the like; nothing for the first.
    pub(super) join: &'static str,
    pub(super) item: Item,
    pub(super) alias: String,
    pub(super) within: Option<String>,
    pub(super) on: Vec<Expr>,
}

#[derive(Debug, Clone)]
pub(super) enum Item {
    Name(String),
    Query(Box<Query>),
    /// A table function; `§` stands for the relation.
    Call(String, Box<Item>),
    /// A set-returning function of columns before it.
    Series(Expr),
}

impl Query {
    pub(super) fn of(body: Body) -> Self {
        Self { ctes: Vec::new(), body, order: Vec::new(), limit: None, offset: None }
    }

    pub(super) fn select(select: Select) -> Self {
        Self::of(Body::Select(Box::new(select)))
    }
}

impl Query {
    /// The names in FROM, here and in what is inside.
    pub(super) fn names(&self) -> Vec<String> {
        let of = self.ctes.iter().flat_map(|(_, query)| query.names());
        let mut names: Vec<String> = of.chain(self.order.iter().flat_map(Expr::names)).collect();
        match &self.body {
            Body::Set(_, left, right) => names.extend([left, right].into_iter().flat_map(|side| side.names())),
            Body::Select(select) => {
                let items = select.items.iter().map(|(expr, _)| expr).chain(&select.distinct_on);
                let rest = select.filter.iter().chain(&select.group).chain(&select.having).chain(&select.qualify);
                names.extend(items.chain(rest).flat_map(Expr::names));
                names.extend(select.from.iter().flat_map(|source| source.item.names()));
            }
        }
        names
    }
}

impl Expr {
    fn names(&self) -> Vec<String> {
        let query = self.query.iter().flat_map(|query| query.names());
        self.args.iter().flat_map(Self::names).chain(query).collect()
    }
}

impl Item {
    fn names(&self) -> Vec<String> {
        match self {
            Self::Name(name) => vec![name.clone()],
            Self::Query(query) => query.names(),
            Self::Call(_, item) => item.names(),
            Self::Series(expr) => expr.names(),
        }
    }
}

fn list<T: Display>(f: &mut Formatter<'_>, before: &str, between: &str, items: &[T]) -> fmt::Result {
    for (at, item) in items.iter().enumerate() {
        write!(f, "{}{item}", if at == 0 { before } else { between })?;
    }
    Ok(())
}

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut args = self.args.iter();
        for letter in self.head.chars() {
            match letter {
                '§' => match args.next() {
                    Some(arg) => write!(f, "{arg}")?,
                    None => f.write_str("NULL")?,
                },
                '¶' => self.query.iter().try_for_each(|query| write!(f, "({query})"))?,
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

impl Display for Query {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (at, (name, query)) in self.ctes.iter().enumerate() {
            write!(f, "{}{name} AS ({query})", if at == 0 { "WITH " } else { ", " })?;
        }
        if !self.ctes.is_empty() {
            f.write_char(' ')?;
        }
        match &self.body {
            Body::Select(select) => write!(f, "{select}")?,
            Body::Set(operator, left, right) => write!(f, "({left}) {operator} ({right})")?,
        }
        list(f, " ORDER BY ", ", ", &self.order)?;
        self.limit.iter().try_for_each(|limit| write!(f, " LIMIT {limit}"))?;
        self.offset.iter().try_for_each(|offset| write!(f, " OFFSET {offset}"))
    }
}

impl Display for Select {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(if self.distinct { "SELECT DISTINCT " } else { "SELECT " })?;
        if !self.distinct_on.is_empty() {
            list(f, "DISTINCT ON (", ", ", &self.distinct_on)?;
            f.write_str(") ")?;
        }
        let items: Vec<String> = self.items.iter().map(|(expr, name)| format!("{expr} AS {name}")).collect();
        list(f, "", ", ", &items)?;
        f.write_str(" FROM ")?;
        self.from.iter().try_for_each(|source| write!(f, "{source}"))?;
        self.window.iter().try_for_each(|window| write!(f, " WINDOW {window}"))?;
        list(f, " WHERE ", " AND ", &self.filter)?;
        match &self.sets {
            Sets::None => list(f, " GROUP BY ", ", ", &self.group)?,
            Sets::All(_) if self.group.is_empty() => {}
            Sets::All(how) => {
                write!(f, " GROUP BY {how}")?;
                list(f, " (", ", ", &self.group)?;
                f.write_char(')')?;
            }
            Sets::Each(sets) => {
                let name = |at: &usize| self.group.get(*at).map_or(String::new(), Expr::to_string);
                let set = |set: &Vec<usize>| format!("({})", set.iter().map(name).collect::<Vec<_>>().join(", "));
                write!(f, " GROUP BY GROUPING SETS ({})", sets.iter().map(set).collect::<Vec<_>>().join(", "))?;
            }
        }
        list(f, " HAVING ", " AND ", &self.having)?;
        list(f, " QUALIFY ", " AND ", &self.qualify)
    }
}

impl Display for Source {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if !self.join.is_empty() {
            write!(f, " {} ", self.join)?;
        }
        write!(f, "{} AS {}", self.item, self.alias)?;
        self.within.iter().try_for_each(|within| write!(f, " WITHIN {within}"))?;
        list(f, " ON ", " AND ", &self.on)
    }
}

impl Display for Item {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Query(query) => write!(f, "({query})"),
            Self::Call(head, item) => f.write_str(&head.replace('§', &item.to_string())),
            Self::Series(expr) => write!(f, "{expr}"),
        }
    }
}
