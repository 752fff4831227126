//! The boot block: what the host tells the guest before its first instruction.
//!
//! It is the value of the property `tidemark,boot-block` of the devicetree's `/chosen` node, so that a guest with its
//! MMU still off reads it like the rest of the devicetree, with no hypercall and no cache maintenance.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::addr::{Gpa, GuestRange};
use crate::map;
use crate::packet::GuestOutput;
use crate::points;
use crate::tables::Tables;

/// Name of the property of `/chosen` that holds the block.
pub const BOOT_BLOCK_PROPERTY: &str = "tidemark,boot-block";
/// `compatible` of the doorbell's devicetree node.
pub const DOORBELL_COMPATIBLE: &str = "tidemark,doorbell-1";
/// First eight bytes of the block.
pub const BOOT_MAGIC: u64 = u64::from_le_bytes(*b"TDMKBOOT");
/// Version of the block's layout.
pub const BOOT_VERSION: u32 = 5;
/// Most parameters a workload has on the wire.
pub const WORKLOAD_PARAMS: usize = 8;

/// Hypercalls go through HVC instead of the doorbell.
pub const FLAG_HVC: u32 = 1 << 0;
/// The region is mapped with the largest blocks that fit instead of pages.
pub const FLAG_REGION_BLOCKS: u32 = 1 << 1;
/// Test hook: vCPU 0 takes an unexpected exception after it has booted.
pub const FLAG_PLANT_EXCEPTION: u32 = 1 << 2;
/// A sleeping vCPU polls the counter, and every look is a beat. Only with a heartbeat period.
pub const FLAG_SPIN: u32 = 1 << 3;
/// vCPU 0 prints a clock line every second between its steps and while it sleeps.
pub const FLAG_CLOCK_LINE: u32 = 1 << 4;
/// There is no host to ask: every vCPU runs the plan's steps from step 0 on without end.
pub const FLAG_STANDALONE: u32 = 1 << 5;
/// The guest is a kernel that reads no boot block: the block only tells one host of the machine that another one has.
pub const FLAG_KERNEL: u32 = 1 << 16;
const KNOWN_FLAGS: u32 =
    FLAG_HVC | FLAG_REGION_BLOCKS | FLAG_PLANT_EXCEPTION | FLAG_SPIN | FLAG_CLOCK_LINE | FLAG_STANDALONE | FLAG_KERNEL;

/// Shortest heartbeat period, in microseconds: with a shorter one a guest does little else than beat.
pub const HEARTBEAT_MIN_US: u32 = 20;
/// Longest heartbeat period, in microseconds: with a longer one no gap would tell of anything.
pub const HEARTBEAT_MAX_US: u32 = 1_000_000;

/// The block as bytes: little-endian, no padding, 160 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BootBlock {
    magic: U64,
    version: U32,
    size_bytes: U32,
    granule_shift: U32,
    va_bits: U32,
    vcpus: U32,
    flags: U32,
    region_gpa: U64,
    region_size: U64,
    ram_gpa: U64,
    ram_size: U64,
    seed: U64,
    pattern: U32,
    tables: U32,
    params: [U64; WORKLOAD_PARAMS],
    heartbeat_us: U32,
    output: U32,
    points: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<BootBlock>() == 160);

/// The block's meaning, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootInfo {
    /// Translation tables that the guest builds: their format, granule and virtual address size. They name the guest's
    /// architecture, too.
    pub tables: Tables,
    /// Number of vCPUs, 1 to [`map::MAX_VCPUS`].
    pub vcpus: u32,
    /// Any of the `FLAG_…` bits.
    pub flags: u32,
    /// The shared region.
    pub region: GuestRange,
    /// RAM.
    pub ram: GuestRange,
    /// Seed of the plan.
    pub seed: u64,
    /// The workload's number, as `workload::Pattern` encodes it.
    pub pattern: u32,
    /// The workload's parameters, in the pattern's order; unused ones are zero.
    pub params: [u64; WORKLOAD_PARAMS],
    /// Period of the heartbeat on every vCPU in microseconds, [`HEARTBEAT_MIN_US`] to [`HEARTBEAT_MAX_US`]; zero for none.
    pub heartbeat_us: u32,
    /// What the guest sends on its virtual link. A guest without a host has none.
    pub output: GuestOutput,
    /// Bits of the points ([`crate::points::Point::bit`]) at which vCPU 0 asks to be moved. A guest without a host has none.
    pub points: u32,
}

/// Why a boot block was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootBlockError {
    /// Fewer bytes than the block has.
    Short {
        /// Bytes there were.
        got_bytes: usize,
    },
    /// The first eight bytes are not [`BOOT_MAGIC`].
    Magic(u64),
    /// A version this code does not know.
    Version(u32),
    /// `size_bytes` disagrees with the version.
    Size(u32),
    /// No such tables with that granule and VA size.
    Translation {
        /// Number of the tables asked for.
        tables: u32,
        /// log2 of the granule asked for.
        granule_shift: u32,
        /// VA bits asked for.
        va_bits: u32,
    },
    /// Zero or too many vCPUs.
    Vcpus(u32),
    /// Unknown flag bits, or [`FLAG_SPIN`] without a heartbeat.
    Flags(u32),
    /// A range that wraps, or reaches past the virtual addresses: the guest maps memory at its physical address.
    Range(Gpa),
    /// A heartbeat that is too fast or too slow.
    Heartbeat(u32),
    /// No such output, or one of a guest that is [`FLAG_STANDALONE`].
    Output(u32),
    /// No such points, or any of a guest that is [`FLAG_STANDALONE`].
    Points(u32),
    /// A reserved field is not zero.
    Reserved,
}

impl BootInfo {
    /// The block's bytes.
    pub fn encode(&self) -> BootBlock {
        BootBlock {
            magic: BOOT_MAGIC.into(),
            version: BOOT_VERSION.into(),
            size_bytes: (size_of::<BootBlock>() as u32).into(),
            granule_shift: self.tables.granule().shift().into(),
            va_bits: self.tables.va_bits().into(),
            vcpus: self.vcpus.into(),
            flags: self.flags.into(),
            region_gpa: self.region.start().raw().into(),
            region_size: self.region.len_bytes().into(),
            ram_gpa: self.ram.start().raw().into(),
            ram_size: self.ram.len_bytes().into(),
            seed: self.seed.into(),
            pattern: self.pattern.into(),
            tables: self.tables.number().into(),
            params: self.params.map(U64::from),
            heartbeat_us: self.heartbeat_us.into(),
            output: self.output.number().into(),
            points: self.points.into(),
            reserved: 0.into(),
        }
    }

    /// Checks and reads a block from the property's bytes.
    ///
    /// # Errors
    /// Every field that is out of range is its own [`BootBlockError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BootBlockError> {
        let (block, rest) =
            BootBlock::read_from_prefix(bytes).map_err(|_| BootBlockError::Short { got_bytes: bytes.len() })?;
        if block.magic.get() != BOOT_MAGIC {
            return Err(BootBlockError::Magic(block.magic.get()));
        }
        if block.version.get() != BOOT_VERSION {
            return Err(BootBlockError::Version(block.version.get()));
        }
        if block.size_bytes.get() as usize != size_of::<BootBlock>() || !rest.is_empty() {
            return Err(BootBlockError::Size(block.size_bytes.get()));
        }
        let (number, granule_shift, va_bits) = (block.tables.get(), block.granule_shift.get(), block.va_bits.get());
        let tables = Tables::from_wire(number, granule_shift, va_bits).ok_or(BootBlockError::Translation {
            tables: number,
            granule_shift,
            va_bits,
        })?;
        let vcpus = block.vcpus.get();
        if vcpus == 0 || vcpus as usize > map::MAX_VCPUS {
            return Err(BootBlockError::Vcpus(vcpus));
        }
        let flags = block.flags.get();
        let heartbeat_us = block.heartbeat_us.get();
        if flags & !KNOWN_FLAGS != 0 || (flags & FLAG_SPIN != 0 && heartbeat_us == 0) {
            return Err(BootBlockError::Flags(flags));
        }
        if heartbeat_us != 0 && !(HEARTBEAT_MIN_US..=HEARTBEAT_MAX_US).contains(&heartbeat_us) {
            return Err(BootBlockError::Heartbeat(heartbeat_us));
        }
        let refused = BootBlockError::Output(block.output.get());
        let output = GuestOutput::from_number(block.output.get()).ok_or(refused)?;
        if output != GuestOutput::Off && flags & FLAG_STANDALONE != 0 {
            return Err(refused);
        }
        let points = block.points.get();
        if points::from_mask(points).is_none() || (points != 0 && flags & FLAG_STANDALONE != 0) {
            return Err(BootBlockError::Points(points));
        }
        if block.reserved != U32::ZERO {
            return Err(BootBlockError::Reserved);
        }
        let range = |gpa: U64, size: U64| {
            let start = Gpa::new(gpa.get());
            GuestRange::new(start, size.get())
                .filter(|range| range.end().raw() <= 1 << va_bits)
                .ok_or(BootBlockError::Range(start))
        };
        Ok(Self {
            tables,
            vcpus,
            flags,
            region: range(block.region_gpa, block.region_size)?,
            ram: range(block.ram_gpa, block.ram_size)?,
            seed: block.seed.get(),
            pattern: block.pattern.get(),
            params: block.params.map(U64::get),
            heartbeat_us,
            output,
            points,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Granule, ShortPages, VaBits};

    fn sample() -> BootInfo {
        BootInfo {
            tables: Tables::V8(VaBits::new(Granule::K16, 47).unwrap()),
            vcpus: 4,
            flags: FLAG_HVC,
            region: GuestRange::new(map::REGION_BASE, map::REGION_SIZE).unwrap(),
            ram: GuestRange::new(map::RAM_BASE, 256 << 20).unwrap(),
            seed: 0x0123_4567_89ab_cdef,
            pattern: 3,
            params: [1, 2, 3, 4, 5, 6, 7, 8],
            heartbeat_us: 1000,
            output: GuestOutput::Drift,
            points: 1 << 1 | 1 << 6,
        }
    }

    #[test]
    fn bytes_are_golden() {
        let block = sample().encode();
        let bytes = block.as_bytes();
        assert_eq!(&bytes[..8], b"TDMKBOOT");
        assert_eq!(&bytes[8..32], [5, 0, 0, 0, 160, 0, 0, 0, 14, 0, 0, 0, 47, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(&bytes[32..40], [0, 0, 0, 0x20, 0, 0, 0, 0]);
        assert_eq!(&bytes[64..72], [0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01]);
        assert_eq!(&bytes[72..80], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[144..], [0xe8, 3, 0, 0, 2, 0, 0, 0, 0x42, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(BootInfo::decode(bytes), Ok(sample()));
    }

    #[test]
    fn bytes_of_an_armv7_guest_are_golden() {
        for (tables, granule_shift, number) in [
            (Tables::Short { pages: ShortPages::Small }, 12, 1),
            (Tables::Short { pages: ShortPages::Large }, 16, 1),
            (Tables::Lpae, 12, 2),
        ] {
            let info = BootInfo { tables, ..sample() };
            let block = info.encode();
            let bytes = block.as_bytes();
            assert_eq!(&bytes[16..24], [granule_shift, 0, 0, 0, 32, 0, 0, 0]);
            assert_eq!(&bytes[76..80], [number, 0, 0, 0]);
            assert_eq!(BootInfo::decode(bytes), Ok(info));
        }
    }

    #[test]
    fn spinning_takes_a_heartbeat() {
        let with = |heartbeat_us| {
            let info = BootInfo { flags: FLAG_SPIN | FLAG_CLOCK_LINE, heartbeat_us, ..sample() };
            BootInfo::decode(info.encode().as_bytes())
        };
        assert_eq!(with(100).map(|info| info.heartbeat_us), Ok(100));
        assert_eq!(with(19), Err(BootBlockError::Heartbeat(19)));
        assert_eq!(with(0), Err(BootBlockError::Flags(FLAG_SPIN | FLAG_CLOCK_LINE)));
    }

    #[test]
    fn memory_past_the_virtual_addresses_is_refused() {
        let start = Gpa::new(0xffff_0000);
        let with = |len_bytes| {
            let info =
                BootInfo { tables: Tables::Lpae, region: GuestRange::new(start, len_bytes).unwrap(), ..sample() };
            BootInfo::decode(info.encode().as_bytes()).map(|info| info.region.len_bytes())
        };
        assert_eq!(with(0x1_0000), Ok(0x1_0000));
        assert_eq!(with(0x1_1000), Err(BootBlockError::Range(start)));
    }

    #[test]
    fn every_bad_field_is_named() {
        let decode_with = |at: usize, value: u8| {
            let block = sample().encode();
            let mut bytes = [0; size_of::<BootBlock>()];
            bytes.copy_from_slice(block.as_bytes());
            bytes[at] = value;
            BootInfo::decode(&bytes)
        };
        assert!(matches!(decode_with(0, 0), Err(BootBlockError::Magic(_))));
        assert_eq!(decode_with(8, 9), Err(BootBlockError::Version(9)));
        assert_eq!(decode_with(12, 1), Err(BootBlockError::Size(1)));
        assert!(matches!(decode_with(20, 39), Err(BootBlockError::Translation { va_bits: 39, .. })));
        assert!(matches!(decode_with(76, 1), Err(BootBlockError::Translation { tables: 1, .. })));
        assert!(matches!(decode_with(76, 3), Err(BootBlockError::Translation { tables: 3, .. })));
        assert_eq!(decode_with(24, 9), Err(BootBlockError::Vcpus(9)));
        assert!(matches!(decode_with(31, 0x80), Err(BootBlockError::Flags(_))));
        assert_eq!(decode_with(147, 1), Err(BootBlockError::Heartbeat(0x0100_03e8)));
        assert_eq!(decode_with(148, 4), Err(BootBlockError::Output(4)));
        assert_eq!(decode_with(28, 1 << 5), Err(BootBlockError::Output(2)));
        assert_eq!(decode_with(152, 1), Err(BootBlockError::Points(1)));
        assert_eq!(decode_with(156, 1), Err(BootBlockError::Reserved));
        assert_eq!(decode_with(159, 1), Err(BootBlockError::Reserved));
        assert_eq!(BootInfo::decode(&[0; 10]), Err(BootBlockError::Short { got_bytes: 10 }));
    }
}
