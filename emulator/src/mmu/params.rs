//! What TCR_EL1 and the TTBRs say about the walk of one address: [`Params`] (DDI 0487 D8.2, D24.2.159).

use super::{PA_BITS, Regime};
use crate::fault::Status;

/// A granule, and with it the shape of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GranuleShift {
    Four,
    Sixteen,
    SixtyFour,
}

impl GranuleShift {
    /// log2 of its bytes.
    pub(super) const fn bits(self) -> u32 {
        match self {
            Self::Four => 12,
            Self::Sixteen => 14,
            Self::SixtyFour => 16,
        }
    }

    /// The least significant address bit that a table at `level` resolves: log2 of what one of its entries maps.
    pub(super) const fn index_shift(self, level: u8) -> u32 {
        let stride = self.bits() - 3;
        self.bits() + stride * (3 - level as u32)
    }

    /// Whether a block descriptor is legal at `level` (D8.3.1; without FEAT_LPA and FEAT_LPA2).
    pub(super) const fn has_block(self, level: u8) -> bool {
        matches!((self, level), (Self::Four, 1 | 2) | (Self::Sixteen | Self::SixtyFour, 2))
    }
}

/// The walk of one address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Params {
    pub(super) granule: GranuleShift,
    /// 64 - TnSZ.
    pub(super) input_bits: u32,
    /// Level of the first table.
    pub(super) start_level: u8,
    /// Its physical address.
    pub(super) base: u64,
    /// Bits of physical address in use: the smaller of TCR_EL1.IPS and [`PA_BITS`].
    pub(super) output_bits: u32,
    /// TCR_EL1.HPDn.
    pub(super) ignore_table_attributes: bool,
    /// TCR_EL1.HA.
    pub(super) hardware_access_flag: bool,
    /// TCR_EL1.HD with HA.
    pub(super) hardware_dirty: bool,
}

/// Whether hardware manages dirty state: TCR_EL1.HD counts only with HA.
pub(super) const fn hardware_dirty(tcr: u64) -> bool {
    tcr >> 39 & 0b11 == 0b11
}

impl Params {
    /// Decodes the registers for `va`, and makes the checks that come before the first descriptor.
    pub(super) fn of(regime: &Regime, va: u64) -> Result<Self, Status> {
        let tcr = regime.tcr;
        let upper = va >> 55 & 1 != 0;
        let half = usize::from(upper);
        let no_translation = Status::Translation { level: 0 };
        let granule = match (upper, tcr >> if upper { 30 } else { 14 } & 3) {
            (false, 0b01) | (true, 0b11) => GranuleShift::SixtyFour,
            (false, 0b10) | (true, 0b01) => GranuleShift::Sixteen,
            // A reserved encoding counts as an implementation-defined choice of the implemented ones.
            _ => GranuleShift::Four,
        };
        let size = (tcr >> (16 * half) & 0x3f) as u32;
        // Without FEAT_LVA and FEAT_TTST. Out of range is CONSTRAINED UNPREDICTABLE; a fault is one permitted outcome.
        if !(16..=39).contains(&size) {
            return Err(no_translation);
        }
        let input_bits = 64 - size;
        // Every bit from the input size up to the top must equal bit 55, which chose the table.
        let top = if regime.top_byte_ignored(va) { 56 } else { 64 };
        let above = (va << (64 - top)) >> (64 - top) >> input_bits;
        let expected = if upper { (1u64 << (top - input_bits)) - 1 } else { 0 };
        let disabled = tcr >> (7 + 16 * half) & 1 != 0;
        if above != expected || disabled {
            return Err(no_translation);
        }
        let stride = granule.bits() - 3;
        let levels = (input_bits - granule.bits()).div_ceil(stride);
        let start_level = (4 - levels) as u8;
        let output_bits = match tcr >> 32 & 7 {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            _ => PA_BITS,
        };
        // The first table is aligned to its own size; TTBR bits below that (CnP among them) are no address.
        let table_bits = input_bits - granule.index_shift(start_level) + 3;
        let base = regime.ttbr[half] & 0x0000_ffff_ffff_fffe & !((1 << table_bits) - 1);
        if base >> output_bits != 0 {
            return Err(Status::AddressSize { level: 0 });
        }
        Ok(Self {
            granule,
            input_bits,
            start_level,
            base,
            output_bits,
            ignore_table_attributes: tcr >> (41 + half) & 1 != 0,
            hardware_access_flag: tcr >> 39 & 1 != 0,
            hardware_dirty: hardware_dirty(tcr),
        })
    }

    /// The bits of the address that the tables resolve.
    pub(super) const fn input_mask(&self) -> u64 {
        (1 << self.input_bits) - 1
    }
}
