//! Batches from one memory to another: equal afterwards, by whatever encoding; corrupted ones refused, and nothing written.

use std::cell::RefCell;
use std::sync::Arc;

use abi::boot::BootInfo;
use abi::packet::GuestOutput;
use abi::{Gpa, GuestRange, Tables, VaBits};
use proptest::prelude::*;
use workload::digest::node;

use super::*;
use crate::backend::Accelerator;
use crate::memory::GuestMemory;
use crate::migrate::wire::{Body, Description, Encoding, Geometry, Message, PageBatch};

const PAGES: u64 = 64;
const RAM: Gpa = Gpa::new(0x4000_0000);
const REGION: Gpa = Gpa::new(0x2000_0000);

/// The leaves in plain vectors, and digests by the definition.
struct Table {
    slots: RefCell<[Vec<u64>; SlotId::COUNT]>,
    salt: u64,
}

impl Table {
    fn new() -> Self {
        let pages = (PAGES * 16) as usize;
        Self { slots: RefCell::new([vec![ZERO_LEAF; pages], vec![ZERO_LEAF; pages]]), salt: 0x5a17 }
    }
}

impl LeafTable for Table {
    fn set(&self, slot: SlotId, first: u64, leaves: &[u64], pass: u32) -> u64 {
        let mut slots = self.slots.borrow_mut();
        let base = [RAM, REGION][slot.index()];
        let mut sum = 0_u64;
        for (leaf, page) in leaves.iter().zip(first..) {
            slots[slot.index()][page as usize] = *leaf;
            let gpa = base.checked_add(page * LEAF_PAGE as u64).unwrap();
            sum = sum.wrapping_add(node(*leaf, gpa, self.salt ^ u64::from(pass)));
        }
        sum
    }

    fn is_zero(&self, slot: SlotId, page: u64) -> bool {
        self.slots.borrow()[slot.index()][page as usize] == ZERO_LEAF
    }
}

fn description(page_bytes: u32) -> Description {
    let range = |base| GuestRange::new(base, PAGES * 65536).unwrap();
    Description {
        accelerator: Accelerator::Emulator,
        boot: BootInfo {
            tables: Tables::V8(VaBits::ALL[1]),
            vcpus: 1,
            flags: 0,
            region: range(REGION),
            ram: range(RAM),
            seed: 0,
            pattern: 0,
            params: [0; 8],
            heartbeat_us: 0,
            output: GuestOutput::Off,
            points: 0,
        },
        page_bytes,
        counter_hz: 1,
        track_dirty: false,
    }
}

fn memory() -> GuestMemory {
    let range = |base| GuestRange::new(base, PAGES * 65536).unwrap();
    GuestMemory::new(range(RAM), range(REGION), None).unwrap()
}

fn bytes(memory: &GuestMemory, slot: SlotId) -> Vec<u8> {
    let mut bytes = vec![0; (PAGES * 65536) as usize];
    memory.copy_from_slot(slot, 0, &mut bytes).unwrap();
    bytes
}

/// Two sides of a migration of `slot`.
struct Pair {
    geometry: Geometry,
    source: GuestMemory,
    destination: GuestMemory,
    sent: Table,
    received: Table,
    packer: Packer,
    unpacker: Unpacker,
}

impl Pair {
    fn new(page_bytes: u32, cache: Option<Arc<DeltaCache>>, zstd: bool) -> Self {
        let geometry = description(page_bytes).geometry();
        Self {
            geometry,
            source: memory(),
            destination: memory(),
            sent: Table::new(),
            received: Table::new(),
            packer: Packer::new(geometry, cache, zstd.then_some(1)).unwrap(),
            unpacker: Unpacker::new(geometry),
        }
    }

    /// Sends `pages` of `slot`, and returns the batches with their payloads.
    fn pass(&mut self, slot: SlotId, pass: u32, mut run: std::ops::Range<u64>) -> Vec<(PageBatch, Vec<u8>)> {
        let mut batches = Vec::new();
        self.packer.begin(slot, pass);
        while !run.is_empty() {
            self.packer.add(&self.source, &self.sent, &mut run).unwrap();
            if self.packer.is_full() {
                batches.extend(taken(&mut self.packer));
            }
        }
        batches.extend(taken(&mut self.packer));
        for (batch, payload) in &batches {
            let unpacked = self.unpacker.unpack(batch, payload, Some(&self.destination), &self.received).unwrap();
            unpacked.write(&self.destination).unwrap();
        }
        batches
    }

    fn all(&self) -> std::ops::Range<u64> {
        0..self.geometry.pages(SlotId::Region)
    }
}

fn taken(packer: &mut Packer) -> Option<(PageBatch, Vec<u8>)> {
    let packed = packer.take()?;
    let payload = packed.payload.to_vec();
    match packed.message {
        Message::Pages(batch) => Some((batch, payload)),
        _ => unreachable!("a packer makes pages"),
    }
}

#[test]
fn memory_is_equal_after_passes_of_every_encoding() {
    for (page_bytes, cached, zstd) in
        [(4096, false, false), (4096, true, false), (65536, true, true), (16384, false, true), (4096, true, true)]
    {
        let cache = cached.then(|| Arc::new(DeltaCache::new(64 << 20, page_bytes)));
        let mut pair = Pair::new(page_bytes, cache.clone(), zstd);
        let write = |memory: &GuestMemory, at: u64, byte: u8| {
            memory.copy_to_slot(SlotId::Region, at, &[byte; 100]).unwrap();
        };
        (0..PAGES * 65536).step_by(3 * 4096).for_each(|at| write(&pair.source, at + 17, at as u8 | 1));
        let all = pair.all();
        let first = pair.pass(SlotId::Region, 0, all.clone());
        assert!(bytes(&pair.source, SlotId::Region) == bytes(&pair.destination, SlotId::Region));
        assert!(first.iter().flat_map(|(batch, _)| &batch.runs).any(|run| run.encoding == Encoding::Whole));
        assert_eq!(first.iter().any(|(batch, _)| batch.body == Body::Zstd), zstd);
        for pass in 1..4 {
            // Pages that become zero, pages that change a little, pages that did not change at all.
            pair.source.copy_to_slot(SlotId::Region, 65536, &[0; 65536]).unwrap();
            (0..PAGES * 65536).step_by(9 * 4096).for_each(|at| write(&pair.source, at + 40, pass as u8));
            let sent = pair.pass(SlotId::Region, pass, all.clone());
            assert!(bytes(&pair.source, SlotId::Region) == bytes(&pair.destination, SlotId::Region));
            assert_eq!(*pair.sent.slots.borrow(), *pair.received.slots.borrow());
            let deltas = sent.iter().flat_map(|(batch, _)| &batch.runs);
            let deltas = deltas.filter(|run| matches!(run.encoding, Encoding::Delta { .. })).count();
            assert_eq!(deltas > 0, cached && pass > 1, "pass {pass} of {page_bytes}");
        }
        assert_eq!(cache.is_some_and(|cache| cache.stats().pages > 0), cached);
    }
}

#[test]
fn what_is_zero_on_both_sides_costs_nothing_and_stays_a_hole() {
    let mut pair = Pair::new(4096, None, false);
    let all = pair.all();
    pair.packer.begin(SlotId::Region, 0);
    pair.packer.add_zeroes(&pair.sent, all.clone());
    pair.packer.add(&pair.source, &pair.sent, &mut (3..7)).unwrap();
    assert!(pair.packer.is_empty() && pair.packer.take().is_none());
    assert_eq!(pair.packer.take_counts(), PageCounts { zero: all.end + 4, normal: 0 });
    assert_eq!(pair.packer.take_counts(), PageCounts::default());

    // In post-copy the guest may wait for it.
    pair.packer.enter_postcopy();
    pair.packer.add_zeroes(&pair.sent, all);
    let (batch, payload) = taken(&mut pair.packer).unwrap();
    assert_eq!((batch.runs.len(), payload.len()), (1, 0));
    let unpacked = pair.unpacker.unpack(&batch, &payload, None, &pair.received).unwrap();
    assert!(unpacked.runs().all(|(_, content)| content == Content::Zero));
    unpacked.write(&pair.destination).unwrap();
    assert!(pair.destination.data_extents(SlotId::Region, 0..PAGES * 65536).unwrap().is_empty());
}

#[test]
fn a_page_that_becomes_zero_is_cleared_at_the_destination() {
    let mut pair = Pair::new(16384, None, false);
    pair.source.copy_to_slot(SlotId::Ram, 3 * 16384 + 5000, &[1; 9000]).unwrap();
    pair.pass(SlotId::Ram, 0, 2..5);
    pair.source.copy_to_slot(SlotId::Ram, 3 * 16384 + 5000, &[0; 9000]).unwrap();
    let sent = pair.pass(SlotId::Ram, 1, 2..5);
    assert!(sent.iter().all(|(_, payload)| payload.is_empty()));
    assert!(bytes(&pair.destination, SlotId::Ram).iter().all(|byte| *byte == 0));
}

#[test]
fn a_batch_of_small_deltas_stands_for_no_more_than_one_of_whole_pages() {
    let mut pair = Pair::new(4096, Some(Arc::new(DeltaCache::new(64 << 20, 4096))), false);
    let all = pair.all();
    let count = |pair: &mut Pair, pass| {
        (0..PAGES * 16).for_each(|page| {
            pair.source.copy_to_slot(SlotId::Region, page * 4096, &[pass as u8]).unwrap();
        });
        pair.pass(SlotId::Region, pass, all.clone()).len()
    };
    assert_eq!(count(&mut pair, 1), count(&mut pair, 2));
}

#[test]
fn deltas_have_no_place_in_post_copy() {
    let mut pair = Pair::new(4096, Some(Arc::new(DeltaCache::new(1 << 20, 4096))), false);
    pair.source.copy_to_slot(SlotId::Region, 0, &[1]).unwrap();
    pair.pass(SlotId::Region, 1, 0..1);
    let (batch, payload) = pair.pass(SlotId::Region, 2, 0..1).remove(0);
    let refused = pair.unpacker.unpack(&batch, &payload, None, &pair.received);
    assert!(matches!(refused, Err(PageError::NoOldPage { slot: SlotId::Region, page: 0 })), "{refused:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_flipped_bit_of_a_payload_is_found_before_memory_changes(
        at in any::<prop::sample::Index>(), bit in 0..8_u32, zstd: bool, delta: bool,
    ) {
        let cache = delta.then(|| Arc::new(DeltaCache::new(1 << 20, 4096)));
        let mut pair = Pair::new(4096, cache, zstd);
        let text: Vec<u8> = (0..3 * 4096_u32).map(|at| ((at * at) >> 7) as u8).collect();
        pair.source.copy_to_slot(SlotId::Region, 4096, &text).unwrap();
        pair.pass(SlotId::Region, 1, 0..5);
        pair.source.copy_to_slot(SlotId::Region, 7000, b"changed").unwrap();
        let before = bytes(&pair.destination, SlotId::Region);
        let (batch, mut payload) = {
            let (source, sent) = (&pair.source, &pair.sent);
            pair.packer.begin(SlotId::Region, 2);
            pair.packer.add(source, sent, &mut (0..5)).unwrap();
            taken(&mut pair.packer).unwrap()
        };
        let at = at.index(payload.len());
        payload[at] ^= 1 << bit;
        // zstd's frames have bits that do not matter: then what comes out is what was sent.
        match pair.unpacker.unpack(&batch, &payload, Some(&pair.destination), &pair.received) {
            Ok(_) => prop_assert_eq!(batch.body, Body::Zstd),
            Err(_) => prop_assert!(before == bytes(&pair.destination, SlotId::Region)),
        }
    }
}
