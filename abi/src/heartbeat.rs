//! The heartbeat: when a vCPU beat, by its own counters, and the gaps between its beats.
//!
//! A vCPU beats in its timer's interrupt, and where [`crate::boot::FLAG_SPIN`] asks for it at every look at the counter while
//! it sleeps. Each beat reads the virtual counter and the cycle counter and is filed in the vCPU's [`HeartbeatBlock`] in guest
//! RAM, which the host reads while the guest runs. A gap between two beats that is longer than the period is time in which the
//! vCPU executed nothing, or had its interrupts masked.
//!
//! The guest writes under a sequence number (odd while it writes), so a reader knows what is torn. The host writes two words
//! of its own, [`HeartbeatBlock::mark`] and [`HeartbeatBlock::reset`], which the guest looks at in each beat.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Buckets of the histogram: bucket `b` counts gaps of `[2^b, 2^(b+1))` ns; the first also those of 0 ns.
pub const BUCKETS: usize = 64;
/// How many of the largest gaps are kept.
pub const LARGEST: usize = 16;
/// [`HeartbeatBlock::flags`]: there is a cycle counter, and it counts.
pub const FLAG_CYCLES: u64 = 1 << 0;

/// A gap as bytes: between two beats that follow one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct GapRecord {
    /// The counter at the beat before it, in ticks.
    pub start: U64,
    /// The counter at the beat after it, in ticks; zero in a record that is not in use.
    pub end: U64,
    /// Cycles counted in between; zero without a cycle counter.
    pub cycles: U64,
    /// In a list of the largest: number of the beat after it. In [`HeartbeatBlock::marked`]: the mark it was filed under.
    pub number: U64,
}

/// One vCPU's heartbeat as bytes: little-endian, no padding, 1152 bytes, 64-byte aligned in guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct HeartbeatBlock {
    /// Odd while the guest writes. The first word, at offset 0.
    pub sequence: U64,
    /// The counter at the last beat, in ticks.
    pub last: U64,
    /// The cycle counter at the last beat; zero without one.
    pub cycles: U64,
    /// Number of beats so far.
    pub beats: U64,
    /// The counter's frequency in Hz.
    pub frequency_hz: U64,
    /// `FLAG_…` bits.
    pub flags: U64,
    /// Written by the host while the vCPU does not run: another number than before. The gap in which it changed is filed in
    /// `marked`, however short it is.
    pub mark: U64,
    /// Written by the host at any time: another number than before starts the list of the largest gaps anew.
    pub reset: U64,
    /// The gap in which `mark` last changed.
    pub marked: GapRecord,
    /// The `reset` that `largest` counts from.
    pub reset_seen: U64,
    /// Zero.
    pub reserved: [U64; 3],
    /// Number of gaps by the logarithm of their length in ns.
    pub histogram: [U64; BUCKETS],
    /// The largest gaps, in no order.
    pub largest: [GapRecord; LARGEST],
}

const _: () = assert!(size_of::<GapRecord>() == 32 && size_of::<HeartbeatBlock>() == 1152);
/// Alignment of a [`HeartbeatBlock`] in guest RAM.
pub const HEARTBEAT_ALIGN: u64 = 64;
/// Offset of [`HeartbeatBlock::mark`].
pub const HEARTBEAT_MARK: u64 = 48;
/// Offset of [`HeartbeatBlock::reset`].
pub const HEARTBEAT_RESET: u64 = 56;

/// The bucket of a gap of `ns`.
pub const fn bucket(ns: u64) -> usize {
    (ns | 1).ilog2() as usize
}

/// Counter ticks as nanoseconds, rounded down; `u64::MAX` past that. A frequency of zero counts as 1 Hz.
pub const fn ticks_to_ns(ticks: u64, frequency_hz: u64) -> u64 {
    let frequency = if frequency_hz == 0 { 1 } else { frequency_hz };
    let ns = ticks as u128 * 1_000_000_000 / frequency as u128;
    if ns > u64::MAX as u128 { u64::MAX } else { ns as u64 }
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn block_layout_is_golden() {
        let mut block = HeartbeatBlock::new_zeroed();
        block.sequence = 0x1122.into();
        block.marked.number = 7.into();
        block.histogram[0] = 1.into();
        block.largest[15].end = 0x99.into();
        let bytes = block.as_bytes();
        assert_eq!(bytes[..8], [0x22, 0x11, 0, 0, 0, 0, 0, 0]);
        assert_eq!((bytes[88], bytes[128], bytes[640 + 15 * 32 + 8]), (7, 1, 0x99));
        assert_eq!(offset_of!(HeartbeatBlock, mark) as u64, HEARTBEAT_MARK);
        assert_eq!(offset_of!(HeartbeatBlock, reset) as u64, HEARTBEAT_RESET);
    }

    #[test]
    fn buckets_are_powers_of_two_of_nanoseconds() {
        assert_eq!([0, 1, 2, 3, 4, 1023, 1024, u64::MAX].map(bucket), [0, 0, 1, 1, 2, 9, 10, 63]);
        assert_eq!(ticks_to_ns(625, 62_500_000), 10_000);
        assert_eq!(ticks_to_ns(u64::MAX, 1), u64::MAX);
        assert_eq!(ticks_to_ns(3, 0), 3_000_000_000);
    }
}
