//! Unicode escapes of `U&'…'` and `U&"…"`.
//!
//! Used by the lexer. A crash does nothing to it.

/// Resolves `\XXXX`, `\+XXXXXX` and `\\`.
pub(super) fn unicode_escapes(raw: &str) -> Option<String> {
    let mut value = String::with_capacity(raw.len());
    let mut high = None;
    let mut rest = raw;
    while let Some(c) = rest.chars().next() {
        rest = rest.get(c.len_utf8()..)?;
        if c != '\\' || rest.starts_with('\\') {
            if high.is_some() {
                return None;
            }
            value.push(c);
            rest = if c == '\\' { rest.get(1..)? } else { rest };
            continue;
        }
        let (skip, length) = if rest.starts_with('+') { (1, 6) } else { (0, 4) };
        let digits = rest.get(skip..skip + length).filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))?;
        let code = u32::from_str_radix(digits, 16).ok()?;
        rest = rest.get(skip + length..)?;
        match (high.take(), code) {
            (None, 0xd800..=0xdbff) => high = Some(code),
            (None, _) => value.push(char::from_u32(code).filter(|c| *c != '\0')?),
            (Some(high), 0xdc00..=0xdfff) => {
                value.push(char::from_u32(0x10000 + ((high - 0xd800) << 10) + (code - 0xdc00))?);
            }
            _ => return None,
        }
    }
    high.is_none().then_some(value)
}
