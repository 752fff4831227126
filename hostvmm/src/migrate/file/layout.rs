//! Where everything is in the file, and the bytes of [`Head`] and [`Seal`].

use std::mem::offset_of;

use twox_hash::XxHash3_64;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::VERSION;
use crate::memory::SlotId;
use crate::migrate::wire::Description;

/// Bytes of the block that holds the head, and of the one that holds the seal.
pub(super) const BLOCK: usize = 4096;
pub(super) const SEAL_AT: u64 = BLOCK as u64;
pub(super) const OFFER_AT: u64 = 2 * BLOCK as u64;
/// Bytes of the offer at most.
pub(super) const OFFER_MAX: u64 = 64 << 10;
/// What slots begin at a multiple of, as in QEMU's mapped-ram: direct I/O and huge pages fit.
const SLOT_ALIGN: u64 = 1 << 20;
/// What the state begins at a multiple of: the largest host page.
const STATE_ALIGN: u64 = 64 << 10;

const HEAD_MAGIC: [u8; 8] = *b"TDMKFILE";
const SEAL_MAGIC: [u8; 8] = *b"TDMKSEAL";

/// Where the parts are, counted from the file's offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// First byte of each slot.
    pub(super) slots: [u64; SlotId::COUNT],
    /// First byte of the state.
    pub(super) state: u64,
}

impl Layout {
    /// That of a machine; `None` where it is larger than files are.
    pub(super) fn of(description: &Description) -> Option<Self> {
        let mut at = SLOT_ALIGN;
        let mut slots = [0; SlotId::COUNT];
        let lengths = [description.boot.ram, description.boot.region].map(|range| range.len_bytes());
        for (slot, len_bytes) in slots.iter_mut().zip(lengths) {
            *slot = at;
            at = at.checked_add(len_bytes)?.checked_next_multiple_of(SLOT_ALIGN)?;
        }
        let state = at.checked_next_multiple_of(STATE_ALIGN)?;
        // Offsets are signed, and may be counted from anywhere in the first half.
        (state <= i64::MAX as u64 / 4).then_some(Self { slots, state })
    }
}

/// The first bytes: what the file is, and where everything is in it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Debug)]
#[repr(C)]
pub(super) struct Head {
    magic: [u8; 8],
    version: U32,
    offer_bytes: U32,
    offer_checksum: U64,
    slots: [U64; SlotId::COUNT],
    state: U64,
    checksum: U64,
}

const _: () = assert!(size_of::<Head>() == 56 && size_of::<Head>() <= BLOCK);

/// What is wrong with a head or a seal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wrong {
    /// It is none.
    Magic,
    /// It is of another version.
    Version(u32),
    /// It is not what was written.
    Damaged,
}

impl Head {
    pub(super) fn new(layout: Layout, offer: &[u8]) -> Self {
        let mut head = Self {
            magic: HEAD_MAGIC,
            version: VERSION.into(),
            offer_bytes: U32::new(offer.len() as u32),
            offer_checksum: checksum(offer).into(),
            slots: layout.slots.map(U64::new),
            state: layout.state.into(),
            checksum: U64::ZERO,
        };
        head.checksum = checksum(&head.as_bytes()[..offset_of!(Self, checksum)]).into();
        head
    }

    pub(super) fn decode(block: &[u8; BLOCK]) -> Result<Self, Wrong> {
        let (head, rest) = Self::read_from_prefix(block).map_err(|_| Wrong::Damaged)?;
        if head.magic != HEAD_MAGIC {
            return Err(Wrong::Magic);
        }
        if head.version.get() != VERSION {
            return Err(Wrong::Version(head.version.get()));
        }
        let is_whole = head.checksum.get() == checksum(&head.as_bytes()[..offset_of!(Self, checksum)]);
        if is_whole && is_zero(rest) { Ok(head) } else { Err(Wrong::Damaged) }
    }

    /// Bytes of the offer.
    pub(super) fn offer_bytes(&self) -> u64 {
        self.offer_bytes.get().into()
    }

    /// Whether `offer` is the one that was written.
    pub(super) fn has_offer(&self, offer: &[u8]) -> bool {
        self.offer_checksum.get() == checksum(offer)
    }

    /// Where it says that everything is.
    pub(super) fn layout(&self) -> Layout {
        Layout { slots: self.slots.map(U64::get), state: self.state.get() }
    }

    /// What a seal names it by.
    pub(super) fn checksum(&self) -> u64 {
        self.checksum.get()
    }
}

/// What makes the file whole.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Debug)]
#[repr(C)]
pub(super) struct Seal {
    magic: [u8; 8],
    version: U32,
    reserved: U32,
    head_checksum: U64,
    state_bytes: U64,
    state_checksum: U64,
    digests: [U64; SlotId::COUNT],
    wall_less_monotonic_ns: U64,
    boot_id: [u8; 16],
    checksum: U64,
}

const _: () = assert!(size_of::<Seal>() == 88 && size_of::<Seal>() <= BLOCK);

/// Which clock the moments in the file are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Clock {
    /// What the host's wall clock shows beyond its monotonic one.
    pub(super) wall_less_monotonic_ns: i64,
    /// Which boot of which host; zero where that is not known.
    pub(super) boot_id: [u8; 16],
}

impl Seal {
    pub(super) fn new(head: &Head, state: &[u8], digests: [u64; SlotId::COUNT], clock: Clock) -> Self {
        let mut seal = Self {
            magic: SEAL_MAGIC,
            version: VERSION.into(),
            reserved: U32::ZERO,
            head_checksum: head.checksum,
            state_bytes: U64::new(state.len() as u64),
            state_checksum: checksum(state).into(),
            digests: digests.map(U64::new),
            wall_less_monotonic_ns: U64::new(clock.wall_less_monotonic_ns.cast_unsigned()),
            boot_id: clock.boot_id,
            checksum: U64::ZERO,
        };
        seal.checksum = checksum(&seal.as_bytes()[..offset_of!(Self, checksum)]).into();
        seal
    }

    /// `None` where there is none yet: the block is all zeroes.
    pub(super) fn decode(block: &[u8; BLOCK], head: &Head) -> Result<Option<Self>, Wrong> {
        if is_zero(block) {
            return Ok(None);
        }
        let (seal, rest) = Self::read_from_prefix(block).map_err(|_| Wrong::Damaged)?;
        let is_whole = seal.magic == SEAL_MAGIC
            && seal.version.get() == VERSION
            && seal.reserved.get() == 0
            && seal.checksum.get() == checksum(&seal.as_bytes()[..offset_of!(Self, checksum)])
            && seal.head_checksum.get() == head.checksum();
        if is_whole && is_zero(rest) { Ok(Some(seal)) } else { Err(Wrong::Damaged) }
    }

    /// Bytes of the state.
    pub(super) fn state_bytes(&self) -> u64 {
        self.state_bytes.get()
    }

    /// Whether `state` is the one that was written.
    pub(super) fn has_state(&self, state: &[u8]) -> bool {
        self.state_checksum.get() == checksum(state)
    }

    /// Digests of memory by slot.
    pub(super) fn digests(&self) -> [u64; SlotId::COUNT] {
        self.digests.map(U64::get)
    }

    /// The clock of the host that wrote it.
    pub(super) fn clock(&self) -> Clock {
        Clock { wall_less_monotonic_ns: self.wall_less_monotonic_ns.get().cast_signed(), boot_id: self.boot_id }
    }
}

/// A head or a seal, followed by zeroes to the end of its block.
pub(super) fn block(bytes: &(impl IntoBytes + Immutable)) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let bytes = bytes.as_bytes();
    block[..bytes.len()].copy_from_slice(bytes);
    block
}

fn checksum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `fields` one after another, and their checksum.
    fn sealed(fields: &[&[u8]]) -> Vec<u8> {
        let mut bytes = fields.concat();
        bytes.extend(XxHash3_64::oneshot(&bytes).to_le_bytes());
        bytes
    }

    #[test]
    fn head_and_seal_are_these_bytes() {
        let u32s = |value: u32| value.to_le_bytes();
        let u64s = |value: u64| value.to_le_bytes();
        let (offer, state) = ([1, 2, 3], [4, 5]);
        let head = Head::new(Layout { slots: [0x10_0000, 0x20_0000], state: 0x30_0000 }, &offer);
        let offer_checksum = u64s(XxHash3_64::oneshot(&offer));
        let places = [0x10_0000, 0x20_0000, 0x30_0000].map(u64s).concat();
        let expected = sealed(&[b"TDMKFILE", &u32s(2), &u32s(3), &offer_checksum, &places]);
        assert_eq!(block(&head)[..56], expected);

        let clock = Clock { wall_less_monotonic_ns: -2, boot_id: [7; 16] };
        let seal = Seal::new(&head, &state, [8, 9], clock);
        let state_checksum = u64s(XxHash3_64::oneshot(&state));
        let clock = [&u64s(u64::MAX - 1)[..], &[7; 16]].concat();
        let (head_checksum, digests) = (&expected[48..], [8, 9].map(u64s).concat());
        let fields: [&[u8]; 8] =
            [b"TDMKSEAL", &u32s(2), &u32s(0), head_checksum, &u64s(2), &state_checksum, &digests, &clock];
        assert_eq!(block(&seal)[..88], sealed(&fields));
        assert!(is_zero(&block(&seal)[88..]));
    }

    #[test]
    fn a_seal_belongs_to_its_head() {
        let clock = Clock { wall_less_monotonic_ns: 0, boot_id: [0; 16] };
        let head = |offer: &[u8]| Head::new(Layout { slots: [0, 1], state: 2 }, offer);
        let seal = block(&Seal::new(&head(b"one"), &[], [0; 2], clock));
        assert!(matches!(Seal::decode(&seal, &head(b"one")), Ok(Some(_))));
        assert!(matches!(Seal::decode(&seal, &head(b"two")), Err(Wrong::Damaged)));
        assert!(matches!(Seal::decode(&[0; BLOCK], &head(b"two")), Ok(None)));
    }
}
