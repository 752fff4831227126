//! A stage-1 walk for EL1, from the register values alone, after DDI 0487's pseudocode (`AArch64.S1Walk` and the functions
//! it calls, J1.1). Nothing of the mapper is used here: constants, level arithmetic and types are its own.
//!
//! It covers the EL1&0 regime with 48-bit addresses. It does not update descriptors; [`Walk::access_flag`] and
//! [`Walk::dirty_bit_modifier`] tell what the hardware would do.

/// The registers that a walk depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// TTBR0_EL1.
    pub ttbr0: u64,
    /// TTBR1_EL1.
    pub ttbr1: u64,
    /// TCR_EL1.
    pub tcr: u64,
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
    /// EL1 may write now.
    pub el1_write: bool,
    /// EL1 may execute.
    pub el1_execute: bool,
    /// EL0 may read.
    pub el0_read: bool,
    /// EL0 may execute.
    pub el0_execute: bool,
    /// The entry is global.
    pub global: bool,
    /// AF.
    pub access_flag: bool,
    /// DBM.
    pub dirty_bit_modifier: bool,
}

/// A walk that faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No translation.
    Translation {
        /// Level reported in the syndrome.
        level: u32,
    },
    /// A table, an entry or a TTBR holds an address beyond the configured size.
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
/// The [`Fault`] that an access by EL1 would take, permissions and the access flag apart.
pub fn walk(registers: Registers, va: u64, mut read: impl FnMut(u64) -> Option<u64>) -> Result<Walk, Fault> {
    let Registers { ttbr0, ttbr1, tcr } = registers;
    let field = |low: u32, width: u32| (tcr >> low) & ((1 << width) - 1);

    // The top bit chooses the half; every bit above the input size must agree with it (AArch64.S1InvalidVA, no tags).
    let upper = va >> 63 == 1;
    let (ttbr, txsz, disabled) =
        if upper { (ttbr1, field(16, 6), field(23, 1) == 1) } else { (ttbr0, field(0, 6), field(7, 1) == 1) };
    let page_shift: u64 = match (upper, if upper { field(30, 2) } else { field(14, 2) }) {
        (false, 0b00) | (true, 0b10) => 12,
        (false, 0b10) | (true, 0b01) => 14,
        (false, 0b01) | (true, 0b11) => 16,
        _ => return Err(Fault::Translation { level: 0 }),
    };
    let input_bits = 64 - txsz;
    let above = va >> input_bits;
    if disabled || above != if upper { u64::MAX >> input_bits } else { 0 } {
        return Err(Fault::Translation { level: 0 });
    }
    let output_bits = match field(32, 3) {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => 48,
    };
    let too_large = |address: u64| address >> output_bits != 0;

    let stride = page_shift - 3;
    let mut level = 4 - (input_bits - page_shift).div_ceil(stride);
    // The first table may be smaller than a granule; it is aligned to its size, 64 bytes at least.
    let first_index_bits = input_bits - (page_shift + (3 - level) * stride);
    let first_align_bits = (first_index_bits + 3).max(6);
    let mut table = (ttbr & 0x0000_ffff_ffff_fffe) >> first_align_bits << first_align_bits;
    if too_large(table) {
        return Err(Fault::AddressSize { level: 0 });
    }

    // Limits that table entries put on everything below them (D8.4.1, APTable, PXNTable, UXNTable).
    let (mut ro_table, mut no_el0_table, mut pxn_table, mut uxn_table) = (false, false, false, false);
    let mut top = input_bits;
    loop {
        let low = page_shift + (3 - level) * stride;
        let index = (va >> low) & ((1 << (top - low)) - 1);
        let at = table + index * 8;
        let reported = level as u32;
        let entry = read(at).ok_or(Fault::External { level: reported, pa: at })?;
        if entry & 1 == 0 {
            return Err(Fault::Translation { level: reported });
        }
        let address = entry & 0x0000_ffff_ffff_f000;
        if entry & 2 != 0 && level < 3 {
            ro_table |= entry >> 62 & 1 == 1;
            no_el0_table |= entry >> 61 & 1 == 1;
            uxn_table |= entry >> 60 & 1 == 1;
            pxn_table |= entry >> 59 & 1 == 1;
            table = address >> page_shift << page_shift;
            if too_large(table) {
                return Err(Fault::AddressSize { level: reported });
            }
            top = low;
            level += 1;
            continue;
        }
        // Blocks: with 4K at levels 1 and 2, with 16K and 64K at level 2 only (no FEAT_LPA2, no FEAT_LPA).
        let allowed = matches!((entry & 2 != 0, level, page_shift), (true, 3, _) | (false, 2, _) | (false, 1, 12));
        if !allowed {
            return Err(Fault::Translation { level: reported });
        }
        let base = address >> low << low;
        if too_large(base) {
            return Err(Fault::AddressSize { level: reported });
        }
        let el0 = entry >> 6 & 1 == 1 && !no_el0_table;
        let read_only = entry >> 7 & 1 == 1 || ro_table;
        return Ok(Walk {
            pa: base | (va & ((1 << low) - 1)),
            level: reported,
            attr_index: (entry >> 2 & 7) as u8,
            shareability: (entry >> 8 & 3) as u8,
            el1_write: !read_only,
            // What EL0 may write, EL1 never executes (D8.4.2.4).
            el1_execute: entry >> 53 & 1 == 0 && !pxn_table && (read_only || !el0),
            el0_read: el0,
            el0_execute: entry >> 54 & 1 == 0 && !uxn_table,
            global: entry >> 11 & 1 == 0,
            access_flag: entry >> 10 & 1 == 1,
            dirty_bit_modifier: entry >> 51 & 1 == 1,
        });
    }
}
