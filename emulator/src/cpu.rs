//! The state of one vCPU: [`Cpu`], its [`Pstate`], and the small types by which the core's parts talk.
//!
//! [`crate::exec`] runs it, [`crate::tlb`] and `exec::memory` reach guest memory for it, `exception` moves it between
//! exception levels, `sysreg` reads and writes its system registers.

use std::sync::Arc;

use crate::a32;
use crate::code::CodeCache;
use crate::config::ExecutionState;
use crate::exec::Repeat;
use crate::fault::FaultInfo;
use crate::pmu::Pmu;
use crate::shared::Shared;
use crate::sysreg::SysRegs;
use crate::timer::Timers;
use crate::tlb::Tlb;

/// Index in [`Cpu::x`] that always reads as zero: register 31 as a source.
pub const REG_ZERO: u8 = 31;
/// Index in [`Cpu::x`] that nobody reads: register 31 as a destination.
pub const REG_SINK: u8 = 32;
/// Index in [`Cpu::x`] of the current stack pointer.
pub const REG_SP: u8 = 33;

/// Why an access or an instruction did not complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Trap {
    /// A synchronous exception is due; [`Cpu::fault`] says which.
    Exception,
    /// The host must answer; [`Cpu::mmio`] holds the access. The instruction is executed again afterwards.
    Mmio,
    /// The instruction or register is UNDEFINED here.
    Undefined,
}

/// Why [`crate::exec::run`] came back. The program counter is at the next instruction to execute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The budget is used up, to the instruction.
    Budget,
    /// The vCPU's attention word is not zero, or interrupts were just unmasked: look for both, then run on.
    Attention,
    /// [`Cpu::mmio`] holds an access for the host; PC is still at the instruction.
    Mmio,
    /// `HVC #imm16` was executed; PC is behind it.
    Hvc(u16),
    /// `WFI` was executed; PC is behind it.
    Wfi,
    /// `WFE` found the event register clear; PC is behind it.
    Wfe,
}

/// PSTATE, unpacked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pstate {
    /// N, Z, C, V in bits 3..=0.
    pub nzcv: u8,
    /// D, A, I, F in bits 3..=0.
    pub daif: u8,
    /// Exception level, 0 or 1.
    pub el: u8,
    /// SPSel: whether EL1 uses SP_EL1.
    pub sp_sel: bool,
    /// Privileged access never.
    pub pan: bool,
    /// User access override.
    pub uao: bool,
    /// Illegal execution state.
    pub il: bool,
    /// Software step.
    pub ss: bool,
}

/// I in [`Pstate::daif`].
pub const DAIF_I: u8 = 0b0010;

impl Pstate {
    /// Reset: EL1h with every interrupt masked (DDI 0487 D1.8.1).
    pub const RESET: Self =
        Self { nzcv: 0, daif: 0b1111, el: 1, sp_sel: true, pan: false, uao: false, il: false, ss: false };

    /// The layout of SPSR_EL1 (DDI 0487 C5.2.19), which is also KVM's `pstate`.
    pub fn to_spsr(self) -> u64 {
        u64::from(self.nzcv) << 28
            | u64::from(self.uao) << 23
            | u64::from(self.pan) << 22
            | u64::from(self.ss) << 21
            | u64::from(self.il) << 20
            | u64::from(self.daif) << 6
            | u64::from(self.el) << 2
            | u64::from(self.sp_sel && self.el != 0)
    }

    /// The inverse of [`Pstate::to_spsr`]. The caller has checked that M\[4:0\] names EL0t, EL1t or EL1h.
    pub fn from_spsr(spsr: u64) -> Self {
        let bit = |n: u32| spsr >> n & 1 != 0;
        Self {
            nzcv: (spsr >> 28 & 15) as u8,
            daif: (spsr >> 6 & 15) as u8,
            el: (spsr >> 2 & 3) as u8,
            sp_sel: bit(0),
            pan: bit(22),
            uao: bit(23),
            il: bit(20),
            ss: bit(21),
        }
    }
}

/// An access that left RAM, and the host's answer to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MmioState {
    /// Guest physical address, in bytes.
    pub gpa: u64,
    /// 1, 2, 4 or 8.
    pub size_bytes: u8,
    /// Whether it is a store.
    pub write: bool,
    /// What is stored; zero for a load.
    pub value: u64,
    /// The host's answer (any value for a store). The re-executed instruction consumes it.
    pub reply: Option<u64>,
}

/// The local exclusive monitor. A store-exclusive succeeds by compare-and-swap against the value its load saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Exclusive {
    /// Whether a load-exclusive is outstanding.
    pub valid: bool,
    /// Guest physical address that was loaded.
    pub gpa: u64,
    /// Bytes loaded: 1, 2, 4, 8 or 16.
    pub size_bytes: u8,
    /// What was loaded, zero-extended.
    pub value: u128,
}

/// One vCPU.
pub struct Cpu {
    /// 0..=30 the general registers, in AArch32 0..=14 those of the current mode, zero-extended; [`REG_ZERO`], [`REG_SINK`], [`REG_SP`]. The rest is never used: with 256 entries an
    /// index of type `u8` needs no bounds check.
    pub x: [u64; 256],
    /// Program counter. Within [`crate::exec::run`] it is current only at block boundaries.
    pub pc: u64,
    /// SP_EL0 and SP_EL1; the entry in use is stale, [`Cpu::x`]\[[`REG_SP`]\] is current.
    pub sp_bank: [u64; 2],
    /// Process state.
    pub pstate: Pstate,
    /// SIMD&FP registers.
    pub v: [u128; 32],
    /// Floating-point control.
    pub fpcr: u32,
    /// Floating-point status.
    pub fpsr: u32,
    /// What AArch32 has besides.
    pub a32: a32::State,
    /// System registers.
    pub sys: SysRegs,
    /// Generic timers.
    pub timers: Timers,
    /// Performance monitor.
    pub pmu: Pmu,
    /// Software TLB.
    pub tlb: Tlb,
    /// Lowered code.
    pub code: CodeCache,
    /// Exclusive monitor.
    pub excl: Exclusive,
    /// Instructions executed, the current one included where one reads it (MRS ends a block). An instruction that
    /// takes an exception counts as one, so that a loop of faults still uses up a budget.
    pub retired: u64,
    /// The number of this vCPU, from 0.
    pub index: usize,
    /// Details of [`Trap::Exception`].
    pub fault: FaultInfo,
    /// Details of [`Trap::Mmio`].
    pub mmio: MmioState,
    /// The event register of WFE and SEV.
    pub event: bool,
    /// Why the run loop is to stop, when a handler answers `Flow::Stop`.
    pub(crate) stop: Stop,
    /// What runs, for a branch to its own start.
    pub(crate) repeat: Option<Repeat>,
    /// What a slow load found: a value returned this way keeps handlers free of stack slots, which would forbid tail calls.
    pub(crate) slot: u64,
    /// The second word of a slow pair.
    pub(crate) slot_high: u64,
    /// What the vCPUs of a machine share.
    pub shared: Arc<Shared>,
}

impl Cpu {
    /// A vCPU after reset.
    pub fn new(index: usize, shared: Arc<Shared>) -> Self {
        let state = shared.config.execution_state;
        Self {
            x: [0; 256],
            pc: 0,
            sp_bank: [0; 2],
            pstate: Pstate::RESET,
            v: [0; 32],
            fpcr: 0,
            fpsr: 0,
            a32: a32::State::default(),
            sys: SysRegs::new(index, state),
            timers: Timers::default(),
            pmu: Pmu::default(),
            tlb: Tlb::new(),
            code: CodeCache::new(),
            excl: Exclusive::default(),
            retired: 0,
            index,
            fault: FaultInfo::default(),
            mmio: MmioState::default(),
            event: false,
            stop: Stop::Budget,
            repeat: None,
            slot: 0,
            slot_high: 0,
            shared,
        }
    }

    /// Whether this vCPU executes AArch32.
    #[inline(always)]
    pub fn is_aarch32(&self) -> bool {
        self.sys.execution_state == ExecutionState::Aarch32
    }

    /// Which entry of [`Cpu::sp_bank`] is in use.
    fn sp_index(&self) -> usize {
        usize::from(self.pstate.el != 0 && self.pstate.sp_sel)
    }

    /// Replaces the PSTATE of AArch64: switches the stack pointer and the translation context with it. Every change of EL, SPSel, PAN or
    /// UAO goes through here.
    pub fn set_pstate(&mut self, pstate: Pstate) {
        self.sp_bank[self.sp_index()] = self.x[usize::from(REG_SP)];
        if pstate.pan != self.pstate.pan || pstate.uao != self.pstate.uao {
            self.tlb.flush();
        }
        self.pstate = pstate;
        self.tlb.set_user(pstate.el == 0);
        self.x[usize::from(REG_SP)] = self.sp_bank[self.sp_index()];
    }

    /// SP_EL0 (`el` 0) or SP_EL1 (`el` 1), whether or not it is in use.
    pub fn sp(&self, el: usize) -> u64 {
        if el == self.sp_index() { self.x[usize::from(REG_SP)] } else { self.sp_bank[el] }
    }

    /// Sets SP_EL0 (`el` 0) or SP_EL1 (`el` 1), whether or not it is in use.
    pub fn set_sp(&mut self, el: usize, value: u64) {
        if el == self.sp_index() {
            self.x[usize::from(REG_SP)] = value;
        } else {
            self.sp_bank[el] = value;
        }
    }

    /// To be called after a change of SCTLR_EL1, TCR_EL1, TTBRn_EL1, MAIR_EL1 or anything else a translation depends on.
    pub fn translation_changed(&mut self) {
        self.tlb.flush();
    }
}
