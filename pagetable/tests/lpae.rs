//! What the LPAE mapper builds, its walker translates: every mapped address to its output with its permissions, every
//! other address to a fault at the level where the tree ends. The model is a list of ranges.

mod armv7;

use abi::Gpa;
use pagetable::lpae::walker::{self, Fault, Registers, Walk};
use pagetable::lpae::{Mapper, ttbcr};
use pagetable::{Attributes, Execute, MapError, MemoryType, Sizes, TableMemory, Va, Write};
use proptest::prelude::*;

use crate::armv7::{Request, attributes};

const ARENA: u64 = 0x4000_0000;
const PAGE: u64 = 0x1000;
const SPACE: u64 = 1 << 32;
const BLOCK: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

/// Tables in a vector, as if it were RAM at [`ARENA`].
#[derive(Default)]
struct Arena {
    words: Vec<u64>,
}

impl Arena {
    fn word(&self, pa: u64) -> Option<u64> {
        self.words.get(usize::try_from(pa.checked_sub(ARENA)? / 8).ok()?).copied()
    }

    fn walk(&self, mapper: &Mapper, va: u64) -> Result<Walk, Fault> {
        walker::walk(registers(mapper), u32::try_from(va).expect("a 32-bit address"), |pa| self.word(pa))
    }
}

fn registers(mapper: &Mapper) -> Registers {
    Registers { ttbr0: mapper.ttbr0().raw(), ttbr1: 0, ttbcr: ttbcr(), sctlr: 0 }
}

impl TableMemory for Arena {
    fn alloc_table(&mut self) -> Option<Gpa> {
        let gpa = Gpa::new(ARENA + self.words.len() as u64 * 8);
        self.words.resize(self.words.len() + 512, 0);
        Some(gpa)
    }

    fn read(&self, gpa: Gpa) -> u64 {
        self.word(gpa.raw()).expect("the mapper reads only tables it was given")
    }

    fn write(&mut self, gpa: Gpa, descriptor: u64) {
        self.words[(gpa.raw() - ARENA) as usize / 8] = descriptor;
    }
}

/// Requests that crowd around a few places, so that they overlap, share tables and meet at block boundaries.
fn request() -> impl Strategy<Value = Request> {
    let anchors = prop_oneof![Just(0), Just(BLOCK), Just(GIB - BLOCK), Just(3 * GIB), Just(SPACE - 2 * BLOCK)];
    let unit = prop_oneof![4 => Just(PAGE), 2 => Just(BLOCK)];
    (anchors, unit, 0_u64..20, 1_u64..40, 0_u64..64, attributes(), any::<bool>()).prop_map(
        |(anchor, unit, skip, count, gpa, attributes, blocks)| {
            let count = if unit == PAGE { count } else { 1 + count % 2 };
            let va = (anchor + skip * unit).min(SPACE - unit);
            Request {
                va,
                gpa: (1 << 36) + gpa * unit,
                len_bytes: (count * unit).min(SPACE - va),
                attributes,
                sizes: if blocks { Sizes::Largest } else { Sizes::Pages },
            }
        },
    )
}

fn check_mapped(walk: Walk, request: &Request, va: u64) -> Result<(), TestCaseError> {
    prop_assert_eq!(walk.pa, request.gpa + (va - request.va));
    let Attributes { memory, write, execute, global, accessed } = request.attributes;
    prop_assert_eq!(walk.attr_index, if memory == MemoryType::Device { 1 } else { 0 });
    prop_assert_eq!(walk.shareability, if memory == MemoryType::Device { 0 } else { 3 });
    prop_assert_eq!((walk.pl1_write, walk.pl1_execute), (write == Write::Yes, execute == Execute::El1));
    prop_assert_eq!((walk.pl0_read, walk.pl0_execute), (false, false));
    prop_assert_eq!((walk.global, walk.access_flag), (global, accessed));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_walker_finds_what_was_mapped_and_nothing_else(
        requests in prop::collection::vec(request(), 1..7),
        probes in prop::collection::vec(any::<u32>(), 32),
    ) {
        let mut arena = Arena::default();
        let mapper = Mapper::new(&mut arena).expect("the arena is large enough");
        let mut mapped: Vec<Request> = Vec::new();
        for request in &requests {
            let before = arena.words.len();
            let Request { va, gpa, len_bytes, attributes, sizes } = *request;
            let result = mapper.map(&mut arena, Va::new(va), Gpa::new(gpa), len_bytes, attributes, sizes);
            let overlap = mapped.iter().filter(|other| other.touches(va, va + len_bytes)).map(|other| other.va.max(va)).min();
            match overlap {
                None => {
                    prop_assert_eq!(result, Ok(()));
                    mapped.push(*request);
                }
                Some(at) => {
                    prop_assert_eq!(result, Err(MapError::Overlap { va: Va::new(at) }));
                    prop_assert_eq!(arena.words.len(), before, "a refused mapping took a table");
                }
            }
        }
        let edges = mapped.iter().flat_map(|request| {
            let end = request.va + request.len_bytes;
            let pages = (0..request.len_bytes / PAGE).map(|index| request.va + index * PAGE + (index * 8 + 3) % PAGE);
            pages.chain([request.va, end - 1, request.va.wrapping_sub(1) % SPACE, end % SPACE])
        });
        for va in edges.chain(probes.iter().map(|&probe| u64::from(probe))) {
            match (arena.walk(&mapper, va), mapped.iter().find(|request| request.touches(va, va + 1))) {
                (Ok(walk), Some(request)) => check_mapped(walk, request, va)?,
                (Err(fault), None) => {
                    let spans = [(1, GIB), (2, BLOCK)];
                    let empty = spans.into_iter().find(|(_, span)| {
                        let start = va & !(span - 1);
                        !mapped.iter().any(|request| request.touches(start, start + span))
                    });
                    prop_assert_eq!(fault, Fault::Translation { level: empty.map_or(3, |(level, _)| level) });
                }
                (walk, request) => prop_assert!(false, "{:#x}: {:?} for {:?}", va, walk, request),
            }
        }
    }
}

#[test]
fn blocks_are_used_where_they_fit_and_pages_at_the_edges() {
    for (block, block_level) in [(BLOCK, 2), (GIB, 1)] {
        let mut arena = Arena::default();
        let mapper = Mapper::new(&mut arena).unwrap();
        let va = block - PAGE;
        let map = mapper.map(
            &mut arena,
            Va::new(va),
            Gpa::new(3 * block - PAGE),
            block + 2 * PAGE,
            Attributes::DATA,
            Sizes::Largest,
        );
        map.unwrap();
        let level = |va| arena.walk(&mapper, va).unwrap().level;
        assert_eq!((level(va), level(va + PAGE), level(va + PAGE + block)), (3, block_level, 3));
    }
}

#[test]
fn bad_ranges_are_refused_with_their_address() {
    let mut arena = Arena::default();
    let mapper = Mapper::new(&mut arena).unwrap();
    let mut map = |va, gpa, len, attributes| {
        mapper.map(&mut arena, Va::new(va), Gpa::new(gpa), len, attributes, Sizes::Pages).unwrap_err()
    };
    assert_eq!(map(PAGE, 0, 0, Attributes::DATA), MapError::Empty { va: Va::new(PAGE) });
    let expected = MapError::Misaligned { va: Va::new(1), gpa: Gpa::new(0), len_bytes: PAGE, align_bytes: PAGE };
    assert_eq!(map(1, 0, PAGE, Attributes::DATA), expected);
    let expected = MapError::OutsideVirtual { va: Va::new(SPACE - PAGE), len_bytes: 2 * PAGE, bits: 32 };
    assert_eq!(map(SPACE - PAGE, 0, 2 * PAGE, Attributes::DATA), expected);
    let expected = MapError::OutsidePhysical { gpa: Gpa::new((1 << 40) - PAGE), len_bytes: 2 * PAGE, bits: 40 };
    assert_eq!(map(0, (1 << 40) - PAGE, 2 * PAGE, Attributes::DATA), expected);
    let tracked = Attributes { write: Write::Tracked, ..Attributes::DATA };
    assert_eq!(map(0, 0, PAGE, tracked), MapError::NoDirtyState { va: Va::new(0) });
}

#[test]
fn the_walker_reads_what_the_mapper_never_writes() {
    let mut arena = Arena::default();
    let mapper = Mapper::new(&mut arena).unwrap();
    let writable_code = Attributes { execute: Execute::El1, ..Attributes::DATA };
    mapper.map(&mut arena, Va::new(0), Gpa::new(0x5000), PAGE, writable_code, Sizes::Pages).unwrap();
    let plain = arena.walk(&mapper, 4).unwrap();
    assert_eq!((plain.pa, plain.pl1_write, plain.pl1_execute), (0x5004, true, true));
    let walk = |arena: &Arena, registers, va| walker::walk(registers, va, |pa| arena.word(pa));
    let registers = registers(&mapper);
    assert!(!walk(&arena, Registers { sctlr: 1 << 19, ..registers }, 4).unwrap().pl1_execute, "WXN");
    // T0SZ 2: the walk starts at level 2, in what is the mapper's second table; above 1 GiB TTBR0 translates nothing.
    let small = Registers { ttbr0: ARENA + PAGE, ttbcr: registers.ttbcr | 2, ..registers };
    assert_eq!(walk(&arena, small, 4).map(|walk| walk.pa), Ok(0x5004));
    let upper = Registers { ttbr1: registers.ttbr0, ..small };
    assert_eq!(walk(&arena, upper, GIB as u32), Err(Fault::Translation { level: 1 }));
    let disabled = Registers { ttbcr: registers.ttbcr | 1 << 7, ..registers };
    assert_eq!(walk(&arena, disabled, 4), Err(Fault::Translation { level: 1 }));
    // Limits that a table puts on what is below, and an address beyond 40 bits.
    let root = mapper.ttbr0();
    let link = arena.read(root);
    arena.write(root, link | 1 << 62 | 1 << 60);
    let limited = arena.walk(&mapper, 4).unwrap();
    assert_eq!((limited.pl1_write, limited.pl1_execute), (false, false));
    arena.write(root, link | 1 << 40);
    assert_eq!(arena.walk(&mapper, 4), Err(Fault::AddressSize { level: 1 }));
}
