//! Dates and times: calendar arithmetic, the fast path of ISO input, and PostgreSQL's ISO output.
//!
//! Values are as stored: days or microseconds since 1970, UTC. Leaves out the other input forms
//! (`datetime_input.rs`) and intervals. `ColumnBuilder`, `ColumnEncoder` and COPY call it.

use super::datetime_input::{self, Wanted};
use super::error::{ValueError, quoted};
use millstream_catalog::model::SqlState;

/// Microseconds of a day.
pub(crate) const DAY: i64 = 86_400_000_000;
/// Days from 1970-01-01 to 2000-01-01, the wire's epoch.
pub(crate) const DAYS_TO_2000: i32 = 10_957;
/// Microseconds from 1970-01-01 to 2000-01-01.
pub(crate) const MICROS_TO_2000: i64 = DAYS_TO_2000 as i64 * DAY;
/// The first day PostgreSQL has: Julian day 0, 4714-11-24 BC.
pub(crate) const DATE_FIRST: i64 = -2_440_588;
/// The first day after PostgreSQL's last, 5874897-12-31.
pub(crate) const DATE_END: i64 = 2_145_042_906;

/// Days since 1970-01-01 of a proleptic Gregorian date; year 0 is 1 BC.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
pub(crate) fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month = i64::from(month);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year (0 is 1 BC), month and day of days since 1970-01-01.
pub(crate) fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_shifted + 2) / 5 + 1) as u32;
    let month = (if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 }) as u32;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// Days of a month.
pub(crate) fn days_in_month(year: i64, month: u32) -> u32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Reads two digits.
fn two(text: &[u8], at: usize) -> Option<u32> {
    let (tens, ones) = (text[at].wrapping_sub(b'0'), text[at + 1].wrapping_sub(b'0'));
    (tens <= 9 && ones <= 9).then(|| u32::from(tens) * 10 + u32::from(ones))
}

/// Days of exactly `YYYY-MM-DD`.
fn iso_date(text: &[u8; 10]) -> Option<i64> {
    if text[4] != b'-' || text[7] != b'-' {
        return None;
    }
    let year = i64::from(two(text, 0)? * 100 + two(text, 2)?);
    let (month, day) = (two(text, 5)?, two(text, 8)?);
    let is_valid =
        year > 0 && (1..=12).contains(&month) && day >= 1 && (day <= 28 || day <= days_in_month(year, month));
    is_valid.then(|| days_from_civil(year, month, day))
}

/// Microseconds of exactly `HH:MM:SS[.f{1,6}]`.
fn iso_time(text: &[u8]) -> Option<i64> {
    if text.len() < 8 || text[2] != b':' || text[5] != b':' {
        return None;
    }
    let (hour, minute, second) = (two(text, 0)?, two(text, 3)?, two(text, 6)?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut micros = i64::from(hour * 3600 + minute * 60 + second) * 1_000_000;
    if let [b'.', fraction @ ..] = &text[8..] {
        if fraction.is_empty() || fraction.len() > 6 {
            return None;
        }
        let mut unit = 100_000;
        for byte in fraction {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                return None;
            }
            micros += i64::from(digit) * unit;
            unit /= 10;
        }
    } else if text.len() != 8 {
        return None;
    }
    Some(micros)
}

/// Microseconds of `YYYY-MM-DD[ T]HH:MM:SS[.f]`, without a zone.
fn iso_timestamp(text: &[u8]) -> Option<i64> {
    let (date, rest) = text.split_first_chunk::<10>()?;
    match rest {
        [b' ' | b'T', time @ ..] => Some(iso_date(date)? * DAY + iso_time(time)?),
        _ => None,
    }
}

/// Reads a `date`: days since 1970-01-01.
pub(crate) fn parse_date(text: &[u8]) -> Result<i32, ValueError> {
    if let Some(days) = <&[u8; 10]>::try_from(text).ok().and_then(iso_date) {
        return Ok(days as i32);
    }
    let parsed = datetime_input::parse(text, Wanted::Date)?;
    let is_held = (DATE_FIRST..DATE_END).contains(&parsed.days);
    i32::try_from(parsed.days).ok().filter(|_| is_held).ok_or_else(|| out_of_range("date", text))
}

/// Reads a `time`: microseconds since midnight; 24:00:00 is one.
pub(crate) fn parse_time(text: &[u8]) -> Result<i64, ValueError> {
    match iso_time(text) {
        Some(micros) => Ok(micros),
        None => Ok(datetime_input::parse(text, Wanted::Time)?.micros),
    }
}

/// Reads a `timestamp`: microseconds since 1970-01-01; a zone is ignored, as PostgreSQL does.
pub(crate) fn parse_timestamp(text: &[u8]) -> Result<i64, ValueError> {
    match iso_timestamp(text) {
        Some(micros) => Ok(micros),
        None => local_micros(&datetime_input::parse(text, Wanted::Timestamp)?, text),
    }
}

/// Reads a `timestamptz`: microseconds since 1970-01-01 UTC; without a zone the text is UTC.
pub(crate) fn parse_timestamptz(text: &[u8]) -> Result<i64, ValueError> {
    let plain = match text {
        [rest @ .., b'Z'] | [rest @ .., b'+', b'0', b'0'] => rest,
        rest => rest,
    };
    if let Some(micros) = iso_timestamp(plain) {
        return Ok(micros);
    }
    let parsed = datetime_input::parse(text, Wanted::TimestampTz)?;
    let local = local_micros(&parsed, text)?;
    let offset = parsed.zone.offset_micros(local);
    local
        .checked_sub(offset)
        .filter(|micros| *micros >= DATE_FIRST * DAY)
        .ok_or_else(|| out_of_range("timestamp", text))
}

fn local_micros(parsed: &datetime_input::Parsed, text: &[u8]) -> Result<i64, ValueError> {
    if parsed.days < DATE_FIRST {
        return Err(out_of_range("timestamp", text));
    }
    let micros = parsed.days.checked_mul(DAY).and_then(|micros| micros.checked_add(parsed.micros));
    micros.ok_or_else(|| out_of_range("timestamp", text))
}

fn out_of_range(type_name: &str, text: &[u8]) -> ValueError {
    ValueError::new(SqlState::DatetimeFieldOverflow, format!("{type_name} out of range: \"{}\"", quoted(text)))
}

fn write_two(value: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&[b'0' + (value / 10 % 10) as u8, b'0' + (value % 10) as u8]);
}

/// Writes year, month and day; returns whether ` BC` must follow.
fn write_civil(days: i64, out: &mut Vec<u8>) -> bool {
    let (year, month, day) = civil_from_days(days);
    let shown = if year > 0 { year } else { 1 - year };
    if shown < 10_000 {
        write_two((shown / 100) as u32, out);
        write_two((shown % 100) as u32, out);
    } else {
        super::number::write_int(shown, out);
    }
    out.push(b'-');
    write_two(month, out);
    out.push(b'-');
    write_two(day, out);
    year <= 0
}

/// Writes a `date` from days since 1970-01-01.
pub(crate) fn write_date(days: i64, out: &mut Vec<u8>) {
    if write_civil(days, out) {
        out.extend_from_slice(b" BC");
    }
}

/// Writes a `time` from microseconds since midnight.
pub(crate) fn write_time(micros: i64, out: &mut Vec<u8>) {
    let seconds = micros.div_euclid(1_000_000) as u32;
    write_two(seconds / 3600, out);
    out.push(b':');
    write_two(seconds / 60 % 60, out);
    out.push(b':');
    write_two(seconds % 60, out);
    write_fraction(micros.rem_euclid(1_000_000) as u32, out);
}

/// Writes `.f` without trailing zeros; nothing for zero.
pub(crate) fn write_fraction(micros: u32, out: &mut Vec<u8>) {
    if micros == 0 {
        return;
    }
    out.push(b'.');
    let (mut rest, mut unit) = (micros, 100_000);
    while rest > 0 {
        out.push(b'0' + (rest / unit) as u8);
        rest %= unit;
        unit /= 10;
    }
}

/// Writes a `timestamp`, with `separator` between date and time and `zone` after the time.
pub(crate) fn write_timestamp_with(micros: i64, separator: u8, zone: &[u8], out: &mut Vec<u8>) {
    let is_bc = write_civil(micros.div_euclid(DAY), out);
    out.push(separator);
    write_time(micros.rem_euclid(DAY), out);
    out.extend_from_slice(zone);
    if is_bc {
        out.extend_from_slice(b" BC");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn civil_dates_round_trip() {
        for days in (DATE_FIRST..DATE_END).step_by(9_999_991).chain(-800_000..-700_000).chain(-1000..40_000) {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
            assert!((1..=days_in_month(year, month)).contains(&day));
        }
        assert_eq!(civil_from_days(DATE_FIRST), (-4713, 11, 24));
        assert_eq!(civil_from_days(DATE_END - 1), (5_874_897, 12, 31));
        assert_eq!(days_from_civil(2000, 1, 1), i64::from(DAYS_TO_2000));
    }

    #[test]
    fn output_is_iso() {
        assert_eq!(show(|out| write_timestamp_with(978_310_020_000_000, b' ', b"+00", out)), "2001-01-01 00:47:00+00");
        assert_eq!(show(|out| write_timestamp_with(-1, b' ', b"", out)), "1969-12-31 23:59:59.999999");
        assert_eq!(show(|out| write_timestamp_with(100, b' ', b"", out)), "1970-01-01 00:00:00.0001");
        assert_eq!(show(|out| write_date(DATE_FIRST, out)), "4714-11-24 BC");
        assert_eq!(show(|out| write_date(DATE_END - 1, out)), "5874897-12-31");
        assert_eq!(show(|out| write_time(DAY, out)), "24:00:00");
        assert_eq!(show(|out| write_time(3_723_500_000, out)), "01:02:03.5");
    }
}
