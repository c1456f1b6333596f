//! A node to test against, and clients of it.

use millstream::config::Config;
use millstream::node::Node;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tokio_postgres::{Client, Config as PgConfig, NoTls};

/// How long anything that must happen may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A node of its own on a directory of its own, in this process.
pub(crate) struct Server {
    pub(crate) node: Node,
    _dir: tempfile::TempDir,
}

/// The configuration of a node on `dir` with free ports.
pub(crate) fn config(dir: &Path) -> Config {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Config { data_dir: dir.join("data"), listen: any, admin_listen: any, ..Config::default() }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let node = Node::start(&config).await.unwrap();
        Self { node, _dir: dir }
    }

    pub(crate) async fn client(&self) -> Client {
        connect(self.node.pg_address()).await
    }
}

/// A client of the server at `address`.
pub(crate) async fn connect(address: SocketAddr) -> Client {
    let mut config = PgConfig::new();
    config.host(address.ip().to_string()).port(address.port()).user("tester").dbname("millstream");
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// `SQLSTATE: message` of a server's error.
pub(crate) fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{}: {}", db.code().code(), db.message()),
        None => format!("no server error: {error}"),
    }
}
