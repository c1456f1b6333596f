//! A function of the library with something done before or after it.
//!
//! Name, types and documentation stay the library's. Leaves out what is done. Pure.

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// What is done instead of the call; it may call.
pub(super) type Call = fn(&ScalarUDF, ScalarFunctionArgs) -> Result<ColumnarValue>;

#[derive(Debug)]
struct Around {
    inner: Arc<ScalarUDF>,
    call: Call,
}

/// `function`, called through `call`. A function is wrapped once, so that its name tells them apart.
pub(super) fn around(function: &Arc<ScalarUDF>, call: Call) -> ScalarUDF {
    ScalarUDF::new_from_impl(Around { inner: Arc::clone(function), call })
}

impl PartialEq for Around {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl Eq for Around {}

impl Hash for Around {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl ScalarUDFImpl for Around {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        (self.call)(&self.inner, args)
    }
}
