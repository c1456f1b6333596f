//! `+ - * / %` and prefix `-` as PostgreSQL has them: checked, and typed by their operands.
//!
//! Owns the numeric kinds; times and intervals are in `temporal`. Leaves out choosing a common type, which the planner
//! does: both operands of a numeric call have one kind. Overflow is 22003, division by zero 22012. Pure.

use super::decimal;
use super::errors::{external, fail};
use super::temporal;
use crate::error::SqlError;
use crate::types::with_one_nan;
use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, Datum, Scalar};
use arrow::compute::kernels::numeric;
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use arrow::error::ArrowError;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use millstream_catalog::model::SqlState;

/// An arithmetic operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
    /// `%`
    Modulo,
}

impl Arithmetic {
    /// Every operator.
    pub const ALL: [Self; 5] = [Self::Add, Self::Subtract, Self::Multiply, Self::Divide, Self::Modulo];

    /// As it is written.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Modulo => "%",
        }
    }

    /// The name of its function, which no statement can write.
    pub fn function_name(self) -> &'static str {
        match self {
            Self::Add => "$add",
            Self::Subtract => "$subtract",
            Self::Multiply => "$multiply",
            Self::Divide => "$divide",
            Self::Modulo => "$modulo",
        }
    }

    /// Its function.
    pub fn function(self) -> ScalarUDF {
        ScalarUDF::new_from_impl(ArithmeticFunction {
            op: self,
            signature: Signature::user_defined(Volatility::Immutable),
        })
    }
}

/// The operator as a function of two arguments.
#[derive(Debug, PartialEq, Eq, Hash)]
struct ArithmeticFunction {
    op: Arithmetic,
    signature: Signature,
}

/// True for the types arithmetic treats as machine integers.
fn is_integer(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Int16 | DataType::Int32 | DataType::Int64)
}

fn is_float(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Float32 | DataType::Float64)
}

impl ScalarUDFImpl for ArithmeticFunction {
    fn name(&self) -> &str {
        self.op.function_name()
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        match args {
            [left, right] => Ok(format!("{left} {} {right}", self.op.symbol())),
            _ => Ok(self.name().to_owned()),
        }
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        match args {
            [left, right] => Ok(format!("{} {} {}", left.schema_name(), self.op.symbol(), right.schema_name())),
            _ => Ok(self.name().to_owned()),
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The planner has typed the operands; a column whose type a UNION settles later is brought along here.
    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let [left, right] = types else {
            return Err(external(SqlError::internal("an operator needs two operands")));
        };
        let is_number = |one: &DataType| is_integer(one) || is_float(one) || matches!(one, DataType::Decimal128(..));
        if left == right || !is_number(left) || !is_number(right) {
            return Ok(types.to_vec());
        }
        let numeric = |one: &DataType| match one {
            DataType::Int16 => DataType::Decimal128(5, 0),
            DataType::Int32 => DataType::Decimal128(10, 0),
            DataType::Int64 => DataType::Decimal128(19, 0),
            other => other.clone(),
        };
        Ok(match (is_float(left) || is_float(right), is_integer(left) && is_integer(right)) {
            (true, _) => vec![DataType::Float64, DataType::Float64],
            (false, true) if [left, right].contains(&&DataType::Int64) => vec![DataType::Int64, DataType::Int64],
            (false, true) => vec![DataType::Int32, DataType::Int32],
            (false, false) => vec![numeric(left), numeric(right)],
        })
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [left, right] if left == right && (is_integer(left) || is_float(left)) => Ok(left.clone()),
            [DataType::Decimal128(p1, s1), DataType::Decimal128(p2, s2)] => {
                Ok(decimal::result_type(self.op, (*p1, *s1), (*p2, *s2)))
            }
            [left, right] => temporal::result_type(self.op, left, right).ok_or_else(|| {
                fail(SqlState::UndefinedFunction, format!("operator does not exist: {}", self.op.symbol()))
            }),
            _ => Err(external(SqlError::internal("an operator needs two operands"))),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [left, right] = args.args.as_slice() else {
            return Err(external(SqlError::internal("an operator needs two operands")));
        };
        let target = args.return_field.data_type();
        if is_null(left) || is_null(right) {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from(target)?));
        }
        if is_integer(target) && left.data_type() == right.data_type() && is_integer(&left.data_type()) {
            return with_datums(left, right, |left, right| integers(self.op, left, right, target));
        }
        if is_float(target) && left.data_type() == right.data_type() {
            return with_datums(left, right, |left, right| floats(self.op, left, right));
        }
        match (left.data_type(), right.data_type()) {
            (DataType::Decimal128(_, s1), DataType::Decimal128(_, s2)) => {
                decimal::apply(self.op, (left, s1), (right, s2), target, args.number_rows)
            }
            _ => temporal::apply(self.op, left, right, args.number_rows),
        }
    }
}

fn is_null(value: &ColumnarValue) -> bool {
    matches!(value, ColumnarValue::Scalar(scalar) if scalar.is_null())
}

/// Runs a kernel over arrays and scalars; two scalars give a scalar.
fn with_datums(
    left: &ColumnarValue,
    right: &ColumnarValue,
    kernel: impl FnOnce(&dyn Datum, &dyn Datum) -> Result<ArrayRef>,
) -> Result<ColumnarValue> {
    let one = |value: &ScalarValue| -> Result<Scalar<ArrayRef>> { Ok(Scalar::new(value.to_array()?)) };
    match (left, right) {
        (ColumnarValue::Array(left), ColumnarValue::Array(right)) => Ok(ColumnarValue::Array(kernel(left, right)?)),
        (ColumnarValue::Array(left), ColumnarValue::Scalar(right)) => {
            Ok(ColumnarValue::Array(kernel(left, &one(right)?)?))
        }
        (ColumnarValue::Scalar(left), ColumnarValue::Array(right)) => {
            Ok(ColumnarValue::Array(kernel(&one(left)?, right)?))
        }
        (ColumnarValue::Scalar(left), ColumnarValue::Scalar(right)) => {
            let array = kernel(&one(left)?, &one(right)?)?;
            Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?))
        }
    }
}

fn integers(op: Arithmetic, left: &dyn Datum, right: &dyn Datum, target: &DataType) -> Result<ArrayRef> {
    let result = match op {
        Arithmetic::Add => numeric::add(left, right),
        Arithmetic::Subtract => numeric::sub(left, right),
        Arithmetic::Multiply => numeric::mul(left, right),
        Arithmetic::Divide => numeric::div(left, right),
        Arithmetic::Modulo => numeric::rem(left, right),
    };
    result.map_err(|error| numeric_error(&error, type_word(target)))
}

/// PostgreSQL's word for the type that overflowed.
fn type_word(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Int16 => "smallint",
        DataType::Int32 => "integer",
        DataType::Int64 => "bigint",
        _ => "value",
    }
}

/// The SQL error of a failed kernel.
pub(super) fn numeric_error(error: &ArrowError, what: &str) -> datafusion::common::DataFusionError {
    match error {
        ArrowError::DivideByZero => fail(SqlState::DivisionByZero, "division by zero"),
        _ => fail(SqlState::NumericValueOutOfRange, format!("{what} out of range")),
    }
}

fn floats(op: Arithmetic, left: &dyn Datum, right: &dyn Datum) -> Result<ArrayRef> {
    let wrap = |error: ArrowError| numeric_error(&error, "value");
    if matches!(op, Arithmetic::Divide | Arithmetic::Modulo) && has_zero_divisor(left, right) {
        return Err(fail(SqlState::DivisionByZero, "division by zero"));
    }
    let result = match op {
        Arithmetic::Add => numeric::add(left, right),
        Arithmetic::Subtract => numeric::sub(left, right),
        Arithmetic::Multiply => numeric::mul(left, right),
        Arithmetic::Divide => numeric::div(left, right),
        Arithmetic::Modulo => numeric::rem(left, right),
    }
    .map_err(wrap)?;
    let overflowed = match result.data_type() {
        DataType::Float32 => is_new_infinity::<Float32Type>(&result, left, right, f32::is_infinite),
        _ => is_new_infinity::<Float64Type>(&result, left, right, f64::is_infinite),
    };
    match overflowed {
        true => Err(fail(SqlState::NumericValueOutOfRange, "value out of range: overflow")),
        false => Ok(with_one_nan(result)),
    }
}

/// The value of a datum at `row`.
fn at<T: ArrowPrimitiveType>(datum: &dyn Datum, row: usize) -> Option<T::Native> {
    let (array, is_scalar) = datum.get();
    let row = if is_scalar { 0 } else { row };
    array.is_valid(row).then(|| array.as_primitive::<T>().value(row))
}

fn is_new_infinity<T: ArrowPrimitiveType>(
    result: &ArrayRef,
    left: &dyn Datum,
    right: &dyn Datum,
    is_infinite: impl Fn(T::Native) -> bool,
) -> bool {
    let values = result.as_primitive::<T>().values();
    if !values.iter().any(|value| is_infinite(*value)) {
        return false;
    }
    let finite = |datum: &dyn Datum, row: usize| at::<T>(datum, row).is_some_and(|value| !is_infinite(value));
    (0..result.len()).any(|row| {
        result.is_valid(row)
            && values.get(row).is_some_and(|value| is_infinite(*value))
            && finite(left, row)
            && finite(right, row)
    })
}

/// True when a row that has both operands divides by zero.
fn has_zero_divisor(left: &dyn Datum, right: &dyn Datum) -> bool {
    let (divisors, is_scalar) = right.get();
    let zeros: Vec<usize> = match divisors.data_type() {
        DataType::Float32 => zeros_of::<Float32Type>(divisors, 0.0),
        _ => zeros_of::<Float64Type>(divisors, 0.0),
    };
    let (dividends, is_one) = left.get();
    match (zeros.is_empty(), is_scalar) {
        (true, _) => false,
        (false, true) => dividends.null_count() < dividends.len(),
        (false, false) => zeros.into_iter().any(|row| dividends.is_valid(if is_one { 0 } else { row })),
    }
}

fn zeros_of<T: ArrowPrimitiveType>(array: &dyn Array, zero: T::Native) -> Vec<usize> {
    let values = array.as_primitive::<T>().values();
    let rows = values.iter().enumerate().filter(|(_, value)| **value == zero).map(|(row, _)| row);
    rows.filter(|row| array.is_valid(*row)).collect()
}

/// Prefix `-`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Negate {
    signature: Signature,
}

impl Negate {
    /// The function `$negate`.
    pub fn function() -> ScalarUDF {
        ScalarUDF::new_from_impl(Self { signature: Signature::any(1, Volatility::Immutable) })
    }
}

impl ScalarUDFImpl for Negate {
    fn name(&self) -> &str {
        "$negate"
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        Ok(args.first().map_or_else(|| "-".to_owned(), |arg| format!("(- {arg})")))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [DataType::Null | DataType::Utf8] => Ok(DataType::Float64),
            [one] if is_integer(one) || is_float(one) => Ok(one.clone()),
            [one @ (DataType::Decimal128(..) | DataType::Interval(_))] => Ok(one.clone()),
            _ => Err(fail(SqlState::UndefinedFunction, "operator does not exist: - with this operand")),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let target = args.return_field.data_type();
        let Some(value) = args.args.first() else {
            return Err(external(SqlError::internal("an operator needs an operand")));
        };
        if is_null(value) {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from(target)?));
        }
        let array = value.to_array(args.number_rows.max(1))?;
        let array = arrow::compute::cast(&array, target)
            .map_err(|_| fail(SqlState::InvalidTextRepresentation, "invalid input syntax for type double precision"))?;
        let result = numeric::neg(&array).map_err(|error| numeric_error(&error, type_word(target)))?;
        match value {
            ColumnarValue::Array(_) => Ok(ColumnarValue::Array(result)),
            ColumnarValue::Scalar(_) => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)),
        }
    }
}
