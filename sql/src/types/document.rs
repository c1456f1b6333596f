//! Columns of STRUCT and MAP under construction, and arrays of them: from JSON text.
//!
//! Leaves out scalars, which are `ColumnBuilder`'s own. Every field may be absent, which is NULL. Only `ColumnBuilder`
//! and `copy::json` call it. After an error the column is to be dropped, as with `ColumnBuilder`.

use super::builder::{ColumnBuilder, check_elements};
use super::canonical::canonical;
use super::encoder::ColumnEncoder;
use super::error::ValueError;
use super::json::{JsonKind, check_json, decode_string};
use super::json_path::{Part, kind_name};
use super::text::check_text;
use super::width::least_bytes;
use arrow::array::{Array, ArrayRef, MapArray, NullBufferBuilder, StructArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, FieldRef, Fields};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use millstream_catalog::schema::StructField;
use std::sync::Arc;

/// A STRUCT column under construction.
#[derive(Debug)]
pub(super) struct StructSink {
    fields: Fields,
    children: Vec<ColumnBuilder>,
    nulls: NullBufferBuilder,
    /// Which fields the current value gave.
    given: Vec<bool>,
}

/// A MAP column under construction.
#[derive(Debug)]
pub(super) struct MapSink {
    entries: FieldRef,
    keys: ColumnBuilder,
    values: ColumnBuilder,
    /// Bytes that each entry takes at least.
    width: usize,
    ends: Vec<i32>,
    nulls: NullBufferBuilder,
    /// The keys of the current value as they were given, if that is how they are stored.
    given: Vec<Vec<u8>>,
    /// They themselves, if not.
    typed: Option<ColumnBuilder>,
}

impl StructSink {
    pub(super) fn new(sql_type: &SqlType, fields: &[StructField], capacity: usize) -> Self {
        let children = fields.iter().map(|field| ColumnBuilder::new(&field.sql_type, capacity)).collect();
        let fields = match sql_type.arrow() {
            DataType::Struct(fields) => fields,
            _ => Fields::empty(),
        };
        let given = vec![false; fields.len()];
        Self { fields, children, nulls: NullBufferBuilder::new(capacity), given }
    }

    pub(super) fn len(&self) -> usize {
        self.nulls.len()
    }

    pub(super) fn append_null(&mut self) {
        self.nulls.append_null();
        self.children.iter_mut().for_each(ColumnBuilder::append_null);
    }

    pub(super) fn finish(&mut self) -> ArrayRef {
        let children = self.children.iter_mut().map(ColumnBuilder::finish).collect();
        Arc::new(StructArray::new(self.fields.clone(), children, self.nulls.finish()))
    }

    pub(super) fn element_bytes(&self) -> usize {
        self.children.iter().map(ColumnBuilder::element_bytes).sum()
    }

    fn append_object(&mut self, object: Part<'_>, sql_type: &SqlType) -> Result<(), ValueError> {
        self.given.fill(false);
        let mut scratch = Vec::new();
        object.members(|key, part| {
            let key = key.unwrap_or_default();
            let found = self.fields.iter().position(|field| field.name().as_bytes() == key);
            let Some(at) = found else {
                return Err(refused(sql_type, format!("key {} is not a field", shown(key))));
            };
            if std::mem::replace(&mut self.given[at], true) {
                return Err(refused(sql_type, format!("key {} is there twice", shown(key))));
            }
            append_json(&mut self.children[at], part, &mut scratch).map_err(|error| within(error, key))
        })?;
        let children = self.children.iter_mut().zip(&self.given);
        children.filter(|(_, given)| !**given).for_each(|(child, _)| child.append_null());
        self.nulls.append_non_null();
        Ok(())
    }
}

impl MapSink {
    pub(super) fn new(sql_type: &SqlType, key: &SqlType, value: &SqlType, capacity: usize) -> Self {
        let entries = match sql_type.arrow() {
            DataType::Map(entries, _) => entries,
            other => Arc::new(arrow::datatypes::Field::new("entries", other, false)),
        };
        Self {
            entries,
            keys: ColumnBuilder::new(key, capacity),
            values: ColumnBuilder::new(value, capacity),
            width: least_bytes(&key.arrow()) + least_bytes(&value.arrow()),
            ends: Vec::with_capacity(capacity),
            nulls: NullBufferBuilder::new(capacity),
            given: Vec::new(),
            typed: (*key != SqlType::Text).then(|| ColumnBuilder::new(key, 0)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn append_null(&mut self) {
        self.nulls.append_null();
        self.ends.push(self.keys.len_i32());
    }

    pub(super) fn finish(&mut self) -> ArrayRef {
        let mut offsets = Vec::with_capacity(self.ends.len() + 1);
        offsets.push(0);
        offsets.append(&mut self.ends);
        let fields = match self.entries.data_type() {
            DataType::Struct(fields) => fields.clone(),
            _ => Fields::empty(),
        };
        let entries = StructArray::new(fields, vec![self.keys.finish(), self.values.finish()], None);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        Arc::new(MapArray::new(Arc::clone(&self.entries), offsets, entries, self.nulls.finish(), false))
    }

    pub(super) fn element_bytes(&self) -> usize {
        self.keys.len() * self.width + self.values.element_bytes()
    }

    fn append_object(&mut self, object: Part<'_>, sql_type: &SqlType) -> Result<(), ValueError> {
        self.given.clear();
        let mut scratch = Vec::new();
        object.members(|key, part| {
            check_elements(self.keys.len(), self.width)?;
            let key = key.unwrap_or_default();
            self.keys.append_text(key).map_err(|error| within(error, key))?;
            match &mut self.typed {
                Some(typed) => typed.append_text(key).map_err(|error| within(error, key))?,
                None => self.given.push(key.to_vec()),
            }
            append_json(&mut self.values, part, &mut scratch).map_err(|error| within(error, key))
        })?;
        if let Some(typed) = &mut self.typed {
            // `1` and `01` are one number.
            let keys = canonical(typed.finish());
            let texts = ColumnEncoder::new(keys.as_ref(), typed.sql_type());
            self.given.extend((0..keys.len()).map(|row| {
                let mut text = Vec::new();
                texts.text(row, &mut text);
                text
            }));
        }
        self.given.sort_unstable();
        if let Some([twice, _]) = self.given.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(refused(sql_type, format!("key {} is there twice", shown(twice))));
        }
        self.nulls.append_non_null();
        self.ends.push(self.keys.len_i32());
        Ok(())
    }
}

fn shown(key: &[u8]) -> String {
    format!("\"{}\"", super::quoted(key))
}

fn refused(sql_type: &SqlType, detail: String) -> ValueError {
    let message = format!("invalid input syntax for type {sql_type}");
    ValueError::new(SqlState::InvalidTextRepresentation, message).detail(detail)
}

/// `error`, of a value inside of the field `name`: its detail begins with the path to it.
fn within(error: ValueError, name: &[u8]) -> ValueError {
    const START: &str = "field \"";
    let name = super::quoted(name).into_owned();
    let detail = match &error.detail {
        Some(detail) => match detail.strip_prefix(START) {
            Some(path) => format!("{START}{name}.{path}"),
            None => format!("{START}{name}\": {detail}"),
        },
        None => format!("{START}{name}\""),
    };
    ValueError { detail: Some(detail), at: None, ..error }
}

/// Appends a STRUCT, a MAP or an array of them from JSON text; JSON's null is NULL.
pub(super) fn append_text(builder: &mut ColumnBuilder, text: &[u8]) -> Result<(), ValueError> {
    check_text(text)?;
    check_json(text)?;
    append_json(builder, Part::whole(text)?, &mut Vec::new())
}

/// Appends a JSON value to a column of any type; `scratch` holds decoded texts.
pub(crate) fn append_json(
    builder: &mut ColumnBuilder,
    part: Part<'_>,
    scratch: &mut Vec<u8>,
) -> Result<(), ValueError> {
    match (builder.sql_type(), part.kind) {
        (SqlType::Json | SqlType::Jsonb, _) if part.kind != JsonKind::Null => builder.append_text(part.raw),
        (_, JsonKind::Null) => {
            builder.append_null();
            Ok(())
        }
        (SqlType::Struct(_) | SqlType::Map(..), JsonKind::Object) => append_object(builder, part),
        (SqlType::Array(_), JsonKind::Array) => append_items(builder, part, scratch),
        (sql_type, kind) if sql_type.is_document() => {
            let wanted = if let SqlType::Array(_) = sql_type { "a JSON array" } else { "a JSON object" };
            Err(refused(sql_type, format!("{wanted} is needed, {} is given", kind_name(kind))))
        }
        (_, JsonKind::String) if !part.raw.contains(&b'\\') => builder.append_text(&part.raw[1..part.raw.len() - 1]),
        (_, JsonKind::String) => {
            scratch.clear();
            decode_string(part.raw, scratch)?;
            builder.append_text(scratch)
        }
        // A nested value in a text column is kept as JSON text; other types refuse it.
        _ => builder.append_text(part.raw),
    }
}

fn append_object(builder: &mut ColumnBuilder, part: Part<'_>) -> Result<(), ValueError> {
    let sql_type = builder.sql_type().clone();
    match builder.document() {
        Some(Document::Struct(sink)) => sink.append_object(part, &sql_type),
        Some(Document::Map(sink)) => sink.append_object(part, &sql_type),
        None => Err(refused(&sql_type, "no JSON object is one".to_owned())),
    }
}

/// The sink of a builder of STRUCT or MAP.
pub(super) enum Document<'a> {
    Struct(&'a mut StructSink),
    Map(&'a mut MapSink),
}

/// Appends a JSON array to an array column.
fn append_items(builder: &mut ColumnBuilder, array: Part<'_>, scratch: &mut Vec<u8>) -> Result<(), ValueError> {
    array.members(|_, part| {
        builder.check_items()?;
        match builder.items() {
            Some(items) => append_json(items, part, scratch),
            None => Ok(()),
        }
    })?;
    builder.end_items();
    Ok(())
}
