//! Executes the plan: every write by the instruction that the plan names.
//!
//! One file for each mechanism. The patterns of the command line are made of them: `dirtyram`, `stream`, `hotcold` and
//! `tstaeshm` of [`increment`] and [`store`], `full` of [`store`], `shared` of whatever its lines ask for, `mixed` of
//! all. Contract: no byte of the region outside the plan's writes is ever stored to.

mod code;
mod dczva;
mod exclusive;
mod increment;
mod lse;
mod pair;
mod readonly;
mod store;
mod tablewalk;
mod unaligned;
mod vector;

use abi::hypercall::{FEATURE_DC_ZVA, FEATURE_HAFDBS, FEATURE_LSE, FEATURE_SIMD, Outcome};
use pagetable::HardwareUpdate;
use workload::{Data, How, Write};

use crate::guest::Machine;

/// One vCPU's part of the plan, and where its writes go.
pub(crate) struct Executor {
    machine: &'static Machine,
    vcpu: usize,
}

impl Executor {
    /// The executor of `vcpu`.
    pub(crate) const fn new(machine: &'static Machine, vcpu: usize) -> Self {
        Self { machine, vcpu }
    }

    /// Executes `step`.
    ///
    /// # Errors
    /// [`Outcome::Unsupported`] and [`Outcome::WrongResult`].
    pub(crate) fn step(&mut self, step: u64) -> Result<(), Outcome> {
        let plan = &self.machine.plan;
        let vcpu = self.vcpu as u32;
        let aliases = Aliases::new(self.machine, self.vcpu, step);
        let mut result = Ok(());
        plan.for_each_write(vcpu, step, |write| {
            if result.is_ok() {
                result = aliases.perform(&write);
            }
        });
        plan.reads(vcpu, step, |offset| readonly::read(aliases.place(offset, size_of::<u64>() as u64)));
        result
    }
}

/// An address in a writable alias of the region, from which as many bytes as were asked for lie in the region.
#[derive(Clone, Copy)]
struct Place(u64);

/// How the region is reached in one step.
struct Aliases {
    machine: &'static Machine,
    /// The writable alias in use: both halves of the address space take turns, and differ between neighbouring vCPUs.
    /// Each serves two steps on end, so that a TLB entry that a broken harvest left behind is used again, and seen.
    data: u64,
    /// The executable alias.
    code: u64,
    /// What this vCPU's live table translates.
    table_window: u64,
}

impl Aliases {
    fn new(machine: &'static Machine, vcpu: usize, step: u64) -> Self {
        let space = &machine.space;
        let data = if (step / 2 + vcpu as u64).is_multiple_of(2) { space.region_high() } else { space.region_low() };
        Self { machine, data, code: space.region_code(), table_window: space.table_window(vcpu) }
    }

    /// The place at `offset` in the region.
    ///
    /// # Panics
    /// If `len_bytes` from there are not all in the region: the plan is broken.
    fn place(&self, offset: u64, len_bytes: u64) -> Place {
        let region_len = self.machine.boot.region.len_bytes();
        assert!(offset <= region_len && len_bytes <= region_len - offset, "the plan stays in its region");
        Place(self.data + offset)
    }

    /// Performs one write by the instruction it names.
    #[inline]
    fn perform(&self, write: &Write) -> Result<(), Outcome> {
        let features = &self.machine.features;
        let needs = |present: bool, feature: u64| if present { Ok(()) } else { Err(Outcome::Unsupported { feature }) };
        let place = self.place(write.offset, u64::from(write.len));
        match (write.how, write.data) {
            (How::Store, data) => store::store(place, write.len, data),
            (How::Unaligned, Data::Bytes(bytes)) => unaligned::store(place, write.len, bytes),
            (How::Pair, Data::Bytes(bytes)) => pair::store(place, bytes),
            (How::Vector, Data::Bytes(bytes)) => {
                needs(features.simd, FEATURE_SIMD)?;
                vector::store(place, bytes);
            }
            (How::VectorPair, _) => {
                needs(features.simd, FEATURE_SIMD)?;
                vector::store_pair(place, write);
            }
            (How::Increment, Data::Add(addend)) => increment::add(place, addend),
            (How::Exclusive, Data::Add(addend)) => exclusive::add(place, addend),
            (How::AtomicAdd, Data::Add(addend)) => {
                needs(features.lse, FEATURE_LSE)?;
                lse::add(place, addend);
            }
            (How::AtomicSwap, Data::Bytes(bytes)) => {
                needs(features.lse, FEATURE_LSE)?;
                lse::swap(place, word(bytes));
            }
            (How::AtomicCas, Data::Bytes(bytes)) => {
                needs(features.lse, FEATURE_LSE)?;
                lse::compare_and_swap(place, word(bytes));
            }
            (How::ZeroBlock, _) => {
                let block_bytes = features.zva_bytes.ok_or(Outcome::Unsupported { feature: FEATURE_DC_ZVA })?;
                dczva::zero(place, write.len, block_bytes);
            }
            (How::Code { returns }, Data::Bytes(bytes)) => {
                let found = code::write_and_call(place, self.code + write.offset, bytes);
                if found != returns {
                    let region = self.machine.boot.region;
                    let at = region.start().checked_add(write.offset).expect("the plan stays in its region");
                    return Err(Outcome::WrongResult { at, expected: returns, found });
                }
            }
            (How::Descriptor { slot }, Data::Bytes(bytes)) => {
                let hardware = features.hardware_update == HardwareUpdate::AccessFlagAndDirty;
                needs(hardware, FEATURE_HAFDBS)?;
                tablewalk::store_descriptor(place, word(bytes), self.slot(slot));
            }
            (How::WalkedByRead { slot }, _) => tablewalk::read(self.slot(slot)),
            // The write through the table that follows has the walker do it.
            (How::WalkedByWrite { .. }, _) => {}
            (How::ThroughTable { slot }, Data::Bytes(bytes)) => {
                let within = write.offset % self.machine.boot.tables.granule().bytes();
                tablewalk::write(self.slot(slot), within, word(bytes));
            }
            (how, data) => panic!("the plan combines {how:?} with {data:?}, which is no instruction"),
        }
        Ok(())
    }

    /// The page that `slot` of this vCPU's live table maps.
    fn slot(&self, slot: u32) -> tablewalk::Slot {
        tablewalk::Slot::new(self.table_window, slot, self.machine.boot.tables.granule())
    }
}

/// The 64-bit word that is stored as the first eight bytes.
fn word(bytes: [u8; 16]) -> u64 {
    u128::from_le_bytes(bytes) as u64
}
