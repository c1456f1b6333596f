//! Array literals `{a,"b c",NULL}` and the quoting of their elements.
//!
//! Finds elements; their types read them. Leaves out bounds (`[2:3]={…}`), which Arrow's lists do not
//! have. `ColumnBuilder` and `ColumnEncoder` call it.

use super::error::{ValueError, quoted};
use super::number::trim;
use millstream_catalog::model::SqlState;

fn malformed(text: &[u8], detail: &str) -> ValueError {
    ValueError::new(SqlState::InvalidTextRepresentation, format!("malformed array literal: \"{}\"", quoted(text)))
        .detail(detail)
}

/// What may stand in an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Items {
    /// Values only.
    Plain,
    /// Arrays, given as their literals.
    Nested,
}

/// Calls `item` for each element of `text`: `None` is NULL, a nested array is its literal.
pub(crate) fn parse_array(
    text: &[u8],
    items: Items,
    mut item: impl FnMut(Option<&[u8]>) -> Result<(), ValueError>,
) -> Result<(), ValueError> {
    let trimmed = trim(text);
    let text = skip_space(text);
    if trimmed.first() == Some(&b'[') {
        return Err(ValueError::new(SqlState::FeatureNotSupported, "array bounds are not supported")
            .hint("write the elements only, as in {1,2,3}; the first is number 1"));
    }
    let Some(mut rest) = trimmed.strip_prefix(b"{") else {
        return Err(malformed(text, "Array value must start with \"{\" or dimension information."));
    };
    let mut scratch = Vec::new();
    rest = skip_space(rest);
    if let Some(tail) = rest.strip_prefix(b"}") {
        return end(text, tail);
    }
    loop {
        rest = skip_space(rest);
        rest = match rest.first() {
            None => return Err(malformed(text, "Unexpected end of input.")),
            Some(b'{') if items == Items::Plain => return Err(nested(text)),
            Some(b'{') => {
                let len = nested_len(rest).ok_or_else(|| malformed(text, "Unexpected end of input."))?;
                item(Some(&rest[..len]))?;
                &rest[len..]
            }
            Some(b'"') => {
                scratch.clear();
                let tail = read_quoted(text, &rest[1..], &mut scratch)?;
                item(Some(&scratch))?;
                tail
            }
            Some(_) => {
                scratch.clear();
                let (tail, is_escaped) = read_plain(text, rest, &mut scratch)?;
                let is_null = !is_escaped && scratch.eq_ignore_ascii_case(b"null");
                item(if is_null { None } else { Some(&scratch) })?;
                tail
            }
        };
        rest = skip_space(rest);
        match rest.split_first() {
            Some((b',', tail)) => rest = tail,
            Some((b'}', tail)) => return end(text, tail),
            Some(_) => return Err(malformed(text, "Unexpected array element.")),
            None => return Err(malformed(text, "Unexpected end of input.")),
        }
    }
}

fn nested(text: &[u8]) -> ValueError {
    let is_outer = text.get(1..).map(skip_space).is_some_and(|rest| rest.starts_with(b"{"));
    if is_outer && nested_len(text) == Some(trim(text).len()) {
        return ValueError::new(SqlState::FeatureNotSupported, "multidimensional arrays are not supported")
            .hint("use a one-dimensional array, or jsonb");
    }
    malformed(text, "Unexpected \"{\" character.")
}

fn end(text: &[u8], tail: &[u8]) -> Result<(), ValueError> {
    if tail.is_empty() { Ok(()) } else { Err(malformed(text, "Junk after closing right brace.")) }
}

fn skip_space(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !matches!(byte, b' ' | b'\t'..=b'\r')).unwrap_or(text.len());
    &text[start..]
}

/// Bytes of the balanced `{…}` at the start of `text`.
fn nested_len(text: &[u8]) -> Option<usize> {
    let (mut depth, mut in_quotes, mut at) = (0usize, false, 0);
    while at < text.len() {
        match text[at] {
            b'\\' => at += 1,
            b'"' => in_quotes = !in_quotes,
            b'{' if !in_quotes => depth += 1,
            b'}' if !in_quotes => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

fn read_quoted<'a>(text: &[u8], body: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], ValueError> {
    let mut at = 0;
    loop {
        match body.get(at) {
            Some(b'"') => return Ok(&body[at + 1..]),
            Some(b'\\') if at + 1 < body.len() => {
                out.push(body[at + 1]);
                at += 2;
            }
            Some(byte) if *byte != b'\\' => {
                out.push(*byte);
                at += 1;
            }
            _ => return Err(malformed(text, "Unexpected end of input.")),
        }
    }
}

/// Reads an element without quotes; trailing white space is not part of it. Also whether it had escapes.
fn read_plain<'a>(text: &[u8], body: &'a [u8], out: &mut Vec<u8>) -> Result<(&'a [u8], bool), ValueError> {
    let (mut at, mut keep, mut is_escaped) = (0, 0, false);
    loop {
        match body.get(at) {
            None => return Err(malformed(text, "Unexpected end of input.")),
            Some(b',' | b'}') => break,
            Some(b'"' | b'{') => return Err(malformed(text, "Unexpected array element.")),
            Some(b'\\') => {
                let byte = body.get(at + 1).ok_or_else(|| malformed(text, "Unexpected end of input."))?;
                out.push(*byte);
                is_escaped = true;
                keep = out.len();
                at += 2;
            }
            Some(byte) => {
                out.push(*byte);
                if !matches!(byte, b' ' | b'\t'..=b'\r') {
                    keep = out.len();
                }
                at += 1;
            }
        }
    }
    out.truncate(keep);
    if out.is_empty() {
        return Err(malformed(text, &format!("Unexpected \"{}\" character.", char::from(body[at]))));
    }
    Ok((&body[at..], is_escaped))
}

/// Quotes what stands in `out[start..]` as an array element if it must be.
pub(crate) fn quote_element(start: usize, out: &mut Vec<u8>) {
    let element = &out[start..];
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | b'{' | b'}' | b',' | b' ' | b'\t'..=b'\r');
    let must_quote = element.is_empty() || element.eq_ignore_ascii_case(b"null") || element.iter().any(is_special);
    if !must_quote {
        return;
    }
    let escapes = element.iter().filter(|byte| matches!(byte, b'"' | b'\\')).count();
    let len = element.len();
    // Shift from the end, so that no copy of the element is needed.
    out.resize(start + len + escapes + 2, 0);
    let mut to = out.len() - 1;
    out[to] = b'"';
    for from in (start..start + len).rev() {
        let byte = out[from];
        to -= 1;
        out[to] = byte;
        if matches!(byte, b'"' | b'\\') {
            to -= 1;
            out[to] = b'\\';
        }
    }
    out[start] = b'"';
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(text: &str) -> Result<Vec<Option<String>>, ValueError> {
        let mut items = Vec::new();
        parse_array(text.as_bytes(), Items::Nested, |item| {
            items.push(item.map(|item| String::from_utf8_lossy(item).into_owned()));
            Ok(())
        })?;
        Ok(items)
    }

    #[test]
    fn elements_are_found() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(items("{}").unwrap(), vec![]);
        assert_eq!(items(" { } ").unwrap(), vec![]);
        assert_eq!(
            items(r#"{a, "b c" ,NULL,"NULL", x y ,"q\"\\", \n}"#).unwrap(),
            vec![some("a"), some("b c"), None, some("NULL"), some("x y"), some("q\"\\"), some("n")]
        );
        assert_eq!(items("{{1,2},{3}}").unwrap(), vec![some("{1,2}"), some("{3}")]);
        for bad in ["", "1", "{", "{1", "{1,", "{1,}", "{,1}", "{1}x", "{\"a", "{a\"b\"}", "{\"a\"b}", "{a\\"] {
            assert!(items(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn elements_are_quoted_where_they_must_be() {
        for (plain, expected) in [
            ("a", "a"),
            ("", "\"\""),
            ("null", "\"null\""),
            ("b c", "\"b c\""),
            ("q\"\\", r#""q\"\\""#),
            ("{", "\"{\""),
        ] {
            let mut out = b"x".to_vec();
            out.extend_from_slice(plain.as_bytes());
            quote_element(1, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("x{expected}"));
        }
    }
}
