//! The byte format between a replicator that sends and one that receives. No input or output here.
//!
//! ```text
//! sender                                   receiver
//! Hello ──────────────────────────────────►
//! Data | Zero | PassEnd … ────────────────►   offset and length bounded by the hello's region
//! End {digest, sum} ──────────────────────►
//!       ◄────────────────────────────── Result {digest, sum}
//! ```
//!
//! Everything is little-endian and fixed-width, reserved fields are zero, lengths are bounded before anything is
//! allocated, unknown tags are errors. A frame's checksum guards its header and its payload; the digest at the end proves the
//! memory. The peer is hostile until proven otherwise: [`FrameHeader::decode`] takes nothing on trust.

use thiserror::Error;
use twox_hash::XxHash3_64;
use workload::PAGE_BYTES;

/// First bytes of a stream.
pub(super) const MAGIC: [u8; 8] = *b"TIDEREPL";
/// Version of the format; another one is refused.
pub(super) const VERSION: u32 = 1;
/// Encoded size of a [`Hello`].
pub(super) const HELLO_BYTES: usize = 32;
/// Encoded size of a [`FrameHeader`].
pub(super) const HEADER_BYTES: usize = 24;
/// Largest payload of a frame.
pub(super) const MAX_PAYLOAD_BYTES: u32 = 1 << 20;
/// Encoded size of a [`Verdict`].
pub(super) const VERDICT_BYTES: usize = 16;

/// Bytes that break the format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum WireError {
    /// The stream does not start with the magic.
    #[error("the peer does not speak the replication protocol")]
    Magic,
    /// A version other than ours.
    #[error("the peer speaks version {version} of the replication protocol, this is version {VERSION}")]
    Version {
        /// Theirs.
        version: u32,
    },
    /// A reserved field that is not zero.
    #[error("a reserved field of the {what} is not zero")]
    Reserved {
        /// Of which part.
        what: &'static str,
    },
    /// A page size or region size that cannot be.
    #[error(
        "a region of {region_bytes} bytes in pages of {page_bytes} is refused; at most {limit_bytes} bytes in whole pages"
    )]
    Region {
        /// Its size.
        region_bytes: u64,
        /// Its page.
        page_bytes: u32,
        /// The receiver's limit.
        limit_bytes: u64,
    },
    /// An unknown frame.
    #[error("unknown frame tag {tag}")]
    Tag {
        /// The tag.
        tag: u32,
    },
    /// A frame that is too long, not whole pages, or reaches outside the region.
    #[error(
        "a frame of {len_bytes} bytes at offset {offset:#x} is refused: outside the region, or not whole pages, or too long"
    )]
    Extent {
        /// Where.
        offset: u64,
        /// How long.
        len_bytes: u32,
    },
    /// A frame whose bytes are not those that were sent.
    #[error("the checksum of the frame at offset {offset:#x} is wrong")]
    Checksum {
        /// Where.
        offset: u64,
    },
    /// A frame that must not come now.
    #[error("a {tag:?} frame out of order")]
    Order {
        /// Which.
        tag: Tag,
    },
}

/// What opens a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hello {
    /// Bytes of a host page at the sender.
    pub(super) page_bytes: u32,
    /// Bytes of the region.
    pub(super) region_bytes: u64,
}

impl Hello {
    pub(super) fn encode(self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.page_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.region_bytes.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HELLO_BYTES], limit_bytes: u64) -> Result<Self, WireError> {
        if bytes[..8] != MAGIC {
            return Err(WireError::Magic);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(WireError::Version { version });
        }
        if u64_at(bytes, 24) != 0 {
            return Err(WireError::Reserved { what: "hello" });
        }
        let (page_bytes, region_bytes) = (u32_at(bytes, 12), u64_at(bytes, 16));
        let page_is_sane = page_bytes.is_power_of_two() && (PAGE_BYTES..=1 << 30).contains(&u64::from(page_bytes));
        let region_is_sane = (1..=limit_bytes).contains(&region_bytes) && region_bytes.is_multiple_of(PAGE_BYTES);
        if !page_is_sane || !region_is_sane {
            return Err(WireError::Region { region_bytes, page_bytes, limit_bytes });
        }
        Ok(Self { page_bytes, region_bytes })
    }
}

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tag {
    /// Bytes of the region.
    Data,
    /// A range of the region that is zero; no payload.
    Zero,
    /// The pages of one bitmap have been sent; the offset field counts passes.
    PassEnd,
    /// All is sent; the payload is the sender's verdict.
    End,
    /// The receiver's verdict.
    Result,
}

impl Tag {
    const fn raw(self) -> u32 {
        match self {
            Self::Data => 1,
            Self::Zero => 2,
            Self::PassEnd => 3,
            Self::End => 4,
            Self::Result => 5,
        }
    }
}

/// What comes before a frame's payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FrameHeader {
    pub(super) tag: Tag,
    /// Bytes of the range; of the payload too, but for [`Tag::Zero`], which has none.
    pub(super) len_bytes: u32,
    /// Offset in the region, or the pass.
    pub(super) offset: u64,
    checksum: u64,
}

impl FrameHeader {
    /// The header for `payload`; `len_bytes` is the length of the range it stands for.
    pub(super) fn new(tag: Tag, offset: u64, len_bytes: u32, payload: &[u8]) -> Self {
        let mut header = Self { tag, len_bytes, offset, checksum: 0 };
        header.checksum = header.checksum_with(payload);
        header
    }

    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..16].copy_from_slice(&self.guarded());
        bytes[16..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    /// Reads a header and checks tag, length and range against the region.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES], region_bytes: u64) -> Result<Self, WireError> {
        let (tag, len_bytes, offset) = (u32_at(bytes, 0), u32_at(bytes, 4), u64_at(bytes, 8));
        let tag = [Tag::Data, Tag::Zero, Tag::PassEnd, Tag::End, Tag::Result]
            .into_iter()
            .find(|known| known.raw() == tag)
            .ok_or(WireError::Tag { tag })?;
        let fits = match tag {
            Tag::Data | Tag::Zero => {
                let bounded = tag == Tag::Zero || len_bytes <= MAX_PAYLOAD_BYTES;
                let whole = len_bytes != 0
                    && u64::from(len_bytes).is_multiple_of(PAGE_BYTES)
                    && offset.is_multiple_of(PAGE_BYTES);
                bounded && whole && offset.checked_add(len_bytes.into()).is_some_and(|end| end <= region_bytes)
            }
            Tag::PassEnd => len_bytes == 0,
            Tag::End | Tag::Result => len_bytes as usize == VERDICT_BYTES && offset == 0,
        };
        if !fits {
            return Err(WireError::Extent { offset, len_bytes });
        }
        Ok(Self { tag, len_bytes, offset, checksum: u64_at(bytes, 16) })
    }

    /// Bytes that follow the header: at most [`MAX_PAYLOAD_BYTES`].
    pub(super) fn payload_bytes(self) -> usize {
        if self.tag == Tag::Zero { 0 } else { self.len_bytes as usize }
    }

    /// Checks the payload that followed.
    pub(super) fn verify(self, payload: &[u8]) -> Result<(), WireError> {
        if self.checksum == self.checksum_with(payload) {
            Ok(())
        } else {
            Err(WireError::Checksum { offset: self.offset })
        }
    }

    fn guarded(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.tag.raw().to_le_bytes());
        bytes[4..8].copy_from_slice(&self.len_bytes.to_le_bytes());
        bytes[8..].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    /// XXH3 of the payload seeded with XXH3 of the guarded header.
    fn checksum_with(self, payload: &[u8]) -> u64 {
        XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(&self.guarded()), payload)
    }
}

/// What a side found over all of its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Verdict {
    /// `workload::digest` with the offset as address, pass 0.
    pub(super) digest: u64,
    /// The checksum of `sum -r`.
    pub(super) sum: u16,
}

impl Verdict {
    pub(super) fn encode(self) -> [u8; VERDICT_BYTES] {
        let mut bytes = [0; VERDICT_BYTES];
        bytes[..8].copy_from_slice(&self.digest.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.sum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; VERDICT_BYTES]) -> Result<Self, WireError> {
        if bytes[10..] != [0; 6] {
            return Err(WireError::Reserved { what: "verdict" });
        }
        Ok(Self { digest: u64_at(bytes, 0), sum: u16::from_le_bytes([bytes[8], bytes[9]]) })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REGION: u64 = 8 << 20;

    #[test]
    fn golden_hello() {
        let hello = Hello { page_bytes: 4096, region_bytes: REGION };
        let golden = *b"TIDEREPL\x01\0\0\0\0\x10\0\0\0\0\x80\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(hello.encode(), golden);
        assert_eq!(Hello::decode(&golden, REGION), Ok(hello));
    }

    #[test]
    fn golden_frames() {
        let data = FrameHeader::new(Tag::Data, 0x3000, 4096, &[7; 4096]).encode();
        assert_eq!(data[..16], *b"\x01\0\0\0\0\x10\0\0\0\x30\0\0\0\0\0\0");
        let zero = FrameHeader::new(Tag::Zero, 0x1000, 8192, &[]).encode();
        assert_eq!(zero[..16], *b"\x02\0\0\0\0\x20\0\0\0\x10\0\0\0\0\0\0");
        let verdict = Verdict { digest: 0x0102_0304_0506_0708, sum: 0x0a0b };
        assert_eq!(verdict.encode(), *b"\x08\x07\x06\x05\x04\x03\x02\x01\x0b\x0a\0\0\0\0\0\0");
        assert_eq!(Verdict::decode(&verdict.encode()), Ok(verdict));
        let end = FrameHeader::new(Tag::End, 0, 16, &verdict.encode()).encode();
        assert_eq!(end[..16], *b"\x04\0\0\0\x10\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn what_reaches_outside_the_region_or_its_pages_is_refused() {
        let decode = |tag, offset, len| FrameHeader::decode(&FrameHeader::new(tag, offset, len, &[]).encode(), REGION);
        assert!(decode(Tag::Data, REGION - 4096, 4096).is_ok());
        for (offset, len) in
            [(REGION, 4096), (REGION - 4096, 8192), (u64::MAX - 4095, 4096), (8, 4096), (0, 100), (0, 0)]
        {
            assert!(matches!(decode(Tag::Data, offset, len), Err(WireError::Extent { .. })), "{offset:#x} {len}");
            assert!(matches!(decode(Tag::Zero, offset, len), Err(WireError::Extent { .. })), "{offset:#x} {len}");
        }
        assert!(decode(Tag::Data, 0, MAX_PAYLOAD_BYTES + 4096).is_err());
        assert!(decode(Tag::Zero, 0, MAX_PAYLOAD_BYTES + 4096).is_ok());
        assert!(decode(Tag::End, 0, 17).is_err());
    }

    #[test]
    fn hellos_of_other_kinds_are_refused() {
        let hello = Hello { page_bytes: 4096, region_bytes: REGION };
        let with = |at: usize, byte| {
            let mut bytes = hello.encode();
            bytes[at] = byte;
            Hello::decode(&bytes, REGION)
        };
        assert_eq!(with(0, b'X'), Err(WireError::Magic));
        assert_eq!(with(8, 2), Err(WireError::Version { version: 2 }));
        assert_eq!(with(30, 1), Err(WireError::Reserved { what: "hello" }));
        assert!(matches!(with(12, 1), Err(WireError::Region { .. })));
        assert!(matches!(with(16, 1), Err(WireError::Region { .. })));
        assert!(matches!(with(20, 1), Err(WireError::Region { .. })));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_noticed(bit in 0..HEADER_BYTES * 8 + 4096 * 8) {
            let mut payload = vec![0x5a; 4096];
            let mut header = FrameHeader::new(Tag::Data, 0x3000, 4096, &payload).encode();
            match bit.checked_sub(HEADER_BYTES * 8) {
                None => header[bit / 8] ^= 1 << (bit % 8),
                Some(bit) => payload[bit / 8] ^= 1 << (bit % 8),
            }
            let accepted = FrameHeader::decode(&header, REGION).and_then(|header| {
                payload.resize(header.payload_bytes(), 0);
                header.verify(&payload)
            });
            prop_assert!(accepted.is_err());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic_or_ask_for_much(header: [u8; HEADER_BYTES], hello: [u8; HELLO_BYTES]) {
            if let Ok(header) = FrameHeader::decode(&header, REGION) {
                prop_assert!(header.payload_bytes() <= MAX_PAYLOAD_BYTES as usize);
            }
            let _ = Hello::decode(&hello, REGION);
        }
    }
}
