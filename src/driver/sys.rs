//! What the kernel must be asked directly: the only module with unsafe code.
//!
//! - A real sync in sled's write path. sled 0.34 calls `sync_file_range` after each write of its
//!   log and takes its return for stable storage; that call flushes neither the file's size nor
//!   the drive's cache, as its manual says. This module defines the C symbol of that name, so that
//!   sled, linked into the same program, calls it instead of the C library's: it does
//!   [`fdatasync`](libc::fdatasync) and counts. [`real_syncs`] is how a program proves to itself
//!   that this is so, since a symbol is only as good as the linker's mood
//!   (`docs/adr/0002`).
//! - Whether anything disciplines the wall clock.
//! - A bound on what a TCP socket takes and has not sent.
//! - How much room there is on a disk.
//! - Monotonic time since boot, for deadlines that outlive the process.
//! - An input device's times by the same clock, and which of its keys are down.
//! - Killing a process group.
//! - How much memory the C library holds on to.

#![allow(unsafe_code, reason = "the C library is called here and nowhere else")]

use std::ffi::{CString, c_int};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::joined_sync::{self, JoinedSyncs, Piece};
use crate::clock::ClockState;

static REAL_SYNCS: AtomicU64 = AtomicU64::new(0);
static JOINED: JoinedSyncs = JoinedSyncs::new(joined_sync::COMPANY);

/// How many syncs of sled's log have gone through [`sync_file_range`] here and succeeded.
pub fn real_syncs() -> u64 {
    // Naming the function makes the linker take this definition before it looks at the C library.
    std::hint::black_box(sync_file_range as extern "C" fn(c_int, i64, i64, u32) -> c_int);
    REAL_SYNCS.load(Ordering::Acquire)
}

/// The C library's function of this name, made stronger: everything written to the file so far,
/// not only the range, and what is needed to read it back, is on stable storage when it returns. The manifest of a
/// batch shares the sync of the piece behind it (`joined_sync`).
///
/// Returns 0, or −1 with `errno` set by `fdatasync`: sled then fails for good, as it should.
///
/// Source: sync_file_range(2), fdatasync(2).
// SAFETY: this replaces a symbol of the C library with the same signature and with more, never
// less, of its effect; nothing in the C library itself calls it.
#[unsafe(no_mangle)]
pub extern "C" fn sync_file_range(fd: c_int, offset: i64, bytes: i64, _flags: u32) -> c_int {
    let piece = Piece { from: offset, to: offset.saturating_add(bytes) };
    let is_manifest = joined_sync::is_manifest(piece, |buffer| read_whole(fd, buffer, offset));
    JOINED.sync(fd, piece, is_manifest, || sync_data(fd)).map_or_else(|result| result, |()| 0)
}

/// `fdatasync`, counted; what it returned and `errno` remain if it failed.
fn sync_data(fd: c_int) -> Result<(), c_int> {
    loop {
        // SAFETY: takes no pointer; a descriptor that is not open is answered with EBADF.
        let result = unsafe { libc::fdatasync(fd) };
        if result == 0 {
            REAL_SYNCS.fetch_add(1, Ordering::Release);
            return Ok(());
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return Err(result);
        }
    }
}

/// Whether as many bytes as the buffer holds are there.
fn read_whole(fd: c_int, buffer: &mut [u8], offset: i64) -> bool {
    libc::off_t::try_from(offset).is_ok_and(|offset| {
        // SAFETY: the pointer and the length are those of a buffer that lives as long as the call; a descriptor
        // that is not open is answered with EBADF.
        let read = unsafe { libc::pread(fd, buffer.as_mut_ptr().cast(), buffer.len(), offset) };
        usize::try_from(read).is_ok_and(|read| read == buffer.len())
    })
}

/// Monotonic time since the device booted: the clock of `Instant`, in a form that another process of
/// the same boot can compare.
///
/// Source: clock_gettime(2), `CLOCK_MONOTONIC`.
pub fn since_boot() -> Duration {
    // SAFETY: `timespec` is plain numbers, for which zero is a value; the call only writes to it.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time);
        time
    };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Has an input device stamp its events by the clock of [`since_boot`].
///
/// # Errors
/// It is no input device.
///
/// Source: Linux include/uapi/linux/input.h, `EVIOCSCLKID`.
pub fn stamp_monotonic(device: &File) -> io::Result<()> {
    // _IOW('E', 0xa0, int).
    const EVIOCSCLKID: libc::Ioctl = 0x4004_45a0;
    let clock: c_int = libc::CLOCK_MONOTONIC;
    // SAFETY: the descriptor is open as long as `device` is borrowed; the call reads one `int`.
    match unsafe { libc::ioctl(device.as_raw_fd(), EVIOCSCLKID, &raw const clock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a key of an input device is down now.
///
/// # Errors
/// It is no input device.
///
/// Source: Linux include/uapi/linux/input.h, `EVIOCGKEY`; input-event-codes.h, `KEY_MAX`.
pub fn key_is_down(device: &File, key: u16) -> io::Result<bool> {
    const BYTES: usize = 0x2ff / 8 + 1;
    // _IOC(_IOC_READ, 'E', 0x18, BYTES).
    const EVIOCGKEY: libc::Ioctl = (2 << 30 | (BYTES as u32) << 16 | 0x4518) as libc::Ioctl;
    let mut down = [0u8; BYTES];
    // SAFETY: the descriptor is open as long as `device` is borrowed; the call writes at most as many bytes as
    // its number says.
    if unsafe { libc::ioctl(device.as_raw_fd(), EVIOCGKEY, down.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(down.get(usize::from(key) / 8).is_some_and(|byte| byte >> (key % 8) & 1 == 1))
}

/// Kills every process of the group `leader`.
///
/// # Errors
/// There is none, or it is not ours.
pub fn kill_group(leader: u32) -> io::Result<()> {
    let group = libc::pid_t::try_from(leader).map_err(io::Error::other)?;
    if group <= 1 {
        return Err(io::Error::other("no group of a child"));
    }
    // SAFETY: takes no pointer.
    match unsafe { libc::kill(-group, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Bytes that an unprivileged process may still write to the file system of `path`.
///
/// # Errors
/// The system's answer.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `statvfs` is plain numbers, for which zero is a value; the path ends with a zero.
    let (result, stat) = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &raw mut stat), stat)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    #[allow(clippy::useless_conversion, reason = "the widths differ between targets")]
    Ok(u64::from(stat.f_bavail).saturating_mul(u64::from(stat.f_frsize)))
}

/// Gives a file `bytes` of blocks of its own, so that a full disk cannot take them any more.
///
/// # Errors
/// There is no room, or the file system cannot do it.
pub fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let bytes = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: takes no pointer; the descriptor is open as long as `file` is borrowed.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Lets the C library keep one heap instead of eight a core: each of them keeps what its threads once needed,
/// and a store with 500,000 events needs some from several threads. To be called before there are any.
///
/// Source: mallopt(3), `M_ARENA_MAX`.
pub fn share_one_heap() {
    // SAFETY: takes two numbers. An answer of 0 means that all stays as it was, which costs memory only.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Whether a time source disciplines the wall clock, as the kernel sees it. `None`: a sandbox
/// forbids to ask, since the same call could set it.
///
/// Source: adjtimex(2): `STA_UNSYNC` and `TIME_ERROR`.
pub fn clock_state() -> Option<ClockState> {
    // SAFETY: `timex` is plain numbers, for which zero is a value; with `modes` 0 the call only
    // writes to the struct that it is given.
    let (answer, status) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex.status)
    };
    if answer < 0 {
        return None;
    }
    let unsynced = answer == libc::TIME_ERROR || status & libc::STA_UNSYNC != 0;
    Some(if unsynced { ClockState::Unsynced } else { ClockState::Synced })
}

/// Has the kernel take no more than `bytes` that it has not sent yet from this TCP socket: what
/// stands there cannot be overtaken by an alert any more, and would only wait for room on the way.
///
/// # Errors
/// The kernel refuses, as one older than Linux 3.12 does; the socket works without.
///
/// Source: tcp(7), `TCP_NOTSENT_LOWAT`.
pub fn limit_unsent(socket: std::os::fd::BorrowedFd<'_>, bytes: u32) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let length = libc::socklen_t::try_from(size_of::<u32>()).unwrap_or(4);
    let value = (&raw const bytes).cast();
    let (level, option) = (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT);
    // SAFETY: the descriptor is borrowed and so open; `value` points to `length` bytes that live as
    // long as the call.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, length) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_is_counted_and_a_failed_one_is_not() {
        let file = tempfile::tempfile().unwrap();
        let before = real_syncs();
        assert_eq!(sync_file_range(file.as_raw_fd(), 0, 0, 0), 0);
        // Other tests of this program sync as well: at least ours was counted.
        assert!(real_syncs() > before);
        assert_eq!(sync_file_range(-1, 0, 0, 0), -1);
    }

    #[test]
    fn the_kernel_takes_a_limit_of_unsent_bytes_for_a_tcp_socket_only() {
        use std::os::fd::AsFd;
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(limit_unsent(socket.as_fd(), 4096).is_ok());
        assert!(limit_unsent(tempfile::tempfile().unwrap().as_fd(), 4096).is_err());
    }

    #[test]
    fn the_kernel_is_asked_about_its_clock() {
        // Both answers are right somewhere; without a sandbox the call must not fail.
        assert!(clock_state().is_some());
    }
}
