//! Intervals: PostgreSQL's, ISO-8601's and the SQL standard's input, and output in style `postgres`.
//!
//! Values are months, days and a time, held apart as PostgreSQL holds them. Leaves out arithmetic and
//! infinity. `ColumnBuilder` and `ColumnEncoder` call it.

use super::datetime::write_fraction;
use super::error::{ValueError, quoted};
use super::number::trim;
use millstream_catalog::model::SqlState;
use std::io::Write;

/// Bytes of interval text.
const TEXT_BYTES_MAX: usize = 256;
const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3_600 * SECOND;
const DAY: i64 = 24 * HOUR;

/// Months, days and microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Interval {
    pub(crate) months: i32,
    pub(crate) days: i32,
    pub(crate) micros: i64,
}

/// Why text was refused.
enum Refusal {
    Format,
    Range,
}

/// Sums of the fields read, wide enough not to wrap.
#[derive(Default)]
struct Sums {
    months: i128,
    days: i128,
    micros: i128,
    fields: usize,
    /// Units read so far: each may be given once. Of a fraction of a second, the smaller units too.
    units: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// So many months.
    Months(i64),
    /// So many days.
    Days(i64),
    /// So many microseconds.
    Micros(i64),
}

impl Unit {
    /// A bit for each unit that may be given once.
    const fn bit(self) -> u32 {
        1 << match self {
            Self::Months(1) => 0,
            Self::Months(12) => 1,
            Self::Months(120) => 2,
            Self::Months(1200) => 3,
            Self::Months(_) => 4,
            Self::Days(1) => 5,
            Self::Days(_) => 6,
            Self::Micros(HOUR) => 7,
            Self::Micros(1) => 8,
            Self::Micros(1000) => 9,
            Self::Micros(SECOND) => 10,
            Self::Micros(_) => 11,
        }
    }
}

/// Reads an interval.
pub(crate) fn parse_interval(text: &[u8]) -> Result<Interval, ValueError> {
    let outcome = match std::str::from_utf8(trim(text)) {
        Ok(plain) if plain.is_ascii() && !plain.is_empty() && plain.len() <= TEXT_BYTES_MAX => read(plain),
        _ => Err(Refusal::Format),
    };
    outcome.map_err(|refusal| match refusal {
        Refusal::Format => ValueError::new(
            SqlState::InvalidDatetimeFormat,
            format!("invalid input syntax for type interval: \"{}\"", quoted(text)),
        ),
        Refusal::Range => ValueError::new(
            SqlState::IntervalFieldOverflow,
            format!("interval field value out of range: \"{}\"", quoted(text)),
        ),
    })
}

fn read(plain: &str) -> Result<Interval, Refusal> {
    let mut sums = Sums::default();
    if let Some(iso) = plain.strip_prefix('P') {
        sums.read_iso(iso)?;
    } else {
        sums.read_fields(&plain.to_ascii_lowercase())?;
    }
    let range = |_| Refusal::Range;
    let micros = i64::try_from(sums.micros).map_err(range)?;
    // Arrow counts the time in nanoseconds.
    micros.checked_mul(1000).ok_or(Refusal::Range)?;
    Ok(Interval {
        months: i32::try_from(sums.months).map_err(range)?,
        days: i32::try_from(sums.days).map_err(range)?,
        micros,
    })
}

/// A decimal number: sign, whole part, millionths.
#[derive(Clone, Copy)]
struct Number {
    is_negative: bool,
    whole: i64,
    fraction: i64,
}

impl Number {
    /// Reads `digits[.digits]`.
    fn parse(text: &str, is_negative: bool) -> Result<Self, Refusal> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if whole.is_empty() && fraction.is_empty() || !whole.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Refusal::Format);
        }
        let whole = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| Refusal::Range)? };
        let fraction = super::datetime_input::fraction_micros(fraction).ok_or(Refusal::Format)?;
        Ok(Self { is_negative, whole, fraction })
    }

    fn signed(self, value: i128) -> i128 {
        if self.is_negative { -value } else { value }
    }
}

impl Sums {
    /// Adds `number` units; fractions go to the next smaller field, as PostgreSQL carries them.
    fn add(&mut self, number: Number, unit: Unit) -> Result<(), Refusal> {
        const SUBSECONDS: u32 = Unit::Micros(1).bit() | Unit::Micros(1000).bit();
        let is_fraction = unit == Unit::Micros(SECOND) && number.fraction != 0;
        let bits = unit.bit() | if is_fraction { SUBSECONDS } else { 0 };
        if self.units & bits != 0 {
            return Err(Refusal::Format);
        }
        self.units |= bits;
        let (whole, fraction) = (i128::from(number.whole), i128::from(number.fraction));
        self.fields += 1;
        match unit {
            Unit::Months(months) => {
                let months = i128::from(months);
                self.months += number.signed(whole * months);
                let millionths = fraction * months;
                if months > 1 {
                    // Years and longer: the fraction is rounded to months.
                    self.months += number.signed((millionths + 500_000) / 1_000_000);
                } else {
                    self.add_day_millionths(number, millionths * 30);
                }
            }
            Unit::Days(days) => {
                self.days += number.signed(whole * i128::from(days));
                self.add_day_millionths(number, fraction * i128::from(days));
            }
            Unit::Micros(micros) => {
                let micros = i128::from(micros);
                self.micros += number.signed(whole * micros + (fraction * micros + 500_000) / 1_000_000);
            }
        }
        Ok(())
    }

    fn add_day_millionths(&mut self, number: Number, millionths: i128) {
        self.days += number.signed(millionths / 1_000_000);
        self.micros += number.signed(millionths % 1_000_000 * i128::from(DAY) / 1_000_000);
    }

    /// `1 year 2 mons -3 days +04:05:06.7`, `1-2 3 4:05`, `@ 1 hour ago`, `1h30m`, `90`.
    fn read_fields(&mut self, text: &str) -> Result<(), Refusal> {
        let mut rest = text.trim_start();
        let mut pending: Option<Number> = None;
        let mut is_ago = false;
        while !rest.is_empty() {
            if is_ago {
                return Err(Refusal::Format);
            }
            let first = rest.as_bytes()[0];
            if first.is_ascii_alphabetic() {
                let len = span(rest, |byte| byte.is_ascii_alphabetic());
                match (&rest[..len], pending.take()) {
                    ("ago", None) if self.fields > 0 => is_ago = true,
                    (word, Some(number)) => self.add(number, unit_of(word).ok_or(Refusal::Format)?)?,
                    _ => return Err(Refusal::Format),
                }
                rest = &rest[len..];
            } else if first == b'@' && self.fields == 0 && pending.is_none() {
                rest = &rest[1..];
            } else {
                let is_signed = matches!(first, b'+' | b'-');
                let body = &rest[usize::from(is_signed)..];
                let len = span(body, |byte| byte.is_ascii_digit() || matches!(byte, b'.' | b':'));
                let dash = &body[len..];
                let is_year_month = dash.len() > 1 && dash.starts_with('-') && dash.as_bytes()[1].is_ascii_digit();
                if let Some(days) = pending.take() {
                    // A number before a time counts days.
                    self.add(days, Unit::Days(1))?;
                    if !body[..len].contains(':') {
                        return Err(Refusal::Format);
                    }
                }
                let is_negative = first == b'-';
                if body[..len].contains(':') {
                    self.add_clock(&body[..len], is_negative)?;
                    rest = &body[len..];
                } else if is_year_month {
                    let months = span(&dash[1..], |byte| byte.is_ascii_digit());
                    self.add(Number::parse(&body[..len], is_negative)?, Unit::Months(12))?;
                    self.add(Number::parse(&dash[1..=months], is_negative)?, Unit::Months(1))?;
                    rest = &dash[1 + months..];
                } else {
                    pending = Some(Number::parse(&body[..len], is_negative)?);
                    rest = &body[len..];
                }
            }
            rest = rest.trim_start_matches([' ', ',', '\t', '\n', '\r']);
        }
        if let Some(seconds) = pending {
            self.add(seconds, Unit::Micros(SECOND))?;
        }
        if is_ago {
            (self.months, self.days, self.micros) = (-self.months, -self.days, -self.micros);
        }
        if self.fields == 0 { Err(Refusal::Format) } else { Ok(()) }
    }

    /// `h:mm`, `h:mm:ss[.f]`, or `m:ss.f`.
    fn add_clock(&mut self, text: &str, is_negative: bool) -> Result<(), Refusal> {
        let parts: Vec<&str> = text.split(':').collect();
        let units: &[i64] = match parts.as_slice() {
            [_, second] if second.contains('.') => &[60 * SECOND, SECOND],
            [_, _] => &[HOUR, 60 * SECOND],
            [_, _, _] => &[HOUR, 60 * SECOND, SECOND],
            _ => return Err(Refusal::Format),
        };
        let clock = [1, 1000, SECOND, 60 * SECOND, HOUR].map(|micros| Unit::Micros(micros).bit());
        if clock.iter().any(|bit| self.units & bit != 0) {
            return Err(Refusal::Format);
        }
        for (i, (part, unit)) in parts.iter().zip(units).enumerate() {
            let number = Number::parse(part, is_negative)?;
            let is_last = i + 1 == parts.len();
            if part.contains('.') && !is_last {
                return Err(Refusal::Format);
            }
            if i > 0 && number.whole > if *unit == SECOND { 60 } else { 59 } {
                return Err(Refusal::Range);
            }
            self.add(number, Unit::Micros(*unit))?;
        }
        self.units |= clock.iter().fold(0, |units, bit| units | bit);
        Ok(())
    }

    /// What follows `P`: `1Y2M3DT4H5M6.7S`, `2W`, or `0001-02-03T04:05:06`.
    fn read_iso(&mut self, text: &str) -> Result<(), Refusal> {
        let (date, time) = match text.split_once('T') {
            Some((date, time)) => (date, Some(time)),
            None => (text, None),
        };
        let date_dashes =
            date.trim_start_matches('-').contains('-') && !date.contains(|c: char| c.is_ascii_alphabetic());
        if date_dashes {
            let parts: Vec<&str> = date.split('-').collect();
            let [year, month, day] = parts.as_slice() else { return Err(Refusal::Format) };
            self.add(Number::parse(year, false)?, Unit::Months(12))?;
            self.add(Number::parse(month, false)?, Unit::Months(1))?;
            self.add(Number::parse(day, false)?, Unit::Days(1))?;
        } else {
            self.read_designators(date, |letter| match letter {
                b'Y' => Some(Unit::Months(12)),
                b'M' => Some(Unit::Months(1)),
                b'W' => Some(Unit::Days(7)),
                b'D' => Some(Unit::Days(1)),
                _ => None,
            })?;
        }
        match time {
            Some(clock) if clock.contains(':') => self.add_clock(clock, false)?,
            Some(time) => self.read_designators(time, |letter| match letter {
                b'H' => Some(Unit::Micros(HOUR)),
                b'M' => Some(Unit::Micros(60 * SECOND)),
                b'S' => Some(Unit::Micros(SECOND)),
                _ => None,
            })?,
            None => {}
        }
        if self.fields == 0 && time.is_none() { Err(Refusal::Format) } else { Ok(()) }
    }

    fn read_designators(&mut self, text: &str, unit: impl Fn(u8) -> Option<Unit>) -> Result<(), Refusal> {
        let mut rest = text;
        while !rest.is_empty() {
            let is_negative = rest.starts_with('-');
            let body = rest.strip_prefix(['-', '+']).unwrap_or(rest);
            let len = span(body, |byte| byte.is_ascii_digit() || byte == b'.');
            let letter = body.as_bytes().get(len).ok_or(Refusal::Format)?;
            self.add(Number::parse(&body[..len], is_negative)?, unit(*letter).ok_or(Refusal::Format)?)?;
            rest = &body[len + 1..];
        }
        Ok(())
    }
}

fn span(text: &str, is_in: impl Fn(u8) -> bool) -> usize {
    text.bytes().position(|byte| !is_in(byte)).unwrap_or(text.len())
}

/// The unit of a word, with PostgreSQL's abbreviations; `m` is minutes.
fn unit_of(word: &str) -> Option<Unit> {
    Some(match word {
        "us" | "usec" | "usecs" | "usecond" | "useconds" | "microsecond" | "microseconds" | "microsecon" => {
            Unit::Micros(1)
        }
        "ms" | "msec" | "msecs" | "msecond" | "mseconds" | "millisecond" | "milliseconds" | "millisecon" => {
            Unit::Micros(1000)
        }
        "s" | "sec" | "secs" | "second" | "seconds" => Unit::Micros(SECOND),
        "m" | "min" | "mins" | "minute" | "minutes" => Unit::Micros(60 * SECOND),
        "h" | "hr" | "hrs" | "hour" | "hours" => Unit::Micros(HOUR),
        "d" | "day" | "days" => Unit::Days(1),
        "w" | "week" | "weeks" => Unit::Days(7),
        "mon" | "mons" | "month" | "months" => Unit::Months(1),
        "y" | "yr" | "yrs" | "year" | "years" => Unit::Months(12),
        "dec" | "decs" | "decade" | "decades" => Unit::Months(120),
        "c" | "cent" | "century" | "centuries" => Unit::Months(1200),
        "mil" | "mils" | "millennium" | "millennia" => Unit::Months(12_000),
        _ => return None,
    })
}

/// Writes `1 year 2 mons 3 days 04:05:06.7`.
pub(crate) fn write_interval(interval: Interval, out: &mut Vec<u8>) {
    let start = out.len();
    let mut is_before = false;
    for (value, name) in [(interval.months / 12, "year"), (interval.months % 12, "mon"), (interval.days, "day")] {
        if value == 0 {
            continue;
        }
        let space = if out.len() > start { " " } else { "" };
        let plus = if is_before && value > 0 { "+" } else { "" };
        let _ = write!(out, "{space}{plus}{value} {name}{}", if value == 1 { "" } else { "s" });
        is_before = value < 0;
    }
    if interval.micros == 0 && out.len() > start {
        return;
    }
    let micros = interval.micros.unsigned_abs();
    let sign = match (interval.micros < 0, is_before) {
        (true, _) => "-",
        (false, true) => "+",
        (false, false) => "",
    };
    let space = if out.len() > start { " " } else { "" };
    let seconds = micros / SECOND.unsigned_abs();
    let _ = write!(out, "{space}{sign}{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    write_fraction((micros % SECOND.unsigned_abs()) as u32, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        let mut out = Vec::new();
        write_interval(parse_interval(text.as_bytes()).unwrap(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_style_is_read() {
        for (text, expected) in [
            ("1 mon 2 days 03:04:05.6", "1 mon 2 days 03:04:05.6"),
            ("1 year 2 months", "1 year 2 mons"),
            ("-1 year -2 mons +3 days", "-1 years -2 mons +3 days"),
            ("1 day -00:00:01", "1 day -00:00:01"),
            ("-1 day +02:03", "-1 days +02:03:00"),
            ("@ 1 hour 30 min ago", "-01:30:00"),
            ("1h30m", "01:30:00"),
            ("90", "00:01:30"),
            ("1.5 days", "1 day 12:00:00"),
            ("1.5 months", "1 mon 15 days"),
            ("1.5 years", "1 year 6 mons"),
            ("2 weeks", "14 days"),
            ("250 ms", "00:00:00.25"),
            ("1-2", "1 year 2 mons"),
            ("1-2 3 4:05:06", "1 year 2 mons 3 days 04:05:06"),
            ("3 4:05", "3 days 04:05:00"),
            ("10:20.5", "00:10:20.5"),
            ("P1Y2M3DT4H5M6.7S", "1 year 2 mons 3 days 04:05:06.7"),
            ("PT36H", "36:00:00"),
            ("P2W", "14 days"),
            ("P0001-02-03T04:05:06", "1 year 2 mons 3 days 04:05:06"),
            ("PT-1M", "-00:01:00"),
            ("0", "00:00:00"),
            ("1 MINUTE", "00:01:00"),
        ] {
            assert_eq!(show(text), expected, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "x",
            "1 fortnight",
            "ago",
            "1 day ago ago",
            "P",
            "P1",
            "1:2:3:4",
            "1 day 1 day",
            "1 s 0:01",
            "1..2 days",
            "1 2",
            "@",
        ] {
            let error = parse_interval(bad.as_bytes()).unwrap_err();
            assert_eq!(error.sqlstate, SqlState::InvalidDatetimeFormat, "{bad}");
            assert_eq!(error.message, format!("invalid input syntax for type interval: \"{bad}\""));
        }
        for bad in ["99999999999 years", "99999999999999999999 days", "1:61:00", "9999999999 hours"] {
            let error = parse_interval(bad.as_bytes()).unwrap_err();
            assert_eq!(error.sqlstate, SqlState::IntervalFieldOverflow, "{bad}");
        }
    }
}
