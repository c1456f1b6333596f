//! Where one statement ends and the next begins: semicolons outside of quotes and comments.
//!
//! Follows PostgreSQL's lexical rules (PostgreSQL 15 documentation, 4.1): quotes, `E''` escapes, dollar
//! quotes, line comments and nested block comments. Leaves out whether the statement means anything.

/// The first statement of `text` with its semicolon, and the bytes up to its end; `None` when it is not complete.
pub(crate) fn next(text: &str) -> Option<(&str, usize)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        at = match bytes[at] {
            b';' => return Some((text[..=at].trim(), at + 1)),
            b'\'' => quoted(bytes, at, is_escaping(bytes, at))?,
            b'"' => quoted(bytes, at, false)?,
            b'-' if bytes.get(at + 1) == Some(&b'-') => line_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => comment(bytes, at)?,
            b'$' => dollar(text, at)?,
            _ => at + 1,
        };
    }
    None
}

/// True when there is nothing but spaces and comments.
pub(crate) fn is_blank(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        at = match bytes[at] {
            b'-' if bytes.get(at + 1) == Some(&b'-') => line_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => comment(bytes, at).unwrap_or(bytes.len()),
            byte if byte.is_ascii_whitespace() => at + 1,
            _ => return false,
        };
    }
    true
}

/// Whether the quote at `at` belongs to an `E'…'` string.
fn is_escaping(bytes: &[u8], at: usize) -> bool {
    let is_e = at > 0 && bytes[at - 1].eq_ignore_ascii_case(&b'e');
    let is_word = at > 1 && (bytes[at - 2].is_ascii_alphanumeric() || bytes[at - 2] == b'_');
    is_e && !is_word
}

fn quoted(bytes: &[u8], start: usize, has_escapes: bool) -> Option<usize> {
    let quote = bytes[start];
    let mut at = start + 1;
    while at < bytes.len() {
        if has_escapes && bytes[at] == b'\\' {
            at += 2;
        } else if bytes[at] == quote {
            return Some(at + 1);
        } else {
            at += 1;
        }
    }
    None
}

fn line_end(bytes: &[u8], start: usize) -> usize {
    bytes[start..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| start + at + 1)
}

fn comment(bytes: &[u8], start: usize) -> Option<usize> {
    let mut depth = 0;
    let mut at = start;
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => {
                depth += 1;
                at += 2;
            }
            b"*/" => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => at += 1,
        }
    }
    None
}

/// The end of `$tag$…$tag$` at `start`; one further where it is only a dollar sign.
fn dollar(text: &str, start: usize) -> Option<usize> {
    let rest = &text[start + 1..];
    let Some(len) = rest.find('$') else { return Some(start + 1) };
    let is_tag = rest[..len].chars().all(|c| c.is_alphanumeric() || c == '_');
    let follows_word = text[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    if !is_tag || follows_word || rest.starts_with(|c: char| c.is_ascii_digit()) {
        return Some(start + 1);
    }
    let tag = &text[start..start + len + 2];
    let body = start + tag.len();
    text[body..].find(tag).map(|at| body + at + tag.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_within_quotes_and_comments_end_nothing() {
        for text in [
            "SELECT ';' ;",
            "SELECT \";\" ;",
            "SELECT E'\\';' ;",
            "SELECT $$;$$ ;",
            "SELECT $a$ ; $$ ; $a$ ;",
            "SELECT 1 -- ;\n ;",
            "SELECT /* ; /* ; */ ; */ 1 ;",
            "SELECT $1 + 2 ;",
            "SELECT 'it''s;' ;",
        ] {
            assert_eq!(next(text), Some((text, text.len())), "{text}");
        }
        for text in ["SELECT 1", "SELECT ';", "SELECT $$;", "/* ;", "SELECT \"a;"] {
            assert_eq!(next(text), None, "{text}");
        }
        assert_eq!(next("a; b;"), Some(("a;", 2)));
    }

    #[test]
    fn blank_text_has_only_spaces_and_comments() {
        assert!(is_blank(" \n-- x\n/* y */ "));
        assert!(!is_blank("-- x\n1"));
    }
}
