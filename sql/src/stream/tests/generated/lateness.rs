//! Queries for which some events are late, and which events those are: by the definition, one event after the other, in
//! code that the operators do not share. The bounded run is over the other events.

use super::ast::{Expr, Item, Query, Select, Sets, Source, Type};
use super::grammar::Grammar;
use super::{Case, Ending};
use crate::stream::tests::S;
use std::collections::HashMap;

/// When an event is too late; in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Late {
    /// For its only window, aligned to an offset.
    Window { size: i64, offset: i64, grace: i64 },
    /// For any match of a join: its right side is from `before` ahead of the left one to `after` behind it.
    Within { before: i64, after: i64, grace: i64 },
}

/// Time of a query: the least over what it reads of the greatest seen, `None` before all had events.
struct Clock {
    greatest: HashMap<(usize, u32), i64>,
    delays: Vec<i64>,
}

impl Clock {
    fn time(&self) -> Option<i64> {
        let times = self.greatest.iter().map(|((relation, _), greatest)| greatest - self.delays[*relation]);
        times.min().filter(|time| *time > i64::MIN / 2)
    }
}

impl Case {
    /// Which events come too late.
    pub(super) fn late(&self) -> Vec<bool> {
        let Some(late) = self.late else { return vec![false; self.steps.len()] };
        let streams = self.schema.iter().enumerate().filter(|(_, declared)| !declared.is_table);
        let read: Vec<usize> = streams.map(|(at, _)| at).filter(|at| self.reads(*at)).collect();
        let partitions = |at: usize| (0..self.schema[at].partitions).map(move |of| ((at, of), i64::MIN / 2));
        let mut clock = Clock {
            greatest: read.iter().copied().flat_map(partitions).collect(),
            delays: self.schema.iter().map(|declared| declared.delay.unwrap_or(0) * S).collect(),
        };
        let is_late = |step: &super::Step| {
            let event = &step.event;
            let Some(greatest) = clock.greatest.get_mut(&(event.relation, event.partition)) else { return false };
            *greatest = (*greatest).max(event.rowtime);
            let Some(time) = clock.time() else { return false };
            match late {
                Late::Window { size, offset, grace } => {
                    let (size, offset) = (size * S, offset * S);
                    let start = (event.rowtime - offset).div_euclid(size) * size + offset;
                    time >= start + size + grace * S
                }
                Late::Within { before, after, grace } => {
                    let reach = if event.relation == 0 { after } else { before };
                    time > event.rowtime + (reach + grace) * S
                }
            }
        };
        self.steps.iter().map(is_late).collect()
    }

    /// Whether the query reads a relation.
    fn reads(&self, relation: usize) -> bool {
        self.query.names().contains(&self.schema[relation].name)
    }

    /// Whether a case that was made smaller is still one of which is known what it gives: the same events are late, and those
    /// that are far away are left out of what waits for time.
    pub(super) fn is_sound(&self) -> bool {
        let sql = self.sql();
        let is_base = |name: &&String| self.schema.iter().any(|declared| declared.name == **name);
        let (reads, far) = (self.query.names().iter().filter(is_base).count(), sql.matches("< 5000").count());
        let is_far = |step: &&super::Step| step.event.rowtime == super::schema::FAR_TIME;
        let (there, all) = (self.steps.iter().filter(is_far).count(), super::schema::far(&self.schema).len());
        (!self.is_timed || (reads <= far && there == all)) && self.marks.iter().all(|mark| sql.contains(mark))
    }
}

/// A query whose late events are known.
pub(super) struct MadeLate {
    pub(super) query: Query,
    pub(super) late: Late,
    /// What makes events late, in the text.
    pub(super) marks: Vec<String>,
    pub(super) ending: Ending,
    pub(super) grace: Option<i64>,
}

impl Grammar<'_> {
    pub(super) fn late(&mut self) -> MadeLate {
        match self.one_in(2) {
            true => self.late_window(),
            false => self.late_within(),
        }
    }

    fn late_window(&mut self) -> MadeLate {
        let relation = self.base(true);
        let alias = relation.source.alias.clone();
        let (size, grace) = (1 + self.random.below(25) as i64, self.random.below(10) as i64);
        let offset = if self.one_in(3) { self.random.below(9) as i64 } else { 0 };
        let mut select = Select { from: vec![relation.source], ..Select::default() };
        (select.filter, _) = self.filter(&relation.columns, 0);
        let is_clause = offset == 0 && self.one_in(2);
        let (start, mark) = match (is_clause, self.random.below(2)) {
            (true, _) => {
                let window = format!("TUMBLING (SIZE {size} SECONDS, GRACE PERIOD {grace} SECONDS)");
                select.window = Some(window.clone());
                ("windowstart".to_owned(), window)
            }
            (false, 0) => {
                let lengths = format!(", rowtime, INTERVAL '{size} seconds', INTERVAL '{offset} seconds')");
                let source = select.from.remove(0);
                let item = Item::Call(format!("TUMBLE(§{lengths}"), Box::new(source.item));
                select.from.push(Source { item, ..source });
                (format!("{alias}.window_start"), lengths)
            }
            _ => {
                let origin = format!("1970-01-01 00:00:{offset:02}Z");
                let bin = format!("date_bin('{size} seconds', {alias}.rowtime, '{origin}')");
                (bin.clone(), bin)
            }
        };
        let group = vec![Expr::new(Type::Time, start.clone(), Vec::new())];
        let mut select = self.grouped(select, &relation.columns, group);
        select.sets = Sets::None;
        MadeLate {
            marks: vec![mark, format!("GROUP BY {start}")],
            query: Query::select(select),
            late: Late::Window { size, offset, grace },
            ending: if self.is_timed { Ending::Final } else { Ending::Changes },
            grace: (!is_clause).then_some(grace),
        }
    }

    fn late_within(&mut self) -> MadeLate {
        let (left, right) = (self.whole_of(&self.schema[0].clone()), self.whole_of(&self.schema[1].clone()));
        let join = match self.is_timed {
            true => self.pick(&["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]),
            false => "JOIN",
        };
        let [before, after, grace] = [15, 15, 9].map(|most| self.random.below(most) as i64);
        let within = format!("({before} SECONDS, {after} SECONDS) GRACE PERIOD {grace} SECONDS");
        let on = self.condition(&left.columns, &right.columns).unwrap_or_default();
        let filter = self.near(&left, &right);
        let columns = [left.columns, right.columns].concat();
        let marks = vec![within.clone()];
        let right = Source { join, within: Some(within), on, ..right.source };
        let select = Select { from: vec![left.source, right], filter, ..Select::default() };
        let select = match self.one_in(3) {
            true => self.grouped(select, &columns, Vec::new()),
            false => Select { items: self.items(&columns, None), ..select },
        };
        MadeLate {
            marks,
            query: Query::select(select),
            late: Late::Within { before, after, grace },
            ending: Ending::Changes,
            grace: None,
        }
    }
}
