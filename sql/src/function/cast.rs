//! Explicit casts and typed constants.
//!
//! Owns which casts there are (42846 otherwise) and what they do beyond assignment: text is read by the target's input
//! rules, `varchar(n)` shortens, booleans and integers convert. Leaves out the value syntax itself (`types`). Pure.

use super::errors::{external, fail};
use crate::error::SqlError;
use crate::types::json::JsonKind;
use crate::types::json_path::{Part, kind_name};
use crate::types::{ColumnBuilder, assign_array, integer_literal, is_assignable, scalar_first};
use arrow::array::{Array, ArrayRef, AsArray, new_null_array};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use millstream_catalog::schema::StructField;
use std::sync::Arc;

/// `CAST(argument AS target)`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct CastFunction {
    target: SqlType,
    name: String,
    signature: Signature,
}

/// The function that casts its argument to `target`.
pub fn cast_function(target: SqlType) -> ScalarUDF {
    let name = format!("cast to {target}");
    ScalarUDF::new_from_impl(CastFunction { target, name, signature: Signature::any(1, Volatility::Immutable) })
}

/// The target of a call that [`cast_function`] made.
pub fn cast_target(function: &ScalarUDF) -> Option<&SqlType> {
    function.inner().downcast_ref::<CastFunction>().map(|cast| &cast.target)
}

fn is_string(sql_type: &SqlType) -> bool {
    matches!(sql_type, SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_))
}

/// True if `from` can be cast explicitly to `to`.
pub fn is_castable(from: &SqlType, to: &SqlType) -> bool {
    use SqlType::{BigInt, Boolean, Double, Integer, Numeric, Real, SmallInt};
    let is_bool = |one: &SqlType, other: &SqlType| *one == SqlType::Boolean && *other == SqlType::Integer;
    match (from, to) {
        (from, _) if is_string(from) => true,
        (SqlType::Array(from), SqlType::Array(to)) => is_castable(from, to),
        (SqlType::Struct(from), SqlType::Struct(to)) => {
            let fits = |(from, to): (&StructField, &StructField)| {
                from.name == to.name && is_castable(&from.sql_type, &to.sql_type)
            };
            from.len() == to.len() && from.iter().zip(to).all(fits)
        }
        (SqlType::Map(key, value), SqlType::Map(to_key, to_value)) => {
            is_castable(key, to_key) && is_castable(value, to_value)
        }
        (SqlType::Jsonb, Boolean | SmallInt | Integer | BigInt | Real | Double | Numeric { .. }) => true,
        _ => is_assignable(from, to) || is_bool(from, to) || is_bool(to, from),
    }
}

/// Every value of `array`, a column of type `from`, cast to `to`.
///
/// # Errors
/// 42846 when there is no such cast; else those of the target's input rules and ranges.
pub fn cast_array(array: &ArrayRef, from: &SqlType, to: &SqlType) -> Result<ArrayRef, SqlError> {
    if *array.data_type() == DataType::Null {
        return Ok(new_null_array(&to.arrow(), array.len()));
    }
    if from == to && *array.data_type() == to.arrow() {
        return Ok(Arc::clone(array));
    }
    if !is_castable(from, to) {
        return Err(no_cast(from, to));
    }
    match (from, to) {
        (SqlType::Boolean, SqlType::Integer) | (SqlType::Integer, SqlType::Boolean) => {
            arrow::compute::cast(array, &to.arrow()).map_err(|_| SqlError::internal("a boolean cast failed"))
        }
        (SqlType::Jsonb, to) if !is_assignable(from, to) => from_jsonb(&utf8(array)?, to),
        (from, SqlType::Varchar(length) | SqlType::Char(length)) => {
            let text = cast_array(array, from, &SqlType::Text)?;
            read(&shortened(&text, *length)?, to)
        }
        (from, SqlType::Text)
            if is_string(from) && array.data_type() == &DataType::Utf8 && !matches!(from, SqlType::Char(_)) =>
        {
            Ok(Arc::clone(array))
        }
        (from, to) if is_string(from) && !is_string(to) => read(&utf8(array)?, to),
        (SqlType::Array(_), SqlType::Array(_))
        | (SqlType::Struct(_), SqlType::Struct(_))
        | (SqlType::Map(..), SqlType::Map(..)) => {
            let text = assign_array(array, from, &SqlType::Text).map_err(|refused| SqlError::from(refused.error))?;
            read(&text, to)
        }
        _ => assign_array(array, from, to).map_err(|refused| SqlError::from(refused.error)),
    }
}

fn no_cast(from: &SqlType, to: &SqlType) -> SqlError {
    SqlError::new(SqlState::CannotCoerce, format!("cannot cast type {from} to {to}"))
}

fn utf8(array: &ArrayRef) -> Result<ArrayRef, SqlError> {
    arrow::compute::cast(array, &DataType::Utf8).map_err(|_| SqlError::internal("text in an unknown form"))
}

fn shortened(text: &ArrayRef, length: u32) -> Result<ArrayRef, SqlError> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let text = utf8(text)?;
    let short = |value: &str| match value.char_indices().nth(length) {
        Some((end, _)) => value[..end].to_owned(),
        None => value.to_owned(),
    };
    let array: arrow::array::StringArray = text.as_string::<i32>().iter().map(|value| value.map(short)).collect();
    Ok(Arc::new(array))
}

/// Reads text by the input rules of `to`.
fn read(text: &ArrayRef, to: &SqlType) -> Result<ArrayRef, SqlError> {
    let mut builder = ColumnBuilder::new(to, text.len());
    for value in text.as_string::<i32>() {
        match value {
            Some(value) => builder.append_text(value.as_bytes())?,
            None => builder.append_null(),
        }
    }
    Ok(builder.finish())
}

/// The numbers or booleans that `jsonb` values are.
fn from_jsonb(texts: &ArrayRef, to: &SqlType) -> Result<ArrayRef, SqlError> {
    let mut builder = ColumnBuilder::new(to, texts.len());
    for text in texts.as_string::<i32>() {
        let Some(text) = text else {
            builder.append_null();
            continue;
        };
        let part = Part::whole(text.as_bytes())?;
        let is_number = part.kind == JsonKind::Number;
        match (part.kind, to) {
            (JsonKind::True | JsonKind::False, SqlType::Boolean) => builder.append_text(part.raw)?,
            (_, SqlType::SmallInt | SqlType::Integer | SqlType::BigInt) if is_number => {
                builder.append_scalar(&integer_literal(text.trim(), to)?)?;
            }
            (_, to) if is_number && *to != SqlType::Boolean => builder.append_text(part.raw)?,
            _ => {
                let kind = if is_number { "numeric" } else { kind_name(part.kind) };
                let to = if let SqlType::Numeric { .. } = to { "numeric".to_owned() } else { to.to_string() };
                let fact = format!("cannot cast jsonb {kind} to type {to}");
                return Err(SqlError::new(SqlState::InvalidParameterValue, fact));
            }
        }
    }
    Ok(builder.finish())
}

impl ScalarUDFImpl for CastFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        Ok(args.first().map_or_else(|| self.name.clone(), |arg| format!("CAST({arg} AS {})", self.target)))
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let name = |arg: &Expr| format!("CAST({} AS {})", arg.schema_name(), self.target);
        Ok(args.first().map_or_else(|| self.name.clone(), name))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.target.arrow())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        if let Some(field) = args.arg_fields.first()
            && *field.data_type() != DataType::Null
        {
            let from = SqlType::of(field).unwrap_or(SqlType::Text);
            if !is_castable(&from, &self.target) {
                return Err(external(no_cast(&from, &self.target)));
            }
        }
        let is_nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(self.target.field(&self.name, is_nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (Some(value), Some(field)) = (args.args.first(), args.arg_fields.first()) else {
            return Err(external(SqlError::internal("a cast needs an argument")));
        };
        let from = SqlType::of(field).unwrap_or(SqlType::Text);
        match value {
            ColumnarValue::Array(array) => {
                Ok(ColumnarValue::Array(cast_array(array, &from, &self.target).map_err(external)?))
            }
            ColumnarValue::Scalar(scalar) => {
                let array = cast_array(&scalar.to_array()?, &from, &self.target).map_err(external)?;
                Ok(ColumnarValue::Scalar(scalar_first(&array)?))
            }
        }
    }
}

/// A value with its SQL type.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Constant {
    value: ScalarValue,
    sql_type: SqlType,
    name: String,
    signature: Signature,
}

/// The function without arguments that gives `value`, of type `sql_type`.
pub fn constant_function(value: ScalarValue, sql_type: &SqlType) -> ScalarUDF {
    let name = format!("{value}::{sql_type}");
    let signature = Signature::exact(Vec::new(), Volatility::Immutable);
    ScalarUDF::new_from_impl(Constant { value, sql_type: sql_type.clone(), name, signature })
}

/// The value of a call that [`constant_function`] made.
pub fn constant_value(expr: &Expr) -> Option<&ScalarValue> {
    let Expr::ScalarFunction(call) = expr else { return None };
    call.func.inner().downcast_ref::<Constant>().map(|constant| &constant.value)
}

/// The type of a call that [`constant_function`] made.
pub fn constant_type(expr: &Expr) -> Option<&SqlType> {
    let Expr::ScalarFunction(call) = expr else { return None };
    call.func.inner().downcast_ref::<Constant>().map(|constant| &constant.sql_type)
}

impl ScalarUDFImpl for Constant {
    fn name(&self) -> &str {
        &self.name
    }

    fn display_name(&self, _: &[Expr]) -> Result<String> {
        Ok(self.name.clone())
    }

    fn schema_name(&self, _: &[Expr]) -> Result<String> {
        Ok(self.name.clone())
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.sql_type.arrow())
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(Arc::new(self.sql_type.field(&self.name, self.value.is_null())))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(self.value.clone()))
    }
}

/// An error for a value that `function` does not take.
pub(super) fn bad_argument(function: &str) -> datafusion::common::DataFusionError {
    fail(SqlState::UndefinedFunction, format!("function {function} does not take these arguments"))
}
