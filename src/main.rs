//! The `millstream` binary: reads the command line and runs a server, a shell, or the demo.

use anyhow::Context as _;
use clap::Parser as _;
use futures::FutureExt as _;
use millstream::cli::{CheckArgs, Cli, Command, DumpArgs, DumpRows, ReportFormat, StartArgs};
use millstream::config::Config;
use millstream::node::Node;
use millstream::offline::backup::{BackupError, Copied};
use millstream::offline::dump::RowFormat;
use millstream::offline::{self, Report};
use millstream::shell;
use millstream::storage::{RealDisk, without_huge_pages};
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// A small statement makes some 160 allocations; this allocator spends a third of the instructions on them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before there is memory to speak of.
    without_huge_pages();
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("millstream: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = millstream::env::runtime("millstream", millstream::env::cores().max(2), 4 << 20)
        .context("cannot start threads")?;
    let code = runtime.block_on(async {
        match cli.command {
            Some(Command::Start(args)) => start(&args).await,
            Some(Command::Sql(args)) => Ok(shell::run(&args).await),
            Some(Command::Backup(args)) => {
                let base = args.base.as_deref();
                Ok(copied(offline::backup::backup(Arc::new(RealDisk), &args.data_dir, &args.to, base)))
            }
            Some(Command::Restore(args)) => {
                Ok(copied(offline::backup::restore(Arc::new(RealDisk), &args.from, &args.data_dir)))
            }
            Some(Command::Check(args)) => Ok(check(&args)),
            Some(Command::Dump(args)) => dump(&args),
            Some(Command::Demo(args)) => shell::demo::run(&args).await,
            None => alone().await,
        }
    })?;
    runtime.shutdown_background();
    Ok(code)
}

/// `millstream start`
async fn start(args: &StartArgs) -> anyhow::Result<ExitCode> {
    trace("info");
    let config = Config::load(args)?;
    let node = Node::start(&config).await?;
    announce(&node);
    wait(&node).await
}

/// `millstream check`
fn check(args: &CheckArgs) -> ExitCode {
    let disk = Arc::new(RealDisk);
    let reports = match args.repair {
        true => offline::check::check_and_repair(disk, &args.data_dir).map(|(found, left)| vec![found, left]),
        false => offline::check::check(disk, &args.data_dir).map(|found| vec![found]),
    };
    match reports {
        Ok(reports) => {
            for report in &reports {
                match args.format {
                    ReportFormat::Text => print!("{report}"),
                    ReportFormat::Json => println!("{}", report.render_json()),
                }
            }
            ExitCode::from(u8::from(!reports.last().is_some_and(Report::is_clean)))
        }
        Err(error) => {
            eprintln!("millstream: {error}");
            ExitCode::from(2)
        }
    }
}

/// `millstream backup` and `millstream restore`
fn copied(copied: Result<Copied, BackupError>) -> ExitCode {
    match copied {
        Ok(Copied { bytes, linked, report }) => {
            print!("copied {bytes} bytes, linked {linked} segments\n{report}");
            ExitCode::from(u8::from(!report.is_clean()))
        }
        Err(error) => {
            eprintln!("millstream: {error}");
            ExitCode::from(2)
        }
    }
}

/// `millstream dump`
fn dump(args: &DumpArgs) -> anyhow::Result<ExitCode> {
    let rows = args.rows.map(|rows| match rows {
        DumpRows::Csv => RowFormat::Csv,
        DumpRows::Json => RowFormat::Json,
    });
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let dumped = offline::dump::dump(&RealDisk, &args.path, rows, &mut out).and_then(|()| out.flush());
    match dumped {
        // Whoever read it has enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        dumped => dumped.map(|()| ExitCode::SUCCESS).with_context(|| format!("cannot print {}", args.path.display())),
    }
}

fn announce(node: &Node) {
    let address = node.pg_address();
    eprintln!(
        "millstream is ready: psql -h {} -p {} -U millstream (health and metrics on http://{})",
        address.ip(),
        address.port(),
        node.admin_address()
    );
}

/// Waits for SIGTERM, Ctrl-C or a failure of the log, then stops the node.
async fn wait(node: &Node) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let code = tokio::select! {
        _ = terminate.recv() => ExitCode::SUCCESS,
        result = tokio::signal::ctrl_c() => {
            result.context("cannot watch for Ctrl-C")?;
            ExitCode::SUCCESS
        }
        reason = node.failed() => {
            eprintln!("millstream: stopping, the log cannot be written: {reason}");
            ExitCode::FAILURE
        }
    };
    Ok(stop(node, code).await)
}

/// Stops the node; `code` unless that fails.
async fn stop(node: &Node, code: ExitCode) -> ExitCode {
    let has_failed = node.failed().now_or_never().is_some();
    node.stop().await;
    match node.failed().now_or_never() {
        Some(reason) if !has_failed => {
            eprintln!("millstream: the last changes may be lost, the log could not be closed: {reason}");
            ExitCode::FAILURE
        }
        _ => code,
    }
}

/// `millstream` alone: a node, and a shell on it when there is a terminal.
async fn alone() -> anyhow::Result<ExitCode> {
    // As `millstream start` without flags: the environment counts.
    let Some(Command::Start(args)) = Cli::try_parse_from(["millstream", "start"])?.command else {
        return Ok(ExitCode::FAILURE);
    };
    if !std::io::stdin().is_terminal() {
        return start(&args).await;
    }
    trace("warn");
    let node = Node::start(&Config::load(&args)?).await?;
    announce(&node);
    let code = shell::on(node.pg_address()).await;
    Ok(stop(&node, code).await)
}

/// Traces go to standard error; MILLSTREAM_LOG sets the filter.
fn trace(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MILLSTREAM_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("{default},openraft=error,datafusion=warn")));
    let is_terminal = std::io::stderr().is_terminal();
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    format.with_ansi(is_terminal).with_target(false).init();
}
