//! PSCI 1.1 (DEN 0022) and the SMCCC calls that go with it, as KVM answers them: [`call`], and who is on: [`Power`].
//!
//! ```text
//!            CPU_ON by another vCPU            the vCPU's own run loop resets it
//!      Off -------------------------> Pending ----------------------------------> On
//!       ^                                                                          |
//!       +----------------------- CPU_OFF, SYSTEM_OFF, SYSTEM_RESET ----------------+
//! ```
//!
//! Neighbours: `vcpu` calls in on HVC and acts on the [`Outcome`]; `exit` reports what the host must know.

use std::sync::{Mutex, MutexGuard, PoisonError};

use abi::Gpa;

use crate::config::ExecutionState;
use crate::shared::Shared;
use crate::signal;

const PSCI_VERSION_1_1: u64 = 1 << 16 | 1;
const SMCCC_VERSION_1_1: u64 = 1 << 16 | 1;
const SUCCESS: u64 = 0;
const NOT_SUPPORTED: u64 = -1_i64 as u64;
const INVALID_PARAMETERS: u64 = -2_i64 as u64;
const ALREADY_ON: u64 = -4_i64 as u64;
const ON_PENDING: u64 = -5_i64 as u64;
const INTERNAL_FAILURE: u64 = -6_i64 as u64;
const INVALID_ADDRESS: u64 = -9_i64 as u64;
/// MIGRATE_INFO_TYPE: there is no Trusted OS to migrate.
const NO_TRUSTED_OS: u64 = 2;

/// Marks the 64-bit form of a call.
const SMC64: u32 = 1 << 30;
const VERSION: u32 = 0x8400_0000;
const CPU_SUSPEND: u32 = 0x8400_0001;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0x8400_0003;
const AFFINITY_INFO: u32 = 0x8400_0004;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const FEATURES: u32 = 0x8400_000a;
const SYSTEM_RESET2: u32 = 0x8400_0012;
const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
const SUSPEND_64: u32 = CPU_SUSPEND | SMC64;
const ON_64: u32 = CPU_ON | SMC64;
const AFFINITY_64: u32 = AFFINITY_INFO | SMC64;
const RESET2_64: u32 = SYSTEM_RESET2 | SMC64;

/// Whether a vCPU is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerState {
    /// Off until CPU_ON.
    Off,
    /// CPU_ON was called; the vCPU has not begun to execute.
    Pending {
        /// Where it will begin.
        entry: u64,
        /// What x0 will hold.
        context: u64,
    },
    /// On.
    On,
}

/// The power states of a machine's vCPUs.
#[derive(Debug)]
pub struct Power {
    states: Mutex<Vec<PowerState>>,
}

impl Power {
    /// vCPU 0 is on, the others are off.
    pub fn new(vcpus: usize) -> Self {
        let state = |vcpu| if vcpu == 0 { PowerState::On } else { PowerState::Off };
        Self { states: Mutex::new((0..vcpus).map(state).collect()) }
    }

    /// The state of `vcpu`.
    ///
    /// # Panics
    /// If there is no such vCPU, as everywhere here.
    pub fn get(&self, vcpu: usize) -> PowerState {
        self.lock()[vcpu]
    }

    /// Sets the state of `vcpu`.
    pub fn set(&self, vcpu: usize, state: PowerState) {
        self.lock()[vcpu] = state;
    }

    /// Turns `vcpu` on if it is pending: the address to begin at and the value for x0. One step, so that a SYSTEM_OFF that
    /// comes between is not undone.
    pub(crate) fn begin(&self, vcpu: usize) -> Option<(u64, u64)> {
        let mut states = self.lock();
        let PowerState::Pending { entry, context } = states[vcpu] else { return None };
        states[vcpu] = PowerState::On;
        Some((entry, context))
    }

    fn all_off(&self) {
        self.lock().fill(PowerState::Off);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PowerState>> {
        // Plain values: a panic elsewhere cannot leave them half-changed.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a hypercall asks of the vCPU that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Put this into x0 and go on.
    Return(u64),
    /// Put SUCCESS into x0 and wait as WFI does.
    Suspend,
    /// The vCPU is off now.
    CpuOff,
    /// The machine is off now; x0 gets the value, which the guest sees only if the host runs it again.
    SystemOff(u64),
    /// As [`Outcome::SystemOff`], and the guest asks for a reset.
    SystemReset(u64),
    /// Not a call that is served here.
    Host,
}

/// Serves the call of `caller` with x0 to x3 (AArch32: r0 to r3) in `args`.
pub fn call(shared: &Shared, caller: usize, args: [u64; 4]) -> Outcome {
    let function = args[0] as u32;
    // From AArch32 the 64-bit forms do not exist (SMCCC 2.5, "Unknown Function Identifier"; KVM answers the same).
    let narrow = shared.config.execution_state == ExecutionState::Aarch32;
    let is_ours = function & !SMC64 & !0x1f == VERSION || function & !SMC64 & !0xffff == SMCCC_VERSION;
    if narrow && function & SMC64 != 0 && is_ours {
        return Outcome::Return(NOT_SUPPORTED);
    }
    let [_, first, second, third] = if function & SMC64 == 0 { args.map(|arg| arg & 0xffff_ffff) } else { args };
    match function {
        VERSION => Outcome::Return(PSCI_VERSION_1_1),
        CPU_SUSPEND | SUSPEND_64 => Outcome::Suspend,
        CPU_OFF => {
            shared.power.set(caller, PowerState::Off);
            Outcome::CpuOff
        }
        CPU_ON | ON_64 => Outcome::Return(cpu_on(shared, first, second, third)),
        AFFINITY_INFO | AFFINITY_64 => Outcome::Return(affinity_info(shared, first, second)),
        MIGRATE_INFO_TYPE => Outcome::Return(NO_TRUSTED_OS),
        SYSTEM_OFF => {
            everyone_off(shared);
            Outcome::SystemOff(INTERNAL_FAILURE)
        }
        SYSTEM_RESET => {
            everyone_off(shared);
            Outcome::SystemReset(INTERNAL_FAILURE)
        }
        // Architectural warm reset is type 0, vendors' types have bit 31 set.
        SYSTEM_RESET2 | RESET2_64 if first == 0 || first >> 31 & 1 != 0 => {
            everyone_off(shared);
            Outcome::SystemReset(INTERNAL_FAILURE)
        }
        SYSTEM_RESET2 | RESET2_64 => Outcome::Return(INVALID_PARAMETERS),
        FEATURES if narrow && first as u32 & SMC64 != 0 => Outcome::Return(NOT_SUPPORTED),
        FEATURES => Outcome::Return(features(first as u32)),
        SMCCC_VERSION => Outcome::Return(SMCCC_VERSION_1_1),
        SMCCC_ARCH_FEATURES if matches!(first as u32, SMCCC_VERSION | SMCCC_ARCH_FEATURES) => Outcome::Return(SUCCESS),
        // The rest of PSCI's range and of the architecture's own.
        _ if is_ours => Outcome::Return(NOT_SUPPORTED),
        _ => Outcome::Host,
    }
}

fn features(function: u32) -> u64 {
    match function {
        VERSION | CPU_SUSPEND | SUSPEND_64 | CPU_OFF | CPU_ON | ON_64 | AFFINITY_INFO | AFFINITY_64 => SUCCESS,
        MIGRATE_INFO_TYPE | SYSTEM_OFF | SYSTEM_RESET | FEATURES | SYSTEM_RESET2 | RESET2_64 | SMCCC_VERSION => SUCCESS,
        _ => NOT_SUPPORTED,
    }
}

/// The vCPU whose MPIDR has the affinity `affinity`: Aff0 is the index, the other fields are zero.
fn by_affinity(shared: &Shared, affinity: u64) -> Option<usize> {
    usize::try_from(affinity).ok().filter(|vcpu| *vcpu < shared.config.vcpus)
}

fn cpu_on(shared: &Shared, affinity: u64, entry: u64, context: u64) -> u64 {
    let Some(target) = by_affinity(shared, affinity) else { return INVALID_PARAMETERS };
    {
        let mut states = shared.power.lock();
        match states[target] {
            PowerState::On => return ALREADY_ON,
            PowerState::Pending { .. } => return ON_PENDING,
            PowerState::Off => {}
        }
        if entry & 3 != 0 || shared.ram.locate(Gpa::new(entry), 4).is_none() {
            return INVALID_ADDRESS;
        }
        states[target] = PowerState::Pending { entry, context };
    }
    shared.signals[target].raise(signal::POWER);
    SUCCESS
}

fn affinity_info(shared: &Shared, affinity: u64, lowest_level: u64) -> u64 {
    match by_affinity(shared, affinity) {
        Some(target) if lowest_level == 0 => match shared.power.get(target) {
            PowerState::On => 0,
            PowerState::Off => 1,
            PowerState::Pending { .. } => 2,
        },
        _ => INVALID_PARAMETERS,
    }
}

fn everyone_off(shared: &Shared) {
    shared.power.all_off();
    for signal in &shared.signals[..] {
        signal.raise(signal::POWER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::testing::machine;

    fn ret(shared: &Shared, args: [u64; 4]) -> i64 {
        match call(shared, 0, args) {
            Outcome::Return(value) => value as i64,
            other => panic!("{args:x?}: {other:?}"),
        }
    }

    #[test]
    fn each_call_answers_as_the_specification_says() {
        let (machine, _ram) = machine(3);
        let shared = machine.shared();
        let ram = 0x4000_0000;
        for (args, expected) in [
            ([0x8400_0000, 0, 0, 0], 0x1_0001),
            ([0x8000_0000, 0, 0, 0], 0x1_0001),
            ([0x8000_0001, 0x8000_0000, 0, 0], 0),
            ([0x8000_0001, 0x8000_8000, 0, 0], -1),
            ([0x8400_0006, 0, 0, 0], 2),
            ([0x8400_000a, 0xc400_0003, 0, 0], 0),
            ([0x8400_000a, 0x8000_0000, 0, 0], 0),
            ([0x8400_000a, 0xc400_000e, 0, 0], -1),
            ([0x8400_0005, 0, 0, 0], -1),
            ([0x8400_001f, 0, 0, 0], -1),
            ([0xc400_0003, 3, ram, 0], -2),
            ([0xc400_0003, 0x100, ram, 0], -2),
            ([0xc400_0003, 0, ram, 0], -4),
            ([0xc400_0003, 1, ram + 2, 0], -9),
            ([0xc400_0003, 1, 0x1000, 0], -9),
            ([0xc400_0004, 1, 0, 0], 1),
            ([0xc400_0003, 1, ram, 7], 0),
            ([0xc400_0004, 1, 0, 0], 2),
            ([0xc400_0003, 1, ram, 7], -5),
            ([0xc400_0004, 0, 0, 0], 0),
            ([0xc400_0004, 0, 1, 0], -2),
            ([0xc400_0004, 9, 0, 0], -2),
            ([0x8400_0003, 0xffff_ffff_0000_0002, 0xffff_ffff_0000_0000 | ram, 0], 0),
            ([0x8400_0012, 1, 0, 0], -2),
        ] {
            assert_eq!(ret(shared, args), expected, "{args:x?}");
        }
        assert_eq!(shared.power.get(1), PowerState::Pending { entry: ram, context: 7 });
        assert_eq!(shared.signals[1].take(signal::POWER), signal::POWER);
        assert_eq!(call(shared, 0, [0x8400_0001, 0, 0, 0]), Outcome::Suspend);
        assert_eq!(call(shared, 0, [0xc600_0000, 0, 0, 0]), Outcome::Host);
        assert_eq!(call(shared, 0, [0x8400_0020, 0, 0, 0]), Outcome::Host);
        assert_eq!(call(shared, 0, [0x8400_0002, 0, 0, 0]), Outcome::CpuOff);
        assert_eq!(shared.power.get(0), PowerState::Off);
        assert_eq!(call(shared, 0, [0x8400_0008, 0, 0, 0]), Outcome::SystemOff(INTERNAL_FAILURE));
        assert_eq!(shared.power.get(1), PowerState::Off);
        assert_eq!(call(shared, 0, [0x8400_0009, 0, 0, 0]), Outcome::SystemReset(INTERNAL_FAILURE));
    }
}
