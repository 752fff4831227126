//! AArch32's short-descriptor translation tables (DDI 0487 G5.4; DDI 0406C B3.5): [`walk`].
//!
//! Two levels of 32-bit descriptors: sections of 1 MiB, supersections of 16 MiB, large pages of 64 KiB, small pages of 4 KiB. Each
//! belongs to a domain, whose field in DACR says whether it is reachable and whether its permissions count. There is no
//! hardware update of the access flag in this format: with SCTLR.AFE a clear AP\[0\] faults.

use abi::addr::Gpa;

use super::{Permissions, PhysMemory, Regime, SCTLR_UWXN, SCTLR_WXN, Translation};
use crate::fault::{Access, Status};

/// SCTLR.TRE: TEX\[0\], C and B index PRRR and NMRR.
const SCTLR_TRE: u64 = 1 << 28;
/// SCTLR.AFE: AP\[0\] is the access flag.
const SCTLR_AFE: u64 = 1 << 29;
/// TTBCR.PD0: no walks by TTBR0; PD1, one bit up, by TTBR1.
const TTBCR_PD: u64 = 1 << 4;

/// A fault, with the domain that DFSR reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) status: Status,
    pub(super) domain: u8,
}

/// A section's or page's attributes, brought to one form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leaf {
    /// 1 section or supersection, 2 page.
    level: u8,
    /// Physical address of the section or page.
    base: u64,
    /// log2 of its bytes.
    shift: u32,
    domain: u8,
    /// AP\[2:0\].
    ap: u32,
    /// TEX\[2:0\], C, B.
    texcb: u32,
    shareable: bool,
    not_global: bool,
    /// XN.
    never: bool,
    /// PXN.
    never_privileged: bool,
}

/// Walks the tables for `va`, of which 32 bits count.
///
/// # Errors
/// [`Fault`]. The order of the checks: translation, access flag, domain, permission (DDI 0406C B3.12.3, figure "VMSAv7 MMU fault checking
/// sequence"; alignment is the caller's, before all).
pub(super) fn walk(regime: &Regime, va: u64, access: Access, memory: &impl PhysMemory) -> Result<Translation, Fault> {
    let leaf = find(regime, va as u32, memory)?;
    let Leaf { level, domain, .. } = leaf;
    let fault = |status| Fault { status, domain };
    if regime.sctlr & SCTLR_AFE != 0 && leaf.ap & 1 == 0 {
        return Err(fault(Status::AccessFlag { level }));
    }
    let (attr, shareability) = memory_type(regime, leaf);
    let permissions = match regime.dacr >> (2 * domain) & 3 {
        CLIENT => permissions(regime, leaf, attr & 0xf0 == 0),
        MANAGER => Permissions::ALL,
        // No access; 0b10 is reserved, and no access is one of the behaviours permitted (G8.2.37).
        _ => return Err(fault(Status::Domain { level })),
    };
    if !permissions.allow(access) {
        return Err(fault(Status::Permission { level }));
    }
    Ok(Translation {
        pa: Gpa::new(leaf.base | va & ((1 << leaf.shift) - 1)),
        page_shift: leaf.shift,
        attr,
        shareability,
        permissions,
        not_global: leaf.not_global,
    })
}

/// DACR: accesses are checked against the permissions.
const CLIENT: u64 = 0b01;
/// DACR: accesses are not checked, XN included.
const MANAGER: u64 = 0b11;

/// Finds the section or page of `va`.
fn find(regime: &Regime, va: u32, memory: &impl PhysMemory) -> Result<Leaf, Fault> {
    // TTBCR.N: TTBR0 serves the addresses whose N top bits are zero, by a table 2^N times smaller (G5.4.4).
    let n = (regime.tcr & 7) as u32;
    let upper = n != 0 && va >> (32 - n) != 0;
    let table_shift = if upper { 14 } else { 14 - n };
    let unassigned = |status| Fault { status, domain: 0 };
    if regime.tcr & TTBCR_PD << u32::from(upper) != 0 {
        return Err(unassigned(Status::Translation { level: 1 }));
    }
    let table = regime.ttbr[usize::from(upper)] as u32 >> table_shift << table_shift;
    // Above a smaller table the index's top bits are zero by choice of TTBR0.
    let at = table | va >> 20 << 2 & ((1 << table_shift) - 1);
    let first = load(memory, at).ok_or(unassigned(Status::ExternalOnWalk { level: 1 }))?;
    let domain = (first >> 5 & 15) as u8;
    let bit = |descriptor: u32, n: u32| descriptor >> n & 1 != 0;
    match first & 3 {
        // The domain of an invalid descriptor is not valid in DFSR.
        0b00 => Err(unassigned(Status::Translation { level: 1 })),
        0b01 => {
            let at = first & !0x3ff | va >> 12 << 2 & 0x3ff;
            let second = load(memory, at).ok_or(Fault { status: Status::ExternalOnWalk { level: 2 }, domain })?;
            let ap = second >> 4 & 3 | second >> 7 & 4;
            let common = Leaf {
                level: 2,
                base: u64::from(second & !0xfff),
                shift: 12,
                domain,
                ap,
                texcb: second >> 4 & 0b1_1100 | second >> 2 & 3,
                shareable: bit(second, 10),
                not_global: bit(second, 11),
                never: bit(second, 0),
                never_privileged: bit(first, 2),
            };
            match second & 3 {
                0b00 => Err(Fault { status: Status::Translation { level: 2 }, domain }),
                0b01 => Ok(Leaf {
                    base: u64::from(second & !0xffff),
                    shift: 16,
                    texcb: second >> 10 & 0b1_1100 | second >> 2 & 3,
                    never: bit(second, 15),
                    ..common
                }),
                _ => Ok(common),
            }
        }
        _ => {
            let section = Leaf {
                level: 1,
                base: u64::from(first & !0xf_ffff),
                shift: 20,
                domain,
                ap: first >> 10 & 3 | first >> 13 & 4,
                texcb: first >> 10 & 0b1_1100 | first >> 2 & 3,
                shareable: bit(first, 16),
                not_global: bit(first, 17),
                never: bit(first, 4),
                never_privileged: bit(first, 0),
            };
            if !bit(first, 18) {
                return Ok(section);
            }
            // A supersection: 40 bits of address, PA[35:32] in 23:20 and PA[39:36] in 8:5; domain 0.
            let high = u64::from(first >> 20 & 15) | u64::from(first >> 5 & 15) << 4;
            Ok(Leaf { base: u64::from(first & 0xff00_0000) | high << 32, shift: 24, domain: 0, ..section })
        }
    }
}

/// The 32-bit descriptor at `pa`.
fn load(memory: &impl PhysMemory, pa: u32) -> Option<u32> {
    let pair = memory.load(Gpa::new(u64::from(pa & !7)))?;
    Some((pair >> (8 * (pa & 4))) as u32)
}

/// Permissions in a client domain (DDI 0487 G5.6.1, tables "VMSAv8-32 MMU access permissions" with AFE 0 and 1).
fn permissions(regime: &Regime, leaf: Leaf, device: bool) -> Permissions {
    // With AFE, AP[2:1] means what it means with AP[0] set: the same table serves.
    let ap = if regime.sctlr & SCTLR_AFE != 0 { leaf.ap | 1 } else { leaf.ap };
    // 0b100 is reserved: no access.
    let el1_read = !matches!(ap, 0b000 | 0b100);
    let el1_write = matches!(ap, 0b001..=0b011);
    let el0_read = matches!(ap, 0b010 | 0b011 | 0b110 | 0b111);
    let el0_write = ap == 0b011;
    let wxn = regime.sctlr & SCTLR_WXN != 0;
    let uwxn = regime.sctlr & SCTLR_UWXN != 0;
    let never = leaf.never || device;
    let never_at_el1 = never || leaf.never_privileged || wxn && el1_write || uwxn && el0_write;
    let never_at_el0 = never || wxn && el0_write;
    // Nothing is executed that may not be read (G5.6.2).
    Permissions {
        el1_read,
        el1_write,
        el1_execute: el1_read && !never_at_el1,
        el0_read,
        el0_write,
        el0_execute: el0_read && !never_at_el0,
        pan_applies: false,
    }
}

/// The attribute byte as in MAIR, and the shareability as in SH.
fn memory_type(regime: &Regime, leaf: Leaf) -> (u8, u8) {
    const OUTER: u8 = 0b10;
    const INNER: u8 = 0b11;
    if regime.sctlr & SCTLR_TRE == 0 {
        let attr = without_remap(leaf.texcb);
        let shared = attr & 0xf0 == 0 || attr == 0x44 || leaf.shareable;
        return (attr, if shared { OUTER } else { 0 });
    }
    // PRRR is MAIR_EL1's low half, NMRR its high half (D1.21.2). TEX[0]:C:B chooses a field of each (G8.2.118, G8.2.112).
    let (prrr, nmrr) = (regime.mair as u32, (regime.mair >> 32) as u32);
    let n = leaf.texcb & 7;
    match prrr >> (2 * n) & 3 {
        0b00 => (STRONGLY_ORDERED, OUTER),
        0b01 => (DEVICE, OUTER),
        0b10 => {
            let attr = cacheable(nmrr >> (2 * n + 16)) << 4 | cacheable(nmrr >> (2 * n));
            // NS1 and NS0 say what the S bit means, NOSn whether only the inner domain shares.
            let shared = attr == 0x44 || prrr >> (18 + u32::from(leaf.shareable)) & 1 != 0;
            let inner = attr != 0x44 && prrr >> (24 + n) & 1 != 0;
            (
                attr,
                if !shared {
                    0
                } else if inner {
                    INNER
                } else {
                    OUTER
                },
            )
        }
        // Reserved: the strictest type.
        _ => (STRONGLY_ORDERED, OUTER),
    }
}

/// Device-nGnRnE.
const STRONGLY_ORDERED: u8 = 0x00;
/// Device-nGnRE.
const DEVICE: u8 = 0x04;

/// The attribute byte of TEX:C:B without remap (DDI 0487 G5.7.2, table "TEX\[2:0\], C, and B encodings when TRE == 0").
fn without_remap(texcb: u32) -> u8 {
    match texcb {
        0b0_0001 | 0b0_1000 => DEVICE,
        0b0_0010 => 0xaa,
        0b0_0011 => 0xee,
        0b0_0100 => 0x44,
        0b0_0111 => 0xff,
        // Outer in TEX[1:0], inner in C:B.
        0b1_0000.. => cacheable(texcb >> 2) << 4 | cacheable(texcb),
        // 0b0_0000, and what is reserved or implementation defined.
        _ => STRONGLY_ORDERED,
    }
}

/// Half an attribute byte of a two-bit cacheability: non-cacheable, write-back write-allocate, write-through, write-back.
fn cacheable(field: u32) -> u8 {
    [0x4, 0xf, 0xa, 0xe][(field & 3) as usize]
}

/// PAR in the short format for the outcome of ATS1C* (DDI 0487 G8.2.115). `status` translates a fault's code.
pub(super) fn par(outcome: Result<Translation, u32>) -> u64 {
    let Translation { pa, page_shift, attr, shareability, .. } = match outcome {
        Ok(translation) => translation,
        Err(short_status) => return u64::from(short_status & 0x1f) << 1 | 1,
    };
    let inner = match attr {
        STRONGLY_ORDERED => 0b001,
        attr if attr & 0xf0 == 0 => 0b011,
        attr => [0b000, 0b101, 0b110, 0b111][cacheability(attr & 15)],
    };
    let outer = if attr & 0xf0 == 0 { 0 } else { cacheability(attr >> 4) as u64 };
    let shared = u64::from(shareability != 0) << 7 | u64::from(shareability != 0b10) << 10;
    let supersection = page_shift == 24;
    let address =
        if supersection { pa.raw() & 0xff00_0000 | (pa.raw() >> 32 & 0xff) << 16 } else { pa.raw() & 0xffff_f000 };
    address | shared | inner << 4 | outer << 2 | u64::from(supersection) << 1
}

/// The inverse of [`cacheable`].
fn cacheability(nibble: u8) -> usize {
    match nibble {
        0xf => 1,
        0xa => 2,
        0xe => 3,
        _ => 0,
    }
}
