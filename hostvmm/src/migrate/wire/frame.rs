//! Frames: a 32-byte [`Header`], then the message's meta, then the payload that only [`Message::Pages`] has.
//!
//! One [`FrameEncoder`] and one [`FrameDecoder`] for each direction of each channel: frames are numbered, so that none can be
//! lost, repeated or put in unnoticed. The checksum covers header and meta. The payload is not in it: its pages have a
//! digest in the meta, and so each byte of memory is hashed once on each side.

use twox_hash::XxHash3_64;

use super::error::WireError;
use super::fields::{Reader, Writer};
use super::message::{Message, Tag};
use super::{MAX_META_BYTES, MAX_PAYLOAD_BYTES};

/// Encoded size of a [`Header`].
pub const HEADER_BYTES: usize = 32;

const MAGIC: u32 = u32::from_le_bytes(*b"TDMF");
const CHECKSUM_AT: usize = 24;

/// What comes before a frame's meta.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    tag: Tag,
    meta_bytes: u32,
    payload_bytes: u32,
    sequence: u64,
    checksum: u64,
}

impl Header {
    /// What the frame is. Not yet proven: the checksum can be checked only once the meta is there.
    pub const fn tag(&self) -> Tag {
        self.tag
    }

    /// Bytes of the meta, at most [`MAX_META_BYTES`].
    pub const fn meta_bytes(&self) -> usize {
        self.meta_bytes as usize
    }

    /// Bytes of the payload, at most [`MAX_PAYLOAD_BYTES`].
    pub const fn payload_bytes(&self) -> u32 {
        self.payload_bytes
    }

    fn encode(&self) -> [u8; CHECKSUM_AT] {
        let mut bytes = Vec::with_capacity(CHECKSUM_AT);
        let mut fields = Writer(&mut bytes);
        fields.u32(MAGIC);
        fields.u16(self.tag.raw());
        fields.u16(0);
        fields.u32(self.meta_bytes);
        fields.u32(self.payload_bytes);
        fields.u64(self.sequence);
        std::array::from_fn(|at| bytes[at])
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let mut fields = Reader::new(bytes, "header");
        if fields.u32()? != MAGIC {
            return Err(WireError::Magic { what: "frame" });
        }
        let (tag, flags) = (fields.u16()?, fields.u16()?);
        let (meta_bytes, payload_bytes) = (fields.u32()?, fields.u32()?);
        let (sequence, checksum) = (fields.u64()?, fields.u64()?);
        let tag = Tag::from_raw(tag).ok_or(WireError::Tag { tag })?;
        if flags != 0 {
            return Err(WireError::Reserved { what: "header" });
        }
        if meta_bytes > MAX_META_BYTES || payload_bytes > MAX_PAYLOAD_BYTES || (payload_bytes != 0 && tag != Tag::Pages)
        {
            return Err(WireError::TooLong { meta_bytes, payload_bytes });
        }
        Ok(Self { tag, meta_bytes, payload_bytes, sequence, checksum })
    }
}

/// XXH3 of the meta, seeded with XXH3 of the header's fields.
fn checksum(header: &[u8; CHECKSUM_AT], meta: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(header), meta)
}

/// Makes the frames of one direction of one channel.
#[derive(Debug, Default)]
pub struct FrameEncoder {
    next: u64,
}

impl FrameEncoder {
    /// For a channel that nothing was sent on since its greeting.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends header and meta of the next frame to `out`; `payload_bytes` of payload are to be sent after them.
    ///
    /// # Panics
    /// If the message is larger than a frame may be, or has a payload and is not [`Message::Pages`].
    pub fn encode(&mut self, message: &Message, payload_bytes: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + HEADER_BYTES, 0);
        message.encode(out);
        let meta_bytes = out.len() - start - HEADER_BYTES;
        let tag = message.tag();
        assert!(meta_bytes <= MAX_META_BYTES as usize, "a frame {tag} with {meta_bytes} bytes of meta");
        assert!(payload_bytes <= MAX_PAYLOAD_BYTES, "a frame {tag} with {payload_bytes} bytes of payload");
        assert!(payload_bytes == 0 || tag == Tag::Pages, "a frame {tag} has no payload");
        let header = Header { tag, meta_bytes: meta_bytes as u32, payload_bytes, sequence: self.next, checksum: 0 };
        self.next += 1;
        let header = header.encode();
        let (head, meta) = out[start..].split_at_mut(HEADER_BYTES);
        head[..CHECKSUM_AT].copy_from_slice(&header);
        head[CHECKSUM_AT..].copy_from_slice(&checksum(&header, meta).to_le_bytes());
    }

    /// Header and meta of the next frame, which has no payload.
    ///
    /// # Panics
    /// As [`Self::encode`].
    pub fn frame(&mut self, message: &Message) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 * HEADER_BYTES);
        self.encode(message, 0, &mut out);
        out
    }
}

/// Reads the frames of one direction of one channel.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    next: u64,
}

impl FrameDecoder {
    /// For a channel that nothing was read from since its greeting.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the next frame claims to be. Its lengths are bounded, so that much can be read next.
    ///
    /// # Errors
    /// [`WireError::Magic`], [`WireError::Tag`], [`WireError::Reserved`], [`WireError::TooLong`], [`WireError::Sequence`].
    pub fn header(&self, bytes: &[u8; HEADER_BYTES]) -> Result<Header, WireError> {
        let header = Header::decode(bytes)?;
        if header.sequence == self.next {
            Ok(header)
        } else {
            Err(WireError::Sequence { expected: self.next, found: header.sequence })
        }
    }

    /// The message of `header`, which is this frame's, with `meta` after it.
    ///
    /// # Errors
    /// [`WireError::Checksum`] where header or meta are not what was sent, else whatever is wrong with what was sent.
    pub fn message(&mut self, header: &Header, meta: &[u8]) -> Result<Message, WireError> {
        if checksum(&header.encode(), meta) != header.checksum {
            return Err(WireError::Checksum { what: "frame" });
        }
        self.next += 1;
        Message::decode(header.tag, meta)
    }
}
