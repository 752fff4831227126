//! The kinds of guest: its architecture and the format of its translation tables.
//!
//! [`Tables`] is what a boot block asks the guest to build, and names both: ARMv7's two formats, short descriptors and
//! LPAE, or one of VMSAv8-64's granules with a VA size ([`VaBits`]).

use core::fmt;

use crate::addr::{Granule, VaBits};

/// A guest's architecture.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Arch {
    /// 64-bit: AArch64 at EL1.
    Aarch64,
    /// 32-bit: ARMv7-A, on a host of ARMv8 as its AArch32 at EL1.
    Armv7,
}

impl Arch {
    /// The name on the command line and in the ledger.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aarch64 => "aarch64",
            Self::Armv7 => "armv7",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The pages of short-descriptor tables (DDI 0406 B3.5.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ShortPages {
    /// Small pages, 4 KiB.
    Small,
    /// Large pages, 64 KiB: sixteen equal second-level entries each.
    Large,
}

/// A format of translation tables, with its granule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Tables {
    /// VMSAv8-64 (DDI 0487 D8).
    V8(VaBits),
    /// ARMv7's short descriptors (DDI 0406 B3.5).
    Short {
        /// The page that memory is mapped in.
        pages: ShortPages,
    },
    /// ARMv7's long descriptors, the Large Physical Address Extension (DDI 0406 B3.6).
    Lpae,
}

impl Tables {
    /// ARMv7's formats.
    pub const ARMV7: [Self; 3] =
        [Self::Short { pages: ShortPages::Small }, Self::Short { pages: ShortPages::Large }, Self::Lpae];

    /// The format numbered `number` in the boot block, with this granule and number of VA bits.
    pub(crate) fn from_wire(number: u32, granule_shift: u32, va_bits: u32) -> Option<Self> {
        let granule = Granule::from_shift(granule_shift)?;
        match number {
            0 => VaBits::new(granule, va_bits).map(Self::V8),
            _ => Self::ARMV7
                .into_iter()
                .find(|tables| tables.number() == number && tables.granule() == granule && tables.va_bits() == va_bits),
        }
    }

    /// The format's number in the boot block.
    pub const fn number(self) -> u32 {
        match self {
            Self::V8(_) => 0,
            Self::Short { .. } => 1,
            Self::Lpae => 2,
        }
    }

    /// The architecture that has the format.
    pub const fn arch(self) -> Arch {
        match self {
            Self::V8(_) => Arch::Aarch64,
            Self::Short { .. } | Self::Lpae => Arch::Armv7,
        }
    }

    /// The page that memory is mapped in.
    pub const fn granule(self) -> Granule {
        match self {
            Self::V8(va) => va.granule(),
            Self::Short { pages: ShortPages::Large } => Granule::K64,
            Self::Short { pages: ShortPages::Small } | Self::Lpae => Granule::K4,
        }
    }

    /// Number of virtual address bits.
    pub const fn va_bits(self) -> u32 {
        match self {
            Self::V8(va) => va.bits(),
            Self::Short { .. } | Self::Lpae => 32,
        }
    }

    /// The format's name on the command line and in the ledger, without its granule.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V8(_) => "v8",
            Self::Short { .. } => "short",
            Self::Lpae => "lpae",
        }
    }
}

impl fmt::Display for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V8(va) => va.fmt(f),
            Self::Short { .. } | Self::Lpae => write!(f, "{}/{}", self.name(), self.granule()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn every_format_survives_the_wire() {
        for tables in VaBits::ALL.map(Tables::V8).into_iter().chain(Tables::ARMV7) {
            let found = Tables::from_wire(tables.number(), tables.granule().shift(), tables.va_bits());
            assert_eq!(found, Some(tables));
        }
        for (number, shift, bits) in [(0, 12, 32), (1, 14, 32), (1, 12, 39), (2, 16, 32), (3, 12, 32), (0, 13, 48)] {
            assert_eq!(Tables::from_wire(number, shift, bits), None);
        }
    }

    #[test]
    fn names_tell_formats_apart() {
        let names: Vec<_> = Tables::ARMV7.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["short/4k", "short/64k", "lpae/4k"]);
        assert_eq!(Tables::V8(VaBits::ALL[1]).to_string(), "4k/48");
    }
}
