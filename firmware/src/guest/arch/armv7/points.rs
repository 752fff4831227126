//! Asking to be moved, with every register that can be read at PL1 before it and after it: [`Record`].
//!
//! As on AArch64 a record is filled by assembly that uses no stack and no memory but the record, and no register changes from one reading to
//! the other but by the move. Registers are filed under the ids of those that KVM keeps them in, on 64-bit hosts: the architecture maps the
//! banked general registers to X13 to X30 (DDI 0487 D1.21.1), and most of CP15, whole or by half, to AArch64's system registers. A reading
//! goes through all modes, with interrupts masked.
//!
//! ```text
//!   r2 the point's number    r3 where to store it    r12 the record    r4 the word of point_exclusive    LR is lost
//! ```
//!
//! Neighbours: [`crate::guest::points`] is the tour; [`super::entry`] and [`super::mmu`] call the assembly where no Rust can run.
#![expect(unsafe_code, reason = "assembly, and what it stores")]

use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::sync::atomic::AtomicU32;

use abi::Gpa;
use abi::points::{ID_BASE, Point};

use super::features::has_simd;

/// X0 to X30, SPSR_svc, SPSR_abt, SPSR_und, SPSR_irq, SPSR_fiq, and the CPSR.
const GENERAL: usize = 31 + 5 + 1;
/// q0 to q15, which are V0 to V15.
const VECTORS: usize = 16;
/// V0: 128 bits, byte 336 of `struct kvm_regs`; each a word of 32 bits after the other.
const V0: u64 = 0x6040_0000_0010_0054;
/// KVM's ids of general registers: `KVM_REG_ARM_CORE` and the offset in `struct kvm_regs` / 4.
const CORE: u64 = ID_BASE | 0x10_0000;
/// The CPSR.
const PSTATE: u64 = CORE + 2 * 33;
const SPSR_SVC: u64 = CORE + 2 * 36;

/// KVM_REG_ARM64_SYSREG.
const fn id(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    ID_BASE | 0x13_0000 | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// Declares what is read: always, and where a check, whose assembly leaves zero in r0 for no, finds it. A part with a check has a slot for
/// what that left. Assembly of a register leaves it in r0 and r1, which was zero.
macro_rules! registers {
    (always { $($always:literal $op0:literal $op1:literal $crn:literal $crm:literal $op2:literal;)* }
     $(where $check:literal { $($part:literal $p0:literal $p1:literal $pn:literal $pm:literal $p2:literal;)* })*) => {
        /// Ids of what is always read.
        const ALWAYS: &[u64] = &[$(id($op0, $op1, $crn, $crm, $op2)),*];
        /// And of each part that has a check.
        const PARTS: &[&[u64]] = &[$(&[$(id($p0, $p1, $pn, $pm, $p2)),*]),*];

        global_asm!(
            r#"
    .arm
    .fpu neon
    .macro POINT_SLOT
    str     r0, [r12], #4
    str     r1, [r12], #4
    mov     r1, #0
    .set    point_slots, point_slots + 1
    .endm
    // Reads all into slots from r12 on, which ends behind them. Clobbers r0, r1 and the flags.
    .macro POINT_SYSTEM
    mov     r1, #0
    .set    point_slots, 0
            "#,
            $($always, "    POINT_SLOT",)*
            $(
                $check,
                "    str r0, [r12], #4\n    str r1, [r12], #4\n    cmp r0, #0\n    beq 1f\n    .set point_slots, 0",
                $($part, "    POINT_SLOT",)*
                "    b 2f\n1:  add r12, r12, #(8 * point_slots)\n2:",
            )*
            "    .endm",
            r#"
    // The general registers of all modes and their saved statuses, to base and up. Clobbers r0 and r1.
    .macro POINT_GENERAL base
    str     r0, [r12, #(\base + 0)]
    str     r1, [r12, #(\base + 8)]
    str     r2, [r12, #(\base + 16)]
    str     r3, [r12, #(\base + 24)]
    str     r4, [r12, #(\base + 32)]
    str     r5, [r12, #(\base + 40)]
    str     r6, [r12, #(\base + 48)]
    str     r7, [r12, #(\base + 56)]
    str     r8, [r12, #(\base + 64)]
    str     r9, [r12, #(\base + 72)]
    str     r10, [r12, #(\base + 80)]
    str     r11, [r12, #(\base + 88)]
    str     r12, [r12, #(\base + 96)]
    mrs     r0, cpsr
    str     r0, [r12, #(\base + 288)]
    add     r1, r12, #\base             // FIQ mode has an r12 of its own
    cps     #0x1f
    str     sp, [r1, #(8 * 13)]
    str     lr, [r1, #(8 * 14)]
    cps     #0x12
    str     lr, [r1, #(8 * 16)]
    str     sp, [r1, #(8 * 17)]
    mrs     r0, spsr
    str     r0, [r1, #(8 * 34)]
    cps     #0x13
    str     lr, [r1, #(8 * 18)]
    str     sp, [r1, #(8 * 19)]
    mrs     r0, spsr
    str     r0, [r1, #(8 * 31)]
    cps     #0x17
    str     lr, [r1, #(8 * 20)]
    str     sp, [r1, #(8 * 21)]
    mrs     r0, spsr
    str     r0, [r1, #(8 * 32)]
    cps     #0x1b
    str     lr, [r1, #(8 * 22)]
    str     sp, [r1, #(8 * 23)]
    mrs     r0, spsr
    str     r0, [r1, #(8 * 33)]
    cps     #0x11
    str     r8, [r1, #(8 * 24)]
    str     r9, [r1, #(8 * 25)]
    str     r10, [r1, #(8 * 26)]
    str     r11, [r1, #(8 * 27)]
    str     r12, [r1, #(8 * 28)]
    str     sp, [r1, #(8 * 29)]
    str     lr, [r1, #(8 * 30)]
    mrs     r0, spsr
    str     r0, [r1, #(8 * 35)]
    ldr     r0, [r1, #288]
    msr     cpsr_c, r0
    .endm

    // What was clobbered is as it was at base.
    .macro POINT_RESTORE base
    ldr     r0, [r12, #(\base + 288)]
    msr     cpsr_f, r0
    ldr     r0, [r12, #(\base + 0)]
    ldr     r1, [r12, #(\base + 8)]
    .endm

    // d0 to d31 from r12 on, which ends behind them, where the entry code could enable them: then there are 32, as in every AArch32 state of a
    // 64-bit CPU and in the Cortex-A15. Clobbers r0 and the flags.
    .macro POINT_VECTORS
    mrc     p15, 0, r0, c1, c0, 2
    and     r0, r0, #(0xf << 20)
    cmp     r0, #(0xf << 20)
    bne     1f
    vstmia  r12!, {{d0-d15}}
    vstmia  r12!, {{d16-d31}}
    b       2f
1:  add     r12, r12, #{vectors_bytes}
2:
    .endm

    // Offsets are no immediates of ADD, whatever their size; r0 is scratch where they are used.
    .macro POINT_BEFORE
    POINT_GENERAL 0
    movw    r0, #{vectors}
    add     r12, r12, r0
    POINT_VECTORS
    add     r12, r12, #{vectors_bytes}
    POINT_SYSTEM
    movw    r0, #{after}
    sub     r12, r12, r0
    POINT_RESTORE 0
    .endm

    .macro POINT_AFTER
    POINT_GENERAL {general}
    movw    r0, #({vectors} + {vectors_bytes})
    add     r12, r12, r0
    POINT_VECTORS
    movw    r0, #({after} - {before})
    add     r12, r12, r0
    POINT_SYSTEM
    movw    r0, #{status}
    sub     r12, r12, r0
    POINT_RESTORE {general}
    .endm

    .pushsection .text.points, "ax"
    .global point_ask
    .type point_ask, %function
point_ask:
    POINT_BEFORE
    str     r2, [r3]
    POINT_AFTER
    bx      lr
    .size point_ask, . - point_ask

    .global point_wait
    .type point_wait, %function
point_wait:
    POINT_BEFORE
    str     r2, [r3]
    wfi
    POINT_AFTER
    bx      lr
    .size point_wait, . - point_wait

    // r0 holds the word's value and r5 zero: a load-exclusive that reads the same, and a status that is put aside, leave them so.
    .global point_exclusive
    .type point_exclusive, %function
point_exclusive:
    POINT_BEFORE
    ldrex   r0, [r4]
    str     r2, [r3]
    strex   r5, r1, [r4]
    str     r5, [r12, #{status}]
    mov     r5, #0
    POINT_AFTER
    bx      lr
    .size point_exclusive, . - point_exclusive
    .popsection
    "#,
            vectors = const offset_of!(Record, vectors),
            vectors_bytes = const size_of::<[u128; VECTORS]>(),
            before = const offset_of!(Record, before),
            general = const size_of::<[u64; GENERAL]>(),
            after = const offset_of!(Record, after),
            status = const offset_of!(Record, status),
        );
    };
}

registers! {
    always {
        // DFSR, IFSR, ADFSR, AIFSR; DFAR and IFAR; PAR; ISR.
        "    mrc p15, 0, r0, c5, c0, 0" 3 0 5 2 0;
        "    mrc p15, 0, r0, c5, c0, 1" 3 4 5 0 1;
        "    mrc p15, 0, r0, c5, c1, 0" 3 0 5 1 0;
        "    mrc p15, 0, r0, c5, c1, 1" 3 0 5 1 1;
        "    mrc p15, 0, r0, c6, c0, 0\n    mrc p15, 0, r1, c6, c0, 2" 3 0 6 0 0;
        "    mrrc p15, 0, r0, r1, c7" 3 0 7 4 0;
        "    mrc p15, 0, r0, c12, c1, 0" 3 0 12 1 0;
        // SCTLR, ACTLR, CPACR; TTBR0, TTBR1, TTBCR, DACR; PRRR and NMRR or MAIR0 and MAIR1, AMAIR0 and AMAIR1; VBAR.
        "    mrc p15, 0, r0, c1, c0, 0" 3 0 1 0 0;
        "    mrc p15, 0, r0, c1, c0, 1" 3 0 1 0 1;
        "    mrc p15, 0, r0, c1, c0, 2" 3 0 1 0 2;
        "    mrrc p15, 0, r0, r1, c2" 3 0 2 0 0;
        "    mrrc p15, 1, r0, r1, c2" 3 0 2 0 1;
        "    mrc p15, 0, r0, c2, c0, 2" 3 0 2 0 2;
        "    mrc p15, 0, r0, c3, c0, 0" 3 4 3 0 0;
        "    mrc p15, 0, r0, c10, c2, 0\n    mrc p15, 0, r1, c10, c2, 1" 3 0 10 2 0;
        "    mrc p15, 0, r0, c10, c3, 0\n    mrc p15, 0, r1, c10, c3, 1" 3 0 10 3 0;
        "    mrc p15, 0, r0, c12, c0, 0" 3 0 12 0 0;
        // CONTEXTIDR, TPIDRURW, TPIDRURO, TPIDRPRW.
        "    mrc p15, 0, r0, c13, c0, 1" 3 0 13 0 1;
        "    mrc p15, 0, r0, c13, c0, 2" 3 3 13 0 2;
        "    mrc p15, 0, r0, c13, c0, 3" 3 3 13 0 3;
        "    mrc p15, 0, r0, c13, c0, 4" 3 0 13 0 4;
        // MIDR, CTR, MPIDR; CCSIDR, CLIDR, CSSELR.
        "    mrc p15, 0, r0, c0, c0, 0" 3 0 0 0 0;
        "    mrc p15, 0, r0, c0, c0, 1" 3 3 0 0 1;
        "    mrc p15, 0, r0, c0, c0, 5" 3 0 0 0 5;
        "    mrc p15, 1, r0, c0, c0, 0" 3 1 0 0 0;
        "    mrc p15, 1, r0, c0, c0, 1" 3 1 0 0 1;
        "    mrc p15, 2, r0, c0, c0, 0" 3 2 0 0 0;
        // ID_PFR0 to ID_MMFR3, ID_ISAR0 to ID_ISAR6 with ID_MMFR4.
        "    mrc p15, 0, r0, c0, c1, 0" 3 0 0 1 0;
        "    mrc p15, 0, r0, c0, c1, 1" 3 0 0 1 1;
        "    mrc p15, 0, r0, c0, c1, 2" 3 0 0 1 2;
        "    mrc p15, 0, r0, c0, c1, 3" 3 0 0 1 3;
        "    mrc p15, 0, r0, c0, c1, 4" 3 0 0 1 4;
        "    mrc p15, 0, r0, c0, c1, 5" 3 0 0 1 5;
        "    mrc p15, 0, r0, c0, c1, 6" 3 0 0 1 6;
        "    mrc p15, 0, r0, c0, c1, 7" 3 0 0 1 7;
        "    mrc p15, 0, r0, c0, c2, 0" 3 0 0 2 0;
        "    mrc p15, 0, r0, c0, c2, 1" 3 0 0 2 1;
        "    mrc p15, 0, r0, c0, c2, 2" 3 0 0 2 2;
        "    mrc p15, 0, r0, c0, c2, 3" 3 0 0 2 3;
        "    mrc p15, 0, r0, c0, c2, 4" 3 0 0 2 4;
        "    mrc p15, 0, r0, c0, c2, 5" 3 0 0 2 5;
        "    mrc p15, 0, r0, c0, c2, 6" 3 0 0 2 6;
        "    mrc p15, 0, r0, c0, c2, 7" 3 0 0 2 7;
        // CNTFRQ, CNTKCTL; control and compare value of the virtual and of the physical timer; the counters. KVM's ids of the virtual
        // counter and of its compare value are swapped against AArch64's encodings.
        "    mrc p15, 0, r0, c14, c0, 0" 3 3 14 0 0;
        "    mrc p15, 0, r0, c14, c1, 0" 3 0 14 1 0;
        "    mrc p15, 0, r0, c14, c3, 1" 3 3 14 3 1;
        "    mrrc p15, 3, r0, r1, c14" 3 3 14 0 2;
        "    mrc p15, 0, r0, c14, c2, 1" 3 3 14 2 1;
        "    mrrc p15, 2, r0, r1, c14" 3 3 14 2 2;
        "    mrrc p15, 1, r0, r1, c14" 3 3 14 3 2;
        "    mrrc p15, 0, r0, r1, c14" 3 3 14 0 1;
        // DBGDSCRext, DBGVCR, DBGOSLSR; a breakpoint and a watchpoint, which every CPU has.
        "    mrc p14, 0, r0, c0, c2, 2" 2 0 0 2 2;
        "    mrc p14, 0, r0, c0, c7, 0" 2 4 0 7 0;
        "    mrc p14, 0, r0, c1, c1, 4" 2 0 1 1 4;
        "    mrc p14, 0, r0, c0, c0, 4" 2 0 0 0 4;
        "    mrc p14, 0, r0, c0, c0, 5" 2 0 0 0 5;
        "    mrc p14, 0, r0, c0, c0, 6" 2 0 0 0 6;
        "    mrc p14, 0, r0, c0, c0, 7" 2 0 0 0 7;
    }
    // VFP's registers, where the entry code could enable coprocessors 10 and 11: FPEXC, MVFR0, MVFR1.
    where "    mrc p15, 0, r0, c1, c0, 2\n    and r0, r0, #(0xf << 20)\n    eor r0, r0, #(0xf << 20)\n    cmp r0, #0\n    \
           movne r0, #0\n    moveq r0, #1" {
        "    vmrs r0, fpexc" 3 4 5 3 0;
        "    vmrs r0, mvfr0" 3 0 0 3 0;
        "    vmrs r0, mvfr1" 3 0 0 3 1;
    }
    // PMUv3: ID_DFR0.PerfMon is 3 or more, and not 0xf.
    where "    mrc p15, 0, r0, c0, c1, 2\n    ubfx r0, r0, #24, #4\n    cmp r0, #0xf\n    moveq r0, #0\n    cmp r0, #3\n    \
           movlo r0, #0" {
        // PMCR, PMCNTENSET, PMCNTENCLR, PMOVSR, PMSELR, PMCEID0, PMCEID1, PMCCNTR, PMUSERENR, PMINTENSET, PMINTENCLR, PMOVSSET,
        // PMCCFILTR.
        "    mrc p15, 0, r0, c9, c12, 0" 3 3 9 12 0;
        "    mrc p15, 0, r0, c9, c12, 1" 3 3 9 12 1;
        "    mrc p15, 0, r0, c9, c12, 2" 3 3 9 12 2;
        "    mrc p15, 0, r0, c9, c12, 3" 3 3 9 12 3;
        "    mrc p15, 0, r0, c9, c12, 5" 3 3 9 12 5;
        "    mrc p15, 0, r0, c9, c12, 6" 3 3 9 12 6;
        "    mrc p15, 0, r0, c9, c12, 7" 3 3 9 12 7;
        "    mrc p15, 0, r0, c9, c13, 0" 3 3 9 13 0;
        "    mrc p15, 0, r0, c9, c14, 0" 3 3 9 14 0;
        "    mrc p15, 0, r0, c9, c14, 1" 3 0 9 14 1;
        "    mrc p15, 0, r0, c9, c14, 2" 3 0 9 14 2;
        "    mrc p15, 0, r0, c9, c14, 3" 3 3 9 14 3;
        "    mrc p15, 0, r0, c14, c15, 7" 3 3 14 15 7;
    }
    // The GIC's CPU interface as system registers: ID_PFR1.GIC, and ICC_SRE.SRE.
    where "    mrc p15, 0, r0, c0, c1, 1\n    lsr r0, r0, #28\n    cmp r0, #0\n    beq 3f\n    mrc p15, 0, r0, c12, c12, 5\n    \
           and r0, r0, #1\n3:" {
        // ICC_SRE, ICC_PMR, ICC_CTLR, ICC_IGRPEN0, ICC_IGRPEN1, ICC_BPR0, ICC_BPR1, ICC_AP0R0, ICC_AP1R0, ICC_RPR, ICC_HPPIR0,
        // ICC_HPPIR1.
        "    mrc p15, 0, r0, c12, c12, 5" 3 0 12 12 5;
        "    mrc p15, 0, r0, c4, c6, 0" 3 0 4 6 0;
        "    mrc p15, 0, r0, c12, c12, 4" 3 0 12 12 4;
        "    mrc p15, 0, r0, c12, c12, 6" 3 0 12 12 6;
        "    mrc p15, 0, r0, c12, c12, 7" 3 0 12 12 7;
        "    mrc p15, 0, r0, c12, c8, 3" 3 0 12 8 3;
        "    mrc p15, 0, r0, c12, c12, 3" 3 0 12 12 3;
        "    mrc p15, 0, r0, c12, c8, 4" 3 0 12 8 4;
        "    mrc p15, 0, r0, c12, c9, 0" 3 0 12 9 0;
        "    mrc p15, 0, r0, c12, c11, 3" 3 0 12 11 3;
        "    mrc p15, 0, r0, c12, c8, 2" 3 0 12 8 2;
        "    mrc p15, 0, r0, c12, c12, 2" 3 0 12 12 2;
    }
}

const SLOTS: usize = {
    let (mut slots, mut part) = (ALWAYS.len(), 0);
    while part < PARTS.len() {
        slots += 1 + PARTS[part].len();
        part += 1;
    }
    slots
};

/// What was read before a point and after it.
#[repr(C, align(64))]
pub(crate) struct Record {
    general: [[u64; GENERAL]; 2],
    vectors: [[u128; VECTORS]; 2],
    before: [u64; SLOTS],
    after: [u64; SLOTS],
    /// Of [`ask_between_exclusives`]: what the store-exclusive said.
    status: u64,
}

const _: () = assert!(offset_of!(Record, status) < 4096, "offsets are immediates of STR");
const _: () = assert!(
    offset_of!(Record, before) == offset_of!(Record, vectors) + 2 * size_of::<[u128; VECTORS]>(),
    "what is read before a point lies behind the vector registers"
);

impl Record {
    /// One that nothing has been read to.
    pub(crate) const BLANK: Self = Self {
        general: [[0; GENERAL]; 2],
        vectors: [[0; VECTORS]; 2],
        before: [0; SLOTS],
        after: [0; SLOTS],
        status: 0,
    };

    /// Calls `each` with KVM's id and the value of every register that was read before the point, or after it.
    pub(crate) fn registers(&self, after: bool, mut each: impl FnMut(u64, u128)) {
        let (registers, others) = self.general[usize::from(after)].split_at(31);
        // R13_hyp, which is X15, is out of reach.
        let seen = registers.iter().zip(0..).filter(|(_, number)| *number != 15);
        seen.for_each(|(value, number)| each(CORE + 2 * number, (*value).into()));
        let ids = (0..5).map(|saved| SPSR_SVC + 2 * saved).chain([PSTATE]);
        others.iter().zip(ids).for_each(|(value, id)| each(id, (*value).into()));
        self.vectors[usize::from(after)].iter().zip(0..).for_each(|(value, number)| each(V0 + 4 * number, *value));
        let slots = if after { &self.after } else { &self.before };
        let (always, mut rest) = slots.split_at(ALWAYS.len());
        ALWAYS.iter().zip(always).for_each(|(id, value)| each(*id, (*value).into()));
        for part in PARTS {
            let Some((found, values)) = rest.split_first() else { return };
            if *found != 0 {
                part.iter().zip(values).for_each(|(id, value)| each(*id, (*value).into()));
            }
            rest = values.get(part.len()..).unwrap_or_default();
        }
    }
}

/// A word of exclusives.
pub(crate) type Word = AtomicU32;

/// Gives each vector register a value of its own, which a move must keep; the compiler uses none of them.
pub(crate) fn fill_vectors() {
    if !has_simd() {
        return;
    }
    // SAFETY: nothing but the workload's patterns uses them, within a pattern; they are enabled.
    unsafe {
        asm!(
            ".fpu neon",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "vmov.i8 d\\n, #(\\n + 1)",
            ".endr",
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// Asks to be moved by a store to `at`, and has been when it returns. Interrupts are masked.
pub(crate) fn ask(at: Gpa, point: Point, record: *mut Record) {
    // SAFETY: the assembly stores to the record, which the caller has to itself, and asks; it keeps every register but LR.
    unsafe {
        asm!("bl point_ask", in("r2") point.number(), in("r3") at.raw() as u32, in("r12") record, out("lr") _,
            options(nostack, preserves_flags));
    }
}

/// Tells of the point by a store to `at`, and waits for an interrupt, which is masked.
pub(crate) fn tell_and_wait(at: Gpa, point: Point, record: *mut Record) {
    // SAFETY: as above.
    unsafe {
        asm!("bl point_wait", in("r2") point.number(), in("r3") at.raw() as u32, in("r12") record, out("lr") _,
            options(nostack, preserves_flags));
    }
}

/// Asks to be moved between a load-exclusive of `word`, which holds `value`, and a store-exclusive of one more. Whether that one says that
/// it has stored. Interrupts are masked.
pub(crate) fn ask_between_exclusives(at: Gpa, point: Point, record: *mut Record, word: &Word, value: u32) -> bool {
    // SAFETY: as above; the word is an atomic.
    unsafe {
        asm!("bl point_exclusive", in("r0") value, in("r1") value + 1, in("r4") word.as_ptr(), in("r5") 0,
            in("r2") point.number(), in("r3") at.raw() as u32, in("r12") record, out("lr") _,
            options(nostack, preserves_flags));
    }
    // SAFETY: the record is one.
    let status = unsafe { &raw const (*record).status };
    // SAFETY: the assembly has written it, and nobody else does.
    unsafe { status.read_volatile() == 0 }
}

/// Loads from `address`, at which nothing is mapped: a data abort, whose handler goes on behind the load. Whether nothing was loaded.
pub(crate) fn abort(address: u64) -> bool {
    let address = address as u32;
    let mut value = !address;
    // SAFETY: the handler skips the load.
    unsafe { asm!("ldr {value}, [{address}]", value = inout(reg) value, address = in(reg) address, options(nostack)) };
    value == !address
}
