//! Parts of JSON text: by key, by index, along a path.
//!
//! Works on checked text without making a tree of it. What is found keeps its text. Source: PostgreSQL 15,
//! `jsonfuncs.c`. Pure.

use super::error::ValueError;
use super::json::{JsonKind, decode_string, skip_key, skip_space, skip_string, skip_value, unexpected};

/// A value inside of a text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) kind: JsonKind,
    /// The value, no white space around it.
    pub(crate) raw: &'a [u8],
}

/// One step of a path.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step<'a> {
    /// A key of an object.
    Key(&'a [u8]),
    /// An element of an array: from 0, or from the end when negative.
    Index(i64),
    /// Of a path in text: a key of an object, a number in an array.
    Either(&'a [u8]),
}

impl<'a> Part<'a> {
    /// The whole of checked text.
    pub(crate) fn whole(text: &'a [u8]) -> Result<Self, ValueError> {
        let start = skip_space(text, 0);
        let (kind, end) = skip_value(text, start)?;
        Ok(Self { kind, raw: &text[start..end] })
    }

    /// True for objects and arrays.
    pub(crate) fn is_container(self) -> bool {
        matches!(self.kind, JsonKind::Object | JsonKind::Array)
    }

    /// The part that `step` leads to.
    pub(crate) fn step(self, step: Step<'_>) -> Result<Option<Self>, ValueError> {
        match (self.kind, step) {
            (JsonKind::Object, Step::Key(key) | Step::Either(key)) => {
                let mut found = None;
                // Of equal keys the last counts.
                self.members(|name, part| {
                    if name == Some(key) {
                        found = Some(part);
                    }
                    Ok(())
                })?;
                Ok(found)
            }
            (JsonKind::Array, Step::Index(index)) => self.item(index),
            (JsonKind::Array, Step::Either(text)) => {
                let text = std::str::from_utf8(text).unwrap_or("").trim_start();
                text.parse::<i32>().map_or(Ok(None), |index| self.item(index.into()))
            }
            _ => Ok(None),
        }
    }

    fn item(self, index: i64) -> Result<Option<Self>, ValueError> {
        let count = if index < 0 { self.count()? as i64 } else { 0 };
        let wanted = index + count;
        let (mut at, mut found) = (0, None);
        self.members(|_, part| {
            if at == wanted {
                found = Some(part);
            }
            at += 1;
            Ok(())
        })?;
        Ok(found)
    }

    /// Members of an object or elements of an array.
    pub(crate) fn count(self) -> Result<usize, ValueError> {
        let mut count = 0;
        self.members(|_, _| {
            count += 1;
            Ok(())
        })?;
        Ok(count)
    }

    /// Calls `visit` for each member of an object or element of an array, with the key of a member.
    ///
    /// # Errors
    /// The first that `visit` gives; 22P05 for a key that is no text.
    pub(crate) fn members(
        self,
        mut visit: impl FnMut(Option<&[u8]>, Self) -> Result<(), ValueError>,
    ) -> Result<(), ValueError> {
        if !self.is_container() {
            return Ok(());
        }
        let text = self.raw;
        let mut scratch = Vec::new();
        let mut at = skip_space(text, 1);
        while !matches!(text.get(at), None | Some(b'}' | b']')) {
            let mut key = None;
            if self.kind == JsonKind::Object {
                let end = skip_string(text, at)?;
                let raw = &text[at..end];
                key = Some(if raw.contains(&b'\\') {
                    scratch.clear();
                    decode_string(raw, &mut scratch)?;
                    scratch.as_slice()
                } else {
                    &raw[1..raw.len() - 1]
                });
                at = skip_key(text, at)?;
            }
            let (kind, end) = skip_value(text, at)?;
            visit(key, Self { kind, raw: &text[at..end] })?;
            at = skip_space(text, end);
            match text.get(at) {
                Some(b',') => at = skip_space(text, at + 1),
                Some(b'}' | b']') => {}
                _ => return Err(unexpected(text, at)),
            }
        }
        Ok(())
    }

    /// Appends the value as text: of a string its characters; false, and nothing appended, for null.
    pub(crate) fn text(self, out: &mut Vec<u8>) -> Result<bool, ValueError> {
        match self.kind {
            JsonKind::Null => return Ok(false),
            JsonKind::String => decode_string(self.raw, out)?,
            _ => out.extend_from_slice(self.raw),
        }
        Ok(true)
    }
}

/// What `json_typeof` says.
pub(crate) fn kind_name(kind: JsonKind) -> &'static str {
    match kind {
        JsonKind::Null => "null",
        JsonKind::True | JsonKind::False => "boolean",
        JsonKind::Number => "number",
        JsonKind::String => "string",
        JsonKind::Array => "array",
        JsonKind::Object => "object",
    }
}
