//! A machine that is saved, encoded, decoded and restored in another one at many points of a guest's life, with both firmwares,
//! one to eight vCPUs, both clocks and both ways of calling: the guest goes on and finds every byte as the plan has it.
//!
//! A machine whose guest has run elsewhere takes the state as often as it is given one, as COLO's secondary does.
//!
//! With the instruction clock the run that moves is the run that stays, bit for bit, at every point at which either is looked at.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use abi::Arch;
use abi::hypercall::{Command, Outcome};
use hostvmm::machine::state::MachineState;
use hostvmm::machine::{Clock, Image, Machine, MachineConfig, Transport, armv7_tables};
use hostvmm::memory::{GuestMemory, SlotId};
use hostvmm::migrate::{ClockOffset, CounterPolicy, HostTime};
use hostvmm::vcpus::state::VcpuPower;
use hostvmm::vcpus::{Event, SliceEnd, Vcpus, Wait};
use tests::{armv7_firmware_or_skip, firmware_or_skip};
use workload::Workload;

/// Only reached by a test that has already failed.
const LIVENESS: Duration = Duration::from_secs(120);
const CHUNK_BYTES: usize = 1 << 20;
/// Instructions between two moves: no multiple of a turn.
const SLICE: u64 = 7_001;

fn firmware_of(arch: Arch) -> Option<&'static Path> {
    match arch {
        Arch::Aarch64 => firmware_or_skip(),
        Arch::Armv7 => armv7_firmware_or_skip(),
    }
}

fn config(arch: Arch, vcpus: usize, clock: Clock, transport: Transport, workload: &str) -> MachineConfig {
    let (pattern, params) = Workload::parse(workload).unwrap().encode();
    let mut config = MachineConfig { vcpus, clock, transport, pattern, params, seed: 7, ..MachineConfig::default() };
    config.ram_bytes = 64 << 20;
    config.region_bytes = 2 << 20;
    if arch == Arch::Armv7 {
        config.tables = armv7_tables(true, abi::Granule::K4, 32).unwrap();
    }
    config
}

/// A guest in one machine after the other.
struct Guest {
    config: MachineConfig,
    firmware: &'static Path,
    machine: Machine,
    vcpus: Vcpus,
    /// By vCPU, what it said when it parked.
    parked: Vec<Option<Outcome>>,
    lines: Vec<String>,
    moves: usize,
}

impl Guest {
    /// At its first instruction, paused.
    fn load(config: MachineConfig, firmware: &'static Path) -> Self {
        let machine = Machine::build(&config, &Image::open(firmware).unwrap()).unwrap();
        let vcpus = Vcpus::start_paused(&machine).unwrap();
        let parked = vec![None; config.vcpus];
        Self { config, firmware, machine, vcpus, parked, lines: Vec::new(), moves: 0 }
    }

    fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Restored => self.parked.fill(None),
            Event::Parked { vcpu, outcome } => self.parked[vcpu] = Some(outcome),
            Event::Console(line) => self.lines.push(line),
            Event::CpuOff { .. } => {}
            Event::SystemOff => return true,
            event => panic!("{event:?}"),
        }
        false
    }

    fn drain(&mut self) {
        while let Wait::Event(event) = self.vcpus.wait_event(Some(Duration::ZERO)) {
            self.take(event);
        }
    }

    fn is_parked(&mut self) -> bool {
        self.drain();
        self.parked.iter().all(Option::is_some)
    }

    fn wait_parked(&mut self) {
        while !self.is_parked() {
            match self.vcpus.wait_event(Some(LIVENESS)) {
                Wait::Event(event) => drop(self.take(event)),
                other => panic!("{other:?}"),
            }
        }
    }

    fn command_all(&mut self, command: Command) {
        let commands: Vec<_> = (0..self.parked.len()).map(|vcpu| (vcpu, command)).collect();
        self.parked.fill(None);
        self.vcpus.command_all(&commands).unwrap();
    }

    /// Goes on in a new machine, paused.
    fn move_on(&mut self, policy: CounterPolicy) -> MachineState {
        self.vcpus.pause();
        // What the guest said before is the source's to tell.
        self.drain();
        let state = MachineState::save(&self.machine, &self.vcpus).unwrap();
        let sections = state.encode();
        let there = Machine::build_incoming(&self.config, self.firmware).unwrap();
        copy(self.machine.memory(), there.memory());
        let vcpus = Vcpus::start_paused(&there).unwrap();
        let state = MachineState::decode(&sections).unwrap();
        state.restore(&there, &vcpus).unwrap();
        state.set_counter(&vcpus, policy, ClockOffset::SAME).unwrap();
        self.vcpus.shutdown();
        while let Wait::Event(event) = self.vcpus.wait_event(Some(Duration::ZERO)) {
            assert!(matches!(event, Event::Console(_)), "{event:?}");
        }
        (self.machine, self.vcpus) = (there, vcpus);
        self.moves += 1;
        state
    }

    fn check(&mut self, steps: u64) {
        self.parked[0] = None;
        self.vcpus.command(0, Command::SelfCheck { steps }).unwrap();
        self.vcpus.resume();
        self.wait_parked();
        assert_eq!(self.parked[0], Some(Outcome::SelfCheckPassed), "after {} moves", self.moves);
    }

    fn power_off(mut self) {
        for vcpu in (0..self.parked.len()).rev() {
            self.vcpus.command(vcpu, Command::Stop).unwrap();
        }
        loop {
            match self.vcpus.wait_event(Some(LIVENESS)) {
                Wait::Event(event) => {
                    if self.take(event) {
                        return;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn copy(from: &GuestMemory, to: &GuestMemory) {
    for slot in SlotId::ALL {
        let range = from.slot(slot).range();
        for extent in from.data_extents(slot, 0..range.len_bytes()).unwrap() {
            for offset in extent.clone().step_by(CHUNK_BYTES) {
                let mut bytes = vec![0; CHUNK_BYTES.min((extent.end - offset) as usize)];
                from.copy_from_slot(slot, offset, &mut bytes).unwrap();
                to.write(range.start().checked_add(offset).unwrap(), &bytes).unwrap();
            }
        }
    }
}

fn assert_equal_memory(one: &GuestMemory, other: &GuestMemory) {
    for slot in SlotId::ALL {
        let range = one.slot(slot).range();
        for offset in (0..range.len_bytes()).step_by(CHUNK_BYTES) {
            let mut bytes = [vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]];
            one.copy_from_slot(slot, offset, &mut bytes[0]).unwrap();
            other.copy_from_slot(slot, offset, &mut bytes[1]).unwrap();
            assert!(bytes[0] == bytes[1], "{slot} differs within 1 MiB of {offset:#x}");
        }
    }
}

/// With the wall clock: moved while it boots with the other vCPUs off, while it is parked, in the middle of steps, and asleep.
fn goes_on(arch: Arch, vcpus: usize, transport: Transport, workload: &str) {
    let Some(firmware) = firmware_of(arch) else { return };
    let what = format!("{arch} {vcpus} {transport:?} {workload}");
    let mut guest = Guest::load(config(arch, vcpus, Clock::Wall, transport, workload), firmware);
    let mut powers = BTreeSet::new();
    let mut note = |state: &MachineState| {
        for vcpu in &state.vcpus {
            powers.insert(match vcpu.power {
                VcpuPower::Off => "off",
                VcpuPower::On => "on",
                VcpuPower::Waiting => "waiting",
            });
        }
    };
    note(&guest.move_on(CounterPolicy::RunsOn));
    for _ in 0..6 {
        guest.vcpus.resume();
        // None enters once all are parked.
        guest.vcpus.wait_entry(Duration::from_millis(10));
        note(&guest.move_on(CounterPolicy::Stops));
    }
    guest.vcpus.resume();
    guest.wait_parked();
    let mut next = 0;
    let moved_while_running = guest.moves;
    for count in [1, 2, 3, 20] {
        guest.parked.fill(None);
        note(&guest.move_on(CounterPolicy::RunsOn));
        guest.wait_parked();
        guest.vcpus.resume();
        guest.command_all(Command::RunSteps { first: next, count });
        for policy in [CounterPolicy::RunsOn, CounterPolicy::Stops].into_iter().cycle().take(8) {
            if guest.is_parked() {
                break;
            }
            note(&guest.move_on(policy));
            guest.vcpus.resume();
        }
        guest.wait_parked();
        next += count;
        assert!(
            guest.parked.iter().all(|outcome| *outcome == Some(Outcome::Ran { next })),
            "{what}: {:?}",
            guest.parked
        );
    }
    assert!(guest.moves > moved_while_running + 4, "{what}: it also moved while it ran");
    guest.check(next);
    println!("{what}: {} moves, {powers:?}", guest.moves);
    assert!(powers.contains("on") && (vcpus == 1 || powers.contains("off")), "{what}: {powers:?}");
    guest.power_off();
}

#[test]
fn an_aarch64_guest_goes_on_wherever_it_is_moved() {
    for (vcpus, transport) in [(1, Transport::Mmio), (4, Transport::Hvc), (8, Transport::Mmio)] {
        goes_on(Arch::Aarch64, vcpus, transport, "dirtyram:sleep_ms=2");
    }
    goes_on(Arch::Aarch64, 4, Transport::Mmio, "mixed");
}

#[test]
fn an_armv7_guest_goes_on_wherever_it_is_moved() {
    for (vcpus, transport) in [(1, Transport::Hvc), (4, Transport::Mmio), (8, Transport::Hvc)] {
        goes_on(Arch::Armv7, vcpus, transport, "dirtyram:sleep_ms=2");
    }
}

/// What of two states differs, not all of them.
fn difference(one: &MachineState, other: &MachineState) -> String {
    let mut found = format!("{:?} {:?}, {:?} {:?}", one.counter, one.icount, other.counter, other.icount);
    for (index, (one, other)) in one.vcpus.iter().zip(&other.vcpus).enumerate() {
        found += &format!("; vCPU {index} {:?} {:?}, {:?} {:?}", one.power, one.seat, other.power, other.seat);
        let registers = one.registers.iter().zip(&other.registers).filter(|(one, other)| one != other);
        registers.for_each(|(one, other)| found += &format!(" {:#x} {:#x} {:#x}", one.0, one.1, other.1));
    }
    let gic = one.gic.registers.iter().zip(&other.gic.registers).filter(|(one, other)| one != other);
    gic.for_each(|(one, other)| found += &format!("; {:?} {:#x} {:#x}", one.0, one.1, other.1));
    found
}

/// The state without what is the host's.
fn comparable(mut state: MachineState) -> MachineState {
    state.counter.at = HostTime::default();
    state
}

/// With the instruction clock: the guest that is moved after every slice beside the one that is only saved.
fn goes_on_exactly(arch: Arch, vcpus: usize, transport: Transport, workload: &str) {
    let Some(firmware) = firmware_of(arch) else { return };
    let what = format!("{arch} {vcpus} {transport:?} {workload}");
    let config = config(arch, vcpus, Clock::Icount, transport, workload);
    let mut stays = Guest::load(config.clone(), firmware);
    let mut moves = Guest::load(config, firmware);
    let both = |stays: &mut Guest, moves: &mut Guest| {
        let mut seen_waiting = false;
        for number in 0.. {
            let ends = [stays.vcpus.run_slice(SLICE).unwrap(), moves.vcpus.run_slice(SLICE).unwrap()];
            assert_eq!(ends[0], ends[1], "{what}: slice {number}");
            // A machine with nothing to execute is not paused yet.
            stays.vcpus.pause();
            let saved = comparable(MachineState::save(&stays.machine, &stays.vcpus).unwrap());
            let moved = comparable(moves.move_on(CounterPolicy::RunsOn));
            assert!(saved == moved, "{what}: after slice {number}: {}", difference(&saved, &moved));
            seen_waiting |= saved.vcpus.iter().any(|vcpu| vcpu.power == VcpuPower::Waiting);
            if stays.is_parked() {
                assert!(moves.is_parked(), "{what}: slice {number}");
                assert_eq!(stays.parked, moves.parked, "{what}");
                break;
            }
            assert_ne!(ends[0], SliceEnd::Quiescent, "{what}: somebody is not parked");
        }
        assert_equal_memory(stays.machine.memory(), moves.machine.memory());
        seen_waiting
    };
    both(&mut stays, &mut moves);
    let mut next = 0;
    let mut waited = false;
    for count in [1, 12] {
        for guest in [&mut stays, &mut moves] {
            guest.command_all(Command::RunSteps { first: next, count });
        }
        waited |= both(&mut stays, &mut moves);
        next += count;
    }
    println!("{what}: {} moves, asleep: {waited}", moves.moves);
    assert!(moves.moves > 10, "{what}: {} moves", moves.moves);
    for mut guest in [stays, moves] {
        guest.check(next);
        assert!(guest.lines.len() < 100, "{:?}", guest.lines);
        guest.power_off();
    }
}

#[test]
fn an_aarch64_guest_that_is_moved_runs_as_the_one_that_stays_bit_for_bit() {
    for (vcpus, transport) in [(1, Transport::Hvc), (4, Transport::Mmio), (8, Transport::Hvc)] {
        goes_on_exactly(Arch::Aarch64, vcpus, transport, "dirtyram:sleep_ms=1");
    }
}

#[test]
fn an_armv7_guest_that_is_moved_runs_as_the_one_that_stays_bit_for_bit() {
    for (vcpus, transport) in [(1, Transport::Mmio), (4, Transport::Hvc), (8, Transport::Mmio)] {
        goes_on_exactly(Arch::Armv7, vcpus, transport, "dirtyram:sleep_ms=1");
    }
}

/// As [`copy`], over memory that has been written.
fn overwrite(from: &GuestMemory, to: &GuestMemory) {
    for slot in SlotId::ALL {
        let range = from.slot(slot).range();
        let mut bytes = [vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]];
        for offset in (0..range.len_bytes()).step_by(CHUNK_BYTES) {
            from.copy_from_slot(slot, offset, &mut bytes[0]).unwrap();
            to.copy_from_slot(slot, offset, &mut bytes[1]).unwrap();
            if bytes[0] != bytes[1] {
                to.copy_to_slot(slot, offset, &bytes[0]).unwrap();
            }
        }
    }
}

/// With the instruction clock: a guest, and a machine that runs the same one elsewhere and is made to follow it.
fn follows_exactly(arch: Arch, vcpus: usize, transport: Transport, workload: &str) {
    let Some(firmware) = firmware_of(arch) else { return };
    let what = format!("{arch} {vcpus} {transport:?} {workload}");
    let config = config(arch, vcpus, Clock::Icount, transport, workload);
    let mut leads = Guest::load(config.clone(), firmware);
    let mut follows = Guest::load(config, firmware);
    let vm = follows.machine.vm();
    vm.start_dirty_log(&SlotId::ALL).unwrap();
    let (mut next, mut reloads) = (0, 0);
    for count in [1, 12] {
        loop {
            leads.vcpus.run_slice(SLICE).unwrap();
            // It goes its own way, ahead, and may have parked where the other has not.
            follows.vcpus.run_slice(SLICE * (2 + reloads % 3)).unwrap();
            for guest in [&mut leads, &mut follows] {
                guest.vcpus.pause();
            }
            let mut bits = SlotId::ALL.map(|slot| {
                vec![
                    0;
                    (follows.machine.memory().slot(slot).range().len_bytes() / vm.log_page_bytes()).div_ceil(64)
                        as usize
                ]
            });
            let mut harvest = || {
                for (slot, bits) in SlotId::ALL.into_iter().zip(&mut bits) {
                    vm.harvest_dirty(slot, bits).unwrap();
                }
                bits.iter().flatten().map(|word| word.count_ones()).sum::<u32>()
            };
            harvest();
            let state = MachineState::save(&leads.machine, &leads.vcpus).unwrap();
            overwrite(leads.machine.memory(), follows.machine.memory());
            vm.forget_memory().unwrap();
            state.restore(&follows.machine, &follows.vcpus).unwrap();
            state.set_counter(&follows.vcpus, CounterPolicy::RunsOn, ClockOffset::SAME).unwrap();
            reloads += 1;
            assert_eq!(harvest(), 0, "{what}: what the host wrote is not the guest's dirt");
            let [saved, again] =
                [&leads, &follows].map(|guest| comparable(MachineState::save(&guest.machine, &guest.vcpus).unwrap()));
            assert!(saved == again, "{what}: reload {reloads}: {}", difference(&saved, &again));

            // From here on the same, whatever it did before.
            for guest in [&mut leads, &mut follows] {
                guest.vcpus.run_slice(SLICE).unwrap();
                guest.vcpus.pause();
            }
            let [saved, again] =
                [&leads, &follows].map(|guest| comparable(MachineState::save(&guest.machine, &guest.vcpus).unwrap()));
            assert!(saved == again, "{what}: after reload {reloads}: {}", difference(&saved, &again));
            assert_equal_memory(leads.machine.memory(), follows.machine.memory());
            let parked = leads.is_parked();
            assert_eq!(parked, follows.is_parked(), "{what}: after reload {reloads}");
            if parked {
                assert_eq!(leads.parked, follows.parked, "{what}");
                break;
            }
        }
        for guest in [&mut leads, &mut follows] {
            guest.command_all(Command::RunSteps { first: next, count });
        }
        next += count;
    }
    println!("{what}: {reloads} reloads");
    assert!(reloads > 5, "{what}: {reloads} reloads");
    for mut guest in [leads, follows] {
        guest.vcpus.resume();
        guest.wait_parked();
        guest.check(next);
        guest.power_off();
    }
}

#[test]
fn an_aarch64_machine_follows_another_bit_for_bit_whatever_its_own_guest_did() {
    for (vcpus, transport) in [(1, Transport::Hvc), (4, Transport::Mmio)] {
        follows_exactly(Arch::Aarch64, vcpus, transport, "dirtyram:sleep_ms=1");
    }
}

#[test]
fn an_armv7_machine_follows_another_bit_for_bit_whatever_its_own_guest_did() {
    for (vcpus, transport) in [(1, Transport::Mmio), (4, Transport::Hvc)] {
        follows_exactly(Arch::Armv7, vcpus, transport, "dirtyram:sleep_ms=1");
    }
}
