//! The flush of a COLO checkpoint beside a plain copy of the same pages, in as many threads and between the same memories: others may
//! lie in pages of the host's that are faster or slower.
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
}

impl Bench {
    /// Memories without a zero page, all of it touched.
    fn new() -> Self {
        let ram = GuestRange::new(map::RAM_BASE, 1 << 20).expect("RAM does not wrap");
        let region = GuestRange::new(Gpa::new(0x8000_0000), REGION_BYTES).expect("the region does not wrap");
        let ram = GuestMemory::new(ram, region, None).expect("the host has the memory");
        let cache = RamCache::new(&ram, host_page_bytes(), 1).expect("the host has the memory");
        let bytes: Vec<u8> = (0..REGION_BYTES).map(|at| (at % 251) as u8 | 1).collect();
        for memory in [&ram, cache.memory()] {
            memory.copy_to_slot(SlotId::Region, 0, &bytes).expect("in the region");
        }
        Self { ram, cache }
    }

    fn flush(&self, pages: &DirtyPages) {
        self.cache.flush(&self.ram, pages).expect("the same shape");
    }

    /// Copies the same pages run by run, each thread those of its part of the memory.
    fn plain(&self, pages: &DirtyPages) {
        let pages = &pages[1];
        let threads = thread::available_parallelism().map_or(1, |count| count.get().min(8)) as u64;
        let share = pages.pages().div_ceil(threads);
        thread::scope(|scope| {
            for first in (0..pages.pages()).step_by(share as usize) {
                scope.spawn(move || {
                    let whole = |memory| GuestMemory::volatile_slice(memory, SlotId::Region, 0, REGION_BYTES);
                    let (from, to) = (whole(self.cache.memory()).expect("all"), whole(&self.ram).expect("all"));
                    for run in pages.runs().filter(|run| run.start < first + share && run.end > first) {
                        let (start, end) = (run.start.max(first), run.end.min(first + share));
                        let at = (start * pages.page_bytes()) as usize;
                        let len = ((end - start) * pages.page_bytes()) as usize;
                        let to = to.subslice(at, len).expect("inside the memory");
                        from.subslice(at, len).expect("inside the memory").copy_to_volatile_slice(to);
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
    let bench = Bench::new();
    for every in [1, 10] {
        let pages = pages(&bench, every);
        let mut group = c.benchmark_group(format!("colo/1_page_in_{every}"));
        let bytes = pages[1].count() * host_page_bytes();
        group.sample_size(10).measurement_time(MEASURED).throughput(Throughput::Bytes(bytes));
        group.bench_function("flush", |b| b.iter(|| bench.flush(&pages)));
        group.bench_function("plain_copy", |b| b.iter(|| bench.plain(&pages)));
        group.finish();
        let (flush, plain) = in_turn(|| bench.flush(&pages), || bench.plain(&pages));
        println!("ratio: flush / plain copy, 1 page in {every} = {:.2} of its speed", plain / flush);
    }
}

criterion_group!(colo_flush, flushes);

fn main() {
    colo_flush();
    Criterion::default().configure_from_args().final_summary();
}
