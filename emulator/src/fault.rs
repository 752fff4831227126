//! Faults and their syndromes.

/// A synchronous exception that is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultInfo {}
