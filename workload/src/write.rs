//! One write of the plan: place, bytes and instruction.
//!
//! What a word is used for never changes: in one plan a 64-bit word is either only added to ([`Data::Add`]) or only
//! stored to, so that a torn or overtaken word can be judged without knowing the order of the vCPUs.

use crate::random::SplitMix64;

/// The bytes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// The first `len` of these bytes; `len` is at most 16.
    Bytes([u8; 16]),
    /// `len` pseudo-random bytes: 64-bit little-endian words of SplitMix64 seeded with this number, the last one cut.
    Random(u64),
    /// `len` zero bytes.
    Zero,
    /// Adds to the little-endian 64-bit word there, wrapping; `len` is 8 and the offset a multiple of 8. Adds commute,
    /// so several vCPUs may add to one word in one step and the sum is still known at the barrier.
    Add(u64),
}

/// The instruction or mechanism by which the guest performs a write. The bytes are the same whichever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Plain aligned stores.
    Store,
    /// One store instruction of `len` (2, 4 or 8) bytes at an address that is no multiple of `len`.
    Unaligned,
    /// STP of two X registers (`len` 16); on ARMv7 STRD or STM.
    Pair,
    /// STR of a Q register (`len` 16); on ARMv7 VST1.
    Vector,
    /// STP of two Q registers (`len` 32, [`Data::Random`]); on ARMv7 VST1 of four D registers.
    VectorPair,
    /// A load, add and store; [`Data::Add`].
    Increment,
    /// LDXR/STXR loop, on ARMv7 LDREXD/STREXD; [`Data::Add`].
    Exclusive,
    /// LDADD; [`Data::Add`].
    AtomicAdd,
    /// SWP; [`Data::Bytes`], `len` 8.
    AtomicSwap,
    /// CAS that succeeds (expects what is there); [`Data::Bytes`], `len` 8.
    AtomicCas,
    /// DC ZVA over the whole range; [`Data::Zero`], offset and `len` multiples of 2048, the architecture's largest block.
    ZeroBlock,
    /// A function of four instructions (MOVZ, MOVK, MOVK of x0 and RET, on ARMv7 MOVW, MOVT of r0, MOVW of r1 and BX;
    /// [`Data::Bytes`], `len` 16, offset a multiple of 16), written through the data mapping, cleaned and invalidated to the point of unification, then called
    /// through the executable mapping; must return this.
    Code {
        /// Return value.
        returns: u64,
    },
    /// A last-level descriptor of the live table, written by one 64-bit store ([`Data::Bytes`], `len` 8). It changes a
    /// live entry's AF and AP\[2\] alone, so no break-before-make is due, but the slot's translation must be
    /// invalidated (DSB, TLBI VAE1, DSB, ISB) before the write that follows it.
    Descriptor {
        /// Index into the live table.
        slot: u32,
    },
    /// A descriptor as the hardware's walker leaves it after the guest's *read* through `slot` of the live table
    /// (sets AF). `len` 8. The guest must not store it, but read through the slot.
    WalkedByRead {
        /// Index into the live table.
        slot: u32,
    },
    /// A descriptor as the walker leaves it after the guest's *write* through `slot` (sets AF and, by DBM, clears
    /// AP\[2\]). `len` 8. The guest does nothing for it: the [`How::ThroughTable`] write that follows causes it.
    WalkedByWrite {
        /// Index into the live table.
        slot: u32,
    },
    /// A plain store of `len` 8 bytes through `slot` of the live table, at `offset` modulo the granule in that page.
    ThroughTable {
        /// Index into the live table.
        slot: u32,
    },
}

impl How {
    /// Whether the bytes that memory holds after the write follow from the steps of one vCPU. Not so words that several add to, and
    /// descriptors, which the hardware changes.
    pub const fn is_private(self) -> bool {
        !matches!(
            self,
            Self::Exclusive
                | Self::AtomicAdd
                | Self::Descriptor { .. }
                | Self::WalkedByRead { .. }
                | Self::WalkedByWrite { .. }
        )
    }
}

/// One write of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// First byte, counted from the region's start.
    pub offset: u64,
    /// Length in bytes; the write stays inside the region, but may cross pages.
    pub len: u32,
    /// The bytes.
    pub data: Data,
    /// The instruction.
    pub how: How,
}

impl Write {
    /// First byte past the write, counted from the region's start.
    pub const fn end(&self) -> u64 {
        self.offset + self.len as u64
    }

    /// Fills `buf` with the write's bytes from its byte `skip` on. For [`Data::Add`] these are the addend's.
    ///
    /// # Panics
    /// If `skip` plus the buffer's length is above `len`, or the plan made an ill-formed write.
    pub fn fill(&self, skip: u32, buf: &mut [u8]) {
        assert!(skip as usize + buf.len() <= self.len as usize, "a write has no bytes past its end");
        match self.data {
            Data::Bytes(bytes) => buf.copy_from_slice(&bytes[skip as usize..][..buf.len()]),
            Data::Zero => buf.fill(0),
            Data::Add(addend) => buf.copy_from_slice(&addend.to_le_bytes()[skip as usize..][..buf.len()]),
            Data::Random(seed) => {
                let mut random = SplitMix64::starting_at(seed, u64::from(skip) / 8);
                let head_at = skip as usize % 8;
                let head_len = ((8 - head_at) % 8).min(buf.len());
                let (head, rest) = buf.split_at_mut(head_len);
                if !head.is_empty() {
                    head.copy_from_slice(&random.next_u64().to_le_bytes()[head_at..][..head_len]);
                }
                let mut words = rest.chunks_exact_mut(8);
                for word in &mut words {
                    word.copy_from_slice(&random.next_u64().to_le_bytes());
                }
                let tail = words.into_remainder();
                if !tail.is_empty() {
                    tail.copy_from_slice(&random.next_u64().to_le_bytes()[..tail.len()]);
                }
            }
        }
    }

    /// Performs the write on `region`, the whole region's bytes.
    ///
    /// # Panics
    /// If the write does not lie in `region`.
    pub fn apply(&self, region: &mut [u8]) {
        let bytes = &mut region[self.offset as usize..][..self.len as usize];
        self.apply_to(bytes);
    }

    /// Performs the write on `bytes`, the `len` bytes that it covers.
    ///
    /// # Panics
    /// If `bytes` has another length.
    pub fn apply_to(&self, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), self.len as usize, "a write covers exactly its length");
        match self.data {
            Data::Add(addend) => {
                let mut word = [0; 8];
                word.copy_from_slice(bytes);
                bytes.copy_from_slice(&u64::from_le_bytes(word).wrapping_add(addend).to_le_bytes());
            }
            _ => self.fill(0, bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bytes_are_the_same_from_any_start() {
        let write = Write { offset: 0, len: 61, data: Data::Random(9), how: How::Store };
        let mut whole = [0; 61];
        write.fill(0, &mut whole);
        for skip in 0..=61_u32 {
            for len in 0..=61 - skip {
                let mut part = [0; 61];
                let part = &mut part[..len as usize];
                write.fill(skip, part);
                assert_eq!(part, &whole[skip as usize..][..len as usize], "{skip} {len}");
            }
        }
        assert_eq!(whole[..8], SplitMix64::new(9).next_u64().to_le_bytes());
    }

    #[test]
    fn an_add_wraps_and_leaves_its_neighbours() {
        let mut region = [0xff; 24];
        Write { offset: 8, len: 8, data: Data::Add(2), how: How::Increment }.apply(&mut region);
        assert_eq!(region[8..16], [1, 0, 0, 0, 0, 0, 0, 0]);
        assert!(region[..8].iter().chain(&region[16..]).all(|&byte| byte == 0xff));
    }
}
