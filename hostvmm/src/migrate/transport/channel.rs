//! One connection to the other side: [`Channel`], its halves [`Reader`] and [`Writer`], and [`Handle`], which ends it.
//!
//! One thread may read while another writes. [`Handle::shutdown`] and the token given at connect or accept end a blocked
//! call of either at once.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::link::Link;
use super::passing;
use super::tls::{Incoming, Outgoing, Session};

/// A connection: a stream of bytes in both directions, over TLS where that was asked for.
#[derive(Debug)]
pub struct Channel {
    reader: Reader,
    writer: Writer,
}

/// The half that reads.
#[derive(Debug)]
pub struct Reader {
    link: Arc<Link>,
    tls: Option<Incoming>,
}

/// The half that writes.
#[derive(Debug)]
pub struct Writer {
    link: Arc<Link>,
    tls: Option<Outgoing>,
}

/// Ends a channel from any thread. Clones are of the same channel.
#[derive(Clone, Debug)]
pub struct Handle {
    link: Arc<Link>,
}

impl Channel {
    pub(super) fn plain(link: Link) -> Self {
        let link = Arc::new(link);
        Self { reader: Reader { link: Arc::clone(&link), tls: None }, writer: Writer { link, tls: None } }
    }

    pub(super) fn encrypted(link: Link, session: Session) -> Self {
        let link = Arc::new(link);
        let (incoming, outgoing) = session.split();
        Self {
            reader: Reader { link: Arc::clone(&link), tls: Some(incoming) },
            writer: Writer { link, tls: Some(outgoing) },
        }
    }

    /// The two halves, for two threads.
    pub fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }

    /// The channel of two halves that [`Self::split`] made.
    pub fn join(reader: Reader, writer: Writer) -> Self {
        Self { reader, writer }
    }

    /// What ends the channel from another thread.
    pub fn handle(&self) -> Handle {
        self.reader.handle()
    }

    /// Ends every call on the channel, on both sides, now and later.
    pub fn shutdown(&self) {
        self.reader.link.shutdown();
    }

    /// How long a read may wait for a byte and a write for room; None is for ever, and what a new channel has. The error
    /// is [`io::ErrorKind::TimedOut`].
    pub fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) {
        self.reader.link.set_timeouts(read, write);
    }

    /// When every call on the channel ends, however much moves: a peer that sends a byte now and then is not waited for.
    /// None is never. The error is [`io::ErrorKind::TimedOut`].
    pub fn set_deadline(&self, deadline: Option<Instant>) {
        self.reader.link.set_deadline(deadline);
    }

    /// Passes descriptors, with one byte of the stream.
    ///
    /// # Errors
    /// `Unsupported` but on a plain channel; what sendmsg(2) says (ENOTSOCK where it is none, EINVAL over TCP).
    pub fn send_files(&mut self, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.writer.send_files(files)
    }

    /// Receives `count` descriptors that [`Self::send_files`] passed at this place of the stream.
    ///
    /// # Errors
    /// `Unsupported` but on a plain channel, `InvalidData` where there are more or fewer.
    pub fn receive_files(&mut self, count: usize) -> io::Result<Vec<OwnedFd>> {
        self.reader.receive_files(count)
    }

    /// Reads what is there; `WouldBlock` where nothing is.
    pub(super) fn try_read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &mut self.reader.tls {
            Some(tls) => tls.read(bytes, |bytes| self.reader.link.try_read(bytes)),
            None => self.reader.link.try_read(bytes),
        }
    }

    pub(super) fn link(&self) -> &Link {
        &self.reader.link
    }
}

impl Reader {
    /// What ends the channel from another thread.
    pub fn handle(&self) -> Handle {
        Handle { link: Arc::clone(&self.link) }
    }

    /// As [`Channel::receive_files`].
    ///
    /// # Errors
    /// As there.
    pub fn receive_files(&mut self, count: usize) -> io::Result<Vec<OwnedFd>> {
        if self.tls.is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        passing::receive(&self.link, count)
    }
}

impl Writer {
    /// What ends the channel from another thread.
    pub fn handle(&self) -> Handle {
        Handle { link: Arc::clone(&self.link) }
    }

    /// As [`Channel::send_files`].
    ///
    /// # Errors
    /// As there.
    pub fn send_files(&mut self, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        if self.tls.is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        passing::send(&self.link, files)
    }

    /// Tells the other side that nothing more comes; of `exec:`, waits until `deadline` for the command's end.
    ///
    /// # Errors
    /// Where the end cannot be told, or the command failed.
    pub fn finish(mut self, deadline: Instant) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.finish(&self.link)?;
        }
        self.link.finish_writing(deadline)
    }
}

impl Handle {
    /// Ends every call on the channel, on both sides, now and later.
    pub fn shutdown(&self) {
        self.link.shutdown();
    }

    /// For how long the other side has neither sent nor taken anything.
    pub fn silence(&self) -> Duration {
        self.link.silence()
    }

    /// As [`Channel::set_timeouts`].
    pub fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) {
        self.link.set_timeouts(read, write);
    }

    /// As [`Channel::set_deadline`].
    pub fn set_deadline(&self, deadline: Option<Instant>) {
        self.link.set_deadline(deadline);
    }

    /// Lets calls go on for `limit` although the channel's token was cancelled: there are last words to be said.
    pub fn part(&self, limit: Duration) {
        self.link.part(limit);
    }
}

impl Read for Reader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => tls.read(bytes, |bytes| self.link.read(bytes)),
            None => self.link.read(bytes),
        }
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => tls.write_vectored(bytes, &self.link),
            None => self.link.write_vectored(bytes),
        }
    }

    /// Nothing is held back.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Channel {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.reader.read(bytes)
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        self.writer.write_vectored(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
