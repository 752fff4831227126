//! A workload bound to a seed and a geometry. (Skeleton.)
use abi::{Granule, GuestRange};
use crate::Write;

/// Where a plan plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The region; its length is a multiple of the granule.
    pub region: GuestRange,
    /// The guest's granule (the `tablewalk` pattern's tables have its format).
    pub granule: Granule,
    /// Number of vCPUs that execute the plan.
    pub vcpus: u32,
}
/// Why a plan can't be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {}
/// The plan.
#[derive(Clone, Debug)]
pub struct Plan { geometry: Geometry }
impl Plan {
    /// Every write of `vcpu` in `step`, in program order.
    pub fn for_each_write(&self, vcpu: u32, step: u64, mut sink: impl FnMut(Write)) {
        let _ = (vcpu, step, &mut sink, self.geometry);
    }
}
