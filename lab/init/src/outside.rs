//! A shell outside the guest: what `lab-outside` and the lab say to each other on a channel, a virtio-serial port both ways.
//!
//! ```text
//!  guest   Line ─ Input* ─ Input (empty: its end) ───────────────── End     the channel is free again
//!  lab              Output*, Error* ──────────────── Exit
//! ```
//!
//! A port has no end of stream that the other side would see, hence frames: a kind, a length of four bytes (little-endian), and as many
//! bytes.

use std::io::{self, Read, Write};

/// Channels of a guest that has any: more than a scenario ever uses at once.
pub const CHANNELS: u8 = 6;
/// The first channel's port.
pub const FIRST_PORT: u8 = 4;
/// Most bytes of a frame.
pub const MAX_FRAME: usize = 32 << 10;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A line of shell to execute.
    Line = 1,
    /// Bytes of its standard input; none: its end.
    Input = 2,
    /// Bytes of its standard output.
    Output = 3,
    /// Bytes of its standard error.
    Error = 4,
    /// How it ended: a byte, its exit status as shells give it.
    Exit = 5,
    /// The guest will say no more.
    End = 6,
    /// Nobody waits for the line any more: it is to be killed.
    Hangup = 7,
}

impl Kind {
    const ALL: [Self; 7] = [Self::Line, Self::Input, Self::Output, Self::Error, Self::Exit, Self::End, Self::Hangup];
}

/// Writes a frame of at most [`MAX_FRAME`] bytes.
///
/// # Errors
/// The channel's; `InvalidInput` for more bytes.
pub fn send(channel: &mut impl Write, kind: Kind, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a frame too long"));
    }
    // In one write, so that frames of several threads do not mix where the channel takes them whole.
    let mut frame = Vec::with_capacity(5 + bytes.len());
    frame.push(kind as u8);
    frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    frame.extend_from_slice(bytes);
    channel.write_all(&frame)?;
    channel.flush()
}

/// Reads a frame; `None` at the end of the stream.
///
/// # Errors
/// The channel's; `InvalidData` for what is no frame.
pub fn receive(channel: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut kind = [0];
    if channel.read(&mut kind)? == 0 {
        return Ok(None);
    }
    let mut len = [0; 4];
    channel.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    let known = Kind::ALL.into_iter().find(|known| *known as u8 == kind[0]);
    let Some(kind) = known.filter(|_| len <= MAX_FRAME) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("no frame: kind {}, {len} bytes", kind[0])));
    };
    let mut bytes = vec![0; len];
    channel.read_exact(&mut bytes)?;
    Ok(Some((kind, bytes)))
}

/// Sends all that `from` gives, up to its end, which is not sent.
///
/// # Errors
/// The channel's. What cannot be read any more has ended.
pub fn send_all(from: &mut impl Read, mut send: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut bytes = vec![0; MAX_FRAME];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(len) => send(&bytes[..len])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in() {
        let mut channel = Vec::new();
        send(&mut channel, Kind::Line, b"ls").unwrap();
        send(&mut channel, Kind::Input, b"").unwrap();
        assert_eq!(channel, [1, 2, 0, 0, 0, b'l', b's', 2, 0, 0, 0, 0]);
        let mut channel = &channel[..];
        assert_eq!(receive(&mut channel).unwrap(), Some((Kind::Line, b"ls".to_vec())));
        assert_eq!(receive(&mut channel).unwrap(), Some((Kind::Input, Vec::new())));
        assert_eq!(receive(&mut channel).unwrap(), None);
        assert!(send(&mut Vec::new(), Kind::Output, &[0; MAX_FRAME + 1]).is_err());
    }

    #[test]
    fn what_is_no_frame_is_refused_before_memory_is_taken_for_it() {
        for bytes in [&[0, 0, 0, 0, 0][..], &[9, 1, 0, 0, 0, 1], &[3, 255, 255, 255, 255], &[3, 2, 0, 0, 0, 1], &[3, 0]]
        {
            assert!(receive(&mut &bytes[..]).is_err(), "{bytes:?}");
        }
    }
}
