//! Properties of every pattern's plan, and golden values that host and guest of different builds must agree on.

use std::collections::{BTreeMap, BTreeSet};

use abi::{Arch, Gpa, Granule, GuestRange, Tables, VaBits, map};
use proptest::prelude::*;
use workload::{Data, Geometry, How, PAGE_BYTES, Pattern, Plan, PlanError, Workload, Write, descriptor, digest};

fn v8(granule: Granule) -> Tables {
    Tables::V8(VaBits::new(granule, 48).unwrap())
}

fn geometry(region_len: u64, granule: Granule, vcpus: u32) -> Geometry {
    geometry_on(v8(granule), region_len, vcpus)
}

fn geometry_on(tables: Tables, region_len: u64, vcpus: u32) -> Geometry {
    Geometry { region: GuestRange::new(map::REGION_BASE, region_len).unwrap(), tables, vcpus }
}

fn plan(text: &str, seed: u64, region_len: u64, vcpus: u32) -> Plan {
    Plan::new(&Workload::parse(text).unwrap(), seed, geometry(region_len, Granule::K4, vcpus)).unwrap()
}

fn writes(plan: &Plan, vcpu: u32, step: u64) -> Vec<Write> {
    let mut writes = Vec::new();
    plan.for_each_write(vcpu, step, |write| writes.push(write));
    writes
}

fn pages(writes: &[Write]) -> BTreeSet<u64> {
    writes.iter().flat_map(|write| write.offset / PAGE_BYTES..=(write.end() - 1) / PAGE_BYTES).collect()
}

/// Whether a write is one that its instruction can make.
fn is_well_formed(write: &Write) -> bool {
    let aligned = |to: u64| write.offset.is_multiple_of(to);
    let data_fits = match write.data {
        Data::Bytes(bytes) => write.len <= 16 && bytes[write.len as usize..].iter().all(|&byte| byte == 0),
        Data::Add(_) => write.len == 8 && aligned(8),
        Data::Random(_) | Data::Zero => write.len > 0,
    };
    let is_add = matches!(write.data, Data::Add(_));
    data_fits
        && match write.how {
            How::Store => !is_add && aligned(8),
            How::Unaligned => [2, 4, 8].contains(&write.len) && !aligned(u64::from(write.len)),
            How::Pair | How::Vector | How::Code { .. } => write.len == 16 && aligned(16),
            How::VectorPair => write.len == 32 && aligned(32),
            How::Increment | How::Exclusive | How::AtomicAdd => is_add,
            How::AtomicSwap | How::AtomicCas => write.len == 8 && aligned(8) && !is_add,
            How::ZeroBlock => write.data == Data::Zero && aligned(2048) && write.len.is_multiple_of(2048),
            How::Descriptor { .. }
            | How::WalkedByRead { .. }
            | How::WalkedByWrite { .. }
            | How::ThroughTable { .. } => write.len == 8 && aligned(8) && matches!(write.data, Data::Bytes(_)),
        }
}

fn any_case() -> impl Strategy<Value = (Plan, u64)> {
    let region_len = prop_oneof![Just(8 << 20), (4..128_u64).prop_map(|units| units << 16)];
    let tables: Vec<Tables> = Granule::ALL.map(v8).into_iter().chain(Tables::ARMV7).collect();
    let tables = proptest::sample::select(tables);
    (proptest::sample::select(Pattern::ALL.to_vec()), any::<u64>(), region_len, tables, 1..=8_u32, 0..9_u64)
        .prop_filter_map("fits its region", |(pattern, seed, region_len, tables, vcpus, step)| {
            let plan = Plan::new(&Workload::new(pattern), seed, geometry_on(tables, region_len, vcpus)).ok()?;
            Some((plan, step))
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn writes_are_in_bounds_well_formed_and_pure((plan, step) in any_case()) {
        let region_len = plan.geometry().region.len_bytes();
        for vcpu in 0..plan.geometry().vcpus {
            let first = writes(&plan, vcpu, step);
            for write in &first {
                prop_assert!(write.end() <= region_len, "{write:?}");
                prop_assert!(is_well_formed(write), "{write:?}");
            }
            prop_assert_eq!(first, writes(&plan, vcpu, step));
            plan.reads(vcpu, step, |offset| assert!(offset % 8 == 0 && offset < region_len));
        }
    }

    #[test]
    fn vcpus_commute_within_a_step((plan, step) in any_case()) {
        // Per byte: which vCPU stored there; `None` where it was added to.
        let mut owners = BTreeMap::new();
        for vcpu in 0..plan.geometry().vcpus {
            for write in writes(&plan, vcpu, step) {
                let owner = if matches!(write.data, Data::Add(_)) { None } else { Some(vcpu) };
                // Every plan aligns what vCPUs own to two bytes at least, but for unaligned, which owns whole pages.
                for byte in write.offset..write.end() {
                    let before = owners.insert(byte, owner);
                    prop_assert!(before.is_none_or(|before| before == owner), "byte {byte:#x}: {before:?} {owner:?}");
                }
            }
        }
    }

    #[test]
    fn a_word_is_added_to_or_stored_to_never_both((plan, _) in any_case()) {
        let mut is_added = BTreeMap::new();
        for (step, vcpu) in (0..5).flat_map(|step| (0..plan.geometry().vcpus).map(move |vcpu| (step, vcpu))) {
            for write in writes(&plan, vcpu, step) {
                let add = matches!(write.data, Data::Add(_));
                for word in write.offset / 8..=(write.end() - 1) / 8 {
                    prop_assert_eq!(*is_added.entry(word).or_insert(add), add, "word {:#x}", word * 8);
                }
            }
        }
    }

    #[test]
    fn dirtyram_touches_exactly_its_step(pages_total in 8..2000_u64, step_pages in 1..2000_u64, vcpus in 1..=8_u32) {
        let step_pages = step_pages.min(pages_total);
        let text = format!("dirtyram:pages={pages_total},step={step_pages}");
        let plan = plan(&text, 1, 8 << 20, vcpus);
        let all = |step| (0..vcpus).flat_map(|vcpu| pages(&writes(&plan, vcpu, step))).collect::<Vec<_>>();
        prop_assert_eq!(all(0), (0..pages_total).collect::<Vec<_>>());
        let touched = all(3);
        prop_assert_eq!(touched.len() as u64, step_pages);
        prop_assert_eq!(touched.iter().collect::<BTreeSet<_>>().len() as u64, step_pages);
        if vcpus == 1 && pages_total % step_pages == 0 {
            let stride = pages_total / step_pages;
            prop_assert!(touched.iter().enumerate().all(|(i, &page)| page == i as u64 * stride));
        }
    }

    /// The hardware's walker sets AF where it is clear, and clears AP\[2\] on a write where DBM is set. Nothing else.
    #[test]
    fn tablewalk_predicts_what_a_walker_does(seed: u64, vcpus in 1..=4_u32, granule in proptest::sample::select(Granule::ALL.to_vec())) {
        let plan = Plan::new(&Workload::new(Pattern::Tablewalk), seed, geometry(4 << 20, granule, vcpus)).unwrap();
        let mut region = vec![0; 4 << 20];
        for (step, vcpu) in (0..9).flat_map(|step| (0..vcpus).map(move |vcpu| (step, vcpu))) {
            let layout = plan.tablewalk_layout(vcpu).unwrap();
            let table = layout.table.checked_offset_from(map::REGION_BASE).unwrap();
            let mut stores_to_table = 0;
            let mut walks = 0;
            for write in writes(&plan, vcpu, step) {
                let at = write.offset as usize;
                let before = u64::from_le_bytes(region[at..at + 8].try_into().unwrap());
                write.apply(&mut region);
                let after = u64::from_le_bytes(region[at..at + 8].try_into().unwrap());
                let slot_at = |slot: u32| table + u64::from(slot) * 8;
                match write.how {
                    How::Descriptor { slot } => {
                        prop_assert_eq!(write.offset, slot_at(slot));
                        stores_to_table += 1;
                    }
                    How::WalkedByRead { slot } => {
                        prop_assert_eq!(write.offset, slot_at(slot));
                        prop_assert_eq!(before & descriptor::ACCESS_FLAG, 0);
                        prop_assert_eq!(after, before | descriptor::ACCESS_FLAG);
                        walks += 1;
                    }
                    How::WalkedByWrite { slot } => {
                        prop_assert_eq!(write.offset, slot_at(slot));
                        prop_assert_eq!(before & (descriptor::READ_ONLY | descriptor::DBM), descriptor::READ_ONLY | descriptor::DBM);
                        prop_assert_eq!(after, (before | descriptor::ACCESS_FLAG) & !descriptor::READ_ONLY);
                        walks += 1;
                    }
                    How::ThroughTable { slot } => {
                        let first = layout.first_page.checked_offset_from(map::REGION_BASE).unwrap();
                        let page = first + u64::from(slot) * granule.bytes();
                        prop_assert!((page..page + granule.bytes()).contains(&write.offset));
                        let entry = u64::from_le_bytes(region[slot_at(slot) as usize..][..8].try_into().unwrap());
                        let mapped = entry & 0x0000_ffff_ffff_f000 & !(granule.bytes() - 1);
                        prop_assert_eq!(mapped, map::REGION_BASE.raw() + page);
                        prop_assert_eq!(entry & descriptor::READ_ONLY, 0);
                    }
                    other => prop_assert!(false, "{other:?} in tablewalk"),
                }
            }
            prop_assert!(walks > 0, "step {} walks", step);
            prop_assert_eq!(stores_to_table == 0, step > 0 && step % 2 == 0, "even steps leave the table to the walker");
            // No descriptor in use is left for speculation to change.
            for slot in 0..layout.slots {
                let entry = &region[(table + u64::from(slot) * 8) as usize..][..8];
                prop_assert!(u64::from_le_bytes(entry.try_into().unwrap()) & descriptor::ACCESS_FLAG != 0);
            }
        }
    }
}

#[test]
fn every_pattern_says_what_it_needs_and_that_is_enough() {
    for tables in Granule::ALL.map(v8).into_iter().chain(Tables::ARMV7) {
        for pattern in Pattern::of(tables.arch()) {
            for vcpus in 1..=8 {
                let make = |len| Plan::new(&Workload::new(pattern), 1, geometry_on(tables, len, vcpus));
                let Err(PlanError::TooSmall { needed_bytes, available_bytes: 0, .. }) = make(0) else {
                    panic!("{pattern} fits in nothing");
                };
                let enough = needed_bytes.next_multiple_of(tables.granule().bytes());
                assert!(make(enough).is_ok(), "{pattern} {tables} {vcpus}: {:?}", make(enough));
                assert!(make(8 << 20).is_ok(), "{pattern} {tables} {vcpus} in the default region: {:?}", make(8 << 20));
            }
        }
    }
}

#[test]
fn plans_that_contradict_themselves_are_refused() {
    let make = |text, len, vcpus| Plan::new(&Workload::parse(text).unwrap(), 1, geometry(len, Granule::K4, vcpus));
    let error = make("dirtyram:pages=2K", 4 << 20, 1).unwrap_err();
    let expected = PlanError::TooSmall { pattern: Pattern::Dirtyram, needed_bytes: 8 << 20, available_bytes: 4 << 20 };
    assert_eq!(error, expected);
    assert!(error.to_string().contains("needs 8388608 bytes, but has 4194304"));
    assert!(matches!(make("full:pages=3", 4 << 20, 4), Err(PlanError::Parameter { key: "pages", min: 4, .. })));
    assert!(matches!(make("dirtyram:pages=9,step=10", 4 << 20, 1), Err(PlanError::Parameter { max: 9, .. })));
    assert!(matches!(make("tablewalk:slots=600", 4 << 20, 1), Err(PlanError::Parameter { max: 512, .. })));
    assert!(matches!(make("tablewalk:slots=9,writes=10", 4 << 20, 1), Err(PlanError::Parameter { max: 9, .. })));
    assert!(matches!(make("full", 4 << 20, 0), Err(PlanError::Vcpus(0))));
    assert!(matches!(make("full", 4 << 20, 9), Err(PlanError::Vcpus(9))));
    assert!(matches!(make("full", 4095, 1), Err(PlanError::Region { .. })));
}

#[test]
fn the_largest_regions_and_steps_do_not_overflow() {
    for pattern in Pattern::ALL {
        let plan = Plan::new(&Workload::new(pattern), u64::MAX, geometry(8 << 30, Granule::K64, 8)).unwrap();
        for step in [1 << 40, u64::MAX - 1, u64::MAX] {
            let mut seen = 0;
            plan.for_each_write(7, step, |write| {
                assert!(write.end() <= 8 << 30);
                seen += 1;
            });
            assert!(seen > 0 || matches!(pattern, Pattern::Readonly | Pattern::Mixed), "{pattern} {step}");
        }
    }
}

#[test]
fn readonly_reads_and_writes_nothing() {
    let plan = plan("readonly:reads=100", 5, 1 << 20, 3);
    for step in 1..5 {
        let mut reads = 0;
        for vcpu in 0..3 {
            assert_eq!(writes(&plan, vcpu, step), []);
            plan.reads(vcpu, step, |_| reads += 1);
        }
        assert_eq!(reads, 100);
    }
}

#[test]
fn shared_vcpus_write_the_same_pages() {
    let plan = plan("shared", 5, 1 << 20, 4);
    let first = pages(&writes(&plan, 0, 2));
    assert!((1..4).all(|vcpu| pages(&writes(&plan, vcpu, 2)) == first));
}

#[test]
fn armv7_has_no_lse_no_dczva_and_no_tablewalk() {
    let make = |text| Plan::new(&Workload::parse(text).unwrap(), 1, geometry_on(Tables::Lpae, 8 << 20, 2));
    for pattern in Pattern::ALL {
        let lacks = matches!(pattern, Pattern::Lse | Pattern::Dczva | Pattern::Tablewalk);
        assert_eq!(make(pattern.name()).is_err(), lacks, "{pattern}");
    }
    let error = make("lse").unwrap_err();
    assert_eq!(error, PlanError::Architecture { pattern: Pattern::Lse, arch: Arch::Armv7 });
    let names = "dirtyram, tstaeshm, stream, hotcold, full, unaligned, pair, exclusive, code, shared, readonly, mixed";
    assert_eq!(error.to_string(), format!("armv7 has nothing for the workload lse; use one of {names}"));
}

#[test]
fn mixed_on_armv7_gives_its_patterns_the_whole_region() {
    let make = |text| Plan::new(&Workload::parse(text).unwrap(), 5, geometry_on(Tables::Lpae, 8 << 20, 2));
    let plan = make("mixed:runs=11").unwrap();
    assert_eq!(plan.patterns().count(), 11);
    assert!((0..2).all(|vcpu| plan.tablewalk_layout(vcpu).is_none()));
    let touched: BTreeSet<u64> = (0..2).flat_map(|vcpu| pages(&writes(&plan, vcpu, 0))).collect();
    // Eleven equal shares: at most ten pages are left over.
    assert!(touched.len() >= 2048 - 10, "{}", touched.len());
    let runs = PlanError::Parameter { pattern: Pattern::Mixed, key: "runs", value: 12, min: 1, max: 11 };
    assert_eq!(make("mixed:runs=12"), Err(runs));
}

#[test]
fn mixed_runs_every_pattern_in_its_turn() {
    let plan = plan("mixed", 5, 8 << 20, 2);
    assert_eq!(plan.patterns().count(), 14);
    let mut kinds = std::collections::HashSet::new();
    let mut reads = 0;
    for (step, vcpu) in (1..41).flat_map(|step| [(step, 0), (step, 1)]) {
        kinds.extend(writes(&plan, vcpu, step).iter().map(|write| std::mem::discriminant(&write.how)));
        plan.reads(vcpu, step, |_| reads += 1);
    }
    assert_eq!(kinds.len(), 16, "every instruction of the plan");
    assert!(reads > 0);
}

#[test]
fn zeroed_blocks_were_filled_before() {
    let plan = plan("dczva", 5, 1 << 20, 1);
    let mut region = vec![0; 1 << 20];
    for step in 0..4 {
        let mut zeroed = 0;
        for write in writes(&plan, 0, step) {
            if write.how == How::ZeroBlock {
                zeroed += u32::from(region[write.offset as usize..write.end() as usize].iter().any(|&byte| byte != 0));
            }
            write.apply(&mut region);
        }
        assert_eq!(zeroed > 0, step > 1, "step {step}");
    }
}

#[test]
fn defaults_follow_the_originals() {
    let plan = |text| plan(text, 1, 8 << 20, 1);
    assert_eq!(plan("dirtyram").sleep_ms(), 10);
    assert_eq!(plan("dirtyram:sleep_ms=0").sleep_ms(), 0);
    assert_eq!(plan("tstaeshm").sleep_ms(), 0);
    assert_eq!(pages(&writes(&plan("dirtyram"), 0, 1)).len(), 10);
    assert!(plan("tstaeshm").tablewalk_layout(0).is_none());
}

#[test]
fn digests_are_the_published_ones() {
    // XXH3-64 of the reference implementation (xxhash 0.8): of no bytes, and, of 4096 zero bytes, pinned here.
    assert_eq!(digest::leaf(&[]), 0x2d06_8005_38d3_94c2);
    let zero = digest::leaf(&[0; PAGE_BYTES as usize]);
    assert_eq!(zero, ZERO_PAGE_LEAF);
    assert_eq!(digest::node(zero, Gpa::new(0x2000_0000), 1), ZERO_PAGE_NODE);
}

const ZERO_PAGE_LEAF: u64 = 0x93d7_6fe1_48c6_89ba;
const ZERO_PAGE_NODE: u64 = 0x0f97_32ff_5b64_1d4a;

/// For each pattern with seed 7, two vCPUs and 8 MiB: the first write of step 1, and a fingerprint of all writes and
/// reads of the steps 0 to 4. A change here means that guests and hosts of different builds disagree.
const GOLDEN: [(&str, &str, u64); 15] = [
    ("dirtyram", "0x0+8 [01, 00, 00, 00, 00, 00, 00, 00]", 0x1001a9ffe204d4eb),
    ("tstaeshm", "0x105260+8 [72, 30, f1, 0d, 21, ef, ac, 27]", 0x911ec2fedc8ecf7f),
    ("stream", "0x0+4096 [1d, 28, ee, 05, 0a, 4e, 9a, b3]", 0x05f977d5b87b0269),
    ("hotcold", "0x22a028+8 [91, 64, 93, 67, 7e, 13, 8e, a5]", 0xc9e9bbb5d16a2cf2),
    ("full", "0x2a1000+4096 [df, 79, db, 87, 89, 27, 30, ba]", 0x1394da604f177c86),
    ("unaligned", "0x24bffc+8 [e7, 87, 70, 8a, 0c, 3f, 9e, 27]", 0x746cd0906000c90b),
    ("pair", "0x284120+32 [c8, b6, ae, 84, 90, 93, 90, 40]", 0x9b18e524c35d5f3c),
    ("exclusive", "0x156000+8 [37, 00, 00, 00, 00, 00, 00, 00]", 0xa9a27bd2f58cce1b),
    ("lse", "0x1e2000+8 [62, 00, 00, 00, 00, 00, 00, 00]", 0x774fb3ea08aa6591),
    ("dczva", "0x160000+2048 [bf, 84, f7, be, c6, 6e, 4d, 59]", 0xbe0dbadeb48bfa89),
    ("tablewalk", "0x1c0+8 [83, 93, 03, 20, 00, 00, 68, 00]", 0xb2c4aff9fe4e0923),
    ("code", "0xd71d0+16 [a0, 74, 81, d2, 60, 20, a0, f2]", 0x39277b4e4cc954aa),
    ("shared", "0xa3280+64 [c7, da, b4, 54, 81, 6d, 81, d3]", 0x5832405937d2e3ef),
    ("readonly", "", 0xfac3e38de836cb30),
    ("mixed", "0x374028+8 [91, 64, 93, 67, 7e, 13, 8e, a5]", 0xa28377acdee63254),
];

#[test]
fn plans_are_golden() {
    for (pattern, golden) in Pattern::ALL.into_iter().zip(GOLDEN) {
        let plan = plan(pattern.name(), 7, 8 << 20, 2);
        let first = writes(&plan, 0, 1).first().map_or_else(String::new, |write| {
            let mut bytes = vec![0; write.len.min(8) as usize];
            write.fill(0, &mut bytes);
            format!("{:#x}+{} {bytes:02x?}", write.offset, write.len)
        });
        let found = (pattern.name(), first.as_str(), digest_of(&plan));
        assert_eq!(found, golden, "\n({:?}, {:?}, {:#018x}),", found.0, found.1, found.2);
    }
}

/// ARMv7's plans are AArch64's but for these two.
#[test]
fn plans_of_armv7_are_golden() {
    for (name, golden) in [("code", 0xa75e_471d_4812_cf45), ("mixed", 0x1822_1652_1f10_b342)] {
        let workload = Workload::parse(name).unwrap();
        let plan = Plan::new(&workload, 7, geometry_on(Tables::Lpae, 8 << 20, 2)).unwrap();
        assert_eq!(digest_of(&plan), golden, "{name}: {:#018x}", digest_of(&plan));
    }
    for pattern in Pattern::of(Arch::Armv7).filter(|pattern| !matches!(pattern, Pattern::Code | Pattern::Mixed)) {
        let armv7 = Plan::new(&Workload::new(pattern), 7, geometry_on(Tables::ARMV7[0], 8 << 20, 2)).unwrap();
        assert_eq!(digest_of(&armv7), digest_of(&plan(pattern.name(), 7, 8 << 20, 2)), "{pattern}");
    }
}

/// A digest of everything that both vCPUs do in the first steps.
fn digest_of(plan: &Plan) -> u64 {
    let mut stream = Vec::new();
    for (step, vcpu) in (0..5).flat_map(|step| [(step, 0), (step, 1)]) {
        plan.for_each_write(vcpu, step, |write| {
            stream.extend(write.offset.to_le_bytes());
            let at = stream.len();
            stream.resize(at + write.len as usize, 0);
            write.fill(0, &mut stream[at..]);
        });
        plan.reads(vcpu, step, |offset| stream.extend(offset.to_le_bytes()));
    }
    digest::leaf(&stream)
}
