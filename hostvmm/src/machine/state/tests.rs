//! A small guest that is saved and restored on every accelerator of this host, KVM's included, by doorbell and by HVC.
//! (`tests/tests/state.rs` does it with the firmware.)

use std::path::Path;
use std::time::Duration;

use abi::hypercall::{Command, Op, Outcome, REQUEST_MAGIC, Request, VERSION};
use abi::{Arch, Gpa, map};
use zerocopy::little_endian::U64;
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::{MachineState, StateError};
use crate::backend::{Accelerator, why_no_kvm_guest};
use crate::machine::test_elf::{TestSegment, elf};
use crate::machine::{BuildError, Clock, Image, Machine, MachineConfig, Transport};
use crate::memory::{GuestMemory, SlotId};
use crate::migrate::{ClockOffset, CounterPolicy};
use crate::vcpus::state::{CallState, VcpuPower};
use crate::vcpus::{Event, Vcpus, VcpusError, Wait};

const CODE: u64 = map::FIRMWARE_BASE.raw();
const REQUEST: u64 = CODE + 0x1000;
const PROGRESS: u64 = CODE + 0x2000;
/// Only reached by a test that has already failed.
const LIVENESS: Duration = Duration::from_secs(60);
/// Pages of the region: the steps of one command.
pub(crate) const STEPS: u64 = 2048;
pub(crate) const FIRMWARE: &str = "guest.elf";

/// Loops on NEXT with its MMU off; step `s` stores `s + 1` to the first bytes of the region's 4K page `s`. After an HVC it
/// goes on only if x0 says that all is well.
#[rustfmt::skip]
fn guest(transport: Transport) -> Vec<u32> {
    let (argument, call) = match transport {
        Transport::Mmio => (0x5306_7e61, 0xb900_0a81), // lsr w1, w19, #6; str w1, [x20, #8]
        Transport::Hvc => (0xaa13_03e1, 0xd400_0002), // mov x1, x19; hvc #0
    };
    let status = match transport {
        Transport::Mmio => 0xd280_0020, // movz x0, #1
        Transport::Hvc => 0xd503_201f, // nop
    };
    vec![
        0xd2a8_0413, // movz x19, #0x4020, lsl #16
        0xf282_0013, // movk x19, #0x1000
        0xd2a1_6014, // movz x20, #0x0b00, lsl #16
        0xd2b8_c000, // 1: movz x0, #0xc600, lsl #16
        0xf28e_8880, // movk x0, #0x7444
        argument,
        call,
        status,
        0xf100_041f, // cmp x0, #1
        0x5400_0001, // b.ne .
        0xf940_2a62, // ldr x2, [x19, #80]
        0xf100_045f, // cmp x2, #1
        0x5400_01c1, // b.ne 5f
        0xf940_2e63, // ldr x3, [x19, #88]
        0xf940_3264, // ldr x4, [x19, #96]
        0xd2a4_0005, // movz x5, #0x2000, lsl #16
        0xb400_00c4, // 3: cbz x4, 4f
        0xd374_cc66, // lsl x6, x3, #12
        0x9100_0463, // add x3, x3, #1
        0xf826_68a3, // str x3, [x5, x6]
        0xd100_0484, // sub x4, x4, #1
        0x17ff_fffb, // b 3b
        0xd280_0047, // 4: movz x7, #2
        0xf900_0a67, // str x7, [x19, #16]
        0xf900_0e63, // str x3, [x19, #24]
        0x17ff_ffea, // b 1b
        0xd2b0_8000, // 5: movz x0, #0x8400, lsl #16
        0xf280_0100, // movk x0, #8 (SYSTEM_OFF)
        0xd400_0002, // hvc #0
        0x1400_0000, // b .
    ]
}

pub(crate) fn config(accelerator: Accelerator, transport: Transport) -> MachineConfig {
    let region_bytes = STEPS * 4096;
    MachineConfig {
        accelerator,
        transport,
        vcpus: 2,
        ram_bytes: map::RAM_MIN,
        region_bytes,
        ..MachineConfig::default()
    }
}

pub(crate) fn load(config: &MachineConfig) -> Result<Machine, BuildError> {
    let mut request = Request::new_zeroed();
    request.magic = REQUEST_MAGIC.into();
    request.version = VERSION.into();
    request.op = (Op::Next as u16).into();
    request.args = Outcome::Ready { progress: Gpa::new(PROGRESS) }.encode().map(U64::new);
    let segments =
        [TestSegment::code(CODE, &guest(config.transport)), TestSegment::data(REQUEST, request.as_bytes(), 0x2000)];
    Machine::build(config, &Image::parse(Path::new(FIRMWARE), elf(CODE, &segments)).unwrap())
}

/// Each accelerator of this host, with each way of calling that it has.
fn machines() -> Vec<(MachineConfig, Machine)> {
    let accelerators = match why_no_kvm_guest(Arch::Aarch64) {
        None => vec![Accelerator::Emulator, Accelerator::Kvm],
        Some(reason) => {
            println!("skipped: {reason}");
            vec![Accelerator::Emulator]
        }
    };
    let mut machines = Vec::new();
    for (accelerator, transport) in
        accelerators.into_iter().flat_map(|accelerator| [(accelerator, Transport::Mmio), (accelerator, Transport::Hvc)])
    {
        let config = config(accelerator, transport);
        match load(&config) {
            Ok(machine) => machines.push((config, machine)),
            Err(BuildError::Unavailable(reason)) => println!("skipped: {reason}"),
            Err(error) => panic!("{error}"),
        }
    }
    machines
}

pub(crate) fn parked(vcpus: &Vcpus) -> Outcome {
    loop {
        match vcpus.wait_event(Some(LIVENESS)) {
            Wait::Event(Event::Parked { vcpu: 0, outcome }) => return outcome,
            Wait::Event(Event::Restored) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn moved(config: &MachineConfig, machine: Machine, mut vcpus: Vcpus, policy: CounterPolicy) -> (Machine, Vcpus) {
    vcpus.pause();
    let state = MachineState::save(&machine, &vcpus).unwrap();
    let there = Machine::build_incoming(config, Path::new(FIRMWARE)).unwrap();
    for slot in SlotId::ALL {
        let range = machine.memory().slot(slot).range();
        for extent in machine.memory().data_extents(slot, 0..range.len_bytes()).unwrap() {
            let mut bytes = vec![0; (extent.end - extent.start) as usize];
            machine.memory().copy_from_slot(slot, extent.start, &mut bytes).unwrap();
            there.memory().write(range.start().checked_add(extent.start).unwrap(), &bytes).unwrap();
        }
    }
    let new = Vcpus::start_paused(&there).unwrap();
    let decoded = MachineState::decode(&state.encode()).unwrap();
    assert_eq!(decoded, state);
    decoded.restore(&there, &new).unwrap();
    let set = decoded.set_counter(&new, policy, ClockOffset::SAME).unwrap();
    let expected = match policy {
        CounterPolicy::Stops => state.counter.ticks,
        CounterPolicy::RunsOn => {
            state.counter.ticks
                + (set.at.since(state.counter.at).as_nanos() * u128::from(state.counter.hz) / 1_000_000_000) as u64
        }
    };
    assert!(set.ticks.abs_diff(expected) <= 1, "{} is not {expected}", set.ticks);
    let again = MachineState::save(&there, &new).unwrap();
    assert_eq!(again.gic, state.gic);
    // But for what the host's clock and the counter differ by in a moment.
    assert!(again.counter.ticks + state.counter.hz / 1000 >= set.ticks, "it runs from there");
    for (again, state) in again.vcpus.iter().zip(&state.vcpus) {
        assert_eq!(again.seat, state.seat);
        // KVM does not know who waits; ISTATUS of a timer that is due follows from the counter.
        assert_eq!(again.power == VcpuPower::Off, state.power == VcpuPower::Off);
    }
    vcpus.shutdown();
    (there, new)
}

#[test]
fn a_guest_goes_on_wherever_it_is_moved_on_every_accelerator() {
    for (config, mut machine) in machines() {
        let what = format!("{} {:?}", config.accelerator, config.transport);
        let mut vcpus = Vcpus::start(&machine).unwrap();
        assert!(matches!(parked(&vcpus), Outcome::Ready { progress } if progress.raw() == PROGRESS), "{what}");
        for round in 0..4 {
            // Waiting for its command, which it is told again.
            (machine, vcpus) = moved(&config, machine, vcpus, CounterPolicy::RunsOn);
            parked(&vcpus);
            // Given its command and not run on: the answered call is complete there.
            vcpus.command(0, Command::RunSteps { first: 0, count: STEPS }).unwrap();
            (machine, vcpus) = moved(&config, machine, vcpus, CounterPolicy::Stops);
            vcpus.resume();
            vcpus.wait_entry(LIVENESS).expect("a vCPU enters");
            // In the middle of its steps, or past them.
            (machine, vcpus) = moved(&config, machine, vcpus, CounterPolicy::RunsOn);
            vcpus.resume();
            assert_eq!(parked(&vcpus), Outcome::Ran { next: STEPS }, "{what}: {round}");
            for step in 0..STEPS {
                let page = Gpa::new(map::REGION_BASE.raw() + step * 4096);
                assert_eq!(machine.memory().read_obj::<u64>(page).unwrap(), step + 1, "{what}: {round}");
                machine.memory().write(page, &[0; 8]).unwrap();
            }
        }
        vcpus.command(0, Command::Stop).unwrap();
        assert!(matches!(vcpus.wait_event(Some(LIVENESS)), Wait::Event(Event::SystemOff)), "{what}");
        vcpus.pause();
        let error = vcpus.save().unwrap_err();
        assert!(matches!(error, VcpusError::Ended { vcpu: 0 }), "{what}: {error}");
    }
}

/// Every byte of `memory`.
pub(crate) fn bytes(memory: &GuestMemory) -> [Vec<u8>; SlotId::COUNT] {
    SlotId::ALL.map(|slot| {
        let mut bytes = vec![0; memory.slot(slot).range().len_bytes() as usize];
        memory.copy_from_slot(slot, 0, &mut bytes).unwrap();
        bytes
    })
}

/// Gives `machine`, whose guest has run, a saved guest's memory and state.
fn reload(
    machine: &Machine,
    vcpus: &Vcpus,
    (memory, state): &([Vec<u8>; SlotId::COUNT], MachineState),
    policy: CounterPolicy,
) {
    vcpus.pause();
    for (slot, bytes) in SlotId::ALL.into_iter().zip(memory) {
        machine.memory().copy_to_slot(slot, 0, bytes).unwrap();
    }
    machine.vm().forget_memory().unwrap();
    state.restore(machine, vcpus).unwrap();
    state.set_counter(vcpus, policy, ClockOffset::SAME).unwrap();
}

#[test]
fn a_machine_whose_guest_has_run_takes_a_guest_s_state_again_and_again_on_every_accelerator() {
    for ((config, machine), (_, other)) in machines().into_iter().zip(machines()) {
        let what = format!("{} {:?}", config.accelerator, config.transport);
        let vcpus = Vcpus::start(&machine).unwrap();
        parked(&vcpus);
        // It waits for its command; is given one that it has not seen; is in the middle of it, or past it.
        let mut saved = Vec::new();
        for point in 0..3 {
            vcpus.pause();
            let state = MachineState::save(&machine, &vcpus).unwrap();
            saved.push((bytes(machine.memory()), state));
            match point {
                0 => vcpus.command(0, Command::RunSteps { first: 0, count: STEPS }).unwrap(),
                1 => {
                    vcpus.resume();
                    vcpus.wait_entry(LIVENESS).expect("a vCPU enters");
                }
                _ => {}
            }
        }
        vcpus.resume();
        let others = Vcpus::start(&other).unwrap();
        parked(&others);
        for (round, policy) in [CounterPolicy::RunsOn, CounterPolicy::Stops].into_iter().cycle().take(4).enumerate() {
            for (machine, vcpus) in [(&machine, &vcpus), (&other, &others)] {
                for (point, guest) in saved.iter().enumerate() {
                    reload(machine, vcpus, guest, policy);
                    let again = MachineState::save(machine, vcpus).unwrap();
                    assert_eq!(again.gic, guest.1.gic, "{what}: {round}");
                    for (again, state) in again.vcpus.iter().zip(&guest.1.vcpus) {
                        assert_eq!(again.seat, state.seat, "{what}: {round}");
                    }
                    if point == 0 {
                        // It is told again that the guest waits.
                        assert!(matches!(parked(vcpus), Outcome::Ready { .. }), "{what}: {round}");
                        vcpus.command(0, Command::RunSteps { first: 0, count: STEPS }).unwrap();
                    }
                    vcpus.resume();
                    assert_eq!(parked(vcpus), Outcome::Ran { next: STEPS }, "{what}: {round}, point {point}");
                    for step in 0..STEPS {
                        let page = Gpa::new(map::REGION_BASE.raw() + step * 4096);
                        assert_eq!(machine.memory().read_obj::<u64>(page).unwrap(), step + 1, "{what}: {round}");
                    }
                }
            }
        }
    }
}

#[test]
fn state_is_read_and_written_only_of_paused_machines() {
    let config = config(Accelerator::Emulator, Transport::Mmio);
    let machine = load(&config).unwrap();
    let vcpus = Vcpus::start(&machine).unwrap();
    parked(&vcpus);
    let error = MachineState::save(&machine, &vcpus).unwrap_err();
    assert!(matches!(error, StateError::Vcpus(VcpusError::NotPaused)), "{error}");
    vcpus.pause();
    let state = MachineState::save(&machine, &vcpus).unwrap();
    vcpus.resume();
    assert!(matches!(vcpus.restore(&state.vcpus), Err(VcpusError::NotPaused)));
}

#[test]
fn what_a_state_claims_is_checked_before_anything_changes() {
    let config = config(Accelerator::Emulator, Transport::Mmio);
    let machine = load(&config).unwrap();
    let vcpus = Vcpus::start(&machine).unwrap();
    parked(&vcpus);
    vcpus.pause();
    let good = MachineState::save(&machine, &vcpus).unwrap();
    let there = Machine::build_incoming(&config, Path::new(FIRMWARE)).unwrap();
    let new = Vcpus::start_paused(&there).unwrap();
    let before = MachineState::save(&there, &new).unwrap();
    let refused = |change: &dyn Fn(&mut MachineState), word: &str| {
        let mut state = good.clone();
        change(&mut state);
        let error = state.restore(&there, &new).unwrap_err().to_string();
        assert!(error.contains(word), "{word:?} is not in {error:?}");
        let now = MachineState::save(&there, &new).unwrap();
        assert_eq!(now.vcpus, before.vcpus, "{word}");
    };
    let request = |raw| {
        move |state: &mut MachineState| {
            let CallState::Parked { request, .. } = &mut state.vcpus[0].seat.call else { panic!("it is parked") };
            *request = Gpa::new(raw);
        }
    };
    for raw in [REQUEST + 8, 0, map::REGION_BASE.raw(), map::RAM_BASE.raw() + map::RAM_MIN - 64, !63] {
        refused(&request(raw), "request block");
    }
    for raw in [PROGRESS + 1, 0, map::RAM_BASE.raw() + map::RAM_MIN, !63] {
        refused(&move |state| state.vcpus[0].seat.progress = Some(Gpa::new(raw)), "progress slot");
    }
    refused(&|state| state.vcpus[0].seat.progress = None, "progress slot");
    refused(&|state| state.vcpus[1].seat.progress = Some(Gpa::new(PROGRESS)), "progress slot");
    refused(&|state| drop(state.vcpus.pop()), "1 vCPUs, the machine has 2");
    let foreign = 0x6030_0000_0013_ffff;
    refused(&|state| state.vcpus[1].registers.push((foreign, 0)), "0x603000000013ffff");
    let twice = good.vcpus[0].registers[0];
    refused(&move |state| state.vcpus[0].registers.push(twice), "twice");
    refused(&|state| state.vcpus[0].registers.push((0x6030_0000_0013_df1a, 1)), "counter");
    refused(&|state| state.counter.hz = 0, "CNTFRQ_EL0");
    refused(&|state| state.uart.registers[5] = !0, "PL011");
    let icount = MachineConfig { clock: Clock::Icount, ..config };
    let machine = load(&icount).unwrap();
    let counted = MachineState::save(&machine, &Vcpus::start_paused(&machine).unwrap()).unwrap();
    refused(&|state| state.icount = counted.icount, "--clock icount");
    good.restore(&there, &new).unwrap();
}

#[test]
fn the_console_s_half_line_is_finished_elsewhere() {
    let config = config(Accelerator::Emulator, Transport::Mmio);
    let machine = load(&config).unwrap();
    let vcpus = Vcpus::start(&machine).unwrap();
    parked(&vcpus);
    let half = crate::device::pl011::Pl011State { line: b"half a ".to_vec(), ..vcpus.uart() };
    vcpus.restore_uart((&half).try_into().unwrap());
    let (_there, mut new) = moved(&config, machine, vcpus, CounterPolicy::Stops);
    assert_eq!(new.uart(), half);
    parked(&new);
    new.shutdown();
    assert!(matches!(new.wait_event(Some(LIVENESS)), Wait::Event(Event::Console(line)) if line == "half a "));
}
