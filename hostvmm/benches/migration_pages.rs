//! What a migration does to each page: looking for zeroes, hashing, deltas, packing and unpacking; each beside what bounds it.
//!
//! Figures compare only within one run, so the ratios that matter are measured once more, interleaved, and printed at the end.

mod in_turn;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use abi::boot::BootInfo;
use abi::packet::GuestOutput;
use abi::{Gpa, GuestRange, Tables, VaBits, map};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use hostvmm::backend::Accelerator;
use hostvmm::memory::{GuestMemory, SlotId};
use hostvmm::migrate::pages::{DeltaCache, LEAF_PAGE, LeafTable, Packer, Unpacker, encode, is_zero, leaf_of};
use hostvmm::migrate::wire::{Description, Message, PageBatch};
use workload::digest::node;

use in_turn::in_turn;

/// Larger than a last-level cache.
const REGION_BYTES: u64 = 128 << 20;
const REGION_BASE: Gpa = Gpa::new(0x8000_0000);
const PAGES: u64 = REGION_BYTES / LEAF_PAGE as u64;

const MEASURED: Duration = Duration::from_secs(3);

/// The leaves of the region.
struct Table(Vec<AtomicU64>);

impl Table {
    fn new() -> Self {
        Self((0..PAGES).map(|_| AtomicU64::new(0)).collect())
    }
}

impl LeafTable for Table {
    fn set(&self, _slot: SlotId, first: u64, leaves: &[u64], pass: u32) -> u64 {
        leaves.iter().zip(first..).fold(0, |sum: u64, (leaf, page)| {
            self.0[page as usize].store(*leaf, Ordering::Relaxed);
            let gpa = REGION_BASE.checked_add(page * LEAF_PAGE as u64).expect("the region does not wrap");
            sum.wrapping_add(node(*leaf, gpa, pass.into()))
        })
    }

    fn is_zero(&self, _slot: SlotId, page: u64) -> bool {
        self.0[page as usize].load(Ordering::Relaxed) == 0
    }
}

fn description() -> Description {
    Description {
        accelerator: Accelerator::Emulator,
        boot: BootInfo {
            tables: Tables::V8(VaBits::ALL[1]),
            vcpus: 1,
            flags: 0,
            region: GuestRange::new(REGION_BASE, REGION_BYTES).expect("the region does not wrap"),
            ram: GuestRange::new(map::RAM_BASE, 1 << 20).expect("RAM does not wrap"),
            seed: 0,
            pattern: 0,
            params: [0; 8],
            heartbeat_us: 0,
            output: GuestOutput::Off,
            points: 0,
        },
        page_bytes: LEAF_PAGE as u32,
        counter_hz: 1,
        track_dirty: false,
    }
}

/// A region without a zero page, its content as the text of a page and its number.
fn memory() -> GuestMemory {
    let boot = description().boot;
    let memory = GuestMemory::new(boot.ram, boot.region, None).expect("the host has the memory");
    let mut page: Vec<u8> = (0..LEAF_PAGE).map(|at| (at * 7 + 1) as u8).collect();
    for number in 0..PAGES {
        page[..8].copy_from_slice(&number.to_le_bytes());
        memory.copy_to_slot(SlotId::Region, number * LEAF_PAGE as u64, &page).expect("in the region");
    }
    memory
}

fn looking(c: &mut Criterion) {
    let zeroes = vec![0_u8; REGION_BYTES as usize];
    let mut bytes = zeroes.clone();
    bytes.iter_mut().zip(0_u32..).for_each(|(byte, at)| *byte = (at % 251) as u8 | 1);
    let all_zero = || zeroes.chunks(LEAF_PAGE).all(|page| is_zero(black_box(page)));
    let leaves = || bytes.chunks(LEAF_PAGE).fold(0, |sum: u64, page| sum.wrapping_add(leaf_of(page)));
    let hashes = || bytes.chunks(LEAF_PAGE).fold(0, |sum: u64, page| sum.wrapping_add(workload::digest::leaf(page)));
    let read = || zeroes.as_chunks().0.iter().fold(0, |sum, word| sum | u64::from_ne_bytes(*word));
    let mut group = c.benchmark_group("page");
    group.sample_size(10).measurement_time(MEASURED).throughput(Throughput::Bytes(REGION_BYTES));
    group.bench_function("memory_read", |b| b.iter(read));
    group.bench_function("is_zero", |b| b.iter(all_zero));
    group.bench_function("leaf_of", |b| b.iter(leaves));
    group.finish();
    let (zero, memory) = in_turn(all_zero, read);
    println!("ratio: looking for zeroes / reading memory = {:.2} of its speed", memory / zero);
    let (leaf, hash) = in_turn(leaves, hashes);
    println!("ratio: leaf with its look for zeroes / hash alone = {:.2} of its speed", hash / leaf);
}

fn deltas(c: &mut Criterion) {
    let old: Vec<u8> = (0..LEAF_PAGE).map(|at| (at * 7 + 1) as u8).collect();
    let mut group = c.benchmark_group("delta");
    group.throughput(Throughput::Bytes(LEAF_PAGE as u64));
    let mut out = Vec::new();
    for words in [1, 32, 256] {
        let mut new = old.clone();
        (0..words).for_each(|word| new[word * (LEAF_PAGE / words)] ^= 0xff);
        group.bench_with_input(BenchmarkId::new("encode", words), &new, |b, new| {
            b.iter(|| encode(&old, black_box(new), LEAF_PAGE - 1, &mut out));
        });
    }
    group.finish();
}

/// Packs all of the region; each batch goes to `sink`.
fn pack(packer: &mut Packer, memory: &GuestMemory, table: &Table, pass: u32, mut sink: impl FnMut(PageBatch, &[u8])) {
    packer.begin(SlotId::Region, pass);
    let mut pages = 0..PAGES;
    while !pages.is_empty() {
        packer.add(memory, table, &mut pages).expect("the region has the pages");
        if let Some(packed) = packer.take()
            && let Message::Pages(batch) = packed.message
        {
            sink(batch, packed.payload);
        }
    }
}

fn batches(c: &mut Criterion) {
    let (memory, sent, received) = (memory(), Table::new(), Table::new());
    let destination = memory_like(&memory);
    let geometry = description().geometry();
    let packer = |cache: Option<Arc<DeltaCache>>, zstd| Packer::new(geometry, cache, zstd).expect("zstd is there");
    let (mut plain, mut squeezing) = (packer(None, None), packer(None, Some(1)));
    let mut different = packer(Some(Arc::new(DeltaCache::new(2 * REGION_BYTES, LEAF_PAGE as u32))), None);
    let mut unpacker = Unpacker::new(geometry);
    let mut copied = vec![0; 256 << 10];
    let mut copy = || {
        for offset in (0..REGION_BYTES).step_by(copied.len()) {
            memory.copy_from_slot(SlotId::Region, offset, &mut copied).expect("in the region");
        }
    };
    pack(&mut different, &memory, &sent, 1, |_, _| ());
    let mut group = c.benchmark_group("batch");
    group.sample_size(10).measurement_time(MEASURED).throughput(Throughput::Bytes(REGION_BYTES));
    group.bench_function("copy", |b| b.iter(&mut copy));
    group.bench_function("pack", |b| b.iter(|| pack(&mut plain, &memory, &sent, 0, |_, _| ())));
    group.bench_function("pack_unchanged_deltas", |b| b.iter(|| pack(&mut different, &memory, &sent, 2, |_, _| ())));
    group.bench_function("pack_zstd", |b| b.iter(|| pack(&mut squeezing, &memory, &sent, 0, |_, _| ())));
    let mut round = || {
        pack(&mut plain, &memory, &sent, 0, |batch, payload| {
            let unpacked =
                unpacker.unpack(&batch, payload, Some(&destination), &received).expect("it is what was sent");
            unpacked.write(&destination).expect("the same region");
        });
    };
    group.bench_function("pack_unpack_write", |b| b.iter(&mut round));
    group.finish();
    let (packed, copied) = in_turn(|| pack(&mut plain, &memory, &sent, 0, |_, _| ()), copy);
    println!("ratio: packing (copy, look, hash) / copying alone = {:.2} of its speed", copied / packed);
}

/// Another machine's memory.
fn memory_like(memory: &GuestMemory) -> GuestMemory {
    let [ram, region] = SlotId::ALL.map(|slot| memory.slot(slot).range());
    GuestMemory::new(ram, region, None).expect("the host has the memory")
}

criterion_group!(migration_pages, looking, deltas, batches);

fn main() {
    migration_pages();
    Criterion::default().configure_from_args().final_summary();
}
