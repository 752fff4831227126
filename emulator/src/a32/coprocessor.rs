//! Coprocessor registers: CP15, CP14 and, in CP10, the system registers of VFP.
//!
//! [`read`] and [`write()`] are MRC and MCR, [`read64`] and [`write64`] MRRC and MCRR, with the access rules of each register.
//! Their state is that of the AArch64 register which KVM keeps it in ([`crate::sysreg`]). What is not known here is UNDEFINED
//! and noted by name.

use crate::cpu::{Cpu, Trap};

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

/// MRC: reads a register in the current mode.
///
/// # Errors
/// [`Trap::Undefined`] for a register that does not exist here, or not at this level.
pub fn read(cpu: &mut Cpu, register: Mrc) -> Result<u32, Trap> {
    let Mrc { coproc, opc1, crn, crm, opc2 } = register;
    cpu.shared.note_unimplemented(&format!("MRC p{coproc}, {opc1}, c{crn}, c{crm}, {opc2}"));
    Err(Trap::Undefined)
}

/// MCR: writes a register in the current mode, or does what it commands.
///
/// # Errors
/// [`Trap::Undefined`] as [`read`]; [`Trap::Exception`] where the address of cache maintenance aborts.
pub fn write(cpu: &mut Cpu, register: Mrc, _value: u32) -> Result<(), Trap> {
    let Mrc { coproc, opc1, crn, crm, opc2 } = register;
    cpu.shared.note_unimplemented(&format!("MCR p{coproc}, {opc1}, c{crn}, c{crm}, {opc2}"));
    Err(Trap::Undefined)
}

/// MRRC: reads a 64-bit register; Rt is its low half.
///
/// # Errors
/// As [`read`].
pub fn read64(cpu: &mut Cpu, register: Mrrc) -> Result<u64, Trap> {
    let Mrrc { coproc, opc1, crm } = register;
    cpu.shared.note_unimplemented(&format!("MRRC p{coproc}, {opc1}, c{crm}"));
    Err(Trap::Undefined)
}

/// MCRR: writes a 64-bit register.
///
/// # Errors
/// As [`write()`].
pub fn write64(cpu: &mut Cpu, register: Mrrc, _value: u64) -> Result<(), Trap> {
    let Mrrc { coproc, opc1, crm } = register;
    cpu.shared.note_unimplemented(&format!("MCRR p{coproc}, {opc1}, c{crm}"));
    Err(Trap::Undefined)
}

/// Whether VFP and Advanced SIMD instructions may execute now: CPACR.cp10 at this level, and FPEXC.EN. If not, they are
/// UNDEFINED.
#[inline(always)]
pub fn fp_enabled(cpu: &Cpu) -> bool {
    cpu.sys.fpexc & FPEXC_EN != 0 && cpu.sys.fp_enabled(cpu.pstate.el)
}

/// FPEXC.EN.
const FPEXC_EN: u32 = 1 << 30;

/// VMRS of system register `reg` (0 FPSID, 1 FPSCR, 5 MVFR2, 6 MVFR1, 7 MVFR0, 8 FPEXC).
///
/// # Errors
/// [`Trap::Undefined`] for another register, or where access is not enabled.
pub fn read_fp(cpu: &mut Cpu, reg: u8) -> Result<u32, Trap> {
    cpu.shared.note_unimplemented(&format!("VMRS of system register {reg}"));
    Err(Trap::Undefined)
}

/// VMSR to system register `reg`, numbered as for [`read_fp`].
///
/// # Errors
/// As [`read_fp`]; a read-only register ignores the write.
pub fn write_fp(cpu: &mut Cpu, reg: u8, _value: u32) -> Result<(), Trap> {
    cpu.shared.note_unimplemented(&format!("VMSR to system register {reg}"));
    Err(Trap::Undefined)
}
