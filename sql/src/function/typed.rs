//! Values and the SQL types that the engine forgets: those of which an Arrow type alone does not tell.
//!
//! Owns giving them back, and taking them from where the engine trips over them. Leaves out conversions (`cast`). Pure.

use super::cast::bad_argument;
use crate::types::scalar_first;
use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use millstream_catalog::SqlType;
use std::sync::Arc;

/// A value of an expression whose SQL type the engine forgets.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Typed {
    sql_type: SqlType,
    name: String,
    signature: Signature,
}

/// `expr`, whose values are stored as `sql_type` is, with that type.
pub(crate) fn with_type(expr: Expr, sql_type: &SqlType) -> Expr {
    // The length of a text does not outlive its column.
    if ![SqlType::Json, SqlType::Jsonb, SqlType::Uuid].iter().any(|forgotten| sql_type.has(forgotten)) {
        return expr;
    }
    let signature = Signature::any(1, Volatility::Immutable);
    let typed = Typed { sql_type: sql_type.clone(), name: format!("$type {sql_type}"), signature };
    ScalarUDF::new_from_impl(typed).call(vec![expr])
}

/// A value inside of which no SQL type is told.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Plain {
    to: DataType,
    signature: Signature,
}

/// `expr`, of `sql_type`, without the SQL types inside of it; `None` where there are none. The engine makes constants that have
/// lost them, and finds that those are of another type than the rest.
pub(crate) fn without_types(expr: &Expr, sql_type: &SqlType) -> Option<Expr> {
    let (from, to) = (sql_type.arrow(), plain_type(&sql_type.arrow()));
    if from == to {
        return None;
    }
    let plain = Plain { to, signature: Signature::any(1, Volatility::Immutable) };
    Some(ScalarUDF::new_from_impl(plain).call(vec![expr.clone()]))
}

/// `data_type` without the metadata of its fields.
pub(crate) fn plain_type(data_type: &DataType) -> DataType {
    let plain =
        |field: &FieldRef| Arc::new(Field::new(field.name(), plain_type(field.data_type()), field.is_nullable()));
    match data_type {
        DataType::List(item) => DataType::List(plain(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(plain).collect()),
        DataType::Map(entries, is_sorted) => DataType::Map(plain(entries), *is_sorted),
        other => other.clone(),
    }
}

impl ScalarUDFImpl for Typed {
    fn name(&self) -> &str {
        &self.name
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        Ok(args.first().map_or_else(|| self.name.clone(), ToString::to_string))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.sql_type.arrow())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let is_nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(self.sql_type.field(&self.name, is_nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        stored_as(args.args, &self.sql_type.arrow(), &self.name)
    }
}

impl ScalarUDFImpl for Plain {
    fn name(&self) -> &str {
        "$plain"
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        Ok(args.first().map_or_else(|| self.name().to_owned(), ToString::to_string))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.to.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        stored_as(args.args, &self.to, self.name())
    }
}

/// The only one of `args` as `to`, which differs in nothing but the types that are told.
fn stored_as(args: Vec<ColumnarValue>, to: &DataType, name: &str) -> Result<ColumnarValue> {
    let [value] = <[ColumnarValue; 1]>::try_from(args).map_err(|_| bad_argument(name))?;
    let cast = |array: &ArrayRef| arrow::compute::cast(array, to);
    match value {
        value if value.data_type() == *to => Ok(value),
        ColumnarValue::Array(array) => Ok(ColumnarValue::Array(cast(&array)?)),
        ColumnarValue::Scalar(scalar) => Ok(ColumnarValue::Scalar(scalar_first(&cast(&scalar.to_array()?)?)?)),
    }
}
