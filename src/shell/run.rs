//! The shell's loop: statements out, rows in, and what is shown of them.
//!
//! Rows are printed as they come: whenever none is waiting, what has come is shown. Ctrl-C cancels the
//! statement, never the shell, and rows that come after it are not shown. Leaves out reading lines (`line`) and the look of rows (`render`).

use crate::cli::Format;
use crate::env::{self, UserFile as File};
use crate::shell::client::{Client, ClientError, Reply, ServerError};
use crate::shell::command::{self, Command};
use crate::shell::line::{Editor, Typed};
use crate::shell::render::{Renderer, Row};
use crate::shell::split;
use bytes::Bytes;
use futures::FutureExt as _;
use std::io::{IsTerminal as _, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Rows collected before a table's widths are fixed, when they come without a pause.
const ROWS_FIRST: usize = 1_000;
/// How long a pause between rows is before they are shown.
const PAUSE: Duration = Duration::from_millis(20);
/// How often the rate line is renewed.
const RATE_EVERY: Duration = Duration::from_millis(500);
/// Bytes of a copied file sent at once.
const COPY_BYTES: usize = 64 << 10;
/// Files that may include each other.
const INCLUDES_MAX: usize = 16;

/// A shell on one connection.
pub(crate) struct Shell {
    client: Client,
    format: Format,
    is_vertical: bool,
    is_timing: bool,
    output: Option<File>,
    /// Ctrl-C, watched from the beginning so that none is lost between two replies.
    interrupts: Option<Signal>,
    /// Files being included.
    includes: usize,
}

/// Where a text of statements is being read.
struct Script<'a> {
    rest: &'a str,
    line: usize,
    name: Option<&'a str>,
}

impl Script<'_> {
    fn advance(&mut self, bytes: usize) {
        self.line += self.rest[..bytes].matches('\n').count();
        self.rest = &self.rest[bytes..];
    }

    /// The next line, without its end.
    fn take_line(&mut self) -> Option<String> {
        if self.rest.is_empty() {
            return None;
        }
        let end = self.rest.find('\n').map_or(self.rest.len(), |at| at + 1);
        let line = self.rest[..end].trim_end_matches(['\n', '\r']).to_owned();
        self.advance(end);
        Some(line)
    }
}

impl Shell {
    /// A shell on an open connection.
    pub(crate) fn new(client: Client, format: Format) -> Self {
        // Without the signal, Ctrl-C ends the shell.
        let interrupts = signal(SignalKind::interrupt()).ok();
        Self { client, format, is_vertical: false, is_timing: false, output: None, interrupts, includes: 0 }
    }

    /// Runs a text of statements and backslash commands up to the first error. False after one.
    pub(crate) async fn batch(&mut self, text: &str, name: Option<&str>) -> bool {
        let mut script = Script { rest: text, line: 1, name };
        loop {
            let spaces = script.rest.len() - script.rest.trim_start().len();
            script.advance(spaces);
            if script.rest.is_empty() {
                return true;
            }
            if script.rest.starts_with('\\') {
                let Some(line) = script.take_line() else { return true };
                match Box::pin(self.command(&line)).await {
                    Ok(true) => {}
                    Ok(false) => return true,
                    Err(error) => {
                        complain(&script, &error);
                        return false;
                    }
                }
                continue;
            }
            let (statement, bytes) = match split::next(script.rest) {
                Some((statement, bytes)) => (statement.to_owned(), bytes),
                None if split::is_blank(script.rest) => return true,
                None => (script.rest.trim().to_owned(), script.rest.len()),
            };
            let line = script.line;
            script.advance(bytes);
            if let Err(error) = self.statement(&statement, Some(&mut script)).await {
                complain(&Script { rest: "", line, name: script.name }, &error);
                return false;
            }
        }
    }

    /// A dialogue on the terminal, until Ctrl-D or `\q`.
    pub(crate) async fn dialogue(mut self) -> ExitCode {
        let mut editor = match Editor::open() {
            Ok(editor) => editor,
            Err(reason) => {
                eprintln!("millstream: {reason}");
                return ExitCode::FAILURE;
            }
        };
        let target = self.client.target();
        println!("millstream {} on {}:{}; \\? for help", env!("CARGO_PKG_VERSION"), target.host, target.port);
        let mut typed = String::new();
        loop {
            let prompt = if split::is_blank(&typed) { "millstream=> " } else { "millstream-> " };
            match editor.read(prompt).await {
                Typed::Line(line) => {
                    typed.push_str(&line);
                    typed.push('\n');
                }
                Typed::Interrupted => typed.clear(),
                Typed::End => break,
            }
            while self.interrupts.as_mut().is_some_and(|it| it.recv().now_or_never().is_some()) {}
            match self.consume(&mut typed, &mut editor).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    eprintln!("millstream: {error}; trying to connect again");
                    typed.clear();
                    match Client::connect(self.client.target()).await {
                        Ok(client) => self.client = client,
                        Err(error) => {
                            eprintln!("millstream: {error}");
                            return ExitCode::from(2);
                        }
                    }
                }
            }
        }
        match self.client.close().await {
            Ok(()) | Err(_) => ExitCode::SUCCESS,
        }
    }

    /// Runs every complete statement of what was typed, and leaves the rest. False to leave the shell.
    async fn consume(&mut self, typed: &mut String, editor: &mut Editor) -> Result<bool, ClientError> {
        loop {
            let text = typed.trim_start();
            if text.starts_with('\\') {
                let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
                let (line, rest) = (line.to_owned(), rest.to_owned());
                *typed = rest;
                editor.remember(&line);
                match self.command(&line).await {
                    Ok(true) => continue,
                    Ok(false) => return Ok(false),
                    Err(Failure::Lost(error)) => return Err(error),
                    Err(error) => eprintln!("{error}"),
                }
                continue;
            }
            let Some((statement, bytes)) = split::next(text) else { return Ok(true) };
            let (statement, rest) = (statement.to_owned(), text[bytes..].to_owned());
            *typed = rest;
            if split::is_blank(typed) {
                typed.clear();
            }
            editor.remember(&statement);
            match self.statement(&statement, None).await {
                Ok(()) => {}
                Err(Failure::Lost(error)) => return Err(error),
                Err(error) => eprintln!("{error}"),
            }
        }
    }

    /// Runs a backslash command. False to leave the shell.
    async fn command(&mut self, line: &str) -> Result<bool, Failure> {
        match command::parse(line).map_err(Failure::Usage)? {
            Command::Quit => return Ok(false),
            Command::Help => print!("{}", command::HELP),
            Command::Vertical => {
                self.is_vertical = !self.is_vertical;
                println!("one line per column is {}", on_off(self.is_vertical));
            }
            Command::Timing => {
                self.is_timing = !self.is_timing;
                println!("timing is {}", on_off(self.is_timing));
            }
            Command::Format(format) => self.format = format,
            Command::Include(path) => {
                let text = env::read_text(&path)
                    .map_err(|error| Failure::Usage(format!("cannot read {}: {error}", path.display())))?;
                let name = path.display().to_string();
                if self.includes == INCLUDES_MAX {
                    return Err(Failure::Usage(format!("{name}: more than {INCLUDES_MAX} files include each other")));
                }
                self.includes += 1;
                let is_done = Box::pin(self.batch(&text, Some(&name))).await;
                self.includes -= 1;
                if !is_done {
                    return Err(Failure::Usage(format!("{name} was not run to its end")));
                }
            }
            Command::Output(None) => self.output = None,
            Command::Output(Some(path)) => {
                let file = env::create_file(&path)
                    .map_err(|error| Failure::Usage(format!("cannot write {}: {error}", path.display())))?;
                self.output = Some(file);
            }
            Command::CopyTo { statement, file } => {
                let created = env::create_file(&file)
                    .map_err(|error| Failure::Usage(format!("cannot write {}: {error}", file.display())))?;
                let before = self.output.replace(created);
                let result = self.run(&statement, CopySource::None).await;
                self.output = before;
                result?;
            }
            Command::CopyFrom { statement, file } => {
                let file = env::open_file(&file)
                    .map_err(|error| Failure::Usage(format!("cannot read {}: {error}", file.display())))?;
                self.run(&statement, CopySource::File(file)).await?;
            }
            Command::Sql(sql) => self.statement(&sql, None).await?,
        }
        Ok(true)
    }

    async fn statement(&mut self, sql: &str, script: Option<&mut Script<'_>>) -> Result<(), Failure> {
        let source = match script {
            Some(script) => CopySource::Script(script),
            None => CopySource::None,
        };
        self.run(sql, source).await
    }

    /// Sends a statement and shows what comes back.
    async fn run(&mut self, sql: &str, mut source: CopySource<'_, '_>) -> Result<(), Failure> {
        let start = env::instant();
        self.client.query(sql).await?;
        let mut failure = None;
        let mut is_copy_out = false;
        let mut view = View::new(if self.is_vertical { Format::Vertical } else { self.format }, self.output.is_none());
        loop {
            match self.next(&mut view).await? {
                Reply::Columns(columns) => view.begin(columns),
                Reply::Row(row) => view.row(row, &mut self.output)?,
                // Copy data is all there is, for whoever reads it further.
                Reply::Done(_) if is_copy_out => is_copy_out = false,
                Reply::Done(tag) => view.done(&tag, &mut self.output)?,
                Reply::Notice(notice) => {
                    view.hide_rate();
                    eprintln!("{}", spoken(&notice, sql));
                }
                Reply::Error(error) => {
                    view.show(&mut self.output)?;
                    view.hide_rate();
                    failure = Some(Failure::Server(spoken(&error, sql)));
                }
                Reply::CopyIn => source.send(&mut self.client, &mut self.interrupts).await?,
                Reply::CopyOut => is_copy_out = true,
                Reply::CopyData(data) => write_bytes(&mut self.output, &data)?,
                Reply::Ready => break,
            }
        }
        if self.is_timing {
            println!("time: {:.3} ms", env::elapsed(start).as_secs_f64() * 1e3);
        }
        failure.map_or(Ok(()), Err)
    }

    /// The next reply; meanwhile rows are shown in pauses and Ctrl-C cancels.
    async fn next(&mut self, view: &mut View) -> Result<Reply, Failure> {
        loop {
            let pause = view.pause();
            let canceller = self.client.canceller();
            tokio::select! {
                biased;
                () = interrupted(&mut self.interrupts) => {
                    view.is_cancelled = true;
                    view.hide_rate();
                    if std::io::stderr().is_terminal() {
                        // Behind the terminal's own ^C.
                        eprintln!();
                    }
                    if let Some(canceller) = canceller {
                        canceller.cancel().await?;
                    }
                }
                reply = self.client.receive() => return Ok(reply?),
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {
                    view.show(&mut self.output)?;
                    view.show_rate();
                }
            }
        }
    }
}

/// Completes at Ctrl-C; presses before the call count too.
async fn interrupted(interrupts: &mut Option<Signal>) {
    if let Some(signal) = interrupts
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// Where copy data comes from.
enum CopySource<'a, 'b> {
    /// The lines after the statement, up to `\.`; for a statement of the command line, standard input.
    Script(&'a mut Script<'b>),
    /// A file.
    File(File),
    /// Nowhere: a typed COPY FROM STDIN.
    None,
}

impl CopySource<'_, '_> {
    async fn send(&mut self, client: &mut Client, interrupts: &mut Option<Signal>) -> Result<(), Failure> {
        match self {
            CopySource::None => {
                client.copy_fail("COPY FROM STDIN needs data: use \\copy, or a file of statements").await?;
            }
            CopySource::File(file) => copy_all(file, client, interrupts).await?,
            CopySource::Script(script) if script.name.is_none() => {
                copy_all(&mut std::io::stdin(), client, interrupts).await?;
            }
            CopySource::Script(script) => {
                // The rest of the statement's own line.
                script.take_line();
                let mut lines = String::new();
                while let Some(line) = script.take_line() {
                    if line == "\\." {
                        break;
                    }
                    lines.push_str(&line);
                    lines.push('\n');
                    if lines.len() >= COPY_BYTES {
                        client.copy(Bytes::from(std::mem::take(&mut lines))).await?;
                    }
                }
                client.copy(Bytes::from(lines)).await?;
                client.copy_done().await?;
            }
        }
        Ok(())
    }
}

/// Sends everything `source` has, until Ctrl-C.
async fn copy_all(
    source: &mut impl std::io::Read,
    client: &mut Client,
    interrupts: &mut Option<Signal>,
) -> Result<(), Failure> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => client.copy(Bytes::copy_from_slice(&buffer[..bytes])).await?,
            Err(error) => return Ok(client.copy_fail(&format!("the data cannot be read: {error}")).await?),
        }
        if interrupts.as_mut().is_some_and(|signal| signal.recv().now_or_never().is_some()) {
            return Ok(client.copy_fail("canceled by user").await?);
        }
    }
    Ok(client.copy_done().await?)
}

/// Why a statement or command did not succeed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The server said so; the text is ready to be shown.
    #[error("{0}")]
    Server(String),
    /// The user asked for something that cannot be done.
    #[error("{0}")]
    Usage(String),
    /// The connection is gone.
    #[error(transparent)]
    Lost(#[from] ClientError),
    /// Rows cannot be written.
    #[error("cannot write: {0}")]
    Write(#[from] std::io::Error),
}

/// The rows of one statement on their way to the reader.
struct View {
    format: Format,
    renderer: Option<Renderer>,
    waiting: Vec<Row>,
    is_live: bool,
    is_cancelled: bool,
    has_rate: bool,
    start: Instant,
    rate_at: Instant,
}

impl View {
    fn new(format: Format, is_to_terminal: bool) -> Self {
        let is_live = is_to_terminal && std::io::stdout().is_terminal();
        let now = env::instant();
        Self {
            format,
            renderer: None,
            waiting: Vec::new(),
            is_live,
            is_cancelled: false,
            has_rate: false,
            start: now,
            rate_at: now,
        }
    }

    fn begin(&mut self, columns: Vec<crate::shell::client::Column>) {
        self.renderer = Some(Renderer::new(self.format, columns));
        self.start = env::instant();
        self.rate_at = self.start;
    }

    fn row(&mut self, row: Row, output: &mut Option<File>) -> std::io::Result<()> {
        if self.is_cancelled {
            return Ok(());
        }
        self.waiting.push(row);
        if self.waiting.len() >= ROWS_FIRST { self.show(output) } else { Ok(()) }
    }

    /// After how long without a reply something is to be done; `None` is never.
    fn pause(&self) -> Option<Duration> {
        match (&self.renderer, self.waiting.is_empty()) {
            (None, _) => None,
            (Some(_), false) => Some(PAUSE),
            (Some(renderer), true) => (self.is_live && renderer.rows() > 0).then_some(RATE_EVERY),
        }
    }

    fn show(&mut self, output: &mut Option<File>) -> std::io::Result<()> {
        let Some(renderer) = &mut self.renderer else { return Ok(()) };
        if self.waiting.is_empty() {
            return Ok(());
        }
        let text = renderer.rows_text(&std::mem::take(&mut self.waiting));
        self.hide_rate();
        write_text(output, &text)
    }

    fn show_rate(&mut self) {
        let Some(renderer) = &self.renderer else { return };
        if !self.is_live || env::elapsed(self.rate_at) < RATE_EVERY {
            return;
        }
        self.rate_at = env::instant();
        let rows = renderer.rows();
        let rate = rows as f64 / env::elapsed(self.start).as_secs_f64().max(0.001);
        eprint!("\r\x1b[K{rows} rows, {rate:.0} rows/s; Ctrl-C ends");
        self.has_rate = true;
    }

    fn hide_rate(&mut self) {
        if self.has_rate {
            eprint!("\r\x1b[K");
            self.has_rate = false;
        }
    }

    fn done(&mut self, tag: &str, output: &mut Option<File>) -> std::io::Result<()> {
        self.show(output)?;
        self.hide_rate();
        match self.renderer.take() {
            Some(mut renderer) => write_text(output, &renderer.end_text()),
            None if matches!(self.format, Format::Table | Format::Vertical) && !tag.is_empty() => {
                write_text(output, &format!("{tag}\n"))
            }
            None => Ok(()),
        }
    }
}

fn write_text(output: &mut Option<File>, text: &str) -> std::io::Result<()> {
    write_bytes(output, text.as_bytes())
}

fn write_bytes(output: &mut Option<File>, bytes: &[u8]) -> std::io::Result<()> {
    match output {
        Some(file) => file.write_all(bytes),
        None => {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(bytes)?;
            stdout.flush()
        }
    }
}

fn on_off(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

fn complain(script: &Script<'_>, error: &Failure) {
    if matches!(error, Failure::Write(error) if error.kind() == std::io::ErrorKind::BrokenPipe) {
        // The reader has seen enough.
        return;
    }
    match script.name {
        Some(name) => eprintln!("{name}:{}: {error}", script.line),
        None => eprintln!("{error}"),
    }
}

/// An error as psql shows it: message, the line with a caret, detail, hint, context.
fn spoken(error: &ServerError, sql: &str) -> String {
    let mut text = format!("{}: {} ({})", error.severity, error.message, error.sqlstate);
    if let Some((line, number, column)) = error.position.and_then(|position| place(sql, position)) {
        let prefix = format!("LINE {number}: ");
        let pad = " ".repeat(prefix.chars().count() + column);
        text.push_str(&format!("\n{prefix}{line}\n{pad}^"));
    }
    if let Some(detail) = &error.detail {
        text.push_str(&format!("\nDETAIL: {detail}"));
    }
    if let Some(hint) = &error.hint {
        text.push_str(&format!("\nHINT: {hint}"));
    }
    if let Some(context) = &error.context {
        text.push_str(&format!("\nCONTEXT: {context}"));
    }
    text
}

/// The line with the character `position` (from 1), its number from 1, and the column from 0.
fn place(sql: &str, position: usize) -> Option<(&str, usize, usize)> {
    let mut left = position.checked_sub(1)?;
    for (number, line) in sql.split('\n').enumerate() {
        let length = line.chars().count();
        if left <= length {
            return Some((line, number + 1, left));
        }
        left -= length + 1;
    }
    None
}
