//! The CPSR: [`Cpsr`] and reading and writing it whole on [`Cpu`].
//!
//! Layout (DDI 0487 G8.2.33): N Z C V 31:28, Q 27, IL 20, GE 19:16, A I F 8:6, M 4:0. IT, J, T and E are zero: T32, Jazelle and
//! big-endian data do not exist here. PAN, SSBS and DIT are of extensions that are not implemented: RES0.

use super::Mode;
use crate::cpu::Cpu;

/// N, Z, C, V.
pub const NZCV: u32 = 0xf << 28;
/// Cumulative saturation.
pub const Q: u32 = 1 << 27;
/// Illegal Execution state.
pub const IL: u32 = 1 << 20;
/// Greater than or equal, of the parallel additions.
pub const GE: u32 = 0xf << 16;
/// Asynchronous aborts masked.
pub const A: u32 = 1 << 8;
/// IRQs masked.
pub const I: u32 = 1 << 7;
/// FIQs masked.
pub const F: u32 = 1 << 6;
/// T32 instruction set.
pub const T: u32 = 1 << 5;
/// Mode.
pub const M: u32 = 0x1f;

/// What of the CPSR is not in [`Cpu::pstate`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cpsr {
    /// M\[4:0\]. To be changed by [`Cpu::set_mode`].
    pub mode: Mode,
    /// Q.
    pub q: bool,
    /// GE\[3:0\].
    pub ge: u8,
}

/// A PSR that describes a state which does not exist here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IllegalPsr;

impl Cpu {
    /// The CPSR.
    pub fn cpsr(&self) -> u32 {
        let Cpsr { mode, q, ge } = self.a32.cpsr;
        u32::from(self.pstate.nzcv) << 28
            | u32::from(q) << 27
            | u32::from(self.pstate.il) << 20
            | u32::from(ge) << 16
            | u32::from(self.pstate.daif & 0b111) << 6
            | mode.bits()
    }

    /// Writes those bits of the CPSR that are set in `mask`, as MSR and CPS do at the current exception level: USR changes
    /// flags only, T and IL are not written. A mode that does not exist leaves the mode as it is and sets IL, so that the next instruction
    /// takes an Illegal Execution state exception (DDI 0487 G1.16, "Illegal changes to PSTATE.M").
    pub fn write_cpsr(&mut self, value: u32, mask: u32) {
        const USER: u32 = NZCV | Q | GE;
        const PRIVILEGED: u32 = USER | A | I | F | M;
        let mask = mask & if self.mode() == Mode::User { USER } else { PRIVILEGED };
        let merged = self.cpsr() & !mask | value & mask;
        self.write_fields(merged);
        if mask & M != 0 {
            match Mode::from_psr(merged) {
                Some(mode) => self.set_mode(mode),
                None => self.pstate.il = true,
            }
        }
    }

    /// Replaces the whole CPSR, as an exception return does. IT, J, E and what is RES0 are dropped.
    ///
    /// # Errors
    /// [`IllegalPsr`] for a mode that does not exist, or T32; then nothing changed.
    pub fn replace_cpsr(&mut self, value: u32) -> Result<(), IllegalPsr> {
        let mode = Mode::from_psr(value).filter(|_| value & T == 0).ok_or(IllegalPsr)?;
        self.write_fields(value);
        self.pstate.il = value & IL != 0;
        self.set_mode(mode);
        Ok(())
    }

    /// Writes flags, Q, GE and masks.
    pub(super) fn write_fields(&mut self, value: u32) {
        self.pstate.nzcv = (value >> 28) as u8;
        self.a32.cpsr.q = value & Q != 0;
        self.a32.cpsr.ge = (value >> 16 & 15) as u8;
        self.pstate.daif = (value >> 6 & 0b111) as u8;
    }
}
