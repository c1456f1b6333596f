//! PostgreSQL's wire protocol, version 3: the listener and its connections.
//!
//! Owns accepting, one task per connection, and the order of a shutdown. Leaves out the handshake
//! (`startup`), messages (`message`, `reply`, `wire`) and statements (`simple`, `extended`, `copy`, `pump`).
//! The node starts and stops it. A crash loses connections and nothing else.

mod ahead;
mod alive;
mod cancel;
mod connection;
mod copy;
mod error;
mod extended;
mod message;
mod named;
mod portal;
mod pump;
mod reply;
mod rows;
mod simple;
mod startup;
mod tcp_info;
mod wire;

use crate::engine::{Engine, SessionOptions, SqlError, SqlState};
use crate::env;
use crate::server::admin::metrics::Meters;
use crate::server::limits;
use alive::Peer;
use cancel::Stopping;
use connection::Connection;
use error::{Severity, Stop};
use startup::Opening;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use wire::Wire;

/// A listening PostgreSQL server.
#[derive(Debug)]
pub struct PgServer {
    address: SocketAddr,
    stopping: Stopping,
    tasks: TaskTracker,
}

impl PgServer {
    /// Listens on `listen` and serves clients until `stop`. Port 0 takes a free port.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(listen: SocketAddr, engine: Arc<Engine>) -> io::Result<Self> {
        let socket = if listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        // Accepted sockets inherit it: a subscriber whose machine vanished does not stay for ever.
        socket.set_keepalive(true)?;
        socket.bind(listen)?;
        let listener = socket.listen(limits::BACKLOG)?;
        let address = listener.local_addr()?;
        let (stopping, tasks) = (Stopping::default(), TaskTracker::new());
        let acceptor =
            Acceptor { engine, stopping: stopping.clone(), tasks: tasks.clone(), meters: Arc::new(Meters::new()) };
        env::spawn("pg-accept", tasks.track_future(acceptor.run(listener)));
        Ok(Self { address, stopping, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nobody any more and ends all connections: idle ones and subscriptions at once, statements that
    /// end by themselves after a few seconds at most. Clients are told `57P01`.
    pub async fn stop(&self) {
        self.stopping.stop_gently();
        self.tasks.close();
        if timeout(limits::STOP_GRACE, self.tasks.wait()).await.is_err() {
            self.stopping.stop_now();
            if timeout(2 * limits::GOODBYE_TIME_MAX, self.tasks.wait()).await.is_err() {
                tracing::warn!(connections = self.tasks.len(), "connections did not end in time");
            }
        }
    }
}

/// Accepts connections; a copy of it goes with each.
#[derive(Debug, Clone)]
struct Acceptor {
    engine: Arc<Engine>,
    stopping: Stopping,
    tasks: TaskTracker,
    meters: Arc<Meters>,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        let handshakes = Arc::new(Semaphore::new(limits::HANDSHAKES_MAX));
        loop {
            let accepted = async {
                let permit = Arc::clone(&handshakes).acquire_owned().await.map_err(io::Error::other)?;
                listener.accept().await.map(|(socket, client)| (socket, client, permit))
            };
            let accepted = tokio::select! {
                biased;
                () = self.stopping.gently() => return,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((socket, client, permit)) => {
                    let serving = Box::pin(self.clone().serve_tcp(socket, client, permit));
                    env::spawn("pg-connection", self.tasks.track_future(serving));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve_tcp(self, socket: TcpStream, client: SocketAddr, permit: OwnedSemaphorePermit) {
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "a socket refused TCP_NODELAY");
        }
        self.serve(socket, &client.to_string(), permit).await;
    }

    /// Serves one connection to its end.
    async fn serve<S>(self, socket: S, client: &str, permit: OwnedSemaphorePermit)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Peer,
    {
        let mut wire = Wire::new(socket);
        let opening = tokio::select! {
            biased;
            () = self.stopping.gently() => Err(Stop::Fatal(error::shutting_down())),
            opening = timeout(limits::HANDSHAKE_TIME_MAX, startup::open(&mut wire, client)) => opening.unwrap_or_else(|_| {
                Err(Stop::Fatal(SqlError::new(SqlState::QueryCanceled, "canceling authentication due to timeout")))
            }),
        };
        drop(permit);
        let ended = match opening {
            Ok(Opening::Cancel(id)) => {
                self.engine.cancel(id);
                return;
            }
            Ok(Opening::Session(options)) => match self.connect(&mut wire, options) {
                Ok(mut connection) => {
                    let _open = self.meters.session();
                    Box::pin(connection.run()).await
                }
                Err(error) => Err(Stop::Fatal(error)),
            },
            Err(stop) => Err(stop),
        };
        Box::pin(say_goodbye(wire, ended)).await;
    }

    /// By itself, so that the task of an idle client has no room for what only passes through here.
    fn connect<'a, S>(&self, wire: &'a mut Wire<S>, options: SessionOptions) -> Result<Box<Connection<'a, S>>, SqlError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Peer,
    {
        let session = self.engine.session(options)?;
        wire.set_room(self.engine.room());
        Ok(Box::new(Connection::new(wire, session, self.stopping.clone(), Arc::clone(&self.meters))))
    }
}

/// Tells the client why it is over, if there is something to tell and it still listens.
async fn say_goodbye<S>(mut wire: Wire<S>, ended: Result<(), Stop>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if let Err(Stop::Fatal(error) | Stop::Statement(error)) = ended {
        error::error_response(wire.out(), Severity::Fatal, &error);
    }
    let goodbye = async {
        if wire.flush().await.is_ok() {
            // Errors mean that the client has closed first.
            let _ = wire.into_socket().shutdown().await;
        }
    };
    let _ = timeout(limits::GOODBYE_TIME_MAX, goodbye).await;
}
