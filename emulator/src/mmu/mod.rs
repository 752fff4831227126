//! Stage-1 translation for the EL1&0 regime (DDI 0487 D8; for AArch32, G5).
//!
//! [`translate`] turns a virtual address into a [`Translation`] or the [`FaultInfo`] of its abort, given a [`Regime`]
//! (the registers it depends on) and something that is [`PhysMemory`]. It is a pure function of these: the software TLB
//! caches its results, the AT instructions and the fetch path call it, and tests run it over tables in a map.
//! [`TableMemory`] is the real [`PhysMemory`]: guest RAM plus the dirty log, since a walker that sets an access flag or
//! makes a page writable-dirty writes guest memory like any store. [`params`] decodes TCR_EL1, [`lpae`] the TTBCR of AArch32's long
//! descriptors, which otherwise walk like AArch64's; [`short`] is AArch32's other format.
//!
//! Implemented: granules of 4, 16 and 64 KiB, both TTBRs, blocks and pages, table attributes unless TCR_EL1.HPDn, PAN, WXN,
//! top-byte-ignore, hardware update of the access flag and dirty state (FEAT_HAFDBS), address-size checks against
//! [`PA_BITS`]. Not implemented, and not promised by the ID registers: EL2, EL3, stage 2, 52-bit addresses, small translation
//! tables, contiguous-bit merging (the bit is a hint and is ignored), big-endian tables.

mod lpae;
mod params;
mod short;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests32;

use abi::addr::Gpa;

use crate::dirty::DirtyLog;
use crate::fault::{Access, AccessKind, FaultInfo, Status};
use crate::ram::Ram;
use params::Params;

/// Bits of physical address implemented: ID_AA64MMFR0_EL1.PARange says 44.
pub const PA_BITS: u32 = 44;

/// Physical memory as the walker needs it.
pub trait PhysMemory {
    /// The descriptor at `pa`, or `None` where nothing answers (external abort). `pa` is a multiple of 8.
    fn load(&self, pa: Gpa) -> Option<u64>;

    /// Replaces the descriptor at `pa` by `new` if it still is `old`: `Some(true)` if so. Marks the table's page dirty.
    fn replace(&self, pa: Gpa, old: u64, new: u64) -> Option<bool>;
}

/// Guest RAM and its dirty log, as the walker uses them.
#[derive(Clone, Copy, Debug)]
pub struct TableMemory<'a> {
    /// Where the tables are.
    pub ram: &'a Ram,
    /// What hears of updates.
    pub dirty: &'a DirtyLog,
}

impl PhysMemory for TableMemory<'_> {
    fn load(&self, pa: Gpa) -> Option<u64> {
        self.ram.load_u64(pa)
    }

    fn replace(&self, pa: Gpa, old: u64, new: u64) -> Option<bool> {
        // Marked before the update, within the instruction, exactly like a store.
        self.dirty.mark(pa);
        Some(self.ram.compare_exchange_u64(pa, old, new)?.is_ok())
    }
}

/// Which translation tables a regime has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// AArch64's.
    #[default]
    V8,
    /// AArch32's short descriptors.
    Short,
    /// AArch32's long descriptors.
    Long,
}

/// The registers that decide a translation. Those of AArch32 are in the AArch64 registers that they are mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Regime {
    /// What the tables look like.
    pub format: Format,
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1 and TTBR1_EL1.
    pub ttbr: [u64; 2],
    /// MAIR_EL1.
    pub mair: u64,
    /// DACR, of short descriptors.
    pub dacr: u64,
    /// CONTEXTIDR, which holds the ASID of short descriptors.
    pub contextidr: u64,
}

/// SCTLR_EL1.M: stage 1 is on.
const SCTLR_M: u64 = 1 << 0;
/// SCTLR_EL1.I: with stage 1 off, fetches are cacheable.
const SCTLR_I: u64 = 1 << 12;
/// SCTLR_EL1.WXN: writable implies no execution.
const SCTLR_WXN: u64 = 1 << 19;
/// SCTLR.UWXN of AArch32: writable at EL0 implies no execution at EL1.
const SCTLR_UWXN: u64 = 1 << 20;

impl Regime {
    /// Whether stage 1 translates at all.
    pub const fn is_on(&self) -> bool {
        self.sctlr & SCTLR_M != 0
    }

    /// The current ASID: of TTBR1_EL1 if TCR_EL1.A1, with 16 bits if TCR_EL1.AS; of CONTEXTIDR with short descriptors.
    pub const fn asid(&self) -> u16 {
        if matches!(self.format, Format::Short) {
            return (self.contextidr & 0xff) as u16;
        }
        let ttbr = self.ttbr[(self.tcr >> 22 & 1) as usize];
        let asid = (ttbr >> 48) as u16;
        if matches!(self.format, Format::V8) && self.tcr >> 36 & 1 != 0 { asid } else { asid & 0xff }
    }

    /// Whether the top byte of `va` takes no part in translation (TCR_EL1.TBIn).
    pub const fn top_byte_ignored(&self, va: u64) -> bool {
        matches!(self.format, Format::V8) && self.tcr >> (37 + (va >> 55 & 1)) & 1 != 0
    }
}

/// What a page may be used for, by exception level, before PAN. A page that hardware dirty-state management has not made
/// writable yet counts as not writable, so that the first store walks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Permissions {
    /// EL1 may read.
    pub el1_read: bool,
    /// EL1 may write.
    pub el1_write: bool,
    /// EL1 may execute.
    pub el1_execute: bool,
    /// EL0 may read.
    pub el0_read: bool,
    /// EL0 may write.
    pub el0_write: bool,
    /// EL0 may execute.
    pub el0_execute: bool,
    /// With PSTATE.PAN, EL1 may neither read nor write.
    pub pan_applies: bool,
}

impl Permissions {
    const ALL: Self = Self {
        el1_read: true,
        el1_write: true,
        el1_execute: true,
        el0_read: true,
        el0_write: true,
        el0_execute: true,
        // Without tables no page is EL0's.
        pan_applies: false,
    };

    /// Whether `access` is permitted.
    pub const fn allow(self, access: Access) -> bool {
        let privileged = access.privileged();
        let pan_forbids = privileged && access.pan && self.pan_applies;
        match access.kind {
            AccessKind::Fetch if privileged => self.el1_execute,
            AccessKind::Fetch => self.el0_execute,
            _ if pan_forbids => false,
            AccessKind::Write | AccessKind::ProbeWrite if privileged => self.el1_write,
            AccessKind::Write | AccessKind::ProbeWrite => self.el0_write,
            _ if privileged => self.el1_read,
            _ => self.el0_read,
        }
    }
}

/// The result of a walk: where the byte is and what holds for the whole page or block around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Physical address of the byte itself.
    pub pa: Gpa,
    /// log2 of the bytes of the page or block.
    pub page_shift: u32,
    /// MAIR_EL1 attribute byte (DDI 0487 D24.2.109); 0 is Device-nGnRnE.
    pub attr: u8,
    /// Shareability, as in a descriptor's SH.
    pub shareability: u8,
    /// What the page may be used for.
    pub permissions: Permissions,
    /// Whether the page is for the current ASID only (nG).
    pub not_global: bool,
}

impl Translation {
    /// Device memory: misaligned accesses fault, exclusives and atomics are not supported, nothing is executed from it.
    pub const fn is_device(&self) -> bool {
        self.attr & 0xf0 == 0
    }
}

/// A descriptor's low bits: bit 0 valid, bit 1 table (or page at level 3).
const VALID: u64 = 1 << 0;
const TABLE_OR_PAGE: u64 = 1 << 1;
/// AP\[1\]: EL0 has access.
const AP_EL0: u64 = 1 << 6;
/// AP\[2\]: read-only.
const AP_READ_ONLY: u64 = 1 << 7;
const ACCESS_FLAG: u64 = 1 << 10;
const NOT_GLOBAL: u64 = 1 << 11;
/// Dirty bit modifier: hardware may clear AP\[2\].
const DBM: u64 = 1 << 51;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const TABLE_PXN: u64 = 1 << 59;
const TABLE_UXN: u64 = 1 << 60;
const TABLE_NO_EL0: u64 = 1 << 61;
const TABLE_READ_ONLY: u64 = 1 << 62;
/// Output address bits of any descriptor, before the alignment to its size.
const OUTPUT_ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// Translates `va` for `access`.
///
/// # Errors
/// The syndrome of the abort, FAR included. Alignment is the caller's to check: it knows the size of the access.
pub fn translate(regime: &Regime, va: u64, access: Access, memory: &impl PhysMemory) -> Result<Translation, FaultInfo> {
    // AArch32 addresses are 32 bits wide: an access that runs over the end goes on at 0.
    let va = if regime.format == Format::V8 { va } else { va & 0xffff_ffff };
    let outcome = match regime.format {
        _ if !regime.is_on() => flat(regime, va, access),
        Format::Short => {
            return short::walk(regime, va, access, memory).map_err(|short::Fault { status, domain }| FaultInfo {
                domain,
                ..FaultInfo::abort(status, access, va)
            });
        }
        Format::V8 | Format::Long => walk(regime, va, access, memory),
    };
    outcome.map_err(|status| FaultInfo::abort(status, access, va))
}

/// Stage 1 off (DDI 0487 D8.2.12): flat, data Device-nGnRnE, fetches Normal.
fn flat(regime: &Regime, va: u64, access: Access) -> Result<Translation, Status> {
    let pa = if regime.top_byte_ignored(va) { va & !(0xff << 56) } else { va };
    if pa >> PA_BITS != 0 {
        return Err(Status::AddressSize { level: 0 });
    }
    let attr = match access.kind {
        // Write-through if SCTLR_EL1.I, else Non-cacheable.
        AccessKind::Fetch if regime.sctlr & SCTLR_I != 0 => 0xaa,
        AccessKind::Fetch => 0x44,
        _ => 0,
    };
    Ok(Translation {
        pa: Gpa::new(pa),
        page_shift: 12,
        attr,
        shareability: 0b10,
        permissions: Permissions::ALL,
        not_global: false,
    })
}

/// What the tables above a descriptor take away.
#[derive(Clone, Copy, Default)]
struct TableLimits {
    bits: u64,
}

fn walk(regime: &Regime, va: u64, access: Access, memory: &impl PhysMemory) -> Result<Translation, Status> {
    let params = match regime.format {
        Format::Long => lpae::params(regime, va)?,
        _ => Params::of(regime, va)?,
    };
    'again: loop {
        let mut limits = TableLimits::default();
        let mut table = params.base;
        let mut level = params.start_level;
        loop {
            let shift = params.granule.index_shift(level);
            let top =
                if level == params.start_level { params.input_bits } else { params.granule.index_shift(level - 1) };
            let index = (va & params.input_mask()) >> shift & ((1 << (top - shift)) - 1);
            let at = Gpa::new(table | index << 3);
            let descriptor = memory.load(at).ok_or(Status::ExternalOnWalk { level })?;
            let leaf = match descriptor & (VALID | TABLE_OR_PAGE) {
                0b11 => level == 3,
                0b01 if params.granule.has_block(level) => true,
                _ => return Err(Status::Translation { level }),
            };
            let output = descriptor & OUTPUT_ADDRESS;
            if output >> params.output_bits != 0 {
                return Err(Status::AddressSize { level });
            }
            if !leaf {
                if !params.ignore_table_attributes {
                    limits.bits |= descriptor;
                }
                table = output & !((1 << params.granule.bits()) - 1);
                level += 1;
                continue;
            }
            let updated = judge_leaf(regime, &params, descriptor, limits, level, access)?;
            if updated != descriptor
                && !memory.replace(at, descriptor, updated).ok_or(Status::ExternalOnWalk { level })?
            {
                // Someone changed the descriptor since it was read: what it now says counts.
                continue 'again;
            }
            let offset = va & ((1 << shift) - 1);
            let attr = (regime.mair >> (8 * (updated >> 2 & 7))) as u8;
            return Ok(Translation {
                pa: Gpa::new(output & !((1 << shift) - 1) | offset),
                page_shift: shift,
                attr,
                // Device and Non-cacheable memory is outer shareable whatever SH says (D8.6.2).
                shareability: if attr & 0xf0 == 0 || attr == 0x44 { 0b10 } else { (updated >> 8 & 3) as u8 },
                permissions: permissions(regime, updated, limits, false, attr),
                not_global: updated & NOT_GLOBAL != 0,
            });
        }
    }
}

/// Judges a leaf descriptor for `access` and returns it with the access flag set and dirty state recorded as hardware
/// management allows. Order of checks: access flag, then permission (D8.15, "Prioritization of MMU faults").
fn judge_leaf(
    regime: &Regime,
    params: &Params,
    descriptor: u64,
    limits: TableLimits,
    level: u8,
    access: Access,
) -> Result<u64, Status> {
    let mut updated = descriptor;
    if descriptor & ACCESS_FLAG == 0 {
        if !params.hardware_access_flag {
            return Err(Status::AccessFlag { level });
        }
        updated |= ACCESS_FLAG;
    }
    let attr = (regime.mair >> (8 * (descriptor >> 2 & 7))) as u8;
    let may_dirty = params.hardware_dirty && descriptor & DBM != 0;
    if !permissions(regime, descriptor, limits, may_dirty, attr).allow(access) {
        return Err(Status::Permission { level });
    }
    // Only a store records dirty state: AT and cache maintenance do not (D8.5.2).
    if may_dirty && access.kind == AccessKind::Write {
        updated &= !AP_READ_ONLY;
    }
    Ok(updated)
}

/// Permissions of a leaf (D8.4.1). With `may_dirty`, a read-only page counts as writable because hardware may make it so.
fn permissions(regime: &Regime, descriptor: u64, limits: TableLimits, may_dirty: bool, attr: u8) -> Permissions {
    if regime.format == Format::Long {
        return lpae::permissions(regime, descriptor, limits, attr);
    }
    let read_only = descriptor & AP_READ_ONLY != 0 && !may_dirty || limits.bits & TABLE_READ_ONLY != 0;
    let el0 = descriptor & AP_EL0 != 0 && limits.bits & TABLE_NO_EL0 == 0;
    // WXN and "writable at EL0 is not executable at EL1" look at the page as if its dirty state were recorded already:
    // the rule must not change when the first store comes.
    let effectively_writable = (descriptor & AP_READ_ONLY == 0
        || descriptor & DBM != 0 && params::hardware_dirty(regime.tcr))
        && limits.bits & TABLE_READ_ONLY == 0;
    let wxn = regime.sctlr & SCTLR_WXN != 0 && effectively_writable;
    let device = attr & 0xf0 == 0;
    let pxn = descriptor & PXN != 0 || limits.bits & TABLE_PXN != 0 || el0 && effectively_writable || wxn;
    let uxn = descriptor & UXN != 0 || limits.bits & TABLE_UXN != 0 || el0 && wxn;
    Permissions {
        el1_read: true,
        el1_write: !read_only,
        // A fetch from Device memory may be treated as a permission fault (D8.4.4); nothing here executes devices.
        el1_execute: !pxn && !device,
        el0_read: el0,
        el0_write: el0 && !read_only,
        el0_execute: !uxn && !device,
        pan_applies: el0,
    }
}

/// PAR_EL1 for the outcome of an AT instruction (DDI 0487 D24.2.124), in AArch32 PAR for one of ATS1C* (G8.2.115). The 64-bit form of AArch32
/// has the layout of AArch64's: its LPAE bit is the bit that is RES1 there.
pub fn par(format: Format, outcome: Result<Translation, FaultInfo>) -> u64 {
    if format == Format::Short {
        return short::par(outcome.map_err(|fault| crate::a32::exception::short_status(fault.status_code())));
    }
    const RES1: u64 = 1 << 11;
    match outcome {
        Ok(translation) => {
            u64::from(translation.attr) << 56
                | translation.pa.raw() & OUTPUT_ADDRESS
                | RES1
                | u64::from(translation.shareability) << 7
        }
        Err(fault) => RES1 | u64::from(fault.status_code()) << 1 | 1,
    }
}
