//! The options of a server, merged: file, then environment, then flags.
//!
//! Owns defaults and checks. Leaves out parsing of flags and environment (`cli`, through clap). `main` calls
//! it once at the start.

use crate::cli::StartArgs;
use crate::env;
use millstream_catalog::model::ByteSize;
use millstream_catalog::model::limit::{SEAL_BYTES_MAX, SEAL_BYTES_MIN, SHARDS_MAX};
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Bytes kept in memory per shard before they become segments.
pub const SEAL_BYTES: ByteSize = ByteSize::new(64 << 20);

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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./millstream-data"),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7432)),
            admin_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7433)),
            shards: 1,
            seal_bytes: SEAL_BYTES,
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
    insecure: Option<bool>,
}

/// Variables that are not options of `start`: the trace filter and the shell's history file.
const OTHER_VARIABLES: [&str; 2] = ["MILLSTREAM_LOG", "MILLSTREAM_HISTORY"];
const OPTION_VARIABLES: [&str; 7] = [
    "MILLSTREAM_DATA_DIR",
    "MILLSTREAM_LISTEN",
    "MILLSTREAM_ADMIN_LISTEN",
    "MILLSTREAM_SHARDS",
    "MILLSTREAM_SEAL_BYTES",
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
        let config = Self {
            data_dir: args.data_dir.clone().or(file.data_dir).unwrap_or(defaults.data_dir),
            listen: args.listen.or(file.listen).unwrap_or(defaults.listen),
            admin_listen: args.admin_listen.or(file.admin_listen).unwrap_or(defaults.admin_listen),
            shards: args.shards.or(file.shards).unwrap_or(defaults.shards),
            seal_bytes: args.seal_bytes.or(file.seal_bytes).map_or(defaults.seal_bytes, ByteSize::new),
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
    fn the_number_of_shards_is_bounded() {
        let args = |shards| StartArgs { shards: Some(shards), ..StartArgs::default() };
        assert!(Config::load(&args(0)).is_err());
        assert!(Config::load(&args(SHARDS_MAX)).is_ok());
        assert!(Config::load(&args(SHARDS_MAX + 1)).is_err());
    }
}
