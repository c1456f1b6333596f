//! Random queries of what may run continuously. All are such that SQL says what their rows are: an order that picks rows
//! is total, an aggregate that depends on an order has one.
//!
//! Leaves out expressions (`scalar`) and whether a query is accepted: the planner may refuse some.

use super::ast::{Body, Expr, Item, Query, Select, Sets, Source, Type};
use super::schema::{Declared, FAR};
use crate::stream::tests::Random;

/// A column in scope.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) text: String,
    pub(super) of: Type,
}

impl Column {
    pub(super) fn expr(&self) -> Expr {
        Expr::new(self.of, self.text.clone(), Vec::new())
    }
}

/// How the rows of a relation come and go, as far as joins differ by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// They stay.
    Append,
    /// Those of a table of the catalog.
    Table,
    /// They come and go, and are derived.
    Changes,
    /// Any of these.
    Unknown,
}

/// Something in FROM.
pub(super) struct Relation {
    pub(super) source: Source,
    pub(super) columns: Vec<Column>,
    pub(super) kind: Kind,
}

/// What a query gives.
pub(super) struct Made {
    pub(super) query: Query,
    pub(super) columns: Vec<(String, Type)>,
    pub(super) kind: Kind,
}

/// What WITH gives a name.
#[derive(Debug, Clone)]
pub(super) struct Common {
    name: String,
    query: Query,
    columns: Vec<(String, Type)>,
    kind: Kind,
}

/// How deep queries are nested.
const DEPTH: usize = 2;

/// Makes one query.
pub(super) struct Grammar<'a> {
    pub(super) random: &'a mut Random,
    pub(super) schema: &'a [Declared],
    /// Only what is final once time has passed: streams, without the events that are far away.
    pub(super) is_timed: bool,
    /// Tables have their last rows before the first event of a stream, so that lookups see what the bounded run sees.
    pub(super) is_table_first: bool,
    pub(super) ctes: Vec<Common>,
    pub(super) next: usize,
    /// How many relations may still be read.
    pub(super) reads: usize,
}

impl Grammar<'_> {
    pub(super) fn one_in(&mut self, count: u64) -> bool {
        self.random.below(count) == 0
    }

    pub(super) fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.random.below(items.len() as u64) as usize].clone()
    }

    pub(super) fn name(&mut self, letter: char) -> String {
        self.next += 1;
        format!("{letter}{}", self.next)
    }

    /// The whole query.
    pub(super) fn whole(&mut self) -> Query {
        let mut made = self.query(DEPTH);
        made.query.ctes =
            std::mem::take(&mut self.ctes).into_iter().map(|common| (common.name, common.query)).collect();
        made.query
    }

    fn query(&mut self, depth: usize) -> Made {
        match self.random.below(100) {
            0..=17 => self.simple(depth, None),
            18..=39 => self.aggregate(depth),
            40..=53 => self.windowed(depth),
            54..=62 => self.set_operation(depth),
            63..=71 => self.first_rows(depth),
            72..=79 => self.over(depth),
            80..=86 => self.series(depth),
            87..=91 => self.distinct(depth),
            _ => self.within(),
        }
    }

    fn declared(&mut self, is_stream: bool) -> Declared {
        let schema = self.schema;
        let fitting: Vec<&Declared> =
            schema.iter().filter(|declared| !declared.is_table || !(is_stream || self.is_timed)).collect();
        self.pick(&fitting).clone()
    }

    /// A relation of the catalog.
    pub(super) fn base(&mut self, is_stream: bool) -> Relation {
        let declared = self.declared(is_stream);
        self.of(&declared)
    }

    fn of(&mut self, declared: &Declared) -> Relation {
        let whole = self.whole_of(declared);
        if !self.is_timed {
            return whole;
        }
        let names = declared.columns.iter().map(|column| column.name.as_str()).chain(["rowtime"]);
        let items = names.map(|name| (Expr::new(Type::Other, name, Vec::new()), name.to_owned())).collect();
        let from = vec![Item::Name(declared.name.clone()).alone(&declared.name)];
        let filter = vec![Expr::new(Type::Bool, format!("id < {FAR}"), Vec::new())];
        let near = Query::select(Select { items, from, filter, ..Select::default() });
        Relation { source: Source { item: Item::Query(Box::new(near)), ..whole.source }, ..whole }
    }

    /// With the events that are far away.
    pub(super) fn whole_of(&mut self, declared: &Declared) -> Relation {
        self.reads = self.reads.saturating_sub(1);
        let alias = self.name('a');
        let column =
            |column: &super::schema::DeclaredColumn| Column { text: format!("{alias}.{}", column.name), of: column.of };
        Relation {
            columns: declared.columns.iter().map(column).collect(),
            source: Item::Name(declared.name.clone()).alone(&alias),
            kind: if declared.is_table { Kind::Table } else { Kind::Append },
        }
    }

    /// Leaves the events that are far away out of a join.
    pub(super) fn near(&self, left: &Relation, right: &Relation) -> Vec<Expr> {
        let near = |relation: &Relation| {
            let id = relation.columns[0].expr();
            Expr::new(Type::Bool, format!("coalesce(§, 0) < {FAR}"), vec![id])
        };
        if self.is_timed { vec![near(left), near(right)] } else { Vec::new() }
    }

    /// Anything that may stand in FROM.
    pub(super) fn relation(&mut self, depth: usize) -> Relation {
        if depth == 0 || self.reads <= 1 || self.random.below(10) < 6 {
            return self.base(false);
        }
        let alias = self.name('q');
        let (item, columns, kind) = match self.random.below(6) {
            0 if !self.ctes.is_empty() => {
                let Common { name, columns, kind, .. } = self.pick(&self.ctes.clone());
                (Item::Name(name), columns, kind)
            }
            1 => {
                let Made { query, columns, kind } = self.query(depth - 1);
                let name = self.name('w');
                self.ctes.push(Common { name: name.clone(), query, columns: columns.clone(), kind });
                (Item::Name(name), columns, kind)
            }
            _ => {
                let Made { query, columns, kind } = self.query(depth - 1);
                (Item::Query(Box::new(query)), columns, kind)
            }
        };
        let column = |(name, of): (String, Type)| Column { text: format!("{alias}.{name}"), of };
        Relation { columns: columns.into_iter().map(column).collect(), source: item.alone(&alias), kind }
    }

    /// One to three relations, joined.
    pub(super) fn from(&mut self, depth: usize) -> (Vec<Source>, Vec<Column>, Kind) {
        let first = self.relation(depth);
        let (mut from, mut columns, mut kind) = (vec![first.source], first.columns, first.kind);
        let joins = [0, 0, 0, 1, 1, 2][self.random.below(6) as usize];
        for _ in 0..joins {
            if self.reads == 0 {
                break;
            }
            let other = self.relation(depth);
            let Some((join, joined)) = self.join_of(kind, other.kind) else { continue };
            let Some(on) = self.condition(&columns, &other.columns) else { continue };
            kind = joined;
            columns.extend(other.columns);
            let is_cross = join == "CROSS JOIN";
            from.push(Source { join, on: if is_cross { Vec::new() } else { on }, ..other.source });
        }
        (from, columns, kind)
    }

    /// A join of rows of these kinds, and how its rows come and go.
    fn join_of(&mut self, left: Kind, right: Kind) -> Option<(&'static str, Kind)> {
        use Kind::{Append, Changes, Table, Unknown};
        let (is_lookup, is_unclear) = match (left, right) {
            (Append, Table) | (Table, Append) => (true, false),
            (Append | Table, Unknown) | (Unknown, Append | Table) | (Unknown, Unknown) => (false, true),
            _ => (false, false),
        };
        if (is_lookup || is_unclear) && !self.is_table_first {
            return None;
        }
        let outer = ["JOIN", "JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"];
        let join = match (left, right) {
            (Append, Table) => self.pick(&["JOIN", "LEFT JOIN"]),
            (Table, Append) => self.pick(&["JOIN", "RIGHT JOIN"]),
            // Without a time, a row of a stream that has no match may have one yet: nothing is final.
            // Nor has a window that an outer join leaves NULL an end.
            _ if self.is_timed => "JOIN",
            _ => self.pick(&outer),
        };
        let kind = match (left, right, join) {
            (Append, Append, "JOIN") | (Append, Table, _) | (Table, Append, _) => Append,
            (Changes, _, _) | (_, Changes, _) | (Table, Table, _) | (Append, Append, _) => Changes,
            _ => Unknown,
        };
        Some((join, kind))
    }

    /// A condition with an equality between columns of both sides, if there are such.
    pub(super) fn condition(&mut self, left: &[Column], right: &[Column]) -> Option<Vec<Expr>> {
        let pairs: Vec<(&Column, &Column)> = left
            .iter()
            .flat_map(|left| right.iter().map(move |right| (left, right)))
            .filter(|(left, right)| left.of == right.of && left.of != Type::Other)
            .collect();
        if pairs.is_empty() {
            return None;
        }
        let (left, right) = self.pick(&pairs);
        let head = match self.random.below(20) {
            0 => "§ IS NOT DISTINCT FROM §",
            1 => "§ <= §",
            _ => "§ = §",
        };
        let mut on = vec![Expr::new(Type::Bool, head, vec![left.expr(), right.expr()])];
        if self.one_in(4) {
            let (left, right) = self.pick(&pairs);
            let head = self.pick(&["§ <> §", "§ < §", "§ >= §", "§ = §"]);
            on.push(Expr::new(Type::Bool, head, vec![left.expr(), right.expr()]));
        }
        Some(on)
    }

    /// Conditions of WHERE, sub-queries among them.
    pub(super) fn filter(&mut self, columns: &[Column], depth: usize) -> (Vec<Expr>, bool) {
        let mut filter = Vec::new();
        while self.one_in(3) && filter.len() < 2 {
            filter.push(self.expr(Type::Bool, columns, 2));
        }
        let has_subquery = depth > 0 && self.reads > 0 && self.one_in(6);
        if has_subquery {
            let subquery = self.membership(columns, depth - 1);
            filter.push(match self.random.below(6) {
                0 => Expr::new(Type::Bool, "(§ OR §)", vec![self.expr(Type::Bool, columns, 1), subquery]),
                _ => subquery,
            });
        }
        (filter, has_subquery)
    }

    /// Columns of these types, or of any.
    pub(super) fn items(&mut self, columns: &[Column], wanted: Option<&[Type]>) -> Vec<(Expr, String)> {
        let types: Vec<Type> = match wanted {
            Some(wanted) => wanted.to_vec(),
            None if columns.is_empty() => vec![Type::Int],
            None => (0..1 + self.random.below(4)).map(|_| self.pick(columns).of).collect(),
        };
        let mut items = Vec::new();
        for of in types {
            let expr = if of == Type::Other {
                let others: Vec<Column> = columns.iter().filter(|column| column.of == of).cloned().collect();
                self.pick(&others).expr()
            } else {
                self.expr(of, columns, 2)
            };
            items.push((expr, self.name('c')));
        }
        items
    }

    pub(super) fn simple(&mut self, depth: usize, wanted: Option<&[Type]>) -> Made {
        let (from, columns, kind) = self.from(depth);
        let (filter, has_subquery) = self.filter(&columns, depth);
        let mut items = self.items(&columns, wanted);
        let mut kind = if has_subquery { Kind::Unknown } else { kind };
        if wanted.is_none() && depth > 0 && self.reads > 0 && self.one_in(9) {
            let scalar = self.scalar_query(&columns);
            items.push((scalar, self.name('c')));
            kind = Kind::Unknown;
        }
        made(Select { items, from, filter, ..Select::default() }, kind)
    }

    fn distinct(&mut self, depth: usize) -> Made {
        let mut made = self.simple(depth, None);
        if let Body::Select(select) = &mut made.query.body {
            select.distinct = true;
            made.kind = Kind::Changes;
        }
        made
    }

    fn set_operation(&mut self, depth: usize) -> Made {
        let count = 1 + self.random.below(3);
        let types: Vec<Type> = (0..count).map(|_| super::schema::type_of(self.random)).collect();
        let left = self.simple(depth.saturating_sub(1), Some(&types));
        let right = self.simple(depth.saturating_sub(1), Some(&types));
        let operator = self.pick(&["UNION ALL", "UNION ALL", "UNION", "EXCEPT", "INTERSECT"]);
        let kind = match (operator, left.kind, right.kind) {
            ("UNION ALL", Kind::Append, Kind::Append) => Kind::Append,
            ("UNION ALL", ..) => Kind::Unknown,
            _ => Kind::Changes,
        };
        let query = Query::of(Body::Set(operator, Box::new(left.query), Box::new(right.query)));
        Made { query, columns: left.columns, kind }
    }

    /// Grouping expressions, aggregates over them, and HAVING.
    pub(super) fn grouped(&mut self, mut select: Select, columns: &[Column], mut group: Vec<Expr>) -> Select {
        for _ in 0..if columns.is_empty() { 0 } else { self.random.below(3) } {
            let of = self.pick(columns).of;
            if of != Type::Other {
                group.push(self.expr(of, columns, 1));
            }
        }
        select.sets = match (group.len(), self.random.below(12)) {
            (1.., 0) => Sets::All(self.pick(&["ROLLUP", "CUBE"])),
            (count @ 1.., 1) => {
                let sets = (0..1 + self.random.below(3)).map(|_| (0..count).filter(|_| self.one_in(2)).collect());
                Sets::Each(sets.collect())
            }
            _ => Sets::None,
        };
        for expr in &group {
            if !self.one_in(6) {
                select.items.push((expr.clone(), self.name('c')));
            }
        }
        for _ in 0..self.random.below(3) + u64::from(select.items.is_empty()) {
            let call = self.call(columns);
            select.items.push((self.around(call), self.name('c')));
        }
        if self.one_in(4) {
            let call = self.call(columns);
            select.having.push(self.comparison(call));
        }
        select.group = group;
        select
    }

    fn aggregate(&mut self, depth: usize) -> Made {
        let (from, columns, _) = self.from(depth);
        let (filter, _) = self.filter(&columns, depth);
        let columns: Vec<Column> = self.with_time(columns, &from);
        let select = self.grouped(Select { from, filter, ..Select::default() }, &columns, Vec::new());
        made(select, Kind::Changes)
    }

    /// Sometimes with the pseudo-column of the first relation, if that is one of the catalog.
    fn with_time(&mut self, mut columns: Vec<Column>, from: &[Source]) -> Vec<Column> {
        if let Source { item: Item::Name(name), alias, .. } = &from[0]
            && name.len() == 1
            && self.one_in(3)
        {
            columns.push(Column { text: format!("{alias}.rowtime"), of: Type::Time });
        }
        columns
    }

    /// The clause stands in the outermost query only.
    fn windowed(&mut self, depth: usize) -> Made {
        if depth < DEPTH || self.one_in(3) {
            return self.window_function();
        }
        let stream = self.base(true);
        let grace = if self.is_timed { ", GRACE PERIOD 1 MINUTE" } else { "" };
        let (size, slide) = (1 + self.random.below(40), 1 + self.random.below(20));
        let (window, is_session) = match self.random.below(3) {
            0 => (format!("TUMBLING (SIZE {size} SECONDS{grace})"), false),
            1 => (format!("HOPPING (SIZE {size} SECONDS, ADVANCE BY {slide} SECONDS{grace})"), false),
            _ => (format!("SESSION ({} SECONDS{grace})", 1 + size / 8), true),
        };
        let (filter, _) = self.filter(&stream.columns, 0);
        let select = Select { from: vec![stream.source], filter, window: Some(window), ..Select::default() };
        let keys = session_keys(stream.columns, is_session);
        let mut select = self.grouped(select, &keys, Vec::new());
        select.sets = Sets::None;
        if !is_session || self.one_in(2) {
            let edges = [("windowstart", 'c'), ("windowend", 'c')];
            for (edge, letter) in edges {
                if self.one_in(2) {
                    select.items.push((Expr::new(Type::Time, edge, Vec::new()), self.name(letter)));
                }
            }
        }
        made(select, Kind::Changes)
    }

    fn window_function(&mut self) -> Made {
        let Relation { source, columns, .. } = self.base(true);
        let alias = source.alias.clone();
        let (size, slide) = (1 + self.random.below(40), 1 + self.random.below(20));
        let (call, is_session) = match self.random.below(4) {
            0 => (format!("TUMBLE(§, rowtime, INTERVAL '{size} seconds')"), false),
            1 => (format!("TUMBLE(§, rowtime, INTERVAL '{size} seconds', INTERVAL '{slide} seconds')"), false),
            2 => (format!("HOP(§, rowtime, INTERVAL '{slide} seconds', INTERVAL '{size} seconds')"), false),
            _ => (format!("SESSION(§, rowtime, INTERVAL '{} seconds')", 1 + size / 8), true),
        };
        let source = Source { item: Item::Call(call, Box::new(source.item)), ..source };
        let edge = |name: &str| Expr::new(Type::Time, format!("{alias}.{name}"), Vec::new());
        let edges = [edge("window_start"), edge("window_end")];
        let (filter, _) = self.filter(&columns, 0);
        let mut select = Select { from: vec![source], filter, ..Select::default() };
        if !is_session && !self.is_timed && self.one_in(3) {
            select.items = self.items(&columns, None);
            for edge in edges {
                select.items.push((edge, self.name('c')));
            }
            return made(select, Kind::Append);
        }
        let mut group = edges.to_vec();
        if !is_session && self.one_in(3) {
            group.pop();
        }
        let mut select = self.grouped(select, &session_keys(columns, is_session), group);
        if is_session || self.is_timed {
            select.sets = Sets::None;
        }
        made(select, Kind::Changes)
    }

    /// Streams joined within a time.
    fn within(&mut self) -> Made {
        let (left, right) = (self.declared(true), self.declared(true));
        let (left, right) = (self.whole_of(&left), self.whole_of(&right));
        let join = match self.is_timed {
            true => self.pick(&["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]),
            false => "JOIN",
        };
        let (before, after) = (self.random.below(20), self.random.below(20));
        let within = match self.random.below(2) {
            0 => format!("{before} SECONDS GRACE PERIOD 2 MINUTES"),
            _ => format!("({before} SECONDS, {after} SECONDS) GRACE PERIOD 2 MINUTES"),
        };
        let on = self.condition(&left.columns, &right.columns).unwrap_or_default();
        let near = self.near(&left, &right);
        let columns = [left.columns, right.columns].concat();
        let right = Source { join, within: Some(within), on, ..right.source };
        let from = vec![left.source, right];
        let (mut filter, _) = self.filter(&columns, 0);
        filter.extend(near);
        let select = Select { from, filter, ..Select::default() };
        if self.one_in(3) {
            let select = self.grouped(select, &columns, Vec::new());
            return made(select, Kind::Changes);
        }
        made(Select { items: self.items(&columns, None), ..select }, Kind::Append)
    }

    /// `ORDER BY … LIMIT`, DISTINCT ON, the first rows by `row_number`, `rank` and `dense_rank`.
    fn first_rows(&mut self, depth: usize) -> Made {
        let (from, columns, _) = self.from(depth);
        let columns = orderable(columns);
        if columns.is_empty() {
            return self.simple(0, None);
        }
        let (filter, _) = self.filter(&columns, depth);
        let items = self.items(&columns, None);
        let mut select = Select { items, from, filter, ..Select::default() };
        let count = 1 + self.random.below(4);
        match self.random.below(4) {
            0 => {
                // Columns only: of keys that are the same once simplified, the bounded run takes one too many.
                let on = self.pick(&columns).expr();
                let mut order = self.order(&columns);
                order.retain(|key| key.args.iter().all(|key| key.args.is_empty()));
                select.distinct_on = vec![on.clone()];
                let mut made = made(select, Kind::Changes);
                made.query.order = [vec![on], order].concat();
                made
            }
            1 => {
                let order = self.order(&columns);
                let mut made = made(select, Kind::Changes);
                made.query.order = order;
                made.query.limit = Some(count + self.random.below(8));
                made.query.offset = self.one_in(3).then(|| self.random.below(4));
                made
            }
            _ => {
                let call = self.pick(&["row_number()", "rank()", "dense_rank()"]);
                let number = self.ranked(call, Type::Big, &columns);
                let head = self.pick(&["§ <= ", "§ < ", "§ = "]);
                let head = format!("{head}{count}");
                if self.one_in(2) {
                    select.qualify = vec![Expr::new(Type::Bool, head, vec![number])];
                    return made(select, Kind::Changes);
                }
                let (alias, name) = (self.name('q'), self.name('n'));
                let outside = select
                    .items
                    .iter()
                    .map(|(expr, name)| (Expr::new(expr.of, format!("{alias}.{name}"), Vec::new()), name.clone()));
                let items: Vec<(Expr, String)> = outside.collect();
                let number_outside = Expr::new(Type::Big, format!("{alias}.{name}"), Vec::new());
                select.items.push((number, name));
                let from = vec![Item::Query(Box::new(Query::select(select))).alone(&alias)];
                let filter = vec![Expr::new(Type::Bool, head, vec![number_outside])];
                made(Select { items, from, filter, ..Select::default() }, Kind::Changes)
            }
        }
    }

    fn over(&mut self, depth: usize) -> Made {
        let (from, columns, _) = self.from(depth);
        let columns = orderable(columns);
        if columns.is_empty() {
            return self.simple(0, None);
        }
        let (filter, _) = self.filter(&columns, depth);
        let mut items = self.items(&columns, None);
        for _ in 0..1 + self.random.below(2) {
            items.push((self.over_call(&columns), self.name('c')));
        }
        made(Select { items, from, filter, ..Select::default() }, Kind::Changes)
    }

    /// Functions that give several rows.
    fn series(&mut self, depth: usize) -> Made {
        let (mut from, mut columns, kind) = self.from(depth);
        let of = self.pick(&[Type::Int, Type::Text, Type::Big]);
        let array = |grammar: &mut Self, columns: &[Column]| {
            let args: Vec<Expr> = (0..1 + grammar.random.below(3)).map(|_| grammar.expr(of, columns, 1)).collect();
            let marks = vec!["§"; args.len()].join(", ");
            (args, marks)
        };
        if self.one_in(3) {
            let alias = self.name('g');
            let upper = self.expr(Type::Int, &columns, 1);
            let series = Expr::new(Type::Int, "generate_series(1, §)", vec![upper]);
            from.push(Source { join: "CROSS JOIN", ..Item::Series(series).alone(&format!("{alias}({alias}n)")) });
            columns.push(Column { text: format!("{alias}.{alias}n"), of: Type::Int });
            let (filter, _) = self.filter(&columns, 0);
            let items = self.items(&columns, None);
            return made(Select { items, from, filter, ..Select::default() }, kind);
        }
        let (filter, _) = self.filter(&columns, 0);
        let mut items = self.items(&columns, None);
        let (args, marks) = array(self, &columns);
        items.push((Expr::new(of, format!("unnest(ARRAY[{marks}])"), args), self.name('c')));
        if self.one_in(3) {
            let (args, marks) = array(self, &columns);
            items.push((Expr::new(of, format!("unnest(ARRAY[{marks}])"), args), self.name('c')));
        }
        made(Select { items, from, filter, ..Select::default() }, kind)
    }
}

/// A session run once tells keys apart by how they are written: `1` from `1.0`, and 0 from -0.
fn session_keys(columns: Vec<Column>, is_session: bool) -> Vec<Column> {
    let is_loose = |column: &Column| matches!(column.of, Type::Json | Type::Double);
    columns.into_iter().filter(|column| !is_session || !is_loose(column)).collect()
}

/// Columns that have an order.
fn orderable(columns: Vec<Column>) -> Vec<Column> {
    columns.into_iter().filter(|column| column.of != Type::Other).collect()
}

fn made(select: Select, kind: Kind) -> Made {
    let columns = select.items.iter().map(|(expr, name)| (name.clone(), expr.of)).collect();
    Made { query: Query::select(select), columns, kind }
}

impl Item {
    /// The first in FROM.
    pub(super) fn alone(self, alias: &str) -> Source {
        Source { join: "", item: self, alias: alias.to_owned(), within: None, on: Vec::new() }
    }
}
