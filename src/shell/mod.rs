//! `millstream sql`: a shell on a running server, as a PostgreSQL client.
//!
//! Knows nothing of the engine: whatever it shows, any client can get. Owns the loop; `line` reads what is
//! typed, `command` runs backslash commands, `render` prints rows, `client` talks to the server.

mod client;
mod command;
pub mod demo;
mod line;
mod render;
mod run;
mod split;

use crate::cli::SqlArgs;
use crate::env;
use client::{Client, ClientError, Target};
use run::Shell;
use std::io::{IsTerminal as _, Read as _};
use std::net::SocketAddr;
use std::process::ExitCode;

/// `millstream sql`: runs `-c` and `-f`, or statements from a pipe, or a dialogue on a terminal.
///
/// Exit status: 0; 1 after the first failed statement of `-c`, `-f` or a pipe; 2 without a connection.
pub async fn run(args: &SqlArgs) -> ExitCode {
    let target = match target(args) {
        Ok(target) => target,
        Err(reason) => return refuse(&reason),
    };
    let client = match Client::connect(&target).await {
        Ok(client) => client,
        Err(error) => {
            let hint = match &error {
                ClientError::Connect(_, error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    "; start a server with `millstream start`"
                }
                _ => "",
            };
            return refuse(&format!("{error}{hint}"));
        }
    };
    let mut shell = Shell::new(client, args.format);
    let is_batch = !args.commands.is_empty() || args.file.is_some();
    for sql in &args.commands {
        if !shell.batch(sql, None).await {
            return ExitCode::FAILURE;
        }
    }
    if let Some(path) = &args.file {
        let text = if path.as_os_str() == "-" { read_stdin() } else { env::read_text(path) };
        return match text {
            Ok(text) => leave(shell.batch(&text, Some(&path.display().to_string())).await),
            Err(error) => refuse(&format!("cannot read {}: {error}", path.display())),
        };
    }
    if is_batch {
        return ExitCode::SUCCESS;
    }
    if std::io::stdin().is_terminal() {
        return shell.dialogue().await;
    }
    match read_stdin() {
        Ok(text) => leave(shell.batch(&text, Some("standard input")).await),
        Err(error) => refuse(&format!("cannot read standard input: {error}")),
    }
}

/// A dialogue with the server at `address`, for a node that has just started in this process.
pub async fn on(address: SocketAddr) -> ExitCode {
    let target = Target {
        host: address.ip().to_string(),
        port: address.port(),
        user: "millstream".to_owned(),
        database: "millstream".to_owned(),
    };
    match Client::connect(&target).await {
        Ok(client) => Shell::new(client, crate::cli::Format::Table).dialogue().await,
        Err(error) => refuse(&error.to_string()),
    }
}

fn leave(is_ok: bool) -> ExitCode {
    if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn refuse(reason: &str) -> ExitCode {
    eprintln!("millstream: {reason}");
    ExitCode::from(2)
}

fn read_stdin() -> std::io::Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

/// Where to connect: the URL's parts, and flags over them.
fn target(args: &SqlArgs) -> Result<Target, String> {
    let mut target = Target {
        host: "127.0.0.1".to_owned(),
        port: 7432,
        user: "millstream".to_owned(),
        database: "millstream".to_owned(),
    };
    if let Some(url) = &args.url {
        from_url(url, &mut target)?;
    }
    let set = |to: &mut String, from: &Option<String>| {
        if let Some(from) = from {
            to.clone_from(from);
        }
    };
    set(&mut target.host, &args.host);
    set(&mut target.user, &args.user);
    set(&mut target.database, &args.database);
    target.port = args.port.unwrap_or(target.port);
    Ok(target)
}

/// `postgresql://user@host:port/database`, every part but the scheme optional.
fn from_url(url: &str, target: &mut Target) -> Result<(), String> {
    // The URL is not repeated: it may hold a password.
    let bad = |why: &str| format!("this connection URL cannot be used: {why}");
    let rest = ["postgresql://", "postgres://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    let rest = rest.ok_or_else(|| bad("it begins with neither postgresql:// nor postgres://"))?;
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (database, parameters) = database.split_once('?').unwrap_or((database, ""));
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=').unwrap_or((parameter, "")) {
            ("sslmode", "disable" | "allow" | "prefer") => {}
            ("sslmode", _) => return Err(bad("connections are not encrypted yet; leave sslmode out")),
            (name, _) => return Err(bad(&format!("\"{name}\" is not a parameter it may have"))),
        }
    }
    let (user, place) = authority.rsplit_once('@').unwrap_or(("", authority));
    if user.contains(':') {
        return Err(bad("passwords are not supported yet"));
    }
    let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':').unwrap_or_default()),
        None => place.rsplit_once(':').unwrap_or((place, "")),
    };
    if !port.is_empty() {
        target.port = port.parse().map_err(|_| bad("the port is not a number"))?;
    }
    for (to, from) in [(&mut target.host, host), (&mut target.user, user), (&mut target.database, database)] {
        if !from.is_empty() {
            from.clone_into(to);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_give_their_parts() {
        let parts = |url: &str| {
            let args = SqlArgs {
                url: Some(url.to_owned()),
                host: None,
                port: None,
                user: None,
                database: None,
                commands: vec![],
                file: None,
                format: crate::cli::Format::Table,
                help: None,
            };
            target(&args).map(|t| format!("{}@{}:{}/{}", t.user, t.host, t.port, t.database))
        };
        assert_eq!(parts("postgresql://").unwrap(), "millstream@127.0.0.1:7432/millstream");
        assert_eq!(parts("postgres://ann@db.example:99/x?sslmode=prefer").unwrap(), "ann@db.example:99/x");
        assert_eq!(parts("postgres://[::1]:99").unwrap(), "millstream@::1:99/millstream");
        for bad in [
            "http://x",
            "postgres://h:port",
            "postgres://a:secret@h",
            "postgres://h/d?y=z",
            "postgres://h/d?sslmode=require",
        ] {
            assert!(parts(bad).is_err_and(|words| !words.contains("secret")), "{bad}");
        }
    }
}
