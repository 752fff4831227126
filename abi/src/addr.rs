//! Address and page-size newtypes.
//!
//! [`Gpa`] has no arithmetic operators: an address moves only by [`Gpa::checked_add`], so a guest's claim that wraps
//! is a `None`, never a small address. [`GuestRange`] is half-open and cannot wrap by construction. [`Granule`] with
//! [`VaBits`] name AArch64's seven translation regimes; [`crate::Tables`] adds ARMv7's.

use core::fmt;

/// A guest physical address in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gpa(u64);

impl Gpa {
    /// The address `raw`, in bytes.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The address as a raw number, for register, ioctl and byte edges.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// This address moved up by `bytes`, or `None` where it would wrap.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }

    /// Distance in bytes from `base` up to this address, or `None` where this address is below `base`.
    pub const fn checked_offset_from(self, base: Self) -> Option<u64> {
        self.0.checked_sub(base.0)
    }

    /// Whether the address is a multiple of `align_bytes`.
    ///
    /// # Panics
    /// If `align_bytes` is not a power of two.
    pub const fn is_aligned(self, align_bytes: u64) -> bool {
        assert!(align_bytes.is_power_of_two(), "an alignment is a power of two");
        self.0 & (align_bytes - 1) == 0
    }

    /// The first multiple of `align_bytes` at or above this address, or `None` where it would wrap.
    ///
    /// # Panics
    /// If `align_bytes` is not a power of two.
    pub const fn checked_align_up(self, align_bytes: u64) -> Option<Self> {
        assert!(align_bytes.is_power_of_two(), "an alignment is a power of two");
        match self.0.checked_add(align_bytes - 1) {
            Some(raw) => Some(Self(raw & !(align_bytes - 1))),
            None => None,
        }
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpa({:#x})", self.0)
    }
}

/// A half-open range of guest physical addresses `[start, start + len_bytes)` that does not wrap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct GuestRange {
    start: Gpa,
    len_bytes: u64,
}

impl GuestRange {
    /// The range of `len_bytes` from `start`, or `None` where its end would wrap past 2^64.
    pub const fn new(start: Gpa, len_bytes: u64) -> Option<Self> {
        match start.checked_add(len_bytes) {
            Some(_) => Some(Self { start, len_bytes }),
            None => None,
        }
    }

    /// First address of the range.
    pub const fn start(self) -> Gpa {
        self.start
    }

    /// Length in bytes.
    pub const fn len_bytes(self) -> u64 {
        self.len_bytes
    }

    /// First address past the range.
    pub const fn end(self) -> Gpa {
        Gpa(self.start.0 + self.len_bytes)
    }

    /// Whether the range holds no byte.
    pub const fn is_empty(self) -> bool {
        self.len_bytes == 0
    }

    /// Whether `gpa` lies in the range.
    pub const fn contains(self, gpa: Gpa) -> bool {
        gpa.0 >= self.start.0 && gpa.0 - self.start.0 < self.len_bytes
    }

    /// Whether every byte of `other` lies in this range.
    pub const fn contains_range(self, other: Self) -> bool {
        other.start.0 >= self.start.0 && other.end().0 <= self.end().0
    }

    /// Whether the ranges share a byte. Empty ranges share none.
    pub const fn overlaps(self, other: Self) -> bool {
        !self.is_empty() && !other.is_empty() && self.start.0 < other.end().0 && other.start.0 < self.end().0
    }
}

impl fmt::Display for GuestRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end())
    }
}

/// The guest's stage-1 page size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Granule {
    /// 4 KiB pages.
    K4,
    /// 16 KiB pages.
    K16,
    /// 64 KiB pages.
    K64,
}

impl Granule {
    /// All granules, smallest first.
    pub const ALL: [Self; 3] = [Self::K4, Self::K16, Self::K64];

    /// log2 of the page size in bytes: 12, 14 or 16.
    pub const fn shift(self) -> u32 {
        match self {
            Self::K4 => 12,
            Self::K16 => 14,
            Self::K64 => 16,
        }
    }

    /// The page size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// The granule with `2^shift` byte pages, if there is one.
    pub const fn from_shift(shift: u32) -> Option<Self> {
        match shift {
            12 => Some(Self::K4),
            14 => Some(Self::K16),
            16 => Some(Self::K64),
            _ => None,
        }
    }
}

impl fmt::Display for Granule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}k", self.bytes() / 1024)
    }
}

/// A size of virtual address space that goes with a [`Granule`] (DDI 0487 D8.2: without FEAT_LPA2 and FEAT_LVA).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct VaBits {
    granule: Granule,
    bits: u32,
}

impl VaBits {
    /// The seven supported pairs: 4K with 39 and 48 bits, 16K with 36, 47 and 48, 64K with 42 and 48.
    pub const ALL: [Self; 7] = [
        Self { granule: Granule::K4, bits: 39 },
        Self { granule: Granule::K4, bits: 48 },
        Self { granule: Granule::K16, bits: 36 },
        Self { granule: Granule::K16, bits: 47 },
        Self { granule: Granule::K16, bits: 48 },
        Self { granule: Granule::K64, bits: 42 },
        Self { granule: Granule::K64, bits: 48 },
    ];

    /// The pair of `granule` and `bits`, if it is one of [`VaBits::ALL`].
    pub fn new(granule: Granule, bits: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|pair| pair.granule == granule && pair.bits == bits)
    }

    /// The granule of the pair.
    pub const fn granule(self) -> Granule {
        self.granule
    }

    /// Number of virtual address bits.
    pub const fn bits(self) -> u32 {
        self.bits
    }
}

impl fmt::Display for VaBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.granule, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_wraps_cannot_be_made() {
        assert!(GuestRange::new(Gpa::new(u64::MAX), 1).is_none());
        assert!(GuestRange::new(Gpa::new(u64::MAX - 1), 1).is_some());
    }

    #[test]
    fn ranges_are_half_open() {
        let range = GuestRange::new(Gpa::new(0x1000), 0x1000).unwrap();
        assert!(range.contains(Gpa::new(0x1fff)));
        assert!(!range.contains(Gpa::new(0x2000)));
        let next = GuestRange::new(Gpa::new(0x2000), 0x1000).unwrap();
        assert!(!range.overlaps(next));
        let empty = GuestRange::new(Gpa::new(0x1800), 0).unwrap();
        assert!(!range.overlaps(empty));
    }

    #[test]
    fn aligning_up_near_the_top_does_not_wrap() {
        assert_eq!(Gpa::new(u64::MAX).checked_align_up(4096), None);
        assert_eq!(Gpa::new(1).checked_align_up(4096), Some(Gpa::new(4096)));
    }
}
