//! Lengths of time: PostgreSQL's interval text, and ksqlDB's `10 SECONDS`.
//!
//! Only units of one fixed length: a month and a year have none, a day is 24 hours. Called for `WITH`
//! options, windows and watermarks; a crash does nothing to it.

use super::cursor::Cursor;
use crate::error::SqlError;
use millstream_catalog::model::{Span, SqlState};
use sqlparser::tokenizer::Token;

/// Microseconds of a unit, in the singular, the plural or PostgreSQL's abbreviations.
fn unit(word: &str) -> Option<i64> {
    Some(match word {
        "us" | "usec" | "usecs" | "microsecond" | "microseconds" => 1,
        "ms" | "msec" | "msecs" | "millisecond" | "milliseconds" => 1_000,
        "s" | "sec" | "secs" | "second" | "seconds" => 1_000_000,
        "m" | "min" | "mins" | "minute" | "minutes" => 60_000_000,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3_600_000_000,
        "d" | "day" | "days" => 86_400_000_000,
        "w" | "week" | "weeks" => 604_800_000_000,
        _ => return None,
    })
}

/// Reads interval text: `7 days`, `1 hour 30 minutes`, `1h30m`, `1.5s`, `01:30:00`, `PT1H30M`, `10` (seconds).
///
/// # Errors
/// `22007` for what is no interval, `22023` for months and years, `22008` for what 64 bits cannot hold.
pub(crate) fn parse_interval(text: &str) -> Result<Span, SqlError> {
    let lower = text.trim().to_ascii_lowercase();
    let invalid = || {
        SqlError::new(SqlState::InvalidDatetimeFormat, format!("invalid input syntax for type interval: \"{text}\""))
            .hint("write a number and a unit, such as '10 seconds' or '7 days'")
    };
    let iso = lower.strip_prefix('p');
    let mut rest = iso.unwrap_or(&lower);
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0_i64;
    let mut in_time = false;
    while !rest.is_empty() {
        rest = rest.trim_start();
        if iso.is_some()
            && !in_time
            && let Some(time) = rest.strip_prefix('t')
        {
            (rest, in_time) = (time, true);
        }
        let end = rest.find(|c: char| !matches!(c, '0'..='9' | '.' | ':' | '-' | '+')).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let tail = tail.trim_start();
        let end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (word, tail) = tail.split_at(end);
        rest = tail;
        let (number, scale) = match word {
            _ if number.contains(':') && word.is_empty() => (clock(number).ok_or_else(invalid)?, 1),
            "" => (decimal(number).ok_or_else(invalid)?, 1_000_000),
            "m" if iso.is_some() && !in_time => return Err(no_fixed_length(text)),
            "mon" | "mons" | "month" | "months" | "y" | "yr" | "yrs" | "year" | "years" => {
                return Err(no_fixed_length(text));
            }
            _ => (decimal(number).ok_or_else(invalid)?, unit(word).ok_or_else(invalid)?),
        };
        let micros =
            number.checked_mul(i128::from(scale)).map(|micros| micros / NANO).and_then(|m| i64::try_from(m).ok());
        total = micros.and_then(|micros| total.checked_add(micros)).ok_or_else(|| out_of_range(text))?;
    }
    Ok(Span::from_micros(total))
}

/// Numbers are held in billionths.
const NANO: i128 = 1_000_000_000;

/// A decimal number in billionths.
fn decimal(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 18 || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let nanos: i128 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let value = whole * NANO + nanos;
    Some(if negative { -value } else { value })
}

/// `hh:mm` or `hh:mm:ss[.ffffff]`, in billionths of a microsecond.
fn clock(text: &str) -> Option<i128> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
    let mut parts = text.splitn(3, ':');
    let (hours, minutes) = (decimal(parts.next()?)?, decimal(parts.next()?)?);
    let seconds = parts.next().map_or(Some(0), decimal)?;
    if hours % NANO != 0 || minutes % NANO != 0 || minutes >= 60 * NANO || seconds >= 60 * NANO {
        return None;
    }
    let value = (hours * 3600 + minutes * 60 + seconds) * 1_000_000;
    Some(if negative { -value } else { value })
}

fn no_fixed_length(text: &str) -> SqlError {
    SqlError::new(SqlState::InvalidParameterValue, format!("interval \"{text}\" has no fixed length"))
        .hint("months and years vary: use days")
}

fn out_of_range(text: &str) -> SqlError {
    SqlError::new(SqlState::DatetimeFieldOverflow, format!("interval out of range: \"{text}\""))
}

/// `10 SECONDS`, positive or zero.
pub(super) fn length(cursor: &mut Cursor<'_>) -> Result<Span, SqlError> {
    let position = cursor.position();
    let number = cursor.number()?;
    let Some(word) = cursor.word() else { return Err(cursor.unexpected()) };
    let interval = format!("{number} {word}");
    if unit(word).is_none() && !matches!(word, "month" | "months" | "year" | "years") {
        return Err(cursor.unexpected());
    }
    cursor.at += 1;
    parse_interval(&interval).map_err(|error| error.at(position))
}

/// `INTERVAL '10 seconds'` or `INTERVAL '10' SECOND`.
pub(super) fn interval_literal(cursor: &mut Cursor<'_>) -> Result<Span, SqlError> {
    cursor.expect(&["interval"])?;
    let position = cursor.position();
    let mut text = cursor.string()?;
    if let Some(word) = cursor.word()
        && !text.contains(':')
        && (unit(word).is_some() || matches!(word, "month" | "year"))
        && !matches!(cursor.peek_at(1), Some(Token::Eq))
    {
        cursor.at += 1;
        text = format!("{text} {word}");
    }
    parse_interval(&text).map_err(|error| error.at(position))
}
