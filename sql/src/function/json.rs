//! Functions and operators of `json` and `jsonb`.
//!
//! A call is made for the types of its arguments, so that it means the same wherever its arguments come from. Leaves out
//! which call an operator is (`plan::json`). Source: PostgreSQL 15, section 9.16. Pure.

use super::cast::bad_argument;
use super::errors::{external, fail};
use crate::types::json::{JsonKind, write_string};
use crate::types::json_match::{concatenate, contains, has_key, without_index, without_key};
use crate::types::json_node::{Scale, normalise, parse, print};
use crate::types::json_path::{Part, Step, kind_name};
use crate::types::json_value::write_json;
use crate::types::{ColumnBuilder, ColumnEncoder, ValueError, scalar_first};
use arrow::array::{Array, ArrayRef, AsArray, BooleanBuilder, Int32Builder};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use std::sync::Arc;

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum JsonOp {
    /// `value -> key` or index.
    Get,
    /// `value ->> key` or index.
    GetText,
    /// `value #> path`, a text array.
    Path,
    /// `value #>> path`
    PathText,
    /// `json_extract_path(value, key, …)`
    Extract,
    /// `json_extract_path_text(value, key, …)`
    ExtractText,
    /// `json_typeof(value)`
    TypeOf,
    /// `json_array_length(value)`
    Length,
    /// `value @> part`
    Contains,
    /// `value ? key`
    Exists,
    /// `value ?| keys`
    ExistsAny,
    /// `value ?& keys`
    ExistsAll,
    /// `left || right`
    Concat,
    /// `value - key`, index or keys.
    Remove,
    /// `json_build_object(key, value, …)`
    Object,
    /// `json_build_array(value, …)`
    Array,
    /// `to_json(value)`
    Convert,
}

impl JsonOp {
    fn word(self) -> &'static str {
        match self {
            Self::Get => "->",
            Self::GetText => "->>",
            Self::Path => "#>",
            Self::PathText => "#>>",
            Self::Extract => "json_extract_path",
            Self::ExtractText => "json_extract_path_text",
            Self::TypeOf => "json_typeof",
            Self::Length => "json_array_length",
            Self::Contains => "@>",
            Self::Exists => "?",
            Self::ExistsAny => "?|",
            Self::ExistsAll => "?&",
            Self::Concat => "||",
            Self::Remove => "-",
            Self::Object => "json_build_object",
            Self::Array => "json_build_array",
            Self::Convert => "to_json",
        }
    }
}

/// A call for arguments of certain types.
#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonCall {
    op: JsonOp,
    types: Vec<SqlType>,
    result: SqlType,
    name: String,
    signature: Signature,
}

/// The call of `op` for arguments of `types`, with a result of `result`.
pub(crate) fn json_call(op: JsonOp, types: Vec<SqlType>, result: SqlType) -> ScalarUDF {
    let name = format!("{} {result}", op.word());
    let signature = if types.is_empty() {
        Signature::nullary(Volatility::Immutable)
    } else {
        Signature::any(types.len(), Volatility::Immutable)
    };
    ScalarUDF::new_from_impl(JsonCall { op, types, result, name, signature })
}

/// A function that statements know by name; `plan::json` makes it a [`json_call`].
#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonName {
    name: &'static str,
    signature: Signature,
}

/// The names of functions, and what each does; those of `jsonb` begin with that word.
pub(crate) const NAMES: [(&str, JsonOp); 16] = [
    ("json_typeof", JsonOp::TypeOf),
    ("jsonb_typeof", JsonOp::TypeOf),
    ("json_array_length", JsonOp::Length),
    ("jsonb_array_length", JsonOp::Length),
    ("json_extract_path", JsonOp::Extract),
    ("jsonb_extract_path", JsonOp::Extract),
    ("json_extract_path_text", JsonOp::ExtractText),
    ("jsonb_extract_path_text", JsonOp::ExtractText),
    ("json_build_object", JsonOp::Object),
    ("jsonb_build_object", JsonOp::Object),
    ("json_build_array", JsonOp::Array),
    ("jsonb_build_array", JsonOp::Array),
    ("to_json", JsonOp::Convert),
    ("to_jsonb", JsonOp::Convert),
    ("jsonb_concat", JsonOp::Concat),
    ("jsonb_contains", JsonOp::Contains),
];

/// The functions of [`NAMES`].
pub(super) fn functions() -> impl Iterator<Item = ScalarUDF> {
    NAMES.iter().map(|(name, _)| {
        let signature = Signature::variadic_any(Volatility::Immutable);
        ScalarUDF::new_from_impl(JsonName { name, signature })
    })
}

impl ScalarUDFImpl for JsonName {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(bad_argument(self.name))
    }
}

impl ScalarUDFImpl for JsonCall {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.result.arrow())
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(Arc::new(self.result.field(&self.name, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if is_scalar { 1 } else { args.number_rows };
        let arrays = args.args.iter().map(|arg| arg.to_array(rows)).collect::<Result<Vec<_>>>()?;
        let array = self.run(&arrays, rows)?;
        match is_scalar {
            true => Ok(ColumnarValue::Scalar(scalar_first(&array)?)),
            false => Ok(ColumnarValue::Array(array)),
        }
    }
}

fn wrapped(error: ValueError) -> datafusion::common::DataFusionError {
    external(error.into())
}

impl JsonCall {
    fn run(&self, arrays: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
        match self.op {
            JsonOp::Object | JsonOp::Array | JsonOp::Convert => self.build(arrays, rows),
            JsonOp::TypeOf | JsonOp::Concat | JsonOp::Remove => self.values(arrays, rows),
            JsonOp::Length => {
                let mut out = Int32Builder::with_capacity(rows);
                self.each(arrays, rows, |part, _| {
                    out.append_option(part.map(|(part, _)| array_length(part)).transpose()?);
                    Ok(())
                })?;
                Ok(Arc::new(out.finish()))
            }
            JsonOp::Contains | JsonOp::Exists | JsonOp::ExistsAny | JsonOp::ExistsAll => {
                let mut out = BooleanBuilder::with_capacity(rows);
                self.each(arrays, rows, |part, _| {
                    out.append_option(part.map(|(part, right)| self.test(part, &right)).transpose()?);
                    Ok(())
                })?;
                Ok(Arc::new(out.finish()))
            }
            _ => self.parts(arrays, rows),
        }
    }

    /// Calls `visit` with each row's first argument and the others; `None` where one of the strict ones is NULL.
    fn each(
        &self,
        arrays: &[ArrayRef],
        rows: usize,
        mut visit: impl FnMut(Option<(Part<'_>, Vec<Argument<'_>>)>, usize) -> Result<()>,
    ) -> Result<()> {
        let Some((first, others)) = arrays.split_first() else { return Err(bad_argument(self.op.word())) };
        let first = cast(first, &DataType::Utf8)?;
        let first = first.as_string::<i32>();
        let others = others.iter().map(Argument::prepare).collect::<Result<Vec<_>>>()?;
        for row in 0..rows {
            let is_null = first.is_null(row) || others.iter().any(|other| other.is_null(row));
            if is_null {
                visit(None, row)?;
                continue;
            }
            let part = Part::whole(first.value(row).as_bytes()).map_err(wrapped)?;
            let arguments: Vec<Argument<'_>> = others.iter().map(|other| Argument::of(other, row)).collect();
            visit(Some((part, arguments)), row)?;
        }
        Ok(())
    }

    /// `->`, `#>` and their kin.
    fn parts(&self, arrays: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
        let is_text = matches!(self.op, JsonOp::GetText | JsonOp::PathText | JsonOp::ExtractText);
        let Some(of_value) = self.types.first() else { return Err(bad_argument(self.op.word())) };
        let mut builder = ColumnBuilder::new(&SqlType::Text, rows);
        let mut scratch = Vec::new();
        self.each(arrays, rows, |found, _| {
            let mut part = match &found {
                Some((part, arguments)) => follow((self.op, of_value), *part, arguments).map_err(wrapped)?,
                None => None,
            };
            if let (true, Some(value)) = (is_text, part) {
                scratch.clear();
                if value.text(&mut scratch).map_err(wrapped)? {
                    return builder.append_text(&scratch).map_err(wrapped);
                }
                part = None;
            }
            match part {
                Some(part) => builder.append_text(part.raw).map_err(wrapped),
                None => {
                    builder.append_null();
                    Ok(())
                }
            }
        })?;
        Ok(builder.finish())
    }

    fn test(&self, part: Part<'_>, arguments: &[Argument<'_>]) -> Result<bool> {
        let value = parse(part.raw).map_err(wrapped)?;
        match (self.op, arguments) {
            (JsonOp::Contains, [Argument::Text(other)]) => {
                contains(&value, &parse(other.as_bytes()).map_err(wrapped)?).map_err(wrapped)
            }
            (_, [Argument::Text(key)]) => Ok(has_key(&value, key.as_bytes())),
            (JsonOp::ExistsAny, [Argument::Texts(keys)]) => {
                Ok(keys.iter().flatten().any(|key| has_key(&value, key.as_bytes())))
            }
            (_, [Argument::Texts(keys)]) => Ok(keys.iter().flatten().all(|key| has_key(&value, key.as_bytes()))),
            _ => Err(bad_argument(self.op.word())),
        }
    }

    /// Results that are made anew of a row's values.
    fn values(&self, arrays: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
        let mut builder = ColumnBuilder::new(&SqlType::Text, rows);
        let mut out = Vec::new();
        self.each(arrays, rows, |found, _| {
            let Some((part, arguments)) = found else {
                builder.append_null();
                return Ok(());
            };
            out.clear();
            if self.op == JsonOp::TypeOf {
                out.extend_from_slice(kind_name(part.kind).as_bytes());
            } else {
                let mut value = parse(part.raw).map_err(wrapped)?;
                match (self.op, arguments.as_slice()) {
                    (JsonOp::Concat, [Argument::Text(other)]) => {
                        value = concatenate(value, parse(other.as_bytes()).map_err(wrapped)?);
                    }
                    (_, [Argument::Text(key)]) => without_key(&mut value, key.as_bytes()).map_err(wrapped)?,
                    (_, [Argument::Texts(keys)]) => {
                        let mut keys = keys.iter().flatten();
                        keys.try_for_each(|key| without_key(&mut value, key.as_bytes())).map_err(wrapped)?;
                    }
                    (_, [Argument::Index(index)]) => without_index(&mut value, *index).map_err(wrapped)?,
                    _ => return Err(bad_argument(self.op.word())),
                }
                print(&value, Scale::Kept, &mut out).map_err(wrapped)?;
            }
            builder.append_text(&out).map_err(wrapped)
        })?;
        Ok(builder.finish())
    }

    /// `json_build_object`, `json_build_array`, `to_json`.
    fn build(&self, arrays: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
        let cells = arrays.iter().zip(&self.types);
        let cells: Vec<ColumnEncoder> =
            cells.map(|(array, sql_type)| ColumnEncoder::new(array.as_ref(), sql_type)).collect();
        let mut builder = ColumnBuilder::new(&SqlType::Text, rows);
        let (mut out, mut scratch) = (Vec::new(), Vec::new());
        for row in 0..rows {
            out.clear();
            match (self.op, cells.as_slice()) {
                (JsonOp::Convert, [cell]) if cell.is_null(row) => {
                    builder.append_null();
                    continue;
                }
                (JsonOp::Convert, [cell]) => write_json(cell, row, &mut scratch, &mut out),
                (JsonOp::Array, cells) => {
                    out.push(b'[');
                    for (at, cell) in cells.iter().enumerate() {
                        out.extend_from_slice(if at > 0 { b", " } else { b"" });
                        write_json(cell, row, &mut scratch, &mut out);
                    }
                    out.push(b']');
                }
                (_, cells) => write_object(cells, row, &mut out)?,
            }
            if self.result == SqlType::Jsonb {
                scratch.clear();
                normalise(&out, &mut scratch).map_err(wrapped)?;
                std::mem::swap(&mut out, &mut scratch);
            }
            builder.append_text(&out).map_err(wrapped)?;
        }
        Ok(builder.finish())
    }
}

fn write_object(cells: &[ColumnEncoder], row: usize, out: &mut Vec<u8>) -> Result<()> {
    let mut scratch = Vec::new();
    out.push(b'{');
    for (at, pair) in cells.chunks(2).enumerate() {
        let [key, value] = pair else { return Err(bad_argument(JsonOp::Object.word())) };
        out.extend_from_slice(if at > 0 { b", " } else { b"" });
        scratch.clear();
        if !key.text(row, &mut scratch) {
            let fact = format!("argument {}: key must not be null", at * 2 + 1);
            return Err(fail(SqlState::InvalidParameterValue, fact));
        }
        // A boolean as a key is a word.
        match (key.sql_type(), scratch.as_slice()) {
            (SqlType::Boolean, b"t") => out.extend_from_slice(b"\"true\""),
            (SqlType::Boolean, _) => out.extend_from_slice(b"\"false\""),
            (_, text) => write_string(text, out),
        }
        out.extend_from_slice(b" : ");
        write_json(value, row, &mut scratch, out);
    }
    out.push(b'}');
    Ok(())
}

fn array_length(part: Part<'_>) -> Result<i32> {
    match part.kind {
        JsonKind::Array => {
            let count = part.count().map_err(wrapped)?;
            Ok(i32::try_from(count).unwrap_or(i32::MAX))
        }
        JsonKind::Object => Err(fail(SqlState::InvalidParameterValue, "cannot get array length of a non-array")),
        _ => Err(fail(SqlState::InvalidParameterValue, "cannot get array length of a scalar")),
    }
}

/// An argument after the first: a whole column, or its value in a row.
enum Argument<'a> {
    Text(&'a str),
    Index(i64),
    /// A path, or keys; `None` is NULL.
    Texts(Vec<Option<&'a str>>),
}

impl<'a> Argument<'a> {
    /// The column in the form its values are read in.
    fn prepare(array: &ArrayRef) -> Result<ArrayRef> {
        let to = match array.data_type() {
            data_type if data_type.is_integer() => DataType::Int64,
            DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => {
                DataType::new_list(DataType::Utf8, true)
            }
            _ => DataType::Utf8,
        };
        Ok(cast(array, &to)?)
    }

    fn of(array: &'a ArrayRef, row: usize) -> Self {
        match array.data_type() {
            DataType::Int64 => Self::Index(array.as_primitive::<arrow::datatypes::Int64Type>().value(row)),
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                let texts = list.values().as_string::<i32>();
                let offsets = list.value_offsets();
                let range = offsets[row] as usize..offsets[row + 1] as usize;
                Self::Texts(range.map(|at| texts.is_valid(at).then(|| texts.value(at))).collect())
            }
            _ => Self::Text(array.as_string::<i32>().value(row)),
        }
    }
}

/// The part along a path of keys and indexes.
///
/// A `jsonb` scalar is the only element of itself for `->` and `->>`.
fn follow<'a>(
    (op, of_value): (JsonOp, &SqlType),
    part: Part<'a>,
    arguments: &[Argument<'_>],
) -> Result<Option<Part<'a>>, ValueError> {
    let is_path = matches!(op, JsonOp::Extract | JsonOp::ExtractText);
    let mut part = Some(part);
    for argument in arguments {
        let Some(at) = part else { return Ok(None) };
        part = match argument {
            Argument::Text(key) if is_path => at.step(Step::Either(key.as_bytes()))?,
            Argument::Text(key) => at.step(Step::Key(key.as_bytes()))?,
            Argument::Index(0 | -1) if *of_value == SqlType::Jsonb && !at.is_container() => Some(at),
            Argument::Index(index) => at.step(Step::Index(*index))?,
            Argument::Texts(path) => {
                let mut part = Some(at);
                for key in path {
                    let (Some(at), Some(key)) = (part, key) else { return Ok(None) };
                    part = at.step(Step::Either(key.as_bytes()))?;
                }
                part
            }
        };
    }
    Ok(part)
}
