//! Blocks as a guest could leave them, right and wrong.

use abi::hypercall::PROGRESS_HEARTBEAT;
use abi::map;
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::*;

const PROGRESS: Gpa = Gpa::new(map::RAM_BASE.raw() + 0x1000);
const BLOCK: Gpa = Gpa::new(map::RAM_BASE.raw() + 0x2040);

fn memory() -> GuestMemory {
    let ram = GuestRange::new(map::RAM_BASE, 1 << 20).unwrap();
    GuestMemory::new(ram, GuestRange::new(map::REGION_BASE, 1 << 20).unwrap(), None).unwrap()
}

fn claim(memory: &GuestMemory, block: Gpa) -> Result<Option<GuestHeartbeat>, ReadError> {
    memory.store_u64(PROGRESS.checked_add(PROGRESS_HEARTBEAT).unwrap(), block.raw()).unwrap();
    GuestHeartbeat::find(memory, PROGRESS)
}

fn record(start: u64, end: u64, number: u64) -> GapRecord {
    GapRecord { start: start.into(), end: end.into(), cycles: 5.into(), number: number.into() }
}

fn sample() -> HeartbeatBlock {
    let mut block = HeartbeatBlock::new_zeroed();
    block.sequence = 4.into();
    block.last = 900.into();
    block.beats = 3.into();
    block.frequency_hz = 62_500_000.into();
    block.histogram[10] = 3.into();
    block.largest[2] = record(100, 150, 1);
    block.largest[7] = record(200, 800, 2);
    block.marked = record(200, 800, 42);
    block
}

#[test]
fn a_block_is_read_with_its_gaps_in_order() {
    let memory = memory();
    memory.write(BLOCK, sample().as_bytes()).unwrap();
    let reading = claim(&memory, BLOCK).unwrap().unwrap().read().unwrap();
    let largest = Gap { start: 200, end: 800, cycles: None };
    assert_eq!(reading.largest, [largest, Gap { start: 100, end: 150, cycles: None }]);
    assert_eq!((reading.marked_as(42), reading.marked_as(41)), (Some(largest), None));
    assert_eq!((reading.last, reading.beats, reading.histogram.total()), (900, 3, 3));
    assert_eq!(largest.ns(reading.frequency_hz), 9600);
    assert!(largest.spans(200) && largest.spans(800) && !largest.spans(801));
    assert!(!reading.is_torn);
}

#[test]
fn a_guest_without_a_heartbeat_has_none() {
    assert!(claim(&memory(), Gpa::new(0)).unwrap().is_none());
}

#[test]
fn a_block_outside_ram_is_refused() {
    let memory = memory();
    let end = memory.slot(SlotId::Ram).range().end().raw();
    for block in [end - 1088, end, u64::MAX - 63, map::REGION_BASE.raw(), BLOCK.raw() + 8] {
        assert!(matches!(claim(&memory, Gpa::new(block)), Err(ReadError::Claim { .. })), "{block:#x}");
    }
    assert!(GuestHeartbeat::find(&memory, Gpa::new(u64::MAX - 7)).is_err());
}

#[test]
fn a_guest_stopped_in_a_beat_makes_a_torn_reading() {
    let memory = memory();
    let mut block = sample();
    block.sequence = 5.into();
    memory.write(BLOCK, block.as_bytes()).unwrap();
    assert!(claim(&memory, BLOCK).unwrap().unwrap().read().unwrap().is_torn);
}

#[test]
fn a_reading_beside_a_writer_is_whole() {
    let memory = memory();
    let heartbeat = claim(&memory, BLOCK).unwrap().unwrap();
    let writer = memory.clone();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let word = |offset: u64| BLOCK.checked_add(offset).unwrap();
            let mut beat = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                beat += 1;
                writer.store_u64(BLOCK, 2 * beat - 1).unwrap();
                fence(Ordering::Release);
                writer.store_u64(word(8), beat).unwrap();
                writer.store_u64(word(24), beat).unwrap();
                writer.store_u64(BLOCK, 2 * beat).unwrap();
            }
        });
        for _ in 0..2000 {
            let reading = heartbeat.read().unwrap();
            assert!(reading.is_torn || reading.last == reading.beats, "{reading:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}
