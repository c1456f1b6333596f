//! JSON text: the scanner and checks that `json`, `jsonb`, STRUCT, MAP and COPY share.
//!
//! Iterative and bounded in depth. Leaves out trees (`json_node`) and paths (`json_path`). Source: RFC 8259.

use super::error::{ValueError, quoted};
use millstream_catalog::model::SqlState;
use millstream_catalog::model::limit::JSON_NESTING_MAX;

/// What a value starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JsonKind {
    Null,
    True,
    False,
    Number,
    String,
    Array,
    Object,
}

/// The position of the first byte at or after `at` that is not JSON white space.
pub(crate) fn skip_space(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or(&[]);
    at + rest.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).unwrap_or(rest.len())
}

fn invalid(detail: String, at: usize) -> ValueError {
    let error = ValueError::new(SqlState::InvalidTextRepresentation, "invalid input syntax for type json");
    ValueError { at: Some(at), ..error.detail(detail) }
}

/// The error for what stands at `at`.
pub(crate) fn unexpected(text: &[u8], at: usize) -> ValueError {
    let rest = text.get(at..).unwrap_or(&[]);
    if rest.is_empty() {
        return invalid("The input string ended unexpectedly.".to_owned(), text.len());
    }
    let is_word =
        |byte: &u8| byte.is_ascii_alphanumeric() || *byte >= 0x80 || matches!(byte, b'_' | b'-' | b'+' | b'.');
    let word = rest.iter().position(|byte| !is_word(byte)).unwrap_or(rest.len()).max(1);
    invalid(format!("Token \"{}\" is invalid.", quoted(&rest[..word])), at)
}

/// Kind and end of the scalar or the opening bracket at `at` (for brackets the end is one byte on).
pub(super) fn token(text: &[u8], at: usize) -> Result<(JsonKind, usize), ValueError> {
    let rest = text.get(at..).unwrap_or(&[]);
    let word = |word: &[u8], kind| {
        let is_end = !rest.get(word.len()).is_some_and(u8::is_ascii_alphanumeric);
        if rest.starts_with(word) && is_end { Ok((kind, at + word.len())) } else { Err(unexpected(text, at)) }
    };
    match rest.first() {
        Some(b'{') => Ok((JsonKind::Object, at + 1)),
        Some(b'[') => Ok((JsonKind::Array, at + 1)),
        Some(b'"') => Ok((JsonKind::String, skip_string(text, at)?)),
        Some(b't') => word(b"true", JsonKind::True),
        Some(b'f') => word(b"false", JsonKind::False),
        Some(b'n') => word(b"null", JsonKind::Null),
        Some(b'-' | b'0'..=b'9') => Ok((JsonKind::Number, skip_number(text, at)?)),
        _ => Err(unexpected(text, at)),
    }
}

/// The end of the number at `at`.
fn skip_number(text: &[u8], at: usize) -> Result<usize, ValueError> {
    let digits = |from: usize| {
        let rest = text.get(from..).unwrap_or(&[]);
        from + rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len())
    };
    let whole = if text[at] == b'-' { at + 1 } else { at };
    let mut end = digits(whole);
    let mut is_valid = end > whole && (text[whole] != b'0' || end == whole + 1);
    if text.get(end) == Some(&b'.') {
        let fraction = end + 1;
        end = digits(fraction);
        is_valid &= end > fraction;
    }
    if matches!(text.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(text.get(end + 1), Some(b'+' | b'-')));
        let exponent = end + 1 + sign;
        end = digits(exponent);
        is_valid &= end > exponent;
    }
    let is_word = text.get(end).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'.');
    if is_valid && !is_word { Ok(end) } else { Err(unexpected(text, at)) }
}

/// The end of the string whose opening quote is at `at`, escapes checked.
pub(crate) fn skip_string(text: &[u8], at: usize) -> Result<usize, ValueError> {
    let mut i = at + 1;
    loop {
        match text.get(i) {
            Some(b'"') => return Ok(i + 1),
            Some(b'\\') => match text.get(i + 1) {
                Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => i += 2,
                Some(b'u') => {
                    let short = || "\"\\u\" must be followed by four hexadecimal digits.".to_owned();
                    hex4(text, i + 2).ok_or_else(|| invalid(short(), i))?;
                    i += 6;
                }
                Some(other) => {
                    let shown = quoted(std::slice::from_ref(other)).into_owned();
                    return Err(invalid(format!("Escape sequence \"\\{shown}\" is invalid."), i));
                }
                None => return Err(unexpected(text, i + 1)),
            },
            Some(control @ 0..0x20) => {
                return Err(invalid(format!("Character with value 0x{control:02x} must be escaped."), i));
            }
            Some(_) => i += 1,
            None => return Err(unexpected(text, text.len())),
        }
    }
}

fn hex4(text: &[u8], at: usize) -> Option<u32> {
    let digits = text.get(at..at + 4)?;
    digits.iter().try_fold(0, |value, byte| Some(value * 16 + char::from(*byte).to_digit(16)?))
}

/// Kind and end of the value that starts at `at` (no white space before it), checked to the end.
pub(crate) fn skip_value(text: &[u8], at: usize) -> Result<(JsonKind, usize), ValueError> {
    let (kind, mut i) = token(text, at)?;
    let mut open = match kind {
        JsonKind::Object => vec![b'}'],
        JsonKind::Array => vec![b']'],
        _ => return Ok((kind, i)),
    };
    let mut is_first = true;
    while let Some(close) = open.last().copied() {
        i = skip_space(text, i);
        if text.get(i) == Some(&close) {
            open.pop();
            is_first = false;
            i += 1;
            continue;
        }
        if !is_first {
            if text.get(i) != Some(&b',') {
                return Err(unexpected(text, i));
            }
            i = skip_space(text, i + 1);
        }
        if close == b'}' {
            i = skip_key(text, i)?;
        }
        let (inner, end) = token(text, i)?;
        i = end;
        is_first = matches!(inner, JsonKind::Object | JsonKind::Array);
        match inner {
            JsonKind::Object => open.push(b'}'),
            JsonKind::Array => open.push(b']'),
            _ => {}
        }
        if open.len() > JSON_NESTING_MAX {
            let message = format!("json value nests deeper than {JSON_NESTING_MAX} levels");
            return Err(ValueError::new(SqlState::ProgramLimitExceeded, message));
        }
    }
    Ok((kind, i))
}

/// The position of the value after `"key" :`.
pub(crate) fn skip_key(text: &[u8], at: usize) -> Result<usize, ValueError> {
    if text.get(at) != Some(&b'"') {
        return Err(unexpected(text, at));
    }
    let colon = skip_space(text, skip_string(text, at)?);
    if text.get(colon) != Some(&b':') {
        return Err(unexpected(text, colon));
    }
    Ok(skip_space(text, colon + 1))
}

/// Checks that `text` is one JSON value.
pub(crate) fn check_json(text: &[u8]) -> Result<(), ValueError> {
    let start = skip_space(text, 0);
    let (_, end) = skip_value(text, start)?;
    let end = skip_space(text, end);
    if end == text.len() { Ok(()) } else { Err(unexpected(text, end)) }
}

/// Decodes the string `raw` (its quotes included) into `out`.
///
/// # Errors
/// 22P05 for `\u0000`, 22P02 for half a surrogate pair.
pub(crate) fn decode_string(raw: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let body = raw.get(1..raw.len().saturating_sub(1)).unwrap_or(&[]);
    let mut rest = body;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        out.extend_from_slice(&rest[..at]);
        let escape = rest.get(at + 1).copied().unwrap_or(b'\\');
        let mut used = 2;
        match escape {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                let (char, len) = unicode_escape(&rest[at..])?;
                used = len;
                out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            }
            other => out.push(other),
        }
        rest = rest.get(at + used..).unwrap_or(&[]);
    }
    out.extend_from_slice(rest);
    Ok(())
}

/// The character of `\uXXXX` or of a surrogate pair at the start of `text`, and the bytes it takes.
fn unicode_escape(text: &[u8]) -> Result<(char, usize), ValueError> {
    let first = hex4(text, 2).unwrap_or(0);
    if first == 0 {
        return Err(ValueError::new(SqlState::UntranslatableCharacter, "unsupported Unicode escape sequence")
            .detail("\\u0000 cannot be converted to text."));
    }
    if (0xD800..0xDC00).contains(&first) {
        let second = text.get(6..8).filter(|prefix| *prefix == b"\\u").and_then(|_| hex4(text, 8));
        return match second {
            Some(second @ 0xDC00..0xE000) => {
                let code = 0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                Ok((char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 12))
            }
            _ => Err(lone_surrogate()),
        };
    }
    match char::from_u32(first) {
        Some(char) => Ok((char, 6)),
        None => Err(lone_surrogate()),
    }
}

fn lone_surrogate() -> ValueError {
    invalid("Unicode low surrogate must follow a high surrogate.".to_owned(), 0)
}

/// Writes `text` as a JSON string, quotes included, as PostgreSQL's `escape_json`.
pub(crate) fn write_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let mut start = 0;
    for (i, byte) in text.iter().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            8 => b"\\b",
            12 => b"\\f",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..0x20 => b"\\u00",
            _ => continue,
        };
        out.extend_from_slice(&text[start..i]);
        out.extend_from_slice(escape);
        if escape.len() == 4 {
            out.extend_from_slice(&[
                b"0123456789abcdef"[usize::from(byte >> 4)],
                b"0123456789abcdef"[usize::from(byte & 15)],
            ]);
        }
        start = i + 1;
    }
    out.extend_from_slice(&text[start..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::json_node::normalise;

    #[test]
    fn jsonb_is_normalised() {
        for (text, expected) in [
            (r#" {"bb":1,"a":2,"b":[1,2, {} ,[]]} "#, r#"{"a": 2, "b": [1, 2, {}, []], "bb": 1}"#),
            (r#"{"a":1,"a":2}"#, r#"{"a": 2}"#),
            (r#""\u00e9\ud83d\ude00\/\t""#, "\"é😀/\\t\""),
            ("1e2", "100"),
            ("[true,false,null]", "[true, false, null]"),
            (r#""\u0001""#, r#""\u0001""#),
        ] {
            let mut out = Vec::new();
            normalise(text.as_bytes(), &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn bad_json_is_refused() {
        for bad in [
            "",
            " ",
            "{",
            "}",
            "[1,]",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "01",
            "1.",
            "-",
            "+1",
            "1e",
            "nul",
            "nulls",
            "\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"a\nb\"",
            "1 2",
            "[1 2]",
            "{\"a\":1,}",
            "[,1]",
            "'a'",
            "NaN",
            "[1}",
        ] {
            let error = check_json(bad.as_bytes()).unwrap_err();
            assert_eq!(error.message, "invalid input syntax for type json", "{bad}");
            assert_eq!(error.sqlstate, SqlState::InvalidTextRepresentation);
        }
        assert!(normalise(br#""\u0000""#, &mut Vec::new()).is_err());
        assert!(normalise(br#""\ud800""#, &mut Vec::new()).is_err());
        assert!(normalise(br#""\udc00""#, &mut Vec::new()).is_err());
        assert!(check_json(br#""\ud800""#).is_ok());
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        let mut out = Vec::new();
        assert!(normalise(&nested(JSON_NESTING_MAX), &mut out).is_ok());
        let error = normalise(&nested(JSON_NESTING_MAX + 1), &mut out).unwrap_err();
        assert_eq!(error.sqlstate, SqlState::ProgramLimitExceeded);
        assert!(check_json(&vec![b'['; 1 << 20]).is_err());
    }
}
