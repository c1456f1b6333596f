//! `numeric(p, s)`: decimal text, PostgreSQL's base-10000 binary form, and rounding to the scale.
//!
//! Values are integers scaled by 10^s, as Arrow's decimals have them. Leaves out arithmetic. NaN and the
//! infinities, which Arrow cannot hold, are refused. `ColumnBuilder` and `ColumnEncoder` call it.

use super::error::{ValueError, quoted};
use super::number::trim;
use millstream_catalog::model::SqlState;

const SIGN_NEGATIVE: u16 = 0x4000;
const SIGN_NAN: u16 = 0xC000;
const SIGN_INFINITY: u16 = 0xD000;
const SIGN_INFINITY_NEGATIVE: u16 = 0xF000;
/// Digits of the widest Arrow decimal (256 bits), with room for the padding to groups of four.
const DIGITS_MAX: usize = 96;

/// Precision and scale of a column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) precision: u8,
    pub(crate) scale: i8,
}

impl Shape {
    fn overflow(self) -> ValueError {
        let whole = i32::from(self.precision) - i32::from(self.scale);
        let bound = if whole == 0 { "1".to_owned() } else { format!("10^{whole}") };
        ValueError::new(SqlState::NumericValueOutOfRange, "numeric field overflow").detail(format!(
            "A field with precision {}, scale {} must round to an absolute value less than {bound}.",
            self.precision, self.scale
        ))
    }

    /// `value` if it has at most `precision` digits.
    fn check(self, value: u128, is_negative: bool) -> Result<i128, ValueError> {
        let bound = 10u128.checked_pow(u32::from(self.precision)).unwrap_or(u128::MAX);
        if value >= bound {
            return Err(self.overflow());
        }
        let value = i128::try_from(value).map_err(|_| self.overflow())?;
        Ok(if is_negative { -value } else { value })
    }

    /// The value of `0.d1d2d3… × 10^whole`, rounded half away from zero to the scale.
    ///
    /// Digits `1, 2, 3, 4` with `whole` 2 are 12.34.
    fn of_digits(self, digits: impl Iterator<Item = u8>, whole: i64, is_negative: bool) -> Result<i128, ValueError> {
        let mut keep = whole + i64::from(self.scale);
        let mut value = 0u128;
        let mut is_leading = true;
        let mut digits = digits;
        while keep > 0 {
            let Some(digit) = digits.next() else { break };
            keep -= 1;
            is_leading &= digit == 0;
            value = value
                .checked_mul(10)
                .and_then(|value| value.checked_add(u128::from(digit)))
                .ok_or_else(|| self.overflow())?;
        }
        if keep > 0 && !is_leading {
            let factor = u32::try_from(keep).ok().and_then(|keep| 10u128.checked_pow(keep));
            value = factor.and_then(|factor| value.checked_mul(factor)).ok_or_else(|| self.overflow())?;
        } else if keep == 0 && digits.next().is_some_and(|digit| digit >= 5) {
            value = value.checked_add(1).ok_or_else(|| self.overflow())?;
        }
        self.check(value, is_negative)
    }
}

/// Reads decimal text, with an optional exponent.
pub(crate) fn parse_numeric(text: &[u8], shape: Shape) -> Result<i128, ValueError> {
    let word = trim(text);
    let (rest, is_negative) = match word {
        [b'-', rest @ ..] => (rest, true),
        [b'+', rest @ ..] => (rest, false),
        rest => (rest, false),
    };
    if rest.eq_ignore_ascii_case(b"nan") {
        return Err(unrepresentable("NaN"));
    }
    if rest.eq_ignore_ascii_case(b"infinity") || rest.eq_ignore_ascii_case(b"inf") {
        return Err(unrepresentable("infinity"));
    }
    let syntax = || ValueError::syntax("numeric", text);
    let split = rest.iter().position(|byte| matches!(byte, b'e' | b'E'));
    let (mantissa, exponent) = match split {
        Some(at) => (&rest[..at], parse_exponent(&rest[at + 1..]).ok_or_else(syntax)?),
        None => (rest, 0),
    };
    let point = mantissa.iter().position(|byte| *byte == b'.');
    let whole = point.unwrap_or(mantissa.len());
    let fraction = point.map_or(&[][..], |at| &mantissa[at + 1..]);
    let is_digits = mantissa[..whole].iter().chain(fraction).all(u8::is_ascii_digit);
    if !is_digits || whole + fraction.len() == 0 {
        return Err(syntax());
    }
    let digits = mantissa[..whole].iter().chain(fraction).map(|byte| byte - b'0');
    shape.of_digits(digits, whole as i64 + exponent, is_negative)
}

/// The exponent, held within ±1,000,000: beyond that every value overflows or is zero.
pub(crate) fn parse_exponent(text: &[u8]) -> Option<i64> {
    let (digits, is_negative) = match text {
        [b'-', rest @ ..] => (rest, true),
        [b'+', rest @ ..] => (rest, false),
        rest => (rest, false),
    };
    if digits.is_empty() {
        return None;
    }
    let mut value = 0i64;
    for byte in digits {
        if !byte.is_ascii_digit() {
            return None;
        }
        value = (value * 10 + i64::from(byte - b'0')).min(1_000_000);
    }
    Some(if is_negative { -value } else { value })
}

fn unrepresentable(what: &str) -> ValueError {
    ValueError::new(SqlState::FeatureNotSupported, format!("numeric cannot hold {what}"))
        .hint("use double precision for values that may be NaN or infinite")
}

/// Reads PostgreSQL's binary form: digit count, weight, sign, display scale, digits of base 10,000.
pub(crate) fn parse_numeric_binary(bytes: &[u8], shape: Shape) -> Result<i128, ValueError> {
    let (header, body) = bytes.split_at_checked(8).ok_or_else(ValueError::short)?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (count, weight, sign) = (usize::from(word(0)), word(2).cast_signed(), word(4));
    match sign {
        0 | SIGN_NEGATIVE => {}
        SIGN_NAN => return Err(unrepresentable("NaN")),
        SIGN_INFINITY | SIGN_INFINITY_NEGATIVE => return Err(unrepresentable("infinity")),
        _ => {
            return Err(ValueError::new(
                SqlState::InvalidBinaryRepresentation,
                "invalid sign in external \"numeric\" value",
            ));
        }
    }
    if body.len() < count * 2 {
        return Err(ValueError::short());
    }
    if body.len() > count * 2 {
        return Err(ValueError::binary());
    }
    let groups = body.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    if groups.clone().any(|group| group > 9_999) {
        let message = "invalid digit in external \"numeric\" value";
        return Err(ValueError::new(SqlState::InvalidBinaryRepresentation, message));
    }
    let digits = groups.flat_map(|group| [group / 1000, group / 100 % 10, group / 10 % 10, group % 10]);
    let digits = digits.map(|digit| digit as u8);
    shape.of_digits(digits, (i64::from(weight) + 1) * 4, sign == SIGN_NEGATIVE)
}

/// Decimal digits of a scaled integer, most significant first, on the stack.
pub(crate) struct Digits {
    bytes: [u8; DIGITS_MAX],
    start: usize,
    is_negative: bool,
}

impl Digits {
    /// Of an integer of 128 bits.
    pub(crate) fn of(value: i128) -> Self {
        let mut digits = Self { bytes: [0; DIGITS_MAX], start: DIGITS_MAX, is_negative: value < 0 };
        let mut rest = value.unsigned_abs();
        // Division of 128-bit integers is slow: leave it as soon as 64 bits are enough.
        while rest > u128::from(u64::MAX) {
            digits.push((rest % 10) as u8);
            rest /= 10;
        }
        digits.push_small(rest as u64);
        digits
    }

    /// Of decimal text, as wider integers print themselves.
    pub(crate) fn of_text(text: &str) -> Self {
        let mut digits = Self { bytes: [0; DIGITS_MAX], start: DIGITS_MAX, is_negative: text.starts_with('-') };
        for byte in text.bytes().rev().filter(u8::is_ascii_digit) {
            digits.push(byte - b'0');
        }
        while digits.start < DIGITS_MAX && digits.bytes[digits.start] == 0 {
            digits.start += 1;
        }
        digits
    }

    fn push(&mut self, digit: u8) {
        if self.start > 0 {
            self.start -= 1;
            self.bytes[self.start] = digit;
        }
    }

    fn push_small(&mut self, mut rest: u64) {
        while rest > 0 {
            self.push((rest % 10) as u8);
            rest /= 10;
        }
    }

    fn digits(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Writes text with exactly `scale` digits after the point.
    pub(crate) fn text(&self, scale: i8, out: &mut Vec<u8>) {
        let digits = self.digits();
        if self.is_negative && !digits.is_empty() {
            out.push(b'-');
        }
        let fraction = usize::try_from(scale).unwrap_or(0);
        let whole = digits.len().saturating_sub(fraction);
        if whole == 0 {
            out.push(b'0');
        }
        out.extend(digits[..whole].iter().map(|digit| digit + b'0'));
        if scale < 0 && !digits.is_empty() {
            out.extend(std::iter::repeat_n(b'0', usize::from(scale.unsigned_abs())));
        }
        if fraction > 0 {
            out.push(b'.');
            out.extend(std::iter::repeat_n(b'0', fraction.saturating_sub(digits.len())));
            out.extend(digits[whole..].iter().map(|digit| digit + b'0'));
        }
    }

    /// Writes PostgreSQL's binary form.
    pub(crate) fn binary(&self, scale: i8, out: &mut Vec<u8>) {
        let digits = self.digits();
        let scale = i32::from(scale);
        // Position of each digit as its power of ten; groups are aligned to powers of 10^4.
        let mut groups = [0u16; DIGITS_MAX / 4 + 66];
        let top = digits.len() as i32 - 1 - scale;
        let weight = top.div_euclid(4);
        for (i, digit) in digits.iter().enumerate() {
            let power = top - i as i32;
            let group = (weight - power.div_euclid(4)) as usize;
            if let Some(group) = groups.get_mut(group) {
                *group += u16::from(*digit) * 10u16.pow(power.rem_euclid(4) as u32);
            }
        }
        let count = groups.iter().rposition(|group| *group != 0).map_or(0, |last| last + 1);
        let is_zero = count == 0;
        let sign = if self.is_negative && !is_zero { SIGN_NEGATIVE } else { 0 };
        out.extend_from_slice(&(count as u16).to_be_bytes());
        out.extend_from_slice(&(if is_zero { 0 } else { weight as i16 }).to_be_bytes());
        out.extend_from_slice(&sign.to_be_bytes());
        out.extend_from_slice(&(scale.max(0) as i16).to_be_bytes());
        for group in &groups[..count] {
            out.extend_from_slice(&group.to_be_bytes());
        }
    }
}

/// Normalises a JSON number as `jsonb` prints it: without exponent, keeping the fraction's digits.
///
/// `1.50e1` is `15.0`, `-0` is `0`. `None` when it would have more than `bytes_max` digits.
pub(crate) fn write_json_number(number: &[u8], bytes_max: usize, out: &mut Vec<u8>) -> Option<()> {
    let (rest, is_negative) = number.strip_prefix(b"-").map_or((number, false), |rest| (rest, true));
    let split = rest.iter().position(|byte| matches!(byte, b'e' | b'E')).unwrap_or(rest.len());
    let exponent = if split < rest.len() { parse_exponent(&rest[split + 1..])? } else { 0 };
    let mantissa = &rest[..split];
    let point = mantissa.iter().position(|byte| *byte == b'.').unwrap_or(mantissa.len());
    let digits: Vec<u8> = mantissa.iter().copied().filter(|byte| *byte != b'.').collect();
    let whole = point as i64 + exponent;
    let scale = usize::try_from((digits.len() as i64 - whole).max(0)).ok()?;
    let is_zero = digits.iter().all(|digit| *digit == b'0');
    let width = if is_zero { 1 } else { usize::try_from(whole.max(1)).ok()? };
    if width > 131_072 || scale > 16_383 || width + scale > bytes_max {
        return None;
    }
    if is_negative && !is_zero {
        out.push(b'-');
    }
    let digit_at = |at: i64| usize::try_from(at).ok().and_then(|at| digits.get(at)).copied().unwrap_or(b'0');
    let before = out.len();
    out.extend((0..whole).map(digit_at).skip_while(|digit| *digit == b'0').take(width));
    if out.len() == before {
        out.push(b'0');
    }
    if scale > 0 {
        out.push(b'.');
        out.extend((0..scale as i64).map(|i| digit_at(whole + i)));
    }
    Some(())
}

/// `value "x" overflows numeric format`, for JSON numbers.
pub(crate) fn format_overflow(number: &[u8]) -> ValueError {
    ValueError::new(SqlState::NumericValueOutOfRange, "value overflows numeric format").detail(quoted(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(value: i128, scale: i8) -> String {
        let mut out = Vec::new();
        Digits::of(value).text(scale, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_is_rounded_to_the_scale() {
        let shape = Shape { precision: 5, scale: 2 };
        for (text, value) in [
            ("1", "1.00"),
            ("-1.005", "-1.01"),
            ("0.004", "0.00"),
            ("0.005", "0.01"),
            ("-0.004", "0.00"),
            ("999.994", "999.99"),
            ("1e2", "100.00"),
            ("12345e-3", "12.35"),
            (".5", "0.50"),
            ("5.", "5.00"),
            (" +7 ", "7.00"),
            ("0e99999999999", "0.00"),
            ("1e-999999999", "0.00"),
        ] {
            assert_eq!(show(parse_numeric(text.as_bytes(), shape).unwrap(), 2), value, "{text}");
        }
        let error = parse_numeric(b"999.995", shape).unwrap_err();
        assert_eq!(error.message, "numeric field overflow");
        assert_eq!(
            error.detail.as_deref(),
            Some("A field with precision 5, scale 2 must round to an absolute value less than 10^3.")
        );
        for bad in ["", ".", "1.2.3", "e5", "1e", "1e+", "abc", "--1", "1 2"] {
            assert_eq!(
                parse_numeric(bad.as_bytes(), shape).unwrap_err().message,
                format!("invalid input syntax for type numeric: \"{bad}\"")
            );
        }
        assert_eq!(parse_numeric(b"NaN", shape).unwrap_err().sqlstate, SqlState::FeatureNotSupported);
        assert_eq!(parse_numeric(b"1e1000000000", shape).unwrap_err().message, "numeric field overflow");
    }

    #[test]
    fn widest_values_survive() {
        let shape = Shape { precision: 38, scale: 0 };
        let nines = "9".repeat(38);
        let value = parse_numeric(nines.as_bytes(), shape).unwrap();
        assert_eq!(show(value, 0), nines);
        assert!(parse_numeric(format!("{nines}.5").as_bytes(), shape).is_err());
        assert_eq!(show(-value, 38), format!("-0.{nines}"));
        assert_eq!(show(0, 3), "0.000");
    }

    #[test]
    fn binary_round_trips() {
        for scale in [0i8, 1, 3, 4, 7, 10, 38] {
            let shape = Shape { precision: 38, scale };
            for value in [0i128, 1, -1, 9_999, 10_000, 123_456_789, -100_000_000, 10i128.pow(38) - 1] {
                let mut out = Vec::new();
                Digits::of(value).binary(scale, &mut out);
                assert_eq!(parse_numeric_binary(&out, shape), Ok(value), "{value} scale {scale}");
            }
        }
        // 12345.67 as PostgreSQL sends it.
        let mut out = Vec::new();
        Digits::of(1_234_567).binary(2, &mut out);
        assert_eq!(out, [0, 3, 0, 1, 0, 0, 0, 2, 0, 1, 0x09, 0x29, 0x1A, 0x2C]);
    }

    #[test]
    fn json_numbers_lose_their_exponent() {
        for (text, expected) in [
            ("1", "1"),
            ("-0", "0"),
            ("-0.0", "0.0"),
            ("1.50", "1.50"),
            ("1.5e1", "15"),
            ("1.50e1", "15.0"),
            ("1e3", "1000"),
            ("12e-3", "0.012"),
            ("0e5", "0"),
            ("-1.5E-2", "-0.015"),
        ] {
            let mut out = Vec::new();
            write_json_number(text.as_bytes(), 1000, &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{text}");
        }
        assert_eq!(write_json_number(b"1e999999", 1 << 20, &mut Vec::new()), None);
    }
}
