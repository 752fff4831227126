//! A vCPU's registers on their way to another kernel or another accelerator: the two sides know different registers, and constants
//! differ. What becomes of each is a rule written down before, never luck.
//!
//! - [`table()`]: every id that KVM or the emulator lists, with its name and its [`Rule`]; docs/registers.md is made from it;
//! - [`translate()`]: from a source's registers to the writes that restore them at a destination, in order, with a named line
//!   ([`Note`]) for everything that is not simply copied, or the reasons why not ([`Refusal`]);
//! - [`constants`] and [`check_constants`]: what of it can be told before anything moves;
//! - [`unexplained`]: two vCPUs before and after a move, held against what was said of it; [`unexplained_to_guest`]: what a guest read;
//! - [`features`]: CPU compatibility by the fields of identification registers, and the [`features::Baseline`] of two machines;
//! - [`Snapshot`]: a list of registers as text, the form of the fixtures.
//!
//! ```text
//!  source's registers ──► views folded into generators ──► each of the destination's ids by its rule ──► writes, by Stage
//!                               features compared ──► Lack            ids that only the source has ──► notes, or a refusal
//! ```
//!
//! Neighbours: [`crate::backend::Vcpu`] lists, reads and writes the registers; nothing here does. The GIC, the machine's counter and
//! power are not registers of a vCPU and move by themselves.

#[cfg(test)]
mod accelerator_tests;
#[cfg(test)]
mod document;
pub mod features;
#[cfg(test)]
mod fixtures;
mod handshake;
mod id;
mod judge;
mod outcome;
mod rule;
mod seen;
mod snapshot;
mod table;
mod translate;
#[cfg(test)]
mod translate_tests;

use abi::Arch;

pub use self::features::{Baseline, Lack};
pub use self::handshake::{check_constants, constants};
pub use self::judge::unexplained;
pub use self::outcome::{Note, NoteKind, Reason, Refusal, Side, Translation, Unheld};
pub use self::rule::{Absent, Entry, Rule, Stage, Surplus};
pub use self::seen::unexplained_to_guest;
pub use self::snapshot::{MAX_REGISTERS, Snapshot, SnapshotError};
pub use self::table::{lookup, table};
pub use self::translate::translate;

/// What becomes of registers that the table does not know: `--unknown-registers`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum UnknownRegisters {
    /// The move is refused.
    #[default]
    Refuse,
    /// They are left behind while they are zero, or the same on both sides; otherwise the move is refused.
    IgnoreZero,
    /// They are left behind.
    Ignore,
}

/// What becomes of features that the guest was shown and the destination lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MissingFeatures {
    /// The move is refused.
    #[default]
    Refuse,
    /// They are named. For guests known not to use them.
    Name,
}

/// How to decide where the table does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    /// Registers that the table does not know.
    pub unknown: UnknownRegisters,
    /// Features that the destination lacks.
    pub features: MissingFeatures,
}

/// The vCPU that is moved.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// What its guest executes at EL1.
    pub arch: Arch,
    /// Every register that its accelerator lists: id and value, of a register wider than 16 bytes the low 16.
    pub registers: &'a [(u64, u128)],
    /// Those wider than 16 bytes that have a bit set above.
    pub wider: &'a [u64],
}

/// The vCPU that it becomes, before its first instruction.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// Every register that its accelerator lists, with its present value.
    pub registers: &'a [(u64, u128)],
    /// Of constants that may still be chosen: id and the bits ([`crate::backend::Vm::writable_features`]).
    pub writable: &'a [(u64, u64)],
}

/// Whether each id is there once, and each value fits its register.
fn check(registers: &[(u64, u128)], side: Side) -> Vec<Reason> {
    if registers.len() > MAX_REGISTERS {
        return vec![Reason::TooMany { side, count: registers.len() }];
    }
    let mut ids: Vec<u64> = registers.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    let twice = ids.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| Reason::Twice { side, id: pair[0] });
    let wide = registers.iter().filter(|(id, value)| value & !id::bits(*id) != 0);
    twice.chain(wide.map(|(id, value)| Reason::BadValue { side, id: *id, value: *value })).collect()
}
