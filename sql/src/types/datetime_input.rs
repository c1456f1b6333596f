//! The forms of date and time text beyond plain ISO: PostgreSQL's, with `DateStyle` ISO, MDY.
//!
//! Text is cut into fields as PostgreSQL's `ParseDateTime` does, then each field is given its meaning.
//! Leaves out words that need a clock (`now`, `today` …) and infinity, which Arrow cannot hold: both are
//! refused. Only `datetime.rs` calls it.

use super::datetime::{DATE_END, DATE_FIRST, days_from_civil, days_in_month};
use super::error::{ValueError, quoted};
use super::number::trim;
use super::zone::Zone;
use millstream_catalog::model::SqlState;

/// Bytes of date and time text; PostgreSQL's bound is 128 with its fields.
const TEXT_BYTES_MAX: usize = 128;
const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const WEEKDAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];

/// The type the text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Date,
    Time,
    Timestamp,
    TimestampTz,
}

impl Wanted {
    fn name(self) -> &'static str {
        match self {
            Self::Date => "date",
            Self::Time => "time",
            Self::Timestamp => "timestamp",
            Self::TimestampTz => "timestamp with time zone",
        }
    }
}

/// A date, a time of day and a zone; what the text left out is 1970-01-01, midnight, UTC.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parsed {
    pub(crate) days: i64,
    pub(crate) micros: i64,
    pub(crate) zone: Zone,
}

/// Why a field was refused.
enum Refusal {
    Format,
    Field,
    Zone,
    ZoneName(String),
    Infinity,
    Clock,
}

type Step = Result<(), Refusal>;

/// Reads `text` for the type `wanted`.
pub(crate) fn parse(text: &[u8], wanted: Wanted) -> Result<Parsed, ValueError> {
    let mut fields = Fields { is_time_wanted: wanted == Wanted::Time, ..Fields::default() };
    let trimmed = trim(text);
    let outcome = match std::str::from_utf8(trimmed) {
        Ok(plain) if !plain.is_empty() && plain.len() <= TEXT_BYTES_MAX && plain.is_ascii() => {
            fields.read(&plain.to_ascii_lowercase()).and_then(|()| fields.finish(wanted))
        }
        _ => Err(Refusal::Format),
    };
    outcome.map_err(|refusal| refusal.error(text, wanted))
}

impl Refusal {
    fn error(self, text: &[u8], wanted: Wanted) -> ValueError {
        let shown = quoted(text);
        match self {
            Self::Format => ValueError::new(
                SqlState::InvalidDatetimeFormat,
                format!("invalid input syntax for type {}: \"{shown}\"", wanted.name()),
            ),
            Self::Field => ValueError::new(
                SqlState::DatetimeFieldOverflow,
                format!("date/time field value out of range: \"{shown}\""),
            ),
            Self::Zone => ValueError::new(
                SqlState::InvalidTimeZoneDisplacement,
                format!("time zone displacement out of range: \"{shown}\""),
            ),
            Self::ZoneName(name) => {
                ValueError::new(SqlState::InvalidParameterValue, format!("time zone \"{name}\" not recognized"))
            }
            Self::Infinity => {
                let message = format!("\"{shown}\" is not supported as a {}", wanted.name());
                ValueError::new(SqlState::FeatureNotSupported, message).hint("use NULL, or a date far away")
            }
            Self::Clock => {
                let message = format!("\"{shown}\" is not supported as text of a {}", wanted.name());
                ValueError::new(SqlState::FeatureNotSupported, message).hint("use now() or current_date")
            }
        }
    }
}

/// What has been read so far.
#[derive(Default)]
struct Fields {
    /// The text is for a `time`: digits alone are one.
    is_time_wanted: bool,
    year: Option<i64>,
    year_digits: usize,
    month: Option<u32>,
    day: Option<u32>,
    julian: Option<i64>,
    day_of_year: Option<u32>,
    time: Option<i64>,
    zone: Option<Zone>,
    has_era: bool,
    is_bc: bool,
    is_pm: Option<bool>,
    /// `T` or `J` was read: the next number is a time or a Julian day.
    prefix: Option<u8>,
}

impl Fields {
    fn read(&mut self, text: &str) -> Step {
        let mut rest = text;
        while let Some(first) = rest.bytes().next() {
            let len = match first {
                b' ' | b',' | b'\t'..=b'\r' => 1,
                b'0'..=b'9' => self.read_digits(rest)?,
                b'a'..=b'z' => self.read_word(rest)?,
                b'+' | b'-' => self.read_sign(rest)?,
                _ => return Err(Refusal::Format),
            };
            rest = &rest[len..];
        }
        if self.prefix.is_some() { Err(Refusal::Format) } else { Ok(()) }
    }

    /// A field that starts with a digit: a time, a date with separators, or a number.
    fn read_digits(&mut self, rest: &str) -> Result<usize, Refusal> {
        let digits = span(rest, |byte| byte.is_ascii_digit());
        match rest.as_bytes().get(digits) {
            Some(b':') => {
                let len = span(rest, |byte| byte.is_ascii_digit() || byte == b':' || byte == b'.');
                self.set_time(&rest[..len])?;
                Ok(len)
            }
            Some(separator @ (b'-' | b'/' | b'.')) if self.time.is_none() && !self.is_date_full() => {
                let separator = *separator;
                if self.prefix == Some(b't') {
                    return self.read_number(rest);
                }
                let tail = &rest[digits + 1..];
                let is_named = tail.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
                let len = if is_named {
                    span(rest, |byte| byte.is_ascii_alphanumeric() || byte == separator)
                } else {
                    let second = span(tail, |byte| byte.is_ascii_digit());
                    let third = tail[second..].strip_prefix(char::from(separator));
                    digits + 1 + second + third.map_or(0, |third| 1 + span(third, |byte| byte.is_ascii_digit()))
                };
                self.set_date(&rest[..len], separator)?;
                Ok(len)
            }
            _ => self.read_number(rest),
        }
    }

    fn is_date_full(&self) -> bool {
        self.julian.is_some() || self.year.is_some() && (self.day.is_some() || self.day_of_year.is_some())
    }

    /// A run of digits, with a fraction where it can only be a time.
    fn read_number(&mut self, rest: &str) -> Result<usize, Refusal> {
        let digits = span(rest, |byte| byte.is_ascii_digit());
        let has_fraction = rest.as_bytes().get(digits) == Some(&b'.');
        let prefix = self.prefix.take();
        let number = || rest[..digits].parse::<i64>().map_err(|_| Refusal::Field);
        if prefix == Some(b'j') {
            self.julian = Some(number()?);
            return Ok(digits);
        }
        let is_bare_time = self.is_time_wanted && self.year.is_none() && self.month.is_none();
        let is_time = prefix == Some(b't') || (self.is_date_full() || is_bare_time) && self.time.is_none();
        if is_time && matches!(digits, 2 | 4 | 6) && (digits != 2 || prefix.is_some()) {
            let len =
                digits + if has_fraction { 1 + span(&rest[digits + 1..], |byte| byte.is_ascii_digit()) } else { 0 };
            let part = |at: usize| rest.get(at..at + 2).filter(|_| at < digits).unwrap_or("00");
            self.set_time(&format!("{}:{}:{}{}", part(0), part(2), part(4), &rest[digits..len]))?;
            return Ok(len);
        }
        if has_fraction {
            return Err(Refusal::Format);
        }
        match digits {
            8.. if self.year.is_none() && self.month.is_none() => {
                self.set_ymd(&rest[..digits - 4], &rest[digits - 4..digits - 2], &rest[digits - 2..digits])?;
            }
            6 if self.year.is_none() && self.month.is_none() => self.set_ymd(&rest[..2], &rest[2..4], &rest[4..6])?,
            1 | 2 if self.day.is_none() && self.day_of_year.is_none() => {
                self.day = Some(number()? as u32);
            }
            _ if self.year.is_none() => self.set_year(&rest[..digits])?,
            3 if self.day.is_none() && self.month.is_none() => self.day_of_year = Some(number()? as u32),
            _ => return Err(Refusal::Format),
        }
        Ok(digits)
    }

    fn set_year(&mut self, text: &str) -> Step {
        self.year = Some(text.parse().map_err(|_| Refusal::Field)?);
        self.year_digits = text.len();
        Ok(())
    }

    fn set_ymd(&mut self, year: &str, month: &str, day: &str) -> Step {
        if self.year.is_some() || self.day.is_some() {
            return Err(Refusal::Format);
        }
        self.set_year(year)?;
        self.month = Some(month.parse().map_err(|_| Refusal::Field)?);
        self.day = Some(day.parse().map_err(|_| Refusal::Field)?);
        Ok(())
    }

    /// A date with separators: `1999-01-08`, `1/8/1999`, `08-Jan-1999`, `Jan-08-1999`, `1999.008`.
    fn set_date(&mut self, text: &str, separator: u8) -> Step {
        let parts: Vec<&str> = text.split(char::from(separator)).collect();
        let named = parts.iter().position(|part| part.bytes().any(|byte| byte.is_ascii_alphabetic()));
        match (parts.as_slice(), named) {
            ([year, day], None) if separator == b'.' && day.len() == 3 && year.len() >= 3 => {
                self.day_of_year = Some(day.parse().map_err(|_| Refusal::Format)?);
                self.set_year(year)
            }
            ([first, second, third], None) if first.len() >= 3 => self.set_ymd(first, second, third),
            ([first, second, third], None) => self.set_ymd(third, first, second),
            ([first, second, third], Some(at)) => {
                let month = month_of(parts[at]).ok_or(Refusal::Format)?.to_string();
                match at {
                    0 => self.set_ymd(third, &month, second),
                    1 if first.len() >= 3 => self.set_ymd(first, &month, third),
                    1 => self.set_ymd(third, &month, first),
                    _ => Err(Refusal::Format),
                }
            }
            _ => Err(Refusal::Format),
        }
        .and_then(|()| if parts.iter().any(|part| part.is_empty()) { Err(Refusal::Format) } else { Ok(()) })
    }

    /// `hh:mm[:ss[.f]]`; 24:00:00 and second 60 are allowed.
    fn set_time(&mut self, text: &str) -> Step {
        if self.time.is_some() {
            return Err(Refusal::Format);
        }
        self.prefix = None;
        let (clock, fraction) = text.split_once('.').unwrap_or((text, ""));
        let mut parts = clock.split(':').map(|part| match part {
            "" => Err(Refusal::Format),
            digits => digits.parse::<i64>().map_err(|_| Refusal::Field),
        });
        let hour = parts.next().unwrap_or(Err(Refusal::Format))?;
        let minute = parts.next().unwrap_or(Err(Refusal::Format))?;
        let second = parts.next().unwrap_or(Ok(0))?;
        if parts.next().is_some() || fraction.contains(':') {
            return Err(Refusal::Format);
        }
        let micros = fraction_micros(fraction).ok_or(Refusal::Format)?;
        let is_end = hour == 24 && minute == 0 && second == 0 && micros == 0;
        if minute > 59 || second > 60 || hour > 23 && !is_end {
            return Err(Refusal::Field);
        }
        self.time = Some((hour * 3600 + minute * 60 + second) * 1_000_000 + micros);
        Ok(())
    }

    /// A sign: the offset of a zone after a time, or `-infinity`.
    fn read_sign(&mut self, rest: &str) -> Result<usize, Refusal> {
        let tail = &rest[1..];
        if tail.starts_with("inf") {
            return Err(Refusal::Infinity);
        }
        let len = span(tail, |byte| byte.is_ascii_digit() || byte == b':');
        let has_moment = self.time.is_some() || self.is_date_full();
        if !has_moment || self.zone.is_some() || len == 0 {
            return Err(Refusal::Format);
        }
        let offset = offset_of(&tail[..len])?;
        self.zone = Some(Zone::Fixed(if rest.starts_with('-') { -offset } else { offset }));
        Ok(1 + len)
    }

    fn read_word(&mut self, rest: &str) -> Result<usize, Refusal> {
        let letters = span(rest, |byte| byte.is_ascii_alphabetic());
        let word = &rest[..letters];
        let next = rest.as_bytes().get(letters).copied();
        let after = rest.as_bytes().get(letters + 1).copied();
        if let Some(separator @ (b'-' | b'/' | b'.')) = next
            && after.is_some_and(|byte| byte.is_ascii_digit())
            && month_of(word).is_some()
        {
            let len = span(rest, |byte| byte.is_ascii_alphanumeric() || byte == separator);
            self.set_date(&rest[..len], separator)?;
            return Ok(len);
        }
        // The point of `Jan.` and the like is punctuation.
        let len = letters + usize::from(next == Some(b'.'));
        match word {
            "am" | "pm" if self.is_pm.is_none() => self.is_pm = Some(word == "pm"),
            "bc" | "ad" if !self.has_era => (self.has_era, self.is_bc) = (true, word == "bc"),
            "at" | "on" => {}
            "t" if next.is_some_and(|byte| byte.is_ascii_digit()) => self.prefix = Some(b't'),
            "j" | "jd" | "julian" => self.prefix = Some(b'j'),
            "epoch" => (self.julian, self.time) = (Some(-DATE_FIRST), Some(0)),
            "infinity" | "inf" => return Err(Refusal::Infinity),
            "now" | "today" | "tomorrow" | "yesterday" => return Err(Refusal::Clock),
            "allballs" => (self.time, self.zone) = (Some(0), Some(Zone::Fixed(0))),
            _ => return self.read_name(rest, word, len),
        }
        Ok(len)
    }

    /// A month, a weekday or a zone.
    fn read_name(&mut self, rest: &str, word: &str, len: usize) -> Result<usize, Refusal> {
        if let Some(month) = month_of(word) {
            // In `8 January` the number came first and is the day already.
            if self.month.replace(month).is_some() {
                return Err(Refusal::Format);
            }
            return Ok(len);
        }
        if WEEKDAYS.iter().any(|day| word.len() >= 3 && day.starts_with(word)) {
            return Ok(len);
        }
        let is_zone_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'_');
        let name = &rest[..span(rest, is_zone_byte)];
        if self.zone.is_some() {
            return Err(Refusal::Format);
        }
        match Zone::named(name) {
            Some(zone) => self.zone = Some(zone),
            None if name.contains('/') => return Err(Refusal::ZoneName(name.to_owned())),
            None => return Err(Refusal::Format),
        }
        Ok(name.len())
    }

    fn finish(&mut self, wanted: Wanted) -> Result<Parsed, Refusal> {
        let zone = self.zone.unwrap_or(Zone::Fixed(0));
        let micros = self.time_of_day()?;
        let has_date = self.julian.is_some() || self.year.is_some() || self.month.is_some() || self.day.is_some();
        if wanted == Wanted::Time && !has_date {
            return if self.time.is_some() { Ok(Parsed { days: 0, micros, zone }) } else { Err(Refusal::Format) };
        }
        let days = self.date()?;
        if wanted == Wanted::Time && self.time.is_none() {
            return Err(Refusal::Format);
        }
        Ok(Parsed { days, micros, zone })
    }

    fn time_of_day(&self) -> Result<i64, Refusal> {
        const HOUR: i64 = 3_600_000_000;
        let time = self.time.unwrap_or(0);
        match self.is_pm {
            None => Ok(time),
            Some(_) if self.time.is_none() => Err(Refusal::Format),
            Some(_) if time / HOUR > 12 => Err(Refusal::Field),
            Some(true) if time / HOUR < 12 => Ok(time + 12 * HOUR),
            Some(false) if time / HOUR == 12 => Ok(time - 12 * HOUR),
            Some(_) => Ok(time),
        }
    }

    fn date(&self) -> Result<i64, Refusal> {
        if let Some(julian) = self.julian {
            return if julian < DATE_END - DATE_FIRST { Ok(julian + DATE_FIRST) } else { Err(Refusal::Field) };
        }
        let year = self.year.ok_or(Refusal::Format)?;
        let year = match (self.is_bc, self.year_digits) {
            (_, _) if year == 0 && self.year_digits > 2 => return Err(Refusal::Field),
            (true, _) if year == 0 => return Err(Refusal::Field),
            (true, _) => 1 - year,
            (false, 1 | 2) if year < 70 => year + 2000,
            (false, 1 | 2) => year + 1900,
            _ => year,
        };
        if year.abs() > 10_000_000 {
            return Err(Refusal::Field);
        }
        if let Some(day) = self.day_of_year {
            let last = if days_in_month(year, 2) == 29 { 366 } else { 365 };
            let is_valid = self.month.is_none() && (1..=last).contains(&day);
            return if is_valid { Ok(days_from_civil(year, 1, 1) + i64::from(day) - 1) } else { Err(Refusal::Field) };
        }
        let (month, day) = (self.month.ok_or(Refusal::Format)?, self.day.ok_or(Refusal::Format)?);
        if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
            return Err(Refusal::Field);
        }
        Ok(days_from_civil(year, month, day))
    }
}

/// Length of the leading bytes that satisfy `is_in`.
fn span(text: &str, is_in: impl Fn(u8) -> bool) -> usize {
    text.bytes().position(|byte| !is_in(byte)).unwrap_or(text.len())
}

/// The number of a month by its name or three letters; `sept` too.
fn month_of(word: &str) -> Option<u32> {
    let is_match = |month: &&str| *month == word || word.len() == 3 && month.starts_with(word);
    let found = MONTHS.iter().position(|month| is_match(month) || word == "sept" && *month == "september");
    found.and_then(|at| u32::try_from(at + 1).ok())
}

/// Microseconds of a decimal fraction's digits; what is beyond is rounded as PostgreSQL's doubles round it.
pub(crate) fn fraction_micros(digits: &str) -> Option<i64> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    if digits.len() > 6 {
        let fraction: f64 = format!("0.{digits}").parse().ok()?;
        return Some((fraction * 1_000_000.0).round_ties_even() as i64);
    }
    let digit = |i: usize| digits.as_bytes().get(i).map_or(0, |byte| i64::from(byte - b'0'));
    Some((0..6).fold(0, |micros, i| micros * 10 + digit(i)))
}

/// Seconds of `hh`, `hhmm`, `hh:mm` or `hh:mm:ss`.
fn offset_of(text: &str) -> Result<i32, Refusal> {
    let mut parts = [0i32; 3];
    if text.contains(':') {
        for (at, part) in text.split(':').enumerate() {
            let slot = parts.get_mut(at).ok_or(Refusal::Format)?;
            *slot = part.parse().map_err(|_| Refusal::Format)?;
        }
    } else {
        let number: i32 = text.parse().map_err(|_| Refusal::Zone)?;
        let (hour, minute) = if text.len() > 2 { (number / 100, number % 100) } else { (number, 0) };
        parts = [hour, minute, 0];
    }
    let [hour, minute, second] = parts;
    if hour > 15 || minute > 59 || second > 59 {
        return Err(Refusal::Zone);
    }
    Ok(hour * 3600 + minute * 60 + second)
}
