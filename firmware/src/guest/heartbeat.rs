//! The heartbeat of every vCPU: `abi::heartbeat` has the layout and the rules, the host reads it while the guest runs.
//!
//! Neighbours: [`crate::guest::timer`] says when to beat, [`crate::guest::arch::cycles`] counts cycles,
//! [`crate::guest::command`] publishes where the block is.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use abi::Gpa;
use abi::heartbeat::{
    BUCKETS, FLAG_CYCLES, GapRecord, HEARTBEAT_ALIGN, HEARTBEAT_MARK, HEARTBEAT_RESET, HeartbeatBlock, LARGEST, bucket,
    ticks_to_ns,
};
use abi::map::MAX_VCPUS;

use crate::guest::arch::{cycles, timer};

/// One [`HeartbeatBlock`], as the atomics it is made of, and behind it what only its vCPU looks at.
#[repr(C, align(64))]
struct Block {
    sequence: AtomicU64,
    last: AtomicU64,
    cycles: AtomicU64,
    beats: AtomicU64,
    frequency_hz: AtomicU64,
    flags: AtomicU64,
    mark: AtomicU64,
    reset: AtomicU64,
    marked: Record,
    reset_seen: AtomicU64,
    reserved: [u64; 3],
    histogram: [AtomicU64; BUCKETS],
    largest: [Record; LARGEST],
    /// Ticks of the shortest gap in `largest`, zero while there is room.
    shortest: AtomicU64,
}

/// A [`GapRecord`].
#[repr(C)]
struct Record {
    start: AtomicU64,
    end: AtomicU64,
    cycles: AtomicU64,
    number: AtomicU64,
}

const _: () = assert!(
    core::mem::offset_of!(Block, shortest) == size_of::<HeartbeatBlock>()
        && size_of::<Record>() == size_of::<GapRecord>()
        && align_of::<Block>() as u64 == HEARTBEAT_ALIGN
        && core::mem::offset_of!(Block, mark) as u64 == HEARTBEAT_MARK
        && core::mem::offset_of!(Block, reset) as u64 == HEARTBEAT_RESET
        && core::mem::offset_of!(Block, histogram) == core::mem::offset_of!(HeartbeatBlock, histogram)
        && core::mem::offset_of!(Block, largest) == core::mem::offset_of!(HeartbeatBlock, largest)
);

impl Record {
    const fn new() -> Self {
        Self { start: AtomicU64::new(0), end: AtomicU64::new(0), cycles: AtomicU64::new(0), number: AtomicU64::new(0) }
    }

    fn store(&self, gap: Gap, number: u64) {
        self.start.store(gap.start, Ordering::Relaxed);
        self.end.store(gap.end, Ordering::Relaxed);
        self.cycles.store(gap.cycles, Ordering::Relaxed);
        self.number.store(number, Ordering::Relaxed);
    }

    fn gap(&self) -> Gap {
        Gap {
            start: self.start.load(Ordering::Relaxed),
            end: self.end.load(Ordering::Relaxed),
            cycles: self.cycles.load(Ordering::Relaxed),
        }
    }
}

/// The time between two beats.
#[derive(Clone, Copy)]
struct Gap {
    start: u64,
    end: u64,
    cycles: u64,
}

impl Gap {
    const NONE: Self = Self { start: 0, end: 0, cycles: 0 };

    /// A counter that went back makes the longest gap there can be, which nobody overlooks.
    const fn ticks(self) -> u64 {
        self.end.wrapping_sub(self.start)
    }
}

impl Block {
    const fn new() -> Self {
        Self {
            sequence: AtomicU64::new(0),
            last: AtomicU64::new(0),
            cycles: AtomicU64::new(0),
            beats: AtomicU64::new(0),
            frequency_hz: AtomicU64::new(0),
            flags: AtomicU64::new(0),
            mark: AtomicU64::new(0),
            reset: AtomicU64::new(0),
            marked: Record::new(),
            reset_seen: AtomicU64::new(0),
            reserved: [0; 3],
            histogram: [const { AtomicU64::new(0) }; BUCKETS],
            largest: [const { Record::new() }; LARGEST],
            shortest: AtomicU64::new(0),
        }
    }

    /// Puts `gap` in the place of the shortest of the largest.
    fn keep(&self, gap: Gap, number: u64) {
        let by_length = |record: &&Record| record.gap().ticks();
        if let Some(record) = self.largest.iter().min_by_key(by_length) {
            record.store(gap, number);
        }
        let shortest = self.largest.iter().map(|record| record.gap().ticks()).min();
        self.shortest.store(shortest.unwrap_or_default(), Ordering::Relaxed);
    }

    fn forget_largest(&self) {
        self.largest.iter().for_each(|record| record.store(Gap::NONE, 0));
        self.shortest.store(0, Ordering::Relaxed);
    }
}

static BLOCKS: [Block; MAX_VCPUS] = [const { Block::new() }; MAX_VCPUS];

/// Where the block of `vcpu` lies.
pub(crate) fn block(vcpu: usize) -> Gpa {
    Gpa::new(core::ptr::from_ref(&BLOCKS[vcpu]) as u64)
}

/// Starts the cycle counter, where there is one, and the first gap of this vCPU, `vcpu`.
pub(crate) fn start(vcpu: usize) {
    let block = &BLOCKS[vcpu];
    if cycles::enable() {
        block.flags.store(FLAG_CYCLES, Ordering::Relaxed);
    }
    block.frequency_hz.store(timer::frequency(), Ordering::Relaxed);
    block.last.store(timer::now(), Ordering::Relaxed);
    block.cycles.store(read_cycles(block), Ordering::Relaxed);
}

/// One beat of this vCPU, `vcpu`. Interrupts are masked: a beat is not interrupted by another.
pub(crate) fn beat(vcpu: usize) {
    let block = &BLOCKS[vcpu];
    // Until nothing happened in between: a host that stops the vCPU here and marks it stopped it in the gap that ends now,
    // one that stops it later in the gap that begins now, and then the next beat sees the mark.
    let (mark, now, cycles) = loop {
        let mark = block.mark.load(Ordering::Relaxed);
        let (now, cycles) = (timer::now(), read_cycles(block));
        if block.mark.load(Ordering::Relaxed) == mark {
            break (mark, now, cycles);
        }
    };
    let gap = Gap {
        start: block.last.load(Ordering::Relaxed),
        end: now,
        cycles: cycles.wrapping_sub(block.cycles.load(Ordering::Relaxed)),
    };
    let number = block.beats.load(Ordering::Relaxed) + 1;
    let sequence = block.sequence.load(Ordering::Relaxed);
    block.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
    fence(Ordering::Release);

    block.last.store(now, Ordering::Relaxed);
    block.cycles.store(cycles, Ordering::Relaxed);
    block.beats.store(number, Ordering::Relaxed);
    let ns = ticks_to_ns(gap.ticks(), block.frequency_hz.load(Ordering::Relaxed));
    let bucket = &block.histogram[bucket(ns)];
    bucket.store(bucket.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    if mark != block.marked.number.load(Ordering::Relaxed) {
        block.marked.store(gap, mark);
    }
    let reset = block.reset.load(Ordering::Relaxed);
    if reset != block.reset_seen.load(Ordering::Relaxed) {
        block.forget_largest();
        block.reset_seen.store(reset, Ordering::Relaxed);
    }
    if gap.ticks() > block.shortest.load(Ordering::Relaxed) {
        block.keep(gap, number);
    }
    block.sequence.store(sequence.wrapping_add(2), Ordering::Release);
}

fn read_cycles(block: &Block) -> u64 {
    if block.flags.load(Ordering::Relaxed) & FLAG_CYCLES == 0 {
        return 0;
    }
    cycles::now(block.cycles.load(Ordering::Relaxed))
}
