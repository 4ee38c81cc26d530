#![allow(unsafe_code, reason = "a descriptor's number on the command line can become an owner only by `from_raw_fd`")]
//! Descriptors that a parent left open and named on the command line.

use std::{
    io,
    os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Takes ownership of descriptor `number`, and sees to it that no child of ours inherits it in turn.
///
/// Call this first thing in `main`, once for each number: from then on the number belongs to the returned owner.
///
/// # Errors
/// When the number is a standard stream's or no open descriptor.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a standard stream cannot be an inherited descriptor"));
    }
    // SAFETY: the borrow ends with this statement; fcntl answers EBADF when nothing is open there.
    fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open, as fcntl has just shown, and by the contract above nobody else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn standard_streams_and_closed_numbers_are_refused() {
        for number in [-1, 0, 1, 2, 9999] {
            assert!(take(number).is_err(), "{number}");
        }
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let number = OwnedFd::from(ours).into_raw_fd();
        assert!(take(number).is_ok());
    }
}
