//! JSON values as trees: how `jsonb` prints, and what it is equal to and ordered by.
//!
//! Leaves out the scanner (`json`) and operators (`json_match`). Source: PostgreSQL 15, `jsonb_util.c`. Pure.

use super::error::ValueError;
use super::json::{
    JsonKind, check_json, decode_string, skip_key, skip_space, skip_string, token, unexpected, write_string,
};
use super::numeric::{format_overflow, write_json_number};
use millstream_catalog::model::limit::EVENT_BYTES_MAX;

/// A parsed value; words and numbers are ranges of the text.
#[derive(Debug)]
pub(crate) enum Node<'a> {
    Word(&'a [u8]),
    Number(&'a [u8]),
    String(Vec<u8>),
    Array(Vec<Node<'a>>),
    Object(Vec<(Vec<u8>, Node<'a>)>),
}

/// Checks `text` and writes it as `jsonb` prints it: keys ordered by length, then bytes, the last of equal
/// keys kept, numbers without exponents, one space after `:` and `,`.
pub(crate) fn normalise(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    check_json(text)?;
    print(&parse(text)?, Scale::Kept, out)
}

/// Writes the `jsonb` value `text` in the one form that all values equal to it have: numbers without zeros at their end.
pub(crate) fn canonicalise(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    print(&parse(text)?, Scale::Shortest, out)
}

/// Zeros at the end of a number's fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Printed as given.
    Kept,
    /// Left out.
    Shortest,
}

/// A container whose end has not been met.
enum Open<'a> {
    Array(Vec<Node<'a>>),
    /// The entries, and the key whose value is being read.
    Object(Vec<(Vec<u8>, Node<'a>)>, Vec<u8>),
}

/// Parses checked text, without recursion: the stack of a task is small.
pub(crate) fn parse(text: &[u8]) -> Result<Node<'_>, ValueError> {
    let mut open: Vec<Open<'_>> = Vec::new();
    let mut at = skip_space(text, 0);
    loop {
        at = match open.last_mut() {
            Some(Open::Object(_, key)) if text.get(at) == Some(&b'"') => {
                *key = decoded(&text[at..skip_string(text, at)?])?;
                skip_key(text, at)?
            }
            _ => at,
        };
        let mut node = match text.get(at) {
            Some(b'{') => {
                open.push(Open::Object(Vec::new(), Vec::new()));
                at = skip_space(text, at + 1);
                if text.get(at) != Some(&b'}') {
                    continue;
                }
                None
            }
            Some(b'[') => {
                open.push(Open::Array(Vec::new()));
                at = skip_space(text, at + 1);
                if text.get(at) != Some(&b']') {
                    continue;
                }
                None
            }
            _ => {
                let (kind, end) = token(text, at)?;
                let raw = &text[at..end];
                at = skip_space(text, end);
                Some(match kind {
                    JsonKind::Number => Node::Number(raw),
                    JsonKind::String => Node::String(decoded(raw)?),
                    _ => Node::Word(raw),
                })
            }
        };
        // A value has ended: it goes to its container, which may end with it.
        loop {
            let closed = match (node.take(), open.last_mut()) {
                (Some(node), None) => return Ok(node),
                (Some(node), Some(Open::Array(items))) => {
                    items.push(node);
                    text.get(at) == Some(&b']')
                }
                (Some(node), Some(Open::Object(entries, key))) => {
                    entries.push((std::mem::take(key), node));
                    text.get(at) == Some(&b'}')
                }
                (None, _) => true,
            };
            if !closed {
                at = skip_space(text, at + 1);
                break;
            }
            at = skip_space(text, at + 1);
            node = match open.pop() {
                Some(Open::Array(items)) => Some(Node::Array(items)),
                Some(Open::Object(entries, _)) => Some(Node::Object(entries)),
                None => return Err(unexpected(text, at)),
            };
        }
    }
}

fn decoded(raw: &[u8]) -> Result<Vec<u8>, ValueError> {
    let mut out = Vec::with_capacity(raw.len());
    decode_string(raw, &mut out)?;
    Ok(out)
}

/// A container being printed: what is left of it.
enum Printing<'n, 'a> {
    Array(std::slice::Iter<'n, Node<'a>>),
    Object(std::vec::IntoIter<&'n (Vec<u8>, Node<'a>)>),
}

/// Entries in the order of `jsonb`, of equal keys only the last.
pub(super) fn ordered<'n, 'a>(entries: &'n [(Vec<u8>, Node<'a>)]) -> Vec<&'n (Vec<u8>, Node<'a>)> {
    let mut order: Vec<_> = entries.iter().rev().collect();
    // The sort is stable, so of equal keys the last given comes first.
    order.sort_by(|a, b| a.0.len().cmp(&b.0.len()).then_with(|| a.0.cmp(&b.0)));
    order.dedup_by(|later, first| later.0 == first.0);
    order
}

/// Writes a value as `jsonb` prints it.
pub(crate) fn print(node: &Node<'_>, scale: Scale, out: &mut Vec<u8>) -> Result<(), ValueError> {
    let mut open = Vec::new();
    print_start(node, scale, &mut open, out)?;
    let mut is_first = true;
    while let Some(last) = open.last_mut() {
        let (next, close) = match last {
            Printing::Array(items) => (items.next().map(|item| (None, item)), b']'),
            Printing::Object(entries) => (entries.next().map(|entry| (Some(&entry.0), &entry.1)), b'}'),
        };
        let Some((key, value)) = next else {
            out.push(close);
            open.pop();
            is_first = false;
            continue;
        };
        if !is_first {
            out.extend_from_slice(b", ");
        }
        if let Some(key) = key {
            write_string(key, out);
            out.extend_from_slice(b": ");
        }
        let depth = open.len();
        print_start(value, scale, &mut open, out)?;
        is_first = open.len() > depth;
    }
    Ok(())
}

/// Prints a scalar, or the start of a container and puts it on the stack.
fn print_start<'n, 'a>(
    node: &'n Node<'a>,
    scale: Scale,
    open: &mut Vec<Printing<'n, 'a>>,
    out: &mut Vec<u8>,
) -> Result<(), ValueError> {
    match node {
        Node::Word(word) => out.extend_from_slice(word),
        Node::String(text) => write_string(text, out),
        Node::Number(number) => {
            // A short exponent may stand for many digits: the value as a whole stays within an event.
            let room = EVENT_BYTES_MAX.as_usize().saturating_sub(out.len());
            let start = out.len();
            write_json_number(number, room, out).ok_or_else(|| format_overflow(number))?;
            if scale == Scale::Shortest && out[start..].contains(&b'.') {
                out.truncate(out.len() - out.iter().rev().take_while(|byte| **byte == b'0').count());
                let _ = out.pop_if(|byte| *byte == b'.');
            }
        }
        Node::Array(items) => {
            out.push(b'[');
            open.push(Printing::Array(items.iter()));
        }
        Node::Object(entries) => {
            out.push(b'{');
            open.push(Printing::Object(ordered(entries).into_iter()));
        }
    }
    Ok(())
}

/// Appends bytes that are equal for equal values and ordered as PostgreSQL orders `jsonb`: an empty array, scalars, arrays
/// by length, objects by number of keys; inside of them null, texts, numbers, booleans, arrays, objects.
///
/// # Errors
/// 22003 for a number that no numeric holds.
pub(crate) fn sort_key(node: &Node<'_>, out: &mut Vec<u8>) -> Result<(), ValueError> {
    match node {
        Node::Array(items) if items.is_empty() => out.push(0),
        Node::Array(_) | Node::Object(_) => {}
        _ => out.push(1),
    }
    inner_key(node, out)
}

fn inner_key(node: &Node<'_>, out: &mut Vec<u8>) -> Result<(), ValueError> {
    let text = |text: &[u8], out: &mut Vec<u8>| {
        // No text has a zero byte, so that it ends what is shorter before what is longer.
        out.extend_from_slice(text);
        out.push(0);
    };
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes();
    match node {
        Node::Word(b"null") => out.push(1),
        Node::String(value) => {
            out.push(2);
            text(value, out);
        }
        Node::Number(number) => {
            out.push(3);
            number_key(number, out)?;
        }
        Node::Word(word) => out.extend_from_slice(&[4, u8::from(*word == b"true")]),
        Node::Array(items) => {
            out.push(5);
            out.extend_from_slice(&count(items.len()));
            items.iter().try_for_each(|item| inner_key(item, out))?;
        }
        Node::Object(entries) => {
            let entries = ordered(entries);
            out.push(6);
            out.extend_from_slice(&count(entries.len()));
            for (key, value) in entries {
                text(key, out);
                inner_key(value, out)?;
            }
        }
    }
    Ok(())
}

/// Sign, power of ten and digits; of a negative number all but the sign inverted.
fn number_key(number: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let mut plain = Vec::new();
    write_json_number(number, EVENT_BYTES_MAX.as_usize(), &mut plain).ok_or_else(|| format_overflow(number))?;
    let (digits, is_negative) = plain.strip_prefix(b"-").map_or((&plain[..], false), |digits| (digits, true));
    let whole = digits.iter().position(|byte| *byte == b'.').unwrap_or(digits.len());
    let significant: Vec<u8> = digits.iter().copied().filter(|byte| *byte != b'.').collect();
    let Some(first) = significant.iter().position(|digit| *digit != b'0') else {
        out.push(1);
        return Ok(());
    };
    let last = significant.iter().rposition(|digit| *digit != b'0').unwrap_or(first);
    // At most 131,072 digits stand before the point and 16,383 behind it.
    let power = (whole as i32 - first as i32).cast_unsigned() ^ 0x8000_0000;
    out.push(if is_negative { 0 } else { 2 });
    let start = out.len();
    out.extend_from_slice(&power.to_be_bytes());
    out.extend_from_slice(&significant[first..=last]);
    out.push(0);
    if is_negative {
        out[start..].iter_mut().for_each(|byte| *byte = !*byte);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        sort_key(&parse(text.as_bytes()).unwrap(), &mut out).unwrap();
        out
    }

    #[test]
    fn keys_are_ordered_as_postgresql_orders_jsonb() {
        // Ascending in PostgreSQL 15; equal ones on one line.
        let ordered: &[&[&str]] = &[
            &["[]"],
            &["null"],
            &[r#""""#],
            &[r#""A""#],
            &[r#""a""#],
            &[r#""aa""#],
            &[r#""b""#],
            &["-1e30"],
            &["-10", "-10.0"],
            &["-9.99"],
            &["-1"],
            &["-0.01"],
            &["0", "-0", "0.000", "0e5"],
            &["0.0100", "1e-2"],
            &["0.1"],
            &["1", "1.0", "1.00", "10e-1"],
            &["1.01"],
            &["9"],
            &["10"],
            &["1e30"],
            &["false"],
            &["true"],
            &["[null]"],
            &[r#"["a"]"#],
            &["[1]", "[1.0]"],
            &["[true]"],
            &["[[]]"],
            &["[{}]"],
            &["[1, 2]"],
            &["[1, 3]"],
            &["[[], 1]"],
            &["{}"],
            &[r#"{"a": 1}"#, r#"{"a": 1.00}"#],
            &[r#"{"a": 2}"#],
            &[r#"{"b": 1}"#],
            &[r#"{"a": 1, "b": 2}"#, r#"{"b": 2.0, "a": 1}"#],
        ];
        for (at, equal) in ordered.iter().enumerate() {
            for one in *equal {
                assert_eq!(key(one), key(equal[0]), "{one}");
                for (other_at, other) in ordered.iter().enumerate() {
                    assert_eq!(key(one).cmp(&key(other[0])), at.cmp(&other_at), "{one} {}", other[0]);
                }
            }
        }
    }

    #[test]
    fn equal_values_have_one_canonical_form() {
        for (text, expected) in [("[1.00, 10, -0.50]", "[1, 10, -0.5]"), (r#"{"a": 100.0}"#, r#"{"a": 100}"#)] {
            let mut out = Vec::new();
            canonicalise(text.as_bytes(), &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
