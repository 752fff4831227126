//! AArch32's walkers on the tables that `pagetable`'s mappers write, against that crate's own walkers: three readings of the manual,
//! none of which shares code with another.

use std::collections::BTreeMap;

use abi::{Gpa, ShortPages};
use emulator::fault::{Access, AccessKind, FaultInfo};
use emulator::mmu::{Format, PhysMemory, Regime, Translation, translate};
use pagetable::{Attributes, Execute, MemoryType, Sizes, Va, Write, lpae, short};
use proptest::prelude::*;

/// SCTLR as the mappers' tables need it: M, TRE and AFE.
const SCTLR: u64 = 1 | 1 << 28 | 1 << 29;

/// Physical memory in 32-bit words, from which tables are taken upwards.
struct Memory {
    words: BTreeMap<u64, u32>,
    free: u64,
}

impl Memory {
    fn new() -> Self {
        Self { words: BTreeMap::new(), free: 0x4010_0000 }
    }

    fn take(&mut self, len_bytes: u64) -> Option<Gpa> {
        let at = self.free.next_multiple_of(len_bytes);
        self.free = at + len_bytes;
        Some(Gpa::new(at))
    }

    fn word(&self, at: u64) -> u32 {
        self.words.get(&at).copied().unwrap_or(0)
    }

    fn wide(&self, at: u64) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 4)) << 32
    }
}

impl short::TableMemory for Memory {
    fn alloc_table(&mut self, len_bytes: u64) -> Option<Gpa> {
        self.take(len_bytes)
    }

    fn read(&self, gpa: Gpa) -> u32 {
        self.word(gpa.raw())
    }

    fn write(&mut self, gpa: Gpa, descriptor: u32) {
        self.words.insert(gpa.raw(), descriptor);
    }
}

impl pagetable::TableMemory for Memory {
    fn alloc_table(&mut self) -> Option<Gpa> {
        self.take(0x1000)
    }

    fn read(&self, gpa: Gpa) -> u64 {
        self.wide(gpa.raw())
    }

    fn write(&mut self, gpa: Gpa, descriptor: u64) {
        self.words.insert(gpa.raw(), descriptor as u32);
        self.words.insert(gpa.raw() + 4, (descriptor >> 32) as u32);
    }
}

impl PhysMemory for Memory {
    fn load(&self, pa: Gpa) -> Option<u64> {
        Some(self.wide(pa.raw()))
    }

    fn replace(&self, _: Gpa, _: u64, _: u64) -> Option<bool> {
        None
    }
}

/// A mapping of a few pages of 64 KiB.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    va: u64,
    gpa: u64,
    pages: u64,
    attributes: Attributes,
}

const PAGE: u64 = 0x1_0000;

fn mappings() -> impl Strategy<Value = Vec<Mapping>> {
    let attributes =
        (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(write, run, global, used)| {
            Attributes {
                memory: MemoryType::Normal,
                write: if write { Write::Yes } else { Write::No },
                execute: if run { Execute::El1 } else { Execute::No },
                global,
                accessed: used,
            }
        });
    let attributes = prop_oneof![4 => attributes, 1 => Just(Attributes::DEVICE)];
    // Near each other, so that some overlap and are refused, and long enough for sections and blocks.
    let one = (0_u64..0x400, 0_u64..0x400, 1_u64..0x60, any::<bool>(), attributes).prop_map(
        |(va, gpa, pages, aligned, attributes)| {
            let down = |page: u64| if aligned { page & !0x1f } else { page };
            Mapping { va: 0x3000_0000 + down(va) * PAGE, gpa: 0x4800_0000 + down(gpa) * PAGE, pages, attributes }
        },
    );
    prop::collection::vec(one, 1..6)
}

/// Addresses at the edges of the mappings, and inside.
fn addresses(mappings: &[Mapping]) -> impl Iterator<Item = u32> {
    mappings.iter().flat_map(|mapping| {
        let end = mapping.va + mapping.pages * PAGE;
        [mapping.va, mapping.va + 0x1234, mapping.va - 1, end - 1, end, mapping.va + mapping.pages / 2 * PAGE + 0xfff]
            .map(|va| va as u32)
    })
}

fn access(kind: AccessKind, el: u8) -> Access {
    Access::new(kind, el, false)
}

/// What the emulator lets EL1 do (write, execute) and EL0 (read), and where the byte is: by single accesses.
fn outcome(regime: &Regime, va: u32, memory: &Memory) -> Result<(Translation, [bool; 3]), FaultInfo> {
    let may = |kind, el| translate(regime, va.into(), access(kind, el), memory).is_ok();
    let translation = translate(regime, va.into(), access(AccessKind::Read, 1), memory)?;
    Ok((translation, [may(AccessKind::Write, 1), may(AccessKind::Fetch, 1), may(AccessKind::Read, 0)]))
}

/// DFSC of an access flag fault at `level`, and of a translation fault.
fn flag_fault(level: u32) -> u32 {
    0b00_1000 | level
}

fn translation_fault(level: u32) -> u32 {
    0b00_0100 | level
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn short_tables_are_read_as_they_were_meant(
        mappings in mappings(), large in any::<bool>(), sections in any::<bool>(), wxn in any::<bool>(),
    ) {
        let mut memory = Memory::new();
        let pages = if large { ShortPages::Large } else { ShortPages::Small };
        let sizes = if sections { Sizes::Largest } else { Sizes::Pages };
        let mapper = short::Mapper::new(pages, &mut memory).expect("memory");
        for Mapping { va, gpa, pages, attributes } in &mappings {
            let _refused_where_it_overlaps =
                mapper.map(&mut memory, Va::new(*va), Gpa::new(*gpa), pages * PAGE, *attributes, sizes);
        }
        let sctlr = SCTLR | u64::from(wxn) << 19;
        let regime = Regime {
            format: Format::Short,
            sctlr,
            tcr: short::TTBCR.into(),
            ttbr: [short::ttbr0(mapper.root()).into(), 0],
            mair: u64::from(short::NMRR) << 32 | u64::from(short::PRRR),
            dacr: short::DACR.into(),
            contextidr: 0,
        };
        let registers = short::walker::Registers {
            ttbr0: short::ttbr0(mapper.root()),
            ttbr1: 0,
            ttbcr: short::TTBCR,
            dacr: short::DACR,
            sctlr: sctlr as u32,
            prrr: short::PRRR,
            nmrr: short::NMRR,
        };
        for va in addresses(&mappings) {
            let found = outcome(&regime, va, &memory);
            match short::walker::walk(registers, va, |at| Some(memory.word(at))) {
                Ok(walk) if !walk.access_flag => {
                    let level = if walk.size == short::walker::Size::Section { 1 } else { 2 };
                    prop_assert_eq!(found.map_err(|fault| fault.status_code()), Err(flag_fault(level)));
                }
                Ok(walk) => {
                    let (translation, rights) = found.expect("mapped");
                    let device = !matches!(walk.memory, short::walker::Memory::Normal { .. });
                    prop_assert_eq!(translation.pa.raw(), walk.pa);
                    prop_assert_eq!(translation.is_device(), device);
                    prop_assert_eq!(translation.not_global, !walk.global);
                    prop_assert_eq!(rights, [walk.pl1_write, walk.pl1_execute && !device, walk.pl0_read]);
                }
                Err(short::walker::Fault::Translation { level }) => {
                    prop_assert_eq!(found.map_err(|fault| fault.status_code()), Err(translation_fault(level)));
                }
                Err(other) => panic!("the mapper made {other:?}"),
            }
        }
    }

    #[test]
    fn long_tables_are_read_as_they_were_meant(
        mappings in mappings(), blocks in any::<bool>(), wxn in any::<bool>(),
    ) {
        let mut memory = Memory::new();
        let sizes = if blocks { Sizes::Largest } else { Sizes::Pages };
        let mapper = lpae::Mapper::new(&mut memory).expect("memory");
        for Mapping { va, gpa, pages, attributes } in &mappings {
            let _refused_where_it_overlaps =
                mapper.map(&mut memory, Va::new(*va), Gpa::new(*gpa), pages * PAGE, *attributes, sizes);
        }
        let sctlr = SCTLR | u64::from(wxn) << 19;
        let regime = Regime {
            format: Format::Long,
            sctlr,
            tcr: lpae::ttbcr().into(),
            ttbr: [mapper.ttbr0().raw(), 0],
            mair: u64::from(lpae::MAIR1) << 32 | u64::from(lpae::MAIR0),
            ..Regime::default()
        };
        let registers = lpae::walker::Registers {
            ttbr0: mapper.ttbr0().raw(),
            ttbr1: 0,
            ttbcr: lpae::ttbcr(),
            sctlr: sctlr as u32,
        };
        for va in addresses(&mappings) {
            let found = outcome(&regime, va, &memory);
            match lpae::walker::walk(registers, va, |at| Some(memory.wide(at))) {
                Ok(walk) if !walk.access_flag => {
                    prop_assert_eq!(found.map_err(|fault| fault.status_code()), Err(flag_fault(walk.level)));
                }
                Ok(walk) => {
                    let (translation, rights) = found.expect("mapped");
                    let device = walk.attr_index == 1;
                    prop_assert_eq!(translation.pa.raw(), walk.pa);
                    prop_assert_eq!(translation.is_device(), device);
                    prop_assert_eq!(translation.not_global, !walk.global);
                    prop_assert_eq!(rights, [walk.pl1_write, walk.pl1_execute && !device, walk.pl0_read]);
                }
                Err(lpae::walker::Fault::Translation { level }) => {
                    prop_assert_eq!(found.map_err(|fault| fault.status_code()), Err(translation_fault(level)));
                }
                Err(other) => panic!("the mapper made {other:?}"),
            }
        }
    }
}
