//! First instructions of every vCPU: down to EL1, translation on, stacks, a blank `.bss`; then Rust.
//!
//! The primary starts on a table that is part of the image: 1 GiB blocks, everything at its own address. So all Rust
//! code runs with caches on, where unaligned accesses and exclusives work, and nothing is ever written around the
//! caches. The table has 4K granules, which every CPU has whatever else it has; [`super::mmu`] leaves it for the one
//! that the host asked for.
//!
//! A vCPU runs on SP_EL0 and takes exceptions on SP_EL1 (EL1t): the two stacks of [`crate::guest::image`]. So an
//! exception that is caused by a full stack has a good stack to be handled on, with no shuffling in the vectors.
//!
//! Neighbours: [`crate::guest::smp`] fills the [`SecondaryContext`] that a secondary starts from; the vectors are in
//! [`super::vectors`].
#![expect(unsafe_code, reason = "symbols that assembly jumps to have to keep their names")]

use core::arch::global_asm;
use core::mem::offset_of;

use abi::points::Point;

use super::points::Record;
use crate::guest::smp::SecondaryContext;

/// SCTLR_EL1 with MMU and caches off: the bits that are RES1 without their features set (DDI 0487
/// D24.2.175: LSMAOE, nTLSMD, SPAN, EIS, TSCXT, nTWE, nTWI, EOS).
pub(crate) const SCTLR_MMU_OFF: u64 = 1 << 29 | 1 << 28 | 1 << 23 | 1 << 22 | 1 << 20 | 1 << 18 | 1 << 16 | 1 << 11;

/// SCTLR_EL1's bits for the MMU, the data and the instruction caches.
pub(crate) const SCTLR_MMU_AND_CACHES: u64 = 1 | 1 << 2 | 1 << 12;
const SCTLR_BOOT: u64 = SCTLR_MMU_OFF | SCTLR_MMU_AND_CACHES;

/// TCR_EL1 for the boot table: 39 bits, 4K granule, inner shareable write-back walks, 36-bit physical addresses, no
/// high half.
const TCR_BOOT: u64 = 25 | 0b01 << 8 | 0b01 << 10 | 0b11 << 12 | 1 << 23 | 1 << 32;

/// Boot table entries: level 1 blocks with the access flag, never executable at EL0. The first is the devices'.
const BOOT_BLOCK_DEVICE: u64 = 0b01 | 1 << 2 | 1 << 10 | 1 << 53 | 1 << 54;
const BOOT_BLOCK_TEXT: u64 = 0b01 | 0b11 << 8 | 1 << 10 | 1 << 54;
const BOOT_BLOCK_DATA: u64 = BOOT_BLOCK_TEXT | 1 << 53;

global_asm!(
    r#"
    // From EL2 or EL1 to EL1h with everything masked and a known SCTLR_EL1. Clobbers x9.
    .macro TO_EL1
        msr     daifset, #0xf
        mrs     x9, CurrentEL
        cmp     x9, #(2 << 2)
        b.ne    8f
        mov     x9, #(1 << 31)              // HCR_EL2.RW: EL1 is AArch64; nothing is trapped
        msr     hcr_el2, x9
        isb
        mrs     x9, cnthctl_el2
        orr     x9, x9, #3                  // EL1PCTEN, EL1PCEN
        msr     cnthctl_el2, x9
        msr     cntvoff_el2, xzr
        mov     x9, #0x33ff                 // CPTR_EL2: RES1 bits only, no FP trap
        msr     cptr_el2, x9
        msr     hstr_el2, xzr
        msr     vttbr_el2, xzr
        mrs     x9, midr_el1
        msr     vpidr_el2, x9
        mrs     x9, mpidr_el1
        msr     vmpidr_el2, x9
        mrs     x9, id_aa64pfr0_el1
        ubfx    x9, x9, #24, #4             // GIC system registers?
        cbz     x9, 7f
        mrs     x9, S3_4_C12_C9_5           // ICC_SRE_EL2: SRE and Enable
        orr     x9, x9, #1
        orr     x9, x9, #8
        msr     S3_4_C12_C9_5, x9
        isb
        msr     S3_4_C12_C11_0, xzr         // ICH_HCR_EL2
    7:
        movz    x9, #{sctlr_high}, lsl #16
        movk    x9, #{sctlr_low}
        msr     sctlr_el1, x9
        mov     x9, #0x3c5                  // EL1h, DAIF masked
        msr     spsr_el2, x9
        adr     x9, 9f
        msr     elr_el2, x9
        eret
    8:
        movz    x9, #{sctlr_high}, lsl #16
        movk    x9, #{sctlr_low}
        msr     sctlr_el1, x9
    9:
        isb
        mov     x9, #(3 << 20)              // CPACR_EL1.FPEN: no trap of FP and SIMD
        msr     cpacr_el1, x9
        adrp    x9, exception_vectors
        add     x9, x9, :lo12:exception_vectors
        msr     vbar_el1, x9
        isb
    .endm

    // From exception stack top in x9 and stack top in x10 to EL1t on that stack, frame chain ended.
    .macro SET_STACKS
        msr     spsel, #1
        mov     sp, x9
        msr     spsel, #0
        mov     sp, x10
        mov     x29, xzr
        mov     x30, xzr
    .endm

    .pushsection .text.entry, "ax"
    .global _start
    .type _start, %function
_start:
    mov     x19, x0                         // devicetree
    mov     x27, x3                         // where to ask to be moved here, if at all
    TO_EL1
    msr     tpidr_el1, xzr                  // vCPU 0
    cbz     x27, 3f
    adrp    x28, POINT_RECORDS + {record}
    add     x28, x28, :lo12:POINT_RECORDS + {record}
    mov     x26, #{mmu_off}
    bl      point_ask
3:  ldr     x9, ={mair}
    msr     mair_el1, x9
    ldr     x9, ={tcr_boot}
    msr     tcr_el1, x9
    adrp    x9, boot_table
    msr     ttbr0_el1, x9
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    ldr     x9, ={sctlr_boot}
    msr     sctlr_el1, x9                   // identity-mapped: the next instruction is where it was
    isb
    adrp    x9, __stacks_start              // guard, stack, guard, exception stack
    add     x10, x9, #{stack_bytes}, lsl #12
    add     x10, x10, #{stack_bytes}, lsl #12
    add     x9, x10, #{stack_bytes}, lsl #12
    add     x9, x9, #{stack_bytes}, lsl #12
    SET_STACKS
    adrp    x9, __bss_start
    add     x9, x9, :lo12:__bss_start
    adrp    x10, __bss_end
    add     x10, x10, :lo12:__bss_end
1:  cmp     x9, x10
    b.hs    2f
    stp     xzr, xzr, [x9], #16
    b       1b
2:  mov     x0, x19
    bl      primary_entry
    udf     #0
    .size _start, . - _start

    .global secondary_start
    .type secondary_start, %function
secondary_start:
    mov     x19, x0                         // SecondaryContext
    TO_EL1
    ldr     x9, [x19, #{ctx_vcpu}]
    msr     tpidr_el1, x9
    ldr     x9, [x19, #{ctx_mair}]
    msr     mair_el1, x9
    ldr     x9, [x19, #{ctx_tcr}]
    msr     tcr_el1, x9
    ldr     x9, [x19, #{ctx_ttbr0}]
    msr     ttbr0_el1, x9
    ldr     x9, [x19, #{ctx_ttbr1}]
    msr     ttbr1_el1, x9
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    ldr     x9, [x19, #{ctx_sctlr}]
    msr     sctlr_el1, x9                   // identity-mapped: the next instruction is where it was
    isb
    ldr     x9, [x19, #{ctx_exception_stack}]
    ldr     x10, [x19, #{ctx_stack}]
    SET_STACKS
    ldr     x0, [x19, #{ctx_machine}]
    ldr     x1, [x19, #{ctx_vcpu}]
    bl      secondary_entry
    udf     #0
    .size secondary_start, . - secondary_start
    .popsection

    // 1 GiB each: devices and region, then RAM; the image lies in the first GiB of RAM.
    .pushsection .rodata.boot_table, "a"
    .balign 4096
boot_table:
    .quad   {block_device}
    .quad   {block_text} + (1 << 30)
    .set    gib, 2
    .rept   14
    .quad   {block_data} + (gib << 30)
    .set    gib, gib + 1
    .endr
    .balign 4096
    .popsection
    "#,
    sctlr_high = const (SCTLR_MMU_OFF >> 16),
    sctlr_low = const (SCTLR_MMU_OFF & 0xffff),
    record = const size_of::<Record>() * Point::MmuOff.number() as usize,
    mmu_off = const Point::MmuOff.number(),
    mair = const pagetable::MAIR_EL1,
    tcr_boot = const TCR_BOOT,
    sctlr_boot = const SCTLR_BOOT,
    block_device = const BOOT_BLOCK_DEVICE,
    block_text = const BOOT_BLOCK_TEXT,
    block_data = const BOOT_BLOCK_DATA,
    stack_bytes = const (crate::guest::image::STACK_BYTES >> 12),
    ctx_vcpu = const offset_of!(SecondaryContext, vcpu),
    ctx_stack = const offset_of!(SecondaryContext, stack_top),
    ctx_exception_stack = const offset_of!(SecondaryContext, exception_stack_top),
    ctx_mair = const offset_of!(SecondaryContext, registers.mair),
    ctx_tcr = const offset_of!(SecondaryContext, registers.tcr),
    ctx_ttbr0 = const offset_of!(SecondaryContext, registers.ttbr0),
    ctx_ttbr1 = const offset_of!(SecondaryContext, registers.ttbr1),
    ctx_sctlr = const offset_of!(SecondaryContext, registers.sctlr),
    ctx_machine = const offset_of!(SecondaryContext, machine),
);

unsafe extern "C" {
    fn secondary_start();
}

/// Physical address at which PSCI starts a secondary, with the address of its [`SecondaryContext`] as context id.
pub(crate) fn secondary_start_address() -> u64 {
    secondary_start as *const () as u64
}
