//! What the kernel knows of a connection that no library tells: whether the other end still answers.
//!
//! The one place outside of `storage::mmap` with `unsafe`. Linux' own time-out for what was sent (`TCP_USER_TIMEOUT`) does
//! not do: it also ends a connection whose client is there, and only does not read (record 24).
#![allow(unsafe_code)]

use crate::server::pg::alive::Answer;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;
use std::time::Duration;
use tokio::net::TcpStream;

/// What the other end has said of what was sent, `time` ago or later. A client that does not read answers that it has no room.
pub(super) fn answer(socket: &TcpStream, time: Duration) -> Answer {
    let (mut info, mut unsent) = (MaybeUninit::<libc::tcp_info>::zeroed(), 0_i32);
    let Ok(mut bytes) = libc::socklen_t::try_from(size_of::<libc::tcp_info>()) else { return Answer::All };
    let (level, name, into) = (libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast());
    // Safety: the kernel writes at most `bytes` bytes to `info`, which has as many, and one integer to `unsent`; the descriptor
    // is open, as it is borrowed.
    let codes = unsafe {
        let asked = libc::getsockopt(socket.as_raw_fd(), level, name, into, &raw mut bytes);
        (asked, libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut unsent))
    };
    // Safety: it is integers only, all of which were zero before the kernel wrote some.
    let info = unsafe { info.assume_init() };
    if codes != (0, 0) || unsent == 0 {
        return Answer::All;
    }
    let is_repeated = (info.tcpi_unacked > 0 && info.tcpi_retransmits > 0) || info.tcpi_probes > 1;
    match is_repeated && Duration::from_millis(info.tcpi_last_ack_recv.into()) >= time {
        true => Answer::None,
        false => Answer::Some,
    }
}
