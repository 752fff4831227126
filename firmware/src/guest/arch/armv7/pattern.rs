//! The writes that name instructions, by what ARMv7 has in their place. LSE, DC ZVA and a hardware-managed dirty state
//! it has not; no plan for ARMv7 asks for them.

pub(crate) mod exclusive;
pub(crate) mod pair;
pub(crate) mod unaligned;
pub(crate) mod vector;
pub(crate) mod words;

use abi::hypercall::Outcome;
use workload::Write;

use crate::guest::Machine;
use crate::guest::pattern::Place;

/// Performs a write that no other architecture has: there is none.
///
/// # Panics
/// Always: the plan is another architecture's.
pub(crate) fn perform(_machine: &Machine, _vcpu: usize, _place: Place, write: &Write) -> Result<(), Outcome> {
    panic!("the plan asks for {:?}, which ARMv7 does not have", write.how)
}
