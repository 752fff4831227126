//! First instructions of every vCPU: down to PL1, translation on, stacks, a blank `.bss`; then Rust.
//!
//! The primary starts on a table that is part of the image: short-descriptor sections of 1 MiB, everything at its own
//! address. So all Rust code runs with caches on, where unaligned accesses and exclusives work, and nothing is ever
//! written around the caches. Every CPU has short descriptors; [`super::mmu`] leaves them for what the host asked for.
//!
//! A vCPU runs in System mode and takes exceptions in Supervisor mode: the two stacks of [`crate::guest::image`].
//! Coprocessors 10 and 11 are enabled for the patterns that store vectors; the compiler uses neither.
//!
//! Neighbours: [`crate::guest::smp`] fills the [`SecondaryContext`] that a secondary starts from; the vectors are in
//! [`super::vectors`].
#![expect(unsafe_code, reason = "a symbol that assembly defines")]

use core::arch::global_asm;
use core::mem::offset_of;

use abi::Gpa;
use abi::points::Point;
use pagetable::short::{DACR, First, NMRR, PRRR, TTBCR};
use pagetable::{Attributes, Execute};

use super::points::Record;
use crate::guest::smp::SecondaryContext;

/// SCTLR with MMU and caches off: the bits that are RES1 (DDI 0487 G8.2.126: LSMAOE, nTLSMD, CP15BEN, Z on ARMv7, nTWI,
/// nTWE, U on ARMv7, SPAN), TEX remap and the access flag, which mean nothing yet.
pub(crate) const SCTLR_MMU_OFF: u32 = 0x00c5_0838 | 1 << 28 | 1 << 29;

/// SCTLR's bits for the MMU, the data and the instruction caches.
pub(crate) const SCTLR_MMU_AND_CACHES: u32 = 1 | 1 << 2 | 1 << 12;
const SCTLR_BOOT: u32 = SCTLR_MMU_OFF | SCTLR_MMU_AND_CACHES;

const fn boot_section(attributes: Attributes) -> u32 {
    First::Section { gpa: Gpa::new(0), attributes }.encode()
}
const BOOT_DEVICE: u32 = boot_section(Attributes::DEVICE);
const BOOT_TEXT: u32 = boot_section(Attributes { execute: Execute::El1, ..Attributes::DATA });
const BOOT_DATA: u32 = boot_section(Attributes::DATA);
/// TTBR0's bits beside the boot table's address.
const BOOT_WALK: u32 = pagetable::short::ttbr0(Gpa::new(0));

global_asm!(
    r#"
    .macro SET32 register, value
        movw    \register, #:lower16:\value
        movt    \register, #:upper16:\value
    .endm

    // From Hyp mode or any mode of PL1 to Supervisor mode with everything masked and a known SCTLR. Clobbers r4 and r5.
    .macro TO_SUPERVISOR
        cpsid   aif
        mrs     r4, cpsr
        and     r4, r4, #0x1f
        cmp     r4, #0x1a
        bne     8f
        mov     r4, #0
        mcr     p15, 4, r4, c1, c1, 0       // HCR: nothing is trapped
        mcr     p15, 4, r4, c1, c1, 3       // HSTR
        movw    r5, #0x33ff                 // HCPTR: RES1 bits only, no FP trap
        mcr     p15, 4, r5, c1, c1, 2
        mrc     p15, 4, r5, c14, c1, 0      // CNTHCTL: PL1PCTEN, PL1PCEN
        orr     r5, r5, #3
        mcr     p15, 4, r5, c14, c1, 0
        mcrr    p15, 4, r4, r4, c14         // CNTVOFF
        mrc     p15, 0, r5, c0, c0, 0       // MIDR to VPIDR
        mcr     p15, 4, r5, c0, c0, 0
        mrc     p15, 0, r5, c0, c0, 5       // MPIDR to VMPIDR
        mcr     p15, 4, r5, c0, c0, 5
        mrc     p15, 0, r5, c0, c1, 1       // ID_PFR1: GIC system registers?
        tst     r5, #0xf0000000
        beq     7f
        mrc     p15, 4, r5, c12, c9, 5      // ICC_HSRE: SRE and Enable
        orr     r5, r5, #9
        mcr     p15, 4, r5, c12, c9, 5
        isb
        mcr     p15, 4, r4, c12, c11, 0     // ICH_HCR
    7:
        mov     r5, #0xd3                   // Supervisor mode, I and F masked
        orr     r5, r5, #0x100              // A masked
        msr     spsr_cxsf, r5
        adr     r5, 8f
        .arch_extension virt
        msr     elr_hyp, r5
        eret
    8:
        cps     #0x13
        SET32   r5, {sctlr_off}
        mcr     p15, 0, r5, c1, c0, 0
        isb
        mrc     p15, 0, r5, c1, c0, 2       // CPACR: coprocessors 10 and 11
        orr     r5, r5, #(0xf << 20)
        mcr     p15, 0, r5, c1, c0, 2
        isb
        mrc     p15, 0, r5, c1, c0, 2       // they read as zero where they are not
        and     r5, r5, #(0xf << 20)
        cmp     r5, #(0xf << 20)
        bne     9f
        mov     r5, #(1 << 30)              // FPEXC.EN
        .fpu neon
        vmsr    fpexc, r5
    9:
        SET32   r5, exception_vectors
        mcr     p15, 0, r5, c12, c0, 0      // VBAR
        isb
    .endm

    // Drops what TLB, instruction cache and branch predictor hold, before the MMU goes on. Clobbers r5.
    .macro FORGET
        isb
        mov     r5, #0
        mcr     p15, 0, r5, c8, c7, 0       // TLBIALL
        mcr     p15, 0, r5, c7, c5, 0       // ICIALLU
        mcr     p15, 0, r5, c7, c5, 6       // BPIALL
        dsb
        isb
    .endm

    // From exception stack top in r4 and stack top in r5 to System mode on that stack, frame chain ended.
    .macro SET_STACKS
        mov     sp, r4
        cps     #0x1f
        mov     sp, r5
        mov     r11, #0
        mov     lr, #0
    .endm

    .pushsection .text.entry, "ax"
    .arm
    .global _start
    .type _start, %function
_start:
    mov     r8, r2                          // devicetree; in r3, where to ask to be moved here, if at all
    TO_SUPERVISOR
    mov     r5, #0
    mcr     p15, 0, r5, c13, c0, 4          // TPIDRPRW: vCPU 0
    cmp     r3, #0
    beq     3f
    SET32   r12, (POINT_RECORDS + {record})
    mov     r2, #{mmu_off}
    bl      point_ask
3:
    SET32   r5, {ttbcr}
    mcr     p15, 0, r5, c2, c0, 2
    SET32   r5, {prrr}
    mcr     p15, 0, r5, c10, c2, 0
    SET32   r5, {nmrr}
    mcr     p15, 0, r5, c10, c2, 1
    SET32   r5, {dacr}
    mcr     p15, 0, r5, c3, c0, 0
    SET32   r5, boot_table
    orr     r5, r5, #{boot_walk}
    mcr     p15, 0, r5, c2, c0, 0           // TTBR0
    FORGET
    SET32   r5, {sctlr_boot}
    mcr     p15, 0, r5, c1, c0, 0           // identity-mapped: the next instruction is where it was
    isb
    SET32   r4, __stacks_start              // guard, stack, guard, exception stack
    add     r5, r4, #(2 * {stack_bytes})
    add     r4, r5, #(2 * {stack_bytes})
    SET_STACKS
    SET32   r4, __bss_start
    SET32   r5, __bss_end
    mov     r0, #0
    mov     r1, #0
    mov     r2, #0
    mov     r3, #0
1:  cmp     r4, r5
    stmlo   r4!, {{r0-r3}}
    blo     1b
    mov     r0, r8
    bl      primary_entry
    udf     #0
    .size _start, . - _start

    .global secondary_start
    .type secondary_start, %function
secondary_start:
    mov     r8, r0                          // SecondaryContext
    TO_SUPERVISOR
    ldr     r5, [r8, #{ctx_vcpu}]
    mcr     p15, 0, r5, c13, c0, 4
    ldr     r5, [r8, #{ctx_mair0}]
    mcr     p15, 0, r5, c10, c2, 0          // PRRR or MAIR0
    ldr     r5, [r8, #{ctx_mair1}]
    mcr     p15, 0, r5, c10, c2, 1          // NMRR or MAIR1
    ldr     r5, [r8, #{ctx_dacr}]
    mcr     p15, 0, r5, c3, c0, 0
    ldr     r5, [r8, #{ctx_ttbcr}]
    mcr     p15, 0, r5, c2, c0, 2
    isb
    ldr     r4, [r8, #{ctx_ttbr0}]
    mov     r6, #0
    tst     r5, #0x80000000                 // EAE: TTBR0 has 64 bits
    mcrrne  p15, 0, r4, r6, c2
    mcreq   p15, 0, r4, c2, c0, 0
    FORGET
    ldr     r5, [r8, #{ctx_sctlr}]
    mcr     p15, 0, r5, c1, c0, 0           // identity-mapped: the next instruction is where it was
    isb
    ldr     r4, [r8, #{ctx_exception_stack}]
    ldr     r5, [r8, #{ctx_stack}]
    SET_STACKS
    ldr     r0, [r8, #{ctx_machine}]
    ldr     r1, [r8, #{ctx_vcpu}]
    bl      secondary_entry
    udf     #0
    .size secondary_start, . - secondary_start
    .popsection

    // 1 MiB each: devices and region in the first GiB, then RAM; the image lies in the first GiB of RAM.
    .pushsection .rodata.boot_table, "a"
    .balign 0x4000
boot_table:
    .set    mib, 0
    .rept   0x400
    .long   {boot_device} + (mib << 20)
    .set    mib, mib + 1
    .endr
    .rept   0x400
    .long   {boot_text} + (mib << 20)
    .set    mib, mib + 1
    .endr
    .rept   0x800
    .long   {boot_data} + (mib << 20)
    .set    mib, mib + 1
    .endr
    .popsection
    "#,
    record = const size_of::<Record>() * Point::MmuOff.number() as usize,
    mmu_off = const Point::MmuOff.number(),
    sctlr_off = const SCTLR_MMU_OFF,
    sctlr_boot = const SCTLR_BOOT,
    ttbcr = const TTBCR,
    prrr = const PRRR,
    nmrr = const NMRR,
    dacr = const DACR,
    boot_walk = const BOOT_WALK,
    boot_device = const BOOT_DEVICE,
    boot_text = const BOOT_TEXT,
    boot_data = const BOOT_DATA,
    stack_bytes = const crate::guest::image::STACK_BYTES,
    ctx_vcpu = const offset_of!(SecondaryContext, vcpu),
    ctx_stack = const offset_of!(SecondaryContext, stack_top),
    ctx_exception_stack = const offset_of!(SecondaryContext, exception_stack_top),
    ctx_mair0 = const offset_of!(SecondaryContext, registers.mair0),
    ctx_mair1 = const offset_of!(SecondaryContext, registers.mair1),
    ctx_dacr = const offset_of!(SecondaryContext, registers.dacr),
    ctx_ttbcr = const offset_of!(SecondaryContext, registers.ttbcr),
    ctx_ttbr0 = const offset_of!(SecondaryContext, registers.ttbr0),
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
