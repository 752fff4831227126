//! Descriptors over a unix socket (SCM_RIGHTS, unix(7)): [`send`] and [`receive`].
//!
//! They travel with one byte of the stream, so both sides must call at the same place of it, and the receiver must not
//! have read ahead. What a peer sends too many of is closed; what it truncates is an error.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use super::link::Link;

/// Descriptors in one message at most.
pub const FILES_MAX: usize = 8;

/// The byte that carries them.
const CARRIER: u8 = b'F';

/// Sends `files`.
pub(super) fn send(link: &Link, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    if files.is_empty() || files.len() > FILES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} files; 1 to {FILES_MAX} fit", files.len()),
        ));
    }
    link.retry_send(|socket| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(files)), "the space is that of FILES_MAX descriptors");
        rustix::net::sendmsg(socket, &[IoSlice::new(&[CARRIER])], &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives exactly `count` descriptors.
pub(super) fn receive(link: &Link, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut byte = [0];
    let mut files = Vec::new();
    let message = link.retry_receive(|socket| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)?;
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                files.extend(rights);
            }
        }
        Ok(message)
    })?;
    let wrong = |text: String| Err(io::Error::new(io::ErrorKind::InvalidData, text));
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if message.flags.contains(ReturnFlags::CTRUNC) || files.len() != count || byte != [CARRIER] {
        return wrong(format!("the other side passed {} files where {count} were due", files.len()));
    }
    Ok(files)
}
