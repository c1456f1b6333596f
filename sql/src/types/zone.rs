//! Time zones of input text: fixed offsets, PostgreSQL's common abbreviations, IANA names.
//!
//! Leaves out the session's zone: times without one are UTC. Date and time input calls it, and `AT TIME ZONE`.

use super::datetime::{DAY, civil_from_days, days_from_civil, days_in_month};
use arrow::array::timezone::Tz;
use chrono::{DateTime, LocalResult, NaiveDateTime, Offset, TimeDelta, TimeZone};
use std::str::FromStr;

/// Abbreviations and their hours east of UTC, from PostgreSQL's default set.
const ABBREVIATIONS: &[(&str, i32)] = &[
    ("z", 0),
    ("zulu", 0),
    ("utc", 0),
    ("ut", 0),
    ("gmt", 0),
    ("uct", 0),
    ("wet", 0),
    ("west", 1),
    ("bst", 1),
    ("cet", 1),
    ("cest", 2),
    ("met", 1),
    ("eet", 2),
    ("eest", 3),
    ("msk", 3),
    ("jst", 9),
    ("kst", 9),
    ("nzst", 12),
    ("nzdt", 13),
    ("ast", -4),
    ("adt", -3),
    ("est", -5),
    ("edt", -4),
    ("cst", -6),
    ("cdt", -5),
    ("mst", -7),
    ("mdt", -6),
    ("pst", -8),
    ("pdt", -7),
    ("hst", -10),
];

/// A zone a text named.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Zone {
    /// Seconds east of UTC.
    Fixed(i32),
    /// An IANA zone.
    Named(Tz),
}

impl Zone {
    /// The zone of an abbreviation or IANA name, in any case.
    pub(crate) fn named(name: &str) -> Option<Self> {
        if let Some((_, hours)) = ABBREVIATIONS.iter().find(|(word, _)| name.eq_ignore_ascii_case(word)) {
            return Some(Self::Fixed(hours * 3600));
        }
        if !name.contains('/') {
            return None;
        }
        if let Ok(zone) = Tz::from_str(name) {
            return Some(Self::Named(zone));
        }
        // IANA names are capitalised: `america/new_york` is `America/New_York`.
        let mut canonical = String::with_capacity(name.len());
        let mut is_start = true;
        for char in name.to_ascii_lowercase().chars() {
            canonical.push(if is_start { char.to_ascii_uppercase() } else { char });
            is_start = matches!(char, '/' | '_');
        }
        Tz::from_str(&canonical).ok().map(Self::Named)
    }

    /// Microseconds east of UTC at the local time `local` (microseconds).
    ///
    /// A time that occurs twice is standard time; one that was skipped has the offset before the change.
    pub(crate) fn offset_micros(self, local: i64) -> i64 {
        let seconds = match self {
            Self::Fixed(seconds) => seconds,
            Self::Named(zone) => DateTime::from_timestamp_micros(within_rules(local))
                .and_then(|time| offset_seconds(zone, time.naive_utc()))
                .unwrap_or(0),
        };
        i64::from(seconds) * 1_000_000
    }

    /// Microseconds east of UTC at the moment `utc` (microseconds).
    pub(crate) fn offset_micros_at(self, utc: i64) -> i64 {
        let seconds = match self {
            Self::Fixed(seconds) => seconds,
            Self::Named(zone) => DateTime::from_timestamp_micros(within_rules(utc))
                .map_or(0, |time| zone.offset_from_utc_datetime(&time.naive_utc()).fix().local_minus_utc()),
        };
        i64::from(seconds) * 1_000_000
    }
}

/// `local`, or the same day and time of a year before 2038 with the same weekdays: the zone tables end some
/// decades ahead, and PostgreSQL goes on with their last rules.
fn within_rules(local: i64) -> i64 {
    const YEAR_LAST: i64 = 2037;
    let (year, ..) = civil_from_days(local.div_euclid(DAY));
    if year <= YEAR_LAST {
        return local;
    }
    let shape = |year: i64| (days_from_civil(year, 1, 1).rem_euclid(7), days_in_month(year, 2));
    // All fourteen shapes of a year occur within 28 years.
    let alike = (YEAR_LAST - 27..=YEAR_LAST).find(|candidate| shape(*candidate) == shape(year));
    let days = alike.map_or(0, |alike| days_from_civil(year, 1, 1) - days_from_civil(alike, 1, 1));
    local - days * DAY
}

fn offset_seconds(zone: Tz, local: NaiveDateTime) -> Option<i32> {
    match zone.offset_from_local_datetime(&local) {
        LocalResult::Single(offset) => Some(offset.fix().local_minus_utc()),
        LocalResult::Ambiguous(first, second) => {
            Some(first.fix().local_minus_utc().min(second.fix().local_minus_utc()))
        }
        LocalResult::None => {
            let earlier = local.checked_sub_signed(TimeDelta::hours(3))?;
            zone.offset_from_local_datetime(&earlier).earliest().map(|offset| offset.fix().local_minus_utc())
        }
    }
}
