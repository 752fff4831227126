//! Modes and banked registers (DDI 0487 G1.9): [`Mode`], and the registers of any mode on [`Cpu`].
//!
//! The registers of all modes live in one file with the numbers that AArch64 gives them (D1.21.1, table "Mapping of general-purpose
//! registers"), because that is how KVM's register ids name them. R0 to R14 of the current mode are in [`Cpu::x`]; a change
//! of mode swaps what differs.

use crate::cpu::Cpu;

/// A mode, with its M\[4:0\].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Mode {
    /// USR, EL0.
    User = 0b1_0000,
    /// FIQ.
    Fiq = 0b1_0001,
    /// IRQ.
    Irq = 0b1_0010,
    /// SVC: the mode after a reset.
    #[default]
    Supervisor = 0b1_0011,
    /// ABT.
    Abort = 0b1_0111,
    /// UND.
    Undefined = 0b1_1011,
    /// SYS: EL1 with the registers of USR.
    System = 0b1_1111,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 7] =
        [Self::User, Self::Fiq, Self::Irq, Self::Supervisor, Self::Abort, Self::Undefined, Self::System];

    /// The mode in the low five bits of a PSR, or `None` where that mode does not exist here: reserved, Monitor, Hyp, or
    /// AArch64 (M\[4\] clear).
    pub const fn from_psr(psr: u32) -> Option<Self> {
        Some(match psr & 0x1f {
            0b1_0000 => Self::User,
            0b1_0001 => Self::Fiq,
            0b1_0010 => Self::Irq,
            0b1_0011 => Self::Supervisor,
            0b1_0111 => Self::Abort,
            0b1_1011 => Self::Undefined,
            0b1_1111 => Self::System,
            _ => return None,
        })
    }

    /// M\[4:0\].
    pub const fn bits(self) -> u32 {
        self as u32
    }

    /// The exception level it executes at.
    pub const fn el(self) -> u8 {
        if matches!(self, Self::User) { 0 } else { 1 }
    }

    /// Index of its SPSR in KVM's `spsr[]` (uapi/asm/kvm.h), or `None` for USR and SYS, which have none.
    pub const fn spsr_index(self) -> Option<usize> {
        match self {
            Self::User | Self::System => None,
            Self::Supervisor => Some(0),
            Self::Abort => Some(1),
            Self::Undefined => Some(2),
            Self::Irq => Some(3),
            Self::Fiq => Some(4),
        }
    }
}

/// The AArch64 number of register `reg` (0 to 14) of `mode`. X15 is SP_hyp's and is nobody's here.
pub const fn slot(mode: Mode, reg: u8) -> usize {
    debug_assert!(reg < 15, "R15 is not banked");
    let pair = match mode {
        Mode::Fiq if reg >= 8 => return 16 + reg as usize,
        Mode::User | Mode::System | Mode::Fiq => return reg as usize,
        Mode::Irq => 16,
        Mode::Supervisor => 18,
        Mode::Abort => 20,
        Mode::Undefined => 22,
    };
    match reg {
        14 => pair,
        13 => pair + 1,
        _ => reg as usize,
    }
}

impl Cpu {
    /// The current mode.
    #[inline(always)]
    pub fn mode(&self) -> Mode {
        self.a32.cpsr.mode
    }

    /// Changes the mode: swaps the banked registers and switches the translation context.
    pub fn set_mode(&mut self, mode: Mode) {
        let from = self.a32.cpsr.mode;
        for reg in 8..15_u8 {
            let (old, new) = (slot(from, reg), slot(mode, reg));
            if old != new {
                self.a32.banks[old] = self.x[usize::from(reg)] as u32;
                self.x[usize::from(reg)] = self.a32.banks[new].into();
            }
        }
        self.a32.cpsr.mode = mode;
        self.pstate.el = mode.el();
        self.tlb.set_user(mode == Mode::User);
    }

    /// Register `reg` (0 to 14) of `mode`, current or not: MRS (banked), STM (user registers).
    pub fn banked(&self, mode: Mode, reg: u8) -> u32 {
        let slot = slot(mode, reg);
        if slot == self::slot(self.mode(), reg) { self.x[usize::from(reg)] as u32 } else { self.a32.banks[slot] }
    }

    /// Sets register `reg` (0 to 14) of `mode`, current or not: MSR (banked), LDM (user registers).
    pub fn set_banked(&mut self, mode: Mode, reg: u8, value: u32) {
        let slot = slot(mode, reg);
        if slot == self::slot(self.mode(), reg) {
            self.x[usize::from(reg)] = value.into();
        } else {
            self.a32.banks[slot] = value;
        }
    }

    /// The SPSR of `mode`, `None` for USR and SYS.
    pub fn banked_spsr(&self, mode: Mode) -> Option<u32> {
        mode.spsr_index().map(|index| self.spsr_at(index))
    }

    /// Sets the SPSR of `mode`. Without effect for USR and SYS, which have none: UNPREDICTABLE, and the caller's to refuse.
    pub fn set_banked_spsr(&mut self, mode: Mode, value: u32) {
        if let Some(index) = mode.spsr_index() {
            self.set_spsr_at(index, value);
        }
    }

    /// The SPSR of the current mode, `None` in USR and SYS.
    pub fn spsr32(&self) -> Option<u32> {
        self.banked_spsr(self.mode())
    }

    /// Sets the SPSR of the current mode. Without effect in USR and SYS.
    pub fn set_spsr32(&mut self, value: u32) {
        self.set_banked_spsr(self.mode(), value);
    }

    /// KVM's `spsr[index]`: SVC (which is SPSR_EL1), ABT, UND, IRQ, FIQ.
    pub(crate) fn spsr_at(&self, index: usize) -> u32 {
        match index.checked_sub(1) {
            Some(other) => self.a32.spsr[other],
            None => self.sys.spsr as u32,
        }
    }

    /// Sets KVM's `spsr[index]`.
    pub(crate) fn set_spsr_at(&mut self, index: usize, value: u32) {
        match index.checked_sub(1) {
            Some(other) => self.a32.spsr[other] = value,
            None => self.sys.spsr = value.into(),
        }
    }

    /// The AArch64 register X`number` (0 to 30), under which KVM holds a register of some mode.
    pub(crate) fn mapped(&self, number: usize) -> u32 {
        match self.current_reg(number) {
            Some(reg) => self.x[reg] as u32,
            None => self.a32.banks[number],
        }
    }

    /// Sets the AArch64 register X`number` (0 to 30).
    pub(crate) fn set_mapped(&mut self, number: usize, value: u32) {
        match self.current_reg(number) {
            Some(reg) => self.x[reg] = value.into(),
            None => self.a32.banks[number] = value,
        }
    }

    /// Which register of the current mode X`number` is.
    fn current_reg(&self, number: usize) -> Option<usize> {
        (0..15_u8).find(|&reg| slot(self.mode(), reg) == number).map(usize::from)
    }
}
