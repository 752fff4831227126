//! Tests of AArch32's walkers: golden cases from the manual's rules, and random tables against an independent walker.

use std::cell::RefCell;
use std::collections::BTreeMap;

use abi::addr::Gpa;
use proptest::prelude::*;

use super::*;
use crate::a32::exception::short_status;
use crate::fault::ec;

/// Tables of 32-bit words in a map; absent words are zero, and nothing answers at `hole`.
#[derive(Default)]
struct Tables {
    words: RefCell<BTreeMap<u64, u32>>,
    hole: Option<u64>,
}

impl Tables {
    fn set(&self, pa: u64, word: u32) {
        self.words.borrow_mut().insert(pa, word);
    }

    fn set_wide(&self, pa: u64, descriptor: u64) {
        self.set(pa, descriptor as u32);
        self.set(pa + 4, (descriptor >> 32) as u32);
    }

    fn get(&self, pa: u64) -> u32 {
        self.words.borrow().get(&pa).copied().unwrap_or(0)
    }
}

impl PhysMemory for Tables {
    fn load(&self, pa: Gpa) -> Option<u64> {
        assert_eq!(pa.raw() % 8, 0);
        let pa = pa.raw();
        (self.hole != Some(pa)).then(|| u64::from(self.get(pa)) | u64::from(self.get(pa + 4)) << 32)
    }

    fn replace(&self, _: Gpa, _: u64, _: u64) -> Option<bool> {
        panic!("AArch32 has no hardware update of descriptors")
    }
}

const READ: Access = Access::new(AccessKind::Read, 1, false);
const WRITE: Access = Access::new(AccessKind::Write, 1, false);
const FETCH: Access = Access::new(AccessKind::Fetch, 1, false);

fn user(access: Access) -> Access {
    Access { el: 0, ..access }
}

const AFE: u64 = 1 << 29;
const TRE: u64 = 1 << 28;
const WXN: u64 = 1 << 19;
const UWXN: u64 = 1 << 20;

/// Short descriptors, the table of TTBR0 at 0x4000 and of TTBR1 at 0x8000, every domain a client, no remap.
fn short_regime() -> Regime {
    Regime { format: Format::Short, sctlr: 1, ttbr: [0x4000, 0x8000], dacr: 0x5555_5555, ..Regime::default() }
}

/// FS\[4:0\] and the domain of the fault.
fn short_fault(outcome: Result<Translation, FaultInfo>) -> (u32, u8) {
    let fault = outcome.expect_err("a fault");
    (short_status(fault.status_code()), fault.domain)
}

/// A Normal write-back section or page with AP 0b011, in domain 0.
const SECTION: u32 = 0b10 | 3 << 10 | 0b11 << 2 | 0b001 << 12;
const SMALL: u32 = 0b10 | 3 << 4 | 0b11 << 2 | 0b001 << 6;
const LARGE: u32 = 0b01 | 3 << 4 | 0b11 << 2 | 0b001 << 12;
const COARSE: u32 = 0b01;

#[test]
fn short_sections_and_pages_translate_at_their_sizes() {
    let tables = Tables::default();
    let regime = short_regime();
    tables.set(0x4000 + 4 * 0x123, 0x9990_0000 | SECTION);
    let section = translate(&regime, 0x1234_5678, READ, &tables).expect("mapped");
    assert_eq!((section.pa.raw(), section.page_shift, section.attr), (0x9994_5678, 20, 0xff));
    // PA[39:32] is 0xa5: 0x5 in bits 23:20, 0xa in 8:5.
    tables.set(0x4000 + 4 * 0x456, 0x7700_0000 | SECTION | 1 << 18 | 0x5 << 20 | 0xa << 5);
    let supersection = translate(&regime, 0x4567_89ab, READ, &tables).expect("mapped");
    assert_eq!((supersection.pa.raw(), supersection.page_shift), (0xa5_7767_89ab, 24));
    tables.set(0x4000, 0x1_0000 | COARSE | 7 << 5);
    tables.set(0x1_0000 + 4 * 0x12, 0x5555_5000 | SMALL | 1 << 11);
    let small = translate(&regime, 0x0001_2abc, WRITE, &tables).expect("mapped");
    assert_eq!((small.pa.raw(), small.page_shift, small.not_global), (0x5555_5abc, 12, true));
    for entry in 0x20..0x30 {
        tables.set(0x1_0000 + 4 * entry, 0x6666_0000 | LARGE);
    }
    let large = translate(&regime, 0x0002_fabc, FETCH, &tables).expect("mapped");
    assert_eq!((large.pa.raw(), large.page_shift, large.attr), (0x6666_fabc, 16, 0xff));
}

#[test]
fn short_faults_carry_level_and_domain() {
    let tables = Tables::default();
    let regime = short_regime();
    assert_eq!(short_fault(translate(&regime, 0, READ, &tables)), (0b0_0101, 0), "translation, section");
    tables.set(0x4000, 0x1_0000 | COARSE | 9 << 5);
    assert_eq!(short_fault(translate(&regime, 0, READ, &tables)), (0b0_0111, 9), "translation, page");
    tables.set(0x1_0000, 0x5555_5000 | SMALL & !(3 << 4));
    assert_eq!(short_fault(translate(&regime, 0, READ, &tables)), (0b0_1111, 9), "permission, page");
    tables.set(0x4004, SECTION & !(3 << 10) | 6 << 5);
    assert_eq!(short_fault(translate(&regime, 0x10_0000, READ, &tables)), (0b0_1101, 6), "permission, section");
    let flags = Regime { sctlr: 1 | AFE, ..regime };
    assert_eq!(short_fault(translate(&flags, 0, READ, &tables)), (0b0_0110, 9), "access flag, page");
    assert_eq!(short_fault(translate(&flags, 0x10_0000, READ, &tables)), (0b0_0011, 6), "access flag, section");
    let closed = Regime { dacr: 0, ..regime };
    assert_eq!(short_fault(translate(&closed, 0, READ, &tables)), (0b0_1011, 9), "domain, page");
    assert_eq!(short_fault(translate(&closed, 0x10_0000, READ, &tables)), (0b0_1001, 6), "domain, section");
    let hole = Tables { hole: Some(0x1_0000), ..tables };
    assert_eq!(short_fault(translate(&regime, 0, READ, &hole)), (0b0_1110, 9), "external, second level");
    let hole = Tables { hole: Some(0x4000), ..hole };
    assert_eq!(short_fault(translate(&regime, 0, READ, &hole)), (0b0_1100, 0), "external, first level");
    let fault = translate(&regime, 0x8000_0004, user(WRITE), &hole).expect_err("unmapped");
    assert_eq!((fault.ec, fault.far, fault.is_write()), (ec::DATA_ABORT_LOWER, Some(0x8000_0004), true));
}

#[test]
fn ttbcr_splits_the_addresses_and_disables_halves() {
    let tables = Tables::default();
    let split = |n: u64, pd: u64| Regime { tcr: n | pd << 4, ttbr: [0x4000, 0x8000], ..short_regime() };
    tables.set(0x4000 + 4, 0x1110_0000 | SECTION);
    tables.set(0x8000 + 4 * 0x800, 0x2220_0000 | SECTION);
    tables.set(0x8000 + 4, 0x3330_0000 | SECTION);
    let pa =
        |regime: &Regime, va| translate(regime, va, READ, &tables).map(|t| t.pa.raw()).map_err(|f| f.status_code());
    assert_eq!(pa(&split(1, 0), 0x10_0000), Ok(0x1110_0000));
    assert_eq!(pa(&split(1, 0), 0x8000_0000), Ok(0x2220_0000), "TTBR1's table has all 4096 entries");
    assert_eq!(pa(&split(0, 0), 0x8000_0000), Err(0b00_0101), "N 0: TTBR0 serves everything");
    assert_eq!(pa(&split(1, 0b01), 0x10_0000), Err(0b00_0101));
    assert_eq!(pa(&split(1, 0b01), 0x8000_0000), Ok(0x2220_0000));
    assert_eq!(pa(&split(1, 0b10), 0x8000_0000), Err(0b00_0101));
    // N 7: a table of 32 entries, aligned to 128 bytes.
    let small = Regime { ttbr: [0x4080, 0x8000], ..split(7, 0) };
    tables.set(0x4084, 0x4440_0000 | SECTION);
    assert_eq!(pa(&small, 0x10_0000), Ok(0x4440_0000));
    assert_eq!(pa(&small, 0x200_0000), Err(0b00_0101), "TTBR1's, and nothing there");
}

/// What each access to a small page gives: read, write, fetch at EL1, then at EL0.
fn short_rights(regime: &Regime, first: u32, second: u32) -> [bool; 6] {
    let tables = Tables::default();
    tables.set(0x4000, 0x1_0000 | COARSE | first);
    tables.set(0x1_0000, second);
    [READ, WRITE, FETCH, user(READ), user(WRITE), user(FETCH)]
        .map(|access| translate(regime, 0, access, &tables).is_ok())
}

#[test]
fn short_permissions_follow_ap_xn_and_the_domain() {
    let (t, f) = (true, false);
    let regime = short_regime();
    let page = |ap: u32| SMALL & !(3 << 4) | (ap & 3) << 4 | (ap & 4) << 7;
    let rights = |ap: u32| short_rights(&regime, 0, page(ap));
    assert_eq!(rights(0b000), [f, f, f, f, f, f]);
    assert_eq!(rights(0b001), [t, t, t, f, f, f]);
    assert_eq!(rights(0b010), [t, t, t, t, f, t]);
    assert_eq!(rights(0b011), [t, t, t, t, t, t]);
    assert_eq!(rights(0b100), [f, f, f, f, f, f]);
    assert_eq!(rights(0b101), [t, f, t, f, f, f]);
    assert_eq!(rights(0b110), [t, f, t, t, f, t]);
    assert_eq!(rights(0b111), [t, f, t, t, f, t]);
    let flags = Regime { sctlr: 1 | AFE, ..regime };
    assert_eq!(short_rights(&flags, 0, page(0b001)), [t, t, t, f, f, f]);
    assert_eq!(short_rights(&flags, 0, page(0b011)), [t, t, t, t, t, t]);
    assert_eq!(short_rights(&flags, 0, page(0b101)), [t, f, t, f, f, f]);
    assert_eq!(short_rights(&flags, 0, page(0b111)), [t, f, t, t, f, t]);
    assert_eq!(short_rights(&flags, 0, page(0b010)), [f; 6], "the access flag is clear");
    assert_eq!(short_rights(&regime, 0, page(0b011) | 1), [t, t, f, t, t, f], "XN");
    assert_eq!(short_rights(&regime, 1 << 2, page(0b011)), [t, t, f, t, t, t], "PXN");
    let wxn = Regime { sctlr: 1 | WXN, ..regime };
    assert_eq!(short_rights(&wxn, 0, page(0b011)), [t, t, f, t, t, f]);
    assert_eq!(short_rights(&wxn, 0, page(0b010)), [t, t, f, t, f, t]);
    let uwxn = Regime { sctlr: 1 | UWXN, ..regime };
    assert_eq!(short_rights(&uwxn, 0, page(0b011)), [t, t, f, t, t, t]);
    assert_eq!(short_rights(&uwxn, 0, page(0b001)), [t, t, t, f, f, f]);
    let manager = Regime { dacr: 0b11 << 6, ..regime };
    assert_eq!(short_rights(&manager, 3 << 5, page(0b000) | 1), [t; 6], "a manager's XN is not checked either");
    let reserved = Regime { dacr: 0b10 << 6, ..regime };
    assert_eq!(short_rights(&reserved, 3 << 5, page(0b011)), [f; 6]);
}

#[test]
fn short_memory_types_come_from_texcb_or_the_remap_registers() {
    let tables = Tables::default();
    let attr = |regime: &Regime, texcb: u32| {
        tables.set(0x4000, SECTION & !(7 << 12 | 3 << 2) | (texcb >> 2) << 12 | (texcb & 3) << 2);
        translate(regime, 0, READ, &tables).expect("mapped").attr
    };
    let plain = short_regime();
    for (texcb, expected) in
        [(0, 0), (1, 4), (2, 0xaa), (3, 0xee), (4, 0x44), (7, 0xff), (8, 4), (0b1_0000, 0x44), (0b1_0110, 0xfa)]
    {
        assert_eq!(attr(&plain, texcb), expected, "{texcb:#07b}");
    }
    // Linux's PRRR and NMRR for v7: n 0 strongly ordered, 1 normal NC, 2 WT, 3 WB, 4 device, 7 WBWA.
    let linux = Regime { sctlr: 1 | TRE, mair: 0x40e0_40e0 << 32 | 0xff0a_81a8, ..plain };
    assert_eq!([0, 1, 2, 3, 4, 7].map(|n| attr(&linux, n)), [0, 0x44, 0xaa, 0xee, 4, 0xff]);
    assert_eq!(attr(&linux, 0b1_1011), 0xee, "TEX[2:1] are software's");
}

#[test]
fn par_has_the_short_format() {
    let tables = Tables::default();
    let regime = short_regime();
    let probe = Access::new(AccessKind::ProbeRead, 1, false);
    tables.set(0x4000, 0x1230_0000 | SECTION | 1 << 16);
    // Write-back write-allocate inner (0b101) and outer (0b01), shareable.
    assert_eq!(par(Format::Short, translate(&regime, 0x4_5678, probe, &tables)), 0x1234_50d4);
    assert_eq!(par(Format::Short, translate(&regime, 0x10_0000, probe, &tables)), 0b0_0101 << 1 | 1);
    tables.set(0x4004, SECTION | 1 << 18 | 0x5600_0000 | 1 << 20 | 1 << 16);
    let supersection = par(Format::Short, translate(&regime, 0x10_0000, probe, &tables));
    assert_eq!(supersection, 0x5601_00d6, "PA[39:32] in bits 23:16, SS");
}

#[test]
fn without_tables_addresses_are_flat_and_32_bits_wide() {
    for format in [Format::Short, Format::Long] {
        let off = Regime { format, ..Regime::default() };
        let data = translate(&off, 0xf_ffff_fffc, READ, &Tables::default()).expect("flat");
        assert_eq!((data.pa.raw(), data.is_device()), (0xffff_fffc, true));
        assert!(!translate(&off, 0x1000, FETCH, &Tables::default()).expect("flat").is_device());
    }
}

const AF: u64 = 1 << 10;

/// Long descriptors with both sizes zero, TTBR0's level-1 table at 0x2000, TTBR1's at 0x3000.
fn long_regime() -> Regime {
    Regime { format: Format::Long, sctlr: 1, tcr: 1 << 31, ttbr: [0x2000, 0x3000], mair: 0xff, ..Regime::default() }
}

fn status(outcome: Result<Translation, FaultInfo>) -> u32 {
    outcome.expect_err("a fault").status_code()
}

#[test]
fn long_blocks_and_pages_translate_at_their_levels() {
    let tables = Tables::default();
    let regime = long_regime();
    tables.set_wide(0x2008, 0x56_4000_0000 | AF | 1);
    let gib = translate(&regime, 0x7654_3210, READ, &tables).expect("mapped");
    assert_eq!((gib.pa.raw(), gib.page_shift), (0x56_7654_3210, 30));
    tables.set_wide(0x2000, 0x5000 | 3);
    tables.set_wide(0x5008, 0x4060_0000 | AF | 1);
    let mib = translate(&regime, 0x0032_1abc, WRITE, &tables).expect("mapped");
    assert_eq!((mib.pa.raw(), mib.page_shift), (0x4072_1abc, 21));
    tables.set_wide(0x5010, 0x6000 | 3);
    tables.set_wide(0x6008, 0x12_3456_7000 | AF | 3 | 1 << 11);
    let page = translate(&regime, 0x0040_1fff, FETCH, &tables).expect("mapped");
    assert_eq!((page.pa.raw(), page.page_shift, page.not_global), (0x12_3456_7fff, 12, true));
}

#[test]
fn long_faults_carry_their_level() {
    let tables = Tables::default();
    let regime = long_regime();
    assert_eq!(status(translate(&regime, 0, READ, &tables)), 0b00_0101);
    tables.set_wide(0x2000, 0x5000 | 3);
    assert_eq!(status(translate(&regime, 0, READ, &tables)), 0b00_0110);
    tables.set_wide(0x5000, 0x6000 | 3);
    assert_eq!(status(translate(&regime, 0, READ, &tables)), 0b00_0111);
    tables.set_wide(0x6000, 0x7000 | AF | 1);
    assert_eq!(status(translate(&regime, 0, READ, &tables)), 0b00_0111, "no block at level 3");
    tables.set_wide(0x6000, 0x7000 | 3);
    assert_eq!(status(translate(&regime, 0, READ, &tables)), 0b00_1011, "access flag");
    tables.set_wide(0x6000, 0x7000 | 3 | AF | 1 << 7);
    assert_eq!(status(translate(&regime, 0, WRITE, &tables)), 0b00_1111, "permission");
    tables.set_wide(0x6000, 1 << 40 | 3 | AF);
    assert_eq!(status(translate(&regime, 0, READ, &tables)), 0b00_0011, "40 bits of address");
    let hole = Tables { hole: Some(0x5000), ..tables };
    assert_eq!(status(translate(&regime, 0, READ, &hole)), 0b01_0110, "external, level 2");
    let disabled = Regime { tcr: 1 << 31 | 1 << 7, ..regime };
    assert_eq!(status(translate(&disabled, 0, READ, &hole)), 0b00_0101);
}

#[test]
fn long_halves_are_chosen_by_both_sizes() {
    // By TTBR0's size and TTBR1's: which half serves the address, and from which level. Tables are told apart by their external aborts.
    let served = |t0: u64, t1: u64, va: u64| {
        let regime = Regime { tcr: 1 << 31 | t0 | t1 << 16, ttbr: [0x1_0000, 0x2_0000], ..long_regime() };
        for (half, base) in [(0, 0x1_0000_u64), (1, 0x2_0000)] {
            let found = (0..0x1000).step_by(8).any(|entry| {
                let hole = Tables { hole: Some(base + entry), ..Tables::default() };
                matches!(translate(&regime, va, READ, &hole), Err(fault) if fault.status_code() & 0b11_1100 == 0b01_0100)
            });
            if found {
                return Some(half);
            }
        }
        None
    };
    assert_eq!(served(0, 0, 0xffff_ffff), Some(0));
    assert_eq!(served(1, 0, 0x7fff_ffff), Some(0));
    assert_eq!(served(1, 0, 0x8000_0000), Some(1));
    assert_eq!(served(0, 1, 0x7fff_ffff), Some(0));
    assert_eq!(served(0, 1, 0x8000_0000), Some(1));
    assert_eq!(served(2, 2, 0x3fff_ffff), Some(0));
    assert_eq!(served(2, 2, 0x4000_0000), None);
    assert_eq!(served(2, 2, 0xbfff_ffff), None);
    assert_eq!(served(2, 2, 0xc000_0000), Some(1));
}

#[test]
fn long_permissions_have_one_xn_and_uwxn() {
    let (t, f) = (true, false);
    let rights = |regime: &Regime, leaf: u64, table: u64| {
        let tables = Tables::default();
        tables.set_wide(0x2000, 0x5000 | 3 | table);
        tables.set_wide(0x5000, AF | 1 | leaf);
        [READ, WRITE, FETCH, user(READ), user(WRITE), user(FETCH)]
            .map(|access| translate(regime, 0, access, &tables).is_ok())
    };
    let regime = long_regime();
    assert_eq!(rights(&regime, 0, 0), [t, t, t, f, f, f]);
    assert_eq!(rights(&regime, AP_EL0, 0), [t, t, t, t, t, t], "EL1 executes what EL0 may write, unless UWXN");
    assert_eq!(rights(&regime, AP_EL0 | AP_READ_ONLY, 0), [t, f, t, t, f, t]);
    assert_eq!(rights(&regime, AP_EL0 | UXN, 0), [t, t, f, t, t, f], "XN is for both levels");
    assert_eq!(rights(&regime, AP_EL0 | PXN, 0), [t, t, f, t, t, t]);
    assert_eq!(rights(&regime, AP_EL0, TABLE_UXN), [t, t, f, t, t, f]);
    assert_eq!(rights(&regime, AP_EL0, TABLE_PXN), [t, t, f, t, t, t]);
    assert_eq!(rights(&regime, AP_EL0, TABLE_NO_EL0), [t, t, t, f, f, f]);
    assert_eq!(rights(&regime, AP_EL0, TABLE_READ_ONLY), [t, f, t, t, f, t]);
    let uwxn = Regime { sctlr: 1 | UWXN, ..regime };
    assert_eq!(rights(&uwxn, AP_EL0, 0), [t, t, f, t, t, t]);
    let wxn = Regime { sctlr: 1 | WXN, ..regime };
    assert_eq!(rights(&wxn, AP_EL0, 0), [t, t, f, t, t, f]);
    assert_eq!(rights(&wxn, AP_EL0, TABLE_READ_ONLY), [t, f, t, t, f, t]);
    let hpd = Regime { tcr: regime.tcr | 1 << 6 | 1 << 41, ..regime };
    assert_eq!(rights(&hpd, AP_EL0, TABLE_READ_ONLY | TABLE_UXN), [t, t, t, t, t, t]);
    assert_eq!(rights(&regime, 1 << 2, 0), [t, t, f, f, f, f], "devices are not executable");
}

/// The physical address of `va` by short descriptors, or the fault's FS, computed from the figures of G5.4 by table lookup: without
/// the walker's code, without permissions.
fn short_reference(tables: &Tables, n: u32, base: [u32; 2], va: u32) -> Result<u64, u32> {
    let top_bits: Vec<bool> = (0..n).map(|bit| va >> (31 - bit) & 1 == 1).collect();
    let upper = top_bits.contains(&true);
    let entries = if upper { 4096 } else { 4096 >> n };
    let index = (va >> 20) % entries;
    let first = tables.get(u64::from(base[usize::from(upper)] + index * 4));
    let fields = |word: u32, low: u32, width: u32| word >> low & ((1 << width) - 1);
    match (fields(first, 0, 2), fields(first, 18, 1)) {
        (0, _) => Err(0b00101),
        (1, _) => {
            let second = tables.get(u64::from(fields(first, 10, 22) * 1024 + fields(va, 12, 8) * 4));
            match fields(second, 0, 2) {
                0 => Err(0b00111),
                1 => Ok(u64::from(fields(second, 16, 16)) * 65536 + u64::from(fields(va, 0, 16))),
                _ => Ok(u64::from(fields(second, 12, 20)) * 4096 + u64::from(fields(va, 0, 12))),
            }
        }
        (_, 0) => Ok(u64::from(fields(first, 20, 12)) * 0x10_0000 + u64::from(fields(va, 0, 20))),
        _ => {
            let high = fields(first, 5, 4) * 16 + fields(first, 20, 4);
            Ok(u64::from(high) * (1 << 32) + u64::from(fields(first, 24, 8)) * (1 << 24) + u64::from(fields(va, 0, 24)))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Random descriptors, kept small enough that second-level tables exist; managers everywhere, so that only the walk counts.
    #[test]
    fn short_walks_agree_with_an_independent_one(
        n in 0_u32..8,
        first in any::<u32>(),
        second in any::<u32>(),
        va in any::<u32>(),
    ) {
        let tables = Tables::default();
        let base = [0x4000, 0x8000];
        let regime = Regime { tcr: n.into(), dacr: 0xffff_ffff, ..short_regime() };
        for table in [0x4000_u64, 0x8000] {
            for entry in 0..4096_u64 {
                if table + 4 * entry < 0xc000 {
                    tables.set(table + 4 * entry, first.rotate_left(entry as u32 % 5));
                }
            }
        }
        for rotation in 0..5 {
            let word = first.rotate_left(rotation);
            for entry in 0..256_u64 {
                let at = u64::from(word & !0x3ff) + 4 * entry;
                if !(0x4000..0xc000).contains(&at) {
                    tables.set(at, second.rotate_left(entry as u32 % 7));
                }
            }
        }
        let walked = translate(&regime, va.into(), READ, &tables)
            .map(|translation| translation.pa.raw())
            .map_err(|fault| short_status(fault.status_code()));
        prop_assert_eq!(walked, short_reference(&tables, n, base, va));
    }
}
