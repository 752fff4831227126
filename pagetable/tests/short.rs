//! What the short-descriptor mapper builds, its walker translates: every mapped address to its output with its
//! permissions, every other address to a fault at the level where the tree ends. The model is a list of ranges.

mod armv7;

use abi::{Gpa, ShortPages};
use pagetable::short::walker::{self, Fault, Memory, Registers, Size, Walk};
use pagetable::short::{DACR, Mapper, NMRR, PRRR, TTBCR, TableMemory, ttbr0};
use pagetable::{Attributes, Execute, MapError, MemoryType, Sizes, Va, Write};
use proptest::prelude::*;

use crate::armv7::{Request, attributes};

const ARENA: u64 = 0x4000_0000;
const MIB: u64 = 1 << 20;
const SPACE: u64 = 1 << 32;
const TRE: u32 = 1 << 28;
const AFE: u32 = 1 << 29;

/// Tables in a vector, as if it were RAM at [`ARENA`].
struct Arena {
    words: Vec<u32>,
    limit_bytes: usize,
}

impl Arena {
    fn new() -> Self {
        Self { words: Vec::new(), limit_bytes: 1 << 24 }
    }

    fn word(&self, pa: u64) -> Option<u32> {
        self.words.get(usize::try_from(pa.checked_sub(ARENA)? / 4).ok()?).copied()
    }

    fn walk(&self, mapper: &Mapper, va: u64) -> Result<Walk, Fault> {
        walker::walk(registers(mapper), u32::try_from(va).expect("a 32-bit address"), |pa| self.word(pa))
    }
}

fn registers(mapper: &Mapper) -> Registers {
    Registers {
        ttbr0: ttbr0(mapper.root()),
        ttbr1: 0,
        ttbcr: TTBCR,
        dacr: DACR,
        sctlr: TRE | AFE,
        prrr: PRRR,
        nmrr: NMRR,
    }
}

impl TableMemory for Arena {
    fn alloc_table(&mut self, len_bytes: u64) -> Option<Gpa> {
        let start = (self.words.len() * 4).next_multiple_of(len_bytes as usize);
        let end = start + len_bytes as usize;
        if end > self.limit_bytes {
            return None;
        }
        self.words.resize(end / 4, 0);
        Some(Gpa::new(ARENA + start as u64))
    }

    fn read(&self, gpa: Gpa) -> u32 {
        self.word(gpa.raw()).expect("the mapper reads only tables it was given")
    }

    fn write(&mut self, gpa: Gpa, descriptor: u32) {
        self.words[(gpa.raw() - ARENA) as usize / 4] = descriptor;
    }
}

/// Requests that crowd around a few places, so that they overlap, share tables and meet at the sections' boundaries.
fn request(page: u64) -> impl Strategy<Value = Request> {
    let anchors = prop_oneof![Just(0), Just(MIB), Just(3 * MIB), Just(SPACE / 2), Just(SPACE - 2 * MIB)];
    let unit = prop_oneof![3 => Just(page), 1 => Just(MIB)];
    (anchors, unit, 0_u64..20, 1_u64..40, 0_u64..64, attributes(), any::<bool>()).prop_map(
        move |(anchor, unit, skip, count, gpa, attributes, sections)| {
            let count = if unit == page { count } else { 1 + count % 3 };
            let va = (anchor + skip * unit).min(SPACE - unit);
            Request {
                va,
                gpa: gpa * unit,
                len_bytes: (count * unit).min(SPACE - va),
                attributes,
                sizes: if sections { Sizes::Largest } else { Sizes::Pages },
            }
        },
    )
}

fn check_mapped(walk: Walk, request: &Request, va: u64) -> Result<(), TestCaseError> {
    prop_assert_eq!(walk.pa, request.gpa + (va - request.va));
    let Attributes { memory, write, execute, global, accessed } = request.attributes;
    let expected = match memory {
        MemoryType::Normal => Memory::Normal { inner: 1, outer: 1 },
        MemoryType::Device => Memory::Device,
    };
    prop_assert_eq!((walk.memory, walk.shareable), (expected, true));
    prop_assert_eq!(walk.inner_shareable, memory == MemoryType::Normal);
    prop_assert_eq!((walk.pl1_read, walk.pl1_write), (true, write == Write::Yes));
    prop_assert_eq!((walk.pl1_execute, walk.pl0_read), (execute == Execute::El1, false));
    prop_assert_eq!((walk.global, walk.access_flag, walk.domain), (global, accessed, 0));
    Ok(())
}

fn check(pages: ShortPages, requests: &[Request], probes: &[u32]) -> Result<(), TestCaseError> {
    let mut arena = Arena::new();
    let mapper = Mapper::new(pages, &mut arena).expect("the arena is large enough");
    let page = mapper.page_bytes();
    let mut mapped: Vec<Request> = Vec::new();
    for request in requests {
        let before = arena.words.len();
        let Request { va, gpa, len_bytes, attributes, sizes } = *request;
        let result = mapper.map(&mut arena, Va::new(va), Gpa::new(gpa), len_bytes, attributes, sizes);
        let first = mapped.iter().filter(|other| other.touches(va, va + len_bytes)).map(|other| other.va.max(va)).min();
        match first {
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
    let check = |va: u64| -> Result<(), TestCaseError> {
        match (arena.walk(&mapper, va), mapped.iter().find(|request| request.touches(va, va + 1))) {
            (Ok(walk), Some(request)) => check_mapped(walk, request, va),
            (Err(fault), None) => {
                let section = va & !(MIB - 1);
                let table = mapped.iter().any(|request| request.touches(section, section + MIB));
                prop_assert_eq!(fault, Fault::Translation { level: if table { 2 } else { 1 } });
                Ok(())
            }
            (walk, request) => Err(TestCaseError::fail(format!("{va:#x}: {walk:?} for {request:?}"))),
        }
    };
    for request in &mapped {
        for index in 0..request.len_bytes / 0x1000 {
            check(request.va + index * 0x1000 + (index * 8 + 3) % 0x1000)?;
        }
        let end = request.va + request.len_bytes;
        for va in [request.va, end - 1, request.va.wrapping_sub(1) % SPACE, end % SPACE, (end + page - 1) % SPACE] {
            check(va)?;
        }
    }
    probes.iter().try_for_each(|&probe| check(u64::from(probe)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn small_pages_and_sections_translate_as_mapped(
        requests in prop::collection::vec(request(0x1000), 1..7),
        probes in prop::collection::vec(any::<u32>(), 32),
    ) {
        check(ShortPages::Small, &requests, &probes)?;
    }

    #[test]
    fn large_pages_and_sections_translate_as_mapped(
        requests in prop::collection::vec(request(0x1_0000), 1..7),
        probes in prop::collection::vec(any::<u32>(), 32),
    ) {
        check(ShortPages::Large, &requests, &probes)?;
    }
}

#[test]
fn sections_are_used_where_they_fit_and_pages_at_the_edges() {
    for (pages, size) in [(ShortPages::Small, Size::SmallPage), (ShortPages::Large, Size::LargePage)] {
        let mut arena = Arena::new();
        let mapper = Mapper::new(pages, &mut arena).unwrap();
        let page = mapper.page_bytes();
        let (va, gpa) = (8 * MIB - page, 2 * MIB - page);
        let map = |arena: &mut Arena, va, gpa| {
            mapper.map(arena, Va::new(va), Gpa::new(gpa), MIB + 2 * page, Attributes::DATA, Sizes::Largest)
        };
        map(&mut arena, va, gpa).unwrap();
        let found = |arena: &Arena, va| arena.walk(&mapper, va).unwrap().size;
        assert_eq!(found(&arena, va), size);
        assert_eq!(found(&arena, va + page), Size::Section);
        assert_eq!(found(&arena, va + page + MIB), size);
        // An output that is not aligned like the input gives pages throughout.
        map(&mut arena, 16 * MIB, 2 * MIB + page).unwrap();
        assert_eq!(found(&arena, 16 * MIB + page), size);
    }
}

#[test]
fn bad_ranges_are_refused_with_their_address() {
    let mut arena = Arena::new();
    let mapper = Mapper::new(ShortPages::Large, &mut arena).unwrap();
    let page = 0x1_0000;
    let mut map = |va, gpa, len, attributes| {
        mapper.map(&mut arena, Va::new(va), Gpa::new(gpa), len, attributes, Sizes::Pages).unwrap_err()
    };
    assert_eq!(map(page, 0, 0, Attributes::DATA), MapError::Empty { va: Va::new(page) });
    for (va, gpa, len) in [(0x1000, 0, page), (0, 0x1000, page), (0, 0, 0x1000)] {
        let expected = MapError::Misaligned { va: Va::new(va), gpa: Gpa::new(gpa), len_bytes: len, align_bytes: page };
        assert_eq!(map(va, gpa, len, Attributes::DATA), expected);
    }
    for (va, len) in [(SPACE, page), (SPACE - page, 2 * page), (0_u64.wrapping_sub(page), page)] {
        let expected = MapError::OutsideVirtual { va: Va::new(va), len_bytes: len, bits: 32 };
        assert_eq!(map(va, 0, len, Attributes::DATA), expected);
    }
    let expected = MapError::OutsidePhysical { gpa: Gpa::new(SPACE - page), len_bytes: 2 * page, bits: 32 };
    assert_eq!(map(0, SPACE - page, 2 * page, Attributes::DATA), expected);
    let tracked = Attributes { write: Write::Tracked, ..Attributes::DATA };
    assert_eq!(map(page, 0, page, tracked), MapError::NoDirtyState { va: Va::new(page) });
    assert_eq!(arena.words.len(), 4096);
}

#[test]
fn running_out_of_tables_names_the_address_and_keeps_what_is_below() {
    let mut arena = Arena { limit_bytes: 0x4400, ..Arena::new() };
    let mapper = Mapper::new(ShortPages::Small, &mut arena).unwrap();
    let result = mapper.map(&mut arena, Va::new(0), Gpa::new(0), 2 * MIB, Attributes::DATA, Sizes::Pages);
    assert_eq!(result, Err(MapError::OutOfTables { va: Va::new(MIB) }));
    assert!(arena.walk(&mapper, MIB - 1).is_ok());
    assert_eq!(arena.walk(&mapper, MIB), Err(Fault::Translation { level: 1 }));
    assert_eq!(
        Mapper::new(ShortPages::Small, &mut Arena { limit_bytes: 0x3fff, ..Arena::new() }),
        Err(MapError::OutOfTables { va: Va::new(0) })
    );
}

#[test]
fn the_walker_reads_what_the_mapper_never_writes() {
    // One first level at ARENA, one second level behind it.
    let mut arena = Arena::new();
    let mapper = Mapper::new(ShortPages::Small, &mut arena).unwrap();
    let second = arena.alloc_table(0x400).unwrap();
    let mut set = |at: Gpa, index: u64, bits: u32| arena.write(Gpa::new(at.raw() + 4 * index), bits);
    let root = mapper.root();
    for index in 0..16 {
        set(root, 16 + index, 0x2130_0000 | 1 << 18 | 0x4 << 5 | 0b01 << 10 | 0b10); // 40-bit supersection
    }
    set(root, 1, second.raw() as u32 | 3 << 5 | 0b01); // domain 3
    set(root, 2, second.raw() as u32 | 1 << 2 | 0b01); // PXN
    set(second, 5, 0x1234_5000 | 0b01 << 4 | 0b10); // executable, PL1 writes
    set(second, 6, 0x1234_6000 | 0b11 << 4 | 0b10); // PL0 writes
    let walk = |registers, va| walker::walk(registers, va, |pa| arena.word(pa));
    let plain = registers(&mapper);

    let super_walk = walk(plain, 0x01a5_4321).unwrap();
    assert_eq!((super_walk.pa, super_walk.size), (0x43_21a5_4321, Size::Supersection));
    assert_eq!(walk(plain, 0x0010_5000), Err(Fault::Domain { level: 2, domain: 3 }));
    let client = Registers { dacr: 0b01 << 6 | 1, ..plain };
    let page = walk(client, 0x0010_5004).unwrap();
    assert_eq!((page.pa, page.domain, page.pl1_write, page.pl1_execute), (0x1234_5004, 3, true, true));
    assert!(!walk(Registers { sctlr: plain.sctlr | 1 << 19, ..client }, 0x0010_5004).unwrap().pl1_execute, "WXN");
    assert!(!walk(plain, 0x0020_5004).unwrap().pl1_execute, "PXN");
    let open = walk(client, 0x0010_6000).unwrap();
    assert_eq!((open.pl0_read, open.pl1_execute), (true, false));
    // The classic model, in which AP[0] is a permission.
    let classic = walk(Registers { sctlr: TRE, ..client }, 0x0010_5004).unwrap();
    assert_eq!((classic.pl1_write, classic.pl0_read, classic.access_flag), (true, false, true));
    // TTBCR.N 1: the upper half by TTBR1, which has a first level of full size.
    let split = Registers { ttbcr: 1, ttbr1: plain.ttbr0, ..plain };
    assert_eq!(walk(split, 0x01a5_4321).unwrap().pa, 0x43_21a5_4321);
    assert_eq!(walk(split, 0x81a5_4321), Err(Fault::Translation { level: 1 }));
    assert_eq!(walk(Registers { ttbcr: 1 << 4, ..plain }, 0), Err(Fault::Translation { level: 1 }));
    let nowhere = Registers { ttbr0: 0, ..plain };
    assert_eq!(walk(nowhere, 0x0010_0000), Err(Fault::External { level: 1, pa: 4 }));
}
