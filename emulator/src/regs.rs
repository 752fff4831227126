//! A vCPU's state by KVM register id: [`list`], [`get`], [`set`].
//!
//! Ids are those of `KVM_GET_REG_LIST`, `KVM_GET_ONE_REG` and `KVM_SET_ONE_REG` on arm64 (kvm/api.rst 4.68, 4.69 and the kernel's
//! `arch/arm64/include/uapi/asm/kvm.h`), so that state moves between this emulator and KVM. Layout of an id: bits 63:60
//! 6 (arm64), 59:52 size, 31:16 kind, 15:0 which. The kinds here: core registers (which = offset in `struct kvm_regs` in 32-bit words),
//! system registers (which = encoding, as in [`crate::sysreg::enc`]), and the timers among those, where the ids of CNT and CVAL of the
//! virtual timer are swapped against the encodings: an accident of the first version that became ABI.
//!
//! An AArch32 vCPU has the same ids, as under KVM: X0 to X30 hold the registers of all modes by the architecture's mapping
//! ([`crate::a32::mode::slot`]), `pstate` the CPSR, spsr\[5\] the SPSRs of SVC, ABT, UND, IRQ and FIQ, and the system registers what
//! AArch32 sees of them.
//!
//! GIC state is not a vCPU's: as under KVM it moves on its own. Neighbours: `vcpu` offers these to the host.

use std::collections::BTreeSet;

use crate::config::ExecutionState;
use crate::cpu::{Cpu, Pstate};
use crate::sysreg::enc::{self, *};
use crate::sysreg::{self, id};
use crate::{pmu, timer};

const ARM64: u64 = 0x6 << 60;
const SIZE_U32: u64 = 2 << 52;
const SIZE_U64: u64 = 3 << 52;
const SIZE_U128: u64 = 4 << 52;
const KIND_CORE: u64 = 0x10 << 16;
const KIND_SYSREG: u64 = 0x13 << 16;

/// Bytes from the start of `struct kvm_regs` (uapi/asm/kvm.h): `struct user_pt_regs`, sp_el1, elr_el1, spsr\[5\], then
/// `struct user_fpsimd_state`, aligned to 16.
mod offset {
    pub(super) const X: u64 = 0;
    pub(super) const SP_EL0: u64 = 31 * 8;
    pub(super) const PC: u64 = 32 * 8;
    pub(super) const PSTATE: u64 = 33 * 8;
    pub(super) const SP_EL1: u64 = 34 * 8;
    pub(super) const ELR_EL1: u64 = 35 * 8;
    pub(super) const SPSR: u64 = 36 * 8;
    pub(super) const V: u64 = 336;
    pub(super) const FPSR: u64 = V + 32 * 16;
    pub(super) const FPCR: u64 = FPSR + 4;
}

/// The id of the virtual timer's count: the *encoding* of CNTV_CVAL_EL0 (see the module's introduction).
pub const TIMER_COUNT: u64 = sysreg_id(CNTV_CVAL_EL0);
/// The id of the virtual timer's compare value: the *encoding* of CNTVCT_EL0.
pub const TIMER_COMPARE: u64 = sysreg_id(CNTVCT_EL0);

/// Why a register was not read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegError {
    /// Not in [`list`] (KVM: ENOENT).
    #[error("register id {id:#018x} does not exist on this vCPU")]
    NoSuchRegister {
        /// The id.
        id: u64,
    },
    /// A register that never changes was given another value (KVM: EINVAL).
    #[error("register id {id:#018x} is {value:#x} on this vCPU and cannot become {given:#x}")]
    Invariant {
        /// The id.
        id: u64,
        /// Its value here.
        value: u128,
        /// The value given.
        given: u128,
    },
    /// A value wider than the register, or a processor state that does not exist here (KVM: EINVAL).
    #[error("register id {id:#018x} cannot hold {given:#x}")]
    BadValue {
        /// The id.
        id: u64,
        /// The value given.
        given: u128,
    },
}

/// The id of the system register with encoding `enc`, ids of the virtual timer excepted.
pub const fn sysreg_id(enc: u16) -> u64 {
    ARM64 | SIZE_U64 | KIND_SYSREG | enc as u64
}

const fn core_id(size: u64, offset: u64) -> u64 {
    ARM64 | size | KIND_CORE | (offset / 4)
}

/// One register, decoded from an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    X(usize),
    SpEl0,
    Pc,
    Pstate,
    SpEl1,
    ElrEl1,
    /// SPSR_EL1, then those of AArch32's modes, which AArch64 does not have and are zero there.
    Spsr(usize),
    V(usize),
    Fpsr,
    Fpcr,
    TimerCount,
    TimerCompare,
    PhysicalTimerCount,
    Sysreg(u16),
}

/// Every register, in the order of `KVM_GET_REG_LIST`: core, timers, system registers by encoding.
fn registers() -> impl Iterator<Item = (u64, Register)> {
    use offset::*;
    let wide = |at: u64, register| (core_id(SIZE_U64, at), register);
    let core = (0..31)
        .map(move |n: usize| wide(X + 8 * n as u64, Register::X(n)))
        .chain([
            wide(SP_EL0, Register::SpEl0),
            wide(PC, Register::Pc),
            wide(PSTATE, Register::Pstate),
            wide(SP_EL1, Register::SpEl1),
            wide(ELR_EL1, Register::ElrEl1),
        ])
        .chain((0..5).map(move |n: usize| wide(SPSR + 8 * n as u64, Register::Spsr(n))))
        .chain((0..32).map(|n: usize| (core_id(SIZE_U128, V + 16 * n as u64), Register::V(n))))
        .chain([(core_id(SIZE_U32, FPSR), Register::Fpsr), (core_id(SIZE_U32, FPCR), Register::Fpcr)]);
    let timers = [
        (sysreg_id(CNTV_CTL_EL0), Register::Sysreg(CNTV_CTL_EL0)),
        (TIMER_COUNT, Register::TimerCount),
        (TIMER_COMPARE, Register::TimerCompare),
        (sysreg_id(CNTP_CTL_EL0), Register::Sysreg(CNTP_CTL_EL0)),
        (sysreg_id(CNTPCT_EL0), Register::PhysicalTimerCount),
        (sysreg_id(CNTP_CVAL_EL0), Register::Sysreg(CNTP_CVAL_EL0)),
    ];
    let sysregs: BTreeSet<u16> = sysregs().collect();
    core.chain(timers).chain(sysregs.into_iter().map(|enc| (sysreg_id(enc), Register::Sysreg(enc))))
}

/// The system registers that are state, or identification that a destination must compare.
fn sysregs() -> impl Iterator<Item = u16> {
    let features = (1..=7).flat_map(|crm| (0..=7).map(move |op2| enc::enc(3, 0, 0, crm, op2)));
    let debug = (0..id::DEBUG_UNITS as u16).flat_map(|n| (4..=7).map(move |op2| enc::enc(2, 0, 0, n, op2)));
    features.chain(debug).chain([
        MDCCINT_EL1,
        MDSCR_EL1,
        OSLSR_EL1,
        MIDR_EL1,
        MPIDR_EL1,
        REVIDR_EL1,
        CLIDR_EL1,
        AIDR_EL1,
        CSSELR_EL1,
        CTR_EL0,
        SCTLR_EL1,
        ACTLR_EL1,
        CPACR_EL1,
        TTBR0_EL1,
        TTBR1_EL1,
        TCR_EL1,
        AFSR0_EL1,
        AFSR1_EL1,
        ESR_EL1,
        FAR_EL1,
        PAR_EL1,
        MAIR_EL1,
        AMAIR_EL1,
        DACR32_EL2,
        IFSR32_EL2,
        FPEXC32_EL2,
        DBGVCR32_EL2,
        VBAR_EL1,
        CONTEXTIDR_EL1,
        TPIDR_EL1,
        CNTKCTL_EL1,
        TPIDR_EL0,
        TPIDRRO_EL0,
        PMCR_EL0,
        PMCNTENSET_EL0,
        PMINTENSET_EL1,
        PMOVSSET_EL0,
        PMSELR_EL0,
        PMCCNTR_EL0,
        PMUSERENR_EL0,
        PMCCFILTR_EL0,
    ])
}

fn decode(id: u64) -> Result<Register, RegError> {
    registers().find_map(|(known, register)| (known == id).then_some(register)).ok_or(RegError::NoSuchRegister { id })
}

/// The ids of all registers, each once.
pub fn list() -> Vec<u64> {
    registers().map(|(id, _)| id).collect()
}

/// The identification registers of a vCPU in `state` that are the same on each, with nothing hidden: id and value.
pub fn constants(state: ExecutionState) -> Vec<(u64, u64)> {
    sysregs().filter_map(|enc| Some((sysreg_id(enc), sysreg::constant(state, enc)?))).collect()
}

/// Of identification registers of a vCPU in `state` the bits that may show less than the processor has ([`sysreg::shown`]): id and bits.
pub fn writable(state: ExecutionState) -> Vec<(u64, u64)> {
    let bits = |enc| (sysreg_id(enc), sysreg::shown::writable(state, enc));
    sysregs().map(bits).filter(|(_, bits)| *bits != 0).collect()
}

/// Width of register `id` in bytes, from the id alone: 4, 8 or 16 for every id in [`list`].
pub const fn size_bytes(id: u64) -> u32 {
    1 << (id >> 52 & 0xf)
}

/// Reads register `id`, zero-extended. The vCPU must be outside its run loop.
///
/// # Errors
/// [`RegError::NoSuchRegister`].
pub fn get(cpu: &mut Cpu, id: u64) -> Result<u128, RegError> {
    let missing = RegError::NoSuchRegister { id };
    let wide = match decode(id)? {
        Register::V(n) => return Ok(cpu.v[n]),
        Register::X(n) if cpu.is_aarch32() => cpu.mapped(n).into(),
        Register::Pstate if cpu.is_aarch32() => cpu.cpsr().into(),
        Register::SpEl0 if cpu.is_aarch32() => cpu.sp_bank[0],
        Register::SpEl1 if cpu.is_aarch32() => cpu.sp_bank[1],
        Register::Spsr(n) if cpu.is_aarch32() => cpu.spsr_at(n).into(),
        Register::X(n) => cpu.x[n],
        Register::SpEl0 => cpu.sp(0),
        Register::Pc => cpu.pc,
        Register::Pstate => cpu.pstate.to_spsr(),
        Register::SpEl1 => cpu.sp(1),
        Register::ElrEl1 => cpu.sys.elr,
        Register::Spsr(0) => cpu.sys.spsr,
        Register::Spsr(_) => 0,
        Register::Fpsr => cpu.fpsr.into(),
        Register::Fpcr => cpu.fpcr.into(),
        Register::TimerCount => timer::read(cpu, CNTVCT_EL0).ok_or(missing)?,
        Register::TimerCompare => timer::read(cpu, CNTV_CVAL_EL0).ok_or(missing)?,
        Register::PhysicalTimerCount => timer::read(cpu, CNTPCT_EL0).ok_or(missing)?,
        Register::Sysreg(enc) => {
            timer::read(cpu, enc).or_else(|| pmu::read(cpu, enc)).or_else(|| sysreg::get(cpu, enc)).ok_or(missing)?
        }
    };
    Ok(wide.into())
}

/// Writes register `id`. The vCPU must be outside its run loop. Setting [`TIMER_COUNT`] moves the virtual counter of the whole
/// machine, as under KVM; the physical count cannot be set and a value for it is ignored.
///
/// # Errors
/// [`RegError`]; then nothing changed.
pub fn set(cpu: &mut Cpu, id: u64, value: u128) -> Result<(), RegError> {
    let register = decode(id)?;
    let bad = RegError::BadValue { id, given: value };
    if let Register::V(n) = register {
        cpu.v[n] = value;
        return Ok(());
    }
    if size_bytes(id) == 4 && value >> 32 != 0 {
        return Err(bad);
    }
    let wide = u64::try_from(value).map_err(|_| bad)?;
    if cpu.is_aarch32()
        && let Some(done) = set_aarch32_core(cpu, register, wide)
    {
        return done.ok_or(bad);
    }
    match register {
        Register::X(n) => cpu.x[n] = wide,
        Register::SpEl0 => cpu.set_sp(0, wide),
        Register::Pc => cpu.pc = wide,
        Register::Pstate if matches!(wide & 0x1f, 0b0_0000 | 0b0_0100 | 0b0_0101) => {
            cpu.set_pstate(Pstate::from_spsr(wide));
        }
        Register::Pstate => return Err(bad),
        Register::SpEl1 => cpu.set_sp(1, wide),
        Register::ElrEl1 => cpu.sys.elr = wide,
        Register::Spsr(0) => sysreg::set(cpu, SPSR_EL1, wide).ok_or(bad)?,
        Register::Spsr(_) => return invariant(cpu, id, value),
        Register::V(_) => {}
        // FPSR and FPCR go through their MSR for its reserved bits.
        Register::Fpsr => sysreg::set(cpu, FPSR, wide).ok_or(bad)?,
        Register::Fpcr => sysreg::set(cpu, FPCR, wide).ok_or(bad)?,
        Register::TimerCount => {
            let physical = timer::read(cpu, CNTPCT_EL0).ok_or(bad)?;
            cpu.shared.clock.set_cntvoff(physical.wrapping_sub(wide));
        }
        Register::TimerCompare => timer::write(cpu, CNTV_CVAL_EL0, wide).ok_or(bad)?,
        Register::PhysicalTimerCount => return if cpu.shared.clock.set_physical(wide) { Ok(()) } else { Err(bad) },
        Register::Sysreg(enc) => return set_sysreg(cpu, id, enc, wide),
    }
    Ok(())
}

/// Writes a core register that AArch32 holds elsewhere: whether the value was possible, `None` for any other register. General registers and SPSRs
/// are 32 bits wide, their upper half is dropped, as KVM does on entry.
fn set_aarch32_core(cpu: &mut Cpu, register: Register, value: u64) -> Option<Option<()>> {
    match register {
        Register::X(n) => cpu.set_mapped(n, value as u32),
        Register::Pc => cpu.pc = value & 0xffff_ffff,
        Register::Pstate => return Some(u32::try_from(value).ok().and_then(|psr| cpu.replace_cpsr(psr).ok())),
        // No AArch32 register is mapped to these.
        Register::SpEl0 => cpu.sp_bank[0] = value,
        Register::SpEl1 => cpu.sp_bank[1] = value,
        Register::Spsr(n) => cpu.set_spsr_at(n, value as u32),
        _ => return None,
    }
    Some(Some(()))
}

fn set_sysreg(cpu: &mut Cpu, id: u64, enc: u16, value: u64) -> Result<(), RegError> {
    let bad = RegError::BadValue { id, given: value.into() };
    // A "set" register takes ones only: what is not in `value` is cleared first.
    let clear = match enc {
        PMCNTENSET_EL0 => Some(PMCNTENCLR_EL0),
        PMINTENSET_EL1 => Some(PMINTENCLR_EL1),
        PMOVSSET_EL0 => Some(PMOVSCLR_EL0),
        _ => None,
    };
    if let Some(clear) = clear {
        pmu::write(cpu, clear, !value).ok_or(bad)?;
    }
    if enc == OSLSR_EL1 {
        const OSLK: u64 = 1 << 1;
        let now = get(cpu, id)? as u64;
        if (now ^ value) & !OSLK != 0 {
            return invariant(cpu, id, value.into());
        }
        cpu.sys.os_lock = value & OSLK != 0;
        return Ok(());
    }
    if cpu.sys.shown.set(cpu.sys.execution_state, enc, value) {
        return Ok(());
    }
    if enc == MPIDR_EL1 || sysreg::constant(cpu.sys.execution_state, enc).is_some() {
        return invariant(cpu, id, value.into());
    }
    // PMCR_EL0.C and .P are commands, not state.
    let value = if enc == PMCR_EL0 { value & !0b110 } else { value };
    timer::write(cpu, enc, value)
        .or_else(|| pmu::write(cpu, enc, value))
        .or_else(|| sysreg::set(cpu, enc, value))
        .ok_or(bad)
}

/// Accepts the value that the register has, refuses any other.
fn invariant(cpu: &mut Cpu, id: u64, given: u128) -> Result<(), RegError> {
    let value = get(cpu, id)?;
    if value == given { Ok(()) } else { Err(RegError::Invariant { id, value, given }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::a32::{self, Mode};
    use crate::sysreg::tests::with_cpu;

    #[test]
    fn ids_are_the_kernels() {
        let ids = list();
        // As printed by the kernel's tools/testing/selftests/kvm/arm64/get-reg-list.c.
        for id in [
            0x6030_0000_0010_0000, // x0
            0x6030_0000_0010_003e, // sp
            0x6030_0000_0010_0040, // pc
            0x6030_0000_0010_0042, // pstate
            0x6030_0000_0010_0044, // sp_el1
            0x6030_0000_0010_0046, // elr_el1
            0x6030_0000_0010_0048, // spsr[0]
            0x6040_0000_0010_0054, // v0
            0x6040_0000_0010_00d0, // v31
            0x6020_0000_0010_00d4, // fpsr
            0x6020_0000_0010_00d5, // fpcr
            0x6030_0000_0013_c080, // SCTLR_EL1
            0x6030_0000_0013_c510, // MAIR_EL1
            0x6030_0000_0013_df19, // CNTV_CTL_EL0
            0x6030_0000_0013_df1a, // KVM_REG_ARM_TIMER_CNT
            0x6030_0000_0013_df02, // KVM_REG_ARM_TIMER_CVAL
        ] {
            assert!(ids.contains(&id), "{id:#x}");
        }
        let unique: BTreeSet<_> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len());
        assert!(ids.iter().all(|id| [4, 8, 16].contains(&size_bytes(*id))));
    }

    #[test]
    fn state_moves_from_one_vcpu_to_another() {
        with_cpu(|source| with_cpu(|destination| move_state(source, destination, 0x6000_03c4)));
    }

    #[test]
    fn state_moves_from_one_aarch32_vcpu_to_another() {
        for mode in Mode::ALL {
            let psr = 0x680f_0040 | u128::from(mode.bits());
            a32::tests::with_cpu(|source| {
                a32::tests::with_cpu(|destination| {
                    move_state(source, destination, psr);
                    for of in Mode::ALL {
                        assert_eq!(destination.banked_spsr(of), source.banked_spsr(of));
                        for reg in 0..15 {
                            assert_eq!(
                                destination.banked(of, reg),
                                source.banked(of, reg),
                                "{of:?} r{reg} in {mode:?}"
                            );
                        }
                    }
                    assert_eq!(destination.cpsr(), psr as u32);
                    assert_eq!(destination.pstate.el, mode.el());
                });
            });
        }
    }

    #[test]
    fn aarch32_registers_have_their_mapped_ids() {
        a32::tests::with_cpu(|cpu| {
            let x = |n: u64| core_id(SIZE_U64, offset::X + 8 * n);
            let pstate = core_id(SIZE_U64, offset::PSTATE);
            let spsr = |n: u64| core_id(SIZE_U64, offset::SPSR + 8 * n);
            for n in 0..31 {
                set(cpu, x(n), u128::from(0x100 + n)).expect("listed");
            }
            // In SVC mode: SP_svc is X19, LR_svc is X18.
            assert_eq!((cpu.x[0], cpu.x[12], cpu.x[13], cpu.x[14]), (0x100, 0x10c, 0x113, 0x112));
            set(cpu, pstate, Mode::Fiq.bits().into()).expect("FIQ");
            assert_eq!((cpu.x[7], cpu.x[8], cpu.x[13], cpu.x[14]), (0x107, 0x118, 0x11d, 0x11e));
            set(cpu, x(29), 7).expect("SP_fiq");
            assert_eq!((cpu.x[13], get(cpu, x(29)), get(cpu, x(13))), (7, Ok(7), Ok(0x10d)));
            for (n, mode) in
                [Mode::Supervisor, Mode::Abort, Mode::Undefined, Mode::Irq, Mode::Fiq].into_iter().enumerate()
            {
                set(cpu, spsr(n as u64), 0x20 + n as u128).expect("listed");
                assert_eq!(cpu.banked_spsr(mode), Some(0x20 + n as u32));
            }
            for bad in [0x0, 0x3c5, 0x1a, 0x16, 0x33, 1 << 32 | 0x13] {
                assert!(matches!(set(cpu, pstate, bad), Err(RegError::BadValue { .. })), "{bad:#x}");
            }
            // DFAR and IFAR share FAR_EL1; DACR and IFSR are seen as EL2 sees them.
            set(cpu, sysreg_id(FAR_EL1), 0x1_0000_0002).expect("listed");
            set(cpu, sysreg_id(DACR32_EL2), 0x5555_5555).expect("listed");
            assert_eq!((cpu.sys.far, cpu.sys.dacr), (0x1_0000_0002, 0x5555_5555));
            let pfr0 = get(cpu, sysreg_id(ID_AA64PFR0_EL1)).expect("listed");
            assert_eq!(pfr0 & 0xff, 0x22, "EL1 and EL0 in either state");
        });
    }

    /// Fills `source` with values of its own, with `psr` as its state, moves all by id, and compares.
    fn move_state(source: &mut Cpu, destination: &mut Cpu, psr: u128) {
        // Write something of its own into every register that takes it, PSTATE first: it selects the stack pointer.
        let pstate = core_id(SIZE_U64, offset::PSTATE);
        set(source, pstate, psr).expect("a good state");
        for (n, id) in list().into_iter().enumerate() {
            let pattern = 0x0123_4567_89ab_cdef_u64.rotate_left(n as u32);
            let value = match size_bytes(id) {
                16 => u128::from(pattern) << 64 | n as u128,
                4 => u128::from(pattern as u32),
                _ => u128::from(pattern),
            };
            if id != pstate && id != TIMER_COUNT {
                let _refused_if_invariant = set(source, id, value);
            }
        }
        let state: Vec<_> = list().into_iter().map(|id| (id, get(source, id).expect("listed"))).collect();
        for (id, value) in &state {
            set(destination, *id, *value).unwrap_or_else(|error| panic!("{error}"));
        }
        // Counters run on.
        for (id, value) in state.iter().filter(|(id, _)| ![TIMER_COUNT, sysreg_id(CNTPCT_EL0)].contains(id)) {
            let ctl = [sysreg_id(CNTV_CTL_EL0), sysreg_id(CNTP_CTL_EL0)].contains(id);
            // ISTATUS follows from the count.
            let mask = if ctl { 3 } else { u128::MAX };
            assert_eq!(get(destination, *id).map(|v| v & mask), Ok(value & mask), "{id:#x}");
        }
        assert_eq!(destination.sp(1), source.sp(1));
    }

    #[test]
    fn what_cannot_change_is_refused_and_what_is_not_there_is_missing() {
        with_cpu(|cpu| {
            let midr = sysreg_id(MIDR_EL1);
            let value = get(cpu, midr).expect("listed");
            assert_eq!(set(cpu, midr, value), Ok(()));
            assert_eq!(set(cpu, midr, value + 1), Err(RegError::Invariant { id: midr, value, given: value + 1 }));
            let pfr0 = sysreg_id(ID_AA64PFR0_EL1);
            assert!(matches!(set(cpu, pfr0, 0), Err(RegError::Invariant { .. })));
            let (isar0, lse) = (sysreg_id(ID_AA64ISAR0_EL1), 0xf << 20);
            assert_eq!(set(cpu, isar0, u128::from(sysreg::id::ISAR0 & !lse)), Ok(()));
            assert_eq!(get(cpu, isar0), Ok(u128::from(sysreg::id::ISAR0 & !lse)), "hidden");
            let sve = ARM64 | SIZE_U64 | 0x15 << 16;
            assert_eq!(get(cpu, sve), Err(RegError::NoSuchRegister { id: sve }));
            let pc32 = core_id(SIZE_U32, offset::PC);
            assert_eq!(get(cpu, pc32), Err(RegError::NoSuchRegister { id: pc32 }));
            let pstate = core_id(SIZE_U64, offset::PSTATE);
            for mode in [0x9, 0x10, 0x1] {
                assert!(matches!(set(cpu, pstate, mode), Err(RegError::BadValue { .. })), "{mode:#x}");
            }
            let fpcr = core_id(SIZE_U32, offset::FPCR);
            assert!(matches!(set(cpu, fpcr, 1 << 32), Err(RegError::BadValue { .. })));
            assert!(matches!(set(cpu, core_id(SIZE_U64, 0), 1 << 64), Err(RegError::BadValue { .. })));
        });
    }

    #[test]
    fn the_virtual_count_is_set_for_the_machine() {
        with_cpu(|cpu| {
            set(cpu, TIMER_COUNT, 1 << 40).expect("listed");
            let count = get(cpu, TIMER_COUNT).expect("listed");
            assert!((1 << 40..1 << 41).contains(&count));
            set(cpu, TIMER_COMPARE, 77).expect("listed");
            assert_eq!(timer::read(cpu, CNTV_CVAL_EL0), Some(77));
        });
    }
}
