//! `encode` and `decode`: bytea as text in hex, base64 or escape form, and back.
//!
//! As PostgreSQL has them: base64 is padded and broken into lines of 76 characters, and spaces in it are skipped. A text
//! as the first argument of `encode` is a literal in bytea's own input form. Pure.

use super::errors::{external, fail};
use crate::types::scalar_text;
use arrow::array::{ArrayRef, AsArray, BinaryArray, StringArray};
use arrow::datatypes::DataType;
use base64::DecodeError;
use base64::prelude::{BASE64_STANDARD as STANDARD, Engine as _};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use std::sync::Arc;

/// Characters of base64 on one line.
const LINE: usize = 76;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Codec {
    is_encode: bool,
    signature: Signature,
}

/// `encode` and `decode`.
pub(super) fn functions() -> [ScalarUDF; 2] {
    let codec = |is_encode| Codec { is_encode, signature: Signature::user_defined(Volatility::Immutable) };
    [ScalarUDF::new_from_impl(codec(true)), ScalarUDF::new_from_impl(codec(false))]
}

fn invalid(message: String) -> datafusion::common::DataFusionError {
    fail(SqlState::InvalidParameterValue, message)
}

impl ScalarUDFImpl for Codec {
    fn name(&self) -> &str {
        if self.is_encode { "encode" } else { "decode" }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let is_text = |data_type: &DataType| matches!(data_type, DataType::Utf8 | DataType::Null);
        match types {
            [DataType::Binary, format] if self.is_encode && is_text(format) => {
                Ok(vec![DataType::Binary, DataType::Utf8])
            }
            [data, format] if is_text(data) && is_text(format) => Ok(vec![DataType::Utf8, DataType::Utf8]),
            _ => {
                let fact = format!("function {} does not take arguments of these types", self.name());
                Err(fail(SqlState::UndefinedFunction, fact))
            }
        }
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(if self.is_encode { DataType::Utf8 } else { DataType::Binary })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if is_scalar { 1 } else { args.number_rows };
        let [data, format] = args.args.as_slice() else { return Err(invalid("two arguments are needed".to_owned())) };
        let data = match data {
            ColumnarValue::Scalar(ScalarValue::Utf8(Some(text))) if self.is_encode => {
                ColumnarValue::Scalar(scalar_text(&SqlType::Bytea, text.as_bytes()).map_err(external)?)
            }
            other => other.clone(),
        };
        let (data, format) = (data.to_array(rows)?, format.to_array(rows)?);
        let format = format.as_string::<i32>();
        let result: ArrayRef = if self.is_encode {
            let Some(data) = data.as_binary_opt::<i32>() else {
                return Err(fail(SqlState::UndefinedFunction, "function encode(text, text) does not exist"));
            };
            let encoded = data.iter().zip(format).map(|pair| match pair {
                (Some(bytes), Some(format)) => encode(bytes, format).map(Some),
                _ => Ok(None),
            });
            Arc::new(encoded.collect::<Result<StringArray>>()?)
        } else {
            let decoded = data.as_string::<i32>().iter().zip(format).map(|pair| match pair {
                (Some(text), Some(format)) => decode(text.as_bytes(), format).map(Some),
                _ => Ok(None),
            });
            let decoded = decoded.collect::<Result<Vec<_>>>()?;
            Arc::new(BinaryArray::from_iter(decoded))
        };
        match is_scalar {
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)),
            false => Ok(ColumnarValue::Array(result)),
        }
    }
}

fn encode(bytes: &[u8], format: &str) -> Result<String> {
    match format.to_ascii_lowercase().as_str() {
        "hex" => Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        "base64" => Ok(to_base64(bytes)),
        "escape" => Ok(bytes
            .iter()
            .map(|byte| match byte {
                b'\\' => "\\\\".to_owned(),
                0 | 128.. => format!("\\{byte:03o}"),
                plain => char::from(*plain).to_string(),
            })
            .collect()),
        _ => Err(invalid(format!("unrecognized encoding: \"{format}\""))),
    }
}

fn decode(text: &[u8], format: &str) -> Result<Vec<u8>> {
    match format.to_ascii_lowercase().as_str() {
        "hex" => from_hex(text),
        "base64" => from_base64(text),
        "escape" => from_escape(text),
        _ => Err(invalid(format!("unrecognized encoding: \"{format}\""))),
    }
}

fn to_base64(bytes: &[u8]) -> String {
    let text = STANDARD.encode(bytes);
    let lines = text.as_bytes().chunks(LINE).map(|line| String::from_utf8_lossy(line));
    lines.collect::<Vec<_>>().join("\n")
}

fn from_base64(text: &[u8]) -> Result<Vec<u8>> {
    let text: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(text).map_err(|error| match error {
        DecodeError::InvalidByte(_, b'=') => invalid("unexpected \"=\" while decoding base64 sequence".to_owned()),
        DecodeError::InvalidByte(_, byte) => {
            invalid(format!("invalid symbol \"{}\" found while decoding base64 sequence", char::from(byte)))
        }
        _ => invalid("invalid base64 end sequence".to_owned()),
    })
}

fn from_hex(text: &[u8]) -> Result<Vec<u8>> {
    let mut digits = Vec::with_capacity(text.len());
    for byte in text.iter().filter(|byte| !byte.is_ascii_whitespace()) {
        let digit = char::from(*byte).to_digit(16);
        digits.push(digit.ok_or_else(|| invalid(format!("invalid hexadecimal digit: \"{}\"", char::from(*byte))))?);
    }
    if digits.len() % 2 == 1 {
        return Err(invalid("invalid hexadecimal data: odd number of digits".to_owned()));
    }
    Ok(digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

/// The escape form of bytea's input; its hex form is none.
fn from_escape(text: &[u8]) -> Result<Vec<u8>> {
    let invalid = || fail(SqlState::InvalidTextRepresentation, "invalid input syntax for type bytea");
    if text.starts_with(b"\\x") {
        return Err(invalid());
    }
    match scalar_text(&SqlType::Bytea, text).map_err(external)? {
        ScalarValue::Binary(Some(bytes)) => Ok(bytes),
        _ => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_from_every_form() {
        for len in [0, 1, 2, 3, 56, 57, 58, 114, 200] {
            let bytes: Vec<u8> = (0..len).map(|at| (at * 37 % 256) as u8).collect();
            for format in ["hex", "base64", "escape", "HEX"] {
                let text = encode(&bytes, format).unwrap();
                assert_eq!(decode(text.as_bytes(), format).unwrap(), bytes, "{format} {len}");
            }
        }
        assert_eq!(encode(b"\x01", "base64").unwrap(), "AQ==");
        assert_eq!(encode(&[1; 60], "base64").unwrap().lines().map(str::len).collect::<Vec<_>>(), [76, 4]);
        assert_eq!(encode(&[1; 57], "base64").unwrap().len(), 76);
        assert_eq!(encode(b"a\\\0\xff", "escape").unwrap(), "a\\\\\\000\\377");
        for (text, format) in [("zz", "hex"), ("abc", "hex"), ("A===", "base64"), ("AA=A", "base64"), ("AAA", "base64")]
        {
            assert!(decode(text.as_bytes(), format).is_err(), "{text}");
        }
        assert!(encode(b"", "rot13").is_err());
    }
}
