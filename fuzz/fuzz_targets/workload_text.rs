//! The workload's text and wire forms: what parses survives the wire, and a plan of it writes only inside its region.
#![no_main]

use abi::{GuestRange, Tables, VaBits, map};
use libfuzzer_sys::fuzz_target;
use workload::{Geometry, Plan, Workload};

const REGION_BYTES: u64 = 1 << 20;
/// Writes looked at in one step: a step of a large workload has many, and one is like the next.
const WRITES: usize = 1000;

fuzz_target!(|text: &str| {
    let Ok(workload) = Workload::parse(text) else { return };
    let (pattern, params) = workload.encode();
    assert_eq!(Workload::decode(pattern, params).as_ref(), Ok(&workload));

    let region = GuestRange::new(map::REGION_BASE, REGION_BYTES).expect("the region does not wrap");
    for tables in VaBits::ALL.map(Tables::V8).into_iter().chain(Tables::ARMV7) {
        let Ok(plan) = Plan::new(&workload, 7, Geometry { region, tables, vcpus: 2 }) else { continue };
        for step in 0..3 {
            let mut left = WRITES;
            plan.for_each_write(1, step, |write| {
                if left > 0 {
                    left -= 1;
                    let end = write.offset.checked_add(u64::from(write.len)).expect("a write does not wrap");
                    assert!(end <= REGION_BYTES, "{write:?} leaves the region");
                }
            });
        }
    }
});
