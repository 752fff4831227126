//! What the firmware sends on its virtual link: one [`StepPacket`] a step and vCPU, where the boot block's [`GuestOutput`] asks for
//! them.
//!
//! The host that passes packets on does not look into them. Two guests that run the same plan send the same packets as long as
//! their memory is the same; whether the counter is mixed in decides how long they can.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What the guest sends on its virtual link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuestOutput {
    /// Nothing.
    #[default]
    Off,
    /// A packet a step and vCPU, which follows from the plan and from memory alone.
    Steps,
    /// As `Steps`, with the counter in units of a [`DRIFTS_PER_SECOND`]th of a second: two guests differ now and then.
    Drift,
    /// As `Steps`, with the counter: two guests differ at once.
    Counter,
}

/// Units of [`GuestOutput::Drift`] in a second.
pub const DRIFTS_PER_SECOND: u64 = 4;

impl GuestOutput {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Off, Self::Steps, Self::Drift, Self::Counter];

    /// Its number in the boot block.
    pub const fn number(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::Steps => 1,
            Self::Drift => 2,
            Self::Counter => 3,
        }
    }

    /// The one numbered `number`.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|output| output.number() == number)
    }

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Steps => "steps",
            Self::Drift => "drift",
            Self::Counter => "counter",
        }
    }

    /// What a packet carries of a counter that runs at `frequency_hz` and stands at `now`.
    pub const fn clock(self, now: u64, frequency_hz: u64) -> u64 {
        let unit = frequency_hz / DRIFTS_PER_SECOND;
        match self {
            Self::Off | Self::Steps => 0,
            Self::Drift if unit > 0 => now / unit,
            Self::Drift | Self::Counter => now,
        }
    }
}

/// A packet as bytes: little-endian, no padding, 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct StepPacket {
    /// The step that has just been executed.
    pub step: U64,
    /// Digest of what the step wrote, as read back from memory.
    pub digest: U64,
    /// [`GuestOutput::clock`].
    pub clock: U64,
    /// Which vCPU sends it.
    pub vcpu: U32,
    /// Zero.
    pub reserved: U32,
}

const _: () = assert!(size_of::<StepPacket>() == 32);

impl StepPacket {
    /// The packet that is `bytes`; `None` where they are none of its size.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok()
    }
}

/// Digest of a step's writes: order, places and words all count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepDigest(u64);

impl StepDigest {
    /// Of no write yet; the offset basis of FNV-1a.
    pub const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds a word. FNV-1a's prime over whole words, and a rotation so that their upper bits count everywhere: cheap in a guest
    /// that is emulated, and nobody who would forge it is about.
    pub const fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    }

    /// The digest.
    pub const fn value(self) -> u64 {
        self.0
    }
}

impl Default for StepDigest {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_known_by_number_and_differ_by_the_clock_alone() {
        for output in GuestOutput::ALL {
            assert_eq!(GuestOutput::from_number(output.number()), Some(output));
        }
        assert_eq!(GuestOutput::from_number(4), None);
        let clocks = GuestOutput::ALL.map(|output| output.clock(1_700, 1_000));
        assert_eq!(clocks, [0, 0, 6, 1_700]);
        assert_eq!(GuestOutput::Drift.clock(7, 1), 7, "a counter slower than the unit");
    }

    #[test]
    fn a_packet_has_golden_bytes() {
        let packet =
            StepPacket { step: 1.into(), digest: 2.into(), clock: 3.into(), vcpu: 4.into(), reserved: 0.into() };
        let words = [1_u64, 2, 3, 4].map(u64::to_le_bytes);
        assert_eq!(packet.as_bytes(), words.as_flattened());
        assert_eq!(StepPacket::read(packet.as_bytes()), Some(packet));
        assert_eq!(StepPacket::read(&[0; 33]), None);
    }

    #[test]
    fn a_digest_knows_order_and_every_bit() {
        let digest = |words: &[u64]| {
            let mut digest = StepDigest::new();
            words.iter().for_each(|word| digest.add(*word));
            digest.value()
        };
        assert_ne!(digest(&[1, 2]), digest(&[2, 1]));
        assert_ne!(digest(&[]), digest(&[0]));
        for bit in 0..64 {
            assert_ne!(digest(&[1 << bit, 0]), digest(&[0, 0]), "bit {bit}");
        }
    }
}
