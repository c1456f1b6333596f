//! JSON lines: one object per line, its keys the names of columns.
//!
//! A missing key takes the column's default, null is NULL, nested values go to json and array columns.
//! Leaves out the scanner (`types::json`). Blank lines are skipped.

use super::sink::Sink;
use crate::error::SqlError;
use crate::types::document::append_json;
use crate::types::json::{JsonKind, decode_string, skip_key, skip_space, skip_string, skip_value, unexpected};
use crate::types::json_path::Part;
use crate::types::{ValueError, quoted};
use millstream_catalog::model::SqlState;
use std::ops::Range;

/// Reads JSON lines.
#[derive(Debug)]
pub(super) struct JsonFields {
    /// Where the value of each target is in the line.
    values: Vec<Option<(JsonKind, Range<usize>)>>,
    scratch: Vec<u8>,
}

impl JsonFields {
    pub(super) fn new(width: usize) -> Self {
        Self { values: vec![None; width], scratch: Vec::new() }
    }

    /// Reads one line.
    pub(super) fn row(&mut self, line: &[u8], sink: &mut Sink) -> Result<(), SqlError> {
        let start = skip_space(line, 0);
        if start == line.len() {
            return Ok(());
        }
        if line[start] != b'{' {
            return Err(sink.bad_at("line is not a JSON object", line, start));
        }
        self.values.fill(None);
        self.scan(line, start + 1, sink)?;
        for at in 0..self.values.len() {
            match self.values[at].clone() {
                None => sink.absent(at)?,
                Some((JsonKind::Null, _)) => sink.null(at)?,
                Some((kind, range)) => {
                    let raw = &line[range];
                    let outcome = append_json(sink.builder(at), Part { kind, raw }, &mut self.scratch);
                    outcome.map_err(|error| sink.refuse(at, raw, error))?;
                }
            }
        }
        sink.end_row(line.len())
    }

    /// Finds the values of the object whose first key is at or after `at`.
    fn scan(&mut self, line: &[u8], at: usize, sink: &Sink) -> Result<(), SqlError> {
        let syntax = |error: ValueError| {
            let context = sink.place_in(line, error.at.unwrap_or(0));
            SqlError::from(error).context(context)
        };
        let mut at = skip_space(line, at);
        let mut expected = 0;
        let mut is_first = true;
        loop {
            if line.get(at) == Some(&b'}') && is_first {
                break;
            }
            let value = skip_key(line, at).map_err(syntax)?;
            let key_end = skip_string(line, at).map_err(syntax)?;
            let target = self.target(&line[at..key_end], expected, sink);
            let target = target.map_err(|error| syntax(ValueError { at: Some(at), ..error }))?;
            let (kind, end) = skip_value(line, value).map_err(syntax)?;
            let Some(target) = target else {
                let key = quoted(&line[at + 1..key_end - 1]);
                let message = format!("key \"{key}\" is not a column of the COPY");
                return Err(SqlError::new(SqlState::UndefinedColumn, message).context(sink.place_in(line, at)));
            };
            if self.values[target].replace((kind, value..end)).is_some() {
                return Err(sink.bad_at(format!("duplicate key \"{}\"", sink.name(target)), line, at));
            }
            expected = target + 1;
            is_first = false;
            at = skip_space(line, end);
            match line.get(at) {
                Some(b',') => at = skip_space(line, at + 1),
                Some(b'}') => break,
                _ => return Err(syntax(unexpected(line, at))),
            }
        }
        let end = skip_space(line, at + 1);
        if end == line.len() { Ok(()) } else { Err(syntax(unexpected(line, end))) }
    }

    /// The target of a key, its quotes included; most lines have their keys in the order of the columns.
    fn target(&mut self, raw: &[u8], expected: usize, sink: &Sink) -> Result<Option<usize>, ValueError> {
        let plain = &raw[1..raw.len() - 1];
        if expected < sink.width() && sink.name(expected).as_bytes() == plain {
            return Ok(Some(expected));
        }
        if !plain.contains(&b'\\') {
            return Ok(sink.find(plain));
        }
        self.scratch.clear();
        decode_string(raw, &mut self.scratch)?;
        Ok(sink.find(&self.scratch))
    }
}
