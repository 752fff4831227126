//! AArch32's long-descriptor translation tables (DDI 0487 G5.5; DDI 0406C B3.6): how they differ from AArch64's of the 4K granule.
//!
//! The descriptors and the walk are AArch64's (`mmu::walk`). Here is what TTBCR says about it ([`params`]) and what permissions
//! mean ([`permissions`]): one XN for both levels, execution of what EL0 may write governed by SCTLR.UWXN, no hardware update of
//! access flag and dirty state.

use super::params::{GranuleShift, Params};
use super::{AP_EL0, AP_READ_ONLY, PXN, Permissions, Regime, SCTLR_UWXN, SCTLR_WXN, UXN};
use super::{TABLE_NO_EL0, TABLE_PXN, TABLE_READ_ONLY, TABLE_UXN, TableLimits};
use crate::fault::Status;

/// Bits of physical address in this format.
const PA_BITS: u32 = 40;
/// TTBCR.T2E: TTBCR2 counts.
const TTBCR_T2E: u64 = 1 << 6;

/// The walk of `va`. Which TTBR serves it: DDI 0487 G5.5.3, "Selecting between TTBR0 and TTBR1, VMSAv8-32 Long-descriptor
/// translation table format".
///
/// # Errors
/// A translation fault at level 1 for an address between the halves or in a disabled one.
pub(super) fn params(regime: &Regime, va: u64) -> Result<Params, Status> {
    let tcr = regime.tcr;
    let va = va as u32;
    let sizes = [(tcr & 7) as u32, (tcr >> 16 & 7) as u32];
    let zeros = sizes[0] == 0 || va >> (32 - sizes[0]) == 0;
    let ones = if sizes[1] == 0 { !zeros } else { !va >> (32 - sizes[1]) == 0 };
    let half = match (zeros, ones) {
        (_, true) => 1,
        (true, false) => 0,
        (false, false) => return Err(Status::Translation { level: 1 }),
    };
    // EPD0 is bit 7, EPD1 bit 23.
    if tcr >> (7 + 16 * half) & 1 != 0 {
        return Err(Status::Translation { level: 1 });
    }
    let granule = GranuleShift::Four;
    let input_bits = 32 - sizes[half];
    let start_level = if input_bits > granule.index_shift(1) { 1 } else { 2 };
    let table_bits = input_bits - granule.index_shift(start_level) + 3;
    Ok(Params {
        granule,
        input_bits,
        start_level,
        base: regime.ttbr[half] & 0x0000_00ff_ffff_ffff & !((1 << table_bits) - 1),
        output_bits: PA_BITS,
        // TTBCR2.HPDn, TCR_EL1's bits 41 and 42.
        ignore_table_attributes: tcr & TTBCR_T2E != 0 && tcr >> (41 + half) & 1 != 0,
        hardware_access_flag: false,
        hardware_dirty: false,
    })
}

/// Permissions of a leaf (DDI 0487 G5.6).
pub(super) fn permissions(regime: &Regime, descriptor: u64, limits: TableLimits, attr: u8) -> Permissions {
    let read_only = descriptor & AP_READ_ONLY != 0 || limits.bits & TABLE_READ_ONLY != 0;
    let el0 = descriptor & AP_EL0 != 0 && limits.bits & TABLE_NO_EL0 == 0;
    let writable_at_el0 = el0 && !read_only;
    let device = attr & 0xf0 == 0;
    let never =
        descriptor & UXN != 0 || limits.bits & TABLE_UXN != 0 || regime.sctlr & SCTLR_WXN != 0 && !read_only || device;
    let never_privileged =
        descriptor & PXN != 0 || limits.bits & TABLE_PXN != 0 || regime.sctlr & SCTLR_UWXN != 0 && writable_at_el0;
    Permissions {
        el1_read: true,
        el1_write: !read_only,
        el1_execute: !never && !never_privileged,
        el0_read: el0,
        el0_write: writable_at_el0,
        el0_execute: el0 && !never,
        pan_applies: false,
    }
}
