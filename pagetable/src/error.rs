//! Why a mapping is refused, in every format. Neighbours: the three mappers.

use abi::Gpa;

use crate::geometry::Va;

/// Why a mapping was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The range is empty.
    #[error("mapping at {va} is empty")]
    Empty {
        /// Start of the range.
        va: Va,
    },
    /// An address or the length is no multiple of what it must be.
    #[error("mapping of {va} to {gpa}, {len_bytes:#x} bytes, is not aligned to {align_bytes:#x}")]
    Misaligned {
        /// Start of the virtual range.
        va: Va,
        /// Start of the physical range.
        gpa: Gpa,
        /// Length.
        len_bytes: u64,
        /// What all three must be multiples of.
        align_bytes: u64,
    },
    /// The range is not inside one half of the virtual address space (ARMv7: inside all of it).
    #[error("{len_bytes:#x} bytes at {va} lie outside the {bits}-bit virtual address space")]
    OutsideVirtual {
        /// Start of the range.
        va: Va,
        /// Length.
        len_bytes: u64,
        /// Size of each half (ARMv7: of all).
        bits: u32,
    },
    /// The physical range ends above what a descriptor of the format holds.
    #[error("{len_bytes:#x} bytes at {gpa} reach past the {bits}-bit physical address space")]
    OutsidePhysical {
        /// Start of the range.
        gpa: Gpa,
        /// Length.
        len_bytes: u64,
        /// Size of the physical address space.
        bits: u32,
    },
    /// The format has no hardware-managed dirty state, which [`crate::Write::Tracked`] asks for.
    #[error("the mapping at {va} is to track writes, for which ARMv7 has no descriptor")]
    NoDirtyState {
        /// Start of the range.
        va: Va,
    },
    /// Something is mapped there already.
    #[error("{va} is mapped already")]
    Overlap {
        /// First address of the range that is mapped.
        va: Va,
    },
    /// There is no more memory for tables. What was mapped below `va` stays.
    #[error("out of table memory at {va}")]
    OutOfTables {
        /// First address that could not be mapped.
        va: Va,
    },
    /// The table memory gave a table that is not aligned to its size or lies above what a descriptor holds.
    #[error("table memory gave a table at {gpa}, which no descriptor can hold")]
    BadTable {
        /// The table's address.
        gpa: Gpa,
    },
}
