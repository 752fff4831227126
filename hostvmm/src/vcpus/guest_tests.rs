//! A tiny guest, assembled by hand, through the whole machine: loader, emulator, doorbell, dirty log, power off.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use abi::hypercall::{Command, Op, Outcome, REQUEST_MAGIC, Request, VERSION};
use abi::{Gpa, map};
use zerocopy::little_endian::U64;
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::{Event, Vcpus, Wait};
use crate::machine::test_elf::{TestSegment, elf};
use crate::machine::{Clock, Image, Machine, MachineConfig};
use crate::memory::SlotId;

const CODE: u64 = map::FIRMWARE_BASE.raw();
const REQUEST: u64 = CODE + 0x1000;
const PROGRESS: u64 = CODE + 0x2000;
/// Only reached by a test that has already failed.
const LIVENESS: Duration = Duration::from_secs(20);

/// Loops on NEXT with its MMU off; step `s` stores `s + 1` to the first bytes of the region's 4K page `s`.
#[rustfmt::skip]
const GUEST: [u32; 26] = [
    0xd2a8_0413, // movz x19, #0x4020, lsl #16
    0xf282_0013, // movk x19, #0x1000
    0xd2a1_6014, // movz x20, #0x0b00, lsl #16
    0x5306_7e61, // lsr w1, w19, #6
    0xb900_0a81, // str w1, [x20, #8]
    0xf940_2a62, // 2: ldr x2, [x19, #80]
    0xf100_045f, // cmp x2, #1
    0x5400_01e1, // b.ne 5f
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
    0xb900_0a81, // str w1, [x20, #8]
    0x17ff_fff0, // b 2b
    0xd2b0_8000, // 5: movz x0, #0x8400, lsl #16
    0xf280_0100, // movk x0, #8 (SYSTEM_OFF)
    0xd400_0002, // hvc #0
    0x1400_0000, // b .
];
const BRANCH_TO_SELF: u32 = 0x1400_0000;

fn machine(code: &[u32], clock: Clock) -> Machine {
    let mut request = Request::new_zeroed();
    request.magic = REQUEST_MAGIC.into();
    request.version = VERSION.into();
    request.op = (Op::Next as u16).into();
    request.args = Outcome::Ready { progress: Gpa::new(PROGRESS) }.encode().map(U64::new);
    let segments = [TestSegment::code(CODE, code), TestSegment::data(REQUEST, request.as_bytes(), 0x2000)];
    let image = Image::parse(Path::new("guest.elf"), elf(CODE, &segments)).unwrap();
    let config = MachineConfig { clock, ram_bytes: map::RAM_MIN, ..MachineConfig::default() };
    Machine::build(&config, &image).unwrap()
}

fn event(vcpus: &Vcpus) -> Event {
    match vcpus.wait_event(Some(LIVENESS)) {
        Wait::Event(event) => event,
        other => panic!("{other:?}"),
    }
}

fn harvest(machine: &Machine) -> Vec<u64> {
    let mut bitmap = vec![0; machine.memory().slot(SlotId::Region).host_pages().div_ceil(64) as usize];
    machine.vm().harvest_dirty(SlotId::Region, &mut bitmap).unwrap();
    (0..64 * bitmap.len() as u64).filter(|page| bitmap[*page as usize / 64] >> (page % 64) & 1 == 1).collect()
}

#[test]
fn a_guest_is_commanded_logged_and_powers_off() {
    for clock in [Clock::Wall, Clock::Icount] {
        let machine = machine(&GUEST, clock);
        let mut vcpus = Vcpus::start(&machine).unwrap();
        match event(&vcpus) {
            Event::Parked { vcpu: 0, outcome: Outcome::Ready { progress } } => assert_eq!(progress.raw(), PROGRESS),
            other => panic!("{clock:?}: {other:?}"),
        }
        machine.vm().start_dirty_log(&SlotId::ALL).unwrap();
        for (first, count) in [(0, 3), (1, 1), (100, 2)] {
            vcpus.command(0, Command::RunSteps { first, count }).unwrap();
            match event(&vcpus) {
                Event::Parked { outcome: Outcome::Ran { next }, .. } => assert_eq!(next, first + count),
                other => panic!("{clock:?}: {other:?}"),
            }
            // Step n writes to the guest's page n; the log's pages are the host's.
            let pages: BTreeSet<u64> =
                (first..first + count).map(|step| step * 4096 / machine.memory().host_page_bytes()).collect();
            assert_eq!(harvest(&machine), pages.into_iter().collect::<Vec<_>>());
        }
        assert!(harvest(&machine).is_empty());
        let page_101 = Gpa::new(map::REGION_BASE.raw() + 101 * 4096);
        assert_eq!(machine.memory().read_obj::<u64>(page_101).unwrap(), 102);
        vcpus.command(0, Command::Stop).unwrap();
        assert!(matches!(event(&vcpus), Event::SystemOff));
        vcpus.shutdown();
    }
}

#[test]
fn a_guest_that_loops_without_end_is_stopped() {
    for clock in [Clock::Wall, Clock::Icount] {
        let machine = machine(&[BRANCH_TO_SELF], clock);
        let mut vcpus = Vcpus::start(&machine).unwrap();
        vcpus.pause();
        vcpus.resume();
        vcpus.shutdown();
    }
}

#[test]
fn the_instruction_clock_repeats_exactly() {
    let ticks = || {
        let machine = machine(&GUEST, Clock::Icount);
        let vcpus = Vcpus::start(&machine).unwrap();
        assert!(matches!(event(&vcpus), Event::Parked { .. }));
        vcpus.command(0, Command::RunSteps { first: 0, count: 1000 }).unwrap();
        assert!(matches!(event(&vcpus), Event::Parked { .. }));
        machine.vm().now_ticks()
    };
    assert_eq!(ticks(), ticks());
}
