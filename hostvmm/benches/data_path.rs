//! The data path: copying dirty runs, digesting, harvesting a clean log, `sum -r`; each beside what it is to be compared with.
//!
//! Figures compare only within one run, so the ratios that matter are measured once more, interleaved, and printed at the end.

mod in_turn;

use std::hint::black_box;
use std::time::Duration;

use abi::{Gpa, GuestRange, map};
use criterion::{Criterion, Throughput, criterion_group};
use emulator::dirty::DirtyLog;
use hostvmm::dirty::PageBitmap;
use hostvmm::memory::{GuestMemory, SlotId};
use hostvmm::pass::{CopyTarget, PageSource as _, SlotView, Threads, copy_dirty, region_digest};
use hostvmm::replicate::SumR;
use twox_hash::XxHash3_64;
use workload::digest::RegionDigest;

use in_turn::in_turn;

/// Larger than a last-level cache.
const REGION_BYTES: u64 = 256 << 20;
const PAGE: usize = 4096;

/// For what takes long; ten samples are enough of it.
const MEASURED: Duration = Duration::from_secs(3);

/// A region without a zero page, a bitmap of it with runs of eight pages in ten, and a destination.
struct Rig {
    memory: GuestMemory,
    dirty: PageBitmap,
    target: CopyTarget,
}

fn rig() -> Rig {
    let ram = GuestRange::new(map::RAM_BASE, 1 << 20).expect("RAM does not wrap");
    // Above RAM: the region of the benchmark does not fit below it.
    let region = GuestRange::new(Gpa::new(0x8000_0000), REGION_BYTES).expect("the region does not wrap");
    let memory = GuestMemory::new(ram, region, None).expect("the host has the memory");
    let page: Vec<u8> = (0..PAGE).map(|i| (i * 7 + 1) as u8).collect();
    for offset in (0..REGION_BYTES).step_by(PAGE) {
        let gpa = region.start().checked_add(offset).expect("the region does not wrap");
        memory.write(gpa, &page).expect("in the region");
    }
    let mut dirty = PageBitmap::covering(REGION_BYTES, PAGE as u64);
    (0..dirty.pages()).filter(|page| page % 10 < 8).for_each(|page| dirty.set(page));
    Rig { memory, dirty, target: CopyTarget::anonymous(REGION_BYTES).expect("the host has the memory") }
}

/// The same runs as plain copies between two slices.
fn plain_copy(dirty: &PageBitmap, source: &[u8], target: &mut [u8]) {
    for run in dirty.runs() {
        let bytes = run.start as usize * PAGE..run.end as usize * PAGE;
        target[bytes.clone()].copy_from_slice(&source[bytes]);
    }
}

fn copying(c: &mut Criterion) {
    let rig = rig();
    let one = Threads::new(1);
    let source = vec![0x5a; REGION_BYTES as usize];
    let mut plain = vec![0_u8; REGION_BYTES as usize];
    let copy = |threads| copy_dirty(&rig.memory, SlotId::Region, &rig.dirty, &rig.target, threads).expect("it fits");
    let mut group = c.benchmark_group("copy");
    group.sample_size(10).measurement_time(MEASURED).throughput(Throughput::Bytes(rig.dirty.count() * PAGE as u64));
    group.bench_function("plain", |b| b.iter(|| plain_copy(&rig.dirty, &source, black_box(&mut plain))));
    group.bench_function("runs_one_thread", |b| b.iter(|| copy(one)));
    group.bench_function("runs_all_threads", |b| b.iter(|| copy(Threads::of_host())));
    group.finish();
    let (ours, theirs) = in_turn(|| copy(one), || plain_copy(&rig.dirty, &source, black_box(&mut plain)));
    println!("ratio: copy / plain copy = {:.2} of its speed", theirs / ours);
}

fn digesting(c: &mut Criterion) {
    let rig = rig();
    let view = SlotView::new(&rig.memory, SlotId::Region);
    let base = Gpa::new(0x8000_0000);
    let mut bytes = vec![0; REGION_BYTES as usize];
    view.read(0, &mut bytes);
    let ours = |threads| region_digest(&view, base, 1, threads).expect("the slot can be searched");
    let crates = || bytes.chunks(PAGE).fold(0_u64, |sum, page| sum.wrapping_add(XxHash3_64::oneshot(page)));
    let digests = || {
        let mut digest = RegionDigest::new(1);
        for (page, at) in bytes.chunks(PAGE).zip((0..).step_by(PAGE)) {
            digest.add_page(base.checked_add(at).expect("the region does not wrap"), page);
        }
        digest.value()
    };
    let read = || bytes.as_chunks().0.iter().fold(0, |sum, word| sum ^ u64::from_ne_bytes(*word));
    let mut group = c.benchmark_group("digest");
    group.sample_size(10).measurement_time(MEASURED).throughput(Throughput::Bytes(REGION_BYTES));
    group.bench_function("memory_read", |b| b.iter(read));
    group.bench_function("crate_per_page", |b| b.iter(crates));
    group.bench_function("per_page", |b| b.iter(digests));
    group.bench_function("region_one_thread", |b| b.iter(|| ours(Threads::new(1))));
    group.bench_function("region_all_threads", |b| b.iter(|| ours(Threads::of_host())));
    group.finish();
    let (page, hash) = in_turn(digests, crates);
    println!("ratio: digest / hash crate = {:.2} of its speed", hash / page);
    let (region, hash) = in_turn(|| ours(Threads::new(1)), crates);
    println!("ratio: digest of a memslot, one thread / hash crate = {:.2} of its speed", hash / region);
    let (region, memory) = in_turn(|| ours(Threads::of_host()), read);
    println!("ratio: digest of a memslot, all threads / reading memory = {:.2} of its speed", memory / region);
}

fn harvesting(c: &mut Criterion) {
    const RUN_BYTES: u64 = 409_600 * 4096;
    let log = DirtyLog::new(12, [(Gpa::new(0x8000_0000), RUN_BYTES)]).expect("whole pages");
    log.start();
    let mut words = vec![0; log.words(0).expect("there is one slot")];
    let mut group = c.benchmark_group("harvest");
    group
        .bench_function("clean_1600_mib", |b| b.iter(|| log.harvest(0, black_box(&mut words)).expect("it is started")));
    group.finish();
}

fn summing(c: &mut Criterion) {
    let bytes = vec![0x5a; 8 << 20];
    let mut group = c.benchmark_group("sum_r");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("region_8_mib", |b| b.iter(|| SumR::of_bytes(black_box(&bytes))));
    group.finish();
}

criterion_group!(data_path, copying, digesting, harvesting, summing);

fn main() {
    data_path();
    Criterion::default().configure_from_args().final_summary();
}
