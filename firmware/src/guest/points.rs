//! The tour of the points at which the host asks this guest to ask to be moved (`abi::points`): at each it reads all its registers, asks, is
//! stopped and moved, reads them again, checks that nothing has happened to it, prints what it read, and goes on.
//!
//! ```text
//!   entry: mmu-off ─▶ mmu: table-switch ─▶ start: handler ─▶ pending ─▶ exclusives ─▶ wfi ─▶ … ─▶ command: workload
//!          └──────── printed once there is a console ───────┘
//! ```
//!
//! vCPU 0 alone asks. What does not hold is a panic, which the host reports. Neighbours: [`crate::guest::arch::points`] reads and asks,
//! `hostvmm::verify` moves the guest and compares what is printed.
#![expect(unsafe_code, reason = "records that assembly fills, and device registers")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use abi::hypercall::REG_POINT;
use abi::points::{ID_BASE, LINE_PREFIX, Point};
use abi::{Gpa, GuestRange};

use crate::guest::arch::points::{Record, Word, abort, ask, ask_between_exclusives, fill_vectors, tell_and_wait};
use crate::guest::arch::{cache, cpu};
use crate::guest::{Machine, console, timer};

/// The step of the workload in which the last point lies.
const STEP: u64 = 2;
/// A vCPU that waits is woken so often until it has been moved.
const WAIT_MS: u64 = 50;
/// Bytes of a line of registers: less than a line that the host's console shows in one piece.
const LINE_BYTES: usize = 900;
/// A register in such a line, at most: an id, and a vector's 32 digits.
const ENTRY_BYTES: usize = 50;
/// Nothing is mapped there: it lies above the doorbell and below the region.
const UNMAPPED: u64 = 0x0bad_0c00;

/// A record for each point, by its number. Only vCPU 0 uses them, one after the other.
#[repr(transparent)]
struct Records(UnsafeCell<[Record; Point::ALL.len() + 1]>);

// SAFETY: vCPU 0 alone asks.
unsafe impl Sync for Records {}

/// In `.data`, for the first one is filled before `.bss` is cleared.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.points")]
static POINT_RECORDS: Records = Records(UnsafeCell::new([const { Record::BLANK }; Point::ALL.len() + 1]));

/// The address of the register at which this guest asks, zero where it is not to.
static ASKS_AT: AtomicUsize = AtomicUsize::new(0);
/// Where the data abort that is asked in comes from; zero while none is expected.
static EXPECTED: AtomicU64 = AtomicU64::new(0);

fn record(point: Point) -> *mut Record {
    let first = POINT_RECORDS.0.get().cast::<Record>();
    // SAFETY: there is a record for every number.
    unsafe { first.add(point.number() as usize) }
}

/// Where to ask at `point`; `None` where this guest is not to.
fn asks(points: u32, doorbell: Option<Gpa>, point: Point) -> Option<Gpa> {
    if points & point.bit() == 0 {
        return None;
    }
    let register = doorbell.and_then(|doorbell| doorbell.checked_add(REG_POINT));
    Some(register.expect("a guest that is to ask to be moved has a doorbell"))
}

/// What [`crate::guest::arch::mmu`] asks with while its tables are switched: where, and the record; `None` where it is not to.
pub(crate) fn at_table_switch(points: u32, doorbell: Option<Gpa>) -> Option<(Gpa, *mut Record)> {
    let register = asks(points, doorbell, Point::TableSwitch)?;
    let record = record(Point::TableSwitch);
    // What is written with the MMU off goes around the caches, which must hold nothing of it that they could write back.
    cache::clean(bytes(record));
    Some((register, record))
}

/// Prints what was read where there was no console yet. The tables that were switched to translate what this does.
pub(crate) fn print_first(machine: &Machine) {
    for point in [Point::MmuOff, Point::TableSwitch] {
        if machine.boot.points & point.bit() != 0 {
            cache::invalidate(bytes(record(point)));
            passed(point);
        }
    }
}

/// Visits the points between boot and work, on vCPU 0. Interrupts are masked, and nothing uses the timer.
pub(crate) fn tour(machine: &Machine) {
    let asks = |point| asks(machine.boot.points, machine.devices.doorbell, point);
    fill_vectors();
    if let Some(register) = asks(Point::Handler) {
        in_handler(register);
    }
    if let Some(register) = asks(Point::Pending) {
        with_interrupt_pending(register);
    }
    if let Some(register) = asks(Point::Exclusives) {
        between_exclusives(register);
    }
    if let Some(register) = asks(Point::Wfi) {
        waiting(register);
    }
}

/// At the end of `step` of vCPU 0, before it is said to be completed.
pub(crate) fn in_step(machine: &Machine, step: u64) {
    if step != STEP {
        return;
    }
    if let Some(register) = asks(machine.boot.points, machine.devices.doorbell, Point::Workload) {
        // A heartbeat between reading and asking would change registers.
        cpu::mask_irq();
        fill_vectors();
        ask(register, Point::Workload, record(Point::Workload));
        cpu::unmask_irq();
        passed(Point::Workload);
    }
}

fn in_handler(register: Gpa) {
    ASKS_AT.store(register.raw() as usize, Ordering::Relaxed);
    EXPECTED.store(UNMAPPED, Ordering::Relaxed);
    assert!(abort(UNMAPPED), "the handler returned behind the load that it was called for");
    assert!(EXPECTED.load(Ordering::Relaxed) == 0, "there was no data abort");
    passed(Point::Handler);
}

/// Whether a data abort at `address` is the one that is asked in; asks, and then the handler is to return behind the load.
pub(crate) fn handle_abort(address: u64) -> bool {
    if address == 0 || EXPECTED.load(Ordering::Relaxed) != address {
        return false;
    }
    EXPECTED.store(0, Ordering::Relaxed);
    ask(Gpa::new(ASKS_AT.load(Ordering::Relaxed) as u64), Point::Handler, record(Point::Handler));
    true
}

fn with_interrupt_pending(register: Gpa) {
    let before = timer::interrupts();
    timer::wake_in(0);
    while !cpu::is_irq_pending() {
        core::hint::spin_loop();
    }
    ask(register, Point::Pending, record(Point::Pending));
    assert!(cpu::is_irq_pending(), "a pending interrupt is still pending after the move");
    assert!(timer::interrupts() == before, "a masked interrupt was taken");
    for _ in 0..2 {
        cpu::unmask_irq();
        cpu::mask_irq();
        assert!(timer::interrupts() == before + 1, "a pending interrupt is taken once it is unmasked, and once");
    }
    passed(Point::Pending);
}

fn between_exclusives(register: Gpa) {
    static WORD: Word = Word::new(0x0123_4567);
    let first = WORD.load(Ordering::Relaxed);
    let stored = ask_between_exclusives(register, Point::Exclusives, record(Point::Exclusives), &WORD, first);
    let expected = if stored { first + 1 } else { first };
    assert!(WORD.load(Ordering::Relaxed) == expected, "a store-exclusive stores if it says so, and only then");
    for _ in 0..5 {
        WORD.fetch_add(1, Ordering::Relaxed);
    }
    assert!(WORD.load(Ordering::Relaxed) == expected + 5, "exclusives work after the move");
    passed(Point::Exclusives);
}

fn waiting(register: Gpa) {
    loop {
        let before = timer::interrupts();
        timer::wake_in(WAIT_MS);
        tell_and_wait(register, Point::Wfi, record(Point::Wfi));
        // SAFETY: the register is there: it was just written.
        let told = unsafe { cpu::read_device(register) };
        timer::wait_awake();
        assert!(timer::interrupts() == before + 1, "a vCPU that waits is woken by its timer, and once");
        if told == 0 {
            break;
        }
    }
    passed(Point::Wfi);
}

/// Prints what was read at `point`, where everything held.
fn passed(point: Point) {
    let record = record(point);
    // SAFETY: the assembly has filled it, and nobody writes to it any more.
    let record = unsafe { &*record };
    for (when, after) in [("before", false), ("after", true)] {
        let mut room = None;
        record.registers(after, |id, value| {
            let left = room.filter(|room| *room >= ENTRY_BYTES).unwrap_or_else(|| {
                let end = if room.is_none() { "" } else { "\n" };
                console::say(format_args!("{end}{LINE_PREFIX}{} {when}", point.name()));
                LINE_BYTES
            });
            console::say(format_args!(" {:x}={value:x}", id ^ ID_BASE));
            room = Some(left - ENTRY_BYTES);
        });
        console::say(format_args!("\n"));
    }
    console::say(format_args!("{LINE_PREFIX}{} passed\n", point.name()));
}

fn bytes(record: *const Record) -> GuestRange {
    GuestRange::new(Gpa::new(record as u64), size_of::<Record>() as u64).expect("an object cannot wrap")
}
