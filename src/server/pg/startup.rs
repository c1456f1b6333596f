//! The start-up handshake: encryption requests, cancel requests, protocol version and parameters.
//!
//! Owns everything up to the session's options. Leaves out the session (engine) and the first replies after
//! it (`connection`). TLS is not offered yet: both encryption requests are answered with `N`, and bytes that
//! were sent behind one before the answer are refused, because a middleman may have put them there
//! (CVE-2021-23222). Works on bounded packets; a crash loses nothing.

use crate::engine::{SessionId, SessionOptions, SqlError, SqlState};
use crate::server::pg::error::{Stop, violation};
use crate::server::pg::reply;
use crate::server::pg::wire::Wire;
use tokio::io::{AsyncRead, AsyncWrite};

/// PostgreSQL's own bound of a start-up packet.
const PACKET_BYTES_MAX: usize = 10_000;
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
const MAJOR: u32 = 3;
/// The newest minor version: 3.2 differs from 3.0 in what a cancel key may be.
const MINOR_LAST: u32 = 2;

/// What a connection was opened for.
#[derive(Debug)]
pub(super) enum Opening {
    /// To cancel a statement of another.
    Cancel(SessionId),
    /// For a session.
    Session(SessionOptions),
}

/// Runs the handshake up to its last packet from the client.
///
/// # Errors
/// `08P01`, `0A000`, `22023`, `28000` or `42601`, all of them fatal.
///
/// # Cancellation
/// The connection is of no use after it.
pub(super) async fn open<S>(wire: &mut Wire<S>, client: &str) -> Result<Opening, Stop>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut seen = Vec::new();
    loop {
        let (code, body) = packet(wire).await?;
        match code {
            SSL_REQUEST | GSS_REQUEST => {
                wire.read_arrived().await?;
                if seen.contains(&code) || !body.is_empty() {
                    return Err(Stop::Fatal(violation("invalid request for encryption")));
                }
                if !wire.input().is_empty() {
                    return Err(Stop::Fatal(violation("received unencrypted data after a request for encryption")));
                }
                seen.push(code);
                wire.out().push(b'N');
            }
            CANCEL_REQUEST => return cancel(&body).ok_or(Stop::Gone),
            version if version >> 16 == MAJOR => {
                let parameters = parameters(&body).map_err(Stop::Fatal)?;
                negotiate(wire, version & 0xffff, &parameters);
                return options(parameters, client).map(Opening::Session).map_err(Stop::Fatal);
            }
            version => {
                return Err(Stop::Fatal(SqlError::new(
                    SqlState::FeatureNotSupported,
                    format!(
                        "unsupported frontend protocol {}.{}: server supports 3.0 to 3.{MINOR_LAST}",
                        version >> 16,
                        version & 0xffff
                    ),
                )));
            }
        }
    }
}

/// The next packet: its code and what follows.
async fn packet<S>(wire: &mut Wire<S>) -> Result<(u32, bytes::Bytes), Stop>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    wire.fill_to(4).await?;
    let length = wire.input().first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes)) as usize;
    if !(8..=PACKET_BYTES_MAX).contains(&length) {
        return Err(Stop::Fatal(violation("invalid length of startup packet")));
    }
    wire.fill_to(length).await?;
    let mut packet = wire.take_input(length);
    let body = packet.split_off(8);
    let code = packet.last_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    Ok((code, body))
}

fn cancel(body: &[u8]) -> Option<Opening> {
    let (pid, secret) = body.split_first_chunk()?;
    let secret = secret.first_chunk().filter(|_| secret.len() == 4)?;
    Some(Opening::Cancel(SessionId { pid: i32::from_be_bytes(*pid), secret: i32::from_be_bytes(*secret) }))
}

/// Name and value, in order.
type Parameters = Vec<(String, String)>;

fn parameters(body: &[u8]) -> Result<Parameters, SqlError> {
    let malformed = || violation("invalid startup packet layout: expected terminator as last byte");
    let body = body.strip_suffix(&[0]).ok_or_else(malformed)?;
    if body.is_empty() {
        return Ok(Vec::new());
    }
    let body = body.strip_suffix(&[0]).ok_or_else(malformed)?;
    let text = |bytes: &[u8]| {
        String::from_utf8(bytes.to_vec()).map_err(|_| {
            SqlError::new(SqlState::CharacterNotInRepertoire, "a startup parameter is not valid in encoding \"UTF8\"")
        })
    };
    let parts = body.split(|byte| *byte == 0).map(text).collect::<Result<Vec<_>, _>>()?;
    if parts.len() % 2 == 1 {
        return Err(malformed());
    }
    let mut parts = parts.into_iter();
    let mut parameters = Vec::new();
    while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
        if name.is_empty() {
            return Err(malformed());
        }
        parameters.push((name, value));
    }
    Ok(parameters)
}

/// Tells a client that asked for more than we speak what it gets.
fn negotiate<S>(wire: &mut Wire<S>, minor: u32, parameters: &Parameters)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let unknown: Vec<String> =
        parameters.iter().filter(|(name, _)| name.starts_with("_pq_.")).map(|(name, _)| name.clone()).collect();
    // Version 3.1 was never spoken; what asks for it speaks 3.0 too.
    let accepted = match minor {
        0 | 1 => 0,
        _ => MINOR_LAST,
    };
    if accepted != minor || !unknown.is_empty() {
        reply::negotiate_protocol(wire.out(), MAJOR << 16 | accepted, &unknown);
    }
}

fn options(parameters: Parameters, client: &str) -> Result<SessionOptions, SqlError> {
    let mut options = SessionOptions { client: client.to_owned(), ..SessionOptions::default() };
    for (name, value) in parameters {
        match name.as_str() {
            "user" => options.user = value,
            "database" => options.database = value,
            "client_encoding" => check_encoding(&value)?,
            "replication" => check_replication(&value)?,
            "options" => options.settings.extend(command_line(&value)?),
            name if name.starts_with("_pq_.") => {}
            _ => options.settings.push((name, value)),
        }
    }
    if options.user.is_empty() {
        return Err(SqlError::new(
            SqlState::InvalidAuthorizationSpecification,
            "no PostgreSQL user name specified in startup packet",
        ));
    }
    if options.database.is_empty() {
        options.database.clone_from(&options.user);
    }
    Ok(options)
}

/// Text goes over the wire as UTF-8. `SQL_ASCII` means "do not convert", which is the same.
fn check_encoding(value: &str) -> Result<(), SqlError> {
    let plain: String = value.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    if matches!(plain.as_str(), "utf8" | "unicode" | "sqlascii") {
        return Ok(());
    }
    Err(SqlError::new(
        SqlState::InvalidParameterValue,
        format!("invalid value for parameter \"client_encoding\": \"{value}\""),
    )
    .hint("text is sent and taken as UTF8 only"))
}

fn check_replication(value: &str) -> Result<(), SqlError> {
    if matches!(value.to_ascii_lowercase().as_str(), "0" | "off" | "no" | "false" | "f" | "n") {
        return Ok(());
    }
    Err(SqlError::unsupported("the replication protocol", "subscribe with SELECT … EMIT CHANGES"))
}

/// Settings in the parameter `options`: `-c name=value` and `--name=value`, a backslash before a space.
fn command_line(text: &str) -> Result<Parameters, SqlError> {
    let invalid = |word: &str| {
        SqlError::new(SqlState::SyntaxError, format!("invalid command-line argument for server process: {word}"))
            .hint("only -c name=value and --name=value are accepted")
    };
    let words = words(text);
    let mut words = words.iter().map(String::as_str);
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let (setting, is_long) = match (word, word.strip_prefix("--"), word.strip_prefix("-c")) {
            ("-c", _, _) => (words.next().ok_or_else(|| invalid(word))?, false),
            (_, Some(rest), _) => (rest, true),
            (_, _, Some(rest)) => (rest, false),
            _ => return Err(invalid(word)),
        };
        let (name, value) = setting.split_once('=').ok_or_else(|| invalid(word))?;
        let name = if is_long { name.replace('-', "_") } else { name.to_owned() };
        settings.push((name, value.to_owned()));
    }
    Ok(settings)
}

/// Words between white space, which a backslash makes part of a word.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn packet_bytes(code: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(8 + body.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(&code.to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    /// What the handshake makes of `bytes`, and what it wrote but did not flush.
    async fn handshake(bytes: &[u8]) -> (Result<Opening, Stop>, Vec<u8>) {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut wire = Wire::new(server);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let opening = open(&mut wire, "test").await;
        (opening, std::mem::take(wire.out()))
    }

    async fn fatal(bytes: &[u8]) -> SqlError {
        match handshake(bytes).await.0 {
            Err(Stop::Fatal(error)) => error,
            other => unreachable!("{other:?}"),
        }
    }

    async fn session(code: u32, body: &[u8]) -> (SessionOptions, Vec<u8>) {
        match handshake(&packet_bytes(code, body)).await {
            (Ok(Opening::Session(options)), out) => (options, out),
            (other, _) => unreachable!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn parameters_become_options() {
        let body = b"user\0ann\0database\0d\0application_name\0psql\0client_encoding\0'utf-8'\0\
            options\0-c statement_timeout=1s --search-path=a\\ b -cfetch_timeout=2\0\0";
        let (options, out) = session(3 << 16, body).await;
        assert_eq!((options.user.as_str(), options.database.as_str()), ("ann", "d"));
        let settings: Vec<_> = options.settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(
            settings,
            [("application_name", "psql"), ("statement_timeout", "1s"), ("search_path", "a b"), ("fetch_timeout", "2")]
        );
        assert!(out.is_empty());
    }

    #[tokio::test]
    async fn the_database_is_the_user_unless_named() {
        assert_eq!(session(3 << 16, b"user\0ann\0\0").await.0.database, "ann");
    }

    #[tokio::test]
    async fn newer_versions_and_unknown_extensions_are_negotiated() {
        let (_, out) = session(3 << 16 | 2, b"user\0a\0\0").await;
        assert!(out.is_empty());
        let (_, out) = session(3 << 16 | 9999, b"user\0a\0\0").await;
        assert_eq!(out, b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0");
        let (_, out) = session(3 << 16, b"user\0a\0_pq_.x\0y\0\0").await;
        assert_eq!(out, b"v\0\0\0\x13\0\x03\0\0\0\0\0\x01_pq_.x\0");
    }

    #[tokio::test]
    async fn encryption_is_declined_and_the_handshake_goes_on() {
        let (mut client, server) = tokio::io::duplex(1024);
        let mut wire = Wire::new(server);
        let asking = async {
            let mut answer = [0];
            for code in [GSS_REQUEST, SSL_REQUEST] {
                client.write_all(&packet_bytes(code, b"")).await.unwrap();
                client.read_exact(&mut answer).await.unwrap();
                assert_eq!(&answer, b"N");
            }
            client.write_all(&packet_bytes(3 << 16, b"user\0a\0\0")).await.unwrap();
        };
        let (opening, ()) = tokio::join!(open(&mut wire, "test"), asking);
        assert!(matches!(opening, Ok(Opening::Session(_))));
    }

    #[tokio::test]
    async fn clear_text_behind_an_encryption_request_is_refused() {
        for code in [SSL_REQUEST, GSS_REQUEST] {
            let mut bytes = packet_bytes(code, b"");
            bytes.extend(packet_bytes(3 << 16, b"user\0a\0\0"));
            let error = fatal(&bytes).await;
            assert_eq!(error.sqlstate, SqlState::ProtocolViolation);
        }
    }

    #[tokio::test]
    async fn a_cancel_request_carries_its_key() {
        let (opening, _) = handshake(&packet_bytes(CANCEL_REQUEST, b"\0\0\0\x07\xff\xff\xff\xfe")).await;
        assert!(matches!(opening, Ok(Opening::Cancel(SessionId { pid: 7, secret: -2 }))));
        let (opening, _) = handshake(&packet_bytes(CANCEL_REQUEST, b"\0\0\0\x07\xff\xff\xff\xfe\0")).await;
        assert!(matches!(opening, Err(Stop::Gone)));
    }

    #[tokio::test]
    async fn malformed_packets_are_refused_in_words() {
        for (bytes, code) in [
            (b"\0\0\0\x07\0\0\0\0".to_vec(), "08P01"),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "08P01"),
            (packet_bytes(3 << 16, b"user\0a\0"), "08P01"),
            (packet_bytes(3 << 16, b"user\0a"), "08P01"),
            (packet_bytes(3 << 16, b"user\0\0"), "08P01"),
            (packet_bytes(3 << 16, b""), "08P01"),
            (packet_bytes(3 << 16, b"\0"), "28000"),
            (packet_bytes(2 << 16, b"user\0a\0\0"), "0A000"),
            (packet_bytes(3 << 16, b"user\0a\0client_encoding\0LATIN1\0\0"), "22023"),
            (packet_bytes(3 << 16, b"user\0a\0replication\0database\0\0"), "0A000"),
            (packet_bytes(3 << 16, b"user\0a\0options\0-B 100\0\0"), "42601"),
            (packet_bytes(3 << 16, b"user\0\xff\0\0"), "22021"),
        ] {
            assert_eq!(fatal(&bytes).await.sqlstate.code(), code, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn half_a_handshake_is_gone() {
        let (opening, _) = handshake(b"\0\0\0\x20\0\x03").await;
        assert!(matches!(opening, Err(Stop::Gone)));
    }

    proptest! {
        #[test]
        fn no_packet_panics(code in prop_oneof![Just(3_u32 << 16), Just(CANCEL_REQUEST), any::<u32>()],
                            body in proptest::collection::vec(any::<u8>(), 0..100)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(handshake(&packet_bytes(code, &body)));
        }
    }
}
