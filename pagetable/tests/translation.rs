//! What the mapper builds, the walker translates: every mapped address to its output with its permissions, every other
//! address to a fault at the level where the tree ends. The model is a list of ranges.

use abi::{Gpa, Granule, VaBits};
use pagetable::walker::{self, Fault, Registers, Walk};
use pagetable::{
    Attributes, Execute, HardwareUpdate, MapError, Mapper, MemoryType, PaSize, Sizes, TableMemory, Va, Write,
    block_sizes, tables_needed, tcr_el1,
};
use proptest::prelude::*;

const ARENA: u64 = 0x4000_0000;

/// Tables in a vector, as if it were RAM at [`ARENA`].
struct Arena {
    granule: Granule,
    words: Vec<u64>,
    limit_tables: u64,
}

impl Arena {
    fn new(granule: Granule) -> Self {
        Self { granule, words: Vec::new(), limit_tables: 4096 }
    }

    fn tables(&self) -> u64 {
        self.words.len() as u64 * 8 / self.granule.bytes()
    }

    fn word(&self, pa: u64) -> Option<u64> {
        self.words.get(usize::try_from(pa.checked_sub(ARENA)? / 8).ok()?).copied()
    }

    fn walk(&self, mapper: &Mapper, va: u64) -> Result<Walk, Fault> {
        let registers = Registers {
            ttbr0: mapper.ttbr0().raw(),
            ttbr1: mapper.ttbr1().raw(),
            tcr: tcr_el1(mapper.va_bits(), PaSize::Bits48, HardwareUpdate::None),
        };
        walker::walk(registers, va, |pa| self.word(pa))
    }
}

impl TableMemory for Arena {
    fn alloc_table(&mut self) -> Option<Gpa> {
        if self.tables() == self.limit_tables {
            return None;
        }
        let gpa = Gpa::new(ARENA + self.words.len() as u64 * 8);
        self.words.resize(self.words.len() + self.granule.bytes() as usize / 8, 0);
        Some(gpa)
    }

    fn read(&self, gpa: Gpa) -> u64 {
        self.word(gpa.raw()).expect("the mapper reads only tables it was given")
    }

    fn write(&mut self, gpa: Gpa, descriptor: u64) {
        self.words[(gpa.raw() - ARENA) as usize / 8] = descriptor;
    }
}

fn pair(granule: Granule, bits: u32) -> VaBits {
    VaBits::new(granule, bits).expect("a supported pair")
}

/// A mapping asked for, inside one half by construction.
#[derive(Clone, Copy, Debug)]
struct Request {
    va: u64,
    gpa: u64,
    len_bytes: u64,
    attributes: Attributes,
    sizes: Sizes,
}

impl Request {
    /// Whether any byte of `[from, to]` is mapped by this. Inclusive, since the high half ends at 2^64.
    fn touches(&self, from: u64, to: u64) -> bool {
        self.va <= to && from <= self.va + (self.len_bytes - 1)
    }
}

fn attributes() -> impl Strategy<Value = Attributes> {
    (
        prop_oneof![Just(MemoryType::Normal), Just(MemoryType::Device)],
        prop_oneof![Just(Write::No), Just(Write::Yes), Just(Write::Tracked)],
        prop_oneof![Just(Execute::No), Just(Execute::El1)],
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(memory, write, execute, global, accessed)| Attributes {
            memory,
            write,
            execute,
            global,
            accessed,
        })
}

/// Requests that crowd around a few places, so that they overlap, share tables and meet at block boundaries.
fn request(space: VaBits) -> impl Strategy<Value = Request> {
    let page = space.granule().bytes();
    let block = block_sizes(space.granule()).last().expect("each granule has a block size");
    let anchors = prop_oneof![
        Just(0),
        Just(block),
        Just(3 * block),
        Just(1_u64 << (space.bits() - 1)),
        Just((1_u64 << space.bits()) - 2 * block)
    ];
    let unit = prop_oneof![3 => Just(page), 1 => Just(block)];
    (any::<bool>(), anchors, unit, 0_u64..20, 1_u64..40, 0_u64..64, attributes(), any::<bool>()).prop_map(
        move |(high, anchor, unit, skip, count, gpa, attributes, blocks)| {
            // At most two blocks in block units: enough to meet each boundary, few enough to check every page.
            let count = if unit == page { count } else { 1 + count % 2 };
            let limit = 1_u64 << space.bits();
            let offset = (anchor + skip * unit).min(limit - unit);
            Request {
                va: offset | if high { u64::MAX << space.bits() } else { 0 },
                gpa: gpa * unit,
                len_bytes: (count * unit).min(limit - offset),
                attributes,
                sizes: if blocks { Sizes::Largest } else { Sizes::Pages },
            }
        },
    )
}

/// The level where the walk for an unmapped `va` ends: the first whose entry spans nothing that is mapped.
fn fault_level(space: VaBits, mapped: &[Request], va: u64) -> u32 {
    let (page_shift, bits) = (space.granule().shift(), space.bits());
    let starts: [(u32, u32); 4] = [(4, 3), (3, 2), (2, 1), (1, 0)]; // (levels, first level)
    let levels = (1..=4).find(|levels| page_shift + levels * (page_shift - 3) >= bits).expect("four levels suffice");
    let first = starts.iter().find(|(_, from)| 4 - from == levels).map_or(0, |&(_, from)| from);
    (first..3)
        .find(|level| {
            let span = 1_u64 << (page_shift + (3 - level) * (page_shift - 3));
            let start = va & !(span - 1);
            !mapped.iter().any(|request| request.touches(start, start + (span - 1)))
        })
        .unwrap_or(3)
}

fn check_mapped(walk: Walk, request: &Request, va: u64) -> Result<(), TestCaseError> {
    prop_assert_eq!(walk.pa, request.gpa + (va - request.va));
    let Attributes { memory, write, execute, global, accessed } = request.attributes;
    prop_assert_eq!(walk.attr_index, if memory == MemoryType::Device { 1 } else { 0 });
    prop_assert_eq!(walk.shareability, if memory == MemoryType::Device { 0 } else { 3 });
    prop_assert_eq!(walk.el1_write, write == Write::Yes);
    prop_assert_eq!(walk.dirty_bit_modifier, write == Write::Tracked);
    prop_assert_eq!(walk.el1_execute, execute == Execute::El1);
    prop_assert_eq!((walk.el0_read, walk.el0_execute), (false, false));
    prop_assert_eq!((walk.global, walk.access_flag), (global, accessed));
    Ok(())
}

fn check_space(space: VaBits, requests: &[Request], probes: &[u64]) -> Result<(), TestCaseError> {
    let page = space.granule().bytes();
    let mut arena = Arena::new(space.granule());
    let mapper = Mapper::new(space, &mut arena).expect("the arena is large enough");
    let mut mapped: Vec<Request> = Vec::new();
    for request in requests {
        let before = arena.tables();
        let result = mapper.map(
            &mut arena,
            Va::new(request.va),
            Gpa::new(request.gpa),
            request.len_bytes,
            request.attributes,
            request.sizes,
        );
        let first = mapped
            .iter()
            .filter(|other| other.touches(request.va, request.va + (request.len_bytes - 1)))
            .map(|other| other.va.max(request.va))
            .min();
        match first {
            None => {
                prop_assert_eq!(result, Ok(()));
                let estimate =
                    tables_needed(space, Va::new(request.va), Gpa::new(request.gpa), request.len_bytes, request.sizes);
                prop_assert!(arena.tables() - before <= estimate);
                prop_assert!(!mapped.is_empty() || arena.tables() - before == estimate);
                mapped.push(*request);
            }
            Some(va) => {
                // The address named is the start of an entry; a block's entry starts where the block does.
                let Err(MapError::Overlap { va: named }) = result else {
                    return Err(TestCaseError::fail(format!("{result:?} instead of an overlap at {va:#x}")));
                };
                prop_assert_eq!(named, Va::new(va));
                prop_assert_eq!(arena.tables(), before, "a refused mapping took a table");
            }
        }
    }
    let check = |va: u64| -> Result<(), TestCaseError> {
        match (arena.walk(&mapper, va), mapped.iter().find(|request| request.touches(va, va))) {
            (Ok(walk), Some(request)) => check_mapped(walk, request, va),
            (Err(fault), None) => {
                let top = va >> space.bits();
                let level = if top == 0 || top == u64::MAX >> space.bits() {
                    fault_level(space, &mapped, va)
                } else {
                    0 // in neither half
                };
                prop_assert_eq!(fault, Fault::Translation { level });
                Ok(())
            }
            (walk, request) => Err(TestCaseError::fail(format!("{va:#x}: {walk:?} for {request:?}"))),
        }
    };
    for request in &mapped {
        for index in 0..request.len_bytes / page {
            check(request.va + index * page + (index * 8 + 3) % page)?;
        }
        let last = request.va + (request.len_bytes - 1);
        for va in [request.va, last, request.va.wrapping_sub(1), last.wrapping_add(1)] {
            check(va)?;
        }
    }
    for &probe in probes {
        let low = probe & !(u64::MAX << space.bits());
        check(probe)?;
        check(low)?;
        check(low | (u64::MAX << space.bits()))?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_walker_finds_what_was_mapped_and_nothing_else(
        (space, requests, probes) in prop::sample::select(VaBits::ALL.to_vec()).prop_flat_map(|space| {
            (Just(space), prop::collection::vec(request(space), 1..7), prop::collection::vec(any::<u64>(), 32))
        })
    ) {
        check_space(space, &requests, &probes)?;
    }
}

#[test]
fn both_ends_of_both_halves_translate_in_every_space() {
    for space in VaBits::ALL {
        let page = space.granule().bytes();
        let top = (1_u64 << space.bits()) - page;
        let request = |va, gpa, attributes| Request { va, gpa, len_bytes: page, attributes, sizes: Sizes::Largest };
        let high = Va::high_base(space).raw();
        let requests = [
            request(0, 0x8000_0000, Attributes::TEXT),
            request(top, (1 << 48) - page, Attributes::CONSTANTS),
            request(high, 0x9000_0000, Attributes::DATA),
            request(high + top, 0, Attributes::DEVICE),
        ];
        check_space(space, &requests, &[high - 1, top + page, 1 << 63]).unwrap();
    }
}

#[test]
fn blocks_are_used_where_they_fit_and_pages_at_the_edges() {
    for (space, block) in [
        (pair(Granule::K4, 48), 2 << 20),
        (pair(Granule::K4, 39), 1 << 30),
        (pair(Granule::K16, 47), 32 << 20),
        (pair(Granule::K64, 42), 512 << 20),
    ] {
        let page = space.granule().bytes();
        let mut arena = Arena::new(space.granule());
        let mapper = Mapper::new(space, &mut arena).unwrap();
        let (va, gpa) = (8 * block - page, 2 * block - page);
        let map = |arena: &mut Arena, va, gpa| {
            mapper.map(arena, Va::new(va), Gpa::new(gpa), block + 2 * page, Attributes::DATA, Sizes::Largest)
        };
        map(&mut arena, va, gpa).unwrap();
        let level = |arena: &Arena, va| arena.walk(&mapper, va).unwrap().level;
        let block_level = if block == 1 << 30 { 1 } else { 2 };
        assert_eq!(level(&arena, va), 3, "{space}");
        assert_eq!(level(&arena, va + page), block_level, "{space}");
        assert_eq!(level(&arena, va + page + block), 3, "{space}");
        // An output that is not aligned like the input gives pages (or smaller blocks) throughout.
        map(&mut arena, 16 * block, 2 * block + page).unwrap();
        assert_eq!(level(&arena, 16 * block + page), 3, "{space}");
    }
}

#[test]
fn bad_ranges_are_refused_with_their_address() {
    let space = pair(Granule::K16, 47);
    let mut arena = Arena::new(space.granule());
    let mapper = Mapper::new(space, &mut arena).unwrap();
    let mut map = |va, gpa, len| {
        mapper.map(&mut arena, Va::new(va), Gpa::new(gpa), len, Attributes::DATA, Sizes::Pages).unwrap_err()
    };
    let page = 0x4000;
    assert_eq!(map(page, 0, 0), MapError::Empty { va: Va::new(page) });
    for (va, gpa, len) in [(0x1000, 0, page), (0, 0x1000, page), (0, 0, 0x1000)] {
        let expected = MapError::Misaligned { va: Va::new(va), gpa: Gpa::new(gpa), len_bytes: len, align_bytes: page };
        assert_eq!(map(va, gpa, len), expected);
    }
    for (va, len) in
        [(1 << 47, page), ((1 << 47) - page, 2 * page), (u64::MAX << 48, page), (0_u64.wrapping_sub(page), 2 * page)]
    {
        assert_eq!(map(va, 0, len), MapError::OutsideVirtual { va: Va::new(va), len_bytes: len, bits: 47 });
    }
    let high = u64::MAX << 47;
    assert_eq!(map(high, 0, u64::MAX), MapError::OutsideVirtual { va: Va::new(high), len_bytes: u64::MAX, bits: 47 });
    for gpa in [(1 << 48) - page, 0_u64.wrapping_sub(page)] {
        let expected = MapError::OutsidePhysical { gpa: Gpa::new(gpa), len_bytes: 2 * page, bits: 48 };
        assert_eq!(map(0, gpa, 2 * page), expected);
    }
    assert_eq!(arena.tables(), 2);
}

#[test]
fn running_out_of_tables_names_the_address_and_keeps_what_is_below() {
    let space = pair(Granule::K4, 39);
    let mut arena = Arena { limit_tables: 4, ..Arena::new(space.granule()) };
    let mapper = Mapper::new(space, &mut arena).unwrap();
    let result = mapper.map(&mut arena, Va::new(0), Gpa::new(0), 4 << 20, Attributes::DATA, Sizes::Pages).unwrap_err();
    assert_eq!(result, MapError::OutOfTables { va: Va::new(2 << 20) });
    assert!(arena.walk(&mapper, (2 << 20) - 1).is_ok());
    assert_eq!(arena.walk(&mapper, 2 << 20), Err(Fault::Translation { level: 2 }));
    assert!(matches!(
        Mapper::new(space, &mut Arena { limit_tables: 1, ..Arena::new(Granule::K4) }),
        Err(MapError::OutOfTables { .. })
    ));
}

#[test]
fn a_hooked_table_translates_its_span_and_refuses_overlaps() {
    for space in VaBits::ALL {
        let granule = space.granule();
        let page = granule.bytes();
        let span = page * (page / 8);
        let mut arena = Arena::new(granule);
        let mapper = Mapper::new(space, &mut arena).unwrap();
        let table = arena.alloc_table().unwrap();
        let va = Va::new(Va::high_base(space).raw() + 4 * span);
        mapper.hook_table(&mut arena, va, table).unwrap();
        assert_eq!(arena.walk(&mapper, va.raw()), Err(Fault::Translation { level: 3 }), "{space}");
        // A page by hand: normal, DBM, read-only, AF clear.
        arena.write(Gpa::new(table.raw() + 5 * 8), 0x0068_0000_7654_0383);
        let walk = arena.walk(&mapper, va.raw() + 5 * page + 9).unwrap();
        assert_eq!((walk.pa, walk.el1_write, walk.dirty_bit_modifier), (0x7654_0009, false, true), "{space}");
        assert_eq!(mapper.hook_table(&mut arena, va, table), Err(MapError::Overlap { va }), "{space}");
        let fifth = Va::new(va.raw() + 5 * page);
        let result = mapper.map(&mut arena, fifth, Gpa::new(0), page, Attributes::DATA, Sizes::Pages);
        assert_eq!(result, Err(MapError::Overlap { va: fifth }), "{space}");
        assert!(matches!(
            mapper.hook_table(&mut arena, Va::new(va.raw() + page), table),
            Err(MapError::Misaligned { .. })
        ));
    }
}

#[test]
fn the_walker_reports_addresses_beyond_the_configured_size() {
    let space = pair(Granule::K4, 48);
    let mut arena = Arena::new(space.granule());
    let mapper = Mapper::new(space, &mut arena).unwrap();
    mapper.map(&mut arena, Va::new(0), Gpa::new(1 << 36), 4096, Attributes::DATA, Sizes::Pages).unwrap();
    let walk = |pa_size| {
        let registers = Registers {
            ttbr0: mapper.ttbr0().raw(),
            ttbr1: mapper.ttbr1().raw(),
            tcr: tcr_el1(space, pa_size, HardwareUpdate::None),
        };
        walker::walk(registers, 0, |pa| arena.word(pa))
    };
    assert_eq!(walk(PaSize::Bits36), Err(Fault::AddressSize { level: 3 }));
    assert!(walk(PaSize::Bits40).is_ok());
}

#[test]
fn the_walker_obeys_limits_that_tables_put_on_what_is_below() {
    let space = pair(Granule::K64, 42);
    let mut arena = Arena::new(space.granule());
    let mapper = Mapper::new(space, &mut arena).unwrap();
    let writable_code = Attributes { execute: Execute::El1, ..Attributes::DATA };
    mapper.map(&mut arena, Va::new(0), Gpa::new(0), 0x1_0000, writable_code, Sizes::Pages).unwrap();
    let root = mapper.ttbr0();
    let plain = arena.walk(&mapper, 0).unwrap();
    assert!(plain.el1_write && plain.el1_execute);
    let link = arena.read(root);
    arena.write(root, link | 1 << 62 | 1 << 59); // APTable[1], PXNTable
    let limited = arena.walk(&mapper, 0).unwrap();
    assert!(!limited.el1_write && !limited.el1_execute);
}
