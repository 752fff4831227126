//! A stage-1 walk for PL1 by short descriptors, from the register values alone, after the pseudocode of DDI 0406
//! (`TranslationTableWalkSD`, B3.19.6) and DDI 0487 (`AArch32.S1WalkSD`). Nothing of the mapper is used here.
//!
//! It covers supersections, domains and both models of access permissions, which the mapper never uses, and memory types
//! with TEX remap. It takes no permission fault and no access flag fault; [`Walk`] tells what the hardware would find.

/// The registers that a walk depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// TTBR0.
    pub ttbr0: u32,
    /// TTBR1.
    pub ttbr1: u32,
    /// TTBCR, with EAE clear.
    pub ttbcr: u32,
    /// DACR.
    pub dacr: u32,
    /// SCTLR, for AFE and WXN; TRE is set.
    pub sctlr: u32,
    /// PRRR.
    pub prrr: u32,
    /// NMRR.
    pub nmrr: u32,
}

/// What an entry maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 16 MiB, by sixteen first-level entries alike.
    Supersection,
    /// 1 MiB.
    Section,
    /// 64 KiB, by sixteen second-level entries alike.
    LargePage,
    /// 4 KiB.
    SmallPage,
}

/// A memory type after TEX remap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Strongly-ordered, or Device-nGnRnE.
    StronglyOrdered,
    /// Device, or Device-nGnRE.
    Device,
    /// Normal.
    Normal {
        /// NMRR.IR: 0b00 not cacheable, 0b01 write-back write-allocate, 0b10 write-through, 0b11 write-back.
        inner: u8,
        /// NMRR.OR, likewise.
        outer: u8,
    },
}

/// A finished walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Physical address of the byte asked for. 40 bits for a supersection.
    pub pa: u64,
    /// What the entry maps.
    pub size: Size,
    /// The entry's domain; 0 for a supersection.
    pub domain: u8,
    /// Memory type.
    pub memory: Memory,
    /// Shareable.
    pub shareable: bool,
    /// Shareable no further than the inner domain.
    pub inner_shareable: bool,
    /// PL1 may read.
    pub pl1_read: bool,
    /// PL1 may write.
    pub pl1_write: bool,
    /// PL1 may execute.
    pub pl1_execute: bool,
    /// PL0 may read.
    pub pl0_read: bool,
    /// The entry is global.
    pub global: bool,
    /// AP\[0\] where SCTLR.AFE makes it the access flag, else true.
    pub access_flag: bool,
}

/// A walk that faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No translation.
    Translation {
        /// Level reported in the syndrome.
        level: u32,
    },
    /// The entry's domain allows no access.
    Domain {
        /// Level reported in the syndrome: 1 for sections, 2 for pages.
        level: u32,
        /// The domain.
        domain: u8,
    },
    /// A table lies where `read` finds no memory.
    External {
        /// Level of the entry that could not be read.
        level: u32,
        /// Its address.
        pa: u64,
    },
}

/// The fields of a leaf, from wherever its kind has them.
struct Leaf {
    pa: u64,
    size: Size,
    level: u32,
    domain: u8,
    /// TEX\[0\], C, B.
    kind: u32,
    ap: u32,
    xn: bool,
    pxn: bool,
    shareable: bool,
    global: bool,
}

/// Translates `va`. `read` gives the 32-bit word at a physical address, or `None` where there is no memory.
///
/// # Errors
/// The [`Fault`] that an access by PL1 would take, permissions and the access flag apart.
pub fn walk(registers: Registers, va: u32, mut read: impl FnMut(u64) -> Option<u32>) -> Result<Walk, Fault> {
    let n = registers.ttbcr & 7;
    let low = n == 0 || va >> (32 - n) == 0;
    let (ttbr, disabled, n) = if low {
        (registers.ttbr0, registers.ttbcr >> 4 & 1 == 1, n)
    } else {
        (registers.ttbr1, registers.ttbcr >> 5 & 1 == 1, 0)
    };
    if disabled {
        return Err(Fault::Translation { level: 1 });
    }
    let base = ttbr >> (14 - n) << (14 - n);
    let at = u64::from(base | (va << n >> n >> 20) << 2);
    let first = read(at).ok_or(Fault::External { level: 1, pa: at })?;
    let leaf = match first & 0b11 {
        0b00 => return Err(Fault::Translation { level: 1 }),
        0b01 => {
            let at = u64::from(first & 0xffff_fc00 | (va >> 12 & 0xff) << 2);
            let second = read(at).ok_or(Fault::External { level: 2, pa: at })?;
            page(first, second, va)?
        }
        _ => section(first, va),
    };
    finish(&registers, &leaf)
}

fn section(entry: u32, va: u32) -> Leaf {
    let supersection = entry >> 18 & 1 == 1;
    let (pa, size) = if supersection {
        let high = u64::from(entry >> 5 & 0xf) << 36 | u64::from(entry >> 20 & 0xf) << 32;
        (high | u64::from(entry & 0xff00_0000 | va & 0x00ff_ffff), Size::Supersection)
    } else {
        (u64::from(entry & 0xfff0_0000 | va & 0x000f_ffff), Size::Section)
    };
    Leaf {
        pa,
        size,
        level: 1,
        domain: if supersection { 0 } else { (entry >> 5 & 0xf) as u8 },
        kind: (entry >> 12 & 1) << 2 | entry >> 2 & 0b11,
        ap: (entry >> 15 & 1) << 2 | entry >> 10 & 0b11,
        xn: entry >> 4 & 1 == 1,
        pxn: entry & 1 == 1,
        shareable: entry >> 16 & 1 == 1,
        global: entry >> 17 & 1 == 0,
    }
}

fn page(first: u32, second: u32, va: u32) -> Result<Leaf, Fault> {
    let (pa, size, tex0, xn) = match second & 0b11 {
        0b00 => return Err(Fault::Translation { level: 2 }),
        0b01 => (second & 0xffff_0000 | va & 0xffff, Size::LargePage, second >> 12 & 1, second >> 15 & 1 == 1),
        _ => (second & 0xffff_f000 | va & 0xfff, Size::SmallPage, second >> 6 & 1, second & 1 == 1),
    };
    Ok(Leaf {
        pa: u64::from(pa),
        size,
        level: 2,
        domain: (first >> 5 & 0xf) as u8,
        kind: tex0 << 2 | second >> 2 & 0b11,
        ap: (second >> 9 & 1) << 2 | second >> 4 & 0b11,
        xn,
        pxn: first >> 2 & 1 == 1,
        shareable: second >> 10 & 1 == 1,
        global: second >> 11 & 1 == 0,
    })
}

fn finish(registers: &Registers, leaf: &Leaf) -> Result<Walk, Fault> {
    let manager = match registers.dacr >> (2 * leaf.domain) & 0b11 {
        0b01 => false,
        0b11 => true,
        _ => return Err(Fault::Domain { level: leaf.level, domain: leaf.domain }),
    };
    let afe = registers.sctlr >> 29 & 1 == 1;
    // (PL1 reads, PL1 writes, PL0 reads, PL0 writes): tables B3-6 and B3-7 of DDI 0406. With AFE, AP[0] is no permission.
    let (read, write, pl0_read, pl0_write) = match if afe { leaf.ap & 0b110 | 1 } else { leaf.ap } {
        _ if manager => (true, true, true, true),
        0b000 | 0b100 => (false, false, false, false),
        0b001 => (true, true, false, false),
        0b010 => (true, true, true, false),
        0b011 => (true, true, true, true),
        0b101 => (true, false, false, false),
        _ => (true, false, true, false),
    };
    let wxn = registers.sctlr >> 19 & 1 == 1 && write && !manager;
    let forbidden = (leaf.xn || leaf.pxn) && !manager;
    let device_bit = 16 + u32::from(leaf.shareable);
    let normal_bit = 18 + u32::from(leaf.shareable);
    let prrr = registers.prrr;
    let (memory, shareable) = match prrr >> (2 * leaf.kind) & 0b11 {
        0b00 => (Memory::StronglyOrdered, true),
        0b01 => (Memory::Device, prrr >> device_bit & 1 == 1),
        _ => {
            let inner = (registers.nmrr >> (2 * leaf.kind) & 0b11) as u8;
            let outer = (registers.nmrr >> (16 + 2 * leaf.kind) & 0b11) as u8;
            (Memory::Normal { inner, outer }, prrr >> normal_bit & 1 == 1)
        }
    };
    Ok(Walk {
        pa: leaf.pa,
        size: leaf.size,
        domain: leaf.domain,
        memory,
        shareable,
        inner_shareable: shareable && prrr >> (24 + leaf.kind) & 1 == 1,
        pl1_read: read,
        pl1_write: write,
        // What PL0 may write, PL1 never executes (DDI 0487 G5.7.2).
        pl1_execute: read && !forbidden && !wxn && (manager || !pl0_write),
        pl0_read,
        global: leaf.global,
        access_flag: !afe || leaf.ap & 1 == 1,
    })
}
