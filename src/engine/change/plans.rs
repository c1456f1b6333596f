//! The plans of an UPDATE or DELETE, which a prepared statement keeps from one execution to the next.
//!
//! A plan fixes its source, so the source is told what to read; it fixes `now()` too, so a plan is kept only when one made
//! for another time is the same. Leaves out running it. In memory, with the statement; a crash forgets it.

use super::returning::Returning;
use super::source::TargetSource;
use crate::engine::Engine;
use crate::engine::prepare::Moment;
use crate::engine::settings::Settings;
use millstream_catalog::model::Span;
use millstream_sql::plan::PlannedSelect;
use parking_lot::Mutex;
use std::sync::Arc;

/// What an UPDATE or DELETE runs.
#[derive(Debug)]
pub(crate) struct Plans {
    /// What its queries read.
    pub(super) source: Arc<TargetSource>,
    /// Finds the rows and computes the values.
    pub(super) find: Arc<PlannedSelect>,
    pub(super) returning: Option<Returning>,
}

/// The plans a prepared statement keeps.
#[derive(Debug, Default)]
pub(crate) struct KeptPlans(Mutex<Kept>);

#[derive(Debug, Default)]
enum Kept {
    /// It was not executed yet.
    #[default]
    New,
    /// Made to describe it: an execution right after takes them.
    Described(Moment, Arc<Plans>),
    /// It was executed: it may be again.
    Executed,
    /// Good as long as definitions and settings are what they were.
    Timeless(u64, Settings, Arc<Plans>),
    /// Each execution has its own.
    Passing,
}

/// What is known of plans when a statement is executed.
#[derive(Debug)]
pub(super) enum Known {
    /// These are to be used.
    Plans(Arc<Plans>),
    /// New ones are to be made, for this execution.
    None,
    /// New ones are to be made, and kept if they do not depend on the time.
    Again,
}

/// So far apart no function of the clock gives the same: another year, month, day, hour, minute and second.
pub(super) const ANOTHER_TIME: Span = Span::from_micros(((400 * 24 + 5) * 3_600 + 17 * 60 + 13) * 1_000_000 + 1_001);

impl KeptPlans {
    /// Whether executions to come need no planning.
    #[cfg(test)]
    pub(crate) fn are_timeless(&self) -> bool {
        matches!(*self.0.lock(), Kept::Timeless(..))
    }

    /// Plans made to describe the statement.
    pub(super) fn described(moment: Moment, plans: Plans) -> Self {
        Self(Mutex::new(Kept::Described(moment, Arc::new(plans))))
    }

    /// What there is for an execution now.
    pub(super) fn take(&self, engine: &Engine, settings: &Settings) -> Known {
        let mut kept = self.0.lock();
        match std::mem::replace(&mut *kept, Kept::Executed) {
            Kept::Described(moment, plans) if moment.is_present(engine, settings) => Known::Plans(plans),
            Kept::New | Kept::Described(..) => Known::None,
            Kept::Timeless(version, of, plans) if version == engine.catalog().version() && of == *settings => {
                *kept = Kept::Timeless(version, of, Arc::clone(&plans));
                Known::Plans(plans)
            }
            Kept::Executed | Kept::Timeless(..) => Known::Again,
            Kept::Passing => {
                *kept = Kept::Passing;
                Known::None
            }
        }
    }

    /// Keeps `plans`, of the definitions of `version`, when `others` for another time are the same.
    pub(super) fn keep(&self, (version, settings): (u64, &Settings), plans: &Arc<Plans>, others: &Plans) {
        let is_same = plans.find.plan == others.find.plan
            && match (&plans.returning, &others.returning) {
                (Some(returning), Some(other)) => returning.is_same(other),
                (None, None) => true,
                _ => false,
            };
        *self.0.lock() = match is_same {
            true => Kept::Timeless(version, settings.clone(), Arc::clone(plans)),
            false => Kept::Passing,
        };
    }
}
