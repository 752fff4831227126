//! Tests of modes, the CPSR, exceptions and coprocessor registers, on a whole AArch32 vCPU.

use abi::Gpa;

use super::coprocessor::{self, Mrc, Mrrc};
use super::{Mode, cpsr, exception, mode};
use crate::config::{ClockMode, Config, ExecutionState};
use crate::cpu::{Cpu, Trap};
use crate::fault::{Access, AccessKind, FaultInfo, Status};
use crate::psci::{self, Outcome, PowerState};
use crate::ram::testing::HostPages;
use crate::sysreg::enc::{CNTVCT_EL0, TCR_EL1};
use crate::sysreg::{id, id32};
use crate::vm::Machine;

/// Where the test machine's RAM is.
pub(crate) const RAM: u64 = 0x4000_0000;

/// A machine of `vcpus` AArch32 vCPUs with a MiB of RAM, to be dropped before its memory.
pub(crate) fn machine(vcpus: usize, clock: ClockMode) -> (std::sync::Arc<Machine>, HostPages) {
    let pages = HostPages::new(1 << 20);
    let config = Config { vcpus, clock, execution_state: ExecutionState::Aarch32, ..Config::default() };
    #[expect(unsafe_code, reason = "a machine is built on raw memory")]
    // SAFETY: a pair's first field is dropped first, and nobody makes references to the memory.
    let machine = unsafe { Machine::new(config, &[pages.slot(RAM)]) }.expect("a good configuration");
    (machine, pages)
}

/// Runs `test` on a fresh vCPU.
pub(crate) fn with_cpu(test: impl FnOnce(&mut Cpu)) {
    let (machine, _pages) = machine(1, ClockMode::Wall);
    let mut vcpu = machine.take_vcpu(0).expect("vCPU 0");
    test(vcpu.cpu());
}

#[test]
fn reset_is_supervisor_mode_with_everything_masked() {
    with_cpu(|cpu| {
        // KVM's VCPU_RESET_PSTATE_SVC.
        assert_eq!(cpu.cpsr(), 0x1d3);
        assert_eq!((cpu.mode(), cpu.pstate.el), (Mode::Supervisor, 1));
        assert_eq!(cpu.sys.sctlr & 0x3000_3005, 0, "MMU, caches, high vectors, TRE and AFE are off");
    });
}

#[test]
fn each_mode_has_its_own_registers() {
    with_cpu(|cpu| {
        let own = |mode: Mode, reg: u8| {
            let banked = match mode {
                Mode::Fiq => 8..15,
                _ => 13..15,
            };
            // SYS has the registers of USR.
            let owner = if mode == Mode::System { Mode::User } else { mode };
            let owner = if banked.contains(&reg) { owner } else { Mode::User };
            owner.bits() << 8 | u32::from(reg)
        };
        for mode in Mode::ALL {
            cpu.set_mode(mode);
            for reg in 0..15_u8 {
                cpu.x[usize::from(reg)] = own(mode, reg).into();
            }
        }
        for mode in Mode::ALL {
            cpu.set_mode(mode);
            assert_eq!(cpu.pstate.el, u8::from(mode != Mode::User));
            for reg in 0..15_u8 {
                assert_eq!(cpu.x[usize::from(reg)], own(mode, reg).into(), "{mode:?} r{reg}");
                for other in Mode::ALL {
                    assert_eq!(cpu.banked(other, reg), own(other, reg), "{other:?} r{reg} from {mode:?}");
                }
            }
        }
        cpu.set_mode(Mode::Irq);
        cpu.set_banked(Mode::User, 13, 7);
        cpu.set_banked(Mode::Irq, 13, 8);
        assert_eq!(cpu.x[13], 8);
        cpu.set_mode(Mode::System);
        assert_eq!(cpu.x[13], 7);
    });
}

#[test]
fn banked_registers_have_the_numbers_of_the_kernel() {
    // vcpu_reg_offsets of arch/arm64/kvm/regmap.c (Linux 5.10): R8 to R12, SP, LR by mode.
    assert_eq!([13, 14].map(|reg| mode::slot(Mode::User, reg)), [13, 14]);
    assert_eq!([8, 12, 13, 14].map(|reg| mode::slot(Mode::Fiq, reg)), [24, 28, 29, 30]);
    assert_eq!([13, 14].map(|reg| mode::slot(Mode::Irq, reg)), [17, 16]);
    assert_eq!([13, 14].map(|reg| mode::slot(Mode::Supervisor, reg)), [19, 18]);
    assert_eq!([13, 14].map(|reg| mode::slot(Mode::Abort, reg)), [21, 20]);
    assert_eq!([13, 14].map(|reg| mode::slot(Mode::Undefined, reg)), [23, 22]);
}

#[test]
fn each_privileged_mode_but_system_has_an_spsr() {
    with_cpu(|cpu| {
        for mode in Mode::ALL {
            cpu.set_mode(mode);
            cpu.set_spsr32(mode.bits());
        }
        for mode in Mode::ALL {
            cpu.set_mode(mode);
            let expected = (!matches!(mode, Mode::User | Mode::System)).then_some(mode.bits());
            assert_eq!(cpu.spsr32(), expected, "{mode:?}");
        }
        assert_eq!(cpu.sys.spsr, Mode::Supervisor.bits().into(), "SPSR_svc is SPSR_EL1");
    });
}

#[test]
fn the_cpsr_is_written_as_the_privilege_allows() {
    with_cpu(|cpu| {
        cpu.write_cpsr(0xffff_ffff, cpsr::NZCV | cpsr::Q | cpsr::GE | cpsr::A | cpsr::I | cpsr::F);
        assert_eq!(cpu.cpsr(), 0xf80f_01d3);
        cpu.write_cpsr(0, 0xffff_ff00 | cpsr::I | cpsr::F);
        assert_eq!(cpu.cpsr(), 0x13);
        cpu.write_cpsr(cpsr::T | cpsr::IL | 1 << 9, 0xffff_ffe0);
        assert_eq!(cpu.cpsr(), 0x13, "T, IL and E are not written");
        cpu.write_cpsr(Mode::User.bits(), cpsr::M);
        assert_eq!((cpu.mode(), cpu.pstate.el), (Mode::User, 0));
        cpu.write_cpsr(0xf80f_01df, 0xffff_ffff);
        assert_eq!(cpu.cpsr(), 0xf80f_0010, "USR changes flags alone");
    });
}

#[test]
fn a_mode_that_does_not_exist_is_an_illegal_state() {
    for bad in [0b1_0110, 0b1_1010, 0b0_0101, 0b1_1110] {
        with_cpu(|cpu| {
            cpu.write_cpsr(bad, cpsr::M);
            assert_eq!((cpu.mode(), cpu.pstate.il), (Mode::Supervisor, true), "{bad:#b}");
            exception::take_sync(cpu, FaultInfo::ILLEGAL_STATE, 0x100);
            assert_eq!((cpu.mode(), cpu.pc, cpu.x[14], cpu.pstate.il), (Mode::Undefined, 4, 0x104, false));
            assert_eq!(cpu.spsr32(), Some(0x1d3 | cpsr::IL));
        });
    }
}

fn read_access() -> Access {
    Access::new(AccessKind::Read, 1, false)
}

fn fetch_access() -> Access {
    Access::new(AccessKind::Fetch, 1, false)
}

#[test]
fn exceptions_enter_their_mode_with_their_masks_and_return_address() {
    const AT: u32 = 0x8000;
    let status = Status::Translation { level: 1 };
    let data = FaultInfo::abort(status, read_access(), 0x123);
    let fetch = FaultInfo::abort(status, fetch_access(), AT.into());
    let sync = |fault: FaultInfo| move |cpu: &mut Cpu| exception::take_sync(cpu, fault, AT);
    type Take = Box<dyn Fn(&mut Cpu)>;
    let cases: [(&str, Take, Mode, u64, u64, u32); 9] = [
        ("undefined", Box::new(sync(FaultInfo::UNDEFINED)), Mode::Undefined, 0x04, 0x8004, 0x80),
        ("forbidden coprocessor", Box::new(sync(FaultInfo::FP_ACCESS)), Mode::Undefined, 0x04, 0x8004, 0x80),
        ("svc, told of the next instruction", Box::new(sync(FaultInfo::svc(0))), Mode::Supervisor, 0x08, 0x8000, 0x80),
        ("prefetch abort", Box::new(sync(fetch)), Mode::Abort, 0x0c, 0x8004, 0x180),
        ("breakpoint", Box::new(sync(FaultInfo::brk(0))), Mode::Abort, 0x0c, 0x8004, 0x180),
        ("data abort", Box::new(sync(data)), Mode::Abort, 0x10, 0x8008, 0x180),
        ("asynchronous abort", Box::new(exception::take_serror), Mode::Abort, 0x10, 0x8008, 0x180),
        ("irq", Box::new(exception::take_irq), Mode::Irq, 0x18, 0x8004, 0x180),
        ("fiq", Box::new(exception::take_fiq), Mode::Fiq, 0x1c, 0x8004, 0x1c0),
    ];
    for (name, take, mode, offset, lr, masks) in &cases {
        for high in [false, true] {
            with_cpu(|cpu| {
                cpu.sys.vbar = 0x4000_0020;
                cpu.sys.sctlr |= u64::from(high) << 13;
                cpu.replace_cpsr(0xa802_0010).expect("USR with flags");
                cpu.pc = AT.into();
                take(cpu);
                let base = if high { 0xffff_0000 } else { 0x4000_0020 };
                assert_eq!(cpu.pc, base + offset, "{name}");
                assert_eq!((cpu.mode(), cpu.x[14]), (*mode, *lr), "{name}");
                assert_eq!(cpu.spsr32(), Some(0xa802_0010), "{name}");
                assert_eq!(cpu.cpsr(), 0xa802_0000 | masks | mode.bits(), "{name}");
            });
        }
    }
}

#[test]
fn aborts_report_themselves_in_either_format() {
    let write = Access::new(AccessKind::Write, 0, false);
    let clean = Access::new(AccessKind::CacheMaintenance, 1, false);
    let domain = |fault: FaultInfo, domain: u8| FaultInfo { domain, ..fault };
    let level = 2;
    for (fault, short, long) in [
        (FaultInfo::abort(Status::Translation { level }, read_access(), 4), 0x007, 0x206),
        (domain(FaultInfo::abort(Status::Permission { level }, write, 4), 0xa), 0x8af, 0xa0e),
        (domain(FaultInfo::abort(Status::Domain { level: 1 }, write, 4), 3), 0x839, 0xa3d),
        (FaultInfo::abort(Status::AccessFlag { level: 1 }, read_access(), 4), 0x003, 0x209),
        (FaultInfo::abort(Status::Alignment, write, 4), 0x801, 0xa21),
        (FaultInfo::abort(Status::External, read_access(), 4), 0x008, 0x210),
        (FaultInfo::abort(Status::ExternalOnWalk { level }, read_access(), 4), 0x00e, 0x216),
        (FaultInfo::abort(Status::UnsupportedAtomic, write, 4), 0xc05, 0xa35),
        (FaultInfo::abort(Status::Translation { level }, clean, 4), 0x2807, 0x2a06),
    ] {
        for (eae, expected) in [(0, short), (1_u64 << 31, long)] {
            with_cpu(|cpu| {
                cpu.sys.tcr = eae;
                cpu.sys.far = 0x1111_1111_2222_2222;
                exception::take_sync(cpu, fault, 0);
                assert_eq!(cpu.sys.esr, expected, "{fault:?}");
                assert_eq!(cpu.sys.far, 0x1111_1111_0000_0004, "IFAR is left alone");
            });
        }
    }
    for (fault, short, long) in [
        (FaultInfo::abort(Status::Translation { level: 1 }, fetch_access(), 0x9000), 0x005, 0x205),
        (FaultInfo::abort(Status::Permission { level: 2 }, fetch_access(), 0x9000), 0x00f, 0x20e),
        (FaultInfo::pc_alignment(0x9000), 0x001, 0x221),
    ] {
        for (eae, expected) in [(0, short), (1_u64 << 31, long)] {
            with_cpu(|cpu| {
                cpu.sys.tcr = eae;
                cpu.sys.far = 0x1111_1111_2222_2222;
                exception::take_sync(cpu, fault, 0x9000);
                assert_eq!(cpu.sys.ifsr, expected, "{fault:?}");
                assert_eq!(cpu.sys.far, 0x9000_2222_2222, "DFAR is left alone");
            });
        }
    }
    with_cpu(|cpu| {
        exception::take_sync(cpu, FaultInfo::brk(1), 0);
        assert_eq!(cpu.sys.ifsr, 0x002);
        exception::take_serror(cpu);
        assert_eq!(cpu.sys.esr, 0x406);
    });
}

#[test]
fn returning_restores_the_mode_and_what_was_masked() {
    for mode in Mode::ALL {
        with_cpu(|cpu| {
            cpu.set_banked(mode, 13, 0x77);
            cpu.excl.valid = true;
            exception::return_to(cpu, 0x1003, 0x600f_0000 | cpsr::F | mode.bits());
            assert_eq!((cpu.mode(), cpu.pc, cpu.x[13]), (mode, 0x1000, 0x77));
            assert_eq!(cpu.cpsr(), 0x600f_0040 | mode.bits());
            assert!(!cpu.excl.valid && cpu.event);
        });
    }
}

#[test]
fn returning_to_a_state_that_does_not_exist_is_illegal_and_t32_is_named() {
    for (psr, named) in [(0x16, false), (0x1a, false), (0x5, false), (0x10 | cpsr::T, true)] {
        let (machine, _pages) = machine(1, ClockMode::Wall);
        let mut vcpu = machine.take_vcpu(0).expect("vCPU 0");
        let cpu = vcpu.cpu();
        exception::return_to(cpu, 0x1000, psr | 0x9000_0000);
        assert_eq!(cpu.cpsr(), 0x9010_0013, "{psr:#x}: the mode stays, IL is set, the flags are restored");
        assert_eq!(cpu.pc, 0x1000);
        assert_eq!(machine.unimplemented() == ["exception return to T32"], named);
    }
}

fn p15(opc1: u8, crn: u8, crm: u8, opc2: u8) -> Mrc {
    Mrc { coproc: 15, opc1, crn, crm, opc2 }
}

fn wide(opc1: u8, crm: u8) -> Mrrc {
    Mrrc { coproc: 15, opc1, crm }
}

const SCTLR: (u8, u8, u8, u8) = (0, 1, 0, 0);

fn get(cpu: &mut Cpu, (opc1, crn, crm, opc2): (u8, u8, u8, u8)) -> Result<u32, Trap> {
    coprocessor::read(cpu, p15(opc1, crn, crm, opc2))
}

fn set(cpu: &mut Cpu, (opc1, crn, crm, opc2): (u8, u8, u8, u8), value: u32) -> Result<(), Trap> {
    coprocessor::write(cpu, p15(opc1, crn, crm, opc2), value)
}

#[test]
fn coprocessor_registers_keep_what_is_implemented() {
    with_cpu(|cpu| {
        let res1 = id::SCTLR32_RES1 as u32;
        for (register, value, expected) in [
            (SCTLR, 0, res1),
            (SCTLR, 0xffff_ffff, res1 | id::SCTLR32_WRITABLE as u32),
            (SCTLR, 0, res1),
            ((0, 1, 0, 1), 0xffff_ffff, 0),            // ACTLR
            ((0, 1, 0, 2), 0xffff_ffff, 0xf0_0000),    // CPACR
            ((0, 2, 0, 0), 0x1234_406a, 0x1234_406a),  // TTBR0
            ((0, 2, 0, 1), 0x5678_406a, 0x5678_406a),  // TTBR1
            ((0, 2, 0, 2), 0xffff_ffff, 0xbfc7_3ff7),  // TTBCR
            ((0, 2, 0, 3), 0xffff_ffff, 0x600),        // TTBCR2
            ((0, 3, 0, 0), 0x5555_5555, 0x5555_5555),  // DACR
            ((0, 5, 0, 0), 0x80f, 0x80f),              // DFSR
            ((0, 5, 0, 1), 0x00d, 0x00d),              // IFSR
            ((0, 5, 1, 0), 0xffff_ffff, 0),            // ADFSR
            ((0, 6, 0, 0), 0x1111_1111, 0x1111_1111),  // DFAR
            ((0, 6, 0, 2), 0x2222_2222, 0x2222_2222),  // IFAR
            ((0, 7, 4, 0), 0x3333_3333, 0x3333_3333),  // PAR
            ((0, 10, 2, 0), 0xff0a_81a8, 0xff0a_81a8), // PRRR
            ((0, 10, 2, 1), 0x40e0_40e0, 0x40e0_40e0), // NMRR
            ((0, 10, 3, 0), 0xffff_ffff, 0),           // AMAIR0
            ((0, 12, 0, 0), 0x4000_003f, 0x4000_0020), // VBAR
            ((0, 13, 0, 0), 0xffff_ffff, 0),           // FCSEIDR
            ((0, 13, 0, 1), 0x0000_1234, 0x0000_1234), // CONTEXTIDR
            ((0, 13, 0, 2), 1, 1),                     // TPIDRURW
            ((0, 13, 0, 3), 2, 2),                     // TPIDRURO
            ((0, 13, 0, 4), 3, 3),                     // TPIDRPRW
            ((0, 14, 1, 0), 0x3ff, 0x3ff),             // CNTKCTL
            ((0, 14, 3, 1), 3, 3),                     // CNTV_CTL
            ((2, 0, 0, 0), 1, 1),                      // CSSELR
            ((0, 9, 12, 5), 0x1f, 0x1f),               // PMSELR
            ((0, 4, 6, 0), 0xf8, 0xf8),                // ICC_PMR
            ((0, 12, 12, 7), 1, 1),                    // ICC_IGRPEN1
        ] {
            set(cpu, register, value).expect("writable");
            let mask = if register == (0, 14, 3, 1) { 3 } else { u32::MAX };
            assert_eq!(get(cpu, register).map(|v| v & mask), Ok(expected), "{register:?}");
        }
        // Halves did not disturb each other, and lie where KVM has them.
        assert_eq!(cpu.sys.far, 0x2222_2222_1111_1111);
        assert_eq!(cpu.sys.mair, 0x40e0_40e0_ff0a_81a8);
        assert_eq!(crate::sysreg::get(cpu, TCR_EL1), Some(0x600_bfc7_3ff7));
        assert_eq!(cpu.sys.ttbr, [0x1234_406a, 0x5678_406a]);
    });
}

#[test]
fn wide_registers_are_read_and_written_whole() {
    with_cpu(|cpu| {
        for (register, value) in [
            (wide(0, 2), 0x00ab_0012_3456_7000),
            (wide(1, 2), 0x00cd_0012_3456_8000),
            (wide(0, 7), 0x1234),
            (wide(2, 14), 0xffff_ffff_ffff),
            (wide(3, 14), 0x1_0000_0000_0000),
            (wide(0, 9), 0x1_0000_0000),
        ] {
            coprocessor::write64(cpu, register, value).expect("writable");
            assert_eq!(coprocessor::read64(cpu, register), Ok(value), "{register:?}");
        }
        set(cpu, (0, 9, 13, 0), 5).expect("PMCCNTR");
        assert_eq!(coprocessor::read64(cpu, wide(0, 9)), Ok(0x1_0000_0005), "MCR leaves the upper half");
        set(cpu, (0, 2, 0, 0), 0x4000).expect("TTBR0");
        assert_eq!(cpu.sys.ttbr[0], 0x4000, "MCR clears the upper half");
        let count = coprocessor::read64(cpu, wide(1, 14)).expect("CNTVCT");
        assert!(crate::timer::read(cpu, CNTVCT_EL0).expect("a timer register") >= count);
        assert_eq!(coprocessor::write64(cpu, wide(1, 14), 0), Err(Trap::Undefined), "counters are read-only");
        assert_eq!(coprocessor::write64(cpu, wide(0, 12), 1), Ok(()), "ICC_SGI1R");
    });
}

#[test]
fn identification_promises_what_is_implemented_and_cannot_be_written() {
    with_cpu(|cpu| {
        assert_eq!(get(cpu, (0, 0, 0, 0)), Ok(id::MIDR as u32));
        assert_eq!(get(cpu, (0, 0, 0, 5)), Ok(0x8000_0000), "MPIDR");
        assert_eq!(get(cpu, (0, 0, 1, 4)).map(|v| v & 0xf), Ok(5), "long descriptors");
        assert_eq!(get(cpu, (0, 0, 1, 1)).map(|v| v >> 28), Ok(1), "GIC system registers");
        assert_eq!(get(cpu, (0, 0, 1, 0)).map(|v| v >> 4 & 0xf), Ok(0), "no T32");
        assert_eq!(get(cpu, (0, 0, 2, 5)), Ok(id32::ISAR5 as u32));
        assert_eq!(get(cpu, (0, 0, 2, 7)), Ok(0), "ID_ISAR6");
        assert_eq!(get(cpu, (0, 0, 7, 0)), Ok(0), "AArch64's features are not in CP15");
        for register in [(0, 0, 0, 0), (0, 0, 0, 5), (0, 0, 1, 4), (0, 0, 3, 0), (1, 0, 0, 0), (0, 12, 1, 0)] {
            assert_eq!(set(cpu, register, 0), Err(Trap::Undefined), "{register:?}");
        }
    });
}

#[test]
fn el0_reaches_what_the_control_registers_open() {
    with_cpu(|cpu| {
        set(cpu, (0, 13, 0, 3), 9).expect("TPIDRURO at EL1");
        cpu.set_mode(Mode::User);
        assert_eq!(get(cpu, (0, 13, 0, 3)), Ok(9));
        assert_eq!(set(cpu, (0, 13, 0, 3), 1), Err(Trap::Undefined));
        assert_eq!(set(cpu, (0, 13, 0, 2), 1), Ok(()));
        for barrier in [(0, 7, 5, 4), (0, 7, 10, 4), (0, 7, 10, 5)] {
            assert_eq!(set(cpu, barrier, 0), Ok(()), "{barrier:?}");
        }
        for closed in [SCTLR, (0, 3, 0, 0), (0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 3), (0, 13, 0, 4), (0, 5, 0, 1)] {
            assert!(get(cpu, closed).is_err(), "{closed:?}");
        }
        for closed in [(0, 7, 5, 0), (0, 8, 7, 0), (0, 7, 14, 1), (0, 7, 5, 6), (0, 13, 0, 0)] {
            assert!(set(cpu, closed, 0).is_err(), "{closed:?}");
        }
        assert!(coprocessor::read64(cpu, wide(1, 14)).is_err(), "CNTVCT");
        assert!(get(cpu, (0, 9, 13, 0)).is_err(), "PMCCNTR");
        cpu.set_mode(Mode::Supervisor);
        set(cpu, (0, 14, 1, 0), 1 << 1 | 1 << 8).expect("CNTKCTL");
        set(cpu, (0, 9, 14, 0), 1).expect("PMUSERENR");
        cpu.set_mode(Mode::User);
        assert!(coprocessor::read64(cpu, wide(1, 14)).is_ok());
        assert!(get(cpu, (0, 14, 3, 1)).is_ok(), "CNTV_CTL");
        assert!(get(cpu, (0, 14, 2, 1)).is_err(), "CNTP_CTL");
        assert!(get(cpu, (0, 9, 13, 0)).is_ok());
    });
}

#[test]
fn what_is_unknown_is_undefined_and_named() {
    let (machine, _pages) = machine(1, ClockMode::Wall);
    let mut vcpu = machine.take_vcpu(0).expect("vCPU 0");
    let cpu = vcpu.cpu();
    assert_eq!(get(cpu, (0, 11, 0, 0)), Err(Trap::Undefined));
    assert_eq!(set(cpu, (0, 15, 0, 1), 0), Err(Trap::Undefined));
    assert_eq!(coprocessor::read(cpu, Mrc { coproc: 14, ..p15(6, 0, 0, 0) }), Err(Trap::Undefined));
    assert_eq!(coprocessor::write64(cpu, wide(6, 2), 0), Err(Trap::Undefined), "VTTBR");
    let named = machine.unimplemented();
    assert_eq!(named, ["MCR p15, 0, c15, c0, 1", "MCRR p15, 6, c2", "MRC p14, 6, c0, c0, 0", "MRC p15, 0, c11, c0, 0"]);
}

#[test]
fn debug_registers_hold_state_and_the_os_lock_has_a_key() {
    with_cpu(|cpu| {
        let p14 = |opc1, crn, crm, opc2| Mrc { coproc: 14, ..p15(opc1, crn, crm, opc2) };
        assert_eq!(coprocessor::read(cpu, p14(0, 0, 0, 0)).map(|v| v >> 16 & 0xf), Ok(6), "DBGDIDR: Armv8");
        coprocessor::write(cpu, p14(0, 0, 1, 4), 0x4000_0000).expect("DBGBVR1");
        assert_eq!(coprocessor::read(cpu, p14(0, 0, 1, 4)), Ok(0x4000_0000));
        assert!(coprocessor::read(cpu, p14(0, 0, 2, 4)).is_err(), "no third breakpoint");
        assert_eq!(coprocessor::read(cpu, p14(0, 1, 1, 4)), Ok(0b1010), "the OS lock is held after a reset");
        coprocessor::write(cpu, p14(0, 1, 0, 4), 0).expect("OSLAR");
        assert_eq!(coprocessor::read(cpu, p14(0, 1, 1, 4)), Ok(0b1000));
        coprocessor::write(cpu, p14(0, 1, 0, 4), 0xc5ac_ce55).expect("OSLAR");
        assert_eq!(coprocessor::read(cpu, p14(0, 1, 1, 4)), Ok(0b1010));
        assert_eq!(coprocessor::read(cpu, p14(7, 0, 0, 0)), Ok(0), "JIDR");
    });
}

#[test]
fn floating_point_registers_need_cpacr_and_fpexc() {
    with_cpu(|cpu| {
        assert_eq!(coprocessor::read_fp(cpu, 8), Err(Trap::Undefined), "CPACR");
        set(cpu, (0, 1, 0, 2), 0xf << 20).expect("CPACR");
        assert_eq!(coprocessor::read_fp(cpu, 8), Ok(0x700));
        assert_eq!(coprocessor::read_fp(cpu, 1), Err(Trap::Undefined), "FPEXC.EN");
        assert_eq!(coprocessor::read_fp(cpu, 7), Ok(2), "MVFR0: 32 registers, no arithmetic");
        assert!(!coprocessor::fp_enabled(cpu));
        coprocessor::write_fp(cpu, 8, 0xffff_ffff).expect("FPEXC");
        assert_eq!(coprocessor::read_fp(cpu, 8), Ok(0x4000_0700));
        coprocessor::write_fp(cpu, 1, 0xffff_ffff).expect("FPSCR");
        assert_eq!(coprocessor::read_fp(cpu, 1), Ok(0xffc0_009f));
        cpu.set_mode(Mode::User);
        assert!(coprocessor::fp_enabled(cpu));
        assert_eq!(coprocessor::read_fp(cpu, 1), Ok(0xffc0_009f));
        assert_eq!(coprocessor::read_fp(cpu, 8), Err(Trap::Undefined));
        assert_eq!(coprocessor::read_fp(cpu, 0), Err(Trap::Undefined));
        cpu.sys.cpacr = 1 << 20;
        assert!(!coprocessor::fp_enabled(cpu), "0b01 is for EL1 alone");
    });
}

/// Sections that map RAM flat for EL1, and 0x0010_0000 to RAM for both levels; the table is at RAM + 0x4000.
fn map_sections(cpu: &mut Cpu) {
    const FLAT: u32 = 0b10 | 1 << 10 | 0b11 << 2 | 1 << 12;
    let table = RAM + 0x4000;
    let ram = RAM as u32;
    for (index, descriptor) in [(ram >> 20, ram | FLAT), (1, ram | FLAT | 1 << 11)] {
        let at = Gpa::new(table + 4 * u64::from(index));
        cpu.shared.ram.write_bytes(at, &descriptor.to_le_bytes()).expect("in RAM");
    }
    set(cpu, (0, 2, 0, 0), table as u32).expect("TTBR0");
    set(cpu, (0, 3, 0, 0), 1).expect("DACR: client");
    set(cpu, SCTLR, 1).expect("SCTLR.M");
}

#[test]
fn memory_is_reached_through_sections_and_aborts_land_in_dfsr() {
    with_cpu(|cpu| {
        map_sections(cpu);
        cpu.store::<u32>(0x0010_0100, 0xabcd).expect("mapped");
        assert_eq!(cpu.load::<u32>(RAM + 0x100), Ok(0xabcd));
        assert_eq!(cpu.load::<u32>(0x0020_0000), Err(Trap::Exception));
        let fault = cpu.fault;
        exception::take_sync(cpu, fault, 0);
        assert_eq!((cpu.sys.esr, cpu.sys.far), (0x005, 0x0020_0000));
        cpu.set_mode(Mode::User);
        assert_eq!(cpu.load::<u32>(0x0010_0100), Ok(0xabcd));
        assert_eq!(cpu.load::<u32>(RAM), Err(Trap::Exception), "EL1's alone");
    });
}

#[test]
fn changes_of_the_context_and_maintenance_take_effect() {
    with_cpu(|cpu| {
        map_sections(cpu);
        assert!(cpu.load::<u32>(RAM).is_ok());
        set(cpu, (0, 3, 0, 0), 0).expect("DACR: no access");
        assert!(cpu.load::<u32>(RAM).is_err());
        set(cpu, (0, 3, 0, 0), 1).expect("DACR: client");
        let generation = cpu.tlb.generation();
        set(cpu, (0, 13, 0, 1), 5).expect("CONTEXTIDR");
        assert_ne!(cpu.tlb.generation(), generation, "another ASID");
        assert!(cpu.load::<u32>(RAM).is_ok());
        cpu.shared.ram.write_bytes(Gpa::new(RAM + 0x4000 + 0x1000), &[0; 4]).expect("in RAM");
        assert!(cpu.load::<u32>(RAM).is_ok(), "the TLB still has it");
        for tlbi in [(0, 8, 7, 1), (0, 8, 3, 3), (0, 8, 6, 0)] {
            let generation = cpu.tlb.generation();
            set(cpu, tlbi, RAM as u32).expect("a TLBI");
            assert_ne!(cpu.tlb.generation(), generation, "{tlbi:?}");
        }
        assert!(cpu.load::<u32>(RAM).is_err());
    });
}

#[test]
fn address_translation_and_maintenance_by_address_use_the_tables() {
    with_cpu(|cpu| {
        map_sections(cpu);
        set(cpu, (0, 7, 8, 0), 0x0010_1234).expect("ATS1CPR");
        assert_eq!(get(cpu, (0, 7, 4, 0)).map(|par| par & 0xffff_f001), Ok(RAM as u32 | 0x1000));
        set(cpu, (0, 7, 8, 3), RAM as u32).expect("ATS1CUW");
        assert_eq!(get(cpu, (0, 7, 4, 0)), Ok(0b0_1101 << 1 | 1), "permission fault, section");
        for by_address in [(0, 7, 5, 1), (0, 7, 6, 1), (0, 7, 10, 1), (0, 7, 11, 1), (0, 7, 14, 1)] {
            assert_eq!(set(cpu, by_address, 0x0010_0000), Ok(()), "{by_address:?}");
            assert_eq!(set(cpu, by_address, 0x0020_0000), Err(Trap::Exception), "{by_address:?}");
            assert!(cpu.fault.is_cache_maintenance(), "{by_address:?}");
        }
        for whole in [(0, 7, 5, 0), (0, 7, 1, 0), (0, 7, 5, 6), (0, 7, 1, 6), (0, 7, 6, 2), (0, 7, 14, 2)] {
            assert_eq!(set(cpu, whole, 0), Ok(()), "{whole:?}");
        }
    });
}

#[test]
fn psci_has_no_64_bit_calls_and_starts_in_supervisor_mode() {
    let (machine, _pages) = machine(2, ClockMode::Icount { ns_per_instruction: 16 });
    let shared = machine.shared();
    let call = |args| psci::call(shared, 0, args);
    let not_supported = Outcome::Return(-1_i64 as u64);
    assert_eq!(call([0xc400_0003, 1, RAM, 0]), not_supported);
    assert_eq!(call([0x8400_000a, 0xc400_0003, 0, 0]), not_supported, "FEATURES");
    assert_eq!(call([0x8400_000a, 0x8400_0003, 0, 0]), Outcome::Return(0));
    assert_eq!(call([0x8400_0000, 0, 0, 0]), Outcome::Return(0x1_0001), "VERSION");
    assert_eq!(call([0x8400_0003, 1, RAM | 1, 0]), Outcome::Return(-9_i64 as u64), "a T32 entry point");
    assert_eq!(call([0x8400_0003, 1, RAM + 0x40, 0x55]), Outcome::Return(0));
    assert_eq!(call([0xc600_0000, 0, 0, 0]), Outcome::Host);
    let mut second = machine.take_vcpu(1).expect("vCPU 1");
    second.cpu().replace_cpsr(0x10).expect("USR");
    second.cpu().set_banked(Mode::Supervisor, 13, 7);
    assert_eq!(second.run_for(0), crate::Exit::Budget);
    assert_eq!(second.power(), PowerState::On);
    let cpu = second.cpu();
    assert_eq!((cpu.cpsr(), cpu.pc, cpu.x[0], cpu.x[13]), (0x1d3, RAM + 0x40, 0x55, 0));
    assert_eq!(get(cpu, (0, 0, 0, 5)), Ok(0x8000_0001));
}
