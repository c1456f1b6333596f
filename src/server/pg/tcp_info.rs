//! What the kernel knows of a connection that no library tells: whether the other end still answers.
//!
//! The one place outside of `storage::mmap` with `unsafe`. Linux' own time-out for what was sent (`TCP_USER_TIMEOUT`) does
//! not do: it also ends a connection whose client is there, and only does not read (record 24).
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;
use std::time::Duration;
use tokio::net::TcpStream;

/// Whether something was sent, more than once, that the other end has not answered, and it has said nothing for `time`. A
/// client that does not read answers that it has no room.
pub(super) fn is_unanswered(socket: &TcpStream, time: Duration) -> bool {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let Ok(mut bytes) = libc::socklen_t::try_from(size_of::<libc::tcp_info>()) else { return false };
    let (level, name, into) = (libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast());
    // Safety: the kernel writes at most `bytes` bytes to `info`, which has as many; the descriptor is open, as it is borrowed.
    let code = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, into, &raw mut bytes) };
    // Safety: it is integers only, all of which were zero before the kernel wrote some.
    let info = unsafe { info.assume_init() };
    let is_repeated = (info.tcpi_unacked > 0 && info.tcpi_retransmits > 0) || info.tcpi_probes > 1;
    code == 0 && is_repeated && Duration::from_millis(info.tcpi_last_ack_recv.into()) >= time
}
