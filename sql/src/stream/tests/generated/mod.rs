//! Continuous equals bounded, for queries nobody thought of: random schemas, random events, random queries, random steps.
//!
//! A seed makes a case, always the same. One whose two runs differ, that panics, or that gives an internal error, is made
//! smaller while it fails in the same way and printed whole: declarations, events, the query, and where the results differ.
//! A few hundred run by default. `MILLSTREAM_GENERATED_SEEDS=100000` runs so many, `MILLSTREAM_GENERATED_FIRST=4711` begins with that
//! one.

mod ast;
mod grammar;
mod lateness;
mod scalar;
mod schema;
mod shrink;

use super::log::{Cut, Log, LogEvent, bounded, continuous, continuous_in, looks_up};
use super::{Files, Random};
use crate::error::SqlError;
use ast::Query;
use grammar::Grammar;
use lateness::{Late, MadeLate};
use schema::Declared;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// An event, and what is done after it.
#[derive(Debug, Clone)]
struct Step {
    event: LogEvent,
    ends_step: bool,
    /// The pipeline is made anew from its saved state, after a step.
    restarts: bool,
}

/// How a query ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Changes,
    Final,
}

/// All there is to run.
#[derive(Debug, Clone)]
struct Case {
    schema: Vec<Declared>,
    steps: Vec<Step>,
    query: Query,
    ending: Ending,
    /// `WITH (grace = …)`, in seconds.
    grace: Option<i64>,
    late: Option<Late>,
    /// Events that are far away let time pass at the end.
    is_timed: bool,
    /// Tables do not change once there are events of streams.
    is_table_first: bool,
    /// What must stay in the text.
    marks: Vec<String>,
}

type Rows = Vec<Vec<String>>;

/// What came of a case.
#[derive(Debug)]
enum Outcome {
    Same,
    /// Not accepted, or the values do not allow it.
    Refused(String),
    Differs(String),
    Internal(String),
    Panics(String),
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        (0..3).for_each(|_| _ = random.below(2));
        let mut schema = schema::schema(&mut random);
        let kind = random.below(10);
        let (is_timed, is_late) = (matches!(kind, 0..=2), matches!(kind, 2..=3));
        let is_table_first = random.below(3) == 0;
        if is_late && random.below(3) == 0 {
            schema[0].delay = Some(random.below(8) as i64);
        }
        let count = 20 + random.below(70);
        let mut steps = schema::events(&mut random, &schema, count, is_table_first);
        if is_timed {
            steps.extend(schema::far(&schema));
        }
        let ctes = Vec::new();
        let random = &mut random;
        let mut grammar = Grammar { random, schema: &schema, is_timed, is_table_first, ctes, next: 0, reads: 4 };
        let made = is_late.then(|| grammar.late());
        let Some(MadeLate { query, late, marks, ending, grace }) = made else {
            let (query, ending) = (grammar.whole(), grammar.ending());
            return Self {
                query,
                ending,
                schema,
                steps,
                grace: None,
                late: None,
                is_timed,
                is_table_first,
                marks: Vec::new(),
            };
        };
        Self { schema, steps, query, ending, grace, late: Some(late), is_timed, is_table_first, marks }
    }

    /// The text that runs continuously.
    fn sql(&self) -> String {
        let ending = match self.ending {
            Ending::Changes => " EMIT CHANGES",
            Ending::Final => " EMIT FINAL",
        };
        let grace = self.grace.map_or(String::new(), |grace| format!(" WITH (grace = '{grace} seconds')"));
        format!("{}{ending}{grace}", self.query)
    }

    fn log(&self, is_wanted: impl Fn(usize) -> bool) -> Arc<Log> {
        let relations = self.schema.iter().enumerate().map(|(at, declared)| declared.relation(at as u64)).collect();
        let steps = self.steps.iter().enumerate().filter(|(at, _)| is_wanted(*at));
        let events: Vec<LogEvent> = steps.map(|(_, step)| step.event.clone()).collect();
        Arc::new(Log::new(relations, &events))
    }

    fn cuts(&self) -> Vec<Cut> {
        let mut cuts = vec![(0, false)];
        for step in &self.steps {
            let (count, _) = cuts.last().copied().unwrap_or_default();
            let at = cuts.len() - 1;
            cuts[at] = (count + 1, step.restarts);
            if step.ends_step || step.restarts {
                cuts.push((0, false));
            }
        }
        cuts
    }

    /// Both runs, compared; `spoil` is done to the rows of the continuous one.
    fn outcome(&self, spoil: fn(&mut Rows)) -> Outcome {
        let runs = catch_unwind(AssertUnwindSafe(|| {
            let log = self.log(|_| true);
            let found = continuous(&log.context(), &self.sql(), &log, self.cuts().into_iter());
            let files = Arc::new(Files::default());
            let parted = continuous_in(&log.context(), &self.sql(), &log, self.cuts().into_iter(), Some(&files));
            let late = self.late();
            let context = self.log(|at| !late[at]).context();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            (found, parted, runtime.block_on(bounded(&context, &self.query.to_string())))
        }));
        match runs {
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                Outcome::Panics(
                    text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default(),
                )
            }
            Ok((Ok((mut found, late)), parted, Ok(mut expected))) => {
                spoil(&mut found);
                found.sort();
                expected.sort();
                let in_parts = match parted {
                    Ok((rows, _)) => difference(&rows, &expected),
                    Err(error) => Some(format!("{error:?}")),
                };
                match difference(&found, &expected).or(in_parts.map(|text| format!("in parts: {text}"))) {
                    // Without rows on one side, a join of derived rows may turn out to be one of a stream and a table.
                    Some(_) if !self.is_table_first && looks_up(&self.log(|_| true).context(), &self.sql()) => {
                        Outcome::Refused("a table that changes is looked up".to_owned())
                    }
                    Some(text) => Outcome::Differs(text),
                    None if late > 0 && self.late.is_none() => Outcome::Differs(format!("{late} events were late")),
                    None => Outcome::Same,
                }
            }
            Ok((found, _, expected)) => failed(found.err(), expected.err()),
        }
    }
}

/// What errors say: a statement may be refused, and values may not fit, in both runs alike.
fn failed(continuously: Option<SqlError>, bounded: Option<SqlError>) -> Outcome {
    let code = |error: &Option<SqlError>| error.as_ref().map_or("", |error| error.sqlstate.code()).to_owned();
    let text = format!("continuously {continuously:?}\nbounded {bounded:?}");
    let codes = [code(&continuously), code(&bounded)];
    let is_refusal = |code: &String| code.starts_with("0A") || code.starts_with("42");
    if codes.iter().any(|code| code == "XX000") {
        return Outcome::Internal(text);
    }
    match codes.iter().any(is_refusal) || (codes[0] == codes[1]) {
        true => Outcome::Refused(text),
        false => Outcome::Differs(text),
    }
}

fn difference(found: &Rows, expected: &Rows) -> Option<String> {
    let mut counts: BTreeMap<&Vec<String>, i64> = BTreeMap::new();
    found.iter().for_each(|row| *counts.entry(row).or_default() += 1);
    expected.iter().for_each(|row| *counts.entry(row).or_default() -= 1);
    let line = |(row, count): (&&Vec<String>, &i64)| match count {
        0 => None,
        1.. => Some(format!("only continuously, {count} times: {}", row.join(" | "))),
        _ => Some(format!("only bounded, {} times: {}", -count, row.join(" | "))),
    };
    let lines: Vec<String> = counts.iter().filter_map(line).take(20).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

impl Grammar<'_> {
    /// EMIT FINAL where all is final at the end, if the planner takes it.
    fn ending(&mut self) -> Ending {
        match self.is_timed && self.one_in(2) {
            true => Ending::Final,
            false => Ending::Changes,
        }
    }
}

/// The smallest case that fails as `case` does, and what it gives.
fn smallest(case: Case, spoil: fn(&mut Rows)) -> (Case, Outcome) {
    let kind = std::mem::discriminant(&case.outcome(spoil));
    let case = shrink::shrink(case, |case| case.is_sound() && std::mem::discriminant(&case.outcome(spoil)) == kind);
    let outcome = case.outcome(spoil);
    (case, outcome)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

/// How many of the cases may be refused.
const REFUSED_MAX_PERCENT: u64 = 25;
/// How many failures are made smaller and shown.
const FAILURES_MAX: usize = 5;

#[test]
fn generated_queries_give_the_rows_of_the_bounded_run() {
    let (first, count) = (setting("MILLSTREAM_GENERATED_FIRST", 1), setting("MILLSTREAM_GENERATED_SEEDS", 400));
    let (mut refused, mut failures) = (BTreeMap::new(), Vec::new());
    for seed in first..first + count {
        let case = Case::new(seed);
        match case.outcome(|_| ()) {
            Outcome::Same => {}
            Outcome::Refused(why) => *refused.entry(why).or_insert(0) += 1,
            _ => {
                let (case, outcome) = smallest(case, |_| ());
                let text = match outcome {
                    Outcome::Differs(text) | Outcome::Internal(text) | Outcome::Panics(text) => text,
                    Outcome::Same | Outcome::Refused(_) => String::new(),
                };
                let failure = format!("seed {seed}:\n{}\n{text}\n", case.text());
                println!("{failure}");
                failures.push(failure);
            }
        }
        if failures.len() == FAILURES_MAX {
            break;
        }
    }
    let all: u64 = refused.values().sum();
    println!("{all} of {count} were refused");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(all * 100 <= count.max(100) * REFUSED_MAX_PERCENT, "{all} of {count} were refused: {refused:#?}");
}

#[test]
fn a_case_that_fails_becomes_as_small_as_what_is_wrong() {
    // A result without the rows that have a 3.
    let spoil = |rows: &mut Rows| rows.retain(|row| row.iter().all(|cell| cell != "3"));
    let failing = (1..).map(Case::new).filter(|case| matches!(case.outcome(spoil), Outcome::Differs(_)));
    for case in failing.take(8) {
        let (sql, steps) = (case.sql(), case.steps.len());
        let (small, outcome) = smallest(case, spoil);
        assert!(matches!(outcome, Outcome::Differs(_)), "{}", small.text());
        let kept = small.steps.iter().filter(|step| step.event.rowtime != schema::FAR_TIME).count();
        assert!(kept <= 4, "{steps} events of {sql} became\n{}", small.text());
        assert!(small.sql().len() < 250, "{sql} became\n{}", small.text());
    }
}

#[test]
fn a_seed_makes_the_same_case_again() {
    for seed in 1..50 {
        assert_eq!(Case::new(seed).text(), Case::new(seed).text());
    }
}
