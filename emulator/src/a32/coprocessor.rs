//! Coprocessor registers: CP15, CP14 and, in CP10, the system registers of VFP.
//!
//! [`read`] and [`write()`] are MRC and MCR, [`read64`] and [`write64`] MRRC and MCRR, [`read_fp`] and [`write_fp`] VMRS and VMSR. A
//! register of CP15 is, whole or by half, the AArch64 register that the architecture maps it to (DDI 0487 D1.21.2) and that KVM keeps
//! it in; [`cp15`] and [`cp14`] are these mappings, [`command`] that of the cache, TLB and translation instructions, and
//! [`crate::sysreg`] does the rest, EL0's rules included. What is not in them is UNDEFINED and noted by name.

use std::sync::atomic::{Ordering, fence};

use crate::cpu::{Cpu, Trap};
use crate::sysreg::enc::{self, *};
use crate::sysreg::{self, id, id32};

/// Which register MRC or MCR names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mrc {
    /// Coprocessor: 14 or 15.
    pub coproc: u8,
    /// opc1.
    pub opc1: u8,
    /// CRn.
    pub crn: u8,
    /// CRm.
    pub crm: u8,
    /// opc2.
    pub opc2: u8,
}

impl Mrc {
    fn note(self, cpu: &Cpu, mnemonic: &str) -> Trap {
        let Self { coproc, opc1, crn, crm, opc2 } = self;
        cpu.shared.note_unimplemented(&format!("{mnemonic} p{coproc}, {opc1}, c{crn}, c{crm}, {opc2}"));
        Trap::Undefined
    }
}

/// Which register MRRC or MCRR names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mrrc {
    /// Coprocessor: 14 or 15.
    pub coproc: u8,
    /// opc1.
    pub opc1: u8,
    /// CRm.
    pub crm: u8,
}

impl Mrrc {
    fn note(self, cpu: &Cpu, mnemonic: &str) -> Trap {
        let Self { coproc, opc1, crm } = self;
        cpu.shared.note_unimplemented(&format!("{mnemonic} p{coproc}, {opc1}, c{crm}"));
        Trap::Undefined
    }
}

/// Where a 32-bit register is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// In the AArch64 register with this encoding, whose upper half it clears when it is written.
    Whole(u16),
    /// In the low half of this one; the upper half is another register's.
    Low(u16),
    /// In the high half of this one.
    High(u16),
    /// Nowhere: it always reads as this, and ignores writes.
    Constant(u32),
}

/// The registers of CP15. Reference: DDI 0487 G8.2, and table G7-3 for their order.
const fn cp15(register: Mrc) -> Option<Place> {
    use Place::{Constant, High, Low, Whole};
    let Mrc { opc1, crn, crm, opc2, .. } = register;
    Some(match (opc1, crn, crm, opc2) {
        // MIDR and its aliases; CTR; TCMTR; TLBTR; MPIDR; REVIDR.
        (0, 0, 0, 0 | 4 | 7) => Whole(MIDR_EL1),
        (0, 0, 0, 1) => Whole(CTR_EL0),
        (0, 0, 0, 2) => Constant(0),
        (0, 0, 0, 3) => Constant(id32::TLBTR as u32),
        (0, 0, 0, 5) => Whole(MPIDR_EL1),
        (0, 0, 0, 6) => Whole(REVIDR_EL1),
        // ID_PFR0 to ID_ISAR6; what is not allocated reads as zero. Above c2 are AArch64's own.
        (0, 0, 1 | 2, _) => Whole(id32::feature(crm, opc2)),
        (0, 0, 3..=7, _) => Constant(0),
        (1, 0, 0, 0) => Whole(CCSIDR_EL1),
        (1, 0, 0, 1) => Whole(CLIDR_EL1),
        (1, 0, 0, 7) => Whole(AIDR_EL1),
        (2, 0, 0, 0) => Whole(CSSELR_EL1),
        (0, 1, 0, 0) => Whole(SCTLR_EL1),
        (0, 1, 0, 1) => Whole(ACTLR_EL1),
        (0, 1, 0, 2) => Whole(CPACR_EL1),
        (0, 2, 0, 0) => Whole(TTBR0_EL1),
        (0, 2, 0, 1) => Whole(TTBR1_EL1),
        // TTBCR and TTBCR2.
        (0, 2, 0, 2) => Low(TCR_EL1),
        (0, 2, 0, 3) => High(TCR_EL1),
        (0, 3, 0, 0) => Whole(DACR32_EL2),
        (0, 4, 6, 0) => Whole(ICC_PMR_EL1),
        // DFSR, IFSR, ADFSR, AIFSR, DFAR, IFAR.
        (0, 5, 0, 0) => Whole(ESR_EL1),
        (0, 5, 0, 1) => Whole(IFSR32_EL2),
        (0, 5, 1, 0) => Whole(AFSR0_EL1),
        (0, 5, 1, 1) => Whole(AFSR1_EL1),
        (0, 6, 0, 0) => Low(FAR_EL1),
        (0, 6, 0, 2) => High(FAR_EL1),
        (0, 7, 4, 0) => Whole(PAR_EL1),
        (0, 9, 12, 0) => Whole(PMCR_EL0),
        (0, 9, 12, 1) => Whole(PMCNTENSET_EL0),
        (0, 9, 12, 2) => Whole(PMCNTENCLR_EL0),
        (0, 9, 12, 3) => Whole(PMOVSCLR_EL0),
        (0, 9, 12, 4) => Whole(PMSWINC_EL0),
        (0, 9, 12, 5) => Whole(PMSELR_EL0),
        (0, 9, 12, 6) => Whole(PMCEID0_EL0),
        (0, 9, 12, 7) => Whole(PMCEID1_EL0),
        (0, 9, 13, 0) => Low(PMCCNTR_EL0),
        (0, 9, 13, 1) => Whole(PMXEVTYPER_EL0),
        (0, 9, 13, 2) => Whole(PMXEVCNTR_EL0),
        (0, 9, 14, 0) => Whole(PMUSERENR_EL0),
        (0, 9, 14, 1) => Whole(PMINTENSET_EL1),
        (0, 9, 14, 2) => Whole(PMINTENCLR_EL1),
        (0, 9, 14, 3) => Whole(PMOVSSET_EL0),
        (0, 14, 15, 7) => Whole(PMCCFILTR_EL0),
        // PRRR or MAIR0, NMRR or MAIR1, AMAIR0, AMAIR1.
        (0, 10, 2, 0) => Low(MAIR_EL1),
        (0, 10, 2, 1) => High(MAIR_EL1),
        (0, 10, 3, 0) => Low(AMAIR_EL1),
        (0, 10, 3, 1) => High(AMAIR_EL1),
        (0, 12, 0, 0) => Whole(VBAR_EL1),
        (0, 12, 1, 0) => Whole(ISR_EL1),
        // ICC_*, but for the SGI registers, which are 64 bits wide.
        (0, 12, 8 | 9 | 12, _) | (0, 12, 11, 1 | 3) => Whole(enc::enc(3, 0, 12, crm as u16, opc2 as u16)),
        // FCSEIDR: there is no fast context switch extension.
        (0, 13, 0, 0) => Constant(0),
        (0, 13, 0, 1) => Whole(CONTEXTIDR_EL1),
        // TPIDRURW, TPIDRURO, TPIDRPRW.
        (0, 13, 0, 2) => Whole(TPIDR_EL0),
        (0, 13, 0, 3) => Whole(TPIDRRO_EL0),
        (0, 13, 0, 4) => Whole(TPIDR_EL1),
        (0, 14, 0, 0) => Whole(CNTFRQ_EL0),
        (0, 14, 1, 0) => Whole(CNTKCTL_EL1),
        (0, 14, 2, 0) => Whole(CNTP_TVAL_EL0),
        (0, 14, 2, 1) => Whole(CNTP_CTL_EL0),
        (0, 14, 3, 0) => Whole(CNTV_TVAL_EL0),
        (0, 14, 3, 1) => Whole(CNTV_CTL_EL0),
        _ => return None,
    })
}

/// The registers of CP14: debug, of which only state is held, and trivial Jazelle (DDI 0487 G8.3).
const fn cp14(register: Mrc) -> Option<Place> {
    use Place::{Constant, Whole};
    let Mrc { opc1, crn, crm, opc2, .. } = register;
    Some(match (opc1, crn, crm, opc2) {
        (0, 0, 0, 0) => Constant(id32::DBGDIDR as u32),
        // DBGDSCRint, DBGDTR[RT]Xint, DBGWFAR, DBGDTRRXext, DBGDTRTXext: nobody is at the other end.
        (0, 0, 1 | 5 | 6, 0) | (0, 0, 0 | 3, 2) => Constant(0),
        (0, 0, 7, 0) => Whole(DBGVCR32_EL2),
        (0, 0, 2, 0) => Whole(MDCCINT_EL1),
        (0, 0, 2, 2) => Whole(MDSCR_EL1),
        (0, 0, _, 4..=7) if (crm as usize) < id::DEBUG_UNITS => Whole(enc::enc(2, 0, 0, crm as u16, opc2 as u16)),
        // DBGDRAR, DBGDSAR.
        (0, 1 | 2, 0, 0) => Constant(0),
        (0, 1, 0, 4) => Whole(OSLAR_EL1),
        (0, 1, 1, 4) => Whole(OSLSR_EL1),
        (0, 1, 3, 4) => Whole(OSDLR_EL1),
        (0, 1, 4, 4) => Whole(DBGPRCR_EL1),
        // DBGDEVID2 to DBGDEVID, DBGCLAIMSET, DBGCLAIMCLR, DBGAUTHSTATUS.
        (0, 7, 0..=2, 7) | (0, 7, 8 | 9 | 14, 6) => Constant(0),
        // JIDR, JOSCR, JMCR.
        (7, 0..=2, 0, 0) => Constant(0),
        _ => return None,
    })
}

/// What a 32-bit write to CP15 commands instead of setting a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Command {
    /// The system instruction of AArch64 with this encoding.
    System(u16),
    /// CP15DSB, CP15DMB: allowed at EL0.
    Barrier,
    /// CP15ISB: allowed at EL0. Whoever executes MCR synchronises behind it anyway.
    Synchronise,
    /// Branch predictor maintenance: there is none to maintain.
    Nothing,
}

/// The commands of CP15 c7 and c8 (DDI 0487 G7, table "System instructions"). Those by MVA to the point of coherency or unification
/// have the same operands as AArch64's, zero-extended.
const fn command(register: Mrc) -> Option<Command> {
    use Command::{Barrier, Nothing, Synchronise, System};
    let Mrc { opc1, crn, crm, opc2, .. } = register;
    if opc1 != 0 {
        return None;
    }
    Some(match (crn, crm, opc2) {
        (7, 1, 0) => System(IC_IALLUIS),
        (7, 5, 0) => System(IC_IALLU),
        (7, 5, 1) => System(IC_IVAU),
        (7, 5, 4) => Synchronise,
        (7, 10, 4 | 5) => Barrier,
        // BPIALLIS, BPIALL, BPIMVA.
        (7, 1, 6) | (7, 5, 6 | 7) => Nothing,
        (7, 6, 1) => System(DC_IVAC),
        (7, 6, 2) => System(DC_ISW),
        (7, 10, 1) => System(DC_CVAC),
        (7, 10, 2) => System(DC_CSW),
        (7, 11, 1) => System(DC_CVAU),
        (7, 14, 1) => System(DC_CIVAC),
        (7, 14, 2) => System(DC_CISW),
        // ATS1CPR, ATS1CPW, ATS1CUR, ATS1CUW.
        (7, 8, 0) => System(AT_S1E1R),
        (7, 8, 1) => System(AT_S1E1W),
        (7, 8, 2) => System(AT_S1E0R),
        (7, 8, 3) => System(AT_S1E0W),
        // TLBI*IS and TLBI*: all, MVA, ASID, MVAA, MVAL, MVAAL.
        (8, 3 | 7, 0..=3 | 5 | 7) => System(enc::enc(1, 0, 8, crm as u16, opc2 as u16)),
        // ITLBI* and DTLBI*: the TLB is unified.
        (8, 5 | 6, 0..=2) => System(TLBI_VMALLE1),
        _ => return None,
    })
}

/// The 64-bit registers of CP15.
const fn wide(register: Mrrc) -> Option<u16> {
    Some(match (register.opc1, register.crm) {
        (0, 2) => TTBR0_EL1,
        (1, 2) => TTBR1_EL1,
        (0, 7) => PAR_EL1,
        (0, 9) => PMCCNTR_EL0,
        (0, 12) => ICC_SGI1R_EL1,
        (1, 12) => ICC_ASGI1R_EL1,
        (2, 12) => ICC_SGI0R_EL1,
        (0, 14) => CNTPCT_EL0,
        (1, 14) => CNTVCT_EL0,
        (2, 14) => CNTP_CVAL_EL0,
        (3, 14) => CNTV_CVAL_EL0,
        _ => return None,
    })
}

fn place(register: Mrc) -> Option<Place> {
    match register.coproc {
        15 => cp15(register),
        14 => cp14(register),
        _ => None,
    }
}

/// Whether EL1's hypervisor would own `enc`: AArch32's state in AArch64's EL2 registers, which [`sysreg::read`] does not reach.
const fn is_el2(enc: u16) -> bool {
    enc >> 11 & 7 == 4
}

/// Reads the AArch64 register `enc` as far as the current exception level may.
fn read_mapped(cpu: &mut Cpu, enc: u16) -> Result<u64, Trap> {
    if !is_el2(enc) {
        return sysreg::read(cpu, enc);
    }
    if cpu.pstate.el == 0 { None } else { sysreg::get(cpu, enc) }.ok_or(Trap::Undefined)
}

/// Writes the AArch64 register `enc` as far as the current exception level may.
fn write_mapped(cpu: &mut Cpu, enc: u16, value: u64) -> Result<(), Trap> {
    if !is_el2(enc) {
        return sysreg::write(cpu, enc, value);
    }
    if cpu.pstate.el == 0 { None } else { sysreg::set(cpu, enc, value) }.ok_or(Trap::Undefined)
}

/// MRC: reads a register in the current mode.
///
/// # Errors
/// [`Trap::Undefined`] for a register that does not exist here, or not at this level; [`Trap::Exception`] where EL1 keeps it from EL0, which in
/// AArch32 goes to the same vector.
pub fn read(cpu: &mut Cpu, register: Mrc) -> Result<u32, Trap> {
    match place(register) {
        Some(Place::Constant(value)) => {
            if cpu.pstate.el == 0 {
                return Err(Trap::Undefined);
            }
            Ok(value)
        }
        Some(Place::Whole(enc) | Place::Low(enc)) => Ok(read_mapped(cpu, enc)? as u32),
        Some(Place::High(enc)) => Ok((read_mapped(cpu, enc)? >> 32) as u32),
        None => Err(register.note(cpu, "MRC")),
    }
}

/// MCR: writes a register in the current mode, or does what it commands.
///
/// # Errors
/// As [`read`]; a read-only register is UNDEFINED; [`Trap::Exception`] also where the address of cache maintenance aborts.
pub fn write(cpu: &mut Cpu, register: Mrc, value: u32) -> Result<(), Trap> {
    /// What releases the OS lock's key hole: anything else unlocks (G8.3.33).
    const OS_LOCK_KEY: u32 = 0xc5ac_ce55;
    if register.coproc == 15
        && let Some(command) = command(register)
    {
        return execute(cpu, command, value);
    }
    match place(register) {
        Some(Place::Constant(_)) => {
            // The identification registers are read-only, what reads as zero elsewhere ignores writes.
            if cpu.pstate.el == 0 || register.coproc == 15 && register.crn == 0 {
                return Err(Trap::Undefined);
            }
            Ok(())
        }
        Some(Place::Whole(OSLAR_EL1)) => write_mapped(cpu, OSLAR_EL1, (value == OS_LOCK_KEY).into()),
        Some(Place::Whole(enc)) => write_mapped(cpu, enc, value.into()),
        Some(Place::Low(enc)) => {
            let kept = read_mapped(cpu, enc)? & !0xffff_ffff;
            write_mapped(cpu, enc, kept | u64::from(value))
        }
        Some(Place::High(enc)) => {
            let kept = read_mapped(cpu, enc)? & 0xffff_ffff;
            write_mapped(cpu, enc, kept | u64::from(value) << 32)
        }
        None => Err(register.note(cpu, "MCR")),
    }
}

fn execute(cpu: &mut Cpu, command: Command, value: u32) -> Result<(), Trap> {
    match command {
        Command::System(_) | Command::Nothing if cpu.pstate.el == 0 => Err(Trap::Undefined),
        Command::System(enc) => sysreg::sys_insn(cpu, enc, value.into()),
        Command::Barrier => {
            fence(Ordering::SeqCst);
            Ok(())
        }
        Command::Synchronise | Command::Nothing => Ok(()),
    }
}

/// MRRC: reads a 64-bit register; Rt is its low half.
///
/// # Errors
/// As [`read`].
pub fn read64(cpu: &mut Cpu, register: Mrrc) -> Result<u64, Trap> {
    match (register.coproc, wide(register)) {
        (15, Some(enc)) => sysreg::read(cpu, enc),
        // DBGDRAR, DBGDSAR: no memory-mapped debug registers.
        (14, _) if register.opc1 == 0 && matches!(register.crm, 1 | 2) && cpu.pstate.el != 0 => Ok(0),
        _ => Err(register.note(cpu, "MRRC")),
    }
}

/// MCRR: writes a 64-bit register.
///
/// # Errors
/// As [`read`]; a read-only register is UNDEFINED.
pub fn write64(cpu: &mut Cpu, register: Mrrc, value: u64) -> Result<(), Trap> {
    match (register.coproc, wide(register)) {
        (15, Some(enc)) => sysreg::write(cpu, enc, value),
        _ => Err(register.note(cpu, "MCRR")),
    }
}

/// Whether VFP and Advanced SIMD instructions may execute now: CPACR.cp10 at this level, and FPEXC.EN. If not, they are
/// UNDEFINED.
#[inline(always)]
pub fn fp_enabled(cpu: &Cpu) -> bool {
    cpu.sys.fpexc & id::FPEXC_WRITABLE != 0 && cpu.sys.fp_enabled(cpu.pstate.el)
}

/// FPSCR bits that are FPSR's: NZCV, QC, the cumulative exceptions.
const FPSCR_STATUS: u32 = 0xf800_009f;

/// VMRS of system register `reg` (0 FPSID, 1 FPSCR, 5 MVFR2, 6 MVFR1, 7 MVFR0, 8 FPEXC).
///
/// # Errors
/// [`Trap::Undefined`] for another register, or where access is not enabled: EL0 reaches FPSCR alone, and FPEXC.EN counts for FPSCR
/// alone (DDI 0487 F5.1, VMRS).
pub fn read_fp(cpu: &mut Cpu, reg: u8) -> Result<u32, Trap> {
    check_fp(cpu, reg)?;
    Ok(match reg {
        0 => id32::FPSID as u32,
        1 => cpu.fpsr & FPSCR_STATUS | cpu.fpcr & !FPSCR_STATUS,
        5 => 0,
        6 => id32::MVFR1 as u32,
        7 => id32::MVFR0 as u32,
        8 => cpu.sys.fpexc as u32,
        _ => return Err(note_fp(cpu, "VMRS of", reg)),
    })
}

/// VMSR to system register `reg`, numbered as for [`read_fp`].
///
/// # Errors
/// As [`read_fp`]. FPSID ignores the write; MVFRn are UNDEFINED.
pub fn write_fp(cpu: &mut Cpu, reg: u8, value: u32) -> Result<(), Trap> {
    check_fp(cpu, reg)?;
    match reg {
        0 => {}
        1 => {
            // FPCR and FPSR know which of their bits are implemented.
            let done = sysreg::set(cpu, FPSR, (value & FPSCR_STATUS).into())
                .and_then(|()| sysreg::set(cpu, FPCR, (value & !FPSCR_STATUS).into()));
            done.ok_or(Trap::Undefined)?;
        }
        8 => sysreg::set(cpu, FPEXC32_EL2, value.into()).ok_or(Trap::Undefined)?,
        _ => return Err(note_fp(cpu, "VMSR to", reg)),
    }
    Ok(())
}

fn check_fp(cpu: &Cpu, reg: u8) -> Result<(), Trap> {
    let open = if reg == 1 { fp_enabled(cpu) } else { cpu.pstate.el != 0 && cpu.sys.fp_enabled(cpu.pstate.el) };
    if open { Ok(()) } else { Err(Trap::Undefined) }
}

fn note_fp(cpu: &Cpu, what: &str, reg: u8) -> Trap {
    cpu.shared.note_unimplemented(&format!("{what} floating-point system register {reg}"));
    Trap::Undefined
}
