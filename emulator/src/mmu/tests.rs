//! Tests of the walker: golden cases from the manual's rules, and random tables against an independent walker.

use std::cell::RefCell;
use std::collections::BTreeMap;

use abi::addr::Gpa;
use proptest::prelude::*;

use super::*;
use crate::fault::ec;

/// Tables in a map; reads outside `limit` do not answer.
#[derive(Default)]
struct Tables {
    words: RefCell<BTreeMap<u64, u64>>,
    replaced: RefCell<Vec<u64>>,
    /// One descriptor that "another vCPU" changes just before the walker's update.
    interfere: RefCell<Option<(u64, u64)>>,
    hole: Option<u64>,
}

impl Tables {
    fn set(&self, pa: u64, descriptor: u64) {
        self.words.borrow_mut().insert(pa, descriptor);
    }

    fn get(&self, pa: u64) -> u64 {
        self.words.borrow().get(&pa).copied().unwrap_or(0)
    }
}

impl PhysMemory for Tables {
    fn load(&self, pa: Gpa) -> Option<u64> {
        (self.hole != Some(pa.raw())).then(|| self.get(pa.raw()))
    }

    fn replace(&self, pa: Gpa, old: u64, new: u64) -> Option<bool> {
        if let Some((at, value)) = self.interfere.borrow_mut().take() {
            self.set(at, value);
        }
        if self.get(pa.raw()) != old {
            return Some(false);
        }
        self.set(pa.raw(), new);
        self.replaced.borrow_mut().push(pa.raw());
        Some(true)
    }
}

const AF: u64 = 1 << 10;
const PAGE: u64 = 0b11;
const BLOCK: u64 = 0b01;
const TABLE: u64 = 0b11;

/// 4K granule both halves, 39-bit addresses, 44-bit IPS, tables at 0x1000 (lower) and 0x2000 (upper).
fn regime() -> Regime {
    Regime {
        sctlr: 1,
        tcr: 25 | 25 << 16 | 0b10 << 30 | 4 << 32,
        ttbr: [0x1000, 0x2000],
        mair: 0x00_00_00_00_00_44_00_ff, // 0 Normal, 1 Device-nGnRnE, 2 Non-cacheable
        ..Regime::default()
    }
}

const READ: Access = Access::new(AccessKind::Read, 1, false);
const WRITE: Access = Access::new(AccessKind::Write, 1, false);
const FETCH: Access = Access::new(AccessKind::Fetch, 1, false);

fn user(access: Access) -> Access {
    Access { el: 0, ..access }
}

fn status(outcome: Result<Translation, FaultInfo>) -> u32 {
    outcome.expect_err("a fault").status_code()
}

/// Maps VA 0x40_0000 + page 1 to 0x8_1000 with the leaf's bits `leaf` and table bits `table`.
fn one_page(leaf: u64, table: u64) -> Tables {
    let tables = Tables::default();
    tables.set(0x1000, 0x3000 | TABLE | table);
    tables.set(0x3010, 0x4000 | TABLE);
    tables.set(0x4008, 0x8_1000 | PAGE | leaf);
    tables
}

const VA: u64 = 0x40_1234;

#[test]
fn with_stage_1_off_addresses_are_flat_and_bounded() {
    let tables = Tables::default();
    let off = Regime { sctlr: 0, ..regime() };
    let data = translate(&off, 0x4000_1235, READ, &tables).expect("flat");
    assert_eq!(data.pa, Gpa::new(0x4000_1235));
    assert!(data.is_device());
    assert!(!translate(&off, 0x4000_1234, FETCH, &tables).expect("flat").is_device());
    assert_eq!(status(translate(&off, 1 << PA_BITS, READ, &tables)), 0);
    assert!(translate(&off, 0x1000, Access { pan: true, ..READ }, &tables).is_ok(), "PAN needs tables");
}

#[test]
fn pages_and_blocks_translate_at_their_levels() {
    let tables = one_page(AF, 0);
    let page = translate(&regime(), VA, READ, &tables).expect("mapped");
    assert_eq!((page.pa, page.page_shift, page.attr), (Gpa::new(0x8_1234), 12, 0xff));
    tables.set(0x3018, 0x60_0000 | BLOCK | AF | 1 << 2);
    let block = translate(&regime(), 0x7f_ffff, READ, &tables).expect("mapped");
    assert_eq!((block.pa, block.page_shift, block.is_device()), (Gpa::new(0x7f_ffff), 21, true));
    tables.set(0x2ff8, 0x4000_0000 | BLOCK | AF);
    let top = translate(&regime(), u64::MAX, READ, &tables).expect("mapped");
    assert_eq!((top.pa, top.page_shift), (Gpa::new(0x7fff_ffff), 30));
    assert_eq!(status(translate(&regime(), 0x20_0000, READ, &tables)), 0b00_0110, "level 2, invalid");
    tables.set(0x4008, 0x8_1000 | BLOCK | AF);
    assert_eq!(status(translate(&regime(), VA, READ, &tables)), 0b00_0111, "no block at level 3");
}

#[test]
fn addresses_between_the_halves_and_disabled_halves_fault_at_level_0() {
    let tables = one_page(AF, 0);
    for va in [1 << 39, 1 << 60, u64::MAX >> 1, !(1 << 40), 1 << 55] {
        assert_eq!(status(translate(&regime(), va, READ, &tables)), 0b00_0100, "{va:#x}");
    }
    let disabled = Regime { tcr: regime().tcr | 1 << 7, ..regime() };
    assert_eq!(status(translate(&disabled, VA, READ, &tables)), 0b00_0100);
    let oversized = Regime { tcr: regime().tcr & !0x3f | 15, ..regime() };
    assert_eq!(status(translate(&oversized, VA, READ, &tables)), 0b00_0100);
}

#[test]
fn the_top_byte_is_ignored_only_where_tcr_says_so() {
    let tables = one_page(AF, 0);
    let tagged = 0xa5 << 56 | VA;
    assert_eq!(status(translate(&regime(), tagged, READ, &tables)), 0b00_0100);
    let tbi = Regime { tcr: regime().tcr | 1 << 37, ..regime() };
    assert_eq!(translate(&tbi, tagged, READ, &tables).expect("mapped").pa, Gpa::new(0x8_1234));
}

#[test]
fn permissions_follow_ap_xn_and_the_tables_above() {
    let may = |leaf: u64, table: u64, regime: &Regime| {
        let tables = one_page(leaf | AF, table);
        let ok = |access| translate(regime, VA, access, &tables).is_ok();
        [READ, WRITE, FETCH, user(READ), user(WRITE), user(FETCH)].map(ok)
    };
    let plain = regime();
    let (t, f) = (true, false);
    assert_eq!(may(0, 0, &plain), [t, t, t, f, f, t]);
    assert_eq!(may(AP_EL0, 0, &plain), [t, t, f, t, t, t], "EL0-writable is never EL1-executable");
    assert_eq!(may(AP_READ_ONLY, 0, &plain), [t, f, t, f, f, t]);
    assert_eq!(may(AP_READ_ONLY | AP_EL0, 0, &plain), [t, f, t, t, f, t]);
    assert_eq!(may(PXN | UXN, 0, &plain), [t, t, f, f, f, f]);
    assert_eq!(may(AP_EL0, TABLE_READ_ONLY, &plain), [t, f, t, t, f, t]);
    assert_eq!(may(AP_EL0, TABLE_NO_EL0, &plain), [t, t, t, f, f, t]);
    assert_eq!(may(0, TABLE_PXN | TABLE_UXN, &plain), [t, t, f, f, f, f]);
    let hpd = Regime { tcr: plain.tcr | 1 << 41, ..plain };
    assert_eq!(may(0, TABLE_PXN | TABLE_UXN | TABLE_READ_ONLY, &hpd), [t, t, t, f, f, t]);
    let wxn = Regime { sctlr: 1 | SCTLR_WXN, ..plain };
    assert_eq!(may(0, 0, &wxn), [t, t, f, f, f, t]);
    assert_eq!(may(AP_EL0, 0, &wxn), [t, t, f, t, t, f]);
    assert_eq!(may(1 << 2, 0, &plain), [t, t, f, f, f, f], "devices are not executable");
}

#[test]
fn pan_keeps_el1_from_el0_pages_but_not_unprivileged_accesses() {
    let tables = one_page(AF | AP_EL0, 0);
    let pan = Access { pan: true, ..READ };
    assert_eq!(status(translate(&regime(), VA, pan, &tables)), 0b00_1111);
    assert!(translate(&regime(), VA, Access { unprivileged: true, ..pan }, &tables).is_ok());
    let fault = translate(&regime(), VA, Access { pan: true, ..WRITE }, &tables).expect_err("PAN");
    assert_eq!((fault.ec, fault.iss, fault.far), (ec::DATA_ABORT_SAME, 0x4f, Some(VA)));
}

#[test]
fn access_flag_faults_unless_hardware_sets_it() {
    let tables = one_page(0, 0);
    assert_eq!(status(translate(&regime(), VA, READ, &tables)), 0b00_1011);
    let ha = Regime { tcr: regime().tcr | 1 << 39, ..regime() };
    assert!(translate(&ha, VA, READ, &tables).is_ok());
    assert_eq!(tables.get(0x4008), 0x8_1000 | PAGE | AF);
    assert_eq!(*tables.replaced.borrow(), [0x4008]);
    assert!(translate(&ha, VA, READ, &tables).is_ok());
    assert_eq!(tables.replaced.borrow().len(), 1, "a descriptor that is right is not written again");
}

#[test]
fn dirty_state_is_recorded_by_stores_alone() {
    let hd = Regime { tcr: regime().tcr | 3 << 39, ..regime() };
    let tables = one_page(AF | DBM | AP_READ_ONLY, 0);
    let clean = translate(&hd, VA, READ, &tables).expect("readable");
    assert!(!clean.permissions.el1_write, "the first store must walk again");
    assert!(translate(&hd, VA, Access::new(AccessKind::ProbeWrite, 1, false), &tables).is_ok());
    assert!(translate(&hd, VA, Access::new(AccessKind::CacheMaintenance, 1, false), &tables).is_ok());
    assert!(tables.replaced.borrow().is_empty());
    assert!(translate(&hd, VA, WRITE, &tables).expect("made writable").permissions.el1_write);
    assert_eq!(tables.get(0x4008) & AP_READ_ONLY, 0);
    let ha_only = Regime { tcr: regime().tcr | 1 << 39, ..regime() };
    assert_eq!(status(translate(&ha_only, VA, WRITE, &one_page(AF | DBM | AP_READ_ONLY, 0))), 0b00_1111);
    let limited = one_page(AF | DBM | AP_READ_ONLY, TABLE_READ_ONLY);
    assert_eq!(status(translate(&hd, VA, WRITE, &limited)), 0b00_1111, "a read-only table wins over DBM");
    assert!(limited.replaced.borrow().is_empty());
}

#[test]
fn an_update_that_loses_a_race_walks_again() {
    let ha = Regime { tcr: regime().tcr | 1 << 39, ..regime() };
    let tables = one_page(0, 0);
    *tables.interfere.borrow_mut() = Some((0x4008, 0x9_1000 | PAGE));
    assert_eq!(translate(&ha, VA, READ, &tables).expect("the new page").pa, Gpa::new(0x9_1234));
    assert_eq!(tables.get(0x4008), 0x9_1000 | PAGE | AF);
    let tables = one_page(0, 0);
    *tables.interfere.borrow_mut() = Some((0x4008, 0));
    assert_eq!(status(translate(&ha, VA, READ, &tables)), 0b00_0111);
}

#[test]
fn addresses_out_of_range_and_absent_tables_have_their_own_faults() {
    let narrow = Regime { tcr: regime().tcr & !(7 << 32), ..regime() };
    let tables = one_page(AF, 0);
    tables.set(0x4008, 1 << 32 | PAGE | AF);
    assert_eq!(status(translate(&narrow, VA, READ, &tables)), 0b00_0011);
    tables.set(0x3010, 1 << 32 | TABLE);
    assert_eq!(status(translate(&narrow, VA, READ, &tables)), 0b00_0010);
    let high = Regime { ttbr: [1 << 32, 0], ..narrow };
    assert_eq!(status(translate(&high, VA, READ, &tables)), 0b00_0000);
    let hole = Tables { hole: Some(0x3010), ..one_page(AF, 0) };
    assert_eq!(status(translate(&regime(), VA, READ, &hole)), 0b01_0110);
}

#[test]
fn at_results_have_the_layout_of_par() {
    let tables = one_page(AF | 3 << 8, 0);
    let probe = Access::new(AccessKind::ProbeRead, 1, false);
    assert_eq!(par(Format::V8, translate(&regime(), VA, probe, &tables)), 0xff00_0000_0008_1980);
    assert_eq!(par(Format::V8, translate(&regime(), 0, probe, &tables)), 0x800 | 0b00_0110 << 1 | 1);
}

#[test]
fn asids_come_from_the_half_and_width_tcr_chooses() {
    let base = Regime { ttbr: [0x1234 << 48, 0x5678 << 48], ..regime() };
    assert_eq!(base.asid(), 0x34);
    assert_eq!(Regime { tcr: base.tcr | 1 << 36, ..base }.asid(), 0x1234);
    assert_eq!(Regime { tcr: base.tcr | 1 << 36 | 1 << 22, ..base }.asid(), 0x5678);
}

/// What a walk must find, computed without the walker's code: an address is cut into its indices first, as the figures of
/// D8.2.6 to D8.2.8 show them, and then followed.
fn reference(
    tables: &Tables,
    granule_bits: u32,
    va_bits: u32,
    base: u64,
    va: u64,
    pa_bits: u32,
) -> Result<(u64, u64), u32> {
    let entries_bits = granule_bits - 3;
    let mut indices = Vec::new();
    let mut low = granule_bits;
    while low < va_bits {
        let width = entries_bits.min(va_bits - low);
        indices.push((va >> low & ((1 << width) - 1), 1u64 << low));
        low += width;
    }
    let depth = indices.len();
    let mut table = base;
    for (left, (index, bytes)) in indices.into_iter().enumerate().rev() {
        let level = 3 - left as u32;
        assert!(left < depth);
        let descriptor = tables.get(table + index * 8);
        let address = descriptor & 0xffff_ffff_f000;
        let kind = (descriptor & 3, level);
        let blocks_at: &[u32] = if granule_bits == 12 { &[1, 2] } else { &[2] };
        let is_leaf = kind == (3, 3) || (descriptor & 3 == 1 && blocks_at.contains(&level));
        if !(is_leaf || (descriptor & 3 == 3 && level < 3)) {
            return Err(4 + level);
        }
        if address >= 1 << pa_bits {
            return Err(level);
        }
        if is_leaf {
            return Ok((address / bytes * bytes + va % bytes, bytes));
        }
        table = address >> granule_bits << granule_bits;
    }
    unreachable!("level 3 is a leaf or a fault")
}

proptest! {
    #[test]
    fn random_tables_agree_with_an_independent_walker(
        granule in 0usize..3,
        size in 16u64..=39,
        upper in any::<bool>(),
        ips in 0u64..8,
        descriptors in prop::collection::vec((any::<u64>(), 0u8..8), 64),
        picks in prop::collection::vec(any::<u64>(), 24),
    ) {
        let granule_bits = [12u32, 14, 16][granule];
        let va_bits = 64 - size as u32;
        let base = 0x10_0000u64;
        let tables = Tables::default();
        // Follow random addresses and plant a descriptor wherever the walk would read one that is not there yet.
        let mut supply = descriptors.into_iter().cycle();
        let mask = (1u64 << va_bits) - 1;
        let mut vas = Vec::new();
        for pick in &picks {
            let va = pick & mask;
            let mut table = base;
            for level in 0..4u32 {
                let shift = granule_bits + (granule_bits - 3) * (3 - level);
                if shift >= va_bits { continue }
                let width = (granule_bits - 3).min(va_bits - shift);
                let at = table + (va >> shift & ((1 << width) - 1)) * 8;
                if tables.get(at) == 0 {
                    let (random, kind) = supply.next().expect("cycles");
                    // Mostly tables at small addresses, so that walks go deep; sometimes anything.
                    let descriptor = match kind {
                        0 => random,
                        1 => random & !3 | 1 | AF,
                        _ => (random & 0xff) << granule_bits | 0x100_0000 | AF | 3,
                    };
                    tables.set(at, descriptor | AF);
                }
                table = tables.get(at) & 0xffff_ffff_f000 >> granule_bits << granule_bits;
            }
            vas.push(va);
        }
        let tg = if upper { [0b10, 0b01, 0b11] } else { [0b00, 0b10, 0b01] }[granule];
        let tcr = size | size << 16 | tg << if upper { 30 } else { 14 } | ips << 32;
        let regime = Regime { sctlr: 1, tcr, ttbr: [base; 2], mair: 0xff, ..Regime::default() };
        let pa_bits = [32, 36, 40, 42, 44, 44, 44, 44][ips as usize];
        for va in vas {
            let address = if upper { va | !mask } else { va };
            if upper != (address >> 55 & 1 != 0) { continue }
            let ours = translate(&regime, address, READ, &tables);
            match reference(&tables, granule_bits, va_bits, base, va, pa_bits) {
                Ok((pa, bytes)) => {
                    let ours = ours.expect("the reference walker found it");
                    prop_assert_eq!((ours.pa.raw(), 1u64 << ours.page_shift), (pa, bytes));
                }
                Err(code) => prop_assert_eq!(status(ours), code),
            }
        }
    }
}
