//! Where a paused machine's vCPUs stand, in words: [`MachineState::standing`], for a guest that does not go on.

use std::fmt::Write as _;

use abi::Gpa;
use zerocopy::little_endian::U32;

use super::MachineState;
use crate::memory::GuestMemory;
use crate::vcpus::state::{CallState, VcpuPower, VcpuState};

/// KVM's ids: `KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE` and the offset in `struct kvm_regs` / 4.
const PC: u64 = 0x6030_0000_0010_0040;
const PSTATE: u64 = 0x6030_0000_0010_0042;
/// PSTATE.nRW: AArch32.
const PSTATE_AARCH32: u128 = 1 << 4;
/// WFI in A64 and in A32.
const WFI: [u32; 2] = [0xd503_207f, 0xe320_f003];
/// CNTV_CTL_EL0, and KVM_REG_ARM_TIMER_CVAL.
const TIMER_CTL: u64 = 0x6030_0000_0013_df19;
const TIMER_CVAL: u64 = 0x6030_0000_0013_df02;

impl MachineState {
    /// A line for each vCPU: whether it is on, its last call, PC and PSTATE, its virtual timer against the counter, and its
    /// private interrupts; then one with the shared interrupts that are pending or active, if there are any.
    pub fn standing(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.vcpus.iter().enumerate().map(|(vcpu, state)| self.line(vcpu, state)).collect();
        let shared: Vec<String> =
            self.gic.shared().into_iter().map(|(what, intids)| format!("{what} {intids:?}")).collect();
        if !shared.is_empty() {
            lines.push(format!("shared interrupts: {}", shared.join(", ")));
        }
        lines
    }

    /// Of each vCPU, whether it waits for an interrupt. One that KVM stops leaves its WFI, which it may, and stands right behind it: of a
    /// guest whose code lies where it is fetched from that is looked up in `memory`.
    pub fn waiting(&self, memory: &GuestMemory) -> Vec<bool> {
        let waits = |state: &VcpuState| {
            let register = |id| state.registers.iter().find(|(found, _)| *found == id).map(|(_, value)| *value);
            let wfi = WFI[usize::from(register(PSTATE).is_some_and(|pstate| pstate & PSTATE_AARCH32 != 0))];
            let is_wfi = |behind: u64| {
                let at = register(PC).and_then(|pc| (pc as u64).checked_sub(behind)).map(Gpa::new);
                at.is_some_and(|at| memory.read_obj::<U32>(at).is_ok_and(|word| word.get() == wfi))
            };
            state.power == VcpuPower::Waiting || (state.power == VcpuPower::On && (is_wfi(0) || is_wfi(4)))
        };
        self.vcpus.iter().map(waits).collect()
    }

    fn line(&self, vcpu: usize, state: &VcpuState) -> String {
        let power = match state.power {
            VcpuPower::Off => "off",
            VcpuPower::On => "on",
            VcpuPower::Waiting => "waiting for an interrupt",
        };
        let call = match state.seat.call {
            CallState::Fresh => "has not called".to_owned(),
            CallState::Parked { outcome, .. } => format!("waits for a command after {outcome:?}"),
            CallState::Executing(command) => format!("executes {command:?}"),
        };
        let register = |id| state.registers.iter().find(|(found, _)| *found == id).map(|(_, value)| *value as u64);
        let mut line = format!("vCPU {vcpu}: {power}, {call}");
        for (name, id) in [("pc", PC), ("pstate", PSTATE), ("cntv_ctl", TIMER_CTL)] {
            if let Some(value) = register(id) {
                // Writing to a string cannot fail.
                let _ = write!(line, ", {name} {value:#x}");
            }
        }
        if let Some(at) = register(TIMER_CVAL) {
            let ahead = i128::from(at) - i128::from(self.counter.ticks);
            let _ = write!(line, ", timer due in {:.6} s", ahead as f64 / self.counter.hz as f64);
        }
        let private = self.gic.private(vcpu);
        for (what, intids) in private.intids {
            let _ = write!(line, ", {what} {intids:?}");
        }
        let _ = write!(
            line,
            ", priority mask {:#x}, active priorities {:#x}",
            private.priority_mask, private.active_priorities
        );
        line
    }
}

#[cfg(test)]
mod tests {
    use abi::hypercall::Command;

    use super::*;
    use crate::backend::GicState;
    use crate::device::pl011::Pl011State;
    use crate::machine::state::CounterState;
    use crate::migrate::HostTime;
    use crate::vcpus::state::SeatState;

    #[test]
    fn a_vcpu_whose_timer_has_fired_unheard_is_told() {
        let vcpu = |registers: Vec<(u64, u128)>, power| VcpuState {
            registers,
            power,
            seat: SeatState { call: CallState::Executing(Command::RunSteps { first: 3, count: 9 }), progress: None },
        };
        let registers = vec![(PC, 0x4020_0000), (PSTATE, 0x3c5), (TIMER_CTL, 5), (TIMER_CVAL, 1_000)];
        let state = MachineState {
            vcpus: vec![vcpu(registers, VcpuPower::Waiting), vcpu(Vec::new(), VcpuPower::Off)],
            gic: GicState::default(),
            uart: Pl011State { registers: [0; 7], line: Vec::new() },
            counter: CounterState { ticks: 3_000, physical: None, hz: 1_000, at: HostTime::from_ns(0) },
            icount: None,
        };
        let lines = state.standing();
        assert_eq!(lines.len(), 2);
        for words in ["vCPU 0: waiting", "RunSteps", "pc 0x40200000", "pstate 0x3c5", "cntv_ctl 0x5", "due in -2.0"] {
            assert!(lines[0].contains(words), "{words}: {}", lines[0]);
        }
        assert!(lines[1].starts_with("vCPU 1: off"), "{}", lines[1]);
    }
}
