//! The small guest of [`super::tests`] on its way between machines whose vCPUs list other registers: skewed ones on every host, KVM's and
//! the emulator's where there is a KVM.

use std::num::NonZeroU32;
use std::path::Path;

use abi::hypercall::{Command, Outcome};
use abi::{Arch, Gpa, Tables, VaBits, map};

use super::tests::{FIRMWARE, STEPS, bytes, config, load, parked};
use super::{CounterState, MachineState, RegistersReport, StateError};
use crate::backend::{Accelerator, Skew, why_no_kvm_guest};
use crate::cpustate::{MissingFeatures, Policy, UnknownRegisters, features};
use crate::machine::{Machine, MachineConfig, Transport, other_side};
use crate::memory::SlotId;
use crate::migrate::{ClockOffset, CounterPolicy};
use crate::vcpus::Vcpus;

const STRICT: Policy = Policy { unknown: UnknownRegisters::Refuse, features: MissingFeatures::Refuse };
/// For KVM's guests, which are shown more than the emulator has.
const LENIENT: Policy = Policy { unknown: UnknownRegisters::Refuse, features: MissingFeatures::Name };

fn emulator(skew: Option<Skew>) -> MachineConfig {
    MachineConfig { skew, ..config(Accelerator::Emulator, Transport::Mmio) }
}

/// Moves a guest to a machine of `to`.
fn crossed(
    machine: &Machine,
    mut vcpus: Vcpus,
    to: &MachineConfig,
    policy: Policy,
) -> Result<(Machine, Vcpus, Option<RegistersReport>), StateError> {
    vcpus.pause();
    let mut state = MachineState::save(machine, &vcpus).unwrap();
    let there = Machine::build_incoming(to, Path::new(FIRMWARE)).unwrap();
    for (slot, bytes) in SlotId::ALL.into_iter().zip(bytes(machine.memory())) {
        there.memory().copy_to_slot(slot, 0, &bytes).unwrap();
    }
    let new = Vcpus::start_paused(&there).unwrap();
    let translations = state.translate(machine.vm().accelerator(), &there, &new, policy)?;
    state.restore(&there, &new)?;
    let report = translations.map(|translations| translations.report(&new).unwrap());
    state.set_counter(&new, CounterPolicy::RunsOn, ClockOffset::SAME)?;
    vcpus.shutdown();
    Ok((there, new, report))
}

/// A guest that is moved from `from` to `to` in the middle of its steps and makes the others there.
fn crosses(from: &MachineConfig, to: &MachineConfig, policy: Policy) -> Result<Option<RegistersReport>, StateError> {
    let machine = load(from).unwrap();
    let vcpus = Vcpus::start(&machine).unwrap();
    parked(&vcpus);
    vcpus.command(0, Command::RunSteps { first: 0, count: STEPS }).unwrap();
    let (machine, vcpus, report) = crossed(&machine, vcpus, to, policy)?;
    vcpus.resume();
    assert_eq!(parked(&vcpus), Outcome::Ran { next: STEPS });
    for step in 0..STEPS {
        let page = Gpa::new(map::REGION_BASE.raw() + step * 4096);
        assert_eq!(machine.memory().read_obj::<u64>(page).unwrap(), step + 1);
    }
    Ok(report)
}

#[test]
fn nothing_is_translated_between_machines_of_one_kind() {
    assert_eq!(crosses(&emulator(None), &emulator(None), STRICT).unwrap(), None);
    let renamed = emulator(Some(Skew::ViewAlone));
    assert_eq!(crosses(&renamed, &renamed, STRICT).unwrap(), None);
}

#[test]
fn a_guest_crosses_between_skewed_lists_and_what_is_not_copied_is_named() {
    for (skew, from_it, to_it) in [
        (Skew::Missing, "TPIDRRO_EL0: the source has none, it gets its reset value", "TPIDRRO_EL0: 0x0 is left behind"),
        (Skew::ConstantDifferent, "MIDR_EL1: ", "MIDR_EL1: "),
        (Skew::ViewAlone, "TTBR0_EL1: made of TTBR0", "TTBR0_EL1: the destination has it as TTBR0"),
        (Skew::MaskedBit, "CSSELR_EL1: bits 0x80000000 stay the destination's", ""),
    ] {
        for (from, to, note) in [(Some(skew), None, from_it), (None, Some(skew), to_it)] {
            if !note.is_empty() {
                let report = crosses(&emulator(from), &emulator(to), STRICT).unwrap().expect("lists differ");
                assert!(report.notes.iter().any(|line| line.starts_with(note)), "{skew}: {:?}", report.notes);
                assert_eq!(report.unheld, [""; 0], "{skew}");
            }
        }
    }
}

#[test]
fn what_a_vcpu_does_not_hold_is_told() {
    let report = crosses(&emulator(Some(Skew::ReservedBit)), &emulator(None), STRICT).unwrap().unwrap();
    assert!(report.unheld.iter().any(|line| line.starts_with("SCTLR_EL1: ")), "{:?}", report.unheld);
}

#[test]
fn a_guest_that_cannot_cross_is_refused_by_the_register() {
    for (from, to, word) in [
        (Some(Skew::Added), None, "unknown"),
        (None, Some(Skew::Added), "unknown"),
        (Some(Skew::Renamed), None, "unknown"),
        (Some(Skew::AffinityDifferent), None, "MPIDR_EL1"),
        (Some(Skew::FeatureMore), None, "FEAT_SM4"),
    ] {
        let error = crosses(&emulator(from), &emulator(to), STRICT).unwrap_err();
        let is_named = matches!(error, StateError::Registers { .. }) && error.to_string().contains(word);
        assert!(is_named, "{from:?} {to:?}: {error}");
    }
}

#[test]
fn a_guest_keeps_the_frequency_of_its_counter_on_an_emulator() {
    let fast = MachineConfig { counter_hz: NonZeroU32::new(1_000_000_000), ..emulator(None) };
    let machine = load(&fast).unwrap();
    let vcpus = Vcpus::start(&machine).unwrap();
    parked(&vcpus);
    vcpus.pause();
    let before = MachineState::save(&machine, &vcpus).unwrap().counter;
    assert_eq!(before.hz, 1_000_000_000);
    let (there, vcpus, _) = crossed(&machine, vcpus, &emulator(None), STRICT).unwrap();
    assert_eq!(there.vm().ticks_per_second(), before.hz);
    let (after, _) = CounterState::read(&there, &vcpus).unwrap();
    let passed_ns = after.at.since(before.at).as_nanos() as u64;
    // A tick is a nanosecond; the readings are not exact, but no frequency of the emulator's own is within a tenth of it.
    let ticks = after.ticks - before.ticks;
    assert!(ticks.abs_diff(passed_ns) <= passed_ns / 10, "{ticks} ticks in {passed_ns} ns");
}

#[test]
fn a_baseline_guest_on_the_emulator_lacks_nothing_on_the_least_kvm() {
    for tables in [Tables::V8(VaBits::ALL[1]), Tables::Lpae] {
        let config = MachineConfig { tables, ..emulator(None) };
        let machine = Machine::build_incoming(&config, Path::new(FIRMWARE)).unwrap();
        let mut vcpus = Vcpus::start_paused(&machine).unwrap();
        let (arch, other) = (tables.arch(), other_side(Accelerator::Emulator, tables.arch()));
        let lacks = |vcpus: &Vcpus| features::compare(&vcpus.registers().unwrap()[1], &other, arch);
        assert!(!lacks(&vcpus).is_empty(), "{arch}: else there were nothing to hide");
        let shown = vcpus.hide_features(&other, &machine.vm().writable_features(), arch).unwrap();
        assert_eq!(shown, [], "{arch}");
        assert_eq!(lacks(&vcpus), [], "{arch}");
        vcpus.shutdown();
    }
}

#[test]
fn a_frequency_that_no_counter_has_is_refused() {
    let machine = load(&emulator(None)).unwrap();
    let mut vcpus = Vcpus::start(&machine).unwrap();
    parked(&vcpus);
    vcpus.pause();
    let mut state = MachineState::save(&machine, &vcpus).unwrap();
    for hz in [0, 1 << 32] {
        state.counter.hz = hz;
        let error = state.restore(&machine, &vcpus).unwrap_err();
        assert!(matches!(error, StateError::CounterRate { theirs, .. } if theirs == hz), "{error}");
    }
    vcpus.shutdown();
}

#[test]
fn guests_cross_between_kvm_and_the_emulator_and_back() {
    if let Some(reason) = why_no_kvm_guest(Arch::Aarch64) {
        println!("skipped: {reason}");
        return;
    }
    let kvm = config(Accelerator::Kvm, Transport::Mmio);
    let emulator = emulator(None);
    for (from, to) in [(&kvm, &emulator), (&emulator, &kvm)] {
        let report = crosses(from, to, LENIENT).unwrap().expect("lists differ");
        println!("{} to {}: {} notes, not held: {:?}", report.from, report.to, report.notes.len(), report.unheld);
    }
    // There and back, waiting for a command in between.
    let machine = load(&kvm).unwrap();
    let vcpus = Vcpus::start(&machine).unwrap();
    parked(&vcpus);
    let (machine, vcpus, _) = crossed(&machine, vcpus, &emulator, LENIENT).unwrap();
    parked(&vcpus);
    let (_, vcpus, _) = crossed(&machine, vcpus, &kvm, LENIENT).unwrap();
    parked(&vcpus);
    vcpus.command(0, Command::RunSteps { first: 0, count: STEPS }).unwrap();
    vcpus.resume();
    assert_eq!(parked(&vcpus), Outcome::Ran { next: STEPS });
}
