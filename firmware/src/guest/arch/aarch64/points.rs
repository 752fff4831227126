//! Asking to be moved, with every register that can be read at EL1 before it and after it: [`Record`].
//!
//! A record is filled by assembly that uses no stack and no memory but the record, so it does as well before the MMU is on and inside a
//! handler. From the reading before to the reading after no register changes but by the move: those that the assembly needs have their
//! values back before the store that asks (docs/hypercall-abi.md), and are read behind it before anything else.
//!
//! ```text
//!   x26 the point's number    x27 where to store it    x28 the record    x25 the word of point_exclusive    x30 is lost
//! ```
//!
//! Neighbours: [`crate::guest::points`] is the tour; [`super::entry`] and [`super::mmu`] call the assembly where no Rust can run.
#![expect(unsafe_code, reason = "assembly, and what it stores")]

use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::sync::atomic::AtomicU64;

use abi::Gpa;
use abi::points::{ID_BASE, Point};

/// x0 to x30, and SP.
const GENERAL: usize = 32;
/// v0 to v31.
const VECTORS: usize = 32;
/// KVM's ids of general registers: `KVM_REG_ARM_CORE` and the offset in `struct kvm_regs` / 4.
const CORE: u64 = ID_BASE | 0x10_0000;
const SP_EL0: u64 = CORE + 2 * 31;
const SP_EL1: u64 = CORE + 2 * 34;
const ELR_EL1: u64 = CORE + 2 * 35;
const SPSR_EL1: u64 = CORE + 2 * 36;
/// V0: 128 bits, byte 336 of `struct kvm_regs`; each a word of 32 bits after the other.
const V0: u64 = 0x6040_0000_0010_0054;
/// FPSR and FPCR have 32 bits and lie behind 32 vector registers.
const FPSR: u64 = 0x6020_0000_0010_00d4;
const FPCR: u64 = FPSR + 1;
/// SPSel, whose bit 0 says which stack pointer SP is.
const SPSEL: u64 = sysreg(3, 0, 4, 2, 0);

/// KVM_REG_ARM64_SYSREG.
const fn sysreg(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    ID_BASE | 0x13_0000 | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// KVM's id of the register that MRS reads by this encoding.
const fn id(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    match (op0, op1, crn, crm, op2) {
        (3, 0, 4, 0, 0) => SPSR_EL1,
        (3, 0, 4, 0, 1) => ELR_EL1,
        (3, 0, 4, 1, 0) => SP_EL0,
        (3, 3, 4, 4, 0) => FPCR,
        (3, 3, 4, 4, 1) => FPSR,
        // KVM's ids of the virtual counter and of its compare value are swapped against the encodings.
        (3, 3, 14, 0, 2) => sysreg(3, 3, 14, 3, 2),
        (3, 3, 14, 3, 2) => sysreg(3, 3, 14, 0, 2),
        _ => sysreg(op0, op1, crn, crm, op2),
    }
}

/// Declares what is read: always, and where a check, whose assembly leaves zero in x0 for no, finds it. A part with a check has a slot for
/// what that left.
macro_rules! registers {
    (always { $($a0:literal $a1:literal $a2:literal $a3:literal $a4:literal;)* }
     $(where $check:literal { $($c0:literal $c1:literal $c2:literal $c3:literal $c4:literal;)* })*) => {
        /// Ids of what is always read.
        const ALWAYS: &[u64] = &[$(id($a0, $a1, $a2, $a3, $a4)),*];
        /// And of each part that has a check.
        const PARTS: &[&[u64]] = &[$(&[$(id($c0, $c1, $c2, $c3, $c4)),*]),*];

        global_asm!(
            // Reads all into slots from x28 on, which ends behind them. Clobbers x0, but no flags.
            "    .macro POINT_SYSTEM",
            $(concat!("    mrs x0, S", $a0, "_", $a1, "_C", $a2, "_C", $a3, "_", $a4, "\n    str x0, [x28], #8"),)*
            $(
                $check,
                "    str x0, [x28], #8\n    cbz x0, 1f\n    .set point_slots, 0",
                $(concat!("    mrs x0, S", $c0, "_", $c1, "_C", $c2, "_C", $c3, "_", $c4,
                    "\n    str x0, [x28], #8\n    .set point_slots, point_slots + 1"),)*
                "    b 2f\n1:  add x28, x28, #(8 * point_slots)\n2:",
            )*
            "    .endm",
            r#"
    // x0 to x30 and SP, to base and up. Clobbers x0.
    .macro POINT_GENERAL base
    stp     x0, x1, [x28, #(\base + 0)]
    stp     x2, x3, [x28, #(\base + 16)]
    stp     x4, x5, [x28, #(\base + 32)]
    stp     x6, x7, [x28, #(\base + 48)]
    stp     x8, x9, [x28, #(\base + 64)]
    stp     x10, x11, [x28, #(\base + 80)]
    stp     x12, x13, [x28, #(\base + 96)]
    stp     x14, x15, [x28, #(\base + 112)]
    stp     x16, x17, [x28, #(\base + 128)]
    stp     x18, x19, [x28, #(\base + 144)]
    stp     x20, x21, [x28, #(\base + 160)]
    stp     x22, x23, [x28, #(\base + 176)]
    stp     x24, x25, [x28, #(\base + 192)]
    stp     x26, x27, [x28, #(\base + 208)]
    stp     x28, x29, [x28, #(\base + 224)]
    str     x30, [x28, #(\base + 240)]
    mov     x0, sp
    str     x0, [x28, #(\base + 248)]
    .endm

    // v0 to v31, from x28 on, which ends behind them.
    .macro POINT_VECTORS
    .arch_extension fp
    stp     q0, q1, [x28], #32
    stp     q2, q3, [x28], #32
    stp     q4, q5, [x28], #32
    stp     q6, q7, [x28], #32
    stp     q8, q9, [x28], #32
    stp     q10, q11, [x28], #32
    stp     q12, q13, [x28], #32
    stp     q14, q15, [x28], #32
    stp     q16, q17, [x28], #32
    stp     q18, q19, [x28], #32
    stp     q20, q21, [x28], #32
    stp     q22, q23, [x28], #32
    stp     q24, q25, [x28], #32
    stp     q26, q27, [x28], #32
    stp     q28, q29, [x28], #32
    stp     q30, q31, [x28], #32
    .arch_extension nofp
    .endm

    .macro POINT_BEFORE
    POINT_GENERAL 0
    add     x28, x28, #{vectors}
    POINT_VECTORS
    add     x28, x28, #({before} - {vectors} - {vectors_bytes})
    POINT_SYSTEM
    sub     x28, x28, #{after}
    ldr     x0, [x28]
    .endm

    .macro POINT_AFTER
    POINT_GENERAL 256
    add     x28, x28, #({vectors} + {vectors_bytes})
    POINT_VECTORS
    add     x28, x28, #({after} - {before})
    POINT_SYSTEM
    sub     x28, x28, #{status}
    ldr     x0, [x28, #256]
    .endm

    .pushsection .text.points, "ax"
    .global point_ask
    .type point_ask, %function
point_ask:
    POINT_BEFORE
    str     w26, [x27]
    POINT_AFTER
    ret
    .size point_ask, . - point_ask

    .global point_wait
    .type point_wait, %function
point_wait:
    POINT_BEFORE
    str     w26, [x27]
    wfi
    POINT_AFTER
    ret
    .size point_wait, . - point_wait

    // x23 holds the word's value and x22 zero: a load-exclusive that reads the same, and a status that is put aside, leave them so.
    .global point_exclusive
    .type point_exclusive, %function
point_exclusive:
    POINT_BEFORE
    ldxr    x23, [x25]
    str     w26, [x27]
    stxr    w22, x24, [x25]
    str     x22, [x28, #{status}]
    mov     x22, xzr
    POINT_AFTER
    ret
    .size point_exclusive, . - point_exclusive
    .popsection
    "#,
            vectors = const offset_of!(Record, vectors),
            vectors_bytes = const size_of::<[u128; VECTORS]>(),
            before = const offset_of!(Record, before),
            after = const offset_of!(Record, after),
            status = const offset_of!(Record, status),
        );
    };
}

registers! {
    always {
        // CurrentEL, SPSel, NZCV, DAIF, FPCR, FPSR.
        3 0 4 2 2; 3 0 4 2 0; 3 3 4 2 0; 3 3 4 2 1; 3 3 4 4 0; 3 3 4 4 1;
        // ELR_EL1, SPSR_EL1; ESR_EL1, AFSR0_EL1, AFSR1_EL1, FAR_EL1, PAR_EL1; ISR_EL1.
        3 0 4 0 1; 3 0 4 0 0; 3 0 5 2 0; 3 0 5 1 0; 3 0 5 1 1; 3 0 6 0 0; 3 0 7 4 0; 3 0 12 1 0;
        // SCTLR_EL1, ACTLR_EL1, CPACR_EL1; TTBR0_EL1, TTBR1_EL1, TCR_EL1, MAIR_EL1, AMAIR_EL1; VBAR_EL1.
        3 0 1 0 0; 3 0 1 0 1; 3 0 1 0 2; 3 0 2 0 0; 3 0 2 0 1; 3 0 2 0 2; 3 0 10 2 0; 3 0 10 3 0; 3 0 12 0 0;
        // CONTEXTIDR_EL1, TPIDR_EL1, TPIDR_EL0, TPIDRRO_EL0.
        3 0 13 0 1; 3 0 13 0 4; 3 3 13 0 2; 3 3 13 0 3;
        // MIDR_EL1, MPIDR_EL1, REVIDR_EL1, AIDR_EL1; CLIDR_EL1, CSSELR_EL1, CCSIDR_EL1, CTR_EL0, DCZID_EL0.
        3 0 0 0 0; 3 0 0 0 5; 3 0 0 0 6; 3 1 0 0 7; 3 1 0 0 1; 3 2 0 0 0; 3 1 0 0 0; 3 3 0 0 1; 3 3 0 0 7;
        // The space of feature registers: AArch32's, then AArch64's; what has no name reads as zero.
        3 0 0 1 0; 3 0 0 1 1; 3 0 0 1 2; 3 0 0 1 3; 3 0 0 1 4; 3 0 0 1 5; 3 0 0 1 6; 3 0 0 1 7;
        3 0 0 2 0; 3 0 0 2 1; 3 0 0 2 2; 3 0 0 2 3; 3 0 0 2 4; 3 0 0 2 5; 3 0 0 2 6; 3 0 0 2 7;
        3 0 0 3 0; 3 0 0 3 1; 3 0 0 3 2; 3 0 0 3 3; 3 0 0 3 4; 3 0 0 3 5; 3 0 0 3 6; 3 0 0 3 7;
        3 0 0 4 0; 3 0 0 4 1; 3 0 0 4 2; 3 0 0 4 3; 3 0 0 4 4; 3 0 0 4 5; 3 0 0 4 6; 3 0 0 4 7;
        3 0 0 5 0; 3 0 0 5 1; 3 0 0 5 2; 3 0 0 5 3; 3 0 0 5 4; 3 0 0 5 5; 3 0 0 5 6; 3 0 0 5 7;
        3 0 0 6 0; 3 0 0 6 1; 3 0 0 6 2; 3 0 0 6 3; 3 0 0 6 4; 3 0 0 6 5; 3 0 0 6 6; 3 0 0 6 7;
        3 0 0 7 0; 3 0 0 7 1; 3 0 0 7 2; 3 0 0 7 3; 3 0 0 7 4; 3 0 0 7 5; 3 0 0 7 6; 3 0 0 7 7;
        // CNTFRQ_EL0, CNTKCTL_EL1; control and compare value of the virtual and of the physical timer; the counters.
        3 3 14 0 0; 3 0 14 1 0; 3 3 14 3 1; 3 3 14 3 2; 3 3 14 2 1; 3 3 14 2 2; 3 3 14 0 2; 3 3 14 0 1;
        // MDSCR_EL1, MDCCINT_EL1, OSLSR_EL1; two breakpoints and two watchpoints, which every CPU has.
        2 0 0 2 2; 2 0 0 2 0; 2 0 1 1 4;
        2 0 0 0 4; 2 0 0 0 5; 2 0 0 0 6; 2 0 0 0 7; 2 0 0 1 4; 2 0 0 1 5; 2 0 0 1 6; 2 0 0 1 7;
    }
    // The other stack pointer, which can be read while it is not SP: SPSel.SP.
    where "    mrs x0, spsel" {
        3 0 4 1 0;
    }
    // PMUv3: ID_AA64DFR0_EL1.PMUVer is neither 0 nor 0xf.
    where "    mrs x0, id_aa64dfr0_el1\n    ubfx x0, x0, #8, #4\n    cbz x0, 3f\n    eor x0, x0, #0xf\n3:" {
        // PMCR_EL0, PMCNTENSET_EL0, PMCNTENCLR_EL0, PMOVSCLR_EL0, PMSELR_EL0, PMCEID0_EL0, PMCEID1_EL0, PMCCNTR_EL0, PMUSERENR_EL0,
        // PMOVSSET_EL0, PMINTENSET_EL1, PMINTENCLR_EL1, PMCCFILTR_EL0.
        3 3 9 12 0; 3 3 9 12 1; 3 3 9 12 2; 3 3 9 12 3; 3 3 9 12 5; 3 3 9 12 6; 3 3 9 12 7; 3 3 9 13 0; 3 3 9 14 0;
        3 3 9 14 3; 3 0 9 14 1; 3 0 9 14 2; 3 3 14 15 7;
    }
    // The GIC's CPU interface as system registers: ID_AA64PFR0_EL1.GIC, and ICC_SRE_EL1.SRE.
    where "    mrs x0, id_aa64pfr0_el1\n    ubfx x0, x0, #24, #4\n    cbz x0, 3f\n    mrs x0, S3_0_C12_C12_5\n    and x0, x0, #1\n3:" {
        // ICC_SRE_EL1, ICC_PMR_EL1, ICC_CTLR_EL1, ICC_IGRPEN0_EL1, ICC_IGRPEN1_EL1, ICC_BPR0_EL1, ICC_BPR1_EL1, ICC_AP0R0_EL1,
        // ICC_AP1R0_EL1, ICC_RPR_EL1, ICC_HPPIR0_EL1, ICC_HPPIR1_EL1.
        3 0 12 12 5; 3 0 4 6 0; 3 0 12 12 4; 3 0 12 12 6; 3 0 12 12 7; 3 0 12 8 3; 3 0 12 12 3; 3 0 12 8 4; 3 0 12 9 0;
        3 0 12 11 3; 3 0 12 8 2; 3 0 12 12 2;
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

const _: () = assert!(offset_of!(Record, status) < 4096, "offsets are immediates of ADD");
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
        let slots = if after { &self.after } else { &self.before };
        let selected = ALWAYS.iter().zip(slots).find(|(id, _)| **id == SPSEL).map_or(0, |(_, value)| *value);
        let [registers @ .., stack] = &self.general[usize::from(after)];
        registers.iter().zip(0..).for_each(|(value, number)| each(CORE + 2 * number, (*value).into()));
        each(if selected == 0 { SP_EL0 } else { SP_EL1 }, (*stack).into());
        self.vectors[usize::from(after)].iter().zip(0..).for_each(|(value, number)| each(V0 + 4 * number, *value));
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
pub(crate) type Word = AtomicU64;

/// Gives each vector register a value of its own, which a move must keep; the compiler uses none of them.
pub(crate) fn fill_vectors() {
    // SAFETY: nothing but the workload's patterns uses them, within a pattern.
    unsafe {
        asm!(
            ".arch_extension simd",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "movi v\\n\\().16b, #(\\n + 1)",
            "ins v\\n\\().d[1], {number}",
            ".endr",
            ".arch_extension nosimd",
            number = in(reg) 0x0123_4567_89ab_cdef_u64,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// Asks to be moved by a store to `at`, and has been when it returns.
pub(crate) fn ask(at: Gpa, point: Point, record: *mut Record) {
    // SAFETY: the assembly stores to the record, which the caller has to itself, and asks; it keeps every register but x30.
    unsafe {
        asm!("bl point_ask", in("x26") point.number(), in("x27") at.raw(), in("x28") record, out("x30") _,
            options(nostack, preserves_flags));
    }
}

/// Tells of the point by a store to `at`, and waits for an interrupt, which is masked.
pub(crate) fn tell_and_wait(at: Gpa, point: Point, record: *mut Record) {
    // SAFETY: as above.
    unsafe {
        asm!("bl point_wait", in("x26") point.number(), in("x27") at.raw(), in("x28") record, out("x30") _,
            options(nostack, preserves_flags));
    }
}

/// Asks to be moved between a load-exclusive of `word`, which holds `value`, and a store-exclusive of one more. Whether that one says that
/// it has stored.
pub(crate) fn ask_between_exclusives(at: Gpa, point: Point, record: *mut Record, word: &Word, value: u64) -> bool {
    // SAFETY: as above; the word is an atomic.
    unsafe {
        asm!("bl point_exclusive", in("x22") 0, in("x23") value, in("x24") value + 1, in("x25") word.as_ptr(),
            in("x26") point.number(), in("x27") at.raw(), in("x28") record, out("x30") _,
            options(nostack, preserves_flags));
    }
    // SAFETY: the record is one.
    let status = unsafe { &raw const (*record).status };
    // SAFETY: the assembly has written it, and nobody else does.
    unsafe { status.read_volatile() == 0 }
}

/// Loads from `address`, at which nothing is mapped: a data abort, whose handler goes on behind the load. Whether nothing was loaded.
pub(crate) fn abort(address: u64) -> bool {
    let mut value = !address;
    // SAFETY: the handler skips the load.
    unsafe { asm!("ldr {value}, [{address}]", value = inout(reg) value, address = in(reg) address, options(nostack)) };
    value == !address
}
