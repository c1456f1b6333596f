//! Messages to the client, written straight into the output buffer.
//!
//! Owns the framing of every backend message but DataRow, which `rows` writes in bulk. Leaves out when they are sent (`wire`) and in which order (`session` and its parts). No state.
//!
//! Source: PostgreSQL 15 documentation, section 55.7, "Message Formats".

use crate::server::pg::message::Format;

/// Writes one message: the type byte, the length, and what `body` appends.
pub(super) fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    patch_length(out, start);
}

/// Writes at `start` the number of bytes from there to the end, as a frame counts them.
pub(super) fn patch_length(out: &mut [u8], start: usize) {
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

/// Appends `text` and the zero that ends it. A zero inside would end it early, so it is left out.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().filter(|byte| *byte != 0));
    out.push(0);
}

fn put_i16(out: &mut Vec<u8>, value: i16) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// A count of at most 16 bits, as the wire has it; the limits keep real ones below.
fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes());
}

/// `R` with 0: the client is let in.
pub(super) fn authentication_ok(out: &mut Vec<u8>) {
    message(out, b'R', |out| out.extend_from_slice(&0_i32.to_be_bytes()));
}

/// `v`: the version we speak, and the options we do not know.
pub(super) fn negotiate_protocol(out: &mut Vec<u8>, version: u32, unknown: &[String]) {
    message(out, b'v', |out| {
        out.extend_from_slice(&version.to_be_bytes());
        out.extend_from_slice(&u32::try_from(unknown.len()).unwrap_or(0).to_be_bytes());
        unknown.iter().for_each(|name| put_text(out, name));
    });
}

/// `S`: the value of a setting clients want to know.
pub(super) fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    message(out, b'S', |out| {
        put_text(out, name);
        put_text(out, value);
    });
}

/// `K`: what a CancelRequest must carry.
pub(super) fn backend_key(out: &mut Vec<u8>, pid: i32, secret: i32) {
    message(out, b'K', |out| {
        out.extend_from_slice(&pid.to_be_bytes());
        out.extend_from_slice(&secret.to_be_bytes());
    });
}

/// `A`: there is news on a channel, without a payload. Of process 0, which is nobody's: whoever takes no notice of its own
/// would miss what others wrote.
pub(super) fn notification(out: &mut Vec<u8>, channel: &str) {
    message(out, b'A', |out| {
        out.extend_from_slice(&0_i32.to_be_bytes());
        put_text(out, channel);
        put_text(out, "");
    });
}

/// `Z`: the next statement may come; `status` is `I`, `T` or `E`.
pub(super) fn ready_for_query(out: &mut Vec<u8>, status: u8) {
    message(out, b'Z', |out| out.push(status));
}

/// `C`: a statement ended.
pub(super) fn command_complete(out: &mut Vec<u8>, tag: &str) {
    message(out, b'C', |out| put_text(out, tag));
}

/// `1`, `2`, `3`, `I`, `n`, `s`, `c`: messages without a body.
pub(super) fn bare(out: &mut Vec<u8>, reply: Bare) {
    let tag = match reply {
        Bare::ParseComplete => b'1',
        Bare::BindComplete => b'2',
        Bare::CloseComplete => b'3',
        Bare::EmptyQuery => b'I',
        Bare::NoData => b'n',
        Bare::PortalSuspended => b's',
        Bare::CopyDone => b'c',
    };
    message(out, tag, |_| {});
}

/// The messages of `bare`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bare {
    ParseComplete,
    BindComplete,
    CloseComplete,
    EmptyQuery,
    NoData,
    PortalSuspended,
    CopyDone,
}

/// `t`: the types of a statement's parameters.
pub(super) fn parameter_description(out: &mut Vec<u8>, oids: &[u32]) {
    message(out, b't', |out| {
        put_count(out, oids.len());
        oids.iter().for_each(|oid| out.extend_from_slice(&oid.to_be_bytes()));
    });
}

/// One column of a RowDescription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) name: &'a str,
    pub(super) oid: u32,
    pub(super) typlen: i16,
    pub(super) typmod: i32,
    pub(super) format: Format,
}

/// `T`: the columns of a result. Table and attribute numbers are 0: our relations have no `pg_class` rows
/// that a driver could look up by them.
pub(super) fn row_description<'a>(out: &mut Vec<u8>, fields: impl ExactSizeIterator<Item = Field<'a>>) {
    message(out, b'T', |out| {
        put_count(out, fields.len());
        for field in fields {
            put_text(out, field.name);
            out.extend_from_slice(&[0; 6]);
            out.extend_from_slice(&field.oid.to_be_bytes());
            put_i16(out, field.typlen);
            out.extend_from_slice(&field.typmod.to_be_bytes());
            put_i16(out, field.format.code());
        }
    });
}

/// `G` (to the server) or `H` (to the client): copy data follows, `columns` columns all of one format.
pub(super) fn copy_response(out: &mut Vec<u8>, tag: u8, format: Format, columns: usize) {
    message(out, tag, |out| {
        out.push(u8::from(format == Format::Binary));
        put_count(out, columns);
        (0..columns).for_each(|_| put_i16(out, format.code()));
    });
}

/// `d`: copy data, which `body` appends; no message when it appends nothing.
pub(super) fn copy_data<T>(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let start = out.len();
    out.extend_from_slice(b"d\0\0\0\0");
    let result = body(out);
    if out.len() == start + 5 {
        out.truncate(start);
    } else {
        patch_length(out, start + 1);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use pgwire::messages::{DecodeContext, PgWireBackendMessage, ProtocolVersion};

    /// Reads with another implementation what ours wrote.
    fn read(write: impl FnOnce(&mut Vec<u8>)) -> PgWireBackendMessage {
        let mut out = Vec::new();
        write(&mut out);
        let mut context = DecodeContext::new(ProtocolVersion::PROTOCOL3_0);
        context.awaiting_frontend_ssl = false;
        context.awaiting_frontend_startup = false;
        let mut bytes = BytesMut::from(&out[..]);
        let message = PgWireBackendMessage::decode(&mut bytes, &context).unwrap().unwrap();
        assert!(bytes.is_empty());
        message
    }

    #[test]
    fn row_descriptions_are_read_by_another_implementation() {
        let fields = [
            Field { name: "a", oid: 23, typlen: 4, typmod: -1, format: Format::Text },
            Field { name: "b\0b", oid: 25, typlen: -1, typmod: -1, format: Format::Binary },
        ];
        let PgWireBackendMessage::RowDescription(read) = read(|out| row_description(out, fields.into_iter())) else {
            unreachable!()
        };
        assert_eq!(read.fields.len(), 2);
        assert_eq!(read.fields[0].type_id, 23);
        assert_eq!(read.fields[1].name, "bb");
        assert_eq!(read.fields[1].format_code, 1);
    }

    #[test]
    fn small_messages_are_read_by_another_implementation() {
        let PgWireBackendMessage::CommandComplete(done) = read(|out| command_complete(out, "SELECT 3")) else {
            unreachable!()
        };
        assert_eq!(done.tag, "SELECT 3");
        let PgWireBackendMessage::ParameterStatus(status) = read(|out| parameter_status(out, "a", "b")) else {
            unreachable!()
        };
        assert_eq!((status.name.as_str(), status.value.as_str()), ("a", "b"));
        let PgWireBackendMessage::CopyInResponse(copy) = read(|out| copy_response(out, b'G', Format::Text, 3)) else {
            unreachable!()
        };
        assert_eq!((copy.format, copy.columns), (0, 3));
        assert!(matches!(read(|out| bare(out, Bare::PortalSuspended)), PgWireBackendMessage::PortalSuspended(_)));
        let PgWireBackendMessage::NotificationResponse(news) = read(|out| notification(out, "Orders")) else {
            unreachable!()
        };
        assert_eq!((news.pid, news.channel.as_str(), news.payload.as_str()), (0, "Orders", ""));
        assert!(matches!(read(|out| ready_for_query(out, b'T')), PgWireBackendMessage::ReadyForQuery(_)));
        assert!(matches!(read(|out| backend_key(out, 7, 9)), PgWireBackendMessage::BackendKeyData(_)));
    }

    #[test]
    fn copy_data_without_data_is_not_sent() {
        let mut out = b"befored\0\0\0\x04".to_vec();
        copy_data(&mut out, |_| {});
        assert_eq!(out, b"befored\0\0\0\x04");
        copy_data(&mut out, |out| out.push(b'x'));
        assert_eq!(out, b"befored\0\0\0\x04d\0\0\0\x05x");
    }
}
