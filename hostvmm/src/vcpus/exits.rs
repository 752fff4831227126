//! What is done about an exit: route it to a device, judge a hypercall, tell the controller.
//!
//! Loads from addresses that no device has read as zero and stores there are ignored, each with a bounded diagnostic:
//! the host must not die of a guest's wild pointer, and the guest's own tables decide what is a fault.

use abi::hypercall::{ExceptionReport, HVC_FUNCTION, HVC_FUNCTION_32, Outcome, Status};
use abi::{Gpa, map};

use super::control::{Shared, State, Via};
use super::{Event, GuestException};
use crate::backend::{BackendError, Exit, Vcpu};
use crate::colo::output::StreamId;
use crate::device::doorbell;
use crate::device::hypercall::{Call, Phase, answer, decode};
use crate::machine::Symbols;

/// KVM's id of x0, of AArch32's r0: KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE, offset 0 in `struct kvm_regs`.
const X0: u64 = 0x6030_0000_0010_0000;
/// SMCCC's answer to a function that there is none of.
const SMCCC_NOT_SUPPORTED: u64 = u64::MAX;

/// What becomes of the vCPU after an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum After {
    /// It may run on.
    Continue,
    /// It has nothing to execute for now.
    Idle,
    /// It waits for a command, or has ended: its seat says which.
    Stand,
}

/// The device at an address.
enum Target {
    Uart(u64),
    Doorbell(u64),
    Nothing,
}

fn target(shared: &Shared, gpa: Gpa) -> Target {
    let offset_in = |base: Gpa, len_bytes| gpa.checked_offset_from(base).filter(|offset| *offset < len_bytes);
    if let Some(offset) = offset_in(map::PL011_BASE, map::PL011_SIZE) {
        return Target::Uart(offset);
    }
    match offset_in(map::DOORBELL_BASE, map::DOORBELL_SIZE) {
        Some(offset) if shared.takes_calls() => Target::Doorbell(offset),
        _ => Target::Nothing,
    }
}

/// Does what `exit` asks for.
pub(super) fn handle(shared: &Shared, vcpu: &mut dyn Vcpu, exit: Result<Exit, BackendError>) -> After {
    let index = vcpu.index();
    match exit {
        Ok(Exit::MmioRead { gpa, len_bytes }) => {
            let data = load(shared, index, gpa, len_bytes);
            vcpu.complete_mmio_read(data);
            After::Continue
        }
        Ok(Exit::MmioWrite { gpa, len_bytes, data }) => store(shared, vcpu, gpa, len_bytes, data),
        Ok(Exit::Hvc { function, args }) => hvc(shared, vcpu, function, args[0]),
        Ok(Exit::Kicked | Exit::Budget) => After::Continue,
        Ok(Exit::Idle) => After::Idle,
        Ok(Exit::CpuOff) => {
            shared.post(Event::CpuOff { vcpu: index });
            After::Idle
        }
        Ok(Exit::SystemOff) => {
            shared.flush_console();
            end(shared, index, Event::SystemOff)
        }
        Ok(Exit::SystemReset) => {
            shared.flush_console();
            end(shared, index, Event::SystemReset)
        }
        Err(error) => end(shared, index, Event::Error { vcpu: index, error }),
    }
}

fn end(shared: &Shared, index: usize, event: Event) -> After {
    shared.end_seat(index);
    shared.post(event);
    After::Stand
}

fn load(shared: &Shared, index: usize, gpa: Gpa, len_bytes: u8) -> u64 {
    match target(shared, gpa) {
        Target::Uart(offset) => shared.uart().read(offset),
        Target::Doorbell(offset) => {
            let told = shared.asked().map(|asked| asked.point).filter(|point| point.goes_on());
            doorbell::read(offset, len_bytes, told)
        }
        Target::Nothing => {
            shared.diagnose(index, || format!("load of {len_bytes} bytes at {gpa}, where nothing is, reads zero"));
            0
        }
    }
}

fn store(shared: &Shared, vcpu: &mut dyn Vcpu, gpa: Gpa, len_bytes: u8, data: u64) -> After {
    let index = vcpu.index();
    match target(shared, gpa) {
        Target::Uart(offset) => {
            let mut uart = shared.uart();
            let line = uart.write(offset, data);
            let level = uart.interrupt();
            // The lock is held so that the line's level cannot be overtaken by another vCPU's.
            shared.vm().set_irq_line(map::PL011_INTID, level);
            if let Some(line) = line {
                shared.emit_line(line);
            }
            drop(uart);
            After::Continue
        }
        Target::Doorbell(offset) => {
            match (doorbell::rung(offset, len_bytes, data), doorbell::asked(offset, len_bytes, data)) {
                (Some(claim), _) => hypercall(shared, vcpu, claim, Via::Doorbell),
                (None, Some(point)) if shared.ask(index, point) => After::Continue,
                (None, _) => {
                    shared.diagnose(index, || {
                        format!("store of {len_bytes} bytes at doorbell offset {offset:#x} is ignored")
                    });
                    After::Continue
                }
            }
        }
        Target::Nothing => {
            shared.diagnose(index, || format!("store of {len_bytes} bytes at {gpa}, where nothing is, is ignored"));
            After::Continue
        }
    }
}

fn hvc(shared: &Shared, vcpu: &mut dyn Vcpu, function: u64, claim: u64) -> After {
    // SMCCC: the function id is in w0; x0's upper half is not looked at, and those of a 32-bit call's arguments neither.
    match function as u32 {
        HVC_FUNCTION if shared.takes_calls() => return hypercall(shared, vcpu, Gpa::new(claim), Via::Hvc),
        HVC_FUNCTION_32 if shared.takes_calls() => {
            return hypercall(shared, vcpu, Gpa::new(claim & 0xffff_ffff), Via::Hvc);
        }
        _ => {}
    }
    shared.diagnose(vcpu.index(), || format!("HVC function {function:#x} is not supported"));
    vcpu.complete_hvc([SMCCC_NOT_SUPPORTED, 0, 0, 0]);
    After::Continue
}

fn hypercall(shared: &Shared, vcpu: &mut dyn Vcpu, claim: Gpa, via: Via) -> After {
    let index = vcpu.index();
    let phase = shared.lock().seats[index].phase;
    match decode(shared.memory(), phase, claim) {
        Ok(Call::Next { request, outcome }) => {
            park(shared, index, State::Parked { request, via, outcome }, outcome);
            After::Stand
        }
        Ok(Call::Exception(report)) => {
            let exception = describe(shared, index, *report);
            die(shared, index, Event::Exception(Box::new(exception)))
        }
        Ok(Call::Panic(text)) => die(shared, index, Event::Panic { vcpu: index, text }),
        Ok(Call::Packet { request, bytes }) => {
            // Without a tap nobody is at the other end of the link, and the packet is gone.
            let _taken = StreamId::packets(index).map(|stream| shared.tap().capture(stream, bytes));
            reply(shared, vcpu, request, Status::Ok, via);
            After::Continue
        }
        Err(refusal) => {
            if refusal.answerable {
                reply(shared, vcpu, refusal.claim, refusal.status, via);
            } else if via == Via::Hvc {
                vcpu.complete_hvc([refusal.status as u64, 0, 0, 0]);
            }
            shared.diagnose(index, || refusal.to_string());
            After::Continue
        }
    }
}

fn park(shared: &Shared, index: usize, state: State, outcome: Outcome) {
    let mut control = shared.lock();
    let seat = &mut control.seats[index];
    seat.state = state;
    seat.phase = Phase::Waiting;
    if let Outcome::Ready { progress } = outcome {
        seat.progress = Some(progress);
    }
    // Before anybody can see that it is parked: whoever pauses and then looks finds what every vCPU has said.
    shared.post(Event::Parked { vcpu: index, outcome });
    drop(control);
    shared.announce();
}

fn die(shared: &Shared, index: usize, event: Event) -> After {
    shared.lock().seats[index].phase = Phase::Dead;
    shared.flush_console();
    end(shared, index, event)
}

/// Answers a call at once.
fn reply(shared: &Shared, vcpu: &mut dyn Vcpu, request: Gpa, status: Status, via: Via) {
    // The block lies in RAM, which decode() has checked; a failure would only leave the guest without its status.
    if let Ok(Some(range)) = answer(shared.memory(), request, status, [0; 8]) {
        shared.vm().mark_dirty(range);
    }
    if via == Via::Hvc {
        vcpu.complete_hvc([status as u64, 0, 0, 0]);
    }
}

fn describe(shared: &Shared, vcpu: usize, report: ExceptionReport) -> GuestException {
    let frames = report.backtrace.iter().take(report.frames.get() as usize);
    let returns: Vec<u64> = frames.map(|address| address.get()).collect();
    let backtrace = Symbols::open(shared.firmware()).backtrace(report.elr.get(), &returns);
    GuestException { vcpu, arch: shared.arch(), report, backtrace }
}

/// Completes the call that a command has answered, before the vCPU runs on; `false` where it could not be told and has ended.
pub(super) fn run_on(shared: &Shared, vcpu: &mut dyn Vcpu, via: Via) -> bool {
    let index = vcpu.index();
    match complete(vcpu, via) {
        Ok(()) => true,
        Err(error) => {
            end(shared, index, Event::Error { vcpu: index, error });
            false
        }
    }
}

/// Completes the call that a command has answered.
///
/// # Errors
/// [`BackendError::Register`] where the answer's registers cannot be written.
pub(super) fn complete(vcpu: &mut dyn Vcpu, via: Via) -> Result<(), BackendError> {
    let results = [Status::Ok as u64, 0, 0, 0];
    match via {
        Via::Doorbell => Ok(()),
        Via::Hvc => {
            vcpu.complete_hvc(results);
            Ok(())
        }
        Via::HvcElsewhere => {
            (0..).zip(results).try_for_each(|(number, result)| vcpu.set_reg(X0 + 2 * number, result.into()))
        }
    }
}
