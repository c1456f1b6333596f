//! Parts of nested values and their making: `array[1]`, `array[1:2]`, `(struct).field`, `map['key']`, `STRUCT(…)`, `MAP(…)`.
//!
//! A call is made for the types of its arguments. Leaves out which call an access is (`plan::access`). Arrays are counted
//! from 1, as in PostgreSQL 15. Pure.

use super::cast::bad_argument;
use super::errors::fail;
use crate::types::{ColumnEncoder, scalar_first};
use arrow::array::{
    Array, ArrayRef, AsArray, Int32Array, Int64Array, ListArray, MapArray, StructArray, UInt32Array, make_array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::{cast, interleave, take};
use arrow::datatypes::{DataType, FieldRef, Fields, Int64Type};
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use std::sync::Arc;

/// What a call takes or makes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum PartOp {
    /// `array[index]`; NULL outside of it.
    Element,
    /// `array[from:to]`, both included, as far as the array goes.
    Slice,
    /// `left || right`: arrays, or an array and an element; a NULL array has no elements.
    Join,
    /// The length of an array; NULL where it has no elements, or the dimension is another than 1.
    Length,
    /// The number of its first element, likewise.
    Lower,
    /// An array without so many of its last elements.
    Trim,
    /// The field at this position of a struct.
    Field(usize),
    /// `map[key]`; NULL where the key is absent.
    Entry,
    /// A struct of the arguments, or a map of keys and values that alternate.
    Make,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct PartCall {
    op: PartOp,
    types: Vec<SqlType>,
    result: SqlType,
    name: String,
    signature: Signature,
}

/// The names under which statements call constructors, before `plan::access` knows the types.
pub(crate) const STRUCT: &str = "$struct";
/// As [`STRUCT`], for maps.
pub(crate) const MAP: &str = "$map";

/// The call of `op` for arguments of `types`, with a result of `result`.
pub(crate) fn part_call(op: PartOp, types: Vec<SqlType>, result: SqlType) -> ScalarUDF {
    let name = match &op {
        PartOp::Element => "element".to_owned(),
        PartOp::Slice => "slice".to_owned(),
        PartOp::Join => format!("join {}", types.iter().map(SqlType::to_string).collect::<Vec<_>>().join(" ")),
        PartOp::Length => "array_length".to_owned(),
        PartOp::Lower => "array_lower".to_owned(),
        PartOp::Trim => "trim_array".to_owned(),
        PartOp::Field(at) => format!("field {at}"),
        PartOp::Entry => "entry".to_owned(),
        PartOp::Make => format!("make {result}"),
    };
    let signature = Signature::any(types.len(), Volatility::Immutable);
    ScalarUDF::new_from_impl(PartCall { op, types, result, name, signature })
}

/// A call whose types are not known yet.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Untyped {
    name: &'static str,
    signature: Signature,
}

/// Functions of arrays that are calls of this file.
pub(crate) const ARRAYS: [(&str, PartOp); 5] = [
    ("array_length", PartOp::Length),
    ("array_upper", PartOp::Length),
    ("array_lower", PartOp::Lower),
    ("array_cat", PartOp::Join),
    ("trim_array", PartOp::Trim),
];

/// The functions and constructors by their names.
pub(super) fn functions() -> impl Iterator<Item = ScalarUDF> {
    ARRAYS.into_iter().map(|(name, _)| name).chain([STRUCT, MAP]).map(|name| {
        ScalarUDF::new_from_impl(Untyped { name, signature: Signature::variadic_any(Volatility::Immutable) })
    })
}

impl ScalarUDFImpl for Untyped {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Null)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(bad_argument(self.name))
    }
}

impl ScalarUDFImpl for PartCall {
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
        let array = match (&self.op, arrays.as_slice()) {
            (PartOp::Element, [list, index]) => element(list, index)?,
            (PartOp::Slice, [list, from, to]) => slice(list, from, to)?,
            (PartOp::Join, [left, right]) => self.join(left, right)?,
            (PartOp::Length, [list, dimension]) => bound(list, dimension, |len| len)?,
            (PartOp::Lower, [list, dimension]) => bound(list, dimension, |_| 1)?,
            (PartOp::Trim, [list, count]) => trim(list, count)?,
            (PartOp::Field(at), [value]) => field(value, *at)?,
            (PartOp::Entry, [map, key]) => self.entry(map, key)?,
            (PartOp::Make, values) => self.make(values, rows)?,
            _ => return Err(bad_argument(&self.name)),
        };
        match is_scalar {
            true => Ok(ColumnarValue::Scalar(scalar_first(&array)?)),
            false => Ok(ColumnarValue::Array(array)),
        }
    }
}

/// The lists, with 32-bit offsets, and how long each is.
fn lists(array: &ArrayRef) -> Result<ListArray> {
    match array.data_type() {
        DataType::List(_) => Ok(array.as_list::<i32>().clone()),
        DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            Ok(cast(array, &DataType::List(Arc::clone(item)))?.as_list::<i32>().clone())
        }
        _ => Err(bad_argument("element")),
    }
}

fn indexes(array: &ArrayRef) -> Result<Int64Array> {
    Ok(cast(array, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

fn element(list: &ArrayRef, index: &ArrayRef) -> Result<ArrayRef> {
    let (list, index) = (lists(list)?, indexes(index)?);
    let offsets = list.value_offsets();
    let at = |row: usize| {
        if list.is_null(row) || index.is_null(row) {
            return None;
        }
        let (start, end) = (i64::from(offsets[row]), i64::from(offsets[row + 1]));
        let at = start.checked_add(index.value(row).checked_sub(1)?)?;
        u32::try_from(at).ok().filter(|_| (start..end).contains(&at))
    };
    let taken: UInt32Array = (0..list.len()).map(at).collect();
    Ok(take(list.values(), &taken, None)?)
}

fn slice(list: &ArrayRef, from: &ArrayRef, to: &ArrayRef) -> Result<ArrayRef> {
    let (list, from, to) = (lists(list)?, indexes(from)?, indexes(to)?);
    let DataType::List(item) = list.data_type() else { return Err(bad_argument("slice")) };
    let nulls = NullBuffer::union(NullBuffer::union(list.nulls(), from.nulls()).as_ref(), to.nulls());
    let offsets = list.value_offsets();
    let (mut taken, mut ends) = (Vec::new(), vec![0]);
    for row in 0..list.len() {
        if nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)) {
            let (start, end) = (offsets[row], offsets[row + 1]);
            let len = i64::from(end - start);
            let first = from.value(row).max(1);
            let last = to.value(row).min(len);
            // Both are within the array, or the range is empty.
            taken.extend((first..=last).map(|at| (i64::from(start) + at - 1) as u32));
        }
        ends.push(taken.len() as i32);
    }
    let values = take(list.values(), &UInt32Array::from(taken), None)?;
    let offsets = OffsetBuffer::new(ScalarBuffer::from(ends));
    Ok(Arc::new(ListArray::try_new(Arc::clone(item), offsets, values, nulls)?))
}

/// What `of` says of the length of arrays that have elements.
fn bound(list: &ArrayRef, dimension: &ArrayRef, of: impl Fn(i32) -> i32) -> Result<ArrayRef> {
    let (list, dimension) = (lists(list)?, indexes(dimension)?);
    let value = |row: usize| {
        let is_first = dimension.is_valid(row) && dimension.value(row) == 1;
        (is_first && list.is_valid(row)).then(|| list.value_length(row)).filter(|len| *len > 0).map(&of)
    };
    Ok(Arc::new((0..list.len()).map(value).collect::<Int32Array>()))
}

fn trim(list: &ArrayRef, count: &ArrayRef) -> Result<ArrayRef> {
    let (lengths, counts) = (lists(list)?, indexes(count)?);
    let left = |row: usize| {
        let len = i64::from(lengths.value_length(row));
        match lengths.is_valid(row) && counts.is_valid(row) {
            false => Ok(None),
            true if (0..=len).contains(&counts.value(row)) => Ok(Some(len - counts.value(row))),
            true => {
                let fact = format!("number of elements to trim must be between 0 and {len}");
                Err(fail(SqlState::ArraySubscriptError, fact))
            }
        }
    };
    let last: ArrayRef = Arc::new((0..lengths.len()).map(left).collect::<Result<Int64Array>>()?);
    let first: ArrayRef = Arc::new(Int64Array::from(vec![1; lengths.len()]));
    slice(list, &first, &last)
}

fn field(value: &ArrayRef, at: usize) -> Result<ArrayRef> {
    let value = value.as_struct_opt().filter(|value| at < value.num_columns()).ok_or_else(|| bad_argument("field"))?;
    let child = value.column(at);
    let Some(parent) = value.nulls() else { return Ok(Arc::clone(child)) };
    let nulls = NullBuffer::union(Some(parent), child.nulls());
    Ok(make_array(child.to_data().into_builder().nulls(nulls).build()?))
}

impl PartCall {
    fn join(&self, left: &ArrayRef, right: &ArrayRef) -> Result<ArrayRef> {
        let [left_type, right_type] = self.types.as_slice() else { return Err(bad_argument(&self.name)) };
        let DataType::List(item) = self.result.arrow() else { return Err(bad_argument(&self.name)) };
        let (left, right) = (Side::of(left, left_type, &item)?, Side::of(right, right_type, &item)?);
        let (mut order, mut ends, mut valid) = (Vec::new(), vec![0], Vec::new());
        for row in 0..left.rows() {
            // Two arrays that are NULL make none.
            valid.push(left.is_there(row) || right.is_there(row));
            order.extend(left.range(row).map(|at| (0, at)));
            order.extend(right.range(row).map(|at| (1, at)));
            let end = i32::try_from(order.len())
                .map_err(|_| fail(SqlState::ProgramLimitExceeded, "array size exceeds the maximum allowed"))?;
            ends.push(end);
        }
        let values = interleave(&[left.values.as_ref(), right.values.as_ref()], &order)?;
        let offsets = OffsetBuffer::new(ScalarBuffer::from(ends));
        Ok(Arc::new(ListArray::try_new(item, offsets, values, Some(NullBuffer::from(valid)))?))
    }

    fn entry(&self, map: &ArrayRef, key: &ArrayRef) -> Result<ArrayRef> {
        let (Some(map), Some(SqlType::Map(key_type, _))) = (map.as_map_opt(), self.types.first()) else {
            return Err(bad_argument(&self.name));
        };
        let keys = ColumnEncoder::new(map.keys().as_ref(), key_type);
        let wanted = ColumnEncoder::new(key.as_ref(), key_type);
        let offsets = map.value_offsets();
        let (mut given, mut own) = (Vec::new(), Vec::new());
        let at = |row: usize| {
            given.clear();
            if map.is_null(row) || !wanted.text(row, &mut given) {
                return None;
            }
            let mut range = offsets[row] as usize..offsets[row + 1] as usize;
            let found = range.find(|at| {
                own.clear();
                keys.text(*at, &mut own) && own == given
            });
            found.map(|at| at as u32)
        };
        let taken: UInt32Array = (0..map.len()).map(at).collect();
        Ok(take(map.values(), &taken, None)?)
    }

    fn make(&self, values: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
        match self.result.arrow() {
            DataType::Struct(fields) => {
                let values = stored(values, fields.iter().map(|field| field.data_type()))?;
                Ok(Arc::new(StructArray::try_new_with_length(fields, values, None, rows)?))
            }
            DataType::Map(entries, _) => {
                let DataType::Struct(fields) = entries.data_type().clone() else {
                    return Err(bad_argument(&self.name));
                };
                self.make_map(values, rows, (&entries, fields))
            }
            _ => Err(bad_argument(&self.name)),
        }
    }

    fn make_map(&self, values: &[ArrayRef], rows: usize, (entries, fields): (&FieldRef, Fields)) -> Result<ArrayRef> {
        let side = |side: usize| {
            let data_type = fields.get(side).map(|field| field.data_type().clone()).unwrap_or(DataType::Null);
            let arrays: Vec<ArrayRef> = values.iter().skip(side).step_by(2).cloned().collect();
            let arrays = stored(&arrays, std::iter::repeat_n(&data_type, arrays.len()))?;
            let arrays: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
            let order: Vec<(usize, usize)> =
                (0..rows).flat_map(|row| (0..arrays.len()).map(move |at| (at, row))).collect();
            Ok::<_, datafusion::common::DataFusionError>(interleave(&arrays, &order)?)
        };
        let (keys, items) = (side(0)?, side(1)?);
        let count = values.len() / 2;
        if keys.null_count() > 0 {
            return Err(fail(SqlState::NullValueNotAllowed, "a key of a map cannot be null"));
        }
        let SqlType::Map(key_type, _) = &self.result else { return Err(bad_argument(&self.name)) };
        let encoder = ColumnEncoder::new(keys.as_ref(), key_type);
        for row in 0..rows {
            let text = |at: usize| {
                let mut out = Vec::new();
                encoder.text(at, &mut out);
                out
            };
            let mut own: Vec<Vec<u8>> = (row * count..(row + 1) * count).map(text).collect();
            own.sort_unstable();
            if let Some(pair) = own.windows(2).find(|pair| pair[0] == pair[1]) {
                let fact = format!("key \"{}\" is in the map twice", String::from_utf8_lossy(&pair[0]));
                return Err(fail(SqlState::InvalidParameterValue, fact));
            }
        }
        let offsets = OffsetBuffer::from_repeated_length(count, rows);
        let pairs = StructArray::try_new(fields, vec![keys, items], None)?;
        Ok(Arc::new(MapArray::try_new(Arc::clone(entries), offsets, pairs, None, false)?))
    }
}

/// One side of `||`: arrays with their elements, or an element for each row.
struct Side {
    list: Option<ListArray>,
    values: ArrayRef,
}

impl Side {
    fn of(array: &ArrayRef, sql_type: &SqlType, item: &FieldRef) -> Result<Self> {
        let list = if let SqlType::Array(_) = sql_type { Some(lists(array)?) } else { None };
        let values = list.as_ref().map_or(array, ListArray::values);
        Ok(Self { values: cast(values, item.data_type())?, list })
    }

    fn rows(&self) -> usize {
        self.list.as_ref().map_or(self.values.len(), Array::len)
    }

    /// An element is there even when it is NULL.
    fn is_there(&self, row: usize) -> bool {
        self.list.as_ref().is_none_or(|list| list.is_valid(row))
    }

    fn range(&self, row: usize) -> std::ops::Range<usize> {
        match &self.list {
            None => row..row + 1,
            Some(list) if list.is_null(row) => 0..0,
            Some(list) => list.value_offsets()[row] as usize..list.value_offsets()[row + 1] as usize,
        }
    }
}

/// The arrays in the types they are stored as.
fn stored<'a>(arrays: &[ArrayRef], types: impl Iterator<Item = &'a DataType>) -> Result<Vec<ArrayRef>> {
    let one = |(array, data_type): (&ArrayRef, &DataType)| match array.data_type() == data_type {
        true => Ok(Arc::clone(array)),
        false => Ok(cast(array, data_type)?),
    };
    arrays.iter().zip(types).map(one).collect()
}
