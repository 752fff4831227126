//! Bodies compressed by zstd, each by itself: [`Squeezer`] and [`Expander`]. Both write into buffers of fixed size.

use zstd::bulk::{Compressor, Decompressor};

use super::PageError;
use crate::memory::SlotId;
use crate::migrate::wire::MAX_PAYLOAD_BYTES;

/// Compresses bodies.
pub(super) struct Squeezer {
    zstd: Compressor<'static>,
    squeezed: Vec<u8>,
}

impl Squeezer {
    /// At zstd's `level`.
    pub(super) fn new(level: i32) -> Result<Self, PageError> {
        let zstd = Compressor::new(level).map_err(|error| PageError::NoZstd { reason: error.to_string() })?;
        Ok(Self { zstd, squeezed: vec![0; MAX_PAYLOAD_BYTES as usize] })
    }

    /// `body` compressed; `None` where that is not shorter.
    pub(super) fn squeeze(&mut self, body: &[u8]) -> Option<&[u8]> {
        let room = &mut self.squeezed[..body.len().saturating_sub(1)];
        // zstd's only reason to refuse is that the room is too small.
        let len_bytes = self.zstd.compress_to_buffer(body, room).ok()?;
        Some(&self.squeezed[..len_bytes])
    }
}

/// Decompresses bodies.
pub(super) struct Expander {
    zstd: Decompressor<'static>,
    body: Vec<u8>,
}

impl Expander {
    pub(super) fn new() -> Result<Self, PageError> {
        let zstd = Decompressor::new().map_err(|error| PageError::NoZstd { reason: error.to_string() })?;
        Ok(Self { zstd, body: vec![0; MAX_PAYLOAD_BYTES as usize] })
    }

    /// The body of `expected_bytes` that `payload` holds. Whatever the payload claims, no more is written, and nothing
    /// allocated.
    pub(super) fn expand(&mut self, slot: SlotId, payload: &[u8], expected_bytes: usize) -> Result<&[u8], PageError> {
        let wrong = |reason| PageError::Zstd { slot, expected_bytes, reason };
        let room = self.body.get_mut(..expected_bytes).ok_or_else(|| wrong("it is too large".to_owned()))?;
        match self.zstd.decompress_to_buffer(payload, room) {
            Ok(found) if found == expected_bytes => Ok(&self.body[..expected_bytes]),
            Ok(found) => Err(wrong(format!("it holds {found}"))),
            Err(error) => Err(wrong(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_survive_and_lies_about_their_size_do_not() {
        let (mut squeezer, mut expander) = (Squeezer::new(1).unwrap(), Expander::new().unwrap());
        let body: Vec<u8> = (0..100_000_u32).map(|at| (at / 100) as u8).collect();
        let squeezed = squeezer.squeeze(&body).unwrap().to_vec();
        assert!(squeezed.len() < body.len() / 10);
        assert_eq!(expander.expand(SlotId::Ram, &squeezed, body.len()).unwrap(), body);
        for wrong in [0, 1, body.len() - 1, body.len() + 1, MAX_PAYLOAD_BYTES as usize + 1] {
            assert!(expander.expand(SlotId::Ram, &squeezed, wrong).is_err(), "{wrong}");
        }
        assert!(expander.expand(SlotId::Ram, &squeezed[..squeezed.len() - 1], body.len()).is_err());
        assert!(expander.expand(SlotId::Ram, &body, body.len()).is_err());
    }

    #[test]
    fn a_bomb_is_no_larger_than_the_room_it_gets() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
        assert!(bomb.len() < 16 << 10);
        let error = Expander::new().unwrap().expand(SlotId::Region, &bomb, 4096).unwrap_err();
        assert!(matches!(error, PageError::Zstd { expected_bytes: 4096, .. }), "{error}");
    }

    #[test]
    fn what_does_not_shrink_is_left_alone() {
        let noise: Vec<u8> = (0..4096_u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
        let mut squeezer = Squeezer::new(1).unwrap();
        assert_eq!(squeezer.squeeze(&noise[..64]), None);
        assert_eq!(squeezer.squeeze(&[]), None);
    }
}
