//! Guest memory in bulk: between RAM and a socket without a copy in between, many pages a system call.
//!
//! These reads and writes race with a running guest by design; whoever calls knows what the dirty log is for.

#![expect(unsafe_code, reason = "vectored I/O straight on guest memory")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, socket_timeout};

use super::PAGE;
use super::ram::GuestRam;

/// Most pieces in one system call: Linux's UIO_MAXIOV.
pub(super) const MAX_PIECES: usize = 1024;

/// A run of pages: guest-physical address and bytes.
pub type Piece = (u64, u64);

/// Writes `head`, then `pieces`, wholly.
///
/// # Errors
/// As the socket fails; after the socket's own time limit `WouldBlock`.
pub fn send(ram: &GuestRam, head: &[u8], pieces: &[Piece], socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut vectors = Vec::with_capacity(pieces.len() + 1);
    if !head.is_empty() {
        // The kernel only reads what a vector for sending points to, so casting the constness away is sound.
        vectors.push(libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() });
    }
    push_pieces(ram, pieces, &mut vectors);
    // SAFETY: every vector points to `head` or to mapped guest memory, both alive during the call.
    let send =
        |message: &libc::msghdr| unsafe { libc::sendmsg(socket.as_raw_fd(), message, libc::MSG_NOSIGNAL) };
    transfer(&mut vectors, send, || Ok(()))
}

/// Fills `pieces`, wholly. `time_for`: how long so many bytes may take, given how long the socket waits for more.
///
/// # Errors
/// As the socket fails; `UnexpectedEof` when the peer closed, `TimedOut` when it took too long although some came.
pub fn receive(
    ram: &GuestRam,
    pieces: &[Piece],
    socket: BorrowedFd<'_>,
    time_for: impl Fn(u64, Duration) -> Duration,
) -> io::Result<()> {
    let mut vectors = Vec::with_capacity(pieces.len());
    push_pieces(ram, pieces, &mut vectors);
    let began = Instant::now();
    let bytes = pieces.iter().map(|(_, bytes)| bytes).sum();
    // A call that brings less than all has waited as long as the socket does, so this is asked seldom.
    let in_time = || {
        let limit = socket_timeout(socket, Timeout::Recv)?;
        let late = limit.is_some_and(|limit| began.elapsed() >= time_for(bytes, limit));
        if late { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    };
    // SAFETY: every vector points to mapped guest memory, which stays mapped during the call. The guest's memory
    // is only ever accessed through raw pointers and atomics, so no Rust reference is invalidated.
    let receive = |message: &libc::msghdr| unsafe {
        libc::recvmsg(socket.as_raw_fd(), ptr::from_ref(message).cast_mut(), libc::MSG_WAITALL)
    };
    transfer(&mut vectors, receive, in_time)
}

/// Copies a run out of guest memory.
///
/// # Panics
/// When the run is not RAM.
pub fn copy_out(ram: &GuestRam, gpa: u64, into: &mut [u8]) {
    let from = ram.host(gpa, into.len() as u64);
    // SAFETY: `host` checked that the range is mapped RAM; `into` is ours and cannot overlap it.
    unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) }
}

/// Copies into guest memory.
///
/// # Panics
/// When the run is not RAM.
pub fn copy_in(ram: &GuestRam, gpa: u64, from: &[u8]) {
    let into = ram.host(gpa, from.len() as u64);
    // SAFETY: `host` checked that the range is mapped RAM; `from` is ours and cannot overlap it.
    unsafe { ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) }
}

/// Writes zeros.
///
/// # Panics
/// When the run is not RAM.
pub fn clear(ram: &GuestRam, gpa: u64, bytes: u64) {
    let into = ram.host(gpa, bytes);
    // SAFETY: `host` checked that the range is mapped RAM.
    unsafe { ptr::write_bytes(into, 0, bytes as usize) }
}

/// A 64-bit xxh3 of each page of a run. Pages that were never touched are not touched by it.
///
/// # Errors
/// When the host cannot say which pages exist.
pub fn hash_pages(ram: &GuestRam, gpa: u64, bytes: u64, into: &mut Vec<u64>) -> io::Result<()> {
    let zero = xxhash_rust::xxh3::xxh3_64(&[0; PAGE as usize]);
    let start = into.len();
    into.resize(start + (bytes / PAGE) as usize, zero);
    let mut page = [0; PAGE as usize];
    ram.populated_within(gpa, bytes, |at, len| {
        for gpa_page in (at..at + len).step_by(PAGE as usize) {
            copy_out(ram, gpa_page, &mut page);
            into[start + ((gpa_page - gpa) / PAGE) as usize] = xxhash_rust::xxh3::xxh3_64(&page);
        }
    })
}

pub(super) fn push_pieces(ram: &GuestRam, pieces: &[Piece], vectors: &mut Vec<libc::iovec>) {
    vectors.extend(
        pieces.iter().map(|&(gpa, bytes)| libc::iovec {
            iov_base: ram.host(gpa, bytes).cast(),
            iov_len: bytes as usize,
        }),
    );
}

/// Calls `call` until all of `vectors` has been moved; asks between two calls whether to go on.
fn transfer(
    vectors: &mut [libc::iovec],
    mut call: impl FnMut(&libc::msghdr) -> libc::ssize_t,
    go_on: impl Fn() -> io::Result<()>,
) -> io::Result<()> {
    let mut rest = vectors;
    while !rest.is_empty() {
        // SAFETY: a msghdr of zeros is valid: no name, no vectors, no control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = rest.as_mut_ptr();
        message.msg_iovlen = rest.len().min(MAX_PIECES);
        match call(&message) {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            moved if moved > 0 => {
                rest = advance(rest, moved as usize);
                if !rest.is_empty() {
                    go_on()?;
                }
            }
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// What is left of `vectors` after `moved` bytes.
pub(super) fn advance(mut vectors: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while let Some(first) = vectors.first_mut() {
        if moved < first.iov_len {
            first.iov_base = first.iov_base.cast::<u8>().wrapping_add(moved).cast();
            first.iov_len -= moved;
            break;
        }
        moved -= first.iov_len;
        vectors = &mut vectors[1..];
    }
    vectors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout::Layout;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn scattered_runs_cross_a_socket_whole_although_it_is_small() {
        let layout = Layout::for_bytes(32 << 20).unwrap();
        let (from, to) = (GuestRam::new(layout.clone()).unwrap(), GuestRam::new(layout).unwrap());
        let pieces: Vec<Piece> = (0..1500).map(|i| (i * 3 * PAGE, PAGE)).collect();
        for (i, (gpa, _)) in pieces.iter().enumerate() {
            copy_in(&from, *gpa, &[i as u8 | 1; PAGE as usize]);
        }
        let (a, b) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| send(&from, b"head", &pieces, a.as_fd()).unwrap());
            let mut head = [0; 4];
            io::Read::read_exact(&mut &b, &mut head).unwrap();
            assert_eq!(&head, b"head");
            receive(&to, &pieces, b.as_fd(), |_, _| Duration::MAX).unwrap();
        });
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        hash_pages(&from, 0, 32 << 20, &mut ours).unwrap();
        hash_pages(&to, 0, 32 << 20, &mut theirs).unwrap();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn a_closed_peer_is_an_end_of_file() {
        let ram = GuestRam::new(Layout::for_bytes(32 << 20).unwrap()).unwrap();
        let (a, b) = UnixStream::pair().unwrap();
        drop(a);
        let error = receive(&ram, &[(0, PAGE)], b.as_fd(), |_, _| Duration::MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_peer_that_drips_is_given_up_although_some_bytes_come() {
        let ram = GuestRam::new(Layout::for_bytes(32 << 20).unwrap()).unwrap();
        let (a, b) = UnixStream::pair().unwrap();
        // Who drips may be kept waiting on a busy host, but hardly for so long.
        let silence = Duration::from_millis(300);
        b.set_read_timeout(Some(silence)).unwrap();
        let dripping = std::thread::spawn(move || {
            while io::Write::write(&mut &a, &[1]).is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let time_for = |bytes, limit| {
            assert_eq!((bytes, limit), (PAGE, silence));
            2 * limit
        };
        let error = receive(&ram, &[(0, PAGE)], b.as_fd(), time_for).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(b);
        dripping.join().unwrap();
    }
}
