//! Execution: [`run`] and, by file, the handlers of each group of instructions.

use crate::cpu::{Cpu, Stop};

/// Executes at most `budget` instructions, exactly.
pub fn run(_cpu: &mut Cpu, _budget: u64) -> Stop {
    Stop::Budget
}
