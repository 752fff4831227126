//! The writes that name instructions: those that every architecture has in a form of its own, and those that AArch64
//! alone has ([`perform`]).

mod dczva;
pub(crate) mod exclusive;
mod lse;
pub(crate) mod pair;
mod tablewalk;
pub(crate) mod unaligned;
pub(crate) mod vector;
pub(crate) mod words;

use abi::hypercall::{FEATURE_DC_ZVA, FEATURE_HAFDBS, FEATURE_LSE, Outcome};
use pagetable::HardwareUpdate;
use workload::{Data, How, Write};

use crate::guest::Machine;
use crate::guest::pattern::{Place, needs, word};

/// Performs a write of `vcpu` that no other architecture has.
///
/// # Errors
/// [`Outcome::Unsupported`].
pub(crate) fn perform(machine: &Machine, vcpu: usize, place: Place, write: &Write) -> Result<(), Outcome> {
    let features = &machine.features;
    let granule = machine.boot.tables.granule();
    // The page that a slot of this vCPU's live table maps.
    let slot = |slot| tablewalk::Slot::new(machine.space.layout().table_window(vcpu), slot, granule);
    match (write.how, write.data) {
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
        (How::Descriptor { slot: index }, Data::Bytes(bytes)) => {
            let hardware = features.hardware_update == HardwareUpdate::AccessFlagAndDirty;
            needs(hardware, FEATURE_HAFDBS)?;
            tablewalk::store_descriptor(place, word(bytes), slot(index));
        }
        (How::WalkedByRead { slot: index }, _) => tablewalk::read(slot(index)),
        // The write through the table that follows has the walker do it.
        (How::WalkedByWrite { .. }, _) => {}
        (How::ThroughTable { slot: index }, Data::Bytes(bytes)) => {
            tablewalk::write(slot(index), write.offset % granule.bytes(), word(bytes));
        }
        (how, data) => panic!("the plan combines {how:?} with {data:?}, which is no instruction"),
    }
    Ok(())
}
