//! Bounds on connections that are not sessions yet, and on the time of a shutdown.
//!
//! Leaves out the limits of the product (`catalog::model::limit`); the engine counts sessions. No state.

use millstream_catalog::model::limit;
use std::time::Duration;

/// Connections whose handshake is not done. More wait unaccepted; the bound is on memory, and cancel
/// requests come this way too, so it leaves them room when every session is taken.
pub(super) const HANDSHAKES_MAX: usize = 1_024;
/// Longest handshake.
pub(super) const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(limit::STARTUP_SECONDS_MAX);
/// Connections the kernel holds until they are accepted.
pub(super) const BACKLOG: u32 = 1_024;
/// How long statements that end by themselves may go on when the server stops.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long a connection may take to send its last words.
pub(super) const GOODBYE_TIME_MAX: Duration = Duration::from_secs(1);
/// Pause after the system refused a connection, usually for want of file descriptors.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
