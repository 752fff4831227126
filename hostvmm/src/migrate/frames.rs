//! Messages over channels: [`FrameReader`] and [`FrameWriter`].
//!
//! Header and meta go out with the payload in one call. A payload is read by its owner, to where it belongs, once the
//! message has been judged.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use super::error::MigrateError;
use super::transport::{Reader, Writer};
use super::wire::{FrameDecoder, FrameEncoder, HEADER_BYTES, Message};

/// Reads messages.
#[derive(Debug)]
pub(crate) struct FrameReader {
    reader: Reader,
    decoder: FrameDecoder,
    meta: Vec<u8>,
}

impl FrameReader {
    /// Of a channel whose greeting is over.
    pub(crate) fn new(reader: Reader) -> Self {
        Self { reader, decoder: FrameDecoder::new(), meta: Vec::new() }
    }

    /// The next message, and how many bytes of payload follow it.
    pub(crate) fn next(&mut self) -> Result<(Message, u32), MigrateError> {
        let mut header = [0; HEADER_BYTES];
        self.reader.read_exact(&mut header).map_err(MigrateError::lost)?;
        let header = self.decoder.header(&header)?;
        self.meta.resize(header.meta_bytes(), 0);
        self.reader.read_exact(&mut self.meta).map_err(MigrateError::lost)?;
        let message = self.decoder.message(&header, &self.meta)?;
        Ok((message, header.payload_bytes()))
    }

    /// The payload of the last message.
    pub(crate) fn payload(&mut self, bytes: &mut [u8]) -> Result<(), MigrateError> {
        self.reader.read_exact(bytes).map_err(MigrateError::lost)
    }

    /// The `count` descriptors that were handed over at this place of the stream.
    pub(crate) fn receive_files(&mut self, count: usize) -> Result<Vec<OwnedFd>, MigrateError> {
        self.reader.receive_files(count).map_err(MigrateError::lost)
    }
}

/// Writes messages.
#[derive(Debug)]
pub(crate) struct FrameWriter {
    /// Until it is finished.
    writer: Option<Writer>,
    encoder: FrameEncoder,
    frame: Vec<u8>,
    /// The rest of a frame that was cut short: whatever is sent later comes after it.
    unsent: Vec<u8>,
    sent: u64,
}

impl FrameWriter {
    /// Of a channel whose greeting is over.
    pub(crate) fn new(writer: Writer) -> Self {
        Self { writer: Some(writer), encoder: FrameEncoder::new(), frame: Vec::new(), unsent: Vec::new(), sent: 0 }
    }

    /// Sends a message without payload.
    pub(crate) fn send(&mut self, message: &Message) -> Result<(), MigrateError> {
        self.write(message, &[])
    }

    /// Sends pages.
    pub(crate) fn send_pages(&mut self, message: &Message, payload: &[u8]) -> Result<(), MigrateError> {
        self.write(message, payload)
    }

    /// Hands over descriptors, with one byte of the stream.
    pub(crate) fn send_files(&mut self, files: &[BorrowedFd<'_>]) -> Result<(), MigrateError> {
        self.writer.as_mut().ok_or_else(finished)?.send_files(files).map_err(MigrateError::lost)
    }

    /// Tells the other side that nothing more comes.
    pub(crate) fn finish(&mut self, deadline: Instant) -> Result<(), MigrateError> {
        self.writer.take().ok_or_else(finished)?.finish(deadline).map_err(MigrateError::lost)
    }

    /// Bytes sent so far, payloads included.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    fn write(&mut self, message: &Message, payload: &[u8]) -> Result<(), MigrateError> {
        self.frame.clear();
        self.encoder.encode(message, payload.len() as u32, &mut self.frame);
        let writer = self.writer.as_mut().ok_or_else(finished)?;
        let mut slices = [IoSlice::new(&self.unsent), IoSlice::new(&self.frame), IoSlice::new(payload)];
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let error = match writer.write_vectored(rest) {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(written) => {
                    IoSlice::advance_slices(&mut rest, written);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            // Of a frame that was begun the other side expects the rest; no other begins in its middle.
            self.unsent = rest.iter().flat_map(|slice| slice.iter().copied()).collect();
            return Err(MigrateError::lost(error));
        }
        self.unsent.clear();
        self.sent += (self.frame.len() + payload.len()) as u64;
        Ok(())
    }
}

fn finished() -> MigrateError {
    MigrateError::lost(io::ErrorKind::BrokenPipe.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::transport::{CancelToken, Listener, Uri, connect};
    use super::super::wire::Text;
    use super::*;

    #[test]
    fn a_frame_that_was_cut_short_is_finished_before_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let (uri, cancel) = (Uri::Unix(directory.path().join("s")), CancelToken::new().unwrap());
        let mut listener = Listener::bind(&uri, None).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let ours = connect(&uri, None, deadline, &cancel).unwrap();
        let theirs = listener.accept(Some(deadline), &cancel).unwrap();
        ours.set_timeouts(None, Some(Duration::from_millis(1)));
        let mut writer = FrameWriter::new(ours.split().1);
        let mut reader = FrameReader::new(theirs.split().0);
        let abort = |n: usize| Message::Abort { text: Text::new(format!("{n} {}", "x".repeat(900))) };
        // Until the other side's buffers are full.
        let begun = (0..).find(|n| writer.send(&abort(*n)).is_err()).unwrap();
        let last = Message::Commit;
        std::thread::scope(|scope| {
            scope.spawn(|| while writer.send(&last).is_err() {});
            for n in 0..=begun {
                assert_eq!(reader.next().unwrap().0, abort(n));
            }
            assert_eq!(reader.next().unwrap().0, last);
        });
    }
}
