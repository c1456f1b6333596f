//! Messages from the client: bytes of one whole frame to a typed message.
//!
//! Owns the decoding of frame bodies, and nothing that waits: `wire` cuts the stream into frames. Every
//! count and length is checked against the bytes that are there before anything is allocated, so a frame
//! that lies is an error and never a panic. Called by `session`; holds no state, so a crash does nothing.
//!
//! Source: PostgreSQL 15 documentation, section 55.7, "Message Formats".

use bytes::{Buf, Bytes};
use millstream_catalog::model::SqlState;

/// What a Describe or Close names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// `S`: a prepared statement.
    Statement,
    /// `P`: a portal.
    Portal,
}

/// How a value is written: PostgreSQL's format code 0 or 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Code 0.
    Text,
    /// Code 1.
    Binary,
}

impl Format {
    /// The code on the wire.
    pub(super) const fn code(self) -> i16 {
        match self {
            Self::Text => 0,
            Self::Binary => 1,
        }
    }
}

/// A Bind message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bind {
    pub(super) portal: String,
    pub(super) statement: String,
    /// None: all text. One: for all. Else one for each.
    pub(super) param_formats: Vec<Format>,
    /// `None` is NULL.
    pub(super) params: Vec<Option<Bytes>>,
    /// As `param_formats`, for the result's columns.
    pub(super) result_formats: Vec<Format>,
}

/// A message from the client after start-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frontend {
    Query(String),
    Parse { name: String, sql: String, param_oids: Vec<u32> },
    Bind(Bind),
    Describe { target: Target, name: String },
    Execute { portal: String, rows_max: u32 },
    Close { target: Target, name: String },
    Sync,
    Flush,
    Terminate,
    FunctionCall,
    CopyDone,
    CopyFail(String),
}

/// Why a frame's body could not be read. The frame's end is known, so the connection may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) sqlstate: SqlState,
    pub(super) message: String,
}

impl Malformed {
    fn violation(message: impl Into<String>) -> Self {
        Self { sqlstate: SqlState::ProtocolViolation, message: message.into() }
    }
}

type Result<T> = std::result::Result<T, Malformed>;

/// Decodes the body of a frame with type byte `tag`. CopyData does not come here: `wire` streams it.
///
/// # Errors
/// `08P01` for a body that does not have the form its type prescribes or an unknown type, `22021` for text
/// that is not UTF-8.
pub(super) fn decode(tag: u8, body: Bytes) -> Result<Frontend> {
    let mut body = Body(body);
    let message = match tag {
        b'Q' => Frontend::Query(body.text()?),
        b'P' => decode_parse(&mut body)?,
        b'B' => Frontend::Bind(decode_bind(&mut body)?),
        b'D' => Frontend::Describe { target: body.target()?, name: body.text()? },
        b'E' => Frontend::Execute { portal: body.text()?, rows_max: rows_max(body.i32()?) },
        b'C' => Frontend::Close { target: body.target()?, name: body.text()? },
        b'S' => Frontend::Sync,
        b'H' => Frontend::Flush,
        b'X' => Frontend::Terminate,
        b'c' => Frontend::CopyDone,
        b'f' => Frontend::CopyFail(body.text_lossy()?),
        b'F' => return Ok(Frontend::FunctionCall),
        other => return Err(Malformed::violation(format!("invalid frontend message type {other}"))),
    };
    if body.0.is_empty() { Ok(message) } else { Err(Malformed::violation("invalid message format: bytes left over")) }
}

/// Zero and negative both mean all rows.
fn rows_max(raw: i32) -> u32 {
    u32::try_from(raw).unwrap_or(0)
}

fn decode_parse(body: &mut Body) -> Result<Frontend> {
    let name = body.text()?;
    let sql = body.text()?;
    let count = body.count(4)?;
    let param_oids = (0..count).map(|_| body.i32().map(i32::cast_unsigned)).collect::<Result<_>>()?;
    Ok(Frontend::Parse { name, sql, param_oids })
}

fn decode_bind(body: &mut Body) -> Result<Bind> {
    let portal = body.text()?;
    let statement = body.text()?;
    let param_formats = body.formats()?;
    let count = body.count(4)?;
    let params = (0..count).map(|_| body.value()).collect::<Result<Vec<_>>>()?;
    let result_formats = body.formats()?;
    if param_formats.len() > 1 && param_formats.len() != params.len() {
        return Err(Malformed::violation(format!(
            "bind message has {} parameter formats but {} parameters",
            param_formats.len(),
            params.len()
        )));
    }
    Ok(Bind { portal, statement, param_formats, params, result_formats })
}

/// What is left of a frame's body.
struct Body(Bytes);

impl Body {
    /// Bytes up to the next zero, which is consumed too.
    fn raw(&mut self) -> Result<Bytes> {
        match self.0.iter().position(|byte| *byte == 0) {
            Some(end) => {
                let raw = self.0.split_to(end);
                self.0.advance(1);
                Ok(raw)
            }
            None => Err(Malformed::violation("invalid message format: string without an end")),
        }
    }

    fn text(&mut self) -> Result<String> {
        let raw = self.raw()?;
        match std::str::from_utf8(&raw) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => {
                let first = raw.get(error.valid_up_to()).copied().unwrap_or_default();
                Err(Malformed {
                    sqlstate: SqlState::CharacterNotInRepertoire,
                    message: format!("invalid byte sequence for encoding \"UTF8\": 0x{first:02x}"),
                })
            }
        }
    }

    fn text_lossy(&mut self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.raw()?).into_owned())
    }

    fn take(&mut self, len: usize) -> Result<Bytes> {
        if len > self.0.len() {
            return Err(Malformed::violation("insufficient data left in message"));
        }
        Ok(self.0.split_to(len))
    }

    fn i16(&mut self) -> Result<i16> {
        self.take(2).map(|mut bytes| bytes.get_i16())
    }

    fn i32(&mut self) -> Result<i32> {
        self.take(4).map(|mut bytes| bytes.get_i32())
    }

    /// A count of elements that take at least `least` bytes each; the wire means it unsigned.
    fn count(&mut self, least: usize) -> Result<usize> {
        let count = usize::from(self.i16()?.cast_unsigned());
        if count * least > self.0.len() {
            return Err(Malformed::violation("insufficient data left in message"));
        }
        Ok(count)
    }

    fn formats(&mut self) -> Result<Vec<Format>> {
        let count = self.count(2)?;
        let format = |code| match code {
            0 => Ok(Format::Text),
            1 => Ok(Format::Binary),
            other => Err(Malformed {
                sqlstate: SqlState::InvalidParameterValue,
                message: format!("unsupported format code: {other}"),
            }),
        };
        (0..count).map(|_| self.i16().and_then(format)).collect()
    }

    fn value(&mut self) -> Result<Option<Bytes>> {
        match self.i32()? {
            -1 => Ok(None),
            len => match usize::try_from(len) {
                Ok(len) => self.take(len).map(Some),
                Err(_) => Err(Malformed::violation("invalid length of a parameter value")),
            },
        }
    }

    fn target(&mut self) -> Result<Target> {
        match self.take(1)?.first() {
            Some(b'S') => Ok(Target::Statement),
            Some(b'P') => Ok(Target::Portal),
            _ => Err(Malformed::violation("invalid message subtype")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use pgwire::messages::{Message as _, extendedquery};
    use proptest::prelude::*;

    fn body(bytes: &[u8]) -> Bytes {
        Bytes::copy_from_slice(bytes)
    }

    #[test]
    fn bind_as_another_implementation_writes_it_is_read_back() {
        let mut bytes = BytesMut::new();
        let bind = extendedquery::Bind::new(
            Some("p".into()),
            Some("s".into()),
            vec![0, 1],
            vec![Some(body(b"12")), None],
            vec![1],
        );
        bind.encode(&mut bytes).unwrap();
        let frame = bytes.freeze();
        let Frontend::Bind(read) = decode(frame[0], frame.slice(5..)).unwrap() else { unreachable!() };
        assert_eq!(read.portal, "p");
        assert_eq!(read.statement, "s");
        assert_eq!(read.param_formats, [Format::Text, Format::Binary]);
        assert_eq!(read.params, [Some(body(b"12")), None]);
        assert_eq!(read.result_formats, [Format::Binary]);
    }

    #[test]
    fn parse_as_another_implementation_writes_it_is_read_back() {
        let mut bytes = BytesMut::new();
        extendedquery::Parse::new(None, "SELECT $1".into(), vec![23]).encode(&mut bytes).unwrap();
        let frame = bytes.freeze();
        let read = decode(b'P', frame.slice(5..)).unwrap();
        assert_eq!(read, Frontend::Parse { name: String::new(), sql: "SELECT $1".into(), param_oids: vec![23] });
    }

    #[test]
    fn lies_about_counts_and_lengths_are_protocol_violations() {
        for (tag, bytes) in [
            (b'Q', &b"SELECT 1"[..]),
            (b'Q', b"SELECT 1\0more\0"),
            (b'P', b"\0SELECT 1\0\xff\xff"),
            (b'P', b"\0SELECT 1\0\0\x02\0\0\0\x17"),
            (b'B', b"\0\0\0\0\xff\xff"),
            (b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff\0\0"),
            (b'B', b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0"),
            (b'B', b"\0\0\0\x02\0\0\0\0\0\x01\xff\xff\xff\xff\0\0"),
            (b'D', b"Xname\0"),
            (b'D', b""),
            (b'E', b"portal\0\0"),
            (b'S', b"extra"),
            (b'!', b""),
        ] {
            let error = decode(tag, body(bytes)).unwrap_err();
            assert_eq!(error.sqlstate, SqlState::ProtocolViolation, "{} {bytes:?}", char::from(tag));
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_named() {
        let error = decode(b'Q', body(b"SELECT '\xe9'\0")).unwrap_err();
        assert_eq!(error.sqlstate, SqlState::CharacterNotInRepertoire);
        assert_eq!(error.message, "invalid byte sequence for encoding \"UTF8\": 0xe9");
    }

    #[test]
    fn unknown_format_codes_are_refused() {
        let error = decode(b'B', body(b"\0\0\0\x01\0\x02\0\0\0\0")).unwrap_err();
        assert_eq!(error.sqlstate, SqlState::InvalidParameterValue);
    }

    proptest! {
        #[test]
        fn no_body_panics(tag in any::<u8>(), bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(tag, Bytes::from(bytes));
        }

        #[test]
        fn no_mutated_bind_panics(at in 0_usize..40, value in any::<u8>(), cut in 0_usize..40) {
            let mut bytes = b"p\0s\0\0\x02\0\0\0\x01\0\x02\0\0\0\x0212\xff\xff\xff\xff\0\x01\0\x01".to_vec();
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
            bytes.truncate(cut);
            let _ = decode(b'B', Bytes::from(bytes));
        }
    }
}
