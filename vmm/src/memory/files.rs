//! Guest memory from and to a place in a file, without a copy in between: what disks do.
//!
//! What a file puts into guest memory is marked as the VMM's own write *after* it is there: a mark made before could be
//! harvested, and the page sent, in between.

#![expect(unsafe_code, reason = "positioned vectored I/O straight on guest memory")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::bulk::{MAX_PIECES, Piece, advance, push_pieces};
use super::ram::GuestRam;

/// Fills `pieces` from what the file has at `offset`, wholly.
///
/// # Errors
/// As the file fails; `UnexpectedEof` where it ends too early.
///
/// # Panics
/// When a piece is not RAM.
pub fn read_at(ram: &GuestRam, pieces: &[Piece], file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
    let outcome = transfer(ram, pieces, offset, |vectors, offset| {
        let count = vectors.len().min(MAX_PIECES) as libc::c_int;
        // SAFETY: every vector points to mapped guest memory, which stays mapped during the call. The guest's memory is
        // only ever accessed through raw pointers and atomics, so no Rust reference is invalidated.
        unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count, offset) }
    });
    // Also after a failure: a part may have been written.
    pieces.iter().for_each(|&(gpa, bytes)| ram.mark_written(gpa, bytes));
    outcome
}

/// Writes `pieces` to the file at `offset`, wholly.
///
/// # Errors
/// As the file fails.
///
/// # Panics
/// When a piece is not RAM.
pub fn write_at(ram: &GuestRam, pieces: &[Piece], file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
    transfer(ram, pieces, offset, |vectors, offset| {
        let count = vectors.len().min(MAX_PIECES) as libc::c_int;
        // SAFETY: every vector points to mapped guest memory, which stays mapped during the call and is only read.
        unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count, offset) }
    })
}

/// Calls `call` until all of `pieces` has been moved.
fn transfer(
    ram: &GuestRam,
    pieces: &[Piece],
    mut offset: u64,
    call: impl Fn(&[libc::iovec], libc::off_t) -> libc::ssize_t,
) -> io::Result<()> {
    let mut vectors = Vec::with_capacity(pieces.len());
    push_pieces(ram, pieces, &mut vectors);
    let mut rest = vectors.as_mut_slice();
    while !rest.is_empty() {
        let at = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        match call(rest, at) {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            moved if moved > 0 => {
                offset += moved as u64;
                rest = advance(rest, moved as usize);
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::PAGE;
    use crate::memory::layout::Layout;

    #[test]
    fn a_file_is_read_and_written_in_pieces_and_only_what_is_read_counts_as_written() {
        let ram = GuestRam::new(Layout::for_bytes(16 << 20).unwrap()).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 5000], 1000).unwrap();
        let pieces = [(3 * PAGE - 100, 200), (9 * PAGE, 4800)];
        read_at(&ram, &pieces, file.as_fd(), 1000).unwrap();
        assert_eq!(ram.own_writes(), [2, 3, 9, 10]);
        let mut seen = [0; 4801];
        ram.mmap().read_slice(&mut seen, GuestAddress(9 * PAGE)).unwrap();
        assert_eq!((&seen[..4800], seen[4800]), (&[7; 4800][..], 0));

        write_at(&ram, &pieces, file.as_fd(), 20_000).unwrap();
        assert!(ram.own_writes().is_empty());
        let mut written = [0; 5000];
        file.read_exact_at(&mut written, 20_000).unwrap();
        assert_eq!(written, [7; 5000]);
        let error = read_at(&ram, &pieces, file.as_fd(), 24_000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(ram.own_writes(), [2, 3, 9, 10], "perhaps in part");
    }
}
