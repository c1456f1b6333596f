//! Makes a failing case smaller while it fails in the same way: fewer events, fewer clauses, fewer columns.
//!
//! What is made smaller is the tree of the query, not its text. A step that is not a valid query any more does not fail in
//! the same way, and is not taken.

use super::Case;
use super::ast::{Body, Expr, Item, Query, Select, Sets, Source, Type};

/// The smallest case found that `fails`.
pub(super) fn shrink(case: Case, fails: impl Fn(&Case) -> bool) -> Case {
    let mut case = case;
    loop {
        let size = case.size();
        case = fewer_steps(case, &fails);
        case = smaller_query(case, &fails);
        case = simpler(case, &fails);
        if case.size() == size {
            return case;
        }
    }
}

impl Case {
    /// What becomes less.
    fn size(&self) -> (usize, usize, usize) {
        let columns: usize = self.schema.iter().map(|declared| declared.columns.len()).sum();
        let marks = self.steps.iter().filter(|step| step.ends_step).count()
            + self.steps.iter().filter(|step| step.restarts).count();
        let cells = self.steps.iter().flat_map(|step| &step.event.cells).flatten().count();
        (self.sql().len(), self.steps.len(), columns + marks + cells)
    }
}

/// Leaves out events: halves, quarters, and so on down to single ones.
fn fewer_steps(mut case: Case, fails: &impl Fn(&Case) -> bool) -> Case {
    let mut count = case.steps.len().div_ceil(2).max(1);
    loop {
        let mut start = 0;
        while start < case.steps.len() {
            let mut smaller = case.clone();
            smaller.steps.drain(start..(start + count).min(case.steps.len()));
            match fails(&smaller) {
                true => case = smaller,
                false => start += count,
            }
        }
        if count == 1 {
            return case;
        }
        count = count.div_ceil(2);
    }
}

fn smaller_query(mut case: Case, fails: &impl Fn(&Case) -> bool) -> Case {
    loop {
        let length = case.sql().len();
        let mut candidates = query(&case.query);
        candidates.sort_by_key(|query| query.to_string().len());
        let smaller = candidates.into_iter().map(|query| Case { query, ..case.clone() });
        match smaller.filter(|case| case.sql().len() < length).find(fails) {
            Some(smaller) => case = smaller,
            None => return case,
        }
    }
}

/// Ends fewer steps, restarts less, has fewer columns and more NULLs.
fn simpler(mut case: Case, fails: &impl Fn(&Case) -> bool) -> Case {
    let attempt = |case: &mut Case, change: &dyn Fn(&mut Case)| {
        let mut smaller = case.clone();
        change(&mut smaller);
        if smaller.size() < case.size() && fails(&smaller) {
            *case = smaller;
        }
    };
    for at in 0..case.steps.len() {
        attempt(&mut case, &|case| case.steps[at].restarts = false);
        attempt(&mut case, &|case| (case.steps[at].ends_step, case.steps[at].restarts) = (false, false));
    }
    for relation in 0..case.schema.len() {
        for column in (0..case.schema[relation].columns.len()).rev() {
            attempt(&mut case, &|case| {
                case.schema[relation].columns.remove(column);
                for step in case.steps.iter_mut().filter(|step| step.event.relation == relation) {
                    step.event.cells.remove(column);
                }
            });
        }
    }
    for at in 0..case.steps.len() {
        for cell in 0..case.steps[at].event.cells.len() {
            let declared = &case.schema[case.steps[at].event.relation];
            if !declared.columns[cell].is_key {
                attempt(&mut case, &|case| case.steps[at].event.cells[cell] = None);
            }
        }
    }
    case
}

/// Each way to make one part of a sequence smaller, and each without one of its parts.
fn each<T: Clone>(items: &[T], parts: impl Fn(&T) -> Vec<T>) -> Vec<Vec<T>> {
    let mut all = Vec::new();
    for at in 0..items.len() {
        let mut without = items.to_vec();
        without.remove(at);
        all.push(without);
        for part in parts(&items[at]) {
            let mut with = items.to_vec();
            with[at] = part;
            all.push(with);
        }
    }
    all
}

/// Each query that is one step smaller.
fn query(whole: &Query) -> Vec<Query> {
    let mut all: Vec<Query> = whole.ctes.iter().map(|(_, query)| query.clone()).collect();
    if whole.limit.is_some() || whole.offset.is_some() || !whole.order.is_empty() {
        all.push(Query { order: Vec::new(), limit: None, offset: None, ..whole.clone() });
        all.push(Query { offset: None, ..whole.clone() });
    }
    all.extend(each(&whole.order, expr).into_iter().map(|order| Query { order, ..whole.clone() }));
    let named = |(name, part): &(String, Query)| query(part).into_iter().map(|part| (name.clone(), part)).collect();
    all.extend(each(&whole.ctes, named).into_iter().map(|ctes| Query { ctes, ..whole.clone() }));
    // What a name stands for, in its place.
    let inlined = |(name, part): &(String, Query)| {
        let mut inlined = whole.clone();
        inlined.ctes.retain(|(other, _)| other != name);
        replace(&mut inlined, name, part);
        inlined
    };
    all.extend(whole.ctes.iter().map(inlined));
    match &whole.body {
        Body::Set(operator, left, right) => {
            for side in [left, right] {
                all.push(Query { ctes: whole.ctes.clone(), ..side.as_ref().clone() });
            }
            let set = |left: &Query, right: &Query| {
                let body = Body::Set(operator, Box::new(left.clone()), Box::new(right.clone()));
                Query { body, ..whole.clone() }
            };
            all.extend(query(left).iter().map(|left| set(left, right)));
            all.extend(query(right).iter().map(|right| set(left, right)));
            all.extend(both(left, right).iter().map(|(left, right)| set(left, right)));
        }
        Body::Select(of) => {
            let with = |of: Select| Query { body: Body::Select(Box::new(of)), ..whole.clone() };
            all.extend(select(of).into_iter().map(with));
            for source in &of.from {
                if let Item::Query(part) = &source.item {
                    all.push(Query { ctes: whole.ctes.clone(), ..part.as_ref().clone() });
                }
            }
        }
    }
    all
}

/// Both sides of a set operation without the same column.
fn both(left: &Query, right: &Query) -> Vec<(Query, Query)> {
    let (Body::Select(one), Body::Select(other)) = (&left.body, &right.body) else { return Vec::new() };
    let without = |query: &Query, select: &Select, at: usize| {
        let mut select = select.clone();
        select.items.remove(at);
        Query { body: Body::Select(Box::new(select)), ..query.clone() }
    };
    let count = one.items.len().min(other.items.len());
    (0..count).map(|at| (without(left, one, at), without(right, other, at))).collect()
}

fn replace(whole: &mut Query, name: &str, part: &Query) {
    fn of_item(item: &mut Item, name: &str, part: &Query) {
        match item {
            Item::Name(other) if other == name => *item = Item::Query(Box::new(part.clone())),
            Item::Query(query) => replace(query, name, part),
            Item::Call(_, item) => of_item(item, name, part),
            Item::Name(_) | Item::Series(_) => {}
        }
    }
    whole.ctes.iter_mut().for_each(|(_, query)| replace(query, name, part));
    match &mut whole.body {
        Body::Set(_, left, right) => [left, right].into_iter().for_each(|side| replace(side, name, part)),
        Body::Select(select) => select.from.iter_mut().for_each(|source| of_item(&mut source.item, name, part)),
    }
}

fn select(whole: &Select) -> Vec<Select> {
    let mut all = Vec::new();
    let exprs = |items: &[Expr]| each(items, expr);
    if whole.distinct {
        all.push(Select { distinct: false, ..whole.clone() });
    }
    if whole.window.is_some() {
        all.push(Select { window: None, ..whole.clone() });
    }
    match &whole.sets {
        Sets::None => {}
        Sets::All(_) => all.push(Select { sets: Sets::None, ..whole.clone() }),
        Sets::Each(sets) => {
            all.push(Select { sets: Sets::None, ..whole.clone() });
            let fewer = each(sets, |set| each(set, |_| Vec::new()));
            all.extend(fewer.into_iter().map(|sets| Select { sets: Sets::Each(sets), ..whole.clone() }));
        }
    }
    let named = |(of, name): &(Expr, String)| expr(of).into_iter().map(|of| (of, name.clone())).collect();
    let items = each(&whole.items, named).into_iter().filter(|items| !items.is_empty());
    all.extend(items.map(|items| Select { items, ..whole.clone() }));
    all.extend(exprs(&whole.filter).into_iter().map(|filter| Select { filter, ..whole.clone() }));
    all.extend(exprs(&whole.having).into_iter().map(|having| Select { having, ..whole.clone() }));
    all.extend(exprs(&whole.qualify).into_iter().map(|qualify| Select { qualify, ..whole.clone() }));
    all.extend(exprs(&whole.group).into_iter().map(|group| Select { group, ..whole.clone() }));
    all.extend(exprs(&whole.distinct_on).into_iter().map(|distinct_on| Select { distinct_on, ..whole.clone() }));
    all.extend(same(whole));
    for mut from in each(&whole.from, source).into_iter().filter(|from| !from.is_empty()) {
        // The first is joined to nothing.
        from[0] = Source { join: "", within: None, on: Vec::new(), ..from[0].clone() };
        all.push(Select { from, ..whole.clone() });
    }
    all
}

/// A grouping expression made smaller wherever it stands.
fn same(whole: &Select) -> Vec<Select> {
    let mut all = Vec::new();
    for (at, key) in whole.group.iter().enumerate() {
        for part in expr(key) {
            let mut smaller = whole.clone();
            smaller.group[at] = part.clone();
            for (item, _) in smaller.items.iter_mut().filter(|(item, _)| item.to_string() == key.to_string()) {
                *item = part.clone();
            }
            all.push(smaller);
        }
        let mut without = whole.clone();
        without.group.remove(at);
        without.items.retain(|(item, _)| item.to_string() != key.to_string());
        if !without.items.is_empty() {
            all.push(without);
        }
    }
    all
}

fn source(whole: &Source) -> Vec<Source> {
    let item = |item: Item| Source { item, ..whole.clone() };
    let mut all: Vec<Source> = match &whole.item {
        Item::Name(_) => Vec::new(),
        Item::Series(of) => expr(of).into_iter().map(|of| item(Item::Series(of))).collect(),
        Item::Query(of) => query(of).into_iter().map(|of| item(Item::Query(Box::new(of)))).collect(),
        Item::Call(_, of) => vec![item(of.as_ref().clone())],
    };
    if whole.within.is_some() {
        all.push(Source { within: None, ..whole.clone() });
    }
    if !matches!(whole.join, "" | "JOIN" | "CROSS JOIN") {
        all.push(Source { join: "JOIN", ..whole.clone() });
    }
    all.extend(each(&whole.on, expr).into_iter().map(|on| Source { on, ..whole.clone() }));
    all
}

/// Parts of an expression that have its type, smaller parts, and constants.
fn expr(whole: &Expr) -> Vec<Expr> {
    let mut all: Vec<Expr> = whole.args.iter().filter(|arg| arg.of == whole.of).cloned().collect();
    for (at, arg) in whole.args.iter().enumerate() {
        for part in expr(arg) {
            let mut smaller = whole.clone();
            smaller.args[at] = part;
            all.push(smaller);
        }
    }
    if let Some((before, _)) = whole.head.split_once(" FILTER") {
        let args = whole.args[..whole.args.len() - 1].to_vec();
        all.push(Expr { head: before.to_owned(), args, ..whole.clone() });
    }
    if let Some(of) = &whole.query {
        all.extend(query(of).into_iter().map(|of| Expr { query: Some(Box::new(of)), ..whole.clone() }));
    }
    all.extend(fewer_keys(whole));
    let constant = match whole.of {
        Type::Int => "1",
        Type::Bool => "true",
        _ => return all,
    };
    if whole.head != constant {
        all.push(Expr::new(whole.of, constant, Vec::new()));
    }
    all
}

/// A window function with fewer columns in its order.
fn fewer_keys(whole: &Expr) -> Vec<Expr> {
    let Some((before, after)) = whole.head.split_once("ORDER BY §, §") else { return Vec::new() };
    let first = before.matches('§').count();
    let count = 2 + after.chars().filter(|letter| *letter == '§').count();
    let without = |at: usize| {
        let mut args = whole.args.clone();
        args.remove(first + at);
        Expr { head: format!("{before}ORDER BY §{after}"), args, ..whole.clone() }
    };
    (0..count).map(without).collect()
}
