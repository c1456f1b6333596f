//! Booleans, integers and floats as PostgreSQL reads and writes them.
//!
//! Leaves out `numeric` (`numeric.rs`). `ColumnBuilder` and `ColumnEncoder` call it.

use super::error::{ValueError, quoted};
use millstream_catalog::model::SqlState;
use std::io::Write;

/// The bytes without leading and trailing white space, as C's `isspace` has it.
pub(crate) fn trim(text: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let start = text.iter().position(|byte| !is_space(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    &text[start..end]
}

/// Reads a boolean: `t, true, y, yes, on, 1`, their opposites, and unique prefixes, in any case.
pub(crate) fn parse_bool(text: &[u8]) -> Result<bool, ValueError> {
    let word = trim(text);
    let is = |full: &str, len_min: usize| {
        word.len() >= len_min && word.len() <= full.len() && word.eq_ignore_ascii_case(&full.as_bytes()[..word.len()])
    };
    if is("true", 1) || is("yes", 1) || is("on", 2) || word == b"1" {
        Ok(true)
    } else if is("false", 1) || is("no", 1) || is("off", 2) || word == b"0" {
        Ok(false)
    } else {
        Err(ValueError::syntax("boolean", text))
    }
}

/// Reads an integer within `min..=max`.
pub(crate) fn parse_int(text: &[u8], min: i64, max: i64, type_name: &str) -> Result<i64, ValueError> {
    let (digits, is_negative) = match text {
        [b'-', rest @ ..] => (rest, true),
        rest => (rest, false),
    };
    if !digits.is_empty() && digits.len() <= 18 {
        let mut value = 0i64;
        let mut is_plain = true;
        for byte in digits {
            let digit = byte.wrapping_sub(b'0');
            is_plain &= digit <= 9;
            value = value.wrapping_mul(10).wrapping_add(i64::from(digit));
        }
        let value = if is_negative { -value } else { value };
        if is_plain && value >= min && value <= max {
            return Ok(value);
        }
    }
    parse_int_slow(text, min, max, type_name)
}

/// White space, a plus sign, many digits; and every error.
#[cold]
fn parse_int_slow(text: &[u8], min: i64, max: i64, type_name: &str) -> Result<i64, ValueError> {
    let trimmed = trim(text);
    let (digits, is_negative) = match trimmed {
        [b'-', rest @ ..] => (rest, true),
        [b'+', rest @ ..] => (rest, false),
        rest => (rest, false),
    };
    let len = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    if len == 0 {
        return Err(ValueError::syntax(type_name, text));
    }
    // As PostgreSQL: too many digits are out of range, whatever follows them.
    let mut value = 0i128;
    for byte in &digits[..len] {
        value = value * 10 + i128::from(byte - b'0');
        let signed = if is_negative { -value } else { value };
        if signed < i128::from(min) || signed > i128::from(max) {
            return Err(ValueError::range(type_name, text));
        }
    }
    if len < digits.len() {
        return Err(ValueError::syntax(type_name, text));
    }
    let signed = if is_negative { -value } else { value };
    i64::try_from(signed).map_err(|_| ValueError::range(type_name, text))
}

/// Reads a float of either width through `parse`.
fn parse_float_with<T: Copy + PartialEq + Default>(
    text: &[u8],
    type_name: &str,
    parse: impl Fn(&str) -> Option<T>,
    is_infinite: impl Fn(T) -> bool,
) -> Result<T, ValueError> {
    let word = trim(text);
    let plain = std::str::from_utf8(word).map_err(|_| ValueError::syntax(type_name, text))?;
    // `parse` also reads "infin"-like words only in full, as PostgreSQL does: inf, infinity, nan.
    let value = parse(plain).ok_or_else(|| ValueError::syntax(type_name, text))?;
    let is_word = plain.bytes().any(|byte| byte.is_ascii_alphabetic() && !byte.eq_ignore_ascii_case(&b'e'));
    let mantissa = plain.split(['e', 'E']).next().unwrap_or(plain);
    let is_zero_text = !mantissa.bytes().any(|byte| (b'1'..=b'9').contains(&byte));
    if !is_word && (is_infinite(value) || value == T::default() && !is_zero_text) {
        return Err(ValueError::new(
            SqlState::NumericValueOutOfRange,
            format!("\"{}\" is out of range for type {type_name}", quoted(text)),
        ));
    }
    Ok(value)
}

/// Reads a `double precision`.
pub(crate) fn parse_double(text: &[u8]) -> Result<f64, ValueError> {
    parse_float_with(text, "double precision", |text| text.parse().ok(), f64::is_infinite)
}

/// Reads a `real`.
pub(crate) fn parse_real(text: &[u8]) -> Result<f32, ValueError> {
    parse_float_with(text, "real", |text| text.parse().ok(), f32::is_infinite)
}

/// Digits and exponent of a float in a buffer on the stack, from Rust's shortest `{:e}`.
struct Shortest {
    bytes: [u8; 32],
    len: usize,
}

impl Write for Shortest {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let room = &mut self.bytes[self.len..];
        let n = data.len().min(room.len());
        room[..n].copy_from_slice(&data[..n]);
        self.len += n;
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Shortest {
    /// The shortest digits that are read back as `value`, whose significand is `mantissa × 2^exponent`.
    ///
    /// Rust takes a decimal on the very edge of the interval of such digits where the significand is even;
    /// PostgreSQL does not, so there one more digit is tried until it is inside.
    fn of<T: std::fmt::LowerExp + std::str::FromStr + PartialEq>(value: T, mantissa: u64, exponent: i32) -> Self {
        let mut shortest = Self { bytes: [0; 32], len: 0 };
        let _ = write!(shortest, "{value:e}");
        let digits = shortest.bytes[..shortest.len]
            .iter()
            .take_while(|byte| **byte != b'e')
            .filter(|byte| byte.is_ascii_digit())
            .count();
        let mut places = digits;
        while exponent > 0 && places < 17 && is_edge(shortest.text(), mantissa, exponent) {
            let mut longer = Self { bytes: [0; 32], len: 0 };
            let _ = write!(longer, "{value:.places$e}");
            if std::str::from_utf8(longer.text())
                .ok()
                .and_then(|text| text.parse::<T>().ok())
                .is_some_and(|back| back == value)
            {
                shortest = longer;
            }
            places += 1;
        }
        shortest
    }

    fn text(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Sign, digits and power of ten of the last digit of `[-]d[.ddd]e[-]x`, trailing zeros left out.
fn decimal(shortest: &[u8]) -> Option<(u128, i32)> {
    let split = shortest.iter().position(|byte| *byte == b'e')?;
    let mut power: i32 = std::str::from_utf8(&shortest[split + 1..]).ok()?.parse().ok()?;
    let mut value = 0u128;
    let mut is_fraction = false;
    for byte in &shortest[..split] {
        match byte {
            b'.' => is_fraction = true,
            b'0'..=b'9' => {
                value = value * 10 + u128::from(byte - b'0');
                power -= i32::from(is_fraction);
            }
            _ => {}
        }
    }
    while value > 0 && value.is_multiple_of(10) {
        value /= 10;
        power += 1;
    }
    Some((value, power))
}

/// True if the decimal lies half way between `mantissa × 2^exponent` and a neighbour; for integers only.
fn is_edge(shortest: &[u8], mantissa: u64, exponent: i32) -> bool {
    let Some((digits, power)) = decimal(shortest) else { return false };
    // Beyond 5^27 no such product has as few bits as a significand.
    if digits == 0 || !(0..=27).contains(&power) {
        return false;
    }
    let Some(product) = digits.checked_mul(5u128.pow(power.unsigned_abs())) else { return false };
    let twos = product.trailing_zeros();
    let (odd, twos) = (product >> twos, twos as i32 + power);
    let mantissa = u128::from(mantissa);
    let is_half = |edge: u128, exponent: i32| odd == edge && twos == exponent;
    // Below a power of two the neighbours are twice as close.
    is_half(2 * mantissa + 1, exponent - 1)
        || is_half(2 * mantissa - 1, exponent - 1)
        || mantissa.is_power_of_two() && is_half(4 * mantissa - 1, exponent - 2)
}

/// Writes a `double precision` as `extra_float_digits = 1` does: shortest digits, exponent from 1e+15.
pub(crate) fn write_double(value: f64, out: &mut Vec<u8>) {
    if value.is_finite() {
        let bits = value.to_bits();
        let mantissa = bits & ((1 << 52) - 1) | 1 << 52;
        let exponent = ((bits >> 52) & 0x7FF) as i32 - 1075;
        write_float(Shortest::of(value, mantissa, exponent).text(), 15, out);
    } else {
        write_special(value, out);
    }
}

/// Writes a `real`: shortest digits, exponent from 1e+06.
pub(crate) fn write_real(value: f32, out: &mut Vec<u8>) {
    if value.is_finite() {
        let bits = value.to_bits();
        let mantissa = u64::from(bits & ((1 << 23) - 1) | 1 << 23);
        let exponent = ((bits >> 23) & 0xFF) as i32 - 150;
        write_float(Shortest::of(value, mantissa, exponent).text(), 6, out);
    } else {
        write_special(f64::from(value), out);
    }
}

fn write_special(value: f64, out: &mut Vec<u8>) {
    let word: &[u8] = if value.is_nan() {
        b"NaN"
    } else if value > 0.0 {
        b"Infinity"
    } else {
        b"-Infinity"
    };
    out.extend_from_slice(word);
}

/// Lays out `[-]d[.ddd]e[-]x` as PostgreSQL does: plain for exponents in `-4..exponent_end`.
fn write_float(shortest: &[u8], exponent_end: i32, out: &mut Vec<u8>) {
    let split = shortest.iter().position(|byte| *byte == b'e').unwrap_or(shortest.len());
    let (mantissa, tail) = shortest.split_at(split);
    let exponent: i32 =
        std::str::from_utf8(tail.get(1..).unwrap_or(&[])).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut digits = [0u8; 32];
    let mut len = 0;
    for byte in mantissa {
        match byte {
            b'-' => out.push(b'-'),
            b'.' => {}
            digit => {
                digits[len] = *digit;
                len += 1;
            }
        }
    }
    while len > 1 && digits[len - 1] == b'0' {
        len -= 1;
    }
    let digits = &digits[..len];
    if (-4..exponent_end).contains(&exponent) {
        write_plain(digits, exponent, out);
    } else {
        out.push(digits[0]);
        if len > 1 {
            out.push(b'.');
            out.extend_from_slice(&digits[1..]);
        }
        let _ = write!(out, "e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    }
}

fn write_plain(digits: &[u8], exponent: i32, out: &mut Vec<u8>) {
    if exponent < 0 {
        out.extend_from_slice(b"0.");
        out.extend(std::iter::repeat_n(b'0', exponent.unsigned_abs() as usize - 1));
        out.extend_from_slice(digits);
        return;
    }
    let whole = exponent as usize + 1;
    if digits.len() <= whole {
        out.extend_from_slice(digits);
        out.extend(std::iter::repeat_n(b'0', whole - digits.len()));
    } else {
        out.extend_from_slice(&digits[..whole]);
        out.push(b'.');
        out.extend_from_slice(&digits[whole..]);
    }
}

/// Writes a decimal integer.
pub(crate) fn write_int(value: i64, out: &mut Vec<u8>) {
    let mut bytes = [0u8; 20];
    let mut at = bytes.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        bytes[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&bytes[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn double(value: f64) -> String {
        let mut out = Vec::new();
        write_double(value, &mut out);
        String::from_utf8(out).unwrap()
    }
    fn real(value: f32) -> String {
        let mut out = Vec::new();
        write_real(value, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn doubles_print_as_postgresql_prints_them() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (0.1, "0.1"),
            (100.5, "100.5"),
            (123456789012345.0, "123456789012345"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (1.5e300, "1.5e+300"),
            (1e-4, "0.0001"),
            (1.25e-5, "1.25e-05"),
            (5e-324, "5e-324"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(double(value), text);
        }
        assert_eq!(real(1e6), "1e+06");
        assert_eq!(real(123456.0), "123456");
        assert_eq!(real(0.1), "0.1");
        assert_eq!(real(3.4028235e38), "3.4028235e+38");
        // The shorter decimals are half way to a neighbour.
        assert_eq!(real(-669_868_032.0), "-6.6986803e+08");
        assert_eq!(real(8_244e6), "8.2439997e+09");
        assert_eq!(double(3_621e18), "3.6209999999999997e+21");
        assert_eq!(double(9_007_199_254_740_993.0), "9.007199254740992e+15");
    }

    #[test]
    fn integers_are_read_and_refused_as_postgresql_does() {
        let int = |text: &str| parse_int(text.as_bytes(), i64::from(i32::MIN), i64::from(i32::MAX), "integer");
        assert_eq!(int("-2147483648"), Ok(-2_147_483_648));
        assert_eq!(int(" +7 "), Ok(7));
        assert_eq!(int("0000000000000000000000012"), Ok(12));
        let error = int("2147483648").unwrap_err();
        assert_eq!(error.message, "value \"2147483648\" is out of range for type integer");
        assert_eq!(error.sqlstate, SqlState::NumericValueOutOfRange);
        for bad in ["", " ", "-", "1.5", "0x10", "1_000", "١", "1 2", "--1"] {
            let error = int(bad).unwrap_err();
            assert_eq!(error.message, format!("invalid input syntax for type integer: \"{bad}\""));
        }
        assert_eq!(parse_int(b"-9223372036854775808", i64::MIN, i64::MAX, "bigint"), Ok(i64::MIN));
        assert!(parse_int(b"9223372036854775808", i64::MIN, i64::MAX, "bigint").is_err());
    }

    #[test]
    fn floats_refuse_overflow_and_underflow() {
        assert_eq!(parse_double(b" 1e3 "), Ok(1000.0));
        assert_eq!(parse_double(b"-inf"), Ok(f64::NEG_INFINITY));
        assert!(parse_double(b"NaN").unwrap().is_nan());
        assert_eq!(parse_double(b"0e999"), Ok(0.0));
        assert_eq!(
            parse_double(b"1e-400").unwrap_err().message,
            "\"1e-400\" is out of range for type double precision"
        );
        assert_eq!(parse_real(b"1e39").unwrap_err().sqlstate, SqlState::NumericValueOutOfRange);
        assert_eq!(parse_real(b"x").unwrap_err().message, "invalid input syntax for type real: \"x\"");
    }

    #[test]
    fn booleans_take_unique_prefixes() {
        for yes in ["t", "tr", "TRUE", "y", "Yes", "on", "1", " t "] {
            assert_eq!(parse_bool(yes.as_bytes()), Ok(true), "{yes}");
        }
        for no in ["f", "fals", "n", "of", "OFF", "0"] {
            assert_eq!(parse_bool(no.as_bytes()), Ok(false), "{no}");
        }
        for bad in ["", "o", "2", "truex", "ye s"] {
            assert!(parse_bool(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
