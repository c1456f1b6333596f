//! The options of a server, merged: file, then environment, then flags.
//!
//! Owns defaults and checks. Leaves out parsing of flags and environment (`cli`, through clap). `main` calls
//! it once at the start.

use crate::cli::StartArgs;
use crate::env;
use millstream_catalog::model::limit::{MEMORY_BYTES_MIN, SEAL_BYTES_MAX, SEAL_BYTES_MIN, SHARDS_MAX};
use millstream_catalog::model::{ByteSize, Span};
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Bytes kept in memory per shard before they become segments.
pub const SEAL_BYTES: ByteSize = ByteSize::new(64 << 20);

/// How long offsets of groups without members are kept; Kafka's default.
const OFFSETS_RETENTION: Span = Span::from_micros(7 * 86_400_000_000);

/// Memory of a node on a machine that does not tell how much it has.
const MEMORY_BYTES: ByteSize = ByteSize::new(2 << 30);

/// Everything a node needs to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where PostgreSQL clients connect; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where HTTP is answered; port 0 takes a free one.
    pub admin_listen: SocketAddr,
    /// Data shards.
    pub shards: u32,
    /// Bytes per shard before they become segments.
    pub seal_bytes: ByteSize,
    /// Memory of the whole process.
    pub memory: ByteSize,
    /// How long the committed offsets of a consumer group are kept that has no members.
    pub offsets_retention: Span,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./millstream-data"),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7432)),
            admin_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7433)),
            shards: 1,
            seal_bytes: SEAL_BYTES,
            memory: half(env::memory_bytes()),
            offsets_retention: OFFSETS_RETENTION,
        }
    }
}

/// Why the options do not make a server.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, has an unknown key or a value of the wrong type.
    #[error("cannot use the configuration file {path}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        reason: String,
    },
    /// A value is out of range.
    #[error("{0}")]
    Value(String),
    /// An address others can reach, without passwords.
    #[error(
        "refusing to listen on {0}: anyone who reaches it could do anything, as there are no passwords yet; \
         give --insecure if that is meant"
    )]
    Exposed(SocketAddr),
    /// The environment has a variable of ours that means nothing.
    #[error("unknown environment variable {0}")]
    Variable(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    admin_listen: Option<SocketAddr>,
    shards: Option<u32>,
    seal_bytes: Option<u64>,
    memory: Option<String>,
    offsets_retention: Option<String>,
    insecure: Option<bool>,
}

/// Variables that are not options of `start`: the trace filter and the shell's history file.
const OTHER_VARIABLES: [&str; 2] = ["MILLSTREAM_LOG", "MILLSTREAM_HISTORY"];
const OPTION_VARIABLES: [&str; 9] = [
    "MILLSTREAM_DATA_DIR",
    "MILLSTREAM_LISTEN",
    "MILLSTREAM_ADMIN_LISTEN",
    "MILLSTREAM_SHARDS",
    "MILLSTREAM_SEAL_BYTES",
    "MILLSTREAM_MEMORY",
    "MILLSTREAM_OFFSETS_RETENTION",
    "MILLSTREAM_INSECURE",
    "MILLSTREAM_CONFIG",
];

impl Config {
    /// Merges the file that `args` name with `args`, which hold flags and environment already.
    ///
    /// # Errors
    /// [`ConfigError`] for unknown keys, values out of range, and addresses that are not loopback without `insecure`.
    pub fn load(args: &StartArgs) -> Result<Self, ConfigError> {
        check_variables(env::variables())?;
        let file = match &args.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let defaults = Self::default();
        let memory = args.memory.as_ref().or(file.memory.as_ref()).map(|text| parse_memory(text)).transpose()?;
        let retention = args.offsets_retention.as_ref().or(file.offsets_retention.as_ref());
        let retention = retention.map(|text| parse_retention(text)).transpose()?;
        let config = Self {
            data_dir: args.data_dir.clone().or(file.data_dir).unwrap_or(defaults.data_dir),
            listen: args.listen.or(file.listen).unwrap_or(defaults.listen),
            admin_listen: args.admin_listen.or(file.admin_listen).unwrap_or(defaults.admin_listen),
            shards: args.shards.or(file.shards).unwrap_or(defaults.shards),
            seal_bytes: args.seal_bytes.or(file.seal_bytes).map_or(defaults.seal_bytes, ByteSize::new),
            memory: memory.unwrap_or(defaults.memory),
            offsets_retention: retention.unwrap_or(defaults.offsets_retention),
        };
        let is_insecure = args.insecure.or(file.insecure).unwrap_or(false);
        config.check(is_insecure)?;
        Ok(config)
    }

    fn check(&self, is_insecure: bool) -> Result<(), ConfigError> {
        if self.shards == 0 || self.shards > SHARDS_MAX {
            return Err(ConfigError::Value(format!("shards must be 1 to {SHARDS_MAX}, not {}", self.shards)));
        }
        if self.seal_bytes < SEAL_BYTES_MIN || self.seal_bytes > SEAL_BYTES_MAX {
            let given = self.seal_bytes.value();
            let (least, most) = (SEAL_BYTES_MIN.value(), SEAL_BYTES_MAX.value());
            return Err(ConfigError::Value(format!("seal_bytes must be {least} to {most}, not {given}")));
        }
        let exposed = [self.listen, self.admin_listen].into_iter().find(|address| !address.ip().is_loopback());
        match exposed {
            Some(address) if !is_insecure => Err(ConfigError::Exposed(address)),
            _ => Ok(()),
        }
    }
}

/// Half of what the machine has, if it is known, but not less than a node needs.
fn half(machine: Option<u64>) -> ByteSize {
    machine.map_or(MEMORY_BYTES, |bytes| ByteSize::new(bytes / 2)).max(MEMORY_BYTES_MIN)
}

/// A number with `s`, `min`, `h` or `d`.
fn parse_retention(text: &str) -> Result<Span, ConfigError> {
    let digits = text.trim().find(|c: char| !c.is_ascii_digit()).unwrap_or(text.trim().len());
    let (number, unit) = text.trim().split_at(digits);
    let seconds: Option<i64> = match unit.trim() {
        "s" => Some(1),
        "min" => Some(60),
        "h" => Some(3_600),
        "d" => Some(86_400),
        _ => None,
    };
    let micros = seconds.and_then(|unit| number.parse::<i64>().ok()?.checked_mul(unit)?.checked_mul(1_000_000));
    micros.filter(|micros| *micros > 0).map(Span::from_micros).ok_or_else(|| {
        ConfigError::Value(format!("offsets_retention must be a time such as 7d, 12h or 30min, not \"{text}\""))
    })
}

/// A size as PostgreSQL writes it: a number, then B, kB, MB, GB or TB, each 1,024 times the one before.
fn parse_memory(text: &str) -> Result<ByteSize, ConfigError> {
    let refused = |why: String| ConfigError::Value(format!("memory must be {why}, not \"{text}\""));
    let form = || refused("a size such as 2GB or 512MB".to_owned());
    let units = [("TB", 40), ("GB", 30), ("MB", 20), ("kB", 10), ("B", 0)];
    let found = units.iter().find_map(|(unit, shift)| Some((text.trim().strip_suffix(unit)?, *shift)));
    let (number, shift) = found.ok_or_else(form)?;
    let number: f64 = number.trim().parse().map_err(|_| form())?;
    // Not a number is not above zero either.
    let bytes = if number > 0.0 { (number * (1_u64 << shift) as f64) as u64 } else { 0 };
    if ByteSize::new(bytes) < MEMORY_BYTES_MIN {
        return Err(refused(format!("at least {}MB", MEMORY_BYTES_MIN.value() >> 20)));
    }
    Ok(ByteSize::new(bytes))
}

fn check_variables(names: impl Iterator<Item = String>) -> Result<(), ConfigError> {
    let is_known =
        |name: &String| OPTION_VARIABLES.contains(&name.as_str()) || OTHER_VARIABLES.contains(&name.as_str());
    match names.filter(|name| name.starts_with("MILLSTREAM_")).find(|name| !is_known(name)) {
        Some(name) => Err(ConfigError::Variable(name)),
        None => Ok(()),
    }
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = env::read_text(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|reason| ConfigError::Parse { path: path.to_owned(), reason })
}

fn parse(text: &str) -> Result<File, String> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        format!("line {line}: {}", error.message())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_and_variables_are_errors() {
        assert!(parse("data_dri = 'x'").unwrap_err().contains("unknown field `data_dri`"));
        assert!(parse("shards = 1\n\nlisten = 7").unwrap_err().starts_with("line 3: "));
        assert!(parse("shards = 'many'").unwrap_err().starts_with("line 1: "));
        let variables = |names: &[&str]| check_variables(names.iter().map(|name| (*name).to_owned()));
        assert!(variables(&["MILLSTREAM_SHARDS", "PATH"]).is_ok());
        assert!(matches!(variables(&["MILLSTREAM_SHARD"]), Err(ConfigError::Variable(_))));
    }

    #[test]
    fn addresses_beyond_loopback_need_insecure() {
        let args = |listen: &str, insecure| StartArgs {
            listen: Some(listen.parse().unwrap()),
            insecure,
            ..StartArgs::default()
        };
        assert!(matches!(Config::load(&args("0.0.0.0:7432", None)), Err(ConfigError::Exposed(_))));
        assert!(Config::load(&args("0.0.0.0:7432", Some(true))).is_ok());
        assert!(Config::load(&args("[::1]:7432", None)).is_ok());
    }

    #[test]
    fn the_bytes_to_seal_are_bounded() {
        let args = |bytes: ByteSize| StartArgs { seal_bytes: Some(bytes.value()), ..StartArgs::default() };
        assert!(Config::load(&args(ByteSize::ZERO)).is_err());
        assert_eq!(Config::load(&args(SEAL_BYTES_MIN)).unwrap().seal_bytes, SEAL_BYTES_MIN);
        assert!(Config::load(&args(SEAL_BYTES_MAX.plus(ByteSize::new(1)))).is_err());
    }

    #[test]
    fn the_retention_of_offsets_is_a_time_with_its_unit() {
        let load = |text: &str| {
            let args = StartArgs { offsets_retention: Some(text.to_owned()), ..StartArgs::default() };
            Config::load(&args).map(|config| config.offsets_retention)
        };
        assert_eq!(load("12h").unwrap(), Span::from_secs(12 * 3_600));
        assert_eq!(load(" 3 s").unwrap(), Span::from_secs(3));
        for wrong in ["", "7", "0d", "-1d", "1 week", "99999999999999999d"] {
            load(wrong).unwrap_err();
        }
    }

    #[test]
    fn memory_is_written_as_postgresql_writes_it_and_is_not_too_little() {
        let load = |text: &str| {
            let args = StartArgs { memory: Some(text.to_owned()), ..StartArgs::default() };
            Config::load(&args).map(|config| config.memory.value()).map_err(|error| error.to_string())
        };
        assert_eq!(load("2GB"), Ok(2 << 30));
        assert_eq!(load(" 1.5 GB "), Ok(3 << 29));
        assert_eq!(load("524288kB"), Ok(512 << 20));
        assert_eq!(load("536870912B"), Ok(512 << 20));
        assert_eq!(load("511MB"), Err("memory must be at least 512MB, not \"511MB\"".to_owned()));
        for text in ["", "2", "2gb", "2GiB", "GB", "many", "50%"] {
            assert!(load(text).unwrap_err().contains("a size such as 2GB"), "{text}");
        }
        for text in ["-2GB", "nanGB", "0GB"] {
            assert!(load(text).unwrap_err().contains("at least 512MB"), "{text}");
        }
        assert_eq!(
            (half(Some(8 << 30)).value(), half(Some(300 << 20)), half(None)),
            (4 << 30, MEMORY_BYTES_MIN, MEMORY_BYTES)
        );
        assert!(env::memory_bytes().is_some_and(|bytes| bytes > 64 << 20));
        assert_eq!(parse("memory = '1GB'").unwrap().memory.as_deref(), Some("1GB"));
    }

    #[test]
    fn the_number_of_shards_is_bounded() {
        let args = |shards| StartArgs { shards: Some(shards), ..StartArgs::default() };
        assert!(Config::load(&args(0)).is_err());
        assert!(Config::load(&args(SHARDS_MAX)).is_ok());
        assert!(Config::load(&args(SHARDS_MAX + 1)).is_err());
    }
}
