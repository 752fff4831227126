//! What the CPU can do, from its ID registers (DDI 0406 B4.1).
#![expect(unsafe_code, reason = "coprocessor registers")]

use core::arch::asm;

use abi::Tables;

/// The CPU's features that matter here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    mmfr0: u32,
    /// Advanced SIMD loads and stores.
    pub(crate) simd: bool,
}

impl Features {
    /// Reads the ID registers of this vCPU; all are alike.
    pub(crate) fn detect() -> Self {
        let mmfr0: u32;
        // SAFETY: reading ID_MMFR0 has no effect on anything else.
        unsafe { asm!("mrc p15, 0, {}, c0, c1, 4", out(reg) mmfr0, options(nomem, nostack, preserves_flags)) };
        Self { mmfr0, simd: has_simd() }
    }

    /// Whether stage 1 can use `tables`: short descriptors always, LPAE from VMSA version 5 on.
    pub(crate) fn has_tables(&self, tables: Tables) -> bool {
        match tables {
            Tables::V8(_) => false,
            Tables::Short { .. } => true,
            Tables::Lpae => self.mmfr0 & 0xf >= 5,
        }
    }
}

/// MVFR1.A_SIMD_LS, if the entry code could enable coprocessors 10 and 11; without them MVFR1 is undefined.
pub(super) fn has_simd() -> bool {
    let cpacr: u32;
    // SAFETY: reading CPACR has no effect on anything else.
    unsafe { asm!("mrc p15, 0, {}, c1, c0, 2", out(reg) cpacr, options(nomem, nostack, preserves_flags)) };
    if cpacr >> 20 & 0xf != 0xf {
        return false;
    }
    let mvfr1: u32;
    // SAFETY: the coprocessors are there and enabled; reading MVFR1 has no effect on anything else.
    unsafe { asm!(".fpu neon", "vmrs {}, mvfr1", out(reg) mvfr1, options(nomem, nostack, preserves_flags)) };
    mvfr1 >> 8 & 0xf != 0
}
