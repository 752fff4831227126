//! Exceptions of AArch32 at EL1 (DDI 0487 G1.12 to G1.14): into the vectors, and back by [`return_to`].
//!
//! [`crate::exception`] forwards here. A syndrome comes as [`FaultInfo`], in AArch64's terms; [`take_sync`] turns it into mode,
//! vector and LR, and for aborts into DFSR and DFAR or IFSR and IFAR. These live where KVM keeps them (DDI 0487 D1.21.2): DFSR in
//! ESR_EL1, IFSR in IFSR32_EL2, DFAR and IFAR in the low and the high half of FAR_EL1.

use super::{Mode, cpsr};
use crate::cpu::Cpu;
use crate::fault::{FaultInfo, Status, ec};

/// SCTLR.V: vectors at 0xffff_0000.
const SCTLR_V: u64 = 1 << 13;
const HIGH_VECTORS: u32 = 0xffff_0000;

/// An entry of the vector table: its offset, the mode, and which masks are set beside I (DDI 0487 G1.13.3).
struct Vector {
    offset: u32,
    mode: Mode,
    masks: u32,
}

const UNDEFINED: Vector = Vector { offset: 0x04, mode: Mode::Undefined, masks: 0 };
const SUPERVISOR_CALL: Vector = Vector { offset: 0x08, mode: Mode::Supervisor, masks: 0 };
const PREFETCH_ABORT: Vector = Vector { offset: 0x0c, mode: Mode::Abort, masks: cpsr::A };
const DATA_ABORT: Vector = Vector { offset: 0x10, mode: Mode::Abort, masks: cpsr::A };
const IRQ: Vector = Vector { offset: 0x18, mode: Mode::Irq, masks: cpsr::A };
const FIQ: Vector = Vector { offset: 0x1c, mode: Mode::Fiq, masks: cpsr::A | cpsr::F };

/// Takes the synchronous exception `fault`. `at` is the instruction, for SVC the one behind it. LR is `at` plus what the table "Offsets
/// applied to Link value" (G1.13.4) says for A32: undefined 4, SVC 0 from the next, prefetch abort 4, data abort 8.
pub fn take_sync(cpu: &mut Cpu, fault: FaultInfo, at: u32) {
    let long = cpu.sys.long_descriptors();
    match fault.ec {
        ec::SVC64 => enter(cpu, &SUPERVISOR_CALL, at),
        ec::INSTRUCTION_ABORT_LOWER | ec::INSTRUCTION_ABORT_SAME | ec::PC_ALIGNMENT | ec::BRK64 => {
            let status = match fault.ec {
                // A debug event; IFAR becomes UNKNOWN and stays (G5.11.1).
                ec::BRK64 => DEBUG_EVENT,
                ec::PC_ALIGNMENT => Status::Alignment.code(),
                _ => fault.status_code(),
            };
            enter(cpu, &PREFETCH_ABORT, at.wrapping_add(4));
            // IFSR has no domain and no WnR.
            cpu.sys.ifsr = fault_status(long, status, 0).into();
            if let Some(far) = fault.far {
                cpu.sys.far = cpu.sys.far & 0xffff_ffff | far << 32;
            }
        }
        ec::DATA_ABORT_LOWER | ec::DATA_ABORT_SAME => {
            enter(cpu, &DATA_ABORT, at.wrapping_add(8));
            cpu.sys.esr = data_fault_status(long, fault).into();
            if let Some(far) = fault.far {
                cpu.sys.far = cpu.sys.far & !0xffff_ffff | far & 0xffff_ffff;
            }
        }
        // UNDEFINED, an illegal state, a forbidden coprocessor, a trapped WFI: one vector, no syndrome.
        _ => enter(cpu, &UNDEFINED, at.wrapping_add(4)),
    }
}

/// Takes an IRQ before the instruction at PC.
pub fn take_irq(cpu: &mut Cpu) {
    enter(cpu, &IRQ, (cpu.pc as u32).wrapping_add(4));
}

/// Takes an FIQ before the instruction at PC.
pub fn take_fiq(cpu: &mut Cpu) {
    enter(cpu, &FIQ, (cpu.pc as u32).wrapping_add(4));
}

/// Takes an asynchronous external abort before the instruction at PC. DFAR becomes UNKNOWN and stays.
pub fn take_serror(cpu: &mut Cpu) {
    let long = cpu.sys.long_descriptors();
    enter(cpu, &DATA_ABORT, (cpu.pc as u32).wrapping_add(8));
    cpu.sys.esr = fault_status(long, ASYNCHRONOUS_EXTERNAL, 0).into();
}

/// Returns from an exception, by `SUBS PC, LR`, `LDM ^`, RFE or ERET: to `pc` with `psr` as the CPSR. A mode that does not exist
/// here sets IL and leaves the mode (DDI 0487 G1.15.3, "Illegal return events from AArch32 state"). So does T32, which is
/// noted by name. The caller has checked that the current mode is not USR.
pub fn return_to(cpu: &mut Cpu, pc: u32, psr: u32) {
    cpu.excl.valid = false;
    // AArch32.ExceptionReturn() ends with SendEventLocal().
    cpu.event = true;
    if cpu.replace_cpsr(psr).is_err() {
        if psr & cpsr::T != 0 {
            cpu.shared.note_unimplemented("exception return to T32");
        }
        cpu.write_fields(psr);
        cpu.pstate.il = true;
    }
    cpu.pc = u64::from(pc & !3);
}

/// AArch32.EnterMode() (DDI 0487 J1.2.1).
fn enter(cpu: &mut Cpu, vector: &Vector, lr: u32) {
    let psr = cpu.cpsr();
    cpu.set_mode(vector.mode);
    cpu.set_spsr32(psr);
    cpu.x[14] = lr.into();
    cpu.write_fields(psr | cpsr::I | vector.masks);
    cpu.pstate.il = false;
    let base = if cpu.sys.sctlr & SCTLR_V != 0 { HIGH_VECTORS } else { cpu.sys.vbar as u32 & !0x1f };
    cpu.pc = base.wrapping_add(vector.offset).into();
}

/// Status of a debug event; the code of the long format.
const DEBUG_EVENT: u32 = 0b10_0010;
/// Status of an asynchronous external abort (SError); the code of the long format.
const ASYNCHRONOUS_EXTERNAL: u32 = 0b01_0001;

/// In DFSR and IFSR: the format with long descriptors.
const FSR_LPAE: u32 = 1 << 9;
/// In DFSR: the access was a write, or cache maintenance, or address translation.
const DFSR_WNR: u32 = 1 << 11;
/// In DFSR: the access was cache maintenance.
const DFSR_CM: u32 = 1 << 13;

/// DFSR for a data abort (DDI 0487 G8.2.44).
pub(super) fn data_fault_status(long: bool, fault: FaultInfo) -> u32 {
    let write = if fault.is_write() { DFSR_WNR } else { 0 };
    let maintenance = if fault.is_cache_maintenance() { DFSR_CM | DFSR_WNR } else { 0 };
    fault_status(long, fault.status_code(), fault.domain) | write | maintenance
}

/// What DFSR and IFSR have in common: the status `code` of the long format, in either format.
fn fault_status(long: bool, code: u32, domain: u8) -> u32 {
    if long {
        return FSR_LPAE | code;
    }
    let status = short_status(code);
    (status & 0x10) << 6 | u32::from(domain & 15) << 4 | status & 15
}

/// FS\[4:0\] of the short format for a status code of the long format (DDI 0487 G5.11, tables "Short-descriptor format FSR
/// encodings" and "Long-descriptor format FSR encodings").
pub(crate) const fn short_status(code: u32) -> u32 {
    let second = code & 3 == 2;
    match code {
        0b00_0100..=0b00_0111 => {
            if second {
                0b0_0111
            } else {
                0b0_0101
            }
        }
        0b00_1000..=0b00_1011 => {
            if second {
                0b0_0110
            } else {
                0b0_0011
            }
        }
        0b00_1100..=0b00_1111 => {
            if second {
                0b0_1111
            } else {
                0b0_1101
            }
        }
        0b11_1100..=0b11_1111 => {
            if second {
                0b0_1011
            } else {
                0b0_1001
            }
        }
        0b01_0100..=0b01_0111 => {
            if second {
                0b0_1110
            } else {
                0b0_1100
            }
        }
        0b10_0001 => 0b0_0001,
        DEBUG_EVENT => 0b0_0010,
        ASYNCHRONOUS_EXTERNAL => 0b1_0110,
        0b11_0101 => 0b1_0101,
        // Synchronous external abort, also for what no short descriptor can cause.
        _ => 0b0_1000,
    }
}
