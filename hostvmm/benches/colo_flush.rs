//! The flush of a COLO checkpoint beside a plain copy of the same pages, in as many threads.
//!
//! Figures compare only within one run, so the ratios are measured once more, interleaved, and printed at the end.

mod in_turn;

use std::thread;
use std::time::Duration;

use abi::{Gpa, GuestRange, map};
use criterion::{Criterion, Throughput, criterion_group};
use hostvmm::colo::{DirtyPages, RamCache};
use hostvmm::dirty::PageBitmap;
use hostvmm::memory::{GuestMemory, SlotId, host_page_bytes};

use in_turn::in_turn;

/// Larger than a last-level cache.
const REGION_BYTES: u64 = 128 << 20;
const MEASURED: Duration = Duration::from_secs(3);

struct Bench {
    ram: GuestMemory,
    cache: RamCache,
    /// The plain copy's two memories.
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Bench {
    /// Memories without a zero page, all of it touched.
    fn new() -> Self {
        let ram = GuestRange::new(map::RAM_BASE, 1 << 20).expect("RAM does not wrap");
        let region = GuestRange::new(Gpa::new(0x8000_0000), REGION_BYTES).expect("the region does not wrap");
        let ram = GuestMemory::new(ram, region, None).expect("the host has the memory");
        let cache = RamCache::new(&ram, host_page_bytes(), 1).expect("the host has the memory");
        let from: Vec<u8> = (0..REGION_BYTES).map(|at| (at % 251) as u8 | 1).collect();
        for memory in [&ram, cache.memory()] {
            memory.copy_to_slot(SlotId::Region, 0, &from).expect("in the region");
        }
        let to = from.iter().rev().copied().collect();
        Self { ram, cache, from, to }
    }

    fn flush(&self, pages: &DirtyPages) {
        self.cache.flush(&self.ram, pages).expect("the same shape");
    }

    /// Copies the same pages run by run.
    fn plain(&mut self, pages: &DirtyPages) {
        let page_bytes = pages[1].page_bytes() as usize;
        let threads = thread::available_parallelism().map_or(1, |count| count.get().min(8));
        let share = (self.from.len() / threads).next_multiple_of(page_bytes);
        let pages = &pages[1];
        thread::scope(|scope| {
            for (index, (to, from)) in self.to.chunks_mut(share).zip(self.from.chunks(share)).enumerate() {
                scope.spawn(move || {
                    let first = (index * share / page_bytes) as u64;
                    let end = first + (to.len() / page_bytes) as u64;
                    for run in pages.runs().filter(|run| run.start < end && run.end > first) {
                        let start = (run.start.max(first) - first) as usize * page_bytes;
                        let end = (run.end.min(end) - first) as usize * page_bytes;
                        to[start..end].copy_from_slice(&from[start..end]);
                    }
                });
            }
        });
    }
}

/// One page in `every` of the region.
fn pages(bench: &Bench, every: u64) -> DirtyPages {
    let mut pages =
        SlotId::ALL.map(|slot| PageBitmap::covering(bench.ram.slot(slot).range().len_bytes(), host_page_bytes()));
    (0..pages[1].pages()).step_by(every as usize).for_each(|page| pages[1].set(page));
    pages
}

fn flushes(c: &mut Criterion) {
    let mut bench = Bench::new();
    for every in [1, 10] {
        let pages = pages(&bench, every);
        let mut group = c.benchmark_group(format!("colo/1_page_in_{every}"));
        let bytes = pages[1].count() * host_page_bytes();
        group.sample_size(10).measurement_time(MEASURED).throughput(Throughput::Bytes(bytes));
        group.bench_function("flush", |b| b.iter(|| bench.flush(&pages)));
        group.bench_function("plain_copy", |b| b.iter(|| bench.plain(&pages)));
        group.finish();
        let bench = std::cell::RefCell::new(&mut bench);
        let (flush, plain) = in_turn(|| bench.borrow().flush(&pages), || bench.borrow_mut().plain(&pages));
        println!("ratio: flush / plain copy, 1 page in {every} = {:.2} of its speed", plain / flush);
    }
}

criterion_group!(colo_flush, flushes);

fn main() {
    colo_flush();
    Criterion::default().configure_from_args().final_summary();
}
