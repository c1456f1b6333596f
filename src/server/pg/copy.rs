//! COPY in both directions, as the protocol has it.
//!
//! Owns the messages between CopyInResponse and CopyDone. Copy data of the client is handed on in parts as it
//! arrives and nothing is written before its end, so a client that dies, fails or is cancelled leaves
//! nothing behind. Rows to the client go out one per CopyData, as PostgreSQL documents; an Arrow stream in parts of
//! bounded size. Leaves out formats (`engine`).

use crate::engine::{CopyIn, CopyOut, SqlError, SqlState};
use crate::server::pg::cancel::Signals;
use crate::server::pg::connection::{Connection, frame_of, step};
use crate::server::pg::error::{Stop, violation};
use crate::server::pg::message::{self, Format, Frontend};
use crate::server::pg::pump::Source;
use crate::server::pg::reply::{self, Bare};
use crate::server::pg::wire::{Frame, Wire};
use tokio::io::{AsyncRead, AsyncWrite};

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<'_, S> {
    /// Takes copy data to its end and writes it; returns the completion tag.
    ///
    /// # Errors
    /// `57014` when the client gives up or cancels; of the data and of the write. What the client still sends
    /// is discarded by the connection, which ignores copy data outside of a COPY.
    pub(super) async fn copy_in(&mut self, mut copy: Box<CopyIn>, signals: &Signals) -> Result<String, Stop> {
        let format = if copy.is_binary() { Format::Binary } else { Format::Text };
        reply::copy_response(self.wire.out(), b'G', format, copy.columns());
        // The time a client takes to send is its own; a statement's time counts from the end of the data.
        let waiting = signals.clone().until(None);
        while let Some(data) = next_data(self.wire, &waiting).await? {
            copy.push(&data)?;
            if copy.is_full() {
                step(self.wire, signals, Box::pin(copy.flush(&mut self.session))).await??;
            }
        }
        let rows = step(self.wire, signals, Box::pin(copy.finish(&mut self.session))).await??;
        Ok(format!("COPY {rows}"))
    }

    /// Sends rows as copy data; returns the completion tag.
    ///
    /// # Errors
    /// Of the rows, and of whatever interrupted a wait.
    pub(super) async fn copy_out(&mut self, copy: CopyOut, signals: &Signals) -> Result<String, Stop> {
        let mut encoder = copy.encoder()?;
        let form = copy.form();
        self.send_messages();
        let mut source = Source::new(copy.rows);
        let format = if encoder.is_binary() { Format::Binary } else { Format::Text };
        reply::copy_response(self.wire.out(), b'H', format, source.columns.len());
        let signals = source.signals(signals, &self.stopping);
        reply::copy_data(self.wire.out(), |out| encoder.header(out));
        let mut sent = 0_u64;
        while let Some(batch) = source.next_batch(self.wire, &signals).await? {
            signals.check()?;
            if !source.hand_over(batch.num_rows()) {
                continue;
            }
            sent += batch.num_rows() as u64;
            match batch.forms().zip(form.as_ref()) {
                Some((forms, form)) => {
                    let encoded = forms.get(form, || {
                        let mut bytes = Vec::new();
                        encoder.begin(&batch)?;
                        while reply::copy_data(&mut bytes, |out| encoder.next(out)) {}
                        Ok::<_, SqlError>(bytes)
                    })?;
                    self.wire.out().extend_from_slice(&encoded);
                }
                None => {
                    encoder.begin(&batch)?;
                    while reply::copy_data(self.wire.out(), |out| encoder.next(out)) {
                        if self.wire.is_full() {
                            self.wire.make_room(&signals).await?;
                            signals.check()?;
                        }
                    }
                }
            }
            if self.wire.is_full() {
                self.wire.make_room(&signals).await?;
            }
            source.put(self.wire, &signals).await?;
        }
        source.finish(self.wire, &signals).await?;
        reply::copy_data(self.wire.out(), |out| encoder.finish(out));
        reply::bare(self.wire.out(), Bare::CopyDone);
        self.meters.rows_sent(sent);
        Ok(format!("COPY {sent}"))
    }
}

/// The next part of the client's copy data; `None` at its end.
async fn next_data<S>(wire: &mut Wire<S>, signals: &Signals) -> Result<Option<bytes::Bytes>, Stop>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match frame_of(wire, signals).await? {
            Frame::CopyData(data) => return Ok(Some(data)),
            // Clients that use the extended protocol may have sent them ahead.
            Frame::Whole(b'S' | b'H', _) => {}
            Frame::Whole(b'X', _) => return Err(Stop::Gone),
            Frame::Whole(tag @ (b'c' | b'f'), body) => {
                return match message::decode(tag, body)? {
                    Frontend::CopyFail(reason) => {
                        Err(SqlError::new(SqlState::QueryCanceled, format!("COPY from stdin failed: {reason}")).into())
                    }
                    _ => Ok(None),
                };
            }
            Frame::Whole(tag, _) | Frame::TooLarge { tag, .. } | Frame::NoRoom { tag } => {
                return Err(Stop::Fatal(violation(format!(
                    "unexpected message type 0x{tag:02X} during COPY from stdin"
                ))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::pg::cancel::Stopping;
    use tokio::io::AsyncWriteExt as _;
    use tokio_util::sync::CancellationToken;

    async fn data_of(bytes: &[u8]) -> (Vec<u8>, Result<(), Stop>) {
        let (mut client, server) = tokio::io::duplex(1 << 12);
        client.write_all(bytes).await.unwrap();
        drop(client);
        let mut wire = Wire::new(server);
        let signals = Signals::finite(CancellationToken::new(), &Stopping::default());
        let mut all = Vec::new();
        loop {
            match next_data(&mut wire, &signals).await {
                Ok(Some(data)) => all.extend_from_slice(&data),
                Ok(None) => return (all, Ok(())),
                Err(stop) => return (all, Err(stop)),
            }
        }
    }

    #[tokio::test]
    async fn sync_and_flush_are_passed_over() {
        let (data, end) = data_of(b"S\0\0\0\x04d\0\0\0\x06abH\0\0\0\x04d\0\0\0\x04d\0\0\0\x05cc\0\0\0\x04").await;
        assert_eq!(data, b"abc");
        assert!(end.is_ok());
    }

    #[tokio::test]
    async fn copy_fail_carries_the_clients_reason() {
        let (_, end) = data_of(b"d\0\0\0\x05af\0\0\0\x08why\0").await;
        let Err(Stop::Statement(error)) = end else { unreachable!() };
        assert_eq!(error.sqlstate, SqlState::QueryCanceled);
        assert_eq!(error.message, "COPY from stdin failed: why");
    }

    #[tokio::test]
    async fn a_client_that_disconnects_is_gone() {
        assert!(matches!(data_of(b"d\0\0\0\x06a").await, (data, Err(Stop::Gone)) if data == b"a"));
        assert!(matches!(data_of(b"X\0\0\0\x04").await.1, Err(Stop::Gone)));
    }

    #[tokio::test]
    async fn other_messages_end_the_connection() {
        let (_, end) = data_of(b"Q\0\0\0\x0dSELECT 1\0").await;
        assert!(matches!(end, Err(Stop::Fatal(error)) if error.sqlstate == SqlState::ProtocolViolation));
    }
}
