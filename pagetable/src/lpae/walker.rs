//! A stage-1 walk for PL1 by long descriptors, from the register values alone, after the pseudocode of DDI 0406
//! (`TranslationTableWalkLD`, B3.19.6) and DDI 0487 (`AArch32.S1WalkLD`). Nothing of the mapper is used here.
//!
//! It does not update descriptors and takes no permission fault; [`Walk`] tells what the hardware would find.

/// The registers that a walk depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// TTBR0.
    pub ttbr0: u64,
    /// TTBR1.
    pub ttbr1: u64,
    /// TTBCR, with EAE set.
    pub ttbcr: u32,
    /// SCTLR, for WXN.
    pub sctlr: u32,
}

/// A finished walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Physical address of the byte asked for.
    pub pa: u64,
    /// Level of the block or page.
    pub level: u32,
    /// AttrIndx.
    pub attr_index: u8,
    /// SH.
    pub shareability: u8,
    /// PL1 may write.
    pub pl1_write: bool,
    /// PL1 may execute.
    pub pl1_execute: bool,
    /// PL0 may read.
    pub pl0_read: bool,
    /// PL0 may execute.
    pub pl0_execute: bool,
    /// The entry is global.
    pub global: bool,
    /// AF.
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
    /// A table, an entry or a TTBR holds an address beyond 40 bits.
    AddressSize {
        /// Level reported in the syndrome.
        level: u32,
    },
    /// A table lies where `read` finds no memory.
    External {
        /// Level of the entry that could not be read.
        level: u32,
        /// Its address.
        pa: u64,
    },
}

/// Translates `va`. `read` gives the 64-bit word at a physical address, or `None` where there is no memory.
///
/// # Errors
/// The [`Fault`] that an access by PL1 would take, permissions and the access flag apart.
pub fn walk(registers: Registers, va: u32, mut read: impl FnMut(u64) -> Option<u64>) -> Result<Walk, Fault> {
    let Registers { ttbr0, ttbr1, ttbcr, sctlr } = registers;
    let (t0sz, t1sz) = (ttbcr & 7, ttbcr >> 16 & 7);
    let by_ttbr0 = t0sz == 0 || va >> (32 - t0sz) == 0;
    let by_ttbr1 = if t1sz == 0 { !by_ttbr0 } else { va >> (32 - t1sz) == (1 << t1sz) - 1 };
    let (ttbr, size_bits, disabled) = match (by_ttbr1, by_ttbr0) {
        (true, _) => (ttbr1, 32 - t1sz, ttbcr >> 23 & 1 == 1),
        (false, true) => (ttbr0, 32 - t0sz, ttbcr >> 7 & 1 == 1),
        (false, false) => return Err(Fault::Translation { level: 1 }),
    };
    if disabled {
        return Err(Fault::Translation { level: 1 });
    }
    // Up to 1 GiB of input starts at level 2 (B3.6.5).
    let mut level: u32 = if size_bits > 30 { 1 } else { 2 };
    let first_low = if level == 1 { 30 } else { 21 };
    let table_align_bits = size_bits - first_low + 3;
    if ttbr >> 40 & 0xff != 0 {
        return Err(Fault::AddressSize { level: 0 });
    }
    let mut table = (ttbr & 0xff_ffff_ffff) >> table_align_bits << table_align_bits;

    // Limits that table entries put on everything below them (B3.6.1, APTable, XNTable, PXNTable).
    let (mut ro_table, mut no_pl0_table, mut xn_table, mut pxn_table) = (false, false, false, false);
    let mut top = size_bits;
    loop {
        let low = match level {
            1 => 30,
            2 => 21,
            _ => 12,
        };
        let index = u64::from(va) >> low & ((1 << (top - low)) - 1);
        let at = table + 8 * index;
        let entry = read(at).ok_or(Fault::External { level, pa: at })?;
        let address = entry & 0xff_ffff_f000;
        match (entry & 0b11, level) {
            (0b11, 1 | 2) => {
                if entry >> 40 & 0xff != 0 {
                    return Err(Fault::AddressSize { level });
                }
                ro_table |= entry >> 62 & 1 == 1;
                no_pl0_table |= entry >> 61 & 1 == 1;
                xn_table |= entry >> 60 & 1 == 1;
                pxn_table |= entry >> 59 & 1 == 1;
                table = address;
                top = low;
                level += 1;
            }
            (0b01, 1 | 2) | (0b11, 3) => {
                if entry >> 40 & 0xff != 0 {
                    return Err(Fault::AddressSize { level });
                }
                let pl0 = entry >> 6 & 1 == 1 && !no_pl0_table;
                let read_only = entry >> 7 & 1 == 1 || ro_table;
                let wxn = sctlr >> 19 & 1 == 1 && !read_only;
                let xn = entry >> 54 & 1 == 1 || xn_table || wxn;
                let pxn = entry >> 53 & 1 == 1 || pxn_table;
                return Ok(Walk {
                    pa: address >> low << low | u64::from(va) & ((1 << low) - 1),
                    level,
                    attr_index: (entry >> 2 & 7) as u8,
                    shareability: (entry >> 8 & 3) as u8,
                    pl1_write: !read_only,
                    // What PL0 may write, PL1 never executes (DDI 0487 G5.7.2).
                    pl1_execute: !xn && !pxn && (read_only || !pl0),
                    pl0_read: pl0,
                    pl0_execute: pl0 && !xn,
                    global: entry >> 11 & 1 == 0,
                    access_flag: entry >> 10 & 1 == 1,
                });
            }
            _ => return Err(Fault::Translation { level }),
        }
    }
}
