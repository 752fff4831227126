//! `fd:N`: a descriptor that this process was started with.
#![expect(unsafe_code, reason = "a number becomes a descriptor; checked to be nobody's in this process")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Held while a number is checked and taken, so that two takers do not both find it free.
static TAKING: Mutex<()> = Mutex::new(());

/// Takes descriptor `number`.
///
/// What this process opens itself is closed on exec, without exception; what it inherited was not. So a descriptor without
/// that flag is nobody's here, and setting the flag takes it: a second time it is refused.
///
/// # Errors
/// Where there is no such descriptor, or it was not inherited.
pub(super) fn take(number: u32) -> io::Result<OwnedFd> {
    let raw = RawFd::try_from(number).ok().filter(|raw| *raw > 2).ok_or(rustix::io::Errno::BADF)?;
    let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the descriptor is only asked for its flags, which fails if there is none; the borrow ends in this function.
    let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
    let flags = fcntl_getfd(borrowed)?;
    if flags.contains(FdFlags::CLOEXEC) {
        let text = "it was not inherited (or has been used already)";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and nobody in this process owns it: see above.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn an_inherited_descriptor_is_taken_once() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        fcntl_setfd(&ours, FdFlags::empty()).unwrap();
        let number = ours.into_raw_fd() as u32;
        let taken = take(number).unwrap();
        assert_eq!(take(number).unwrap_err().kind(), io::ErrorKind::InvalidInput, "it is ours now");
        drop(taken);
    }

    #[test]
    fn our_own_and_closed_descriptors_are_refused() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&ours) as u32;
        assert!(take(number).is_err());
        assert!(take(i32::MAX as u32).is_err());
        assert!(take(u32::MAX).is_err());
    }
}
