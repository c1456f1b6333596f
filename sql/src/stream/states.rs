//! One column of per-slot state, readable and writable at any set of slots.
//!
//! Arrow arrays are immutable as a whole; state changes at a few slots per step. Fixed-width values lie in one byte
//! vector, others as scalars. Leaves out what the values mean (`call`). Saved as an Arrow array.

use super::delta::{arrow_error, sql_error};
use crate::error::SqlError;
use arrow::array::{Array, ArrayRef, make_array, new_empty_array};
use arrow::buffer::{Buffer, NullBuffer};
use arrow::compute;
use arrow::datatypes::DataType;
use datafusion::scalar::ScalarValue;

/// Values of one type by slot. A slot never written is NULL.
#[derive(Debug)]
pub(crate) enum StateColumn {
    /// Values of equal width, in their Arrow layout.
    Fixed {
        /// Their type.
        data_type: DataType,
        /// Bytes per value.
        width: usize,
        /// The values, one after the other.
        bytes: Vec<u8>,
        /// Which are not NULL.
        valid: Vec<bool>,
    },
    /// Values of any other type.
    Scalars {
        /// Their type.
        data_type: DataType,
        /// The values.
        values: Vec<ScalarValue>,
        /// Memory of them, about.
        bytes: usize,
    },
}

impl StateColumn {
    /// An empty column.
    pub(crate) fn new(data_type: &DataType) -> Self {
        match data_type.primitive_width() {
            Some(width) => Self::Fixed { data_type: data_type.clone(), width, bytes: Vec::new(), valid: Vec::new() },
            None => Self::Scalars { data_type: data_type.clone(), values: Vec::new(), bytes: 0 },
        }
    }

    /// The type of the values.
    pub(crate) fn data_type(&self) -> DataType {
        match self {
            Self::Fixed { data_type, .. } | Self::Scalars { data_type, .. } => data_type.clone(),
        }
    }

    /// Sets the values at `slots` to those of `array`, row by row; `capacity` is one more than the greatest slot.
    pub(crate) fn write(&mut self, slots: &[u32], array: &ArrayRef, capacity: usize) -> Result<(), SqlError> {
        match self {
            Self::Fixed { data_type, width, bytes, valid } => {
                let array = if array.data_type() == data_type {
                    array.clone()
                } else {
                    compute::cast(array, data_type).map_err(arrow_error)?
                };
                bytes.resize(capacity * *width, 0);
                valid.resize(capacity, false);
                let data = array.to_data();
                let source = data.buffers().first().map_or(&[] as &[u8], Buffer::as_slice);
                let source = source.get(data.offset() * *width..).unwrap_or_default();
                for (row, (slot, value)) in slots.iter().zip(source.chunks_exact(*width)).enumerate() {
                    let slot = *slot as usize;
                    bytes[slot * *width..(slot + 1) * *width].copy_from_slice(value);
                    valid[slot] = array.is_valid(row);
                }
            }
            Self::Scalars { data_type, values, bytes } => {
                let null = ScalarValue::try_from(&*data_type).map_err(sql_error)?;
                *bytes += capacity.saturating_sub(values.len()) * null.size();
                values.resize(capacity, null);
                for (row, slot) in slots.iter().enumerate() {
                    let mut value = ScalarValue::try_from_array(array, row).map_err(sql_error)?;
                    value.compact();
                    *bytes += value.size();
                    *bytes -= std::mem::replace(&mut values[*slot as usize], value).size();
                }
            }
        }
        Ok(())
    }

    /// The values at `slots`, in their order. All of them were written before.
    pub(crate) fn read(&self, slots: &[u32]) -> Result<ArrayRef, SqlError> {
        match self {
            Self::Fixed { data_type, width, bytes, valid } => {
                let mut values = Vec::with_capacity(slots.len() * width);
                for slot in slots {
                    let start = *slot as usize * width;
                    values.extend_from_slice(&bytes[start..start + width]);
                }
                let nulls: NullBuffer = slots.iter().map(|slot| valid[*slot as usize]).collect();
                let data = arrow::array::ArrayData::builder(data_type.clone())
                    .len(slots.len())
                    .add_buffer(Buffer::from_vec(values))
                    .nulls((nulls.null_count() > 0).then_some(nulls))
                    .align_buffers(true)
                    .build()
                    .map_err(arrow_error)?;
                Ok(make_array(data))
            }
            Self::Scalars { data_type, .. } if slots.is_empty() => Ok(new_empty_array(data_type)),
            Self::Scalars { values, .. } => {
                ScalarValue::iter_to_array(slots.iter().map(|slot| values[*slot as usize].clone())).map_err(sql_error)
            }
        }
    }

    /// One more than the greatest slot there is place for.
    pub(crate) fn capacity(&self) -> usize {
        match self {
            Self::Fixed { valid, .. } => valid.len(),
            Self::Scalars { values, .. } => values.len(),
        }
    }

    /// Lets go of what the values at `slots` hold.
    pub(crate) fn clear(&mut self, slots: &[u32]) {
        match self {
            Self::Fixed { valid, .. } => {
                for slot in slots {
                    if let Some(valid) = valid.get_mut(*slot as usize) {
                        *valid = false;
                    }
                }
            }
            Self::Scalars { data_type, values, bytes } => {
                let Ok(null) = ScalarValue::try_from(&*data_type) else { return };
                for slot in slots {
                    if let Some(value) = values.get_mut(*slot as usize) {
                        *bytes += null.size();
                        *bytes -= std::mem::replace(value, null.clone()).size();
                    }
                }
            }
        }
    }

    /// Memory held, about.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Fixed { bytes, valid, .. } => bytes.capacity() + valid.capacity(),
            Self::Scalars { bytes, .. } => *bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Decimal128Array, Int64Array, StringArray};
    use std::sync::Arc;

    fn round_trip(array: ArrayRef) {
        let mut column = StateColumn::new(array.data_type());
        let slots: Vec<u32> = (0..array.len() as u32).rev().collect();
        column.write(&slots, &array, array.len()).unwrap();
        assert_eq!(&column.read(&slots).unwrap(), &array);
        column.write(&slots[1..], &array.slice(1, array.len() - 1), array.len()).unwrap();
        assert_eq!(&column.read(&slots).unwrap(), &array);
        assert_eq!(column.read(&[]).unwrap().len(), 0);
    }

    #[test]
    fn values_come_back_at_their_slots() {
        round_trip(Arc::new(Int64Array::from(vec![Some(1), None, Some(-3)])));
        round_trip(Arc::new(
            Decimal128Array::from(vec![Some(1), None, Some(i128::MAX)]).with_precision_and_scale(38, 10).unwrap(),
        ));
        round_trip(Arc::new(StringArray::from(vec![Some("a"), None, Some("")])));
        round_trip(Arc::new(arrow::array::BooleanArray::from(vec![Some(true), None, Some(false)])));
    }
}
