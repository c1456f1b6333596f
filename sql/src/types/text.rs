//! Text, `varchar(n)`, `char(n)`, `bytea` and `uuid`: checks, input and output.
//!
//! Leaves out JSON. `ColumnBuilder` and `ColumnEncoder` call it.

use super::error::ValueError;
use millstream_catalog::model::SqlState;
use std::fmt::Write;

/// `bytes` as text: UTF-8 without NUL, as PostgreSQL's server encoding requires.
pub(crate) fn check_text(bytes: &[u8]) -> Result<&str, ValueError> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !bytes.contains(&0) => Ok(text),
        Ok(_) => Err(invalid_sequence(&[0])),
        Err(error) => {
            let start = error.valid_up_to();
            let expected = match bytes[start] {
                0xC0..=0xDF => 2,
                0xE0..=0xEF => 3,
                0xF0..=0xF7 => 4,
                _ => 1,
            };
            let end = (start + expected).min(bytes.len());
            Err(match bytes[..start].contains(&0) {
                true => invalid_sequence(&[0]),
                false => invalid_sequence(&bytes[start..end]),
            })
        }
    }
}

fn invalid_sequence(bytes: &[u8]) -> ValueError {
    let mut message = "invalid byte sequence for encoding \"UTF8\":".to_owned();
    for byte in bytes {
        let _ = write!(message, " 0x{byte:02x}");
    }
    ValueError::new(SqlState::CharacterNotInRepertoire, message)
}

/// The part of `text` a `varchar(n)` or `char(n)` holds: only blanks may be cut.
pub(crate) fn cut<'a>(text: &'a str, chars_max: u32, type_name: &str) -> Result<&'a str, ValueError> {
    let max = chars_max as usize;
    if text.len() <= max {
        return Ok(text);
    }
    match text.char_indices().nth(max) {
        None => Ok(text),
        Some((end, _)) if text[end..].bytes().all(|byte| byte == b' ') => Ok(&text[..end]),
        Some(_) => Err(ValueError::new(
            SqlState::StringDataRightTruncation,
            format!("value too long for type {type_name}({chars_max})"),
        )),
    }
}

/// Reads `bytea` in hex (`\x…`) or escape form, appending to `out`.
pub(crate) fn parse_bytea(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    if let Some(hex) = text.strip_prefix(b"\\x") {
        return parse_hex(hex, out);
    }
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        if *first != b'\\' {
            out.push(*first);
            rest = tail;
            continue;
        }
        rest = match tail {
            [b'\\', tail @ ..] => {
                out.push(b'\\');
                tail
            }
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                tail
            }
            _ => {
                return Err(ValueError::new(
                    SqlState::InvalidTextRepresentation,
                    "invalid input syntax for type bytea",
                ));
            }
        };
    }
    Ok(())
}

fn parse_hex(hex: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    out.reserve(hex.len() / 2);
    let mut at = 0;
    while at < hex.len() {
        // White space may stand between bytes.
        if matches!(hex[at], b' ' | b'\n' | b'\t' | b'\r') {
            at += 1;
            continue;
        }
        let Some(high) = digit(hex[at]) else { return Err(invalid_hex(&hex[at..])) };
        let Some(next) = hex.get(at + 1) else {
            let message = "invalid hexadecimal data: odd number of digits";
            return Err(ValueError::new(SqlState::InvalidParameterValue, message));
        };
        let Some(low) = digit(*next) else { return Err(invalid_hex(&hex[at + 1..])) };
        out.push(high << 4 | low);
        at += 2;
    }
    Ok(())
}

fn invalid_hex(rest: &[u8]) -> ValueError {
    let lossy = String::from_utf8_lossy(&rest[..rest.len().min(4)]);
    let shown = lossy.chars().next().unwrap_or(char::REPLACEMENT_CHARACTER);
    ValueError::new(SqlState::InvalidParameterValue, format!("invalid hexadecimal digit: \"{shown}\""))
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Writes bytes in hex, without prefix.
pub(crate) fn write_hex(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len() * 2);
    for byte in bytes {
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
}

/// Reads a `uuid`: 32 hex digits, a hyphen after any group of four, braces around it or not.
pub(crate) fn parse_uuid(text: &[u8]) -> Result<[u8; 16], ValueError> {
    uuid_bytes(text).ok_or_else(|| ValueError::syntax("uuid", text))
}

fn uuid_bytes(text: &[u8]) -> Option<[u8; 16]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut rest = match text {
        [b'{', inner @ .., b'}'] => inner,
        [b'{', ..] => return None,
        plain => plain,
    };
    let mut uuid = [0u8; 16];
    for (i, byte) in uuid.iter_mut().enumerate() {
        let [high, low, tail @ ..] = rest else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
        rest = match tail {
            [b'-', tail @ ..] if i % 2 == 1 && i < 15 => tail,
            tail => tail,
        };
    }
    rest.is_empty().then_some(uuid)
}

/// Writes a `uuid` in the standard form.
pub(crate) fn write_uuid(uuid: &[u8], out: &mut Vec<u8>) {
    for (i, byte) in uuid.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        write_hex(std::slice::from_ref(byte), out);
    }
}
