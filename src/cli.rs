//! The command line: what `millstream` can be asked to do.
//!
//! Owns arguments and their help. Leaves out merging them with the file and the environment (`config`) and
//! doing the work (`node`, `shell`). `main` calls it.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

/// A SQL-queryable event streaming database: a replicated log, a streaming SQL engine and a PostgreSQL server
/// in one process.
///
/// Without a command: a node on ./millstream-data that listens for clients, with a shell on top when standard
/// input is a terminal.
#[derive(Debug, Parser)]
#[command(name = "millstream", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a server
    ///
    /// Every option can also be given in the environment (MILLSTREAM_DATA_DIR, …) or in the file named by
    /// --config, as `data_dir = "…"`. A flag wins over the environment, the environment over the file.
    Start(StartArgs),
    /// Open a shell on a running server
    #[command(disable_help_flag = true, after_help = SQL_HELP)]
    Sql(SqlArgs),
    /// Check a data directory that no server runs on, and repair it if asked
    ///
    /// Verifies every checksum, and that the files agree with each other. Without --repair nothing is written.
    #[command(after_help = CHECK_HELP)]
    Check(CheckArgs),
    /// Copy a node's data directory while it runs
    ///
    /// The copy is a data directory in a state the node could have crashed in, with everything acknowledged before the
    /// backup began; it is checked. Exit status: 0; 1 when what was copied is damaged; 2 without a backup.
    Backup(BackupArgs),
    /// Copy a backup to a new data directory, after checking it
    Restore(RestoreArgs),
    /// Print what stands in a data directory or one of its files, for people
    ///
    /// Frames of the log, manifests, and segments; of damaged files what can be read. A server may run meanwhile.
    Dump(DumpArgs),
    /// See it work: load 20,000 real flights, watch a windowed table change
    Demo(DemoArgs),
}

const CHECK_HELP: &str = "\
--repair does only what loses nothing more than is damaged: flipped bits are put back where a checksum proves them,
unreadable blocks of segments are set aside (their offsets keep their place), torn ends of the log are cut.

Exit status: 0 clean; 1 damage was found, or is left after a repair; 2 could not be checked.";

const SQL_HELP: &str = "\
Without -c and -f: statements from standard input, or a dialogue when that is a terminal (\\? lists its commands).
COPY … FROM STDIN reads the lines that follow in a file, and standard input with -c.

Exit status: 0; 1 after the first failed statement; 2 without a connection or when a file cannot be read.

Examples:
  millstream sql -c \"SELECT * FROM millstream.topics\" --format json
  millstream sql -f examples/flights/flights.sql
  millstream sql postgresql://ann@10.0.0.5:7432/millstream";

/// Arguments of `millstream start`.
#[derive(Debug, Default, Clone, Args)]
pub struct StartArgs {
    /// Where everything is kept; created if missing [default: ./millstream-data]
    #[arg(long, value_name = "DIR", env = "MILLSTREAM_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address for PostgreSQL clients [default: 127.0.0.1:7432]
    #[arg(long, value_name = "ADDR", env = "MILLSTREAM_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Address for /healthz, /readyz and /metrics [default: 127.0.0.1:7433]
    #[arg(long, value_name = "ADDR", env = "MILLSTREAM_ADMIN_LISTEN")]
    pub admin_listen: Option<SocketAddr>,
    /// Raft groups that hold the topics' partitions [default: 1]
    #[arg(long, value_name = "N", env = "MILLSTREAM_SHARDS")]
    pub shards: Option<u32>,
    /// Bytes of rows each shard keeps in memory before they become segments; fewer when --memory asks for it
    /// [default: 67108864]
    #[arg(long, value_name = "BYTES", env = "MILLSTREAM_SEAL_BYTES")]
    pub seal_bytes: Option<u64>,
    /// Memory of the whole process, as 2GB or 512MB [default: half of the machine's, or of its control group's]
    ///
    /// Fixed shares of it go to queries, rows that are not committed, writes on their way, rows that are not in segments,
    /// state of tables and continuous queries, mapped files, and connections. At least 512MB.
    #[arg(long, value_name = "SIZE", env = "MILLSTREAM_MEMORY")]
    pub memory: Option<String>,
    /// How long the offsets of a consumer group without members are kept, as 7d or 12h [default: 7d]
    #[arg(long, value_name = "TIME", env = "MILLSTREAM_OFFSETS_RETENTION")]
    pub offsets_retention: Option<String>,
    /// Listen on addresses other than loopback although no passwords are asked for
    #[arg(long, env = "MILLSTREAM_INSECURE", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure: Option<bool>,
    /// A TOML file with any of these options
    #[arg(long, value_name = "FILE", env = "MILLSTREAM_CONFIG")]
    pub config: Option<PathBuf>,
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ReportFormat {
    /// Lines for people
    #[default]
    Text,
    /// One object
    Json,
}

/// Arguments of `millstream check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// The data directory
    #[arg(long, value_name = "DIR", env = "MILLSTREAM_DATA_DIR", default_value = "./millstream-data")]
    pub data_dir: PathBuf,
    /// Make good what can be
    #[arg(long)]
    pub repair: bool,
    /// How the report is printed
    #[arg(long, value_enum, default_value_t)]
    pub format: ReportFormat,
}

/// Arguments of `millstream backup`.
#[derive(Debug, Clone, Args)]
pub struct BackupArgs {
    /// The data directory; a server may run on it
    #[arg(long, value_name = "DIR", env = "MILLSTREAM_DATA_DIR", default_value = "./millstream-data")]
    pub data_dir: PathBuf,
    /// Where the backup goes: a new or empty directory
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// An earlier backup on the same file system: segments that it has are hard-linked, not copied
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
}

/// Arguments of `millstream restore`.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    /// The backup
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// The new data directory: it must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
}

/// How `millstream dump` prints rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DumpRows {
    /// Comma-separated values with a header
    Csv,
    /// One object per line
    Json,
}

/// Arguments of `millstream dump`.
#[derive(Debug, Clone, Args)]
pub struct DumpArgs {
    /// A data directory, or a file in one
    #[arg(value_name = "PATH", default_value = "./millstream-data")]
    pub path: PathBuf,
    /// Print the rows of segments too
    #[arg(long, value_name = "FORMAT", value_enum, num_args = 0..=1, default_missing_value = "json")]
    pub rows: Option<DumpRows>,
}

/// How the shell prints rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// A table with a header
    #[default]
    Table,
    /// One line per column
    Vertical,
    /// Comma-separated values with a header
    Csv,
    /// One array of objects
    Json,
    /// One object per line
    Ndjson,
    /// A Markdown table
    Markdown,
}

/// Arguments of `millstream sql`.
#[derive(Debug, Clone, Args)]
pub struct SqlArgs {
    /// Server and user in one: postgresql://user@host:port/database
    #[arg(value_name = "URL")]
    pub url: Option<String>,
    /// Host name or address [default: 127.0.0.1]
    #[arg(short = 'h', long, value_name = "HOST")]
    pub host: Option<String>,
    /// Port [default: 7432]
    #[arg(short = 'p', long, value_name = "PORT")]
    pub port: Option<u16>,
    /// User name [default: millstream]
    #[arg(short = 'U', long = "username", value_name = "NAME")]
    pub user: Option<String>,
    /// Database name [default: millstream]
    #[arg(short = 'd', long = "dbname", value_name = "NAME")]
    pub database: Option<String>,
    /// Run this and leave; may be given several times
    #[arg(short = 'c', long = "command", value_name = "SQL")]
    pub commands: Vec<String>,
    /// Run the statements in this file and leave; - is standard input
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// How rows are printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Print this help
    #[arg(long, action = clap::ArgAction::Help)]
    pub help: Option<bool>,
}

/// Arguments of `millstream demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Load at full speed instead of at a pace that can be watched
    #[arg(long)]
    pub fast: bool,
}
