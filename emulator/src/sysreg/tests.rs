//! Tests of access rules, side effects, system instructions, and exception entry and return, on a whole vCPU.

use abi::addr::Gpa;

use super::enc::*;
use super::*;
use crate::config::Config;
use crate::cpu::{Cpu, Trap};
use crate::exception;
use crate::fault::{FaultInfo, ec};
use crate::ram::testing::HostPages;
use crate::vm::Machine;

/// Where the test machine's RAM is.
const RAM: u64 = 0x4000_0000;

/// Runs `test` on a fresh vCPU with a MiB of RAM.
pub(crate) fn with_cpu(test: impl FnOnce(&mut Cpu)) {
    let pages = HostPages::new(1 << 20);
    #[expect(unsafe_code, reason = "a machine is built on raw memory")]
    // SAFETY: `pages` outlives the machine and nobody makes references to its memory.
    let machine = unsafe { Machine::new(Config::default(), &[pages.slot(RAM)]) }.expect("a good configuration");
    let mut vcpu = machine.take_vcpu(0).expect("vCPU 0");
    test(vcpu.cpu());
}

fn enter_el0(cpu: &mut Cpu) {
    cpu.sys.spsr = 0;
    exception::eret(cpu);
    assert_eq!(cpu.pstate.el, 0);
}

#[test]
fn registers_keep_what_is_implemented() {
    with_cpu(|cpu| {
        let mut check = |enc, value, expected| {
            write(cpu, enc, value).expect("writable");
            assert_eq!(read(cpu, enc), Ok(expected), "{}", describe(enc));
        };
        check(TPIDR_EL1, 0x1234_5678_9abc_def0, 0x1234_5678_9abc_def0);
        check(VBAR_EL1, 0xffff_0000_0000_0fff, 0xffff_0000_0000_0800);
        check(SCTLR_EL1, 0, id::SCTLR_RES1);
        check(SCTLR_EL1, u64::MAX, id::SCTLR_RES1 | id::SCTLR_WRITABLE);
        check(SCTLR_EL1, 0, id::SCTLR_RES1);
        check(CPACR_EL1, u64::MAX, 3 << 20 | 1 << 28);
        check(NZCV, 0xa000_0000, 0xa000_0000);
        check(DAIF, 0x80, 0x80);
        check(PAN, 1 << 22, 1 << 22);
        check(SPSEL, 0, 0);
        check(FPCR, u64::MAX, 0x07c0_0000);
        check(enc(2, 0, 0, 1, 5), 0x11, 0x11);
    });
}

#[test]
fn identification_promises_what_is_implemented_and_cannot_be_written() {
    with_cpu(|cpu| {
        assert_eq!(read(cpu, MPIDR_EL1), Ok(0x8000_0000));
        assert_eq!(read(cpu, CURRENT_EL), Ok(4));
        assert_eq!(read(cpu, ID_AA64MMFR0_EL1).map(|v| v & 0xf), Ok(4), "44 bits");
        assert_eq!(read(cpu, enc(3, 0, 0, 4, 4)), Ok(0), "ID_AA64ZFR0_EL1: no SVE");
        assert_eq!(read(cpu, enc(3, 0, 0, 1, 0)), Ok(0), "ID_PFR0_EL1: no AArch32");
        assert_eq!(read(cpu, DCZID_EL0), Ok(4));
        for enc in [MIDR_EL1, MPIDR_EL1, ID_AA64PFR0_EL1, CTR_EL0, CURRENT_EL, OSLSR_EL1] {
            assert_eq!(write(cpu, enc, 0), Err(Trap::Undefined), "{}", describe(enc));
        }
    });
}

#[test]
fn an_unknown_register_is_undefined_and_named() {
    with_cpu(|cpu| {
        let unknown = enc(3, 0, 1, 2, 0); // ZCR_EL1
        assert_eq!(read(cpu, unknown), Err(Trap::Undefined));
        assert_eq!(write(cpu, unknown, 0), Err(Trap::Undefined));
        assert_eq!(sys_insn(cpu, enc(1, 0, 7, 1, 7), 0), Err(Trap::Undefined));
        let named = cpu.shared.unimplemented();
        assert!(named.iter().any(|line| line.contains("MRS of S3_0_C1_C2_0")), "{named:?}");
        assert!(named.iter().any(|line| line.contains("SYS S1_0_C7_C1_7")), "{named:?}");
    });
}

#[test]
fn el0_reaches_only_what_el1_opens() {
    with_cpu(|cpu| {
        cpu.sys.cpacr = 3 << 20;
        enter_el0(cpu);
        for enc in [SCTLR_EL1, TTBR0_EL1, CURRENT_EL, SP_EL0, MIDR_EL1, SPSEL] {
            assert_eq!(read(cpu, enc), Err(Trap::Undefined), "{}", describe(enc));
        }
        for enc in [TPIDR_EL0, TPIDRRO_EL0, NZCV, FPCR, DCZID_EL0] {
            assert!(read(cpu, enc).is_ok(), "{}", describe(enc));
        }
        assert_eq!(write(cpu, TPIDRRO_EL0, 1), Err(Trap::Undefined));
        type Open = fn(&mut SysRegs);
        let gates: [(u16, Open); 4] = [
            (CTR_EL0, |sys| sys.sctlr |= 1 << 15),
            (DAIF, |sys| sys.sctlr |= 1 << 9),
            (CNTVCT_EL0, |sys| sys.cntkctl |= 1 << 1),
            (CNTV_CTL_EL0, |sys| sys.cntkctl |= 1 << 8),
        ];
        for (enc, open) in gates {
            assert_eq!(read(cpu, enc), Err(Trap::Exception), "{}", describe(enc));
            assert_eq!(cpu.fault, FaultInfo::sysreg(enc, 0, true));
            open(&mut cpu.sys);
            assert!(read(cpu, enc).is_ok(), "{}", describe(enc));
        }
        assert_eq!(sys_insn(cpu, TLBI_VMALLE1, 0), Err(Trap::Undefined));
        assert_eq!(sys_insn(cpu, DC_CVAC, RAM), Err(Trap::Exception));
        assert_eq!(cpu.fault.ec, ec::SYSREG);
        cpu.sys.sctlr |= 1 << 26;
        assert_eq!(sys_insn(cpu, DC_CVAC, RAM), Ok(()));
    });
}

#[test]
fn fp_registers_trap_as_cpacr_says() {
    with_cpu(|cpu| {
        for (fpen, el1, el0) in [(0, false, false), (1, true, false), (2, false, false), (3, true, true)] {
            cpu.sys.cpacr = fpen << 20;
            assert_eq!(cpu.sys.fp_enabled(1), el1);
            assert_eq!(cpu.sys.fp_enabled(0), el0);
            assert_eq!(read(cpu, FPSR).is_ok(), el1);
        }
        cpu.sys.cpacr = 0;
        assert_eq!(write(cpu, FPCR, 0), Err(Trap::Exception));
        assert_eq!(cpu.fault, FaultInfo::FP_ACCESS);
    });
}

#[test]
fn the_os_lock_opens_by_oslar() {
    with_cpu(|cpu| {
        assert_eq!(read(cpu, OSLSR_EL1), Ok(0b1010));
        write(cpu, OSLAR_EL1, 0).expect("write-only register");
        assert_eq!(read(cpu, OSLSR_EL1), Ok(0b1000));
        assert_eq!(read(cpu, OSLAR_EL1), Err(Trap::Undefined));
    });
}

#[test]
fn other_parts_answer_for_their_registers() {
    with_cpu(|cpu| {
        assert_eq!(read(cpu, CNTFRQ_EL0), Ok(Config::default().cntfrq_hz.into()));
        write(cpu, CNTV_CVAL_EL0, 5).expect("writable");
        assert_eq!(read(cpu, CNTV_CVAL_EL0), Ok(5));
        write(cpu, ICC_PMR_EL1, 0xf0).expect("writable");
        assert_eq!(read(cpu, ICC_PMR_EL1), Ok(0xf0));
        assert!(read(cpu, PMCR_EL0).is_ok());
        assert_eq!(read(cpu, ISR_EL1), Ok(0));
    });
}

#[test]
fn at_reports_in_par_and_takes_no_exception() {
    with_cpu(|cpu| {
        sys_insn(cpu, AT_S1E1R, RAM + 0x1234).expect("AT never faults");
        assert_eq!(read(cpu, PAR_EL1).map(|par| par & 0xffff_ffff_f001), Ok(RAM + 0x1000), "stage 1 off");
        // One 2 MiB block, EL0-accessible and read-only, at VA 0; 39-bit addresses.
        let table = [(RAM, (RAM + 0x1000) | 3), (RAM + 0x1000, RAM | 0b11 << 6 | 1 << 10 | 1)];
        for (at, descriptor) in table {
            cpu.shared.ram.write_bytes(Gpa::new(at), &u64::to_le_bytes(descriptor)).expect("RAM");
        }
        for (enc, value) in [(TTBR0_EL1, RAM), (TCR_EL1, 25 | 25 << 16 | 4 << 32), (MAIR_EL1, 0xff), (SCTLR_EL1, 1)] {
            write(cpu, enc, value).expect("writable");
        }
        let mut at = |enc, va| {
            sys_insn(cpu, enc, va).expect("AT never faults");
            read(cpu, PAR_EL1).expect("readable")
        };
        assert_eq!(at(AT_S1E0R, 0x1000) & 0xff00_ffff_ffff_f001, 0xff << 56 | (RAM + 0x1000));
        assert_eq!(at(AT_S1E1W, 0x1000), 0x800 | 0b00_1110 << 1 | 1, "permission fault, level 2");
        assert_eq!(at(AT_S1E1R, 0x20_0000), 0x800 | 0b00_0110 << 1 | 1, "translation fault, level 2");
        cpu.pstate.pan = true;
        sys_insn(cpu, AT_S1E1R, 0).expect("AT never faults");
        assert_eq!(cpu.sys.par & 1, 0, "the plain form ignores PAN");
        sys_insn(cpu, AT_S1E1RP, 0).expect("AT never faults");
        assert_eq!(cpu.sys.par & 1, 1);
        assert_eq!(sys_insn(cpu, DC_CVAU, 0x20_0000), Err(Trap::Exception));
        assert_eq!((cpu.fault.ec, cpu.fault.iss, cpu.fault.far), (ec::DATA_ABORT_SAME, 0x146, Some(0x20_0000)));
        cpu.pstate.pan = false;
        assert_eq!(sys_insn(cpu, DC_IVAC, 0x1000), Err(Trap::Exception), "invalidation needs a writable page");
        assert_eq!(cpu.fault.iss, 0x14e);
    });
}

#[test]
fn every_tlbi_form_of_the_regime_is_accepted() {
    with_cpu(|cpu| {
        for crm in [3, 7] {
            for op2 in [0, 1, 2, 3, 5, 7] {
                assert_eq!(sys_insn(cpu, enc(1, 0, 8, crm, op2), 0), Ok(()), "CRm {crm} op2 {op2}");
            }
            assert_eq!(sys_insn(cpu, enc(1, 0, 8, crm, 4), 0), Err(Trap::Undefined));
        }
        for enc in [IC_IALLU, IC_IALLUIS, DC_ISW, DC_CSW, DC_CISW] {
            assert_eq!(sys_insn(cpu, enc, 0), Ok(()), "{}", describe(enc));
        }
        assert_eq!(sys_insn(cpu, IC_IVAU, RAM), Ok(()));
    });
}

#[test]
fn exceptions_enter_the_vector_of_their_kind_and_origin() {
    with_cpu(|cpu| {
        cpu.sys.vbar = 0x8_0000;
        cpu.pc = 0x1000;
        cpu.pstate.daif = 0;
        exception::take_irq(cpu);
        assert_eq!((cpu.pc, cpu.sys.elr, cpu.sys.spsr), (0x8_0280, 0x1000, 5));
        assert_eq!((cpu.pstate.daif, cpu.pstate.el, cpu.pstate.sp_sel), (0b1111, 1, true));
        write(cpu, SPSEL, 0).expect("writable");
        exception::take_fiq(cpu);
        assert_eq!(cpu.pc, 0x8_0100);
        enter_el0(cpu);
        cpu.pstate.nzcv = 0b1010;
        exception::take_sync(cpu, FaultInfo::svc(3), 0x2004);
        assert_eq!((cpu.pc, cpu.sys.elr, cpu.sys.spsr), (0x8_0400, 0x2004, 0xa000_0000));
        assert_eq!(cpu.sys.esr, 0x5600_0003);
        assert_eq!(cpu.pstate.nzcv, 0b1010);
        exception::take_serror(cpu, 0);
        assert_eq!((cpu.pc, cpu.sys.esr), (0x8_0380, 0xbe00_0000));
    });
}

#[test]
fn stack_pointers_follow_the_level_and_spsel() {
    with_cpu(|cpu| {
        cpu.set_sp(0, 0x100);
        cpu.set_sp(1, 0x200);
        enter_el0(cpu);
        assert_eq!(cpu.x[33], 0x100);
        assert_eq!(write(cpu, CTR_EL0, 0), Err(Trap::Undefined), "read-only, whatever SCTLR_EL1.UCT");
        cpu.x[33] = 0x110;
        exception::take_sync(cpu, FaultInfo::svc(0), 0);
        assert_eq!(cpu.x[33], 0x200);
        assert_eq!(read(cpu, SP_EL0), Ok(0x110));
        write(cpu, SPSEL, 0).expect("writable");
        assert_eq!(cpu.x[33], 0x110);
        // In use it has another name (found by `hostvmm verify cpu`).
        assert_eq!((read(cpu, SP_EL0), write(cpu, SP_EL0, 0)), (Err(Trap::Undefined), Err(Trap::Undefined)));
    });
}

#[test]
fn entry_sets_pan_unless_span_and_far_stays_without_an_address() {
    with_cpu(|cpu| {
        cpu.sys.far = 7;
        exception::take_sync(cpu, FaultInfo::UNDEFINED, 0);
        assert!(cpu.pstate.pan, "SPAN is clear");
        assert_eq!(cpu.sys.far, 7);
        cpu.sys.sctlr |= 1 << 23;
        enter_el0(cpu);
        exception::take_sync(cpu, FaultInfo::UNDEFINED, 0);
        assert!(!cpu.pstate.pan);
        let fault = FaultInfo::pc_alignment(2);
        exception::take_sync(cpu, fault, 2);
        assert_eq!((cpu.sys.far, cpu.sys.esr), (2, 0x8a00_0000));
    });
}

#[test]
fn a_return_to_a_state_that_does_not_exist_sets_il() {
    with_cpu(|cpu| {
        for mode in [0x8, 0x9, 0xc, 0x10, 0x13, 0x1, 0x2] {
            cpu.set_pstate(crate::cpu::Pstate::RESET);
            cpu.sys.spsr = 0x8000_0000 | mode;
            cpu.sys.elr = 0x4444;
            exception::eret(cpu);
            assert!(cpu.pstate.il, "{mode:#x}");
            assert_eq!((cpu.pstate.el, cpu.pstate.sp_sel, cpu.pstate.nzcv, cpu.pc), (1, true, 0b1000, 0x4444));
        }
        exception::take_sync(cpu, FaultInfo::ILLEGAL_STATE, cpu.pc);
        assert!(!cpu.pstate.il);
        assert_ne!(cpu.sys.spsr & 1 << 20, 0);
        assert_eq!(cpu.sys.esr, 0x3a00_0000);
    });
}

#[test]
fn a_return_strips_the_tag_where_the_top_byte_is_ignored() {
    with_cpu(|cpu| {
        cpu.sys.spsr = 5;
        cpu.sys.elr = 0xa5 << 56 | 0x1000;
        exception::eret(cpu);
        assert_eq!(cpu.pc, 0xa5 << 56 | 0x1000);
        cpu.sys.tcr = 3 << 37;
        exception::eret(cpu);
        assert_eq!(cpu.pc, 0x1000);
        cpu.sys.elr = 0xa5 << 56 | 1 << 55;
        exception::eret(cpu);
        assert_eq!(cpu.pc, 0xff80_0000_0000_0000);
    });
}
